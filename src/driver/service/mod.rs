//! Few threads for many connections: an idle one holds no thread and no buffer.
//!
//! All threads wait on one epoll set. Whichever gets a connection's event runs it until nothing is left, calls the
//! endpoint inline and writes once; a [`RunWord`] keeps a second thread away from it. Events fetched together go to a
//! list that other threads take from, so none is stranded behind a callback that sleeps.
//!
//! One more thread, the *clock*, never runs a callback. It looks a hundred times a second while there is traffic, and a
//! few times otherwise, whether another thread is needed, asks every connection's clocks once a second, and ends them all
//! when the child goes down. So a callback that blocks holds one thread and its own connection, nothing else.
#![deny(unsafe_code)]

pub mod epoll;
pub mod threads;

use std::{
    collections::VecDeque,
    io,
    os::raw::c_int,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, MutexGuard, RwLock, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use self::{
    epoll::{Epoll, Events, Flags},
    threads::Threads,
};
use super::{
    blocking::{act, peer_patience},
    conn_io::Lane,
    reader::{Buffers, Heard, Outcome, Turn},
    run_state::RunWord,
    shutdown::{Ending, EndingWord},
};
use crate::{
    conn::{
        deadlines::{Clocks, Sight, Verdict},
        endpoint::{Endpoint, Readiness},
        log::{Journal, Level},
        outbox::{Carrier, Socket, State, Summary},
        session::Session,
        waiting::{Waits, begin_callback},
    },
    limits::memory::Budget,
    os::{AllSignals, Interest, Pending, Waker, discard, give_back_memory, shut_down, wait},
    proto::close::{self, CloseCode},
    settings::Patience,
};

/// The token of the descriptor that wakes a waiting thread.
const POKE: u64 = u64::MAX;
/// What a connection's token has for the events of its peer.
const PEER: u64 = 1 << 31;
/// Where [`Seated::flags`] has the flags of the peer.
const PEER_SHIFT: u32 = 16;
/// The stack of a thread that runs callbacks, as large as plugins had it on httpd's threads; it is only address space.
const STACK: usize = 8 << 20;
/// How often a lingering connection is read from before others have their turn.
const DISCARDS: u32 = 16;
/// How often the clock looks after the threads while there is traffic.
const BUSY_TICK: Duration = Duration::from_millis(10);
/// How often it looks otherwise.
const IDLE_TICK: Duration = Duration::from_millis(250);
/// How often it looks when the child goes down, and at connections that read before they are judged.
const ENDING_TICK: Duration = Duration::from_millis(25);
/// How long traffic has to be absent before the clock slows down.
const CALM: Duration = Duration::from_secs(1);
/// How often connections' clocks are asked.
const ROUND: Duration = Duration::from_secs(1);
/// How often it is said that connections wait for threads.
const COMPLAINTS: Duration = Duration::from_secs(60);
/// How long a thread that is not the last one waits for work before it goes, in milliseconds.
const SURPLUS: i32 = 5000;
/// How long a thread that waits keeps the memory of large messages, in milliseconds.
const SPARE_AGE: i32 = 1000;
/// How long a client has to close its side of the TCP connection after the conversation.
const LINGER: Duration = Duration::from_secs(2);
/// How long a client has to answer our Close when the child goes down.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_millis(700);
/// How long after the last Close the connections of a child that goes down may take to be gone.
const GRACE: Duration = Duration::from_millis(1500);

/// What the service tells of a connection when it is over.
#[derive(Clone, Copy, Debug)]
pub struct Farewell {
    /// What became of the conversation.
    pub summary: Summary,
    /// How many bytes were received on the socket.
    pub received: u64,
}

/// What a service has done so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Totals {
    /// Connections that there are now.
    pub connections: u64,
    /// Data messages received, by connections that are gone too.
    pub messages_in: u64,
    /// Data messages sent.
    pub messages_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// How often all threads there may be were in callbacks, for a second at least.
    pub threads_exhausted: u64,
    /// Connections that were closed because too many threads waited for clients already.
    pub refused_waits: u64,
    /// Connections that were closed for want of memory.
    pub refused_memory: u64,
    /// How much memory of the budget is held, in bytes.
    pub memory: u64,
}

impl Totals {
    /// What server-status calls them, in the order of [`numbers`](Self::numbers).
    pub const NAMES: [&str; 9] = [
        "Connections",
        "MessagesIn",
        "MessagesOut",
        "BytesIn",
        "BytesOut",
        "ThreadsExhausted",
        "RefusedWaits",
        "RefusedMemory",
        "Memory",
    ];

    /// All of them.
    pub fn numbers(&self) -> [u64; Self::NAMES.len()] {
        [
            self.connections,
            self.messages_in,
            self.messages_out,
            self.bytes_in,
            self.bytes_out,
            self.threads_exhausted,
            self.refused_waits,
            self.refused_memory,
            self.memory,
        ]
    }
}

/// Who wants to know, about once a second while there are connections: the number of threads, and the totals.
pub type Report = Box<dyn Fn(usize, &Totals) + Send + Sync>;

/// What is done when a conversation is over and `closed` of its endpoint has returned: the access log is written.
pub type Ended = Box<dyn FnOnce(&Farewell) + Send>;

/// What the clock does for callbacks on threads that are not the service's.
pub struct Elsewhere {
    /// The signals that end the process are held back while one runs, so the clock has to look for them.
    pub signals: bool,
    /// Called again and again when the end is overdue, with what it is: everybody's callbacks should have returned by then.
    pub overdue: Box<dyn Fn(Ending) + Send + Sync>,
}

/// A connection that is handed to the service.
pub struct Guest {
    /// Its bytes.
    pub lane: Lane,
    /// What it has been told so far.
    pub session: Session,
    /// What its messages are for.
    pub endpoint: Box<dyn Endpoint>,
    /// How long it waits for what.
    pub patience: Patience,
    /// What is done at its end.
    pub ended: Ended,
}

/// The threads of this process and the connections they serve.
pub struct Service {
    epoll: Epoll,
    poke: Waker,
    /// Wakes the clock.
    alarm: Waker,
    start: Instant,
    /// How many milliseconds a test has let pass.
    #[cfg(test)]
    skew: AtomicU64,
    /// The most threads, the clock not counted.
    bound: usize,
    seats: RwLock<Seats>,
    /// Connections with events that no thread has got to.
    ready: Mutex<VecDeque<Arc<Seated>>>,
    /// Connections that have more to do, but let others have their turn first.
    again: Mutex<VecDeque<Arc<Seated>>>,
    threads: Threads,
    /// Threads that wait, in callbacks, for clients that read slowly.
    waits: Waits,
    /// The memory of this process's connections.
    memory: &'static Budget,
    /// Turns that ended, for the clock to see whether anything moves: a mere count.
    turns: AtomicU64,
    /// How the child ends, if it does.
    ending: EndingWord,
    /// The clock has seen that the end has come to all connections.
    drained: AtomicBool,
    /// The clock has seen that the end takes longer than it may.
    overdue: AtomicBool,
    elsewhere: Elsewhere,
    /// The most connections there were since memory was given back: a mere count.
    peak: AtomicU64,
    /// What connections that are gone have done.
    past: Mutex<Totals>,
    report: Report,
    journal: Box<dyn Journal>,
    /// The threads, for the child to wait for: the code they run may be unmapped at its end.
    handles: Mutex<Vec<thread::JoinHandle<()>>>,
    clock: Mutex<Option<thread::JoinHandle<()>>>,
}

