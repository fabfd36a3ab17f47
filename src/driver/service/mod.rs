//! Few threads for many connections: an idle one holds no thread and no buffer.
//!
//! All threads wait on one epoll set. Whichever gets a connection's event runs it until nothing is left, calls the
//! endpoint inline and writes once; a [`RunState`](super::run_state::RunState) keeps a second thread away from it.
//! Events fetched together go to a list that other threads take from, so none is stranded behind a callback that
//! sleeps.
//!
//! One more thread, the *clock*, never runs a callback. It looks a hundred times a second while there is traffic, and a
//! few times otherwise, whether another thread is needed, asks every connection's deadlines once a second, and ends
//! them all when the child goes down. So a callback that blocks holds one thread and its own connection, nothing else.

mod clock;
mod entry;
mod epoll;
mod slots;
#[cfg(all(test, not(loom)))]
mod tests;
mod threads;

use std::{
    collections::VecDeque,
    io,
    os::fd::AsFd as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    reader::Buffers,
    shutdown::{Ending, SharedEnding},
};
use crate::{
    conn::{log::Log, waiting::Waits},
    limits::memory::Budget,
    metrics::{Line, Metric},
    os::{AllSignals, Waker},
    sync::Lock as _,
};

pub use self::entry::{Accepted, Ended, Finished};
use self::{
    clock::IDLE_TICK,
    entry::Entry,
    epoll::{Epoll, Events, Flags},
    slots::{Slots, Token},
    threads::Threads,
};

/// How often the clock looks after the threads while there is traffic.
const BUSY_TICK: Duration = Duration::from_millis(10);
/// How long after the last Close the connections of a child that goes down may take to be gone.
const GRACE: Duration = Duration::from_millis(1500);
/// The stack of a thread that runs callbacks, as large as plugins had it on httpd's threads; it is only address space.
const STACK: usize = 8 << 20;
/// How long a thread that is not the last one waits for work before it goes.
const SURPLUS: Duration = Duration::from_secs(5);
/// How long a thread that waits keeps the memory of large messages.
const SPARE_AGE: Duration = Duration::from_secs(1);

/// What the clock does for callbacks on threads that are not the service's.
pub struct Elsewhere {
    /// The signals that end the process are held back while one runs, so the clock has to look for them.
    pub signals: bool,
    /// Called again and again when the end is overdue, with what it is: everybody's callbacks should have returned by then.
    pub overdue: Box<dyn Fn(Ending) + Send + Sync>,
}

/// What a service is started with.
pub struct Setup {
    /// The most threads it may grow to, its clock not counted.
    pub threads: usize,
    /// How long a drain may take.
    pub drain: Duration,
    /// The memory of its connections.
    pub memory: &'static Budget,
    /// Where it counts: what its connections have carried about once a second, and at the end of each.
    pub line: &'static Line,
    /// Where it says what is wrong with all of it.
    pub log: Box<dyn Log>,
    /// What else its clock looks after.
    pub elsewhere: Elsewhere,
}

/// The threads of this process and the connections they serve.
pub struct Service {
    epoll: Epoll,
    /// Wakes a thread that waits for events.
    waker: Waker,
    clock_waker: Waker,
    start: Instant,
    /// How many milliseconds a test has let pass.
    #[cfg(test)]
    skew: AtomicU64,
    /// The most threads, the clock not counted.
    bound: usize,
    slots: Slots,
    /// Connections with events that no thread has got to.
    ready: Mutex<VecDeque<Arc<Entry>>>,
    /// Connections that have more to do, but let others have their turn first.
    again: Mutex<VecDeque<Arc<Entry>>>,
    threads: Threads,
    /// Threads that wait, in callbacks, for clients that read slowly.
    waits: Waits,
    /// The memory of this process's connections.
    memory: &'static Budget,
    /// Turns that ended, for the clock to see whether anything moves: a mere count.
    turns: AtomicU64,
    /// How the child ends, if it does.
    ending: SharedEnding,
    /// The clock has seen that the end has come to all connections.
    drained: AtomicBool,
    /// The clock has seen that the end takes longer than it may.
    overdue: AtomicBool,
    elsewhere: Elsewhere,
    /// The most connections there were since memory was given back: a mere count.
    peak: AtomicU64,
    line: &'static Line,
    log: Box<dyn Log>,
    /// The threads, for the child to wait for: the code they run may be unmapped at its end.
    handles: Mutex<Vec<thread::JoinHandle<()>>>,
    clock: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Service {
    /// Starts a service with its first thread and its clock.
    pub fn start(setup: Setup) -> io::Result<&'static Self> {
        let service = Self::without_threads(setup)?;
        // Signals are for httpd's threads; ours inherit that they are blocked.
        let _blocked = AllSignals::block();
        service.spawn_thread()?;
        let clock = thread::Builder::new().name("ws-clock".into());
        let clock = clock.spawn(|| service.keep_time())?;
        *service.clock.acquire() = Some(clock);
        Ok(service)
    }

