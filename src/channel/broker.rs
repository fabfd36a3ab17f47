//! Where messages are published, for those who do not care how they get to the subscribers.
//!
//! Today that is the ring of this machine. What connects several machines takes its place here: it passes on what it is
//! given, and writes what comes from all of them into the ring. Subscribers know of the ring only.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::{Kind, id::Id};

/// What is to be published.
#[derive(Clone, Copy, Debug)]
pub struct NewMessage<'m> {
    /// What it is; text is UTF-8.
    pub kind: Kind,
    /// The name of its channel, one that [`check`](super::name::check) allows.
    pub channel: &'m str,
    /// Its media type, as the publisher wrote it; may be empty.
    pub media: &'m str,
    /// What subscribers get.
    pub body: &'m [u8],
}

/// Why nothing was published.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// Others publish for as long already as is waited for.
    Busy,
    /// It has more bytes than a message may have.
    TooLarge,
}

/// What publishes.
pub trait Broker: Send + Sync {
    /// Publishes a message, which has the id then by which subscribers get what comes behind it. The calling thread may wait
    /// for others that publish, for `patience` at most.
    fn publish(&self, message: &NewMessage<'_>, patience: Duration) -> Result<Id, Refused>;
}
