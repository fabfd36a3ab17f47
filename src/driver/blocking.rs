//! One thread per connection: waits on the transport's descriptor together with a wake-up for what
//! other threads want.

use std::{
    io,
    os::fd::AsFd as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use super::{
    conn_io::ConnIo,
    judging::{self, Seen},
    reader::{Buffers, Outcome, READ, Reader},
    shutdown::{Ending, SharedEnding, Shutdown},
    signals::{Signals, pending},
};
use crate::{
    conn::{
        deadlines::{Action, Deadlines},
        endpoint::{Endpoint, Peer},
        log::Level,
        outbox::{DriverHandle, State, WriteSocket},
        session::Session,
    },
    metrics::{Carried, Line, Metric},
    os::{Interest, Sources, Waker, wait},
    proto::close::{self, CloseCode},
    settings::Timeouts,
};

/// How often a connection that waits for its moment of a drain looks whether that has become a stop.
const HASTE: Duration = Duration::from_millis(100);

/// How often the metrics are told what a connection carries.
const TELL: Duration = Duration::from_secs(1);

/// How long the end of a connection waits for its peer.
const PARTING: Duration = Duration::from_secs(1);

/// How long after the child's end has come to it a connection's thread goes at the latest: before the child has to.
const LAST: Duration = Duration::from_millis(1300);

/// The thread's part of a connection that other threads, and callbacks on this one, reach through the outbox.
struct Blocking {
    io: ConnIo,
    waker: Waker,
    end: End,
}

/// The child's end, as one connection sees it.
struct End {
    stop: &'static Shutdown,
    /// Signals are held back on the connection's thread.
    signals: bool,
    /// What those signals have said.
    signalled: SharedEnding,
    /// When the connection is closed, from the beginning of a drain.
    moment: OnceLock<Duration>,
    /// When that beginning was seen.
    drain: OnceLock<Instant>,
    /// When it was seen to have come.
    came: OnceLock<Instant>,
}

impl End {
    /// When it comes to this connection, as far as that is known.
    fn due(&self) -> Option<Instant> {
        match self.stop.ending().max(self.signalled.get()) {
            Ending::None => None,
            Ending::Stop => Some(Instant::now()),
            Ending::Drain => {
                let moment = self.moment.get().copied().unwrap_or_default();
                Some(*self.drain.get_or_init(Instant::now) + moment)
            }
        }
    }

    /// Whether it has come by now, and how long ago.
    fn look(&self) -> Option<Duration> {
        if self.due().is_some_and(|due| due <= Instant::now()) {
            self.came.get_or_init(Instant::now);
        }
        self.since()
    }

    /// How long ago it was seen to have come.
    fn since(&self) -> Option<Duration> {
        self.came.get().map(Instant::elapsed)
    }
}

impl DriverHandle for Blocking {
    fn wake(&self) {
        self.waker.wake();
    }

    fn pump(&self, deadline: Instant) {
        self.io.pump(deadline);
    }

    fn socket(&self) -> Option<&dyn WriteSocket> {
        self.io.socket.as_deref().map(|socket| socket as &dyn WriteSocket)
    }

    fn is_ending(&self) -> bool {
        if self.end.signals {
            self.end.signalled.raise(pending());
        }
        self.end.due().is_some_and(|due| due <= Instant::now())
    }
}

/// How a conversation ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// How many bytes were received.
    pub received: u64,
    /// The connection is lost, or the client was given up: nothing can be written to it any more.
    pub lost: bool,
    /// The child's end had come to it.
    pub hurried: bool,
}

