//! A connection leaves httpd: its request is answered and logged, httpd closes its own descriptor of the socket, and the service
//! threads have the conversation.
//!
//! The handler leaves what the service needs with the connection and returns as from any request. When httpd has
//! finished that, and is about to close the connection, the module takes it over: [`before_close`].

use core::{ffi::c_void, ptr};
use std::sync::Arc;

use super::{MEMORY, boundary, child, module, sys, tls::Takeover};
use crate::{
    conn::{endpoint::Endpoint, log::Level, outbox::Outbox, session::Session},
    driver::{
        Transport,
        conn_io::ConnIo,
        openssl::Ssl,
        plain::{Early, Plain, Socket},
        service::{Accepted, Ended, Finished},
        shutdown::Watched,
        signals::Signals,
    },
    settings::Timeouts,
};

/// What the module keeps of a connection, in the connection's configuration vector and its pool.
struct Place {
    /// mod_ssl's `SSL`, if the connection has one.
    ssl: *mut Ssl,
    /// From a Box; null unless the connection is about to leave.
    leaving: *mut Leaving,
}

/// A conversation on its way from httpd's thread to the service.
pub(super) struct Leaving {
    pub(super) outbox: Arc<Outbox>,
    pub(super) session: Session,
    pub(super) endpoint: Box<dyn Endpoint>,
    pub(super) timeouts: Timeouts,
    pub(super) ended: Ended,
    /// A descriptor of our own.
    pub(super) socket: Arc<Socket>,
    /// Read by httpd, and not looked at yet.
    pub(super) early: Early,
    /// For TLS.
    pub(super) takeover: Option<Takeover>,
    /// Until then its callbacks are called on this thread.
    pub(super) watched: Option<Watched<'static>>,
    /// prefork handles signals on this thread, by ending the process: they have to wait until the service has the connection.
    pub(super) signals: Option<Signals>,
}

impl Leaving {
    /// It does not arrive.
    fn lose(self, why: &str) {
        self.outbox.log().write(Level::Info, format_args!("WS0302: the connection is lost: {why}"));
        self.outbox.end("the connection is lost");
        self.endpoint.closed();
        (self.ended)(&Finished { summary: self.outbox.summary(), received: 0 });
    }
}

/// The module's place in a connection, made if there is none.
///
/// # Safety
/// - `connection` is live and owned by this thread; the result is used within its life.
unsafe fn place(connection: *mut sys::conn_rec) -> *mut Place {
    // SAFETY: the caller's word. What is stored there is a place, and nothing else. A pool's memory is aligned for any C type,
    // and the cleanup runs when the memory is about to go.
    unsafe {
        let known = sys::ap_get_module_config((*connection).conn_config, module());
        if !known.is_null() {
            return known.cast();
        }
        let place = sys::apr_palloc((*connection).pool, size_of::<Place>()).cast::<Place>();
        place.write(Place { ssl: ptr::null_mut(), leaving: ptr::null_mut() });
        sys::ap_set_module_config((*connection).conn_config, module(), place.cast());
        place
    }
}

/// Takes note of mod_ssl's `SSL`.
///
/// # Safety
/// - `connection` is live and owned by this thread.
pub(super) unsafe fn remember(connection: *mut sys::conn_rec, ssl: *mut Ssl) {
    // SAFETY: the caller's word.
    unsafe { (*place(connection)).ssl = ssl };
}

/// The `SSL` that mod_ssl told of; null if it did not.
///
/// # Safety
/// - `connection` is live and owned by this thread.
pub(super) unsafe fn remembered(connection: *mut sys::conn_rec) -> *mut Ssl {
    // SAFETY: the caller's word.
    unsafe { (*place(connection)).ssl }
}

/// Leaves a conversation with its connection, for the moment when httpd is done with it. The handler has to return at
/// once.
///
/// # Safety
/// - `connection` is live and owned by this thread, and its request has left HTTP.
pub(super) unsafe fn leave(connection: *mut sys::conn_rec, leaving: Leaving) {
    unsafe extern "C" fn gone(place: *mut c_void) -> sys::apr_status_t {
        // SAFETY: the pool clears its memory after its cleanups, and `place` is in it.
        if let Some(leaving) = unsafe { taken(place.cast()) } {
            boundary((), || leaving.lose("httpd ended it without a word"));
        }
        sys::APR_SUCCESS as sys::apr_status_t
    }
    // SAFETY: the caller's word.
    unsafe {
        let place = place(connection);
        (*place).leaving = Box::into_raw(Box::new(leaving));
        let nothing = Some(sys::apr_pool_cleanup_null as _);
        let pool = (*connection).pool;
        sys::apr_pool_cleanup_register(pool, place.cast(), Some(gone), nothing);
    }
}

/// Takes out what [`leave`] has left.
///
/// # Safety
/// - `place` is null or live, and used by this thread only.
unsafe fn taken(place: *mut Place) -> Option<Box<Leaving>> {
    // SAFETY: the caller's word; what is not null was made from a Box, and is taken out here.
    unsafe {
        let leaving = ptr::replace(&raw mut place.as_mut()?.leaving, ptr::null_mut());
        (!leaving.is_null()).then(|| Box::from_raw(leaving))
    }
}

/// httpd is about to close a connection, whose requests are logged and gone: its pre_close_connection hook. One that leaves
/// goes over to the service. As for any connection that was aborted, httpd then only closes its own descriptor.
///
/// # Safety
/// - `connection` is live and owned by this thread.
pub(super) unsafe fn before_close(connection: *mut sys::conn_rec) {
    // SAFETY: the caller's word.
    let leaving = unsafe {
        let place = sys::ap_get_module_config((*connection).conn_config, module());
        taken(place.cast())
    };
    let Some(mut leaving) = leaving else { return };
    let (socket, early) =
        (leaving.socket.clone(), core::mem::replace(&mut leaving.early, Early::new(&MEMORY)));
    let transport: Result<Box<dyn Transport>, &str> = match leaving.takeover.take() {
        None => Ok(Box::new(Plain::new(socket, early))),
        Some(takeover) => {
            let claim = leaving.outbox.memory().claim();
            // SAFETY: the caller's word. The handler has emptied the filters, and left a connection that is not to be kept
            // alive: httpd reads no further request from that (ap_check_pipeline), nor a request's body
            // (ap_discard_request_body).
            unsafe { takeover.take(connection, socket, early, claim) }
                .map(|tls| Box::new(tls) as Box<dyn Transport>)
        }
    };
    // SAFETY: the caller's word.
    unsafe { (*connection).aborted = 1 };
    let service = child::service().ok_or("the service is gone");
    match transport.and_then(|transport| Ok((transport, service?))) {
        Ok((transport, service)) => {
            let Leaving { outbox, session, endpoint, timeouts, ended, watched, signals, .. } =
                *leaving;
            drop(watched);
            let io = ConnIo::new(transport, outbox);
            service.accept(Accepted { io, session, endpoint, timeouts, ended });
            drop(signals);
        }
        Err(why) => {
            leaving.outbox.log().write(
                Level::Error,
                format_args!("WS0307: the connection cannot be detached: {why}"),
            );
            leaving.lose(why);
        }
    }
}
