//! The system calls of the drivers: waiting for a descriptor, a wake-up from another thread, or a deadline; signals; and
//! a few things that the standard library has no word for.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd},
        raw::c_int,
    },
    ptr,
    time::Duration,
};

use crate::{conn::endpoint::Readiness, driver::shutdown::Ending};

/// A descriptor that makes a waiting thread look up.
#[derive(Debug)]
pub struct Waker(File);

impl Waker {
    /// A waker of its own descriptor (an eventfd), closed on exec.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two integers and touches no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: eventfd just returned this descriptor and nobody else knows it.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Wakes the waiting thread, or the next one that waits.
    pub fn wake(&self) {
        // The only failure is a full counter, which wakes just as well.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// The descriptor that becomes readable.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Takes note of a wake-up.
    pub fn clear(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

/// Reads bytes off a socket, to nobody and without waiting; 0 at the end of the stream.
pub fn discard(socket: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is live and as long as said; a descriptor that is none only gives an error.
    let n =
        unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// How many bytes the kernel holds that the other side has not acknowledged, if it can tell.
pub fn unacknowledged(socket: RawFd) -> Option<u64> {
    let mut bytes: c_int = 0;
    // SAFETY: the result is a live integer; a descriptor that is none only gives an error.
    let status = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) };
    if status < 0 { None } else { u64::try_from(bytes).ok() }
}

/// How many bytes the next datagram of a socket has, without taking it.
pub fn peek_len(socket: RawFd) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: no memory is written to; a descriptor that is none only gives an error.
    let n = unsafe { libc::recv(socket, ptr::null_mut(), 0, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Gives a Unix socket an address of its own, which the kernel makes up and which goes with the socket (unix(7),
/// "Autobind"): without one nobody could answer its datagrams.
pub fn bind_anywhere(socket: &impl AsRawFd) -> io::Result<()> {
    let family = libc::AF_UNIX as libc::sa_family_t;
    let (address, len) = ((&raw const family).cast(), size_of_val(&family));
    // SAFETY: the address is the family alone, live and as long as said.
    let status = unsafe { libc::bind(socket.as_raw_fd(), address, len as libc::socklen_t) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ends a socket's stream in both directions; the descriptor stays open.
pub fn shut_down(socket: RawFd) {
    // SAFETY: the call takes integers; a descriptor that is none only gives an error.
    unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
}

/// Has the allocator give freed memory back to the system, where it would keep it for ever.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What to wait for besides a wake-up.
#[derive(Clone, Copy, Debug)]
pub struct Interest {
    /// Bytes to read, or the end of the stream.
    pub read: bool,
    /// Room to write.
    pub write: bool,
}

/// What came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ready {
    /// Reading will not block; it may report the end or an error.
    pub read: bool,
    /// Writing will not block; it may report an error.
    pub write: bool,
    /// The same of the second descriptor.
    pub second: Readiness,
    /// What pending signals ask for.
    pub ending: Ending,
}

/// The signals by which a single-threaded MPM is told to stop, held back while a connection is served.
///
/// prefork ends a child from within its signal handler, wherever the thread is. While a `Signals` lives they are
/// blocked and only seen by [`wait()`], so the connection ends in an orderly way; they are delivered when the value is
/// dropped. Threads that a plugin starts meanwhile inherit the mask, so no such handler ever runs on them.
#[derive(Debug)]
pub struct Signals {
    pending: Pending,
    before: libc::sigset_t,
}

/// Those signals, as a thread that blocks them sees them: pending, and left so.
#[derive(Debug)]
pub struct Pending(
    /// Readable while one of the signals is pending.
    OwnedFd,
);

/// The signals that end a process at once.
const STOPS: [c_int; 3] = [libc::SIGTERM, libc::SIGHUP, libc::SIGINT];
/// Those that let it end what it has begun.
const GRACEFUL: [c_int; 2] = [libc::SIGUSR1, libc::SIGWINCH];

/// A set of signals.
fn set(signals: impl IntoIterator<Item = c_int>) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data for which all-zero is a valid value.
    let mut set: libc::sigset_t = unsafe { core::mem::zeroed() };
    // SAFETY: `set` is a live sigset_t.
    unsafe { libc::sigemptyset(&raw mut set) };
    for signal in signals {
        // SAFETY: `set` is a live sigset_t.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}

impl Signals {
    /// Blocks the signals on this thread, on which the value has to be dropped.
    pub fn block() -> io::Result<Self> {
        let pending = Pending::new()?;
        let stops = set(STOPS.into_iter().chain(GRACEFUL));
        let mut before = stops;
        // SAFETY: both sets are live; the call changes this thread's mask only.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const stops, &raw mut before) };
        Ok(Self { pending, before })
    }

    /// Those that are held back, to wait for.
    pub fn pending(&self) -> &Pending {
        &self.pending
    }
}

impl Pending {
    /// A view of its own.
    pub fn new() -> io::Result<Self> {
        let all = set(STOPS.into_iter().chain(GRACEFUL));
        // SAFETY: -1 asks for a new descriptor; the set is live.
        let fd =
            unsafe { libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd just returned this descriptor and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// What the pending ones ask for. A graceful one, once seen, does not make the descriptor readable any more, so that the
    /// others still do.
    fn look(&self) -> Ending {
        let ending = pending();
        if ending != Ending::Drain {
            return ending;
        }
        let stops = set(STOPS);
        // SAFETY: the set is live; the call changes what our descriptor shows, and a failure leaves that as it was.
        unsafe {
            libc::signalfd(
                self.0.as_raw_fd(),
                &raw const stops,
                libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
            )
        };
        ending
    }
}

/// What the signals ask for that are pending on this thread, which blocks them.
pub fn pending() -> Ending {
    let mut pending = set([]);
    // SAFETY: the call fills in the live set.
    unsafe { libc::sigpending(&raw mut pending) };
    // SAFETY: the set was just filled in.
    let is_pending = |signal| unsafe { libc::sigismember(&raw const pending, signal) } == 1;
    if STOPS.into_iter().any(is_pending) {
        Ending::Stop
    } else if GRACEFUL.into_iter().any(is_pending) {
        Ending::Drain
    } else {
        Ending::None
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that pthread_sigmask filled in.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut())
        };
    }
}

/// Holds all signals back on this thread, and on those it starts, until the value is dropped.
#[derive(Debug)]
pub struct AllSignals(libc::sigset_t);

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

impl Drop for AllSignals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that pthread_sigmask filled in.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Whether the calling thread is in the handler of a signal that ends a process at once: the kernel blocks a
/// signal while it is handled.
pub fn stop_is_being_handled() -> bool {
    // SAFETY: sigset_t is plain data for which all-zero is a valid value.
    let mut mask: libc::sigset_t = unsafe { core::mem::zeroed() };
    // SAFETY: without a new set the call only fills in the live one.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut mask) };
    // SAFETY: the set was just filled in.
    let blocked = |signal| unsafe { libc::sigismember(&raw const mask, signal) } == 1;
    blocked(libc::SIGTERM) || blocked(libc::SIGHUP)
}

/// Waits until `descriptor` is ready, `waker` is called, one of `signals` is pending or `timeout` is over.
pub fn wait(
    descriptor: RawFd,
    interest: Interest,
    waker: Option<&Waker>,
    timeout: Option<Duration>,
    signals: Option<&Pending>,
) -> io::Result<Ready> {
    wait_for_two((descriptor, interest), None, waker, timeout, signals)
}

/// The same, with a second descriptor.
pub fn wait_for_two(
    first: (RawFd, Interest),
    second: Option<(RawFd, Interest)>,
    waker: Option<&Waker>,
    timeout: Option<Duration>,
    signals: Option<&Pending>,
) -> io::Result<Ready> {
    // A negative descriptor is left out. Without interest an error on it would end each wait at once.
    let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
    let interested = |(fd, interest): (RawFd, Interest)| match (interest.read, interest.write) {
        (false, false) => entry(-1, 0),
        (read, write) => {
            let bits = |on: bool, bits| if on { bits } else { 0 };
            entry(fd, bits(read, libc::POLLIN) | bits(write, libc::POLLOUT))
        }
    };
    let mut fds = [
        entry(waker.map_or(-1, |w| w.0.as_raw_fd()), libc::POLLIN),
        interested(first),
        entry(signals.map_or(-1, |s| s.0.as_raw_fd()), libc::POLLIN),
        interested(second.unwrap_or((-1, Interest { read: false, write: false }))),
    ];
    // Not poll, whose milliseconds are long for a transport that has to be asked for room.
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the array is live and holds four entries; the timeout is NULL or live, and there is no mask.
    if unsafe { libc::ppoll(fds.as_mut_ptr(), 4, timeout, ptr::null()) } < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::Interrupted => Ok(Ready::default()),
            _ => Err(error),
        };
    }
    if let (Some(waker), true) = (waker, fds[0].revents != 0) {
        waker.clear();
    }
    let readiness = |polled: &libc::pollfd, interest: Interest| {
        let failed = polled.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0;
        Readiness {
            read: polled.revents & libc::POLLIN != 0 || failed && interest.read,
            write: polled.revents & libc::POLLOUT != 0 || failed && interest.write,
            to_the_end: failed,
        }
    };
    let Readiness { read, write, .. } = readiness(&fds[1], first.1);
    let second = second.map(|(_, interest)| readiness(&fds[3], interest)).unwrap_or_default();
    let ending = signals.filter(|_| fds[2].revents != 0).map_or(Ending::None, Pending::look);
    Ok(Ready { read, write, second, ending })
}
