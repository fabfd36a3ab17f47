//! Whole sessions with tungstenite as the other server.
//!
//! The input is either a client's bytes as they are, or a script of what a client does: messages in fragments, control
//! frames between them, and slips. Both servers read it in random cuts and must hear the same and judge it alike.
//! tungstenite has no permessage-deflate, so it is given the plain messages of a script whose compressed ones, made by
//! miniz_oxide, go to the session; what a script without slips must amount to is known besides.
//!
//! Where the servers differ by intent, and nowhere else, the comparison gives way:
//!
//! - tungstenite accepts lengths in more bytes than they need, against RFC 6455 §5.2. It is shown the bytes before such
//!   a frame only, and the session must refuse the frame.
//! - tungstenite judges a frame when all of it has arrived, the session as soon as its bytes prove it wrong. A frame
//!   that the input cuts short is completed for tungstenite, in the most harmless way, if the session refused it.
//! - tungstenite answers a close code that must not travel by reporting a Close with 1002 in its place.

use std::io::{self, Read, Write};

use mod_websocket::{
    conn::session::{Event, Limits, Progress, Session},
    proto::{Kind, Version, Violation, close::CloseReason, deflate::Params},
};
use tungstenite::{
    Error, Message, WebSocket,
    error::ProtocolError,
    protocol::{Role, WebSocketConfig},
};

use crate::{deflate::Client, input::Input};

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// First bytes of frames that are likely to be out of place.
const SLIPS: [u8; 12] = [
    TEXT,
    BINARY,
    CONTINUATION,
    FIN | TEXT,
    FIN | CONTINUATION,
    FIN | RSV1 | CONTINUATION,
    FIN | RSV1 | PING,
    FIN | 0x20 | BINARY,
    FIN | 0x10 | PONG,
    FIN | 0x3,
    FIN | 0xb,
    PING,
];
/// Close codes at the borders of what may travel (RFC 6455 §7.4.2).
const CODES: [u16; 16] =
    [0, 999, 1000, 1003, 1004, 1005, 1006, 1007, 1013, 1014, 1015, 1016, 2999, 3000, 4999, 5000];

/// The longest script: more of the same would only take more time.
const OPERATIONS: usize = 32;

/// What a server reports.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Activity {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

/// How a conversation stands when the bytes are used up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Open,
    Closed,
    Refused(Option<Violation>),
}

type Action = (Vec<Activity>, End);

/// Compares a session with tungstenite on arbitrary bytes or on a script.
pub fn session_vs_tungstenite(data: &[u8]) {
    let mut input = Input(data);
    let choices = input.byte();
    let limit = [1 << 20, 70_000, 65_535, 4096, 500, 125, 20, 0][usize::from(choices >> 5)];
    let (our_cuts, their_cuts) = (input.cuts(), input.cuts());
    match choices % 4 {
        0 => {
            let ours = session(input.0, None, limit, our_cuts);
            compare(&ours, input.0, limit, their_cuts);
        }
        1 => {
            let script = Script::run(&mut input, None, limit);
            let ours = session(&script.wire, None, limit, our_cuts);
            script.check(&ours);
            compare(&ours, &script.plain, limit, their_cuts);
        }
        _ => {
            let (client, params) = Client::new(&mut input);
            let script = Script::run(&mut input, Some(client), limit);
            let ours = session(&script.wire, Some(&params), limit, our_cuts);
            script.check(&ours);
            compare(&ours, &script.plain, limit, their_cuts);
        }
    }
}

/// The sizes of the pieces of a stream; where single bytes would take too long, there are none.
fn cycle(cuts: [usize; 4], bytes: &[u8]) -> impl Iterator<Item = usize> + use<> {
    let least = bytes.len() / 4096 + 1;
    cuts.into_iter().cycle().map(move |cut| cut.max(least))
}

