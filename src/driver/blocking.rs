//! One thread per connection: waits on the transport's descriptor together with a wake-up for what
//! other threads want.
#![deny(unsafe_code)]

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use super::{
    conn_io::Lane,
    reader::{Buffers, Outcome, READ, Turn},
    service::STOP_TIMEOUT,
    shutdown::{Ending, EndingWord, Stop},
};
use crate::{
    conn::{
        deadlines::{Clocks, Sight, Verdict},
        endpoint::{Endpoint, Peer},
        log::Level,
        outbox::{Carrier, Outbox, Socket, State},
        session::Session,
    },
    os::{Interest, Signals, Waker, pending, wait, wait_for_two},
    proto::{
        close::{self, CloseCode},
        frame::Opcode,
    },
    settings::Patience,
};

/// How often a connection that waits for its moment of a drain looks whether that has become a stop.
const HASTE: Duration = Duration::from_millis(100);

/// How long the end of a connection waits for its peer.
const PARTING: Duration = Duration::from_secs(1);

/// How long after the child's end has come to a connection what still waits for its peer is dropped, however fast it is.
const PEERS_END: Duration = Duration::from_secs(1);

/// How long after that the connection's thread goes at the latest: before the child has to.
const LAST: Duration = Duration::from_millis(1300);

/// The thread's part of a connection that other threads, and callbacks on this one, reach through the outbox.
struct Blocking {
    lane: Lane,
    waker: Waker,
    end: End,
}

/// The child's end, as one connection sees it.
struct End {
    stop: &'static Stop,
    /// Signals are held back on the connection's thread.
    signals: bool,
    /// What those signals have said.
    signalled: EndingWord,
    /// When the connection has its turn, from the beginning of a drain.
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

    /// How long ago it came.
    fn since(&self) -> Option<Duration> {
        self.came.get().map(Instant::elapsed)
    }
}

impl Carrier for Blocking {
    fn wake(&self) {
        self.waker.wake();
    }

    fn pump(&self, deadline: Instant) {
        self.lane.pump(deadline);
    }