/// Serves a connection until its conversation is over, and calls `closed` of its endpoint. Without a descriptor for the
/// wake-up it is lost at once. What it carries is counted in `line`.
///
/// `stop`, or one of `signals` where the MPM handles them on this thread, ends it with Close 1001: at once, or at its
/// moment of a drain.
pub fn serve(
    io: ConnIo,
    session: Session,
    endpoint: &dyn Endpoint,
    timeouts: Timeouts,
    stop: &'static Shutdown,
    signals: Option<&Signals>,
    line: &'static Line,
) -> Ended {
    let outbox = io.outbox.clone();
    let mut reader = Reader::new(session);
    let end = End {
        stop,
        signals: signals.is_some(),
        signalled: SharedEnding::new(),
        moment: OnceLock::new(),
        drain: OnceLock::new(),
        came: OnceLock::new(),
    };
    let mut told = Told { line, carried: Carried::default(), at: None };
    let blocking = Waker::new().map(|waker| Arc::new(Blocking { io, waker, end }));
    let result = match &blocking {
        Ok(blocking) => {
            let driver: Arc<dyn DriverHandle> = blocking.clone();
            let entry = stop.enter(&driver);
            let ending = signals.map_or(Ending::None, |_| pending()).max(entry.ending());
            // Who comes when the drain has begun does not lengthen it.
            let moment = if ending == Ending::None { entry.moment() } else { Duration::ZERO };
            let _ = blocking.end.moment.set(moment);
            let weak: Weak<dyn DriverHandle> = Arc::downgrade(&driver);
            outbox.open(weak);
            outbox.own();
            let mut conversation = Conversation {
                blocking,
                endpoint,
                reader: &mut reader,
                timeouts,
                signals,
                start: Instant::now(),
                deadlines: Deadlines::new(Duration::ZERO),
                readable: false,
                told: &mut told,
            };
            // A panic is a bug of ours; the endpoint hears of the end all the same.
            catch_unwind(AssertUnwindSafe(|| conversation.hold())).unwrap_or_else(|_| {
                let line =
                    format_args!("WS0306: the connection is dropped after an internal error");
                outbox.log().write(Level::Error, line);
                Err(io::Error::other("an internal error"))
            })
        }
        Err(e) => Err(io::Error::other(format!("no descriptor for its wake-up: {e}"))),
    };
    if let Err(error) = &result {
        outbox.log().write(Level::Info, format_args!("WS0302: the connection is lost: {error}"));
    }
    outbox.end("the connection is over");
    endpoint.closed();
    told.carried.tell(outbox.summary().carried(reader.received()), line);
    let since = blocking.as_ref().ok().and_then(|blocking| blocking.end.since());
    if let (Some(peer), false) = (endpoint.peer(), stop.ending() == Ending::Stop) {
        finish(peer, since.map_or(PARTING, |since| LAST.saturating_sub(since)));
    }
    Ended { received: reader.received(), lost: result.is_err(), hurried: since.is_some() }
}

/// Waits `timeout` at most until a peer has got everything.
fn finish(peer: &dyn Peer, timeout: Duration) {
    let (mut buffer, start) = (vec![0; READ], Instant::now());
    let interest = Interest { read: true, write: false };
    while !peer.finish(&mut buffer) && start.elapsed() < timeout {
        let sources = Sources { first: Some((peer.descriptor(), interest)), ..Sources::default() };
        let _ = wait(&sources, Some(PARTING / 20));
    }
}

/// A conversation on its thread.
struct Conversation<'c> {
    blocking: &'c Blocking,
    endpoint: &'c dyn Endpoint,
    reader: &'c mut Reader,
    timeouts: Timeouts,
    signals: Option<&'c Signals>,
    start: Instant,
    deadlines: Deadlines,
    /// The descriptor has shown something to read.
    readable: bool,
    told: &'c mut Told,
}

/// What the metrics were told of a connection.
struct Told {
    line: &'static Line,
    carried: Carried,
    /// When they were told last.
    at: Option<Duration>,
}

/// What a turn has left to wait for.
#[derive(Clone, Copy)]
struct Rest {
    read: bool,
    write: bool,
    /// There is more to do at once.
    again: bool,
}