/// What the clock has seen so far.
struct Clock {
    /// How many threads are enough where each has work.
    cores: usize,
    last_turns: u64,
    last_moved: Duration,
    next_round: Duration,
    /// When the end, and a stop, were seen first.
    ending_since: Option<Duration>,
    stopping_since: Option<Duration>,
    complained: Option<Duration>,
    /// All threads are in callbacks, which has been counted.
    exhausted: bool,
    /// Connections that were to read all there is before they are judged: they are asked again soon.
    listening: Vec<Arc<Seated>>,
    next_listen: Duration,
    /// What has been said of clients that were closed because too many threads waited.
    refused_waits: Told,
    /// And of those for which there was no memory.
    refused_memory: Told,
}

/// A count that is told of once in a while.
#[derive(Default)]
struct Told {
    count: u64,
    at: Option<Duration>,
}

impl Told {
    /// How many more there are than was told last, if it is time to tell.
    fn more(&mut self, count: u64, now: Duration) -> Option<u64> {
        if count == self.count || self.at.is_some_and(|then| now - then < COMPLAINTS) {
            return None;
        }
        self.at = Some(now);
        Some(count - core::mem::replace(&mut self.count, count))
    }
}

impl Clock {
    fn new(now: Duration, memory: &Budget) -> Self {
        Self {
            cores: thread::available_parallelism().map_or(1, usize::from),
            last_turns: 0,
            last_moved: now,
            next_round: now + ROUND,
            ending_since: None,
            stopping_since: None,
            complained: None,
            exhausted: false,
            listening: Vec::new(),
            next_listen: now,
            refused_waits: Told::default(),
            refused_memory: Told { count: memory.refused(), at: None },
        }
    }

    /// How the child ends, as seen now.
    fn look_at(&mut self, word: &EndingWord, now: Duration) -> Ending {
        let ending = word.get();
        if ending != Ending::None {
            self.ending_since.get_or_insert(now);
        }
        if ending == Ending::Stop {
            self.stopping_since.get_or_insert(now);
        }
        ending
    }

