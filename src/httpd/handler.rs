//! The upgrade: a request becomes a WebSocket, which this thread then serves until its end.

use core::ffi::{CStr, c_int};
use std::{ffi::CString, io, os::fd::BorrowedFd, os::fd::RawFd, sync::Arc, time::Duration};

use super::{
    CONTEXTS, STOP, directives,
    filters::{self, Filters},
    is_threaded, log, sys,
    wrap::{Request, Table},
};
use crate::{
    config::Settings,
    driver::{
        Transport,
        blocking::{self, Lane},
        socket::Socket,
        wait::Signals,
    },
    endpoint::Endpoint as _,
    journal::Level,
    outbox::{Bounds, Outbox, Summary},
    plugin::{
        Plugin,
        connection::{Answer, Connection, Opening as PluginOpening},
        headers::Headers,
    },
    proto::{
        deflate::{self, Deflater, Params, Reserved},
        handshake::{self, Opening, Refusal},
    },
    session::{Limits, Session},
};

/// The name that SetHandler gives to requests for this module.
const HANDLER: &CStr = c"websocket-handler";

/// httpd's handler hook.
pub(super) fn handle(r: Request<'_>) -> c_int {
    if r.handler() != Some(HANDLER) || !r.is_main() {
        return sys::DECLINED;
    }
    let header = |name: &str| {
        let name = CString::new(name).ok()?;
        r.get(Table::HeadersIn, &name).map(CStr::to_bytes)
    };
    let request =
        handshake::Request { is_get: r.is_get(), http: r.http_version(), header: &header };
    let opening = match Opening::check(&request) {
        Ok(Some(opening)) => opening,
        Ok(None) => {
            log::request(r, Level::Debug, format_args!("no WebSocket handshake; declined"));
            return sys::DECLINED;
        }
        Err(refusal) => return refuse(r, refusal),
    };
    let section = directives::section(r);
    let Some(plugin) = &section.plugin else {
        let uri = r.uri().to_string_lossy();
        log::request(
            r,
            Level::Error,
            format_args!(
                "WS0102: the Location of {uri} has 'SetHandler websocket-handler' but no \
                 WebSocketHandler: name a plugin there"
            ),
        );
        return sys::HTTP_INTERNAL_SERVER_ERROR as c_int;
    };
    if !origin_is_allowed(r, &section.settings, &opening) {
        return refuse(r, Refusal::Origin);
    }
    // SAFETY: the connection is the request's own (wrap::R1).
    if !unsafe { (*r.connection()).master }.is_null() {
        let line = "WS0103: WebSockets are not served over HTTP/2; use HTTP/1.1";
        log::request(r, Level::Info, format_args!("{line}"));
        return sys::HTTP_NOT_IMPLEMENTED as c_int;
    }
    match Upgrade::prepare(r, &section.settings, &opening) {
        Ok(upgrade) => upgrade.serve(r, plugin, &opening),
        Err(error) => {
            log::request(r, Level::Error, format_args!("WS0104: no upgrade: {error}"));
            sys::HTTP_SERVICE_UNAVAILABLE as c_int
        }
    }
}

/// Answers a bad handshake.
fn refuse(r: Request<'_>, refusal: Refusal) -> c_int {
    let uri = r.uri().to_string_lossy();
    log::request(r, Level::Info, format_args!("WS0101: handshake for {uri} refused: {refusal}"));
    if refusal == Refusal::Version {
        // RFC 6455 §4.4: the versions that would do.
        let versions = CString::new(handshake::VERSIONS).unwrap_or_default();
        r.set(Table::ErrHeadersOut, c"Sec-WebSocket-Version", &versions);
    }
    c_int::from(refusal.status())
}

fn origin_is_allowed(r: Request<'_>, settings: &Settings, opening: &Opening<'_>) -> bool {
    let (scheme, host, port) = r.origin();
    let own = handshake::own_origin(&scheme.to_string_lossy(), &host.to_string_lossy(), port);
    settings.origin_check().allows(opening.origin, &own, settings.trusted_origins())
}

/// How the bytes of a connection travel.
enum Stream {
    /// On a descriptor of our own.
    Socket(Socket),
    /// Through httpd's filters.
    Filters(Filters),
}

