//! permessage-deflate (RFC 7692).

use mod_websocket::{
    buffer::Buffer,
    limits::memory::UNLIMITED,
    proto::deflate::{Inflater, Params, Policy, negotiate},
};

/// Negotiates over arbitrary text; an answer keeps what was offered.
pub fn fuzz_deflate_offer(data: &[u8]) {
    let Ok(text) = core::str::from_utf8(data) else { return };
    let policy = Policy {
        server_takeover: true,
        client_takeover: true,
        server_window: 15,
        client_window: 12,
    };
    if let Some(params) = negotiate(text, &policy) {
        assert!(text.to_ascii_lowercase().contains("permessage-deflate"));
        for bits in [params.server_max_window_bits, params.client_max_window_bits] {
            assert!(bits.is_none_or(|bits| (9..=15).contains(&bits)));
        }
        // What we answer is itself a legal offer with the same meaning.
        assert_eq!(negotiate(&params.to_string(), &policy), Some(params));
    }
}

/// Inflates arbitrary bytes under a limit: an error or a bounded message.
pub fn fuzz_inflate_bounded(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let limit = usize::from(cut) * 64;
    let params = Params {
        server_no_context_takeover: true,
        client_no_context_takeover: cut & 1 != 0,
        server_max_window_bits: None,
        client_max_window_bits: Some(9 + cut % 7),
    };
    let mut inflater = Inflater::new(&params, &UNLIMITED);
    for message in bytes.chunks(97) {
        let mut out = Buffer::new(&UNLIMITED);
        for piece in message.chunks(usize::from(cut) % 13 + 1) {
            if inflater.push(piece, &mut out, limit).is_err() {
                return;
            }
        }
        let result = inflater.finish(&mut out, limit);
        assert!(out.capacity() <= limit + 1);
        if result.is_err() {
            return;
        }
        assert!(out.len() <= limit);
    }
}
