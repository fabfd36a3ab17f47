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

/// Cuts `data`, arriving in these reads, the way a connection does; the rest goes to `finish`.
fn cut<'a>(
    framing: &mut dyn Framing,
    reads: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<(Kind, Vec<u8>)>, &'static str> {
    let mut buffer = Vec::new();
    let mut messages = Vec::new();
    let mut take = |buffer: &mut Vec<u8>, piece| match piece {
        Piece::Wait => Ok(false),
        Piece::Message(kind, n) => {
            assert!(n >= 1 && n <= buffer.len(), "{n} of {}", buffer.len());
            messages.push((kind, buffer.drain(..n).collect()));
            Ok(true)
        }
        Piece::Discard(n) => {
            assert!(n >= 1 && n <= buffer.len(), "{n} of {}", buffer.len());
            drop(buffer.drain(..n));
            Ok(true)
        }
        Piece::Broken(reason) => Err(reason),
    };
    let mut ask = |buffer: &mut Vec<u8>, fresh: Option<usize>| {
        buffer.push(0);
        let piece = match fresh {
            Some(fresh) => framing.next(buffer, fresh),
            None => framing.finish(buffer),
        };
        buffer.pop();
        take(buffer, piece)
    };
    for read in reads.into_iter().filter(|read| !read.is_empty()) {
        buffer.extend_from_slice(read);
        let mut fresh = read.len();
        while !buffer.is_empty() && ask(&mut buffer, Some(fresh))? {
            fresh = 0;
        }
    }
    while !buffer.is_empty() && ask(&mut buffer, None)? {}
    Ok(messages)
}

/// Checks that the messages do not depend on how the stream is split over reads (a fuzz target).
#[doc(hidden)]
pub fn fuzz_framing_splits(data: &[u8]) {
    const FRAMINGS: [(&str, &str); 8] = [
        ("separator", r"\r\n\r\n"),
        ("separator", "aabaaa"),
        ("newline", "crlf"),
        ("newline", "lf"),
        ("fixedlength", "7"),
        ("dynamic32", ""),
        ("dynamic32", "offset=2,static=-1,endian=big"),
        ("json", ""),
    ];
    let Some((&[which, first, second], stream)) = data.split_first_chunk() else { return };
    let (name, config) = FRAMINGS[usize::from(which) % FRAMINGS.len()];
    let mut framing = make(name, Some(config)).expect("the configuration is right");
    let mut other = make(name, Some(config)).expect("the configuration is right");
    let whole = cut(&mut *framing, [stream]);
    let step = usize::from(first % 31) + 1;
    let (front, back) = stream.split_at(stream.len().min(usize::from(second)));
    let split = cut(&mut *other, front.chunks(step).chain(back.chunks(5 * step)));
    if name == "json" {
        // What is no JSON is passed on in the pieces in which it came: all is well up to there.
        let valid = |messages: &Result<Vec<(Kind, Vec<u8>)>, _>| -> Vec<Vec<u8>> {
            let messages = messages.as_ref().expect("it takes everything").iter();
            let texts = messages.take_while(|(kind, _)| *kind == Kind::Text);
            texts.map(|(_, bytes)| bytes.clone()).collect()
        };
        let (whole, split) = (valid(&whole), valid(&split));
        let common = whole.len().min(split.len());
        assert_eq!(whole[..common], split[..common]);
    } else {
        assert_eq!(whole, split, "{name} {config}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