impl Transport for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.read(buffer),
            Self::Filters(filters) => filters.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.write(bytes),
            Self::Filters(filters) => filters.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<bool> {
        match self {
            Self::Socket(socket) => socket.flush(),
            Self::Filters(filters) => filters.flush(),
        }
    }

    fn holds_input(&self) -> bool {
        match self {
            Self::Socket(socket) => socket.holds_input(),
            Self::Filters(filters) => filters.holds_input(),
        }
    }

    fn descriptor(&self) -> RawFd {
        match self {
            Self::Socket(socket) => socket.descriptor(),
            Self::Filters(filters) => filters.descriptor(),
        }
    }
}

/// All that an upgrade needs, obtained before anything is promised to the client or the plugin.
struct Upgrade {
    outbox: Arc<Outbox>,
    session: Session,
    lane: Arc<Lane<Stream>>,
    deflate: Option<(Params, Reserved<'static>)>,
    /// prefork handles signals on this thread; its callbacks must not be interrupted by them.
    signals: Option<Signals>,
}

impl Upgrade {
    fn prepare(r: Request<'_>, settings: &Settings, opening: &Opening<'_>) -> io::Result<Self> {
        let compression = &settings.compression;
        let deflate = compression
            .policy()
            .and_then(|policy| deflate::negotiate_within(opening.extensions, &policy, &CONTEXTS));
        let params = deflate.as_ref().map(|(params, _)| params);
        let bounds = Bounds {
            queue: settings.send_queue(),
            timeout: timeout(r),
            compress_from: compression.min_size(),
        };
        let deflater = params.map(|params| Deflater::new(params, compression.level()));
        let journal = Box::new(log::ConnectionJournal::new(r));
        let outbox = Arc::new(Outbox::new(bounds, deflater, journal));
        let limits = Limits {
            version: opening.version,
            max_message: settings.max_message(),
            allow_reserved: settings.allow_reserved(),
        };
        let connection = r.connection();
        // SAFETY: the connection is the request's own (wrap::R1), and its lane does not outlive the handler's use.
        let filters = unsafe { Filters::new(connection) }?;
        // SAFETY: as above.
        let stream = match unsafe { filters::foreign(connection) } {
            Some(name) => {
                let line = format_args!("bytes go through httpd's filters because of {name}");
                log::request(r, Level::Debug, line);
                Stream::Filters(filters)
            }
            None => {
                // SAFETY: httpd keeps the descriptor open while the handler runs; it is only duplicated.
                let own = unsafe { BorrowedFd::borrow_raw(filters.descriptor()) };
                Stream::Socket(Socket::new(own.try_clone_to_owned()?)?)
            }
        };
        Ok(Self {
            session: Session::new(limits, params),
            lane: Lane::new(stream, outbox.clone())?,
            outbox,
            deflate,
            signals: if is_threaded() { None } else { Some(Signals::block()?) },
        })
    }

