//! What the server compresses, inflated by miniz_oxide.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_websocket_fuzz::deflate::deflater_vs_miniz_oxide(
    data
));
