//! The beginning and the end of a child process: its service, and the one rule for each kind of end.
//!
//! Everything graceful drains: Close 1001, spread over `WebSocketDrainTime`, then the child goes. Everything else
//! stops: Close 1001 at once, and the child is out within two seconds. The hook that says so may run on the thread that
//! accepts connections, or within prefork's signal handler, so it only sets things in motion; the wait comes when httpd
//! clears the child's pool. It would not come while a plugin's callback is running on a thread of httpd's: the
//! service's clock ends the process then.

use core::{
    ffi::{c_int, c_void},
    ptr,
    sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering},
};
use std::{collections::BTreeSet, io, os::fd::AsRawFd, sync::Arc};

use super::{
    MEMORY, SHUTDOWN, advice, boundary, channel, directives::Server, is_threaded, log,
    request::Request, shared, sys, tls, tree,
};
use crate::{
    conn::log::Level,
    driver::{
        service::{Elsewhere, Service, Setup},
        shutdown::Ending,
        signals::stop_is_being_handled,
    },
    settings,
};

/// Whether the child has no time left for a WebSocket that comes now. While others are drained it has: httpd still serves
/// the connections that it accepted before. prefork shows its end by its state before it says so, and serves nothing then.
pub(super) fn is_near() -> bool {
    match SHUTDOWN.ending() {
        Ending::Stop => true,
        Ending::Drain => service().is_none_or(Service::is_drained),
        Ending::None => {
            !is_threaded() && sys::mpm(sys::AP_MPMQ_MPM_STATE) == u64::from(sys::AP_MPMQ_STOPPING)
        }
    }
}

/// How many descriptors WebSockets leave to httpd, which cannot accept a connection without one, and gives the child up
/// then: half of `open_files`, if it needs as many.
pub(super) fn reserve(open_files: u64) -> u64 {
    needed().min(open_files / 2)
}

/// How many descriptors httpd may need in this child: one for each connection that it has accepted, one more for each
/// thread at work, which serves a file or asks another server, and some for log files, what plugins open, and the like.
pub(super) fn needed() -> u64 {
    let threads = sys::mpm(sys::AP_MPMQ_MAX_THREADS).max(1);
    // event accepts more connections than it has threads.
    let waiting =
        if sys::mpm(sys::AP_MPMQ_IS_ASYNC) > 0 { waiting_connections(threads) } else { 0 };
    2 * threads + waiting + OTHERS
}

/// How many connections may wait for a thread of event's, or for their next request: by `AsyncRequestWorkerFactor`.
fn waiting_connections(threads: u64) -> u64 {
    let mut factor = 2.0_f64;
    tree::each(&mut |directive| {
        if directive.is("AsyncRequestWorkerFactor") {
            factor = directive.args().trim().trim_matches('"').parse().unwrap_or(factor);
        }
    });
    (threads as f64 * factor.clamp(0.0, 1000.0)).ceil() as u64
}

/// Descriptors that are no connections of httpd's: log files, pipes, epoll sets, what plugins open.
const OTHERS: u64 = 128;

/// [`reserve`] of this child, since [`begin`].
static RESERVE: AtomicU64 = AtomicU64::new(0);

/// The child's service; null if it could not be started. It lives as long as the process. Like the other pointers here
/// it is stored by one thread (Release) when what it leads to is complete, and only read by others (Acquire).
static SERVICE: AtomicPtr<Service> = AtomicPtr::new(ptr::null_mut());

/// The requests of httpd's that are not finished in this child, ours among them: a mere count.
static REQUESTS: AtomicUsize = AtomicUsize::new(0);

/// The child's service.
pub(super) fn service() -> Option<&'static Service> {
    // SAFETY: `begin` stores a service that is never dropped.
    unsafe { SERVICE.load(Ordering::Acquire).as_ref() }
}

/// A child begins: raises its limit of open files and starts its service.
///
/// # Safety
/// - `pool` is the child's pool and `server` the main server.
pub(super) unsafe fn begin(
    pool: *mut sys::apr_pool_t,
    server: *const sys::server_rec,
    settings: &Server,
) {
    let drain = settings.drain_time.unwrap_or(settings::DRAIN_TIME);
    // A library may stay mapped over a restart, and a single process (httpd -X) lives on: begin anew.
    SHUTDOWN.reset(drain);
    tls::begin();
    let open_files = raise_open_files();
    RESERVE.store(reserve(open_files), Ordering::Relaxed);
    // SAFETY: `server` is the main server, as this function demands.
    unsafe { advice::tell(server, open_files) };
    let line = shared::line();
    let threads = settings.threads.unwrap_or(settings::THREADS).into();
    // SAFETY: as above: it lives until the child ends (request::R3).
    let log = Box::new(unsafe { log::ServerLog::new(server) });
    let main = Main(server);
    let overdue = Box::new(move |ending| boundary((), || main.overdue(ending)));
    let elsewhere = Elsewhere { signals: !is_threaded(), overdue };
    match Service::start(Setup { threads, drain, memory: &MEMORY, line, log, elsewhere }) {
        Ok(service) => {
            SERVICE.store(ptr::from_ref(service).cast_mut(), Ordering::Release);
        }
        Err(error) => {
            SERVICE.store(ptr::null_mut(), Ordering::Release);
            let line = "WS0402: no service threads, so each WebSocket takes a thread of httpd's:";
            // SAFETY: `server` is the main server, as this function demands.
            unsafe { log::server(server, Level::Error, format_args!("{line} {error}")) };
        }
    }
    // SAFETY: `pool` is the child's, as this function demands; the cleanup's data is the server, which outlives the pool.
    unsafe { sys::apr_pool_pre_cleanup_register(pool, server.cast(), Some(cleanup_child)) };
}

