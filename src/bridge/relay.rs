//! One bridged connection: bytes between the client's outbox and the peer's socket, in both directions, without
//! blocking and within bounds.
//!
//! Each direction pauses the other side's sender when its own receiver is slow: the driver stops reading from the client
//! while [`Sink::is_crowded`], and the relay stops reading from the peer while much waits in the outbox. Either way the
//! kernel's buffers fill up, and TCP tells the sender.

use core::fmt;
use std::{
    collections::VecDeque,
    io,
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    Framing, Piece,
    socket::{PeerSocket, SocketKind},
};
use crate::{
    conn::{
        endpoint::{Endpoint, Peer, Relayed, Sink},
        log::Level,
        outbox::{self, Outbox, drop_front},
    },
    limits::memory::Claim,
    os::{Interest, Readiness},
    proto::{
        Kind,
        close::{self, CloseCode},
    },
    sync::Lock as _,
};

/// How much may wait for either side before the other one is not read from any more.
const CROWDED: usize = 256 * 1024;
/// How often a peer that is never short of bytes is read from before others have their turn.
const READS: u32 = 16;
/// From this size on a message is written from where it lies; shorter ones are gathered for one call.
const LARGE: usize = 16 * 1024;
/// How much of an unfinished message is put in front of the next read rather than the read behind it.
const SMALL: usize = 8 * 1024;
/// The spare room that a resting connection may keep.
const REST: usize = 256;
/// The most bytes of a Close frame's reason (RFC 6455 §5.5.1).
const REASON: usize = 123;

/// A client and its peer.
pub struct Relay {
    outbox: Arc<Outbox>,
    socket: PeerSocket,
    /// The most bytes of a message that a framing may wait for.
    max_piece: usize,
    /// How many bytes wait for the peer, for those who do not hold the lock: a mere count.
    waiting: AtomicUsize,
    state: Mutex<Directions>,
}

struct Directions {
    inbound: Inbound,
    outbound: Outbound,
}

/// From the peer to the client.
struct Inbound {
    framing: Box<dyn Framing>,
    /// Bytes that have not been sent: the beginning of a message, or more for want of room.
    rest: Vec<u8>,
    /// How many at its end the framing has not been shown.
    fresh: usize,
    /// The message at its front, which found no room.
    held: Option<(Kind, usize)>,
    /// The framing has not seen all of it, for want of room.
    interrupted: bool,
    /// What the memory of `rest` counts for.
    claim: Claim,
    /// The socket may have something to read.
    readable: bool,
    /// The end of the stream, or an error, has been announced; it is so once only.
    to_the_end: bool,
    /// The stream has ended; the client is told when it has got the rest.
    end: Option<Result<(), io::Error>>,
    /// Nothing more comes.
    over: bool,
}

/// From the client to the peer.
struct Outbound {
    /// What waits for the peer; the first `written` bytes have left.
    bytes: Vec<u8>,
    written: usize,
    /// What the memory of all that waits counts for.
    claim: Claim,
    /// The lengths of the datagrams of which `bytes` consists, if it does.
    datagrams: VecDeque<usize>,
    /// The socket takes nothing at present.
    blocked: bool,
    /// The peer will not take anything any more.
    broken: bool,
    /// A datagram was lost; this is said once, until the peer is heard.
    complained: bool,
    /// How much has left so far.
    taken: u64,
    /// How much had reached the peer when the clock saw that change last, and when that was.
    seen: Option<(u64, Duration)>,
}

/// How reading from the peer ended.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Reading {
    /// Nothing is there now.
    Rest,
    /// The client has to take something first.
    Paused,
    /// There may be more.
    Again,
}

impl Relay {
    /// A relay to the peer behind `socket`. `first` is sent to it before anything else; a message that is longer than
    /// `max_piece` ends the connection.
    pub fn new(
        outbox: Arc<Outbox>,
        socket: PeerSocket,
        framing: Box<dyn Framing>,
        first: Vec<u8>,
        max_piece: usize,
    ) -> Self {
        let inbound = Inbound {
            framing,
            rest: Vec::new(),
            fresh: 0,
            held: None,
            interrupted: false,
            claim: outbox.memory().claim(),
            readable: false,
            to_the_end: false,
            end: None,
            over: false,
        };
        let outbound = Outbound {
            bytes: first,
            written: 0,
            claim: outbox.memory().claim(),
            datagrams: VecDeque::new(),
            blocked: false,
            broken: false,
            complained: false,
            taken: 0,
            seen: None,
        };
        let (waiting, state) = (AtomicUsize::new(0), Mutex::new(Directions { inbound, outbound }));
        Self { outbox, socket, max_piece, waiting, state }
    }

