//! Frame headers in and out, and the cutting of a byte stream into frames (RFC 6455 §5.2).
//!
//! The [`Deframer`] never buffers a payload: it unmasks what has arrived where it lies and reports it as a
//! [`PayloadPiece`]. Only a header that is cut by the end of the input is kept, 13 bytes at most.

use core::ops::Range;

use super::{Violation, deflate::most_compressed, mask::Mask};

/// FIN, the top bit of a frame's first byte.
pub const FIN: u8 = 0x80;
/// RSV1: the message is compressed (RFC 7692 §6).
pub const RSV1: u8 = 0x40;
/// RSV2 and RSV3, which no extension here uses.
const RSV23: u8 = 0x30;
/// MASK, the top bit of the second byte.
const MASKED: u8 = 0x80;
/// The longest header of a client: two bytes, a 64-bit length, a key.
const LONGEST: usize = 14;
/// The longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_MAX: usize = 125;

/// What a frame is (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Opcode {
    /// Continues a fragmented message.
    Continuation = 0x0,
    /// Starts a text message.
    Text = 0x1,
    /// Starts a binary message.
    Binary = 0x2,
    /// Closes the connection.
    Close = 0x8,
    /// Asks for a Pong.
    Ping = 0x9,
    /// Answers a Ping, or a sign of life.
    Pong = 0xa,
}

