//! Arbitrary bytes inflate to an error or a bounded message.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_websocket::proto::deflate::fuzz_inflate_bounded(
    data
));
