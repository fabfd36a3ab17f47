//! Frames are the same however their bytes are cut.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_websocket_fuzz::oracles::frame::fuzz_deframe(data));
