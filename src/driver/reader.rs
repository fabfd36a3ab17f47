//! What happens when a connection is ready: bytes are read, their messages handled, and the answers written
//! with one call.

use core::num::NonZeroU64;
use std::io;

use super::conn_io::{ConnIo, Flush, Flushed};
use crate::{
    buffer::Buffer,
    conn::{
        deadlines::{Activity, Unfinished},
        endpoint::{Endpoint, Sink},
        log::Level,
        outbox::{Outbox, Reception, State},
        session::{Event, Limits, Session},
        waiting::begin_callback,
    },
    limits::memory::Claim,
    proto::{Kind, Violation, close, frame::Opcode},
};

/// How much is read at a time.
pub(super) const READ: usize = 64 * 1024;
/// How much memory of finished messages a thread keeps for the next ones.
const SPARE: usize = 8 << 20;
/// How often a connection that is never short of bytes may read before others have their turn.
const READS: u32 = 16;
/// For how many of them one counts that was work and gave nothing: of TLS, records without data.
const FRUITLESS: u32 = 4;

/// What a thread reads with, whichever connection has its turn.
#[derive(Debug)]
pub struct Buffers {
    /// Where bytes arrive.
    pub input: Box<[u8]>,
    /// Memory for what is written on sockets.
    pub output: Vec<u8>,
    /// Memory of large messages that were delivered, for those that come next: fresh pages from the kernel cost more
    /// than what is done with them.
    spare: Vec<Spare>,
    /// How much that is.
    held: usize,
}

/// Memory that is kept for the next message, and counts as such.
#[derive(Debug)]
struct Spare {
    buffer: Buffer,
    size: usize,
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.buffer.budget().unspare(self.size);
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self { input: vec![0; READ].into(), output: Vec::new(), spare: Vec::new(), held: 0 }
    }
}

impl Buffers {
    /// Whether memory of messages is kept.
    pub fn holds_spare(&self) -> bool {
        !self.spare.is_empty()
    }

    /// Gives it back.
    pub fn release(&mut self) {
        self.spare = Vec::new();
        self.held = 0;
    }

    fn take(&mut self) -> Option<Buffer> {
        let mut spare = self.spare.pop()?;
        self.held -= spare.size;
        let none = spare.buffer.another();
        let mut buffer = core::mem::replace(&mut spare.buffer, none);
        buffer.claim().then_some(buffer)
    }

    fn keep(&mut self, mut buffer: Buffer) {
        let size = buffer.capacity();
        if self.held + size <= SPARE && buffer.budget().spare(size) {
            buffer.disclaim();
            self.held += size;
            self.spare.push(Spare { buffer, size });
        }
    }
}

/// The inbound side of a connection between its turns.
pub struct Reader {
    session: Session,
    input: Input,
    /// What could not be handled when reading was paused; nothing is read before it.
    aside: Option<Box<Aside>>,
    /// The end of the stream, or an error, has been announced; it is so once only.
    to_the_end: bool,
    /// How many bytes have been read.
    received: u64,
    /// What has come since this was asked last.
    activity: Activity,
    /// How many bytes had been read when a message was first seen to have begun that has not ended.
    begun: Option<NonZeroU64>,
}

/// What is kept of a client that is not read from.
struct Aside {
    /// A message that waits to be delivered.
    held: Option<HeldMessage>,
    /// Bytes behind it that have not been looked at.
    unread: Vec<u8>,
    /// What the memory of both counts for.
    claim: Claim,
}

/// A message that waits to be delivered.
enum HeldMessage {
    /// One that lay whole in the input.
    Copied(Kind, Vec<u8>),
    /// One that is still in the session's buffer.
    Assembled(Kind),
}

/// What is known of the client's next bytes.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Input {
    /// The descriptor will tell when there are some.
    Waiting,
    /// Reading stopped early, since too much waits for the client; the descriptor may show nothing.
    Paused,
    /// The stream has ended, or what it brings means nothing any more.
    Over,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The conversation is over and everything is written.
    Over,
    /// There is more to do, but other connections should have their turn first.
    Again,
    /// Wait until the descriptor is ready.
    Rest {
        /// For reading: not if too much waits for the client.
        read: bool,
        /// For writing: if not everything could be written.
        write: bool,
    },
}

/// Whether messages go to one that has enough for now. When the conversation is over nothing goes to it any more.
fn is_crowded(outbox: &Outbox, sink: Option<&dyn Sink>) -> bool {
    sink.is_some_and(|sink| sink.is_crowded()) && outbox.state() <= State::Open
}

