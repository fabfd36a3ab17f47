//! The table: what is counted, and what server-status and the page of metrics call it.

use core::ops::Range;

use super::Numbers;

/// How a number behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// It only ever rises.
    Counter,
    /// It is what there is now.
    Gauge,
    /// The same, of what all children share: it is in no child's line.
    Common,
}

/// What tells the numbers of a metric apart. Its values are fixed: none is what a client chooses.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// Its name; empty if there is one number.
    pub name: &'static str,
    /// Its values; the last one of most labels is for all others.
    pub values: &'static [&'static str],
}

/// For all values that a label does not have.
pub(super) const OTHER: &str = "other";

const NONE: Label = Label { name: "", values: &[""] };
/// In the order of [`Mode`](super::Mode).
const MODES: Label = Label { name: "mode", values: &["detached", "blocking"] };
const STATUSES: Label = Label {
    name: "status",
    values: &["101", "200", "400", "403", "408", "429", "500", "501", "502", "503", "504", OTHER],
};
const REFUSALS: Label =
    Label { name: "status", values: &["400", "403", "405", "413", "500", "503", OTHER] };
const CODES: Label = Label {
    name: "code",
    values: &[
        "1000", "1001", "1002", "1003", "1004", "1005", "1006", "1007", "1008", "1009", "1010",
        "1011", "1012", "1013", "1014", OTHER,
    ],
};

/// A metric, as both pages tell of it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which one it is.
    pub metric: Metric,
    /// How it behaves.
    pub kind: Kind,
    /// Its name on the page of metrics, behind `websocket_`. What ends in a unit is in that unit.
    pub name: &'static str,
    /// What tells its numbers apart.
    pub label: Label,
    /// Its name in server-status, behind `WebSocket`.
    pub short: &'static str,
    /// What it counts.
    pub help: &'static str,
}

macro_rules! table {
    ($($metric:ident: $kind:ident $name:literal $label:ident $short:literal, $help:literal;)+) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Metric {
            $(#[doc = $help] $metric,)+
        }

        const ROWS: [Row; [$(Metric::$metric),+].len()] = [$(Row {
            metric: Metric::$metric,
            kind: Kind::$kind,
            name: $name,
            label: $label,
            short: $short,
            help: $help,
        }),+];
    };
}

table! {
    Connections: Gauge "connections" MODES "Connections",
        "WebSockets and event streams that are open";
    Handshakes: Counter "handshakes" STATUSES "Handshakes",
        "Requests for a WebSocket or an event stream, by the status of the answer";
    Closes: Counter "closes" CODES "Closes",
        "WebSockets and event streams that have ended, by the close code of the access log";
    MessagesIn: Counter "messages_received" NONE "MessagesIn",
        "Messages of clients";
    MessagesOut: Counter "messages_sent" NONE "MessagesOut",
        "Messages to clients";
    BytesIn: Counter "received_bytes" NONE "BytesIn",
        "Bytes received on WebSockets and event streams, behind the handshake";
    BytesOut: Counter "sent_bytes" NONE "BytesOut",
        "Bytes sent on WebSockets and event streams, behind the handshake";
    PingsUnanswered: Counter "pings_unanswered" NONE "PingsUnanswered",
        "Connections that were given up because a Ping was not answered";
    Threads: Gauge "threads" NONE "Threads",
        "Threads that serve detached connections";
    ThreadsInCallbacks: Gauge "threads_in_callbacks" NONE "ThreadsInCallbacks",
        "Threads that serve detached connections and are in a callback of a plugin";
    ThreadsWaiting: Gauge "threads_waiting" NONE "ThreadsWaiting",
        "Threads that serve detached connections and wait for a client that reads slowly";
    ThreadsExhausted: Counter "threads_exhausted" NONE "ThreadsExhausted",
        "How often all threads that a child may have were in callbacks for a second";
    RefusedWaits: Counter "waits_refused" NONE "RefusedWaits",
        "Connections that were closed because too many threads waited for clients";
    RefusedMemory: Counter "memory_refused" NONE "RefusedMemory",
        "Connections that were closed for want of memory";
    Memory: Gauge "memory_bytes" NONE "Memory",
        "Memory that is held of what WebSocketMemoryLimit allows each child";
    ChannelSubscribers: Gauge "channel_subscribers" NONE "ChannelSubscribers",
        "Connections that are subscribed to channels";
    ChannelPublished: Counter "channel_messages_published" NONE "ChannelPublished",
        "Messages that were published, once for each channel";
    ChannelRefused: Counter "channel_publish_refusals" REFUSALS "ChannelRefused",
        "Requests of those who publish that were refused, by the status of the answer";
    ChannelDelivered: Counter "channel_messages_delivered" NONE "ChannelDelivered",
        "Messages of channels that went to subscribers, once for each of them";
    ChannelOverruns: Counter "channel_overruns" NONE "ChannelOverruns",
        "How often a subscriber was so slow that its next message was overwritten";
    ChannelGaps: Counter "channel_gaps" NONE "ChannelGaps",
        "How often a subscriber was told that it has missed messages";
    ChannelEventPolls: Counter "channel_event_polls" NONE "ChannelEventPolls",
        "Requests for events over HTTP/2, which got what was there";
    ChannelEventRetries: Counter "channel_event_retries" NONE "ChannelEventRetries",
        "Requests for events that were told to come again for want of room";
    ChannelMemory: Common "channel_memory_bytes" NONE "ChannelMemory",
        "The size of the memory for messages that all channels share";
    ChannelOldest: Common "channel_oldest_message_age_seconds" NONE "ChannelOldest",
        "The age of the oldest message that is kept";
}

