//! Whole sessions against tungstenite, compressed ones with miniz_oxide on the client's side.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_websocket_fuzz::session::session_vs_tungstenite(
    data
));
