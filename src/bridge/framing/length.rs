//! `fixedlength` and `dynamic32`: a number says how long a message is.

use super::{all_binary, bytes, number};
use crate::{
    bridge::{Framing, Piece},
    proto::Kind,
};

/// `fixedlength`: binary messages of so many bytes; 0 stands for whatever has arrived.
struct Fixed(usize);

/// `dynamic32`: binary messages that carry their length in 32 bits.
///
/// Such a message has `offset` bytes of anything, the 32-bit field, and as many bytes more as the field and `extra`
/// together say. All of it is sent, the field included.
#[derive(Debug, Eq, PartialEq)]
struct Dynamic {
    offset: u32,
    extra: i64,
    big_endian: bool,
}

/// `fixedlength`: the configuration is the length.
pub(super) fn fixed(config: &str) -> Result<Box<dyn Framing>, String> {
    let length = number(config).ok_or_else(|| {
        format!("the framing fixedlength needs a length in bytes, not '{config}'")
    })?;
    Ok(Box::new(Fixed(length as usize)))
}

/// `dynamic32`: see [`Dynamic::parse`].
pub(super) fn dynamic(config: &str) -> Result<Box<dyn Framing>, String> {
    Ok(Box::new(Dynamic::parse(config)?))
}

impl Dynamic {
    /// `offset=N`, `static=N` (which may be negative) and `endian=big|little`, separated by commas. What is not said is
    /// 0, 0 and little.
    fn parse(config: &str) -> Result<Self, String> {
        let mut parsed = Self { offset: 0, extra: 0, big_endian: false };
        for option in config.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let (key, value) = (key.trim(), value.trim());
            let wrong =
                |what| format!("the framing dynamic32 needs {what} after {key}=, not '{value}'");
            match key {
                "offset" => {
                    parsed.offset = number(value).ok_or_else(|| wrong("a number of bytes"))?;
                }
                "static" => {
                    let (sign, digits) =
                        value.strip_prefix('-').map_or((1, value), |digits| (-1, digits));
                    let size = number(digits).ok_or_else(|| wrong("a number of bytes"))?;
                    parsed.extra = sign * i64::from(size);
                }
                "endian" => {
                    parsed.big_endian = match value {
                        "big" => true,
                        "little" => false,
                        _ => return Err(wrong("big or little")),
                    }
                }
                _ => {
                    return Err(format!(
                        "the framing dynamic32 has no option '{key}': it knows offset, static and endian"
                    ));
                }
            }
        }
        Ok(parsed)
    }
}

impl Framing for Fixed {
    fn next(&mut self, data: &mut [u8], _fresh: usize) -> Piece {
        match self.0 {
            0 => all_binary(data),
            length if bytes(data).len() < length => Piece::Wait,
            length => Piece::Message(Kind::Binary, length),
        }
    }

    fn finish(&mut self, data: &mut [u8]) -> Piece {
        all_binary(data)
    }

    fn datagram(&self, _data: &[u8]) -> Kind {
        Kind::Binary
    }
}

