//! `separator` and `newline`: a message ends with a sequence of bytes, which belongs to it.

use memchr::memmem;

use super::{all_binary, bytes, kind};
use crate::{
    bridge::{Framing, Piece},
    proto::Kind,
};

/// Where the next message ends.
struct Search {
    finder: memmem::Finder<'static>,
    /// The sequence does not start below this.
    searched: usize,
}

impl Search {
    fn new(sequence: Vec<u8>) -> Self {
        Self { finder: memmem::Finder::new(&sequence).into_owned(), searched: 0 }
    }

    /// The length of the message at the front, once all of it is there.
    fn next(&mut self, bytes: &[u8]) -> Option<usize> {
        let length = self.finder.needle().len();
        let from = self.searched.min(bytes.len());
        if let Some(at) = self.finder.find(&bytes[from..]) {
            self.searched = 0;
            return Some(from + at + length);
        }
        // The last bytes may be the beginning of the sequence.
        self.searched = bytes.len().saturating_sub(length - 1);
        None
    }
}

/// `separator`: binary messages.
struct Separator(Search);

/// `newline`: text if the line is UTF-8, binary otherwise.
struct Newline(Search);

/// `separator`: the configuration is the sequence, with the escapes of [`unescape`].
pub(super) fn separator(config: &str) -> Result<Box<dyn Framing>, String> {
    let sequence = unescape(config)?;
    if sequence.is_empty() {
        return Err("the framing separator needs the separator".into());
    }
    Ok(Box::new(Separator(Search::new(sequence))))
}

/// `newline`: the configuration names the sequence.
pub(super) fn newline(config: &str) -> Result<Box<dyn Framing>, String> {
    let sequence: &[u8] = match config {
        "crlf" => b"\r\n",
        "lfcr" => b"\n\r",
        "lf" => b"\n",
        "cr" => b"\r",
        _ => {
            return Err(format!(
                "the framing newline is one of crlf, lfcr, lf and cr, not '{config}'"
            ));
        }
    };
    Ok(Box::new(Newline(Search::new(sequence.to_vec()))))
}

