//! How a child ends: what says so, each connection's moment in a drain, and telling the blocking ones.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    conn::{callbacks::Callbacks, outbox::DriverHandle},
    sync::{AtomicU8, AtomicU32, Lock as _, Mutex, MutexGuard, Ordering},
};

/// How a child ends.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Ending {
    /// It does not.
    #[default]
    None = 0,
    /// Connections are closed one by one, spread over some time.
    Drain = 1,
    /// Connections are closed at once.
    Stop = 2,
}

/// An [`Ending`] that threads and signal handlers share; it only ever gets more urgent.
#[derive(Debug, Default)]
pub struct SharedEnding {
    ending: AtomicU8,
    /// How long a drain may take, in milliseconds.
    drain: AtomicU32,
}

impl SharedEnding {
    /// No end in sight.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self::default()
    }

    /// No end in sight.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { ending: AtomicU8::new(Ending::None as u8), drain: AtomicU32::new(0) }
    }

    /// What it says.
    pub fn get(&self) -> Ending {
        match self.ending.load(Ordering::SeqCst) {
            0 => Ending::None,
            1 => Ending::Drain,
            _ => Ending::Stop,
        }
    }

    /// The end has come, unless a more urgent one has. A signal handler may call it.
    pub fn raise(&self, ending: Ending) {
        self.ending.fetch_max(ending as u8, Ordering::SeqCst);
    }

    /// Back to the beginning, for a new child; `drain` is how long its drain may take.
    pub fn reset(&self, drain: Duration) {
        self.drain.store(drain.as_millis().try_into().unwrap_or(u32::MAX), Ordering::Relaxed);
        self.ending.store(Ending::None as u8, Ordering::SeqCst);
    }

    /// How long a drain may take.
    pub fn drain(&self) -> Duration {
        Duration::from_millis(self.drain.load(Ordering::Relaxed).into())
    }

    /// When, from the beginning of a drain, the connection with this number is closed: a moment of its own for each,
    /// in each child, which looks random and needs no memory.
    pub fn moment(&self, connection: u64) -> Duration {
        let own = connection ^ (u64::from(std::process::id()) << 40);
        let random = own.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        Duration::from_millis(random % u64::from(self.drain.load(Ordering::Relaxed)).max(1))
    }
}

/// The child's end, as its blocking connections see it; and which callbacks it meets on their threads.
#[derive(Default)]
pub struct Shutdown {
    ending: SharedEnding,
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    next: u64,
    drivers: BTreeMap<u64, Weak<dyn DriverHandle>>,
    callbacks: BTreeMap<u64, Arc<Callbacks>>,
}

impl Live {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Shutdown {
    /// A child that runs.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self::default()
    }

    /// A child that runs.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        let live = Live { next: 0, drivers: BTreeMap::new(), callbacks: BTreeMap::new() };
        Self { ending: SharedEnding::new(), live: Mutex::new(live) }
    }

    /// A new child process begins, whose drain may take so long.
    pub fn reset(&self, drain: Duration) {
        self.ending.reset(drain);
    }

    /// How the child ends, if it does.
    pub fn ending(&self) -> Ending {
        self.ending.get()
    }

    /// Ends all connections, those to come included: each of them is woken and sees it.
    pub fn end(&self, ending: Ending) {
        self.ending.raise(ending);
        let live: Vec<_> = self.lock().drivers.values().filter_map(Weak::upgrade).collect();
        for driver in live {
            driver.wake();
        }
    }

    /// Makes a drain a stop, from within a signal handler: connections find out when they look next.
    pub fn hasten(&self) {
        self.ending.raise(Ending::Stop);
    }

    /// Has a connection woken when the child stops, as long as the returned value lives.
    pub fn enter(&self, driver: &Arc<dyn DriverHandle>) -> Registered<'_> {
        let mut live = self.lock();
        let id = live.number();
        live.drivers.insert(id, Arc::downgrade(driver));
        Registered { shutdown: self, id }
    }

    /// Has a connection's callbacks watched, as long as they are called on a thread of httpd's and the returned value
    /// lives.
    pub fn watch(&self, callbacks: Arc<Callbacks>) -> Watched<'_> {
        let mut live = self.lock();
        let id = live.number();
        live.callbacks.insert(id, callbacks);
        Watched { shutdown: self, id }
    }

    /// The libraries of those that are running, one for each callback.
    pub fn running(&self) -> Vec<Arc<str>> {
        self.lock().callbacks.values().filter_map(|callbacks| callbacks.running()).collect()
    }

    /// Whether nobody is to be woken.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().drivers.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.acquire()
    }
}

