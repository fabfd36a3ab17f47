//! The subscribers of this child, and the thread that tells them: it sleeps until something is published.

use core::num::NonZeroU32;
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use slotmap::{DefaultKey, DenseSlotMap};

use super::{
    Message,
    bell::{self, Wanted},
    census::Counted,
    cursor::Messages,
    feed::Feed,
    ring::{Header, Missed, Ring},
    store::Store,
};
use crate::{os::AllSignals, sync::Lock as _};

/// How long the thread sleeps at most: somebody may have died between publishing and waking.
const SLEEP: Duration = Duration::from_secs(1);
/// How many records are told of under one lock, and after how many subscribers it is given back.
const BATCH: usize = 256;
const FEEDS: usize = 4096;
/// How many messages are kept as they were read last, each for all who read it next, and how large one may be.
const KEPT: usize = 16;
const KEPT_SIZE: usize = 64 * 1024;

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
    /// All channels that somebody was subscribed to since nobody was.
    wanted: Wanted,
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
            wanted: Wanted::default(),
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
        self.wanted.add(bits, self.store.bell());
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
            self.wanted.clear();
            subscribed.channels.shrink_to_fit();
        }
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
            self.wanted.look_and_sleep(self.store.bell(), SLEEP, || {
                let look = catch_unwind(AssertUnwindSafe(|| self.look(at)));
                at = look.unwrap_or_else(|_| self.tell_all(at));
                // Who ends it may have rung before we looked at the bell.
                !self.ending.load(Ordering::SeqCst)
            });
        }
    }

    /// Tells of what has come since `at`, and returns what comes behind it.
    fn look(&self, mut at: u64) -> u64 {
        loop {
            let (head, tail) = self.store.ring().bounds();
            if at == head || self.ending.load(Ordering::SeqCst) {
                return at;
            }
            // It may lie ahead, too, if the ring has begun anew.
            if !(tail..head).contains(&at) {
                return self.tell_all(at);
            }
            let (next, missed) = self.tell_some(at, head);
            if missed {
                return self.tell_all(next);
            }
            at = next;
        }
    }

    /// Tells of some of what is there from `at` on, before `head`. Returns how far it came, and whether what comes next is
    /// not there.
    fn tell_some(&self, mut at: u64, head: u64) -> (u64, bool) {
        let (mut missed, mut asked, mut told) = (false, 0, false);
        let subscribed = self.subscribed.acquire();
        for _ in 0..BATCH {
            if at >= head || asked >= FEEDS {
                break;
            }
            let Ok(header) = self.store.ring().header(at) else {
                missed = true;
                break;
            };
            if let Some(channel) = subscribed.channels.get(&header.hash) {
                asked += channel.feeds.len();
                for feed in channel.feeds.values() {
                    told |= feed.tell(at);
                }
            }
            at = header.next;
        }
        drop(subscribed);
        if told {
            (self.run)();
        }
        (at, missed)
    }

    /// What came next at `at` was missed: everybody looks for himself from there on. Returns where the hub goes on.
    fn tell_all(&self, at: u64) -> u64 {
        // Before anybody looks: what comes then is told, too.
        let head = self.store.ring().head();
        let subscribed = self.subscribed.acquire();
        for feed in subscribed.channels.values().flat_map(|channel| channel.feeds.values()) {
            feed.tell(at);
        }
        drop(subscribed);
        (self.run)();
        head
    }
}

impl Messages for Hub {
    fn ring(&self) -> Ring {
        self.store.ring()
    }

    fn message(&self, header: &Header) -> Result<Arc<Message>, Missed> {
        let mut kept = self.kept[header.at as usize % KEPT].acquire();
        let is_it = |message: &&Arc<Message>| {
            (message.at, message.hash, message.time) == (header.at, header.hash, header.time)
        };
        if let Some(message) = kept.as_ref().filter(is_it) {
            return Ok(message.clone());
        }
        let message = Arc::new(self.store.ring().message(header)?);
        if message.body.len() <= KEPT_SIZE {
            *kept = Some(message.clone());
        }
        Ok(message)
    }
}
