//! How many threads a service has, how many of them wait for events, and whether its clock may look less often.
//!
//! The clock slows down when all threads wait and no connection is ready. Whoever makes one ready, or stops waiting, does
//! so first and looks for a slow clock then; the clock says first that it is slow and looks at the threads then. One of
//! the two always sees the other, which takes `SeqCst` on both sides.

use crate::sync::{AtomicBool, AtomicUsize, Ordering};

/// The threads of a service, its clock not among them.
#[derive(Debug)]
pub(super) struct Threads {
    /// Threads that serve.
    serving: AtomicUsize,
    /// Those of them that wait for events.
    waiting: AtomicUsize,
    /// The clock has slowed down, and must be woken when traffic begins.
    idle: AtomicBool,
    /// All connections are gone and no new one will come; threads have to go.
    over: AtomicBool,
}

impl Default for Threads {
    fn default() -> Self {
        Self {
            serving: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            idle: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }
}

impl Threads {
    /// How many serve.
    pub(super) fn serving(&self) -> usize {
        self.serving.load(Ordering::SeqCst)
    }

    /// How many of them wait for events.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// One more serves.
    pub(super) fn join(&self) {
        self.serving.fetch_add(1, Ordering::SeqCst);
    }

    /// One serves no more.
    pub(super) fn leave(&self) {
        self.serving.fetch_sub(1, Ordering::SeqCst);
    }

    /// The calling thread serves no more, unless it is the last one.
    pub(super) fn leave_if_surplus(&self) -> bool {
        let fewer = |threads: usize| (threads > 1).then(|| threads - 1);
        self.serving.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok()
    }

    /// The calling thread waits for events while `wait` runs.
    pub(super) fn wait<R>(&self, wait: impl FnOnce() -> R) -> R {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let result = wait();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// There is traffic: `true` if the clock was slow and has to be woken.
    pub(super) fn note_traffic(&self) -> bool {
        self.idle.load(Ordering::SeqCst) && self.idle.swap(false, Ordering::SeqCst)
    }

    /// Whether the clock is slow.
    pub(super) fn is_idle(&self) -> bool {
        self.idle.load(Ordering::SeqCst)
    }

    /// Slows the clock down, unless a thread is at work or a connection is ready, or is so by now.
    pub(super) fn go_idle(&self, nobody_is_ready: impl Fn() -> bool) {
        let all_wait = || self.waiting() == self.serving() && nobody_is_ready();
        if all_wait() {
            self.idle.store(true, Ordering::SeqCst);
            // Who stops waiting first says so and then looks whether the clock is slow.
            if !all_wait() {
                self.idle.store(false, Ordering::SeqCst);
            }
        }
    }

    /// All threads have to go; whoever says so wakes them then.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Whether they have to.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// A wake-up has come: takes note of it by `clear`. One that means the end is left for all the others.
    pub(super) fn heed(&self, clear: impl FnOnce(), wake: impl FnOnce()) {
        if !self.is_over() {
            clear();
            // The end may have come right before that, and its wake-up been cleared away with the other one.
            if self.is_over() {
                wake();
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{
        sync::{Condvar, Mutex},
        thread,
    };
    use std::sync::Arc;

    use super::*;

    /// One thread, which waits.
    fn one_that_waits() -> Arc<Threads> {
        let threads = Threads::default();
        threads.join();
        threads.waiting.fetch_add(1, Ordering::SeqCst);
        Arc::new(threads)
    }

    #[test]
    fn the_clock_is_not_slow_while_a_thread_works() {
        loom::model(|| {
            let threads = one_that_waits();
            let clock = thread::spawn({
                let threads = threads.clone();
                move || threads.go_idle(|| true)
            });
            // An event has come, and its callback does not return.
            threads.waiting.fetch_sub(1, Ordering::SeqCst);
            threads.note_traffic();
            clock.join().unwrap();
            assert!(!threads.is_idle());
        });
    }

    #[test]
    fn the_clock_is_not_slow_while_a_connection_is_ready() {
        loom::model(|| {
            let threads = one_that_waits();
            let ready = Arc::new(Mutex::new(0));
            let clock = thread::spawn({
                let (threads, ready) = (threads.clone(), ready.clone());
                move || threads.go_idle(|| *ready.lock().unwrap() == 0)
            });
            *ready.lock().unwrap() += 1;
            threads.note_traffic();
            clock.join().unwrap();
            assert!(!threads.is_idle());
        });
    }

    #[test]
    fn a_slow_clock_is_woken_once() {
        loom::model(|| {
            let threads = one_that_waits();
            threads.go_idle(|| true);
            let other = thread::spawn({
                let threads = threads.clone();
                move || threads.note_traffic()
            });
            let woken = threads.note_traffic();
            assert!(woken != other.join().unwrap() && !threads.is_idle());
        });
    }

    #[test]
    fn the_last_thread_stays() {
        loom::model(|| {
            let threads = Arc::new(Threads::default());
            threads.join();
            threads.join();
            let other = thread::spawn({
                let threads = threads.clone();
                move || threads.leave_if_surplus()
            });
            let left = threads.leave_if_surplus();
            assert!(left != other.join().unwrap() && threads.serving() == 1);
        });
    }

    /// What the kernel has for it: a counter that wakes those who wait as long as it is not 0.
    #[derive(Default)]
    struct Counter {
        count: Mutex<u32>,
        changed: Condvar,
    }

    impl Counter {
        fn wake(&self) {
            *self.count.lock().unwrap() += 1;
            self.changed.notify_all();
        }

        fn clear(&self) {
            *self.count.lock().unwrap() = 0;
        }

        fn wait(&self) {
            let mut count = self.count.lock().unwrap();
            while *count == 0 {
                count = self.changed.wait(count).unwrap();
            }
        }
    }

    #[test]
    fn the_end_reaches_all_threads() {
        crate::sync::check(3, || {
            let (threads, waker) = (Arc::new(Threads::default()), Arc::new(Counter::default()));
            // A connection is ready.
            waker.wake();
            let workers = [(); 2].map(|()| {
                let (threads, waker) = (threads.clone(), waker.clone());
                thread::spawn(move || {
                    while !threads.is_over() {
                        waker.wait();
                        threads.heed(|| waker.clear(), || waker.wake());
                    }
                })
            });
            threads.end();
            waker.wake();
            for worker in workers {
                worker.join().unwrap();
            }
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_end_that_comes_with_another_wake_up_is_not_cleared_away() {
        let (threads, count) = (Threads::default(), Cell::new(1));
        threads.heed(|| count.set(0), || count.set(count.get() + 1));
        assert_eq!(count.get(), 0);
        // The end is said, and everybody woken, right before the thread that was woken for something else clears.
        count.set(1);
        let clear = || {
            threads.end();
            count.set(0);
        };
        threads.heed(clear, || count.set(count.get() + 1));
        assert_ne!(count.get(), 0);
        threads.heed(|| count.set(0), || ());
        assert_ne!(count.get(), 0);
    }
}
