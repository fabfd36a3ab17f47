//! Frame headers in and out, and the cutting of a byte stream into frames (RFC 6455 §5.2).
//!
//! The [`Deframer`] never buffers a payload: it unmasks what has arrived where it lies and reports it as a
//! [`Piece`]. Only a header that is cut by the end of the input is kept, 13 bytes at most.

use core::ops::Range;

use super::{Violation, mask::Mask};

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
    const fn of(first: u8) -> Result<Self, Violation> {
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
        Ok(Self { fin, compressed, opcode })
    }
}

/// [`First::of`] for each byte: looking it up takes less than deciding it.
static FIRST: [Result<First, Violation>; 256] = {
    let mut table = [Err(Violation::UnknownOpcode); 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = First::of(byte as u8);
        byte += 1;
    }
    table
};

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
    /// A violation is reported as soon as the bytes that prove it are there. `deflate` says whether
    /// permessage-deflate was negotiated, which gives RSV1 its meaning.
    #[inline(always)]
    pub fn parse(bytes: &[u8], deflate: bool) -> Result<Option<(Self, usize)>, Violation> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let First { fin, compressed, opcode } = FIRST[usize::from(first)]?;
        if compressed && !deflate {
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
        let (len, key_at) = match short {
            126 => match bytes.get(2..4) {
                Some(&[a, b]) => (u64::from(u16::from_be_bytes([a, b])), 4),
                _ => return Ok(None),
            },
            127 => match bytes.get(2..10) {
                Some(&[a, b, c, d, e, f, g, h]) => {
                    (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 10)
                }
                _ => return Ok(None),
            },
            len => (u64::from(len), 2),
        };
        if len >> 63 != 0 {
            return Err(Violation::LengthTopBit);
        }
        // §5.2: the minimal number of bytes must be used to encode the length.
        if key_at == 4 && len < 126 || key_at == 10 && len <= 0xffff {
            return Err(Violation::LengthNotMinimal);
        }
        let Some(&[a, b, c, d]) = bytes.get(key_at..key_at + 4) else { return Ok(None) };
        let mask = Mask::new([a, b, c, d]);
        Ok(Some((Self { fin, compressed, opcode, len, mask }, key_at + 4)))
    }
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
pub struct Piece {
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

    /// How much of the current data frame's payload has not arrived; 0 between frames and within a control frame.
    pub fn missing_data(&self) -> u64 {
        let data = self.current.filter(|(header, _)| !header.opcode.is_control());
        data.map_or(0, |(_, missing)| missing)
    }

    /// Takes the next piece out of `input`: how many bytes it consumed, and the piece if there is one.
    ///
    /// No piece means that all of the input is consumed.
    #[inline(always)]
    pub fn next(
        &mut self,
        input: &mut [u8],
        deflate: bool,
    ) -> Result<(usize, Option<Piece>), Violation> {
        // The common case: a frame that lies whole in the input leaves nothing to remember.
        if self.is_idle() {
            if let Some((mut header, start)) = Header::parse(input, deflate)? {
                let here = input.len() - start;
                if header.len <= here as u64 {
                    let range = start..start + header.len as usize;
                    let ascii = header.mask.apply(&mut input[range.clone()]);
                    let piece = Piece { header, starts: true, ends: true, range, ascii };
                    return Ok((piece.range.end, Some(piece)));
                }
            }
        }
        self.next_part(input, deflate)
    }

    /// The same for a frame that the input cuts.
    #[cold]
    fn next_part(
        &mut self,
        input: &mut [u8],
        deflate: bool,
    ) -> Result<(usize, Option<Piece>), Violation> {
        let (mut header, missing, start) = match self.current {
            Some((_, _)) if input.is_empty() => return Ok((0, None)),
            Some((header, missing)) => (header, missing, 0),
            None => match self.header(input, deflate)? {
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
        Ok((range.end, Some(Piece { header, starts, ends: missing == 0, range, ascii })))
    }

    /// Reads the next header and says how many bytes of `input` it took.
    fn header(
        &mut self,
        input: &[u8],
        deflate: bool,
    ) -> Result<Option<(Header, usize)>, Violation> {
        if self.partial_len == 0 {
            let found = Header::parse(input, deflate)?;
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
        let found = Header::parse(&self.partial[..had + taken], deflate)?;
        self.partial_len = if found.is_some() { 0 } else { (had + taken) as u8 };
        Ok(found.map(|(header, len)| (header, len - had)))
    }
}

/// Deframes arbitrary bytes in arbitrary cuts: same frames, and nothing panics (a fuzz target).
#[doc(hidden)]
pub fn fuzz_deframe(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else { return };
    let run = |size: usize| {
        let mut deframer = Deframer::default();
        let mut frames = Vec::new();
        let mut payload = Vec::new();
        for chunk in bytes.chunks(size) {
            let mut chunk = chunk.to_vec();
            let mut at = 0;
            loop {
                match deframer.next(&mut chunk[at..], cut & 0x80 != 0) {
                    Err(violation) => return (frames, Some(violation)),
                    Ok((used, None)) => {
                        assert_eq!(at + used, chunk.len());
                        break;
                    }
                    Ok((used, Some(piece))) => {
                        payload.extend_from_slice(&chunk[at..][piece.range.clone()]);
                        at += used;
                        if piece.ends {
                            frames.push((piece.header.opcode, core::mem::take(&mut payload)));
                        }
                    }
                }
            }
        }
        (frames, None)
    };
    let whole = run(bytes.len().max(1));
    assert_eq!(run(usize::from(cut & 0x7f) % 19 + 1), whole);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
        Header::parse(bytes, false)
    }

    #[test]
    fn the_masked_hello_of_rfc_6455_section_5_7() {
        let mut bytes = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let (used, piece) = Deframer::default().next(&mut bytes, false).unwrap();
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
            } else {
                Ok(None)
            };
            assert_eq!(parse(&[first]), expected, "{first:#x}");
        }
        assert_eq!(parse(&[0x81, 0x05]), Err(Violation::Unmasked));
        assert_eq!(parse(&[0x89, 0xfe]), Err(Violation::ControlTooLong));
        assert_eq!(parse(&[0x82, 0xfe, 0, 125]), Err(Violation::LengthNotMinimal));
        let long = |len: u64| [&[0x82, 0xff][..], &len.to_be_bytes(), &[0; 4]].concat();
        assert_eq!(parse(&long(0xffff)), Err(Violation::LengthNotMinimal));
        assert_eq!(parse(&long(1 << 63)), Err(Violation::LengthTopBit));
        assert_eq!(parse(&long(0x1_0000)).unwrap().unwrap().1, 14);
        assert_eq!(parse(&long((1 << 63) - 1)).unwrap().unwrap().0.len, (1 << 63) - 1);
    }

    #[test]
    fn rsv1_is_for_the_first_frame_of_a_message() {
        for first in [0xc1, 0xc2, 0x41, 0x42] {
            assert_eq!(Header::parse(&[first], true), Ok(None));
        }
        for first in [0xc0, 0x40, 0xc8, 0xc9, 0xca, 0xa1, 0x91, 0xf1] {
            assert_eq!(Header::parse(&[first], true), Err(Violation::ReservedBits), "{first:#x}");
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
