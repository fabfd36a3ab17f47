//! A connection in a service's slot: from its first turn to its last.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Service, epoll::Flags, slots::Token};
use crate::{
    conn::{
        deadlines::{Action, Activity, Deadlines, Unfinished},
        endpoint::Endpoint,
        log::Level,
        outbox::{DriverHandle, State, Summary, WriteSocket},
        session::Session,
        waiting::begin_callback,
    },
    driver::{
        conn_io::ConnIo,
        judging::{self, Seen},
        reader::{Buffers, Outcome, Reader},
        run_state::RunState,
        shutdown::Ending,
    },
    metrics::Carried,
    os::{Readiness, discard, shut_down},
    proto::close::{self, CloseCode},
    settings::Timeouts,
    sync::Lock as _,
};

/// Where [`Entry::flags`] has the flags of the peer.
const PEER_SHIFT: u32 = 16;
/// How often a lingering connection is read from before others have their turn.
const DISCARDS: u32 = 16;
/// How long a client has to close its side of the TCP connection after the conversation.
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// What the service tells of a connection when it is over.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// What became of the conversation.
    pub summary: Summary,
    /// How many bytes were received on the socket.
    pub received: u64,
}

impl Finished {
    /// What the connection has carried.
    fn carried(&self) -> Carried {
        self.summary.carried(self.received)
    }
}

/// What is done when a conversation is over and `closed` of its endpoint has returned: the access log is written.
pub type Ended = Box<dyn FnOnce(&Finished) + Send>;

/// A connection that is handed to the service.
pub struct Accepted {
    /// Its bytes.
    pub io: ConnIo,
    /// What it has been told so far.
    pub session: Session,
    /// What its messages are for.
    pub endpoint: Box<dyn Endpoint>,
    /// How long it waits for what.
    pub timeouts: Timeouts,
    /// What is done at its end.
    pub ended: Ended,
}

/// A connection in the service.
pub(super) struct Entry {
    service: &'static Service,
    pub(super) me: Weak<Self>,
    pub(super) token: Token,
    pub(super) state: RunState,
    /// Readiness that no turn has seen, as [`Flags`] in bits; that of the peer is in the upper half. It is stored before
    /// `state` is asked to run, which orders it.
    pub(super) flags: AtomicU32,
    /// What the client has done since the deadlines were asked last. One word, which nothing else hangs on.
    activity: AtomicU8,
    pub(super) io: ConnIo,
    pub(super) endpoint: Box<dyn Endpoint>,
    timeouts: Timeouts,
    deadlines: Mutex<Deadlines>,
    pub(super) phase: Mutex<Phase>,
    /// What the metrics were told of it.
    told: Mutex<Carried>,
    /// `Some` until the end.
    ended: Mutex<Option<Ended>>,
}

/// How far a connection has come with us; taken out by the thread that runs it.
pub(super) enum Phase {
    /// The conversation goes on.
    Talking(Box<Reader>),
    /// It is over, and the client has until then to close its side.
    Lingering(Duration),
    /// A thread has taken it out.
    Running,
    /// Nothing is left to do.
    Gone,
}

impl DriverHandle for Entry {
    fn wake(&self) {
        let Some(me) = self.me.upgrade() else { return };
        self.service.ready().push_back(me);
        self.service.run_ready();
    }

    fn have_a_turn(&self) {
        // Behind one look at the events of others, of whom there may be many, too.
        if let Some(me) = self.me.upgrade() {
            self.service.again().push_back(me);
        }
    }

    fn pump(&self, deadline: Instant) {
        self.io.pump(deadline);
    }

    fn socket(&self) -> Option<&dyn WriteSocket> {
        self.io.socket.as_deref().map(|socket| socket as &dyn WriteSocket)
    }
}

impl Entry {
    /// A connection that has its slot, and no turn yet.
    pub(super) fn new(
        service: &'static Service,
        me: Weak<Self>,
        token: Token,
        accepted: Accepted,
    ) -> Self {
        let Accepted { io, session, endpoint, timeouts, ended } = accepted;
        Self {
            service,
            me,
            token,
            state: RunState::default(),
            flags: AtomicU32::new(0),
            activity: AtomicU8::new(0),
            io,
            endpoint,
            timeouts,
            deadlines: Mutex::new(Deadlines::new(service.now())),
            phase: Mutex::new(Phase::Talking(Box::new(Reader::new(session)))),
            told: Mutex::default(),
            ended: Mutex::new(Some(ended)),
        }
    }

