//! A subscriber's place in the ring: what it has got, and what comes next.
//!
//! A subscriber that has got everything is *idle*, and reads again from where its child is told of the next message: what
//! others publish meanwhile is nothing to it. Told or not, it reads on until the head, so a message that comes while it
//! reads is read at once or told once more.

use std::sync::Arc;

use super::{
    Kind, Message, Replay,
    feed::Feed,
    id::Id,
    kept::Kept,
    ring::{Header, Missed, Ring},
    subscription::Subscription,
};

/// How many records one looks at before others have their turn.
const LOOKS: usize = 1024;

/// Where a subscriber reads.
pub trait Messages {
    /// The messages.
    fn ring(&self) -> Ring;

    /// The whole of one; an error if it is not there any more.
    fn message(&self, header: &Header) -> Result<Arc<Kept>, Missed>;
}

/// The place.
#[derive(Debug)]
pub struct Cursor {
    /// What comes next, or comes behind this.
    at: u64,
    /// Behind the message that comes next.
    behind: u64,
    /// All before it has been read, and nothing is there until the hub says so.
    idle: bool,
    /// Where it began: the end of a channel before that is not its end.
    born: u64,
    /// It brought no id, and has got nothing of what was there when it began: nobody has promised that to it.
    is_new: bool,
    subscriptions: Box<[Subscription]>,
}

/// What comes next.
#[derive(Clone, Debug)]
pub enum Next {
    /// A message, which stays the next one until [`Cursor::pass`].
    Message(Arc<Kept>),
    /// One for which there is no room yet.
    Full,
    /// It was overtaken: something is missing. What follows is there.
    Gap,
    /// Nothing, until the subscriber is told.
    Nothing,
    /// There may be more, when others had their turn.
    Later,
}

impl Cursor {
    /// The place of one who is subscribed to these channels, and `true` if it brings an id and misses something.
    ///
    /// It has to be subscribed already: what is published from then on it is told of.
    pub fn new(
        ring: Ring,
        subscriptions: Box<[Subscription]>,
        last: Option<&str>,
        replay: Option<Replay>,
    ) -> (Self, bool) {
        let (head, tail) = ring.bounds();
        let resumed = last.map(|text| {
            let id = Id::parse(text)?;
            let of = subscriptions.iter().find(|wanted| id.is_of(ring.seed(), wanted.hash))?;
            if id.time == 0 {
                return (tail..=head).contains(&id.at).then_some(id.at);
            }
            let header = ring.header(id.at).ok()?;
            (header.hash == of.hash && header.time == id.time).then_some(header.next)
        });
        let replayed = || match replay? {
            Replay::All => Some(tail),
            Replay::Last(most) => {
                let mut places: Vec<u64> = subscriptions
                    .iter()
                    .flat_map(|wanted| ring.history(&wanted.name).take(most as usize))
                    .map(|header| header.at)
                    .collect();
                places.sort_unstable_by(|a, b| b.cmp(a));
                places.truncate(most as usize);
                places.last().copied()
            }
        };
        let begin = resumed.flatten().or_else(replayed);
        let (at, idle) = (begin.unwrap_or(head), begin.is_none());
        let is_new = !matches!(resumed, Some(Some(_)));
        (Self { at, behind: at, idle, born: head, is_new, subscriptions }, resumed == Some(None))
    }

    /// The channels.
    pub fn subscriptions(&self) -> &[Subscription] {
        &self.subscriptions
    }

    /// The id by which a client gets what comes from here on. With several channels any one of them will do.
    pub fn id(&self, ring: Ring) -> Id {
        Id::from_here(
            ring.seed(),
            self.at,
            self.subscriptions.first().map_or(0, |wanted| wanted.hash),
        )
    }

    /// The place of one that asks again and again: it was there all the time since it got its id.
    pub fn of_one_that_polls(mut self) -> Self {
        if !self.is_new {
            self.born = self.at;
        }
        self
    }

    /// What comes next, whatever room there is.
    pub fn next(&mut self, messages: &impl Messages, feed: &Feed) -> Next {
        self.next_if(messages, feed, &|_| true)
    }

