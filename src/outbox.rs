//! The outbound half of a connection: what is sent, by whichever thread, in order and within bounds.
//!
//! Any thread frames its message into one queue under one short lock; the driver takes the queued bytes as a whole and
//! writes them without holding it. So messages never interleave, nobody holds a lock while a callback runs or while
//! the network is slow, and one write serves all that was sent in between. The state of the conversation lives
//! here too, because any thread may close; [`Queue::transit`] is the only writer of it (RFC 6455 §5.5.1, §7.1).
#![deny(unsafe_code)]

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    journal::{Journal, Level},
    proto::{
        Kind,
        close::{self, CloseCode, CloseReason},
        deflate::Deflater,
        frame::{self, CONTROL_MAX, Opcode},
    },
};

/// The spare room an emptied queue may keep.
const KEEP: usize = 64 * 1024;

/// The driver's side of an outbox: what carries its bytes to the client.
pub trait Carrier: Send + Sync {
    /// Makes the driver look at the outbox. Called from any thread, without a lock held.
    fn wake(&self);

    /// Writes queued bytes from within a callback on the owning thread, waiting for the client until
    /// `deadline`; returns after some progress. `false` if there was none.
    fn pump(&self, deadline: Instant) -> bool;
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
    /// How long a sender is held up before the client is given up.
    pub timeout: Duration,
    /// Messages shorter than this are not worth compressing.
    pub compress_from: usize,
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
}

/// What is waiting to be sent on one connection.
pub struct Outbox {
    queue: Mutex<Queue>,
    /// Signalled when bytes have left a full queue, and when the conversation ends.
    room: Condvar,
    /// Orders compression with queueing where a context is shared from message to message.
    deflater: Option<Mutex<Deflater>>,
    /// The thread whose callbacks run now, as [`thread_mark`] names it; 0 if none.
    owner: AtomicUsize,
    carrier: OnceLock<Weak<dyn Carrier>>,
    bounds: Bounds,
    journal: Box<dyn Journal>,
}

struct Queue {
    state: State,
    /// Framed bytes that the driver has not taken.
    bytes: Vec<u8>,
    /// How many bytes the driver has taken but not written.
    in_flight: usize,
    /// The driver waits for events: who queues something has to wake it.
    asleep: bool,
    /// Senders that wait for room.
    waiting: usize,
    code: Option<CloseCode>,
    messages_in: u64,
    messages_out: u64,
}

impl Queue {
    /// Moves the conversation on; the only place where its state changes.
    fn transit(&mut self, journal: &dyn Journal, why: &str, to: State) {
        debug_assert!(to > self.state, "{why}: a conversation never goes back");
        if journal.enabled(Level::Trace) {
            let (from, to) = (self.state.name(), to.name());
            journal.write(Level::Trace, format_args!("transit [{from}] -- {why} --> [{to}]"));
        }
        self.state = to;
    }

    fn unsent(&self) -> usize {
        self.bytes.len() + self.in_flight
    }

    /// Queues a frame and says whether the driver has to be woken.
    fn push(&mut self, opcode: Opcode, compressed: bool, payload: &[u8]) -> bool {
        self.messages_out += u64::from(!opcode.is_control());
        self.bytes.reserve(payload.len() + 10);
        frame::encode(&mut self.bytes, opcode, compressed, payload.len());
        self.bytes.extend_from_slice(payload);
        core::mem::take(&mut self.asleep)
    }

    /// Queues our Close; `to` is what it makes of the conversation.
    fn push_close(&mut self, journal: &dyn Journal, payload: &[u8], why: &str, to: State) -> bool {
        let code = match payload {
            [high, low, ..] => CloseCode(u16::from_be_bytes([*high, *low])),
            _ => CloseCode::NO_STATUS,
        };
        self.code.get_or_insert(code);
        self.transit(journal, why, to);
        self.push(Opcode::Close, false, payload)
    }
}