    /// The conversation may begin: senders reach the connection, and its descriptors are watched.
    pub(super) fn begin(&self) {
        let outbox = self.io.outbox.clone();
        let driver: Weak<dyn DriverHandle> = self.me.clone();
        outbox.open(driver);
        outbox.disown(&mut Vec::new());
        // A socket that can be written to is ready at once, so the first turn needs nothing more. That turn, on another
        // thread, may be the last one too: what is done with the client's descriptor afterwards is its business.
        let epoll = &self.service.epoll;
        let watched = epoll.add(self.io.descriptor(), self.token).and_then(|()| {
            let peer = self.endpoint.peer();
            peer.map_or(Ok(()), |peer| epoll.add(peer.descriptor(), self.token.of_peer()))
        });
        if let Err(error) = watched {
            outbox.log().write(
                Level::Error,
                format_args!("WS0304: the connection cannot be watched: {error}"),
            );
            outbox.end("the connection cannot be watched");
            self.wake();
        }
    }

    /// A descriptor of the connection's, or its peer's, is ready.
    pub(super) fn note(&self, is_peer: bool, flags: Flags) {
        let shift = if is_peer { PEER_SHIFT } else { 0 };
        self.flags.fetch_or(flags.bits() << shift, Ordering::Relaxed);
    }

    /// The library whose callback is running.
    pub(super) fn library(&self) -> Option<Arc<str>> {
        self.endpoint.callbacks()?.running()
    }

    /// Runs a turn; `true` if there is more to do at once.
    pub(super) fn turn(&self, buffers: &mut Buffers) -> bool {
        let flags = self.flags.swap(0, Ordering::Relaxed);
        if flags >> PEER_SHIFT != 0 {
            self.note_peer(Flags::from_bits(flags >> PEER_SHIFT));
        }
        match self.set_phase(Phase::Running) {
            Phase::Talking(reader) => self.talk(reader, Flags::from_bits(flags), buffers),
            Phase::Lingering(until) => self.linger(until, buffers),
            Phase::Running | Phase::Gone => {
                self.set_phase(Phase::Gone);
                false
            }
        }
    }

