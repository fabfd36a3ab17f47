//! How many of the server's workers WebSockets may hold (`WebSocketWorkerShare`), and how many they do.
//!
//! A WebSocket that holds a worker (a thread, or a process of prefork's) keeps it from requests as long as it lives. What
//! is left serves plain pages.

use std::sync::atomic::{AtomicU32, Ordering};

/// `WebSocketWorkerShare`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Share {
    /// Of a hundred workers, from 1 to 100.
    Percent(u8),
    /// All of them.
    Off,
}

impl Default for Share {
    fn default() -> Self {
        Self::Percent(75)
    }
}

impl Share {
    /// How many of so many workers WebSockets may hold: rounded up, at least one, and not the last of several.
    pub fn of(self, workers: u32) -> u32 {
        let Self::Percent(percent) = self else { return u32::MAX };
        let share = (u64::from(workers) * u64::from(percent)).div_ceil(100);
        let most = workers.saturating_sub(1).max(1);
        u32::try_from(share).map_or(most, |share| share.clamp(1, most))
    }
}

/// The workers of one kind that WebSockets may hold.
#[derive(Debug)]
pub struct Workers {
    all: AtomicU32,
    most: AtomicU32,
    held: AtomicU32,
}

/// A worker that is held until the value is dropped.
#[derive(Debug)]
pub struct HeldWorker(&'static Workers);

impl Workers {
    /// As many as anybody asks for, until [`set`](Self::set) says more.
    #[allow(clippy::new_without_default, reason = "it is for statics")]
    pub const fn new() -> Self {
        Self { all: AtomicU32::new(0), most: AtomicU32::new(u32::MAX), held: AtomicU32::new(0) }
    }

    /// Says how many there are, and how many of them WebSockets may hold.
    pub fn set(&self, all: u32, most: u32) {
        self.all.store(all, Ordering::Relaxed);
        self.most.store(most, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn all(&self) -> u32 {
        self.all.load(Ordering::Relaxed)
    }

    /// How many of them WebSockets may hold; `u32::MAX` if that is not limited.
    pub fn most(&self) -> u32 {
        self.most.load(Ordering::Relaxed)
    }

    /// Takes one in this process; `None` if WebSockets hold as many as they may.
    pub fn take(&'static self) -> Option<HeldWorker> {
        let most = self.most();
        let one_more = |held| (held < most).then(|| held + 1);
        let taken = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.is_ok().then(|| HeldWorker(self))
    }
}

impl Drop for HeldWorker {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn three_quarters_leave_a_worker_to_pages() {
        let shares =
            [(0, 1), (1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (8, 6), (25, 19), (64, 48), (80, 60)];
        for (workers, most) in shares {
            assert_eq!(Share::default().of(workers), most, "of {workers}");
        }
    }

    #[test]
    fn other_shares() {
        for (share, workers, most) in [
            (Share::Percent(1), 25, 1),
            (Share::Percent(50), 25, 13),
            (Share::Percent(100), 25, 24),
            (Share::Percent(100), 1, 1),
            (Share::Percent(100), u32::MAX, u32::MAX - 1),
            (Share::Off, 25, u32::MAX),
            (Share::Off, 1, u32::MAX),
        ] {
            assert_eq!(share.of(workers), most, "{share:?} of {workers}");
        }
    }

    #[test]
    fn no_more_are_taken_than_may_be() {
        static WORKERS: Workers = Workers::new();
        WORKERS.set(3, 2);
        let (one, other) = (WORKERS.take(), WORKERS.take());
        assert!(one.is_some() && other.is_some() && WORKERS.take().is_none());
        drop(one);
        assert!(WORKERS.take().is_some());
        let again = WORKERS.take();
        assert!(again.is_some() && WORKERS.take().is_none());
    }

    #[test]
    fn threads_never_take_one_too_many() {
        static WORKERS: Workers = Workers::new();
        WORKERS.set(4, 3);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let taken = WORKERS.take();
                        assert!(WORKERS.held.load(Ordering::Relaxed) <= 3);
                        drop(taken);
                    }
                });
            }
        });
        assert_eq!(WORKERS.held.load(Ordering::Relaxed), 0);
    }
}
