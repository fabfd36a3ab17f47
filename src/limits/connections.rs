//! How many connections there are of each kind, counted across child processes.
//!
//! The counts lie in memory that all children share. One 64-bit word holds one child's count for one key, so every change
//! is a single atomic operation, and a child that is killed can leave nothing half done. What it had counted is taken
//! back when somebody finds a limit reached and sees that the process is gone.

use core::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use crate::sync::{AtomicU64, Ordering};

/// How many words a key may be counted in: as many children, or a few keys with the same hash.
const BUCKET: usize = if cfg!(loom) { 2 } else { 4096 };
/// How many buckets there are.
const BUCKETS: usize = if cfg!(loom) { 1 } else { 32 };
/// How many words the table takes: 1 MiB.
pub const WORDS: usize = BUCKET * BUCKETS;

/// A word: 22 bits of process number, 18 bits of count, 24 bits of the key's hash. 0 is free.
const COUNT_BITS: u32 = 18;
const TAG_BITS: u32 = 24;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const TAG: u64 = (1 << TAG_BITS) - 1;

/// The shared counts, as one process sees them.
#[derive(Clone, Copy)]
pub struct Counts {
    words: &'static [AtomicU64],
    /// Makes the places of keys unpredictable for clients.
    seed: u64,
    pid: u32,
    /// Whether a process is still there.
    is_alive: fn(u32) -> bool,
}

/// A connection that is counted until the value is dropped.
pub struct Counted {
    table: Counts,
    bucket: usize,
    tag: u64,
}

impl Counts {
    /// The table of process `pid` over [`WORDS`] words, all zero at first.
    pub fn new(
        words: &'static [AtomicU64],
        seed: u64,
        pid: u32,
        is_alive: fn(u32) -> bool,
    ) -> Self {
        debug_assert!(words.len() == WORDS && pid < 1 << 22);
        Self { words, seed, pid, is_alive }
    }

    /// Forgets what an earlier process of the same number had counted. For a process that begins.
    pub fn begin(&self) {
        for word in self.words {
            let value = word.load(Ordering::SeqCst);
            if value != 0 && (value >> (COUNT_BITS + TAG_BITS)) as u32 == self.pid {
                let _ = word.compare_exchange(value, 0, Ordering::SeqCst, Ordering::SeqCst);
            }
        }
    }

    /// Counts one more connection of `key`; `None` if there are `limit` already.
    ///
    /// Two processes that count the last one at the same moment may both be refused, never both be let in.
    pub fn enter(&self, key: &[&str], limit: u64) -> Option<Counted> {
        // Keyed, so that who does not know the seed cannot find keys that collide.
        let mut hasher = SipHasher13::new_with_keys(self.seed, 0);
        for part in key {
            hasher.write(part.as_bytes());
            hasher.write_u8(0);
        }
        let hash = hasher.finish();
        let bucket = (hash >> 32) as usize % BUCKETS;
        // A tag of 0 would make a free word of a count of 0.
        let tag = (hash & TAG).max(1);
        let counted = self.add(bucket, tag)?;
        if self.total(bucket, tag) > limit {
            self.bury(bucket, Some(tag));
            if self.total(bucket, tag) > limit {
                return None;
            }
        }
        Some(counted)
    }