impl Outbox {
    /// An outbox in state [`State::Opening`], owned by the calling thread.
    pub fn new(bounds: Bounds, deflater: Option<Deflater>, journal: Box<dyn Journal>) -> Self {
        Self {
            queue: Mutex::new(Queue {
                state: State::Opening,
                bytes: Vec::new(),
                in_flight: 0,
                asleep: false,
                waiting: 0,
                code: None,
                messages_in: 0,
                messages_out: 0,
            }),
            room: Condvar::new(),
            deflater: deflater.map(Mutex::new),
            owner: AtomicUsize::new(thread_mark()),
            carrier: OnceLock::new(),
            bounds,
            journal,
        }
    }

    /// Where this connection's log lines go.
    pub fn journal(&self) -> &dyn Journal {
        &*self.journal
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
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Sends a data message, waiting while the queue is full.
    ///
    /// On the owning thread, where waiting would stop the driver, the driver writes instead. A client that
    /// takes nothing for [`Bounds::timeout`] is closed with 1008.
    pub fn send_message(&self, kind: Kind, payload: &[u8]) -> Result<(), Refused> {
        let opcode = if kind == Kind::Text { Opcode::Text } else { Opcode::Binary };
        let mut queue = self.wait_for_room(payload.len())?;
        let deflater = match &self.deflater {
            Some(deflater) if payload.len() >= self.bounds.compress_from && !payload.is_empty() => {
                deflater
            }
            _ => {
                let wake = queue.push(opcode, false, payload);
                drop(queue);
                self.wake_if(wake);
                return Ok(());
            }
        };
        // Compressing is long work: it holds up the senders that compress, and nobody else. Each of them
        // may find the room that another one takes meanwhile.
        drop(queue);
        let mut deflater = deflater.lock().unwrap_or_else(|e| e.into_inner());
        let mut packed = Vec::new();
        let compressed = deflater.compress(payload, &mut packed);
        self.push(opcode, compressed, if compressed { &packed } else { payload })
    }

    /// Sends a Ping or Pong; [`Refused::Full`] rather than waiting.
    pub fn send_control(&self, opcode: Opcode, payload: &[u8]) -> Result<(), Refused> {
        if payload.len() > CONTROL_MAX {
            return Err(Refused::Illegal);
        }
        if self.lock().unsent() >= self.bounds.queue {
            return Err(Refused::Full);
        }
        self.push(opcode, false, payload)
    }

    fn push(&self, opcode: Opcode, compressed: bool, payload: &[u8]) -> Result<(), Refused> {
        let mut queue = self.lock();
        if queue.state > State::Open {
            return Err(Refused::Closing);
        }
        let wake = queue.push(opcode, compressed, payload);
        drop(queue);
        self.wake_if(wake);
        Ok(())
    }

    fn wake_if(&self, asleep: bool) {
        if let (true, Some(carrier)) = (asleep, self.carrier()) {
            carrier.wake();
        }
    }

    fn carrier(&self) -> Option<Arc<dyn Carrier>> {
        self.carrier.get()?.upgrade()
    }

    /// Holds the caller up until `len` more bytes fit. A message larger than the bound fits an empty queue.
    fn wait_for_room(&self, len: usize) -> Result<MutexGuard<'_, Queue>, Refused> {
        let fits = |queue: &Queue| queue.unsent() == 0 || queue.unsent() + len <= self.bounds.queue;
        let mut queue = self.lock();
        if queue.state > State::Open {
            return Err(Refused::Closing);
        }
        if fits(&queue) {
            return Ok(queue);
        }
        let mut deadline = Instant::now() + self.bounds.timeout;
        let here = self.owner.load(Ordering::Relaxed) == thread_mark();
        loop {
            let before = queue.unsent();
            if here {
                drop(queue);
                // Without a carrier the 101 is not out, and nobody will write while we wait.
                let Some(carrier) = self.carrier() else { return Err(Refused::Full) };
                carrier.pump(deadline);
                queue = self.lock();
            } else {
                let left = deadline.saturating_duration_since(Instant::now());
                queue.waiting += 1;
                (queue, _) = self.room.wait_timeout(queue, left).unwrap_or_else(|e| e.into_inner());
                queue.waiting -= 1;
            }
            if queue.state > State::Open {
                return Err(Refused::Closing);
            }
            if fits(&queue) {
                return Ok(queue);
            }
            let now = Instant::now();
            if queue.unsent() < before {
                deadline = now + self.bounds.timeout;
            } else if now >= deadline {
                break;
            }
        }
        drop(queue);
        if self.close(&close::payload(CloseCode::POLICY), "the client reads too slowly") {
            self.journal.write(
                Level::Info,
                format_args!(
                    "WS0301: closing with 1008: the client took nothing for {:?} while \
                     WebSocketSendQueueLimit was reached",
                    self.bounds.timeout
                ),
            );
        }
        Err(Refused::Closing)
    }

