//! Sleeping until something is published: one word for all children, with a bit for each 32nd part of the channels.
//!
//! Who publishes changes the word and then wakes those who wait for its channel's bit; who wants to sleep has looked at
//! the word before it looked at the ring. So either it finds the message, or the word is another one and it does not sleep
//! (futex(2)). A publisher that dies between the two wakes nobody: therefore a sleep has an end.

use core::num::NonZeroU32;
use std::time::Duration;

use crate::sync::{AtomicU32, Ordering};

#[cfg(not(loom))]
use self::kernel::{wait, wake};
#[cfg(loom)]
use self::model::{wait, wake};

/// The word, in memory that all children share.
#[derive(Debug, Default)]
pub struct Wakeup(Word);

#[cfg(not(loom))]
type Word = AtomicU32;
#[cfg(loom)]
type Word = model::Word;

/// The bit of a channel, by its hash.
pub fn bit(hash: u64) -> NonZeroU32 {
    NonZeroU32::new(1 << (hash >> 59)).unwrap_or(NonZeroU32::MIN)
}

impl Wakeup {
    /// What the word is now.
    pub fn value(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Wakes those who wait for one of these bits.
    pub fn wake(&self, bits: NonZeroU32) {
        self.0.fetch_add(1, Ordering::SeqCst);
        wake(&self.0, bits);
    }

    /// Waits until somebody wakes one of these bits, for `most` at most; not at all if the word is not `seen` any more.
    pub fn wait(&self, seen: u32, bits: NonZeroU32, most: Duration) {
        wait(&self.0, seen, bits, most);
    }
}

/// The bits for which a child's thread sleeps.
#[derive(Debug, Default)]
pub struct Wanted(AtomicU32);

impl Wanted {
    /// Adds bits, for who is to be told of what is published from now on, and is known to the thread's `look` already.
    pub fn add(&self, bits: u32, wakeup: &Wakeup) {
        if self.0.fetch_or(bits, Ordering::SeqCst) & bits != bits {
            // The thread may sleep with fewer.
            wakeup.wake(NonZeroU32::MAX);
        }
    }

    /// Nobody is to be told any more. Not while others [`add`](Self::add) whom `look` knows.
    pub fn clear(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    /// Has the calling thread look, and sleep if `look` says so, until there may be something new; for `most` at most.
    pub fn look_and_sleep(&self, wakeup: &Wakeup, most: Duration, look: impl FnOnce() -> bool) {
        // Before it looks: what it does not find then changes the word.
        let seen = wakeup.value();
        if look() {
            let bits = NonZeroU32::new(self.0.load(Ordering::SeqCst));
            wakeup.wait(seen, bits.unwrap_or(NonZeroU32::MIN), most);
        }
    }
}

/// futex(2).
#[cfg(not(loom))]
mod kernel {
    use core::num::NonZeroU32;
    use std::time::Duration;

    use rustix::{
        thread::futex::{Flags, wait_bitset, wake_bitset},
        time::{ClockId, Timespec, clock_gettime},
    };

    use crate::sync::AtomicU32;

    pub(super) fn wake(word: &AtomicU32, bits: NonZeroU32) {
        // It cannot fail on a live word.
        let _ = wake_bitset(word, Flags::empty(), i32::MAX as u32, bits);
    }

    pub(super) fn wait(word: &AtomicU32, seen: u32, bits: NonZeroU32, most: Duration) {
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
        // The kernel takes the moment, not how long.
        let until = Timespec::try_from(now + most).ok();
        // Whatever ends it, the caller looks.
        let _ = wait_bitset(word, Flags::empty(), seen, until.as_ref(), bits);
    }
}

/// What the kernel does, in a model where no time passes: who is not woken sleeps for ever.
#[cfg(loom)]
mod model {
    use core::{num::NonZeroU32, ops::Deref};
    use std::time::Duration;

    use crate::sync::{AtomicU32, Condvar, Mutex, Ordering};

    #[derive(Debug, Default)]
    pub(super) struct Word {
        word: AtomicU32,
        /// The bits of each thread that sleeps; 0 if it was woken.
        sleepers: Mutex<Vec<u32>>,
        woken: Condvar,
    }

