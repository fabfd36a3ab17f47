//! How a subscriber is told that there is something to read.

use std::sync::Arc;

use crate::{
    conn::outbox::Outbox,
    sync::{AtomicU64, Ordering},
};

/// What a subscriber that was not told is told.
const NOTHING: u64 = u64::MAX;
/// Marks the place of one that is [held](Feed::hold).
const HELD: u64 = 1 << 63;

/// Between the hub, which tells, and a subscriber, which asks when it has its turn.
pub struct Feed {
    /// The first message since it was asked last; [`NOTHING`] if there was none. With [`HELD`] the place of one that waits
    /// for its client.
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
        Some(self.told.swap(NOTHING, Ordering::SeqCst)).filter(|&told| told & HELD == 0)
    }

    /// Its client has to take something first, and gives it a turn then: until it asks again it is told only when the
    /// message at `place` is overwritten; never, if there is none.
    pub(super) fn hold(&self, place: Option<u64>) {
        let held = place.map_or(NOTHING - 1, |place| place | HELD);
        // Whoever was told meanwhile has that turn.
        let _ = self.told.compare_exchange(NOTHING, held, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Tells it of a message: it has a turn soon, in which it hears of all that came since. `false` if it has that turn
    /// anyway, or is [held](Self::hold). What is before `tail` is overwritten.
    pub(super) fn tell(&self, at: u64, tail: u64) -> bool {
        // A store in any case: who was told before, and takes that, sees the head that we have seen, and reads on to this
        // message. From a mere look at the word it would not follow.
        let is_new = |told| told == NOTHING || (told & HELD != 0 && told & !HELD < tail);
        let tell = |told| Some(if is_new(told) { at } else { told });
        let told = self.told.fetch_update(Ordering::SeqCst, Ordering::SeqCst, tell);
        let first = told.is_ok_and(is_new);
        if let (true, Some(outbox)) = (first, &self.outbox) {
            outbox.have_a_turn();
        }
        first
    }
}