impl Conversation<'_> {
    /// Holds it, to its end; an error if the connection is lost or given up.
    fn hold(&mut self) -> io::Result<()> {
        let Blocking { io, end, .. } = self.blocking;
        let mut buffers = Buffers::default();
        loop {
            let since = end.look();
            if since.is_some() {
                io.outbox.close(&close::payload(CloseCode::GOING_AWAY), "the server stops");
            }
            let ready = (self.readable, false);
            let rest = match self.reader.run(io, self.endpoint, ready, &mut buffers)? {
                Outcome::Over => return Ok(()),
                Outcome::Again => Rest { read: true, write: true, again: true },
                Outcome::Rest { read, write } => Rest { read, write, again: false },
            };
            let Some(deadline) = self.judge(since, rest)? else { continue };
            let deadline = deadline.into_iter().chain(self.tell()).min();
            self.readable = false;
            // Nobody else could use it meanwhile.
            buffers.release();
            if io.outbox.fall_asleep(rest.write) {
                self.wait(since.is_some(), rest, deadline)?;
            }
        }
    }

    /// Tells the metrics what was carried, once a second at most; and says when it has to be told of the rest.
    fn tell(&mut self) -> Option<Duration> {
        let (io, told, now) = (&self.blocking.io, &mut *self.told, self.start.elapsed());
        // Not before that is due: it takes the outbox's lock.
        let due = told.at.map_or(now, |at| at + TELL);
        if now < due {
            return Some(due);
        }
        let carried = io.outbox.summary().carried(self.reader.received());
        if carried == told.carried {
            return None;
        }
        told.carried.tell(carried, told.line);
        told.line.set(Metric::Memory, io.outbox.memory().used() as u64);
        self.endpoint.count();
        told.at = Some(now);
        None
    }

    /// Asks the deadlines, and does what they say: `Some` if the conversation is to rest now, until then at most.
    fn judge(
        &mut self,
        since: Option<Duration>,
        rest: Rest,
    ) -> io::Result<Option<Option<Duration>>> {
        let (io, now) = (&self.blocking.io, self.start.elapsed());
        let (sink, peer) = (self.endpoint.sink(), self.endpoint.peer());
        if peer.is_some_and(|peer| peer.check(now, judging::peer_timeout(&self.timeouts, since))) {
            return Ok(None);
        }
        let seen = Seen {
            now,
            since,
            activity: self.reader.activity(),
            unfinished: self.reader.unfinished(),
            running: false,
            blocked: rest.write && !rest.again,
            pinged: self.deadlines.has_pinged(),
        };
        let snapshot = judging::snapshot(io, sink, &seen);
        // The peer's clock has to be asked again if something waits for it; and what waits for the client may have got there
        // before its time is over, or it would begin only then. Who was not read from may be, after a while.
        let relaying = peer.is_some_and(|peer| peer.interest().write);
        let pause = if since.is_some() { HASTE } else { Duration::from_secs(1) };
        let paused = sink.is_some() && !rest.read;
        let asked = (relaying || paused || snapshot.unacknowledged).then_some(now + pause);
        match self.deadlines.check(&snapshot, &judging::timeouts(self.timeouts, since)) {
            Action::Wait(deadline) => Ok(Some(deadline.into_iter().chain(asked).min())),
            // Nothing is expected of the client while the peer gets the rest.
            _ if snapshot.state == State::Closed && relaying && !snapshot.queued => Ok(Some(asked)),
            Action::Read => {
                self.readable = true;
                Ok(None)
            }
            action => judging::act(action, &io.outbox, self.told.line).map(|()| None),
        }
    }

    /// Waits until there is something to do, or for the deadline.
    fn wait(&mut self, ending: bool, rest: Rest, deadline: Option<Duration>) -> io::Result<()> {
        let Blocking { io, waker, end } = self.blocking;
        let due = end.due().filter(|_| !ending).map(|due| due - self.start);
        let deadline = deadline.into_iter().chain(due).min();
        let timeout = deadline.map(|deadline| deadline.saturating_sub(self.start.elapsed()));
        // A signal handler can make a drain a stop, but wake nobody.
        let timeout = if due.is_some() { timeout.min(Some(HASTE)) } else { timeout };
        // A client that is never at a loss for bytes must not keep us from seeing what else there is.
        let mut timeout = if rest.again { Some(Duration::ZERO) } else { timeout };
        let mut interest = Interest { read: rest.read, write: rest.write };
        if rest.write {
            let (shown, retry) = io.room();
            interest.write = shown;
            timeout = timeout.into_iter().chain(retry).min();
        }
        // A pending signal stays pending: once seen, it must not end each further wait.
        let signals = self.signals.filter(|_| !ending).map(Signals::pending);
        let peer = self.endpoint.peer();
        let sources = Sources {
            first: Some((io.descriptor(), interest)),
            second: peer.map(|peer| (peer.descriptor(), peer.interest())),
            waker: Some(waker),
            signals: signals.map(|signals| signals.as_fd()),
        };
        let ready = wait(&sources, timeout)?;
        self.readable = ready.first.read;
        if let Some(peer) = peer {
            peer.note(ready.second);
        }
        if let (Some(signals), true) = (signals, ready.signals) {
            end.signalled.raise(signals.look());
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        conn::{
            deadlines::NO_PONG,
            outbox::{Outbox, Refused},
        },
        driver::judging::{PEERS_END, STOP_TIMEOUT},
        fakes::{
            EndOnFailure, Lines, Read, Recorder, StuckPeer, Wire, from_us, session, wait_until,
        },
        proto::{Kind, frame::Opcode},
    };

    const TIMEOUTS: Timeouts = Timeouts {
        ping: None,
        idle: None,
        close: None,
        message: None,
        stall: Duration::from_secs(60),
        one_way: false,
    };

    fn child() -> &'static Shutdown {
        Box::leak(Box::new(Shutdown::new()))
    }

    fn going_away() -> Vec<u8> {
        from_us(Opcode::Close, &close::payload(CloseCode::GOING_AWAY))
    }

    /// Serves a connection on a thread of its own while `client` runs, which has to end it.
    fn serving(
        timeouts: Timeouts,
        stop: &'static Shutdown,
        make: impl FnOnce(&Arc<Outbox>) -> Recorder,
        client: impl FnOnce(&Wire, &Arc<Outbox>, &Recorder),
    ) -> (Ended, CloseCode, Lines) {
        serving_in(timeouts, stop, Box::leak(Box::default()), make, client)
    }

    /// The same, counted in `line`.
    fn serving_in(
        timeouts: Timeouts,
        stop: &'static Shutdown,
        line: &'static Line,
        make: impl FnOnce(&Arc<Outbox>) -> Recorder,
        client: impl FnOnce(&Wire, &Arc<Outbox>, &Recorder),
    ) -> (Ended, CloseCode, Lines) {
        let wire = Wire::new();
        let (io, outbox, log) = wire.io(100);
        outbox.disown(&mut Vec::new());
        let recorder = make(&outbox);
        let ended = thread::scope(|scope| {
            let served =
                scope.spawn(|| serve(io, session(), &recorder, timeouts, stop, None, line));
            let _end = EndOnFailure(wire.clone());
            client(&wire, &outbox, &recorder);
            served.join().unwrap()
        });
        assert_eq!((recorder.closed(), outbox.state()), (1, State::Closed));
        assert!(stop.is_empty());
        (ended, outbox.summary().code, log)
    }

    fn hang_up(wire: &Wire) {
        wire.says(Read::End);
    }

    #[test]
    fn a_conversation_from_its_first_message_to_its_end() {
        let (ended, code, _) = serving(TIMEOUTS, child(), Recorder::echo, |wire, outbox, _| {
            for n in 0..20 {
                wire.frame(Opcode::Binary, &[n]);
                wire.expect(&from_us(Opcode::Binary, &[n]));
                // Another thread's message wakes it.
                outbox.send_message(Kind::Text, b"hello").unwrap();
                wire.expect(&from_us(Opcode::Text, b"hello"));
            }
            wire.frame(Opcode::Close, b"\x03\xe8");
            wire.expect(&from_us(Opcode::Close, b"\x03\xe8"));
        });
        assert_eq!((ended.received, ended.lost, code), (20 * 7 + 8, false, CloseCode::NORMAL));
    }

    #[test]
    fn what_is_carried_is_told_while_it_lasts_and_at_its_end() {
        let line: &Line = Box::leak(Box::default());
        let told = || {
            let of = [Metric::MessagesIn, Metric::MessagesOut, Metric::BytesIn, Metric::BytesOut];
            of.map(|metric| line.total(metric))
        };
        serving_in(TIMEOUTS, child(), line, Recorder::echo, |wire, _, _| {
            wire.frame(Opcode::Binary, b"1");
            wait_until(|| told() == [1, 1, 7, 3]);
            // Of these it is told within a second.
            wire.frame(Opcode::Binary, b"2");
            wire.expect(&from_us(Opcode::Binary, b"1"));
            wire.expect(&from_us(Opcode::Binary, b"2"));
            wait_until(|| told() == [2, 2, 14, 6]);
            wire.frame(Opcode::Close, b"\x03\xe8");
            wire.expect(&from_us(Opcode::Close, b"\x03\xe8"));
        });
        assert_eq!(told(), [2, 2, 22, 10]);
    }

    #[test]
    fn a_client_that_is_gone_or_lost() {
        for (end, lost) in [(Read::End, false), (Read::Reset, true), (Read::Panic, true)] {
            let panics = matches!(end, Read::Panic);
            let (ended, code, log) =
                serving(TIMEOUTS, child(), Recorder::echo, |wire, _, _| wire.says(end));
            assert_eq!((ended.lost, code), (lost, CloseCode::ABNORMAL));
            assert_eq!((log.has("WS0302"), log.has("WS0306")), (lost, panics));
        }
    }

    #[test]
    fn a_stop_closes_a_connection_that_waits_and_one_that_comes() {
        for late in [false, true] {
            let stop = child();
            if late {
                stop.end(Ending::Stop);
            }
            let (ended, code, _) = serving(TIMEOUTS, stop, Recorder::echo, |wire, _, _| {
                if !late {
                    wire.frame(Opcode::Ping, b"");
                    wire.expect(&from_us(Opcode::Pong, b""));
                    stop.end(Ending::Stop);
                }
                wire.expect(&going_away());
                wire.frame(Opcode::Close, b"");
            });
            assert_eq!((ended.lost, code), (false, CloseCode::GOING_AWAY));
        }
    }

    #[test]
    fn a_drain_closes_a_connection_at_its_moment_and_a_stop_before() {
        let stop = child();
        serving(TIMEOUTS, stop, Recorder::echo, |wire, _, _| {
            stop.end(Ending::Drain);
            wire.expect(&going_away());
            wire.frame(Opcode::Close, b"");
        });
        let stop = child();
        // Its moment is hours away, whatever the number of this process.
        stop.reset(Duration::from_millis(u32::MAX.into()));
        serving(TIMEOUTS, stop, Recorder::echo, |wire, outbox, _| {
            let works = || {
                wire.frame(Opcode::Ping, b"");
                wire.expect(&from_us(Opcode::Pong, b""));
            };
            works();
            stop.end(Ending::Drain);
            works();
            assert_eq!(outbox.state(), State::Open);
            // As a signal handler does it: nobody is woken.
            stop.hasten();
            wire.expect(&going_away());
            wire.frame(Opcode::Close, b"");
        });
    }

    #[test]
    fn a_connection_that_comes_when_a_drain_has_begun_is_closed_at_once() {
        let stop = child();
        stop.reset(Duration::from_millis(u32::MAX.into()));
        stop.end(Ending::Drain);
        let (ended, code, _) = serving(TIMEOUTS, stop, Recorder::echo, |wire, _, _| {
            wire.expect(&going_away());
            wire.frame(Opcode::Close, b"");
        });
        assert_eq!((ended.lost, code), (false, CloseCode::GOING_AWAY));
    }

    #[test]
    fn a_stop_does_not_wait_long_for_an_answer() {
        let stop = child();
        let (ended, code, log) = serving(TIMEOUTS, stop, Recorder::echo, |wire, _, _| {
            stop.end(Ending::Stop);
            wire.expect(&going_away());
        });
        assert_eq!((ended.lost, code), (true, CloseCode::GOING_AWAY));
        assert!(log.has("the client does not answer our Close"));
    }

    #[test]
    fn a_peer_has_a_while_from_its_connections_turn_on_and_no_longer() {
        for (trickles, while_it_takes) in [(false, STOP_TIMEOUT), (true, PEERS_END)] {
            let (stop, peer) = (child(), StuckPeer::new(trickles));
            let mut begun = Instant::now();
            let make = |_: &Arc<Outbox>| Recorder::with_peer(peer.clone());
            serving(TIMEOUTS, stop, make, |wire, _, _| {
                thread::sleep(STOP_TIMEOUT);
                begun = Instant::now();
                stop.end(Ending::Stop);
                wire.expect(&going_away());
                wire.frame(Opcode::Close, b"");
            });
            let took = begun.elapsed();
            assert!(took >= while_it_takes && took < LAST && peer.is_given_up(), "{took:?}");
        }
    }

    #[test]
    fn a_silent_client_is_pinged_and_then_given_up() {
        let timeouts = Timeouts { ping: Some(Duration::from_millis(10)), ..TIMEOUTS };
        let line: &Line = Box::leak(Box::default());
        let (ended, _, log) = serving_in(timeouts, child(), line, Recorder::echo, |wire, _, _| {
            wire.wait_for(|script| script.sent.starts_with(b"\x89\0").then_some(()));
        });
        assert!(ended.lost && log.has(NO_PONG));
        assert_eq!(line.total(Metric::PingsUnanswered), 1);
    }

    #[test]
    fn a_client_that_does_not_read_is_given_up_and_who_waits_is_released() {
        let timeouts = Timeouts { stall: Duration::from_millis(10), ..TIMEOUTS };
        let (ended, _, log) = serving(timeouts, child(), Recorder::echo, |wire, outbox, _| {
            wire.takes(0);
            assert_eq!(outbox.send_message(Kind::Binary, &[0; 98]), Ok(()));
            assert_eq!(outbox.send_message(Kind::Binary, b"1"), Err(Refused::Closing));
        });
        assert!(ended.lost && log.has("WS0301: closing with 1008: the client reads too slowly"));
    }

    #[test]
    fn a_callback_that_fills_the_queue_writes_itself() {
        let make = |outbox: &Arc<Outbox>| {
            let outbox = outbox.clone();
            Recorder::answering(move |_| {
                for n in 0..10 {
                    outbox.send_message(Kind::Binary, &[n; 50]).unwrap();
                }
            })
        };
        serving(TIMEOUTS, child(), make, |wire, _, _| {
            wire.frame(Opcode::Binary, b"1");
            let expected: Vec<u8> =
                (0..10).flat_map(|n| from_us(Opcode::Binary, &[n; 50])).collect();
            wire.expect(&expected);
            hang_up(wire);
        });
    }
}
