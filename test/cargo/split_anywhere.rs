//! A session hears the same however the network cuts its bytes.
//!
//! TCP keeps the order of bytes and nothing else: where a read ends says nothing about the client. So the events and
//! the end of a conversation are a function of the bytes alone, and a session that answers differently to another cut
//! has let a buffer's border into the protocol. Each stream here has its expected events and end written beside it. All
//! pairs of cuts are tried on short streams. On long ones the borders of frames, where state changes, are
//! tried closely, and the rest at random.

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
};
use std::alloc::System;

use mod_websocket::{
    conn::session::{Event, Limits, Progress, Session},
    proto::{
        Kind, Version, Violation,
        close::CloseReason,
        deflate::{Deflater, Params},
    },
};

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// More than any stream here needs, except where it is about the limit.
const LIMIT: usize = 1 << 20;

const TAKEOVER: Params = Params {
    server_no_context_takeover: false,
    client_no_context_takeover: false,
    server_max_window_bits: None,
    client_max_window_bits: None,
};
const NO_TAKEOVER: Params =
    Params { server_no_context_takeover: true, client_no_context_takeover: true, ..TAKEOVER };

/// "Hello" as RFC 7692 §7.2.3.1 compresses it, and once more with the first one in the window.
const HELLO: &[u8] = &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
const HELLO_AGAIN: &[u8] = &[0xf2, 0x00, 0x11, 0x00, 0x00];
/// The same in a stored block (§7.2.3.3), with BFINAL (§7.2.3.4) and in two blocks (§7.2.3.5).
const HELLO_STORED: &[u8] = &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00];
const HELLO_FINAL: &[u8] = &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
const HELLO_TWICE: &[u8] =
    &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00];

/// What a session says, without its borrows.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Activity {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

impl From<Event<'_>> for Activity {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Message { kind: Kind::Text, data } => Self::Text(data.to_vec()),
            Event::Message { kind: Kind::Binary, data } => Self::Binary(data.to_vec()),
            Event::Ping(data) => Self::Ping(data.to_vec()),
            Event::Pong(data) => Self::Pong(data.to_vec()),
            Event::Close(CloseReason { code, text }) => {
                Self::Close(code.map(|code| code.0), text.to_owned())
            }
        }
    }
}

fn text(data: &str) -> Activity {
    Activity::Text(data.as_bytes().to_vec())
}

fn binary(data: &[u8]) -> Activity {
    Activity::Binary(data.to_vec())
}

/// A client's byte stream and what it amounts to.
struct Stream {
    what: &'static str,
    params: Option<Params>,
    limit: usize,
    bytes: Vec<u8>,
    /// Where frames begin.
    borders: Vec<usize>,
    events: Vec<Activity>,
    violation: Option<Violation>,
}

