//! mod_websocket: WebSockets (RFC 6455) for the Apache HTTP Server.
//!
//! httpd takes the request; this module takes the connection and drives an endpoint: a plugin, a shared library written
//! against `include/websocket_plugin.h`, or the bridge, which relays to another server.
//!
//! ```text
//! bytes in ─▶ driver ─▶ session (frames → messages) ─▶ endpoint (plugin, bridge)
//! bytes out ◀─ driver ◀─ outbox (messages → frames) ◀─── send, close
//! ```
//!
//! | module | owns | may name |
//! |---|---|---|
//! | [`proto`] | RFC 6455 and 7692, drafts 76 and 75, as functions over bytes | nothing here |
//! | [`buffer`] | memory for messages that arrive in parts | nothing here |
//! | [`session`] | the inbound half of a connection, sans I/O | `proto`, `buffer` |
//! | [`outbox`] | the outbound half: queue, bounds, state | `proto`, `journal`, `sync`, `waiting` |
//! | [`waiting`] | how long threads wait for clients that read slowly | nothing here |
//! | [`callbacks`] | which plugins' callbacks are running | nothing here |
//! | [`endpoint`] | what receives messages | `proto`, `callbacks` |
//! | [`journal`] | where log lines go | nothing here |
//! | [`sync`] | locks and atomics, which loom replaces to check them | nothing here |
//! | [`config`] | the settings of a Location | `proto`, the bridge's settings |
//! | [`limits`] | how many connections there are, across processes | `sync` |
//! | [`presence`] | which processes are there | nothing here |
//! | [`share`] | how many of the server's workers WebSockets may hold | nothing here |
//! | [`driver`] | sockets, waiting, the child's end | all of the above |
//! | [`library`] | loading the libraries that the configuration names | nothing here |
//! | [`scope`] | which requests a section of the configuration is for | nothing here |
//! | [`plugin`] | the plugin ABI: loading, calling, being called | all above but `driver` |
//! | [`bridge`] | relaying to a TCP, UDP or Unix-socket peer | all above but `plugin` |
//! | `httpd` | everything that names a type of httpd | everything |
//!
//! The feature `httpd` (on by default) guards the last one. A build without it proves that nothing else needs httpd.

pub mod bridge;
pub mod buffer;
pub mod callbacks;
pub mod config;
pub mod driver;
pub mod endpoint;
#[cfg(all(test, not(loom)))]
mod fakes;
pub mod journal;
pub mod library;
pub mod limits;
pub mod memory;
pub mod outbox;
pub mod plugin;
pub mod presence;
pub mod proto;
pub mod scope;
pub mod session;
pub mod share;
pub mod sync;
pub mod waiting;

#[cfg(feature = "httpd")]
mod httpd;
