//! The state that keeps two threads from running one connection, and loses no readiness.
//!
//! Whoever has something for the connection calls [`RunState::begin`]. If nobody runs it, the caller does; otherwise the
//! runner is told to run again, and finds out in [`RunState::end`].

use crate::sync::{AtomicU8, Ordering};

const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const AGAIN: u8 = 2;

/// Idle, running, or running and to be run again.
#[derive(Debug)]
pub struct RunState(AtomicU8);

impl Default for RunState {
    fn default() -> Self {
        Self(AtomicU8::new(IDLE))
    }
}

impl RunState {
    /// `true`: the caller runs the connection, and calls [`end`](Self::end) after each turn. `false`: its
    /// runner will run it again, and sees what the caller stored before.
    pub fn begin(&self) -> bool {
        let next = |state| Some(if state == IDLE { RUNNING } else { AGAIN });
        // Acquire: what the last runner did. Release: what the caller stored for the runner.
        let before = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        before == Ok(IDLE)
    }

    /// After a turn: `true` if the connection rests now, `false` if it has to be run again.
    pub fn end(&self) -> bool {
        if self.0.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return true;
        }
        // Acquire: what those who asked for another turn stored before they did.
        self.0.swap(RUNNING, Ordering::AcqRel);
        false
    }
}

#[cfg(all(test, loom))]
#[expect(unsafe_code, reason = "loom's cells are read and written through raw pointers")]
mod loom_tests {
    use super::*;
    use crate::sync::check;
    use loom::{
        cell::UnsafeCell,
        sync::{Arc, atomic::AtomicUsize},
        thread,
    };

    /// Three threads bring readiness; whatever the interleaving, turns never overlap and each one is handled.
    #[test]
    fn turns_never_overlap_and_nothing_is_lost() {
        check(2, || {
            let state = Arc::new(RunState::default());
            let ready = Arc::new([0; 3].map(AtomicUsize::new));
            let handled = Arc::new(UnsafeCell::new(0));
            let bring = |n: usize| {
                let (state, ready, handled) = (state.clone(), ready.clone(), handled.clone());
                move || {
                    ready[n].store(1 << n, Ordering::Relaxed);
                    if state.begin() {
                        loop {
                            let seen: usize = ready.iter().map(|r| r.load(Ordering::Relaxed)).sum();
                            // SAFETY: the state lets one thread in at a time; loom checks just that.
                            handled.with_mut(|handled| unsafe { *handled |= seen });
                            if state.end() {
                                break;
                            }
                        }
                    }
                }
            };
            let threads = [0, 1].map(|n| thread::spawn(bring(n)));
            bring(2)();
            for thread in threads {
                thread.join().unwrap();
            }
            // SAFETY: both threads are joined.
            handled.with(|handled| assert_eq!(unsafe { *handled }, 7));
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_comes_second_makes_the_runner_run_again() {
        let state = RunState::default();
        assert!(state.begin());
        assert!(!state.begin());
        assert!(!state.begin());
        assert!(!state.end());
        assert!(state.end());
        assert!(state.begin());
        assert!(state.end());
    }
}
