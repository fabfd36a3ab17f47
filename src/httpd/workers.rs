//! The workers that WebSockets may hold (`WebSocketWorkerShare`): threads of httpd's in each child, on prefork its
//! processes, counted over all of them, and threads of mod_http2's for streams of HTTP/2.
//!
//! mod_http2 has a client's connection hold a thread of httpd's as long as a stream of it is open: that one counts, too.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Mutex, MutexGuard},
};

use super::{directives, http2, is_threaded, log, request::Request, shared, sys};
use crate::{
    conn::log::Level,
    limits::{
        connections::Counted,
        workers::{self, Share, Workers},
    },
    sync::Lock as _,
};

/// httpd's: threads of a child, or processes where those have no threads.
static HTTPDS: Workers = Workers::new();

/// mod_http2's in a child; none without mod_http2.
static HTTP2S: Workers = Workers::new();

/// The clients' connections of HTTP/2 that have WebSockets among their streams, by address: how many of those each has,
/// and the worker of httpd's that it holds for all of them.
static CLIENTS: Mutex<BTreeMap<usize, (u32, Httpds)>> = Mutex::new(BTreeMap::new());

/// What a WebSocket holds until the value is dropped.
pub(super) struct Worker {
    _httpds: Option<Httpds>,
    _http2s: Option<(workers::HeldWorker, Client)>,
}

/// A worker of httpd's.
struct Httpds {
    _thread: Option<workers::HeldWorker>,
    _process: Option<Counted>,
}

/// A part in what a client's connection of HTTP/2 holds.
struct Client(usize);

/// Of which workers there is none left.
#[derive(Clone, Copy)]
enum Short {
    Httpds,
    Http2s,
}

/// How many of mod_http2's workers are never WebSockets', whatever their share, if there are so many: its other streams
/// would wait for as long as a WebSocket lives. With a single one mod_http2 leaves a request waiting now and then though
/// that one has nothing to do.
const LEFT_TO_HTTP2: u32 = 2;

/// Finds out how many workers there are, and how many of them WebSockets may hold.
///
/// # Safety
/// - `server` is the main server, while httpd runs its post_config hooks.
pub(super) unsafe fn begin(server: *mut sys::server_rec) {
    // SAFETY: `server` is the main server, as this function demands; the settings were made when the configuration was
    // read.
    let share: Share = unsafe { &*directives::server(server) }.worker_share.unwrap_or_default();
    let code = if is_threaded() { sys::AP_MPMQ_MAX_THREADS } else { sys::AP_MPMQ_MAX_DAEMONS };
    let workers = u32::try_from(sys::mpm(code)).unwrap_or(u32::MAX).max(1);
    HTTPDS.set(workers, share.of(workers));
    // SAFETY: as above.
    match unsafe { http2::workers(server) } {
        Some(workers) => {
            HTTP2S.set(workers, share.of(workers).min(most_over_http2(workers)));
        }
        None => HTTP2S.set(0, u32::MAX),
    }
}

/// How many of so many workers of mod_http2's can be WebSockets' at all.
fn most_over_http2(workers: u32) -> u32 {
    workers.saturating_sub(LEFT_TO_HTTP2).max(u32::from(workers > 1))
}

/// How many workers httpd has for requests, in each child or, on prefork, in all; and how many of them WebSockets may
/// hold.
pub(super) fn httpds() -> (u32, u32) {
    let all = HTTPDS.all();
    (all, HTTPDS.most().min(all))
}

/// How many WebSockets each child can hold over HTTP/2; `None` without mod_http2.
pub(super) fn over_http2() -> Option<u32> {
    (HTTP2S.all() > 0).then(|| HTTP2S.most())
}

/// Takes the worker that a request's WebSocket will hold, for a stream of HTTP/2 those. If WebSockets hold as many as they
/// may, there is none, and the log says so.
pub(super) fn take(r: Request<'_>) -> Option<Worker> {
    let client = r.connection().master();
    let taken = if client.is_null() {
        let httpds = Httpds::take().ok_or(Short::Httpds);
        httpds.map(|httpds| Worker { _httpds: Some(httpds), _http2s: None })
    } else {
        let thread = HTTP2S.take().ok_or(Short::Http2s);
        let both = thread.and_then(|thread| {
            let client = Client::enter(client.addr()).ok_or(Short::Httpds)?;
            Ok((thread, client))
        });
        both.map(|both| Worker { _httpds: None, _http2s: Some(both) })
    };
    taken.inspect_err(|&short| tell(r, short)).ok()
}

impl Httpds {
    /// A thread of this child, or this process, counted among those that WebSockets hold.
    fn take() -> Option<Self> {
        if is_threaded() {
            let thread = HTTPDS.take()?;
            return Some(Self { _thread: Some(thread), _process: None });
        }
        let most = HTTPDS.most();
        let process = match shared::counts() {
            Some(table) if most < u32::MAX => Some(table.enter(&["workers"], most.into())?),
            _ => None,
        };
        Some(Self { _thread: None, _process: process })
    }
}

impl Client {
    /// One more WebSocket of the connection at `address`, which is live until the value is dropped.
    fn enter(address: usize) -> Option<Self> {
        let mut clients = clients();
        match clients.entry(address) {
            Entry::Occupied(mut client) => client.get_mut().0 += 1,
            Entry::Vacant(place) => {
                place.insert((1, Httpds::take()?));
            }
        }
        Some(Self(address))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut clients = clients();
        if let Entry::Occupied(mut client) = clients.entry(self.0) {
            client.get_mut().0 -= 1;
            if client.get().0 == 0 {
                client.remove();
            }
        }
    }
}

fn clients() -> MutexGuard<'static, BTreeMap<usize, (u32, Httpds)>> {
    CLIENTS.acquire()
}

/// Says that WebSockets hold all workers that they may.
fn tell(r: Request<'_>, short: Short) {
    static SAID: log::OnceAMinute = log::OnceAMinute::new();
    let level = if SAID.is_due() { Level::Warn } else { Level::Info };
    let (tag, workers, what, directive) = match short {
        Short::Http2s => {
            ("WS0108", &HTTP2S, "of mod_http2's threads in this child", "H2MaxWorkers")
        }
        Short::Httpds if is_threaded() => {
            ("WS0109", &HTTPDS, "of httpd's threads in this child", "ThreadsPerChild")
        }
        Short::Httpds => ("WS0109", &HTTPDS, "of httpd's processes", "MaxRequestWorkers"),
    };
    let (all, most) = (workers.all(), workers.most());
    let most_of_all = Share::Percent(100).of(all);
    let cap = match short {
        Short::Http2s => most_of_all.min(most_over_http2(all)),
        Short::Httpds => most_of_all,
    };
    let why = if most < cap {
        format!("{directive} {all} and WebSocketWorkerShare allow: raise one of the two")
    } else {
        format!("{directive} {all} allows: raise that")
    };
    let remedy = if r.connection().is_stream() {
        "set H2WebSockets Off"
    } else {
        "have more WebSockets detached (WebSocketDetach)"
    };
    log::request(
        r,
        level,
        format_args!(
            "{tag}: refused: WebSockets hold {most} {what}, the most that {why}, or {remedy}"
        ),
    );
}
