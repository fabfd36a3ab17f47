//! Sleeping until something is published: one word for all children, with a bit for each 32nd part of the channels.
//!
//! Who publishes changes the word and then wakes those who wait for its channel's bit; who wants to sleep has looked at
//! the word before it looked at the ring. So either it finds the message, or the word is another one and it does not sleep
//! (futex(2)). A publisher that dies between the two wakes nobody: therefore a sleep has an end.

use core::num::NonZeroU32;
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::{
    thread::futex::{Flags, wait_bitset, wake_bitset},
    time::{ClockId, Timespec, clock_gettime},
};

/// The word, in memory that all children share.
#[derive(Debug, Default)]
pub struct Bell(AtomicU32);

/// The bit of a channel, by its hash.
pub fn bit(hash: u64) -> NonZeroU32 {
    NonZeroU32::new(1 << (hash >> 59)).unwrap_or(NonZeroU32::MIN)
}

impl Bell {
    /// What the word is now.
    pub fn value(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Wakes those who wait for one of these bits.
    pub fn ring(&self, bits: NonZeroU32) {
        self.0.fetch_add(1, Ordering::SeqCst);
        // It cannot fail on a live word.
        let _ = wake_bitset(&self.0, Flags::empty(), i32::MAX as u32, bits);
    }

    /// Waits until somebody rings one of these bits, for `most` at most; not at all if the word is not `seen` any more.
    pub fn wait(&self, seen: u32, bits: NonZeroU32, most: Duration) {
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
        // The kernel takes the moment, not how long.
        let until = Timespec::try_from(now + most).ok();
        // Whatever ends it, the caller looks.
        let _ = wait_bitset(&self.0, Flags::empty(), seen, until.as_ref(), bits);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{sync::Arc, thread, time::Instant};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn who_sleeps_is_woken_by_its_bits_only() {
        let bell = Arc::new(Bell::default());
        let (mine, other) = (bit(0), bit(u64::MAX));
        assert_ne!(mine, other);
        let seen = bell.value();
        let sleeper = bell.clone();
        let sleeper = thread::spawn(move || sleeper.wait(seen, mine, LONG));
        thread::sleep(Duration::from_millis(50));
        bell.ring(other);
        thread::sleep(Duration::from_millis(50));
        assert!(!sleeper.is_finished());
        bell.ring(mine);
        sleeper.join().unwrap();
        // It has changed since.
        bell.wait(seen, mine, LONG);
    }

    #[test]
    fn a_sleep_has_an_end() {
        let (bell, begun) = (Bell::default(), Instant::now());
        bell.wait(bell.value(), NonZeroU32::MAX, Duration::from_millis(20));
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }
}
