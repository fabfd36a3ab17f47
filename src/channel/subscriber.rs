//! The endpoint of a WebSocket that is subscribed to channels: what is published goes to its client.

use std::sync::{Arc, Mutex};

use super::{
    Kind, SlowClient,
    broker::Refused,
    cursor::{Cursor, Next},
    feed::Feed,
    format::Format,
    hub::Hub,
    id::Id,
    kept::Kept,
    publisher::Publisher,
};
use crate::{
    conn::{
        endpoint::{Endpoint, NOTHING, Relayed, Sink},
        log::Level,
        outbox::{Offered, Outbox, State},
    },
    metrics::Metric,
    proto::{
        self,
        close::{self, CloseCode},
        deflate::Packing,
    },
    sync::Lock as _,
};

/// How much is queued for a client beyond what it takes at once: the ring has the rest.
const QUEUED: usize = 64 * 1024;
/// How many messages go to a client before others have their turn.
const MESSAGES: usize = 64;

/// How a subscriber is served.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What its messages are on the wire.
    pub format: Format,
    /// What becomes of it when it is overtaken.
    pub slow: SlowClient,
    /// How messages that are long enough are compressed, if that was agreed.
    pub packing: Option<Packing>,
}

/// The endpoint.
pub struct Subscriber {
    hub: &'static Hub,
    feed: Arc<Feed>,
    outbox: Arc<Outbox>,
    options: Options,
    /// Of a client that may publish.
    publisher: Option<Box<Publisher>>,
    /// Used by the thread at work on the connection.
    place: Mutex<Place>,
}

/// How far it has come.
struct Place {
    cursor: Cursor,
    /// Before what comes next its client is to be told that something is missing.
    gap: bool,
    /// It was told, and has got nothing since.
    told: bool,
    /// Until the end.
    subscribed: bool,
    /// How many messages went to its client since the metrics were told.
    delivered: u32,
}

impl Subscriber {
    /// The endpoint of one who is subscribed. It is told of a `gap` first, if it knows ids. What it sends is published by
    /// the `publisher`; without one it may send nothing.
    pub fn new(
        hub: &'static Hub,
        (feed, outbox): (Arc<Feed>, Arc<Outbox>),
        options: Options,
        (cursor, gap): (Cursor, bool),
        publisher: Option<Publisher>,
    ) -> Self {
        // A gap has an id of its own.
        let greeting = options.format.greeting(cursor.id(hub.store().ring()));
        if let Some(greeting) = greeting.filter(|_| !gap) {
            outbox.offer(proto::Kind::Text, false, greeting.as_bytes(), QUEUED);
        }
        let place = Place { cursor, gap, told: false, subscribed: true, delivered: 0 };
        let publisher = publisher.map(Box::new);
        Self { hub, feed, outbox, options, publisher, place: Mutex::new(place) }
    }

    /// Tells a client that knows ids that something is missing before what follows.
    fn send_gap(&self, id: Id) -> Offered {
        let Some(gap) = self.options.format.gap(id) else { return Offered::Needless };
        self.outbox.offer(proto::Kind::Text, false, gap.as_bytes(), QUEUED)
    }

    /// Sends a message, or the end of a channel.
    fn send(&self, message: &Kept) -> Offered {
        let kind = match message.kind {
            Kind::Text => proto::Kind::Text,
            Kind::Binary => proto::Kind::Binary,
            Kind::End => {
                self.outbox.close(&close::payload(CloseCode::NORMAL), "the channel ends");
                return Offered::Needless;
            }
        };
        let (format, seed) = (self.options.format, self.hub.store().ring().seed());
        let form = message.form(format, seed);
        let packing = self.options.packing.filter(|_| self.outbox.is_worth_compressing(form));
        match packing.and_then(|packing| message.packed(format, seed, packing)) {
            Some(packed) => self.outbox.offer(kind, true, packed, QUEUED),
            None => self.outbox.offer(kind, false, form, QUEUED),
        }
    }

    /// The client has to take something first. What is published meanwhile is nothing to it, unless it is overtaken and
    /// has to go: or those who do not read would have a turn with each message, before those who do.
    fn wait_for_client(&self, cursor: &Cursor) -> Relayed {
        let goes = self.options.slow == SlowClient::Close;
        self.feed.hold(goes.then(|| cursor.place()));
        Relayed { paused: true, ..NOTHING }
    }

    /// Tells the metrics what was delivered.
    fn tell(&self, place: &mut Place) {
        let delivered = core::mem::take(&mut place.delivered);
        self.hub.line().add(Metric::ChannelDelivered, delivered.into());
    }

