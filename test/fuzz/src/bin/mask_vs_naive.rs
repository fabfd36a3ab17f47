//! Unmasking against the RFC's formula.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_websocket_fuzz::oracles::mask::fuzz_mask_vs_naive(
    data
));