/// Whether the client is not read from until it takes what waits for it, our Close last: it could send on and on, to nobody.
/// The outbox may count that as sent: httpd's filters hold some of it.
fn has_to_take_our_close(state: State, blocked: bool) -> bool {
    blocked && state == State::Closing
}

impl Reader {
    /// A connection whose handshake is answered; bytes may have come with it.
    pub fn new(session: Session) -> Self {
        Self {
            session,
            input: Input::Paused,
            aside: None,
            to_the_end: false,
            received: 0,
            activity: Activity::default(),
            begun: None,
        }
    }

    /// How many bytes have been read.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The message that is arriving, unless its client is not read from.
    pub fn unfinished(&self) -> Option<Unfinished> {
        let begun = self.begun.filter(|_| self.input == Input::Waiting)?.get();
        Some(Unfinished { begun, len: self.received - begun })
    }

    /// What has come since this was asked last.
    pub fn activity(&mut self) -> Activity {
        core::mem::take(&mut self.activity)
    }

    /// Runs a turn. `readable` says that the descriptor shows something to read, and `to_the_end` that the end of
    /// the stream, or an error, is among it, so that a short read must not end the turn.
    pub fn run(
        &mut self,
        io: &ConnIo,
        endpoint: &dyn Endpoint,
        (readable, to_the_end): (bool, bool),
        buffers: &mut Buffers,
    ) -> io::Result<Outcome> {
        let outbox = &*io.outbox;
        let sink = endpoint.sink();
        let (mut readable, mut reads) = (readable, READS);
        self.to_the_end |= to_the_end;
        // Whether something waits that the client has not taken; as long as nobody has tried, it may.
        let mut blocked = true;
        loop {
            let read = match self.input {
                Input::Waiting => readable,
                Input::Paused => !Self::has_to_pause(outbox, sink, blocked),
                Input::Over => false,
            };
            if read {
                self.input = self.read(io, endpoint, &mut reads, buffers)?;
                readable = false;
            }
            let relayed = endpoint.pull(&mut buffers.input);
            let Flush { left: flushed, readable: released, .. } = io.flush()?;
            if released && self.input == Input::Waiting {
                reads = reads.saturating_sub(1);
                if reads > 0 {
                    readable = true;
                    continue;
                }
                self.input = Input::Paused;
            }
            let state = outbox.state();
            blocked = flushed != Flushed::Done;
            // The last read may have taken all there was, and too much for those who have to take it on.
            let waits = is_crowded(outbox, sink) || has_to_take_our_close(state, blocked);
            if self.input == Input::Waiting && waits {
                self.input = Input::Paused;
            }
            if state > State::Open {
                // Messages mean nothing any more.
                self.session.discard();
                if let Some(aside) = &mut self.aside {
                    aside.held = None;
                }
            }
            let over = self.input == Input::Over || state == State::Closed;
            if flushed == Flushed::Done && over && relayed.settled {
                return Ok(Outcome::Over);
            }
            // Writing may have made the room for which reading was paused, on either side.
            let relay = relayed.paused && flushed == Flushed::Done;
            reads = reads.saturating_sub(relay.into());
            let paused = reads == 0 && (relay || self.input == Input::Paused);
            if flushed == Flushed::More || paused || relayed.again {
                return Ok(Outcome::Again);
            }
            if !relay && (self.input != Input::Paused || Self::has_to_pause(outbox, sink, blocked))
            {
                // A message that is held may be there.
                if self.aside.is_none() {
                    if let Some(buffer) = self.session.trim() {
                        buffers.keep(buffer);
                    }
                }
                if self.session.is_between_frames() {
                    self.begun = None;
                } else {
                    self.begun = self.begun.or_else(|| NonZeroU64::new(self.received));
                }
                let read = self.input == Input::Waiting;
                return Ok(Outcome::Rest { read, write: flushed == Flushed::Blocked });
            }
        }
    }

    /// Whether reading from the client has to pause: too much waits for it, or its messages are too many.
    fn has_to_pause(outbox: &Outbox, sink: Option<&dyn Sink>, blocked: bool) -> bool {
        outbox.has_to_wait()
            || is_crowded(outbox, sink)
            || has_to_take_our_close(outbox.state(), blocked)
    }