    /// Closes with a code, a reason and a line.
    fn send_away(&self, code: CloseCode, tag: &str, reason: &str) {
        let payload = [&close::payload(code)[..], reason.as_bytes()].concat();
        if self.outbox.close(&payload, reason) {
            let log = self.outbox.log();
            log.write(Level::Info, format_args!("{tag}: closing with {}: {reason}", code.0));
        }
    }
}

impl Endpoint for Subscriber {
    fn message(&self, kind: proto::Kind, data: &mut [u8]) {
        let Some(publisher) = &self.publisher else {
            let reason = "this channel takes no messages from clients";
            return self.send_away(CloseCode::POLICY, "WS0708", reason);
        };
        let kind = if kind == proto::Kind::Text { Kind::Text } else { Kind::Binary };
        match publisher.publish(self.hub.broker(), self.hub.stuck(), kind, data) {
            Ok(()) => self.hub.line().add(Metric::ChannelPublished, 1),
            Err(Refused::TooLarge) => {
                let reason = "too large for the channel's memory: not published";
                self.send_away(CloseCode::TOO_BIG, "WS0712", reason);
            }
            Err(Refused::Busy) => {
                let reason = "the channel is busy: not published";
                self.send_away(CloseCode::TRY_AGAIN_LATER, "WS0712", reason);
            }
        }
    }

    fn sink(&self) -> Option<&dyn Sink> {
        self.publisher.as_deref().map(|publisher| publisher as &dyn Sink)
    }

    fn pull(&self, _: &mut [u8]) -> Relayed {
        let mut place = self.place.acquire();
        let Place { cursor, gap, told, delivered, .. } = &mut *place;
        for _ in 0..MESSAGES {
            if self.outbox.state() > State::Open {
                return NOTHING;
            }
            // However often it is overtaken until it gets a message, it is told once.
            if *gap && !*told {
                let offered = self.send_gap(cursor.id(self.hub.store().ring()));
                if offered == Offered::Full {
                    return self.wait_for_client(cursor);
                }
                self.hub.line().add(Metric::ChannelGaps, u64::from(offered == Offered::Sent));
            }
            (*gap, *told) = (false, *gap || *told);
            let has_room = |len| self.outbox.has_room(len, QUEUED);
            match cursor.next_if(self.hub, &self.feed, &has_room) {
                Next::Nothing => return NOTHING,
                Next::Later => break,
                Next::Full => return self.wait_for_client(cursor),
                Next::Gap if self.options.slow == SlowClient::Skip => {
                    self.hub.line().add(Metric::ChannelOverruns, 1);
                    *gap = true;
                }
                Next::Gap => {
                    self.hub.line().add(Metric::ChannelOverruns, 1);
                    let reason = "the client is too slow for its channel";
                    self.send_away(CloseCode::TRY_AGAIN_LATER, "WS0709", reason);
                }
                Next::Message(message) => {
                    let offered = self.send(&message);
                    if offered == Offered::Full {
                        return self.wait_for_client(cursor);
                    }
                    cursor.pass();
                    *told = false;
                    *delivered += u32::from(offered == Offered::Sent);
                }
            }
        }
        Relayed { again: true, ..NOTHING }
    }

    fn count(&self) {
        // A turn that goes on is told next time.
        if let Ok(mut place) = self.place.try_lock() {
            self.tell(&mut place);
        }
    }