    /// What comes next. `feed` is what the hub tells this subscriber by. `has_room` says whether there is room for a body of
    /// so many bytes: a message is not even read before.
    pub fn next_if(
        &mut self,
        messages: &impl Messages,
        feed: &Feed,
        has_room: &dyn Fn(usize) -> bool,
    ) -> Next {
        let ring = messages.ring();
        // Before the head is looked at: who tells us after that has something behind it.
        let told = feed.take();
        if self.idle {
            let Some(told) = told else { return Next::Nothing };
            self.at = self.at.max(told);
            self.idle = false;
        }
        let (head, tail) = ring.bounds();
        if self.at > head {
            // The ring has begun anew.
            self.at = tail;
            return Next::Gap;
        }
        for _ in 0..LOOKS {
            if self.at == head {
                self.idle = true;
                return Next::Nothing;
            }
            let Ok(header) = ring.header(self.at) else { return self.overtaken(ring) };
            if self.wants(&header) {
                if header.kind != Kind::End && !has_room(header.body_len()) {
                    return Next::Full;
                }
                match messages.message(&header) {
                    Err(_) => return self.overtaken(ring),
                    Ok(message) if self.has(&message) => {
                        self.behind = header.next;
                        return Next::Message(message);
                    }
                    Ok(_) => {}
                }
            }
            self.at = header.next;
        }
        Next::Later
    }

    /// Where what comes next is, or behind which.
    pub fn place(&self) -> u64 {
        self.at
    }

    /// The message that came next has been dealt with.
    pub fn pass(&mut self) {
        (self.at, self.is_new) = (self.behind, false);
    }

    fn wants(&self, header: &Header) -> bool {
        self.subscriptions.iter().any(|wanted| wanted.hash == header.hash)
            && (header.kind != Kind::End || header.at >= self.born)
    }

    fn has(&self, message: &Message) -> bool {
        self.subscriptions.iter().any(|wanted| *wanted.name == *message.channel)
    }

