//! Drafts 76 and 75: the messages in arbitrary bytes are those that a second reading of the drafts finds.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mod_websocket_fuzz::oracles::draft::fuzz_draft_deframe(
    data
));
