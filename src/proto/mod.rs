//! The WebSocket protocol as functions over bytes: no socket, no clock, no thread, no httpd.
//!
//! | file | owns | RFC |
//! |---|---|---|
//! | [`handshake`] | the checks and the answer of an opening request | 6455 §4 |
//! | [`frame`] | frame headers in and out | 6455 §5.2 |
//! | [`mask`] | the masking transform | 6455 §5.3 |
//! | [`utf8`] | incremental validation of text | 6455 §8.1 |
//! | [`close`] | status codes and the payload of a Close frame | 6455 §7.4 |
//! | [`deflate`] | negotiation and codec of permessage-deflate | 7692 |
//! | [`draft`] | handshake and frames of drafts 76 and 75 | none |

use core::fmt;

use close::CloseCode;

use crate::limits::memory::Exhausted;

pub mod close;
pub mod deflate;
pub mod draft;
pub mod events;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod utf8;

/// The protocol versions this module speaks, as `Sec-WebSocket-Version` names them.
///
/// They share their framing; 8 and 7 are the last drafts before RFC 6455 (hybi-08 to -12 and hybi-07). Older ones have no
/// such number, and frames of their own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// RFC 6455.
    V13,
    /// draft-ietf-hybi-thewebsocketprotocol-08 to -12.
    V8,
    /// draft-ietf-hybi-thewebsocketprotocol-07.
    V7,
    /// What came before the drafts of the hybi group.
    Draft(draft::Draft),
    /// No WebSocket: a stream of events (WHATWG HTML §9.2), in which only the server speaks.
    EventStream,
}

/// Whether a data message is text or binary (RFC 6455 §5.6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Opcode 0x2.
    Binary,
    /// Opcode 0x1; the bytes are valid UTF-8.
    Text,
}

/// What a peer did that ends the connection; each maps to one close code and one sentence.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Violation {
    /// RSV1 on a frame that must not carry it, or RSV2 or RSV3 (RFC 6455 §5.2, RFC 7692 §6.1).
    ReservedBits,
    /// An opcode of 0x3–0x7 or 0xB–0xF (RFC 6455 §5.2).
    UnknownOpcode,
    /// A client frame without a mask (RFC 6455 §5.1).
    Unmasked,
    /// A length in more bytes than it needs (RFC 6455 §5.2).
    LengthNotMinimal,
    /// A 64-bit length with its top bit set (RFC 6455 §5.2).
    LengthTopBit,
    /// A control frame of more than 125 bytes (RFC 6455 §5.5).
    ControlTooLong,
    /// A control frame without FIN (RFC 6455 §5.5).
    ControlFragmented,
    /// A continuation frame without a message to continue (RFC 6455 §5.4).
    NothingToContinue,
    /// A new data frame inside a fragmented message (RFC 6455 §5.4).
    MessageInterrupted,
    /// A Close payload of one byte (RFC 6455 §5.5.1).
    ClosePayload,
    /// A close code that must not travel (RFC 6455 §7.4).
    CloseCode,
    /// A close reason that is not UTF-8 (RFC 6455 §5.5.1).
    CloseReason,
    /// Text that is not UTF-8 (RFC 6455 §8.1).
    Text,
    /// Compressed data that cannot be inflated (RFC 7692 §7.2.2).
    Deflate,
    /// A message or control payload above the configured limit.
    TooBig,
    /// Nothing is wrong with it, but the child's connections hold too much already (RFC 6455 §7.4.1 has no code for that;
    /// 1013 is registered for it).
    Memory,
}

impl Violation {
    /// The code of the Close frame that answers it.
    ///
    /// Versions 7 and 8 know 1004 ("frame too large") where RFC 6455 has 1009.
    pub fn close_code(self, version: Version) -> CloseCode {
        match self {
            Self::CloseReason | Self::Text | Self::Deflate => CloseCode::INVALID_DATA,
            Self::TooBig if matches!(version, Version::V8 | Version::V7) => {
                CloseCode::FRAME_TOO_LARGE
            }
            Self::TooBig => CloseCode::TOO_BIG,
            Self::Memory => CloseCode::TRY_AGAIN_LATER,
            _ => CloseCode::PROTOCOL_ERROR,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReservedBits => "a reserved bit is set",
            Self::UnknownOpcode => "unknown opcode",
            Self::Unmasked => "a client frame is not masked",
            Self::LengthNotMinimal => "a length is not encoded in the fewest bytes",
            Self::LengthTopBit => "a 64-bit length has its top bit set",
            Self::ControlTooLong => "a control frame is longer than 125 bytes",
            Self::ControlFragmented => "a control frame is fragmented",
            Self::NothingToContinue => "a continuation frame continues no message",
            Self::MessageInterrupted => "a data frame interrupts a fragmented message",
            Self::ClosePayload => "a close payload is one byte long",
            Self::CloseCode => "a close code is not allowed on the wire",
            Self::CloseReason => "a close reason is not UTF-8",
            Self::Text => "a text message is not UTF-8",
            Self::Deflate => "a compressed message cannot be inflated",
            Self::TooBig => "a message is larger than WebSocketMaxMessageSize",
            Self::Memory => {
                "the connections of this child hold as much as WebSocketMemoryLimit allows"
            }
        })
    }
}

impl core::error::Error for Violation {}

impl From<Exhausted> for Violation {
    fn from(_: Exhausted) -> Self {
        Self::Memory
    }
}

/// Whether a token of HTTP may have this byte (RFC 9110 §5.6.2): names of fields, of subprotocols and of extensions.
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
