//! Opening requests with arbitrary header values.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_websocket_fuzz::oracles::handshake::fuzz_handshake(
    data
));
