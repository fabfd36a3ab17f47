//! Close payloads against a second statement of the rules.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_websocket_fuzz::oracles::close::fuzz_close_payload(
    data
));
