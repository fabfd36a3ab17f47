//! When a connection's time is over: pings, idleness, and a client that does not read or does not close.
//!
//! A [`Deadlines`] is asked now and then, and compares what it saw with what it sees: no clock is read and nothing is
//! stored while messages flow.

use std::time::Duration;

use super::{
    outbox::{State, Summary},
    waiting::Pace,
};
use crate::{
    proto::close::CloseCode,
    settings::{MessageTimeout, Timeouts},
};

/// What is said of a client that is given up for its silence.
pub const NO_PONG: &str = "the client does not answer our Ping";
/// What is said of a client that takes less.
const SLOW: &str = "the client reads too slowly";

/// What the client has sent in a turn.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Activity {
    /// Anything at all.
    pub bytes: bool,
    /// A data message.
    pub message: bool,
    /// All there was has been read.
    pub all: bool,
}

impl Activity {
    /// As of a client whose silence means nothing.
    pub const ANY: Self = Self { bytes: true, message: true, all: false };

    /// As one number, for several threads to add to.
    pub fn bits(self) -> u8 {
        u8::from(self.bytes) | (u8::from(self.message) << 1) | (u8::from(self.all) << 2)
    }

    /// What [`bits`](Self::bits) made a number of.
    pub fn from_bits(bits: u8) -> Self {
        Self { bytes: bits & 1 != 0, message: bits & 2 != 0, all: bits & 4 != 0 }
    }
}

/// A message of which more is to come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unfinished {
    /// How many bytes the connection had received when it began.
    pub begun: u64,
    /// How many more have come.
    pub len: u64,
}