    impl Deref for Word {
        type Target = AtomicU32;

        fn deref(&self) -> &AtomicU32 {
            &self.word
        }
    }

    pub(super) fn wake(word: &Word, bits: NonZeroU32) {
        for sleeper in &mut *word.sleepers.lock().unwrap() {
            *sleeper = if *sleeper & bits.get() == 0 { *sleeper } else { 0 };
        }
        word.woken.notify_all();
    }

    pub(super) fn wait(word: &Word, seen: u32, bits: NonZeroU32, _: Duration) {
        let mut sleepers = word.sleepers.lock().unwrap();
        if word.load(Ordering::SeqCst) != seen {
            return;
        }
        let me = sleepers.len();
        sleepers.push(bits.get());
        while sleepers[me] != 0 {
            sleepers = word.woken.wait(sleepers).unwrap();
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{sync::Arc, thread};

    use super::*;
    use crate::sync::{AtomicU64, Mutex, check};

    /// A ring of which only the head is there, and a hub of which only the channels' bits are.
    #[derive(Default)]
    struct Child {
        wakeup: Wakeup,
        head: AtomicU64,
        subscribed: Mutex<Vec<NonZeroU32>>,
        wanted: Wanted,
    }

    impl Child {
        fn publish(&self, bit: NonZeroU32) {
            self.head.store(1, Ordering::Release);
            self.wakeup.wake(bit);
        }

        fn subscribe(&self, bit: NonZeroU32) {
            self.subscribed.lock().unwrap().push(bit);
            self.wanted.add(bit.get(), &self.wakeup);
        }

        fn unsubscribe(&self, bit: NonZeroU32) {
            let mut subscribed = self.subscribed.lock().unwrap();
            subscribed.retain(|&other| other != bit);
            if subscribed.is_empty() {
                self.wanted.clear();
            }
        }

        /// Sleeps until a message of this bit has come for who is subscribed.
        fn wait_for(&self, bit: NonZeroU32) {
            let mut told = false;
            while !told {
                self.wanted.look_and_sleep(&self.wakeup, Duration::ZERO, || {
                    let subscribed = self.subscribed.lock().unwrap();
                    told = self.head.load(Ordering::Acquire) == 1 && subscribed.contains(&bit);
                    !told
                });
            }
        }
    }

    #[test]
    fn no_message_is_slept_through() {
        check(3, || {
            let (child, bit) = (Arc::new(Child::default()), bit(1 << 63));
            child.subscribe(bit);
            let publisher = thread::spawn({
                let child = child.clone();
                move || child.publish(bit)
            });
            child.wait_for(bit);
            publisher.join().unwrap();
        });
    }

    /// One that is published once somebody is subscribed, while the last one of another channel goes.
    #[test]
    fn no_message_is_slept_through_with_the_bits_of_before() {
        check(3, || {
            let (child, old, new) = (Arc::new(Child::default()), bit(0), bit(1 << 63));
            child.subscribe(old);
            let threads = [true, false].map(|comes| {
                let child = child.clone();
                thread::spawn(move || {
                    if comes {
                        child.subscribe(new);
                        child.publish(new);
                    } else {
                        child.unsubscribe(old);
                    }
                })
            });
            child.wait_for(new);
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{sync::Arc, thread, time::Instant};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn who_sleeps_is_woken_by_its_bits_only() {
        let wakeup = Arc::new(Wakeup::default());
        let (mine, other) = (bit(0), bit(u64::MAX));
        assert_ne!(mine, other);
        let seen = wakeup.value();
        let sleeper = wakeup.clone();
        let sleeper = thread::spawn(move || sleeper.wait(seen, mine, LONG));
        thread::sleep(Duration::from_millis(50));
        wakeup.wake(other);
        thread::sleep(Duration::from_millis(50));
        assert!(!sleeper.is_finished());
        wakeup.wake(mine);
        sleeper.join().unwrap();
        // It has changed since.
        wakeup.wait(seen, mine, LONG);
    }

    #[test]
    fn a_sleep_has_an_end() {
        let (wakeup, begun) = (Wakeup::default(), Instant::now());
        wakeup.wait(wakeup.value(), NonZeroU32::MAX, Duration::from_millis(20));
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }
}
