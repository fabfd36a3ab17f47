//! Drafts 76 and 75 (draft-hixie-thewebsocketprotocol), which browsers spoke before RFC 6455: their opening handshake
//! and their frames.
//!
//! A text frame is the byte 00, UTF-8, and the byte FF, which UTF-8 never contains. A binary frame is the byte 80, a
//! length in base 128 with the most significant digit first, and the payload; the drafts define the frame but give no
//! API for it. FF 00 closes a connection of draft 76; in draft 75 only the end of the TCP connection does. Frames of
//! other types are skipped. Nothing is masked, no frame is a part of a message, and there is no Ping.
//!
//! Draft 76 proves that the server speaks WebSocket by hashing two numbers hidden in header fields and eight bytes
//! behind the headers (§1.3, §5.2); draft 75 proves nothing.

use core::{ffi::CStr, ops::Range};

use md5::{Digest as _, Md5};

use super::{
    Kind, Version, Violation,
    frame::Opcode,
    handshake::{self, Offered, Opening, Refusal, Request},
};

/// One of the drafts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Draft {
    /// draft-hixie-thewebsocketprotocol-75.
    Hixie75,
    /// draft-hixie-thewebsocketprotocol-76, also known as draft-ietf-hybi-thewebsocketprotocol-00.
    Hixie76,
}

/// Starts a text frame.
const TEXT: u8 = 0x00;
/// Ends one.
const END: u8 = 0xff;
/// Starts a binary frame; from here on types have a length.
const BINARY: u8 = 0x80;
/// Starts the Close of draft 76, and ends it too: a frame of this type and of length 0.
const CLOSE: u8 = 0xff;
/// The most digits of a length: more of them would not fit 63 bits, or start with zeros.
const DIGITS: u8 = 9;

impl Draft {
    /// The status line of the answer to an opening request, which clients compare byte by byte.
    pub fn status_line(self) -> &'static CStr {
        match self {
            Self::Hixie75 => c"101 Web Socket Protocol Handshake",
            Self::Hixie76 => c"101 WebSocket Protocol Handshake",
        }
    }

    /// The names of the answer's fields for location, origin and subprotocol, in the order in which they are sent behind
    /// `Upgrade` and `Connection`. The client's subprotocols have the last one's name too.
    pub fn fields(self) -> [&'static CStr; 3] {
        match self {
            Self::Hixie75 => [c"WebSocket-Location", c"WebSocket-Origin", c"WebSocket-Protocol"],
            Self::Hixie76 => {
                [c"Sec-WebSocket-Location", c"Sec-WebSocket-Origin", c"Sec-WebSocket-Protocol"]
            }
        }
    }

    /// Appends what a frame of RFC 6455 becomes; nothing for those that the draft does not know. Text has to be
    /// valid UTF-8, or its end would be taken for somewhere else.
    #[cold]
    pub fn encode(self, out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
        match opcode {
            Opcode::Text => {
                out.push(TEXT);
                out.extend_from_slice(payload);
                out.push(END);
            }
            Opcode::Binary => {
                out.push(BINARY);
                let mut digits = payload.len().max(1).ilog2() / 7;
                while digits > 0 {
                    out.push(0x80 | (payload.len() >> (7 * digits)) as u8);
                    digits -= 1;
                }
                out.push(payload.len() as u8 & 0x7f);
                out.extend_from_slice(payload);
            }
            Opcode::Close if self == Self::Hixie76 => out.extend_from_slice(&[CLOSE, 0]),
            Opcode::Close | Opcode::Continuation | Opcode::Ping | Opcode::Pong => {}
        }
    }
}

/// The numbers hidden in `Sec-WebSocket-Key1` and `-Key2` of draft 76.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Challenge([u32; 2]);

impl Challenge {
    /// What has to follow the headers of the answer, given the eight bytes behind those of the request (§5.2).
    pub fn proof(self, key3: [u8; 8]) -> [u8; 16] {
        let [one, two] = self.0.map(u32::to_be_bytes);
        Md5::new().chain_update(one).chain_update(two).chain_update(key3).finalize().into()
    }
}

