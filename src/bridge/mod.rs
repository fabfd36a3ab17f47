//! The bridge: an endpoint that relays a WebSocket to a TCP, UDP or Unix-socket peer.
//!
//! What a client sends goes to the peer as it is: into its stream, or as one datagram per message. What the peer sends is
//! cut into messages by a *framing*, since a stream has no boundaries of its own.
//!
//! ```text
//! client ◀─▶ driver ◀─▶ session, outbox ◀─▶ relay ◀─▶ peer's socket
//!                                            └─ framing: bytes → messages
//! ```
//!
//! | file | owns |
//! |---|---|
//! | this one | what a framing and a target are |
//! | [`abi`] | the C types of `include/websocket_bridge.h` |
//! | [`address`] | peer addresses, and which of them are allowed |
//! | [`backend`] | what finds a request's peer |
//! | [`connect`] | looking names up and connecting, before the client is answered |
//! | [`framing`] | the framings, by name |
//! | [`proxy`] | the header of the PROXY protocol |
//! | [`relay`] | one bridged connection |
//! | [`settings`] | what the directives of a section set |
//! | [`socket`] | the peer's socket |
//! | [`websocksy`] | websocksy's configuration files |

use crate::proto::{Kind, utf8};

pub mod abi;
pub mod address;
pub mod backend;
pub mod connect;
pub mod framing;
pub mod proxy;
pub mod relay;
pub mod settings;
pub mod socket;
pub mod websocksy;

pub use address::Address;

/// What a framing makes of the bytes at the front of a buffer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Piece {
    /// More bytes are needed.
    Wait,
    /// The first `n` bytes (n ≥ 1, ≤ length) are a message.
    Message(Kind, usize),
    /// The first `n` bytes are dropped.
    Discard(usize),
    /// The bytes make no sense: the connection ends with 1011 and this reason.
    Broken(&'static str),
}

/// Cuts a peer's byte stream into messages; one value per connection.
pub trait Framing: Send {
    /// Looks at everything that is buffered. `data` has one byte more, a NUL that is not part of it, which framings
    /// written in C rely on. `fresh` is how many bytes at the end of the data came with the latest read from the peer;
    /// after a message or a discard it is called again with what is left, if anything is.
    fn next(&mut self, data: &mut [u8], fresh: usize) -> Piece;

    /// The peer has ended its stream: what becomes of the rest, with a NUL behind it as above. Called until nothing is
    /// left or it says to wait, which drops the rest.
    fn finish(&mut self, data: &mut [u8]) -> Piece {
        let rest = &data[..data.len() - 1];
        Piece::Message(kind(rest), rest.len())
    }

    /// What kind of message a datagram is, which needs no cutting.
    fn datagram(&self, data: &[u8]) -> Kind {
        kind(data)
    }
}

/// Text if that is what the bytes are.
pub fn kind(bytes: &[u8]) -> Kind {
    if utf8::whole(bytes).is_some() { Kind::Text } else { Kind::Binary }
}

/// Where a backend sends a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerChoice {
    /// The peer's address, as `WebSocketBridge` takes it.
    pub peer: String,
    /// The framing's name.
    pub framing: String,
    /// What the framing is configured with; a framing in C tells an empty text from none.
    pub framing_config: Option<String>,
    /// Which of the offered subprotocols to announce, if any.
    pub protocol: Option<usize>,
}
