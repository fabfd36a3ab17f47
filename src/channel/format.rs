//! What a message is on the wire, for each kind of client.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::{Kind, Message, id::Id};
use crate::proto::events;

/// The subprotocol in which each message has its id.
pub const META: &str = "ws+meta.nchan";
/// The media type of the message, without a body, that says in it that something is missing.
pub const GAP: &str = "application/x-websocket-gap";

/// What a message is on the wire.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// What was published, and nothing else.
    Plain,
    /// With its id and its media type before it: [`META`].
    Meta,
    /// An event with its id; binary messages in Base64.
    Event,
}

impl Format {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Meta, Self::Event];

    /// The message on the wire; `None` if it is what was published and nothing else.
    pub fn wrap(self, message: &Message, seed: [u64; 2]) -> Option<Vec<u8>> {
        let id = Id::new(seed, message.time, message.at, message.hash);
        match self {
            Self::Plain => None,
            Self::Meta => Some([preamble(id, &message.media).as_bytes(), &message.body].concat()),
            Self::Event => {
                let (kind, data) = match core::str::from_utf8(&message.body) {
                    Ok(text) if message.kind == Kind::Text => (None, Cow::Borrowed(text)),
                    _ => (Some("binary"), Cow::Owned(BASE64_STANDARD.encode(&message.body))),
                };
                Some(events::event(Some(&id.to_string()), kind, &data).into_bytes())
            }
        }
    }

    /// What tells that something is missing before what follows, to clients that know ids. That of a gap leads to what
    /// follows.
    pub fn gap(self, id: Id) -> Option<String> {
        match self {
            Self::Plain => None,
            Self::Meta => Some(preamble(id, GAP)),
            Self::Event => Some(events::event(Some(&id.to_string()), Some("gap"), "")),
        }
    }

    /// What a client is told first, so that it misses nothing if it comes back before the first message.
    pub fn greeting(self, id: Id) -> Option<String> {
        (self == Self::Event).then(|| format!("id: {id}\n\n"))
    }
}

/// How one or another message of a channel begins in [`META`].
fn preamble(id: Id, media: &str) -> String {
    let media = if media.is_empty() { String::new() } else { format!("content-type: {media}\n") };
    format!("id: {id}\n{media}\n")
}
