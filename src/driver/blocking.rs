//! One thread per connection: waits on the transport's descriptor together with a wake-up for what
//! other threads want.
#![deny(unsafe_code)]

use std::{
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{
    Transport,
    clocks::{Clocks, Sight, Verdict},
    lane::Lane,
    service::STOP_TIMEOUT,
    stop::Stop,
    turn::{Buffers, Outcome, Turn},
    wait::{Interest, Signals, Waker, wait},
};
use crate::{
    config::Patience,
    endpoint::Endpoint,
    journal::Level,
    outbox::{Carrier, Outbox, Socket},
    proto::{
        close::{self, CloseCode},
        frame::Opcode,
    },
    session::Session,
};

/// The thread's part of a connection that other threads, and callbacks on this one, reach through the outbox.
struct Blocking<T> {
    lane: Lane<T>,
    waker: Waker,
}

impl<T: Transport> Carrier for Blocking<T> {
    fn wake(&self) {
        self.waker.wake();
    }

    fn pump(&self, deadline: Instant) {
        self.lane.pump(deadline);
    }

    fn socket(&self) -> Option<&dyn Socket> {
        self.lane.socket.as_deref().map(|socket| socket as &dyn Socket)
    }
}

/// How a conversation ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// How many bytes were received.
    pub received: u64,
    /// The connection is lost, or the client was given up: nothing can be written to it any more.
    pub lost: bool,
}

/// Serves a connection until its conversation is over, and calls `closed` of its endpoint.
///
/// `stop`, or one of `signals` where the MPM handles them on this thread, ends it with Close 1001.
pub fn serve<T: Transport + 'static>(
    lane: Lane<T>,
    waker: Waker,
    session: Session,
    endpoint: &dyn Endpoint,
    patience: Patience,
    stop: &Stop,
    signals: Option<&Signals>,
) -> Ended {
    let blocking = Arc::new(Blocking { lane, waker });
    let carrier: Arc<dyn Carrier> = blocking.clone();
    let outbox = &*blocking.lane.outbox;
    let entry = stop.enter(&carrier);
    let weak: Weak<dyn Carrier> = Arc::downgrade(&carrier);
    outbox.open(weak);
    outbox.own();
    let mut turn = Turn::new(session);
    let result = turns(&blocking, &mut turn, endpoint, patience, stop, signals);
    if let Err(error) = &result {
        let line = format_args!("WS0302: the connection is lost: {error}");
        outbox.journal().write(Level::Info, line);
    }
    outbox.end("the connection is over");
    drop(entry);
    endpoint.closed();
    Ended { received: turn.received(), lost: result.is_err() }
}

fn turns<T: Transport>(
    blocking: &Blocking<T>,
    turn: &mut Turn,
    endpoint: &dyn Endpoint,
    mut patience: Patience,
    stop: &Stop,
    signals: Option<&Signals>,
) -> io::Result<()> {
    let Blocking { lane, waker } = blocking;
    let outbox = &*lane.outbox;
    let mut buffers = Buffers::default();
    let start = Instant::now();
    let mut clocks = Clocks::new(Duration::ZERO);
    let mut readable = false;
    let mut stopping = false;
    loop {
        if stopping || stop.is_stopping() {
            stopping = true;
            patience.close = Some(patience.close.map_or(STOP_TIMEOUT, |p| p.min(STOP_TIMEOUT)));
            outbox.close(&close::payload(CloseCode::GOING_AWAY), "the server stops");
        }
        let (read, write, again) =
            match turn.run(lane, endpoint, (readable, false), &mut buffers)? {
                Outcome::Over => return Ok(()),
                Outcome::Again => (true, true, true),
                Outcome::Rest { read, write } => (read, write, false),
            };
        let (state, mut summary, unsent) = outbox.look();
        let (now, heard) = (start.elapsed(), turn.heard());
        let unsent = unsent || write && !again;
        if unsent {
            summary.bytes_out = lane.arrived(summary.bytes_out);
        }
        let sight = Sight { now, state, heard, summary, unsent, hurry: stopping };
        let deadline = match clocks.check(&sight, &patience) {
            Verdict::Wait(deadline) => deadline,
            verdict => {
                act(verdict, outbox)?;
                continue;
            }
        };
        readable = false;
        // Nobody else could use it meanwhile.
        buffers.release();
        if !outbox.fall_asleep(write) {
            continue;
        }
        let timeout = deadline.map(|deadline| deadline.saturating_sub(start.elapsed()));
        // A client that is never at a loss for bytes must not keep us from seeing what else there is.
        let timeout = if again { Some(Duration::ZERO) } else { timeout };
        // A pending signal stays pending: once seen, it must not end each further wait.
        let signals = signals.filter(|_| !stopping);
        let ready =
            wait(lane.descriptor(), Interest { read, write }, Some(waker), timeout, signals)?;
        readable = ready.read;
        stopping |= ready.stop;
    }
}

/// Does what the clocks ask for; an error if the connection is to be given up.
pub(super) fn act(verdict: Verdict, outbox: &Outbox) -> io::Result<()> {
    match verdict {
        Verdict::Wait(_) => {}
        Verdict::Ping => {
            // While more than the limit waits for the client there is no need to ask whether it is there.
            let _ = outbox.send_control(Opcode::Ping, &[]);
        }
        Verdict::Close(code, why) => {
            outbox.close(&close::payload(code), why);
        }
        Verdict::GiveUp(why) => return Err(io::Error::new(io::ErrorKind::TimedOut, why)),
    }
    Ok(())
}
