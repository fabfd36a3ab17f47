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

use slotmap::{DefaultKey, SlotMap};

use super::{
    broker::Broker,
    counts::Counted,
    cursor::Messages,
    feed::Feed,
    kept::{Kept, KeptMessages},
    ring::{Header, Missed, Ring},
    store::Store,
    subscription::Subscription,
    wakeup::{self, Wanted},
};
use crate::{
    metrics::{Line, Metric},
    os::AllSignals,
    sync::Lock as _,
};

/// How long the thread sleeps at most: somebody may have died between publishing and waking.
const SLEEP: Duration = Duration::from_secs(1);
/// How many records are told of under one lock, and after how many subscribers it is given back.
const BATCH: usize = 256;
const FEEDS: usize = 4096;
/// With this for a tail those are told, too, who wait for their clients.
const EVERYBODY: u64 = u64::MAX;

/// A channel that somebody here is subscribed to.
struct Channel {
    name: Arc<str>,
    /// In one piece: most channels have one subscriber, or a few.
    feeds: SlotMap<DefaultKey, Arc<Feed>>,
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

/// What all subscribers of a child share. It lives as long as the process.
pub struct Hub {
    store: Store,
    /// Where the child counts.
    line: &'static Line,
    subscribed: Mutex<Subscribed>,
    /// All channels that somebody was subscribed to since nobody was.
    wanted: Wanted,
    ending: AtomicBool,
    /// Somebody keeps those from publishing that wait for the lock.
    stuck: AtomicBool,
    kept: KeptMessages,
    /// Has those run that were told.
    run: Box<dyn Fn() + Send + Sync>,
}

impl Hub {
    /// A child's hub, which counts in `line`. `run` is called after some subscribers were told, on the hub's thread.
    pub fn new(
        store: Store,
        line: &'static Line,
        run: Box<dyn Fn() + Send + Sync>,
    ) -> &'static Self {
        Box::leak(Box::new(Self {
            store,
            line,
            subscribed: Mutex::default(),
            wanted: Wanted::default(),
            ending: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            kept: KeptMessages::default(),
            run,
        }))
    }

    /// The shared memory.
    pub fn store(&self) -> Store {
        self.store
    }

    /// Where messages are published.
    pub fn broker(&self) -> &dyn Broker {
        &self.store
    }

    /// For those who publish in turns of others.
    pub(super) fn stuck(&self) -> &AtomicBool {
        &self.stuck
    }

