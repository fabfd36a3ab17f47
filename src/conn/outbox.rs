//! The outbound half of a connection: what is sent, by whichever thread, in order and within bounds.
//!
//! Any thread frames its message into one queue under one short lock, so messages never interleave. On a plain socket
//! it also writes, without blocking, unless the driver is at work on the connection and will write all of it at once.
//! Where bytes have to go through somebody else's code (TLS, httpd's filters), the driver takes them out and writes them
//! without holding the lock. Either way nobody holds a lock while a callback runs or while the network is waited for.
//!
//! The state of the conversation lives here too, because any thread may close; `Queue::transit` is the only writer of
//! it (RFC 6455 §5.5.1, §7.1).

use core::fmt;
use std::{
    io::{self, IoSlice},
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use super::{
    log::{Level, Log},
    waiting::Wait,
};
use crate::{
    limits::memory::{Budget, Claim},
    proto::{
        Kind, Version, Violation,
        close::{self, CloseCode, CloseReason},
        deflate::Deflater,
        draft::Draft,
        frame::{self, CONTROL_MAX, Opcode},
        utf8,
    },
    sync::{AtomicUsize, Condvar, Lock as _, Mutex, MutexGuard, Ordering},
};

/// The spare room an emptied queue may keep while its driver is at work.
const KEEP: usize = 64 * 1024;
/// The spare room that a resting connection may keep.
const REST: usize = 256;
/// From this size on a payload is written from where it lies, and only copied if the socket is full.
const LARGE: usize = 16 * 1024;
/// How long a sender waits for a socket before it looks whether the conversation is over.
const SLICE: Duration = Duration::from_millis(50);
/// The longest header of a server's frame.
const HEADER: usize = 10;

/// The driver's side of an outbox.
pub trait DriverHandle: Send + Sync {
    /// Makes the driver look at the outbox. Called from any thread, without a lock held.
    fn wake(&self);

    /// Writes queued bytes, waiting for the client until `deadline`; returns after some progress. For the owning thread,
    /// from within a callback; for others only if there is a [`socket`](Self::socket).
    fn pump(&self, deadline: Instant);

    /// A socket that any thread may write to without blocking; `None` if only the driver can write.
    fn socket(&self) -> Option<&dyn Socket>;

    /// Whether the child ends, and the connection with it, which its driver has not seen yet since it is in a callback.
    fn is_ending(&self) -> bool {
        false
    }
}

/// A stream socket in non-blocking mode.
pub trait Socket: Send + Sync {
    /// Writes some of the bytes, in order.
    fn write(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// How far a conversation has come, in order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum State {
    /// The handshake is not answered; what is sent waits for the 101.
    Opening,
    /// Messages flow both ways.
    Open,
    /// Our Close is queued or sent, the client's is awaited.
    Closing,
    /// Both said Close, or the connection is lost.
    Closed,
}

impl State {
    /// The state as log lines name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opening => "OPENING",
            Self::Open => "OPEN",
            Self::Closing => "CLOSING",
            Self::Closed => "CLOSED",
        }
    }
}

/// The bounds of an outbox.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How many bytes may wait for a slow client before senders are held up.
    pub queue: usize,
    /// The time in which a client has to take enough of what waits for it, httpd's `Timeout`.
    pub timeout: Duration,
    /// Messages shorter than this are not worth compressing.
    pub compress_from: usize,
    /// Where the memory of what waits is taken from.
    pub memory: &'static Budget,
}

/// What is to be done with a message that was received.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reception {
    /// It goes to its endpoint; it has been counted.
    Deliver,
    /// It has to wait until the client has taken more of what is queued for it.
    Later,
    /// The conversation is over: it means nothing any more.
    Ignore,
}

/// Why nothing was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// The conversation is over.
    Closing,
    /// More bytes wait than [`Bounds::queue`] allows.
    Full,
    /// A control payload of more than 125 bytes, or one that must not travel.
    Illegal,
}

/// What became of a conversation, for the access log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Summary {
    /// The code of the Close frame that came or went first; 1005 if it had none, 1006 if there was no Close.
    pub code: CloseCode,
    /// Data messages received.
    pub messages_in: u64,
    /// Data messages sent.
    pub messages_out: u64,
    /// Bytes that have left: of frames, or with TLS of its records.
    pub bytes_out: u64,
}

/// What is waiting to be sent on one connection.
pub struct Outbox {
    queue: Mutex<Queue>,
    /// Signalled when bytes have left a full queue, and when the conversation ends.
    room: Condvar,
    /// Orders compression with queueing where a context is shared from message to message.
    /// `None` inside once the connection is disposed of.
    deflater: Option<Box<Mutex<Option<Deflater>>>>,
    /// What the client speaks, if it is not RFC 6455.
    draft: Option<Draft>,
    /// The thread that is at work on the connection, as [`thread_mark`] names it; 0 if none is.
    owner: AtomicUsize,
    driver: OnceLock<Weak<dyn DriverHandle>>,
    bounds: Bounds,
    log: Box<dyn Log>,
}

struct Queue {
    state: State,
    /// The same as the outbox's.
    draft: Option<Draft>,
    /// Framed bytes; the first `written` of them have left.
    bytes: Vec<u8>,
    written: usize,
    /// How many bytes the driver has taken out, or made of what it took out, that have not left.
    in_flight: usize,
    /// The driver waits for events: who queues something that it has to write must wake it.
    asleep: bool,
    /// The length of a message that was received and is delivered when so much room is there.
    awaited: Option<usize>,
    /// That message is whole, and comes before what others send.
    is_held: bool,
    /// The driver was woken because that room is there.
    told: bool,
    /// Senders that wait for room.
    waiting: u32,
    code: Option<CloseCode>,
    /// The Close that was queued is our own, and not the answer to the client's.
    own_close: bool,
    messages_in: u64,
    messages_out: u64,
    bytes_out: u64,
    /// What the memory of unsent bytes counts for.
    claim: Claim,
}

impl Queue {
    /// Moves the conversation on; the only place where its state changes.
    fn transit(&mut self, log: &dyn Log, why: &str, to: State) {
        debug_assert!(to > self.state, "{why}: a conversation never goes back");
        if log.enabled(Level::Trace) {
            let (from, to) = (self.state.name(), to.name());
            log.write(Level::Trace, format_args!("transit [{from}] -- {why} --> [{to}]"));
        }
        self.state = to;
    }

    fn unsent(&self) -> usize {
        self.bytes.len() - self.written + self.in_flight
    }

    /// Whether `len` more bytes fit below `bound`. A message larger than that fits an empty queue.
    fn fits(&self, len: usize, bound: usize) -> bool {
        let unsent = self.unsent();
        unsent == 0 || unsent + len <= bound
    }

    /// How much room is kept for a message that waits to be delivered.
    #[inline]
    fn reserved(&self) -> usize {
        if self.is_held { self.awaited.unwrap_or(0) } else { 0 }
    }

    /// Whether the child has memory for `len` more bytes.
    #[inline]
    fn has_memory(&mut self, len: usize) -> bool {
        self.claim.cover(self.bytes.len() + self.in_flight + len).is_ok()
    }

    /// Queues a frame.
    #[inline]
    fn push(&mut self, opcode: Opcode, compressed: bool, payload: &[u8]) {
        self.messages_out += u64::from(!opcode.is_control());
        if let Some(draft) = self.draft {
            return draft.encode(&mut self.bytes, opcode, payload);
        }
        self.bytes.reserve(payload.len() + HEADER);
        frame::encode(&mut self.bytes, opcode, compressed, payload.len());
        self.bytes.extend_from_slice(payload);
    }

