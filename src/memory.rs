//! The memory of a child's connections: what clients can make grow is counted here before it does.
//!
//! That is unfinished messages, what waits to be sent, and the state of compression. What a connection takes anyway, and
//! a little more ([`FREE`]), is not counted, so that those who hold little are never refused.
#![deny(unsafe_code)]

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// So many bytes of anything are not counted.
pub const FREE: usize = 4096;
/// What is more is counted in steps of so many.
const STEP: usize = 16 * 1024;

/// For what need not be counted: tests, benchmarks.
pub static UNLIMITED: Budget = Budget::new(usize::MAX);

/// How many bytes a child may hold, and does (`WebSocketMemoryLimit`).
#[derive(Debug)]
pub struct Budget {
    // Mere counts, which nothing else hangs on.
    bound: AtomicUsize,
    used: AtomicUsize,
    refused: AtomicU64,
}

/// There is no room in the budget.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exhausted;

impl Budget {
    /// A budget of `bound` bytes.
    pub const fn new(bound: usize) -> Self {
        let (used, refused) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { bound: AtomicUsize::new(bound), used, refused }
    }

    /// Changes the bound; what is held stays so.
    pub fn set_bound(&self, bound: usize) {
        self.bound.store(bound, Ordering::Relaxed);
    }

    /// How many bytes there may be.
    pub fn bound(&self) -> usize {
        self.bound.load(Ordering::Relaxed)
    }

    /// How many bytes are held.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A connection is closed because there is no room.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was so.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether less than half of it is held, so that memory can be kept for later, too.
    pub fn is_at_ease(&self) -> bool {
        self.used() <= self.bound() / 2
    }

    /// A part of it that holds nothing yet.
    pub fn claim(&'static self) -> Claim {
        Claim { budget: self, bytes: 0 }
    }

    /// Takes `bytes` if no more than half of the budget is held then: for what is useful, but not needed.
    pub fn reserve(&'static self, bytes: usize) -> Option<Claim> {
        self.take(bytes, self.bound() / 2).then(|| Claim { budget: self, bytes })
    }

    fn take(&self, bytes: usize, bound: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= bound);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// What somebody holds of a [`Budget`], until it is dropped.
#[derive(Debug)]
pub struct Claim {
    budget: &'static Budget,
    bytes: usize,
}

impl Claim {
    /// Sees to it that `bytes` are counted, if they are more than [`FREE`].
    #[inline]
    pub fn cover(&mut self, bytes: usize) -> Result<(), Exhausted> {
        if bytes <= self.bytes || bytes <= FREE { Ok(()) } else { self.grow(bytes) }
    }

    #[cold]
    fn grow(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let more = bytes.checked_next_multiple_of(STEP).ok_or(Exhausted)? - self.bytes;
        if !self.budget.take(more, self.budget.bound()) {
            return Err(Exhausted);
        }
        self.bytes += more;
        Ok(())
    }

    /// Nothing is held any more.
    #[inline]
    pub fn release(&mut self) {
        if self.bytes > 0 {
            self.give_back();
        }
    }

    #[cold]
    fn give_back(&mut self) {
        self.budget.used.fetch_sub(core::mem::take(&mut self.bytes), Ordering::Relaxed);
    }

    /// Whose claim it is.
    pub fn budget(&self) -> &'static Budget {
        self.budget
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn budget(bound: usize) -> &'static Budget {
        Box::leak(Box::new(Budget::new(bound)))
    }

    #[test]
    fn a_share_is_counted_in_steps_and_given_back() {
        let budget = budget(4 * STEP);
        let (mut one, mut other) = (budget.claim(), budget.claim());
        assert_eq!(one.cover(FREE), Ok(()));
        assert_eq!(budget.used(), 0);
        assert_eq!(one.cover(FREE + 1), Ok(()));
        assert_eq!(one.cover(STEP), Ok(()));
        assert_eq!(budget.used(), STEP);
        assert_eq!(one.cover(STEP + 1), Ok(()));
        assert_eq!(other.cover(2 * STEP), Ok(()));
        assert_eq!(budget.used(), 4 * STEP);
        // What is there stays; who holds little is not refused.
        assert_eq!(one.cover(2 * STEP + 1), Err(Exhausted));
        assert_eq!(budget.claim().cover(FREE), Ok(()));
        assert_eq!(budget.used(), 4 * STEP);
        other.release();
        assert_eq!(one.cover(4 * STEP), Ok(()));
        drop(one);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn no_size_is_too_large_to_be_refused() {
        let budget = budget(usize::MAX);
        let mut claim = budget.claim();
        assert_eq!(claim.cover(1 << 20), Ok(()));
        assert_eq!(claim.cover(usize::MAX), Err(Exhausted));
        assert_eq!(budget.used(), 1 << 20);
    }

    #[test]
    fn half_of_it_is_for_what_is_not_needed() {
        let budget = budget(100);
        let kept = budget.reserve(50).expect("half of it");
        assert!(budget.is_at_ease());
        assert!(budget.reserve(1).is_none());
        drop(kept);
        assert!(budget.reserve(51).is_none());
        assert_eq!(budget.used(), 0);
    }
}
