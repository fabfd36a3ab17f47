//! The upgrade: the 101 goes out, and the connection to whoever serves it from then on.

use core::ffi::{CStr, c_int, c_void};
use std::{ffi::CString, io, sync::Arc, time::Duration};

use super::{
    MEMORY, SHUTDOWN,
    access_log::Record,
    bridge::Bridge,
    channel::Subscribing,
    child,
    connection::Connection,
    count_bytes,
    detach::{self, Leaving},
    draft, events,
    filters::{self, Filters},
    handler::{come_later, unavailable},
    is_threaded, log,
    request::{Request, Table},
    shared, sys,
    tls::{self, Takeover},
    workers::{self, Worker},
};
use crate::{
    conn::{
        endpoint::Endpoint,
        log::Level,
        outbox::{Bounds, Outbox, Summary},
        session::{Limits, Session},
    },
    driver::{
        Transport, blocking,
        conn_io::ConnIo,
        plain::{Early, Plain, Socket},
        service::Ended,
        shutdown::{Ending, Watched},
        signals::Signals,
    },
    limits::{connections::Counted, memory::Claim},
    metrics::{Conversation, Metric, Mode},
    plugin::{
        Plugin,
        connection::{Answer, Connection as PluginConnection, PluginOpening},
        headers::Headers,
        protocols::Protocols,
    },
    proto::{
        Version,
        close::{self, CloseCode},
        deflate::{self, Deflater, Packing, Params, Policy},
        handshake::Opening,
    },
    settings::{Compression, Detach, Settings, Timeouts},
};

/// What a request's messages are for.
pub(super) enum Chosen<'s> {
    Plugin(&'s Arc<Plugin>),
    /// A peer, connected already.
    Bridge(Bridge),
    Channel(Subscribing),
}

/// All that an upgrade needs, obtained before anything is promised to the client or the plugin.
pub(super) struct Upgrade {
    /// How the connection may go past httpd's filters, or what keeps it there.
    past: Result<PastFilters, String>,
    /// The same bytes as httpd sees them.
    filters: Filters,
    /// Dropped last, as it may hold signals back.
    parts: Parts,
}

/// What a conversation is made of, wherever it is held.
struct Parts {
    outbox: Arc<Outbox>,
    session: Session,
    timeouts: Timeouts,
    deflate: Option<(Params, Claim)>,
    /// The connection's places under the limits.
    counted: Vec<Counted>,
    /// What it holds if it is known to stay.
    worker: Option<Worker>,
    /// prefork handles signals on this thread; neither its callbacks nor a hand-over must be interrupted.
    signals: Option<Signals>,
}

/// Who has the conversation with the client, and has been asked.
struct Opened {
    endpoint: Box<dyn Endpoint>,
    answer: Answer,
    /// Why the connection stays on httpd's thread.
    stays: Option<&'static str>,
    /// Its callbacks are called on this thread.
    watched: Option<Watched<'static>>,
}

/// A descriptor of our own for a connection on which httpd has nothing but its own filters, and mod_ssl's.
pub(super) struct PastFilters {
    socket: Arc<Socket>,
    /// For TLS, which only a detached connection can do without mod_ssl's filters.
    takeover: Option<Takeover>,
}

/// How a connection can go past httpd's filters, or what keeps it there.
pub(super) type Bypass = Result<Option<Takeover>, String>;

impl PastFilters {
    /// Finds the way there may be. Nothing is changed.
    pub(super) fn way(r: Request<'_>) -> Bypass {
        let connection = r.connection();
        let is_https = tls::is_https(connection);
        if let Some(name) = filters::foreign(connection, is_https) {
            return Err(name);
        }
        Ok(is_https.then(|| Takeover::check(r)).transpose()?)
    }

    /// Makes a descriptor; an error if there are too few.
    fn new(filters: &Filters, takeover: Option<Takeover>) -> io::Result<Self> {
        let httpds = filters.descriptor();
        let own = httpds.try_clone_to_owned()?;
        if !filters.has_its_descriptor() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let socket = Arc::new(Socket::new(child::spare(own)?)?);
        Ok(Self { socket, takeover })
    }
}

/// What is agreed on compression. Messages that are `shared` with others have no context of one connection.
pub(super) fn agree(
    settings: &Settings,
    opening: &Opening<'_>,
    shared: bool,
) -> Option<(Params, Claim)> {
    let policy = settings.compression.policy()?;
    let policy = Policy { server_takeover: policy.server_takeover && !shared, ..policy };
    deflate::negotiate_within(opening.extensions, &policy, &MEMORY)
}

