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
    ring::{Header, Missed, Ring},
};

/// How many records one looks at before others have their turn.
const LOOKS: usize = 1024;

/// Where a subscriber reads.
pub trait Messages {
    /// The messages.
    fn ring(&self) -> Ring;

    /// The whole of one; an error if it is not there any more.
    fn message(&self, header: &Header) -> Result<Arc<Message>, Missed>;
}

/// One of a subscriber's channels.
#[derive(Debug)]
struct Wanted {
    hash: u64,
    name: Box<str>,
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
    wanted: Box<[Wanted]>,
}

/// What comes next.
#[derive(Clone, Debug)]
pub enum Next {
    /// A message, which stays the next one until [`Cursor::pass`].
    Message(Arc<Message>),
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
        names: &[String],
        last: Option<&str>,
        replay: Option<Replay>,
    ) -> (Self, bool) {
        let wanted = |name: &String| Wanted { hash: ring.hash(name), name: (**name).into() };
        let wanted: Box<[Wanted]> = names.iter().map(wanted).collect();
        let (head, tail) = ring.bounds();
        let resumed = last.map(|text| {
            let id = Id::parse(text)?;
            let of = wanted.iter().find(|wanted| id.is_of(ring.seed(), wanted.hash))?;
            let header = ring.header(id.at).ok()?;
            (header.hash == of.hash && header.time == id.time).then_some(header.next)
        });
        let replayed = || match replay? {
            Replay::All => Some(tail),
            Replay::Last(most) => {
                let mut places: Vec<u64> = wanted
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
        (Self { at, behind: at, idle, born: head, wanted }, resumed == Some(None))
    }

    /// What comes next. `feed` is what the hub tells this subscriber by.
    pub fn next(&mut self, messages: &impl Messages, feed: &Feed) -> Next {
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

    /// The message that came next has been dealt with.
    pub fn pass(&mut self) {
        self.at = self.behind;
    }

    fn wants(&self, header: &Header) -> bool {
        self.wanted.iter().any(|wanted| wanted.hash == header.hash)
            && (header.kind != Kind::End || header.at >= self.born)
    }

    fn has(&self, message: &Message) -> bool {
        self.wanted.iter().any(|wanted| wanted.name == message.channel)
    }

    /// Goes on with the oldest that is there.
    fn overtaken(&mut self, ring: Ring) -> Next {
        let (head, tail) = ring.bounds();
        // What is there and is no record is of no use to anybody.
        self.at = if tail > self.at { tail } else { head };
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
        channel::ring::{Draft, loom_tests::ring},
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
        fn message(&self, header: &Header) -> Result<Arc<Message>, Missed> {
            Ring::message(self, header).map(Arc::new)
        }
    }

    fn publish(ring: Ring, channel: &str, n: u8) -> u64 {
        ring.write(&Draft { kind: Kind::Binary, channel, media: "", body: &[n], time: 1 }).at
    }

    /// One thread publishes and tells; the other one reads until it has got `messages`, and sleeps whenever there is nothing.
    /// `before` are there already, of which so many are got that are asked for.
    fn got(replay: Option<Replay>, before: u8, expected: &'static [u8]) {
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
            let (mut cursor, gap) = Cursor::new(ring, &["a".to_owned()], None, replay);
            assert!(!gap);
            let hub = thread::spawn({
                let feed = feed.clone();
                move || {
                    for n in 0..2 {
                        feed.tell(publish(ring, "a", before + n));
                    }
                }
            });
            let mut got = Vec::new();
            loop {
                match cursor.next(&ring, &feed) {
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
        got(None, 0, &[0, 1]);
    }

    #[test]
    fn history_goes_over_into_what_is_live() {
        got(Some(Replay::Last(1)), 2, &[1, 2, 3]);
        got(Some(Replay::All), 1, &[0, 1, 2]);
    }
}