    /// Queues our Close; `to` is what it makes of the conversation.
    fn push_close(&mut self, log: &dyn Log, payload: &[u8], why: &str, to: State) {
        let code = match payload {
            [high, low, ..] => CloseCode(u16::from_be_bytes([*high, *low])),
            _ => CloseCode::NO_STATUS,
        };
        self.code.get_or_insert(code);
        // In draft 75 nobody says Close, so there is no answer to wait for.
        let to = if self.draft == Some(Draft::Hixie75) { State::Closed } else { to };
        self.transit(log, why, to);
        self.push(Opcode::Close, false, payload);
    }

    /// Forgets what has left when it is the greater part, and gives back the memory that is not needed any more.
    fn compact(&mut self) {
        if drop_front(&mut self.bytes, &mut self.written) {
            self.claim.lower(self.bytes.capacity() + self.in_flight);
        }
    }

    /// Writes queued bytes until none are left (`true`) or the socket is full.
    fn flush(&mut self, socket: &dyn Socket) -> io::Result<bool> {
        while self.written < self.bytes.len() {
            match socket.write(&[IoSlice::new(&self.bytes[self.written..])]) {
                Ok(n) => {
                    self.written += n;
                    self.bytes_out += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.compact();
                    return Ok(false);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.written = 0;
        if self.bytes.capacity() > KEEP {
            self.bytes = Vec::new()
        } else {
            self.bytes.clear()
        }
        self.claim.release();
        Ok(true)
    }

    /// Queues a large frame, of which it writes what the socket takes from where it lies.
    fn push_large(
        &mut self,
        opcode: Opcode,
        compressed: bool,
        payload: &[u8],
        socket: &dyn Socket,
    ) -> io::Result<()> {
        frame::encode(&mut self.bytes, opcode, compressed, payload.len());
        let queued = self.bytes.len() - self.written;
        let slices = [IoSlice::new(&self.bytes[self.written..]), IoSlice::new(payload)];
        let n = match socket.write(&slices) {
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                0
            }
            result => result?,
        };
        self.messages_out += u64::from(!opcode.is_control());
        self.bytes_out += n as u64;
        self.written += n.min(queued);
        self.bytes.extend_from_slice(&payload[n.saturating_sub(queued)..]);
        if self.written == self.bytes.len() {
            self.written = 0;
            self.bytes.clear();
            self.claim.release();
        }
        Ok(())
    }
}

impl Outbox {
    /// An outbox in state [`State::Opening`], owned by the calling thread.
    pub fn new(bounds: Bounds, deflater: Option<Deflater>, log: Box<dyn Log>) -> Self {
        Self {
            queue: Mutex::new(Queue {
                state: State::Opening,
                draft: None,
                bytes: Vec::new(),
                written: 0,
                in_flight: 0,
                asleep: false,
                awaited: None,
                is_held: false,
                told: false,
                waiting: 0,
                code: None,
                own_close: false,
                messages_in: 0,
                messages_out: 0,
                bytes_out: 0,
                claim: bounds.memory.claim(),
            }),
            room: Condvar::new(),
            deflater: deflater.map(|deflater| Box::new(Mutex::new(Some(deflater)))),
            draft: None,
            owner: AtomicUsize::new(thread_mark()),
            driver: OnceLock::new(),
            bounds,
            log,
        }
    }

    /// The same outbox for a client that speaks `version`. Drafts 76 and 75 have no compression.
    pub fn speaking(mut self, version: Version) -> Self {
        if let Version::Draft(draft) = version {
            self.draft = Some(draft);
            self.queue.get_mut().unwrap_or_else(|e| e.into_inner()).draft = Some(draft);
        }
        self
    }

    /// Where this connection's log lines go.
    pub fn log(&self) -> &dyn Log {
        &*self.log
    }

    /// How long a client may keep us waiting.
    pub fn timeout(&self) -> Duration {
        self.bounds.timeout
    }

    /// How far the conversation has come.
    pub fn state(&self) -> State {
        self.lock().state
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic under this lock is a bug that leaves a queue of whole frames all the same.
        self.queue.acquire()
    }

    fn driver(&self) -> Option<Arc<dyn DriverHandle>> {
        self.driver.get()?.upgrade()
    }

    /// Whether the calling thread is at work on the connection, and will write what is queued.
    fn is_owner(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == thread_mark()
    }

    /// Sends a data message, waiting while the queue is full.
    ///
    /// How long that may be, and for how many threads at a time, is [`waiting`](crate::conn::waiting)'s. A client for whom that is
    /// too fast is closed with 1008.
    ///
    /// In drafts 76 and 75 text that is not UTF-8 is [`Refused::Illegal`]: it may contain the byte that ends a frame.
    pub fn send_message(&self, kind: Kind, payload: &[u8]) -> Result<(), Refused> {
        if self.draft.is_some() && kind == Kind::Text && !is_utf8(payload) {
            return Err(Refused::Illegal);
        }
        let opcode = if kind == Kind::Text { Opcode::Text } else { Opcode::Binary };
        let queue = self.wait_for_room(payload.len())?;
        let deflater = match &self.deflater {
            Some(deflater) if payload.len() >= self.bounds.compress_from && !payload.is_empty() => {
                deflater
            }
            _ => {
                self.queue_frame(queue, opcode, false, payload);
                return Ok(());
            }
        };
        // Compressing is long work: it holds up the senders that compress, and nobody else. Each of them
        // may find the room that another one takes meanwhile.
        drop(queue);
        let mut deflater = deflater.acquire();
        let Some(deflater) = &mut *deflater else { return Err(Refused::Closing) };
        let mut packed = Vec::new();
        let compressed = deflater.compress(payload, &mut packed);
        let payload = if compressed { &packed } else { payload };
        let queue = self.lock();
        if queue.state > State::Open {
            return Err(Refused::Closing);
        }
        // Others may have emptied the queue meanwhile, and given its memory back.
        let queue = self.admit(queue, payload.len())?;
        self.queue_frame(queue, opcode, compressed, payload);
        Ok(())
    }

    /// Whether a message of `len` bytes can be sent without waiting, and with at most `bound` bytes waiting then. A
    /// larger one fits an empty queue.
    pub fn has_room(&self, len: usize, bound: usize) -> bool {
        self.lock().fits(len, bound.min(self.bounds.queue))
    }

    /// Sends a Ping or Pong; [`Refused::Full`] rather than waiting. Drafts 76 and 75 have neither: it is dropped.
    pub fn send_control(&self, opcode: Opcode, payload: &[u8]) -> Result<(), Refused> {
        if payload.len() > CONTROL_MAX {
            return Err(Refused::Illegal);
        }
        if self.draft.is_some() {
            return if self.state() > State::Open { Err(Refused::Closing) } else { Ok(()) };
        }
        let queue = self.lock();
        // A little beyond the bound, so that senders who fill the queue do not keep a client without its Pong.
        if queue.unsent() >= self.bounds.queue.saturating_add(KEEP) {
            return Err(Refused::Full);
        }
        if queue.state > State::Open {
            return Err(Refused::Closing);
        }
        let queue = self.admit(queue, payload.len())?;
        self.queue_frame(queue, opcode, false, payload);
        Ok(())
    }

    /// Goes on if the child has memory for `len` more bytes on their way to the client, and closes with 1013 otherwise.
    #[inline]
    fn admit<'q>(
        &'q self,
        mut queue: MutexGuard<'q, Queue>,
        len: usize,
    ) -> Result<MutexGuard<'q, Queue>, Refused> {
        if queue.has_memory(len + HEADER) {
            return Ok(queue);
        }
        drop(queue);
        self.refuse_memory();
        Err(Refused::Closing)
    }

