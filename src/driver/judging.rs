//! What `blocking` and `service` share: what a connection's deadlines are asked with, and what is done then.

use std::{io, time::Duration};

use super::conn_io::ConnIo;
use crate::{
    conn::{
        deadlines::{Action, Activity, NO_PONG, Snapshot, Unfinished},
        endpoint::Sink,
        outbox::{Outbox, State},
    },
    metrics::{Line, Metric},
    proto::{
        close::{self, CloseCode},
        frame::Opcode,
    },
    settings::Timeouts,
};

/// How long a client has to answer our Close when the child goes down.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_millis(700);
/// How long after the child's end has come to a connection what still waits for its peer is dropped, however fast it is.
pub(super) const PEERS_END: Duration = Duration::from_secs(1);

/// What a driver has seen of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Time since some fixed moment.
    pub(super) now: Duration,
    /// How long ago the child's end came to the connection.
    pub(super) since: Option<Duration>,
    /// What the client has done since the deadlines were asked last.
    pub(super) activity: Activity,
    /// A message that is arriving.
    pub(super) unfinished: Option<Unfinished>,
    /// A thread is at work on it.
    pub(super) running: bool,
    /// Not everything could be written.
    pub(super) blocked: bool,
    /// The client has been pinged, and was not heard since.
    pub(super) pinged: bool,
}

/// What the connection looks like.
pub(super) fn snapshot(io: &ConnIo, sink: Option<&dyn Sink>, seen: &Seen) -> Snapshot {
    let Seen { now, since, mut activity, unfinished, running, blocked, pinged } = *seen;
    let (state, mut summary, unsent) = io.outbox.look();
    let queued = unsent || blocked;
    // Who has not got our Close, or our Ping, cannot answer it: the kernel may hold megabytes before it.
    let asks = queued || pinged || state == State::Closing;
    let arrived = if asks { io.arrived(summary.bytes_out) } else { None };
    summary.bytes_out = arrived.unwrap_or(summary.bytes_out);
    // Who is not read from cannot be blamed for its silence.
    activity.bytes |= state <= State::Open && sink.is_some_and(Sink::is_crowded);
    // Who does not take our Close cannot have answered it, and is not read from before that.
    activity.all |= state == State::Closing && arrived.is_some();
    let (unacknowledged, hurry) = (arrived.is_some(), since.is_some());
    Snapshot { now, state, activity, summary, queued, unacknowledged, unfinished, running, hurry }
}

/// The time that a connection has for everything. `since`: how long ago the child's end came to it.
pub(super) fn timeouts(timeouts: Timeouts, since: Option<Duration>) -> Timeouts {
    if since.is_none() {
        return timeouts;
    }
    let close = timeouts.close.map_or(STOP_TIMEOUT, |close| close.min(STOP_TIMEOUT));
    Timeouts { close: Some(close), ..timeouts }
}

/// How long a peer may take nothing of what waits for it. `since`: how long ago the child's end came to the connection;
/// what the peer did before that is judged as ever.
pub(super) fn peer_timeout(timeouts: &Timeouts, since: Option<Duration>) -> Duration {
    match since {
        Some(since) if since >= PEERS_END => Duration::ZERO,
        Some(since) if since >= STOP_TIMEOUT => timeouts.stall.min(STOP_TIMEOUT),
        _ => timeouts.stall,
    }
}

/// Does what the deadlines ask for; an error if the connection is to be given up.
pub(super) fn act(action: Action, outbox: &Outbox, line: &Line) -> io::Result<()> {
    match action {
        Action::Wait(_) | Action::Read => {}
        Action::Ping => {
            // While more than the limit waits for the client there is no need to ask whether it is there.
            let _ = outbox.send_control(Opcode::Ping, &[]);
        }
        Action::Close(CloseCode::POLICY, why) => outbox.give_up(format_args!("{why}")),
        Action::Close(code, why) => {
            outbox.close(&close::payload(code), why);
        }
        Action::GiveUp(why) => {
            line.add(Metric::PingsUnanswered, u64::from(why == NO_PONG));
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{io::IoSlice, os::unix::net::UnixStream, sync::Arc};

    use super::*;
    use crate::{
        conn::outbox::WriteSocket as _,
        driver::plain::{Early, Plain, Socket},
        fakes::{Driver, Wire, outbox},
        limits::memory::UNLIMITED,
    };

    const SEEN: Seen = Seen {
        now: Duration::ZERO,
        since: None,
        activity: Activity { bytes: false, message: false, all: false },
        unfinished: None,
        running: false,
        blocked: false,
        pinged: false,
    };

    /// What the kernel holds is asked when it matters, though nothing waits with us.
    #[test]
    fn a_ping_or_close_that_has_not_got_there() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let socket = Arc::new(Socket::new(ours.into()).unwrap());
        let (outbox, _) = outbox(1000);
        let driver = Driver::new(Some(&Wire::new()), || panic!("nobody has to wait"));
        driver.rest(&outbox);
        socket.write(&[IoSlice::new(b"what the client does not take")]).unwrap();
        let transport = Plain::new(socket, Early::new(&UNLIMITED));
        let io = ConnIo::new(Box::new(transport), outbox);
        let waits = |pinged| {
            let seen = Seen { pinged, ..SEEN };
            snapshot(&io, None, &seen).unacknowledged
        };
        assert_eq!((waits(false), waits(true)), (false, true));
        io.outbox.close(b"", "test");
        assert!(waits(false));
    }

    /// Of who does not take our Close no answer is awaited; but what nobody had the time to write may be answered yet.
    #[test]
    fn a_close_that_has_not_left() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let socket = Arc::new(Socket::new(ours.into()).unwrap());
        let (outbox, _) = outbox(1000);
        let driver = Driver::new(None, || panic!("nobody has to wait"));
        driver.rest(&outbox);
        let transport = Plain::new(socket.clone(), Early::new(&UNLIMITED));
        let io = ConnIo::new(Box::new(transport), outbox);
        let all_is_read = || snapshot(&io, None, &SEEN).activity.all;
        io.outbox.close(b"", "test");
        assert!(!all_is_read());
        socket.write(&[IoSlice::new(b"what the client does not take")]).unwrap();
        assert!(all_is_read());
        assert!(snapshot(&io, None, &SEEN).unacknowledged);
    }
}