/// What our session makes of the bytes.
fn session(bytes: &[u8], params: Option<&Params>, limit: usize, cuts: [usize; 4]) -> Action {
    let limits = Limits {
        version: Version::V13,
        max_message: limit,
        allow_reserved: false,
        memory: &mod_websocket::limits::memory::UNLIMITED,
    };
    let mut session = Session::new(limits, params);
    let (mut heard, mut end) = (Vec::new(), End::Open);
    let mut rest = bytes.to_vec();
    let mut rest = &mut rest[..];
    for cut in cycle(cuts, bytes) {
        if rest.is_empty() {
            return (heard, end);
        }
        let (mut piece, later) = rest.split_at_mut(cut.min(rest.len()));
        rest = later;
        loop {
            let (consumed, event) = match session.feed(piece) {
                Ok(Progress { event: None, .. }) => break,
                Ok(Progress { consumed, event: Some(event) }) => (consumed, event),
                Err(violation) => {
                    assert_eq!(end, End::Open, "nothing happens behind the end");
                    end = End::Refused(Some(violation));
                    continue;
                }
            };
            assert_eq!(end, End::Open, "nothing is heard behind the end");
            heard.push(match event {
                Event::Message { kind: Kind::Text, data } => Activity::Text(data.to_vec()),
                Event::Message { kind: Kind::Binary, data } => Activity::Binary(data.to_vec()),
                Event::Ping(data) => Activity::Ping(data.to_vec()),
                Event::Pong(data) => Activity::Pong(data.to_vec()),
                Event::Close(CloseReason { code, text }) => {
                    end = End::Closed;
                    Activity::Close(code.map(|code| code.0), text.to_owned())
                }
            });
            piece = &mut piece[consumed..];
        }
        session.trim();
    }
    unreachable!("the cuts repeat")
}

/// A client's bytes as a stream that is read in pieces and swallows what is written.
struct Pipe<'a, I> {
    bytes: &'a [u8],
    cuts: I,
}

impl<I: Iterator<Item = usize>> Read for Pipe<'_, I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let cut = self.cuts.next().expect("the cuts repeat");
        let len = buffer.len().min(cut);
        self.bytes.read(&mut buffer[..len])
    }
}

impl<I> Write for Pipe<'_, I> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What tungstenite makes of the bytes.
fn tungstenite(bytes: &[u8], limit: usize, cuts: [usize; 4]) -> Action {
    let config = WebSocketConfig::default()
        .read_buffer_size(512)
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit));
    let pipe = Pipe { bytes, cuts: cycle(cuts, bytes) };
    let mut socket = WebSocket::from_raw_socket(pipe, Role::Server, Some(config));
    let mut heard = Vec::new();
    loop {
        heard.push(match socket.read() {
            Ok(Message::Text(text)) => Activity::Text(text.as_bytes().to_vec()),
            Ok(Message::Binary(data)) => Activity::Binary(data.to_vec()),
            Ok(Message::Ping(data)) => Activity::Ping(data.to_vec()),
            Ok(Message::Pong(data)) => Activity::Pong(data.to_vec()),
            Ok(Message::Frame(_)) => unreachable!("never read"),
            Ok(Message::Close(reason)) => {
                heard.push(match reason {
                    None => Activity::Close(None, String::new()),
                    Some(frame) => {
                        Activity::Close(Some(frame.code.into()), frame.reason.to_string())
                    }
                });
                return (heard, End::Closed);
            }
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
                return (heard, End::Open);
            }
            Err(Error::Protocol(_) | Error::Capacity(_) | Error::Utf8(_)) => {
                return (heard, End::Refused(None));
            }
            Err(e) => panic!("tungstenite: {e}"),
        });
    }
}

/// Where the lengths in the headers say that the frames lie.
enum Walk {
    /// All frames are complete.
    Whole,
    /// The last one lacks these bytes, if it is to be as harmless as it can be.
    Short(Vec<u8>),
    /// A length is encoded in more bytes than it needs, in the frame that starts here.
    NotMinimal(usize),
}