    /// A service that nobody works for.
    fn without_threads(setup: Setup) -> io::Result<&'static Self> {
        let Setup { threads, drain, memory, line, log, elsewhere } = setup;
        let ending = SharedEnding::new();
        ending.reset(drain);
        let service = Self {
            epoll: Epoll::new()?,
            waker: Waker::new()?,
            clock_waker: Waker::new()?,
            start: Instant::now(),
            #[cfg(test)]
            skew: AtomicU64::new(0),
            bound: threads.max(1),
            slots: Slots::default(),
            ready: Mutex::default(),
            again: Mutex::default(),
            threads: Threads::default(),
            waits: Waits::new(threads),
            memory,
            turns: AtomicU64::new(0),
            ending,
            drained: AtomicBool::new(false),
            overdue: AtomicBool::new(false),
            elsewhere,
            peak: AtomicU64::new(0),
            line,
            log,
            handles: Mutex::default(),
            clock: Mutex::default(),
        };
        service.epoll.add_waker(service.waker.as_fd(), Token::WAKER)?;
        // It lives as long as the process, which its threads may outlast any owner in.
        Ok(Box::leak(Box::new(service)))
    }

    /// The time, since the service began.
    fn now(&self) -> Duration {
        let now = self.start.elapsed();
        #[cfg(test)]
        let now = now + Duration::from_millis(self.skew.load(Ordering::SeqCst));
        now
    }

    /// Takes a connection over, to its end. Its first turn comes at once.
    pub fn accept(&'static self, accepted: Accepted) {
        let (entry, count) = self.slots.insert(|me, token| Entry::new(self, me, token, accepted));
        self.peak.fetch_max(count as u64, Ordering::Relaxed);
        entry.begin();
        self.note_traffic();
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.slots.len()
    }

    /// How many threads serve them now.
    pub fn threads(&self) -> usize {
        self.threads.serving()
    }

    /// The child goes down: closes all connections, spread over the time of a drain or at once. A stop overrides a drain.
    ///
    /// It returns at once, takes no lock and allocates nothing, so a signal handler may call it.
    pub fn end(&self, ending: Ending) {
        self.ending.raise(ending);
        self.clock_waker.wake();
    }

    /// Whether the child's end has come to every connection: who came now would outlive the time that the others had.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed)
    }

    /// Stops, unless it already ends.
    pub fn end_if_running(&self) {
        if self.ending.get() == Ending::None {
            self.end(Ending::Stop);
        }
    }

    /// Waits, after [`end`](Self::end), until all connections are gone, as long as a drain or a stop may take;
    /// then has the threads go. `false` if some are still at work, in a callback that does not return.
    pub fn await_end(&self) -> bool {
        while self.connections() > 0 && !self.overdue.load(Ordering::Relaxed) {
            thread::sleep(BUSY_TICK);
        }
        self.threads.end();
        self.waker.wake();
        self.clock_waker.wake();
        // The clock runs no callback, so it comes soon; without it nobody starts a thread any more.
        self.join_clock();
        let deadline = self.now() + GRACE / 5;
        while self.threads.serving() > 0 {
            let overdue = self.overdue.load(Ordering::Relaxed);
            if self.now() >= deadline || overdue && !self.running().is_empty() {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        // Those counted are gone but for their last steps.
        let handles = core::mem::take(&mut *self.handles());
        for handle in handles {
            // A panic has left its message on standard error.
            let _ = handle.join();
        }
        true
    }

    /// The libraries whose callbacks are running, one for each callback.
    pub fn running(&self) -> Vec<Arc<str>> {
        let callbacks = |entry: &Arc<Entry>| entry.library();
        self.all().iter().filter_map(callbacks).collect()
    }

    fn join_clock(&self) {
        let clock = self.clock.acquire().take();
        if let Some(clock) = clock {
            let _ = clock.join();
        }
    }

    fn handles(&self) -> MutexGuard<'_, Vec<thread::JoinHandle<()>>> {
        self.handles.acquire()
    }

    /// One more thread.
    fn spawn_thread(&'static self) -> io::Result<()> {
        self.threads.join();
        self.line.add(Metric::Threads, 1);
        let mut handles = self.handles();
        handles.retain(|handle| !handle.is_finished());
        match thread::Builder::new()
            .name("ws-service".into())
            .stack_size(STACK)
            .spawn(|| self.work())
        {
            Ok(handle) => {
                handles.push(handle);
                Ok(())
            }
            Err(error) => {
                self.threads.leave();
                self.line.sub(Metric::Threads, 1);
                Err(error)
            }
        }
    }

    /// What a serving thread does.
    fn work(&'static self) {
        self.waits.join();
        let mut buffers = Buffers::default();
        let mut events = Events::default();
        while !self.threads.is_over() {
            let timeout = match self.threads.serving() {
                2.. => Some(SURPLUS),
                _ if buffers.holds_spare() => Some(SPARE_AGE),
                _ => None,
            };
            if !self.serve(&mut buffers, &mut events, timeout) && timeout.is_some() {
                buffers.release();
                if self.threads.leave_if_surplus() {
                    self.line.sub(Metric::Threads, 1);
                    return;
                }
            }
        }
        self.line.sub(Metric::Threads, 1);
        self.threads.leave();
    }

    /// Runs a connection that is ready, or those of the next events, for which it waits `timeout` at most. `false` if there
    /// was nothing to do.
    fn serve(&self, buffers: &mut Buffers, events: &mut Events, timeout: Option<Duration>) -> bool {
        if let Some(entry) = self.next_ready() {
            self.run(&entry, buffers);
            return true;
        }
        // Who has more to do waits for one look at the others' events, not for events to come.
        let again = core::mem::take(&mut *self.again());
        let timeout = if again.is_empty() { timeout } else { Some(Duration::ZERO) };
        let fetched = self.threads.wait(|| self.epoll.wait(events, timeout));
        let Ok(fetched) = fetched else {
            // It cannot fail on a descriptor of our own; if it does all the same, not in a loop.
            thread::sleep(IDLE_TICK);
            self.ready().extend(again);
            return true;
        };
        let nothing = fetched.len() == 0 && again.is_empty();
        self.note_traffic();
        let first = self.look_up(fetched);
        if !again.is_empty() {
            self.ready().extend(again);
        }
        if let Some(first) = first {
            self.run(&first, buffers);
        }
        !nothing
    }

    /// The connections of some events: the first is returned, the others become ready.
    fn look_up(&self, fetched: impl Iterator<Item = (Token, Flags)>) -> Option<Arc<Entry>> {
        let mut first = None;
        let mut others: Option<MutexGuard<'_, _>> = None;
        let slots = self.slots.look_up();
        for (token, flags) in fetched {
            if token == Token::WAKER {
                // Left as it is, it wakes one thread after the other.
                self.threads.heed(|| self.waker.clear(), || self.waker.wake());
                continue;
            }
            let Some(entry) = slots.get(token) else { continue };
            entry.note(token.is_peer(), flags);
            if first.is_none() {
                first = Some(entry.clone());
            } else {
                others.get_or_insert_with(|| self.ready()).push_back(entry.clone());
            }
        }
        first
    }

    fn ready(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.ready.acquire()
    }

    fn again(&self) -> MutexGuard<'_, VecDeque<Arc<Entry>>> {
        self.again.acquire()
    }

    fn next_ready(&self) -> Option<Arc<Entry>> {
        self.ready().pop_front()
    }

    /// Runs a connection until it rests, unless another thread does already.
    fn run(&self, entry: &Arc<Entry>, buffers: &mut Buffers) {
        if !entry.state.begin() {
            return;
        }
        loop {
            // A panic, which is a bug, must not take the thread and its count along.
            let turn = catch_unwind(AssertUnwindSafe(|| entry.turn(buffers)));
            let more = turn.unwrap_or_else(|_| {
                entry.abandon();
                false
            });
            self.turns.fetch_add(1, Ordering::Relaxed);
            if entry.state.end() {
                if more {
                    self.again().push_back(entry.clone());
                }
                return;
            }
        }
    }

    /// There is traffic: the clock has to look after the threads.
    fn note_traffic(&self) {
        if self.threads.note_traffic() {
            self.clock_waker.wake();
        }
    }

    /// Has connections run that are to have a turn.
    pub fn run_ready(&self) {
        self.note_traffic();
        self.waker.wake();
    }

    /// Has the clock look, and tell what there is, though no connection is here: others have ended, on threads of httpd's.
    pub fn look(&self) {
        self.clock_waker.wake();
    }

    /// All connections, at this moment.
    fn all(&self) -> Vec<Arc<Entry>> {
        self.slots.all()
    }
}
