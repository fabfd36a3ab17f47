//! What the lock of an outbox guards: framed bytes, and the state of the conversation.

use std::io::{self, IoSlice};

use super::{State, WriteSocket};
use crate::{
    conn::log::{Level, Log},
    limits::memory::{Budget, Claim},
    proto::{
        Version,
        close::CloseCode,
        draft::Draft,
        events,
        frame::{self, Opcode},
    },
};

/// The spare room an emptied queue may keep while its driver is at work.
pub(super) const KEEP: usize = 64 * 1024;
/// The spare room that a resting connection may keep.
pub(super) const REST: usize = 256;
/// The longest header of a server's frame.
pub(super) const HEADER: usize = 10;

/// How what is sent is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Syntax {
    /// Frames of RFC 6455, and of the drafts that have the same.
    Frames,
    /// Those of draft 76 or 75.
    Draft(Draft),
    /// Events, as they come.
    Events,
}

impl Syntax {
    pub(super) fn of(version: Version) -> Self {
        match version {
            Version::V13 | Version::V8 | Version::V7 => Self::Frames,
            Version::Draft(draft) => Self::Draft(draft),
            Version::EventStream => Self::Events,
        }
    }

    /// Whether both sides say Close, so that there is an answer to wait for.
    fn has_close(self) -> bool {
        !matches!(self, Self::Draft(Draft::Hixie75) | Self::Events)
    }
}

/// What is queued, and how far the conversation has come: all that the lock of an outbox guards.
pub(super) struct Queue {
    pub(super) state: State,
    /// The same as the outbox's.
    pub(super) syntax: Syntax,
    /// Framed bytes; the first `written` of them have left.
    pub(super) bytes: Vec<u8>,
    pub(super) written: usize,
    /// How many bytes the driver has taken out, or made of what it took out, that have not left.
    pub(super) in_flight: usize,
    /// The driver waits for events: who queues something that it has to write must wake it.
    pub(super) asleep: bool,
    /// The length of a message that was received and is delivered when so much room is there.
    pub(super) awaited: Option<usize>,
    /// That message is whole, and comes before what others send.
    pub(super) is_held: bool,
    /// The driver was woken because that room is there.
    pub(super) told: bool,
    /// Senders that wait for room.
    pub(super) waiting: u32,
    pub(super) code: Option<CloseCode>,
    /// The Close that was queued is our own, and not the answer to the client's.
    pub(super) own_close: bool,
    pub(super) messages_in: u64,
    pub(super) messages_out: u64,
    pub(super) bytes_out: u64,
    /// What the memory of unsent bytes counts for.
    pub(super) claim: Claim,
}

impl Queue {
    /// An empty one, before the 101.
    pub(super) fn new(memory: &'static Budget) -> Self {
        Self {
            state: State::Opening,
            syntax: Syntax::Frames,
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
            claim: memory.claim(),
        }
    }

    /// Moves the conversation on; the only place where its state changes.
    pub(super) fn transit(&mut self, log: &dyn Log, why: &str, to: State) {
        debug_assert!(to > self.state, "{why}: a conversation never goes back");
        if log.enabled(Level::Trace) {
            let (from, to) = (self.state.name(), to.name());
            log.write(Level::Trace, format_args!("transit [{from}] -- {why} --> [{to}]"));
        }
        self.state = to;
    }

    pub(super) fn unsent(&self) -> usize {
        self.bytes.len() - self.written + self.in_flight
    }

    /// Whether `len` more bytes fit below `bound`. A message larger than that fits an empty queue.
    pub(super) fn fits(&self, len: usize, bound: usize) -> bool {
        let unsent = self.unsent();
        unsent == 0 || unsent + len <= bound
    }

    /// How much room is kept for a message that waits to be delivered.
    #[inline]
    pub(super) fn reserved(&self) -> usize {
        if self.is_held { self.awaited.unwrap_or(0) } else { 0 }
    }

    /// Whether the child has memory for `len` more bytes.
    #[inline]
    pub(super) fn has_memory(&mut self, len: usize) -> bool {
        self.claim.cover(self.bytes.len() + self.in_flight + len).is_ok()
    }

    /// Queues a frame.
    #[inline]
    pub(super) fn push(&mut self, opcode: Opcode, compressed: bool, payload: &[u8]) {
        self.messages_out += u64::from(!opcode.is_control());
        if !matches!(self.syntax, Syntax::Frames) {
            return self.push_otherwise(opcode, payload);
        }
        self.bytes.reserve(payload.len() + HEADER);
        frame::encode(&mut self.bytes, opcode, compressed, payload.len());
        self.bytes.extend_from_slice(payload);
    }

    /// Queues what is no frame of RFC 6455.
    #[cold]
    fn push_otherwise(&mut self, opcode: Opcode, payload: &[u8]) {
        match self.syntax {
            Syntax::Frames => {}
            Syntax::Draft(draft) => draft.encode(&mut self.bytes, opcode, payload),
            Syntax::Events => events::encode(&mut self.bytes, opcode, payload),
        }
    }

    /// Queues our Close; `to` is what it makes of the conversation.
    pub(super) fn push_close(&mut self, log: &dyn Log, payload: &[u8], why: &str, to: State) {
        let code = match payload {
            [high, low, ..] => CloseCode(u16::from_be_bytes([*high, *low])),
            _ => CloseCode::NO_STATUS,
        };
        self.code.get_or_insert(code);
        let to = if self.syntax.has_close() { to } else { State::Closed };
        self.transit(log, why, to);
        self.push(Opcode::Close, false, payload);
    }

    /// Forgets what has left when it is the greater part, and gives back the memory that is not needed any more.
    pub(super) fn compact(&mut self) {
        if drop_front(&mut self.bytes, &mut self.written) {
            self.claim.lower(self.bytes.capacity() + self.in_flight);
        }
    }

    /// Writes queued bytes until none are left (`true`) or the socket is full.
    pub(super) fn flush(&mut self, socket: &dyn WriteSocket) -> io::Result<bool> {
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
    pub(super) fn push_large(
        &mut self,
        opcode: Opcode,
        compressed: bool,
        payload: &[u8],
        socket: &dyn WriteSocket,
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

/// Drops the first `written` bytes of a queue when they are the greater part, so that what has left does not pile up
/// before what has not. `true` if memory was given back.
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
