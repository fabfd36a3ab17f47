//! The masking transform (RFC 6455 §5.3).
//!
//! It is its own inverse: octet *i* of a frame's payload is XORed with octet *i* mod 4 of the key. A payload
//! may arrive in pieces, so a [`Mask`] carries the phase from one piece to the next.

/// A masking key together with how far into it the next payload byte is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mask {
    /// The key, rotated so that its first octet belongs to the next byte.
    key: [u8; 4],
}

impl Mask {
    /// The mask at the start of a payload.
    pub fn new(key: [u8; 4]) -> Self {
        Self { key }
    }

    /// Transforms the next piece of the payload in place.
    ///
    /// Small payloads take one pass over words; larger ones are left to the compiler's vectors.
    #[inline]
    pub fn apply(&mut self, data: &mut [u8]) {
        let word = u32::from_ne_bytes(self.key);
        let wide = u64::from(word) << 32 | u64::from(word);
        let mut chunks = data.chunks_exact_mut(8);
        for chunk in &mut chunks {
            let eight: &mut [u8; 8] = chunk.try_into().expect("chunks_exact_mut(8) gives 8");
            *eight = (u64::from_ne_bytes(*eight) ^ wide).to_ne_bytes();
        }
        let rest = chunks.into_remainder();
        for (byte, key) in rest.iter_mut().zip(wide.to_ne_bytes()) {
            *byte ^= key;
        }
        self.key.rotate_left(rest.len() % 4);
    }
}

/// Unmasks arbitrary payloads in arbitrary pieces as the RFC's formula does (a fuzz target).
#[doc(hidden)]
pub fn fuzz_mask_vs_naive(data: &[u8]) {
    let Some((&[a, b, c, d, first, size], payload)) = data.split_first_chunk() else { return };
    let key = [a, b, c, d];
    let mut ours = payload.to_vec();
    let mut mask = Mask::new(key);
    // The first piece shifts the phase and the alignment of those behind it.
    let (head, tail) = ours.split_at_mut(usize::from(first).min(payload.len()));
    mask.apply(head);
    for piece in tail.chunks_mut(usize::from(size) + 1) {
        mask.apply(piece);
    }
    for (i, (ours, theirs)) in ours.iter().zip(payload).enumerate() {
        assert_eq!(*ours, theirs ^ key[i % 4], "byte {i} of {}", payload.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three lines of the RFC.
    fn naive(key: [u8; 4], phase: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte ^= key[(phase + i) % 4];
        }
    }

    #[test]
    fn matches_the_naive_transform_for_each_length_phase_and_alignment() {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        for len in 0..70 {
            for offset in 0..9 {
                for phase in 0..4 {
                    let mut ours: Vec<u8> = (0..offset + phase + len).map(|i| i as u8).collect();
                    let mut theirs = ours.clone();
                    let mut mask = Mask::new(key);
                    let (first, second) = ours[offset..].split_at_mut(phase);
                    mask.apply(first);
                    mask.apply(second);
                    naive(key, 0, &mut theirs[offset..]);
                    assert_eq!(ours, theirs, "length {len}, offset {offset}, phase {phase}");
                }
            }
        }
    }

    #[test]
    fn the_phase_survives_any_cut() {
        let data: Vec<u8> = (0..200).map(|i| (i * 7) as u8).collect();
        let mut whole = data.clone();
        naive([1, 2, 3, 4], 0, &mut whole);
        for a in 0..data.len() {
            for b in [a, a + 1, a + 5, a + 13].into_iter().filter(|&b| b <= data.len()) {
                let mut cut = data.clone();
                let mut mask = Mask::new([1, 2, 3, 4]);
                mask.apply(&mut cut[..a]);
                mask.apply(&mut cut[a..b]);
                mask.apply(&mut cut[b..]);
                assert_eq!(cut, whole, "cut at {a} and {b}");
            }
        }
    }
}
