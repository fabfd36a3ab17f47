//! The driver's side of an outbox: the thread that is at work on the connection, one at a time.

use std::{io, sync::Weak};

use super::{
    DriverHandle, Outbox, Reception, State, WriteSocket,
    queue::{KEEP, Queue, REST},
    thread_mark,
};
use crate::{
    proto::close::{self, CloseReason},
    sync::{Lock as _, Ordering},
};

impl Outbox {
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
    pub fn flush(&self, socket: &dyn WriteSocket) -> io::Result<(bool, bool)> {
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

    /// Whether reading has to pause: what was told to wait has to wait on.
    pub fn has_to_wait(&self) -> bool {
        let mut queue = self.lock();
        let waits = self.awaits_room(&queue);
        // The room of which it was told is gone again.
        queue.told &= !waits;
        waits
    }

    /// The driver is about to wait; `false` if something was queued since it looked last that it would not
    /// notice, because it does not wait for room to write. After `true`, the next such thing wakes it.
    pub fn fall_asleep(&self, waits_to_write: bool) -> bool {
        let mut queue = self.lock();
        queue.asleep = waits_to_write || queue.written == queue.bytes.len();
        queue.asleep
    }
}