    /// Sends our Close with `payload` as it is; nothing can be sent afterwards. `false` if that was already so.
    pub fn close(&self, payload: &[u8], why: &str) -> bool {
        let mut queue = self.lock();
        if queue.state > State::Open {
            return false;
        }
        let wake = queue.push_close(&*self.journal, payload, why, State::Closing);
        drop(queue);
        self.room.notify_all();
        self.wake_if(wake);
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

    /// The 101 is out and `carrier` takes over. A Close may already be queued.
    pub fn open(&self, carrier: &Arc<dyn Carrier>) {
        let _ = self.carrier.set(Arc::downgrade(carrier));
        let mut queue = self.lock();
        if queue.state == State::Opening {
            queue.transit(&*self.journal, "101 sent", State::Open);
        }
    }

    /// Counts a message that was received; `false` if it must not be delivered any more.
    pub fn receive_message(&self) -> bool {
        let mut queue = self.lock();
        queue.messages_in += u64::from(queue.state == State::Open);
        queue.state == State::Open
    }

    /// The client's Close: a valid code is echoed (RFC 6455 §5.5.1).
    pub fn receive_close(&self, reason: &CloseReason<'_>) {
        let mut queue = self.lock();
        match queue.state {
            State::Opening | State::Open => {
                let bytes = reason.code.map(close::payload);
                let payload = bytes.as_ref().map_or(&[][..], |b| &b[..]);
                queue.push_close(&*self.journal, payload, "the client closes", State::Closed);
            }
            State::Closing => {
                queue.transit(&*self.journal, "the client answers our Close", State::Closed);
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
            queue.transit(&*self.journal, why, State::Closed);
        }
        drop(queue);
        self.room.notify_all();
    }

    /// Moves the queued bytes behind those in `taken`, which the driver has not written yet.
    pub fn take(&self, taken: &mut Vec<u8>) {
        let mut queue = self.lock();
        if taken.is_empty() {
            if taken.capacity() > KEEP {
                *taken = Vec::new();
            }
            core::mem::swap(taken, &mut queue.bytes);
            queue.in_flight = taken.len();
        }
    }

    /// `len` of the bytes taken have left.
    pub fn wrote(&self, len: usize) {
        let mut queue = self.lock();
        queue.in_flight -= len;
        let waiting = queue.waiting > 0;
        drop(queue);
        if waiting {
            self.room.notify_all();
        }
    }

    /// Whether so much waits for the client that reading from it should pause.
    pub fn is_crowded(&self) -> bool {
        self.lock().unsent() > self.bounds.queue / 2
    }

    /// The driver is about to wait: `false` if something was queued since it took the last bytes and
    /// none of those are left. After `true`, the next thing queued wakes it.
    pub fn fall_asleep(&self) -> bool {
        let mut queue = self.lock();
        queue.asleep = queue.bytes.is_empty() || queue.in_flight > 0;
        queue.asleep
    }

    /// What became of the conversation so far.
    pub fn summary(&self) -> Summary {
        let queue = self.lock();
        Summary {
            code: queue.code.unwrap_or(CloseCode::ABNORMAL),
            messages_in: queue.messages_in,
            messages_out: queue.messages_out,
        }
    }
}

/// A number that no other living thread has: the address of a variable of its own.
pub fn thread_mark() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| core::ptr::from_ref(mark).addr())
}
