//! How many WebSockets the running settings hold, and what in them would end or starve WebSockets: said at start.
//!
//! httpd's MPMs were made for requests. What they count as idle, and what they expect of children that end, does not suit
//! connections that stay; the settings that do are in `conf/websocket.conf`.

use super::{access_log, child, is_threaded, log, sys, tree, workers};
use crate::conn::log::Level;

/// Says how many connections the child can hold.
///
/// # Safety
/// - `server` is live.
pub(super) unsafe fn tell(server: *const sys::server_rec, open_files: u64) {
    let detached = open_files.saturating_sub(child::reserve(open_files));
    let (all, most) = workers::httpds();
    let blocking = if is_threaded() {
        format!("{most} on its {all} threads of httpd's")
    } else {
        format!("one on its thread; of {all} processes {most} can have that one")
    };
    // SAFETY: the server is live, as this function demands.
    unsafe {
        log::server(
            server,
            Level::Info,
            format_args!(
                "WS0405: this child can hold about {detached} detached WebSockets ({open_files} open files), and \
                 {blocking} (WebSocketWorkerShare)"
            ),
        );
    };
}

/// Says what the settings of memory add up to, and warns of those under which WebSockets are ended or starve, if the
/// configuration has any WebSockets; `memory` is the bound for a child's connections, and `tls` what
/// [`tls::find`](super::tls::find) came to.
///
/// # Safety
/// - `server` is the main server, and the configuration has been read.
pub(super) unsafe fn warn(
    server: *const sys::server_rec,
    memory: usize,
    tls: Option<Result<(), String>>,
) {
    if !tree::has(&["WebSocketHandler"]) && !tree::has(&BRIDGES) {
        return;
    }
    let say = |level, line: core::fmt::Arguments<'_>| {
        // SAFETY: the server is live, as this function demands.
        unsafe { log::server(server, level, line) };
    };
    let children = sys::mpm(sys::AP_MPMQ_MAX_DAEMONS);
    say(
        Level::Notice,
        format_args!(
            "WS0413: messages, queues and compression of WebSockets may take {} MiB in each of up to {children} \
             children, {} MiB in all children of one generation (WebSocketMemoryLimit)",
            memory.div_ceil(1 << 20),
            (memory as u64).saturating_mul(children).div_ceil(1 << 20)
        ),
    );
    // A process that serves one connection is busy as long as that lasts.
    let detaches = is_threaded() || tree::has(&BRIDGES) || tree::has(&["WebSocketDetach On"]);
    let lines = [
        no_slots(children),
        detaches.then(|| idle_children(children)).flatten(),
        detaches.then(counted_children).flatten(),
        too_few_streams(children),
        too_few_files(),
        (detaches && !access_log::is_possible()).then(|| BUFFERED.to_owned()),
    ];
    for line in lines.into_iter().flatten() {
        say(Level::Warn, format_args!("{line}"));
    }
    if let Some(Err(reason)) = tls {
        let line = "WS0409: WebSockets over TLS cannot be detached, and take a thread of httpd's each: mod_ssl is there, but";
        say(Level::Notice, format_args!("{line} {reason}"));
    }
}

/// What names the peers of a bridge.
const BRIDGES: [&str; 3] = ["WebSocketBridge", "WebSocketBridgeBackend", "WebSocketBridgeConfig"];

/// What is said where the access log cannot be written to.
const BUFFERED: &str = "WS0410: with BufferedLogs On under prefork the end of a detached WebSocket cannot be logged: set \
                        BufferedLogs Off, or WebSocketDetach Off";

/// Old children take the place of new ones.
fn no_slots(children: u64) -> Option<String> {
    let slots = sys::mpm(sys::AP_MPMQ_HARD_LIMIT_DAEMONS);
    (slots <= children).then(|| {
        format!(
            "WS0406: ServerLimit {slots} leaves no room for new children while old ones end their WebSockets after a \
             graceful restart, so the server may accept nothing for as long as WebSocketDrainTime: set ServerLimit {} \
             or MaxRequestWorkers lower",
            2 * children
        )
    })
}

/// httpd ends children that have nothing to do, as far as it can see.
fn idle_children(children: u64) -> Option<String> {
    let (spare, spares, most) = if is_threaded() {
        let threads = sys::mpm(sys::AP_MPMQ_MAX_THREADS).max(1);
        (sys::mpm(sys::AP_MPMQ_MAX_SPARE_THREADS), "MaxSpareThreads", children * threads)
    } else {
        (sys::mpm(sys::AP_MPMQ_MAX_SPARE_DAEMONS), "MaxSpareServers", children)
    };
    (spare < most).then(|| {
        format!(
            "WS0407: with {spares} {spare} httpd ends children whose WebSockets it takes for idle, and closes them: set \
             {spares} {most}, as many as MaxRequestWorkers allows"
        )
    })
}

/// httpd ends children that have served so many.
fn counted_children() -> Option<String> {
    let requests = sys::mpm(sys::AP_MPMQ_MAX_REQUESTS_DAEMON);
    (requests > 0).then(|| {
        format!(
            "WS0408: with MaxConnectionsPerChild {requests} httpd ends children after so many connections, and closes \
             their WebSockets: set MaxConnectionsPerChild 0"
        )
    })
}

/// httpd may need more descriptors than WebSockets leave it.
fn too_few_files() -> Option<String> {
    let (open_files, needed) = (child::open_files().rlim_max, child::needed());
    (open_files < 2 * needed).then(|| {
        format!(
            "WS0415: httpd may need {needed} of a child's {open_files} open files, and WebSockets leave it half of them: \
             without one it accepts no connection, and event gives the child up. Raise the limit (ulimit -n, LimitNOFILE of \
             systemd) to {} or more",
            2 * needed
        )
    })
}

/// Over HTTP/2 there cannot be as many WebSockets as the configuration promises.
fn too_few_streams(children: u64) -> Option<String> {
    let over_http2 = u64::from(workers::over_http2()?) * children.max(1);
    let mut promised = 0;
    tree::each(&mut |directive| {
        if directive.is("WebSocketMaxConnections") {
            let args = directive.args();
            promised = promised.max(args.trim().trim_matches('"').parse().unwrap_or_default());
        }
    });
    (tree::has(&["H2WebSockets On"]) && promised > over_http2).then(|| {
        format!(
            "WS0411: WebSocketMaxConnections promises {promised} connections, but over HTTP/2 there can be only \
             {over_http2}: each takes one of mod_http2's threads in a child (H2MaxWorkers), of which WebSocketWorkerShare \
             keeps some for other requests. Raise H2MaxWorkers, or set H2WebSockets Off"
        )
    })
}