impl Stream {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            params: None,
            limit: LIMIT,
            bytes: Vec::new(),
            borders: Vec::new(),
            events: Vec::new(),
            violation: None,
        }
    }

    fn deflate(what: &'static str, params: Params) -> Self {
        Self { params: Some(params), ..Self::new(what) }
    }

    fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Appends a masked frame whose length is encoded as it should be.
    fn frame(mut self, first: u8, payload: &[u8]) -> Self {
        self.borders.push(self.bytes.len());
        let len = payload.len();
        self.bytes.push(first);
        match len {
            0..=125 => self.bytes.push(0x80 | len as u8),
            126..=0xffff => {
                self.bytes.push(0x80 | 126);
                self.bytes.extend((len as u16).to_be_bytes());
            }
            _ => {
                self.bytes.push(0x80 | 127);
                self.bytes.extend((len as u64).to_be_bytes());
            }
        }
        let key = [0x37, 0xfa, 0x21, 0x3d];
        self.bytes.extend(key);
        self.bytes.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ key[i % 4]));
        self
    }

    /// Appends bytes as they are.
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.borders.push(self.bytes.len());
        self.bytes.extend(bytes);
        self
    }

    fn hears(mut self, events: &[Activity]) -> Self {
        self.events = events.to_vec();
        self
    }

    /// The violation that ends it. Bytes follow that must be without effect.
    fn breaks(mut self, violation: Violation) -> Self {
        self.violation = Some(violation);
        self.frame(FIN | TEXT, b"too late")
    }

    /// Feeds the stream in the pieces between `cuts` and compares.
    fn check(&self, cuts: &[usize]) {
        let limits = Limits {
            version: Version::V13,
            max_message: self.limit,
            allow_reserved: false,
            memory: &mod_websocket::limits::memory::UNLIMITED,
        };
        let mut session = Session::new(limits, self.params.as_ref());
        let (mut events, mut violation, mut from) = (self.events.iter(), None, 0);
        for &to in cuts.iter().chain([&self.bytes.len()]) {
            let mut piece = self.bytes[from..to].to_vec();
            from = to;
            let mut at = 0;
            loop {
                match session.feed(&mut piece[at..]) {
                    Ok(Progress { consumed, event: None }) => {
                        assert_eq!(at + consumed, piece.len(), "{} at {cuts:?}", self.what);
                        break;
                    }
                    Ok(Progress { consumed, event: Some(event) }) => {
                        at += consumed;
                        let event = Activity::from(event);
                        assert_eq!(Some(&event), events.next(), "{} at {cuts:?}", self.what);
                    }
                    Err(e) => {
                        assert_eq!(violation.replace(e), None, "{} at {cuts:?}", self.what);
                    }
                }
            }
        }
        assert_eq!(events.next(), None, "{} at {cuts:?}", self.what);
        assert_eq!(violation, self.violation, "{} at {cuts:?}", self.what);
        let closed = matches!(self.events.last(), Some(Activity::Close(..)));
        assert_eq!(session.is_finished(), closed || violation.is_some(), "{}", self.what);
    }

    /// Tries every pair of cuts, and each byte alone.
    fn check_everywhere(&self) {
        for a in 0..=self.bytes.len() {
            for b in a..=self.bytes.len() {
                self.check(&[a, b]);
            }
        }
        self.check(&(0..self.bytes.len()).collect::<Vec<_>>());
    }

    /// Tries pairs of cuts around the borders of frames, and random sets of cuts.
    fn check_somewhere(&self) {
        let len = self.bytes.len();
        for &border in self.borders.iter().chain([&len]) {
            // From the last bytes of a payload to the first ones behind the longest header.
            for a in border.saturating_sub(2)..=(border + 15).min(len) {
                for b in [a, a + 1, a + 5, a + 14] {
                    self.check(&[a, b.min(len)]);
                }
            }
        }
        let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
        for _ in 0..50 {
            let count = random.below(12) + 1;
            let mut cuts: Vec<usize> = (0..count).map(|_| random.below(len + 1)).collect();
            cuts.sort_unstable();
            self.check(&cuts);
        }
    }
}

/// Marsaglia's generator: the same cuts in each run.
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

#[test]
fn conversations() {
    let kappa = "κόσμε".as_bytes();
    let grinning = "😀".as_bytes();
    for stream in [
        Stream::new("nothing"),
        Stream::new("a text, an empty one, a binary message and an empty one")
            .frame(FIN | TEXT, b"Hello")
            .frame(FIN | TEXT, b"")
            .frame(FIN | BINARY, &[0, 0xff, 0x80])
            .frame(FIN | BINARY, b"")
            .hears(&[text("Hello"), text(""), binary(&[0, 0xff, 0x80]), binary(b"")]),
        Stream::new("fragments cut inside characters, a ping and a pong between them")
            .frame(TEXT, &kappa[..1])
            .frame(FIN | PING, b"are you there")
            .frame(CONTINUATION, &kappa[1..6])
            .frame(CONTINUATION, b"")
            .frame(FIN | PONG, b"")
            .frame(FIN | CONTINUATION, &kappa[6..])
            .frame(FIN | TEXT, grinning)
            .hears(&[
                Activity::Ping(b"are you there".to_vec()),
                Activity::Pong(Vec::new()),
                text("κόσμε"),
                text("😀"),
            ]),
        Stream::new("fragments that are all empty")
            .frame(TEXT, b"")
            .frame(CONTINUATION, b"")
            .frame(FIN | CONTINUATION, b"")
            .frame(BINARY, b"")
            .frame(FIN | CONTINUATION, b"x")
            .hears(&[text(""), binary(b"x")]),
        Stream::new("a close with a reason")
            .frame(FIN | CLOSE, &[&[0x03, 0xe8], kappa].concat())
            .frame(FIN | TEXT, b"too late")
            .raw(&[0xff, 0xff])
            .hears(&[Activity::Close(Some(1000), "κόσμε".to_owned())]),
        Stream::new("a close without a code inside a message")
            .frame(TEXT, b"never to be")
            .frame(FIN | CLOSE, b"")
            .frame(FIN | CONTINUATION, b"continued")
            .hears(&[Activity::Close(None, String::new())]),
        Stream::new("an unfinished header, message and payload")
            .frame(TEXT, b"on")
            .frame(FIN | PING, b"")
            .raw(&[0x80, 0xfe, 0x01])
            .hears(&[Activity::Ping(Vec::new())]),
        Stream::new("messages of exactly the limit")
            .limit(12)
            .frame(FIN | BINARY, b"twelve bytes")
            .frame(TEXT, b"twelve")
            .frame(FIN | PING, b"twelve bytes")
            .frame(FIN | CONTINUATION, b" bytes")
            .hears(&[
                binary(b"twelve bytes"),
                Activity::Ping(b"twelve bytes".to_vec()),
                text("twelve bytes"),
            ]),
    ] {
        stream.check_everywhere();
    }
}

