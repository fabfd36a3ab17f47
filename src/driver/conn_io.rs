//! A connection's bytes on their way out and in, for the thread that is at work on it.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::{Transport, plain::Socket};
use crate::{
    conn::outbox::{Outbox, drop_front},
    os::{Interest, Sources, unacknowledged, wait},
    sync::Lock as _,
};

/// A transport with what its outbox needs to be written.
pub struct ConnIo {
    pub(super) outbox: Arc<Outbox>,
    /// `Some` if the outbox writes by itself.
    pub(super) socket: Option<Arc<Socket>>,
    descriptor: RawFd,
    inner: Mutex<Inner>,
}

/// What a flush came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flush {
    /// What is left.
    pub left: Flushed,
    /// Something has left.
    pub progress: bool,
    /// What held up reading has left: there may be something to read that the descriptor does not show.
    pub readable: bool,
}

/// What a flush has left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flushed {
    /// Nothing is left.
    Done,
    /// The client has to take something first.
    Blocked,
    /// Other threads send on and on; the rest can be written at once.
    More,
}

struct Inner {
    transport: Box<dyn Transport>,
    /// Bytes taken from the outbox, where the driver writes.
    taken: Vec<u8>,
    /// How many of `taken` are written.
    written: usize,
    /// How many bytes the transport has taken in all.
    accepted: u64,
    /// How many had left, and how many were here, when the outbox was told last.
    left: u64,
    here: usize,
}

impl Inner {
    /// Writes what waits now, until the transport would block.
    fn flush(&mut self, outbox: &Outbox) -> io::Result<Flush> {
        let before = self.left;
        let held_up = self.transport.is_held_up();
        let mut takes = 2;
        let left = loop {
            if self.written == self.taken.len() {
                self.taken.clear();
                self.written = 0;
                if takes == 0 {
                    self.tell(outbox, false);
                    break Flushed::More;
                }
                takes -= 1;
                self.tell(outbox, true);
                if self.taken.is_empty() {
                    let done = self.transport.flush();
                    self.tell(outbox, false);
                    let done = done?;
                    break if done { Flushed::Done } else { Flushed::Blocked };
                }
            }
            match self.transport.write(&self.taken[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    self.accepted += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    drop_front(&mut self.taken, &mut self.written);
                    self.tell(outbox, false);
                    break Flushed::Blocked;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.tell(outbox, false);
                    return Err(e);
                }
            }
        };
        let readable = held_up && self.transport.held_output() == 0;
        Ok(Flush { left, progress: self.left != before, readable })
    }

    /// Tells the outbox what has left and what is still here, and takes what waits there, if asked to.
    fn tell(&mut self, outbox: &Outbox, take: bool) {
        let left = self.transport.on_the_wire().map_or(self.accepted, |(_, sent)| sent);
        let here = self.taken.len() - self.written + self.transport.held_output();
        let more = left - self.left;
        self.left = left;
        if take {
            outbox.take(&mut self.taken, more, here);
        } else if more > 0 || here != self.here {
            outbox.wrote(more, here);
        }
        self.here = here + if take { self.taken.len() } else { 0 };
    }
}

impl ConnIo {
    /// For a connection whose handshake is answered.
    pub fn new(transport: Box<dyn Transport>, outbox: Arc<Outbox>) -> Self {
        let (socket, descriptor) = (transport.socket(), transport.descriptor().as_raw_fd());
        let inner = Mutex::new(Inner {
            transport,
            taken: Vec::new(),
            written: 0,
            accepted: 0,
            left: 0,
            here: 0,
        });
        Self { outbox, socket, descriptor, inner }
    }

    /// The descriptor to wait on.
    #[expect(unsafe_code, reason = "the transport is behind a lock, its descriptor is not")]
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: it is the transport's, which lives as long as this, and keeps it open; httpd's may be closed in a
        // stop, and is only waited on.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }

    /// How many of `bytes_out` have reached the client, while something is unsent. The kernel takes more from us only
    /// after the client has taken a good part of what it holds, so what has left us says little of one that reads
    /// slowly. `None` if the kernel holds nothing: then it is our turn to write, and the client is not to blame.
    pub(super) fn arrived(&self, bytes_out: u64) -> Option<u64> {
        match unacknowledged(self.descriptor()) {
            Some(0) => None,
            held => Some(bytes_out.saturating_sub(held.unwrap_or(0))),
        }
    }

