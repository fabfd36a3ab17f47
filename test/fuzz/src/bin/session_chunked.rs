//! A session hears the same however its bytes are cut.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    mod_websocket_fuzz::oracles::session::fuzz_session_chunked(data)
});
