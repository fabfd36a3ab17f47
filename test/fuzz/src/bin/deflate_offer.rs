//! Negotiation over arbitrary text.
#![no_main]

libfuzzer_sys::fuzz_target!(
    |data: &[u8]| mod_websocket_fuzz::oracles::deflate::fuzz_deflate_offer(data)
);
