//! `websocket_draft76_module`: the switch for drafts 76 and 75, and what is different about their handshake here.
//!
//! Loading it is all that turns draft 76 on. It has no handler: requests come to the one of `websocket_module`, which
//! asks here first, and have the plugin, the limits and the policies that are configured there.

use core::{
    ffi::{CStr, c_char, c_int},
    ptr,
};
use std::{
    ffi::CString,
    io,
    time::{Duration, Instant},
};

use super::{
    boundary, directives,
    filters::Filters,
    handler::come_later,
    is_threaded, log, module_index,
    request::{Request, Table},
    shared, structure, sys,
};
use crate::{
    conn::log::Level,
    limits::connections::Counted,
    plugin::connection::Answer,
    proto::{
        draft::{self, Challenge, Draft},
        handshake::{self, Opening, Refusal},
    },
};

/// The name that `<IfModule>` takes; apache-websocket's module has the same.
pub(super) const NAME: &CStr = c"mod_websocket_draft76.c";

/// The module structure that `LoadModule websocket_draft76_module` looks up.
#[unsafe(no_mangle)]
#[expect(unreachable_pub, reason = "httpd looks the symbol up; nothing in Rust does")]
pub static mut websocket_draft76_module: sys::module =
    structure(NAME, None, directives::DRAFT_COMMANDS.as_ptr(), register_hooks);

/// The module structure, as httpd's functions take it.
pub(super) fn module() -> *const sys::module {
    &raw const websocket_draft76_module
}

/// Whether httpd has loaded this module: it numbers those that it loads, and takes the number back.
fn is_loaded() -> bool {
    // SAFETY: httpd writes it while it reads the configuration, when there are no requests.
    unsafe { websocket_draft76_module.module_index >= 0 }
}

unsafe extern "C" fn register_hooks(_pool: *mut sys::apr_pool_t) {
    let (none, middle) = (ptr::null::<*const c_char>(), sys::APR_HOOK_MIDDLE as c_int);
    // SAFETY: httpd calls this to have hooks registered.
    unsafe { sys::ap_hook_check_config(Some(hook_check_config), none, none, middle) };
}

unsafe extern "C" fn hook_check_config(
    _config: *mut sys::apr_pool_t,
    _log: *mut sys::apr_pool_t,
    _temporary: *mut sys::apr_pool_t,
    server: *mut sys::server_rec,
) -> c_int {
    boundary(sys::HTTP_INTERNAL_SERVER_ERROR as c_int, || {
        if module_index() >= 0 {
            return sys::HOOK_OK;
        }
        let line = "WS0601: websocket_draft76_module only adds to websocket_module, which is not \
                    loaded from the same library: write 'LoadModule websocket_module' with the \
                    same path, too";
        // SAFETY: httpd passes the main server.
        unsafe { log::server(server, Level::Error, format_args!("{line}")) };
        sys::HTTP_INTERNAL_SERVER_ERROR as c_int
    })
}

/// Looks whether a request opens a WebSocket of one of the drafts, which it cannot if the module is not loaded. The
/// challenge of draft 76 is for [`proof`].
pub(super) fn opening<'a>(
    r: Request<'_>,
    request: &handshake::Request<'a>,
) -> Result<Option<(Opening<'a>, Option<Challenge>)>, Refusal> {
    let connection = r.connection();
    // The drafts know HTTP/1.1 only.
    if !is_loaded() || connection.is_stream() {
        return Ok(None);
    }
    // SAFETY: the module is loaded, and its sections are made by create_dir.
    let section = unsafe { directives::section_of(r, module()) };
    let found = draft::check(request, section.settings.draft75())?;
    if found.is_some() {
        // What follows is no HTTP, whatever becomes of the request.
        // SAFETY: request::R1.
        unsafe { (*connection.as_ptr()).keepalive = sys::ap_conn_keepalive_e_AP_CONN_CLOSE };
    }
    Ok(found)
}

/// How long a worker waits at most for the eight bytes, which clients send along with the headers.
const WAIT: Duration = Duration::from_secs(2);

