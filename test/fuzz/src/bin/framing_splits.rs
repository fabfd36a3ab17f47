//! The bridge's framings: the messages of a stream do not depend on how it is split over reads.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    mod_websocket_fuzz::oracles::framing::fuzz_framing_splits(data)
});
