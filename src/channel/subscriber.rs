//! The endpoint of a WebSocket that is subscribed to channels: what is published goes to its client.

use std::sync::{Arc, Mutex};

use super::{
    Kind, Message, SlowClient,
    cursor::{Cursor, Next},
    feed::Feed,
    hub::{Hub, Subscription},
    id::Id,
};
use crate::{
    conn::{
        endpoint::{Endpoint, Relayed},
        outbox::{Outbox, State},
    },
    proto::{
        self,
        close::{self, CloseCode},
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
}

/// How a subscriber is served.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// What its messages are on the wire.
    pub format: Format,
    /// What becomes of it when it is overtaken.
    pub slow: SlowClient,
}

/// The endpoint.
pub struct Subscriber {
    hub: &'static Hub,
    feed: Arc<Feed>,
    outbox: Arc<Outbox>,
    manner: Manner,
    /// Used by the thread at work on the connection.
    cursor: Mutex<Cursor>,
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
        let (cursor, subscription) = (Mutex::new(cursor), Mutex::new(Some(subscription)));
        let subscriber = Self { hub, feed, outbox, manner, cursor, subscription };
        if gap {
            subscriber.tell_gap();
        }
        subscriber
    }

    /// Tells a client that knows ids that something is missing before what follows.
    fn tell_gap(&self) {
        if self.manner.format == Format::Meta {
            let nowhere = Id::new(self.hub.store().ring().seed(), 0, 0, 0);
            let _ = self.outbox.send_message(proto::Kind::Text, preamble(nowhere, GAP).as_bytes());
        }
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
        let before = match self.manner.format {
            Format::Plain => String::new(),
            Format::Meta => {
                let seed = self.hub.store().ring().seed();
                preamble(Id::new(seed, message.time, message.at, message.hash), &message.media)
            }
        };
        if !self.outbox.has_room(before.len() + message.body.len(), QUEUED) {
            return false;
        }
        // A conversation that is over needs nothing more.
        let _ = if before.is_empty() {
            self.outbox.send_message(kind, &message.body)
        } else {
            self.outbox.send_message(kind, &[before.as_bytes(), &message.body].concat())
        };
        true
    }

    /// What becomes of a client that was overtaken.
    fn overtaken(&self) {
        match self.manner.slow {
            SlowClient::Skip => self.tell_gap(),
            SlowClient::Close => {
                let payload = close::payload(CloseCode::TRY_AGAIN_LATER);
                self.outbox.close(&payload, "the client is too slow for its channel");
            }
        }
    }
}

impl Endpoint for Subscriber {
    fn message(&self, _: proto::Kind, _: &mut [u8]) {
        let reason = b"this channel takes no messages from clients";
        let payload = [&close::payload(CloseCode::POLICY)[..], reason].concat();
        self.outbox.close(&payload, "the client publishes where it may not");
    }

    fn pull(&self, _: &mut [u8]) -> Relayed {
        let (mut again, mut paused) = (false, false);
        let mut cursor = self.cursor.acquire();
        for n in 0.. {
            if self.outbox.state() > State::Open {
                break;
            }
            match cursor.next(self.hub, &self.feed) {
                Next::Nothing => break,
                Next::Later => {
                    again = true;
                    break;
                }
                Next::Gap => self.overtaken(),
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