    /// Where the child counts.
    pub fn line(&self) -> &'static Line {
        self.line
    }

    /// Subscribes to the channels of these names, each of which is there once. From now on messages are told, until it is
    /// [ended](Self::unsubscribe). An error if the thread cannot be started.
    pub fn subscribe(
        &'static self,
        names: &[String],
        feed: &Arc<Feed>,
    ) -> io::Result<Box<[Subscription]>> {
        let mut subscribed = self.subscribed.acquire();
        if self.ending.load(Ordering::SeqCst) {
            return Err(io::Error::other("this child ends"));
        }
        if subscribed.thread.is_none() {
            // Who is subscribed from now on is told what comes behind this.
            let begin = self.store.ring().head();
            let _blocked = AllSignals::block();
            let thread = thread::Builder::new().name("ws-channels".into());
            subscribed.thread = Some(thread.spawn(move || self.work(begin))?);
        }
        let mut bits = 0;
        let subscribe = |name: &String| {
            let hash = self.store.ring().hash(name);
            let channel = subscribed.channels.entry(hash).or_insert_with(|| Channel {
                name: (**name).into(),
                feeds: SlotMap::with_capacity(1),
                counted: self.store.counts().count(hash),
            });
            let key = channel.feeds.insert(feed.clone());
            channel.count();
            bits |= wakeup::bit(hash).get();
            // Another one may have the same hash.
            let is_it = *channel.name == **name;
            let name = if is_it { channel.name.clone() } else { (**name).into() };
            Subscription { hash, name, key }
        };
        let subscriptions = names.iter().map(subscribe).collect();
        drop(subscribed);
        self.line.add(Metric::ChannelSubscribers, 1);
        self.wanted.add(bits, self.store.wakeup());
        Ok(subscriptions)
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, subscriptions: &[Subscription]) {
        self.line.sub(Metric::ChannelSubscribers, 1);
        let mut subscribed = self.subscribed.acquire();
        for Subscription { hash, key, .. } in subscriptions {
            let Some(channel) = subscribed.channels.get_mut(hash) else { continue };
            channel.feeds.remove(*key);
            channel.count();
            if channel.feeds.is_empty() {
                subscribed.channels.remove(hash);
            }
        }
        if subscribed.channels.is_empty() {
            subscribed.channels.shrink_to_fit();
            self.kept.clear();
        }
    }

    /// The child goes: ends the thread.
    pub fn end(&self) {
        let mut subscribed = self.subscribed.acquire();
        // Under the lock: nobody begins a thread afterwards.
        self.ending.store(true, Ordering::SeqCst);
        let thread = subscribed.thread.take();
        drop(subscribed);
        if let Some(thread) = thread {
            self.store.wakeup().wake(NonZeroU32::MAX);
            let _ = thread.join();
        }
    }

    /// What the thread does. `begin`: what is before it has been told, or nobody wants it.
    fn work(&self, begin: u64) {
        let mut at = begin;
        while !self.ending.load(Ordering::SeqCst) {
            self.wanted.look_and_sleep(self.store.wakeup(), SLEEP, || {
                self.forget();
                let look = catch_unwind(AssertUnwindSafe(|| self.look(at)));
                at = look.unwrap_or_else(|_| self.tell_all(at));
                // Who ends it may have woken us before we looked at the word.
                !self.ending.load(Ordering::SeqCst)
            });
        }
    }

    /// What nobody is subscribed to any more is not slept for. Not at once: adding it again wakes the threads of all
    /// children, and a client may come and go.
    fn forget(&self) {
        let subscribed = self.subscribed.acquire();
        if subscribed.channels.is_empty() {
            self.wanted.clear();
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
            let (next, missed) = self.tell_some(at, (head, tail));
            if missed {
                return self.tell_all(next);
            }
            at = next;
        }
    }

    /// Tells of some of what is there from `at` on, before `head`. Returns how far it came, and whether what comes next is
    /// not there.
    fn tell_some(&self, mut at: u64, (head, tail): (u64, u64)) -> (u64, bool) {
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
                    told |= feed.tell(at, tail);
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
            feed.tell(at, EVERYBODY);
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

    fn message(&self, header: &Header) -> Result<Arc<Kept>, Missed> {
        self.kept.get(self.store.ring(), header)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{OnceLock, atomic::AtomicUsize};

    use super::*;
    use crate::{
        channel::{Kind, store},
        conn::outbox::{DriverHandle, WriteSocket},
        fakes::{Driver, LONG, outbox, wait_until},
    };

    /// A hub whose thread is the test's, from here on.
    pub(in crate::channel) fn hub(
        store: Store,
        run: impl Fn() + Send + Sync + 'static,
    ) -> &'static Hub {
        let hub = Hub::new(store, Box::leak(Box::default()), Box::new(run));
        hub.subscribed.acquire().thread = Some(thread::spawn(|| ()));
        hub
    }

    impl Hub {
        /// What its thread does when something was published.
        pub(in crate::channel) fn look_on(&self, at: &mut u64) {
            *at = self.look(*at);
        }
    }

    pub(in crate::channel) fn publish(store: Store, channel: &str, body: &[u8]) -> u64 {
        store.put(Kind::Binary, channel, "", body).unwrap().at
    }

    /// Publishes as much as the ring has room for, in another channel.
    pub(in crate::channel) fn fill(store: Store) {
        for _ in 0..10 {
            publish(store, "much", &vec![0; store.most()]);
        }
    }

    struct Told {
        feed: Arc<Feed>,
        driver: Arc<Driver>,
        subscriptions: Box<[Subscription]>,
    }

    fn names(channels: &[&str]) -> Vec<String> {
        channels.iter().map(|&name| name.to_owned()).collect()
    }

    fn subscribe(hub: &'static Hub, channels: &[&str]) -> Told {
        let (outbox, _) = outbox(1000);
        let driver = Driver::new(None, || ());
        driver.rest(&outbox);
        let feed = Feed::new(outbox);
        let subscriptions = hub.subscribe(&names(channels), &feed).unwrap();
        Told { feed, driver, subscriptions }
    }

    #[test]
    fn who_is_told_is_told_once_until_it_asks() {
        let store = store::for_test();
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let hub = hub(store, move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let mut at = store.ring().head();
        let [one, two] = [&["a"][..], &["b", "a"]].map(|channels| subscribe(hub, channels));
        let first = publish(store, "a", b"1");
        publish(store, "b", b"2");
        publish(store, "c", b"3");
        hub.look_on(&mut at);
        hub.look_on(&mut at);
        assert_eq!((at, runs.load(Ordering::SeqCst)), (store.ring().head(), 1));
        assert_eq!((one.driver.take_wakes(), two.driver.take_wakes()), (1, 1));
        assert_eq!((one.feed.take(), two.feed.take()), (Some(first), Some(first)));
        assert_eq!((one.feed.take(), two.feed.take()), (None, None));
        let next = publish(store, "b", b"4");
        hub.look_on(&mut at);
        assert_eq!((one.feed.take(), two.feed.take()), (None, Some(next)));
        publish(store, "c", b"5");
        hub.look_on(&mut at);
        assert_eq!((runs.load(Ordering::SeqCst), two.feed.take()), (2, None));
    }

    #[test]
    fn subscribers_are_counted_and_nobody_is_told_after_the_end() {
        let store = store::for_test();
        let hub = hub(store, || ());
        let mut at = store.ring().head();
        let count = |name| store.counts().subscribers(store.ring().hash(name));
        let [one, two] = [&["a"][..], &["b", "a"]].map(|channels| subscribe(hub, channels));
        let subscribers = || hub.line.total(Metric::ChannelSubscribers);
        assert_eq!((count("a"), count("b"), count("c"), subscribers()), (2, 1, 0, 2));
        hub.unsubscribe(&two.subscriptions);
        assert_eq!((count("a"), count("b"), subscribers()), (1, 0, 1));
        publish(store, "a", b"1");
        hub.look_on(&mut at);
        assert_eq!((one.driver.take_wakes(), two.driver.take_wakes()), (1, 0));
        hub.unsubscribe(&one.subscriptions);
        assert_eq!((count("a"), hub.subscribed.acquire().channels.len()), (0, 0));
        assert_eq!(subscribers(), 0);
    }

    /// A connection that does something when it is to have a turn.
    struct Meanwhile(Box<dyn Fn() + Send + Sync>);

    impl DriverHandle for Meanwhile {
        fn wake(&self) {
            (self.0)();
        }
        fn pump(&self, _: std::time::Instant) {}
        fn socket(&self) -> Option<&dyn WriteSocket> {
            None
        }
    }

    #[test]
    fn what_comes_while_all_are_told_is_told_too() {
        let store = store::for_test();
        let hub = hub(store, || ());
        let mut at = store.ring().head();
        let (outbox, _) = outbox(1000);
        let feed = Feed::new(outbox.clone());
        let asks: Arc<OnceLock<Arc<Feed>>> = Arc::default();
        let (asked, last) = (asks.clone(), Arc::new(Mutex::new(None)));
        let told = last.clone();
        // It has its turn at once, and reads all; then something is published.
        let driver: Arc<dyn DriverHandle> = Arc::new(Meanwhile(Box::new(move || {
            let first = told.acquire().is_none();
            if first {
                asked.get().unwrap().take();
                *told.acquire() = Some(publish(store, "a", b"late"));
            }
        })));
        outbox.open(Arc::downgrade(&driver));
        let _ = asks.set(feed.clone());
        hub.subscribe(&names(&["a"]), &feed).unwrap();
        fill(store);
        hub.look_on(&mut at);
        hub.look_on(&mut at);
        assert!(last.acquire().is_some());
        assert_eq!(feed.take(), *last.acquire());
    }

    #[test]
    fn who_is_told_runs_though_there_is_always_more() {
        let store = store::for_test();
        let told: Arc<OnceLock<Told>> = Arc::default();
        let (subscriber, runs) = (told.clone(), AtomicUsize::new(0));
        let hub = hub(store, move || {
            subscriber.get().unwrap().feed.take();
            if runs.fetch_add(1, Ordering::SeqCst) < 10 {
                publish(store, "a", b"more");
            }
        });
        let mut at = store.ring().head();
        assert!(told.set(subscribe(hub, &["a"])).is_ok());
        publish(store, "a", b"1");
        hub.look_on(&mut at);
        assert_eq!((at, told.get().unwrap().driver.take_wakes()), (store.ring().head(), 11));
    }

    #[test]
    fn the_thread_sleeps_wakes_and_ends() {
        let store = store::for_test();
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let run = Box::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let hub = Hub::new(store, Box::leak(Box::default()), run);
        let one = subscribe(hub, &["a"]);
        for n in 0..20 {
            let begun = std::time::Instant::now();
            publish(store, "a", b"1");
            wait_until(|| runs.load(Ordering::SeqCst) > n);
            assert!(one.feed.take().is_some() && begun.elapsed() < LONG / 2);
            // Sometimes it sleeps then, with the bits of its channels.
            if n % 4 == 0 {
                thread::sleep(Duration::from_millis(20));
            }
        }
        hub.end();
        publish(store, "a", b"2");
        assert_eq!((runs.load(Ordering::SeqCst), one.feed.take()), (20, None));
        // Who comes too late.
        assert!(hub.subscribe(&names(&["c"]), &one.feed).is_err());
    }

    #[test]
    fn a_panic_costs_nobody_a_message() {
        let store = store::for_test();
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        let run = Box::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let hub = Hub::new(store, Box::leak(Box::default()), run);
        let one = subscribe(hub, &["a"]);
        let (outbox, _) = outbox(1000);
        let feed = Feed::new(outbox.clone());
        let driver: Arc<dyn DriverHandle> = Arc::new(Meanwhile(Box::new(|| panic!("a bug"))));
        outbox.open(Arc::downgrade(&driver));
        hub.subscribe(&names(&["b"]), &feed).unwrap();
        let broken = publish(store, "b", b"1");
        wait_until(|| runs.load(Ordering::SeqCst) > 0);
        // It looks for itself, from there on and not from where it was when it was told last.
        assert_eq!((one.driver.take_wakes(), one.feed.take()), (1, Some(broken)));
        let next = publish(store, "a", b"2");
        wait_until(|| runs.load(Ordering::SeqCst) > 1);
        assert_eq!(one.feed.take(), Some(next));
        hub.end();
    }

    /// There may be very many: what lies beside the connection's own memory.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_subscription_is_small() {
        use crate::channel::{cursor::Cursor, subscriber::Subscriber};

        assert!(size_of::<Cursor>() <= 48);
        assert!(size_of::<Subscriber>() <= 104 && size_of::<Subscription>() <= 32);
        // With its counts.
        assert!(size_of::<Feed>() + 16 <= 32);
    }
}