impl Upgrade {
    /// Obtains it. `deflate` is what was agreed on compression, and `worker` is what the connection holds if it is known to
    /// stay on httpd's thread.
    pub(super) fn prepare(
        r: Request<'_>,
        settings: &Settings,
        version: Version,
        deflate: Option<(Params, Claim)>,
        way: Bypass,
        counted: Vec<Counted>,
        worker: Option<Worker>,
    ) -> io::Result<Self> {
        let signals = if is_threaded() { None } else { Some(Signals::block()?) };
        let compression = &settings.compression;
        let params = deflate.as_ref().map(|(params, _)| params);
        let timeout = r.timeout();
        let queue = settings.send_queue();
        let bounds =
            Bounds { queue, timeout, compress_from: compression.min_size(), memory: &MEMORY };
        let deflater = params.map(|params| Deflater::new(params, compression.level()));
        let log = Box::new(log::ConnectionLog::new(r));
        let outbox = Outbox::new(bounds, deflater, log).speaking(version);
        let mut timeouts = settings.timeouts(timeout);
        match version {
            // There is no Ping to send.
            Version::Draft(_) => timeouts.ping = None,
            Version::EventStream => timeouts.one_way = true,
            _ => {}
        }
        let limits = Limits {
            version,
            max_message: settings.max_message(),
            allow_reserved: settings.allow_reserved(),
            memory: &MEMORY,
        };
        // SAFETY: a connection is driven by its filters within the handler only, on this thread. Who sends on another
        // one may drop them later.
        let filters = unsafe { Filters::new(r.connection()) }?;
        let past = match way {
            Ok(takeover) => Ok(PastFilters::new(&filters, takeover)?),
            Err(why) => Err(why),
        };
        let (session, outbox) = (Session::new(limits, params), Arc::new(outbox));
        let parts = Parts { outbox, session, timeouts, deflate, counted, worker, signals };
        Ok(Self { parts, past, filters })
    }

    /// Asks the plugin, answers the client, and has the connection served to its end.
    pub(super) fn serve(
        self,
        r: Request<'_>,
        chosen: Chosen<'_>,
        settings: &Settings,
        opening: &Opening<'_>,
    ) -> c_int {
        let detach = settings.detach();
        let Self { mut parts, past, mut filters } = self;
        let headers = copy_headers(r);
        let opened = match chosen {
            Chosen::Plugin(plugin) => parts.open_plugin(r, plugin, detach, opening, &headers),
            Chosen::Bridge(bridge) => Ok(parts.open_bridge(bridge, detach, opening)),
            Chosen::Channel(subscribing) => {
                parts.open_channel(r, subscribing, detach, &settings.compression)
            }
        };
        let opened = match opened.and_then(|opened| parts.hold_worker(r, opened)) {
            Ok(opened) => opened,
            Err(_) if opening.version == Version::EventStream => return events::come_back(r),
            Err(status) => return status,
        };
        filters::remove_obstacles(r.connection());
        let is_to_leave = opened.stays.is_none() && past.is_ok();
        let mode = if is_to_leave { Mode::Detached } else { Mode::Blocking };
        let status = match opening.version {
            Version::EventStream => sys::HTTP_OK,
            _ => sys::HTTP_SWITCHING_PROTOCOLS,
        };
        let counting = Conversation::begin(shared::line(), mode, status);
        let params = parts.deflate.as_ref().map(|(params, _)| params);
        match opening.version {
            Version::EventStream => events::begin(r),
            _ => switch_protocols(r, opening, &opened.answer, params),
        }
        let past = past.and_then(|past| match past.takeover {
            Some(_) if opened.stays.is_some() => Err("mod_ssl".to_owned()),
            _ => Ok(past),
        });
        let past = prove(r, &mut filters, opening)
            .and_then(|()| leave_filters(&mut filters, r.connection(), past));
        if let Ok(Ok((PastFilters { takeover: None, .. }, early))) = &past {
            // They came with the handshake, but it is the conversation that counts them.
            count_bytes(r.connection(), -(early.len() as i64), 0);
        }
        match past {
            Ok(Ok((past, early))) if opened.stays.is_none() => {
                parts.detach(r, opened, headers, (past, early), counting)
            }
            Ok(Ok((past, early))) => {
                parts.stay(r, opened, Box::new(Plain::new(past.socket, early)), counting)
            }
            Ok(Err(why)) => {
                parts.outbox.log().write(
                    Level::Debug,
                    format_args!("bytes go through httpd's filters because of {why}"),
                );
                parts.stay(r, opened, Box::new(filters), counting)
            }
            Err(error) => parts.lose(r, opened, &error, counting),
        }
    }
}

