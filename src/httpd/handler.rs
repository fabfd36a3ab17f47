//! httpd's handler: a request's handshake is checked, and refused or upgraded.

use core::ffi::{CStr, c_int};
use std::{ffi::CString, io};

use super::{
    bridge::Bridge,
    channel::Subscribing,
    child,
    directives::{self, Section, Target},
    draft, events, http2, is_threaded, log, mistakes,
    request::{Request, Table},
    shared, sys,
    upgrade::{Chosen, PastFilters, Upgrade, agree},
    workers::{self, Worker},
};
use crate::{
    bridge::connect::Caller,
    conn::log::Level,
    limits::connections::Counted,
    metrics::Metric,
    proto::{
        draft::Challenge,
        handshake::{self, Opening, Refusal},
    },
    settings::{Limit, Settings},
};

/// The name that SetHandler gives to requests for this module.
const HANDLER: &CStr = c"websocket-handler";

/// httpd's handler hook.
pub(super) fn handle(r: Request<'_>) -> c_int {
    if r.handler() != Some(HANDLER) || !r.is_main() {
        mistakes::tell_of_other_handler(r);
        return sys::DECLINED;
    }
    let answer = answer(r);
    // What was upgraded has been counted then.
    if answer >= sys::HTTP_OK as c_int {
        shared::line().count(Metric::Handshakes, &answer.to_string());
    }
    answer
}

/// What a request for this module is answered.
fn answer(r: Request<'_>) -> c_int {
    let section = directives::section(r);
    if let Some(channels) = events::wanted(r, section) {
        return events::serve(r, section, channels);
    }
    let is_stream = r.connection().is_stream();
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
    match opening {
        Ok(Some((opening, challenge))) => {
            upgrade(r, opening, challenge).unwrap_or_else(|status| status)
        }
        Ok(None) => {
            log::request(r, Level::Debug, format_args!("no WebSocket handshake; declined"));
            sys::DECLINED
        }
        Err(refusal) => refuse(r, refusal),
    }
}

/// Answers a handshake that is in order; the error is a status that refuses it, before anything was promised.
fn upgrade(
    r: Request<'_>,
    mut opening: Opening<'_>,
    challenge: Option<Challenge>,
) -> Result<c_int, c_int> {
    let section = directives::section(r);
    let target = target(r, section)?;
    if !origin_is_allowed(r, &section.settings, opening.origins) {
        return Err(refuse(r, Refusal::Origin));
    }
    mistakes::tell_of_larger_size(r, &section.settings);
    http2::check(r)?;
    if child::is_near() {
        return Err(leave_to_next(r));
    }
    let way = PastFilters::way(r);
    let known_to_stay = way.is_err() || stays(section, target);
    let worker = known_to_stay.then(|| worker(r)).transpose()?;
    let counted = count(r, &section.settings)?;
    let mut waiting = Waiting { r, has_worker: worker.is_some(), worker: None };
    // Only now: nobody waits for a client who is refused.
    opening.proof = challenge
        .map(|challenge| draft::proof(r, challenge, &mut || waiting.may_wait()))
        .transpose()?;
    let chosen = match target {
        Target::Plugin(plugin) => Chosen::Plugin(plugin),
        Target::Bridge(source) => {
            let (settings, max_message) = (&section.bridge, section.settings.max_message());
            let offered = opening.protocols;
            Chosen::Bridge(Bridge::reach(r, source, settings, max_message, offered, &mut waiting)?)
        }
        Target::Channel(channels) => {
            let format = Subscribing::format(opening.protocols);
            Chosen::Channel(Subscribing::new(r, channels, &section.channel, format)?)
        }
    };
    drop(waiting);
    let deflate = agree(&section.settings, &opening, matches!(target, Target::Channel(_)));
    let version = opening.version;
    let upgrade = Upgrade::prepare(r, &section.settings, version, deflate, way, counted, worker)
        .map_err(|error| unavailable(r, &error))?;
    // prefork's signals are held back by now: none comes between this look and the conversation.
    if child::is_near() {
        return Err(leave_to_next(r));
    }
    Ok(upgrade.serve(r, chosen, &section.settings, &opening))
}

/// Where the messages go; a section that does not say so is a mistake of the administrator's.
fn target<'s>(r: Request<'_>, section: &'s Section) -> Result<&'s Target, c_int> {
    section.target.as_ref().ok_or_else(|| {
        let uri = r.uri().to_string_lossy();
        log::request(
            r,
            Level::Error,
            format_args!(
                "WS0102: the Location of {uri} has 'SetHandler websocket-handler' but no \
                 WebSocketHandler, WebSocketBridge or WebSocketChannel: name a plugin, a peer or a channel there"
            ),
        );
        sys::HTTP_INTERNAL_SERVER_ERROR as c_int
    })
}

/// Whether it is known before anybody is asked that a connection stays on httpd's thread, wherever it may go.
pub(super) fn stays(section: &Section, target: &Target) -> bool {
    let detach = section.settings.detach();
    let may_leave = match target {
        Target::Plugin(plugin) => detach.allows_plugin(plugin.wants_request(), is_threaded()),
        Target::Bridge(_) | Target::Channel(_) => detach.allows_bridge(),
    };
    !may_leave || child::service().is_none()
}

/// Takes the worker of httpd's, or of mod_http2's, that a connection holds; the status that refuses it if WebSockets hold
/// as many as they may.
pub(super) fn worker(r: Request<'_>) -> Result<Worker, c_int> {
    workers::take(r).ok_or_else(|| come_later(r))
}

/// A handshake whose thread may have to wait, for its client or for a peer.
struct Waiting<'r> {
    r: Request<'r>,
    /// The thread is counted already.
    has_worker: bool,
    /// While it waits it is held as by a WebSocket that stays.
    worker: Option<Worker>,
}

impl Caller for Waiting<'_> {
    fn may_wait(&mut self) -> bool {
        if !self.has_worker && self.worker.is_none() {
            self.worker = workers::take(self.r);
        }
        self.has_worker || self.worker.is_some()
    }

    fn is_there(&self) -> bool {
        !child::is_near() && !self.r.connection().is_gone()
    }
}

/// Tells a client that there is no room for it, and when to try again.
pub(super) fn come_later(r: Request<'_>) -> c_int {
    // A guess, but one that spreads those who come again.
    r.set(Table::ErrHeadersOut, c"Retry-After", c"10");
    sys::HTTP_SERVICE_UNAVAILABLE as c_int
}

/// Refuses a request that came to a child which is about to go: its WebSocket would outlive the time that the others have.
pub(super) fn leave_to_next(r: Request<'_>) -> c_int {
    log::request(r, Level::Info, format_args!("WS0112: refused: this child is ending"));
    come_later(r)
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
pub(super) fn count(r: Request<'_>, settings: &Settings) -> Result<Vec<Counted>, c_int> {
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

/// Whether the pages that a request comes from, as far as it names them, may have it.
pub(super) fn origin_is_allowed(
    r: Request<'_>,
    settings: &Settings,
    origins: [Option<&[u8]>; 2],
) -> bool {
    // httpd may ask the resolver for its name (UseCanonicalName DNS).
    let own = if origins.iter().any(Option::is_some) && settings.compares_origins() {
        own_origin(r)
    } else {
        String::new()
    };
    let by_server = handshake::are_allowed(origins, |origin| settings.server_allows(origin, &own));
    let by_htaccess =
        handshake::are_allowed(origins, |origin| settings.htaccess_allows(origin, &own));
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
