//! A subscriber's place in the ring: what it has got, and what comes next.
//!
//! A subscriber that has got everything is *idle*, and reads again from where its child is told of the next message: what
//! others publish meanwhile is nothing to it. Told or not, it reads on until the head, so a message that comes while it
//! reads is read at once or told once more.

use std::sync::Arc;

use super::{
    Kind, Message, Replay,
    hub::{Feed, Hub},
    id::Id,
    ring::{Header, Ring},
};

/// How many records one looks at before others have their turn.
const LOOKS: usize = 1024;

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
            if id.time == 0 {
                return (tail..=head).contains(&id.at).then_some(id.at);
            }
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

    /// The id by which a client gets what comes from here on. With several channels any one of them will do.
    pub fn id(&self, ring: Ring) -> Id {
        Id::from_here(ring.seed(), self.at, self.wanted.first().map_or(0, |wanted| wanted.hash))
    }

    /// What comes next. `feed` is what the hub tells this subscriber by.
    pub fn next(&mut self, hub: &Hub, feed: &Feed) -> Next {
        let ring = hub.store().ring();
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
                match hub.message(&header) {
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
