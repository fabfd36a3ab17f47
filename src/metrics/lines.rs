//! The lines of all children, in memory that they share, and which process has which.
//!
//! A line is a process's until that is gone: nobody gives one back, as some thread may still count in it. The next process
//! that needs one takes it over with its counters, and clears the gauges while it marks itself as one that begins: what
//! the gauges say counts for a process that is there, and has begun.

use super::line::{Line, Numbers};
use crate::{
    metrics::{Kind, TABLE},
    sync::{AtomicU32, Ordering},
};

/// How many lines there are. What further children count is not told.
pub const MOST: usize = if cfg!(loom) {
    2
} else if cfg!(test) {
    8
} else {
    512
};
/// In the word of an owner: the gauges are still those of the one before. Numbers of processes have 22 bits.
const BEGINS: u32 = 1 << 31;

/// The lines. Memory that is all zero is such a table, of which nobody has any.
#[derive(Debug)]
#[repr(C)]
pub struct Lines {
    /// How many of them were ever taken: memory behind them is not touched.
    used: AtomicU32,
    lines: [Owned; MOST],
}

/// A line and its owner. Those of two processes share no line of a cache.
#[derive(Debug)]
#[repr(C, align(128))]
struct Owned {
    /// The process, perhaps with [`BEGINS`]; 0 if there was none, or that is gone.
    owner: AtomicU32,
    line: Line,
    /// What it said when its owner took it.
    before: Line,
}

impl Lines {
    /// Those that have been taken.
    fn used(&self) -> &[Owned] {
        let used = self.used.load(Ordering::SeqCst) as usize;
        &self.lines[..used.min(MOST)]
    }

    /// A process begins, which is not known to be there yet: the line that an earlier one of its number had is nobody's.
    pub fn forget(&self, process: u32) {
        for owned in self.used() {
            for owner in [process, process | BEGINS] {
                let (set, failed) = (Ordering::SeqCst, Ordering::SeqCst);
                let _ = owned.owner.compare_exchange(owner, 0, set, failed);
            }
        }
    }