    fn socket(&self) -> Option<&dyn Socket> {
        self.lane.socket.as_deref().map(|socket| socket as &dyn Socket)
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
/// wake-up it is lost at once.
///
/// `stop`, or one of `signals` where the MPM handles them on this thread, ends it with Close 1001: at once, or at its
/// moment of a drain.
pub fn serve(
    lane: Lane,
    session: Session,
    endpoint: &dyn Endpoint,
    patience: Patience,
    stop: &'static Stop,
    signals: Option<&Signals>,
) -> Ended {
    let outbox = lane.outbox.clone();
    let mut turn = Turn::new(session);
    let end = End {
        stop,
        signals: signals.is_some(),
        signalled: EndingWord::new(),
        moment: OnceLock::new(),
        drain: OnceLock::new(),
        came: OnceLock::new(),
    };
    let blocking = Waker::new().map(|waker| Arc::new(Blocking { lane, waker, end }));
    let result = match &blocking {
        Ok(blocking) => {
            let carrier: Arc<dyn Carrier> = blocking.clone();
            let entry = stop.enter(&carrier);
            let ending = signals.map_or(Ending::None, |_| pending()).max(entry.ending());
            // Who comes when the drain has begun does not lengthen it.
            let moment = if ending == Ending::None { entry.moment() } else { Duration::ZERO };
            let _ = blocking.end.moment.set(moment);
            let weak: Weak<dyn Carrier> = Arc::downgrade(&carrier);
            outbox.open(weak);
            outbox.own();
            let turns = || turns(blocking, &mut turn, endpoint, patience, signals);
            // A panic is a bug of ours; the endpoint hears of the end all the same.
            catch_unwind(AssertUnwindSafe(turns)).unwrap_or_else(|_| {
                let line =
                    format_args!("WS0306: the connection is dropped after an internal error");
                outbox.journal().write(Level::Error, line);
                Err(io::Error::other("an internal error"))
            })
        }
        Err(e) => Err(io::Error::other(format!("no descriptor for its wake-up: {e}"))),
    };
    if let Err(error) = &result {
        outbox
            .journal()
            .write(Level::Info, format_args!("WS0302: the connection is lost: {error}"));
    }
    outbox.end("the connection is over");
    endpoint.closed();
    let since = blocking.as_ref().ok().and_then(|blocking| blocking.end.since());
    if let (Some(peer), false) = (endpoint.peer(), stop.ending() == Ending::Stop) {
        part(peer, since.map_or(PARTING, |since| LAST.saturating_sub(since)));
    }
    Ended { received: turn.received(), lost: result.is_err(), hurried: since.is_some() }
}

/// Waits `patience` at most until a peer has got everything.
fn part(peer: &dyn Peer, patience: Duration) {
    let (mut buffer, start) = (vec![0; READ], Instant::now());
    let interest = Interest { read: true, write: false };
    while !peer.farewell(&mut buffer) && start.elapsed() < patience {
        let _ = wait(peer.descriptor(), interest, None, Some(PARTING / 20), None);
    }
}

fn turns(
    blocking: &Blocking,
    turn: &mut Turn,
    endpoint: &dyn Endpoint,
    mut patience: Patience,
    signals: Option<&Signals>,
) -> io::Result<()> {
    let Blocking { lane, waker, end } = blocking;
    let outbox = &*lane.outbox;
    let mut buffers = Buffers::default();
    let start = Instant::now();
    let mut clocks = Clocks::new(Duration::ZERO);
    let mut readable = false;
    loop {
        let due = end.due();
        if due.is_some_and(|due| due <= Instant::now()) {
            end.came.get_or_init(Instant::now);
        }
        let since = end.since();
        let stopping = since.is_some();
        if stopping {
            patience.close = Some(patience.close.map_or(STOP_TIMEOUT, |p| p.min(STOP_TIMEOUT)));
            outbox.close(&close::payload(CloseCode::GOING_AWAY), "the server stops");
        }
        let (read, write, again) =
            match turn.run(lane, endpoint, (readable, false), &mut buffers)? {
                Outcome::Over => return Ok(()),
                Outcome::Again => (true, true, true),
                Outcome::Rest { read, write } => (read, write, false),
            };
        let (state, mut summary, unsent) = outbox.look();
        let (now, mut heard) = (start.elapsed(), turn.heard());
        let unsent = unsent || write && !again;
        let arrived = if unsent { lane.arrived(summary.bytes_out) } else { None };
        summary.bytes_out = arrived.unwrap_or(summary.bytes_out);
        let peer = endpoint.peer();
        if peer.is_some_and(|peer| peer.check(now, peer_patience(&patience, since))) {
            continue;
        }
        // A client that is not read from cannot be blamed for its silence.
        heard.bytes |= state <= State::Open && peer.is_some_and(|peer| peer.is_crowded());
        // Its clock has to be asked again if something waits for the peer.
        let relaying = peer.is_some_and(|peer| peer.interest().1);
        let pause = if stopping { HASTE } else { Duration::from_secs(1) };
        let judged = relaying.then_some(now + pause);
        let sight = Sight {
            now,
            state,
            heard,
            summary,
            unsent: arrived.is_some(),
            unfinished: turn.unfinished(),
            running: false,
            hurry: stopping,
        };
        let deadline = match clocks.check(&sight, &patience) {
            Verdict::Wait(deadline) => deadline,
            // Nothing is expected of the client while the peer gets the rest.
            _ if state == State::Closed && relaying && !unsent => None,
            Verdict::Listen => {
                readable = true;
                continue;
            }
            verdict => {
                act(verdict, outbox)?;
                continue;
            }
        };
        let deadline = deadline.into_iter().chain(judged).min();
        readable = false;
        // Nobody else could use it meanwhile.
        buffers.release();
        if !outbox.fall_asleep(write) {
            continue;
        }
        let due = due.filter(|_| !stopping).map(|due| due - start);
        let deadline = deadline.into_iter().chain(due).min();
        let timeout = deadline.map(|deadline| deadline.saturating_sub(start.elapsed()));
        // A signal handler can make a drain a stop, but wake nobody.
        let timeout = if due.is_some() { timeout.min(Some(HASTE)) } else { timeout };
        // A client that is never at a loss for bytes must not keep us from seeing what else there is.
        let mut timeout = if again { Some(Duration::ZERO) } else { timeout };
        let mut interest = Interest { read, write };
        if write {
            let (shown, retry) = lane.room();
            interest.write = shown;
            timeout = timeout.into_iter().chain(retry).min();
        }
        // A pending signal stays pending: once seen, it must not end each further wait.
        let signals = signals.filter(|_| !stopping).map(Signals::pending);
        let client = (lane.descriptor(), interest);
        let second = peer.map(|peer| {
            let (read, write) = peer.interest();
            (peer.descriptor(), Interest { read, write })
        });
        let ready = wait_for_two(client, second, Some(waker), timeout, signals)?;
        readable = ready.read;
        if let Some(peer) = peer {
            peer.note(ready.second);
        }
        end.signalled.raise(ready.ending);
    }
}

/// How long a peer may take nothing of what waits for it. `since`: how long ago the child's end came to the connection; what
/// the peer did before that is judged as ever.
pub(super) fn peer_patience(patience: &Patience, since: Option<Duration>) -> Duration {
    match since {
        Some(since) if since >= PEERS_END => Duration::ZERO,
        Some(since) if since >= STOP_TIMEOUT => patience.stall.min(STOP_TIMEOUT),
        _ => patience.stall,
    }
}

/// Does what the clocks ask for; an error if the connection is to be given up.
pub(super) fn act(verdict: Verdict, outbox: &Outbox) -> io::Result<()> {
    match verdict {
        Verdict::Wait(_) | Verdict::Listen => {}
        Verdict::Ping => {
            // While more than the limit waits for the client there is no need to ask whether it is there.
            let _ = outbox.send_control(Opcode::Ping, &[]);
        }
        Verdict::Close(CloseCode::POLICY, why) => outbox.give_up(format_args!("{why}")),
        Verdict::Close(code, why) => {
            outbox.close(&close::payload(code), why);
        }
        Verdict::GiveUp(why) => return Err(io::Error::new(io::ErrorKind::TimedOut, why)),
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        conn::outbox::Refused,
        fakes::{EndOnFailure, Log, Read, Recorder, StuckPeer, Wire, from_us, session},
        proto::Kind,
    };

    const PATIENCE: Patience = Patience {
        ping: None,
        idle: None,
        close: None,
        message: None,
        stall: Duration::from_secs(60),
    };

    fn child() -> &'static Stop {
        Box::leak(Box::new(Stop::new()))
    }

    fn going_away() -> Vec<u8> {
        from_us(Opcode::Close, &close::payload(CloseCode::GOING_AWAY))
    }

    /// Serves a connection on a thread of its own while `client` runs, which has to end it.
    fn serving(
        patience: Patience,
        stop: &'static Stop,
        make: impl FnOnce(&Arc<Outbox>) -> Recorder,
        client: impl FnOnce(&Wire, &Arc<Outbox>, &Recorder),
    ) -> (Ended, CloseCode, Log) {
        let wire = Wire::new();
        let (lane, outbox, log) = wire.lane(100);
        outbox.disown(&mut Vec::new());
        let recorder = make(&outbox);
        let ended = thread::scope(|scope| {
            let served = scope.spawn(|| serve(lane, session(), &recorder, patience, stop, None));
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
        let (ended, code, _) = serving(PATIENCE, child(), Recorder::echo, |wire, outbox, _| {
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
    fn a_client_that_is_gone_or_lost() {
        for (end, lost) in [(Read::End, false), (Read::Reset, true), (Read::Panic, true)] {
            let panics = matches!(end, Read::Panic);
            let (ended, code, log) =
                serving(PATIENCE, child(), Recorder::echo, |wire, _, _| wire.says(end));
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
            let (ended, code, _) = serving(PATIENCE, stop, Recorder::echo, |wire, _, _| {
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
        serving(PATIENCE, stop, Recorder::echo, |wire, _, _| {
            stop.end(Ending::Drain);
            wire.expect(&going_away());
            wire.frame(Opcode::Close, b"");
        });
        let stop = child();
        // Its moment is hours away, whatever the number of this process.
        stop.reset(Duration::from_millis(u32::MAX.into()));
        serving(PATIENCE, stop, Recorder::echo, |wire, outbox, _| {
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
        let (ended, code, _) = serving(PATIENCE, stop, Recorder::echo, |wire, _, _| {
            wire.expect(&going_away());
            wire.frame(Opcode::Close, b"");
        });
        assert_eq!((ended.lost, code), (false, CloseCode::GOING_AWAY));
    }

    #[test]
    fn a_stop_does_not_wait_long_for_an_answer() {
        let stop = child();
        let (ended, code, log) = serving(PATIENCE, stop, Recorder::echo, |wire, _, _| {
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
            serving(PATIENCE, stop, make, |wire, _, _| {
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
        let patience = Patience { ping: Some(Duration::from_millis(10)), ..PATIENCE };
        let (ended, _, log) = serving(patience, child(), Recorder::echo, |wire, _, _| {
            wire.wait_for(|script| script.sent.starts_with(b"\x89\0").then_some(()));
        });
        assert!(ended.lost && log.has("the client does not answer our Ping"));
    }

    #[test]
    fn a_client_that_does_not_read_is_given_up_and_who_waits_is_released() {
        let patience = Patience { stall: Duration::from_millis(10), ..PATIENCE };
        let (ended, _, log) = serving(patience, child(), Recorder::echo, |wire, outbox, _| {
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
        serving(PATIENCE, child(), make, |wire, _, _| {
            wire.frame(Opcode::Binary, b"1");
            let expected: Vec<u8> =
                (0..10).flat_map(|n| from_us(Opcode::Binary, &[n; 50])).collect();
            wire.expect(&expected);
            hang_up(wire);
        });
    }
}