    /// Closes with 1013 because the child's connections hold as much as they may.
    #[cold]
    pub fn refuse_memory(&self) {
        let code = CloseCode::TRY_AGAIN_LATER;
        if self.close(&close::payload(code), "no memory is left") {
            self.bounds.memory.refuse();
            let why = Violation::Memory;
            self.log.write(Level::Info, format_args!("WS0311: closing with 1013: {why}"));
        }
    }

    /// Where the memory of what the connection makes us keep is taken from.
    pub fn memory(&self) -> &'static Budget {
        self.bounds.memory
    }

    /// Queues a frame and has it written: at once where that is possible and nobody else is about to.
    fn queue_frame(
        &self,
        mut queue: MutexGuard<'_, Queue>,
        opcode: Opcode,
        compressed: bool,
        payload: &[u8],
    ) {
        if payload.len() < LARGE && self.is_owner() && queue.bytes.len() < KEEP {
            return queue.push(opcode, compressed, payload);
        }
        let driver = self.driver();
        let result = match driver.as_ref().and_then(|driver| driver.socket()) {
            Some(socket) if payload.len() >= LARGE && queue.draft.is_none() => {
                queue.push_large(opcode, compressed, payload, socket)
            }
            Some(socket) => {
                queue.push(opcode, compressed, payload);
                queue.flush(socket).map(|_| ())
            }
            None => {
                queue.push(opcode, compressed, payload);
                Ok(())
            }
        };
        // The driver meets the error too, and says what it was.
        let failed = result.is_err();
        if failed && queue.state < State::Closed {
            queue.transit(&*self.log, "writing failed", State::Closed);
        }
        // What is left has to be written by the driver.
        let wake = failed || queue.unsent() > 0 && queue.asleep;
        self.release(queue, driver.as_deref(), wake);
    }

    /// Unlocks after a change, and tells those who wait for it.
    fn release(
        &self,
        mut queue: MutexGuard<'_, Queue>,
        driver: Option<&dyn DriverHandle>,
        mut wake: bool,
    ) {
        if queue.awaited.is_some() && !queue.told && !self.awaits_room(&queue) {
            queue.told = true;
            wake = true;
        }
        if wake {
            queue.asleep = false;
        }
        let waiting = queue.waiting > 0;
        drop(queue);
        if waiting {
            self.room.notify_all();
        }
        if let (true, false, Some(driver)) = (wake, self.is_owner(), driver) {
            driver.wake();
        }
    }

    /// Holds the caller up until `len` more bytes fit. What waits to be delivered comes first.
    fn wait_for_room(&self, len: usize) -> Result<MutexGuard<'_, Queue>, Refused> {
        let queue = self.lock();
        if queue.state > State::Open {
            return Err(Refused::Closing);
        }
        if queue.fits(len + queue.reserved(), self.bounds.queue) {
            return self.admit(queue, len);
        }
        self.wait(queue, len)
    }

    #[cold]
    fn wait<'q>(
        &'q self,
        mut queue: MutexGuard<'q, Queue>,
        len: usize,
    ) -> Result<MutexGuard<'q, Queue>, Refused> {
        let (owner, driver) = (self.is_owner(), self.driver());
        // Without a driver the 101 is not out, and nobody will write while its thread waits.
        if owner && driver.is_none() {
            return Err(Refused::Full);
        }
        // The driver may be in a callback, even in one that waits for this very thread.
        let writer = driver.as_deref().filter(|driver| owner || driver.socket().is_some());
        let mut wait = Wait::new(self.bounds.timeout);
        let mut until = Instant::now();
        loop {
            // At first without waiting: what does not fit may not have been written yet.
            if let Some(writer) = writer {
                drop(queue);
                writer.pump(until);
                queue = self.lock();
            } else if wait.has_begun() {
                let left = until.saturating_duration_since(Instant::now());
                queue.waiting += 1;
                (queue, _) = self.room.wait_timeout(queue, left).unwrap_or_else(|e| e.into_inner());
                queue.waiting -= 1;
            }
            if queue.state > State::Open {
                return Err(Refused::Closing);
            }
            if queue.fits(len + queue.reserved(), self.bounds.queue) {
                return self.admit(queue, len);
            }
            let left = queue.bytes_out;
            if driver.as_deref().is_some_and(DriverHandle::is_ending) {
                drop(queue);
                self.close(&close::payload(CloseCode::GOING_AWAY), "the server stops");
                return Err(Refused::Closing);
            }
            let now = Instant::now();
            if let Err(why) = wait.go_on(now, left) {
                drop(queue);
                self.give_up(format_args!("{why}, while WebSocketSendQueueLimit is reached"));
                return Err(Refused::Closing);
            }
            until = now + SLICE;
        }
    }

    /// Closes with 1008 because the client does not take what it is sent, or does not send what it has begun.
    pub fn give_up(&self, why: fmt::Arguments<'_>) {
        if self.close(&close::payload(CloseCode::POLICY), "the client is too slow") {
            self.log.write(Level::Info, format_args!("WS0301: closing with 1008: {why}"));
        }
    }

    /// Sends our Close with `payload` as it is; nothing can be sent afterwards. `false` if that was already so.
    pub fn close(&self, payload: &[u8], why: &str) -> bool {
        let mut queue = self.lock();
        if queue.state > State::Open {
            return false;
        }
        queue.own_close = true;
        queue.push_close(&*self.log, payload, why, State::Closing);
        self.room.notify_all();
        let driver = self.driver();
        if !self.is_owner() {
            if let Some(socket) = driver.as_ref().and_then(|driver| driver.socket()) {
                // The driver meets an error too, and says what it was.
                let _ = queue.flush(socket);
            }
        }
        // Whoever writes it, the driver has to wait for the answer from now on.
        self.release(queue, driver.as_deref(), true);
        true
    }

    /// Sends a Close that a plugin worded, if it may travel (RFC 6455 §5.5.1, §7.4).
    pub fn close_with(&self, payload: &[u8]) -> Result<(), Refused> {
        if payload.len() > CONTROL_MAX || CloseReason::parse(payload, true).is_err() {
            return Err(Refused::Illegal);
        }
        if self.close(payload, "the endpoint closes") { Ok(()) } else { Err(Refused::Closing) }
    }

    // What follows is the driver's.

    /// The 101 is out and `driver` takes over. A Close may already be queued.
    pub fn open(&self, driver: Weak<dyn DriverHandle>) {
        let _ = self.driver.set(driver);
        let mut queue = self.lock();
        if queue.state == State::Opening {
            queue.transit(&*self.log, "101 sent", State::Open);
        }
    }

    /// The calling thread is at work on the connection: it will call [`flush`](Self::flush) or
    /// [`take`](Self::take) before it lets go of it.
    pub fn own(&self) {
        self.owner.store(thread_mark(), Ordering::Relaxed);
    }

    /// Has what is sent while the connection is owned use the memory of `spare`, and no fresh one each time.
    pub fn lend(&self, spare: &mut Vec<u8>) {
        let mut queue = self.lock();
        if queue.bytes.capacity() < spare.capacity() && queue.bytes.is_empty() {
            queue.bytes = core::mem::take(spare);
        }
    }

    /// No thread is at work on the connection any more: it rests, and takes as little memory as it can. What it has too
    /// much goes to `spare`, for the next [`lend`](Self::lend).
    pub fn disown(&self, spare: &mut Vec<u8>) {
        let mut queue = self.lock();
        if queue.bytes.is_empty() && queue.bytes.capacity() > REST {
            *spare = core::mem::take(&mut queue.bytes);
        } else {
            queue.compact();
        }
        drop(queue);
        self.owner.store(0, Ordering::Relaxed);
    }

    /// Whether a message that was received is delivered now. It is counted then.
    ///
    /// `room` is for an endpoint that answers on the owning thread: as much has to fit the queue, so that an answer of
    /// the message's own length need not wait. If it does not, [`has_to_wait`](Self::has_to_wait) tells when to ask again,
    /// and the driver is woken when a sender's thread sees to that.
    pub fn receive_message(&self, room: Option<usize>) -> Reception {
        let mut queue = self.lock();
        queue.awaited = None;
        if queue.state != State::Open {
            return Reception::Ignore;
        }
        if room.is_some_and(|room| !queue.fits(room, self.bounds.queue)) {
            (queue.awaited, queue.is_held, queue.told) = (room, true, false);
            return Reception::Later;
        }
        queue.messages_in += 1;
        Reception::Deliver
    }

    /// The client's Close: a valid code is echoed (RFC 6455 §5.5.1).
    pub fn receive_close(&self, reason: &CloseReason<'_>) {
        let mut queue = self.lock();
        match queue.state {
            State::Opening | State::Open => {
                let bytes = reason.code.map(close::payload);
                let payload = bytes.as_ref().map_or(&[][..], |b| &b[..]);
                queue.push_close(&*self.log, payload, "the client closes", State::Closed);
            }
            State::Closing => {
                queue.transit(&*self.log, "the client answers our Close", State::Closed);
            }
            State::Closed => {}
        }
        drop(queue);
        self.room.notify_all();
    }

    /// The connection cannot be used any more, or nothing more is expected of it.
    pub fn end(&self, why: &str) {
        let mut queue = self.lock();
        if queue.state < State::Closed {
            queue.transit(&*self.log, why, State::Closed);
        }
        // Nothing is queued behind a Close, so one of ours has not left as long as anything waits: nobody heard it.
        if queue.own_close && queue.unsent() > 0 {
            queue.code = None;
        }
        drop(queue);
        self.room.notify_all();
    }

    /// Writes what is queued to the driver's socket: whether all of it, and whether anything, has left.
    pub fn flush(&self, socket: &dyn Socket) -> io::Result<(bool, bool)> {
        let mut queue = self.lock();
        let before = queue.bytes_out;
        let done = queue.flush(socket)?;
        let progress = queue.bytes_out != before;
        let waiting = queue.waiting > 0 && progress;
        drop(queue);
        if waiting {
            self.room.notify_all();
        }
        Ok((done, progress))
    }

    /// Gives back the memory of an ended connection, whose outbox may stay for late senders to find closed.
    pub fn dispose(&self) {
        if let Some(deflater) = &self.deflater {
            *deflater.acquire() = None;
        }
        let mut queue = self.lock();
        queue.bytes = Vec::new();
        queue.written = 0;
        queue.claim.release();
    }

    /// Moves the queued bytes into `taken`, which has to be empty, for the driver to write; what it was told before that
    /// has left, and what it still has, is as in [`wrote`](Self::wrote).
    pub fn take(&self, taken: &mut Vec<u8>, left: u64, held: usize) {
        debug_assert!(taken.is_empty());
        if taken.capacity() > KEEP {
            *taken = Vec::new();
        }
        self.note_written(left, |queue| {
            core::mem::swap(taken, &mut queue.bytes);
            queue.in_flight = taken.len() + held;
        });
    }

    /// `left` more bytes have left, and the driver has `held` bytes that have not.
    pub fn wrote(&self, left: u64, held: usize) {
        self.note_written(left, |queue| queue.in_flight = held);
    }

    fn note_written(&self, left: u64, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.lock();
        change(&mut queue);
        queue.bytes_out += left;
        if queue.unsent() == 0 {
            queue.claim.release();
        } else if left > 0 {
            let held = queue.bytes.capacity() + queue.in_flight;
            queue.claim.lower(2 * held);
        }
        let waiting = queue.waiting > 0 && left > 0;
        drop(queue);
        if waiting {
            self.room.notify_all();
        }
    }

    /// Whether no more of a message is to be read, of which there are `len` bytes: as for
    /// [`receive_message`](Self::receive_message), so that both together stay below the queue's limit.
    pub fn has_to_pause(&self, len: usize) -> bool {
        let mut queue = self.lock();
        queue.awaited = (!queue.fits(len, self.bounds.queue)).then_some(len);
        (queue.is_held, queue.told) = (false, false);
        queue.awaited.is_some() && queue.state <= State::Open
    }

    /// Whether what was told to wait has to wait on.
    pub fn has_to_wait(&self) -> bool {
        let mut queue = self.lock();
        let waits = self.awaits_room(&queue);
        // The room of which it was told is gone again.
        queue.told &= !waits;
        waits
    }

    fn awaits_room(&self, queue: &Queue) -> bool {
        let fits = |len| queue.fits(len, self.bounds.queue);
        queue.state <= State::Open && queue.awaited.is_some_and(|len| !fits(len))
    }

    /// The driver is about to wait; `false` if something was queued since it looked last that it would not
    /// notice, because it does not wait for room to write. After `true`, the next such thing wakes it.
    pub fn fall_asleep(&self, waits_to_write: bool) -> bool {
        let mut queue = self.lock();
        queue.asleep = waits_to_write || queue.written == queue.bytes.len();
        queue.asleep
    }

    /// What became of the conversation so far.
    pub fn summary(&self) -> Summary {
        self.look().1
    }

    /// How far the conversation has come, what became of it so far, and whether something waits for the client.
    pub fn look(&self) -> (State, Summary, bool) {
        let queue = self.lock();
        let summary = Summary {
            code: queue.code.unwrap_or(CloseCode::ABNORMAL),
            messages_in: queue.messages_in,
            messages_out: queue.messages_out,
            bytes_out: queue.bytes_out,
        };
        (queue.state, summary, queue.unsent() > 0)
    }
}