/// What a connection looks like when its deadlines are asked.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Time since some fixed moment.
    pub now: Duration,
    /// How far the conversation has come.
    pub state: State,
    /// What came in since they were asked last.
    pub activity: Activity,
    /// What has been sent; while something waits for the client, `bytes_out` is what has reached it.
    pub summary: Summary,
    /// Something is queued for the client.
    pub queued: bool,
    /// The kernel still holds bytes that the client has not acknowledged.
    pub unacknowledged: bool,
    /// A message that is arriving.
    pub unfinished: Option<Unfinished>,
    /// A thread is at work on it, so nobody knows what has arrived.
    pub running: bool,
    /// The child goes down: what waits does not delay the end.
    pub hurry: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Go on; ask again at this time, if nothing happens before.
    Wait(Option<Duration>),
    /// Send a Ping and ask again.
    Ping,
    /// Send a Close with this code, for this reason, and ask again.
    Close(CloseCode, &'static str),
    /// Read what there is, and ask again: the client is about to be given up for its silence.
    Read,
    /// The connection is lost, for this reason.
    GiveUp(&'static str),
}

/// A message that is arriving, as its time is measured.
#[derive(Clone, Copy, Debug)]
struct Arriving {
    /// Where it began, which tells it from the next one.
    begun: u64,
    /// When its present time began, and how much of it had come then.
    since: Duration,
    len: u64,
}

/// What a connection's deadlines saw last.
#[derive(Debug)]
pub struct Deadlines {
    /// When the client said anything.
    last_heard: Duration,
    /// When a data message went either way.
    message: Duration,
    /// When the last of what left did so; only counts while something waits.
    wrote: Duration,
    /// When the conversation was first seen closing.
    closing: Option<Duration>,
    /// The client has been pinged since it was heard.
    pinged: bool,
    /// The socket is to be read empty before the client is judged.
    reading: bool,
    /// How fast it takes what waits for it.
    pace: Pace,
    /// The message that is arriving.
    arriving: Option<Box<Arriving>>,
    /// It has been given up, which is said once.
    gave_up: bool,
    messages_out: u64,
    bytes_out: u64,
}

impl Deadlines {
    /// The deadlines of a connection that begins.
    pub fn new(now: Duration) -> Self {
        Self {
            last_heard: now,
            message: now,
            wrote: now,
            closing: None,
            pinged: false,
            reading: false,
            pace: Pace::default(),
            arriving: None,
            gave_up: false,
            messages_out: 0,
            bytes_out: 0,
        }
    }

    /// Decides what has to be done now.
    pub fn check(&mut self, snapshot: &Snapshot, timeouts: &Timeouts) -> Action {
        if self.gave_up {
            return Action::Wait(None);
        }
        let action = self.decide(snapshot, timeouts);
        self.gave_up = matches!(action, Action::GiveUp(_));
        action
    }

    /// Whether the socket is to be read empty before more can be said.
    pub fn is_reading(&self) -> bool {
        self.reading && !self.gave_up
    }

    /// The client has been pinged, and was not heard since.
    pub fn has_pinged(&self) -> bool {
        self.pinged
    }

    /// The client has shown that it is there.
    fn hear(&mut self, now: Duration) {
        self.last_heard = now;
        self.pinged = false;
    }

    /// When the message that is arriving has to be there, or enough of it.
    fn message_end(
        &mut self,
        snapshot: &Snapshot,
        timeout: Option<MessageTimeout>,
    ) -> Option<Duration> {
        if snapshot.running {
            return None;
        }
        let (now, timeout) = (snapshot.now, timeout?);
        let before = self.arriving.take();
        let Unfinished { begun, len } = snapshot.unfinished?;
        let same = before.filter(|message| message.begun == begun);
        let mut message = same.unwrap_or_else(|| Box::new(Arriving { begun, since: now, len }));
        let passed = now - message.since;
        if passed >= timeout.time && timeout.is_met(len - message.len, passed) {
            (message.since, message.len) = (now, len);
        }
        let end = message.since + timeout.time;
        self.arriving = Some(message);
        Some(end)
    }

    fn decide(&mut self, snapshot: &Snapshot, timeouts: &Timeouts) -> Action {
        self.note(snapshot, timeouts);
        let Snapshot { now, state, activity, summary, unacknowledged, hurry, .. } = *snapshot;
        let stall = unacknowledged.then_some(self.wrote + timeouts.stall);
        let is_slow = unacknowledged && self.pace.is_slow(now, summary.bytes_out, timeouts.stall)
            || stall.is_some_and(|end| end <= now);
        let slow = self.pace.due(timeouts.stall);
        let (next, end) = match (state > State::Open, is_slow) {
            (true, true) => return Action::GiveUp(SLOW),
            (false, true) => {
                // It may never get there: it has no more time than others have for their answer.
                (self.closing, self.wrote) = (Some(now), now);
                return Action::Close(CloseCode::POLICY, SLOW);
            }
            (true, false) => self.while_closing(snapshot, timeouts),
            (false, false) => self.while_open(snapshot, timeouts),
        };
        let end = match end {
            Some(Action::Ping) => return Action::Ping,
            Some(end) => end,
            None => {
                self.reading = false;
                return Action::Wait(stall.into_iter().chain(slow).chain(next).min());
            }
        };
        // What is missing may be there, if nobody had the time to read it. Of who sends on and on, never all is read.
        if hurry || self.reading && !snapshot.running && (activity.all || activity.bytes) {
            return end;
        }
        if !core::mem::replace(&mut self.reading, true) {
            return Action::Read;
        }
        Action::Wait(stall.into_iter().chain(slow).min())
    }

    /// Takes note of what has happened since they were asked last.
    fn note(&mut self, snapshot: &Snapshot, timeouts: &Timeouts) {
        let Snapshot { now, activity, summary, unacknowledged, .. } = *snapshot;
        if activity.bytes {
            self.hear(now);
        }
        if activity.message || summary.messages_out != self.messages_out {
            self.messages_out = summary.messages_out;
            self.message = now;
        }
        let waited = self.pace.due(Duration::ZERO).is_some();
        let moved = summary.bytes_out != self.bytes_out;
        match timeouts.ping.filter(|_| self.pinged) {
            // Our Ping waits, too: the time for its answer begins when it has got there.
            Some(ping) if waited && moved || !waited && unacknowledged => {
                self.last_heard = now.saturating_sub(ping);
            }
            // Who takes what waits is there.
            None if waited && moved => self.hear(now),
            _ => {}
        }
        if !unacknowledged {
            self.pace.rest();
        }
        // What begins to wait now has not waited before.
        if !(waited && unacknowledged) || moved {
            self.bytes_out = summary.bytes_out;
            self.wrote = now;
        }
    }

    /// The next deadline of a conversation that is closing, and what to do if it is over.
    fn while_closing(
        &mut self,
        snapshot: &Snapshot,
        timeouts: &Timeouts,
    ) -> (Option<Duration>, Option<Action>) {
        let Snapshot { now, summary, unacknowledged, hurry, .. } = *snapshot;
        // The client cannot answer a Close that it has not got yet; but memory that is short is not kept for it.
        if !unacknowledged || hurry || summary.code == CloseCode::TRY_AGAIN_LATER {
            self.closing.get_or_insert(now);
        }
        let close = self.closing.zip(timeouts.close).map(|(since, timeout)| since + timeout);
        let end = Action::GiveUp("the client does not answer our Close");
        (close, close.is_some_and(|close| close <= now).then_some(end))
    }

    /// The next deadline of a conversation that is open, and what to do if it is over.
    fn while_open(
        &mut self,
        snapshot: &Snapshot,
        timeouts: &Timeouts,
    ) -> (Option<Duration>, Option<Action>) {
        let is_due = |moment: Option<Duration>| moment.is_some_and(|moment| moment <= snapshot.now);
        let idle = timeouts.idle.map(|timeout| self.message + timeout);
        let message = self.message_end(snapshot, timeouts.message);
        let ping = timeouts.ping.map(|p| self.last_heard + if self.pinged { p * 2 } else { p });
        let end = if is_due(idle) {
            let why = "no message for WebSocketIdleTimeout";
            Some(Action::Close(CloseCode::GOING_AWAY, why))
        } else if is_due(message) {
            let why = "a message takes longer than WebSocketMessageTimeout";
            Some(Action::Close(CloseCode::POLICY, why))
        } else if is_due(ping) && timeouts.one_way {
            self.hear(snapshot.now);
            Some(Action::Ping)
        } else if is_due(ping) && !self.pinged {
            self.pinged = true;
            Some(Action::Ping)
        } else {
            is_due(ping).then_some(Action::GiveUp(NO_PONG))
        };
        (idle.into_iter().chain(ping).chain(message).min(), end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        ping: Some(Duration::from_secs(30)),
        idle: Some(Duration::from_secs(100)),
        close: Some(Duration::from_secs(5)),
        message: Some(MessageTimeout { time: Duration::from_secs(20), rate: Some(10) }),
        stall: Duration::from_secs(60),
        one_way: false,
    };

    fn snapshot(seconds: u64) -> Snapshot {
        let (messages_in, messages_out, bytes_out) = (0, 0, 0);
        let summary = Summary { code: CloseCode::ABNORMAL, messages_in, messages_out, bytes_out };
        let (now, state, activity) =
            (Duration::from_secs(seconds), State::Open, Activity::default());
        Snapshot {
            now,
            state,
            activity,
            summary,
            queued: false,
            unacknowledged: false,
            unfinished: None,
            running: false,
            hurry: false,
        }
    }

    /// All there is has been read.
    fn all_read(seconds: u64) -> Snapshot {
        let activity = Activity { all: true, ..Activity::default() };
        Snapshot { activity, ..snapshot(seconds) }
    }

    fn wait(seconds: u64) -> Action {
        Action::Wait(Some(Duration::from_secs(seconds)))
    }

    #[test]
    fn a_silent_client_is_pinged_and_then_given_up() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        assert_eq!(deadlines.check(&snapshot(10), &TIMEOUTS), wait(30));
        assert_eq!(deadlines.check(&snapshot(30), &TIMEOUTS), Action::Ping);
        assert_eq!(deadlines.check(&snapshot(30), &TIMEOUTS), wait(60));
        assert_eq!(deadlines.check(&snapshot(60), &TIMEOUTS), Action::Read);
        let action = deadlines.check(&all_read(61), &TIMEOUTS);
        assert_eq!(action, Action::GiveUp("the client does not answer our Ping"));
    }

    #[test]
    fn nobody_is_given_up_for_silence_before_what_there_is_was_read() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        assert_eq!(deadlines.check(&all_read(30), &TIMEOUTS), Action::Ping);
        // What was read before the deadline does not count.
        assert_eq!(deadlines.check(&all_read(60), &TIMEOUTS), Action::Read);
        for seconds in [61, 90, 110] {
            assert_eq!(deadlines.check(&snapshot(seconds), &TIMEOUTS), Action::Wait(None));
        }
        let activity = Activity { bytes: true, message: true, all: true };
        assert_eq!(deadlines.check(&Snapshot { activity, ..snapshot(110) }, &TIMEOUTS), wait(140));
        // Then all begins anew.
        assert_eq!(deadlines.check(&snapshot(140), &TIMEOUTS), Action::Ping);
        assert_eq!(deadlines.check(&all_read(170), &TIMEOUTS), Action::Read);
    }

    #[test]
    fn a_message_has_to_arrive_in_time_or_fast_enough() {
        let timeouts = Timeouts { ping: None, idle: None, ..TIMEOUTS };
        let mut deadlines = Deadlines::new(Duration::ZERO);
        let arriving = |seconds, begun, len| {
            let activity = Activity { bytes: true, message: false, all: true };
            let unfinished = Some(Unfinished { begun, len });
            Snapshot { activity, unfinished, ..snapshot(seconds) }
        };
        assert_eq!(deadlines.check(&arriving(100, 5, 0), &timeouts), wait(120));
        // Ten bytes a second are enough, each time that the time is over.
        for seconds in 101..300 {
            let end = 120 + (seconds - 100) / 20 * 20;
            let snapshot = arriving(seconds, 5, 10 * (seconds - 100));
            assert_eq!(deadlines.check(&snapshot, &timeouts), wait(end), "{seconds}");
        }
        // Another message has its own time.
        assert_eq!(deadlines.check(&arriving(300, 6, 1), &timeouts), wait(320));
        assert_eq!(deadlines.check(&arriving(319, 6, 9), &timeouts), wait(320));
        // Who is not read from may begin anew.
        assert_eq!(deadlines.check(&snapshot(320), &timeouts), Action::Wait(None));
        assert_eq!(deadlines.check(&arriving(330, 6, 9), &timeouts), wait(350));
        assert_eq!(deadlines.check(&arriving(350, 6, 9), &timeouts), Action::Read);
        let action = deadlines.check(&arriving(350, 6, 9), &timeouts);
        assert!(matches!(action, Action::Close(CloseCode::POLICY, _)), "{action:?}");
        // What came at first does not help for long, nor that a thread is at work now and then.
        let mut deadlines = Deadlines::new(Duration::ZERO);
        assert_eq!(deadlines.check(&arriving(1, 5, 0), &timeouts), wait(21));
        assert_eq!(deadlines.check(&arriving(21, 5, 1_000_000), &timeouts), wait(41));
        let running = Snapshot { running: true, unfinished: None, ..arriving(40, 5, 0) };
        assert_eq!(deadlines.check(&running, &timeouts), Action::Wait(None));
        assert_eq!(deadlines.check(&arriving(41, 5, 1_000_100), &timeouts), Action::Read);
    }

    #[test]
    fn what_has_just_begun_to_wait_has_not_waited() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        let timeouts = Timeouts { ping: None, idle: None, ..TIMEOUTS };
        deadlines.check(&snapshot(0), &timeouts);
        assert_eq!(
            deadlines.check(&Snapshot { unacknowledged: true, ..snapshot(500) }, &timeouts),
            wait(560)
        );
    }

    #[test]
    fn any_byte_answers_a_ping_but_only_messages_prevent_idleness() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        assert_eq!(deadlines.check(&snapshot(31), &TIMEOUTS), Action::Ping);
        let activity = Activity { bytes: true, message: false, all: true };
        assert_eq!(deadlines.check(&Snapshot { activity, ..snapshot(32) }, &TIMEOUTS), wait(62));
        assert_eq!(deadlines.check(&Snapshot { activity, ..snapshot(99) }, &TIMEOUTS), wait(100));
        assert_eq!(
            deadlines.check(&Snapshot { activity, ..snapshot(100) }, &TIMEOUTS),
            Action::Read
        );
        let action = deadlines.check(&Snapshot { activity, ..snapshot(101) }, &TIMEOUTS);
        assert!(matches!(action, Action::Close(CloseCode::GOING_AWAY, _)));
        let activity = Activity { bytes: true, message: true, all: true };
        assert_eq!(deadlines.check(&Snapshot { activity, ..snapshot(102) }, &TIMEOUTS), wait(132));
    }

    #[test]
    fn a_client_that_takes_nothing_is_given_up() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        let activity = Activity { bytes: true, message: true, all: true };
        let mut now = Snapshot { activity, unacknowledged: true, ..snapshot(50) };
        assert_eq!(deadlines.check(&now, &TIMEOUTS), wait(80));
        now.summary.bytes_out = 1;
        assert_eq!(deadlines.check(&now, &TIMEOUTS), wait(80));
        now.activity = Activity::default();
        now.now = Duration::from_secs(110);
        assert_eq!(deadlines.check(&now, &TIMEOUTS), Action::Close(CloseCode::POLICY, SLOW));
        // It has as long as others for the end.
        now.state = State::Closing;
        assert_eq!(deadlines.check(&now, &TIMEOUTS), wait(115));
        now.now = Duration::from_secs(115);
        assert_eq!(deadlines.check(&now, &TIMEOUTS), Action::Read);
        now.activity = all_read(116).activity;
        assert!(matches!(deadlines.check(&now, &TIMEOUTS), Action::GiveUp(_)));
    }

    #[test]
    fn who_sends_on_and_on_does_not_put_off_the_end() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        let activity = Activity { bytes: true, message: true, all: false };
        let sends = |seconds| Snapshot { activity, state: State::Closing, ..snapshot(seconds) };
        assert_eq!(deadlines.check(&sends(70), &TIMEOUTS), wait(75));
        assert_eq!(deadlines.check(&sends(75), &TIMEOUTS), Action::Read);
        // While a thread is at work nobody knows.
        let running = Snapshot { running: true, ..sends(76) };
        assert_eq!(deadlines.check(&running, &TIMEOUTS), Action::Wait(None));
        assert!(matches!(deadlines.check(&sends(77), &TIMEOUTS), Action::GiveUp(_)));
    }

    #[test]
    fn who_is_closed_for_want_of_memory_has_no_longer_than_others() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        let mut closing = Snapshot { state: State::Closing, unacknowledged: true, ..snapshot(10) };
        closing.summary.code = CloseCode::TRY_AGAIN_LATER;
        assert_eq!(deadlines.check(&closing, &TIMEOUTS), wait(15));
    }

    #[test]
    fn who_takes_a_long_queue_is_there() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        for seconds in (25..100).step_by(25) {
            let mut now = Snapshot { unacknowledged: true, ..snapshot(seconds) };
            now.summary.bytes_out = seconds;
            assert!(matches!(deadlines.check(&now, &TIMEOUTS), Action::Wait(_)), "{seconds} s");
        }
    }

    #[test]
    fn who_never_says_anything_is_pinged_on_and_on() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        let timeouts = Timeouts { one_way: true, idle: None, ..TIMEOUTS };
        for round in 1..100 {
            assert_eq!(deadlines.check(&snapshot(30 * round), &timeouts), Action::Ping);
            assert_eq!(deadlines.check(&snapshot(30 * round), &timeouts), wait(30 * round + 30));
        }
    }

    #[test]
    fn our_ping_may_wait_behind_much_that_the_client_takes() {
        for takes in [true, false] {
            let mut deadlines = Deadlines::new(Duration::ZERO);
            assert_eq!(deadlines.check(&snapshot(30), &TIMEOUTS), Action::Ping);
            assert!(deadlines.has_pinged());
            // The kernel is asked from now on.
            let actions = (31..70).map(|seconds| {
                // The last of it arrives at the end, before the client's answer.
                let mut now = Snapshot { unacknowledged: seconds < 60, ..all_read(seconds) };
                now.summary.bytes_out = if takes { 1000 * seconds.min(60) } else { 7 };
                deadlines.check(&now, &TIMEOUTS)
            });
            let given_up = actions.into_iter().any(|action| matches!(action, Action::GiveUp(_)));
            assert_eq!(given_up, !takes);
        }
    }

    #[test]
    fn what_waits_delays_the_close_timeout_but_not_for_ever() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        let closing =
            |seconds| Snapshot { state: State::Closing, unacknowledged: true, ..snapshot(seconds) };
        assert_eq!(deadlines.check(&closing(10), &TIMEOUTS), wait(70));
        assert_eq!(deadlines.check(&closing(20), &TIMEOUTS), wait(70));
        let hurried = Snapshot { hurry: true, ..closing(21) };
        assert_eq!(deadlines.check(&hurried, &TIMEOUTS), wait(26));
    }

    #[test]
    fn a_close_is_waited_for() {
        let mut deadlines = Deadlines::new(Duration::ZERO);
        let closing = |seconds| Snapshot { state: State::Closing, ..snapshot(seconds) };
        assert_eq!(deadlines.check(&closing(70), &TIMEOUTS), wait(75));
        assert_eq!(deadlines.check(&closing(74), &TIMEOUTS), wait(75));
        assert_eq!(deadlines.check(&closing(75), &TIMEOUTS), Action::Read);
        let action = deadlines
            .check(&Snapshot { activity: all_read(76).activity, ..closing(76) }, &TIMEOUTS);
        assert_eq!(action, Action::GiveUp("the client does not answer our Close"));
    }
}
