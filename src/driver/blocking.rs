//! One thread per connection: waits on the transport's descriptor together with a wake-up for what
//! other threads send.
#![deny(unsafe_code)]

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::{
    Transport,
    stop::Stop,
    wait::{Interest, Ready, Signals, Waker, wait},
};
use crate::{
    endpoint::Endpoint,
    journal::Level,
    outbox::{Carrier, Outbox, State},
    proto::{
        close::{self, CloseCode},
        frame::Opcode,
    },
    session::{Event, Session},
};

/// How much is read at a time.
const READ: usize = 64 * 1024;
/// How long a client has to answer our Close, and to take what is left for it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The same when the child goes down.
const STOP_TIMEOUT: Duration = Duration::from_millis(700);

/// The thread's part of a connection that a callback on the same thread, through the outbox, needs too.
pub struct Lane<T> {
    io: Mutex<Io<T>>,
    waker: Waker,
    outbox: Arc<Outbox>,
}

struct Io<T> {
    transport: T,
    /// Bytes taken from the outbox.
    taken: Vec<u8>,
    /// How many of `taken` are written.
    written: usize,
}

impl<T: Transport> Io<T> {
    /// Writes until nothing is left (`true`) or the transport would block.
    fn flush(&mut self, outbox: &Outbox) -> io::Result<bool> {
        loop {
            if self.written == self.taken.len() {
                self.taken.clear();
                self.written = 0;
                outbox.take(&mut self.taken);
                if self.taken.is_empty() {
                    return self.transport.flush();
                }
            }
            match self.transport.write(&self.taken[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    outbox.wrote(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl<T: Transport> Lane<T> {
    /// The lane of a connection whose handshake is about to be answered.
    pub fn new(transport: T, outbox: Arc<Outbox>) -> io::Result<Arc<Self>> {
        let io = Mutex::new(Io { transport, taken: Vec::new(), written: 0 });
        Ok(Arc::new(Self { io, waker: Waker::new()?, outbox }))
    }

    /// The transport, once the connection is over.
    pub fn with_transport<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.io().transport)
    }

    /// Only the owning thread locks it, around a single call that does not block, so it is always free.
    fn io(&self) -> MutexGuard<'_, Io<T>> {
        self.io.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Writes what it can: whether all of it, and whether anything, was written.
    fn flush(&self) -> io::Result<(bool, bool)> {
        let mut io = self.io();
        let before = io.written;
        let taken = io.taken.len();
        let done = io.flush(&self.outbox)?;
        Ok((done, done || io.written != before || io.taken.len() != taken))
    }

    fn wait(
        &self,
        interest: Interest,
        timeout: Option<Duration>,
        signals: Option<&Signals>,
    ) -> io::Result<Ready> {
        let descriptor = self.io().transport.descriptor();
        wait(descriptor, interest, &self.waker, timeout, signals)
    }
}

impl<T: Transport> Carrier for Lane<T> {
    fn wake(&self) {
        self.waker.wake();
    }

    fn pump(&self, deadline: Instant) -> bool {
        loop {
            match self.flush() {
                Ok((_, true)) => return true,
                Ok((_, false)) => {}
                // The serving loop meets the same error and ends the connection.
                Err(_) => return false,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            if self.wait(Interest { read: false, write: true }, Some(left), None).is_err() {
                return false;
            }
        }
    }
}

/// Serves a connection until its conversation is over, and calls `closed` of its endpoint.
///
/// `stop`, or one of `signals` where the MPM handles them on this thread, ends it with Close 1001.
pub fn serve<T: Transport + 'static>(
    lane: &Arc<Lane<T>>,
    mut session: Session,
    endpoint: &dyn Endpoint,
    stop: &Stop,
    signals: Option<&Signals>,
) {
    let carrier: Arc<dyn Carrier> = lane.clone();
    let entry = stop.enter(&carrier);
    lane.outbox.open(&carrier);
    if let Err(error) = turns(lane, &mut session, endpoint, stop, signals) {
        let journal = lane.outbox.journal();
        journal.write(Level::Info, format_args!("WS0302: the connection is lost: {error}"));
    }
    lane.outbox.end("the connection is over");
    drop(entry);
    endpoint.closed();
}

/// When a connection's patience ends.
#[derive(Default)]
struct Clocks {
    /// The last time that bytes left, while some are waiting.
    stalled: Option<Instant>,
    /// The first turn on which the conversation was closing.
    closing: Option<Instant>,
}

fn turns<T: Transport>(
    lane: &Lane<T>,
    session: &mut Session,
    endpoint: &dyn Endpoint,
    stop: &Stop,
    signals: Option<&Signals>,
) -> io::Result<()> {
    let outbox = &*lane.outbox;
    let mut buffer = vec![0; READ];
    let mut clocks = Clocks::default();
    let mut input = Input::Waiting;
    // The handshake may have brought bytes along.
    let mut ready = Ready { read: true, write: true, stop: false };
    loop {
        let stopping = ready.stop || stop.is_stopping();
        if stopping {
            outbox.close(&close::payload(CloseCode::GOING_AWAY), "the server stops");
        }
        let crowded = outbox.is_crowded();
        match input {
            Input::Waiting if ready.read => input = read(lane, session, endpoint, &mut buffer)?,
            Input::Paused if !crowded => input = read(lane, session, endpoint, &mut buffer)?,
            _ => {}
        }
        let (done, progress) = lane.flush()?;
        let state = outbox.state();
        if done && (state == State::Closed || input == Input::Over) {
            return Ok(());
        }

        let now = Instant::now();
        if state > State::Open {
            clocks.closing.get_or_insert(now);
        }
        clocks.stalled =
            if done { None } else { clocks.stalled.filter(|_| !progress).or(Some(now)) };
        let patience = if stopping { STOP_TIMEOUT } else { CLOSE_TIMEOUT };
        let stalled = clocks.stalled.map(|since| since + outbox.timeout());
        let closing = clocks.closing.map(|since| since + patience);
        let deadline = stalled.into_iter().chain(closing).min();
        if deadline.is_some_and(|deadline| deadline <= now) {
            let why = if state > State::Open {
                "the client does not answer our Close"
            } else {
                "the client does not read"
            };
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }

        session.trim();
        let crowded = outbox.is_crowded();
        if input == Input::Paused && !crowded || !outbox.fall_asleep() {
            ready = Ready::default();
            continue;
        }
        let interest = Interest { read: input == Input::Waiting && !crowded, write: !done };
        let timeout = deadline.map(|deadline| deadline - now);
        // A pending signal stays pending: once seen, it must not end each further wait.
        ready = lane.wait(interest, timeout, signals.filter(|_| !stopping))?;
        ready.stop |= stopping;
    }
}

/// What is known of the client's next bytes.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Input {
    /// The descriptor will tell when there are some.
    Waiting,
    /// Reading stopped early, since too much waits for the client; the descriptor may show nothing.
    Paused,
    /// The stream has ended, or what it brings means nothing any more.
    Over,
}

/// Reads and handles what has arrived.
fn read<T: Transport>(
    lane: &Lane<T>,
    session: &mut Session,
    endpoint: &dyn Endpoint,
    buffer: &mut [u8],
) -> io::Result<Input> {
    loop {
        let (n, more) = {
            let mut io = lane.io();
            match io.transport.read(buffer) {
                Ok(n) => (n, io.transport.holds_input()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Input::Waiting),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
        };
        if n == 0 {
            lane.outbox.end("the client is gone");
            return Ok(Input::Over);
        }
        handle(&lane.outbox, session, endpoint, &mut buffer[..n]);
        if session.is_finished() {
            return Ok(Input::Over);
        }
        if !more {
            return Ok(Input::Waiting);
        }
        // Reading on before answering would let a client fill our memory with answers.
        lane.flush()?;
        if lane.outbox.is_crowded() {
            return Ok(Input::Paused);
        }
    }
}

/// Lets the session make events of `input`, and handles them.
fn handle(outbox: &Outbox, session: &mut Session, endpoint: &dyn Endpoint, input: &mut [u8]) {
    let version = session.limits().version;
    let mut at = 0;
    loop {
        let progress = match session.feed(&mut input[at..]) {
            Ok(progress) => progress,
            Err(violation) => {
                let code = violation.close_code(version);
                if outbox.close(&close::payload(code), "the client broke the protocol") {
                    let journal = outbox.journal();
                    let line = format_args!("WS0303: closing with {}: {violation}", code.0);
                    journal.write(Level::Info, line);
                }
                return;
            }
        };
        at += progress.consumed;
        match progress.event {
            None => return,
            Some(Event::Message { kind, data }) => {
                if outbox.receive_message() {
                    endpoint.message(kind, data);
                }
            }
            Some(Event::Ping(payload)) => {
                // A client that does not read its Pongs can do without them.
                let _ = outbox.send_control(Opcode::Pong, payload);
            }
            Some(Event::Pong(_)) => {}
            Some(Event::Close(reason)) => outbox.receive_close(&reason),
        }
    }
}
