//! The benchmark of mod_websocket: what its programs share.
//!
//! | program | is |
//! |---|---|
//! | `load` | the client: it makes the load, checks every byte that comes back, and measures |
//! | `mirror` | a server that writes back what it reads: what the kernel alone costs |
//! | `peer_fastwebsockets`, `peer_tungstenite` | echo servers built on other libraries |
//! | `core` | the protocol core in cache, without a socket |
#![forbid(unsafe_code)]

pub mod payload;
pub mod peer;
pub mod usage;
pub mod wire;
