//! A channel that a subscriber is subscribed to.
#![forbid(unsafe_code)]

use std::sync::Arc;

use slotmap::{DefaultKey, Key as _};

use super::ring::Ring;

/// One of a subscriber's channels.
#[derive(Debug)]
pub struct Subscription {
    /// Its hash.
    pub hash: u64,
    /// Its name, which the subscribers of this child share.
    pub name: Arc<str>,
    /// What the hub knows the subscriber by, if it tells it of messages.
    pub(super) key: DefaultKey,
}

impl Subscription {
    /// The channels of these names, for one who is never told.
    pub fn untold(ring: Ring, names: &[String]) -> Box<[Self]> {
        let subscription = |name: &String| Self {
            hash: ring.hash(name),
            name: (**name).into(),
            key: DefaultKey::null(),
        };
        names.iter().map(subscription).collect()
    }
}
