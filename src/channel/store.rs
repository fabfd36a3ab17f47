//! The shared memory of all channels: mapped once, before the first child, for all children of all generations.
#![expect(unsafe_code, reason = "memory that processes share is reached by its address")]

use core::{ffi::c_void, num::NonZeroU32};
use std::{
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    broker::{Broker, NewMessage, Refused},
    counts::{self, SubscriberCounts},
    id::Id,
    lock::RobustLock,
    name,
    ring::{BUCKETS, Positions, Ring, Written},
    wakeup::{self, Wakeup},
};
#[cfg(test)]
use crate::{channel::Kind, fakes::LONG};
use crate::{os, sync::AtomicU64};

/// What lies before the ring. A change of it needs another name of the memory: [`layout`].
#[repr(C)]
struct Fixed {
    wakeup: Wakeup,
    lock: RobustLock,
    positions: Positions,
    buckets: [AtomicU64; BUCKETS],
    entries: [counts::Entry; counts::ENTRIES],
}

/// What tells this layout from those of other versions: a number for what the sizes do not show.
pub fn layout() -> String {
    format!("1 {} {}", size_of::<Fixed>(), size_of::<Mapping>())
}

/// Where the memory is, for this process and those that it forks. What any of them could have written there is not asked
/// for its size.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Mapping {
    address: *mut c_void,
    /// How many words the ring has.
    words: usize,
    seed: [u64; 2],
}

/// The smallest and the largest ring, in bytes.
pub const SIZES: (usize, usize) = (1 << 20, 1 << 32);

/// The shared memory, as one process sees it.
#[derive(Clone, Copy)]
pub struct Store {
    fixed: &'static Fixed,
    ring: Ring,
    counts: SubscriberCounts,
}

/// How many bytes a ring of `size` has: the next power of two.
pub fn rounded(size: usize) -> usize {
    size.clamp(SIZES.0, SIZES.1).next_power_of_two()
}

/// Maps new memory with a ring of `size` bytes at least. It stays until the process ends.
pub fn map(size: usize, seed: [u64; 2]) -> io::Result<Mapping> {
    let words = rounded(size) / 8;
    let address = os::map_shared(size_of::<Fixed>() + 8 * words)?;
    // SAFETY: the mapping is new, nobody else's, large enough and all zero, which is a value of every field.
    let fixed = unsafe { &mut *address.cast::<Fixed>() };
    fixed.positions = Positions::default();
    // SAFETY: nobody else knows of it yet.
    unsafe { fixed.lock.begin()? };
    Ok(Mapping { address, words, seed })
}

impl Mapping {
    /// How many bytes the ring has.
    pub fn size(&self) -> usize {
        8 * self.words
    }
}

impl Store {
    /// Memory that was mapped, as this process sees it; `is_alive` says whether another one is still there.
    ///
    /// # Safety
    /// - `mapping` is what [`map`] has given, in this process or in one that it was forked from.
    pub unsafe fn at(mapping: &Mapping, process: u32, is_alive: fn(u32) -> bool) -> Self {
        let &Mapping { address, words, seed } = mapping;
        // SAFETY: `map` made it of this type, and it is never unmapped.
        let fixed: &'static Fixed = unsafe { &*address.cast() };
        // SAFETY: `map` made room for the ring behind it.
        let first = unsafe { address.cast::<Fixed>().add(1) }.cast::<AtomicU64>();
        // SAFETY: it has as many words; zero, as all else, is a value of an atomic.
        let words = unsafe { core::slice::from_raw_parts(first, words) };
        let ring = Ring::new(&fixed.positions, &fixed.buckets, words, seed);
        Self { fixed, ring, counts: SubscriberCounts::new(&fixed.entries, process, is_alive) }
    }

    /// The messages.
    pub fn ring(&self) -> Ring {
        self.ring
    }

    /// Who is subscribed to what.
    pub fn counts(&self) -> SubscriberCounts {
        self.counts
    }

    /// Where those who wait for messages sleep.
    pub(super) fn wakeup(&self) -> &'static Wakeup {
        &self.fixed.wakeup
    }

    /// The most bytes that a message may have.
    pub fn most(&self) -> usize {
        self.ring.most()
    }
}

impl Broker for Store {
    /// The calling thread's signals are held back meanwhile.
    fn publish(&self, message: &NewMessage<'_>, patience: Duration) -> Result<Id, Refused> {
        let NewMessage { channel, media, body, .. } = *message;
        debug_assert!(name::check(channel).is_ok());
        if body.len() > self.most() {
            return Err(Refused::TooLarge);
        }
        let media = if media.chars().any(char::is_control) { "" } else { media };
        let held = self.fixed.lock.acquire(patience).ok_or(Refused::Busy)?;
        if held.died {
            self.ring.repair();
        }
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = time.as_millis() as u64;
        let Written { at, hash, wake_all } =
            self.ring.write(&NewMessage { media, ..*message }, time);
        // Who died may have written, and woken nobody.
        let wake_all = wake_all || held.died;
        drop(held);
        self.fixed.wakeup.wake(if wake_all { NonZeroU32::MAX } else { wakeup::bit(hash) });
        Ok(Id::new(self.ring.seed(), time, at, hash))
    }
}

#[cfg(test)]
impl Store {
    pub(super) fn put(
        &self,
        kind: Kind,
        channel: &str,
        media: &str,
        body: &[u8],
    ) -> Result<Id, Refused> {
        self.publish(&NewMessage { kind, channel, media, body }, LONG)
    }

    /// Publishes nothing, and keeps others from it.
    pub(super) fn hold(&self) -> super::lock::Held<'static> {
        self.fixed.lock.acquire(LONG).unwrap()
    }
}

#[cfg(test)]
pub(super) fn for_test() -> Store {
    let mapping = map(SIZES.0, [1, 2]).unwrap();
    // SAFETY: it was just mapped.
    unsafe { Store::at(&mapping, std::process::id(), |_| true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_publish_at_once() {
        let store = for_test();
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                scope.spawn(move || {
                    for n in 0..500_u32 {
                        let body = [thread.to_ne_bytes(), n.to_ne_bytes()].concat();
                        store.put(Kind::Binary, "a", "", &body).unwrap();
                    }
                });
            }
        });
        let ring = store.ring();
        let bodies: Vec<_> =
            ring.history("a").map(|header| ring.message(&header).unwrap().body).collect();
        assert_eq!(bodies.len(), 2000);
        for thread in 0..4_u32 {
            let own = bodies.iter().rev().filter(|body| body[..4] == thread.to_ne_bytes());
            assert!(own.map(|body| &body[4..]).eq((0..500_u32).map(u32::to_ne_bytes)));
        }
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let store = for_test();
        let mut body = vec![0; store.most()];
        assert!(store.put(Kind::Binary, "a", "", &body).is_ok());
        body.push(0);
        assert_eq!(store.put(Kind::Binary, "a", "", &body), Err(Refused::TooLarge));
    }
}
