//! A connection leaves httpd: its request is answered and logged, httpd closes its own descriptor of the socket, and
//! the service threads have the conversation.
//!
//! The handler leaves what the service needs with the connection and returns as from any request. When httpd has
//! finished that, and is about to close the connection, the module takes it over: [`before_close`].

use core::{ffi::c_void, ptr};
use std::sync::Arc;

use super::{MEMORY, boundary, child, connection::Connection, module, sys, tls::Takeover};
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
struct PerConnection {
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
    /// prefork handles signals on this thread, by ending the process: they have to wait until the service has the
    /// connection.
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

/// The module's place in a connection, made if there is none. It lives as long as the connection.
fn place(connection: Connection<'_>) -> *mut PerConnection {
    // SAFETY: httpd has loaded this module.
    let known = unsafe { connection.config(module()) };
    if !known.is_null() {
        // Nothing else is stored there.
        return known.cast();
    }
    // SAFETY: R5. A pool's memory is aligned for any C type, and as long as the connection's vector.
    unsafe {
        let place =
            sys::apr_palloc(connection.pool(), size_of::<PerConnection>()).cast::<PerConnection>();
        place.write(PerConnection { ssl: ptr::null_mut(), leaving: ptr::null_mut() });
        sys::ap_set_module_config(connection.conn_config(), module(), place.cast());
        place
    }
}

/// Takes note of mod_ssl's `SSL`.
///
/// # Safety
/// - `ssl` is the connection's own, and live as long as mod_ssl calls it https.
pub(super) unsafe fn remember(connection: Connection<'_>, ssl: *mut Ssl) {
    // SAFETY: a place is live as long as its connection, and only this thread uses it (R5).
    unsafe { (*place(connection)).ssl = ssl };
}

/// The `SSL` that mod_ssl told of; null if it did not.
pub(super) fn remembered(connection: Connection<'_>) -> *mut Ssl {
    // SAFETY: a place is live as long as its connection, and only this thread uses it (R5).
    unsafe { (*place(connection)).ssl }
}

/// Leaves a conversation with its connection, whose request has left HTTP, for the moment when httpd is done with it. The
/// handler has to return at once.
///
/// # Safety
/// - If there is a takeover, it is this connection's, whose input filters have been emptied, and which is not kept alive.
pub(super) unsafe fn leave(connection: Connection<'_>, leaving: Leaving) {
    unsafe extern "C" fn gone(place: *mut c_void) -> sys::apr_status_t {
        // SAFETY: the pool clears its memory after its cleanups, and `place` is in it.
        if let Some(leaving) = unsafe { taken(place.cast()) } {
            boundary((), || leaving.lose("httpd ended it without a word"));
        }
        sys::APR_SUCCESS as sys::apr_status_t
    }
    let place = place(connection);
    // SAFETY: a place is live as long as its connection, and only this thread uses it (R5); the cleanup runs when the
    // memory is about to go.
    unsafe {
        (*place).leaving = Box::into_raw(Box::new(leaving));
        let nothing = Some(sys::apr_pool_cleanup_null as _);
        let pool = connection.pool();
        sys::apr_pool_cleanup_register(pool, place.cast(), Some(gone), nothing);
    }
}

/// Takes out what [`leave`] has left.
///
/// # Safety
/// - `place` is null or live, and used by this thread only.
unsafe fn taken(place: *mut PerConnection) -> Option<Box<Leaving>> {
    // SAFETY: the place is live and ours, as this function demands; what is not null in it was made from a Box, and is
    // taken out here.
    unsafe {
        let leaving = ptr::replace(&raw mut place.as_mut()?.leaving, ptr::null_mut());
        (!leaving.is_null()).then(|| Box::from_raw(leaving))
    }
}

/// httpd is about to close a connection, whose requests are logged and gone: its pre_close_connection hook. One that leaves
/// goes over to the service. As for any connection that was aborted, httpd then only closes its own descriptor.
pub(super) fn before_close(connection: Connection<'_>) {
    // SAFETY: httpd has loaded this module, which stores nothing but places; they live as long as their connections.
    let leaving = unsafe { taken(connection.config(module()).cast()) };
    let Some(mut leaving) = leaving else { return };
    let (socket, early) =
        (leaving.socket.clone(), core::mem::replace(&mut leaving.early, Early::new(&MEMORY)));
    let transport: Result<Box<dyn Transport>, &str> = match leaving.takeover.take() {
        None => Ok(Box::new(Plain::new(socket, early))),
        Some(takeover) => {
            let claim = leaving.outbox.memory().claim();
            // SAFETY: it is the connection that was checked, as `leave` demands. The handler has emptied the filters,
            // and left a connection that is not to be kept alive: httpd reads no further request from that
            // (ap_check_pipeline), nor a request's body (ap_discard_request_body).
            unsafe { takeover.take(connection, socket, early, claim) }
                .map(|tls| Box::new(tls) as Box<dyn Transport>)
        }
    };
    connection.abort();
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