    /// How long ago the child's end came to a connection: a drain comes to each at a moment of its own.
    fn since(&self, word: &EndingWord, connection: u64, now: Duration) -> Option<Duration> {
        let moment = |since: Duration| since + word.moment(connection);
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
enum Complaint {
    /// The system gives none.
    NoThread(io::Error),
    /// There are as many as there may be, and all of them are in callbacks. Whether somebody waits is not known: nobody looks.
    Bound,
}

impl Complaint {
    /// Whether it is worth a line at once; callbacks may just be long.
    fn is_at_once(&self) -> bool {
        matches!(self, Self::NoThread(_))
    }
}

/// Where connections have their numbers.
#[derive(Default)]
struct Seats {
    seats: Vec<Seat>,
    free: Vec<u32>,
    taken: usize,
}

#[derive(Default)]
struct Seat {
    /// How often the seat was taken: an event for an earlier guest finds another number.
    generation: u32,
    guest: Option<Arc<Seated>>,
}

/// A connection in the service.
struct Seated {
    service: &'static Service,
    me: Weak<Self>,
    token: u64,
    word: RunWord,
    /// Readiness that no turn has seen, as [`Flags`] in bits; that of the peer is in the upper half. It is stored before
    /// `word` is asked to run, which orders it.
    flags: AtomicU32,
    /// What came since the clocks were asked last: bit 0 bytes, bit 1 messages; bit 2: all there was has been read. One
    /// word, which nothing else hangs on.
    heard: AtomicU8,
    lane: Lane,
    endpoint: Box<dyn Endpoint>,
    patience: Patience,
    clocks: Mutex<Clocks>,
    phase: Mutex<Phase>,
    /// `Some` until the end.
    ended: Mutex<Option<Ended>>,
}

/// How far a connection has come with us; taken out by the thread that runs it.
enum Phase {
    /// The conversation goes on.
    Talking(Box<Turn>),
    /// It is over, and the client has until then to close its side.
    Lingering(Duration),
    /// A thread has taken it out.
    Running,
    /// Nothing is left to do.
    Gone,
}

impl Service {
    /// Starts a service with its first thread and its clock; `bound` is the most threads it may grow to, `drain` how
    /// long a drain may take, `memory` is the connections' budget, and `journal` where it complains.
    pub fn start(
        bound: usize,
        drain: Duration,
        memory: &'static Budget,
        report: Report,
        journal: Box<dyn Journal>,
        elsewhere: Elsewhere,
    ) -> io::Result<&'static Self> {
        let service = Self::without_threads(bound, drain, memory, report, journal, elsewhere)?;
        // Signals are for httpd's threads; ours inherit that they are blocked.
        let _blocked = AllSignals::block();
        service.hire()?;
        let clock = thread::Builder::new().name("ws-clock".into());
        let clock = clock.spawn(|| service.keep_time())?;
        *service.clock.lock().unwrap_or_else(|e| e.into_inner()) = Some(clock);
        Ok(service)
    }

    /// A service that nobody works for.
    fn without_threads(
        bound: usize,
        drain: Duration,
        memory: &'static Budget,
        report: Report,
        journal: Box<dyn Journal>,
        elsewhere: Elsewhere,
    ) -> io::Result<&'static Self> {
        let ending = EndingWord::new();
        ending.reset(drain);
        let service = Self {
            epoll: Epoll::new()?,
            poke: Waker::new()?,
            alarm: Waker::new()?,
            start: Instant::now(),
            #[cfg(test)]
            skew: AtomicU64::new(0),
            bound: bound.max(1),
            seats: RwLock::default(),
            ready: Mutex::default(),
            again: Mutex::default(),
            threads: Threads::default(),
            waits: Waits::new(bound),
            memory,
            turns: AtomicU64::new(0),
            ending,
            drained: AtomicBool::new(false),
            overdue: AtomicBool::new(false),
            elsewhere,
            peak: AtomicU64::new(0),
            past: Mutex::default(),
            report,
            journal,
            handles: Mutex::default(),
            clock: Mutex::default(),
        };
        service.epoll.add_waker(service.poke.descriptor(), POKE)?;
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
    pub fn adopt(&'static self, guest: Guest) {
        let Guest { lane, session, endpoint, patience, ended } = guest;
        let outbox = lane.outbox.clone();
        let turn = Box::new(Turn::new(session));
        let seated = self.seat(|me, token| Seated {
            service: self,
            me,
            token,
            word: RunWord::default(),
            flags: AtomicU32::new(0),
            heard: AtomicU8::new(0),
            lane,
            endpoint,
            patience,
            clocks: Mutex::new(Clocks::new(self.now())),
            phase: Mutex::new(Phase::Talking(turn)),
            ended: Mutex::new(Some(ended)),
        });
        let carrier: Weak<dyn Carrier> = seated.me.clone();
        outbox.open(carrier);
        outbox.disown(&mut Vec::new());
        // A socket that can be written to is ready at once, so the first turn needs nothing more. That turn, on another
        // thread, may be the last one too: what is done with the client's descriptor afterwards is its business.
        let watched = self.epoll.add(seated.lane.descriptor(), seated.token).and_then(|()| {
            let peer = seated.endpoint.peer();
            peer.map_or(Ok(()), |p| self.epoll.add(p.descriptor(), seated.token | PEER))
        });
        if let Err(error) = watched {
            outbox.journal().write(
                Level::Error,
                format_args!("WS0304: the connection cannot be watched: {error}"),
            );
            outbox.end("the connection cannot be watched");
            seated.wake();
        }
        self.note_traffic();
    }

    /// How many connections there are.
    pub fn guests(&self) -> usize {
        self.seats.read().unwrap_or_else(|e| e.into_inner()).taken
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
        self.alarm.wake();
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
        while self.guests() > 0 && !self.overdue.load(Ordering::Relaxed) {
            thread::sleep(BUSY_TICK);
        }
        self.threads.end();
        self.poke.wake();
        self.alarm.wake();
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
        let callbacks = |guest: &Arc<Seated>| guest.endpoint.callbacks()?.running();
        self.all().iter().filter_map(callbacks).collect()
    }

    fn join_clock(&self) {
        let clock = self.clock.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(clock) = clock {
            let _ = clock.join();
        }
    }

    fn handles(&self) -> MutexGuard<'_, Vec<thread::JoinHandle<()>>> {
        self.handles.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn seat(&self, make: impl FnOnce(Weak<Seated>, u64) -> Seated) -> Arc<Seated> {
        let mut seats = self.seats.write().unwrap_or_else(|e| e.into_inner());
        let index = seats.free.pop().unwrap_or(seats.seats.len() as u32);
        if index as usize == seats.seats.len() {
            seats.seats.push(Seat::default());
        }
        seats.taken += 1;
        self.peak.fetch_max(seats.taken as u64, Ordering::Relaxed);
        let seat = &mut seats.seats[index as usize];
        seat.generation = seat.generation.wrapping_add(1);
        let token = (u64::from(seat.generation) << 32) | u64::from(index);
        let seated = Arc::new_cyclic(|me| make(me.clone(), token));
        seat.guest = Some(seated.clone());
        seated
    }

    /// Frees a connection's seat.
    fn unseat(&self, token: u64) {
        let mut seats = self.seats.write().unwrap_or_else(|e| e.into_inner());
        let index = token as u32;
        let seat = &mut seats.seats[index as usize];
        let guest = seat.guest.take();
        seats.free.push(index);
        seats.taken -= 1;
        drop(seats);
        drop(guest);
    }

    /// One more thread.
    fn hire(&'static self) -> io::Result<()> {
        self.threads.join();
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
                2.. => SURPLUS,
                _ if buffers.holds_spare() => SPARE_AGE,
                _ => -1,
            };
            if !self.serve(&mut buffers, &mut events, timeout) && timeout > 0 {
                buffers.release();
                if self.threads.leave_if_surplus() {
                    return;
                }
            }
        }
        self.threads.leave();
    }

    /// Runs a connection that is ready, or those of the next events, for which it waits `timeout` milliseconds at most (-1:
    /// for ever). `false` if there was nothing to do.
    fn serve(&self, buffers: &mut Buffers, events: &mut Events, timeout: c_int) -> bool {
        if let Some(seated) = self.next_ready() {
            self.run(&seated, buffers);
            return true;
        }
        // Who has more to do waits for one look at the others' events, not for events to come.
        let again = core::mem::take(&mut *self.again());
        let timeout = if again.is_empty() { timeout } else { 0 };
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
    fn look_up(&self, fetched: impl Iterator<Item = (u64, Flags)>) -> Option<Arc<Seated>> {
        let mut first = None;
        let mut others: Option<MutexGuard<'_, _>> = None;
        let seats = self.seats.read().unwrap_or_else(|e| e.into_inner());
        for (token, flags) in fetched {
            if token == POKE {
                // Left as it is, it wakes one thread after the other.
                self.threads.heed(|| self.poke.clear(), || self.poke.wake());
                continue;
            }
            let (token, shift) = (token & !PEER, if token & PEER == 0 { 0 } else { PEER_SHIFT });
            let seat = seats.seats.get(token as u32 as usize);
            let guest = seat.filter(|seat| seat.generation == (token >> 32) as u32);
            let Some(guest) = guest.and_then(|seat| seat.guest.as_ref()) else { continue };
            guest.flags.fetch_or(flags.bits() << shift, Ordering::Relaxed);
            if first.is_none() {
                first = Some(guest.clone());
            } else {
                others.get_or_insert_with(|| self.ready()).push_back(guest.clone());
            }
        }
        first
    }

    fn ready(&self) -> MutexGuard<'_, VecDeque<Arc<Seated>>> {
        self.ready.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn again(&self) -> MutexGuard<'_, VecDeque<Arc<Seated>>> {
        self.again.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn next_ready(&self) -> Option<Arc<Seated>> {
        self.ready().pop_front()
    }

    /// Runs a connection until it rests, unless another thread does already.
    fn run(&self, seated: &Arc<Seated>, buffers: &mut Buffers) {
        if !seated.word.begin() {
            return;
        }
        loop {
            // A panic, which is a bug, must not take the thread and its count along.
            let turn = catch_unwind(AssertUnwindSafe(|| seated.turn(buffers)));
            let more = turn.unwrap_or_else(|_| {
                seated.abandon();
                false
            });
            self.turns.fetch_add(1, Ordering::Relaxed);
            if seated.word.end() {
                if more {
                    self.again().push_back(seated.clone());
                }
                return;
            }
        }
    }

    /// There is traffic: the clock has to look after the threads.
    fn note_traffic(&self) {
        if self.threads.note_traffic() {
            self.alarm.wake();
        }
    }

    /// Has the clock look, and tell what there is, though no connection is here: others have ended, on threads of httpd's.
    pub fn look(&self) {
        self.alarm.wake();
    }

    /// What the clock does.
    fn keep_time(&'static self) {
        let mut clock = Clock::new(self.now(), self.memory);
        // Without it the end is seen by the thread that the signals are for, when its callback returns.
        let signals = self.elsewhere.signals.then(Pending::new).and_then(Result::ok);
        loop {
            let calm = self.threads.is_calm();
            let until_round = clock.next_round.saturating_sub(self.now());
            let tick = match (self.ending.get(), calm) {
                (Ending::None, true) if !clock.listening.is_empty() => Some(ENDING_TICK),
                // The last round, in which everybody was found to be gone, has been made.
                (Ending::None, true)
                    if self.guests() == 0
                        && self.peak.load(Ordering::Relaxed) == 0
                        && self.memory.used() == 0 =>
                {
                    None
                }
                (Ending::None, true) => Some(IDLE_TICK.min(until_round)),
                (Ending::None, false) => Some(BUSY_TICK),
                _ => Some(ENDING_TICK),
            };
            let nothing = Interest { read: false, write: false };
            // Once pending, they stay so.
            let signals = signals.as_ref().filter(|_| self.ending.get() < Ending::Stop);
            if let Ok(ready) = wait(-1, nothing, Some(&self.alarm), tick, signals) {
                self.ending.raise(ready.ending);
            }
            if self.threads.is_over() {
                return;
            }
            self.tick(&mut clock, calm);
        }
    }

    /// A look of the clock, which was slow before it, or was not.
    fn tick(&'static self, clock: &mut Clock, calm: bool) {
        let now = self.now();
        let turns = self.turns.load(Ordering::Relaxed);
        let moved = turns != clock.last_turns;
        clock.last_turns = turns;
        let stuck = now - clock.last_moved >= CALM;
        let complaint = self.staff(moved, clock.cores).filter(|why| stuck || why.is_at_once());
        let is_exhausted = matches!(complaint, Some(Complaint::Bound));
        let complains =
            |_: &Complaint| clock.complained.is_none_or(|then| now - then >= COMPLAINTS);
        if let Some(complaint) = complaint.filter(complains) {
            clock.complained = Some(now);
            self.complain(&complaint);
        }
        if is_exhausted && !core::mem::replace(&mut clock.exhausted, true) {
            self.past().threads_exhausted += 1;
        }
        self.tell_refused(clock, now);
        if moved {
            clock.exhausted = false;
            clock.last_moved = now;
        } else if !calm && now - clock.last_moved > CALM {
            self.threads.calm_down(|| self.ready().is_empty());
        }
        let ending = clock.look_at(&self.ending, now);
        if now >= clock.next_listen {
            let mut listening = core::mem::take(&mut clock.listening);
            listening.retain(|guest| {
                guest.check(now, ending, clock.since(&self.ending, guest.token, now))
            });
            clock.listening = listening;
            clock.next_listen = now + ENDING_TICK;
        }
        if now >= clock.next_round || ending != Ending::None {
            clock.next_round = now + ROUND;
            clock.listening.clear();
            let mut totals = *self.past();
            totals.refused_waits = self.waits.refused();
            totals.refused_memory = self.memory.refused();
            totals.memory = self.memory.used() as u64;
            for guest in self.all() {
                let since = clock.since(&self.ending, guest.token, now);
                if since.is_some() {
                    let payload = close::payload(CloseCode::GOING_AWAY);
                    guest.lane.outbox.close(&payload, "the server stops");
                }
                guest.add_to(&mut totals);
                if guest.check(now, ending, since) {
                    clock.listening.push(guest);
                }
            }
            (self.report)(self.threads.serving(), &totals);
            let peak = self.peak.load(Ordering::Relaxed);
            if totals.connections < peak.div_ceil(2) {
                self.peak.store(totals.connections, Ordering::Relaxed);
                give_back_memory();
            }
        }
        if let Some(since) = clock.since_last(self.ending.drain(), now) {
            self.drained.store(true, Ordering::Relaxed);
            if since >= GRACE {
                self.overdue.store(true, Ordering::Relaxed);
                (self.elsewhere.overdue)(ending);
            }
        }
    }

    /// Sees to it that a thread is there for what comes, or says why there is none. `moved`: a turn has ended since the last
    /// look.
    fn staff(&'static self, moved: bool, cores: usize) -> Option<Complaint> {
        let idle = self.threads.waiting();
        let threads = self.threads.serving();
        let stranded = self.ready().len();
        if idle > 0 {
            // A thread that waits does not see the list.
            if stranded > 0 && !moved {
                self.poke.wake();
            }
            return None;
        }
        // Everybody has been at work for a whole tick: in callbacks, each of which may be followed by another one that
        // sleeps, or because there is so much to do.
        let wanted = if !moved { stranded.max(1) } else { usize::from(threads < cores) };
        for _ in 0..wanted.min(self.bound.saturating_sub(threads)) {
            if let Err(error) = self.hire() {
                return Some(Complaint::NoThread(error));
            }
        }
        (!moved && threads >= self.bound).then_some(Complaint::Bound)
    }

    /// Says, once in a while, that clients were closed for the sake of others.
    fn tell_refused(&self, clock: &mut Clock, now: Duration) {
        if let Some(more) = clock.refused_waits.more(self.waits.refused(), now) {
            let most = self.waits.most();
            self.journal.write(
                Level::Warn,
                format_args!(
                    "WS0310: as many threads as may ({most}, half of WebSocketThreads) wait for clients that read slowly, in \
                     callbacks that send more than WebSocketSendQueueLimit; {more} more clients were closed with 1008"
                ),
            );
        }
        if let Some(more) = clock.refused_memory.more(self.memory.refused(), now) {
            let most = self.memory.bound();
            self.journal.write(
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
    fn complain(&self, complaint: &Complaint) {
        match complaint {
            Complaint::NoThread(error) => {
                self.journal.write(
                    Level::Error,
                    format_args!("WS0308: no thread can be started for WebSockets: {error}"),
                );
            }
            Complaint::Bound => {
                self.journal.write(
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

    fn past(&self) -> MutexGuard<'_, Totals> {
        self.past.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn add_to_past(&self, Farewell { summary, received }: &Farewell) {
        let mut past = self.past();
        past.messages_in += summary.messages_in;
        past.messages_out += summary.messages_out;
        past.bytes_in += received;
        past.bytes_out += summary.bytes_out;
    }

    /// All connections, at this moment.
    fn all(&self) -> Vec<Arc<Seated>> {
        let seats = self.seats.read().unwrap_or_else(|e| e.into_inner());
        seats.seats.iter().filter_map(|seat| seat.guest.clone()).collect()
    }
}

impl Carrier for Seated {
    fn wake(&self) {
        let Some(me) = self.me.upgrade() else { return };
        self.service.ready().push_back(me);
        self.service.note_traffic();
        self.service.poke.wake();
    }

    fn pump(&self, deadline: Instant) {
        self.lane.pump(deadline);
    }

    fn socket(&self) -> Option<&dyn Socket> {
        self.lane.socket.as_deref().map(|socket| socket as &dyn Socket)
    }
}

impl Seated {
    /// Runs a turn; `true` if there is more to do at once.
    fn turn(&self, buffers: &mut Buffers) -> bool {
        let flags = self.flags.swap(0, Ordering::Relaxed);
        if flags >> PEER_SHIFT != 0 {
            self.note_peer(Flags::from_bits(flags >> PEER_SHIFT));
        }
        let flags = Flags::from_bits(flags);
        match self.set_phase(Phase::Running) {
            Phase::Talking(mut turn) => {
                let outbox = &*self.lane.outbox;
                outbox.own();
                outbox.lend(&mut buffers.output);
                let ready = (flags.readable(), flags.to_the_end());
                let outcome = turn.run(&self.lane, &*self.endpoint, ready, buffers);
                outbox.disown(&mut buffers.output);
                let heard = turn.heard();
                let bits = u8::from(heard.bytes)
                    | (u8::from(heard.message) << 1)
                    | (u8::from(heard.all) << 2);
                if self.heard.load(Ordering::Relaxed) | bits != self.heard.load(Ordering::Relaxed) {
                    self.heard.fetch_or(bits, Ordering::Relaxed);
                }
                match outcome {
                    Ok(Outcome::Rest { write, .. }) => {
                        self.set_phase(Phase::Talking(turn));
                        // Where others cannot write, they wake us from now on; what they queued before is ours.
                        return self.lane.socket.is_none() && !outbox.fall_asleep(write);
                    }
                    Ok(Outcome::Again) => {
                        self.set_phase(Phase::Talking(turn));
                        return true;
                    }
                    Ok(Outcome::Over) => return self.finish(&turn, false, buffers),
                    Err(error) => {
                        outbox.journal().write(
                            Level::Info,
                            format_args!("WS0302: the connection is lost: {error}"),
                        );
                        return self.finish(&turn, true, buffers);
                    }
                }
            }
            Phase::Lingering(until) => return self.linger(until, buffers),
            Phase::Running | Phase::Gone => {
                self.set_phase(Phase::Gone);
            }
        }
        false
    }

    /// Tells the endpoint what its peer's socket is ready for.
    #[cold]
    fn note_peer(&self, flags: Flags) {
        if let Some(peer) = self.endpoint.peer() {
            let (read, write, to_the_end) =
                (flags.readable(), flags.writable(), flags.to_the_end());
            peer.note(Readiness { read, write, to_the_end });
        }
    }

    /// Adds what a connection whose conversation goes on has done.
    fn add_to(&self, totals: &mut Totals) {
        totals.connections += 1;
        if let Phase::Talking(turn) = &*self.phase.lock().unwrap_or_else(|e| e.into_inner()) {
            let summary = self.lane.outbox.summary();
            totals.messages_in += summary.messages_in;
            totals.messages_out += summary.messages_out;
            totals.bytes_in += self.lane.received(turn.received());
            totals.bytes_out += summary.bytes_out;
        }
    }

    fn set_phase(&self, phase: Phase) -> Phase {
        core::mem::replace(&mut *self.phase.lock().unwrap_or_else(|e| e.into_inner()), phase)
    }

    /// The conversation is over.
    fn finish(&self, turn: &Turn, lost: bool, buffers: &mut Buffers) -> bool {
        self.lane.outbox.end("the connection is over");
        self.tell_end(self.lane.received(turn.received()));
        if !lost {
            self.lane.end_output();
            return self.linger(self.service.now() + LINGER, buffers);
        }
        self.leave();
        false
    }

    /// Tells the endpoint, the totals and the access log of the end, unless they have heard of it.
    fn tell_end(&self, received: u64) {
        let ended = self.ended.lock().unwrap_or_else(|e| e.into_inner()).take();
        let Some(ended) = ended else { return };
        // If one of them panics the others hear of it all the same.
        begin_callback();
        let closed = catch_unwind(AssertUnwindSafe(|| self.endpoint.closed()));
        let farewell = Farewell { summary: self.lane.outbox.summary(), received };
        self.service.add_to_past(&farewell);
        ended(&farewell);
        if let Err(panic) = closed {
            resume_unwind(panic);
        }
    }

    /// Reads what the client still sends, to nobody, until it ends the stream: closing before that could make
    /// the kernel drop our last bytes (RFC 9112 §9.6). `true` if there is more to read.
    fn linger(&self, until: Duration, buffers: &mut Buffers) -> bool {
        let descriptor = self.lane.descriptor();
        let mut discards = 0;
        // Throws away what the peer sends, too.
        let parted = self.endpoint.peer().is_none_or(|peer| peer.farewell(&mut buffers.input));
        while self.service.ending.get() != Ending::Stop && self.service.now() < until {
            match discard(descriptor, &mut buffers.input) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.set_phase(Phase::Lingering(until));
                    return false;
                }
                Ok(1..) if discards == DISCARDS => {
                    self.set_phase(Phase::Lingering(until));
                    return true;
                }
                Ok(1..) => discards += 1,
                Ok(0) | Err(_) if !parted => {
                    self.set_phase(Phase::Lingering(until));
                    return false;
                }
                Ok(0) | Err(_) => break,
            }
        }
        self.leave();
        false
    }

    /// A turn has panicked, which is a bug of ours: the connection is dropped where it stands. Its endpoint and the access
    /// log hear of it all the same, unless they have.
    fn abandon(&self) {
        let outbox = &*self.lane.outbox;
        outbox.end("an internal error");
        if matches!(self.set_phase(Phase::Gone), Phase::Gone) {
            return;
        }
        outbox.journal().write(
            Level::Error,
            format_args!("WS0306: the connection is dropped after an internal error"),
        );
        let last = AssertUnwindSafe(|| self.tell_end(self.lane.received(0)));
        // What panics again has said so.
        let _ = catch_unwind(last);
        shut_down(self.lane.descriptor());
        self.leave();
    }

    /// Nothing is left to do. The descriptor is closed with the last reference.
    fn leave(&self) {
        self.set_phase(Phase::Gone);
        self.service.epoll.remove(self.lane.descriptor());
        self.service.unseat(self.token);
    }

    /// Asks the clocks. Called by the clock thread, which must not be held up by a callback. `since`: how long ago the child's
    /// end came to this connection. `true` if it reads what there is now, and should be asked again then.
    fn check(&self, now: Duration, ending: Ending, since: Option<Duration>) -> bool {
        let (mut unfinished, mut running) = (None, false);
        let lingers = match &*self.phase.lock().unwrap_or_else(|e| e.into_inner()) {
            Phase::Lingering(until) => Some(ending == Ending::Stop || *until <= now),
            Phase::Talking(turn) => {
                unfinished = turn.unfinished();
                None
            }
            Phase::Running => {
                // Nobody reads while a callback runs, so the client cannot be blamed for its silence.
                self.heard.fetch_or(0b11, Ordering::Relaxed);
                running = true;
                // On its way to the end it needs no clock.
                (self.lane.outbox.state() == State::Closed).then_some(false)
            }
            Phase::Gone => Some(false),
        };
        if let Some(leave) = lingers {
            if leave {
                self.wake();
            }
            return false;
        }
        let outbox = &*self.lane.outbox;
        let bits = self.heard.swap(0, Ordering::Relaxed);
        let (bytes, message, all) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let mut heard = Heard { bytes, message, all };
        let (state, mut summary, unsent) = outbox.look();
        if let Some(peer) = self.endpoint.peer() {
            if peer.check(now, peer_patience(&self.patience, since)) {
                self.wake();
            }
            // Nothing is expected of the client while the peer gets the rest.
            if state == State::Closed && !unsent {
                return false;
            }
            // Who is not read from cannot be blamed for its silence.
            heard.bytes |= state <= State::Open && peer.is_crowded();
        }
        let arrived = if unsent { self.lane.arrived(summary.bytes_out) } else { None };
        summary.bytes_out = arrived.unwrap_or(summary.bytes_out);
        let (mut patience, stopping) = (self.patience, since.is_some());
        if stopping {
            patience.close = Some(patience.close.map_or(STOP_TIMEOUT, |p| p.min(STOP_TIMEOUT)));
        }
        let (unsent, hurry) = (arrived.is_some(), stopping);
        let sight = Sight { now, state, heard, summary, unsent, unfinished, running, hurry };
        let mut clocks = self.clocks.lock().unwrap_or_else(|e| e.into_inner());
        let verdict = clocks.check(&sight, &patience);
        let listening = clocks.is_listening();
        drop(clocks);
        if verdict == Verdict::Listen {
            self.flags.fetch_or(Flags::READABLE.bits(), Ordering::Relaxed);
            self.wake();
        }
        if let Err(error) = act(verdict, outbox) {
            outbox
                .journal()
                .write(Level::Info, format_args!("WS0302: the connection is lost: {error}"));
            outbox.end("the client is given up");
            // The thread that runs it, or the next one, meets the end of the stream. The descriptor is open as long as the
            // transport, which is ours.
            shut_down(self.lane.descriptor());
        }
        listening
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
        sync::atomic::AtomicUsize,
    };

    use super::*;
    use crate::{
        conn::outbox::Outbox,
        driver::plain::{self, Early, Plain},
        fakes::{
            Log, Read, Recorder, StuckPeer, Watched, Wire, from_client, from_us, outbox, session,
        },
        limits::memory::UNLIMITED,
        proto::{Kind, frame::Opcode},
    };

    const QUEUE: usize = 1000;
    /// No clock but those of the child's end.
    const PATIENCE: Patience = Patience {
        ping: None,
        idle: None,
        close: Some(Duration::from_secs(5)),
        message: None,
        stall: Duration::from_secs(60),
    };

    /// There is no other thread.
    fn nowhere() -> Elsewhere {
        Elsewhere { signals: false, overdue: Box::new(|_| ()) }
    }

    /// A service whose one thread and whose clock are the test.
    struct Alone {
        service: &'static Service,
        clock: Clock,
        log: Log,
        reports: Arc<Watched<Vec<(usize, Totals)>>>,
        /// What it was told of an end that takes too long.
        overdue: Arc<Watched<Vec<Ending>>>,
    }

    /// A connection in it.
    struct Guested {
        wire: Wire,
        outbox: Arc<Outbox>,
        recorder: Recorder,
        log: Log,
        farewells: Arc<Watched<Vec<Farewell>>>,
        seated: Arc<Seated>,
    }

    impl Alone {
        fn new(drain: Duration) -> Self {
            let (log, reports) = (Log::default(), Arc::new(Watched::default()));
            let kept: Arc<Watched<Vec<_>>> = reports.clone();
            let report =
                Box::new(move |n, totals: &Totals| kept.change(|kept| kept.push((n, *totals))));
            let overdue: Arc<Watched<Vec<Ending>>> = Arc::default();
            let told = overdue.clone();
            let tell = move |ending| told.change(|told| told.push(ending));
            let elsewhere = Elsewhere { signals: false, overdue: Box::new(tell) };
            let journal = Box::new(log.clone());
            let service =
                Service::without_threads(1, drain, &UNLIMITED, report, journal, elsewhere);
            let service = service.unwrap();
            // One thread, which waits whenever the clock looks.
            service.threads.join();
            let clock = Clock::new(service.now(), service.memory);
            Self { service, clock, log, reports, overdue }
        }

        /// Does what there is to do.
        fn work(&self) {
            let (mut buffers, mut events) = (Buffers::default(), Events::default());
            while self.service.serve(&mut buffers, &mut events, 0) {}
        }

        /// Lets time pass, and then the clock look.
        fn pass(&mut self, time: Duration) {
            self.service.skew.fetch_add(time.as_millis() as u64, Ordering::SeqCst);
            self.service.threads.wait(|| self.service.tick(&mut self.clock, false));
            self.work();
        }

        fn adopt(&self, make: impl FnOnce(&Arc<Outbox>) -> Recorder) -> Guested {
            self.adopt_with(make, |_| ())
        }

        fn adopt_with(
            &self,
            make: impl FnOnce(&Arc<Outbox>) -> Recorder,
            ended: impl Fn(&Farewell) + Send + 'static,
        ) -> Guested {
            let wire = Wire::new();
            let (lane, outbox, log) = wire.lane(QUEUE);
            let (recorder, farewells) = (make(&outbox), Arc::new(Watched::default()));
            let kept: Arc<Watched<Vec<Farewell>>> = farewells.clone();
            self.service.adopt(Guest {
                lane,
                session: session(),
                endpoint: Box::new(recorder.clone()),
                patience: PATIENCE,
                ended: Box::new(move |farewell| {
                    kept.change(|kept| kept.push(*farewell));
                    ended(farewell);
                }),
            });
            let all = self.service.all();
            let seated = all.iter().find(|seated| Arc::ptr_eq(&seated.lane.outbox, &outbox));
            let seated = seated.unwrap().clone();
            drop(all);
            self.work();
            Guested { wire, outbox, recorder, log, farewells, seated }
        }

        fn echo(&self) -> Guested {
            self.adopt(Recorder::echo)
        }
    }

    impl Guested {
        /// It has been ended as it should: once, and nothing of it is left.
        #[track_caller]
        fn assert_ended(self, alone: &Alone, code: CloseCode) -> Farewell {
            let farewells = self.farewells.change(core::mem::take);
            assert_eq!((farewells.len(), self.recorder.closed()), (1, 1));
            assert_eq!(farewells[0].summary.code, code);
            assert_eq!(self.outbox.state(), State::Closed);
            assert!(matches!(*self.seated.phase.lock().unwrap(), Phase::Gone));
            assert!(!alone.service.all().iter().any(|other| Arc::ptr_eq(other, &self.seated)));
            assert_eq!(Arc::strong_count(&self.seated), 1);
            drop(self.seated);
            assert!(self.wire.change(|script| script.dropped));
            farewells[0]
        }

        fn is_there(&self) -> bool {
            self.farewells.change(|farewells| farewells.is_empty())
        }
    }

    fn going_away() -> Vec<u8> {
        from_us(Opcode::Close, &close::payload(CloseCode::GOING_AWAY))
    }

    #[test]
    fn a_conversation_from_its_first_message_to_its_end() {
        let alone = Alone::new(Duration::ZERO);
        let guest = alone.echo();
        guest.wire.frame(Opcode::Binary, b"hello");
        alone.work();
        assert_eq!(guest.wire.sent(), from_us(Opcode::Binary, b"hello"));
        guest.wire.frame(Opcode::Close, b"\x03\xe8");
        alone.work();
        assert_eq!(guest.wire.sent(), from_us(Opcode::Close, b"\x03\xe8"));
        assert!(guest.wire.change(|script| script.ended));
        let Farewell { summary, received } = guest.assert_ended(&alone, CloseCode::NORMAL);
        assert_eq!((summary.messages_in, summary.messages_out), (1, 1));
        assert_eq!((received, summary.bytes_out), (11 + 8, 7 + 4));
        assert_eq!(alone.service.guests(), 0);
    }

    #[test]
    fn the_ends_of_a_client() {
        let alone = Alone::new(Duration::ZERO);
        for (end, line) in [(Read::End, "the client is gone"), (Read::Reset, "WS0302")] {
            let guest = alone.echo();
            guest.wire.frame(Opcode::Binary, b"last words");
            guest.wire.says(end);
            alone.work();
            assert!(guest.log.has(line));
            assert_eq!(guest.recorder.payloads(), [b"last words"]);
            guest.assert_ended(&alone, CloseCode::ABNORMAL);
        }
        let guest = alone.echo();
        guest.wire.breaks();
        guest.wire.frame(Opcode::Binary, b"1");
        alone.work();
        assert!(guest.log.has("WS0302"));
        guest.assert_ended(&alone, CloseCode::ABNORMAL);
    }

    #[test]
    fn what_another_thread_sends_wakes_a_connection_at_rest() {
        let alone = Alone::new(Duration::ZERO);
        let guest = alone.echo();
        thread::scope(|scope| {
            scope.spawn(|| guest.outbox.send_message(Kind::Binary, b"1").unwrap());
        });
        // Only its driver can write.
        assert_eq!((guest.wire.sent(), alone.service.ready().len()), (vec![], 1));
        alone.work();
        assert_eq!(guest.wire.sent(), from_us(Opcode::Binary, b"1"));
        thread::scope(|scope| {
            scope.spawn(|| assert!(guest.outbox.close(b"", "test")));
        });
        alone.work();
        assert_eq!(guest.wire.sent(), from_us(Opcode::Close, b""));
        guest.wire.frame(Opcode::Close, b"");
        alone.work();
        guest.assert_ended(&alone, CloseCode::NO_STATUS);
    }

    #[test]
    fn what_is_sent_between_the_last_write_and_the_rest_is_written() {
        let alone = Alone::new(Duration::ZERO);
        let guest = alone.echo();
        let outbox = guest.outbox.clone();
        // The driver has seen that nothing is left, and has not said yet that it sleeps: nobody wakes it.
        guest.wire.during_flush(move || outbox.send_message(Kind::Binary, b"2").unwrap());
        thread::scope(|scope| {
            scope.spawn(|| guest.outbox.send_message(Kind::Binary, b"1").unwrap());
        });
        alone.work();
        let sent = [from_us(Opcode::Binary, b"1"), from_us(Opcode::Binary, b"2")];
        assert_eq!(guest.wire.sent(), sent.concat());
    }

    #[test]
    fn a_connection_that_runs_is_run_again_and_not_by_a_second_thread() {
        let alone = Alone::new(Duration::ZERO);
        let service = alone.service;
        let inside = Arc::new(AtomicUsize::new(0));
        let guest = alone.adopt(|outbox| {
            let (inside, outbox) = (inside.clone(), outbox.clone());
            Recorder::answering(move |_| {
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                // Meanwhile it is woken, and another thread takes it from the list.
                thread::scope(|scope| {
                    scope.spawn(|| {
                        outbox.close(b"", "test");
                        let seated = service.next_ready().expect("it is woken");
                        service.run(&seated, &mut Buffers::default());
                    });
                });
                inside.fetch_sub(1, Ordering::SeqCst);
            })
        });
        let turns = service.turns.load(Ordering::Relaxed);
        guest.wire.frame(Opcode::Binary, b"1");
        alone.work();
        assert!(service.turns.load(Ordering::Relaxed) >= turns + 2);
        assert_eq!(guest.wire.sent(), from_us(Opcode::Close, b""));
    }

    #[test]
    fn a_client_that_is_never_short_of_bytes_lets_others_have_their_turn() {
        let alone = Alone::new(Duration::ZERO);
        let (busy, other) = (alone.echo(), alone.echo());
        for n in 0..100 {
            busy.wire.frame(Opcode::Binary, &[n]);
        }
        let (mut buffers, mut events) = (Buffers::default(), Events::default());
        assert!(alone.service.serve(&mut buffers, &mut events, 0));
        let first = busy.recorder.payloads().len();
        assert!((1..100).contains(&first), "{first}");
        other.wire.frame(Opcode::Binary, b"me too");
        for _ in 0..2 {
            alone.service.serve(&mut buffers, &mut events, 0);
        }
        assert_eq!(other.recorder.payloads(), [b"me too"]);
        alone.work();
        assert_eq!(busy.recorder.payloads(), (0..100).map(|n| vec![n]).collect::<Vec<_>>());
    }

    #[test]
    fn a_late_event_does_not_reach_the_next_one_in_a_seat() {
        let alone = Alone::new(Duration::ZERO);
        let first = alone.echo();
        let token = first.seated.token;
        let carrier: Weak<dyn Carrier> = first.seated.me.clone();
        first.wire.says(Read::End);
        alone.work();
        first.assert_ended(&alone, CloseCode::ABNORMAL);
        let second = alone.echo();
        assert_eq!(second.seated.token as u32, token as u32);
        assert_ne!(second.seated.token, token);
        for late in [token, token | PEER] {
            let events = [(late, Flags::from_bits(libc::EPOLLIN as u32))];
            assert!(alone.service.look_up(events.into_iter()).is_none());
        }
        assert_eq!(second.seated.flags.load(Ordering::Relaxed), 0);
        assert!(carrier.upgrade().is_none());
        let events = [(second.seated.token, Flags::from_bits(libc::EPOLLIN as u32))];
        assert!(alone.service.look_up(events.into_iter()).is_some());
        // What is on the list when it ends finds it gone.
        second.seated.wake();
        second.wire.says(Read::End);
        alone.service.run(&second.seated, &mut Buffers::default());
        assert_eq!(alone.service.ready().len(), 1);
        alone.work();
        second.assert_ended(&alone, CloseCode::ABNORMAL);
    }

    #[test]
    fn a_panic_ends_its_own_connection_once() {
        let alone = Alone::new(Duration::ZERO);
        let (guest, other) = (alone.echo(), alone.echo());
        guest.wire.says(Read::Panic);
        other.wire.frame(Opcode::Binary, b"1");
        alone.work();
        assert!(guest.log.has("WS0306"));
        guest.assert_ended(&alone, CloseCode::ABNORMAL);
        assert_eq!(other.wire.sent(), from_us(Opcode::Binary, b"1"));
        let guest = alone.adopt(|_| Recorder::answering(|_| panic!("as the test says")));
        guest.wire.frame(Opcode::Binary, b"1");
        alone.work();
        guest.assert_ended(&alone, CloseCode::ABNORMAL);
        let guest = alone.adopt_with(|_| Recorder::default(), |_| panic!("as the test says"));
        guest.wire.says(Read::End);
        alone.work();
        guest.assert_ended(&alone, CloseCode::ABNORMAL);
        let totals = *alone.service.past();
        assert_eq!((alone.service.guests(), totals.messages_in), (1, 1));
    }

    #[test]
    fn a_stop_closes_all_and_waits_for_their_answer_but_not_for_ever() {
        let mut alone = Alone::new(Duration::from_secs(100));
        let (polite, silent) = (alone.echo(), alone.echo());
        alone.service.end(Ending::Stop);
        alone.pass(Duration::ZERO);
        for guest in [&polite, &silent] {
            assert_eq!(guest.wire.sent(), going_away());
            assert!(guest.is_there());
        }
        polite.wire.frame(Opcode::Close, &close::payload(CloseCode::GOING_AWAY));
        alone.work();
        polite.assert_ended(&alone, CloseCode::GOING_AWAY);
        alone.pass(STOP_TIMEOUT - Duration::from_millis(300));
        assert!(silent.is_there() && !silent.log.has("WS0302"));
        alone.pass(Duration::from_millis(300));
        assert!(silent.log.has("WS0302: the connection is lost: the client does not answer"));
        assert_eq!(silent.outbox.state(), State::Closed);
        // It meets the end of its stream.
        silent.wire.says(Read::End);
        alone.work();
        silent.assert_ended(&alone, CloseCode::GOING_AWAY);
        assert_eq!(alone.service.guests(), 0);
    }

    #[test]
    fn a_drain_closes_each_at_its_moment_and_a_stop_the_rest() {
        let mut alone = Alone::new(Duration::from_secs(50));
        let guests: Vec<_> = (0..8).map(|_| alone.echo()).collect();
        alone.service.end(Ending::Drain);
        alone.pass(Duration::ZERO);
        let moment = |guest: &Guested| alone.service.ending.moment(guest.seated.token);
        let mut moments: Vec<_> = guests.iter().map(moment).collect();
        moments.sort();
        // Into the longest while between two of them.
        let gaps = moments.windows(2).map(|pair| (pair[1] - pair[0], pair[0]));
        let (gap, last) = gaps.max().unwrap();
        alone.pass(last + gap / 2);
        for guest in &guests {
            let is_closed = guest.outbox.state() == State::Closing;
            assert_eq!(is_closed, alone.service.ending.moment(guest.seated.token) <= last);
        }
        alone.service.end(Ending::Stop);
        alone.service.end(Ending::Drain);
        alone.pass(Duration::ZERO);
        for guest in guests {
            assert_eq!(guest.wire.sent(), going_away());
            guest.wire.frame(Opcode::Close, b"");
            alone.work();
            guest.assert_ended(&alone, CloseCode::GOING_AWAY);
        }
    }

    #[test]
    fn a_peer_has_a_while_from_its_connections_turn_on_and_no_longer() {
        for (trickles, while_it_takes) in [(false, STOP_TIMEOUT), (true, Duration::from_secs(1))] {
            for ending in [Ending::Drain, Ending::Stop] {
                let mut alone = Alone::new(Duration::ZERO);
                let peer = StuckPeer::new(trickles);
                let guest = alone.adopt(|_| Recorder::with_peer(peer.clone()));
                alone.pass(ROUND * 10);
                alone.service.end(ending);
                alone.pass(Duration::ZERO);
                assert_eq!(guest.wire.sent(), going_away());
                guest.wire.frame(Opcode::Close, b"");
                alone.work();
                alone.pass(while_it_takes - Duration::from_millis(300));
                assert!(guest.is_there() && !peer.is_given_up());
                alone.pass(Duration::from_millis(300));
                assert!(peer.is_given_up());
                guest.assert_ended(&alone, CloseCode::GOING_AWAY);
            }
        }
    }

    #[test]
    fn a_stop_does_not_begin_a_turn_anew() {
        let mut alone = Alone::new(Duration::ZERO);
        let peer = StuckPeer::new(false);
        let guest = alone.adopt(|_| Recorder::with_peer(peer.clone()));
        alone.service.end(Ending::Drain);
        alone.pass(Duration::ZERO);
        guest.wire.frame(Opcode::Close, b"");
        alone.work();
        alone.pass(STOP_TIMEOUT - Duration::from_millis(300));
        alone.service.end(Ending::Stop);
        alone.pass(Duration::from_millis(300));
        assert!(peer.is_given_up());
    }

    #[test]
    fn an_end_that_takes_too_long_is_told_of() {
        let drain = Duration::from_secs(10);
        let moment = Duration::from_millis(300);
        let told = |alone: &Alone| alone.overdue.change(core::mem::take);
        for (ending, bound) in [(Ending::Stop, GRACE), (Ending::Drain, drain + GRACE)] {
            let mut alone = Alone::new(drain);
            alone.pass(drain * 10);
            alone.service.end(ending);
            alone.pass(Duration::ZERO);
            alone.pass(bound - moment);
            assert_eq!(told(&alone), []);
            alone.pass(moment);
            assert_eq!(told(&alone), [ending]);
        }
        // A stop cuts a drain short.
        let mut alone = Alone::new(drain);
        alone.service.end(Ending::Drain);
        alone.pass(Duration::ZERO);
        alone.pass(drain / 2);
        alone.service.end(Ending::Stop);
        alone.pass(Duration::ZERO);
        alone.pass(GRACE - moment);
        assert_eq!(told(&alone), []);
        alone.pass(moment);
        assert_eq!(told(&alone), [Ending::Stop]);
    }

    #[test]
    fn what_connections_have_done_is_reported() {
        let mut alone = Alone::new(Duration::ZERO);
        let (gone, here) = (alone.echo(), alone.echo());
        for guest in [&gone, &here] {
            guest.wire.frame(Opcode::Binary, b"1");
        }
        gone.wire.says(Read::End);
        alone.work();
        gone.assert_ended(&alone, CloseCode::ABNORMAL);
        assert!(alone.reports.change(|reports| reports.is_empty()));
        alone.pass(ROUND);
        let totals = Totals {
            connections: 1,
            messages_in: 2,
            messages_out: 2,
            bytes_in: 14,
            bytes_out: 6,
            ..Totals::default()
        };
        assert_eq!(alone.reports.change(core::mem::take), [(1, totals)]);
        here.wire.says(Read::End);
        alone.work();
        alone.pass(ROUND);
        assert_eq!(
            alone.reports.change(core::mem::take),
            [(1, Totals { connections: 0, ..totals })]
        );
    }

    #[test]
    fn the_clock_slows_down_when_nothing_moves_and_traffic_wakes_it() {
        let mut alone = Alone::new(Duration::ZERO);
        let guest = alone.echo();
        alone.pass(Duration::ZERO);
        alone.pass(CALM);
        assert!(!alone.service.threads.is_calm());
        alone.pass(Duration::from_millis(100));
        // Its own wait for the events was the last traffic.
        let clock = &mut alone.clock;
        alone.service.threads.wait(|| alone.service.tick(clock, false));
        assert!(alone.service.threads.is_calm());
        alone.service.alarm.clear();
        thread::scope(|scope| {
            scope.spawn(|| guest.outbox.send_message(Kind::Binary, b"1").unwrap());
        });
        assert!(!alone.service.threads.is_calm());
        let interest = Interest { read: true, write: false };
        let alarm = alone.service.alarm.descriptor();
        let ready = wait(alarm, interest, None, Some(Duration::ZERO), None);
        assert!(ready.unwrap().read);
    }

    #[test]
    fn threads_that_are_all_in_callbacks_are_complained_of_once_a_minute() {
        let mut alone = Alone::new(Duration::ZERO);
        // The one there may be is at work.
        let mut look = |time| {
            alone.service.skew.fetch_add(time, Ordering::SeqCst);
            alone.service.tick(&mut alone.clock, false);
            alone.log.count("WS0309: all threads (1, see WebSocketThreads)")
        };
        assert_eq!([look(10), look(1000), look(30_000), look(28_000), look(3000)], [0, 1, 1, 1, 2]);
    }

    /// A client on a socket of its own.
    fn on_socket(alone: &Alone) -> (UnixStream, Arc<Outbox>, Recorder, Arc<Watched<usize>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let socket = Arc::new(plain::Socket::new(ours.into()).unwrap());
        let transport = Plain::new(socket, Early::new(&UNLIMITED));
        let (outbox, _) = outbox(QUEUE);
        let (recorder, ended) = (Recorder::echo(&outbox), Arc::new(Watched::default()));
        let count: Arc<Watched<usize>> = ended.clone();
        alone.service.adopt(Guest {
            lane: Lane::new(Box::new(transport), outbox.clone()),
            session: session(),
            endpoint: Box::new(recorder.clone()),
            patience: PATIENCE,
            ended: Box::new(move |_| count.change(|count| *count += 1)),
        });
        alone.work();
        (theirs, outbox, recorder, ended)
    }

    #[test]
    fn a_client_has_a_while_to_end_its_stream() {
        for patient in [true, false] {
            let mut alone = Alone::new(Duration::ZERO);
            let (mut client, _, recorder, ended) = on_socket(&alone);
            let close = from_client(Opcode::Close, b"");
            client.write_all(&[&from_client(Opcode::Binary, b"1")[..], &close].concat()).unwrap();
            alone.work();
            let mut buffer = [0; 100];
            assert_eq!(client.read(&mut buffer).unwrap(), 3 + 2);
            // The end of our direction, and of the conversation, but not of the connection.
            assert_eq!(client.read(&mut buffer).unwrap(), 0);
            assert_eq!((recorder.closed(), ended.change(|n| *n)), (1, 1));
            client.write_all(b"to nobody").unwrap();
            alone.work();
            alone.pass(LINGER - Duration::from_millis(500));
            assert_eq!(alone.service.guests(), 1);
            if patient {
                alone.pass(Duration::from_millis(1000));
            } else {
                drop(client);
                alone.work();
            }
            assert_eq!(alone.service.guests(), 0);
            assert_eq!((recorder.closed(), ended.change(|n| *n)), (1, 1));
        }
    }

    #[test]
    fn who_lingers_does_not_hold_up_a_stop() {
        let mut alone = Alone::new(Duration::ZERO);
        let (mut client, ..) = on_socket(&alone);
        client.write_all(&from_client(Opcode::Close, b"")).unwrap();
        alone.work();
        assert_eq!(alone.service.guests(), 1);
        alone.service.end(Ending::Stop);
        alone.pass(Duration::ZERO);
        assert_eq!(alone.service.guests(), 0);
    }

    #[test]
    fn a_callback_that_blocks_holds_up_nobody_and_the_end_waits_for_it() {
        let log = Log::default();
        let report = Box::new(|_: usize, _: &Totals| ());
        let service =
            Service::start(4, Duration::ZERO, &UNLIMITED, report, Box::new(log), nowhere());
        let mut alone = Alone::new(Duration::ZERO);
        alone.service = service.unwrap();
        let adopt = |make: &dyn Fn(&Arc<Outbox>) -> Recorder| {
            let wire = Wire::new();
            let (lane, outbox, _) = wire.lane(QUEUE);
            let (recorder, ended) = (make(&outbox), Arc::new(Watched::default()));
            let count: Arc<Watched<usize>> = ended.clone();
            alone.service.adopt(Guest {
                lane,
                session: session(),
                endpoint: Box::new(recorder.clone()),
                patience: PATIENCE,
                ended: Box::new(move |_| count.change(|count| *count += 1)),
            });
            (wire, recorder, ended)
        };
        let released = Arc::new(Watched::default());
        let gate: Arc<Watched<bool>> = released.clone();
        let blocked = adopt(&move |_| {
            let gate = gate.clone();
            let answer = move |_: &[u8]| gate.wait_for(|open| open.then_some(()));
            Recorder::answering(answer).of("slow.so")
        });
        blocked.0.frame(Opcode::Binary, b"1");
        blocked.1.wait_for(|told| (told.messages.len() == 1).then_some(()));
        let others: Vec<_> = (0..8).map(|_| adopt(&Recorder::echo)).collect();
        for (wire, ..) in &others {
            wire.frame(Opcode::Binary, b"2");
        }
        for (wire, ..) in &others {
            wire.expect(&from_us(Opcode::Binary, b"2"));
        }
        alone.service.end(Ending::Stop);
        for (wire, ..) in &others {
            wire.expect(&going_away());
            wire.frame(Opcode::Close, b"");
        }
        for (_, recorder, ended) in &others {
            ended.wait_for(|n| (*n == 1).then_some(()));
            assert_eq!(recorder.closed(), 1);
        }
        assert_eq!(alone.service.running(), ["slow.so".into()]);
        released.change(|open| *open = true);
        blocked.0.says(Read::End);
        blocked.2.wait_for(|n| (*n == 1).then_some(()));
        assert!(alone.service.await_end());
        assert_eq!((alone.service.guests(), alone.service.threads()), (0, 0));
    }
}
