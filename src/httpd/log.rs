//! httpd's error log: lines of a request, of a server, and of a connection that may outlive its request.
//!
//! Each line of level info and above starts with a tag of its own, `WS` and four digits, as httpd's start with `AH`:
//! 01 handshake, 02 what plugins call, 03 connections, 04 the module as a whole and mistakes in its configuration,
//! 05 the bridge, 06 drafts 76 and 75, 07 channels.

use core::{
    ffi::{CStr, c_int},
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};
use std::{ffi::CString, time::SystemTime};

use super::{module_index, request::Request, sys};
use crate::conn::log::{Level, Log};

/// httpd's number for a level; no errno is appended.
fn number(level: Level) -> c_int {
    let level = match level {
        Level::Error => sys::APLOG_ERR,
        Level::Warn => sys::APLOG_WARNING,
        Level::Notice => sys::APLOG_NOTICE,
        Level::Info => sys::APLOG_INFO,
        Level::Debug => sys::APLOG_DEBUG,
        Level::Trace => sys::APLOG_TRACE1,
    };
    (level | sys::APLOG_NOERRNO) as c_int
}

/// A line as C wants it; NUL bytes, which no line of ours has, would be replaced.
fn line(text: fmt::Arguments<'_>) -> CString {
    CString::new(text.to_string().replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// Where `ap_log_*` says that a line comes from: shown by httpd for trace levels only.
const FILE: &CStr = c"mod_websocket";

/// Writes a line about a request; httpd adds the client's address.
pub(super) fn request(r: Request<'_>, level: Level, text: fmt::Arguments<'_>) {
    let text = line(text);
    // SAFETY: a Request is live; the format takes one string, which lives for the call.
    unsafe {
        sys::ap_log_rerror_(
            FILE.as_ptr(),
            0,
            module_index(),
            number(level),
            0,
            r.as_ptr(),
            c"%s".as_ptr(),
            text.as_ptr(),
        );
    }
}

/// Writes a line about a server.
///
/// # Safety
/// - `server` is NULL or a live server.
pub(super) unsafe fn server(
    server: *const sys::server_rec,
    level: Level,
    text: fmt::Arguments<'_>,
) {
    let text = line(text);
    // SAFETY: the server is live, as this function demands; the format takes one string, which lives for the call.
    unsafe {
        sys::ap_log_error_(
            FILE.as_ptr(),
            0,
            module_index(),
            number(level),
            0,
            server,
            c"%s".as_ptr(),
            text.as_ptr(),
        );
    }
}

/// A line that many clients would bring about, all saying the same, is written once a minute.
pub(super) struct OnceAMinute(AtomicU64);

impl OnceAMinute {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether it is the first time in this minute that this is asked.
    pub(super) fn is_due(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let minute = now.as_secs() / 60;
        self.0.swap(minute, Ordering::Relaxed) != minute
    }
}

/// The main server's place in the log, for any thread.
pub(super) struct ServerLog(*const sys::server_rec);

// SAFETY: a server_rec lives as long as the child process (request::R3), and httpd's log functions may be called from
// any thread.
unsafe impl Send for ServerLog {}
// SAFETY: as above.
unsafe impl Sync for ServerLog {}

impl ServerLog {
    /// # Safety
    /// - `server` lives as long as the value.
    pub(super) unsafe fn new(server: *const sys::server_rec) -> Self {
        Self(server)
    }
}

impl Log for ServerLog {
    fn enabled(&self, level: Level) -> bool {
        is_enabled(self.0, level)
    }

    fn write(&self, level: Level, text: fmt::Arguments<'_>) {
        // SAFETY: `new`: the server lives.
        unsafe { server(self.0, level, text) };
    }
}

/// Whether a server's log has lines of this level.
fn is_enabled(server: *const sys::server_rec, level: Level) -> bool {
    // SAFETY: the callers' servers live as long as the child process.
    let configured = unsafe { sys::ap_get_server_module_loglevel(server, module_index()) };
    number(level) & sys::APLOG_LEVELMASK as c_int <= configured
}

/// A connection's place in the log, for any thread and beyond the request's end.
pub(super) struct ConnectionLog {
    server: *const sys::server_rec,
    /// The connection's number in this child, and the client's address as httpd writes it.
    name: String,
}

// SAFETY: a server_rec lives as long as the child process and its log settings do not change; httpd's log functions
// may be called from any thread.
unsafe impl Send for ConnectionLog {}
// SAFETY: as above.
unsafe impl Sync for ConnectionLog {}

impl ConnectionLog {
    pub(super) fn new(r: Request<'_>) -> Self {
        Self {
            server: r.server(),
            name: format!("[client {}] ws({})", r.client(), r.connection_id()),
        }
    }
}

impl Log for ConnectionLog {
    fn enabled(&self, level: Level) -> bool {
        is_enabled(self.server, level)
    }

    fn write(&self, level: Level, text: fmt::Arguments<'_>) {
        if self.enabled(level) {
            // SAFETY: the server lives as long as the child process.
            unsafe { server(self.server, level, format_args!("{} {text}", self.name)) };
        }
    }
}
