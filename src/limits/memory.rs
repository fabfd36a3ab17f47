//! The memory of a child's connections: what clients can make grow is counted here before it does.
//!
//! That is unfinished messages, what waits to be sent, and the state of compression. What a connection takes anyway, and
//! a little more ([`FREE`]), is not counted. A claim of more than 64 KiB may use three quarters of the budget at most.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many bytes of a claim are not counted.
pub const FREE: usize = 4096;
/// Up to this many bytes a claim may use the last quarter of the budget.
const SMALL: usize = 64 * 1024;
/// In steps of how many bytes a claim is counted.
const STEP: usize = 16 * 1024;

/// A budget without a bound, for tests and benchmarks.
pub static UNLIMITED: Budget = Budget::new(usize::MAX);

/// How many bytes a child may hold, and does (`WebSocketMemoryLimit`).
#[derive(Debug)]
pub struct Budget {
    // Mere counts, which nothing else hangs on.
    bound: AtomicUsize,
    used: AtomicUsize,
    /// What is kept for the next messages, besides.
    spare: AtomicUsize,
    refused: AtomicU64,
}

/// There is no room in the budget.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exhausted;

impl Budget {
    /// A budget of `bound` bytes.
    pub const fn new(bound: usize) -> Self {
        let (used, spare) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { bound: AtomicUsize::new(bound), used, spare, refused: AtomicU64::new(0) }
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

    /// Whether `bytes` more may be kept for the next messages: an eighth of what may be held, in all.
    pub fn spare(&self, bytes: usize) -> bool {
        take(&self.spare, bytes, self.bound() / 8)
    }

    /// They are not kept any more.
    pub fn unspare(&self, bytes: usize) {
        self.spare.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A part of it that holds nothing yet.
    pub fn claim(&'static self) -> Claim {
        Claim { budget: self, bytes: 0 }
    }

    /// Takes `bytes` if no more than half of the budget is held then: for what is useful, but not needed.
    pub fn reserve(&'static self, bytes: usize) -> Option<Claim> {
        take(&self.used, bytes, self.bound() / 2).then(|| Claim { budget: self, bytes })
    }
}

/// Adds `bytes` to a count unless that would exceed `bound`.
fn take(count: &AtomicUsize, bytes: usize, bound: usize) -> bool {
    let fits = |used: usize| used.checked_add(bytes).filter(|&sum| sum <= bound);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
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
        let bound = self.budget.bound();
        let bound = if bytes <= SMALL { bound } else { bound - bound / 4 };
        if !take(&self.budget.used, more, bound) {
            return Err(Exhausted);
        }
        self.bytes += more;
        Ok(())
    }

    /// No more than `bytes` are held any more. To be called where that is much less than before.
    pub fn lower(&mut self, bytes: usize) {
        let bytes = if bytes <= FREE { 0 } else { bytes.next_multiple_of(STEP) };
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.budget.used.fetch_sub(less, Ordering::Relaxed);
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
        self.lower(0);
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
    fn those_who_hold_much_leave_a_quarter_to_the_others() {
        let budget = budget(16 * SMALL);
        let mut large: Vec<_> = (0..7).map(|_| budget.claim()).collect();
        for claim in &mut large[..6] {
            assert_eq!(claim.cover(2 * SMALL), Ok(()));
        }
        assert_eq!(large[6].cover(2 * SMALL), Err(Exhausted));
        let mut small: Vec<_> = (0..4).map(|_| budget.claim()).collect();
        for claim in &mut small {
            assert_eq!(claim.cover(SMALL), Ok(()));
        }
        assert_eq!(budget.claim().cover(SMALL), Err(Exhausted));
        small[0].lower(STEP + 1);
        assert_eq!(budget.used(), 16 * SMALL - 2 * STEP);
        small[0].lower(FREE);
        assert_eq!(budget.claim().cover(SMALL), Ok(()));
        // What is there may stay.
        assert_eq!(large[0].cover(2 * SMALL), Ok(()));
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
    fn what_is_kept_for_the_next_messages_takes_nothing_from_others() {
        let budget = budget(8 * STEP);
        assert!(budget.spare(STEP / 2) && !budget.spare(STEP));
        assert_eq!(budget.claim().cover(2 * STEP), Ok(()));
        budget.unspare(STEP / 2);
        assert!(budget.spare(STEP));
    }

    #[test]
    fn half_of_it_is_for_what_is_not_needed() {
        let budget = budget(100);
        let kept = budget.reserve(50).expect("half of it");
        assert!(budget.reserve(1).is_none());
        drop(kept);
        assert!(budget.reserve(51).is_none());
        assert_eq!(budget.used(), 0);
    }
}
