//! The upgrade: a request becomes a WebSocket, and goes to whoever serves it from then on.

use core::ffi::{CStr, c_int, c_void};
use std::{ffi::CString, io, os::fd::AsRawFd, sync::Arc, time::Duration};

use super::{
    MEMORY, SHUTDOWN,
    access_log::Record,
    bridge::Bridge,
    child,
    detach::{self, Leaving},
    directives::{self, Section},
    draft,
    filters::{self, Filters},
    http2, is_threaded, log, mistakes,
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
        shutdown::Ending,
        signals::Signals,
    },
    limits::{connections::Counted, memory::Claim},
    plugin::{
        Plugin,
        connection::{Answer, Connection, Opening as PluginOpening},
        headers::Headers,
        protocols::Protocols,
    },
    proto::{
        Version,
        close::{self, CloseCode},
        deflate::{self, Deflater, Params},
        handshake::{self, Opening, Refusal},
    },
    settings::{Detach, Limit, Settings, Timeouts},
};

/// The name that SetHandler gives to requests for this module.
const HANDLER: &CStr = c"websocket-handler";

/// httpd's handler hook.
pub(super) fn handle(r: Request<'_>) -> c_int {
    if r.handler() != Some(HANDLER) || !r.is_main() {
        mistakes::tell_of_other_handler(r);
        return sys::DECLINED;
    }
    // SAFETY: the connection is the request's own (request::R1).
    let is_stream = unsafe { http2::is_stream(r.connection()) };
    let header = |name: &str| {
        // mod_http2 sets this one itself while a stream has not ended, and lets no client send it.
        if is_stream && name.eq_ignore_ascii_case("Transfer-Encoding") {
            return None;
        }
        let name = CString::new(name).ok()?;
        r.get(Table::HeadersIn, &name).map(CStr::to_bytes)
    };
    let request =
        handshake::Request { is_get: r.is_get(), http: r.http_version(), header: &header };
    let opening = match draft::opening(r, &request) {
        Ok(None) => Opening::check(&request).map(|opening| opening.map(|opening| (opening, None))),
        opening => opening,
    };
    let (mut opening, challenge) = match opening {
        Ok(Some(opening)) => opening,
        Ok(None) => {
            log::request(r, Level::Debug, format_args!("no WebSocket handshake; declined"));
            return sys::DECLINED;
        }
        Err(refusal) => return refuse(r, refusal),
    };
    let section = directives::section(r);
    if !section.has_endpoint() {
        let uri = r.uri().to_string_lossy();
        log::request(
            r,
            Level::Error,
            format_args!(
                "WS0102: the Location of {uri} has 'SetHandler websocket-handler' but no \
                 WebSocketHandler and no WebSocketBridge: name a plugin or a peer there"
            ),
        );
        return sys::HTTP_INTERNAL_SERVER_ERROR as c_int;
    }
    if !origin_is_allowed(r, &section.settings, &opening) {
        return refuse(r, Refusal::Origin);
    }
    mistakes::tell_of_larger_size(r, &section.settings);
    if let Err(status) = http2::check(r) {
        return status;
    }
    if child::is_near() {
        return leave_to_next(r);
    }
    let way = PastFilters::way(r);
    let known_to_stay = way.is_err() || stays(section);
    let worker = match known_to_stay.then(|| worker(r)).transpose() {
        Ok(worker) => worker,
        Err(status) => return status,
    };
    let counted = match count(r, &section.settings) {
        Ok(counted) => counted,
        Err(status) => return status,
    };
    // While the thread waits for the client, or for a peer, it is held as by a WebSocket that stays.
    let mut waiting = None;
    let mut may_wait = || {
        if worker.is_none() && waiting.is_none() {
            waiting = workers::take(r);
        }
        worker.is_some() || waiting.is_some()
    };
    // Only now: nobody waits for a client who is refused.
    match challenge.map(|challenge| draft::proof(r, challenge, &mut may_wait)).transpose() {
        Ok(proof) => opening.proof = proof,
        Err(status) => return status,
    }
    let endpoint = match (&section.plugin, &section.bridge) {
        (Some(plugin), _) => Chosen::Plugin(plugin),
        (None, Some(source)) => {
            let (settings, max_message) =
                (&section.settings.bridge, section.settings.max_message());
            let offered = opening.protocols;
            match Bridge::reach(r, source, settings, max_message, offered, &mut may_wait) {
                Ok(bridge) => Chosen::Bridge(bridge),
                Err(status) => return status,
            }
        }
        (None, None) => return sys::HTTP_INTERNAL_SERVER_ERROR as c_int,
    };
    drop(waiting);
    match Upgrade::prepare(r, &section.settings, &opening, way, counted, worker) {
        // prefork's signals are held back by now: none comes between this look and the conversation.
        Ok(_) if child::is_near() => leave_to_next(r),
        Ok(upgrade) => upgrade.serve(r, endpoint, section.settings.detach(), &opening),
        Err(error) => unavailable(r, &error),
    }
}