/// The request's headers, for the plugin and the access log.
fn copy_headers(r: Request<'_>) -> Arc<Headers> {
    let (headers, left_out) = Headers::copy(r.fields(Table::HeadersIn).into_iter());
    static SAID: log::OnceAMinute = log::OnceAMinute::new();
    if left_out > 0 {
        let level = if SAID.is_due() { Level::Warn } else { Level::Info };
        let line = "WS0105: the request's headers exceed 64 KiB; the plugin will miss";
        log::request(r, level, format_args!("{line} {left_out} of them"));
    }
    Arc::new(headers)
}

/// Behind the 101: the client may be gone, or want the proof of its draft.
fn prove(r: Request<'_>, filters: &mut Filters, opening: &Opening<'_>) -> io::Result<()> {
    if r.connection().is_aborted() {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    opening.proof.as_ref().map_or(Ok(()), |proof| filters.write_all(proof))
}

impl Parts {
    /// Asks a plugin; the status that refuses the client if it says no.
    fn open_plugin(
        &self,
        r: Request<'_>,
        plugin: &Arc<Plugin>,
        detach: Detach,
        opening: &Opening<'_>,
        headers: &Arc<Headers>,
    ) -> Result<Opened, c_int> {
        let (headers, protocols) = (headers.clone(), Protocols::copy(opening.protocols));
        let threaded = is_threaded();
        let is_stream = r.connection().is_stream();
        // On a process's only thread, and to its end: nothing can be detached, whatever the plugin asks for.
        let alone = !threaded && !is_stream && !detach.allows_plugin(false, threaded);
        let callbacks = plugin.callbacks();
        let watched = Some(SHUTDOWN.watch(callbacks.clone()));
        let (outbox, request) = (self.outbox.clone(), r.as_ptr().cast());
        let asked = PluginOpening { outbox, request, headers, protocols, alone, callbacks };
        let Some((connection, answer)) = PluginConnection::open(plugin.clone(), asked) else {
            let uri = r.uri().to_string_lossy();
            log::request(r, Level::Info, format_args!("WS0106: the plugin refuses {uri}"));
            return Err(sys::HTTP_FORBIDDEN as c_int);
        };
        let stays = match detach {
            _ if detach.allows_plugin(connection.wants_request(), threaded) => None,
            Detach::Off => Some(OFF),
            _ if !threaded => Some("on this MPM plugins have one connection per process"),
            _ => Some("the plugin asks for httpd's request"),
        };
        Ok(Opened { endpoint: Box::new(connection), answer, stays, watched })
    }

    /// Has a peer have the conversation.
    fn open_bridge(&self, bridge: Bridge, detach: Detach, opening: &Opening<'_>) -> Opened {
        let protocol = bridge.protocol.and_then(|n| opening.protocols.iter().nth(n));
        let protocol = protocol.and_then(|name| CString::new(name).ok());
        let answer = Answer { protocol, ..Answer::default() };
        let stays = (!detach.allows_bridge()).then_some(OFF);
        Opened {
            endpoint: Box::new(bridge.open(self.outbox.clone())),
            answer,
            stays,
            watched: None,
        }
    }

    /// Has a client hear what is published; the status that refuses it if that cannot be.
    fn open_channel(
        &self,
        r: Request<'_>,
        subscribing: Subscribing,
        detach: Detach,
        compression: &Compression,
    ) -> Result<Opened, c_int> {
        let answer = Answer { protocol: subscribing.protocol(), ..Answer::default() };
        let stays = (!detach.allows_bridge()).then_some(OFF);
        let packing = |(params, _): &(Params, Claim)| Packing::of(params, compression.level());
        let packing = self.deflate.as_ref().map(packing);
        let subscriber = subscribing
            .open(self.outbox.clone(), packing)
            .map_err(|error| unavailable(r, &error))?;
        Ok(Opened { endpoint: Box::new(subscriber), answer, stays, watched: None })
    }

    /// Takes the worker for a connection that stays; the status that refuses it if WebSockets hold as many as they may.
    fn hold_worker(&mut self, r: Request<'_>, mut opened: Opened) -> Result<Opened, c_int> {
        let none = child::service().is_none().then_some("there are no threads of the module's");
        opened.stays = opened.stays.or(none);
        if opened.stays.is_some() && self.worker.is_none() {
            self.worker = workers::take(r);
            if self.worker.is_none() {
                let status = come_later(r);
                self.outbox.end("WebSockets hold as many workers as they may");
                opened.endpoint.closed();
                return Err(status);
            }
        }
        Ok(opened)
    }

    /// The client was lost while the connection was made ready.
    fn lose(
        self,
        r: Request<'_>,
        opened: Opened,
        error: &io::Error,
        counting: Conversation,
    ) -> c_int {
        self.outbox
            .log()
            .write(Level::Info, format_args!("WS0302: the connection is lost: {error}"));
        self.outbox.end("the connection is lost");
        opened.endpoint.closed();
        let summary = self.outbox.summary();
        counting.end(summary.code.0);
        end_request(r, &summary, true);
        drop((self.deflate, self.counted, self.worker, opened.watched));
        release_after_log(r, self.signals);
        sys::HOOK_OK
    }

    /// Leaves it with the connection, for the moment when httpd is done with that.
    fn detach(
        self,
        r: Request<'_>,
        opened: Opened,
        headers: Arc<Headers>,
        (past, early): (PastFilters, Early),
        counting: Conversation,
    ) -> c_int {
        let Self { outbox, session, timeouts, deflate, counted, signals, .. } = self;
        let Opened { endpoint, watched, .. } = opened;
        let PastFilters { socket, takeover } = past;
        let kind = if takeover.is_some() { "TLS" } else { "clear text" };
        outbox.log().write(Level::Debug, format_args!("detached, {kind}"));
        endpoint.forget_request();
        r.set_for_log(ENV_OPEN);
        let record = Record::of(r, headers);
        let ended: Ended = Box::new(move |finished| {
            counting.end(finished.summary.code.0);
            drop((deflate, counted));
            record.log(finished);
        });
        let leaving = Leaving {
            outbox,
            session,
            endpoint,
            timeouts,
            ended,
            socket,
            early,
            takeover,
            watched,
            signals,
        };
        // SAFETY: the way past the filters was found for this connection, which has left HTTP, and whose filters were
        // emptied.
        unsafe { detach::leave(r.connection(), leaving) };
        sys::HOOK_OK
    }

    /// Holds it on this thread, to its end.
    fn stay(
        mut self,
        r: Request<'_>,
        opened: Opened,
        transport: Box<dyn Transport>,
        mut counting: Conversation,
    ) -> c_int {
        counting.serve(Mode::Blocking);
        let why = opened.stays.unwrap_or("the filters stay in use");
        self.outbox.log().write(Level::Debug, format_args!("served on httpd's thread: {why}"));
        let worker = self.worker.or_else(|| workers::take(r));
        if worker.is_none() {
            turn_away(&self.outbox, &mut self.timeouts);
        }
        let past_filters = transport.socket().is_some();
        let io = ConnIo::new(transport, self.outbox.clone());
        let (timeouts, signals) = (self.timeouts, self.signals.as_ref());
        let (endpoint, line) = (&*opened.endpoint, shared::line());
        let ended = blocking::serve(io, self.session, endpoint, timeouts, &SHUTDOWN, signals, line);
        let summary = self.outbox.summary();
        counting.end(summary.code.0);
        if past_filters {
            count_bytes(r.connection(), ended.received as i64, summary.bytes_out as i64);
        }
        end_request(r, &summary, ended.lost);
        // In a stop event and worker close the connection themselves.
        if ended.hurried && !ended.lost && SHUTDOWN.ending() != Ending::Stop {
            filters::end_input(r.connection());
        }
        drop((self.deflate, self.counted, worker, opened, self.outbox));
        // What it held is free by now, and the metrics should say so.
        line.set(Metric::Memory, MEMORY.used() as u64);
        if let Some(service) = child::service() {
            service.look();
        }
        release_after_log(r, self.signals);
        sys::HOOK_OK
    }
}

/// How long a client that is turned away behind the 101 has to take its Close and to answer it.
const TURNED_AWAY: Duration = Duration::from_secs(1);

/// Closes a connection that was to be detached and cannot be, as its client sends too fast for that, when WebSockets hold
/// as many workers as they may.
fn turn_away(outbox: &Outbox, timeouts: &mut Timeouts) {
    timeouts.close = Some(timeouts.close.map_or(TURNED_AWAY, |close| close.min(TURNED_AWAY)));
    timeouts.stall = timeouts.stall.min(TURNED_AWAY);
    let payload = close::payload(CloseCode::TRY_AGAIN_LATER);
    outbox.close(&payload, "WebSockets hold as many workers as they may");
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
    let status_line = if let Version::Draft(draft) = opening.version {
        draft::set_fields(r, draft, opening, answer);
        draft.status_line()
    } else {
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
        c"101 Switching Protocols"
    };
    // SAFETY: the request is live and ours (request::R1); the status line is a literal.
    unsafe {
        let rec = r.as_ptr();
        (*rec).status = sys::HTTP_SWITCHING_PROTOCOLS as c_int;
        (*rec).status_line = status_line.as_ptr();
        sys::ap_send_interim_response(rec, 1);
    }
    r.leave_http();
}

/// Takes what the client sent along with the handshake out of httpd's filters, so that the connection can go past them. If
/// they have to stay in use, that is so because of what is said.
fn leave_filters(
    filters: &mut Filters,
    connection: Connection<'_>,
    past: Result<PastFilters, String>,
) -> io::Result<Result<(PastFilters, Early), String>> {
    // From here on nothing may block in httpd's filters.
    filters::set_timeout(connection, 0);
    let past = match past {
        Ok(past) if filters.holds_output() => {
            drop(past);
            Err("output that waits there".to_owned())
        }
        Ok(past) => filters
            .drain()?
            .map(|early| (past, early))
            .ok_or_else(|| "a client that sends too fast".to_owned()),
        Err(why) => Err(why),
    };
    if past.is_err() {
        filters::forbid_flushes(connection);
    }
    Ok(past)
}

/// Why a connection stays on httpd's thread, if the administrator wants it so.
const OFF: &str = "WebSocketDetach is Off";

/// Set for a request whose connection is detached, so that `CustomLog … env=!websocket-open` leaves its first line out.
const ENV_OPEN: &CStr = c"websocket-open";

/// Leaves the request to httpd: what the access log shows, and how it closes the connection.
fn end_request(r: Request<'_>, summary: &Summary, lost: bool) {
    note_summary(r, summary);
    let connection = r.connection();
    filters::allow_flushes(connection);
    filters::end_stream(connection);
    if lost {
        // httpd must not wait for the client, not even to get rid of what its filters still hold.
        connection.abort();
        return;
    }
    // This makes httpd wait two seconds at most for a client that does not close, instead of thirty.
    let (key, value) = (c"short-lingering-close".as_ptr(), c"1".as_ptr());
    // SAFETY: R5; name and value are literals, which outlive the table.
    unsafe { sys::apr_table_setn(connection.notes(), key, value) };
    // SAFETY: a request's server is live (request::R3).
    filters::set_timeout(connection, unsafe { (*r.server()).timeout });
}

/// Keeps signals back until httpd has written the access log and frees the request: a pending one ends the process.
/// (Not so on a thread of mod_http2's, whose requests are freed by another thread.)
fn release_after_log(r: Request<'_>, signals: Option<Signals>) {
    unsafe extern "C" fn release(signals: *mut c_void) -> sys::apr_status_t {
        // SAFETY: made from a Box below; a cleanup runs once, and on this thread, since httpd clears the pool there.
        drop(unsafe { Box::from_raw(signals.cast::<Signals>()) });
        0
    }
    let is_stream = r.connection().is_stream();
    if let Some(signals) = signals.filter(|_| !is_stream) {
        let signals = Box::into_raw(Box::new(signals)).cast();
        let (now, in_child) = (Some(release as _), Some(sys::apr_pool_cleanup_null as _));
        // SAFETY: the request's pool is live (request::R1).
        unsafe { sys::apr_pool_cleanup_register((*r.as_ptr()).pool, signals, now, in_child) };
    }
}

/// What LogFormat can show of a conversation, and `CustomLog … env=websocket-close` asks for.
pub(super) fn note_summary(r: Request<'_>, summary: &Summary) {
    for (name, value) in [
        (c"websocket-close-code", summary.code.0.into()),
        (c"websocket-messages-in", summary.messages_in),
        (c"websocket-messages-out", summary.messages_out),
    ] {
        if let Ok(value) = CString::new(value.to_string()) {
            r.set(Table::Notes, name, &value);
        }
    }
    r.set_for_log(c"websocket-close");
}