/// A connection's place in a [`Shutdown`].
pub struct Registered<'s> {
    shutdown: &'s Shutdown,
    id: u64,
}

impl Registered<'_> {
    /// How the child ends, if it does.
    pub fn ending(&self) -> Ending {
        self.shutdown.ending()
    }

    /// When the connection is closed, from the beginning of a drain.
    pub fn moment(&self) -> Duration {
        self.shutdown.ending.moment(self.id)
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.shutdown.lock().drivers.remove(&self.id);
    }
}

/// A connection whose callbacks a [`Shutdown`] watches.
pub struct Watched<'s> {
    shutdown: &'s Shutdown,
    id: u64,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.shutdown.lock().callbacks.remove(&self.id);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{
        sync::{Condvar, Mutex},
        thread,
    };
    use std::time::Instant;

    use super::*;
    use crate::conn::outbox::WriteSocket;

    #[derive(Default)]
    struct Sleeper {
        woken: Mutex<bool>,
        changed: Condvar,
    }

    impl Sleeper {
        fn sleep(&self) {
            let mut woken = self.woken.lock().unwrap();
            while !*woken {
                woken = self.changed.wait(woken).unwrap();
            }
            *woken = false;
        }
    }

    impl DriverHandle for Sleeper {
        fn wake(&self) {
            *self.woken.lock().unwrap() = true;
            self.changed.notify_all();
        }

        fn pump(&self, _: Instant) {}

        fn socket(&self) -> Option<&dyn WriteSocket> {
            None
        }
    }

    #[test]
    fn a_connection_that_comes_with_the_end_hears_of_it() {
        loom::model(|| {
            let stop = Arc::new(Shutdown::new());
            let ender = thread::spawn({
                let stop = stop.clone();
                move || stop.end(Ending::Stop)
            });
            let sleeper = Arc::new(Sleeper::default());
            let driver: Arc<dyn DriverHandle> = sleeper.clone();
            let entry = stop.enter(&driver);
            while entry.ending() == Ending::None {
                sleeper.sleep();
            }
            drop(entry);
            ender.join().unwrap();
            assert!(stop.is_empty());
        });
    }

    #[test]
    fn a_stop_overrides_a_drain_whoever_comes_first() {
        loom::model(|| {
            let shared = Arc::new(SharedEnding::new());
            let raisers = [Ending::Drain, Ending::Stop].map(|ending| {
                let shared = shared.clone();
                thread::spawn(move || shared.raise(ending))
            });
            let seen = [(); 2].map(|()| shared.get());
            assert!(seen[0] <= seen[1]);
            for raiser in raisers {
                raiser.join().unwrap();
            }
            assert_eq!(shared.get(), Ending::Stop);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_end_only_gets_more_urgent() {
        let shared = SharedEnding::new();
        shared.raise(Ending::Drain);
        assert_eq!(shared.get(), Ending::Drain);
        shared.raise(Ending::Stop);
        shared.raise(Ending::Drain);
        assert_eq!(shared.get(), Ending::Stop);
        shared.reset(Duration::ZERO);
        assert_eq!(shared.get(), Ending::None);
    }

    #[test]
    fn callbacks_that_run_are_known_by_their_libraries() {
        let stop = Shutdown::new();
        let [one, other] = ["a.so", "b.so"].map(|file| Arc::new(Callbacks::new(file.into())));
        let _one = stop.watch(one.clone());
        let watched = stop.watch(other.clone());
        assert_eq!(stop.running(), []);
        one.run(|| {
            assert_eq!(stop.running(), ["a.so".into()]);
            other.run(|| {
                assert_eq!(stop.running(), ["a.so".into(), "b.so".into()]);
                drop(watched);
                assert_eq!(stop.running(), ["a.so".into()]);
            });
        });
        assert_eq!(stop.running(), []);
    }

    #[test]
    fn moments_are_spread_over_the_drain() {
        let shared = SharedEnding::new();
        shared.reset(Duration::from_secs(10));
        let mut tenths = [0; 10];
        for connection in 0..1000 {
            let moment = shared.moment(connection);
            assert!(moment < Duration::from_secs(10));
            tenths[moment.as_secs() as usize] += 1;
        }
        assert!(tenths.iter().all(|n| (50..200).contains(n)), "{tenths:?}");
        shared.reset(Duration::ZERO);
        assert_eq!(shared.moment(7), Duration::ZERO);
    }
}