/// Drops the first `written` bytes of a queue when they are the greater part, so that what has left does not pile up before what
/// has not. `true` if memory was given back.
pub fn drop_front(bytes: &mut Vec<u8>, written: &mut usize) -> bool {
    if *written > bytes.len() / 2 {
        bytes.drain(..*written);
        *written = 0;
    }
    let is_large = bytes.capacity() > REST && (1..bytes.capacity() / 4).contains(&bytes.len());
    if is_large {
        bytes.shrink_to(2 * bytes.len());
    }
    is_large
}

/// Whether text may be sent where it must not contain the byte that ends a frame.
#[cold]
fn is_utf8(text: &[u8]) -> bool {
    utf8::whole(text).is_some()
}

/// A number that no other living thread has: the address of a variable of its own.
pub fn thread_mark() -> usize {
    #[cfg(not(loom))]
    thread_local!(static MARK: u8 = const { 0 });
    #[cfg(loom)]
    loom::thread_local!(static MARK: u8 = 0);
    MARK.with(|mark| core::ptr::from_ref(mark).addr())
}

#[cfg(all(test, loom))]
mod loom_tests {
    use core::fmt;

    use loom::thread;

    use super::*;
    use crate::sync::check;

    struct Silence;

    impl Log for Silence {
        fn enabled(&self, _: Level) -> bool {
            false
        }
        fn write(&self, _: Level, _: fmt::Arguments<'_>) {}
    }