    /// Handles what was kept while reading was paused; `Some` if nothing is to be read behind it.
    fn resume(
        &mut self,
        mut aside: Box<Aside>,
        io: &ConnIo,
        endpoint: &dyn Endpoint,
        reads: &mut u32,
    ) -> Option<Input> {
        let is_relay = endpoint.sink().is_some();
        if let Some(held) = &mut aside.held {
            let (kind, data) = match held {
                HeldMessage::Copied(kind, data) => (*kind, &mut data[..]),
                HeldMessage::Assembled(kind) => (*kind, self.session.lent()),
            };
            let delivered = deliver(kind, data, &io.outbox, endpoint, is_relay);
            if delivered {
                aside.held = None;
                // Who is always short of room must not keep others from their turn.
                *reads = reads.saturating_sub(1);
            }
            if !delivered || *reads == 0 {
                self.aside = Some(aside);
                return Some(Input::Paused);
            }
        }
        let Aside { mut unread, claim, .. } = *aside;
        // What has to wait on is counted anew.
        drop(claim);
        if !unread.is_empty() && !self.handle(&io.outbox, endpoint, &mut unread) {
            return Some(Input::Paused);
        }
        if self.session.is_finished() {
            return Some(Input::Over);
        }
        None
    }

    /// Reads and handles what has arrived.
    fn read(
        &mut self,
        io: &ConnIo,
        endpoint: &dyn Endpoint,
        reads: &mut u32,
        buffers: &mut Buffers,
    ) -> io::Result<Input> {
        let is_relay = endpoint.sink().is_some();
        if let Some(aside) = self.aside.take() {
            if let Some(input) = self.resume(aside, io, endpoint, reads) {
                return Ok(input);
            }
        }
        loop {
            let room = self.session.room();
            let straight = room.is_some();
            let buffer = room.unwrap_or(&mut buffers.input);
            let size = buffer.len();
            let (n, more) = match io.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.activity.all |= !io.is_held_up();
                    return Ok(Input::Waiting);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                    *reads = reads.saturating_sub(FRUITLESS);
                    if *reads == 0 {
                        return Ok(Input::Paused);
                    }
                    continue;
                }
                result => result?,
            };
            if n == 0 {
                io.outbox.end("the client is gone");
                return Ok(Input::Over);
            }
            self.received += n as u64;
            self.activity.bytes = true;
            let full = n == size;
            if straight {
                if !self.assemble(n, &io.outbox, endpoint) {
                    return Ok(Input::Paused);
                }
            } else {
                if let Some(spare) = self.session.wants_memory().then(|| buffers.take()).flatten() {
                    self.session.lend(spare);
                }
                if !self.handle(&io.outbox, endpoint, &mut buffers.input[..n]) {
                    return Ok(Input::Paused);
                }
            }
            if self.session.is_finished() {
                return Ok(Input::Over);
            }
            let unfinished = self.session.unfinished();
            if unfinished > 0 && !is_relay && io.outbox.has_to_pause(unfinished) {
                return Ok(Input::Paused);
            }
            if !(more || full || self.to_the_end) {
                self.activity.all = true;
                return Ok(Input::Waiting);
            }
            // Reading on before answering would let a client fill our memory with answers.
            io.flush()?;
            *reads -= 1;
            if *reads == 0 || is_crowded(&io.outbox, endpoint.sink()) {
                return Ok(Input::Paused);
            }
        }
    }

    /// Handles `n` bytes that were read straight into the session's buffer. `false` if reading has to pause.
    fn assemble(&mut self, n: usize, outbox: &Outbox, endpoint: &dyn Endpoint) -> bool {
        match self.session.filled(n) {
            Ok(Some((kind, data))) => {
                (self.activity.message, self.begun) = (true, None);
                if !deliver(kind, data, outbox, endpoint, endpoint.sink().is_some()) {
                    self.set_aside(Some(HeldMessage::Assembled(kind)), &[], outbox);
                    return false;
                }
            }
            Ok(None) => {}
            Err(violation) => complain(violation, self.session.limits(), outbox),
        }
        true
    }

    /// Lets the session make events of `input`, and handles them. `false` if reading has to pause: then the rest of the
    /// input is kept for later.
    fn handle(&mut self, outbox: &Outbox, endpoint: &dyn Endpoint, input: &mut [u8]) -> bool {
        let (sink, mut at) = (endpoint.sink(), 0);
        let here = input.as_ptr_range();
        loop {
            let progress = match self.session.feed(&mut input[at..]) {
                Ok(progress) => progress,
                Err(violation) => {
                    complain(violation, self.session.limits(), outbox);
                    return true;
                }
            };
            at += progress.consumed;
            let Some(event) = progress.event else { return true };
            match event {
                Event::Message { kind, data } => {
                    (self.activity.message, self.begun) = (true, None);
                    if !deliver(kind, data, outbox, endpoint, sink.is_some()) {
                        let held = if here.contains(&data.as_ptr()) {
                            HeldMessage::Copied(kind, data.to_vec())
                        } else {
                            HeldMessage::Assembled(kind)
                        };
                        return self.set_aside(Some(held), &input[at..], outbox);
                    }
                }
                Event::Ping(payload) => {
                    // A client that does not read its Pongs can do without them.
                    let _ = outbox.send_control(Opcode::Pong, payload);
                }
                Event::Pong(_) => {}
                Event::Close(reason) => outbox.receive_close(&reason),
            }
            if at == input.len() {
                return true;
            }
            if is_crowded(outbox, sink) {
                return self.set_aside(None, &input[at..], outbox);
            }
        }
    }

    /// Keeps what cannot be handled now. `true` if the connection was closed instead, for want of memory.
    fn set_aside(&mut self, held: Option<HeldMessage>, rest: &[u8], outbox: &Outbox) -> bool {
        let copied = if let Some(HeldMessage::Copied(_, data)) = &held { data.len() } else { 0 };
        let mut claim = self.session.limits().memory.claim();
        if claim.cover(copied + rest.len()).is_err() {
            self.session.finish();
            outbox.refuse_memory();
            return true;
        }
        self.aside = Some(Box::new(Aside { held, unread: rest.to_vec(), claim }));
        false
    }
}

