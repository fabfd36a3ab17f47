//! The kernel's list of ready sockets (epoll), edge-triggered: each socket is registered once.
#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        raw::c_int,
    },
};

/// An epoll instance.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

/// What a socket is ready for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Flags(u32);

impl Flags {
    /// There is something to read.
    pub const READABLE: Self = Self(libc::EPOLLIN as u32);

    /// The flags of a number that [`bits`](Self::bits) gave.
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The flags as a number.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// There is something to read, or the end, or an error.
    pub fn readable(self) -> bool {
        let any = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR;
        self.0 & any as u32 != 0
    }

    /// There is room to write, or an error.
    pub fn writable(self) -> bool {
        self.0 & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// The end of the stream, or an error, is there or behind what can be read.
    pub fn to_the_end(self) -> bool {
        self.0 & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }
}

/// Room for what one wait returns.
pub struct Events([libc::epoll_event; 64]);

impl Default for Events {
    fn default() -> Self {
        Self([libc::epoll_event { events: 0, u64: 0 }; 64])
    }
}

impl Epoll {
    /// A new instance, closed on exec.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes an integer and touches no memory of ours.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: epoll_create1 just returned this descriptor and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches a socket for everything; `token` comes back with its events.
    pub fn add(&self, descriptor: RawFd, token: u64) -> io::Result<()> {
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        self.control(libc::EPOLL_CTL_ADD, descriptor, events as u32, token)
    }

    /// Watches a descriptor that wakes waiting threads, one at each time.
    pub fn add_waker(&self, descriptor: RawFd, token: u64) -> io::Result<()> {
        let events = libc::EPOLLIN | libc::EPOLLEXCLUSIVE;
        self.control(libc::EPOLL_CTL_ADD, descriptor, events as u32, token)
    }

    /// Stops watching a descriptor; one that is not watched stays so.
    pub fn remove(&self, descriptor: RawFd) {
        let _ = self.control(libc::EPOLL_CTL_DEL, descriptor, 0, 0);
    }

    fn control(&self, what: c_int, descriptor: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: the event is live for the call, which copies it.
        let status =
            unsafe { libc::epoll_ctl(self.0.as_raw_fd(), what, descriptor, &raw mut event) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for events, `timeout` milliseconds at most (-1: for ever), and gives each one's token and flags.
    pub fn wait<'e>(
        &self,
        events: &'e mut Events,
        timeout: c_int,
    ) -> io::Result<impl ExactSizeIterator<Item = (u64, Flags)> + use<'e>> {
        let room = events.0.len() as c_int;
        // SAFETY: the array is live and has room for as many events as said.
        let n =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.0.as_mut_ptr(), room, timeout) };
        let n = match n {
            n if n >= 0 => n as usize,
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => 0,
                e => return Err(e),
            },
        };
        Ok(events.0[..n].iter().map(|event| (event.u64, Flags(event.events))))
    }
}