    /// Takes a line for a process, once in its life; `None` if others have them all. The process has to be known to be
    /// there, or others would take the line from it.
    pub fn take(&self, process: u32, is_alive: impl Fn(u32) -> bool) -> Option<&Line> {
        let (at, owned) = self.lines.iter().enumerate().find(|(_, owned)| {
            let before = owned.owner.load(Ordering::SeqCst);
            let is_free = before == 0 || !is_alive(before & !BEGINS);
            let begins = process | BEGINS;
            let (set, failed) = (Ordering::SeqCst, Ordering::SeqCst);
            is_free && owned.owner.compare_exchange(before, begins, set, failed).is_ok()
        })?;
        owned.line.clear_gauges();
        owned.before.copy(&owned.line);
        owned.owner.store(process, Ordering::SeqCst);
        let up_to = |used: u32| Some(used.max(at as u32 + 1));
        let _ = self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, up_to);
        Some(&owned.line)
    }

    /// What all of them say: the counters of all processes that ever had one, the gauges of those that are there.
    pub fn sums(&self, is_alive: impl Fn(u32) -> bool) -> Numbers {
        let mut sums = Line::new().numbers();
        for owned in self.used() {
            let owner = owned.owner.load(Ordering::SeqCst);
            let is_there = owner != 0 && owner & BEGINS == 0 && is_alive(owner);
            let numbers = owned.line.numbers();
            for row in TABLE.iter().filter(|row| is_there || row.kind == Kind::Counter) {
                for word in row.metric.words() {
                    // A counter rises for ever, in theory.
                    sums[word] = sums[word].wrapping_add(numbers[word]);
                }
            }
        }
        sums
    }

    /// The processes that are there, and what each of them has counted itself.
    pub fn processes(
        &self,
        is_alive: impl Fn(u32) -> bool,
    ) -> impl Iterator<Item = (u32, Numbers)> {
        self.used().iter().filter_map(move |owned| {
            let owner = owned.owner.load(Ordering::SeqCst);
            let is_there = owner != 0 && owner & BEGINS == 0 && is_alive(owner);
            let (mut numbers, before) = (owned.line.numbers(), owned.before.numbers());
            for (number, before) in numbers.iter_mut().zip(before) {
                *number = number.saturating_sub(before);
            }
            is_there.then_some((owner, numbers))
        })
    }

    /// No line has been taken.
    #[cfg(test)]
    fn new() -> &'static Self {
        let owned = || Owned { owner: AtomicU32::new(0), line: Line::new(), before: Line::new() };
        let lines = core::array::from_fn(|_| owned());
        Box::leak(Box::new(Self { used: AtomicU32::new(0), lines }))
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;
    use crate::metrics::Metric;

    /// Two processes begin where a dead one, of number 300, has left its line: each has one of its own, what the dead one
    /// has counted stays, and of its gauges nothing is seen.
    #[test]
    fn a_line_has_one_owner_and_its_counters_stay() {
        loom::model(|| {
            let (lines, is_alive) = (Lines::new(), |process| process != 300);
            let dead = lines.take(300, is_alive).unwrap();
            dead.add(Metric::MessagesIn, 5);
            dead.add(Metric::Threads, 7);
            let work = move |process| {
                let line = lines.take(process, is_alive).unwrap();
                line.add(Metric::MessagesIn, 1);
                line.add(Metric::Threads, 1);
                core::ptr::from_ref(line).addr()
            };
            let other = thread::spawn(move || work(200));
            let seen = lines.sums(is_alive);
            assert!(seen[Metric::MessagesIn.word("")] >= 5);
            assert!(seen[Metric::Threads.word("")] <= 2);
            let here = work(100);
            assert_ne!(here, other.join().unwrap());
            let seen = lines.sums(is_alive);
            assert_eq!(seen[Metric::MessagesIn.word("")], 7);
            assert_eq!(seen[Metric::Threads.word("")], 2);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::metrics::Metric;

    const NOBODY: fn(u32) -> bool = |_| false;
    const ALL: fn(u32) -> bool = |_| true;

    fn says(numbers: &Numbers) -> (u64, u64) {
        (numbers[Metric::MessagesIn.word("")], numbers[Metric::Memory.word("")])
    }

    fn tell(line: &Line, messages: u64, memory: u64) {
        line.add(Metric::MessagesIn, messages);
        line.set(Metric::Memory, memory);
    }

    #[test]
    fn what_the_dead_have_counted_stays_and_what_they_held_is_gone() {
        let lines = Lines::new();
        assert_eq!(says(&lines.sums(ALL)), (0, 0));
        tell(lines.take(100, ALL).unwrap(), 5, 7);
        tell(lines.take(200, ALL).unwrap(), 1, 2);
        assert_eq!(says(&lines.sums(ALL)), (6, 9));
        let without_100 = |process| process != 100;
        assert_eq!(says(&lines.sums(without_100)), (6, 2));
        // Who takes the line over adds to its numbers.
        let line = lines.take(300, without_100).unwrap();
        assert_eq!(says(&lines.sums(without_100)), (6, 2));
        tell(line, 10, 1);
        assert_eq!(says(&lines.sums(without_100)), (16, 3));
        let processes = lines.processes(without_100).map(|(process, n)| (process, says(&n)));
        assert_eq!(processes.collect::<Vec<_>>(), [(300, (10, 1)), (200, (1, 2))]);
        assert_eq!((says(&lines.sums(NOBODY)), lines.used().len()), ((16, 0), 2));
    }

    #[test]
    fn a_process_that_begins_has_nothing_of_another_one_of_its_number() {
        let lines = Lines::new();
        tell(lines.take(100, ALL).unwrap(), 5, 7);
        lines.forget(100);
        assert_eq!(says(&lines.sums(ALL)), (5, 0));
        tell(lines.take(100, ALL).unwrap(), 1, 1);
        assert_eq!((says(&lines.sums(ALL)), lines.used().len()), ((6, 1), 1));
        // Nor of one that was killed while it began.
        lines.lines[0].owner.store(100 | BEGINS, Ordering::SeqCst);
        assert_eq!((says(&lines.sums(ALL)), lines.processes(ALL).count()), ((6, 0), 0));
        lines.forget(100);
        assert_eq!(lines.lines[0].owner.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_process_that_was_killed_while_it_began_leaves_its_line() {
        let lines = Lines::new();
        tell(lines.take(100, ALL).unwrap(), 5, 7);
        lines.lines[0].owner.store(100 | BEGINS, Ordering::SeqCst);
        tell(lines.take(200, |process| process != 100).unwrap(), 1, 1);
        assert_eq!((says(&lines.sums(ALL)), lines.used().len()), ((6, 1), 1));
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let lines = Lines::new();
        for process in 1..=MOST as u32 {
            lines.take(process, ALL).unwrap().add(Metric::MessagesIn, 1);
        }
        assert!(lines.take(1000, ALL).is_none());
        assert_eq!(says(&lines.sums(ALL)), (MOST as u64, 0));
        assert!(lines.take(1000, |process| process != 7).is_some());
        assert_eq!(says(&lines.sums(ALL)), (MOST as u64, 0));
    }

    #[test]
    fn processes_that_begin_at_once_have_a_line_each() {
        let lines = Lines::new();
        std::thread::scope(|scope| {
            for process in 1..=8 {
                scope.spawn(move || {
                    let line = lines.take(process, ALL).unwrap();
                    for _ in 0..1000 {
                        line.add(Metric::MessagesIn, 1);
                    }
                    line.set(Metric::Memory, 1);
                });
            }
        });
        assert_eq!((says(&lines.sums(ALL)), lines.used().len()), ((8000, 8), 8));
    }
}
