//! The service with the test as its only thread and its clock: turns, drains, stops, clients that linger.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::{Weak, atomic::AtomicUsize},
};

use super::{
    clock::{Clock, IDLE_AFTER, ROUND},
    entry::{LINGER, Phase},
    *,
};
use crate::{
    conn::outbox::{DriverHandle, Outbox, State},
    driver::{
        conn_io::ConnIo,
        judging::STOP_TIMEOUT,
        plain::{self, Early, Plain},
    },
    fakes::{
        Lines, Read, Recorder, StuckPeer, Watched, Wire, budget, from_client, from_us, outbox,
        session,
    },
    limits::memory::{Budget, UNLIMITED},
    metrics::{Line, Metric},
    os::{Interest, Sources, wait},
    proto::{
        Kind,
        close::{self, CloseCode},
        frame::Opcode,
    },
    settings::Timeouts,
};

const QUEUE: usize = 1000;
/// Without waiting.
const NOW: Option<Duration> = Some(Duration::ZERO);
/// No clock but those of the child's end.
const TIMEOUTS: Timeouts = Timeouts {
    ping: None,
    idle: None,
    close: Some(Duration::from_secs(5)),
    message: None,
    stall: Duration::from_secs(60),
    one_way: false,
};

/// There is no other thread.
fn nowhere() -> Elsewhere {
    Elsewhere { signals: false, overdue: Box::new(|_| ()) }
}

/// A service whose one thread and whose clock are the test.
struct Alone {
    service: &'static Service,
    clock: Clock,
    log: Lines,
    line: &'static Line,
    /// What it was told of an end that takes too long.
    overdue: Arc<Watched<Vec<Ending>>>,
}

/// A connection in it.
struct Talk {
    wire: Wire,
    outbox: Arc<Outbox>,
    recorder: Recorder,
    log: Lines,
    ends: Arc<Watched<Vec<Finished>>>,
    entry: Arc<Entry>,
}

impl Alone {
    fn new(drain: Duration) -> Self {
        Self::with(drain, &UNLIMITED)
    }

    fn with(drain: Duration, memory: &'static Budget) -> Self {
        let (log, line): (_, &Line) = (Lines::default(), Box::leak(Box::default()));
        let overdue: Arc<Watched<Vec<Ending>>> = Arc::default();
        let told = overdue.clone();
        let tell = move |ending| told.change(|told| told.push(ending));
        let elsewhere = Elsewhere { signals: false, overdue: Box::new(tell) };
        let service = Service::without_threads(Setup {
            threads: 1,
            drain,
            memory,
            line,
            log: Box::new(log.clone()),
            elsewhere,
        });
        let service = service.unwrap();
        // One thread, which waits whenever the clock looks.
        service.threads.join();
        let clock = Clock::new(service.now(), service.memory);
        Self { service, clock, log, line, overdue }
    }

    /// Does what there is to do.
    fn work(&self) {
        let (mut buffers, mut events) = (Buffers::default(), Events::default());
        while self.service.serve(&mut buffers, &mut events, NOW) {}
    }

    /// Lets time pass, and then the clock look.
    fn pass(&mut self, time: Duration) {
        self.service.skew.fetch_add(time.as_millis() as u64, Ordering::SeqCst);
        self.service.threads.wait(|| self.service.tick(&mut self.clock, false));
        self.work();
    }

    fn accept(&self, make: impl FnOnce(&Arc<Outbox>) -> Recorder) -> Talk {
        self.accept_with(make, |_| ())
    }