/// Raises the soft limit of open files to the hard one, since each connection takes a descriptor, and returns it.
fn raise_open_files() -> u64 {
    let limit = open_files();
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: the structure is live. A refusal leaves things as they are.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
    open_files().rlim_cur
}

/// The limits of open files.
pub(super) fn open_files() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is live, and the call cannot fail then.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit
}

/// Refuses a descriptor that httpd needs for itself: it accepts no connection without one, and event and prefork give
/// the child up then.
pub(super) fn spare<D: AsRawFd>(descriptor: D) -> io::Result<D> {
    let limit = open_files();
    // The kernel gives the lowest free number, so this one tells how many there are.
    if descriptor.as_raw_fd() as u64 + RESERVE.load(Ordering::Relaxed) >= limit.rlim_cur {
        return Err(io::Error::other(format!(
            "all but the last of the child's {} open files are in use (ulimit -n)",
            limit.rlim_cur
        )));
    }
    Ok(descriptor)
}

/// httpd's child_stopping hook. prefork always passes 0, from within its signal handler when it is a stop.
pub(super) fn stopping(graceful: bool) {
    let stop = if is_threaded() {
        !graceful
    } else {
        // SAFETY: the names live for the calls.
        let one_process = unsafe {
            sys::ap_exists_config_define(c"DEBUG".as_ptr()) != 0
                || sys::ap_exists_config_define(c"ONE_PROCESS".as_ptr()) != 0
        };
        one_process || stop_is_being_handled()
    };
    let ending = if stop { Ending::Stop } else { Ending::Drain };
    SHUTDOWN.end(ending);
    if let Some(service) = service() {
        service.end(ending);
    }
    if !stop {
        heed_stop();
    }
}

/// Has SIGTERM cut a drain short.
fn heed_stop() {
    // SAFETY: sigaction is plain data for which all-zero is a valid value.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = on_terminate as *const () as usize;
    // Not SA_RESTART: event and worker wake their main thread with this signal, and count on its read being interrupted.
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the structure is live, and the handler calls nothing that a signal handler must not.
    unsafe { libc::sigaction(libc::SIGTERM, &raw const action, ptr::null_mut()) };
}

extern "C" fn on_terminate(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a live structure to a handler with SA_SIGINFO.
    let sender = unsafe { (*info).si_pid() };
    // SAFETY: getpid has no preconditions. event and worker wake threads of their own with SIGTERM.
    if sender != unsafe { libc::getpid() } {
        SHUTDOWN.hasten();
        if let Some(service) = service() {
            service.end(Ending::Stop);
        }
    }
}

/// A request's headers have been read. It counts until its response is written, or given up: httpd frees it then.
pub(super) fn request_begins(r: Request<'_>) {
    unsafe extern "C" fn ends(_: *mut c_void) -> sys::apr_status_t {
        REQUESTS.fetch_sub(1, Ordering::Relaxed);
        sys::APR_SUCCESS as sys::apr_status_t
    }
    // What an internal redirect, or a subrequest, does is part of a request that counts already.
    if !r.is_initial() {
        return;
    }
    REQUESTS.fetch_add(1, Ordering::Relaxed);
    let in_child = Some(sys::apr_pool_cleanup_null as _);
    // SAFETY: the request's pool is live (request::R1); the cleanup takes no data.
    unsafe {
        sys::apr_pool_cleanup_register((*r.as_ptr()).pool, ptr::null(), Some(ends), in_child);
    }
}

/// The main server, for any thread.
struct Main(*const sys::server_rec);

// SAFETY: a server_rec lives as long as the child process, and httpd's log functions may be called from any thread.
unsafe impl Send for Main {}
// SAFETY: as above.
unsafe impl Sync for Main {}

impl Main {
    /// The child's end takes longer than it may. A callback on a thread of httpd's would hold it up for as long as it
    /// likes: httpd waits for its threads. A graceful end waits for its requests, too; what of those is ours does not
    /// count.
    fn overdue(&self, ending: Ending) {
        let running = SHUTDOWN.running();
        let others = REQUESTS.load(Ordering::Relaxed).saturating_sub(running.len());
        if !running.is_empty() && (ending == Ending::Stop || others == 0) {
            self.leave_behind(running);
        }
    }

    /// Ends the process under callbacks that are running.
    fn leave_behind(&self, mut libraries: Vec<Arc<str>>) -> ! {
        if let Some(service) = service() {
            libraries.extend(service.running());
        }
        let libraries: BTreeSet<_> = libraries.iter().map(AsRef::as_ref).collect();
        let libraries: Vec<&str> = libraries.into_iter().collect();
        let libraries = match &libraries[..] {
            [] => "a library".to_owned(),
            libraries => libraries.join(" and "),
        };
        let line = "does not return; the child exits without it";
        // SAFETY: `begin` was given the main server, which lives as long as the process.
        unsafe {
            log::server(
                self.0,
                Level::Warn,
                format_args!("WS0403: a callback of {libraries} {line}"),
            );
        }
        // SAFETY: _exit has no preconditions. Going on would take pools away from under a running thread.
        unsafe { libc::_exit(0) };
    }
}

/// httpd clears the child's pool: waits until all connections are gone and the threads have left.
unsafe extern "C" fn cleanup_child(server: *mut c_void) -> sys::apr_status_t {
    let left = boundary(true, || {
        let left = service().is_none_or(|service| {
            // An exit without the hook is no graceful one.
            service.end_if_running();
            service.await_end()
        });
        channel::end();
        left
    });
    if !left {
        Main(server.cast()).leave_behind(Vec::new());
    }
    SERVICE.store(ptr::null_mut(), Ordering::Release);
    sys::APR_SUCCESS as sys::apr_status_t
}