    /// The thread at work locks it, around a single call that does not block, and who looks at the counts while none is at
    /// work; so it is always free.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.acquire()
    }

    /// What to wait for before writing goes on: room that the descriptor shows, or that some time has passed.
    pub(super) fn room(&self) -> (bool, Option<Duration>) {
        let retry = self.inner().transport.retry();
        (retry.is_none(), retry)
    }

    /// Reads what is there, and says whether the transport may hold more that its descriptor does not show.
    /// If that was interrupted it has to be tried again.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let mut inner = self.inner();
        let n = inner.transport.read(buffer)?;
        Ok((n, inner.transport.holds_input()))
    }

    /// How many bytes were received, of which `read` were read.
    pub(super) fn received(&self, read: u64) -> u64 {
        self.inner().transport.on_the_wire().map_or(read, |(received, _)| received)
    }

    /// Whether something has to be written before there is more to read.
    pub(super) fn is_held_up(&self) -> bool {
        self.inner().transport.is_held_up()
    }

    /// Ends our direction of the stream.
    pub(super) fn end_output(&self) {
        self.inner().transport.end_output();
    }

    /// Writes what it can.
    pub(super) fn flush(&self) -> io::Result<Flush> {
        match &self.socket {
            Some(socket) => {
                let (done, progress) = self.outbox.flush(&**socket)?;
                let left = if done { Flushed::Done } else { Flushed::Blocked };
                Ok(Flush { left, progress, readable: false })
            }
            None => self.inner().flush(&self.outbox),
        }
    }

    /// Writes while a sender waits, until `deadline` at most; returns after some progress. A connection that cannot be
    /// written to any more is ended, since its driver may be the one that waits.
    pub(super) fn pump(&self, deadline: Instant) {
        loop {
            match self.flush() {
                Ok(Flush { left: Flushed::Blocked, progress: false, .. }) => {}
                Ok(_) => return,
                Err(_) => return self.outbox.end("writing failed"),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let (write, retry) = self.room();
            let interest = Interest { read: false, write };
            let pause = Some(retry.map_or(left, |retry| retry.min(left)));
            let first = Some((self.descriptor(), interest));
            let sources = Sources { first, ..Sources::default() };
            if left.is_zero() || wait(&sources, pause).is_err() {
                return;
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::{fd::AsFd as _, unix::net::UnixStream};

    use super::*;
    use crate::{
        conn::outbox::State,
        fakes::{Driver, Wire, from_us, outbox},
        proto::{Kind, frame::Opcode},
    };

    const DONE: Flush = Flush { left: Flushed::Done, progress: true, readable: false };
    const BLOCKED: Flush = Flush { left: Flushed::Blocked, progress: false, readable: false };

    /// An open connection that only its driver writes on, with a message of 12 bytes in the queue.
    fn io(wire: &Wire) -> (ConnIo, Arc<Outbox>, Arc<Driver>) {
        let (io, outbox, _) = wire.io(100);
        let driver = Driver::new(None, || panic!("nobody has to wait"));
        driver.rest(&outbox);
        outbox.send_message(Kind::Binary, &[7; 10]).unwrap();
        (io, outbox, driver)
    }

    /// Whether so many bytes, and no more, are not sent.
    fn is_unsent(outbox: &Outbox, bytes: usize) -> bool {
        outbox.has_room(100 - bytes, 100) && (bytes == 0 || !outbox.has_room(101 - bytes, 100))
    }

    #[test]
    fn what_is_not_written_yet_counts_as_unsent() {
        let wire = Wire::new();
        let (io, outbox, _driver) = io(&wire);
        for (room, left) in [(0, 12), (5, 7), (1, 6)] {
            wire.takes(room);
            assert_eq!(io.flush().unwrap(), Flush { progress: room > 0, ..BLOCKED });
            assert!(is_unsent(&outbox, left));
            assert_eq!(outbox.summary().bytes_out, 12 - left as u64);
        }
        // What comes meanwhile waits behind it.
        outbox.send_message(Kind::Binary, &[8; 2]).unwrap();
        assert!(is_unsent(&outbox, 10));
        wire.takes(usize::MAX);
        assert_eq!(io.flush().unwrap(), DONE);
        assert_eq!(io.flush().unwrap(), Flush { progress: false, ..DONE });
        assert!(is_unsent(&outbox, 0));
        let expected = [from_us(Opcode::Binary, &[7; 10]), from_us(Opcode::Binary, &[8; 2])];
        assert_eq!(wire.sent(), expected.concat());
        assert_eq!(outbox.summary().bytes_out, 16);
    }

    #[test]
    fn what_the_transport_holds_counts_as_unsent() {
        let wire = Wire::new();
        let (io, outbox, _driver) = io(&wire);
        wire.holds();
        wire.takes(0);
        assert_eq!(io.flush().unwrap().left, Flushed::Blocked);
        assert!(is_unsent(&outbox, 12));
        wire.takes(usize::MAX);
        assert_eq!(io.flush().unwrap().left, Flushed::Done);
        assert!(is_unsent(&outbox, 0));
        assert_eq!(wire.sent().len(), 12);
    }

    /// A transport during whose writes others send.
    struct Busy(Arc<Outbox>, UnixStream);

    impl Transport for Busy {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send_message(Kind::Binary, b"more").unwrap();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<bool> {
            Ok(true)
        }
        fn holds_input(&self) -> bool {
            false
        }
        fn socket(&self) -> Option<Arc<Socket>> {
            None
        }
        fn descriptor(&self) -> BorrowedFd<'_> {
            self.1.as_fd()
        }
    }

    #[test]
    fn senders_without_end_do_not_hold_a_flush() {
        let (outbox, _) = outbox(100);
        outbox.send_message(Kind::Binary, b"1").unwrap();
        let io = ConnIo::new(Box::new(Busy(outbox.clone(), UnixStream::pair().unwrap().0)), outbox);
        assert_eq!(io.flush().unwrap().left, Flushed::More);
        assert_eq!(io.flush().unwrap().left, Flushed::More);
    }

    #[test]
    fn who_pumps_comes_back_after_progress_or_at_the_deadline() {
        let wire = Wire::new();
        let (io, outbox, _driver) = io(&wire);
        wire.takes(5);
        io.pump(Instant::now() + Duration::from_secs(3600));
        assert_eq!(wire.sent().len(), 5);
        io.pump(Instant::now());
        assert!(is_unsent(&outbox, 7));
        wire.breaks();
        io.pump(Instant::now() + Duration::from_secs(3600));
        assert_eq!(outbox.state(), State::Closed);
    }
}
