//! A child's line: a number for each metric, or for each value of its label.
//!
//! All of them are mere counts, each read by itself.

use std::sync::atomic::{AtomicU64, Ordering};

use super::table::{Kind, Metric, TABLE, WORDS};

/// What a line, or the sum of several, says at a moment.
pub type Numbers = [u64; WORDS];

/// The numbers of one child. Memory that is all zero is a line.
#[derive(Debug)]
#[repr(transparent)]
pub struct Line([AtomicU64; WORDS]);

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Line {
    /// Nothing has been counted.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    fn word(&self, metric: Metric, value: &str) -> &AtomicU64 {
        &self.0[metric.word(value)]
    }

    /// So many more.
    pub fn add(&self, metric: Metric, more: u64) {
        if more > 0 {
            self.word(metric, "").fetch_add(more, Ordering::Relaxed);
        }
    }

    /// So many fewer, of a gauge.
    pub fn sub(&self, metric: Metric, fewer: u64) {
        debug_assert!(metric.row().kind == Kind::Gauge);
        self.word(metric, "").fetch_sub(fewer, Ordering::Relaxed);
    }

    /// So many there are, of a gauge.
    pub fn set(&self, metric: Metric, number: u64) {
        debug_assert!(metric.row().kind == Kind::Gauge);
        self.word(metric, "").store(number, Ordering::Relaxed);
    }

    /// One more for a value of the metric's label, which may be one of the others.
    pub fn count(&self, metric: Metric, value: &str) {
        self.word(metric, value).fetch_add(1, Ordering::Relaxed);
    }

    /// One fewer, of a gauge.
    pub fn uncount(&self, metric: Metric, value: &str) {
        debug_assert!(metric.row().kind == Kind::Gauge);
        self.word(metric, value).fetch_sub(1, Ordering::Relaxed);
    }

    /// What it says.
    pub fn numbers(&self) -> Numbers {
        self.0.each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    /// What a metric has counted, all values of its label together.
    pub fn total(&self, metric: Metric) -> u64 {
        metric.total(&self.numbers())
    }

    /// The gauges of who had the line before are nobody's.
    pub(super) fn clear_gauges(&self) {
        for row in TABLE.iter().filter(|row| row.kind == Kind::Gauge) {
            for word in &self.0[row.metric.words()] {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Says what another one says.
    pub(super) fn copy(&self, other: &Self) {
        for (word, number) in self.0.iter().zip(other.numbers()) {
            word.store(number, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn gauges_begin_anew_and_counters_do_not() {
        let line = Line::new();
        line.add(Metric::MessagesIn, 3);
        line.count(Metric::Closes, "1000");
        line.count(Metric::Closes, "3210");
        line.count(Metric::Connections, "blocking");
        line.set(Metric::Memory, 7);
        let totals = |line: &Line| {
            let of = [Metric::MessagesIn, Metric::Closes, Metric::Connections, Metric::Memory];
            of.map(|metric| line.total(metric))
        };
        assert_eq!(totals(&line), [3, 2, 1, 7]);
        line.clear_gauges();
        assert_eq!(totals(&line), [3, 2, 0, 0]);
    }
}
