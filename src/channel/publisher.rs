//! A client whose messages are published to its channel.
#![forbid(unsafe_code)]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Kind,
    broker::{Broker, NewMessage, Refused},
    ring::Ring,
};
use crate::{conn::endpoint::Sink, sync::Lock as _};

/// The part of the ring that a client may fill in a second.
const PART: usize = 256;
/// What a message takes besides its own bytes, about.
const RECORD: usize = 64;
/// How long a client's message waits for others that publish; other clients may wait for the thread.
const PATIENCE: Duration = Duration::from_millis(100);

/// What publishes a client's messages. Its client is not read from while it has had its share.
pub struct Publisher {
    channel: Box<str>,
    share: Mutex<Share>,
    begun: Instant,
}

/// How much a client may publish: the share of a second at once, and as much in each second. A message that is begun is
/// published whole, and what it takes beyond the share is waited for.
#[derive(Debug)]
struct Share {
    /// Bytes a second.
    rate: u64,
    /// How many bytes are left; less than none after a long message.
    left: i64,
    /// When it was filled up last.
    filled: Duration,
    /// The client is not read from, or was not, and nobody has had it go on.
    paused: bool,
}

impl Share {
    fn new(rate: u64) -> Self {
        Self { rate, left: rate as i64, filled: Duration::ZERO, paused: false }
    }

    /// Takes as much for a message.
    fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub_unsigned(bytes as u64);
    }

    /// Whether nothing is left now.
    fn is_empty(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.filled).as_micros();
        let more = u128::from(self.rate) * passed / 1_000_000;
        // Shorter times add up until they are worth a byte.
        if more > 0 {
            self.filled = now;
            let more = i64::try_from(more).unwrap_or(i64::MAX);
            self.left = self.left.saturating_add(more).min(self.rate as i64);
        }
        self.left <= 0
    }

    /// The same, for who does not read then.
    fn has_to_pause(&mut self, now: Duration) -> bool {
        let empty = self.is_empty(now);
        // It is the clock that has reading go on, and it has to learn of the pause, whoever looks in between.
        self.paused |= empty;
        empty
    }

    /// Whether there is something left for who has paused; `true` once for each pause, or for several.
    fn may_go_on(&mut self, now: Duration) -> bool {
        let goes_on = self.paused && !self.is_empty(now);
        self.paused &= !goes_on;
        goes_on
    }
}

impl Publisher {
    /// For a client of this channel, whose name [`check`](super::name::check) allows.
    pub fn new(ring: Ring, channel: &str) -> Self {
        let share = Mutex::new(Share::new((ring.size() / PART) as u64));
        Self { channel: channel.into(), share, begun: Instant::now() }
    }

    /// Publishes a message. If a publisher keeps the others waiting, whom `stuck` tells of, nobody waits for it long again.
    pub fn publish(
        &self,
        broker: &dyn Broker,
        stuck: &AtomicBool,
        kind: Kind,
        body: &[u8],
    ) -> Result<(), Refused> {
        self.share.acquire().take(RECORD + self.channel.len() + body.len());
        let was_stuck = stuck.load(Ordering::Relaxed);
        let patience = if was_stuck { Duration::ZERO } else { PATIENCE };
        let message = NewMessage { kind, channel: &self.channel, media: "", body };
        let result = broker.publish(&message, patience);
        let is_stuck = matches!(result, Err(Refused::Busy));
        if is_stuck != was_stuck {
            stuck.store(is_stuck, Ordering::Relaxed);
        }
        result.map(|_| ())
    }
}

impl Sink for Publisher {
    fn is_crowded(&self) -> bool {
        self.share.acquire().has_to_pause(self.begun.elapsed())
    }

    fn has_room_again(&self) -> bool {
        self.share.acquire().may_go_on(self.begun.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::store;

    #[test]
    fn a_share_is_had_at_once_and_again_in_each_second() {
        let ms = Duration::from_millis;
        let mut share = Share::new(1000);
        assert!(!share.is_empty(ms(0)));
        share.take(1000);
        assert!(share.has_to_pause(ms(0)) && !share.may_go_on(ms(0)));
        // Somebody else looks first.
        assert!(!share.has_to_pause(ms(1)));
        assert!(share.may_go_on(ms(1)) && !share.may_go_on(ms(1)));
        // Who has published nothing for long has no more than that.
        assert!(!share.is_empty(ms(60_000)));
        share.take(1000);
        assert!(share.is_empty(ms(60_000)));
        // A long message is waited for.
        share.take(4000);
        assert!(share.is_empty(ms(64_000)));
        assert!(!share.is_empty(ms(64_001)));
        // However often it is asked, time passes.
        share.take(1001);
        let empty =
            (0..4000).filter(|n| share.is_empty(ms(64_001) + Duration::from_micros(n * 500)));
        assert_eq!(empty.count(), 1000 * 2 + 2);
    }

    #[test]
    fn a_client_that_has_had_its_share_is_paused_and_goes_on() {
        let (store, stuck) = (store::for_test(), AtomicBool::new(false));
        let publisher = Publisher::new(store.ring(), "a");
        assert!(!publisher.is_crowded() && !publisher.has_room_again());
        let size = store.ring().size() / PART;
        let mut published = 0;
        while !publisher.is_crowded() {
            publisher.publish(&store, &stuck, Kind::Text, &[b'a'; 1000]).unwrap();
            published += 1;
        }
        assert_eq!(published, size.div_ceil(1000 + RECORD + 1));
        assert_eq!(store.ring().history("a").count(), published);
        publisher.share.acquire().left = 1;
        assert!(publisher.has_room_again() && !publisher.has_room_again());
        let body = vec![0; store.most() + 1];
        let refused = publisher.publish(&store, &stuck, Kind::Binary, &body);
        assert_eq!(refused, Err(Refused::TooLarge));
    }

    #[test]
    fn nobody_waits_twice_for_a_publisher_that_is_stuck() {
        let (store, stuck) = (store::for_test(), AtomicBool::new(false));
        let publish = || {
            let begun = Instant::now();
            let publisher = Publisher::new(store.ring(), "a");
            let result = publisher.publish(&store, &stuck, Kind::Text, b"");
            (result, begun.elapsed())
        };
        let held = store.hold();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (result, took) = publish();
                assert!(result == Err(Refused::Busy) && took >= PATIENCE);
                let (result, took) = publish();
                assert!(result == Err(Refused::Busy) && took < PATIENCE);
            });
        });
        drop(held);
        assert!(publish().0.is_ok() && !stuck.load(Ordering::Relaxed));
    }
}