#[test]
fn compressed_conversations() {
    for stream in [
        Stream::deflate("a window that is kept", TAKEOVER)
            .frame(FIN | RSV1 | TEXT, HELLO)
            .frame(FIN | TEXT, b"plain")
            .frame(FIN | RSV1 | BINARY, HELLO_AGAIN)
            .hears(&[text("Hello"), text("plain"), binary(b"Hello")]),
        Stream::deflate("stored, final and several blocks", NO_TAKEOVER)
            .frame(FIN | RSV1 | TEXT, HELLO_STORED)
            .frame(FIN | RSV1 | TEXT, HELLO_FINAL)
            .frame(FIN | RSV1 | TEXT, HELLO_TWICE)
            .frame(FIN | RSV1 | TEXT, &[0x00])
            .frame(FIN | RSV1 | TEXT, HELLO)
            .hears(&[text("Hello"), text("Hello"), text("Hello"), text(""), text("Hello")]),
        Stream::deflate("fragments with a ping between them", TAKEOVER)
            .frame(RSV1 | TEXT, &HELLO[..3])
            .frame(FIN | PING, b"?")
            .frame(CONTINUATION, b"")
            .frame(FIN | CONTINUATION, &HELLO[3..])
            .frame(RSV1 | TEXT, b"")
            .frame(FIN | CONTINUATION, HELLO_AGAIN)
            .frame(FIN | CLOSE, &[0x03, 0xe9])
            .hears(&[
                Activity::Ping(b"?".to_vec()),
                text("Hello"),
                text("Hello"),
                Activity::Close(Some(1001), String::new()),
            ]),
        Stream::deflate("a message of exactly the limit", NO_TAKEOVER)
            .limit(5)
            .frame(FIN | RSV1 | TEXT, HELLO_FINAL)
            .frame(FIN | RSV1 | TEXT, HELLO)
            .hears(&[text("Hello"), text("Hello")]),
    ] {
        stream.check_everywhere();
    }
}

