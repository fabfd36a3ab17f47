//! mod_websocket: WebSockets (RFC 6455) for the Apache HTTP Server.
//!
//! httpd takes the request; this module takes the connection and drives an endpoint: a plugin, a shared library written
//! against `include/websocket_plugin.h`; the bridge, which relays to another server; or a subscriber of channels.
//!
//! ```text
//! bytes in ─▶ driver ─▶ session (frames → messages) ─▶ endpoint (plugin, bridge, subscriber)
//! bytes out ◀─ driver ◀─ outbox (messages → frames) ◀─── send, close
//! ```
//!
//! | module | owns | may name |
//! |---|---|---|
//! | [`metrics`] | what is counted, and what it is called | `sync` |
//! | [`proto`] | RFC 6455 and 7692, drafts 76 and 75, as functions over bytes | `limits`, `buffer`, `sync` |
//! | [`os`] | the system calls that the standard library has no word for | nothing here |
//! | [`sync`] | locks and atomics, which loom replaces to check them | nothing here |
//! | [`limits`] | how many connections, bytes and workers there are, and may be | `sync` |
//! | [`buffer`] | memory for messages that arrive in parts | `limits` |
//! | [`settings`] | what a section of the configuration says | `proto` |
//! | [`conn`] | one connection without its socket: session, outbox, deadlines, endpoint | all of the above |
//! | [`driver`] | sockets, threads, the child's end | all of the above |
//! | [`library`] | loading the libraries that the configuration names | nothing here |
//! | [`plugin`] | the plugin ABI: loading, calling, being called | all above but `driver` |
//! | [`bridge`] | relaying to a TCP, UDP or Unix-socket peer | all above but `plugin` and `driver` |
//! | [`channel`] | publishing and subscribing, over all children | all above but `driver`, `plugin` and `bridge` |
//! | `httpd` | everything that names a type of httpd | everything |
//!
//! The feature `httpd` (on by default) guards the last one. A build without it proves that nothing else needs httpd.

pub mod bridge;
pub mod buffer;
pub mod channel;
pub mod conn;
pub mod driver;
#[cfg(all(test, not(loom)))]
mod fakes;
pub mod library;
pub mod limits;
pub mod metrics;
pub mod os;
pub mod plugin;
pub mod proto;
pub mod settings;
pub mod sync;

#[cfg(test)]
extern crate self as mod_websocket;
#[cfg(test)]
#[path = "../test/oracles/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "the fuzz targets call the others")]
mod oracles;

#[cfg(feature = "httpd")]
#[expect(unsafe_code, reason = "httpd is C")]
mod httpd;
