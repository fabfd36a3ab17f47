//! The module as httpd knows it: `websocket_module`, its hooks, and the boundary that no panic crosses.
//!
//! | file | owns |
//! |---|---|
//! | this one | the module structure and the hooks |
//! | `directives/` | the directives and the settings of a section |
//! | `handler.rs` | a request's handshake is checked, and refused or upgraded |
//! | `upgrade.rs` | the 101, and who serves the connection then |
//! | `draft.rs` | `websocket_draft76_module`: what drafts 76 and 75 have different |
//! | `bridge.rs` | which peer a request leads to |
//! | `channel.rs` | which channels a request is about, and its subscription |
//! | `publish.rs` | `websocket-publish`, the handler of those who publish |
//! | `metrics.rs` | `websocket-metrics`, the handler of those who watch the server |
//! | `access.rs` | who may ask those two |
//! | `events.rs` | Server-Sent Events: subscribers that open no WebSocket |
//! | `expression.rs` | expressions in our directives |
//! | `child.rs` | the beginning and the end of a child process |
//! | `advice.rs` | how many connections the settings hold, and warnings about those that starve them |
//! | `mistakes.rs` | warnings about what is legal and cannot be meant |
//! | `tree.rs` | the configuration as httpd has read it |
//! | `access_log.rs` | the access log's line for the end of a detached connection |
//! | `detach.rs` | a connection leaves httpd |
//! | `tls.rs` | mod_ssl's connections, which leave it too |
//! | `shared.rs` | the memory that all children share |
//! | `status.rs` | what server-status shows |
//! | `filters.rs` | the transport through httpd's connection filters |
//! | `http2.rs` | what is different on a stream of HTTP/2 |
//! | `workers.rs` | how many of httpd's and mod_http2's workers WebSockets may hold |
//! | `log.rs` | the error log |
//! | `connection.rs` | the connection as a Rust value |
//! | `request.rs` | the request as a Rust value, and httpd's rules that SAFETY notes refer to |
//! | `sys.rs` | bindgen's view of httpd, and macros it cannot see |
#![allow(non_upper_case_globals)]
// Calls of httpd come in sequences that one rule covers.
#![allow(clippy::multiple_unsafe_ops_per_block)]

use core::{
    ffi::{CStr, c_int, c_void},
    ptr::{self, NonNull},
};
use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{conn::log::Level, driver::shutdown::Shutdown, limits::memory::Budget, settings};

mod access;
mod access_log;
mod advice;
mod bridge;
mod channel;
mod child;
mod connection;
mod detach;
mod directives;
mod draft;
mod events;
mod expression;
mod filters;
mod handler;
mod http2;
mod log;
mod metrics;
mod mistakes;
mod publish;
mod request;
mod shared;
mod status;
mod sys;
mod tls;
mod tree;
mod upgrade;
mod workers;

/// The end of this child process, as its connections see it.
static SHUTDOWN: Shutdown = Shutdown::new();

/// The memory that this child's connections may hold.
static MEMORY: Budget = Budget::new(settings::MEMORY_LIMIT);

/// The module's name and version, which httpd puts behind its own: in the log when it starts, in server-status, and in
/// the field Server if `ServerTokens` allows. C wants the NUL.
const VERSION: &str = concat!("mod_websocket/", env!("CARGO_PKG_VERSION"), "\0");

/// The module structure that `LoadModule websocket_module` looks up.
#[unsafe(no_mangle)]
#[expect(unreachable_pub, reason = "httpd looks the symbol up; nothing in Rust does")]
pub static mut websocket_module: sys::module = structure(
    c"mod_websocket.c",
    Some(directives::create_server),
    directives::COMMANDS.as_ptr(),
    register_hooks,
);

/// What httpd knows of a module: the name that `<IfModule>` takes, its directives and hooks. It fills in
/// `module_index`, `next` and `dynamic_load_handle` when it loads the module.
const fn structure(
    name: &'static CStr,
    create_server: Option<
        unsafe extern "C" fn(*mut sys::apr_pool_t, *mut sys::server_rec) -> *mut c_void,
    >,
    commands: *const sys::command_rec,
    register_hooks: unsafe extern "C" fn(*mut sys::apr_pool_t),
) -> sys::module {
    sys::module {
        version: sys::MODULE_MAGIC_NUMBER_MAJOR as c_int,
        minor_version: sys::MODULE_MAGIC_NUMBER_MINOR as c_int,
        module_index: -1,
        name: name.as_ptr(),
        dynamic_load_handle: ptr::null_mut(),
        next: ptr::null_mut(),
        magic: sys::MODULE_MAGIC_COOKIE as core::ffi::c_ulong,
        rewrite_args: None,
        create_dir_config: Some(directives::create_dir),
        merge_dir_config: Some(directives::merge_dir),
        create_server_config: create_server,
        merge_server_config: None,
        cmds: commands,
        register_hooks: Some(register_hooks),
        flags: 0,
    }
}

