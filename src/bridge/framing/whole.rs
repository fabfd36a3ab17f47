//! `auto` and `binary`: whatever has arrived is a message, at once.

use super::{all_binary, bytes, kind};
use crate::{
    bridge::{Framing, Piece},
    proto::Kind,
};

/// `auto`: text if the bytes are UTF-8, binary otherwise.
///
/// A read may end inside a character. What precedes that character is sent, and its first bytes, three at most, wait for
/// the rest. They wait only as long as the peer has sent nothing but text: what a binary protocol sends may end in a byte
/// that merely looks like the start of a character, and must not be held back for it.
#[derive(Default)]
struct Auto {
    /// The peer has sent something that is not text.
    binary: bool,
}

/// `binary`: always binary.
struct Binary;

/// `auto`; it has no configuration.
pub(super) fn auto(_config: &str) -> Result<Box<dyn Framing>, String> {
    Ok(Box::new(Auto::default()))
}

/// `binary`; it has no configuration.
pub(super) fn binary(_config: &str) -> Result<Box<dyn Framing>, String> {
    Ok(Box::new(Binary))
}

impl Framing for Auto {
    fn next(&mut self, data: &mut [u8], _fresh: usize) -> Piece {
        let bytes = bytes(data);
        let Err(error) = simdutf8::compat::from_utf8(bytes) else { return self.finish(data) };
        if self.binary || error.error_len().is_some() {
            self.binary = true;
            return Piece::Message(Kind::Binary, bytes.len());
        }
        match error.valid_up_to() {
            0 => Piece::Wait,
            length => Piece::Message(Kind::Text, length),
        }
    }

    fn finish(&mut self, data: &mut [u8]) -> Piece {
        let bytes = bytes(data);
        if bytes.is_empty() { Piece::Wait } else { Piece::Message(kind(bytes), bytes.len()) }
    }
}

impl Framing for Binary {
    fn next(&mut self, data: &mut [u8], _fresh: usize) -> Piece {
        all_binary(data)
    }

    fn finish(&mut self, data: &mut [u8]) -> Piece {
        all_binary(data)
    }

    fn datagram(&self, _data: &[u8]) -> Kind {
        Kind::Binary
    }
}

#[cfg(test)]
mod tests {
    use crate::bridge::framing::tests::messages;

    /// What `auto` or `binary` makes of these reads: `t` or `b` and the bytes.
    fn check(name: &str, reads: &[&[u8]], expected: &[(char, &[u8])]) {
        let expected: Vec<_> =
            expected.iter().map(|(kind, bytes)| (*kind, bytes.to_vec())).collect();
        assert_eq!(messages(name, "", reads), expected, "{name}: {reads:?}");
    }

    #[test]
    fn auto_sends_what_has_arrived() {
        check("auto", &[b"abc", b"d"], &[('t', b"abc"), ('t', b"d")]);
        check("auto", &[b"a\0b\r\n"], &[('t', b"a\0b\r\n")]);
        check("auto", &[b"a\xff", b"b"], &[('b', b"a\xff"), ('t', b"b")]);
        // Overlong, a surrogate, above U+10FFFF, a lone continuation byte: none is UTF-8 (RFC 3629 §3).
        for invalid in [&b"\xc0\x80"[..], b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\x80"] {
            check("auto", &[invalid], &[('b', invalid)]);
        }
    }

    #[test]
    fn auto_waits_for_the_rest_of_a_character() {
        for character in ["é", "€", "🂡"] {
            let text = format!("a{character}b");
            let stream = text.as_bytes();
            for cut in 2..1 + character.len() {
                let expected: [(char, &[u8]); 2] = [('t', b"a"), ('t', &stream[1..])];
                check("auto", &[&stream[..cut], &stream[cut..]], &expected);
            }
            let bytes: Vec<_> = stream.chunks(1).collect();
            check("auto", &bytes, &[('t', b"a"), ('t', character.as_bytes()), ('t', b"b")]);
        }
    }

    #[test]
    fn auto_waits_for_three_bytes_at_most_and_not_for_ever() {
        check("auto", &[b"a\xe2\x82", b"(b"], &[('t', b"a"), ('b', b"\xe2\x82(b")]);
        check("auto", &[b"\xf0", b"\x9f", b"\x82", b"\xff"], &[('b', b"\xf0\x9f\x82\xff")]);
        // The peer's end decides.
        check("auto", &[b"a\xe2\x82"], &[('t', b"a"), ('b', b"\xe2\x82")]);
        // A peer that has sent binary data is not waited for.
        check(
            "auto",
            &[b"\xff", b"a\xe2", b"\x82\xac"],
            &[('b', b"\xff"), ('b', b"a\xe2"), ('b', b"\x82\xac")],
        );
        check("auto", &[b"\xff", b"text"], &[('b', b"\xff"), ('t', b"text")]);
    }

    #[test]
    fn binary_sends_what_has_arrived_as_binary() {
        check(
            "binary",
            &[b"abc", b"\xff", "é".as_bytes()],
            &[('b', b"abc"), ('b', b"\xff"), ('b', "é".as_bytes())],
        );
    }
}
