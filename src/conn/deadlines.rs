//! When a connection's patience ends: pings, idleness, and a client that does not read or does not close.
//!
//! A [`Clocks`] is asked now and then, and compares what it saw with what it sees: no clock is read and nothing is
//! stored while messages flow.
#![deny(unsafe_code)]

use std::time::Duration;

use super::{
    outbox::{State, Summary},
    waiting::Pace,
};
use crate::driver::reader::{Heard, Unfinished};
use crate::{
    proto::close::CloseCode,
    settings::{MessageTimeout, Patience},
};

/// What is said of a client that takes less.
const SLOW: &str = "the client reads too slowly";

/// What a connection looks like when its clocks are asked.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// Time since some fixed moment.
    pub now: Duration,
    /// How far the conversation has come.
    pub state: State,
    /// What came in since they were asked last.
    pub heard: Heard,
    /// What has been sent; while something waits for the client, `bytes_out` is what has reached it.
    pub summary: Summary,
    /// Something waits for the client.
    pub unsent: bool,
    /// A message that is arriving.
    pub unfinished: Option<Unfinished>,
    /// A thread is at work on it, so nobody knows what has arrived.
    pub running: bool,
    /// The child goes down: what waits does not delay the end.
    pub hurry: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Go on; ask again at this time, if nothing happens before.
    Wait(Option<Duration>),
    /// Send a Ping and ask again.
    Ping,
    /// Send a Close with this code, for this reason, and ask again.
    Close(CloseCode, &'static str),
    /// Read what there is, and ask again: the client is about to be given up for its silence.
    Listen,
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

/// What a connection's clocks saw last.
#[derive(Debug)]
pub struct Clocks {
    /// When the client said anything.
    heard: Duration,
    /// When a data message went either way.
    message: Duration,
    /// When the last of what left did so; only counts while something waits.
    wrote: Duration,
    /// When the conversation was first seen closing.
    closing: Option<Duration>,
    /// The client has been pinged since it was heard.
    pinged: bool,
    /// The socket is to be read empty before the client is judged.
    listening: bool,
    /// How fast it takes what waits for it.
    pace: Pace,
    /// The message that is arriving.
    arriving: Option<Box<Arriving>>,
    /// It has been given up, which is said once.
    gave_up: bool,
    messages_out: u64,
    bytes_out: u64,
}

impl Clocks {
    /// The clocks of a connection that begins.
    pub fn new(now: Duration) -> Self {
        Self {
            heard: now,
            message: now,
            wrote: now,
            closing: None,
            pinged: false,
            listening: false,
            pace: Pace::default(),
            arriving: None,
            gave_up: false,
            messages_out: 0,
            bytes_out: 0,
        }
    }

    /// Decides what has to be done now.
    pub fn check(&mut self, sight: &Sight, patience: &Patience) -> Verdict {
        if self.gave_up {
            return Verdict::Wait(None);
        }
        let verdict = self.judge(sight, patience);
        self.gave_up = matches!(verdict, Verdict::GiveUp(_));
        verdict
    }

    /// Whether the socket is to be read empty before more can be said.
    pub fn is_listening(&self) -> bool {
        self.listening && !self.gave_up
    }

    /// The client has shown that it is there.
    fn hear(&mut self, now: Duration) {
        self.heard = now;
        self.pinged = false;
    }

    /// When the message that is arriving has to be there, or enough of it.
    fn message_end(&mut self, sight: &Sight, timeout: Option<MessageTimeout>) -> Option<Duration> {
        if sight.running {
            return None;
        }
        let (now, timeout) = (sight.now, timeout?);
        let before = self.arriving.take();
        let Unfinished { begun, len } = sight.unfinished?;
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

    fn judge(&mut self, sight: &Sight, patience: &Patience) -> Verdict {
        let Sight { now, state, heard, summary, unsent, hurry, .. } = *sight;
        if heard.bytes {
            self.hear(now);
        }
        if heard.message || summary.messages_out != self.messages_out {
            self.messages_out = summary.messages_out;
            self.message = now;
        }
        if unsent && summary.bytes_out != self.bytes_out {
            // Who takes what waits is there, though its Pong may be long in coming: our Ping waits too.
            self.hear(now);
        }
        if !unsent {
            self.pace.rest();
        }
        // What begins to wait now has not waited before.
        let begins = self.pace.due(Duration::ZERO).is_none();
        if begins || summary.bytes_out != self.bytes_out {
            self.bytes_out = summary.bytes_out;
            self.wrote = now;
        }
        let stall = unsent.then_some(self.wrote + patience.stall);
        let is_slow = unsent && self.pace.is_slow(now, summary.bytes_out, patience.stall)
            || stall.is_some_and(|end| end <= now);
        let slow = self.pace.due(patience.stall);
        let is_due = |moment: Option<Duration>| moment.is_some_and(|moment| moment <= now);
        let (next, end) = if state > State::Open {
            if is_slow {
                return Verdict::GiveUp(SLOW);
            }
            // The client cannot answer a Close that it has not got yet; but memory that is short is not kept for it.
            if !unsent || hurry || summary.code == CloseCode::TRY_AGAIN_LATER {
                self.closing.get_or_insert(now);
            }
            let close = self.closing.zip(patience.close).map(|(since, patience)| since + patience);
            let end = Verdict::GiveUp("the client does not answer our Close");
            ([stall, slow, close], is_due(close).then_some(end))
        } else {
            if is_slow {
                // It may never get there: it has no more time than others have for their answer.
                (self.closing, self.wrote) = (Some(now), now);
                return Verdict::Close(CloseCode::POLICY, SLOW);
            }
            let idle = patience.idle.map(|patience| self.message + patience);
            let message = self.message_end(sight, patience.message);
            let ping = patience.ping.map(|p| self.heard + if self.pinged { p * 2 } else { p });
            let end = if is_due(idle) {
                let why = "no message for WebSocketIdleTimeout";
                Some(Verdict::Close(CloseCode::GOING_AWAY, why))
            } else if is_due(message) {
                Some(Verdict::Close(
                    CloseCode::POLICY,
                    "a message takes longer than WebSocketMessageTimeout",
                ))
            } else if is_due(ping) && !self.pinged {
                self.pinged = true;
                return Verdict::Ping;
            } else {
                let why = "the client does not answer our Ping";
                is_due(ping).then_some(Verdict::GiveUp(why))
            };
            ([stall, slow, idle.into_iter().chain(ping).chain(message).min()], end)
        };
        let Some(end) = end else {
            self.listening = false;
            return Verdict::Wait(next.into_iter().flatten().min());
        };
        // What is missing may be there, if nobody had the time to read it. Of who sends on and on, never all is read.
        if hurry || self.listening && !sight.running && (heard.all || heard.bytes) {
            return end;
        }
        if !core::mem::replace(&mut self.listening, true) {
            return Verdict::Listen;
        }
        Verdict::Wait(stall.into_iter().chain(slow).min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        ping: Some(Duration::from_secs(30)),
        idle: Some(Duration::from_secs(100)),
        close: Some(Duration::from_secs(5)),
        message: Some(MessageTimeout { time: Duration::from_secs(20), rate: Some(10) }),
        stall: Duration::from_secs(60),
    };

    fn sight(seconds: u64) -> Sight {
        let (messages_in, messages_out, bytes_out) = (0, 0, 0);
        let summary = Summary { code: CloseCode::ABNORMAL, messages_in, messages_out, bytes_out };
        let (now, state, heard) = (Duration::from_secs(seconds), State::Open, Heard::default());
        Sight {
            now,
            state,
            heard,
            summary,
            unsent: false,
            unfinished: None,
            running: false,
            hurry: false,
        }
    }

    /// All there is has been read.
    fn all_read(seconds: u64) -> Sight {
        let heard = Heard { all: true, ..Heard::default() };
        Sight { heard, ..sight(seconds) }
    }

    fn wait(seconds: u64) -> Verdict {
        Verdict::Wait(Some(Duration::from_secs(seconds)))
    }

    #[test]
    fn a_silent_client_is_pinged_and_then_given_up() {
        let mut clocks = Clocks::new(Duration::ZERO);
        assert_eq!(clocks.check(&sight(10), &PATIENCE), wait(30));
        assert_eq!(clocks.check(&sight(30), &PATIENCE), Verdict::Ping);
        assert_eq!(clocks.check(&sight(30), &PATIENCE), wait(60));
        assert_eq!(clocks.check(&sight(60), &PATIENCE), Verdict::Listen);
        let verdict = clocks.check(&all_read(61), &PATIENCE);
        assert_eq!(verdict, Verdict::GiveUp("the client does not answer our Ping"));
    }

    #[test]
    fn nobody_is_given_up_for_silence_before_what_there_is_was_read() {
        let mut clocks = Clocks::new(Duration::ZERO);
        assert_eq!(clocks.check(&all_read(30), &PATIENCE), Verdict::Ping);
        // What was read before the deadline does not count.
        assert_eq!(clocks.check(&all_read(60), &PATIENCE), Verdict::Listen);
        for seconds in [61, 90, 110] {
            assert_eq!(clocks.check(&sight(seconds), &PATIENCE), Verdict::Wait(None));
        }
        let heard = Heard { bytes: true, message: true, all: true };
        assert_eq!(clocks.check(&Sight { heard, ..sight(110) }, &PATIENCE), wait(140));
        // Then all begins anew.
        assert_eq!(clocks.check(&sight(140), &PATIENCE), Verdict::Ping);
        assert_eq!(clocks.check(&all_read(170), &PATIENCE), Verdict::Listen);
    }

    #[test]
    fn a_message_has_to_arrive_in_time_or_fast_enough() {
        let patience = Patience { ping: None, idle: None, ..PATIENCE };
        let mut clocks = Clocks::new(Duration::ZERO);
        let arriving = |seconds, begun, len| {
            let heard = Heard { bytes: true, message: false, all: true };
            let unfinished = Some(Unfinished { begun, len });
            Sight { heard, unfinished, ..sight(seconds) }
        };
        assert_eq!(clocks.check(&arriving(100, 5, 0), &patience), wait(120));
        // Ten bytes a second are enough, each time that the time is over.
        for seconds in 101..300 {
            let end = 120 + (seconds - 100) / 20 * 20;
            let sight = arriving(seconds, 5, 10 * (seconds - 100));
            assert_eq!(clocks.check(&sight, &patience), wait(end), "{seconds}");
        }
        // Another message has its own time.
        assert_eq!(clocks.check(&arriving(300, 6, 1), &patience), wait(320));
        assert_eq!(clocks.check(&arriving(319, 6, 9), &patience), wait(320));
        // Who is not read from may begin anew.
        assert_eq!(clocks.check(&sight(320), &patience), Verdict::Wait(None));
        assert_eq!(clocks.check(&arriving(330, 6, 9), &patience), wait(350));
        assert_eq!(clocks.check(&arriving(350, 6, 9), &patience), Verdict::Listen);
        let verdict = clocks.check(&arriving(350, 6, 9), &patience);
        assert!(matches!(verdict, Verdict::Close(CloseCode::POLICY, _)), "{verdict:?}");
        // What came at first does not help for long, nor that a thread is at work now and then.
        let mut clocks = Clocks::new(Duration::ZERO);
        assert_eq!(clocks.check(&arriving(1, 5, 0), &patience), wait(21));
        assert_eq!(clocks.check(&arriving(21, 5, 1_000_000), &patience), wait(41));
        let running = Sight { running: true, unfinished: None, ..arriving(40, 5, 0) };
        assert_eq!(clocks.check(&running, &patience), Verdict::Wait(None));
        assert_eq!(clocks.check(&arriving(41, 5, 1_000_100), &patience), Verdict::Listen);
    }

    #[test]
    fn what_has_just_begun_to_wait_has_not_waited() {
        let mut clocks = Clocks::new(Duration::ZERO);
        let patience = Patience { ping: None, idle: None, ..PATIENCE };
        clocks.check(&sight(0), &patience);
        assert_eq!(clocks.check(&Sight { unsent: true, ..sight(500) }, &patience), wait(560));
    }

    #[test]
    fn any_byte_answers_a_ping_but_only_messages_prevent_idleness() {
        let mut clocks = Clocks::new(Duration::ZERO);
        assert_eq!(clocks.check(&sight(31), &PATIENCE), Verdict::Ping);
        let heard = Heard { bytes: true, message: false, all: true };
        assert_eq!(clocks.check(&Sight { heard, ..sight(32) }, &PATIENCE), wait(62));
        assert_eq!(clocks.check(&Sight { heard, ..sight(99) }, &PATIENCE), wait(100));
        assert_eq!(clocks.check(&Sight { heard, ..sight(100) }, &PATIENCE), Verdict::Listen);
        let verdict = clocks.check(&Sight { heard, ..sight(101) }, &PATIENCE);
        assert!(matches!(verdict, Verdict::Close(CloseCode::GOING_AWAY, _)));
        let heard = Heard { bytes: true, message: true, all: true };
        assert_eq!(clocks.check(&Sight { heard, ..sight(102) }, &PATIENCE), wait(132));
    }

    #[test]
    fn a_client_that_takes_nothing_is_given_up() {
        let mut clocks = Clocks::new(Duration::ZERO);
        let heard = Heard { bytes: true, message: true, all: true };
        let mut now = Sight { heard, unsent: true, ..sight(50) };
        assert_eq!(clocks.check(&now, &PATIENCE), wait(80));
        now.summary.bytes_out = 1;
        assert_eq!(clocks.check(&now, &PATIENCE), wait(80));
        now.heard = Heard::default();
        now.now = Duration::from_secs(110);
        assert_eq!(clocks.check(&now, &PATIENCE), Verdict::Close(CloseCode::POLICY, SLOW));
        // It has as long as others for the end.
        now.state = State::Closing;
        assert_eq!(clocks.check(&now, &PATIENCE), wait(115));
        now.now = Duration::from_secs(115);
        assert_eq!(clocks.check(&now, &PATIENCE), Verdict::Listen);
        now.heard = all_read(116).heard;
        assert!(matches!(clocks.check(&now, &PATIENCE), Verdict::GiveUp(_)));
    }

    #[test]
    fn who_sends_on_and_on_does_not_put_off_the_end() {
        let mut clocks = Clocks::new(Duration::ZERO);
        let heard = Heard { bytes: true, message: true, all: false };
        let sends = |seconds| Sight { heard, state: State::Closing, ..sight(seconds) };
        assert_eq!(clocks.check(&sends(70), &PATIENCE), wait(75));
        assert_eq!(clocks.check(&sends(75), &PATIENCE), Verdict::Listen);
        // While a thread is at work nobody knows.
        let running = Sight { running: true, ..sends(76) };
        assert_eq!(clocks.check(&running, &PATIENCE), Verdict::Wait(None));
        assert!(matches!(clocks.check(&sends(77), &PATIENCE), Verdict::GiveUp(_)));
    }

    #[test]
    fn who_is_closed_for_want_of_memory_has_no_longer_than_others() {
        let mut clocks = Clocks::new(Duration::ZERO);
        let mut closing = Sight { state: State::Closing, unsent: true, ..sight(10) };
        closing.summary.code = CloseCode::TRY_AGAIN_LATER;
        assert_eq!(clocks.check(&closing, &PATIENCE), wait(15));
    }

    #[test]
    fn who_takes_a_long_queue_is_there() {
        let mut clocks = Clocks::new(Duration::ZERO);
        for seconds in (25..100).step_by(25) {
            let mut now = Sight { unsent: true, ..sight(seconds) };
            now.summary.bytes_out = seconds;
            assert!(matches!(clocks.check(&now, &PATIENCE), Verdict::Wait(_)), "{seconds} s");
        }
    }

    #[test]
    fn what_waits_delays_the_close_timeout_but_not_for_ever() {
        let mut clocks = Clocks::new(Duration::ZERO);
        let closing = |seconds| Sight { state: State::Closing, unsent: true, ..sight(seconds) };
        assert_eq!(clocks.check(&closing(10), &PATIENCE), wait(70));
        assert_eq!(clocks.check(&closing(20), &PATIENCE), wait(70));
        let hurried = Sight { hurry: true, ..closing(21) };
        assert_eq!(clocks.check(&hurried, &PATIENCE), wait(26));
    }

    #[test]
    fn a_close_is_waited_for() {
        let mut clocks = Clocks::new(Duration::ZERO);
        let closing = |seconds| Sight { state: State::Closing, ..sight(seconds) };
        assert_eq!(clocks.check(&closing(70), &PATIENCE), wait(75));
        assert_eq!(clocks.check(&closing(74), &PATIENCE), wait(75));
        assert_eq!(clocks.check(&closing(75), &PATIENCE), Verdict::Listen);
        let verdict = clocks.check(&Sight { heard: all_read(76).heard, ..closing(76) }, &PATIENCE);
        assert_eq!(verdict, Verdict::GiveUp("the client does not answer our Close"));
    }
}
