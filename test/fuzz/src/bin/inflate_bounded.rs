//! Arbitrary bytes inflate to an error or a bounded message.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    mod_websocket_fuzz::oracles::deflate::fuzz_inflate_bounded(data)
});