/// Whether it is known before anybody is asked that a connection stays on httpd's thread, wherever it may go.
fn stays(section: &Section) -> bool {
    let detach = section.settings.detach();
    let may_leave = match &section.plugin {
        Some(plugin) => detach.allows_plugin(plugin.wants_request(), is_threaded()),
        None => detach.allows_bridge(),
    };
    !may_leave || child::service().is_none()
}

/// Takes the worker of httpd's, or of mod_http2's, that a connection holds; the status that refuses it if WebSockets hold
/// as many as they may.
fn worker(r: Request<'_>) -> Result<Worker, c_int> {
    workers::take(r).ok_or_else(|| come_later(r))
}

/// Tells a client that there is no room for it, and when to try again.
pub(super) fn come_later(r: Request<'_>) -> c_int {
    // A guess, but one that spreads those who come again.
    r.set(Table::ErrHeadersOut, c"Retry-After", c"10");
    sys::HTTP_SERVICE_UNAVAILABLE as c_int
}

/// Refuses a request that came to a child which is about to go: its WebSocket would outlive the time that the others have.
fn leave_to_next(r: Request<'_>) -> c_int {
    log::request(r, Level::Info, format_args!("WS0112: refused: this child is ending"));
    come_later(r)
}

/// What a request's messages are for.
enum Chosen<'s> {
    Plugin(&'s Arc<Plugin>),
    /// A peer, connected already.
    Bridge(Bridge),
}