/// Delivers a message; `false` if it has to wait until the client has taken more of what is queued for it. An endpoint
/// with a sink (`is_relay`) does not answer by itself, and what comes back is pulled as far as it fits.
#[inline]
fn deliver(
    kind: Kind,
    data: &mut [u8],
    outbox: &Outbox,
    endpoint: &dyn Endpoint,
    is_relay: bool,
) -> bool {
    match outbox.receive_message((!is_relay).then_some(data.len())) {
        Reception::Deliver => {
            begin_callback();
            endpoint.message(kind, data);
        }
        Reception::Ignore => {}
        Reception::Later => return false,
    }
    true
}

/// Closes a connection whose client has broken the protocol.
fn complain(violation: Violation, limits: &Limits, outbox: &Outbox) {
    if violation == Violation::Memory {
        return outbox.refuse_memory();
    }
    let code = violation.close_code(limits.version);
    if outbox.close(&close::payload(code), "the client broke the protocol") {
        outbox
            .log()
            .write(Level::Info, format_args!("WS0303: closing with {}: {violation}", code.0));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        os::fd::BorrowedFd,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        time::Duration,
    };

    use super::*;
    use crate::{
        conn::{
            endpoint::{NOTHING, Peer, Relayed},
            outbox::Bounds,
        },
        driver::{Transport, plain::Socket},
        fakes::{
            Driver, Lines, Read, Recorder, Watched, Wire, bounds, budget, from_client, from_us,
            no_descriptor, outbox, session, session_of,
        },
        limits::memory::{self, Budget},
        os::{Interest, Readiness},
        proto::close::CloseCode,
    };

    /// The inbound side of an open connection, and what is around it.
    struct Talk {
        wire: Wire,
        io: ConnIo,
        outbox: Arc<Outbox>,
        log: Lines,
        turn: Reader,
        _driver: Arc<Driver>,
    }

    impl Talk {
        fn new(queue: usize) -> Self {
            Self::with_memory(queue, &memory::UNLIMITED)
        }

        fn with_memory(queue: usize, memory: &'static Budget) -> Self {
            let wire = Wire::new();
            let (io, outbox, log) = wire.io_of(Bounds { memory, ..bounds(queue) });
            let driver = Driver::new(None, || panic!("nobody has to wait"));
            driver.rest(&outbox);
            Self { wire, io, outbox, log, turn: Reader::new(session_of(memory)), _driver: driver }
        }

        /// A turn of a connection whose descriptor shows something.
        fn run(&mut self, endpoint: &dyn Endpoint) -> io::Result<Outcome> {
            self.outbox.own();
            let outcome = self.turn.run(&self.io, endpoint, (true, false), &mut Buffers::default());
            self.outbox.disown(&mut Vec::new());
            outcome
        }
    }

    const REST: Outcome = Outcome::Rest { read: true, write: false };

    #[test]
    fn a_turn_reads_all_there_is_and_answers_with_one_write() {
        let mut talk = Talk::new(1000);
        let echo = Recorder::echo(&talk.outbox);
        // The first turn, in which nothing has been shown, reads all the same.
        talk.wire.frame(Opcode::Binary, b"0");
        let run = talk.turn.run(&talk.io, &echo, (false, false), &mut Buffers::default());
        assert_eq!(run.unwrap(), REST);
        talk.wire.sent();
        let calls = talk.wire.change(|script| script.calls);
        let (first, second) = (from_client(Opcode::Binary, b"1"), b"2");
        talk.wire.says(Read::Bytes(first[..3].to_vec()));
        talk.wire.says(Read::Bytes(first[3..].to_vec()));
        talk.wire.says(Read::Interrupted);
        talk.wire.frame(Opcode::Binary, second);
        talk.wire.frame(Opcode::Ping, b"3");
        assert_eq!(talk.run(&echo).unwrap(), REST);
        let answers = [
            from_us(Opcode::Binary, b"1"),
            from_us(Opcode::Binary, b"2"),
            from_us(Opcode::Pong, b"3"),
        ];
        assert_eq!(talk.wire.sent(), answers.concat());
        // Each thing that was said, and that nothing more is there.
        assert_eq!(talk.wire.change(|script| script.calls.0), calls.0 + 6);
        assert_eq!(talk.turn.activity(), Activity { bytes: true, message: true, all: true });
        assert_eq!(talk.turn.activity(), Activity::default());
        assert_eq!(talk.turn.received(), 3 * 7 + 7);
    }

    #[test]
    fn the_answers_to_one_read_leave_together() {
        let mut talk = Talk::new(1000);
        let echo = Recorder::echo(&talk.outbox);
        let frames: Vec<u8> = (0..5).flat_map(|n| from_client(Opcode::Binary, &[n])).collect();
        talk.wire.says(Read::Bytes(frames));
        assert_eq!(talk.run(&echo).unwrap(), REST);
        assert_eq!(talk.wire.change(|script| script.calls.1), 1);
        assert_eq!(talk.wire.sent().len(), 15);
    }

    #[test]
    fn without_an_event_nothing_is_read_but_what_waits_is_written() {
        let mut talk = Talk::new(1000);
        let echo = Recorder::echo(&talk.outbox);
        assert_eq!(talk.run(&echo).unwrap(), REST);
        let calls = talk.wire.change(|script| script.calls.0);
        talk.wire.frame(Opcode::Binary, b"1");
        talk.outbox.send_control(Opcode::Ping, b"").unwrap();
        let run = talk.turn.run(&talk.io, &echo, (false, false), &mut Buffers::default());
        assert_eq!(run.unwrap(), REST);
        assert_eq!(talk.wire.sent(), from_us(Opcode::Ping, b""));
        assert_eq!(talk.wire.change(|script| script.calls.0), calls);
    }

    #[test]
    fn a_turn_ends_after_some_reads_and_the_next_one_goes_on() {
        let mut talk = Talk::new(1000);
        let recorder = Recorder::default();
        let count = 2 * READS as usize;
        for n in 0..count {
            talk.wire.frame(Opcode::Binary, &[n as u8]);
        }
        assert_eq!(talk.run(&recorder).unwrap(), Outcome::Again);
        assert_eq!(recorder.payloads().len(), READS as usize);
        // Nothing is shown any more.
        while talk.turn.run(&talk.io, &recorder, (false, false), &mut Buffers::default()).unwrap()
            == Outcome::Again
        {}
        let all: Vec<_> = (0..count).map(|n| vec![n as u8]).collect();
        assert_eq!(recorder.payloads(), all);
    }

    #[test]
    fn the_end_of_the_stream_and_an_error() {
        let mut talk = Talk::new(1000);
        let echo = Recorder::echo(&talk.outbox);
        talk.wire.frame(Opcode::Binary, b"1");
        talk.wire.says(Read::End);
        assert_eq!(talk.run(&echo).unwrap(), Outcome::Over);
        assert_eq!((echo.payloads().len(), talk.outbox.state()), (1, State::Closed));
        assert_eq!(talk.outbox.summary().code, CloseCode::ABNORMAL);
        assert!(talk.log.has("the client is gone"));
        let mut talk = Talk::new(1000);
        talk.wire.says(Read::Reset);
        assert_eq!(talk.run(&echo).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut talk = Talk::new(1000);
        talk.wire.breaks();
        talk.wire.frame(Opcode::Ping, b"");
        assert_eq!(talk.run(&echo).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn the_conversation_is_over_when_the_clients_close_is_answered() {
        let mut talk = Talk::new(1000);
        let recorder = Recorder::default();
        talk.wire.takes(2);
        let late = from_client(Opcode::Binary, b"late");
        talk.wire.says(Read::Bytes([from_client(Opcode::Close, b"\x03\xe8"), late].concat()));
        let read = false;
        assert_eq!(talk.run(&recorder).unwrap(), Outcome::Rest { read, write: true });
        talk.wire.takes(usize::MAX);
        assert_eq!(talk.run(&recorder).unwrap(), Outcome::Over);
        assert_eq!(talk.wire.sent(), from_us(Opcode::Close, b"\x03\xe8"));
        assert_eq!(recorder.payloads().len(), 0);
    }

    #[test]
    fn a_conversation_that_another_thread_has_ended_is_over_when_all_is_written() {
        let mut talk = Talk::new(1000);
        talk.wire.takes(0);
        talk.outbox.send_control(Opcode::Ping, b"").unwrap();
        talk.outbox.end("test");
        let blocked = Outcome::Rest { read: true, write: true };
        assert_eq!(talk.run(&Recorder::default()).unwrap(), blocked);
        talk.wire.takes(usize::MAX);
        assert_eq!(talk.run(&Recorder::default()).unwrap(), Outcome::Over);
        assert_eq!(talk.wire.sent(), from_us(Opcode::Ping, b""));
    }

    #[test]
    fn what_comes_behind_our_close_is_not_delivered() {
        let mut talk = Talk::new(1000);
        let recorder = Recorder::default();
        talk.outbox.close(b"", "test");
        talk.wire.frame(Opcode::Binary, b"late");
        assert_eq!(talk.run(&recorder).unwrap(), REST);
        talk.wire.frame(Opcode::Close, b"");
        assert_eq!(talk.run(&recorder).unwrap(), Outcome::Over);
        assert_eq!(recorder.payloads().len(), 0);
    }

    #[test]
    fn who_does_not_take_our_close_is_not_read_from() {
        // It waits with us; in the transport; or there, and that does not count.
        let holds: [fn(&Wire); 3] = [|_| {}, Wire::holds, Wire::holds_silently];
        for holds in holds {
            let mut talk = Talk::new(1000);
            let recorder = Recorder::default();
            talk.wire.takes(0);
            holds(&talk.wire);
            talk.outbox.close(b"", "test");
            let blocked = Outcome::Rest { read: false, write: true };
            // What had come before that was seen may be read.
            talk.run(&recorder).unwrap();
            let reads = talk.wire.change(|script| script.calls.0);
            for _ in 0..3 {
                talk.wire.frame(Opcode::Binary, b"late");
                assert_eq!(talk.run(&recorder).unwrap(), blocked);
            }
            assert_eq!(talk.wire.change(|script| script.calls.0), reads);
            talk.wire.takes(usize::MAX);
            assert_eq!(talk.run(&recorder).unwrap(), REST);
            talk.wire.frame(Opcode::Close, b"");
            assert_eq!(talk.run(&recorder).unwrap(), Outcome::Over);
            assert_eq!(recorder.payloads().len(), 0);
        }
    }

    #[test]
    fn a_client_that_breaks_the_protocol_is_told_so_and_not_heard_any_more() {
        let mut talk = Talk::new(1000);
        let recorder = Recorder::default();
        let unmasked = from_us(Opcode::Binary, b"1");
        let late = from_client(Opcode::Binary, b"late");
        talk.wire.says(Read::Bytes([unmasked, late.clone()].concat()));
        talk.wire.says(Read::Bytes(late));
        assert_eq!(talk.run(&recorder).unwrap(), Outcome::Over);
        assert_eq!(talk.wire.sent(), from_us(Opcode::Close, b"\x03\xea"));
        assert!(talk.log.has("WS0303: closing with 1002"));
        assert_eq!(recorder.payloads().len(), 0);
    }

    #[test]
    fn messages_wait_while_their_answers_would_not_fit_and_none_is_lost() {
        for at_once in [true, false] {
            let mut talk = Talk::new(300);
            let echo = Recorder::echo(&talk.outbox);
            talk.wire.takes(0);
            let frames = (0..10).map(|n| from_client(Opcode::Binary, &[n; 80]));
            if at_once {
                talk.wire.says(Read::Bytes(frames.collect::<Vec<_>>().concat()));
            } else {
                frames.for_each(|frame| talk.wire.says(Read::Bytes(frame)));
            }
            let paused = Outcome::Rest { read: false, write: true };
            assert_eq!(talk.run(&echo).unwrap(), paused);
            // 246 bytes wait.
            assert_eq!(echo.payloads().len(), 3);
            assert_eq!(talk.run(&echo).unwrap(), paused);
            assert_eq!(echo.payloads().len(), 3);
            // Room for one more, and not quite.
            talk.wire.takes(25);
            assert_eq!(talk.run(&echo).unwrap(), paused);
            assert_eq!(echo.payloads().len(), 3);
            talk.wire.takes(1);
            assert_eq!(talk.run(&echo).unwrap(), paused);
            assert_eq!(echo.payloads().len(), 4);
            talk.wire.takes(usize::MAX);
            assert_eq!(talk.run(&echo).unwrap(), REST);
            let all: Vec<_> = (0..10).map(|n| vec![n; 80]).collect();
            assert_eq!(echo.payloads(), all);
            assert_eq!(talk.wire.sent().len(), 820);
        }
    }

    #[test]
    fn what_waits_in_either_direction_is_counted_and_given_back() {
        let memory = budget(1 << 20);
        let mut talk = Talk::with_memory(40_000, memory);
        let echo = Recorder::echo(&talk.outbox);
        talk.wire.takes(0);
        // The answer to the first message waits, the second one is held, and the third one is not looked at.
        let frames: Vec<u8> =
            (0..3).flat_map(|n| from_client(Opcode::Binary, &[n; 20_000])).collect();
        talk.wire.says(Read::Bytes(frames));
        assert_eq!(talk.run(&echo).unwrap(), Outcome::Rest { read: false, write: true });
        assert_eq!(echo.payloads().len(), 1);
        // In steps of 16 KiB: 20,010 bytes of the answer, 40,000 and some of what was read.
        assert_eq!(memory.used(), (2 + 3) << 14);
        talk.wire.takes(usize::MAX);
        assert_eq!(talk.run(&echo).unwrap(), REST);
        assert_eq!((echo.payloads().len(), memory.used()), (3, 0));
    }

    #[test]
    fn without_memory_a_client_is_closed_with_1013_and_others_go_on() {
        // A message that comes in parts; one that has to wait, and the rest that waits behind it.
        let part = [&b"\x02\xff\0\0\0\0\0\x0f\0\0\0\0\0\0"[..], &[0; 50_000]].concat();
        let whole = from_client(Opcode::Binary, &[0; 20_000]);
        for (bytes, answers) in [(part, 0), (whole.repeat(3), 1)] {
            let memory = budget(80 << 10);
            let mut others = memory.claim();
            others.cover(32 << 10).unwrap();
            let mut talk = Talk::with_memory(30_000, memory);
            let echo = Recorder::echo(&talk.outbox);
            talk.wire.takes(0);
            talk.wire.says(Read::Bytes(bytes));
            talk.run(&echo).unwrap();
            assert_eq!(talk.outbox.state(), State::Closing);
            assert!(talk.log.has("WS0311: closing with 1013"));
            assert_eq!((memory.refused(), echo.payloads().len()), (1, answers));
            talk.wire.takes(usize::MAX);
            assert_eq!(talk.run(&echo).unwrap(), Outcome::Over);
            assert!(talk.wire.sent().ends_with(&from_us(Opcode::Close, b"\x03\xf5")));
            assert_eq!(memory.used(), 32 << 10);
            // Who needs little is served on.
            let mut other = Talk::with_memory(1000, memory);
            let mut rest = memory.claim();
            rest.cover(48 << 10).unwrap();
            let echo = Recorder::echo(&other.outbox);
            other.wire.frame(Opcode::Binary, &[1; 1000]);
            assert_eq!(other.run(&echo).unwrap(), REST);
            assert_eq!(echo.payloads().len(), 1);
        }
    }

    #[test]
    fn a_message_that_is_arriving_is_told_from_the_next_one() {
        let mut talk = Talk::new(1000);
        let recorder = Recorder::default();
        let frame = from_client(Opcode::Binary, b"1234");
        let says = |talk: &mut Talk, bytes: &[u8]| {
            talk.wire.says(Read::Bytes(bytes.to_vec()));
            talk.run(&recorder).unwrap();
            talk.turn.activity();
            talk.turn.unfinished()
        };
        assert_eq!(says(&mut talk, &frame), None);
        assert_eq!(says(&mut talk, &frame[..1]), Some(Unfinished { begun: 11, len: 0 }));
        assert_eq!(says(&mut talk, &frame[1..8]), Some(Unfinished { begun: 11, len: 7 }));
        // Its end, and the beginning of another one.
        let bytes = [&frame[8..], &frame[..2]].concat();
        assert_eq!(says(&mut talk, &bytes), Some(Unfinished { begun: 22, len: 0 }));
        assert_eq!(says(&mut talk, &frame[2..]), None);
        // A Ping between fragments changes nothing.
        let first = [&[0x02][..], &frame[1..]].concat();
        assert_eq!(says(&mut talk, &first), Some(Unfinished { begun: 40, len: 0 }));
        let ping = from_client(Opcode::Ping, b"");
        assert_eq!(says(&mut talk, &ping), Some(Unfinished { begun: 40, len: 6 }));
    }

    /// A peer that does as it is told.
    struct Side(Watched<(Relayed, bool)>);

    impl Side {
        fn new() -> Arc<Self> {
            let side = Self(Watched::new((NOTHING, false)));
            Arc::new(side)
        }

        fn set(&self, relayed: Relayed, crowded: bool) {
            self.0.change(|now| *now = (relayed, crowded));
        }
    }

    impl Sink for Side {
        fn is_crowded(&self) -> bool {
            self.0.change(|now| now.1)
        }
    }

    impl Peer for Side {
        fn descriptor(&self) -> BorrowedFd<'_> {
            no_descriptor()
        }
        fn note(&self, _: Readiness) {}
        fn relay(&self, _: &mut [u8]) -> Relayed {
            self.0.change(|now| now.0)
        }
        fn interest(&self) -> Interest {
            Interest::default()
        }
        fn check(&self, _: Duration, _: Duration) -> bool {
            false
        }
        fn finish(&self, _: &mut [u8]) -> bool {
            true
        }
    }

    #[test]
    fn a_client_is_not_read_from_while_much_waits_for_its_peer() {
        let mut talk = Talk::new(1000);
        let side = Side::new();
        let recorder = Recorder::with_peer(side.clone());
        side.set(Relayed { settled: false, ..NOTHING }, true);
        talk.wire.frame(Opcode::Binary, b"1");
        let paused = Outcome::Rest { read: false, write: false };
        assert_eq!(talk.run(&recorder).unwrap(), paused);
        assert_eq!(recorder.payloads().len(), 0);
        side.set(Relayed { settled: false, ..NOTHING }, false);
        assert_eq!(talk.run(&recorder).unwrap(), REST);
        assert_eq!(recorder.payloads().len(), 1);
        // When the conversation is over nothing more goes to the peer, but what waits for it still does.
        side.set(Relayed { settled: false, ..NOTHING }, true);
        talk.outbox.close(b"", "test");
        talk.wire.frame(Opcode::Close, b"");
        assert!(matches!(talk.run(&recorder).unwrap(), Outcome::Rest { .. }));
        side.set(NOTHING, true);
        assert_eq!(talk.run(&recorder).unwrap(), Outcome::Over);
    }

    #[test]
    fn a_peer_that_is_never_short_of_bytes_lets_others_have_their_turn() {
        let mut talk = Talk::new(1000);
        let side = Side::new();
        let recorder = Recorder::with_peer(side.clone());
        side.set(Relayed { again: true, ..NOTHING }, false);
        assert_eq!(talk.run(&recorder).unwrap(), Outcome::Again);
        // It waits for room that there is.
        side.set(Relayed { paused: true, ..NOTHING }, false);
        assert_eq!(talk.run(&recorder).unwrap(), Outcome::Again);
        // And for room that there is not.
        talk.wire.takes(0);
        talk.outbox.send_control(Opcode::Ping, b"").unwrap();
        let blocked = Outcome::Rest { read: true, write: true };
        assert_eq!(talk.run(&recorder).unwrap(), blocked);
    }

    /// A client that sends on and on, and never anything that comes to data. `held_up`: each time something has to be
    /// written first.
    struct Fruitless {
        reads: Arc<AtomicU32>,
        held_up: bool,
    }

    impl Transport for Fruitless {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            let reads = self.reads.fetch_add(1, Ordering::Relaxed);
            assert!(reads < 1000, "others never have their turn");
            let kind =
                if self.held_up { io::ErrorKind::WouldBlock } else { io::ErrorKind::Interrupted };
            Err(kind.into())
        }
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<bool> {
            Ok(true)
        }
        fn holds_input(&self) -> bool {
            true
        }
        fn socket(&self) -> Option<Arc<Socket>> {
            None
        }
        fn descriptor(&self) -> BorrowedFd<'_> {
            no_descriptor()
        }
        fn is_held_up(&self) -> bool {
            self.held_up
        }
    }

    #[test]
    fn a_client_without_data_lets_others_have_their_turn() {
        for held_up in [false, true] {
            let (outbox, _) = outbox(1000);
            let mut turn = Reader::new(session());
            let reads = Arc::new(AtomicU32::new(0));
            let transport = Fruitless { reads: reads.clone(), held_up };
            let io = ConnIo::new(Box::new(transport), outbox);
            let mut buffers = Buffers::default();
            for _ in 0..3 {
                reads.store(0, Ordering::Relaxed);
                let outcome = turn.run(&io, &Recorder::default(), (true, false), &mut buffers);
                assert_eq!(outcome.unwrap(), Outcome::Again);
                assert!(reads.load(Ordering::Relaxed) <= READS);
            }
        }
    }
}
