//! The subscribers of this child, and the thread that tells them: it sleeps until something is published.

use core::num::NonZeroU32;
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use slotmap::{DefaultKey, DenseSlotMap};

use super::{
    Message, bell,
    census::Counted,
    ring::{Header, Missed},
    store::Store,
};
use crate::{conn::outbox::Outbox, os::AllSignals, sync::Lock as _};

/// How long the thread sleeps at most: somebody may have died between publishing and waking.
const SLEEP: Duration = Duration::from_secs(1);
/// How many records are told of under one lock.
const BATCH: usize = 256;
/// How many messages are kept as they were read last, each for all who read it next, and how large one may be.
const KEPT: usize = 16;
const KEPT_SIZE: usize = 64 * 1024;

/// What a subscriber that was not told is told.
const NOTHING: u64 = u64::MAX;

/// How a subscriber is told.
pub struct Feed {
    /// The first message since it read all that was there; [`NOTHING`] if it was not told since it looked last.
    told: AtomicU64,
    /// `None` for one that is never told.
    outbox: Option<Arc<Outbox>>,
}

impl Feed {
    /// For the subscriber that writes to this outbox.
    pub fn new(outbox: Arc<Outbox>) -> Arc<Self> {
        Arc::new(Self { told: AtomicU64::new(NOTHING), outbox: Some(outbox) })
    }

    /// For one that takes what is there, and is never told of more.
    pub fn silent() -> Self {
        Self { told: AtomicU64::new(NOTHING), outbox: None }
    }

    /// What it was told since it was asked last.
    pub(super) fn take(&self) -> Option<u64> {
        Some(self.told.swap(NOTHING, Ordering::SeqCst)).filter(|&told| told != NOTHING)
    }

    /// Tells it of a message; it has a turn soon, in which it hears of all that came since.
    fn tell(&self, at: u64) -> bool {
        // Who was told before, and has not looked, will read on to this one.
        let first =
            self.told.compare_exchange(NOTHING, at, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if let (true, Some(outbox)) = (first, &self.outbox) {
            outbox.have_a_turn();
        }
        first
    }
}

/// A channel that somebody here is subscribed to.
struct Channel {
    feeds: DenseSlotMap<DefaultKey, Arc<Feed>>,
    counted: Option<Counted>,
}

impl Channel {
    fn count(&self) {
        if let Some(counted) = &self.counted {
            counted.set(self.feeds.len() as u32);
        }
    }
}

/// A hash is a hash.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(Default)]
struct Subscribed {
    channels: HashMap<u64, Channel, BuildHasherDefault<Same>>,
    thread: Option<JoinHandle<()>>,
}

/// A subscription, to be ended with [`Hub::unsubscribe`].
#[derive(Debug)]
pub struct Subscription(Vec<(u64, DefaultKey)>);

/// What all subscribers of a child share. It lives as long as the process.
pub struct Hub {
    store: Store,
    subscribed: Mutex<Subscribed>,
    /// The bell's bits of all channels that somebody was subscribed to since nobody was.
    bits: AtomicU32,
    ending: AtomicBool,
    kept: [Mutex<Option<Arc<Message>>>; KEPT],
    /// Has those run that were told.
    run: Box<dyn Fn() + Send + Sync>,
}

impl Hub {
    /// A child's hub. `run` is called after some subscribers were told, on the hub's thread.
    pub fn new(store: Store, run: Box<dyn Fn() + Send + Sync>) -> &'static Self {
        Box::leak(Box::new(Self {
            store,
            subscribed: Mutex::default(),
            bits: AtomicU32::new(0),
            ending: AtomicBool::new(false),
            kept: Default::default(),
            run,
        }))
    }

    /// The shared memory.
    pub fn store(&self) -> Store {
        self.store
    }

