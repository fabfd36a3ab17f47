//! `SetHandler websocket-publish`: a POST publishes, a GET tells of the channel, and a DELETE ends its subscribers.
//!
//! Answers are JSON. Who may ask is said by `Require`, as everywhere, and by `WebSocketPublish` besides.

use core::ffi::{CStr, c_char, c_int};
use std::{fmt::Write as _, time::Duration};

use super::{
    access::{self, Refusal},
    channel::{self, text},
    directives::{self, Section, Target},
    log,
    request::{Request, Table},
    shared, sys,
};
use crate::{
    channel::{
        Kind,
        broker::{Broker, NewMessage, Refused},
        id::Id,
        media,
        store::Store,
    },
    conn::log::Level,
    metrics::Metric,
};

/// The name that SetHandler gives to requests of those who publish.
const HANDLER: &CStr = c"websocket-publish";

/// How long a request waits for others that publish.
const PATIENCE: Duration = Duration::from_secs(1);

/// httpd's handler hook; `None` for requests of others.
pub(super) fn handle(r: Request<'_>) -> Option<c_int> {
    if r.handler() != Some(HANDLER) || !r.is_main() {
        return None;
    }
    let section = directives::section(r);
    Some(serve(r, section).unwrap_or_else(|(status, why)| {
        let uri = r.uri().to_string_lossy();
        let is_ours = status == sys::HTTP_INTERNAL_SERVER_ERROR;
        let level = if is_ours { Level::Error } else { Level::Info };
        log::request(r, level, format_args!("WS0705: {uri} is answered {status}: {why}"));
        shared::line().count(Metric::ChannelRefused, &status.to_string());
        answer(r, status, &format!("{{\"error\":{}}}", json(why)))
    }))
}

fn serve(r: Request<'_>, section: &Section) -> Result<c_int, Refusal> {
    let Some(Target::Channel(channels)) = &section.target else {
        let why = "its section has no WebSocketChannel: name the channel there";
        return Err((sys::HTTP_INTERNAL_SERVER_ERROR, why));
    };
    let method = r.method();
    if ![sys::M_GET, sys::M_POST, sys::M_DELETE].contains(&method) {
        r.set(Table::ErrHeadersOut, c"Allow", c"GET, HEAD, POST, DELETE");
        return Err((
            sys::HTTP_METHOD_NOT_ALLOWED,
            "only GET, POST and DELETE are understood here",
        ));
    }
    access::check(r, section)?;
    let names = channels.names(r).map_err(|status| {
        let why = if status == sys::HTTP_FORBIDDEN as c_int {
            "the request gives no channel"
        } else {
            "the channel's name cannot be found out"
        };
        (status.unsigned_abs(), why)
    })?;
    let none = "there is no memory for channels";
    let store = channel::store().ok_or((sys::HTTP_SERVICE_UNAVAILABLE, none))?;
    match method {
        sys::M_POST => post(r, store, &names, section.settings.max_message()),
        sys::M_DELETE => {
            let ended = publish(r, &store, &names, Kind::End, "", b"")?;
            Ok(answer(r, sys::HTTP_OK, &published(store, &names, &ended)))
        }
        _ => Ok(answer(r, sys::HTTP_OK, &list(names.iter().map(|name| about(store, name))))),
    }
}