    /// Goes on with the oldest that is there.
    fn overtaken(&mut self, ring: Ring) -> Next {
        let (head, tail) = ring.bounds();
        // What is there and is no record is of no use to anybody.
        self.at = if tail > self.at { tail } else { head };
        if self.is_new && self.at <= self.born {
            // History that went before it could begin with it.
            return Next::Later;
        }
        Next::Gap
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use core::fmt;
    use std::{
        sync::Weak,
        time::{Duration, Instant},
    };

    use loom::thread;

    use super::*;
    use crate::{
        channel::{broker::NewMessage, ring::loom_tests::ring},
        conn::{
            log::{Level, Log},
            outbox::{Bounds, DriverHandle, Outbox, WriteSocket},
        },
        limits::memory::UNLIMITED,
        sync::{Condvar, Mutex, check},
    };

    struct Silence;

    impl Log for Silence {
        fn enabled(&self, _: Level) -> bool {
            false
        }
        fn write(&self, _: Level, _: fmt::Arguments<'_>) {}
    }

    /// A connection that sleeps until it has a turn.
    #[derive(Default)]
    struct Turns {
        told: Mutex<bool>,
        changed: Condvar,
    }

    impl Turns {
        fn sleep(&self) {
            let mut told = self.told.lock().unwrap();
            while !*told {
                told = self.changed.wait(told).unwrap();
            }
            *told = false;
        }
    }

    impl DriverHandle for Turns {
        fn wake(&self) {
            *self.told.lock().unwrap() = true;
            self.changed.notify_all();
        }
        fn pump(&self, _: Instant) {}
        fn socket(&self) -> Option<&dyn WriteSocket> {
            None
        }
    }

    impl Messages for Ring {
        fn ring(&self) -> Ring {
            *self
        }
        fn message(&self, header: &Header) -> Result<Arc<Kept>, Missed> {
            Ring::message(self, header).map(Kept::alone).map(Arc::new)
        }
    }

    fn publish(ring: Ring, channel: &str, n: u8) -> u64 {
        ring.write(&NewMessage { kind: Kind::Binary, channel, media: "", body: &[n] }, 1).at
    }

    /// One thread publishes and tells; the other one reads until it has got `messages`, and sleeps whenever there is nothing.
    /// `before` are there already, of which so many are got that are asked for. One that `waits` has no room at first.
    fn got(replay: Option<Replay>, before: u8, expected: &'static [u8], waits: bool) {
        check(2, move || {
            let ring = ring(64);
            let bounds = Bounds {
                queue: 1000,
                timeout: Duration::from_secs(3600),
                compress_from: 0,
                memory: &UNLIMITED,
            };
            let outbox = Arc::new(Outbox::new(bounds, None, Box::new(Silence)));
            let turns = Arc::new(Turns::default());
            let handle: Weak<dyn DriverHandle> = Arc::<Turns>::downgrade(&turns);
            outbox.open(handle);
            for n in 0..before {
                publish(ring, "a", n);
            }
            let feed = Feed::new(outbox);
            let (mut cursor, gap) =
                Cursor::new(ring, Subscription::untold(ring, &["a".to_owned()]), None, replay);
            assert!(!gap);
            let hub = thread::spawn({
                let feed = feed.clone();
                move || {
                    for n in 0..2 {
                        feed.tell(publish(ring, "a", before + n), 0);
                    }
                }
            });
            let mut got = Vec::new();
            let mut has_room = !waits;
            loop {
                match cursor.next_if(&ring, &feed, &|_| has_room) {
                    Next::Full => {
                        feed.hold((before == 0).then(|| cursor.place()));
                        // Its client takes something.
                        has_room = true;
                    }
                    Next::Message(message) => {
                        got.push(message.body[0]);
                        cursor.pass();
                    }
                    Next::Nothing if got.len() < expected.len() => turns.sleep(),
                    Next::Nothing => break,
                    other => panic!("{other:?}"),
                }
            }
            hub.join().unwrap();
            assert!(!matches!(cursor.next(&ring, &feed), Next::Message(_)));
            assert_eq!(got, expected);
        });
    }

    #[test]
    fn every_message_is_got_once() {
        got(None, 0, &[0, 1], false);
    }

    #[test]
    fn history_goes_over_into_what_is_live() {
        got(Some(Replay::Last(1)), 2, &[1, 2, 3], false);
        got(Some(Replay::All), 1, &[0, 1, 2], false);
    }

    #[test]
    fn nothing_is_missed_by_who_waits_for_its_client() {
        got(None, 0, &[0, 1], true);
        got(Some(Replay::All), 1, &[0, 1, 2], true);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{
        channel::{
            hub::{
                Hub,
                tests::{fill, hub, publish},
            },
            store,
        },
        fakes::{Driver, outbox},
    };

    /// A subscriber that is at work in turns, as the driver has it be.
    struct Reader {
        hub: &'static Hub,
        feed: Arc<Feed>,
        driver: Arc<Driver>,
        cursor: Cursor,
        at_work: bool,
        got: Vec<u64>,
    }

    type Subscribed = (Arc<Feed>, Arc<Driver>, Box<[Subscription]>);

    impl Reader {
        /// One that is subscribed, and then begins.
        fn subscribe(hub: &'static Hub, names: &[String]) -> Subscribed {
            let (outbox, _) = outbox(1000);
            let driver = Driver::new(None, || ());
            driver.rest(&outbox);
            let feed = Feed::new(outbox);
            let subscriptions = hub.subscribe(names, &feed).unwrap();
            (feed, driver, subscriptions)
        }

        fn begin(
            hub: &'static Hub,
            (feed, driver, subscriptions): Subscribed,
            last: Option<&str>,
            replay: Option<Replay>,
        ) -> Self {
            let (cursor, gap) = Cursor::new(hub.store().ring(), subscriptions, last, replay);
            assert!(!gap);
            Self { hub, feed, driver, cursor, at_work: true, got: Vec::new() }
        }

        fn new(hub: &'static Hub, names: &[&str], replay: Option<Replay>) -> Self {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            Self::begin(hub, Self::subscribe(hub, &names), None, replay)
        }

        /// A step of a turn; `false` if there is none to have.
        fn step(&mut self) -> bool {
            self.at_work |= self.driver.take_wakes() > 0;
            if self.at_work {
                match self.cursor.next(self.hub, &self.feed) {
                    Next::Message(message) => {
                        self.got.push(message.at);
                        self.cursor.pass();
                    }
                    Next::Nothing => self.at_work = false,
                    Next::Later | Next::Full => {}
                    Next::Gap => self.got.push(0),
                }
            }
            self.at_work
        }

        fn run(&mut self) -> Vec<u64> {
            while self.step() {}
            core::mem::take(&mut self.got)
        }
    }

    /// All orders in which so many steps of each of three can be done.
    fn orders(left: [usize; 3], order: &mut Vec<usize>, each: &mut dyn FnMut(&[usize])) {
        if left == [0; 3] {
            return each(order);
        }
        for who in 0..3 {
            let mut left = left;
            if left[who] > 0 {
                left[who] -= 1;
                order.push(who);
                orders(left, order, each);
                order.pop();
            }
        }
    }

    /// In one order of the steps of a publisher, a hub and a subscriber.
    fn each_message_once(
        hub: &'static Hub,
        order: &[usize],
        replay: Option<Replay>,
        resumes: bool,
    ) {
        let store = hub.store();
        let mut at = store.ring().head();
        let names = ["a", "b", "c"].map(|name| format!("{name}{at}"));
        let before: Vec<u64> =
            [0, 1, 2, 0].map(|n| publish(store, &names[n], b"before")).into_iter().collect();
        let header = store.ring().header(before[0]).unwrap();
        let id = Id::new(store.ring().seed(), header.time, header.at, header.hash).to_string();
        let (mut live, mut told, mut reader) = (Vec::new(), None, None::<Reader>);
        let mut late = Vec::new();
        for who in order {
            match (who, &mut reader) {
                (0, reader) => {
                    let at = publish(store, &names[live.len() % 3], b"live");
                    live.push(at);
                    late.extend(reader.as_ref().map(|_| at));
                }
                (1, _) => hub.look_on(&mut at),
                (_, Some(reader)) => drop(reader.step()),
                (_, reader) => match told.take() {
                    None => told = Some(Reader::subscribe(hub, &names[..2])),
                    Some(told) => {
                        let last = resumes.then_some(&*id);
                        *reader = Some(Reader::begin(hub, told, last, replay));
                    }
                },
            }
        }
        let mut reader = reader.expect("it began");
        hub.look_on(&mut at);
        let rest = reader.got.clone();
        let got = [rest, {
            reader.got.clear();
            reader.run()
        }]
        .concat();
        let all = [&before[..], &live].concat();
        let own =
            |at: &&u64| store.ring().header(**at).unwrap().hash != store.ring().hash(&names[2]);
        let all: Vec<u64> = all.iter().filter(own).copied().collect();
        let late = late.iter().filter(own).count();
        let begun = all.len() - late;
        let expected = match replay {
            _ if resumes => &all[1..],
            None => &all[begun..],
            Some(Replay::All) => &all[..],
            Some(Replay::Last(most)) => &all[begun.saturating_sub(most as usize)..],
        };
        assert_eq!(got, expected, "{order:?} {replay:?} {resumes}");
    }

    /// Whatever the order, each message that comes once the subscriber has begun is got once, in order, and what it asked
    /// for of those before.
    #[test]
    fn no_order_of_events_loses_or_doubles_a_message() {
        for (replay, resumes) in [
            (None, false),
            (None, true),
            (Some(Replay::Last(2)), false),
            (Some(Replay::Last(2)), true),
            (Some(Replay::All), false),
        ] {
            let (mut n, mut hub_now) = (0, hub(store::for_test(), || ()));
            orders([3, 3, 5], &mut Vec::new(), &mut |order| {
                n += 1;
                if n % 100 == 0 {
                    hub_now = hub(store::for_test(), || ());
                }
                each_message_once(hub_now, order, replay, resumes);
            });
            assert_eq!(n, 9240);
        }
    }

    /// The messages of a ring, of which none may be read.
    struct Closed(Ring);

    impl Messages for Closed {
        fn ring(&self) -> Ring {
            self.0
        }
        fn message(&self, _: &Header) -> Result<Arc<Kept>, Missed> {
            panic!("there is no room for it")
        }
    }

    #[test]
    fn a_message_for_which_there_is_no_room_is_not_read() {
        let store = store::for_test();
        let ring = store.ring();
        publish(store, "a", b"12345");
        let (mut cursor, _) = Cursor::new(
            ring,
            Subscription::untold(ring, &["a".to_owned()]),
            None,
            Some(Replay::All),
        );
        let feed = Feed::silent();
        for _ in 0..3 {
            let next = cursor.next_if(&Closed(ring), &feed, &|len| len < 5);
            assert!(matches!(next, Next::Full));
        }
        let next = cursor.next_if(&Known(ring), &feed, &|len| len <= 5);
        assert!(matches!(next, Next::Message(message) if &*message.body == b"12345"));
    }

    struct Known(Ring);

    impl Messages for Known {
        fn ring(&self) -> Ring {
            self.0
        }
        fn message(&self, header: &Header) -> Result<Arc<Kept>, Missed> {
            self.0.message(header).map(Kept::alone).map(Arc::new)
        }
    }

    #[test]
    fn who_polls_was_there_when_a_channel_ended() {
        let store = store::for_test();
        let ring = store.ring();
        let first = store.put(Kind::Text, "a", "", b"1").unwrap().to_string();
        store.put(Kind::End, "a", "", b"").unwrap();
        let names = ["a".to_owned()];
        let next = |polls: bool, last: Option<&str>| {
            let (cursor, _) =
                Cursor::new(ring, Subscription::untold(ring, &names), last, Some(Replay::All));
            let mut cursor = if polls { cursor.of_one_that_polls() } else { cursor };
            cursor.next(&Known(ring), &Feed::silent())
        };
        let ends = |next| matches!(next, Next::Message(message) if message.kind == Kind::End);
        assert!(ends(next(true, Some(&first))) && !ends(next(false, Some(&first))));
        assert!(!ends(next(true, None)));
    }

    #[test]
    fn history_that_goes_before_a_subscriber_begins_is_no_gap() {
        let store = store::for_test();
        let hub = hub(store, || ());
        publish(store, "a", b"1");
        let mut reader = Reader::new(hub, &["a"], Some(Replay::All));
        fill(store);
        // It began before all that: something may be missing.
        assert_eq!(reader.run(), [0]);
        let new = publish(store, "a", b"2");
        let mut reader = Reader::new(hub, &["a"], Some(Replay::All));
        // The oldest goes, as it does with each message.
        publish(store, "b", &vec![0; store.most()]);
        assert!(reader.cursor.at < store.ring().bounds().1);
        assert_eq!(reader.run(), [new]);
    }

    #[test]
    fn who_has_read_some_of_its_history_is_overtaken() {
        let store = store::for_test();
        let hub = hub(store, || ());
        let first = publish(store, "a", b"1");
        publish(store, "a", b"2");
        let mut reader = Reader::new(hub, &["a"], Some(Replay::All));
        reader.step();
        fill(store);
        let last = publish(store, "a", b"3");
        assert_eq!(reader.run(), [first, 0, last]);
    }

    #[test]
    fn history_of_which_some_was_got_has_gaps() {
        let store = store::for_test();
        let hub = hub(store, || ());
        let much = || publish(store, "much", &vec![0; store.most()]);
        let first = publish(store, "a", b"1");
        for _ in 0..6 {
            much();
        }
        let [mut new, mut old] = [(); 2].map(|()| Reader::new(hub, &["a"], Some(Replay::All)));
        old.step();
        for _ in 0..3 {
            much();
        }
        assert!(
            old.cursor.at < store.ring().bounds().1 && store.ring().bounds().1 < old.cursor.born
        );
        assert_eq!((new.run(), old.run()), (vec![], vec![first, 0]));
    }

    #[test]
    fn who_has_all_is_not_overtaken_by_what_others_publish() {
        let store = store::for_test();
        let (hub, mut at) = (hub(store, || ()), store.ring().head());
        let mut reader = Reader::new(hub, &["a"], None);
        assert_eq!(reader.run(), []);
        for _ in 0..3 {
            for _ in 0..10 {
                publish(store, "much", &vec![0; store.most()]);
                hub.look_on(&mut at);
            }
            assert_eq!(reader.run(), []);
            let last = publish(store, "a", b"1");
            hub.look_on(&mut at);
            assert_eq!(reader.run(), [last]);
        }
        // Nor when the hub falls behind after that: what it has told is where to read on.
        fill(store);
        hub.look_on(&mut at);
        assert_eq!(reader.run(), [0]);
        assert_eq!(reader.run(), []);
    }

    #[test]
    fn an_end_is_for_those_who_were_there() {
        let store = store::for_test();
        let (hub, mut at) = (hub(store, || ()), store.ring().head());
        publish(store, "a", b"1");
        let mut there = Reader::new(hub, &["a"], None);
        let end = store.put(Kind::End, "a", "", b"").unwrap().at;
        let mut later = Reader::new(hub, &["a"], Some(Replay::All));
        hub.look_on(&mut at);
        assert_eq!(there.run(), [end]);
        assert_eq!(later.run(), [1]);
    }

    #[test]
    fn what_is_no_ring_is_left() {
        let mut state = 7_u64;
        let mut random = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 8) >> (state % 64)
        };
        for _ in 0..20 {
            let store = store::for_test();
            let (hub, mut at) = (hub(store, || ()), store.ring().head());
            let mut reader = Reader::new(hub, &["a"], Some(Replay::All));
            for _ in 0..50 {
                publish(store, "a", &[1; 100]);
            }
            reader.step();
            store.ring().scramble(&mut random);
            hub.look_on(&mut at);
            assert_eq!(at, store.ring().head());
            assert!(reader.run().len() < 100);
            // What is published then is got.
            let next = publish(store, "a", b"2");
            hub.look_on(&mut at);
            assert_eq!(reader.run(), [next]);
        }
    }
}