    /// Asks the plugin, answers the client, and serves the connection to its end.
    fn serve(self, r: Request<'_>, plugin: &Arc<Plugin>, opening: &Opening<'_>) -> c_int {
        let Self { outbox, session, lane, deflate, signals } = self;
        let (headers, left_out) = Headers::copy(r.fields(Table::HeadersIn).into_iter());
        if left_out > 0 {
            let line = "WS0105: the request's headers exceed 64 KiB; the plugin will miss";
            log::request(r, Level::Warn, format_args!("{line} {left_out} of them"));
        }
        let protocols = opening.protocols.iter().filter_map(|&p| CString::new(p).ok()).collect();
        let request = r.as_ptr().cast();
        let opened = Connection::open(
            plugin.clone(),
            PluginOpening { outbox: outbox.clone(), request, headers, protocols },
        );
        let Some((endpoint, answer)) = opened else {
            let uri = r.uri().to_string_lossy();
            log::request(r, Level::Info, format_args!("WS0106: the plugin refuses {uri}"));
            return sys::HTTP_FORBIDDEN as c_int;
        };
        switch_protocols(r, opening, &answer, deflate.as_ref().map(|(params, _)| params));
        let connection = r.connection();
        // SAFETY: the connection is the request's own (wrap::R1).
        unsafe { filters::remove_obstacles(connection) };
        match take_early_bytes(&lane, connection) {
            Ok(()) => blocking::serve(&lane, session, &endpoint, &STOP, signals.as_ref()),
            Err(error) => {
                let line = format_args!("WS0302: the connection is lost: {error}");
                outbox.journal().write(Level::Info, line);
                outbox.end("the connection is lost");
                endpoint.closed();
            }
        }
        finish(r, &lane, outbox.summary());
        sys::HOOK_OK
    }
}

/// `Timeout` of the request's server.
fn timeout(r: Request<'_>) -> Duration {
    // SAFETY: a request's server is live (wrap::R3). The value is in microseconds.
    Duration::from_micros(unsafe { (*r.server()).timeout }.unsigned_abs())
}

/// Sends the 101 (RFC 6455 §4.2.2), with the headers that other modules and the plugin have set.
fn switch_protocols(
    r: Request<'_>,
    opening: &Opening<'_>,
    answer: &Answer,
    deflate: Option<&Params>,
) {
    let out = Table::HeadersOut;
    r.overlay(out, Table::ErrHeadersOut);
    for (name, value) in &answer.headers {
        r.set(out, name, value);
    }
    // A 101 has no body to describe (RFC 9110 §8.6).
    r.unset(out, c"Content-Length");
    r.unset(out, c"Transfer-Encoding");
    let set = |name: &CStr, value: &str| {
        if let Ok(value) = CString::new(value) {
            r.set(out, name, &value);
        }
    };
    set(c"Upgrade", "websocket");
    set(c"Connection", "Upgrade");
    set(c"Sec-WebSocket-Accept", &opening.accept);
    if let Some(protocol) = &answer.protocol {
        r.set(out, c"Sec-WebSocket-Protocol", protocol);
    }
    if let Some(params) = deflate {
        set(c"Sec-WebSocket-Extensions", &params.to_string());
    }
    // SAFETY: the request and its connection are live and ours (wrap::R1); the filters put in place are the
    // connection's own.
    unsafe {
        let rec = r.as_ptr();
        (*rec).status = sys::HTTP_SWITCHING_PROTOCOLS as c_int;
        (*rec).status_line = c"101 Switching Protocols".as_ptr();
        sys::ap_send_interim_response(rec, 1);
        // From here on the request has no body to read and no response to write: its filters step aside, so that
        // httpd neither waits for the one nor sends the other.
        let connection = (*rec).connection;
        (*rec).input_filters = (*connection).input_filters;
        (*rec).proto_input_filters = (*connection).input_filters;
        (*rec).output_filters = (*connection).output_filters;
        (*rec).proto_output_filters = (*connection).output_filters;
        (*rec).eos_sent = 1;
        (*connection).keepalive = sys::ap_conn_keepalive_e_AP_CONN_CLOSE;
    }
}

/// Moves what the client sent along with the handshake from httpd's filters to our socket.
fn take_early_bytes(lane: &Lane<Stream>, connection: *mut sys::conn_rec) -> io::Result<()> {
    lane.with_transport(|stream| {
        // SAFETY: the connection is the request's own (wrap::R1), and the value dies here or with the lane's use.
        let mut filters = unsafe { Filters::new(connection) }?;
        // SAFETY: as above. httpd's own reads and writes must not block either.
        unsafe { sys::apr_socket_timeout_set(sys::ap_get_conn_socket(connection), 0) };
        if let Stream::Socket(socket) = stream {
            match filters.drain()? {
                Some(early) => socket.unread(early),
                None => *stream = Stream::Filters(filters),
            }
        }
        Ok(())
    })
}

/// Leaves the request to httpd: what the access log shows, and a short wait for the client's end.
fn finish(r: Request<'_>, lane: &Lane<Stream>, summary: Summary) {
    let note = |name: &CStr, value: u64| {
        if let Ok(value) = CString::new(value.to_string()) {
            r.set(Table::Notes, name, &value);
        }
    };
    note(c"websocket-close-code", summary.code.0.into());
    note(c"websocket-messages-in", summary.messages_in);
    note(c"websocket-messages-out", summary.messages_out);
    let connection = r.connection();
    let traffic = lane.with_transport(|stream| match stream {
        Stream::Socket(socket) => socket.traffic(),
        // mod_logio has seen these bytes itself.
        Stream::Filters(_) => crate::driver::socket::Traffic::default(),
    });
    super::count_bytes(connection, traffic);
    // SAFETY: the connection is live and ours (wrap::R1). The note makes httpd wait two seconds at most for a client
    // that does not close, instead of thirty; its name and value are literals.
    unsafe {
        let (key, value) = (c"short-lingering-close".as_ptr(), c"1".as_ptr());
        sys::apr_table_setn((*connection).notes, key, value);
        let timeout = (*r.server()).timeout;
        sys::apr_socket_timeout_set(sys::ap_get_conn_socket(connection), timeout);
    }
}