fn post(
    r: Request<'_>,
    store: Store,
    names: &[String],
    max_message: usize,
) -> Result<c_int, Refusal> {
    // SAFETY: R1 in request.rs.
    let limit = unsafe { sys::ap_get_limit_req_body(r.as_ptr()) };
    let limit = usize::try_from(limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
    let most = store.most().min(max_message).min(limit);
    let media_type = text(r.get(Table::HeadersIn, c"Content-Type"));
    let body = body(r, most)?;
    let kind = if media::is_text(&media_type) { Kind::Text } else { Kind::Binary };
    if kind == Kind::Text && simdutf8::basic::from_utf8(&body).is_err() {
        return Err((sys::HTTP_BAD_REQUEST, "the body is text by its Content-Type, but not UTF-8"));
    }
    let ids = publish(r, &store, names, kind, &media_type, &body)?;
    let heard = names.iter().any(|name| subscribers(store, name) > 0);
    let status = if heard { sys::HTTP_CREATED } else { sys::HTTP_ACCEPTED };
    Ok(answer(r, status, &published(store, names, &ids)))
}

/// Publishes to each of the channels.
fn publish(
    r: Request<'_>,
    broker: &dyn Broker,
    names: &[String],
    kind: Kind,
    media: &str,
    body: &[u8],
) -> Result<Vec<Id>, Refusal> {
    let publish = |name: &String| {
        let id = broker.publish(&NewMessage { kind, channel: name, media, body }, PATIENCE)?;
        shared::line().add(Metric::ChannelPublished, u64::from(kind != Kind::End));
        Ok(id)
    };
    let ids: Result<_, _> = names.iter().map(publish).collect();
    ids.map_err(|refused| match refused {
        Refused::TooLarge => too_large(r),
        Refused::Busy => {
            r.set(Table::ErrHeadersOut, c"Retry-After", c"1");
            (sys::HTTP_SERVICE_UNAVAILABLE, "others have been publishing for a second: try again")
        }
    })
}

/// A body that is too large is not read: httpd would, to serve the connection's next request.
fn too_large(r: Request<'_>) -> Refusal {
    r.close_afterwards();
    (
        sys::HTTP_REQUEST_ENTITY_TOO_LARGE,
        "the message is larger than WebSocketMaxMessageSize, LimitRequestBody or an eighth of WebSocketChannelMemory",
    )
}

/// The request's body, of `most` bytes at most.
fn body(r: Request<'_>, most: usize) -> Result<Vec<u8>, Refusal> {
    let announced = r.get(Table::HeadersIn, c"Content-Length").and_then(|n| n.to_str().ok());
    let announced = announced.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
    if announced > most as u64 {
        return Err(too_large(r));
    }
    let broken = (sys::HTTP_BAD_REQUEST, "the body could not be read");
    let policy = sys::REQUEST_CHUNKED_DECHUNK as c_int;
    // SAFETY: R1 in request.rs.
    if unsafe { sys::ap_setup_client_block(r.as_ptr(), policy) } != sys::HOOK_OK {
        return Err(broken);
    }
    let mut body = Vec::with_capacity(announced as usize);
    // SAFETY: as above.
    if unsafe { sys::ap_should_client_block(r.as_ptr()) } == 0 {
        return Ok(body);
    }
    let mut part = [0; 8192];
    loop {
        // SAFETY: as above; the buffer is as large as it says. It waits for the client as long as Timeout and
        // mod_reqtimeout allow.
        let n = unsafe {
            sys::ap_get_client_block(r.as_ptr(), part.as_mut_ptr().cast::<c_char>(), part.len())
        };
        match usize::try_from(n) {
            Ok(0) => return Ok(body),
            Ok(n) if body.len() + n > most => return Err(too_large(r)),
            Ok(n) => body.extend_from_slice(&part[..n]),
            Err(_) => {
                r.close_afterwards();
                return Err(broken);
            }
        }
    }
}

fn subscribers(store: Store, name: &str) -> u64 {
    store.counts().subscribers(store.ring().hash(name))
}

/// What was published, for the answer.
fn published(store: Store, names: &[String], ids: &[Id]) -> String {
    list(names.iter().zip(ids).map(|(name, id)| {
        let subscribers = subscribers(store, name);
        format!("{{\"id\":\"{id}\",\"channel\":{},\"subscribers\":{subscribers}}}", json(name))
    }))
}

/// What is known of a channel.
fn about(store: Store, name: &str) -> String {
    let (ring, mut messages, mut ends) = (store.ring(), 0, None);
    for header in ring.history(name) {
        messages += 1;
        let newest = ends.map_or(header, |(_, newest)| newest);
        ends = Some((header, newest));
    }
    let id = |header: Option<crate::channel::ring::Header>| {
        let id = |h: crate::channel::ring::Header| Id::new(ring.seed(), h.time, h.at, h.hash);
        header.map_or_else(|| "null".to_owned(), |header| format!("\"{}\"", id(header)))
    };
    format!(
        "{{\"channel\":{},\"subscribers\":{},\"messages\":{messages},\"oldest\":{},\"newest\":{}}}",
        json(name),
        subscribers(store, name),
        id(ends.map(|(oldest, _)| oldest)),
        id(ends.map(|(_, newest)| newest)),
    )
}

/// One object, or an array of several.
fn list(objects: impl Iterator<Item = String>) -> String {
    let objects: Vec<String> = objects.collect();
    match &objects[..] {
        [one] => one.clone(),
        _ => format!("[{}]", objects.join(",")),
    }
}

/// A string of JSON (RFC 8259 §7).
fn json(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            // Writing to a String cannot fail.
            c if c < ' ' => drop(write!(quoted, "\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Answers with JSON.
fn answer(r: Request<'_>, status: u32, body: &str) -> c_int {
    r.answer(status, c"application/json", &format!("{body}\n"))
}
