//! Incremental validation of UTF-8 against the standard library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_websocket_fuzz::oracles::utf8::fuzz_utf8_vs_std(
    data
));
