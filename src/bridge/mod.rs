//! The bridge: what connects a WebSocket with a peer's socket.

use crate::proto::{Kind, utf8};

pub mod abi;
pub mod backend;
pub mod framing;
pub mod websocksy;

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
    /// What the front of the buffer is. `data` is everything buffered and one trailing NUL byte that is not part of
    /// it (framings written in C rely on it); `fresh` says how many bytes at its end no earlier call has seen.
    fn next(&mut self, data: &mut [u8], fresh: usize) -> Piece;

    /// The peer has ended its stream: what becomes of the rest, with a trailing NUL byte as above.
    fn finish(&mut self, data: &mut [u8]) -> Piece {
        let rest = &data[..data.len() - 1];
        let text = utf8::whole(rest).is_some();
        Piece::Message(if text { Kind::Text } else { Kind::Binary }, rest.len())
    }
}

/// Where a backend sends a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// The peer's address, as `WebSocketBridge` takes it.
    pub peer: String,
    /// The framing's name.
    pub framing: String,
    /// Its configuration; empty if there is none.
    pub framing_config: String,
    /// The subprotocol to announce: a position in the client's list.
    pub protocol: Option<usize>,
}