    fn accept_with(
        &self,
        make: impl FnOnce(&Arc<Outbox>) -> Recorder,
        ended: impl Fn(&Finished) + Send + 'static,
    ) -> Talk {
        let wire = Wire::new();
        let (io, outbox, log) = wire.io(QUEUE);
        let (recorder, ends) = (make(&outbox), Arc::new(Watched::default()));
        let kept: Arc<Watched<Vec<Finished>>> = ends.clone();
        self.service.accept(Accepted {
            io,
            session: session(),
            endpoint: Box::new(recorder.clone()),
            timeouts: TIMEOUTS,
            ended: Box::new(move |finished| {
                kept.change(|kept| kept.push(*finished));
                ended(finished);
            }),
        });
        let all = self.service.all();
        let entry = all.iter().find(|entry| Arc::ptr_eq(&entry.io.outbox, &outbox));
        let entry = entry.unwrap().clone();
        drop(all);
        self.work();
        Talk { wire, outbox, recorder, log, ends, entry }
    }

    fn echo(&self) -> Talk {
        self.accept(Recorder::echo)
    }
}

impl Talk {
    /// It has been ended as it should: once, and nothing of it is left.
    #[track_caller]
    fn assert_ended(self, alone: &Alone, code: CloseCode) -> Finished {
        let ends = self.ends.change(core::mem::take);
        assert_eq!((ends.len(), self.recorder.closed()), (1, 1));
        assert_eq!(ends[0].summary.code, code);
        assert_eq!(self.outbox.state(), State::Closed);
        assert!(matches!(*self.entry.phase.acquire(), Phase::Gone));
        assert!(!alone.service.all().iter().any(|other| Arc::ptr_eq(other, &self.entry)));
        assert_eq!(Arc::strong_count(&self.entry), 1);
        drop(self.entry);
        assert!(self.wire.change(|script| script.dropped));
        ends[0]
    }

    fn is_there(&self) -> bool {
        self.ends.change(|ends| ends.is_empty())
    }
}

fn going_away() -> Vec<u8> {
    from_us(Opcode::Close, &close::payload(CloseCode::GOING_AWAY))
}

#[test]
fn a_conversation_from_its_first_message_to_its_end() {
    let alone = Alone::new(Duration::ZERO);
    let talk = alone.echo();
    talk.wire.frame(Opcode::Binary, b"hello");
    alone.work();
    assert_eq!(talk.wire.sent(), from_us(Opcode::Binary, b"hello"));
    talk.wire.frame(Opcode::Close, b"\x03\xe8");
    alone.work();
    assert_eq!(talk.wire.sent(), from_us(Opcode::Close, b"\x03\xe8"));
    assert!(talk.wire.change(|script| script.ended));
    let Finished { summary, received } = talk.assert_ended(&alone, CloseCode::NORMAL);
    assert_eq!((summary.messages_in, summary.messages_out), (1, 1));
    assert_eq!((received, summary.bytes_out), (11 + 8, 7 + 4));
    assert_eq!(alone.service.connections(), 0);
}

#[test]
fn the_ends_of_a_client() {
    let alone = Alone::new(Duration::ZERO);
    for (end, line) in [(Read::End, "the client is gone"), (Read::Reset, "WS0302")] {
        let talk = alone.echo();
        talk.wire.frame(Opcode::Binary, b"last words");
        talk.wire.says(end);
        alone.work();
        assert!(talk.log.has(line));
        assert_eq!(talk.recorder.payloads(), [b"last words"]);
        talk.assert_ended(&alone, CloseCode::ABNORMAL);
    }
    let talk = alone.echo();
    talk.wire.breaks();
    talk.wire.frame(Opcode::Binary, b"1");
    alone.work();
    assert!(talk.log.has("WS0302"));
    talk.assert_ended(&alone, CloseCode::ABNORMAL);
}

#[test]
fn what_another_thread_sends_wakes_a_connection_at_rest() {
    let alone = Alone::new(Duration::ZERO);
    let talk = alone.echo();
    thread::scope(|scope| {
        scope.spawn(|| talk.outbox.send_message(Kind::Binary, b"1").unwrap());
    });
    // Only its driver can write.
    assert_eq!((talk.wire.sent(), alone.service.ready().len()), (vec![], 1));
    alone.work();
    assert_eq!(talk.wire.sent(), from_us(Opcode::Binary, b"1"));
    thread::scope(|scope| {
        scope.spawn(|| assert!(talk.outbox.close(b"", "test")));
    });
    alone.work();
    assert_eq!(talk.wire.sent(), from_us(Opcode::Close, b""));
    talk.wire.frame(Opcode::Close, b"");
    alone.work();
    talk.assert_ended(&alone, CloseCode::NO_STATUS);
}

