//! The service's clock: a thread that runs no callback, and so always comes to look.
//!
//! It looks a hundred times a second while there is traffic, and a few times otherwise, whether another thread is needed;
//! asks every connection's deadlines once a second; and ends them all when the child goes down.

use std::{
    io,
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use super::{BUSY_TICK, Entry, GRACE, Service};
use crate::{
    conn::log::Level,
    driver::{
        shutdown::{Ending, SharedEnding},
        signals::Pending,
    },
    limits::memory::Budget,
    metrics::Metric,
    os::{Sources, give_back_memory, wait},
};

/// How often the clock looks while there is no traffic.
pub(super) const IDLE_TICK: Duration = Duration::from_millis(250);
/// How often it looks when the child goes down, and at connections that read before they are judged.
const ENDING_TICK: Duration = Duration::from_millis(25);
/// How long traffic has to be absent before it looks less often, and how long callbacks may take before that is worth a
/// line.
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(1);
/// How often connections' deadlines are asked.
pub(super) const ROUND: Duration = Duration::from_secs(1);
/// How often the same thing is logged at most.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What the clock has seen so far.
pub(super) struct Clock {
    /// How many threads are enough where each has work.
    cores: usize,
    last_turns: u64,
    last_moved: Duration,
    next_round: Duration,
    /// It has looked since the last round, which tells of what others have changed: there will be another one.
    looked: bool,
    /// How much memory was told of last.
    told_memory: u64,
    /// When the end, and a stop, were seen first.
    ending_since: Option<Duration>,
    stopping_since: Option<Duration>,
    /// When it was logged that threads are short.
    shortage_logged: Option<Duration>,
    /// All threads are in callbacks, which has been counted.
    exhausted: bool,
    /// Connections that are to read all there is before they are judged: they are asked again soon.
    reading: Vec<Arc<Entry>>,
    next_look: Duration,
    /// Clients that were closed because too many threads waited, as far as that has been logged.
    refused_waits: Logged,
    /// And those for which there was no memory.
    refused_memory: Logged,
}

/// A count, as far as it has been logged, and told to the metrics.
#[derive(Default)]
struct Logged {
    count: u64,
    at: Option<Duration>,
    told: u64,
}

impl Logged {
    /// How many more there are, if it is time to say so.
    fn more(&mut self, count: u64, now: Duration) -> Option<u64> {
        if count == self.count || self.at.is_some_and(|then| now - then < LOG_INTERVAL) {
            return None;
        }
        self.at = Some(now);
        Some(count - core::mem::replace(&mut self.count, count))
    }

    /// How many more there are than were told.
    fn untold(&mut self, count: u64) -> u64 {
        count - core::mem::replace(&mut self.told, count)
    }
}

impl Clock {
    pub(super) fn new(now: Duration, memory: &Budget) -> Self {
        let refused = memory.refused();
        Self {
            cores: thread::available_parallelism().map_or(1, usize::from),
            last_turns: 0,
            last_moved: now,
            next_round: now + ROUND,
            looked: false,
            told_memory: 0,
            ending_since: None,
            stopping_since: None,
            shortage_logged: None,
            exhausted: false,
            reading: Vec::new(),
            next_look: now,
            refused_waits: Logged::default(),
            refused_memory: Logged { count: refused, at: None, told: refused },
        }
    }

    /// How the child ends, as seen now.
    fn look_at(&mut self, ending: &SharedEnding, now: Duration) -> Ending {
        let ending = ending.get();
        if ending != Ending::None {
            self.ending_since.get_or_insert(now);
        }
        if ending == Ending::Stop {
            self.stopping_since.get_or_insert(now);
        }
        ending
    }

    /// How long ago the child's end came to a connection: a drain comes to each at a moment of its own.
    fn since(&self, ending: &SharedEnding, entry: &Entry, now: Duration) -> Option<Duration> {
        let moment = |since: Duration| since + ending.moment(entry.token.bits());
        let come = self.ending_since.map(moment).into_iter().chain(self.stopping_since).min()?;
        now.checked_sub(come)
    }

    /// How long ago the end came to the last of all connections.
    fn since_last(&self, drain: Duration, now: Duration) -> Option<Duration> {
        let last = self.ending_since.map(|since| since + drain);
        let last = last.into_iter().chain(self.stopping_since).min()?;
        now.checked_sub(last)
    }
}

/// Why connections wait for a thread.
enum Shortage {
    /// The system gives none.
    NoThread(io::Error),
    /// There are as many as there may be, and all of them are in callbacks. Whether somebody waits is not known: nobody
    /// looks.
    Bound,
}

impl Shortage {
    /// Whether it is worth a line at once; callbacks may just be long.
    fn is_at_once(&self) -> bool {
        matches!(self, Self::NoThread(_))
    }
}

impl Service {
    /// What the clock's thread does.
    pub(super) fn keep_time(&'static self) {
        let mut clock = Clock::new(self.now(), self.memory);
        // Without it the end is seen by the thread that the signals are for, when its callback returns.
        let signals = self.elsewhere.signals.then(Pending::new).and_then(Result::ok);
        loop {
            let idle = self.threads.is_idle();
            // Once pending, they stay so.
            let signals = signals.as_ref().filter(|_| self.ending.get() < Ending::Stop);
            let waker = Some(&self.clock_waker);
            let sources =
                Sources { waker, signals: signals.map(|s| s.as_fd()), ..Sources::default() };
            let came = wait(&sources, self.until_next(&clock, idle));
            if let (Ok(came), Some(signals)) = (came, signals) {
                if came.signals {
                    self.ending.raise(signals.look());
                }
            }
            if self.threads.is_over() {
                self.count(&mut clock);
                return;
            }
            self.tick(&mut clock, idle);
        }
    }

    /// How long the clock waits until it looks again, unless it is woken: for ever if there is nothing to look at.
    pub(super) fn until_next(&self, clock: &Clock, idle: bool) -> Option<Duration> {
        if self.ending.get() != Ending::None {
            return Some(ENDING_TICK);
        }
        if !idle {
            return Some(BUSY_TICK);
        }
        if !clock.reading.is_empty() {
            return Some(ENDING_TICK);
        }
        // The last round, in which everybody was found to be gone, has been made.
        let nothing = self.connections() == 0
            && self.peak.load(Ordering::Relaxed) == 0
            && self.memory.used() == 0
            && clock.told_memory == 0
            && !clock.looked;
        let until_round = clock.next_round.saturating_sub(self.now());
        (!nothing).then_some(IDLE_TICK.min(until_round))
    }

    /// A look of the clock, before which it looked less often, or did not.
    pub(super) fn tick(&'static self, clock: &mut Clock, idle: bool) {
        let now = self.now();
        clock.looked = true;
        self.look_after_threads(clock, now, idle);
        self.log_refused(clock, now);
        let ending = clock.look_at(&self.ending, now);
        if now >= clock.next_look {
            clock.next_look = now + ENDING_TICK;
            let mut reading = core::mem::take(&mut clock.reading);
            reading.retain(|entry| entry.check(now, ending, clock.since(&self.ending, entry, now)));
            clock.reading = reading;
        }
        if now >= clock.next_round || ending != Ending::None {
            clock.next_round = now + ROUND;
            self.go_round(clock, now, ending);
        }
        if let Some(since) = clock.since_last(self.ending.drain(), now) {
            self.drained.store(true, Ordering::Relaxed);
            if since >= GRACE {
                self.overdue.store(true, Ordering::Relaxed);
                (self.elsewhere.overdue)(ending);
            }
        }
    }

    /// Sees to it that there are threads enough, and says so if there are not.
    fn look_after_threads(&'static self, clock: &mut Clock, now: Duration, idle: bool) {
        let turns = self.turns.load(Ordering::Relaxed);
        let moved = turns != clock.last_turns;
        clock.last_turns = turns;
        let stuck = now - clock.last_moved >= IDLE_AFTER;
        let shortage = self.scale(moved, clock.cores).filter(|why| stuck || why.is_at_once());
        let is_exhausted = matches!(shortage, Some(Shortage::Bound));
        if let Some(shortage) = shortage {
            if clock.shortage_logged.is_none_or(|then| now - then >= LOG_INTERVAL) {
                clock.shortage_logged = Some(now);
                self.log_shortage(&shortage);
            }
        }
        if is_exhausted && !core::mem::replace(&mut clock.exhausted, true) {
            self.line.add(Metric::ThreadsExhausted, 1);
        }
        if moved {
            clock.exhausted = false;
            clock.last_moved = now;
        } else if !idle && now - clock.last_moved > IDLE_AFTER {
            self.threads.go_idle(|| self.ready().is_empty());
        }
    }

    /// Asks all connections' deadlines, and counts what they have done.
    fn go_round(&self, clock: &mut Clock, now: Duration, ending: Ending) {
        clock.reading.clear();
        clock.looked = false;
        self.count(clock);
        let mut in_callbacks = 0;
        for entry in self.slots.all() {
            let since = clock.since(&self.ending, &entry, now);
            if since.is_some() {
                entry.go_away();
            }
            entry.count();
            in_callbacks += u64::from(entry.library().is_some());
            if entry.check(now, ending, since) {
                clock.reading.push(entry);
            }
        }
        self.line.set(Metric::ThreadsInCallbacks, in_callbacks);
        let connections = self.connections() as u64;
        if connections < self.peak.load(Ordering::Relaxed).div_ceil(2) {
            self.peak.store(connections, Ordering::Relaxed);
            give_back_memory();
        }
    }

    /// Tells the metrics what is known without a look at the connections.
    fn count(&self, clock: &mut Clock) {
        clock.told_memory = self.memory.used() as u64;
        self.line.set(Metric::Memory, clock.told_memory);
        self.line.set(Metric::ThreadsWaiting, self.waits.now() as u64);
        let waits = clock.refused_waits.untold(self.waits.refused());
        self.line.add(Metric::RefusedWaits, waits);
        let memory = clock.refused_memory.untold(self.memory.refused());
        self.line.add(Metric::RefusedMemory, memory);
    }

    /// Sees to it that a thread is there for what comes, or says why there is none. `moved`: a turn has ended since the
    /// last look.
    fn scale(&'static self, moved: bool, cores: usize) -> Option<Shortage> {
        let idle = self.threads.waiting();
        let threads = self.threads.serving();
        let stranded = self.ready().len();
        if idle > 0 {
            // A thread that waits does not see the list.
            if stranded > 0 && !moved {
                self.waker.wake();
            }
            return None;
        }
        // Everybody has been at work for a whole tick: in callbacks, each of which may be followed by another one that
        // sleeps, or because there is so much to do.
        let wanted = if !moved { stranded.max(1) } else { usize::from(threads < cores) };
        for _ in 0..wanted.min(self.bound.saturating_sub(threads)) {
            if let Err(error) = self.spawn_thread() {
                return Some(Shortage::NoThread(error));
            }
        }
        (!moved && threads >= self.bound).then_some(Shortage::Bound)
    }

    /// Says, once in a while, that clients were closed for the sake of others.
    fn log_refused(&self, clock: &mut Clock, now: Duration) {
        if let Some(more) = clock.refused_waits.more(self.waits.refused(), now) {
            let most = self.waits.most();
            self.log.write(
                Level::Warn,
                format_args!(
                    "WS0310: as many threads as may ({most}, half of WebSocketThreads) wait for clients that read slowly, in \
                     callbacks that send more than WebSocketSendQueueLimit; {more} more clients were closed with 1008"
                ),
            );
        }
        if let Some(more) = clock.refused_memory.more(self.memory.refused(), now) {
            let most = self.memory.bound();
            self.log.write(
                Level::Warn,
                format_args!(
                    "WS0312: the connections of this child hold as much as WebSocketMemoryLimit allows ({most} bytes); \
                     {more} that needed more were closed with 1013"
                ),
            );
        }
    }

    /// Says that connections wait for threads.
    #[cold]
    fn log_shortage(&self, shortage: &Shortage) {
        match shortage {
            Shortage::NoThread(error) => {
                self.log.write(
                    Level::Error,
                    format_args!("WS0308: no thread can be started for WebSockets: {error}"),
                );
            }
            Shortage::Bound => {
                self.log.write(
                    Level::Warn,
                    format_args!(
                        "WS0309: all threads ({}, see WebSocketThreads) are in callbacks that take long, and other \
                         WebSockets of this child wait",
                        self.bound
                    ),
                );
            }
        }
    }
}
