//! The masking transform (RFC 6455 §5.3).
//!
//! It is its own inverse: octet *i* of a frame's payload is XORed with octet *i* mod 4 of the key. A payload
//! may arrive in pieces, so a [`Mask`] carries the phase from one piece to the next.

/// A masking key together with how far into it the next payload byte is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mask {
    /// The key in little-endian order, rotated so that its first octet belongs to the next byte.
    key: u32,
}

impl Mask {
    /// The mask at the start of a payload.
    pub fn new(key: [u8; 4]) -> Self {
        Self { key: u32::from_le_bytes(key) }
    }

    /// Transforms the next piece of the payload in place, and says whether what comes out is all ASCII, which is
    /// known on the way.
    #[inline]
    pub fn apply(&mut self, data: &mut [u8]) -> bool {
        let wide = (u64::from(self.key) << 32) | u64::from(self.key);
        let ascii = if data.len() < LARGE { words(data, wide) } else { vectors(data, wide) };
        self.key = self.key.rotate_right(data.len() as u32 % 4 * 8);
        ascii
    }
}

/// From this size on it pays to ask for the processor's widest vectors.
const LARGE: usize = 256;
/// The top bits of eight bytes, which none of ASCII has.
const NOT_ASCII: u64 = 0x8080_8080_8080_8080;

/// The transform over words; the compiler makes vectors of them.
#[inline(always)]
fn words(data: &mut [u8], wide: u64) -> bool {
    let mut seen = 0;
    let mut chunks = data.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let eight: &mut [u8; 8] = chunk.try_into().expect("chunks_exact_mut(8) gives 8");
        let word = u64::from_le_bytes(*eight) ^ wide;
        seen |= word;
        *eight = word.to_le_bytes();
    }
    let mut key = wide;
    for byte in chunks.into_remainder() {
        *byte ^= key as u8;
        seen |= u64::from(*byte);
        key >>= 8;
    }
    seen & NOT_ASCII == 0
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the compiler cannot know which processor it will be")]
fn vectors(data: &mut [u8], wide: u64) -> bool {
    /// `words` for vectors of 32 bytes.
    ///
    /// # Safety
    /// - The processor has AVX2.
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(data: &mut [u8], wide: u64) -> bool {
        words(data, wide)
    }
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: is_x86_feature_detected! has just said that AVX2 is there.
        return unsafe { avx2(data, wide) };
    }
    words(data, wide)
}

#[cfg(not(target_arch = "x86_64"))]
fn vectors(data: &mut [u8], wide: u64) -> bool {
    words(data, wide)
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
        for len in (0..70).chain(LARGE..LARGE + 70) {
            for offset in 0..9 {
                for phase in 0..4 {
                    let mut ours: Vec<u8> = (0..offset + phase + len).map(|i| i as u8).collect();
                    let mut theirs = ours.clone();
                    let mut mask = Mask::new(key);
                    let (first, second) = ours[offset..].split_at_mut(phase);
                    mask.apply(first);
                    assert_eq!(mask.apply(second), second.is_ascii());
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
