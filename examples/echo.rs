//! The echo plugin in Rust: each message goes back to whoever sent it.
//!
//! A plugin in Rust needs nothing but the mirror of the C header. The compiler makes a library of it, and the
//! configuration names that:
//!
//! ```text
//! rustc --edition 2024 --crate-type cdylib -O -o mod_websocket_echo_rs.so examples/echo.rs
//!
//! WebSocketHandler modules/mod_websocket_echo_rs.so echo_init
//! ```
#![allow(unsafe_code, reason = "plugins of version 0 are C")]

use core::ffi::{c_int, c_uchar, c_void};

#[path = "../src/plugin/abi.rs"]
mod abi;

/// Sends the message back. What the module passes to a callback is described in `websocket_plugin.h`.
unsafe extern "C" fn on_message(
    _connection: *mut c_void,
    server: *const abi::WebSocketServer,
    kind: c_int,
    buffer: *mut c_uchar,
    size: usize,
) -> usize {
    // SAFETY: the module passes a live server structure.
    let send = unsafe { (*server).send };
    // SAFETY: it is given its own structure, and the buffer of `size` bytes that came.
    unsafe { send(server, kind, buffer, size) }
}

/// httpd's children run callbacks on many threads; the plugin itself never changes.
struct Plugin(abi::WebSocketPlugin);

// SAFETY: nothing writes to it.
unsafe impl Sync for Plugin {}

static PLUGIN: Plugin = Plugin(abi::WebSocketPlugin {
    size: size_of::<abi::WebSocketPlugin>() as u32,
    version: abi::WEBSOCKET_PLUGIN_VERSION_0,
    destroy: None,
    on_connect: None,
    on_message: Some(on_message),
    on_disconnect: None,
});

/// The function that `WebSocketHandler` names.
#[unsafe(no_mangle)]
extern "C" fn echo_init() -> *const abi::WebSocketPlugin {
    &raw const PLUGIN.0
}
