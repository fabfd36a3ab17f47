//! What a connection's messages are for: the other side of a driver.
#![deny(unsafe_code)]

use crate::proto::Kind;

/// The receiver of one connection's messages: a plugin today.
///
/// A driver never calls it from two threads at once, though not always from the same thread. It answers
/// through the connection's [`Outbox`](crate::outbox::Outbox).
pub trait Endpoint: Send + Sync {
    /// A message has arrived. `data` may be changed; it is gone when the call returns.
    fn message(&self, kind: Kind, data: &mut [u8]);

    /// The connection is over: called once, last, when sends already answer that it is closing.
    fn closed(&self);
}