#[test]
fn what_is_sent_between_the_last_write_and_the_rest_is_written() {
    let alone = Alone::new(Duration::ZERO);
    let talk = alone.echo();
    let outbox = talk.outbox.clone();
    // The driver has seen that nothing is left, and has not said yet that it sleeps: nobody wakes it.
    talk.wire.during_flush(move || outbox.send_message(Kind::Binary, b"2").unwrap());
    thread::scope(|scope| {
        scope.spawn(|| talk.outbox.send_message(Kind::Binary, b"1").unwrap());
    });
    alone.work();
    let sent = [from_us(Opcode::Binary, b"1"), from_us(Opcode::Binary, b"2")];
    assert_eq!(talk.wire.sent(), sent.concat());
}

#[test]
fn a_connection_that_runs_is_run_again_and_not_by_a_second_thread() {
    let alone = Alone::new(Duration::ZERO);
    let service = alone.service;
    let inside = Arc::new(AtomicUsize::new(0));
    let talk = alone.accept(|outbox| {
        let (inside, outbox) = (inside.clone(), outbox.clone());
        Recorder::answering(move |_| {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            // Meanwhile it is woken, and another thread takes it from the list.
            thread::scope(|scope| {
                scope.spawn(|| {
                    outbox.close(b"", "test");
                    let entry = service.next_ready().expect("it is woken");
                    service.run(&entry, &mut Buffers::default());
                });
            });
            inside.fetch_sub(1, Ordering::SeqCst);
        })
    });
    let turns = service.turns.load(Ordering::Relaxed);
    talk.wire.frame(Opcode::Binary, b"1");
    alone.work();
    assert!(service.turns.load(Ordering::Relaxed) >= turns + 2);
    assert_eq!(talk.wire.sent(), from_us(Opcode::Close, b""));
}

#[test]
fn a_client_that_is_never_short_of_bytes_lets_others_have_their_turn() {
    let alone = Alone::new(Duration::ZERO);
    let (busy, other) = (alone.echo(), alone.echo());
    for n in 0..100 {
        busy.wire.frame(Opcode::Binary, &[n]);
    }
    let (mut buffers, mut events) = (Buffers::default(), Events::default());
    assert!(alone.service.serve(&mut buffers, &mut events, NOW));
    let first = busy.recorder.payloads().len();
    assert!((1..100).contains(&first), "{first}");
    other.wire.frame(Opcode::Binary, b"me too");
    for _ in 0..2 {
        alone.service.serve(&mut buffers, &mut events, NOW);
    }
    assert_eq!(other.recorder.payloads(), [b"me too"]);
    alone.work();
    assert_eq!(busy.recorder.payloads(), (0..100).map(|n| vec![n]).collect::<Vec<_>>());
}

#[test]
fn a_late_event_does_not_reach_the_next_one_in_a_slot() {
    let alone = Alone::new(Duration::ZERO);
    let first = alone.echo();
    let token = first.entry.token;
    let driver: Weak<dyn DriverHandle> = first.entry.me.clone();
    first.wire.says(Read::End);
    alone.work();
    first.assert_ended(&alone, CloseCode::ABNORMAL);
    let second = alone.echo();
    assert_eq!(second.entry.token.bits() as u32, token.bits() as u32);
    assert_ne!(second.entry.token, token);
    for late in [token, token.of_peer()] {
        let events = [(late, Flags::READABLE)];
        assert!(alone.service.look_up(events.into_iter()).is_none());
    }
    assert_eq!(second.entry.flags.load(Ordering::Relaxed), 0);
    assert!(driver.upgrade().is_none());
    let events = [(second.entry.token, Flags::READABLE)];
    assert!(alone.service.look_up(events.into_iter()).is_some());
    // What is on the list when it ends finds it gone.
    second.entry.wake();
    second.wire.says(Read::End);
    alone.service.run(&second.entry, &mut Buffers::default());
    assert_eq!(alone.service.ready().len(), 1);
    alone.work();
    second.assert_ended(&alone, CloseCode::ABNORMAL);
}

