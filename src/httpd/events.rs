//! Server-Sent Events (WHATWG HTML §9.2): subscribers that open no WebSocket, but ask for `text/event-stream`.
//!
//! The response's header goes through the request's own filters, so that what mod_headers sets is there; then the
//! connection leaves HTTP as that of a WebSocket does. A client is never refused for want of room: EventSource would not
//! come again. It is told to come back instead, and so is each on a stream of HTTP/2, where it would hold a thread.

use core::ffi::{CStr, c_int};

use super::{
    channel::{Channels, Subscribing},
    child,
    directives::{Section, Target},
    handler, log,
    request::{Request, Table},
    shared, sys,
    upgrade::{Chosen, PastFilters, Upgrade},
};
use crate::{
    channel::format::Format,
    conn::log::Level,
    metrics::Metric,
    proto::{Version, events, handshake::Opening},
};

/// When a client comes back for which there was no room, in milliseconds.
const NO_ROOM: u32 = 5000;
/// When one comes back that was given what there was.
const NEXT: u32 = 2000;
/// The same if there is more.
const AT_ONCE: u32 = 10;
/// How much one is given at a time, and a message more.
const MOST: usize = 64 << 10;

/// The channels whose events a request asks for.
pub(super) fn wanted<'s>(r: Request<'_>, section: &'s Section) -> Option<&'s Channels> {
    let Some(Target::Channel(channels)) = &section.target else { return None };
    let upgrades = r.get(Table::HeadersIn, c"Upgrade").is_some();
    let accept = r.get(Table::HeadersIn, c"Accept").map_or(&b""[..], CStr::to_bytes);
    let media_type = |range: &[u8]| {
        let end = range.iter().position(|&b| b == b';').unwrap_or(range.len());
        range[..end].trim_ascii().eq_ignore_ascii_case(events::MEDIA_TYPE.as_bytes())
    };
    // What httpd shows instead of an error has an end.
    let is_error = !r.is_initial() && r.rewritten_from().is_none();
    let wanted =
        r.is_get() && !is_error && !upgrades && accept.split(|&b| b == b',').any(media_type);
    wanted.then_some(channels)
}

/// Serves a request for events; a status if it is refused.
pub(super) fn serve(r: Request<'_>, section: &Section, channels: &Channels) -> c_int {
    subscribe(r, section, channels).unwrap_or_else(|status| match status.unsigned_abs() {
        sys::HTTP_SERVICE_UNAVAILABLE | sys::HTTP_TOO_MANY_REQUESTS => come_back(r),
        _ => status,
    })
}

fn subscribe(r: Request<'_>, section: &Section, channels: &Channels) -> Result<c_int, c_int> {
    let origin = r.get(Table::HeadersIn, c"Origin").map(CStr::to_bytes);
    if !handler::origin_is_allowed(r, &section.settings, [origin, None]) {
        let uri = r.uri().to_string_lossy();
        let why = "a page of this origin may not connect (WebSocketOriginCheck)";
        log::request(r, Level::Info, format_args!("WS0706: events of {uri} refused: {why}"));
        return Err(sys::HTTP_FORBIDDEN as c_int);
    }
    let subscribing = Subscribing::new(r, channels, &section.channel, Format::Event)?;
    if r.connection().is_stream() {
        let (events, more) = subscribing.events(MOST);
        let retry = events::retry(if more { AT_ONCE } else { NEXT });
        shared::line().add(Metric::ChannelEventPolls, 1);
        return Ok(answer(r, &[retry.as_bytes(), &events].concat()));
    }
    if child::is_near() {
        return Ok(come_back(r));
    }
    let way = PastFilters::way(r);
    let stays = way.is_err() || section.target.as_ref().is_none_or(|t| handler::stays(section, t));
    let worker = stays.then(|| handler::worker(r)).transpose()?;
    let counted = handler::count(r, &section.settings)?;
    let opening = Opening {
        version: Version::EventStream,
        accept: String::new(),
        proof: None,
        protocols: Default::default(),
        extensions: "",
        origins: [origin, None],
    };
    let version = opening.version;
    let upgrade = Upgrade::prepare(r, &section.settings, version, None, way, counted, worker)
        .map_err(|error| handler::unavailable(r, &error))?;
    if child::is_near() {
        return Ok(come_back(r));
    }
    let chosen = Chosen::Channel(subscribing);
    Ok(upgrade.serve(r, chosen, &section.settings, &opening))
}

/// Has a client come back, for whom there is no room now.
pub(super) fn come_back(r: Request<'_>) -> c_int {
    log::request(r, Level::Info, format_args!("WS0707: no room for a stream of events now"));
    shared::line().add(Metric::ChannelEventRetries, 1);
    answer(r, events::retry(NO_ROOM).as_bytes())
}

/// The fields of a response with events.
fn set_fields(r: Request<'_>) {
    r.set(Table::HeadersOut, c"Cache-Control", c"no-store");
    r.set(Table::HeadersOut, c"X-Accel-Buffering", c"no");
    r.merge(Table::HeadersOut, c"Vary", c"Accept");
    // mod_deflate's and mod_brotli's: they would keep events until there are enough of them.
    r.set_env(c"no-gzip", c"1");
    r.set_env(c"no-brotli", c"1");
    // SAFETY: R1 in request.rs; the type is a literal.
    unsafe {
        (*r.as_ptr()).status = sys::HTTP_OK as c_int;
        sys::ap_set_content_type(r.as_ptr(), c"text/event-stream".as_ptr());
    }
}

/// Answers with a response that ends.
fn answer(r: Request<'_>, body: &[u8]) -> c_int {
    set_fields(r);
    // SAFETY: R1 in request.rs; the body lives for the call.
    unsafe { sys::ap_rwrite(body.as_ptr().cast(), body.len() as c_int, r.as_ptr()) };
    sys::HOOK_OK
}

/// Sends the header of a response whose body does not end, and leaves HTTP.
pub(super) fn begin(r: Request<'_>) {
    // Before the header is made: so the body has neither length nor chunks.
    r.close_afterwards();
    set_fields(r);
    // SAFETY: R1 in request.rs.
    unsafe { sys::ap_rflush(r.as_ptr()) };
    r.leave_http();
}