/// The module structure, as httpd's functions take it.
fn module() -> *const sys::module {
    &raw const websocket_module
}

/// The module's number, which httpd's log needs.
fn module_index() -> c_int {
    // SAFETY: httpd writes it while it loads the module, before any of our code runs.
    unsafe { websocket_module.module_index }
}

/// Runs `f`; a panic, which must not reach httpd's frames, gives `default` and leaves its message on
/// standard error, which is the error log.
fn boundary<R>(default: R, f: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or(default)
}

unsafe extern "C" fn register_hooks(_pool: *mut sys::apr_pool_t) {
    // SAFETY: httpd calls this to have hooks registered. The handler goes before those that take every request.
    unsafe {
        let (none, first) = (ptr::null(), sys::APR_HOOK_FIRST as c_int - 1);
        let middle = sys::APR_HOOK_MIDDLE as c_int;
        sys::ap_hook_check_config(Some(hook_check_config), none, none, middle);
        sys::ap_hook_post_config(Some(hook_post_config), none, none, middle);
        let really_first = sys::APR_HOOK_REALLY_FIRST;
        sys::ap_hook_post_read_request(Some(hook_post_read_request), none, none, really_first);
        sys::ap_hook_handler(Some(hook_handler), none, none, first);
        sys::ap_hook_child_init(Some(hook_child_init), none, none, middle);
        sys::ap_hook_child_stopping(Some(hook_child_stopping), none, none, middle);
        // Another module's error would end this hook's run, and httpd would shut down a socket that lives on.
        sys::ap_hook_pre_close_connection(Some(hook_pre_close), none, none, really_first);
        filters::register();
        status::register();
        tls::register();
    }
}

/// The configuration has been read: refuses what no single directive could.
unsafe extern "C" fn hook_check_config(
    _config: *mut sys::apr_pool_t,
    _log: *mut sys::apr_pool_t,
    _temporary: *mut sys::apr_pool_t,
    server: *mut sys::server_rec,
) -> c_int {
    boundary(sys::HTTP_INTERNAL_SERVER_ERROR as c_int, || {
        let checked = mistakes::unlisted_expression().map_or(Ok(()), Err);
        // SAFETY: httpd passes the main server, when its configuration and that of all others is complete.
        match checked.and_then(|()| unsafe { directives::check(server) }) {
            Ok(()) => {
                if is_configtest() {
                    // SAFETY: as above.
                    unsafe { mistakes::warn(server) };
                }
                sys::HOOK_OK
            }
            Err(line) => {
                // SAFETY: as above.
                unsafe { log::server(server, Level::Error, format_args!("{line}")) };
                sys::HTTP_INTERNAL_SERVER_ERROR as c_int
            }
        }
    })
}

unsafe extern "C" fn hook_post_config(
    config: *mut sys::apr_pool_t,
    _log: *mut sys::apr_pool_t,
    _temporary: *mut sys::apr_pool_t,
    server: *mut sys::server_rec,
) -> c_int {
    boundary(sys::HTTP_INTERNAL_SERVER_ERROR as c_int, || {
        // SAFETY: httpd passes the main server.
        if let Err(error) = unsafe { shared::map(server) } {
            let line = "WS0404: no shared memory, so connection limits, server-status and metrics do not work:";
            // SAFETY: as above.
            unsafe { log::server(server, Level::Error, format_args!("{line} {error}")) };
        }
        // SAFETY: as above.
        unsafe { channel::map(server) };
        // SAFETY: httpd passes the configuration's pool, and copies the string, which ends with a NUL.
        unsafe { sys::ap_add_version_component(config, VERSION.as_ptr().cast()) };
        // SAFETY: as above.
        unsafe { workers::begin(server) };
        // SAFETY: httpd answers this with a number.
        let state = unsafe { sys::ap_state_query(sys::AP_SQ_MAIN_STATE as c_int) } as u32;
        // SAFETY: httpd passes the configuration's pool.
        let found = unsafe { tls::find(config) };
        if state != sys::AP_SQ_MS_CREATE_PRE_CONFIG {
            // SAFETY: as above; httpd calls this hook when it has read the configuration.
            unsafe {
                advice::warn(server, (*directives::server(server)).memory_limit(), found);
                mistakes::warn(server);
            }
        }
        sys::HOOK_OK
    })
}

