//! The signals by which httpd tells a process to end, held back while a connection is served on its only thread.
#![expect(unsafe_code, reason = "signal masks have no safe wrapper")]

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        raw::c_int,
    },
    ptr,
};

use super::shutdown::Ending;

/// The signals by which a single-threaded MPM is told to stop, held back while a connection is served.
///
/// prefork ends a child from within its signal handler, wherever the thread is. While a `Signals` lives they are
/// blocked and only seen by who asks for them, so the connection ends in an orderly way; they are delivered when the
/// value is dropped. Threads that a plugin starts meanwhile inherit the mask, so no such handler ever runs on them.
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

    /// What the pending ones ask for. A graceful one, once seen, does not make the descriptor readable any more, so
    /// that the others still do.
    pub fn look(&self) -> Ending {
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

impl AsFd for Pending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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