#[test]
fn a_panic_ends_its_own_connection_once() {
    let alone = Alone::new(Duration::ZERO);
    let (talk, other) = (alone.echo(), alone.echo());
    talk.wire.says(Read::Panic);
    other.wire.frame(Opcode::Binary, b"1");
    alone.work();
    assert!(talk.log.has("WS0306"));
    talk.assert_ended(&alone, CloseCode::ABNORMAL);
    assert_eq!(other.wire.sent(), from_us(Opcode::Binary, b"1"));
    let talk = alone.accept(|_| Recorder::answering(|_| panic!("as the test says")));
    talk.wire.frame(Opcode::Binary, b"1");
    alone.work();
    talk.assert_ended(&alone, CloseCode::ABNORMAL);
    let talk = alone.accept_with(|_| Recorder::default(), |_| panic!("as the test says"));
    talk.wire.says(Read::End);
    alone.work();
    talk.assert_ended(&alone, CloseCode::ABNORMAL);
    let messages = alone.line.total(Metric::MessagesIn);
    assert_eq!((alone.service.connections(), messages), (1, 1));
}

#[test]
fn a_stop_closes_all_and_waits_for_their_answer_but_not_for_ever() {
    let mut alone = Alone::new(Duration::from_secs(100));
    let (polite, silent) = (alone.echo(), alone.echo());
    alone.service.end(Ending::Stop);
    alone.pass(Duration::ZERO);
    for talk in [&polite, &silent] {
        assert_eq!(talk.wire.sent(), going_away());
        assert!(talk.is_there());
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
    assert_eq!(alone.service.connections(), 0);
}

#[test]
fn a_drain_closes_each_at_its_moment_and_a_stop_the_rest() {
    let mut alone = Alone::new(Duration::from_secs(50));
    let talks: Vec<_> = (0..8).map(|_| alone.echo()).collect();
    alone.service.end(Ending::Drain);
    alone.pass(Duration::ZERO);
    let moment = |talk: &Talk| alone.service.ending.moment(talk.entry.token.bits());
    let mut moments: Vec<_> = talks.iter().map(moment).collect();
    moments.sort();
    // Into the longest while between two of them.
    let gaps = moments.windows(2).map(|pair| (pair[1] - pair[0], pair[0]));
    let (gap, last) = gaps.max().unwrap();
    alone.pass(last + gap / 2);
    for talk in &talks {
        let is_closed = talk.outbox.state() == State::Closing;
        assert_eq!(is_closed, alone.service.ending.moment(talk.entry.token.bits()) <= last);
    }
    alone.service.end(Ending::Stop);
    alone.service.end(Ending::Drain);
    alone.pass(Duration::ZERO);
    for talk in talks {
        assert_eq!(talk.wire.sent(), going_away());
        talk.wire.frame(Opcode::Close, b"");
        alone.work();
        talk.assert_ended(&alone, CloseCode::GOING_AWAY);
    }
}

#[test]
fn a_peer_has_a_while_from_its_connections_turn_on_and_no_longer() {
    for (trickles, while_it_takes) in [(false, STOP_TIMEOUT), (true, Duration::from_secs(1))] {
        for ending in [Ending::Drain, Ending::Stop] {
            let mut alone = Alone::new(Duration::ZERO);
            let peer = StuckPeer::new(trickles);
            let talk = alone.accept(|_| Recorder::with_peer(peer.clone()));
            alone.pass(ROUND * 10);
            alone.service.end(ending);
            alone.pass(Duration::ZERO);
            assert_eq!(talk.wire.sent(), going_away());
            talk.wire.frame(Opcode::Close, b"");
            alone.work();
            alone.pass(while_it_takes - Duration::from_millis(300));
            assert!(talk.is_there() && !peer.is_given_up());
            alone.pass(Duration::from_millis(300));
            assert!(peer.is_given_up());
            talk.assert_ended(&alone, CloseCode::GOING_AWAY);
        }
    }
}

#[test]
fn a_stop_does_not_begin_a_turn_anew() {
    let mut alone = Alone::new(Duration::ZERO);
    let peer = StuckPeer::new(false);
    let talk = alone.accept(|_| Recorder::with_peer(peer.clone()));
    alone.service.end(Ending::Drain);
    alone.pass(Duration::ZERO);
    talk.wire.frame(Opcode::Close, b"");
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

/// Connections on httpd's threads hold memory, too: what they have given back is told, though nobody is here.
#[test]
fn memory_that_others_have_given_back_is_reported() {
    let memory = budget(1 << 20);
    let mut alone = Alone::with(Duration::ZERO, memory);
    let told = |alone: &Alone| alone.line.total(Metric::Memory);
    let mut claims = [memory.claim(), memory.claim()];
    for claim in &mut claims {
        claim.cover(100_000).unwrap();
    }
    alone.pass(2 * ROUND);
    let all = told(&alone);
    assert!(all > 0 && all == memory.used() as u64);
    let [first, second] = claims;
    drop(first);
    alone.pass(ROUND / 4);
    drop(second);
    // It looks once more within a second, and then not before somebody comes.
    alone.pass(ROUND / 4);
    assert_eq!(told(&alone), all);
    assert!(alone.service.until_next(&alone.clock, true).is_some_and(|time| time <= ROUND));
    alone.pass(ROUND);
    assert_eq!(told(&alone), 0);
    assert_eq!(alone.service.until_next(&alone.clock, true), None);
}

/// Messages and bytes, in and out.
fn carried(line: &Line) -> [u64; 4] {
    let of = [Metric::MessagesIn, Metric::MessagesOut, Metric::BytesIn, Metric::BytesOut];
    of.map(|metric| line.total(metric))
}

#[test]
fn what_connections_have_carried_is_told_once() {
    let mut alone = Alone::new(Duration::ZERO);
    let (gone, here) = (alone.echo(), alone.echo());
    for talk in [&gone, &here] {
        talk.wire.frame(Opcode::Binary, b"1");
    }
    gone.wire.says(Read::End);
    alone.work();
    gone.assert_ended(&alone, CloseCode::ABNORMAL);
    // At the end, and in each round.
    assert_eq!(carried(alone.line), [1, 1, 7, 3]);
    for _ in 0..3 {
        alone.pass(ROUND);
        assert_eq!(carried(alone.line), [2, 2, 14, 6]);
    }
    here.wire.says(Read::End);
    alone.work();
    alone.pass(ROUND);
    assert_eq!(carried(alone.line), [2, 2, 14, 6]);
}

#[test]
fn what_a_connection_sends_in_a_long_callback_is_told_meanwhile() {
    let mut alone = Alone::new(Duration::ZERO);
    let talk = alone.echo();
    talk.wire.frame(Opcode::Binary, b"1");
    alone.work();
    alone.pass(ROUND);
    let phase = core::mem::replace(&mut *talk.entry.phase.acquire(), Phase::Running);
    thread::scope(|scope| {
        scope.spawn(|| talk.outbox.send_message(Kind::Binary, b"2").unwrap());
    });
    talk.entry.count();
    assert_eq!(carried(alone.line)[..3], [1, 2, 7]);
    *talk.entry.phase.acquire() = phase;
    alone.work();
    alone.pass(ROUND);
    assert_eq!(carried(alone.line), [1, 2, 7, 6]);
}

#[test]
fn the_clock_slows_down_when_nothing_moves_and_traffic_wakes_it() {
    let mut alone = Alone::new(Duration::ZERO);
    let talk = alone.echo();
    alone.pass(Duration::ZERO);
    alone.pass(IDLE_AFTER);
    assert!(!alone.service.threads.is_idle());
    alone.pass(Duration::from_millis(100));
    // Its own wait for the events was the last traffic.
    let clock = &mut alone.clock;
    alone.service.threads.wait(|| alone.service.tick(clock, false));
    assert!(alone.service.threads.is_idle());
    alone.service.clock_waker.clear();
    thread::scope(|scope| {
        scope.spawn(|| talk.outbox.send_message(Kind::Binary, b"1").unwrap());
    });
    assert!(!alone.service.threads.is_idle());
    let first = Some((alone.service.clock_waker.as_fd(), Interest { read: true, write: false }));
    let ready = wait(&Sources { first, ..Sources::default() }, NOW);
    assert!(ready.unwrap().first.read);
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
    // It is the same shortage.
    assert_eq!(alone.line.total(Metric::ThreadsExhausted), 1);
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
    alone.service.accept(Accepted {
        io: ConnIo::new(Box::new(transport), outbox.clone()),
        session: session(),
        endpoint: Box::new(recorder.clone()),
        timeouts: TIMEOUTS,
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
        assert_eq!(alone.service.connections(), 1);
        if patient {
            alone.pass(Duration::from_millis(1000));
        } else {
            drop(client);
            alone.work();
        }
        assert_eq!(alone.service.connections(), 0);
        assert_eq!((recorder.closed(), ended.change(|n| *n)), (1, 1));
    }
}

#[test]
fn who_lingers_does_not_hold_up_a_stop() {
    let mut alone = Alone::new(Duration::ZERO);
    let (mut client, ..) = on_socket(&alone);
    client.write_all(&from_client(Opcode::Close, b"")).unwrap();
    alone.work();
    assert_eq!(alone.service.connections(), 1);
    alone.service.end(Ending::Stop);
    alone.pass(Duration::ZERO);
    assert_eq!(alone.service.connections(), 0);
}

#[test]
fn a_callback_that_blocks_holds_up_nobody_and_the_end_waits_for_it() {
    let log = Lines::default();
    let service = Service::start(Setup {
        threads: 4,
        drain: Duration::ZERO,
        memory: &UNLIMITED,
        line: Box::leak(Box::default()),
        log: Box::new(log),
        elsewhere: nowhere(),
    });
    let mut alone = Alone::new(Duration::ZERO);
    alone.service = service.unwrap();
    let accept = |make: &dyn Fn(&Arc<Outbox>) -> Recorder| {
        let wire = Wire::new();
        let (io, outbox, _) = wire.io(QUEUE);
        let (recorder, ended) = (make(&outbox), Arc::new(Watched::default()));
        let count: Arc<Watched<usize>> = ended.clone();
        alone.service.accept(Accepted {
            io,
            session: session(),
            endpoint: Box::new(recorder.clone()),
            timeouts: TIMEOUTS,
            ended: Box::new(move |_| count.change(|count| *count += 1)),
        });
        (wire, recorder, ended)
    };
    let released = Arc::new(Watched::default());
    let gate: Arc<Watched<bool>> = released.clone();
    let blocked = accept(&move |_| {
        let gate = gate.clone();
        let answer = move |_: &[u8]| gate.wait_for(|open| open.then_some(()));
        Recorder::answering(answer).of("slow.so")
    });
    blocked.0.frame(Opcode::Binary, b"1");
    blocked.1.wait_for(|told| (told.messages.len() == 1).then_some(()));
    let others: Vec<_> = (0..8).map(|_| accept(&Recorder::echo)).collect();
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
    assert_eq!((alone.service.connections(), alone.service.threads()), (0, 0));
}
