//! Channels: a message that is published once reaches every client that is subscribed, in all children of the server.
//!
//! ```text
//! publish ─▶ ring (shared memory) ─▶ hub (one thread a child, asleep until then) ─▶ its subscribers' turns
//!                  ▲                                                                       │
//!                  └────────────────── each reads from its own place ◀─────────────────────┘
//! ```
//!
//! A subscriber holds no copies: its place in the ring says what it has got, and it reads on when it is told, or when its
//! client has taken what waits for it. So live delivery, history and catching up are one and the same.
//!
//! | file | owns |
//! |---|---|
//! | [`name`] | what a channel may be called |
//! | [`settings`] | what a section says of channels |
//! | [`media`] | how a body is told to be text |
//! | [`store`] | the shared memory: one for all children, and for both generations of a restart |
//! | [`lock`] | the lock of those who publish, which survives them |
//! | [`ring`] | the messages: written under that lock, read without |
//! | [`wakeup`] | sleeping until something is published |
//! | [`counts`] | how many subscribers a channel has, over all children |
//! | [`id`] | the ids of messages, which nobody can guess |
//! | [`feed`] | how a subscriber is told that there is something to read |
//! | [`subscription`] | a channel that a subscriber is subscribed to |
//! | [`hub`] | the subscribers of this child, and the thread that tells them |
//! | [`mod@format`] | what a message is on the wire |
//! | [`kept`] | what this child's subscribers read last: read, put into a form and compressed once |
//! | [`cursor`] | a subscriber's place |
//! | [`broker`] | where messages are published, whoever connects the machines |
//! | [`publisher`] | a client's messages, which are published |
//! | [`subscriber`] | the endpoint of a WebSocket that is subscribed |

pub mod broker;
pub mod counts;
pub mod cursor;
pub mod feed;
pub mod format;
#[cfg(not(loom))]
pub mod hub;
pub mod id;
pub mod kept;
#[cfg(not(loom))]
pub mod lock;
pub mod media;
pub mod name;
#[cfg(not(loom))]
pub mod publisher;
pub mod ring;
pub mod settings;
#[cfg(not(loom))]
pub mod store;
#[cfg(not(loom))]
pub mod subscriber;
pub mod subscription;
pub mod wakeup;

/// How many channels a section may name.
pub const MOST: usize = 64;

/// What a message is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
    /// No message: the channel's subscribers are sent away.
    End,
}

/// A message that was published.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// The name of its channel.
    pub channel: Box<str>,
    /// Its media type, as the publisher wrote it; may be empty.
    pub media: Box<str>,
    /// What subscribers get.
    pub body: Box<[u8]>,
    /// When it was published, in milliseconds since 1970.
    pub time: u64,
    /// Its place in the ring.
    pub at: u64,
    /// The hash of its channel.
    pub hash: u64,
}

/// How much of what is still there a subscriber gets that brings no id.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Replay {
    /// So many of the newest messages.
    Last(u32),
    /// All.
    All,
}

/// What becomes of a subscriber that was overtaken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SlowClient {
    /// It is closed with 1013.
    Close,
    /// It goes on with what is there.
    Skip,
}
