//! UTF-8 in pieces.

use mod_websocket::proto::utf8::{Validator, whole};

/// Checks that any split of `data` gives the same result as the standard library.
pub fn fuzz_utf8_vs_std(data: &[u8]) {
    let Some((&cut, text)) = data.split_first() else { return };
    let mut validator = Validator::default();
    let mut valid = true;
    for piece in text.chunks(usize::from(cut % 17) + 1) {
        valid = valid && validator.push(piece);
    }
    valid = valid && validator.is_complete();
    assert_eq!(valid, core::str::from_utf8(text).is_ok());
    assert_eq!(whole(text).is_some(), core::str::from_utf8(text).is_ok());
}