    /// Subscribes to the channels of these hashes, each of which is there once. From now on messages are told. An error if
    /// the thread cannot be started.
    pub fn subscribe(&'static self, hashes: &[u64], feed: &Arc<Feed>) -> io::Result<Subscription> {
        let mut subscribed = self.subscribed.acquire();
        if subscribed.thread.is_none() {
            // Who is subscribed from now on is told what comes behind this.
            let begin = self.store.ring().head();
            let _blocked = AllSignals::block();
            let thread = thread::Builder::new().name("ws-channels".into());
            subscribed.thread = Some(thread.spawn(move || self.work(begin))?);
        }
        let mut bits = 0;
        let subscribe = |&hash: &u64| {
            let channel = subscribed.channels.entry(hash).or_insert_with(|| Channel {
                feeds: DenseSlotMap::new(),
                counted: self.store.census().count(hash),
            });
            let key = channel.feeds.insert(feed.clone());
            channel.count();
            bits |= bell::bit(hash).get();
            (hash, key)
        };
        let subscription = Subscription(hashes.iter().map(subscribe).collect());
        drop(subscribed);
        if self.bits.fetch_or(bits, Ordering::SeqCst) & bits != bits {
            // The thread may sleep with fewer.
            self.store.bell().ring(NonZeroU32::MAX);
        }
        Ok(subscription)
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, subscription: &Subscription) {
        let mut subscribed = self.subscribed.acquire();
        for &(hash, key) in &subscription.0 {
            let Some(channel) = subscribed.channels.get_mut(&hash) else { continue };
            channel.feeds.remove(key);
            channel.count();
            if channel.feeds.is_empty() {
                subscribed.channels.remove(&hash);
            }
        }
        if subscribed.channels.is_empty() {
            self.bits.store(0, Ordering::SeqCst);
            subscribed.channels.shrink_to_fit();
        }
    }

    /// A message that was published; an error if it is not there any more.
    pub(super) fn message(&self, header: &Header) -> Result<Arc<Message>, Missed> {
        let mut kept = self.kept[header.at as usize % KEPT].acquire();
        if let Some(message) = kept.as_ref().filter(|message| message.at == header.at) {
            return Ok(message.clone());
        }
        let message = Arc::new(self.store.ring().message(header)?);
        if message.body.len() <= KEPT_SIZE {
            *kept = Some(message.clone());
        }
        Ok(message)
    }

    /// The child goes: ends the thread.
    pub fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        let thread = self.subscribed.acquire().thread.take();
        if let Some(thread) = thread {
            self.store.bell().ring(NonZeroU32::MAX);
            let _ = thread.join();
        }
    }

    /// What the thread does. `begin`: what is before it has been told, or nobody wants it.
    fn work(&self, begin: u64) {
        let mut at = begin;
        while !self.ending.load(Ordering::SeqCst) {
            let seen = self.store.bell().value();
            let look = catch_unwind(AssertUnwindSafe(|| self.look(at)));
            at = look.unwrap_or_else(|_| {
                self.tell_all();
                self.store.ring().head()
            });
            let bits = NonZeroU32::new(self.bits.load(Ordering::SeqCst));
            self.store.bell().wait(seen, bits.unwrap_or(NonZeroU32::MIN), SLEEP);
        }
    }

    /// Tells of what has come since `at`, and returns what comes behind it.
    fn look(&self, mut at: u64) -> u64 {
        let ring = self.store.ring();
        let mut told = false;
        loop {
            let (head, tail) = ring.bounds();
            if at == head {
                break;
            }
            let subscribed = self.subscribed.acquire();
            for _ in 0..BATCH {
                if at >= head {
                    break;
                }
                let Some(header) = ring.header(at).ok().filter(|_| at >= tail) else {
                    drop(subscribed);
                    self.tell_all();
                    return ring.head();
                };
                if let Some(channel) = subscribed.channels.get(&header.hash) {
                    for feed in channel.feeds.values() {
                        told |= feed.tell(at);
                    }
                }
                at = header.next;
            }
            if at > head {
                // The ring has begun anew.
                drop(subscribed);
                self.tell_all();
                return head;
            }
        }
        if told {
            (self.run)();
        }
        at
    }

    /// Something was missed: everybody looks for himself.
    fn tell_all(&self) {
        let subscribed = self.subscribed.acquire();
        for feed in subscribed.channels.values().flat_map(|channel| channel.feeds.values()) {
            feed.tell(0);
        }
        drop(subscribed);
        (self.run)();
    }
}
