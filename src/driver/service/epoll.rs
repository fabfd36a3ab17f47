//! The kernel's list of ready sockets (epoll), edge-triggered: each socket is registered once.

use core::mem::MaybeUninit;
use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};

use super::slots::Token;

/// An epoll instance.
#[derive(Debug)]
pub(super) struct Epoll(OwnedFd);

/// What a socket is ready for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Flags(epoll::EventFlags);

impl Flags {
    /// There is something to read.
    pub(super) const READABLE: Self = Self(epoll::EventFlags::IN);

    /// The flags of a number that [`bits`](Self::bits) gave.
    pub(super) fn from_bits(bits: u32) -> Self {
        Self(epoll::EventFlags::from_bits_retain(bits))
    }

    /// The flags as a number.
    pub(super) fn bits(self) -> u32 {
        self.0.bits()
    }

    /// There is something to read, or the end, or an error.
    pub(super) fn readable(self) -> bool {
        use epoll::EventFlags as F;
        self.0.intersects(F::IN | F::RDHUP | F::HUP | F::ERR)
    }

    /// There is room to write, or an error.
    pub(super) fn writable(self) -> bool {
        use epoll::EventFlags as F;
        self.0.intersects(F::OUT | F::HUP | F::ERR)
    }

    /// The end of the stream, or an error, is there or behind what can be read.
    pub(super) fn to_the_end(self) -> bool {
        use epoll::EventFlags as F;
        self.0.intersects(F::RDHUP | F::HUP | F::ERR)
    }
}

/// Room for what one wait returns.
pub(super) struct Events([MaybeUninit<epoll::Event>; 64]);

impl Default for Events {
    fn default() -> Self {
        Self([const { MaybeUninit::uninit() }; 64])
    }
}

impl Epoll {
    /// A new instance, closed on exec.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches a socket for everything; `token` comes back with its events.
    pub(super) fn add(&self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        use epoll::EventFlags as F;
        self.watch(socket, token, F::IN | F::OUT | F::RDHUP | F::ET)
    }

    /// Watches a descriptor that wakes waiting threads, one at each time.
    pub(super) fn add_waker(&self, waker: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        self.watch(waker, token, epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE)
    }

    /// Stops watching a descriptor; one that is not watched stays so.
    pub(super) fn remove(&self, socket: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.0, socket);
    }

    fn watch(
        &self,
        descriptor: BorrowedFd<'_>,
        token: Token,
        flags: epoll::EventFlags,
    ) -> io::Result<()> {
        Ok(epoll::add(&self.0, descriptor, epoll::EventData::new_u64(token.bits()), flags)?)
    }

    /// Waits for events, `timeout` at most, and gives each one's token and flags.
    pub(super) fn wait<'e>(
        &self,
        events: &'e mut Events,
        timeout: Option<Duration>,
    ) -> io::Result<impl ExactSizeIterator<Item = (Token, Flags)> + use<'e>> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let came: &[epoll::Event] = match epoll::wait(&self.0, &mut events.0, timeout.as_ref()) {
            Ok((came, _)) => came,
            Err(Errno::INTR) => &[],
            Err(error) => return Err(error.into()),
        };
        Ok(came.iter().map(|event| (Token::from_bits(event.data.u64()), Flags(event.flags))))
    }
}
