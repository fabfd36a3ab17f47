//! The senders' side of an outbox: any thread, at any time.

use core::fmt;
use std::time::{Duration, Instant};

use super::{
    DriverHandle, Offered, Outbox, Refused, State,
    queue::{HEADER, KEEP, Queue, Syntax},
};
use crate::{
    conn::{log::Level, waiting::Wait},
    proto::{
        Kind, Violation,
        close::{self, CloseCode, CloseReason},
        frame::{CONTROL_MAX, Opcode},
        utf8,
    },
    sync::{Lock as _, MutexGuard},
};

/// From this size on a payload is written from where it lies, and only copied if the socket is full.
pub(super) const LARGE: usize = 16 * 1024;
/// How long a sender waits for a socket before it looks whether the conversation is over.
const SLICE: Duration = Duration::from_millis(50);

impl Outbox {
    /// Sends a data message, waiting while the queue is full.
    ///
    /// How long that may be, and for how many threads at a time, is [`waiting`](crate::conn::waiting)'s. A client for
    /// whom that is too fast is closed with 1008.
    ///
    /// In drafts 76 and 75 text that is not UTF-8 is [`Refused::Illegal`]: it may contain the byte that ends a frame.
    pub fn send_message(&self, kind: Kind, payload: &[u8]) -> Result<(), Refused> {
        if matches!(self.syntax, Syntax::Draft(_)) && kind == Kind::Text && !is_utf8(payload) {
            return Err(Refused::Illegal);
        }
        let opcode = if kind == Kind::Text { Opcode::Text } else { Opcode::Binary };
        let queue = self.wait_for_room(payload.len())?;
        let deflater = match &self.deflater {
            Some(deflater) if self.is_worth_compressing(payload) => deflater,
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

    /// Sends a data message if there is [room](Self::has_room) for it. Nothing is waited for. `compressed`: the payload is
    /// what a compressor made of the message, without context.
    pub fn offer(&self, kind: Kind, compressed: bool, payload: &[u8], bound: usize) -> Offered {
        let queue = self.lock();
        if queue.state > State::Open {
            return Offered::Needless;
        }
        if !self.fits(&queue, payload.len(), bound) {
            return Offered::Full;
        }
        let opcode = if kind == Kind::Text { Opcode::Text } else { Opcode::Binary };
        let Ok(queue) = self.admit(queue, payload.len()) else { return Offered::Needless };
        self.queue_frame(queue, opcode, compressed, payload);
        Offered::Sent
    }

    /// Sends a Ping or Pong; [`Refused::Full`] rather than waiting. Drafts 76 and 75 have neither: it is dropped. In a stream
    /// of events a Ping is a comment.
    pub fn send_control(&self, opcode: Opcode, payload: &[u8]) -> Result<(), Refused> {
        if payload.len() > CONTROL_MAX {
            return Err(Refused::Illegal);
        }
        if let Syntax::Draft(_) = self.syntax {
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
            Some(socket) if payload.len() >= LARGE && queue.syntax == Syntax::Frames => {
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
}

/// Whether text may be sent where it must not contain the byte that ends a frame.
#[cold]
fn is_utf8(text: &[u8]) -> bool {
    utf8::whole(text).is_some()
}
