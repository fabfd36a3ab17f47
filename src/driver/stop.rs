//! Telling every connection of the child that it goes down.
#![deny(unsafe_code)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::outbox::Carrier;

/// The child's end, as its connections see it.
#[derive(Default)]
pub struct Stop {
    stopping: AtomicBool,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    next: u64,
    carriers: BTreeMap<u64, Weak<dyn Carrier>>,
}

impl Stop {
    /// A child that runs.
    pub const fn new() -> Self {
        let live = Live { next: 0, carriers: BTreeMap::new() };
        Self { stopping: AtomicBool::new(false), live: Mutex::new(live) }
    }

    /// A new child process begins.
    pub fn reset(&self) {
        self.stopping.store(false, Ordering::Release);
    }

    /// Whether connections have to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends all connections, those to come included: each of them is woken and sees it.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let live: Vec<_> = self.lock().carriers.values().filter_map(Weak::upgrade).collect();
        for carrier in live {
            carrier.wake();
        }
    }

    /// Has a connection woken when the child stops, as long as the returned value lives.
    pub fn enter(&self, carrier: &Arc<dyn Carrier>) -> Entry<'_> {
        let mut live = self.lock();
        let id = live.next;
        live.next += 1;
        live.carriers.insert(id, Arc::downgrade(carrier));
        Entry { stop: self, id }
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A connection's place in a [`Stop`].
pub struct Entry<'s> {
    stop: &'s Stop,
    id: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.stop.lock().carriers.remove(&self.id);
    }
}
