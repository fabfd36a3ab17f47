//! The benchmark of mod_websocket: what its programs share.
//!
//! | program | is |
//! |---|---|
//! | `load` | the client: it makes the load, checks every byte that comes back, and measures |
//! | `subscribers` | the clients of channels, and one that publishes |
//! | `mirror` | a server that writes back what it reads: what the kernel alone costs |
//! | `peer_fastwebsockets`, `peer_tungstenite` | echo servers built on other libraries |
//! | `bare_writes` | a server that writes to many what one sends: what the kernel alone costs |
//! | `append` | what publishing takes besides HTTP |
//! | `core` | the protocol core in cache, without a socket |
#![forbid(unsafe_code)]

pub mod payload;
pub mod peer;
pub mod usage;
pub mod wire;