    /// A driver that sleeps until it is woken, and a client that takes so much and no more.
    #[derive(Default)]
    struct Driver {
        woken: Mutex<bool>,
        changed: Condvar,
        /// How much the socket still takes, if there is one.
        room: Option<Mutex<usize>>,
        sent: Mutex<Vec<u8>>,
    }

    impl Driver {
        fn sleep(&self) {
            let mut woken = self.woken.lock().unwrap();
            while !*woken {
                woken = self.changed.wait(woken).unwrap();
            }
            *woken = false;
        }

        /// Takes what there is to write; `false` if nothing is.
        fn take(&self, outbox: &Outbox) -> bool {
            let mut taken = Vec::new();
            outbox.take(&mut taken, 0, 0);
            self.sent.lock().unwrap().extend_from_slice(&taken);
            outbox.wrote(taken.len() as u64, 0);
            !taken.is_empty()
        }
    }

    impl DriverHandle for Driver {
        fn wake(&self) {
            *self.woken.lock().unwrap() = true;
            self.changed.notify_all();
        }

        fn pump(&self, _: Instant) {}

        fn socket(&self) -> Option<&dyn Socket> {
            self.room.as_ref().map(|_| self as &dyn Socket)
        }
    }

    impl Socket for Driver {
        fn write(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
            let mut room = self.room.as_ref().expect("a socket").lock().unwrap();
            let n = bytes[0].len().min(*room);
            *room -= n;
            self.sent.lock().unwrap().extend_from_slice(&bytes[0][..n]);
            if n == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n) }
        }
    }

    fn open(queue: usize, room: Option<usize>) -> (Arc<Outbox>, Arc<Driver>) {
        let bounds = Bounds {
            queue,
            timeout: Duration::from_secs(3600),
            compress_from: 0,
            memory: &crate::limits::memory::UNLIMITED,
        };
        let outbox = Arc::new(Outbox::new(bounds, None, Box::new(Silence)));
        let driver = Arc::new(Driver { room: room.map(Mutex::new), ..Driver::default() });
        let handle: Weak<dyn DriverHandle> = Arc::downgrade(&driver) as Weak<dyn DriverHandle>;
        outbox.open(handle);
        outbox.disown(&mut Vec::new());
        (outbox, driver)
    }

    /// A frame of three bytes.
    fn send(outbox: &Outbox, byte: u8) -> Result<(), Refused> {
        outbox.send_message(Kind::Binary, &[byte])
    }

    #[test]
    fn what_is_queued_wakes_a_driver_that_falls_asleep() {
        check(3, || {
            let (outbox, driver) = open(1000, None);
            let senders = [1, 2].map(|byte| {
                let outbox = outbox.clone();
                thread::spawn(move || send(&outbox, byte).unwrap())
            });
            while driver.sent.lock().unwrap().len() < 6 {
                outbox.own();
                while driver.take(&outbox) {}
                outbox.disown(&mut Vec::new());
                let all_here = || driver.sent.lock().unwrap().len() == 6;
                if outbox.fall_asleep(false) && !all_here() {
                    driver.sleep();
                }
            }
            for sender in senders {
                sender.join().unwrap();
            }
            let sent = driver.sent.lock().unwrap();
            assert!(*sent == [0x82, 1, 1, 0x82, 1, 2] || *sent == [0x82, 1, 2, 0x82, 1, 1]);
        });
    }

    #[test]
    fn room_wakes_a_sender_that_waits() {
        check(3, || {
            // Room for one message at a time.
            let (outbox, driver) = open(3, None);
            let sender = thread::spawn({
                let outbox = outbox.clone();
                move || [1, 2].map(|byte| send(&outbox, byte))
            });
            while driver.sent.lock().unwrap().len() < 6 {
                if !driver.take(&outbox) && outbox.fall_asleep(false) {
                    driver.sleep();
                }
            }
            assert_eq!(sender.join().unwrap(), [Ok(()); 2]);
        });
    }

    #[test]
    fn the_end_releases_senders_that_wait() {
        check(3, || {
            let (outbox, _driver) = open(3, None);
            send(&outbox, 0).unwrap();
            let senders = [(); 2].map(|()| {
                let outbox = outbox.clone();
                thread::spawn(move || send(&outbox, 1))
            });
            outbox.end("the connection is over");
            for sender in senders {
                assert_eq!(sender.join().unwrap(), Err(Refused::Closing));
            }
        });
    }

    #[test]
    fn a_driver_that_holds_a_message_is_woken_when_a_sender_has_made_room() {
        check(3, || {
            let (outbox, driver) = open(20, Some(1));
            let sender = thread::spawn({
                let (outbox, driver) = (outbox.clone(), driver.clone());
                move || {
                    // The client takes what it is sent from now on, and nobody but this thread sees that.
                    *driver.room.as_ref().unwrap().lock().unwrap() = 1000;
                    outbox.send_control(Opcode::Ping, &[9]).unwrap();
                }
            });
            outbox.own();
            outbox.send_message(Kind::Binary, &[1; 12]).unwrap();
            outbox.flush(&*driver).unwrap();
            let mut held = outbox.receive_message(Some(10)) == Reception::Later;
            outbox.disown(&mut Vec::new());
            while held {
                while outbox.has_to_wait() {
                    driver.sleep();
                }
                held = outbox.receive_message(Some(10)) == Reception::Later;
            }
            sender.join().unwrap();
            let sent = driver.sent.lock().unwrap();
            assert_eq!(sent.len() + outbox.lock().unsent(), 17);
        });
    }

    #[test]
    fn nothing_is_queued_behind_a_close() {
        check(3, || {
            let (outbox, driver) = open(1000, None);
            let closers = [(); 2].map(|()| {
                let outbox = outbox.clone();
                thread::spawn(move || outbox.close(&[], "test"))
            });
            let sent = send(&outbox, 1).is_ok();
            let closed = closers.map(|closer| closer.join().unwrap());
            assert!(closed[0] != closed[1]);
            driver.take(&outbox);
            let message: &[u8] = if sent { &[0x82, 1, 1] } else { &[] };
            assert_eq!(*driver.sent.lock().unwrap(), [message, &[0x88, 0]].concat());
        });
    }

    /// The driver of a service moves from thread to thread; each time it answers, it is the owner and writes itself.
    #[test]
    fn an_owner_is_never_woken_and_leaves_nothing_unwritten() {
        check(3, || {
            let (outbox, driver) = open(1000, None);
            let at_work = Arc::new(Mutex::new(()));
            let workers = [1, 2].map(|byte| {
                let (outbox, driver, at_work) = (outbox.clone(), driver.clone(), at_work.clone());
                thread::spawn(move || {
                    let turn = at_work.lock().unwrap();
                    outbox.own();
                    send(&outbox, byte).unwrap();
                    while driver.take(&outbox) {}
                    outbox.disown(&mut Vec::new());
                    assert!(outbox.fall_asleep(false));
                    drop(turn);
                })
            });
            for worker in workers {
                worker.join().unwrap();
            }
            assert_eq!(driver.sent.lock().unwrap().len(), 6);
            assert!(!*driver.woken.lock().unwrap());
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;
    use crate::fakes::{
        Driver, Lines, Wire, bounds, budget, from_us, outbox, outbox_of, wait_until,
    };

    #[test]
    fn what_does_not_fit_the_childs_memory_is_not_queued() {
        let memory = budget(128 << 10);
        let (outbox, log) = outbox_of(Bounds { memory, ..bounds(1 << 20) });
        let wire = Wire::new();
        let driver = Driver::new(Some(&wire), || panic!("nobody has to wait"));
        driver.rest(&outbox);
        wire.takes(0);
        assert_eq!(binary(&outbox, &[1; 60_000]), Ok(()));
        assert_eq!(memory.used(), 64 << 10);
        // Pongs count, too.
        while memory.used() == 64 << 10 {
            outbox.send_control(Opcode::Pong, &[0; 125]).unwrap();
        }
        assert_eq!(binary(&outbox, &[1; 60_000]), Err(Refused::Closing));
        assert_eq!((outbox.state(), memory.refused()), (State::Closing, 1));
        assert!(log.has("WS0311: closing with 1013"));
        // What was accepted before leaves all the same.
        wire.takes(usize::MAX);
        outbox.flush(&wire).unwrap();
        let sent = wire.sent();
        assert_eq!(sent[..60_004], [&b"\x82\x7e\xea\x60"[..], &[1; 60_000]].concat());
        assert!(sent.ends_with(&from_us(Opcode::Close, b"\x03\xf5")));
        assert_eq!(memory.used(), 0);
    }

    fn binary(outbox: &Outbox, payload: &[u8]) -> Result<(), Refused> {
        outbox.send_message(Kind::Binary, payload)
    }

    /// A binary frame.
    fn frame(payload: &[u8]) -> Vec<u8> {
        from_us(Opcode::Binary, payload)
    }

    /// An open outbox over a socket, at rest.
    fn on_socket(queue: usize) -> (Arc<Outbox>, Wire, Arc<Driver>) {
        let (outbox, wire) = (outbox(queue).0, Wire::new());
        let driver = Driver::new(Some(&wire), || panic!("nobody has to wait"));
        driver.rest(&outbox);
        (outbox, wire, driver)
    }

    /// An open outbox that only its driver can write, at rest.
    fn without_socket(queue: usize) -> (Arc<Outbox>, Arc<Driver>) {
        let (outbox, _) = outbox(queue);
        let driver = Driver::new(None, || panic!("nobody has to wait"));
        driver.rest(&outbox);
        (outbox, driver)
    }

    /// What the driver has to write; all of it leaves.
    fn take(outbox: &Outbox) -> Vec<u8> {
        let mut taken = Vec::new();
        outbox.take(&mut taken, 0, 0);
        outbox.wrote(taken.len() as u64, 0);
        taken
    }

    fn wait_for_sender(outbox: &Outbox) {
        wait_until(|| outbox.lock().waiting > 0);
    }

    #[test]
    fn what_the_owner_sends_leaves_with_one_write() {
        let (outbox, wire, driver) = on_socket(1000);
        outbox.own();
        for payload in [b"1", b"2", b"3"] {
            binary(&outbox, payload).unwrap();
        }
        assert_eq!(wire.sent(), b"");
        assert_eq!(outbox.flush(&wire).unwrap(), (true, true));
        assert_eq!(wire.sent(), [frame(b"1"), frame(b"2"), frame(b"3")].concat());
        assert_eq!((wire.change(|script| script.calls.1), driver.wakes()), (1, 0));
        assert_eq!(outbox.flush(&wire).unwrap(), (true, false));
    }

    #[test]
    fn an_owner_that_sends_much_writes_before_its_turn_ends() {
        let (outbox, wire, _driver) = on_socket(1 << 20);
        outbox.own();
        for _ in 0..=KEEP / 1000 + 1 {
            binary(&outbox, &[0; 1000]).unwrap();
            assert!(outbox.lock().bytes.len() < KEEP + 2000);
        }
        assert!(wire.sent().len() >= KEEP);
    }

    #[test]
    fn another_thread_writes_at_once_and_wakes_nobody() {
        let (outbox, wire, driver) = on_socket(1000);
        assert!(outbox.fall_asleep(false));
        binary(&outbox, b"1").unwrap();
        assert_eq!((wire.sent(), driver.wakes()), (frame(b"1"), 0));
    }

    #[test]
    fn what_the_socket_does_not_take_wakes_a_driver_asleep_once() {
        let (outbox, wire, driver) = on_socket(1000);
        wire.takes(4);
        binary(&outbox, b"0").unwrap();
        binary(&outbox, b"1").unwrap();
        // It has not said that it sleeps, so it will look.
        assert_eq!((wire.sent(), driver.wakes()), (b"\x82\x010\x82".to_vec(), 0));
        assert!(outbox.fall_asleep(true));
        binary(&outbox, b"2").unwrap();
        binary(&outbox, b"3").unwrap();
        assert_eq!(driver.wakes(), 1);
        wire.takes(usize::MAX);
        assert_eq!(outbox.flush(&wire).unwrap(), (true, true));
        assert_eq!(wire.sent(), [b"\x011", &frame(b"2")[..], &frame(b"3")].concat());
    }

    #[test]
    fn a_driver_does_not_fall_asleep_over_what_it_has_to_write() {
        let (outbox, driver) = without_socket(1000);
        assert!(outbox.fall_asleep(false));
        binary(&outbox, b"1").unwrap();
        assert_eq!(driver.wakes(), 1);
        assert!(!outbox.fall_asleep(false));
        // It hears of room by itself.
        assert!(outbox.fall_asleep(true));
        take(&outbox);
        assert!(outbox.fall_asleep(false));
        binary(&outbox, b"2").unwrap();
        assert_eq!((driver.wakes(), take(&outbox)), (1, frame(b"2")));
    }

    #[test]
    fn a_partial_write_goes_on_where_it_stopped() {
        let (outbox, wire, _driver) = on_socket(10_000);
        outbox.own();
        let expected: Vec<u8> = (0..100).flat_map(|n| frame(&[n; 20])).collect();
        for n in 0..100 {
            binary(&outbox, &[n; 20]).unwrap();
        }
        wire.portion(7);
        let mut left = expected.len();
        // The first part is small, the second more than half of what waits.
        for room in [100, 1500] {
            wire.takes(room);
            assert_eq!(outbox.flush(&wire).unwrap(), (false, true));
            assert_eq!(outbox.flush(&wire).unwrap(), (false, false));
            left -= room;
            assert_eq!(outbox.lock().unsent(), left);
            assert_eq!(outbox.summary().bytes_out as usize, expected.len() - left);
        }
        wire.takes(usize::MAX);
        assert_eq!(outbox.flush(&wire).unwrap(), (true, true));
        assert_eq!((wire.sent(), outbox.lock().unsent()), (expected, 0));
    }

    #[test]
    fn a_large_message_is_whole_wherever_the_socket_stops() {
        let payload: Vec<u8> = (0..LARGE + 5).map(|n| n as u8).collect();
        let header = [0x82, 126, (payload.len() >> 8) as u8, payload.len() as u8];
        let expected = [&frame(b"before")[..], &header, &payload, &frame(b"after")].concat();
        for room in [0, 1, 7, 8, 9, 11, 12, 13, 1000, 8 + 4 + LARGE + 5, usize::MAX] {
            let (outbox, wire, _driver) = on_socket(1 << 20);
            wire.takes(0);
            binary(&outbox, b"before").unwrap();
            wire.takes(room);
            binary(&outbox, &payload).unwrap();
            binary(&outbox, b"after").unwrap();
            assert_eq!(wire.change(|script| script.sent.len()), room.min(expected.len()));
            wire.takes(usize::MAX);
            assert!(outbox.flush(&wire).unwrap().0);
            assert_eq!(wire.sent(), expected, "room for {room}");
            let summary = outbox.summary();
            assert_eq!((summary.messages_out, summary.bytes_out), (3, expected.len() as u64));
        }
    }

    #[test]
    fn a_socket_that_fails_ends_the_conversation_and_wakes_the_driver() {
        for size in [1, LARGE] {
            let (outbox, wire, driver) = on_socket(1000);
            wire.breaks();
            binary(&outbox, &vec![0; size]).unwrap();
            assert_eq!((outbox.state(), driver.wakes()), (State::Closed, 1));
            assert_eq!(binary(&outbox, b""), Err(Refused::Closing));
        }
    }

    #[test]
    fn a_queue_takes_as_much_as_its_limit_and_then_the_driver_writes() {
        let (outbox, _) = outbox(20);
        let behind = outbox.clone();
        let driver = Driver::new(None, move || assert_eq!(take(&behind).len(), 22));
        driver.rest(&outbox);
        outbox.own();
        binary(&outbox, &[0; 8]).unwrap();
        assert!(outbox.has_room(10, usize::MAX) && !outbox.has_room(11, usize::MAX));
        assert!(outbox.has_room(5, 15) && !outbox.has_room(6, 15));
        binary(&outbox, &[0; 10]).unwrap();
        // One more needs room, and finds it behind the one call.
        binary(&outbox, b"").unwrap();
        assert_eq!(outbox.lock().unsent(), 2);
        take(&outbox);
        assert!(outbox.has_room(1000, 0));
        binary(&outbox, &[0; 100]).unwrap();
    }

    #[test]
    fn without_a_driver_a_full_queue_is_no_reason_to_wait() {
        let (outbox, _) = outbox(20);
        binary(&outbox, &[0; 20]).unwrap();
        assert_eq!(binary(&outbox, b"1"), Err(Refused::Full));
    }

    #[test]
    fn a_client_that_takes_nothing_is_closed_with_1008() {
        let log = Lines::default();
        let bounds = Bounds { timeout: Duration::ZERO, ..bounds(20) };
        let outbox = Outbox::new(bounds, None, Box::new(log.clone()));
        let driver = Driver::new(None, || ());
        driver.rest(&outbox);
        outbox.own();
        binary(&outbox, &[0; 20]).unwrap();
        assert_eq!(binary(&outbox, b"1"), Err(Refused::Closing));
        assert_eq!((outbox.state(), outbox.summary().code), (State::Closing, CloseCode::POLICY));
        assert!(log.has("WS0301"));
        assert!(take(&outbox).ends_with(&from_us(Opcode::Close, b"\x03\xf0")));
    }

    #[test]
    fn who_takes_enough_is_waited_for_longer_than_the_timeout() {
        let timeout = Duration::from_millis(100);
        let bounds = Bounds { timeout, ..bounds(1000) };
        let (outbox, wire) = (Outbox::new(bounds, None, Box::new(Lines::default())), Wire::new());
        let outbox = Arc::new(outbox);
        let (behind, client) = (outbox.clone(), wire.clone());
        let driver = Driver::new(Some(&wire), move || {
            thread::sleep(timeout / 5);
            client.takes(100);
            behind.flush(&client).unwrap();
        });
        driver.rest(&outbox);
        wire.takes(0);
        binary(&outbox, &[0; 990]).unwrap();
        let begun = Instant::now();
        binary(&outbox, &[1; 900]).unwrap();
        assert!(begun.elapsed() > timeout);
    }

    #[test]
    fn a_sender_waits_for_room_until_the_driver_has_made_some() {
        let (outbox, _driver) = without_socket(20);
        binary(&outbox, &[0; 20]).unwrap();
        thread::scope(|scope| {
            let sender = scope.spawn(|| binary(&outbox, b"1"));
            wait_for_sender(&outbox);
            let mut taken = Vec::new();
            outbox.take(&mut taken, 0, 0);
            // What the driver has not got rid of still waits.
            assert_eq!((taken.len(), outbox.lock().unsent()), (22, 22));
            outbox.wrote(2, 20);
            assert_eq!(outbox.lock().unsent(), 20);
            wait_for_sender(&outbox);
            outbox.wrote(20, 0);
            // Long before its time is over.
            wait_until(|| sender.is_finished());
            assert_eq!(sender.join().unwrap(), Ok(()));
        });
        assert_eq!(take(&outbox), frame(b"1"));
    }

    #[test]
    fn a_sender_that_waits_is_released_by_any_end() {
        let close = CloseReason { code: None, text: "" };
        let ends: [&dyn Fn(&Outbox); 3] = [
            &|outbox| outbox.end("test"),
            &|outbox| assert!(outbox.close(b"", "test")),
            &|outbox| outbox.receive_close(&close),
        ];
        for end in ends {
            let (outbox, _driver) = without_socket(20);
            binary(&outbox, &[0; 20]).unwrap();
            thread::scope(|scope| {
                let senders = [(); 2].map(|()| scope.spawn(|| binary(&outbox, b"1")));
                wait_until(|| outbox.lock().waiting == 2);
                end(&outbox);
                wait_until(|| senders.iter().all(|sender| sender.is_finished()));
                for sender in senders {
                    assert_eq!(sender.join().unwrap(), Err(Refused::Closing));
                }
            });
        }
    }

    #[test]
    fn a_sender_with_a_socket_writes_itself_while_the_driver_is_in_a_callback() {
        let (outbox, wire) = (outbox(20).0, Wire::new());
        let (behind, client) = (outbox.clone(), wire.clone());
        let driver = Driver::new(Some(&wire), move || {
            client.takes(usize::MAX);
            behind.flush(&client).unwrap();
        });
        driver.rest(&outbox);
        wire.takes(0);
        outbox.own();
        binary(&outbox, &[0; 20]).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| binary(&outbox, b"1").unwrap());
        });
        assert_eq!(wire.sent(), [frame(&[0; 20]), frame(b"1")].concat());
    }

    #[test]
    fn a_close_comes_behind_the_data_and_nothing_behind_it() {
        let (outbox, driver) = without_socket(1000);
        binary(&outbox, b"1").unwrap();
        driver.wakes();
        assert!(outbox.close(&close::payload(CloseCode::GOING_AWAY), "test"));
        // Awake or not: an answer has to be waited for.
        assert_eq!((outbox.state(), driver.wakes()), (State::Closing, 1));
        assert!(!outbox.close(b"", "test"));
        assert_eq!(outbox.close_with(b""), Err(Refused::Closing));
        assert_eq!(binary(&outbox, b"2"), Err(Refused::Closing));
        assert_eq!(outbox.send_control(Opcode::Ping, b""), Err(Refused::Closing));
        assert_eq!(outbox.receive_message(None), Reception::Ignore);
        let close = from_us(Opcode::Close, &close::payload(CloseCode::GOING_AWAY));
        assert_eq!(take(&outbox), [frame(b"1"), close].concat());
        outbox.receive_close(&CloseReason { code: Some(CloseCode::NORMAL), text: "" });
        assert_eq!((outbox.state(), take(&outbox)), (State::Closed, vec![]));
        assert_eq!(outbox.summary().code, CloseCode::GOING_AWAY);
    }

    #[test]
    fn a_close_of_ours_that_never_left_is_1006() {
        for left in [0, 3, 4] {
            let (outbox, wire, _driver) = on_socket(1000);
            wire.takes(left);
            outbox.close(&close::payload(CloseCode::GOING_AWAY), "test");
            outbox.end("lost");
            let code = if left == 4 { CloseCode::GOING_AWAY } else { CloseCode::ABNORMAL };
            assert_eq!(outbox.summary().code, code);
        }
        // The client's has come, whether or not it gets ours.
        let (outbox, _driver) = without_socket(1000);
        outbox.receive_close(&CloseReason { code: Some(CloseCode::NORMAL), text: "" });
        outbox.end("lost");
        assert_eq!(outbox.summary().code, CloseCode::NORMAL);
    }

    #[test]
    fn a_close_before_the_101_is_not_forgotten() {
        let (outbox, log) = outbox(1000);
        binary(&outbox, b"1").unwrap();
        assert!(outbox.close(b"", "test"));
        let driver = Driver::new(None, || ());
        driver.rest(&outbox);
        assert_eq!(outbox.state(), State::Closing);
        assert_eq!(take(&outbox), [frame(b"1"), from_us(Opcode::Close, b"")].concat());
        assert!(log.has("[OPENING] -- test --> [CLOSING]") && !log.has("101 sent"));
    }

    #[test]
    fn control_frames_have_bounds_of_their_own() {
        let (outbox, _driver) = without_socket(20);
        assert_eq!(outbox.send_control(Opcode::Ping, &[0; 126]), Err(Refused::Illegal));
        assert_eq!(outbox.close_with(&[0; 126]), Err(Refused::Illegal));
        assert_eq!(outbox.close_with(b"\x03\xed"), Err(Refused::Illegal));
        binary(&outbox, &vec![0; 20 + KEEP - 1 - HEADER]).unwrap();
        assert_eq!(outbox.lock().unsent(), 20 + KEEP - 1);
        // A little beyond the limit, but no further.
        assert_eq!(outbox.send_control(Opcode::Pong, b"12"), Ok(()));
        assert_eq!(outbox.send_control(Opcode::Pong, b""), Err(Refused::Full));
    }

    #[test]
    fn a_message_waits_until_an_answer_of_its_length_fits() {
        let (outbox, wire, driver) = on_socket(400);
        let receive = |len| outbox.receive_message(Some(len));
        assert_eq!(receive(1000), Reception::Deliver);
        wire.takes(0);
        binary(&outbox, &[0; 98]).unwrap();
        assert_eq!(receive(300), Reception::Deliver);
        assert_eq!(receive(301), Reception::Later);
        assert!(outbox.has_to_wait());
        // It is nobody's fault who does not answer by himself.
        assert_eq!(outbox.receive_message(None), Reception::Deliver);
        assert!(!outbox.has_to_wait());
        assert_eq!(receive(301), Reception::Later);
        driver.wakes();
        // What others send goes behind it, but for a control frame.
        outbox.send_control(Opcode::Ping, b"").unwrap();
        wire.takes(2);
        outbox.send_control(Opcode::Ping, b"").unwrap();
        assert_eq!((driver.wakes(), outbox.lock().unsent()), (0, 102));
        wire.takes(5);
        outbox.send_control(Opcode::Ping, b"").unwrap();
        assert_eq!((driver.wakes(), outbox.lock().unsent()), (1, 99));
        assert!(!outbox.has_to_wait());
        // It was told once.
        outbox.send_control(Opcode::Ping, b"").unwrap();
        assert_eq!(driver.wakes(), 0);
        assert_eq!(outbox.summary().messages_in, 3);
        wire.takes(3);
        outbox.send_control(Opcode::Ping, b"").unwrap();
        assert_eq!(receive(300), Reception::Deliver);
        // One that is longer than the queue may become needs an empty one.
        assert_eq!(receive(500), Reception::Later);
        wire.takes(usize::MAX);
        outbox.flush(&wire).unwrap();
        assert!(!outbox.has_to_wait());
        assert_eq!(receive(500), Reception::Deliver);
        wire.takes(0);
        binary(&outbox, &[0; 398]).unwrap();
        assert_eq!(receive(1), Reception::Later);
        outbox.close(b"", "test");
        assert!(!outbox.has_to_wait());
        assert_eq!(receive(1), Reception::Ignore);
    }

    #[test]
    fn what_waits_to_be_delivered_comes_before_what_others_send() {
        let (outbox, driver) = without_socket(100);
        binary(&outbox, &[0; 48]).unwrap();
        assert_eq!(outbox.receive_message(Some(60)), Reception::Later);
        driver.wakes();
        thread::scope(|scope| {
            // It would fit.
            let sender = scope.spawn(|| binary(&outbox, &[1; 20]));
            wait_for_sender(&outbox);
            let mut taken = Vec::new();
            outbox.take(&mut taken, 0, 0);
            outbox.wrote(20, 30);
            assert!(!outbox.has_to_wait());
            assert_eq!(outbox.receive_message(Some(60)), Reception::Deliver);
            outbox.wrote(30, 0);
            assert_eq!(sender.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn nobody_waits_when_the_child_ends() {
        let (outbox, log) = outbox(20);
        let driver = Driver::that_ends();
        driver.rest(&outbox);
        outbox.own();
        binary(&outbox, &[0; 20]).unwrap();
        assert_eq!(binary(&outbox, b"1"), Err(Refused::Closing));
        assert_eq!(outbox.summary().code, CloseCode::GOING_AWAY);
        assert!(!log.has("WS0301"));
    }

    #[test]
    fn memory_is_lent_to_who_is_at_work_and_taken_back() {
        let (outbox, _driver) = without_socket(1 << 20);
        let mut spare = Vec::with_capacity(5000);
        outbox.own();
        outbox.lend(&mut spare);
        assert_eq!(spare.capacity(), 0);
        binary(&outbox, b"1").unwrap();
        outbox.disown(&mut spare);
        // It holds something, and keeps no more than that takes.
        assert_eq!(spare.capacity(), 0);
        assert!(outbox.lock().bytes.capacity() < REST);
        take(&outbox);
        outbox.lend(&mut Vec::with_capacity(5000));
        outbox.disown(&mut spare);
        assert_eq!((spare.capacity(), outbox.lock().bytes.capacity()), (5000, 0));
    }

    #[test]
    fn a_disposed_outbox_finds_late_senders_closed() {
        let (outbox, _driver) = without_socket(1000);
        binary(&outbox, b"1").unwrap();
        outbox.end("test");
        outbox.dispose();
        assert_eq!(binary(&outbox, b"2"), Err(Refused::Closing));
        assert_eq!(take(&outbox), b"");
    }
}