impl Framing for Dynamic {
    fn next(&mut self, data: &mut [u8], _fresh: usize) -> Piece {
        let bytes = bytes(data);
        let field = bytes.get(self.offset as usize..).and_then(|rest| rest.first_chunk());
        let Some(&field) = field else { return Piece::Wait };
        let size =
            if self.big_endian { u32::from_be_bytes(field) } else { u32::from_le_bytes(field) };
        let behind = i64::from(size) + self.extra;
        let Ok(behind) = usize::try_from(behind) else {
            return Piece::Broken("The peer sent a length below the smallest");
        };
        match (self.offset as usize).checked_add(field.len()).and_then(|n| n.checked_add(behind)) {
            Some(length) if length <= bytes.len() => Piece::Message(Kind::Binary, length),
            _ => Piece::Wait,
        }
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
    use super::*;
    use crate::bridge::framing::{
        make,
        tests::{check, messages, refused},
    };

    #[test]
    fn fixedlength_cuts_at_each_multiple() {
        check("fixedlength", "3", b"abcdefgh", &[('b', b"abc"), ('b', b"def"), ('b', b"gh")]);
        check("fixedlength", "1", b"a\xff\0", &[('b', b"a"), ('b', b"\xff"), ('b', b"\0")]);
        check("fixedlength", "0x4", b"abcdefgh", &[('b', b"abcd"), ('b', b"efgh")]);
        check("fixedlength", "010", b"abcdefghi", &[('b', b"abcdefgh"), ('b', b"i")]);
        let reads: [&[u8]; 2] = [b"abc", b"d"];
        let whole = [('b', b"abc".to_vec()), ('b', b"d".to_vec())];
        assert_eq!(messages("fixedlength", "0", &reads), whole);
    }

    #[test]
    fn fixedlength_refuses_what_is_no_length() {
        for config in ["", "x", "-1", "1.5", "0x", "4294967296"] {
            refused("fixedlength", config, "needs a length in bytes");
        }
    }

    #[test]
    fn dynamic32_adds_its_parts_up() {
        let two: &[u8] = b"\x02\0\0\0ab\x00\0\0\0\x01\0\0\0c";
        check(
            "dynamic32",
            "",
            two,
            &[('b', b"\x02\0\0\0ab"), ('b', b"\0\0\0\0"), ('b', b"\x01\0\0\0c")],
        );
        check(
            "dynamic32",
            "endian=big",
            b"\0\0\0\x02ab\0\0\0\0",
            &[('b', b"\0\0\0\x02ab"), ('b', b"\0\0\0\0")],
        );
        check(
            "dynamic32",
            "offset=2",
            b"xy\x01\0\0\0azz\0\0\0\0",
            &[('b', b"xy\x01\0\0\0a"), ('b', b"zz\0\0\0\0")],
        );
        check(
            "dynamic32",
            "static=2",
            b"\x01\0\0\0abc\0\0\0\0de",
            &[('b', b"\x01\0\0\0abc"), ('b', b"\0\0\0\0de")],
        );
        // The field counts itself.
        check(
            "dynamic32",
            "static=-4",
            b"\x05\0\0\0a\x04\0\0\0",
            &[('b', b"\x05\0\0\0a"), ('b', b"\x04\0\0\0")],
        );
        check(
            "dynamic32",
            "offset=1,static=-0x2,endian=big",
            b"T\0\0\0\x03aT\0\0\0\x02T",
            &[('b', b"T\0\0\0\x03a"), ('b', b"T\0\0\0\x02"), ('b', b"T")],
        );
    }

    #[test]
    fn dynamic32_does_not_wrap_around() {
        let mut framing = make("dynamic32", Some("static=-4")).unwrap();
        let wrong = Piece::Broken("The peer sent a length below the smallest");
        assert_eq!(framing.next(&mut b"\x03\0\0\0abc\0".to_owned(), 7), wrong);
        let mut framing = make("dynamic32", Some("offset=8,static=0xffffffff")).unwrap();
        let mut data = [0xff; 64];
        assert_eq!(framing.next(&mut data, 63), Piece::Wait);
    }

    #[test]
    fn dynamic32_reads_its_options_in_any_order() {
        let parsed = |offset, extra, big_endian| Ok(Dynamic { offset, extra, big_endian });
        let table = [
            ("", parsed(0, 0, false)),
            ("offset=4", parsed(4, 0, false)),
            ("static=-4,offset=0x10,endian=big", parsed(16, -4, true)),
            (" endian=little , static = 010 ,", parsed(0, 8, false)),
            ("static=4294967295", parsed(0, 4_294_967_295, false)),
        ];
        for (config, expected) in table {
            assert_eq!(Dynamic::parse(config), expected, "{config:?}");
        }
        refused("dynamic32", "offset=-1", "a number of bytes after offset=");
        refused("dynamic32", "static=", "a number of bytes after static=");
        refused("dynamic32", "static=--1", "a number of bytes after static=");
        refused("dynamic32", "endian=middle", "big or little after endian=");
        refused("dynamic32", "length=4", "no option 'length'");
        refused("dynamic32", "offset", "a number of bytes after offset=");
    }
}