/// Each rule is broken behind a message and a ping, so that there is an earlier state to be left behind.
#[test]
fn violations() {
    let long = |len: u64| [&[0x82, 0xff][..], &len.to_be_bytes(), &[1, 2, 3, 4]].concat();
    let prefix =
        |what| Stream::new(what).frame(FIN | TEXT, b"ok").frame(FIN | PING, b"").limit(200);
    let before = [text("ok"), Activity::Ping(Vec::new())];
    for stream in [
        prefix("RSV1").frame(FIN | RSV1 | TEXT, b"x").breaks(Violation::ReservedBits),
        prefix("RSV2").frame(FIN | 0x20 | TEXT, b"x").breaks(Violation::ReservedBits),
        prefix("RSV3").frame(FIN | 0x10 | PING, b"x").breaks(Violation::ReservedBits),
        prefix("opcode 3").frame(FIN | 0x3, b"x").breaks(Violation::UnknownOpcode),
        prefix("opcode 11").frame(FIN | 0xb, b"x").breaks(Violation::UnknownOpcode),
        prefix("no mask").raw(&[0x81, 0x01, b'x']).breaks(Violation::Unmasked),
        prefix("125 in 16 bits")
            .raw(&[0x82, 0xfe, 0, 125, 1, 2, 3, 4])
            .breaks(Violation::LengthNotMinimal),
        prefix("65535 in 64 bits").raw(&long(0xffff)).breaks(Violation::LengthNotMinimal),
        prefix("2^63").raw(&long(1 << 63)).breaks(Violation::LengthTopBit),
        prefix("a ping of 126").frame(FIN | PING, &[7; 126]).breaks(Violation::ControlTooLong),
        prefix("half a ping").frame(PING, b"x").breaks(Violation::ControlFragmented),
        prefix("continues nothing")
            .frame(FIN | CONTINUATION, b"x")
            .breaks(Violation::NothingToContinue),
        prefix("interrupted")
            .frame(TEXT, b"x")
            .frame(FIN | BINARY, b"y")
            .breaks(Violation::MessageInterrupted),
        prefix("half a code").frame(FIN | CLOSE, &[0x03]).breaks(Violation::ClosePayload),
        prefix("1005").frame(FIN | CLOSE, &[0x03, 0xed]).breaks(Violation::CloseCode),
        prefix("bad reason")
            .frame(FIN | CLOSE, &[0x03, 0xe8, b'a', 0xff])
            .breaks(Violation::CloseReason),
        prefix("half a reason")
            .frame(FIN | CLOSE, &[0x03, 0xe8, 0xce])
            .breaks(Violation::CloseReason),
        prefix("a surrogate").frame(FIN | TEXT, b"a\xed\xa0\x80b").breaks(Violation::Text),
        prefix("an unfinished character").frame(FIN | TEXT, b"\xce").breaks(Violation::Text),
        prefix("a character that breaks between fragments")
            .frame(TEXT, b"\xf0\x9f")
            .frame(FIN | CONTINUATION, b"x")
            .breaks(Violation::Text),
        prefix("a character that never ends")
            .frame(TEXT, b"\xf0\x9f")
            .frame(FIN | CONTINUATION, b"")
            .breaks(Violation::Text),
        prefix("one frame too big").raw(&long(0x1_0000)).breaks(Violation::TooBig),
        prefix("fragments too big together")
            .limit(8)
            .frame(BINARY, b"12345")
            .frame(FIN | CONTINUATION, b"6789")
            .breaks(Violation::TooBig),
        prefix("a control frame too big")
            .limit(4)
            .frame(FIN | PONG, b"12345")
            .breaks(Violation::TooBig),
    ] {
        stream.hears(&before).check_everywhere();
    }
}

#[test]
fn violations_of_compressed_conversations() {
    let before = [text("Hello")];
    let prefix = |what| Stream::deflate(what, NO_TAKEOVER).frame(FIN | RSV1 | TEXT, HELLO);
    // A stored block of two bytes that are no UTF-8.
    let stored = [0x00, 0x02, 0x00, 0xfd, 0xff, 0xc3, 0x28, 0x00];
    for stream in [
        prefix("RSV1 on a ping").frame(FIN | RSV1 | PING, b"").breaks(Violation::ReservedBits),
        prefix("RSV1 on a continuation")
            .frame(RSV1 | TEXT, &HELLO[..2])
            .frame(FIN | RSV1 | CONTINUATION, &HELLO[2..])
            .breaks(Violation::ReservedBits),
        prefix("a block of type 3").frame(FIN | RSV1 | TEXT, &[0x06]).breaks(Violation::Deflate),
        prefix("a stored block whose length is contradicted")
            .frame(FIN | RSV1 | TEXT, &[0x00, 0x05, 0x00, 0x05, 0x00])
            .breaks(Violation::Deflate),
        // Without takeover the first Hello is forgotten.
        prefix("a reference into a window that is gone")
            .frame(FIN | RSV1 | TEXT, HELLO_AGAIN)
            .breaks(Violation::Deflate),
        prefix("no UTF-8 in a text").frame(FIN | RSV1 | TEXT, &stored).breaks(Violation::Text),
        prefix("too big when inflated")
            .limit(5)
            .frame(FIN | RSV1 | BINARY, &[0x00, 0x06, 0x00, 0xf9, 0xff, 1, 2, 3, 4, 5, 6, 0x00])
            .breaks(Violation::TooBig),
    ] {
        stream.hears(&before).check_everywhere();
    }
}