/// The number in a key: its digits as one number, divided by how many spaces it has (§5.2). `None` if there is no digit or
/// no space, the division leaves a rest, or the digits exceed 32 bits, which no client's do.
fn key_number(key: &[u8]) -> Option<u32> {
    let digits: String =
        key.iter().filter(|byte| byte.is_ascii_digit()).map(|&b| char::from(b)).collect();
    let number: u32 = digits.parse().ok()?;
    let spaces = key.iter().filter(|&&byte| byte == b' ').count().try_into().ok()?;
    (number.checked_rem(spaces)? == 0).then(|| number / spaces)
}

/// Checks whether a request is an opening of one of the drafts, of draft 75 only if that is wanted; `Ok(None)` if it is
/// neither, and may be one of RFC 6455. The challenge is there for draft 76.
pub fn check<'a>(
    request: &Request<'a>,
    with_75: bool,
) -> Result<Option<(Opening<'a>, Option<Challenge>)>, Refusal> {
    let header = request.header;
    let keys = (header("Sec-WebSocket-Key1"), header("Sec-WebSocket-Key2"));
    // Any field of a newer version speaks against draft 75, whose handshake has no mark of its own.
    let newer = ["Key", "Key1", "Key2", "Version"];
    let newer = newer.iter().any(|name| header(&format!("Sec-WebSocket-{name}")).is_some());
    let draft = match keys {
        (Some(_), Some(_)) => Draft::Hixie76,
        _ if with_75 && !newer => Draft::Hixie75,
        _ => return Ok(None),
    };
    if !handshake::asks(request)? {
        return Ok(None);
    }
    // Some clients of draft 76 announce the eight bytes behind the headers as a body.
    if !matches!((draft, handshake::body_of(request)), (_, Some(0)) | (Draft::Hixie76, Some(8))) {
        return Err(Refusal::Body);
    }
    let challenge = match (draft, keys) {
        (Draft::Hixie76, (Some(one), Some(two))) => {
            let numbers = key_number(one).zip(key_number(two)).ok_or(Refusal::Challenge)?;
            Some(Challenge(numbers.into()))
        }
        _ => None,
    };
    let [.., protocols] = draft.fields();
    let protocols = match protocols.to_str().ok().and_then(header) {
        Some(value) => words(value).ok_or(Refusal::Protocols)?,
        None => Offered::default(),
    };
    let opening = Opening {
        version: Version::Draft(draft),
        accept: String::new(),
        proof: None,
        protocols,
        extensions: "",
        origins: [header("Origin"), None],
    };
    Ok(Some((opening, challenge)))
}

/// A list of at least one word of printable ASCII; the drafts separate them with spaces.
fn words(value: &[u8]) -> Option<Offered<'_>> {
    Offered::parse(value, ' ', |byte| byte.is_ascii_graphic())
}

/// What the deframer found in its input.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DraftPiece {
    /// Some payload of a frame that carries a message.
    Data {
        /// Whether it is text or binary.
        kind: Kind,
        /// The frame has just begun.
        starts: bool,
        /// The payload ends here.
        ends: bool,
        /// Where in the input the payload lies; empty when none of it has arrived.
        range: Range<usize>,
    },
    /// The client's Close; nothing follows it.
    Close,
}

/// Cuts a client's byte stream into frames. It keeps no bytes.
#[derive(Debug)]
pub struct Deframer {
    draft: Draft,
    at: At,
}

/// What the next byte is.
#[derive(Clone, Copy, Debug)]
enum At {
    /// A frame's type.
    Type,
    /// A digit of a length, of which there were `digits`.
    Length { kind: u8, digits: u8, len: u64 },
    /// A byte of a text, or its end. `seen` are past; `starts` is true until the first piece.
    Text { kind: u8, starts: bool, seen: u64 },
    /// A byte of a payload of which so much is missing.
    Payload { kind: u8, starts: bool, missing: u64 },
}

impl Deframer {
    /// A deframer at the first frame.
    pub fn new(draft: Draft) -> Self {
        Self { draft, at: At::Type }
    }