/// Reads the eight bytes behind the headers of draft 76, and works out what has to follow those of the answer; or the
/// status that refuses the request. Waits for a client that has not sent them yet, but only on few workers at a time, and
/// if `may_wait` says so.
pub(super) fn proof(
    r: Request<'_>,
    challenge: Challenge,
    may_wait: &mut dyn FnMut() -> bool,
) -> Result<[u8; 16], c_int> {
    let (mut key3, mut filled) = ([0; 8], 0);
    let start = Instant::now();
    // SAFETY: the request's connection outlives this call.
    let read = unsafe { Filters::new(r.connection()) }.and_then(|mut filters| {
        let came = filters.fill(&mut key3, &mut filled, start);
        if !came.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::TimedOut) {
            return came;
        }
        let _place = place().ok_or(io::ErrorKind::ResourceBusy)?;
        if !may_wait() {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        filters.fill(&mut key3, &mut filled, start + WAIT.min(r.timeout()))
    });
    let Err(error) = read else { return Ok(challenge.proof(key3)) };
    let (status, why) = match error.kind() {
        io::ErrorKind::TimedOut => (sys::HTTP_REQUEST_TIME_OUT as c_int, error.to_string()),
        io::ErrorKind::ResourceBusy => {
            (come_later(r), "a quarter of the workers waits for others' already".to_owned())
        }
        io::ErrorKind::QuotaExceeded => {
            (come_later(r), "WebSockets hold as many workers as they may".to_owned())
        }
        _ => (sys::HTTP_BAD_REQUEST as c_int, error.to_string()),
    };
    let line = "WS0602: the bytes behind the headers did not come:";
    log::request(r, Level::Info, format_args!("{line} {why}"));
    Err(status)
}

/// A worker's place among those that wait; `None` if there are enough already: a quarter of a child's, one at least.
/// Where children have one each, those of all children count. Where there is no shared memory none is counted.
fn place() -> Option<Option<Counted>> {
    let (number, scope) = if is_threaded() {
        (sys::AP_MPMQ_MAX_THREADS, std::process::id().to_string())
    } else {
        (sys::AP_MPMQ_MAX_DAEMONS, String::new())
    };
    let most = sys::mpm(number) / 4;
    let Some(table) = shared::counts() else { return Some(None) };
    table.enter(&["draft 76", &scope], most.max(1)).map(Some)
}

/// Sets the fields of the answer, in the order that the drafts prescribe. Those of others follow.
pub(super) fn set_fields(r: Request<'_>, draft: Draft, opening: &Opening<'_>, answer: &Answer) {
    let out = Table::HeadersOut;
    let others = r.fields(out);
    r.clear(out);
    let (scheme, ..) = r.origin();
    let host = r.get(Table::HeadersIn, c"Host").unwrap_or_default();
    let scheme: &[u8] = if scheme == c"https" { b"wss" } else { b"ws" };
    let location = [scheme, b"://", host.to_bytes(), r.target().to_bytes()].concat();
    // A client that offers subprotocols gives up if none is chosen.
    let first = opening.protocols.iter().next().and_then(|first| CString::new(first).ok());
    let protocol = answer.protocol.clone().or(first);
    let [location_name, origin_name, protocol_name] = draft.fields();
    let ours: [(&CStr, Option<CString>); 5] = [
        (c"Upgrade", Some(c"WebSocket".into())),
        (c"Connection", Some(c"Upgrade".into())),
        (location_name, CString::new(location).ok()),
        (origin_name, opening.origins[0].and_then(|origin| CString::new(origin).ok())),
        (protocol_name, protocol),
    ];
    for (name, value) in &ours {
        if let Some(value) = value {
            r.add(out, name, value);
        }
    }
    let same = |a: &CStr, b: &CStr| a.to_bytes().eq_ignore_ascii_case(b.to_bytes());
    for (name, value) in others.iter().filter(|(n, _)| !ours.iter().any(|(o, _)| same(o, n))) {
        r.add(out, name, value);
    }
}
