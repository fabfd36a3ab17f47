//! The plugin ABI in Rust: a mirror of `include/websocket_plugin.h`, which is its source and its documentation.
//!
//! It names nothing but `core::ffi`, so that a plugin written in Rust can include this file as a module of its own
//! (`examples/echo.rs` does). A test compiles the header and compares sizes, offsets and values.
#![allow(non_camel_case_types, missing_docs, dead_code, unreachable_pub)]

use core::ffi::{c_char, c_int, c_uchar, c_uint, c_void};

pub const MESSAGE_TYPE_INVALID: c_int = -1;
pub const MESSAGE_TYPE_TEXT: c_int = 0;
pub const MESSAGE_TYPE_BINARY: c_int = 128;
pub const MESSAGE_TYPE_CLOSE: c_int = 255;
pub const MESSAGE_TYPE_PING: c_int = 256;
pub const MESSAGE_TYPE_PONG: c_int = 257;

pub const WEBSOCKET_SERVER_VERSION_1: c_uint = 1;
pub const WEBSOCKET_PLUGIN_VERSION_0: c_uint = 0;

/// httpd's request, opaque here.
#[repr(C)]
pub struct request_rec {
    _opaque: [u8; 0],
}

/// The module's own part of a connection, opaque to plugins.
#[repr(C)]
pub struct WebSocketState {
    _opaque: [u8; 0],
}

pub type WS_Request = unsafe extern "C" fn(*const WebSocketServer) -> *mut request_rec;
pub type WS_Header_Get =
    unsafe extern "C" fn(*const WebSocketServer, *const c_char) -> *const c_char;
pub type WS_Header_Set = unsafe extern "C" fn(*const WebSocketServer, *const c_char, *const c_char);
pub type WS_Protocol_Count = unsafe extern "C" fn(*const WebSocketServer) -> usize;
pub type WS_Protocol_Index = unsafe extern "C" fn(*const WebSocketServer, usize) -> *const c_char;
pub type WS_Protocol_Set = unsafe extern "C" fn(*const WebSocketServer, *const c_char);
pub type WS_Send =
    unsafe extern "C" fn(*const WebSocketServer, c_int, *const c_uchar, usize) -> usize;
pub type WS_Close = unsafe extern "C" fn(*const WebSocketServer);

/// A connection, as the plugin sees it.
#[repr(C)]
pub struct WebSocketServer {
    pub size: c_uint,
    pub version: c_uint,
    pub state: *mut WebSocketState,
    pub request: WS_Request,
    pub header_get: WS_Header_Get,
    pub header_set: WS_Header_Set,
    pub protocol_count: WS_Protocol_Count,
    pub protocol_index: WS_Protocol_Index,
    pub protocol_set: WS_Protocol_Set,
    pub send: WS_Send,
    pub close: WS_Close,
}

pub type WS_Init = unsafe extern "C" fn() -> *mut WebSocketPlugin;
pub type WS_Destroy = unsafe extern "C" fn(*mut WebSocketPlugin);
pub type WS_OnConnect = unsafe extern "C" fn(*const WebSocketServer) -> *mut c_void;
pub type WS_OnMessage =
    unsafe extern "C" fn(*mut c_void, *const WebSocketServer, c_int, *mut c_uchar, usize) -> usize;
pub type WS_OnDisconnect = unsafe extern "C" fn(*mut c_void, *const WebSocketServer);

/// A plugin, as the module sees it.
#[repr(C)]
pub struct WebSocketPlugin {
    pub size: c_uint,
    pub version: c_uint,
    pub destroy: Option<WS_Destroy>,
    pub on_connect: Option<WS_OnConnect>,
    pub on_message: Option<WS_OnMessage>,
    pub on_disconnect: Option<WS_OnDisconnect>,
}