    /// Takes the next piece out of `input`: how many bytes it consumed, and the piece if there is one. No piece means
    /// that all of the input is consumed.
    ///
    /// A frame with a payload of more than `max` bytes is a violation, whether or not it carries a message.
    pub fn next(
        &mut self,
        input: &[u8],
        max: u64,
    ) -> Result<(usize, Option<DraftPiece>), Violation> {
        let mut used = 0;
        while let Some(&byte) = input.get(used) {
            let piece = match self.at {
                At::Type => {
                    used += 1;
                    self.at = if byte < BINARY {
                        At::Text { kind: byte, starts: true, seen: 0 }
                    } else {
                        At::Length { kind: byte, digits: 0, len: 0 }
                    };
                    None
                }
                At::Length { kind, digits, len } => {
                    used += 1;
                    self.digit(kind, digits, len, byte, max)?.map(|kind| self.empty(kind, used))
                }
                At::Text { kind, starts, seen } => {
                    let (piece, end) = self.text(kind, starts, seen, (input, used), max)?;
                    used = end;
                    (kind == TEXT).then_some(piece)
                }
                At::Payload { kind, starts, missing } => {
                    let piece = self.payload(starts, missing, used, input.len());
                    used = piece.1;
                    (kind == BINARY).then_some(piece.0)
                }
            };
            if piece.is_some() {
                return Ok((used, piece));
            }
        }
        Ok((used, None))
    }

    /// A digit of a length, seven bits at a time. The kind of a frame that has no payload, and is not passed over.
    fn digit(
        &mut self,
        kind: u8,
        digits: u8,
        len: u64,
        byte: u8,
        max: u64,
    ) -> Result<Option<u8>, Violation> {
        if digits == DIGITS {
            return Err(Violation::LengthNotMinimal);
        }
        let len = (len << 7) | u64::from(byte & 0x7f);
        if len > max {
            return Err(Violation::TooBig);
        }
        self.at = match (byte & 0x80, len) {
            (0, 0) => At::Type,
            (0, missing) => At::Payload { kind, starts: true, missing },
            _ => At::Length { kind, digits: digits + 1, len },
        };
        let is_empty = matches!(self.at, At::Type);
        let is_close = kind == CLOSE && self.draft == Draft::Hixie76;
        Ok((is_empty && (is_close || kind == BINARY)).then_some(kind))
    }

    /// A frame without a payload, at this place in the input.
    fn empty(&self, kind: u8, at: usize) -> DraftPiece {
        if kind == CLOSE {
            return DraftPiece::Close;
        }
        DraftPiece::Data { kind: Kind::Binary, starts: true, ends: true, range: at..at }
    }

    /// Text up to the byte that ends it, and how far the input is consumed.
    fn text(
        &mut self,
        kind: u8,
        starts: bool,
        seen: u64,
        (input, used): (&[u8], usize),
        max: u64,
    ) -> Result<(DraftPiece, usize), Violation> {
        let rest = &input[used..];
        let end = rest.iter().position(|&byte| byte == END);
        let room = (max - seen).try_into().unwrap_or(usize::MAX);
        let here = end.unwrap_or(rest.len()).min(room);
        let ends = end == Some(here);
        if here == 0 && !ends {
            return Err(Violation::TooBig);
        }
        self.at = if ends {
            At::Type
        } else {
            At::Text { kind, starts: false, seen: seen + here as u64 }
        };
        let range = used..used + here;
        let consumed = range.end + usize::from(ends);
        Ok((DraftPiece::Data { kind: Kind::Text, starts, ends, range }, consumed))
    }

