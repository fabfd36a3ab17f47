//! How a subscriber is told that there is something to read.

use std::sync::Arc;

use crate::{
    conn::outbox::Outbox,
    sync::{AtomicU64, Ordering},
};

/// What a subscriber that was not told is told.
const NOTHING: u64 = u64::MAX;

/// Between the hub, which tells, and a subscriber, which asks when it has its turn.
pub struct Feed {
    /// The first message since it was asked last; [`NOTHING`] if there was none.
    told: AtomicU64,
    /// `None` for one that is never told.
    outbox: Option<Arc<Outbox>>,
}

impl Feed {
    /// For the subscriber that writes to this outbox.
    pub fn new(outbox: Arc<Outbox>) -> Arc<Self> {
        Arc::new(Self { told: AtomicU64::new(NOTHING), outbox: Some(outbox) })
    }

    /// For one that takes what is there, and is never told of more.
    pub fn silent() -> Self {
        Self { told: AtomicU64::new(NOTHING), outbox: None }
    }

    /// What it was told since it was asked last.
    pub(super) fn take(&self) -> Option<u64> {
        Some(self.told.swap(NOTHING, Ordering::SeqCst)).filter(|&told| told != NOTHING)
    }

    /// Tells it of a message: it has a turn soon, in which it hears of all that came since. `false` if it has that turn
    /// anyway.
    pub(super) fn tell(&self, at: u64) -> bool {
        // A store in any case: who was told before, and takes that, sees the head that we have seen, and reads on to this
        // message. From a mere look at the word it would not follow.
        let tell = |told| Some(if told == NOTHING { at } else { told });
        let first = self.told.fetch_update(Ordering::SeqCst, Ordering::SeqCst, tell) == Ok(NOTHING);
        if let (true, Some(outbox)) = (first, &self.outbox) {
            outbox.have_a_turn();
        }
        first
    }
}
