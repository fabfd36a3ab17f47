//! How long a thread may wait for a client that does not take what it is sent.
//!
//! Anybody may wait as long as the client takes 500 bytes a second. A thread that serves many connections would make
//! all of them wait, so there is more to it: for all that is sent within one callback, to whomever, it waits httpd's
//! `Timeout` at most, and only so many threads wait at a time.

use core::cell::Cell;
use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread_local,
    time::{Duration, Instant},
};

/// How many bytes a second a client has to take of what waits for it, averaged over httpd's `Timeout`.
const RATE: u128 = 500;
/// How long a callback may hold a thread, waiting in all, when too many others wait already.
const GRACE: Duration = Duration::from_millis(50);

/// How many of the threads that share their connections wait for clients.
#[derive(Debug)]
pub struct Waits {
    most: usize,
    // Mere counts, which nothing else hangs on.
    now: AtomicUsize,
    refused: AtomicU64,
}

thread_local! {
    /// Those that the calling thread is one of.
    static SHARED: Cell<Option<&'static Waits>> = const { Cell::new(None) };
    /// How long the callback on the calling thread has waited.
    static WAITED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// How long of that when too many others did already.
    static IN_EXCESS: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

impl Waits {
    /// At most half of `threads` wait at a time, and one at least.
    pub fn new(threads: usize) -> Self {
        let most = (threads / 2).max(1);
        Self { most, now: AtomicUsize::new(0), refused: AtomicU64::new(0) }
    }

    /// How many threads may wait at a time.
    pub fn most(&self) -> usize {
        self.most
    }

    /// How many do.
    pub fn now(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// How many clients were closed because one more would have had to.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// From now on the calling thread is one of those.
    pub fn join(&'static self) {
        SHARED.set(Some(self));
    }

    fn enter(&self) -> bool {
        let more = |now| (now < self.most).then_some(now + 1);
        self.now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// A callback begins on the calling thread.
#[inline]
pub fn begin_callback() {
    WAITED.set(Duration::ZERO);
    IN_EXCESS.set(Duration::ZERO);
}

/// A wait of the calling thread.
#[derive(Debug)]
pub struct Wait {
    timeout: Duration,
    pace: Pace,
    /// When it began, and when it was asked last.
    since: Option<(Instant, Instant)>,
    /// It is counted there.
    counted: Option<&'static Waits>,
}

impl Wait {
    /// A wait that has not begun; `timeout` is httpd's.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, pace: Pace::default(), since: None, counted: None }
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.since.is_some()
    }

    /// Begins, or goes on, if that may be; otherwise the reason, for which the client is to be closed. `left` is how many
    /// bytes have left so far.
    pub fn go_on(&mut self, now: Instant, left: u64) -> Result<(), &'static str> {
        let (begun, before) = self.since.unwrap_or((now, now));
        self.since = Some((begun, now));
        if self.pace.is_slow(now - begun, left, self.timeout) {
            return Err("the client reads too slowly");
        }
        let Some(waits) = SHARED.get() else { return Ok(()) };
        let waited = WAITED.get() + (now - before);
        WAITED.set(waited);
        if waited >= self.timeout {
            return Err("what was sent in answer to one message has waited for Timeout in all");
        }
        if self.counted.is_none() {
            let in_excess = IN_EXCESS.get() + (now - before);
            IN_EXCESS.set(in_excess);
            if waits.enter() {
                self.counted = Some(waits);
            } else if in_excess >= GRACE {
                waits.refused.fetch_add(1, Ordering::Relaxed);
                return Err("as many threads wait for clients as may");
            }
        }
        Ok(())
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(waits) = self.counted {
            waits.now.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How fast a client takes what waits for it.
#[derive(Debug, Default)]
pub struct Pace {
    /// When the time in which it is measured began, and how many bytes had left then. Most clients have nothing waiting.
    since: Option<Box<(Duration, u64)>>,
}

impl Pace {
    /// Nothing waits.
    pub fn rest(&mut self) {
        self.since = None;
    }

    /// When it will be known of the time that is measured now.
    pub fn due(&self, timeout: Duration) -> Option<Duration> {
        self.since.as_ref().map(|since| since.0 + timeout)
    }

    /// Whether in the `timeout` that has just passed less than 500 has left; `left` is how many bytes have so far.
    pub fn is_slow(&mut self, now: Duration, left: u64, timeout: Duration) -> bool {
        let begun = self.since.get_or_insert_with(|| Box::new((now, left)));
        let (since, before) = **begun;
        let passed = now.saturating_sub(since);
        if passed < timeout {
            return false;
        }
        **begun = (now, left);
        u128::from(left.saturating_sub(before)) < RATE * passed.as_millis() / 1000
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn waits(threads: usize) -> &'static Waits {
        Box::leak(Box::new(Waits::new(threads)))
    }

    #[test]
    fn a_client_has_to_take_500_bytes_a_second() {
        for (rate, slow) in [(0, true), (499, true), (500, false), (10_000, false)] {
            let mut pace = Pace::default();
            let times = 100..400;
            let found = times
                .map(Duration::from_secs)
                .find(|&now| pace.is_slow(now, rate * now.as_secs(), TIMEOUT));
            assert_eq!(found, slow.then_some(Duration::from_secs(160)), "{rate} bytes a second");
        }
        let mut pace = Pace::default();
        // Nothing waits now and then.
        for seconds in 0..300 {
            assert!(!pace.is_slow(Duration::from_secs(seconds), 0, TIMEOUT));
            if seconds % 59 == 0 {
                pace.rest();
            }
        }
    }

    #[test]
    fn a_thread_of_its_own_waits_as_long_as_the_client_takes_something() {
        let (start, mut wait) = (Instant::now(), Wait::new(TIMEOUT));
        for seconds in 0..1000 {
            assert_eq!(wait.go_on(start + Duration::from_secs(seconds), 500 * seconds), Ok(()));
        }
        assert_eq!(
            wait.go_on(start + Duration::from_secs(1060), 500_000),
            Err("the client reads too slowly")
        );
    }

    #[test]
    fn a_thread_of_many_connections_waits_for_a_callback_and_not_for_each_send() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                waits(2).join();
                let start = Instant::now();
                for _ in 0..3 {
                    begin_callback();
                    // Clients that take all that they are sent, after a while.
                    for n in 0..6 {
                        let mut wait = Wait::new(TIMEOUT);
                        assert_eq!(wait.go_on(start, 0), Ok(()));
                        let late = wait.go_on(start + Duration::from_secs(10), 1 << 20);
                        assert_eq!(late.is_ok(), n < 5, "{late:?}");
                    }
                }
            });
        });
    }

    #[test]
    fn half_of_the_threads_wait_and_others_only_for_a_moment() {
        for (threads, most) in [(1, 1), (2, 1), (3, 1), (32, 16)] {
            let waits = waits(threads);
            assert_eq!(waits.most(), most);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    waits.join();
                    let start = Instant::now();
                    let mut counted: Vec<_> = (0..most).map(|_| Wait::new(TIMEOUT)).collect();
                    for wait in &mut counted {
                        assert_eq!(wait.go_on(start, 0), Ok(()));
                    }
                    begin_callback();
                    let mut wait = Wait::new(TIMEOUT);
                    assert_eq!(wait.go_on(start, 0), Ok(()));
                    assert_eq!(wait.go_on(start + GRACE / 2, 0), Ok(()));
                    assert!(wait.go_on(start + GRACE, 0).is_err());
                    assert_eq!(waits.refused(), 1);
                    // One that ends makes room.
                    counted.pop();
                    begin_callback();
                    let mut wait = Wait::new(TIMEOUT);
                    assert_eq!(wait.go_on(start, 0), Ok(()));
                    assert_eq!(wait.go_on(start + 2 * GRACE, 0), Ok(()));
                    drop((wait, counted));
                    assert_eq!((waits.now.load(Ordering::Relaxed), waits.refused()), (0, 1));
                });
            });
        }
    }
}