/// A request's headers have been read.
unsafe extern "C" fn hook_post_read_request(r: *mut sys::request_rec) -> c_int {
    if let Some(r) = NonNull::new(r) {
        // SAFETY: httpd passes a live request, and the value is used within this call only.
        child::request_begins(unsafe { request::Request::from_ptr(r) });
    }
    sys::DECLINED
}

unsafe extern "C" fn hook_handler(r: *mut sys::request_rec) -> c_int {
    let Some(r) = NonNull::new(r) else { return sys::DECLINED };
    boundary(sys::HTTP_INTERNAL_SERVER_ERROR as c_int, || {
        // SAFETY: httpd passes a live request, and the value is used within this call only.
        let r = unsafe { request::Request::from_ptr(r) };
        publish::handle(r).or_else(|| metrics::handle(r)).unwrap_or_else(|| handler::handle(r))
    })
}

unsafe extern "C" fn hook_child_init(pool: *mut sys::apr_pool_t, server: *mut sys::server_rec) {
    boundary((), || {
        if let Err(error) = shared::begin() {
            let line = "WS0412: no lock, so other children will not count this one's connections:";
            // SAFETY: httpd passes the main server.
            unsafe { log::server(server, Level::Error, format_args!("{line} {error}")) };
        }
        // SAFETY: httpd passes the main server, whose settings were made when the configuration was read.
        let settings = unsafe { &*directives::server(server) };
        MEMORY.set_bound(settings.memory_limit());
        channel::begin();
        // SAFETY: httpd passes the child's pool and the main server.
        unsafe { child::begin(pool, server, settings) };
    });
}

/// The child goes down.
unsafe extern "C" fn hook_child_stopping(_pool: *mut sys::apr_pool_t, graceful: c_int) {
    boundary((), || child::stopping(graceful != 0));
}

/// httpd is about to close a connection.
unsafe extern "C" fn hook_pre_close(connection: *mut sys::conn_rec) -> c_int {
    if let Some(connection) = NonNull::new(connection) {
        // SAFETY: httpd passes a live connection that this thread owns, and the value is used within this call only.
        let connection = unsafe { connection::Connection::from_ptr(connection) };
        boundary((), || detach::before_close(connection));
    }
    sys::HOOK_OK
}

/// Whether httpd reads the configuration to test it, and will not start.
fn is_configtest() -> bool {
    // SAFETY: httpd answers this with a number.
    let mode = unsafe { sys::ap_state_query(sys::AP_SQ_RUN_MODE as c_int) } as u32;
    mode == sys::AP_SQ_RM_CONFIG_TEST
}

/// Whether the MPM serves connections on threads of their own, so that signals go elsewhere.
fn is_threaded() -> bool {
    let mut answer = 0;
    // SAFETY: the result is a live integer.
    let status = unsafe { sys::ap_mpm_query(sys::AP_MPMQ_IS_THREADED as c_int, &raw mut answer) };
    status == sys::APR_SUCCESS as c_int && answer != sys::AP_MPMQ_NOT_SUPPORTED as c_int
}

/// Tells mod_logio, if it is there, of bytes that did not pass httpd's filters; or, with a negative number, of those
/// that did and count elsewhere.
fn count_bytes(connection: connection::Connection<'_>, received: i64, sent: i64) {
    let add = |name: &CStr, bytes: i64| {
        // SAFETY: the name lives for the call.
        let Some(function) = (unsafe { sys::apr_dynamic_fn_retrieve(name.as_ptr()) }) else {
            return;
        };
        type AddBytes = unsafe extern "C" fn(*mut sys::conn_rec, sys::apr_off_t);
        // SAFETY: http_core.h declares mod_logio's two functions with this type.
        let function = unsafe { mem::transmute::<unsafe extern "C" fn(), AddBytes>(function) };
        // SAFETY: R5 in request.rs.
        unsafe { function(connection.as_ptr(), bytes as sys::apr_off_t) };
    };
    add(c"ap_logio_add_bytes_in", received);
    add(c"ap_logio_add_bytes_out", sent);
}
