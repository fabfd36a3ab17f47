//! How many subscribers each channel has, over all children.
//!
//! A table in memory that all of them share, in which a child has an entry for each channel that it has subscribers of:
//! the channel's hash in one word, the child and its count in the other, which the child alone changes. What a child has
//! left behind that is gone does not count, and another one takes it. A full table counts too few; nobody is refused.

use crate::sync::{AtomicU64, Ordering};

/// How many entries there are.
pub const ENTRIES: usize = if cfg!(loom) { 4 } else { 1 << 16 };
/// How many of them may be a channel's.
const PROBES: usize = if cfg!(loom) { 4 } else { 128 };

/// A child's count for a channel.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Entry {
    /// The channel's hash. It means nothing while the count is 0.
    hash: AtomicU64,
    /// The process in the upper half, its subscribers in the lower one; 0 if the entry is free.
    count: AtomicU64,
}

/// The table, as one process sees it.
#[derive(Clone, Copy)]
pub struct SubscriberCounts {
    entries: &'static [Entry],
    process: u32,
    /// Whether a process is still there.
    is_alive: fn(u32) -> bool,
}

/// A child's count for a channel, until it is dropped. One thread at a time changes it.
pub struct Counted {
    entry: &'static Entry,
    process: u32,
}

fn owner(count: u64) -> u32 {
    (count >> 32) as u32
}

impl SubscriberCounts {
    /// The table of a process over [`ENTRIES`] entries.
    pub fn new(entries: &'static [Entry], process: u32, is_alive: fn(u32) -> bool) -> Self {
        debug_assert!(entries.len() == ENTRIES);
        Self { entries, process, is_alive }
    }

    /// Forgets what an earlier process of the same number has left behind. For a process that begins.
    pub fn begin(&self) {
        for entry in self.entries {
            let count = entry.count.load(Ordering::SeqCst);
            if owner(count) == self.process {
                let free =
                    entry.count.compare_exchange(count, 0, Ordering::SeqCst, Ordering::SeqCst);
                debug_assert!(free.is_ok(), "nobody takes what a living process has");
            }
        }
    }

    /// The entries in which a channel may be counted.
    fn of(&self, hash: u64) -> impl Iterator<Item = &'static Entry> {
        let (entries, first) = (self.entries, (hash >> 16) as usize);
        (0..PROBES).map(move |n| &entries[first.wrapping_add(n) % ENTRIES])
    }

    /// Begins to count a channel, from 0; a process does so once for each. `None` if there is no room.
    pub fn count(&self, hash: u64) -> Option<Counted> {
        let own = u64::from(self.process) << 32;
        let take = |entry: &&'static Entry, may_take: &dyn Fn(u64) -> bool| {
            let count = entry.count.load(Ordering::SeqCst);
            let take =
                || entry.count.compare_exchange(count, own, Ordering::SeqCst, Ordering::SeqCst);
            may_take(count) && take().is_ok()
        };
        let dead = |count| owner(count) != self.process && !(self.is_alive)(owner(count));
        // To ask for a process takes longer than to look further.
        let entry = self.of(hash).find(|entry| take(entry, &|count| count == 0));
        let entry = entry.or_else(|| self.of(hash).find(|entry| take(entry, &dead)))?;
        entry.hash.store(hash, Ordering::SeqCst);
        Some(Counted { entry, process: self.process })
    }

    /// How many subscribers a channel has.
    pub fn subscribers(&self, hash: u64) -> u64 {
        let count = |entry: &Entry| {
            let count = entry.count.load(Ordering::SeqCst);
            let number = count & 0xffff_ffff;
            // Another one may take it over meanwhile; it has no count until it has its new hash.
            let counts = number > 0
                && entry.hash.load(Ordering::SeqCst) == hash
                && entry.count.load(Ordering::SeqCst) == count
                && (owner(count) == self.process || (self.is_alive)(owner(count)));
            if counts { number } else { 0 }
        };
        self.of(hash).map(count).sum()
    }
}

impl Counted {
    /// There are so many now.
    pub fn set(&self, subscribers: u32) {
        let count = (u64::from(self.process) << 32) | u64::from(subscribers);
        self.entry.count.store(count, Ordering::SeqCst);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.entry.count.store(0, Ordering::SeqCst);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    /// Two children count their first subscriber of a channel, where a dead one has left everything: both have an entry.
    #[test]
    fn an_entry_has_one_owner() {
        loom::model(|| {
            let entries = Box::leak((0..ENTRIES).map(|_| Entry::default()).collect::<Box<_>>());
            let [one, two, dead] =
                [100, 200, 300].map(|pid| SubscriberCounts::new(entries, pid, |pid| pid != 300));
            for hash in [1, 2, 3] {
                let counted = dead.count(hash).unwrap();
                counted.set(9);
                std::mem::forget(counted);
            }
            let count = |counts: SubscriberCounts| {
                let counted = counts.count(1).unwrap();
                counted.set(1);
                counted
            };
            let other = thread::spawn(move || count(two));
            let here = count(one);
            let there = other.join().unwrap();
            assert_eq!(one.subscribers(1), 2);
            drop(here);
            assert_eq!(two.subscribers(1), 1);
            drop(there);
            assert_eq!(two.subscribers(1), 0);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn entries() -> &'static [Entry] {
        Box::leak((0..ENTRIES).map(|_| Entry::default()).collect())
    }

    #[test]
    fn channels_are_counted_over_processes() {
        let entries = entries();
        let [one, two] = [100, 200].map(|pid| SubscriberCounts::new(entries, pid, |_| true));
        let (a, b) = (one.count(7 << 16).unwrap(), two.count(7 << 16).unwrap());
        let other = one.count(8 << 16).unwrap();
        a.set(3);
        b.set(4);
        other.set(5);
        assert_eq!((one.subscribers(7 << 16), two.subscribers(8 << 16)), (7, 5));
        drop(a);
        assert_eq!(one.subscribers(7 << 16), 4);
        drop((b, other));
        assert!(entries.iter().all(|entry| entry.count.load(Ordering::SeqCst) == 0));
    }

    #[test]
    fn the_dead_do_not_count_and_leave_room() {
        let entries = entries();
        let dead = SubscriberCounts::new(entries, 100, |_| true);
        for hash in 1..=PROBES as u64 {
            let counted = dead.count(hash).unwrap();
            counted.set(9);
            core::mem::forget(counted);
        }
        assert!(SubscriberCounts::new(entries, 200, |_| true).count(1).is_none());
        let living = SubscriberCounts::new(entries, 200, |pid| pid == 200);
        assert_eq!(living.subscribers(1), 0);
        let counted = living.count(1).unwrap();
        counted.set(1);
        assert_eq!(living.subscribers(1), 1);
        // Another process of its number.
        SubscriberCounts::new(entries, 100, |_| true).begin();
        assert_eq!(dead.subscribers(2), 0);
    }
}
