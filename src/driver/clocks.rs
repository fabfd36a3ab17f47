//! When a connection's patience ends: pings, idleness, and a client that does not read or does not close.
//!
//! A [`Clocks`] is asked now and then, and compares what it saw with what it sees: no clock is read and nothing is
//! stored while messages flow.
#![deny(unsafe_code)]

use std::time::Duration;

use super::turn::Heard;
use crate::{
    config::Patience,
    outbox::{State, Summary},
    proto::close::CloseCode,
};

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
    /// The connection is lost, for this reason.
    GiveUp(&'static str),
}

/// What a connection's clocks saw last.
#[derive(Clone, Copy, Debug)]
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

    fn judge(&mut self, sight: &Sight, patience: &Patience) -> Verdict {
        let Sight { now, state, heard, summary, unsent, hurry } = *sight;
        if heard.bytes {
            self.heard = now;
            self.pinged = false;
        }
        if heard.message || summary.messages_out != self.messages_out {
            self.messages_out = summary.messages_out;
            self.message = now;
        }
        if unsent && summary.bytes_out != self.bytes_out {
            // Who takes what waits is there, though its Pong may be long in coming: our Ping waits too.
            self.heard = now;
            self.pinged = false;
        }
        if !unsent || summary.bytes_out != self.bytes_out {
            self.bytes_out = summary.bytes_out;
            self.wrote = now;
        }
        let stall = unsent.then_some(self.wrote + patience.stall);
        if stall.is_some_and(|end| end <= now) {
            return Verdict::GiveUp("the client does not read");
        }
        if state > State::Open {
            // The client cannot answer a Close that it has not got yet.
            if !unsent || hurry {
                self.closing.get_or_insert(now);
            }
            let close = self.closing.zip(patience.close).map(|(since, patience)| since + patience);
            if close.is_some_and(|end| end <= now) {
                return Verdict::GiveUp("the client does not answer our Close");
            }
            return Verdict::Wait([stall, close].into_iter().flatten().min());
        }
        let idle = patience.idle.map(|patience| self.message + patience);
        if idle.is_some_and(|end| end <= now) {
            return Verdict::Close(CloseCode::GOING_AWAY, "no message for WebSocketIdleTimeout");
        }
        let ping = patience.ping.map(|p| self.heard + if self.pinged { p * 2 } else { p });
        if ping.is_some_and(|end| end <= now) {
            if self.pinged {
                return Verdict::GiveUp("the client does not answer our Ping");
            }
            self.pinged = true;
            return Verdict::Ping;
        }
        Verdict::Wait([stall, idle, ping].into_iter().flatten().min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        ping: Some(Duration::from_secs(30)),
        idle: Some(Duration::from_secs(100)),
        close: Some(Duration::from_secs(5)),
        stall: Duration::from_secs(60),
    };

    fn sight(seconds: u64) -> Sight {
        let (messages_in, messages_out, bytes_out) = (0, 0, 0);
        let summary = Summary { code: CloseCode::ABNORMAL, messages_in, messages_out, bytes_out };
        let (now, state, heard) = (Duration::from_secs(seconds), State::Open, Heard::default());
        Sight { now, state, heard, summary, unsent: false, hurry: false }
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
        let verdict = clocks.check(&sight(60), &PATIENCE);
        assert_eq!(verdict, Verdict::GiveUp("the client does not answer our Ping"));
    }

    #[test]
    fn any_byte_answers_a_ping_but_only_messages_prevent_idleness() {
        let mut clocks = Clocks::new(Duration::ZERO);
        assert_eq!(clocks.check(&sight(31), &PATIENCE), Verdict::Ping);
        let heard = Heard { bytes: true, message: false };
        assert_eq!(clocks.check(&Sight { heard, ..sight(32) }, &PATIENCE), wait(62));
        assert_eq!(clocks.check(&Sight { heard, ..sight(99) }, &PATIENCE), wait(100));
        let verdict = clocks.check(&Sight { heard, ..sight(100) }, &PATIENCE);
        assert!(matches!(verdict, Verdict::Close(CloseCode::GOING_AWAY, _)));
        let heard = Heard { bytes: true, message: true };
        assert_eq!(clocks.check(&Sight { heard, ..sight(100) }, &PATIENCE), wait(130));
    }

    #[test]
    fn a_client_that_takes_nothing_is_given_up() {
        let mut clocks = Clocks::new(Duration::ZERO);
        let heard = Heard { bytes: true, message: true };
        let mut now = Sight { heard, unsent: true, ..sight(50) };
        assert_eq!(clocks.check(&now, &PATIENCE), wait(60));
        now.summary.bytes_out = 1;
        assert_eq!(clocks.check(&now, &PATIENCE), wait(80));
        now.heard = Heard::default();
        let later = Sight { now: Duration::from_secs(110), ..now };
        assert_eq!(clocks.check(&later, &PATIENCE), Verdict::GiveUp("the client does not read"));
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
        assert_eq!(clocks.check(&closing(10), &PATIENCE), wait(60));
        assert_eq!(clocks.check(&closing(20), &PATIENCE), wait(60));
        let hurried = Sight { hurry: true, ..closing(21) };
        assert_eq!(clocks.check(&hurried, &PATIENCE), wait(26));
    }

    #[test]
    fn a_close_is_waited_for() {
        let mut clocks = Clocks::new(Duration::ZERO);
        let closing = |seconds| Sight { state: State::Closing, ..sight(seconds) };
        assert_eq!(clocks.check(&closing(70), &PATIENCE), wait(75));
        assert_eq!(clocks.check(&closing(74), &PATIENCE), wait(75));
        let verdict = clocks.check(&closing(75), &PATIENCE);
        assert_eq!(verdict, Verdict::GiveUp("the client does not answer our Close"));
    }
}
