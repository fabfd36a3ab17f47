//! The system calls that the standard library has no word for: waiting for descriptors, a wake-up from another thread, or a
//! deadline; and a few things about sockets and memory.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        raw::{c_int, c_void},
    },
    ptr, thread,
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    net::{RecvFlags, Shutdown, SocketAddrUnix, bind, recv, shutdown},
};

/// A descriptor that makes a waiting thread look up.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// A waker of its own descriptor (an eventfd), closed on exec.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes the waiting thread, or the next one that waits. A signal handler may call it.
    pub fn wake(&self) {
        // The only failure is a full counter, which wakes just as well.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes note of a wake-up.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Waker {
    /// The descriptor that becomes readable.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads bytes off a socket, to nobody and without waiting; 0 at the end of the stream.
pub fn discard(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (read, _) = recv(socket, buffer, RecvFlags::DONTWAIT)?;
    Ok(read)
}

/// How many bytes the kernel holds that the other side has not acknowledged, if it can tell.
#[expect(unsafe_code, reason = "TIOCOUTQ has no safe wrapper")]
pub fn unacknowledged(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut bytes: c_int = 0;
    // SAFETY: TIOCOUTQ writes one int, to a live one (tty_ioctl(4)).
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if status < 0 { None } else { u64::try_from(bytes).ok() }
}

/// How many bytes the next datagram of a socket has, without taking it.
pub fn peek_len(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let (_, len) = recv(socket, &mut [0u8; 0][..], flags)?;
    Ok(len)
}

/// Gives a Unix socket an address of its own, which the kernel makes up and which goes with the socket (unix(7),
/// "Autobind"): without one nobody could answer its datagrams.
pub fn bind_anywhere(socket: impl AsFd) -> io::Result<()> {
    Ok(bind(socket, &SocketAddrUnix::new_unnamed())?)
}

/// Whether the other side has ended its stream, or the connection is lost.
pub fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut sources = [PollFd::new(&socket, PollFlags::RDHUP)];
    // HUP and ERR are told without being asked for.
    poll(&mut sources, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// Ends a socket's stream in both directions; the descriptor stays open.
pub fn shut_down(socket: BorrowedFd<'_>) {
    // What is ended, or lost, already stays so.
    let _ = shutdown(socket, Shutdown::Both);
}

/// Has the allocator give freed memory back to the system, where it would keep it for ever.
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "malloc_trim has no safe wrapper"))]
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number, and is safe with other threads at work (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Maps memory, all zero, that this process shares with those it forks. It stays until the process ends.
#[expect(unsafe_code, reason = "mapping memory has no safe wrapper")]
pub fn map_shared(size: usize) -> io::Result<*mut c_void> {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let address = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address) }
}

/// Holds all signals back on this thread, and on those it starts, until the value is dropped.
#[derive(Debug)]
pub struct AllSignals(libc::sigset_t);

#[expect(unsafe_code, reason = "signal masks have no safe wrapper")]
impl AllSignals {
    /// Blocks all signals but those of a fault, which must end the process at once.
    pub fn block() -> Self {
        // SAFETY: sigset_t is plain data for which all-zero is a valid value.
        let mut all: libc::sigset_t = unsafe { core::mem::zeroed() };
        let mut before = all;
        // SAFETY: `all` is a live sigset_t.
        unsafe { libc::sigfillset(&raw mut all) };
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT] {
            // SAFETY: `all` is a live sigset_t.
            unsafe { libc::sigdelset(&raw mut all, fault) };
        }
        // SAFETY: both sets are live; the call changes this thread's mask only.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
        Self(before)
    }
}

#[expect(unsafe_code, reason = "signal masks have no safe wrapper")]
impl Drop for AllSignals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that pthread_sigmask filled in.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// What to wait for on a descriptor.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Interest {
    /// Bytes to read, or the end of the stream.
    pub read: bool,
    /// Room to write.
    pub write: bool,
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Readiness {
    /// There is something to read, or the end, or an error.
    pub read: bool,
    /// There is room to write, or an error.
    pub write: bool,
    /// The end of the stream, or an error, is there or behind what can be read.
    pub to_the_end: bool,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'fd> {
    /// A descriptor. Without interest an error on it does not end the wait.
    pub first: Option<(BorrowedFd<'fd>, Interest)>,
    /// Another one.
    pub second: Option<(BorrowedFd<'fd>, Interest)>,
    /// A wake-up, which the wait takes note of.
    pub waker: Option<&'fd Waker>,
    /// A descriptor that becomes readable with signals.
    pub signals: Option<BorrowedFd<'fd>>,
}

/// What came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready {
    /// What the first descriptor is ready for.
    pub first: Readiness,
    /// What the second one is ready for.
    pub second: Readiness,
    /// A signal is pending.
    pub signals: bool,
}

/// What to ask of a descriptor; `None` if that is nothing.
fn wanted((fd, interest): (BorrowedFd<'_>, Interest)) -> Option<(BorrowedFd<'_>, PollFlags)> {
    let bits = |on, bits| if on { bits } else { PollFlags::empty() };
    let flags = bits(interest.read, PollFlags::IN) | bits(interest.write, PollFlags::OUT);
    (!flags.is_empty()).then_some((fd, flags))
}

/// Waits until one of them comes or `timeout` is over, which may be much less than a millisecond (rustix's `poll` is
/// ppoll).
pub fn wait(sources: &Sources<'_>, timeout: Option<Duration>) -> io::Result<Ready> {
    let wanted = [
        sources.first.and_then(wanted),
        sources.second.and_then(wanted),
        sources.waker.map(|waker| (waker.as_fd(), PollFlags::IN)),
        sources.signals.map(|signals| (signals, PollFlags::IN)),
    ];
    // poll(2) of nothing, but for signals.
    let Some(&any) = wanted.iter().flatten().next() else {
        thread::sleep(timeout.unwrap_or(Duration::MAX));
        return Ok(Ready::default());
    };
    let mut polled = [any; 4].map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags));
    let mut count = 0;
    for (fd, flags) in wanted.into_iter().flatten() {
        polled[count] = PollFd::from_borrowed_fd(fd, flags);
        count += 1;
    }
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(&mut polled[..count], timeout.as_ref()) {
        Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
        result => result?,
    };
    let mut polled = polled.iter();
    let [first, second, woken, signals] = wanted.map(|wanted| {
        let Some((_, flags)) = wanted else { return Readiness::default() };
        let came = polled.next().map_or(PollFlags::empty(), PollFd::revents);
        let failed = came.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        let is_ready = |flag| came.contains(flag) || failed && flags.contains(flag);
        let (read, write) = (is_ready(PollFlags::IN), is_ready(PollFlags::OUT));
        Readiness { read, write, to_the_end: failed }
    });
    if let (Some(waker), true) = (sources.waker, woken.read) {
        waker.clear();
    }
    Ok(Ready { first, second, signals: signals.read })
}
