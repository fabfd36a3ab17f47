//! Incremental validation of UTF-8 (RFC 6455 §8.1, RFC 3629).
//!
//! A text message may be cut anywhere, also inside a character. [`Validator`] keeps the bytes of an
//! unfinished character (three at most) from one piece to the next and fails at the first byte after
//! which no continuation could be valid.

/// `bytes` as text if all of it is valid and complete.
#[inline]
pub fn whole(bytes: &[u8]) -> Option<&str> {
    simdutf8::basic::from_utf8(bytes).ok()
}

/// The state of a text between two of its pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Validator {
    /// The first bytes of a character whose rest has not arrived.
    pending: [u8; 4],
    /// How many of `pending` are in use, 0 to 3.
    len: u8,
}

impl Validator {
    /// Takes the next piece; `false` as soon as the text cannot become valid any more.
    #[must_use]
    pub fn push(&mut self, mut piece: &[u8]) -> bool {
        while self.len > 0 {
            let Some((&byte, rest)) = piece.split_first() else { return true };
            let len = usize::from(self.len);
            self.pending[len] = byte;
            match core::str::from_utf8(&self.pending[..=len]) {
                Ok(_) => self.len = 0,
                // A character has four bytes at most, so a fourth one decides: `len` stays below 4.
                Err(e) if e.error_len().is_none() => self.len += 1,
                Err(_) => return false,
            }
            piece = rest;
        }
        let Err(e) = simdutf8::compat::from_utf8(piece) else { return true };
        if e.error_len().is_some() {
            return false;
        }
        let tail = &piece[e.valid_up_to()..];
        self.pending[..tail.len()].copy_from_slice(tail);
        self.len = tail.len() as u8;
        true
    }

    /// Whether the text may end here: no character is unfinished.
    pub fn is_complete(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracles::utf8::fuzz_utf8_vs_std;

    /// Whether some continuation of `bytes` is valid, asked of the standard library.
    fn repairable(bytes: &[u8]) -> bool {
        core::str::from_utf8(bytes).map_or_else(|e| e.error_len().is_none(), |_| true)
    }

    #[test]
    fn fails_at_the_first_byte_that_cannot_be_repaired() {
        // All sequences of lead and continuation bytes around the borders of RFC 3629's table.
        let border = [
            0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf, 0xe0,
            0xe1, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5, 0xff,
        ];
        for a in border {
            for b in border {
                for c in border {
                    for d in border {
                        let text = [a, b, c, d];
                        let mut validator = Validator::default();
                        for n in 1..=4 {
                            let ok = validator.push(&text[n - 1..n]);
                            assert_eq!(ok, repairable(&text[..n]), "{:x?}", &text[..n]);
                            if !ok {
                                break;
                            }
                            let complete = core::str::from_utf8(&text[..n]).is_ok();
                            assert_eq!(validator.is_complete(), complete, "{:x?}", &text[..n]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn any_split_of_a_text_is_valid() {
        let text = "κόσμε 🂡 \u{10ffff} a\u{0}b \u{d7ff}\u{e000}".repeat(9);
        for a in 0..=text.len() {
            let mut validator = Validator::default();
            assert!(validator.push(&text.as_bytes()[..a]));
            assert!(validator.push(&text.as_bytes()[a..]));
            assert!(validator.is_complete());
        }
        for a in 0..=255 {
            fuzz_utf8_vs_std(&[&[a], text.as_bytes()].concat());
        }
    }
}