#[test]
fn long_conversations() {
    let bytes: Vec<u8> = (0..70_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let words = "Größe läßt sich nicht schätzen. ".repeat(3000);
    for len in [125, 126, 127, 0xffff, 0x1_0000] {
        Stream::new("each encoding of a length")
            .frame(FIN | BINARY, &bytes[..len])
            .frame(FIN | PING, &bytes[..125])
            .hears(&[binary(&bytes[..len]), Activity::Ping(bytes[..125].to_vec())])
            .check_somewhere();
    }
    Stream::new("long fragments")
        .frame(TEXT, &words.as_bytes()[..65_537])
        .frame(FIN | CONTINUATION, &words.as_bytes()[65_537..])
        .hears(&[text(&words)])
        .check_somewhere();

    for (what, params) in [("a kept window", TAKEOVER), ("no kept window", NO_TAKEOVER)] {
        let mut stream = Stream::deflate(what, params);
        let mut events = Vec::new();
        let mut deflater = Deflater::new(&params, 6);
        for len in [1, 300, 20_000, words.len()] {
            let data = &words.as_bytes()[..len];
            let mut wire = Vec::new();
            let compressed = deflater.compress(data, &mut wire);
            let (rsv1, wire) = if compressed { (RSV1, &wire[..]) } else { (0, data) };
            let (first, rest) = wire.split_at(wire.len() / 3);
            stream = stream
                .frame(rsv1 | BINARY, first)
                .frame(FIN | PONG, b"unasked")
                .frame(FIN | CONTINUATION, rest);
            events.extend([Activity::Pong(b"unasked".to_vec()), binary(data)]);
        }
        stream.hears(&events).check_somewhere();
    }
}

/// Counts the heap of each thread, which is that of one test.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    LIVE.set(LIVE.get() + bytes);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

#[expect(unsafe_code, reason = "an allocator is")]
// SAFETY: all memory is the system allocator's, which keeps the contract; counting in cells without a destructor
// neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's contract is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's contract is handed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that the heap grows by while `work` runs.
fn growth(work: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    work();
    (PEAK.get() - before) as usize
}

#[test]
fn a_claimed_length_takes_no_memory() {
    let limits = Limits {
        version: Version::V13,
        max_message: 64 << 20,
        allow_reserved: false,
        memory: &mod_websocket::limits::memory::UNLIMITED,
    };
    let claim =
        |first: u8| [&[first, 0xff][..], &(32u64 << 20).to_be_bytes(), &[0; 4], b"x"].concat();
    for (first, params) in
        [(FIN | TEXT, None), (BINARY, None), (FIN | RSV1 | BINARY, Some(NO_TAKEOVER))]
    {
        let mut bytes = claim(first);
        let mut session = Session::new(limits, params.as_ref());
        // An inflater of the largest window, and the first step of a buffer.
        let bound = if params.is_some() { 128 << 10 } else { 1 << 10 };
        let grown = growth(|| assert_eq!(session.feed(&mut bytes).unwrap().event, None));
        assert!(grown <= bound, "{first:#x}: {grown} bytes for one byte of payload");
    }
}

#[test]
fn a_bomb_takes_no_more_memory_than_the_limit() {
    const BOUND: usize = 256 << 10;
    let mut bomb = Vec::new();
    assert!(Deflater::new(&NO_TAKEOVER, 9).compress(&vec![0; 32 << 20], &mut bomb));
    assert!(bomb.len() < BOUND / 4);
    let mut stream =
        Stream::deflate("a bomb", NO_TAKEOVER).limit(BOUND).frame(FIN | RSV1 | BINARY, &bomb);
    let limits = Limits {
        version: Version::V13,
        max_message: BOUND,
        allow_reserved: false,
        memory: &mod_websocket::limits::memory::UNLIMITED,
    };
    let mut session = Session::new(limits, stream.params.as_ref());
    let grown = growth(|| {
        assert_eq!(session.feed(&mut stream.bytes), Err(Violation::TooBig));
    });
    // The message, what it is copied from when it grows, and the inflater.
    assert!(grown <= 2 * BOUND + (128 << 10), "{grown} bytes for a limit of {BOUND}");
}
