//! The endpoint of a WebSocket that is subscribed to channels: what is published goes to its client.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::{
    Kind, Message, SlowClient,
    cursor::{Cursor, Next},
    hub::{Feed, Hub, Subscription},
    id::Id,
};
use crate::{
    conn::{
        endpoint::{Endpoint, Relayed},
        log::Level,
        outbox::{Outbox, State},
    },
    proto::{
        self,
        close::{self, CloseCode},
        events,
    },
    sync::Lock as _,
};

/// How much is queued for a client beyond what it takes at once: the ring has the rest.
const QUEUED: usize = 64 * 1024;
/// How many messages go to a client before others have their turn.
const MESSAGES: usize = 64;

/// The subprotocol in which each message has its id.
pub const META: &str = "ws+meta.nchan";
/// The media type of the message, without a body, that says in it that something is missing.
pub const GAP: &str = "application/x-websocket-gap";

/// What a message is on the wire.
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

    /// What tells that something is missing before what follows, to clients that know ids.
    pub fn gap(self, seed: [u64; 2]) -> Option<String> {
        match self {
            Self::Plain => None,
            Self::Meta => Some(preamble(Id::new(seed, 0, 0, 0), GAP)),
            Self::Event => Some(events::event(None, Some("gap"), "")),
        }
    }

    /// What a client is told first, so that it misses nothing if it comes back before the first message.
    pub fn greeting(self, id: Id) -> Option<String> {
        (self == Self::Event).then(|| format!("id: {id}\n\n"))
    }
}

/// How a subscriber is served.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// What its messages are on the wire.
    pub format: Format,
    /// What becomes of it when it is overtaken.
    pub slow: SlowClient,
}

/// How far a subscriber is.
struct Place {
    cursor: Cursor,
    /// It has to be told first that something is missing.
    gap: bool,
}

/// The endpoint.
pub struct Subscriber {
    hub: &'static Hub,
    feed: Arc<Feed>,
    outbox: Arc<Outbox>,
    manner: Manner,
    /// Used by the thread at work on the connection.
    place: Mutex<Place>,
    /// Until the end.
    subscription: Mutex<Option<Subscription>>,
}

/// How one or another message of a channel begins in [`META`].
fn preamble(id: Id, media: &str) -> String {
    let media = if media.is_empty() { String::new() } else { format!("content-type: {media}\n") };
    format!("id: {id}\n{media}\n")
}

impl Subscriber {
    /// The endpoint of one who is subscribed. It is told of a `gap` first, if it knows ids.
    pub fn new(
        hub: &'static Hub,
        feed: Arc<Feed>,
        outbox: Arc<Outbox>,
        manner: Manner,
        (cursor, gap): (Cursor, bool),
        subscription: Subscription,
    ) -> Self {
        let greeting = manner.format.greeting(cursor.id(hub.store().ring()));
        if let Some(greeting) = greeting {
            let _ = outbox.send_message(proto::Kind::Text, greeting.as_bytes());
        }
        let (place, subscription) = (Place { cursor, gap }, Some(subscription));
        let (place, subscription) = (Mutex::new(place), Mutex::new(subscription));
        Self { hub, feed, outbox, manner, place, subscription }
    }

    /// Tells a client that knows ids that something is missing; `false` if it has to take something first.
    fn tell_gap(&self) -> bool {
        let Some(gap) = self.manner.format.gap(self.hub.store().ring().seed()) else { return true };
        self.offer(proto::Kind::Text, gap.as_bytes())
    }

    /// Sends something if there is room.
    fn offer(&self, kind: proto::Kind, body: &[u8]) -> bool {
        let has_room = self.outbox.has_room(body.len(), QUEUED);
        if has_room {
            // A conversation that is over needs nothing more.
            let _ = self.outbox.send_message(kind, body);
        }
        has_room
    }

    /// Sends a message; `false` if the client has to take something first.
    fn send(&self, message: &Message) -> bool {
        let kind = match message.kind {
            Kind::Text => proto::Kind::Text,
            Kind::Binary => proto::Kind::Binary,
            Kind::End => {
                self.outbox.close(&close::payload(CloseCode::NORMAL), "the channel ends");
                return true;
            }
        };
        let wrapped = self.manner.format.wrap(message, self.hub.store().ring().seed());
        self.offer(kind, wrapped.as_deref().unwrap_or(&message.body))
    }

    /// Closes with a code, a reason and a line.
    fn send_away(&self, code: CloseCode, tag: &str, reason: &str) {
        let payload = [&close::payload(code)[..], reason.as_bytes()].concat();
        if self.outbox.close(&payload, reason) {
            let line = format_args!("{tag}: closing with {}: {reason}", code.0);
            self.outbox.log().write(Level::Info, line);
        }
    }
}

impl Endpoint for Subscriber {
    fn message(&self, _: proto::Kind, _: &mut [u8]) {
        let reason = "this channel takes no messages from clients";
        self.send_away(CloseCode::POLICY, "WS0708", reason);
    }

    fn pull(&self, _: &mut [u8]) -> Relayed {
        let (mut again, mut paused) = (false, false);
        let mut place = self.place.acquire();
        let Place { cursor, gap } = &mut *place;
        for n in 0.. {
            if self.outbox.state() > State::Open {
                break;
            }
            if *gap && !self.tell_gap() {
                paused = true;
                break;
            }
            *gap = false;
            match cursor.next(self.hub, &self.feed) {
                Next::Nothing => break,
                Next::Later => {
                    again = true;
                    break;
                }
                // However often it is overtaken before it takes something, it is told once.
                Next::Gap => match self.manner.slow {
                    SlowClient::Skip => *gap = true,
                    SlowClient::Close => {
                        let reason = "the client is too slow for its channel";
                        self.send_away(CloseCode::TRY_AGAIN_LATER, "WS0709", reason);
                    }
                },
                Next::Message(_) if n == MESSAGES => {
                    again = true;
                    break;
                }
                Next::Message(message) => {
                    if !self.send(&message) {
                        paused = true;
                        break;
                    }
                    cursor.pass();
                }
            }
        }
        Relayed { again, paused, settled: true }
    }

    fn closed(&self) {
        if let Some(subscription) = self.subscription.acquire().take() {
            self.hub.unsubscribe(&subscription);
        }
    }
}