    fn bucket(&self, bucket: usize) -> &'static [AtomicU64] {
        &self.words[bucket * BUCKET..][..BUCKET]
    }

    fn own(&self, tag: u64) -> u64 {
        (u64::from(self.pid) << (COUNT_BITS + TAG_BITS)) | tag
    }

    /// Adds one to this process's count, in its word or in a free one.
    fn add(&self, bucket: usize, tag: u64) -> Option<Counted> {
        let one = 1 << TAG_BITS;
        for attempt in 0..2 {
            for word in self.bucket(bucket) {
                let mine = |value: u64| value & !(COUNT << TAG_BITS) == self.own(tag);
                let next = |value: u64| {
                    if value == 0 {
                        Some(self.own(tag) | one)
                    } else {
                        mine(value).then(|| value + one)
                    }
                };
                if word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).is_ok() {
                    return Some(Counted { table: *self, bucket, tag });
                }
            }
            if attempt == 0 {
                self.bury(bucket, None);
            }
        }
        None
    }

    /// Takes one from this process's count; the last one frees the word.
    fn subtract(&self, bucket: usize, tag: u64) {
        for word in self.bucket(bucket) {
            let next = |value: u64| {
                let mine = value & !(COUNT << TAG_BITS) == self.own(tag) && value != 0;
                let left = value.wrapping_sub(1 << TAG_BITS);
                mine.then_some(if (left >> TAG_BITS) & COUNT == 0 { 0 } else { left })
            };
            if word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).is_ok() {
                return;
            }
        }
    }

    /// The count of a key over all processes.
    fn total(&self, bucket: usize, tag: u64) -> u64 {
        let values = self.bucket(bucket).iter().map(|word| word.load(Ordering::SeqCst));
        values.filter(|value| value & TAG == tag).map(|value| (value >> TAG_BITS) & COUNT).sum()
    }

    /// Frees the words of processes that are gone: those of one key, or all.
    fn bury(&self, bucket: usize, tag: Option<u64>) {
        for word in self.bucket(bucket) {
            let value = word.load(Ordering::SeqCst);
            let pid = (value >> (COUNT_BITS + TAG_BITS)) as u32;
            let concerned = value != 0 && tag.is_none_or(|tag| value & TAG == tag);
            if concerned && pid != self.pid && !(self.is_alive)(pid) {
                let _ = word.compare_exchange(value, 0, Ordering::SeqCst, Ordering::SeqCst);
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.table.subtract(self.bucket, self.tag);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;

    /// Two processes that share a table of two words; a third one, of number 300, is gone.
    fn processes() -> [Counts; 2] {
        let words = Box::leak((0..WORDS).map(|_| AtomicU64::new(0)).collect::<Box<_>>());
        [100, 200].map(|pid| Counts::new(words, 7, pid, |pid| pid != 300))
    }

    fn is_empty(table: &Counts) -> bool {
        table.words.iter().all(|word| word.load(Ordering::SeqCst) == 0)
    }

    #[test]
    fn the_last_one_is_never_counted_twice() {
        loom::model(|| {
            let [one, two] = processes();
            let other = thread::spawn(move || two.enter(&["a"], 1));
            let here = one.enter(&["a"], 1);
            let there = other.join().unwrap();
            assert!(here.is_none() || there.is_none());
            drop((here, there));
            assert!(is_empty(&one));
        });
    }

    #[test]
    fn threads_of_a_process_share_a_word() {
        loom::model(|| {
            let [one, other] = processes();
            let count = move || drop(one.enter(&["a"], 9).expect("there is room"));
            let threads = [(); 2].map(|()| thread::spawn(count));
            for thread in threads {
                thread.join().unwrap();
            }
            assert!(is_empty(&other));
        });
    }

    #[test]
    fn the_counts_of_a_dead_process_are_taken_back_once() {
        loom::model(|| {
            let [one, two] = processes();
            let dead = Counts { pid: 300, ..one };
            // It fills the table.
            std::mem::forget((dead.enter(&["a"], 9), dead.enter(&["b"], 9)));
            let other = thread::spawn(move || two.enter(&["c"], 9));
            let here = one.enter(&["c"], 9);
            let there = other.join().unwrap();
            assert!(here.is_some() && there.is_some());
            // Nobody has buried the other one.
            let counts = one.words.iter().map(|word| word.load(Ordering::SeqCst));
            assert_eq!(counts.map(|value| value >> TAG_BITS & COUNT).sum::<u64>(), 2);
            drop((here, there));
            assert!(is_empty(&one));
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn words() -> &'static [AtomicU64] {
        Box::leak((0..WORDS).map(|_| AtomicU64::new(0)).collect())
    }

    #[test]
    fn a_limit_holds_across_processes() {
        let words = words();
        let one = Counts::new(words, 7, 100, |_| true);
        let two = Counts::new(words, 7, 200, |_| true);
        let a = one.enter(&["location", "/a"], 2);
        let b = two.enter(&["location", "/a"], 2);
        assert!(a.is_some() && b.is_some());
        assert!(one.enter(&["location", "/a"], 2).is_none());
        assert!(two.enter(&["location", "/b"], 2).is_some());
        drop(b);
        let c = one.enter(&["location", "/a"], 2);
        assert!(c.is_some());
        drop((a, c));
        assert!(words.iter().all(|word| word.load(Ordering::SeqCst) == 0));
    }

    #[test]
    fn thousands_of_processes_have_one_each() {
        let words = words();
        let process = |pid| Counts::new(words, 7, pid, |_| true);
        let counted = (1..=2000).map(|pid| process(pid).enter(&["workers"], 2000));
        let counted = counted.collect::<Option<Vec<_>>>();
        assert!(counted.is_some());
        assert!(process(3000).enter(&["workers"], 2000).is_none());
    }

    #[test]
    fn the_dead_are_not_counted() {
        let words = words();
        let dead = Counts::new(words, 7, 100, |_| true);
        core::mem::forget(dead.enter(&["ip", "::1"], 1));
        let living = Counts::new(words, 7, 200, |pid| pid != 100);
        let first = living.enter(&["ip", "::1"], 1);
        assert!(first.is_some());
        assert!(living.enter(&["ip", "::1"], 1).is_none());
    }

    #[test]
    fn a_process_that_begins_has_none_of_another_one_of_its_number() {
        let words = words();
        let dead = Counts::new(words, 7, 100, |_| true);
        let other = Counts::new(words, 7, 200, |_| true);
        core::mem::forget((dead.enter(&["a"], 1), dead.enter(&["b"], 1)));
        let kept = other.enter(&["c"], 1);
        let begun = Counts::new(words, 7, 100, |_| true);
        assert!(begun.enter(&["a"], 1).is_none());
        begun.begin();
        assert!(begun.enter(&["a"], 1).is_some() && other.enter(&["b"], 1).is_some());
        assert!(kept.is_some() && begun.enter(&["c"], 1).is_none());
    }

    #[test]
    fn threads_lose_no_count() {
        let table = Counts::new(words(), 7, 100, |_| true);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        drop(table.enter(&["x"], 100).expect("8 are below the limit"));
                    }
                });
            }
        });
        assert!(table.words.iter().all(|word| word.load(Ordering::SeqCst) == 0));
    }
}