    fn closed(&self) {
        let mut place = self.place.acquire();
        self.tell(&mut place);
        if core::mem::take(&mut place.subscribed) {
            self.hub.unsubscribe(place.cursor.subscriptions());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        channel::{
            Replay,
            format::GAP,
            hub::tests::{fill, hub, publish},
            store::{self, Store},
        },
        conn::outbox::Bounds,
        fakes::{Driver, Wire, bounds, budget, from_us, outbox_of},
        proto::frame::Opcode,
    };

    struct Client {
        store: Store,
        hub: &'static Hub,
        at: u64,
        outbox: Arc<Outbox>,
        wire: Wire,
        driver: Arc<Driver>,
        subscriber: Subscriber,
    }

    impl Client {
        /// One that is subscribed to the channel "a", with a queue of `queue` bytes.
        fn new(queue: usize, options: Options, last: Option<&str>) -> Self {
            Self::of(store::for_test(), queue, options, last)
        }

        fn of(store: Store, queue: usize, options: Options, last: Option<&str>) -> Self {
            let (hub, at) = (hub(store, || ()), store.ring().head());
            // Of its own memory: what waits here is nothing to other tests.
            let (outbox, _) = outbox_of(Bounds { memory: budget(1 << 30), ..bounds(queue) });
            let driver = Driver::new(None, || panic!("a turn does not wait"));
            driver.rest(&outbox);
            outbox.own();
            let feed = Feed::new(outbox.clone());
            let subscriptions = hub.subscribe(&["a".to_owned()], &feed).unwrap();
            let begin = Cursor::new(store.ring(), subscriptions, last, None::<Replay>);
            let subscriber = Subscriber::new(hub, (feed, outbox.clone()), options, begin, None);
            Self { store, hub, at, outbox, wire: Wire::new(), driver, subscriber }
        }

        fn publish(&mut self, body: &[u8]) {
            publish(self.store, "a", body);
            self.hub.look_on(&mut self.at);
        }

        fn pull(&self) -> Relayed {
            self.subscriber.pull(&mut [])
        }

        /// What goes to the client.
        fn flush(&self) -> Vec<u8> {
            self.outbox.flush(&self.wire).unwrap();
            self.wire.sent()
        }

        /// The payloads of what goes to the client, of short frames.
        fn texts(&self) -> Vec<String> {
            let (bytes, mut texts, mut at) = (self.flush(), Vec::new(), 0);
            while at < bytes.len() {
                let (len, begin) = match bytes[at + 1] {
                    126 => ((usize::from(bytes[at + 2]) << 8) | usize::from(bytes[at + 3]), at + 4),
                    len => (usize::from(len), at + 2),
                };
                at = begin + len;
                texts.push(String::from_utf8_lossy(&bytes[begin..at]).into_owned());
            }
            texts
        }
    }

    const PLAIN: Options =
        Options { format: Format::Plain, slow: SlowClient::Close, packing: None };
    const META_SKIP: Options = Options { format: Format::Meta, slow: SlowClient::Skip, ..PLAIN };
    const AGAIN: Relayed = Relayed { again: true, ..NOTHING };
    const PAUSED: Relayed = Relayed { paused: true, ..NOTHING };

    #[test]
    fn a_message_is_a_frame() {
        let mut client = Client::new(1 << 20, PLAIN, None);
        client.publish(b"one");
        publish(client.store, "b", b"another's");
        client.publish(b"two");
        assert_eq!(client.pull(), NOTHING);
        let frames = [b"one", b"two"].map(|body| from_us(Opcode::Binary, body)).concat();
        assert_eq!(client.flush(), frames);
        client.store.put(Kind::Text, "a", "", b"three").unwrap();
        client.hub.look_on(&mut client.at);
        client.pull();
        assert_eq!(client.flush(), from_us(Opcode::Text, b"three"));
    }

    #[test]
    fn with_ids_a_client_reads_on_where_it_was() {
        let mut client = Client::new(1 << 20, META_SKIP, None);
        client.store.put(Kind::Text, "a", "text/plain", b"one").unwrap();
        client.publish(b"two");
        client.pull();
        let texts = client.texts();
        let id = texts[0].strip_prefix("id: ").unwrap().split_once('\n').unwrap().0;
        assert_eq!(texts[0], format!("id: {id}\ncontent-type: text/plain\n\none"));
        let again = Client::of(client.store, 1 << 20, META_SKIP, Some(id));
        again.pull();
        assert_eq!(again.texts(), texts[1..]);
        // What is no id of ours, it is told.
        let again = Client::of(client.store, 1 << 20, META_SKIP, Some("1-2-3"));
        again.pull();
        let texts = again.texts();
        assert!(texts.len() == 1 && texts[0].contains(GAP) && texts[0].ends_with("\n\n"));
    }

    #[test]
    fn no_more_is_queued_than_a_client_takes_soon() {
        let mut client = Client::new(1 << 20, PLAIN, None);
        for _ in 0..20 {
            client.publish(&[7; 10_000]);
        }
        // Six of ten thousand bytes each fit, and their headers.
        for messages in [6, 6, 6, 2] {
            let expected = if messages == 6 { PAUSED } else { NOTHING };
            assert_eq!(client.pull(), expected);
            // It does not come further until something is taken.
            assert_eq!((client.pull(), client.flush().len()), (expected, messages * 10_004));
        }
        // A larger one goes alone.
        client.publish(&[7; 100_000]);
        client.publish(&[7; 10]);
        assert_eq!((client.pull(), client.flush().len()), (PAUSED, 100_010));
        assert_eq!((client.pull(), client.flush().len()), (NOTHING, 12));
    }

    #[test]
    fn others_have_their_turn_between() {
        let mut client = Client::new(1 << 20, PLAIN, None);
        for _ in 0..MESSAGES + 1 {
            client.publish(b"1");
        }
        assert_eq!((client.pull(), client.flush().len()), (AGAIN, 3 * MESSAGES));
        assert_eq!((client.pull(), client.flush().len()), (NOTHING, 3));
    }

    #[test]
    fn who_is_overtaken_is_closed() {
        let mut client = Client::new(1 << 20, PLAIN, None);
        client.publish(&[7; 60_000]);
        client.publish(&[7; 60_000]);
        assert_eq!(client.pull(), PAUSED);
        fill(client.store);
        client.pull();
        client.subscriber.closed();
        let total = |metric| client.hub.line().total(metric);
        let of = [Metric::ChannelDelivered, Metric::ChannelOverruns, Metric::ChannelGaps];
        assert_eq!(of.map(total), [1, 1, 0]);
        assert_eq!(client.outbox.state(), State::Closing);
        assert_eq!(client.outbox.summary().code, CloseCode::TRY_AGAIN_LATER);
        assert_eq!(client.pull(), NOTHING);
    }

    #[test]
    fn or_goes_on_with_what_is_there() {
        let mut client = Client::new(1 << 20, Options { slow: SlowClient::Skip, ..PLAIN }, None);
        client.publish(&[7; 60_000]);
        client.publish(&[7; 60_000]);
        client.pull();
        fill(client.store);
        client.publish(b"new");
        client.pull();
        assert!(client.flush().ends_with(&from_us(Opcode::Binary, b"new")));
    }

    #[test]
    fn who_waits_for_its_client_has_no_turns_meanwhile() {
        for slow in [SlowClient::Close, SlowClient::Skip] {
            let mut client = Client::new(1 << 20, Options { slow, ..PLAIN }, None);
            for turns in [1, 1, 0, 0] {
                client.publish(&[7; 60_000]);
                assert_eq!(client.driver.take_wakes(), turns);
                client.pull();
                client.pull();
            }
            // When it is overtaken it has one, if it has to go.
            let goes = slow == SlowClient::Close;
            for _ in 0..10 {
                publish(client.store, "much", &vec![0; client.store.most()]);
                client.hub.look_on(&mut client.at);
            }
            client.publish(b"new");
            assert_eq!(client.driver.take_wakes(), usize::from(goes));
            client.pull();
            assert_eq!(client.outbox.state() > State::Open, goes);
            // When its client has taken something it goes on.
            let taken = client.flush();
            client.pull();
            let sent = [taken, client.flush()].concat();
            assert_eq!(sent.ends_with(&from_us(Opcode::Binary, b"new")), !goes);
            if !goes {
                client.publish(b"next");
                assert_eq!(client.driver.take_wakes(), 1);
            }
        }
    }

    #[test]
    fn and_is_told_of_the_gap_once_it_has_room() {
        // What waits fills the queue.
        for queue in [1 << 20, 60_100] {
            let mut client = Client::new(queue, META_SKIP, None);
            client.publish(&[7; 60_000]);
            client.publish(&[7; 60_000]);
            client.publish(&[7; 60_000]);
            client.pull();
            for _ in 0..100 {
                fill(client.store);
                client.publish(&[7; 60_000]);
                client.pull();
            }
            let mut texts = Vec::new();
            for _ in 0..4 {
                texts.extend(client.texts());
                client.pull();
            }
            let gaps: Vec<_> = texts.iter().map(|text| text.contains(GAP)).collect();
            assert_eq!(gaps, [false, true, false]);
            client.subscriber.count();
            client.subscriber.count();
            let total = |metric| client.hub.line().total(metric);
            assert_eq!(total(Metric::ChannelGaps), 1);
            assert_eq!(total(Metric::ChannelDelivered), 2);
            assert!(total(Metric::ChannelOverruns) > 0);
        }
    }

    #[test]
    fn the_end_of_a_channel_and_a_message_of_the_client_close() {
        for (publishes, code) in [(false, CloseCode::NORMAL), (true, CloseCode::POLICY)] {
            let client = Client::new(1 << 20, PLAIN, None);
            if publishes {
                client.subscriber.message(proto::Kind::Text, &mut []);
            } else {
                client.store.put(Kind::End, "a", "", b"").unwrap();
                client.hub.look_on(&mut client.at.clone());
                client.pull();
            }
            let state = (client.outbox.state(), client.outbox.summary().code);
            assert_eq!(state, (State::Closing, code));
        }
    }

    #[test]
    fn the_end_of_a_subscriber_is_that_of_its_subscription() {
        let client = Client::new(1 << 20, PLAIN, None);
        let count = || client.store.counts().subscribers(client.store.ring().hash("a"));
        assert_eq!(count(), 1);
        client.subscriber.closed();
        assert_eq!(count(), 0);
        client.subscriber.closed();
        assert_eq!(client.hub.line().total(Metric::ChannelSubscribers), 0);
    }
}