    /// What is there of a payload whose length is known, and how far the input is consumed.
    fn payload(
        &mut self,
        starts: bool,
        missing: u64,
        used: usize,
        len: usize,
    ) -> (DraftPiece, usize) {
        let here = missing.min((len - used) as u64);
        let range = used..used + here as usize;
        let (missing, end) = (missing - here, range.end);
        let ends = missing == 0;
        if let At::Payload { kind, .. } = self.at {
            self.at = if ends { At::Type } else { At::Payload { kind, starts: false, missing } };
        }
        (DraftPiece::Data { kind: Kind::Binary, starts, ends, range }, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracles::draft::{fuzz_draft_deframe, read_in_pieces, read_simply};

    type Fields = Vec<(&'static str, &'static str)>;

    fn sample_76() -> Fields {
        vec![
            ("Host", "example.com"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key2", "12998 5 Y3 1  .P00"),
            ("Sec-WebSocket-Protocol", "sample"),
            ("Upgrade", "WebSocket"),
            ("Sec-WebSocket-Key1", "4 @1  46546xW%0l 1 5"),
            ("Origin", "http://example.com"),
        ]
    }

    fn sample_75() -> Fields {
        vec![
            ("Upgrade", "WebSocket"),
            ("Connection", "Upgrade"),
            ("Host", "example.com"),
            ("Origin", "http://example.com"),
            ("WebSocket-Protocol", "sample other"),
        ]
    }

    type Action = Result<Option<(Version, Option<Challenge>, Vec<String>)>, Refusal>;

    fn action(fields: &Fields, with_75: bool) -> Action {
        let header = |name: &str| {
            fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_bytes())
        };
        let request = Request { is_get: true, http: (1, 1), header: &header };
        let found = check(&request, with_75)?;
        Ok(found.map(|(opening, challenge)| {
            assert_eq!(opening.origins, [header("Origin"), None]);
            let protocols = opening.protocols.iter().map(ToString::to_string).collect();
            (opening.version, challenge, protocols)
        }))
    }

    fn with(mut fields: Fields, name: &'static str, value: Option<&'static str>) -> Fields {
        fields.retain(|(n, _)| *n != name);
        fields.extend(value.map(|value| (name, value)));
        fields
    }

    #[test]
    fn the_sample_of_draft_76_section_1_2() {
        let (version, challenge, protocols) = action(&sample_76(), false).unwrap().unwrap();
        assert_eq!(version, Version::Draft(Draft::Hixie76));
        assert_eq!(protocols, ["sample"]);
        assert_eq!(&challenge.unwrap().proof(*b"^n:ds[4U"), b"8jKS'y:G*Co,Wxa-");
    }

    #[test]
    fn the_samples_of_draft_76_section_1_3() {
        // The numbers that the draft works out by hand.
        for (one, two, numbers, key3, proof) in [
            (
                "18x 6]8vM;54 *(5:  {   U1]8  z [  8",
                "1_ tx7X d  <  nw  334J702) 7]o}` 0",
                [155_712_099, 173_347_027],
                b"Tm[K T2u",
                b"fQJ,fN/4F4!~K~MH",
            ),
            (
                "4 @1  46546xW%0l 1 5",
                "12998 5 Y3 1  .P00",
                [829_309_203, 259_970_620],
                b"^n:ds[4U",
                b"8jKS'y:G*Co,Wxa-",
            ),
        ] {
            let found = [one, two].map(|key| key_number(key.as_bytes()).unwrap());
            assert_eq!(found, numbers);
            assert_eq!(&Challenge(numbers).proof(*key3), proof);
        }
    }

    #[test]
    fn keys_without_a_number() {
        for key in ["", " ", "12", "1 3  ", "99999999999 ", "5000000000 ", " 7  "] {
            assert_eq!(key_number(key.as_bytes()), None, "{key:?}");
        }
        assert_eq!(key_number(b"x0 "), Some(0));
        assert_eq!(key_number(b"4294967295 "), Some(u32::MAX));
    }

    #[test]
    fn which_draft_it_is() {
        let draft = |fields, with_75| action(&fields, with_75).map(|v| v.map(|v| v.0));
        let (d75, d76) = (Version::Draft(Draft::Hixie75), Version::Draft(Draft::Hixie76));
        assert_eq!(draft(sample_75(), false), Ok(None));
        assert_eq!(draft(sample_75(), true), Ok(Some(d75)));
        assert_eq!(draft(sample_76(), true), Ok(Some(d76)));
        for name in ["Sec-WebSocket-Key", "Sec-WebSocket-Key1", "Sec-WebSocket-Version"] {
            assert_eq!(draft(with(sample_75(), name, Some("1 2")), true), Ok(None), "{name}");
        }
        assert_eq!(draft(with(sample_76(), "Upgrade", Some("h2c")), true), Ok(None));
        for (name, value, refusal) in [
            ("Host", None, Refusal::Host),
            ("Connection", Some("close"), Refusal::Connection),
            ("Content-Length", Some("9"), Refusal::Body),
            ("Transfer-Encoding", Some("chunked"), Refusal::Body),
            ("Sec-WebSocket-Key1", Some("1 3  "), Refusal::Challenge),
            ("Sec-WebSocket-Protocol", Some(" "), Refusal::Protocols),
            ("Sec-WebSocket-Protocol", Some("\u{e9}"), Refusal::Protocols),
        ] {
            assert_eq!(draft(with(sample_76(), name, value), true), Err(refusal), "{name}");
        }
        let announced = with(sample_76(), "Content-Length", Some("8"));
        assert_eq!(draft(announced, false), Ok(Some(d76)));
        let announced = with(sample_75(), "Content-Length", Some("8"));
        assert_eq!(draft(announced, true), Err(Refusal::Body));
        assert_eq!(action(&sample_75(), true).unwrap().unwrap().2, ["sample", "other"]);
    }

    #[test]
    fn encoded_frames() {
        let encode = |draft: Draft, opcode, payload: &[u8]| {
            let mut out = Vec::new();
            draft.encode(&mut out, opcode, payload);
            out
        };
        assert_eq!(encode(Draft::Hixie76, Opcode::Text, b"Hello"), b"\0Hello\xff");
        assert_eq!(encode(Draft::Hixie76, Opcode::Text, b""), b"\0\xff");
        for (len, header) in [
            (0, &[0x80, 0][..]),
            (127, &[0x80, 127]),
            (128, &[0x80, 0x81, 0]),
            (16383, &[0x80, 0xff, 0x7f]),
            (16384, &[0x80, 0x81, 0x80, 0]),
        ] {
            let frame = encode(Draft::Hixie75, Opcode::Binary, &vec![b'x'; len]);
            assert_eq!((&frame[..header.len()], frame.len()), (header, header.len() + len));
        }
        assert_eq!(encode(Draft::Hixie76, Opcode::Close, &[3, 0xe8]), [0xff, 0]);
        assert_eq!(encode(Draft::Hixie75, Opcode::Close, &[3, 0xe8]), []);
        assert_eq!(encode(Draft::Hixie76, Opcode::Ping, b"x"), []);
    }

    #[test]
    fn a_frame_of_exactly_the_limit_fits() {
        for (bytes, max, expected) in [
            (&b"\0abc\xff"[..], 3, Ok(false)),
            (b"\0abcd\xff", 3, Err(Violation::TooBig)),
            (b"\0abcd", 3, Err(Violation::TooBig)),
            (b"\x80\x03abc", 3, Ok(false)),
            (b"\x80\x04", 3, Err(Violation::TooBig)),
            (b"\x80\x84", 3, Err(Violation::TooBig)),
            (b"\x05abcd\xff", 3, Err(Violation::TooBig)),
            (b"\xff\x04", 3, Err(Violation::TooBig)),
            (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 3, Ok(false)),
            (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 3, Err(Violation::LengthNotMinimal)),
            (b"\xff\x00 and more", 3, Ok(true)),
        ] {
            for size in 1..=bytes.len() {
                let heard = read_in_pieces(Draft::Hixie76, bytes, max, size);
                assert_eq!(heard.1, expected, "{bytes:x?}");
            }
        }
    }

    #[test]
    fn messages_are_the_same_however_the_bytes_are_cut() {
        let mut bytes = vec![0xc0, 0];
        for draft in [Draft::Hixie75, Draft::Hixie76] {
            for len in [0, 1, 127, 128, 300] {
                let text = "a".repeat(len);
                draft.encode(&mut bytes, Opcode::Text, text.as_bytes());
                draft.encode(&mut bytes, Opcode::Binary, text.as_bytes());
                bytes.extend_from_slice(b"\x01skipped\xff\x81\x02\0\xff\xff\x01x\xff\x80\x01y");
            }
        }
        bytes.extend_from_slice(b"\xff\x00\x00late\xff");
        for size in 0..=40 {
            for draft in 0..=1 {
                bytes[..2].copy_from_slice(&[0xc0 | draft, size]);
                fuzz_draft_deframe(&bytes);
            }
        }
        let heard = read_simply(Draft::Hixie76, &bytes[2..], 1000);
        assert_eq!((heard.0.len(), heard.1), (20, Ok(true)));
        let heard = read_simply(Draft::Hixie75, &bytes[2..], 1000);
        assert_eq!((heard.0.len(), heard.1), (21, Ok(false)));
    }
}
