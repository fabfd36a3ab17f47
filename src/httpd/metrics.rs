//! What all children have counted.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{channel, shared};
use crate::metrics::{Metric, Sums, TABLE};

/// What all children have counted, and what is known of the channels; `None` without shared memory.
pub(super) fn sums() -> Option<Sums> {
    let mut sums = Sums { numbers: shared::sums()?, left_out: Vec::new() };
    let Some(store) = channel::store() else {
        let metrics = TABLE.iter().map(|row| row.metric);
        sums.left_out.extend(metrics.filter(|metric| metric.is_of_channels()));
        return Some(sums);
    };
    sums.set(Metric::ChannelMemory, store.ring().size() as u64);
    match store.ring().oldest() {
        Some(oldest) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let age = (now.as_millis() as u64).saturating_sub(oldest.time) / 1000;
            sums.set(Metric::ChannelOldest, age);
        }
        None => sums.left_out.push(Metric::ChannelOldest),
    }
    Some(sums)
}
