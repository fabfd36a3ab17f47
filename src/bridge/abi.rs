//! The C interface of framings and backends: a mirror of `include/websocket_bridge.h`, which is its source and its
//! documentation, and whose layout is that of websocksy's API version 1.
//!
//! It names nothing but `core::ffi`. A test compiles the header and compares sizes, offsets and values.
#![allow(non_camel_case_types, non_upper_case_globals, missing_docs, dead_code, unreachable_pub)]

use core::ffi::{c_char, c_int, c_long, c_uint, c_void};

pub const WEBSOCKSY_API_VERSION: u64 = 1;
pub const WS_MAX_LINE: usize = 16384;
pub const PEER_BUFFER_SIZE: usize = 16384;
pub const WS_HEADER_LIMIT: usize = 10;

// C's enumerations are unsigned here: none has a negative value.
pub type ws_state = c_uint;
pub const ws_new: ws_state = 0;
pub const ws_http: ws_state = 1;
pub const ws_open: ws_state = 2;
pub const ws_closed: ws_state = 3;

pub type ws_operation = c_uint;
pub const ws_frame_continuation: ws_operation = 0;
pub const ws_frame_text: ws_operation = 1;
pub const ws_frame_binary: ws_operation = 2;
pub const ws_frame_close: ws_operation = 8;
pub const ws_frame_ping: ws_operation = 9;
pub const ws_frame_pong: ws_operation = 10;
pub const ws_frame_discard: ws_operation = 11;

pub type peer_transport = c_uint;
pub const peer_transport_detect: peer_transport = 0;
pub const peer_tcp_client: peer_transport = 1;
pub const peer_udp_client: peer_transport = 2;
pub const peer_fifo_tx: peer_transport = 3;
pub const peer_fifo_rx: peer_transport = 4;
pub const peer_unix_stream: peer_transport = 5;
pub const peer_unix_dgram: peer_transport = 6;

pub type ws_framing = unsafe extern "C" fn(
    *mut u8,
    usize,
    usize,
    *mut ws_operation,
    *mut *mut c_void,
    *const c_char,
) -> i64;

/// A header of the request.
#[repr(C)]
pub struct ws_http_header {
    pub tag: *mut c_char,
    pub value: *mut c_char,
}

/// Where a connection goes: what `query` returns.
#[repr(C)]
pub struct ws_peer_info {
    pub transport: peer_transport,
    pub host: *mut c_char,
    pub port: *mut c_char,
    pub framing: Option<ws_framing>,
    pub framing_config: *mut c_char,
    pub protocol: usize,
}

/// A connection, as `query` sees it.
#[repr(C)]
pub struct websocket {
    pub ws_fd: c_int,
    pub read_buffer: [u8; WS_MAX_LINE],
    pub read_buffer_offset: usize,
    pub state: ws_state,
    /// `time_t`.
    pub last_event: c_long,
    pub headers: usize,
    pub header: [ws_http_header; WS_HEADER_LIMIT],
    pub request_path: *mut c_char,
    pub websocket_version: c_uint,
    pub socket_key: *mut c_char,
    pub want_upgrade: c_uint,
    pub protocols: usize,
    pub protocol: *mut *mut c_char,
    pub peer: ws_peer_info,
    pub peer_fd: c_int,
    pub peer_buffer: [u8; PEER_BUFFER_SIZE],
    pub peer_buffer_offset: usize,
    pub peer_framing_data: *mut c_void,
}

pub type ws_backend_init = unsafe extern "C" fn() -> u64;
pub type ws_backend_configure = unsafe extern "C" fn(*mut c_char, *mut c_char) -> u64;
pub type ws_backend_query = unsafe extern "C" fn(
    *mut c_char,
    usize,
    *mut *mut c_char,
    usize,
    *mut ws_http_header,
    *mut websocket,
) -> ws_peer_info;
pub type ws_backend_cleanup = unsafe extern "C" fn();

/// What a backend exports, in one structure.
#[repr(C)]
pub struct ws_backend {
    pub init: Option<ws_backend_init>,
    pub config: Option<ws_backend_configure>,
    pub query: Option<ws_backend_query>,
    pub cleanup: Option<ws_backend_cleanup>,
}

/// The layout that binaries were compiled with on x86-64, fact by fact.
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
const _: () = {
    use core::mem::{offset_of, size_of};

    assert!(size_of::<ws_http_header>() == 16);
    assert!(offset_of!(ws_http_header, tag) == 0);
    assert!(offset_of!(ws_http_header, value) == 8);

    assert!(size_of::<ws_peer_info>() == 48);
    assert!(offset_of!(ws_peer_info, transport) == 0);
    assert!(offset_of!(ws_peer_info, host) == 8);
    assert!(offset_of!(ws_peer_info, port) == 16);
    assert!(offset_of!(ws_peer_info, framing) == 24);
    assert!(offset_of!(ws_peer_info, framing_config) == 32);
    assert!(offset_of!(ws_peer_info, protocol) == 40);

    assert!(size_of::<websocket>() == 33088);
    assert!(offset_of!(websocket, ws_fd) == 0);
    assert!(offset_of!(websocket, read_buffer) == 4);
    assert!(offset_of!(websocket, read_buffer_offset) == 16392);
    assert!(offset_of!(websocket, state) == 16400);
    assert!(offset_of!(websocket, last_event) == 16408);
    assert!(offset_of!(websocket, headers) == 16416);
    assert!(offset_of!(websocket, header) == 16424);
    assert!(offset_of!(websocket, request_path) == 16584);
    assert!(offset_of!(websocket, websocket_version) == 16592);
    assert!(offset_of!(websocket, socket_key) == 16600);
    assert!(offset_of!(websocket, want_upgrade) == 16608);
    assert!(offset_of!(websocket, protocols) == 16616);
    assert!(offset_of!(websocket, protocol) == 16624);
    assert!(offset_of!(websocket, peer) == 16632);
    assert!(offset_of!(websocket, peer_fd) == 16680);
    assert!(offset_of!(websocket, peer_buffer) == 16684);
    assert!(offset_of!(websocket, peer_buffer_offset) == 33072);
    assert!(offset_of!(websocket, peer_framing_data) == 33080);

    assert!(size_of::<ws_backend>() == 32);
};
