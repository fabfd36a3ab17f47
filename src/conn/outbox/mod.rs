//! The outbound half of a connection: what is sent, by whichever thread, in order and within bounds.
//!
//! Any thread frames its message into one queue under one short lock, so messages never interleave. On a plain socket
//! it also writes, without blocking, unless the driver is at work on the connection and will write all of it at once.
//! Where bytes have to go through somebody else's code (TLS, httpd's filters), the driver takes them out and writes them
//! without holding the lock. Either way nobody holds a lock while a callback runs or while the network is waited for.
//!
//! The state of the conversation lives here too, because any thread may close; `Queue::transit` is the only writer of
//! it (RFC 6455 §5.5.1, §7.1).
//!
//! | file | owns |
//! |---|---|
//! | this one | the outbox, and what both sides of it know |
//! | `queue.rs` | what its lock guards |
//! | `send.rs` | the senders' side: any thread |
//! | `drive.rs` | the driver's side: the thread at work on the connection |

mod drive;
#[cfg(all(test, loom))]
mod loom_tests;
mod queue;
mod send;
#[cfg(all(test, not(loom)))]
mod tests;

use std::{
    io::{self, IoSlice},
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use super::log::Log;
use crate::{
    limits::memory::Budget,
    metrics::Carried,
    proto::{Version, close::CloseCode, deflate::Deflater},
    sync::{AtomicUsize, Condvar, Lock as _, Mutex, MutexGuard, Ordering},
};

pub use self::queue::drop_front;
use self::queue::{Queue, Syntax};

/// The driver's side of an outbox.
pub trait DriverHandle: Send + Sync {
    /// Makes the driver look at the outbox. Called from any thread, without a lock held.
    fn wake(&self);

    /// Writes queued bytes, waiting for the client until `deadline`; returns after some progress. For the owning thread,
    /// from within a callback; for others only if there is a [`socket`](Self::socket).
    fn pump(&self, deadline: Instant);

    /// A socket that any thread may write to without blocking; `None` if only the driver can write.
    fn socket(&self) -> Option<&dyn WriteSocket>;

    /// Has the connection have a turn soon, as one of many: who asks that of them all has them run afterwards
    /// ([`Service::run_ready`](crate::driver::service::Service::run_ready)). Called from any thread.
    fn have_a_turn(&self) {
        self.wake();
    }

    /// Whether the child ends, and the connection with it, which its driver has not seen yet since it is in a callback.
    fn is_ending(&self) -> bool {
        false
    }
}

/// A stream socket in non-blocking mode.
pub trait WriteSocket: Send + Sync {
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

/// What became of a message that was offered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offered {
    /// It is sent.
    Sent,
    /// There is no room for it yet.
    Full,
    /// The conversation is over, and needs nothing more.
    Needless,
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

impl Summary {
    /// What the connection has carried, of which so many bytes were received.
    pub fn carried(&self, bytes_in: u64) -> Carried {
        let Self { messages_in, messages_out, bytes_out, .. } = *self;
        Carried { messages_in, messages_out, bytes_in, bytes_out }
    }
}

/// What is waiting to be sent on one connection.
pub struct Outbox {
    queue: Mutex<Queue>,
    /// Signalled when bytes have left a full queue, and when the conversation ends.
    room: Condvar,
    /// Orders compression with queueing where a context is shared from message to message.
    /// `None` inside once the connection is disposed of.
    deflater: Option<Box<Mutex<Option<Deflater>>>>,
    /// How it is written.
    syntax: Syntax,
    /// The thread that is at work on the connection, as [`thread_mark`] names it; 0 if none is.
    owner: AtomicUsize,
    driver: OnceLock<Weak<dyn DriverHandle>>,
    bounds: Bounds,
    log: Box<dyn Log>,
}

impl Outbox {
    /// An outbox in state [`State::Opening`], owned by the calling thread.
    pub fn new(bounds: Bounds, deflater: Option<Deflater>, log: Box<dyn Log>) -> Self {
        Self {
            queue: Mutex::new(Queue::new(bounds.memory)),
            room: Condvar::new(),
            deflater: deflater.map(|deflater| Box::new(Mutex::new(Some(deflater)))),
            syntax: Syntax::Frames,
            owner: AtomicUsize::new(thread_mark()),
            driver: OnceLock::new(),
            bounds,
            log,
        }
    }

    /// The same outbox for a client that speaks `version`. But for frames there is no compression.
    pub fn speaking(mut self, version: Version) -> Self {
        self.syntax = Syntax::of(version);
        self.queue.get_mut().unwrap_or_else(|e| e.into_inner()).syntax = self.syntax;
        self
    }

    /// Where this connection's log lines go.
    pub fn log(&self) -> &dyn Log {
        &*self.log
    }

    /// Has the connection have a turn soon: [`DriverHandle::have_a_turn`].
    pub fn have_a_turn(&self) {
        // Before it is open it has its first turn yet to come.
        if let Some(driver) = self.driver() {
            driver.have_a_turn();
        }
    }

    /// How long a client may keep us waiting.
    pub fn timeout(&self) -> Duration {
        self.bounds.timeout
    }

    /// How far the conversation has come.
    pub fn state(&self) -> State {
        self.lock().state
    }

    /// Whether a message is long enough to be compressed.
    pub fn is_worth_compressing(&self, payload: &[u8]) -> bool {
        payload.len() >= self.bounds.compress_from && !payload.is_empty()
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

    /// Whether a message of `len` bytes can be sent without waiting, and with at most `bound` bytes waiting then. A
    /// larger one fits an empty queue.
    pub fn has_room(&self, len: usize, bound: usize) -> bool {
        self.fits(&self.lock(), len, bound)
    }

    fn fits(&self, queue: &Queue, len: usize, bound: usize) -> bool {
        // What waits to be delivered comes first, as for who sends.
        queue.fits(len, bound.min(self.bounds.queue))
            && queue.fits(len + queue.reserved(), self.bounds.queue)
    }

    /// Where the memory of what the connection makes us keep is taken from.
    pub fn memory(&self) -> &'static Budget {
        self.bounds.memory
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

    fn awaits_room(&self, queue: &Queue) -> bool {
        let fits = |len| queue.fits(len, self.bounds.queue);
        queue.state <= State::Open && queue.awaited.is_some_and(|len| !fits(len))
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

/// A number that no other living thread has: the address of a variable of its own.
pub fn thread_mark() -> usize {
    #[cfg(not(loom))]
    thread_local!(static MARK: u8 = const { 0 });
    #[cfg(loom)]
    loom::thread_local!(static MARK: u8 = 0);
    MARK.with(|mark| core::ptr::from_ref(mark).addr())
}
