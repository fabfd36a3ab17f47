//! The ring of channels over arbitrary memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_websocket_fuzz::oracles::channel::fuzz_ring(data));
