//! Masks (RFC 6455 §5.3).

use mod_websocket::proto::mask::Mask;

/// Unmasks arbitrary payloads in arbitrary pieces as the RFC's formula does.
pub fn fuzz_mask_vs_naive(data: &[u8]) {
    let Some((&[a, b, c, d, first, size], payload)) = data.split_first_chunk() else { return };
    let key = [a, b, c, d];
    let mut ours = payload.to_vec();
    let mut mask = Mask::new(key);
    // The first piece shifts the phase and the alignment of those behind it.
    let (head, tail) = ours.split_at_mut(usize::from(first).min(payload.len()));
    assert_eq!(mask.apply(head), head.is_ascii());
    for piece in tail.chunks_mut(usize::from(size) + 1) {
        assert_eq!(mask.apply(piece), piece.is_ascii());
    }
    for (i, (ours, theirs)) in ours.iter().zip(payload).enumerate() {
        assert_eq!(*ours, theirs ^ key[i % 4], "byte {i} of {}", payload.len());
    }
}