/// All metrics, in the order of their numbers.
pub static TABLE: [Row; ROWS.len()] = ROWS;

/// Where the numbers of each metric begin, and behind them where all end.
const FIRST: [usize; ROWS.len() + 1] = {
    let (mut first, mut row) = ([0; ROWS.len() + 1], 0);
    while row < ROWS.len() {
        first[row + 1] = first[row] + ROWS[row].label.values.len();
        row += 1;
    }
    first
};

/// How many numbers there are.
pub(super) const WORDS: usize = FIRST[ROWS.len()];

/// What tells this table from those of other builds, whose numbers have other places.
pub fn layout() -> String {
    let rows = TABLE.iter().map(|row| format!("{} {:?}", row.name, row.label.values));
    rows.collect::<Vec<_>>().join(", ")
}

impl Metric {
    /// Its row.
    pub fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Where its numbers are.
    pub(super) fn words(self) -> Range<usize> {
        FIRST[self as usize]..FIRST[self as usize + 1]
    }

    /// What these numbers say of it, all values of its label together.
    pub fn total(self, numbers: &Numbers) -> u64 {
        numbers[self.words()].iter().sum()
    }

    /// Where its number is, of those of a label the one for `value`.
    pub(super) fn word(self, value: &str) -> usize {
        let words = self.words();
        let place = self.row().label.values.iter().position(|known| *known == value);
        place.map_or(words.end - 1, |place| words.start + place)
    }

    /// Whether it is about channels: nobody asks for that where there are none.
    pub fn is_of_channels(self) -> bool {
        self.row().name.starts_with("channel_")
    }
}

impl Row {
    /// The unit that its name ends in.
    pub fn unit(&self) -> Option<&'static str> {
        let last = self.name.rsplit('_').next();
        last.filter(|word| ["bytes", "seconds"].contains(word))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_number_has_a_place_of_its_own() {
        let mut next = 0;
        for (at, row) in TABLE.iter().enumerate() {
            assert_eq!((row.metric as usize, row.metric.row().name), (at, row.name));
            assert_eq!(row.metric.words().start, next);
            for value in row.label.values {
                assert_eq!(row.metric.word(value), next);
                next += 1;
            }
        }
        assert_eq!(next, WORDS);
    }

    #[test]
    fn names_are_those_of_openmetrics_and_told_once() {
        let words = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        let short = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric());
        for row in &TABLE {
            assert!(words(row.name) && words(row.label.name) && short(row.short), "{row:?}");
            // These are added behind the names of counters, and others mean something else.
            for end in ["_total", "_created", "_count", "_sum", "_bucket", "_info"] {
                assert!(!row.name.ends_with(end), "{row:?}");
            }
            // They stand in a line as they are.
            assert!(!row.help.contains(['\\', '"', '\n', '<', '&']) && !row.help.ends_with('.'));
            assert_eq!(row.label.name.is_empty(), row.label.values == [""]);
        }
        for names in [TABLE.map(|row| row.name), TABLE.map(|row| row.short)] {
            assert_eq!(BTreeSet::from(names).len(), TABLE.len());
        }
        assert_eq!(Metric::Memory.row().unit(), Some("bytes"));
        assert_eq!(Metric::Threads.row().unit(), None);
    }

    #[test]
    fn a_value_that_a_label_does_not_have_is_another_one() {
        assert_eq!(Metric::Closes.word("4000"), Metric::Closes.word(OTHER));
        assert_ne!(Metric::Closes.word("1014"), Metric::Closes.word(OTHER));
        assert_eq!(Metric::Threads.word(""), Metric::Threads.words().start);
    }
}