/// Walks from frame to frame, up to one that claims more than `limit` bytes: both servers refuse that.
fn walk(bytes: &[u8], limit: usize) -> Walk {
    let mut at = 0;
    while at < bytes.len() {
        let frame = &bytes[at..];
        // What is missing: a mask, no length; where a length has begun, one that is minimal; a key of zeros.
        let byte = |i| match frame.get(i) {
            Some(&byte) => byte,
            None if i == 1 => 0x80,
            None => 0xff,
        };
        let (key, short) = (if byte(1) & 0x80 == 0 { 0 } else { 4 }, u64::from(byte(1) & 0x7f));
        let length_end = match short {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let length = match short {
            126 | 127 => (2..length_end).fold(0, |sum, i| sum << 8 | u64::from(byte(i))),
            short => short,
        };
        let long = length_end == 4 && length < 126 || length_end == 10 && length <= 0xffff;
        if long {
            return Walk::NotMinimal(at);
        }
        let too_big = length > limit as u64;
        let end = length_end + key + if too_big { 0 } else { length as usize };
        if frame.len() < end {
            let rest = frame.len()..end;
            return Walk::Short(rest.map(|i| if i < length_end { byte(i) } else { 0 }).collect());
        }
        if too_big {
            return Walk::Whole;
        }
        at += end;
    }
    Walk::Whole
}

/// Compares what the session heard with tungstenite's opinion on the same bytes.
fn compare(ours: &Action, bytes: &[u8], limit: usize, cuts: [usize; 4]) {
    let (bytes, refusable, rest) = match walk(bytes, limit) {
        Walk::Whole => (bytes, false, Vec::new()),
        Walk::Short(rest) => (bytes, false, rest),
        Walk::NotMinimal(at) => (&bytes[..at], true, Vec::new()),
    };
    let mut theirs = tungstenite(bytes, limit, cuts);
    let refused = matches!(ours.1, End::Refused(_));
    if refused && theirs.1 == End::Open && refusable {
        theirs.1 = End::Refused(None);
    }
    if refused && theirs.1 == End::Open && !rest.is_empty() {
        theirs = tungstenite(&[bytes, &rest].concat(), limit, cuts);
    }
    if ours.1 == End::Refused(Some(Violation::CloseCode)) && theirs.1 == End::Closed {
        let replaced = Activity::Close(Some(1002), "Protocol violation".to_owned());
        assert_eq!(theirs.0.pop(), Some(replaced));
        theirs.1 = End::Refused(None);
    }
    assert!(!refusable || ours.1 != End::Open, "a length that is not minimal was accepted");
    assert!(ours.0 == theirs.0, "heard {}", difference(&ours.0, &theirs.0));
    match (ours.1, theirs.1) {
        (End::Refused(_), End::Refused(_)) => {}
        (ours, theirs) => assert_eq!(ours, theirs),
    }
}

/// The first event that two servers do not share.
fn difference(ours: &[Activity], theirs: &[Activity]) -> String {
    let same = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    format!("{:?} where it is {:?}, behind {same} others", ours.get(same), theirs.get(same))
}

/// What a client does, as bytes for both servers.
struct Script {
    /// What the session reads.
    wire: Vec<u8>,
    /// The same without compression.
    plain: Vec<u8>,
    limit: usize,
    /// What has to be heard as long as the script is sure of it.
    expected: Vec<Activity>,
    /// How it ends; `None` if only tungstenite knows.
    end: Option<End>,
}

impl Script {
    /// Does what the input says.
    fn run(input: &mut Input<'_>, mut client: Option<Client>, limit: usize) -> Self {
        let (wire, plain, expected) = (Vec::new(), Vec::new(), Vec::new());
        let mut script = Self { wire, plain, limit, expected, end: Some(End::Open) };
        for _ in 0..OPERATIONS {
            if input.is_empty() || script.plain.len() > 1 << 18 {
                break;
            }
            match input.byte() % 16 {
                0 if client.is_none() => {
                    // Something that is no frame, perhaps.
                    let count = usize::from(input.byte());
                    let bytes = input.bytes(count);
                    script.wire.extend(bytes);
                    script.plain.extend(bytes);
                    script.end = None;
                }
                0 | 1 => script.slip(input, client.is_some()),
                2..=4 => script.control(input),
                _ => script.message(input, client.as_mut()),
            }
        }
        script
    }

    /// Compares what the session heard with what is sure.
    fn check(&self, ours: &Action) {
        match self.end {
            None => assert!(ours.0.starts_with(&self.expected)),
            Some(end) => {
                assert!(ours.0 == self.expected, "heard {}", difference(&ours.0, &self.expected));
                match (ours.1, end) {
                    (End::Refused(_), End::Refused(_)) => {}
                    (ours, end) => assert_eq!(ours, end),
                }
            }
        }
    }

    /// Expects an event if the conversation is still sure to be open.
    fn expect(&mut self, event: Activity, valid: bool, then: End) {
        if self.end == Some(End::Open) {
            if valid {
                self.expected.push(event);
            }
            self.end = Some(if valid { then } else { End::Refused(None) });
        }
    }

    /// A masked frame for both servers.
    fn both(&mut self, first: u8, key: u8, payload: &[u8]) {
        frame(&mut self.wire, first, key, payload);
        frame(&mut self.plain, first, key, payload);
    }

    /// A frame that may break a rule, and what it leads to may be anything.
    fn slip(&mut self, input: &mut Input<'_>, deflate: bool) {
        let mut first = match input.byte() {
            choice @ 0..128 => SLIPS[usize::from(choice) % SLIPS.len()],
            _ => input.byte(),
        };
        // With compression RSV1 has a meaning here that it does not have there.
        if deflate && matches!(first & 0xf, TEXT | BINARY) {
            first &= !RSV1;
        }
        let key = input.byte();
        let payload = input.payload();
        self.both(first, key, &payload);
        self.end = None;
    }

    /// A Ping, a Pong or a Close.
    fn control(&mut self, input: &mut Input<'_>) {
        let choice = input.byte();
        let key = input.byte();
        let count = usize::from(input.byte() % 126);
        let mut payload = input.bytes(count).to_vec();
        if choice % 8 == 0 && choice & 8 != 0 && payload.len() >= 2 {
            let code = CODES[usize::from(choice >> 4) % CODES.len()];
            payload[..2].copy_from_slice(&code.to_be_bytes());
        }
        let fits = payload.len() <= self.limit;
        match choice % 8 {
            0 => {
                self.both(FIN | CLOSE, key, &payload);
                if payload.is_empty() {
                    self.expect(Activity::Close(None, String::new()), fits, End::Closed);
                } else if self.end == Some(End::Open) {
                    self.end = None;
                }
            }
            1..=4 => {
                self.both(FIN | PING, key, &payload);
                self.expect(Activity::Ping(payload), fits, End::Open);
            }
            _ => {
                self.both(FIN | PONG, key, &payload);
                self.expect(Activity::Pong(payload), fits, End::Open);
            }
        }
    }

    /// A message in some fragments, with control frames between them.
    fn message(&mut self, input: &mut Input<'_>, client: Option<&mut Client>) {
        let choices = input.byte();
        let key = input.byte();
        let payload = input.payload();
        let opcode = if choices & 1 != 0 { TEXT } else { BINARY };
        let valid = payload.len() <= self.limit
            && (opcode == BINARY || core::str::from_utf8(&payload).is_ok());
        let compressed =
            client.filter(|_| choices & 2 != 0).and_then(|client| client.compress(&payload, input));
        // Where in a compressed message it goes wrong is not where it does in the plain one, so nothing may
        // come in between.
        let controls = choices & 4 != 0 && (valid || compressed.is_none());
        let last = usize::from(choices >> 3) % 5;
        let mut plain = &payload[..];
        let mut wire = compressed.as_deref().unwrap_or(plain);
        for i in 0..=last {
            let start = if i == 0 { opcode } else { CONTINUATION };
            let first = start | if i == last { FIN } else { 0 };
            let cut = if i == last { plain.len() } else { input.up_to(plain.len()) };
            let (now, later) = plain.split_at(cut);
            plain = later;
            frame(&mut self.plain, first, key, now);
            if compressed.is_some() {
                let cut = if i == last { wire.len() } else { input.up_to(wire.len()) };
                let (now, later) = wire.split_at(cut);
                wire = later;
                let first = first | if i == 0 { RSV1 } else { 0 };
                frame(&mut self.wire, first, key, now);
            } else {
                frame(&mut self.wire, first, key, now);
            }
            if controls && i < last {
                if !valid && self.end == Some(End::Open) {
                    self.end = None;
                }
                self.control(input);
            }
        }
        let event =
            if opcode == TEXT { Activity::Text(payload) } else { Activity::Binary(payload) };
        self.expect(event, valid, End::Open);
    }
}

/// Appends a masked frame whose length is encoded as it should be.
fn frame(out: &mut Vec<u8>, first: u8, key: u8, payload: &[u8]) {
    out.push(first);
    let len = payload.len();
    match len {
        0..=125 => out.push(0x80 | len as u8),
        126..=0xffff => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    let key = [key, key.wrapping_mul(3), key.rotate_left(3), !key];
    out.extend(key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
}