/// The bytes that a separator's configuration stands for: itself, and `\r`, `\t`, `\n`, `\0`, `\f`, `\\` and `\xHH`.
fn unescape(config: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(config.len());
    let mut rest = config;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let letter = rest.chars().next();
        rest = &rest[letter.map_or(0, char::len_utf8)..];
        bytes.push(match letter {
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('n') => b'\n',
            Some('0') => 0,
            Some('f') => 0x0c,
            Some('\\') => b'\\',
            Some('x') => {
                let digits = rest.get(..2).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
                let Some(digits) = digits else {
                    return Err("a backslash and x in a separator take two hexadecimal digits".into());
                };
                rest = &rest[2..];
                u8::from_str_radix(digits, 16).map_err(|e| e.to_string())?
            }
            Some(other) => {
                return Err(format!(
                    "a separator has no escape '{other}': behind a backslash there is one of r, t, n, 0, f, x with two \
                     hexadecimal digits, or another backslash"
                ));
            }
            None => return Err("a separator ends in a single backslash: two stand for one".into()),
        });
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

impl Framing for Separator {
    fn next(&mut self, data: &mut [u8], _fresh: usize) -> Piece {
        self.0.next(bytes(data)).map_or(Piece::Wait, |n| Piece::Message(Kind::Binary, n))
    }

    fn finish(&mut self, data: &mut [u8]) -> Piece {
        all_binary(data)
    }

    fn datagram(&self, _data: &[u8]) -> Kind {
        Kind::Binary
    }
}

impl Framing for Newline {
    fn next(&mut self, data: &mut [u8], _fresh: usize) -> Piece {
        let bytes = bytes(data);
        self.0.next(bytes).map_or(Piece::Wait, |n| Piece::Message(kind(&bytes[..n]), n))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::bridge::framing::{
        make,
        tests::{check, messages, refused},
    };

    #[test]
    fn separator_cuts_behind_each_separator() {
        check(
            "separator",
            ";",
            b"a;bc;;d",
            &[('b', b"a;"), ('b', b"bc;"), ('b', b";"), ('b', b"d")],
        );
        check("separator", r"\r\n", b"a\rb\r\nc\r\r\n", &[('b', b"a\rb\r\n"), ('b', b"c\r\r\n")]);
        // It overlaps itself, and begins anew inside itself.
        check("separator", "aab", b"aaab", &[('b', b"aaab")]);
        check("separator", "aa", b"aaaaa", &[('b', b"aa"), ('b', b"aa"), ('b', b"a")]);
        check("separator", "abab", b"abaabababab", &[('b', b"abaabab"), ('b', b"abab")]);
        check(
            "separator",
            "long separator",
            b"xlong separatolong separatory",
            &[('b', b"xlong separatolong separator"), ('b', b"y")],
        );
    }

    #[test]
    fn separator_knows_its_escapes() {
        let table: [(&str, &[u8]); 12] = [
            (r"\r", b"\r"),
            (r"\t", b"\t"),
            (r"\n", b"\n"),
            (r"\0", b"\0"),
            (r"\f", b"\x0c"),
            (r"\\", b"\\"),
            (r"\x1f", b"\x1f"),
            (r"\x0a", b"\n"),
            (r"\xFf", b"\xff"),
            (r"\\x41", b"\\x41"),
            (r"a\x00b\r\n", b"a\0b\r\n"),
            ("€ ", "€ ".as_bytes()),
        ];
        for (config, sequence) in table {
            let stream = [b"1", sequence, b"2"].concat();
            check("separator", config, &stream, &[('b', &[b"1", sequence].concat()), ('b', b"2")]);
        }
        for value in 0..=255 {
            assert_eq!(unescape(&format!(r"\x{value:02x}")), Ok(vec![value]));
            assert_eq!(unescape(&format!(r"\x{value:02X}1")), Ok(vec![value, b'1']));
        }
    }

    #[test]
    fn separator_refuses_what_it_does_not_know() {
        refused("separator", "", "needs the separator");
        refused("separator", r"a\q", "no escape 'q'");
        refused("separator", r"\ä", "no escape 'ä'");
        refused("separator", r"a\", "single backslash");
        for config in [r"\x", r"\x1", r"\x1g", r"\x+1", r"\xä", r"\x1ä"] {
            refused("separator", config, "two hexadecimal digits");
        }
    }

    #[test]
    fn newline_cuts_behind_each_line() {
        check(
            "newline",
            "crlf",
            b"a\nb\r\n\r\nc",
            &[('t', b"a\nb\r\n"), ('t', b"\r\n"), ('t', b"c")],
        );
        check("newline", "lfcr", b"a\r\n\rb\n\r", &[('t', b"a\r\n\r"), ('t', b"b\n\r")]);
        check("newline", "lf", b"a\r\n\nb", &[('t', b"a\r\n"), ('t', b"\n"), ('t', b"b")]);
        check("newline", "cr", b"a\r\nb\r", &[('t', b"a\r"), ('t', b"\nb\r")]);
    }

    #[test]
    fn newline_sends_text_only_if_the_line_is_utf8() {
        let stream = b"t\nb\xff\nt\n\xc3\xa9\n\xc3\n\xa9\n\xe2\x82";
        check(
            "newline",
            "lf",
            stream,
            &[
                ('t', b"t\n"),
                ('b', b"b\xff\n"),
                ('t', b"t\n"),
                ('t', b"\xc3\xa9\n"),
                ('b', b"\xc3\n"),
                ('b', b"\xa9\n"),
                ('b', b"\xe2\x82"),
            ],
        );
    }

    #[test]
    fn newline_refuses_other_names() {
        for config in ["", "CRLF", "lf ", "nl"] {
            refused("newline", config, "one of crlf, lfcr, lf and cr");
        }
    }

    #[test]
    fn a_line_that_arrives_byte_by_byte_costs_linear_time() {
        // The buffer is the same from call to call; only its visible end moves.
        let mut data = vec![b'a'; (1 << 20) + 1];
        let mut framing = make("separator", Some(r"\r\n\r\n")).unwrap();
        let start = Instant::now();
        for end in 1..data.len() {
            assert_eq!(framing.next(&mut data[..=end], 1), Piece::Wait);
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert_eq!(messages("separator", "b", &[b"ab"]), [('b', b"ab".to_vec())]);
    }
}
