//! The framings: where a peer's byte stream is cut into messages, and of which type each one is.
//!
//! | file | framings |
//! |---|---|
//! | [`whole`] | `auto`, `binary`: whatever has arrived |
//! | [`separator`] | `separator`, `newline`: up to a sequence of bytes |
//! | [`length`] | `fixedlength`, `dynamic32`: as long as a number says |
//! | [`json`] | `json`: one value of RFC 8259 |
//! | [`registry`] | those that libraries register, and the functions that they call for it |
//!
//! A framing keeps how far it has looked, so a byte is looked at once however the stream is split over reads. Only its
//! own messages move the front of the buffer: between two of them the bytes that it has seen stay where they are.

use super::{Framing, Piece, kind};
use crate::proto::Kind;

pub mod json;
pub mod length;
pub mod registry;
pub mod separator;
pub mod whole;

/// The framing that is meant where none is named.
pub const DEFAULT: &str = "auto";

/// The framing `name`, set up with `config`; an error is a sentence for the administrator.
///
/// A library's framing takes precedence over a built-in one of the same name. Only to that one an empty configuration is
/// something else than none.
pub fn make(name: &str, config: Option<&str>) -> Result<Box<dyn Framing>, String> {
    if let Some(framing) = registry::make_registered(name, config) {
        return framing;
    }
    let builtin = registry::BUILTIN.iter().find(|builtin| builtin.name == name);
    builtin.map_or_else(
        || {
            let names: Vec<_> = registry::BUILTIN.iter().map(|builtin| builtin.name).collect();
            Err(format!(
                "there is no framing '{name}': there are {}, and what libraries have registered",
                names.join(", ")
            ))
        },
        |builtin| (builtin.make)(config.unwrap_or_default()),
    )
}

/// The buffer without the NUL byte behind it.
fn bytes(data: &[u8]) -> &[u8] {
    data.split_last().map_or(&[], |(_, bytes)| bytes)
}

/// All of the buffer as one binary message.
fn all_binary(data: &[u8]) -> Piece {
    match bytes(data).len() {
        0 => Piece::Wait,
        length => Piece::Message(Kind::Binary, length),
    }
}

/// A whole number as C writes it: decimal, hexadecimal after `0x`, octal after `0`.
fn number(text: &str) -> Option<u32> {
    let text = text.trim();
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    // A second sign is not a number, though the standard library takes it.
    if digits.starts_with(['+', '-']) { None } else { u32::from_str_radix(digits, radix).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracles::framing::{cut, fuzz_framing_splits};

    /// A message as the tables write it: `t` or `b`, and its bytes.
    pub(super) type Expected<'a> = (char, &'a [u8]);

    /// The messages that `stream` gives when it arrives in `reads`.
    pub(super) fn messages(name: &str, config: &str, reads: &[&[u8]]) -> Vec<(char, Vec<u8>)> {
        let mut framing = make(name, Some(config)).expect("the configuration is right");
        let messages = cut(&mut *framing, reads.iter().copied()).expect("the stream makes sense");
        messages.into_iter().map(|(kind, bytes)| (letter(kind), bytes)).collect()
    }

    fn letter(kind: Kind) -> char {
        if kind == Kind::Text { 't' } else { 'b' }
    }

    /// Checks the messages of `stream` in one read, in every two and three, and byte by byte.
    pub(super) fn check(name: &str, config: &str, stream: &[u8], expected: &[Expected<'_>]) {
        let expected: Vec<_> =
            expected.iter().map(|(kind, bytes)| (*kind, bytes.to_vec())).collect();
        let bytes: Vec<_> = stream.chunks(1).collect();
        assert_eq!(messages(name, config, &bytes), expected, "{name} {config}: {stream:?}");
        for a in 0..=stream.len() {
            for b in a..=stream.len() {
                let reads = [&stream[..a], &stream[a..b], &stream[b..]];
                assert_eq!(messages(name, config, &reads), expected, "{name} {config}: {reads:?}");
            }
        }
    }

    /// Checks that `config` is refused with a sentence that contains `word`.
    pub(super) fn refused(name: &str, config: &str, word: &str) {
        let error =
            make(name, Some(config)).err().unwrap_or_else(|| panic!("{name} took {config:?}"));
        assert!(error.contains(word), "{name} {config:?}: {error}");
    }

    #[test]
    fn an_unknown_framing_is_refused_with_the_names_of_those_that_exist() {
        refused("xml", "", "there is no framing 'xml'");
        refused("xml", "", "auto, binary, separator, newline, fixedlength, dynamic32, json");
        refused("", "", "there is no framing");
        refused("Auto", "", "there is no framing");
    }

    #[test]
    fn any_split_gives_the_same_messages() {
        let streams: [&[u8]; 4] = [
            b"aabaaaabaaab\r\n\r\r\n\r\nx\r\n\n\xff\n",
            b"\x02\0\0\0ab\x03\0\0\0abc\0\0\0\0\0\0xy\0\0\0\x02abcdefgh",
            br#"{"a":[1,2.5e3,"x\"\u00e9"]} true 12 "\\" []"#,
            b"[1,2]x[3]",
        ];
        for stream in streams {
            for which in 0..8 {
                for first in 0..31 {
                    for second in 0..=stream.len() as u8 {
                        fuzz_framing_splits(&[&[which, first, second], stream].concat());
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_are_written_as_in_c() {
        let table = [
            ("0", Some(0)),
            ("10", Some(10)),
            ("010", Some(8)),
            ("0x10", Some(16)),
            ("0XfF", Some(255)),
            (" 7 ", Some(7)),
            ("4294967295", Some(u32::MAX)),
            ("4294967296", None),
            ("", None),
            ("0x", None),
            ("08", None),
            ("+1", None),
            ("-1", None),
            ("0x+1", None),
            ("1k", None),
        ];
        for (text, value) in table {
            assert_eq!(number(text), value, "{text:?}");
        }
    }
}
