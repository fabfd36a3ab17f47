//! Connections that stay httpd's but hold no thread: TLS on the event MPM, and plugins that keep the request.
//!
//! The handler returns `SUSPENDED`; then event neither finishes the request nor touches the connection, until somebody
//! does both. It tells so with the suspend_connection hook, and from that moment on the connection is served by the service
//! threads, one at a time, through httpd's filters. After the hook event's worker still makes two stores to the connection, so
//! one that ends at once is not destroyed at once.

use core::ptr;
use std::time::{Duration, Instant};

use super::{
    Reserve, capacity, ending, filters, handler::note_summary, http2, module, sys, wrap::Request,
};
use crate::driver::service::{Farewell, Guest, Host};

/// How long event's worker may take from its first store to its last, which is the next but one instruction.
const SETTLED: Duration = Duration::from_millis(20);

/// Whether the MPM can do this with a connection: it knows states, which only asynchronous MPMs have.
///
/// # Safety
/// - `connection` is live.
pub(super) unsafe fn is_possible(connection: *mut sys::conn_rec) -> bool {
    // SAFETY: the caller's word. A stream of HTTP/2 is mod_http2's and not the MPM's.
    capacity::is_async() && unsafe { !http2::is_stream(connection) && !(*connection).cs.is_null() }
}

/// Leaves a connection's guest for the hook to find; the handler has to return `SUSPENDED`.
///
/// # Safety
/// - `connection` is live, owned by this thread, and `guest` serves it.
pub(super) unsafe fn park(connection: *mut sys::conn_rec, guest: Guest) {
    let parked = Box::into_raw(Box::new(guest));
    // SAFETY: the caller's word; `hook` takes it out.
    unsafe { sys::ap_set_module_config((*connection).conn_config, module(), parked.cast()) };
}

/// httpd's suspend_connection hook. event calls it for every connection that leaves a worker, in keep-alive or closing
/// as well; here it matters for those that were parked.
///
/// # Safety
/// - `connection` is live, and what its configuration vector holds for this module was put there by [`park`] or
///   [`mark_detached`](super::mark_detached).
pub(super) unsafe fn hook(connection: *mut sys::conn_rec) {
    // SAFETY: the caller's word.
    let parked = unsafe { sys::ap_get_module_config((*connection).conn_config, module()) };
    if parked.is_null() || super::is_detached_mark(parked) {
        return;
    }
    // SAFETY: what is no mark was made by `park` from a Box, and is taken out here.
    let guest = unsafe {
        sys::ap_set_module_config((*connection).conn_config, module(), ptr::null_mut());
        (*connection).current_thread = ptr::null_mut();
        Box::from_raw(parked.cast::<Guest>())
    };
    // The handler parks nothing without a service.
    if let Some(service) = ending::service() {
        service.adopt(*guest);
    }
}

/// The httpd side of a suspended connection.
pub(super) struct Suspended {
    request: *mut sys::request_rec,
    connection: *mut sys::conn_rec,
    /// When event's worker was last known to be at work on the connection.
    since: Instant,
    /// Its bytes do not pass httpd's filters.
    uncounted: bool,
    /// httpd has closed the descriptor already.
    closed: bool,
    reserve: Option<Reserve>,
}

// SAFETY: from the suspend hook on, event leaves the connection and its request to whoever serves it; the service does so
// on one thread at a time.
unsafe impl Send for Suspended {}

impl Suspended {
    /// `uncounted` says that its bytes do not pass httpd's filters, so that mod_logio has to be told of them.
    pub(super) fn new(r: Request<'_>, reserve: Option<Reserve>, uncounted: bool) -> Self {
        let (request, connection) = (r.as_ptr(), r.connection());
        Self { request, connection, since: Instant::now(), uncounted, closed: false, reserve }
    }
}

impl Host for Suspended {
    fn farewell(&mut self, farewell: &Farewell, lost: bool) -> bool {
        self.reserve = None;
        // SAFETY: the request is live until the first call below, which logs it and frees its pool; the connection until
        // `release`. Nothing blocks: the socket's timeout is 0, and an aborted connection's filters write nothing.
        unsafe {
            note_summary(
                Request::from_ptr(ptr::NonNull::new_unchecked(self.request)),
                &farewell.summary,
            );
            filters::allow_flushes(self.connection);
            if lost {
                (*self.connection).aborted = 1;
            }
            if self.uncounted {
                let sent = farewell.summary.bytes_out;
                super::count_bytes(self.connection, farewell.received, sent);
            }
            sys::ap_process_request_after_handler(self.request);
            // event counts connections by their state, in a cleanup of the connection's pool.
            (*(*self.connection).cs).state = sys::conn_state_e_CONN_STATE_SUSPENDED;
            self.closed = sys::ap_start_lingering_close(self.connection) != 0;
        }
        !self.closed
    }

    fn settles(&mut self) -> Duration {
        // SAFETY: the connection is live until it is released; the worker stores to this member, which is a pointer.
        if !unsafe { (&raw const (*self.connection).sbh).read_volatile() }.is_null() {
            // The hook has not returned yet: other modules or a busy machine take their time.
            self.since = Instant::now();
        }
        SETTLED.saturating_sub(self.since.elapsed())
    }

    fn release(self: Box<Self>) {
        // SAFETY: nobody else knows the connection any more; its pool is the last thing to go, and takes the MPM's
        // count of it along.
        unsafe {
            if !self.closed {
                sys::apr_socket_close(sys::ap_get_conn_socket(self.connection));
            }
            sys::apr_pool_destroy((*self.connection).pool);
        }
    }
}