    /// A turn of a conversation that goes on.
    fn talk(&self, mut reader: Box<Reader>, flags: Flags, buffers: &mut Buffers) -> bool {
        let outbox = &*self.io.outbox;
        outbox.own();
        outbox.lend(&mut buffers.output);
        let ready = (flags.readable(), flags.to_the_end());
        let outcome = reader.run(&self.io, &*self.endpoint, ready, buffers);
        outbox.disown(&mut buffers.output);
        let bits = reader.activity().bits();
        let known = self.activity.load(Ordering::Relaxed);
        if known | bits != known {
            self.activity.fetch_or(bits, Ordering::Relaxed);
        }
        match outcome {
            Ok(Outcome::Rest { write, .. }) => {
                self.set_phase(Phase::Talking(reader));
                // Where others cannot write, they wake us from now on; what they queued before is ours.
                self.io.socket.is_none() && !outbox.fall_asleep(write)
            }
            Ok(Outcome::Again) => {
                self.set_phase(Phase::Talking(reader));
                true
            }
            Ok(Outcome::Over) => self.finish(&reader, false, buffers),
            Err(error) => {
                outbox
                    .log()
                    .write(Level::Info, format_args!("WS0302: the connection is lost: {error}"));
                self.finish(&reader, true, buffers)
            }
        }
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

    /// Tells the metrics what a connection whose conversation goes on has carried since they were told last.
    pub(super) fn count(&self) {
        let finished = match &*self.phase.acquire() {
            Phase::Talking(reader) => self.finished(reader.received()),
            // What was received is known to the thread that runs it.
            Phase::Running => Finished { summary: self.io.outbox.summary(), received: 0 },
            Phase::Lingering(_) | Phase::Gone => return,
        };
        self.tell(&finished);
        self.endpoint.count();
    }

    fn tell(&self, finished: &Finished) {
        self.told.acquire().tell(finished.carried(), self.service.line);
    }

    /// What it has done, if it ended now.
    fn finished(&self, received: u64) -> Finished {
        Finished { summary: self.io.outbox.summary(), received: self.io.received(received) }
    }

    fn set_phase(&self, phase: Phase) -> Phase {
        core::mem::replace(&mut *self.phase.acquire(), phase)
    }

    /// The conversation is over.
    fn finish(&self, reader: &Reader, lost: bool, buffers: &mut Buffers) -> bool {
        self.io.outbox.end("the connection is over");
        self.report_end(reader.received());
        if !lost {
            self.io.end_output();
            return self.linger(self.service.now() + LINGER, buffers);
        }
        self.leave();
        false
    }

    /// Tells the endpoint, the metrics and the access log of the end, unless they have heard of it.
    fn report_end(&self, received: u64) {
        let Some(ended) = self.ended.acquire().take() else { return };
        // If one of them panics the others hear of it all the same.
        begin_callback();
        let closed = catch_unwind(AssertUnwindSafe(|| self.endpoint.closed()));
        let finished = self.finished(received);
        self.tell(&finished);
        ended(&finished);
        if let Err(panic) = closed {
            resume_unwind(panic);
        }
    }

    /// Reads what the client still sends, to nobody, until it ends the stream: closing before that could make
    /// the kernel drop our last bytes (RFC 9112 §9.6). `true` if there is more to read.
    fn linger(&self, until: Duration, buffers: &mut Buffers) -> bool {
        let descriptor = self.io.descriptor();
        let mut discards = 0;
        // Throws away what the peer sends, too.
        let parted = self.endpoint.peer().is_none_or(|peer| peer.finish(&mut buffers.input));
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
    pub(super) fn abandon(&self) {
        let outbox = &*self.io.outbox;
        outbox.end("an internal error");
        if matches!(self.set_phase(Phase::Gone), Phase::Gone) {
            return;
        }
        outbox.log().write(
            Level::Error,
            format_args!("WS0306: the connection is dropped after an internal error"),
        );
        let last = AssertUnwindSafe(|| self.report_end(0));
        // What panics again has said so.
        let _ = catch_unwind(last);
        shut_down(self.io.descriptor());
        self.leave();
    }

    /// Nothing is left to do. The descriptor is closed with the last reference.
    fn leave(&self) {
        self.set_phase(Phase::Gone);
        self.service.epoll.remove(self.io.descriptor());
        self.service.slots.remove(self.token);
    }

    // What follows is called by the clock's thread, which must not be held up by a callback.

    /// The child's end has come to the connection.
    pub(super) fn go_away(&self) {
        self.io.outbox.close(&close::payload(CloseCode::GOING_AWAY), "the server stops");
    }

    /// Asks the deadlines. `since`: how long ago the child's end came to this connection. `true` if it reads what there is
    /// now, and should be asked again then.
    pub(super) fn check(&self, now: Duration, ending: Ending, since: Option<Duration>) -> bool {
        let Some((unfinished, running)) = self.progress(now, ending) else { return false };
        let activity = Activity::from_bits(self.activity.swap(0, Ordering::Relaxed));
        let (sink, peer) = (self.endpoint.sink(), self.endpoint.peer());
        if sink.is_some_and(|sink| sink.has_room_again()) {
            self.wake();
        }
        if let Some(peer) = peer {
            if peer.check(now, judging::peer_timeout(&self.timeouts, since)) {
                self.wake();
            }
        }
        let mut deadlines = self.deadlines.acquire();
        let pinged = deadlines.has_pinged();
        let seen = Seen { now, since, activity, unfinished, running, blocked: false, pinged };
        let snapshot = judging::snapshot(&self.io, sink, &seen);
        // Nothing is expected of the client while the peer gets the rest.
        if peer.is_some() && snapshot.state == State::Closed && !snapshot.queued {
            return false;
        }
        let timeouts = judging::timeouts(self.timeouts, since);
        let action = deadlines.check(&snapshot, &timeouts);
        let reading = deadlines.is_reading();
        drop(deadlines);
        if action == Action::Read {
            self.note(false, Flags::READABLE);
            self.wake();
        }
        let outbox = &*self.io.outbox;
        if let Err(error) = judging::act(action, outbox, self.service.line) {
            outbox
                .log()
                .write(Level::Info, format_args!("WS0302: the connection is lost: {error}"));
            outbox.end("the client is given up");
            // The thread that runs it, or the next one, meets the end of the stream. The descriptor is open as long as the
            // transport, which is ours.
            shut_down(self.io.descriptor());
        }
        reading
    }

    /// The message that is arriving, and whether a thread is at work; `None` if there is nothing to judge any more. Who
    /// lingers too long is woken.
    fn progress(&self, now: Duration, ending: Ending) -> Option<(Option<Unfinished>, bool)> {
        match &*self.phase.acquire() {
            Phase::Talking(reader) => return Some((reader.unfinished(), false)),
            Phase::Running => {
                // Nobody reads while a callback runs, so the client cannot be blamed for its silence.
                self.activity.fetch_or(Activity::ANY.bits(), Ordering::Relaxed);
                // On its way to the end it needs no clock.
                let is_over = self.io.outbox.state() == State::Closed;
                return (!is_over).then_some((None, true));
            }
            Phase::Lingering(until) if ending != Ending::Stop && *until > now => return None,
            Phase::Lingering(_) => {}
            Phase::Gone => return None,
        }
        self.wake();
        None
    }
}