impl Opcode {
    /// The opcode in a frame's first byte.
    const fn of(first: u8) -> Option<Self> {
        Some(match first & 0x0f {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Whether frames of this opcode control the connection instead of carrying a message.
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// What the first byte of a frame says.
#[derive(Clone, Copy)]
struct First {
    fin: bool,
    compressed: bool,
    opcode: Opcode,
}

impl First {
    /// What it says where a message is `open`, or none is.
    const fn of(first: u8, open: bool) -> Result<Self, Violation> {
        let Some(opcode) = Opcode::of(first) else { return Err(Violation::UnknownOpcode) };
        let fin = first & FIN != 0;
        let compressed = first & RSV1 != 0;
        // RFC 7692 §6.1: RSV1 belongs on the first frame of a message and nowhere else.
        let starts = matches!(opcode, Opcode::Text | Opcode::Binary);
        if first & RSV23 != 0 || compressed && !starts {
            return Err(Violation::ReservedBits);
        }
        // §5.5: control frames must not be fragmented.
        if opcode.is_control() && !fin {
            return Err(Violation::ControlFragmented);
        }
        // §5.4: fragments of one message must not be interleaved with another one.
        if starts && open {
            return Err(Violation::MessageInterrupted);
        }
        if matches!(opcode, Opcode::Continuation) && !open {
            return Err(Violation::NothingToContinue);
        }
        Ok(Self { fin, compressed, opcode })
    }
}

/// [`First::of`] for each byte, with and without an open message: looking it up takes less than deciding it.
static FIRST: [[Result<First, Violation>; 256]; 2] = {
    let mut table = [[Err(Violation::UnknownOpcode); 256]; 2];
    let mut byte = 0;
    while byte < 256 {
        table[0][byte] = First::of(byte as u8, false);
        table[1][byte] = First::of(byte as u8, true);
        byte += 1;
    }
    table
};

/// What a header is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// permessage-deflate was negotiated, which gives RSV1 its meaning.
    pub deflate: bool,
    /// A message has begun that has not ended.
    pub open: bool,
    /// The longest payload of a control frame, besides [`CONTROL_MAX`].
    pub max_control: u64,
    /// The longest payload of a data frame; of one with RSV1, to which it may be inflated.
    pub max_data: u64,
}

/// A client's frame header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// The last frame of its message.
    pub fin: bool,
    /// RSV1 is set: the message is compressed.
    pub compressed: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// The payload's length in bytes, below 2^63.
    pub len: u64,
    /// The masking key.
    pub mask: Mask,
}

impl Header {
    /// Reads a header from the front of `bytes` and says how long it is, or `None` if it needs more.
    ///
    /// A violation is reported as soon as the bytes that prove it are there; which one it is does not depend on how many
    /// others follow.
    #[inline(always)]
    pub fn parse(bytes: &[u8], rules: Rules) -> Result<Option<(Self, usize)>, Violation> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let First { fin, compressed, opcode } = FIRST[usize::from(rules.open)][usize::from(first)]?;
        if compressed && !rules.deflate {
            return Err(Violation::ReservedBits);
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        // §5.1: a server closes the connection upon a frame that is not masked.
        if second & MASKED == 0 {
            return Err(Violation::Unmasked);
        }
        let short = second & !MASKED;
        if usize::from(short) > CONTROL_MAX && opcode.is_control() {
            return Err(Violation::ControlTooLong);
        }
        let most = match compressed {
            _ if opcode.is_control() => rules.max_control,
            false => rules.max_data,
            true => most_compressed(rules.max_data),
        };
        let (len, key_at) = match short {
            126 => match bytes.get(2..4) {
                Some(&[a, b]) => (u64::from(u16::from_be_bytes([a, b])), 4),
                _ => return begun::<2>(&bytes[2..], most).map(|()| None),
            },
            127 => match bytes.get(2..10) {
                Some(&[a, b, c, d, e, f, g, h]) => {
                    (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 10)
                }
                _ => return begun::<8>(&bytes[2..], most).map(|()| None),
            },
            len => (u64::from(len), 2),
        };
        check_length(key_at - 2, len, len, most)?;
        let Some(&[a, b, c, d]) = bytes.get(key_at..key_at + 4) else { return Ok(None) };
        let mask = Mask::new([a, b, c, d]);
        Ok(Some((Self { fin, compressed, opcode, len, mask }, key_at + 4)))
    }
}

/// Judges a length of `size` more bytes that is between `least` and `top`, where `most` is allowed.
#[inline(always)]
fn check_length(size: usize, least: u64, top: u64, most: u64) -> Result<(), Violation> {
    if least >> 63 != 0 {
        return Err(Violation::LengthTopBit);
    }
    // §5.2: the minimal number of bytes must be used to encode the length.
    if size == 2 && top < 126 || size == 8 && top <= 0xffff {
        return Err(Violation::LengthNotMinimal);
    }
    if least > most {
        return Err(Violation::TooBig);
    }
    Ok(())
}

/// Judges a length of which the first bytes are here.
#[cold]
fn begun<const SIZE: usize>(bytes: &[u8], most: u64) -> Result<(), Violation> {
    let filled = |fill| {
        let bytes = bytes.iter().copied().chain(core::iter::repeat(fill));
        bytes.take(SIZE).fold(0, |sum, byte| (sum << 8) | u64::from(byte))
    };
    check_length(SIZE, filled(0), filled(0xff), most)
}

/// Appends a server's frame header (never masked) for a payload of `len` bytes.
#[inline]
pub fn encode(out: &mut Vec<u8>, opcode: Opcode, compressed: bool, len: usize) {
    let first = FIN | if compressed { RSV1 } else { 0 } | opcode as u8;
    match len {
        0..=125 => out.extend_from_slice(&[first, len as u8]),
        126..=0xffff => {
            let [a, b] = (len as u16).to_be_bytes();
            out.extend_from_slice(&[first, 126, a, b]);
        }
        _ => {
            out.extend_from_slice(&[first, 127]);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// What the deframer found: some payload of one frame, unmasked in place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PayloadPiece {
    /// The header of the frame it belongs to.
    pub header: Header,
    /// The header has just been read; the payload starts here.
    pub starts: bool,
    /// The payload ends here.
    pub ends: bool,
    /// Where in the input the payload lies; empty when none of it has arrived.
    pub range: Range<usize>,
    /// All of that is ASCII.
    pub ascii: bool,
}

/// Cuts a client's byte stream into frames.
#[derive(Debug, Default)]
pub struct Deframer {
    /// The frame whose payload is arriving, and how much of it is missing (0 < missing ≤ its length).
    current: Option<(Header, u64)>,
    /// The front of a header that the end of the input cut.
    partial: [u8; LONGEST],
    /// How much of `partial` is in use; 0 while `current` is set.
    partial_len: u8,
}

impl Deframer {
    /// Whether the next byte starts a frame.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.current.is_none() && self.partial_len == 0
    }

    /// The front of a header whose rest has not come.
    pub fn partial(&self) -> &[u8] {
        &self.partial[..usize::from(self.partial_len)]
    }

    /// How much of the current data frame's payload has not arrived; 0 between frames and within a control frame.
    pub fn missing_data(&self) -> u64 {
        let data = self.current.filter(|(header, _)| !header.opcode.is_control());
        data.map_or(0, |(_, missing)| missing)
    }

    /// How much more can come of the current message, which is known of its last frame.
    pub fn missing_message(&self) -> usize {
        let last = self.current.filter(|(header, _)| header.fin && !header.opcode.is_control());
        last.map_or(usize::MAX, |(_, missing)| missing as usize)
    }

    /// Takes the next piece out of `input`: how many bytes it consumed, and the piece if there is one. A header that
    /// starts there is judged by `rules`.
    ///
    /// No piece means that all of the input is consumed.
    #[inline(always)]
    pub fn next(
        &mut self,
        input: &mut [u8],
        rules: Rules,
    ) -> Result<(usize, Option<PayloadPiece>), Violation> {
        // The common case: a frame that lies whole in the input leaves nothing to remember.
        if self.is_idle() {
            if let Some((mut header, start)) = Header::parse(input, rules)? {
                let here = input.len() - start;
                if header.len <= here as u64 {
                    let range = start..start + header.len as usize;
                    let ascii = header.mask.apply(&mut input[range.clone()]);
                    let piece = PayloadPiece { header, starts: true, ends: true, range, ascii };
                    return Ok((piece.range.end, Some(piece)));
                }
            }
        }
        self.next_part(input, rules)
    }

    /// The same for a frame that the input cuts.
    #[cold]
    fn next_part(
        &mut self,
        input: &mut [u8],
        rules: Rules,
    ) -> Result<(usize, Option<PayloadPiece>), Violation> {
        let (mut header, missing, start) = match self.current {
            Some((_, _)) if input.is_empty() => return Ok((0, None)),
            Some((header, missing)) => (header, missing, 0),
            None => match self.header(input, rules)? {
                Some((header, consumed)) => (header, header.len, consumed),
                None => return Ok((input.len(), None)),
            },
        };
        let starts = self.current.is_none();
        let here = missing.min((input.len() - start) as u64);
        let range = start..start + here as usize;
        let ascii = header.mask.apply(&mut input[range.clone()]);
        let missing = missing - here;
        self.current = (missing > 0).then_some((header, missing));
        Ok((range.end, Some(PayloadPiece { header, starts, ends: missing == 0, range, ascii })))
    }

    /// Reads the next header and says how many bytes of `input` it took.
    fn header(&mut self, input: &[u8], rules: Rules) -> Result<Option<(Header, usize)>, Violation> {
        if self.partial_len == 0 {
            let found = Header::parse(input, rules)?;
            if found.is_none() {
                // A header that lies whole in 14 bytes was found, so less than that is left.
                self.partial[..input.len()].copy_from_slice(input);
                self.partial_len = input.len() as u8;
            }
            return Ok(found);
        }
        let had = usize::from(self.partial_len);
        let taken = input.len().min(LONGEST - had);
        self.partial[had..had + taken].copy_from_slice(&input[..taken]);
        let found = Header::parse(&self.partial[..had + taken], rules)?;
        self.partial_len = if found.is_some() { 0 } else { (had + taken) as u8 };
        Ok(found.map(|(header, len)| (header, len - had)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracles::frame::fuzz_deframe;

    const FIRST_OF_ALL: Rules =
        Rules { deflate: false, open: false, max_control: 1000, max_data: u64::MAX };

    fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
        Header::parse(bytes, FIRST_OF_ALL)
    }

    /// The front of `header` that is refused, and why; all shorter ones need more.
    fn refused(header: &[u8], rules: Rules) -> Option<(usize, Violation)> {
        (0..=header.len()).find_map(|len| match Header::parse(&header[..len], rules) {
            Ok(found) => {
                assert_eq!(found, None, "{header:x?}");
                None
            }
            Err(violation) => Some((len, violation)),
        })
    }

    #[test]
    fn the_masked_hello_of_rfc_6455_section_5_7() {
        let mut bytes = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let (used, piece) = Deframer::default().next(&mut bytes, FIRST_OF_ALL).unwrap();
        let piece = piece.unwrap();
        assert_eq!((used, piece.header.opcode, piece.header.fin), (11, Opcode::Text, true));
        assert_eq!(&bytes[piece.range], b"Hello");
    }

    #[test]
    fn violations_show_with_the_byte_that_proves_them() {
        assert_eq!(parse(&[]), Ok(None));
        for first in 0..=255 {
            let opcode = first & 0x0f;
            let expected = if (0x3..=0x7).contains(&opcode) || opcode > 0xa {
                Err(Violation::UnknownOpcode)
            } else if first & 0x70 != 0 {
                Err(Violation::ReservedBits)
            } else if opcode >= 8 && first & FIN == 0 {
                Err(Violation::ControlFragmented)
            } else if opcode == 0 {
                Err(Violation::NothingToContinue)
            } else {
                Ok(None)
            };
            assert_eq!(parse(&[first]), expected, "{first:#x}");
            // Inside a message.
            let expected = match (expected, opcode) {
                (Err(Violation::NothingToContinue), _) => Ok(None),
                (_, 1 | 2) if first & 0x30 == 0 => Err(Violation::MessageInterrupted),
                (other, _) => other,
            };
            let rules = Rules { open: true, ..FIRST_OF_ALL };
            assert_eq!(Header::parse(&[first], rules), expected, "{first:#x}");
        }
        let small = Rules { max_control: 4, max_data: 1000, ..FIRST_OF_ALL };
        let deflate = Rules { deflate: true, ..small };
        let long = |first: u8, len: u64| [&[first, 0xff][..], &len.to_be_bytes()].concat();
        for (header, rules, expected) in [
            (&[0x81, 0x05][..], small, Some((2, Violation::Unmasked))),
            (&[0x89, 0xfe], small, Some((2, Violation::ControlTooLong))),
            (&[0x89, 0x84], small, None),
            (&[0x89, 0x85], small, Some((2, Violation::TooBig))),
            (&[0x82, 0xfe, 0, 125], small, Some((4, Violation::LengthNotMinimal))),
            (&[0x82, 0xfe, 3, 0xe8], small, None),
            (&[0x82, 0xfe, 3, 0xe9], small, Some((4, Violation::TooBig))),
            (&[0x82, 0xfe, 4, 0], small, Some((3, Violation::TooBig))),
            // 1000 bytes may come to 1204, but hardly to more.
            (&[0xc2, 0xfe, 4, 0xb4], deflate, None),
            (&[0xc2, 0xfe, 4, 0xb5], deflate, Some((4, Violation::TooBig))),
            (&long(0x82, 0xffff), FIRST_OF_ALL, Some((8, Violation::LengthNotMinimal))),
            (&long(0x82, 0xffff), small, Some((8, Violation::LengthNotMinimal))),
            (&long(0x82, 1 << 63), FIRST_OF_ALL, Some((3, Violation::LengthTopBit))),
            (&long(0x82, 1 << 63), small, Some((3, Violation::LengthTopBit))),
            (&long(0xc2, 1 << 63), deflate, Some((3, Violation::LengthTopBit))),
            (&long(0x82, (1 << 63) - 1), FIRST_OF_ALL, None),
            (&long(0x82, (1 << 63) - 1), small, Some((3, Violation::TooBig))),
            (&long(0xc2, (1 << 63) - 1), deflate, Some((3, Violation::TooBig))),
            (&long(0x82, 0x1_0000), FIRST_OF_ALL, None),
            (&long(0x82, 0x1_0000), small, Some((8, Violation::TooBig))),
        ] {
            assert_eq!(refused(header, rules), expected, "{header:x?}");
        }
        let key = |header: Vec<u8>| [header, vec![0; 4]].concat();
        assert_eq!(parse(&key(long(0x82, 0x1_0000))).unwrap().unwrap().1, 14);
        let longest = parse(&key(long(0x82, (1 << 63) - 1))).unwrap().unwrap().0;
        assert_eq!(longest.len, (1 << 63) - 1);
    }

    #[test]
    fn rsv1_is_for_the_first_frame_of_a_message() {
        let rules = |open| Rules { deflate: true, open, ..FIRST_OF_ALL };
        for first in [0xc1, 0xc2, 0x41, 0x42] {
            assert_eq!(Header::parse(&[first], rules(false)), Ok(None));
        }
        for first in [0xc0, 0x40, 0xc8, 0xc9, 0xca, 0xa1, 0x91, 0xf1] {
            for rules in [rules(false), rules(true)] {
                let judged = Header::parse(&[first], rules);
                assert_eq!(judged, Err(Violation::ReservedBits), "{first:#x}");
            }
        }
    }

    #[test]
    fn encoded_headers_use_the_fewest_bytes() {
        for (len, header) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (0xffff, &[0x82, 126, 0xff, 0xff]),
            (0x1_0000, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let mut out = Vec::new();
            encode(&mut out, Opcode::Binary, false, len);
            assert_eq!(out, header, "{len}");
        }
    }

    #[test]
    fn frames_are_the_same_however_the_bytes_are_cut() {
        let mut bytes = vec![0];
        for len in [0usize, 1, 125, 126, 300, 0x1_0000] {
            let mut header = Vec::new();
            encode(&mut header, Opcode::Binary, false, len);
            header[1] |= MASKED;
            bytes.extend(header);
            bytes.extend([1, 2, 3, 4]);
            bytes.extend((0..len).map(|i| i as u8));
        }
        for cut in 0..19 {
            bytes[0] = cut;
            fuzz_deframe(&bytes);
        }
    }
}