/// Answers a request for which the system has no room.
pub(super) fn unavailable(r: Request<'_>, error: &io::Error) -> c_int {
    static SAID: log::OnceAMinute = log::OnceAMinute::new();
    // A connection that is gone is nobody's fault.
    let worth_a_line = error.kind() != io::ErrorKind::NotConnected && SAID.is_due();
    let level = if worth_a_line { Level::Error } else { Level::Debug };
    log::request(r, level, format_args!("WS0104: no upgrade: {error}"));
    sys::HTTP_SERVICE_UNAVAILABLE as c_int
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

/// Counts the connection where limits are set; the status that refuses it if one is reached.
fn count(r: Request<'_>, settings: &Settings) -> Result<Vec<Counted>, c_int> {
    let Some(table) = shared::counts() else { return Ok(Vec::new()) };
    let mut counted = Vec::new();
    let refuse = |status: u32, limit: &Limit, what: &str| {
        log::request(
            r,
            Level::Info,
            format_args!("WS0107: refused: {what} of {} is reached", limit.most),
        );
        come_later(r);
        status as c_int
    };
    if let Some(limit) = settings.max_connections() {
        let key = ["section", &limit.section];
        let entered = table.enter(&key, limit.most);
        counted.push(entered.ok_or_else(|| {
            refuse(sys::HTTP_SERVICE_UNAVAILABLE, limit, "WebSocketMaxConnections")
        })?);
    }
    if let Some(per_ip) = settings.max_connections_per_ip() {
        let limit = &per_ip.limit;
        let client = per_ip.client(&r.client_ip().to_string_lossy());
        let entered = table.enter(&["ip", &limit.section, &client], limit.most);
        counted.push(entered.ok_or_else(|| {
            refuse(sys::HTTP_TOO_MANY_REQUESTS, limit, "WebSocketMaxConnectionsPerIP")
        })?);
    }
    Ok(counted)
}

fn origin_is_allowed(r: Request<'_>, settings: &Settings, opening: &Opening<'_>) -> bool {
    // httpd may ask the resolver for its name (UseCanonicalName DNS).
    let own = if opening.origins.iter().any(Option::is_some) && settings.compares_origins() {
        own_origin(r)
    } else {
        String::new()
    };
    let by_server = opening.is_from(|origin| settings.server_allows(origin, &own));
    let by_htaccess = opening.is_from(|origin| settings.htaccess_allows(origin, &own));
    if !by_server && by_htaccess {
        mistakes::tell_of_more_origins(r, settings);
    }
    if !(by_server && by_htaccess) {
        mistakes::tell_of_no_origins(r, settings);
    }
    by_server && by_htaccess
}

/// The origin that the pages of the server itself have.
fn own_origin(r: Request<'_>) -> String {
    let (scheme, host, port) = r.origin();
    // Browsers write it in lower case, ServerName is as the administrator has written it.
    let host = host.to_string_lossy().to_ascii_lowercase();
    handshake::own_origin(&scheme.to_string_lossy(), &host, port)
}

/// All that an upgrade needs, obtained before anything is promised to the client or the plugin.
struct Upgrade {
    outbox: Arc<Outbox>,
    session: Session,
    /// How the connection may go past httpd's filters, or what keeps it there.
    past: Result<PastFilters, String>,
    /// The same bytes as httpd sees them.
    filters: Filters,
    timeouts: Timeouts,
    deflate: Option<(Params, Claim)>,
    /// The connection's places under the limits.
    counted: Vec<Counted>,
    /// What it holds if it is known to stay.
    worker: Option<Worker>,
    /// prefork handles signals on this thread; neither its callbacks nor a hand-over must be interrupted.
    signals: Option<Signals>,
}

/// A descriptor of our own for a connection on which httpd has nothing but its own filters, and mod_ssl's.
struct PastFilters {
    socket: Arc<Socket>,
    /// For TLS, which only a detached connection can do without mod_ssl's filters.
    takeover: Option<Takeover>,
}

/// How a connection can go past httpd's filters, or what keeps it there.
type Way = Result<Option<Takeover>, String>;

impl PastFilters {
    /// Finds the way there may be. Nothing is changed.
    fn way(r: Request<'_>) -> Way {
        let connection = r.connection();
        // SAFETY: the connection is the request's own (request::R1).
        let is_https = unsafe { tls::is_https(connection) };
        // SAFETY: as above.
        if let Some(name) = unsafe { filters::foreign(connection, is_https) } {
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
        let socket = Arc::new(Socket::new(spare(own)?)?);
        Ok(Self { socket, takeover })
    }
}

impl Upgrade {
    fn prepare(
        r: Request<'_>,
        settings: &Settings,
        opening: &Opening<'_>,
        way: Way,
        counted: Vec<Counted>,
        worker: Option<Worker>,
    ) -> io::Result<Self> {
        let signals = if is_threaded() { None } else { Some(Signals::block()?) };
        let compression = &settings.compression;
        let deflate = compression
            .policy()
            .and_then(|policy| deflate::negotiate_within(opening.extensions, &policy, &MEMORY));
        let params = deflate.as_ref().map(|(params, _)| params);
        let timeout = timeout(r);
        let queue = settings.send_queue();
        let bounds =
            Bounds { queue, timeout, compress_from: compression.min_size(), memory: &MEMORY };
        let deflater = params.map(|params| Deflater::new(params, compression.level()));
        let log = Box::new(log::ConnectionLog::new(r));
        let outbox = Outbox::new(bounds, deflater, log).speaking(opening.version);
        let mut timeouts = settings.timeouts(timeout);
        if let Version::Draft(_) = opening.version {
            // There is no Ping to send.
            timeouts.ping = None;
        }
        let limits = Limits {
            version: opening.version,
            max_message: settings.max_message(),
            allow_reserved: settings.allow_reserved(),
            memory: &MEMORY,
        };
        // SAFETY: the connection is the request's own (request::R1), and a io with it does not outlive the handler.
        let filters = unsafe { Filters::new(r.connection()) }?;
        let past = match way {
            Ok(takeover) => Ok(PastFilters::new(&filters, takeover)?),
            Err(why) => Err(why),
        };
        Ok(Self {
            session: Session::new(limits, params),
            outbox: Arc::new(outbox),
            past,
            filters,
            timeouts,
            deflate,
            counted,
            worker,
            signals,
        })
    }

    /// Asks the plugin, answers the client, and has the connection served to its end.
    fn serve(
        mut self,
        r: Request<'_>,
        chosen: Chosen<'_>,
        detach: Detach,
        opening: &Opening<'_>,
    ) -> c_int {
        let (headers, left_out) = Headers::copy(r.fields(Table::HeadersIn).into_iter());
        if left_out > 0 {
            let line = "WS0105: the request's headers exceed 64 KiB; the plugin will miss";
            log::request(r, Level::Warn, format_args!("{line} {left_out} of them"));
        }
        let headers = Arc::new(headers);
        let (outbox, request) = (self.outbox.clone(), r.as_ptr().cast());
        let mut watched = None;
        let (endpoint, answer, stays): (Box<dyn Endpoint>, _, _) = match chosen {
            Chosen::Plugin(plugin) => {
                let (headers, protocols) = (headers.clone(), Protocols::copy(opening.protocols));
                let threaded = is_threaded();
                // SAFETY: the connection is the request's own (request::R1).
                let is_stream = unsafe { http2::is_stream(r.connection()) };
                // On a process's only thread, and to its end: nothing can be detached, whatever the plugin asks for.
                let alone = !threaded && !is_stream && !detach.allows_plugin(false, threaded);
                let callbacks = plugin.callbacks();
                watched = Some(SHUTDOWN.watch(callbacks.clone()));
                let asked = PluginOpening { outbox, request, headers, protocols, alone, callbacks };
                let Some((connection, answer)) = Connection::open(plugin.clone(), asked) else {
                    let uri = r.uri().to_string_lossy();
                    log::request(r, Level::Info, format_args!("WS0106: the plugin refuses {uri}"));
                    return sys::HTTP_FORBIDDEN as c_int;
                };
                let stays = match detach {
                    _ if detach.allows_plugin(connection.wants_request(), threaded) => None,
                    Detach::Off => Some(OFF),
                    _ if !threaded => Some("on this MPM plugins have one connection per process"),
                    _ => Some("the plugin asks for httpd's request"),
                };
                (Box::new(connection), answer, stays)
            }
            Chosen::Bridge(bridge) => {
                let protocol = bridge.protocol.and_then(|n| opening.protocols.iter().nth(n));
                let protocol = protocol.and_then(|name| CString::new(name).ok());
                let answer = Answer { protocol, ..Answer::default() };
                (Box::new(bridge.open(outbox)), answer, (!detach.allows_bridge()).then_some(OFF))
            }
        };
        let none = child::service().is_none().then_some("there are no threads of the module's");
        let stays = stays.or(none);
        if stays.is_some() && self.worker.is_none() {
            match worker(r) {
                Ok(worker) => self.worker = Some(worker),
                Err(status) => {
                    self.outbox.end("WebSockets hold as many workers as they may");
                    endpoint.closed();
                    return status;
                }
            }
        }
        // SAFETY: the connection is the request's own (request::R1).
        unsafe { filters::remove_obstacles(r.connection()) };
        switch_protocols(r, opening, &answer, self.deflate.as_ref().map(|(params, _)| params));
        let Self { outbox, session, past, mut filters, mut timeouts, .. } = self;
        let Self { deflate, counted, worker, signals, .. } = self;
        let past = past.and_then(|past| match past.takeover {
            Some(_) if stays.is_some() => Err("mod_ssl".to_owned()),
            _ => Ok(past),
        });
        let sent =
            if r.is_aborted() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) };
        let proof = opening.proof.as_ref();
        let proved = sent.and_then(|()| proof.map_or(Ok(()), |proof| filters.write_all(proof)));
        let past = match proved.and_then(|()| leave_filters(&mut filters, r.connection(), past)) {
            Ok(past) => past,
            Err(error) => {
                outbox
                    .log()
                    .write(Level::Info, format_args!("WS0302: the connection is lost: {error}"));
                outbox.end("the connection is lost");
                endpoint.closed();
                finish(r, &outbox.summary(), true);
                drop((deflate, counted, worker, watched));
                release_after_log(r, signals);
                return sys::HOOK_OK;
            }
        };
        if let Ok((PastFilters { takeover: None, .. }, early)) = &past {
            // They came with the handshake, but it is the conversation that counts them.
            super::count_bytes(r.connection(), -(early.len() as i64), 0);
        }
        let reserve = Reserve { _deflate: deflate, _counted: counted };
        let transport: Box<dyn Transport> = match past {
            Ok((PastFilters { socket, takeover }, early)) if stays.is_none() => {
                let home = if takeover.is_some() { "TLS" } else { "clear text" };
                outbox.log().write(Level::Debug, format_args!("detached, {home}"));
                endpoint.forget_request();
                r.set_for_log(ENV_OPEN);
                let record = Record::of(r, headers);
                let ended: Ended = Box::new(move |finish| {
                    drop(reserve);
                    record.log(finish);
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
                // SAFETY: the connection is the request's own (request::R1), which has left HTTP; the handler returns.
                unsafe { detach::leave(r.connection(), leaving) };
                return sys::HOOK_OK;
            }
            Ok((past, early)) => Box::new(Plain::new(past.socket, early)),
            Err(why) => {
                outbox.log().write(
                    Level::Debug,
                    format_args!("bytes go through httpd's filters because of {why}"),
                );
                Box::new(filters)
            }
        };
        let why = stays.unwrap_or("the filters stay in use");
        outbox.log().write(Level::Debug, format_args!("served on httpd's thread: {why}"));
        let worker = worker.or_else(|| workers::take(r));
        if worker.is_none() {
            turn_away(&outbox, &mut timeouts);
        }
        let uncounted = transport.socket().is_some();
        let (io, held) = (ConnIo::new(transport, outbox.clone()), signals.as_ref());
        let ended = blocking::serve(io, session, &*endpoint, timeouts, &SHUTDOWN, held);
        if let Some(service) = child::service() {
            service.look();
        }
        let summary = outbox.summary();
        if uncounted {
            super::count_bytes(r.connection(), ended.received as i64, summary.bytes_out as i64);
        }
        finish(r, &summary, ended.lost);
        // In a stop event and worker close the connection themselves.
        if ended.hurried && !ended.lost && SHUTDOWN.ending() != Ending::Stop {
            // SAFETY: the connection is the request's own (request::R1), and httpd keeps its descriptor but for a stop.
            unsafe { filters::end_input(r.connection()) };
        }
        drop((reserve, worker, watched));
        release_after_log(r, signals);
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

/// What a connection holds until its conversation is over.
struct Reserve {
    _deflate: Option<(Params, Claim)>,
    _counted: Vec<Counted>,
}

/// Refuses a descriptor that httpd needs for itself: it accepts no connection without one, and event and prefork give
/// the child up then.
pub(super) fn spare<D: AsRawFd>(descriptor: D) -> io::Result<D> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is live.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    // The kernel gives the lowest free number, so this one tells how many there are.
    if descriptor.as_raw_fd() as u64 + child::RESERVE.min(limit.rlim_cur / 4) >= limit.rlim_cur {
        return Err(io::Error::other(format!(
            "all but the last of the child's {} open files are in use (ulimit -n)",
            limit.rlim_cur
        )));
    }
    Ok(descriptor)
}

/// `Timeout` of the request's server.
pub(super) fn timeout(r: Request<'_>) -> Duration {
    // SAFETY: a request's server is live (request::R3). The value is in microseconds.
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
    connection: *mut sys::conn_rec,
    past: Result<PastFilters, String>,
) -> io::Result<Result<(PastFilters, Early), String>> {
    // SAFETY: the connection is the request's own (request::R1). From here on nothing may block in httpd's filters.
    unsafe { filters::set_timeout(connection, 0) };
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
        // SAFETY: as above.
        unsafe { filters::forbid_flushes(connection) };
    }
    Ok(past)
}

/// Why a connection stays on httpd's thread, if the administrator wants it so.
const OFF: &str = "WebSocketDetach is Off";

/// Set for a request whose connection is detached, so that `CustomLog … env=!websocket-open` leaves its first line out.
const ENV_OPEN: &CStr = c"websocket-open";

/// Leaves the request to httpd: what the access log shows, and how it closes the connection.
fn finish(r: Request<'_>, summary: &Summary, lost: bool) {
    note_summary(r, summary);
    let connection = r.connection();
    // SAFETY: the connection is live and ours (request::R1); the note's name and value are literals.
    unsafe {
        filters::allow_flushes(connection);
        filters::end_stream(connection);
        if lost {
            // httpd must not wait for the client, not even to get rid of what its filters still hold.
            (*connection).aborted = 1;
            return;
        }
        // This makes httpd wait two seconds at most for a client that does not close, instead of thirty.
        let (key, value) = (c"short-lingering-close".as_ptr(), c"1".as_ptr());
        sys::apr_table_setn((*connection).notes, key, value);
        filters::set_timeout(connection, (*r.server()).timeout);
    }
}

/// Keeps signals back until httpd has written the access log and frees the request: a pending one ends the process. (Not so on
/// a thread of mod_http2's, whose requests are freed by another thread.)
fn release_after_log(r: Request<'_>, signals: Option<Signals>) {
    unsafe extern "C" fn release(signals: *mut c_void) -> sys::apr_status_t {
        // SAFETY: made from a Box below; a cleanup runs once, and on this thread, since httpd clears the pool there.
        drop(unsafe { Box::from_raw(signals.cast::<Signals>()) });
        0
    }
    // SAFETY: the connection is the request's own (request::R1).
    let is_stream = unsafe { http2::is_stream(r.connection()) };
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