    /// Only the clock ever competes for it, and only for a moment.
    fn lock(&self) -> MutexGuard<'_, Directions> {
        self.state.acquire()
    }

    fn is_stream(&self) -> bool {
        self.socket.kind() == SocketKind::Stream
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        self.outbox.log().write(Level::Info, line);
    }

    /// Closes the conversation; the reason reaches the client too.
    fn close(&self, code: CloseCode, reason: &str) {
        let mut payload = close::payload(code).to_vec();
        payload.extend_from_slice(reason.as_bytes());
        self.outbox.close(&payload, reason);
    }

    /// Sends the messages that there are, and reads on, until one side has nothing or no room.
    fn read(&self, state: &mut Directions, buffer: &mut [u8]) -> Reading {
        let Directions { inbound, outbound } = state;
        let mut reads = READS;
        while !inbound.over && self.outbox.state() <= outbox::State::Open {
            if inbound.interrupted {
                let mut rest = core::mem::take(&mut inbound.rest);
                rest.push(0);
                let used = self.cut(inbound, &mut rest);
                rest.pop();
                rest.drain(..used);
                inbound.rest = rest;
                if inbound.interrupted {
                    return Reading::Paused;
                }
            } else if let Some(end) = inbound.end.take() {
                inbound.over = true;
                inbound.rest = Vec::new();
                match end {
                    Ok(()) if !outbound.broken => {
                        self.close(CloseCode::NORMAL, "Peer closed connection");
                    }
                    Ok(()) => self.close(CloseCode::INTERNAL, "Failed to forward"),
                    Err(error) => {
                        self.log(format_args!(
                            "WS0503: closing with 1011: the peer is lost: {error}"
                        ));
                        self.close(CloseCode::INTERNAL, "Peer connection failed");
                    }
                }
            } else if !inbound.readable {
                break;
            } else if !self.outbox.has_room(1, CROWDED) {
                return Reading::Paused;
            } else if reads == 0 {
                return Reading::Again;
            } else {
                reads -= 1;
                let ended = if self.is_stream() {
                    self.read_stream(inbound, buffer)
                } else {
                    self.read_datagram(inbound, outbound, buffer);
                    None
                };
                if ended.is_some() {
                    inbound.end = ended;
                    inbound.interrupted = !inbound.rest.is_empty();
                }
            }
        }
        Reading::Rest
    }

    /// Reads from a stream once, and sends what messages that makes. `Some` if the stream has ended.
    fn read_stream(&self, inbound: &mut Inbound, buffer: &mut [u8]) -> Option<io::Result<()>> {
        let before = inbound.rest.len();
        let in_front = before <= SMALL.min(buffer.len() / 2);
        let at = if in_front { before } else { 0 };
        let room = buffer.len() - 1 - at;
        let n = match self.socket.read(&mut buffer[at..][..room]) {
            Ok(0) => return Some(Ok(())),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                inbound.readable = false;
                return None;
            }
            Err(e) => return Some(Err(e)),
        };
        // A short read leaves nothing behind.
        inbound.readable = n == room || inbound.to_the_end;
        inbound.fresh = n;
        if in_front {
            let end = at + n;
            buffer[..at].copy_from_slice(&inbound.rest);
            buffer[end] = 0;
            let used = self.cut(inbound, &mut buffer[..=end]);
            inbound.rest.clear();
            inbound.rest.extend_from_slice(&buffer[used..end]);
        } else {
            let mut rest = core::mem::take(&mut inbound.rest);
            rest.reserve(n + 1);
            rest.extend_from_slice(&buffer[..n]);
            rest.push(0);
            let used = self.cut(inbound, &mut rest);
            rest.pop();
            rest.drain(..used);
            inbound.rest = rest;
        }
        if !inbound.interrupted && inbound.rest.len() > self.max_piece {
            let most = self.max_piece;
            self.fail(inbound, format_args!("the peer's message exceeds {most} bytes"));
        }
        None
    }

    /// Reads a datagram and sends it as a message, whose kind is all that the framing decides.
    fn read_datagram(&self, inbound: &mut Inbound, outbound: &mut Outbound, buffer: &mut [u8]) {
        let mut large = Vec::new();
        let len = match self.socket.kind() {
            SocketKind::UnixDatagram => self.socket.next_len(),
            _ => Ok(0),
        };
        let buffer = match len {
            Ok(len) if len > buffer.len() => {
                large.resize(len, 0);
                &mut large[..]
            }
            _ => buffer,
        };
        match len.and_then(|_| self.socket.read(buffer)) {
            Ok(n) => {
                outbound.complained = false;
                let kind = inbound.framing.datagram(&buffer[..n]);
                if self.outbox.has_room(n, CROWDED) {
                    let _ = self.outbox.send_message(kind, &buffer[..n]);
                } else {
                    inbound.rest = buffer[..n].to_vec();
                    inbound.held = Some((kind, n));
                    inbound.interrupted = true;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => inbound.readable = false,
            Err(e) => outbound.complain(&self.outbox, &e),
        }
    }

    /// Sends the messages at the front of `data`, which has a NUL behind it, as long as there is room for them; returns
    /// how many bytes are done with.
    fn cut(&self, inbound: &mut Inbound, data: &mut [u8]) -> usize {
        let len = data.len() - 1;
        let mut at = 0;
        inbound.interrupted = true;
        while at < len {
            let held = inbound.held.take();
            if held.is_none() && !self.outbox.has_room(1, CROWDED) {
                break;
            }
            let fresh = inbound.fresh.min(len - at);
            let piece = match held {
                Some((kind, n)) => Piece::Message(kind, n),
                None if inbound.end.is_some() => inbound.framing.finish(&mut data[at..]),
                None => inbound.framing.next(&mut data[at..], fresh),
            };
            match piece {
                Piece::Message(kind, n) if (1..=len - at).contains(&n) => {
                    if !self.outbox.has_room(n, CROWDED) {
                        inbound.held = Some((kind, n));
                        break;
                    }
                    if self.outbox.send_message(kind, &data[at..at + n]).is_err() {
                        // Nobody is there to be told.
                        at = len;
                    } else {
                        at += n;
                    }
                }
                Piece::Discard(n) if (1..=len - at).contains(&n) => at += n,
                Piece::Wait => {
                    inbound.interrupted = false;
                    break;
                }
                Piece::Broken(reason) => {
                    self.fail(inbound, format_args!("{reason}"));
                    at = len;
                }
                Piece::Message(..) | Piece::Discard(_) => {
                    self.fail(inbound, format_args!("the framing went out of bounds"));
                    at = len;
                }
            }
        }
        inbound.interrupted &= at < len;
        inbound.fresh = if inbound.interrupted { inbound.fresh.min(len - at) } else { 0 };
        at
    }

    /// What the peer sends makes no sense.
    fn fail(&self, inbound: &mut Inbound, why: fmt::Arguments<'_>) {
        self.log(format_args!("WS0505: closing with 1011: {why}"));
        let mut reason = why.to_string();
        while reason.len() > REASON {
            reason.pop();
        }
        self.close(CloseCode::INTERNAL, &reason);
        inbound.over = true;
    }

    /// Writes what waits for the peer, until it takes no more.
    fn flush(&self, state: &mut Directions) {
        let Directions { inbound, outbound } = state;
        let mut refused = false;
        while outbound.waits() && !outbound.blocked {
            match self.socket.write(outbound.next()) {
                Ok(n) => {
                    refused = false;
                    outbound.took(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => outbound.blocked = true,
                Err(e) if self.is_stream() => {
                    self.log(format_args!(
                        "WS0504: the peer does not take what the client sends: {e}"
                    ));
                    outbound.give_up();
                    // What it sent before may tell the client why.
                    (inbound.readable, inbound.to_the_end) = (true, true);
                }
                Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => {
                    self.log(format_args!(
                        "WS0506: closing with 1009: a message is too long for a datagram"
                    ));
                    outbound.give_up();
                    self.close(CloseCode::TOO_BIG, "the message is too long for a datagram");
                }
                // The error may be about an earlier datagram: once more.
                Err(_) if !refused => refused = true,
                Err(e) => {
                    outbound.complain(&self.outbox, &e);
                    refused = false;
                    let n = outbound.next().len();
                    outbound.took(n);
                }
            }
        }
        outbound.compact();
        self.note_waiting(outbound);
    }

    fn note_waiting(&self, outbound: &Outbound) {
        self.waiting.store(outbound.held(0), Ordering::Relaxed);
    }
}

impl Outbound {
    /// How much it holds, with `len` more bytes. Datagrams may be empty, and are held all the same.
    fn held(&self, len: usize) -> usize {
        self.bytes.len() - self.written + self.datagrams.len() * size_of::<usize>() + len
    }

    fn waits(&self) -> bool {
        !self.broken && (self.written < self.bytes.len() || !self.datagrams.is_empty())
    }

    /// What is to be written next.
    fn next(&self) -> &[u8] {
        let waiting = &self.bytes[self.written..];
        self.datagrams.front().map_or(waiting, |&len| &waiting[..len])
    }

    /// `n` bytes, or a datagram of `n` bytes, have left.
    fn took(&mut self, n: usize) {
        self.written += n;
        self.taken += n.max(1) as u64;
        self.datagrams.pop_front();
    }

    fn complain(&mut self, outbox: &Outbox, error: &io::Error) {
        if !core::mem::replace(&mut self.complained, true) {
            outbox.log().write(
                Level::Info,
                format_args!("WS0506: the peer does not get its datagrams: {error}"),
            );
        }
    }

    fn give_up(&mut self) {
        self.broken = true;
        self.bytes = Vec::new();
        self.written = 0;
        self.datagrams = VecDeque::new();
        self.claim.release();
    }

    fn compact(&mut self) {
        if drop_front(&mut self.bytes, &mut self.written) {
            self.claim.lower(self.held(self.bytes.capacity() - self.bytes.len()));
        }
    }

    /// Gives back what nothing is in.
    fn trim(&mut self) {
        if !self.bytes.is_empty() || !self.datagrams.is_empty() {
            return;
        }
        self.claim.release();
        if self.bytes.capacity() + self.datagrams.capacity() > REST {
            (self.bytes, self.datagrams) = (Vec::new(), VecDeque::new());
        }
    }
}

impl Endpoint for Relay {
    fn message(&self, _kind: Kind, data: &mut [u8]) {
        let state = &mut *self.lock();
        let outbound = &mut state.outbound;
        if outbound.broken {
            return;
        }
        // Before any of it leaves, since the peer shall not get the half of a message.
        if outbound.claim.cover(outbound.held(data.len() + size_of::<usize>())).is_err() {
            return self.outbox.refuse_memory();
        }
        if !self.is_stream() {
            outbound.bytes.extend_from_slice(data);
            outbound.datagrams.push_back(data.len());
            return self.flush(state);
        }
        let mut data = &data[..];
        if data.len() >= LARGE && !outbound.waits() && !outbound.blocked {
            // An error comes back when the rest is written.
            let n = self.socket.write(data).unwrap_or(0);
            outbound.taken += n as u64;
            data = &data[n..];
        }
        outbound.bytes.extend_from_slice(data);
        if outbound.bytes.len() - outbound.written >= LARGE {
            self.flush(state);
        } else {
            self.note_waiting(outbound);
        }
    }

    fn closed(&self) {
        self.flush(&mut self.lock());
        if self.is_stream() {
            self.socket.finish();
        }
    }

    fn sink(&self) -> Option<&dyn Sink> {
        Some(self)
    }

    fn peer(&self) -> Option<&dyn Peer> {
        Some(self)
    }
}

impl Sink for Relay {
    fn is_crowded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > CROWDED
    }
}

impl Peer for Relay {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.descriptor()
    }

    fn note(&self, ready: Readiness) {
        let Directions { inbound, outbound } = &mut *self.lock();
        inbound.readable |= ready.read;
        inbound.to_the_end |= ready.to_the_end;
        outbound.blocked &= !ready.write;
    }

    fn relay(&self, buffer: &mut [u8]) -> Relayed {
        let state = &mut *self.lock();
        self.flush(state);
        let reading = self.read(state, buffer);
        let Directions { inbound, outbound } = state;
        if outbound.broken && reading == Reading::Rest && !inbound.over {
            self.close(CloseCode::INTERNAL, "Failed to forward");
            inbound.over = true;
        }
        outbound.trim();
        if inbound.rest.is_empty() {
            inbound.claim.release();
            if inbound.rest.capacity() > REST {
                inbound.rest = Vec::new();
            }
        } else if inbound.claim.cover(inbound.rest.len()).is_err() {
            self.outbox.refuse_memory();
            (inbound.over, inbound.rest) = (true, Vec::new());
            inbound.claim.release();
        }
        Relayed {
            again: reading == Reading::Again,
            paused: reading == Reading::Paused,
            settled: !outbound.waits(),
        }
    }

    fn interest(&self) -> Interest {
        let Directions { inbound, outbound } = &*self.lock();
        let wanted = !inbound.over && inbound.end.is_none() && !inbound.interrupted;
        let open = self.outbox.state() <= outbox::State::Open;
        let read = wanted && open && self.outbox.has_room(1, CROWDED);
        Interest { read, write: outbound.waits() }
    }

    fn check(&self, now: Duration, timeout: Duration) -> bool {
        // Who is at work now is not stuck.
        let Ok(mut state) = self.state.try_lock() else { return false };
        let outbound = &mut state.outbound;
        let waits = outbound.waits();
        // The kernel takes more from us only when the peer has taken a good part of what it holds.
        let kernels = if self.is_stream() { self.socket.unacknowledged() } else { 0 };
        let taken = outbound.taken.wrapping_sub(kernels);
        let seen = outbound.seen.filter(|(before, _)| waits && *before == taken);
        let since = seen.map_or(now, |(_, since)| since);
        outbound.seen = Some((taken, since));
        if !waits || now - since < timeout {
            return false;
        }
        outbound.give_up();
        self.note_waiting(outbound);
        state.inbound.over = true;
        drop(state);
        if timeout.is_zero() {
            self.log(format_args!("WS0504: the child ends before the peer has taken everything"));
        } else {
            let line = "WS0504: closing with 1011: the peer took nothing for";
            self.log(format_args!("{line} {timeout:?}"));
        }
        self.close(CloseCode::INTERNAL, "Failed to forward");
        true
    }

    fn finish(&self, buffer: &mut [u8]) -> bool {
        if !self.is_stream() {
            return true;
        }
        for _ in 0..READS {
            match self.socket.read(buffer) {
                Ok(1..) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Ok(0) | Err(_) => return true,
            }
        }
        self.socket.unacknowledged() == 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::{
            fd::OwnedFd,
            unix::net::{UnixDatagram, UnixStream},
        },
    };

    use super::*;
    use crate::{
        bridge::{Address, framing},
        conn::outbox::State as Conversation,
        fakes::{Driver, Lines, Wire, from_us, outbox},
        proto::frame::Opcode,
    };

    /// A relay between a client that a script plays and a peer on a socket, whose other end the test has.
    struct Bridged<P> {
        relay: Relay,
        outbox: Arc<Outbox>,
        wire: Wire,
        peer: P,
        log: Lines,
        _driver: Arc<Driver>,
    }

    impl<P> Bridged<P> {
        /// Whether it waits to read, and to write.
        fn interest(&self) -> (bool, bool) {
            let Interest { read, write } = self.relay.interest();
            (read, write)
        }
    }

    fn bridged<P>(
        framing: Box<dyn Framing>,
        socket: OwnedFd,
        address: Address,
        peer: P,
    ) -> Bridged<P> {
        let (outbox, log) = outbox(1 << 30);
        let wire = Wire::new();
        let driver = Driver::new(Some(&wire), || panic!("nobody has to wait"));
        driver.rest(&outbox);
        let socket = PeerSocket::new(socket.into(), &address).unwrap();
        let relay = Relay::new(outbox.clone(), socket, framing, Vec::new(), 100_000);
        Bridged { relay, outbox, wire, peer, log, _driver: driver }
    }

    /// A framing that is known.
    fn known(name: &str) -> Box<dyn Framing> {
        framing::make(name, Some("lf")).unwrap()
    }

    fn stream(name: &str) -> Bridged<UnixStream> {
        stream_with(known(name))
    }

    fn stream_with(framing: Box<dyn Framing>) -> Bridged<UnixStream> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        bridged(framing, ours.into(), Address::Unix("/peer".into()), theirs)
    }

    impl<P> Bridged<P> {
        /// A turn, in which the peer's socket is ready for everything.
        fn relay(&self) -> Relayed {
            self.relay.note(Readiness { read: true, write: true, to_the_end: false });
            self.relay.relay(&mut vec![0; 64 * 1024])
        }

        /// Has the client send until it would be held up, and returns all of that.
        fn crowd(&self) -> Vec<u8> {
            let mut sent = Vec::new();
            while !self.relay.is_crowded() {
                assert!(sent.len() < 64 << 20, "a client is not held up");
                let mut message = vec![sent.len() as u8; 10_000];
                sent.extend_from_slice(&message);
                self.relay.message(Kind::Binary, &mut message);
            }
            sent
        }

        /// What the client has been told of the end.
        fn is_closed_with(&self, code: u16, reason: &str) -> bool {
            self.outbox.flush(&self.wire).unwrap();
            let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
            self.wire.sent().ends_with(&from_us(Opcode::Close, &payload))
        }
    }

    impl Bridged<UnixStream> {
        /// What the peer has got.
        fn got(&mut self) -> Vec<u8> {
            let mut got = Vec::new();
            let mut buffer = vec![0; 1 << 16];
            while let Ok(n @ 1..) = self.peer.read(&mut buffer) {
                got.extend_from_slice(&buffer[..n]);
            }
            got
        }
    }

    const SETTLED: Relayed = Relayed { again: false, paused: false, settled: true };

    #[test]
    fn messages_go_both_ways() {
        let mut bridged = stream("newline");
        bridged.relay.message(Kind::Binary, &mut b"to the peer".to_owned());
        bridged.peer.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(bridged.relay(), SETTLED);
        assert_eq!(bridged.got(), b"to the peer");
        let sent = [from_us(Opcode::Text, b"one\n"), from_us(Opcode::Text, b"two\n")];
        assert_eq!(bridged.wire.sent(), sent.concat());
        bridged.peer.write_all(b"ee\n").unwrap();
        assert_eq!(bridged.relay(), SETTLED);
        assert_eq!(bridged.wire.sent(), from_us(Opcode::Text, b"three\n"));
        assert_eq!(bridged.interest(), (true, false));
    }

    #[test]
    fn a_peer_that_does_not_read_holds_up_its_client_and_loses_nothing() {
        let mut bridged = stream("binary");
        let sent = bridged.crowd();
        bridged.relay.note(Readiness::default());
        assert!(!bridged.relay.relay(&mut [0; 100]).settled);
        assert_eq!(bridged.interest(), (true, true));
        let mut got = Vec::new();
        loop {
            let settled = bridged.relay().settled;
            let part = bridged.got();
            assert!(!part.is_empty(), "nothing moves");
            got.extend_from_slice(&part);
            if settled {
                break;
            }
        }
        assert!(got == sent && bridged.relay() == SETTLED);
        assert!(!bridged.relay.is_crowded());
        assert_eq!(bridged.interest(), (true, false));
    }

    #[test]
    fn what_waits_for_a_peer_is_counted_also_if_it_is_empty() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let address = Address::UnixDatagram("/p".into());
        let bridged = bridged(known("binary"), ours.into(), address, theirs);
        while !bridged.relay.is_crowded() {
            bridged.relay.message(Kind::Binary, &mut []);
            assert!(bridged.relay.lock().outbound.datagrams.len() < 100_000);
        }
        bridged.relay();
        assert!(bridged.relay.is_crowded());
    }

    #[test]
    fn a_client_that_does_not_read_holds_up_its_peer_and_loses_nothing() {
        let mut bridged = stream("binary");
        bridged.wire.takes(0);
        let mut sent = Vec::new();
        let mut held = false;
        while !held {
            assert!(sent.len() < 64 << 20, "a peer is not held up");
            let part = vec![sent.len() as u8; 10_000];
            match bridged.peer.write(&part) {
                Ok(n) => sent.extend_from_slice(&part[..n]),
                Err(_) => held = bridged.relay().paused,
            }
        }
        assert!(!bridged.outbox.has_room(64 * 1024, CROWDED));
        assert_eq!(bridged.interest(), (false, false));
        // The kernel's buffer is full again, or gets so.
        while let Ok(n) = bridged.peer.write(&[7; 10_000]) {
            sent.extend_from_slice(&[7; 10_000][..n]);
        }
        assert!(bridged.relay().paused);
        bridged.wire.takes(usize::MAX);
        bridged.outbox.flush(&bridged.wire).unwrap();
        while bridged.relay() != SETTLED {}
        assert_eq!(bridged.interest(), (true, false));
        assert!(payloads(&bridged.wire.sent()) == sent);
    }

    /// The payloads of binary frames, one behind the other.
    fn payloads(mut frames: &[u8]) -> Vec<u8> {
        let mut payloads = Vec::new();
        while let [0x82, len, rest @ ..] = frames {
            let (header, len) = match len {
                126 => (2, usize::from(u16::from_be_bytes(rest[..2].try_into().unwrap()))),
                127 => (8, u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize),
                len => (0, usize::from(*len)),
            };
            payloads.extend_from_slice(&rest[header..][..len]);
            frames = &rest[header + len..];
        }
        assert_eq!(frames, b"");
        payloads
    }

    /// Lines, each of which is given once and has to be taken then.
    struct Once(Arc<AtomicUsize>);

    impl Framing for Once {
        fn next(&mut self, data: &mut [u8], _fresh: usize) -> Piece {
            let Some(end) = data.iter().position(|&byte| byte == b'\n') else { return Piece::Wait };
            self.0.fetch_add(1, Ordering::Relaxed);
            Piece::Message(Kind::Text, end + 1)
        }
    }

    #[test]
    fn a_message_that_finds_no_room_is_held_whole() {
        let given = Arc::new(AtomicUsize::new(0));
        let mut bridged = stream_with(Box::new(Once(given.clone())));
        bridged.wire.takes(0);
        // So much waits that the next message is too long, though not a short one.
        bridged.outbox.send_message(Kind::Binary, &vec![0; CROWDED - 100]).unwrap();
        let line = [&[b'x'; 150][..], b"\n"].concat();
        bridged.peer.write_all(&[&b"short\n"[..], &line, b"last\n"].concat()).unwrap();
        assert!(bridged.relay().paused);
        assert!(bridged.relay().paused);
        bridged.peer.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(bridged.relay().paused);
        assert_eq!(bridged.outbox.state(), Conversation::Open);
        bridged.wire.takes(usize::MAX);
        bridged.outbox.flush(&bridged.wire).unwrap();
        bridged.wire.sent();
        assert_eq!(bridged.relay(), SETTLED);
        let sent = bridged.wire.sent();
        let header = [0x81, 126, 0, 151];
        let close = [&b"\x03\xe8"[..], b"Peer closed connection"].concat();
        let expected = [
            &header[..],
            &line,
            &from_us(Opcode::Text, b"last\n"),
            &from_us(Opcode::Close, &close),
        ];
        assert_eq!(sent, expected.concat());
        assert_eq!(given.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn what_a_peer_sent_before_its_end_comes_before_the_close() {
        let mut bridged = stream("newline");
        bridged.peer.write_all(b"one\nrest").unwrap();
        bridged.peer.shutdown(std::net::Shutdown::Write).unwrap();
        // The end is not read at once: a short read leaves nothing behind, unless the end has been shown.
        bridged.relay.note(Readiness { read: true, write: true, to_the_end: true });
        assert_eq!(bridged.relay.relay(&mut [0; 1000]), SETTLED);
        let close = [&b"\x03\xe8"[..], b"Peer closed connection"].concat();
        let expected = [
            from_us(Opcode::Text, b"one\n"),
            from_us(Opcode::Text, b"rest"),
            from_us(Opcode::Close, &close),
        ];
        assert_eq!(bridged.wire.sent(), expected.concat());
        assert_eq!(bridged.interest(), (false, false));
        // It can still be sent to, and gets all of it before the end.
        bridged.relay.message(Kind::Binary, &mut b"late".to_owned());
        bridged.relay.closed();
        assert_eq!(bridged.got(), b"late");
        assert_eq!(bridged.peer.read(&mut [0; 10]).unwrap(), 0);
    }

    #[test]
    fn a_peer_is_said_goodbye_when_it_has_got_everything() {
        let mut bridged = stream("binary");
        bridged.relay.message(Kind::Binary, &mut b"last words".to_owned());
        bridged.relay.closed();
        bridged.peer.write_all(b"to nobody").unwrap();
        // On a Unix socket the kernel knows what it holds; the peer has not taken it.
        assert!(!bridged.relay.finish(&mut [0; 100]));
        assert_eq!(bridged.got(), b"last words");
        assert!(bridged.relay.finish(&mut [0; 100]));
    }

    #[test]
    fn a_peer_that_takes_nothing_is_given_up() {
        let bridged = stream("binary");
        let (second, timeout) = (Duration::from_secs(1), Duration::from_secs(60));
        bridged.crowd();
        assert!(!bridged.relay.check(100 * second, timeout));
        assert!(!bridged.relay.check(159 * second, timeout));
        assert!(bridged.relay.check(160 * second, timeout));
        assert!(bridged.is_closed_with(1011, "Failed to forward"));
        assert!(bridged.log.has("WS0504") && !bridged.relay.is_crowded());
        assert_eq!(bridged.relay(), SETTLED);
        assert!(!bridged.relay.check(300 * second, timeout));
    }

    #[test]
    fn a_peer_that_takes_a_little_is_waited_for() {
        let mut bridged = stream("binary");
        let (second, timeout) = (Duration::from_secs(1), Duration::from_secs(60));
        bridged.crowd();
        bridged.relay.check(100 * second, timeout);
        assert!(!bridged.got().is_empty());
        assert!(!bridged.relay().settled);
        assert!(!bridged.relay.check(170 * second, timeout));
        assert!(bridged.relay.check(230 * second, timeout));
    }

    #[test]
    fn a_lost_peer_is_told_to_the_client() {
        let bridged = stream("binary");
        let Bridged { relay, outbox, wire, peer, log, _driver } = bridged;
        drop(peer);
        relay.message(Kind::Binary, &mut b"1".to_owned());
        relay.note(Readiness { read: true, write: true, to_the_end: true });
        relay.relay(&mut [0; 100]);
        assert!(log.has("WS0504"));
        let reason = [&b"\x03\xf3"[..], b"Failed to forward"].concat();
        assert_eq!(wire.sent(), from_us(Opcode::Close, &reason));
        assert_eq!(outbox.state(), Conversation::Closing);
    }

    #[test]
    fn a_message_without_end_is_an_error() {
        let mut bridged = stream("newline");
        let mut written = 0;
        while written <= 100_000 {
            written += bridged.peer.write(&[b'x'; 10_000]).unwrap_or_default();
            bridged.relay();
        }
        bridged.relay();
        assert!(bridged.is_closed_with(1011, "the peer's message exceeds 100000 bytes"));
        assert!(bridged.log.has("WS0505"));
    }

    #[test]
    fn datagrams_are_messages_both_ways() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let bridged =
            bridged(known("binary"), ours.into(), Address::UnixDatagram("/p".into()), theirs);
        bridged.relay.message(Kind::Binary, &mut b"one".to_owned());
        bridged.relay.message(Kind::Binary, &mut b"".to_owned());
        for message in [&b"three"[..], b"", b"five"] {
            bridged.peer.send(message).unwrap();
        }
        bridged.relay();
        let mut buffer = [0; 100];
        assert_eq!(bridged.peer.recv(&mut buffer).unwrap(), 3);
        assert_eq!(bridged.peer.recv(&mut buffer).unwrap(), 0);
        assert!(bridged.peer.recv(&mut buffer).is_err());
        let messages = [b"three", &b""[..], b"five"].map(|data| from_us(Opcode::Binary, data));
        assert_eq!(bridged.wire.sent(), messages.concat());
    }
}
