//! Connecting to a peer, on the thread of httpd that handles the request: the client is answered only afterwards.
//!
//! Names are looked up on a thread of their own, since the resolver cannot be told how long it may take.

use core::fmt;
use std::{
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    os::fd::AsFd as _,
    path::Path,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{Address, address::Host, socket::PeerSocket};
use crate::os::{AllSignals, Interest, Sources, bind_anywhere, wait};

/// Whoever connects within this time does not wait.
const AT_ONCE: Duration = Duration::from_millis(100);
/// How often it is looked whether anybody still wants the connection.
const LOOK: Duration = Duration::from_millis(100);
/// How many names may be looked up at a time, each on a thread of its own.
const MOST_LOOK_UPS: usize = 64;

/// Those of this process; whoever began one may be gone.
static LOOK_UPS: LookUps = LookUps(AtomicUsize::new(0));

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// The peer, or the resolver, did not answer in time.
    TimedOut,
    /// It would have to wait, and the caller says that it may not.
    NotNow,
    /// The name cannot be looked up now.
    NoLookUp(io::Error),
    /// Nobody wants it any more.
    Unwanted,
    /// The peer refuses, or cannot be reached.
    Failed(io::Error),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("no answer within WebSocketBridgeConnectTimeout"),
            Self::NotNow => f.write_str("too many wait already"),
            Self::Unwanted => f.write_str("no answer before the client went away"),
            Self::NoLookUp(error) | Self::Failed(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A Unix socket whose queue of connections stays full says WouldBlock.
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::TimedOut,
            _ => Self::Failed(error),
        }
    }
}

/// Who wants to be connected.
pub trait Caller {
    /// Whether the thread may wait; asked once, if it has to.
    fn may_wait(&mut self) -> bool;

    /// Whether anybody still wants the connection; asked ten times a second while the thread waits.
    fn is_there(&self) -> bool;
}

/// The time that connecting has.
struct Clock<'a> {
    begun: Instant,
    deadline: Instant,
    caller: &'a mut dyn Caller,
    /// The caller has said that the thread may wait.
    waits: bool,
}

impl Clock<'_> {
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Does something that takes `most` at most, and can be taken up again when it has timed out.
    fn run<T>(
        &mut self,
        most: Duration,
        mut attempt: impl FnMut(Duration) -> Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        let start = Instant::now();
        loop {
            let left = most.saturating_sub(start.elapsed());
            let moment =
                if self.waits { LOOK } else { AT_ONCE.saturating_sub(self.begun.elapsed()) };
            match attempt(moment.min(left)) {
                Err(ConnectError::TimedOut) if left <= moment => {
                    return Err(ConnectError::TimedOut);
                }
                Err(ConnectError::TimedOut) => {}
                done => return done,
            }
            if !self.waits && !self.caller.may_wait() {
                return Err(ConnectError::NotNow);
            }
            self.waits = true;
            if !self.caller.is_there() {
                return Err(ConnectError::Unwanted);
            }
        }
    }
}

/// How many look-ups are under way: a mere count.
struct LookUps(AtomicUsize);

/// One that is under way, which nobody can end.
struct LookUp(&'static LookUps);

impl LookUps {
    /// One more; `None` if there are as many as there may be.
    fn begin(&'static self) -> Option<LookUp> {
        let one_more = |running| (running < MOST_LOOK_UPS).then_some(running + 1);
        let begun = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        begun.is_ok().then(|| LookUp(self))
    }
}

impl Drop for LookUp {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connects within `timeout`, to the first of a name's addresses that accepts.
pub fn connect(
    address: &Address,
    timeout: Duration,
    caller: &mut dyn Caller,
) -> Result<PeerSocket, ConnectError> {
    let begun = Instant::now();
    let mut clock = Clock { begun, deadline: begun + timeout, caller, waits: false };
    let socket = match address {
        Address::Tcp(host, port) => {
            to_any(&resolve(host, *port, &mut clock)?, &mut clock, Type::STREAM)?
        }
        Address::Udp(host, port) => {
            to_any(&resolve(host, *port, &mut clock)?, &mut clock, Type::DGRAM)?
        }
        Address::Unix(path) => to_path(path, &mut clock, Type::STREAM)?,
        Address::UnixDatagram(path) => to_path(path, &mut clock, Type::DGRAM)?,
    };
    Ok(PeerSocket::new(socket, address)?)
}

/// The addresses of a host.
fn resolve(host: &Host, port: u16, clock: &mut Clock<'_>) -> Result<Vec<SocketAddr>, ConnectError> {
    let name = match host {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
        Host::Name(name) => name.clone(),
    };
    let counted = LOOK_UPS.begin().ok_or_else(|| {
        let why = format!("{MOST_LOOK_UPS} names are being looked up already");
        ConnectError::NoLookUp(io::Error::other(why))
    })?;
    let (sender, receiver) = mpsc::sync_channel(1);
    {
        // Signals are for httpd's threads.
        let _blocked = AllSignals::block();
        let look_up = move || {
            let _counted = counted;
            let addresses = (&*name, port).to_socket_addrs().map(|found| found.collect::<Vec<_>>());
            // Nobody waits for it any more if it took too long.
            let _ = sender.send(addresses);
        };
        let thread = thread::Builder::new().name("ws-resolver".into());
        thread.spawn(look_up).map_err(ConnectError::NoLookUp)?;
    }
    let answer = |most| {
        receiver.recv_timeout(most).map_err(|error| match error {
            RecvTimeoutError::Timeout => ConnectError::TimedOut,
            // It has panicked.
            RecvTimeoutError::Disconnected => io::Error::other("the look-up has failed").into(),
        })
    };
    let addresses = clock.run(clock.left(), answer)??;
    if addresses.is_empty() {
        return Err(io::Error::other("the name has no address").into());
    }
    Ok(addresses)
}

/// Connects to the first address that accepts; each one has its share of the time that is left.
fn to_any(
    addresses: &[SocketAddr],
    clock: &mut Clock<'_>,
    kind: Type,
) -> Result<Socket, ConnectError> {
    let mut failure = ConnectError::TimedOut;
    for (n, address) in addresses.iter().enumerate() {
        let share = clock.left() / (addresses.len() - n) as u32;
        if share.is_zero() {
            break;
        }
        match to_one(*address, share, clock, kind) {
            Err(error @ (ConnectError::TimedOut | ConnectError::Failed(_))) => failure = error,
            done => return done,
        }
    }
    Err(failure)
}

/// Connects to an address within `most`.
fn to_one(
    address: SocketAddr,
    most: Duration,
    clock: &mut Clock<'_>,
    kind: Type,
) -> Result<Socket, ConnectError> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if kind == Type::STREAM {
        socket.set_tcp_nodelay(true)?;
    }
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            clock.run(most, |most| decided(&socket, most))?;
            socket.take_error()?.map_or(Ok(socket), |error| Err(error.into()))
        }
        done => Ok(done.map(|()| socket)?),
    }
}

/// Waits until it is decided whether a socket is connected.
fn decided(socket: &Socket, most: Duration) -> Result<(), ConnectError> {
    let (start, interest) = (Instant::now(), Interest { read: false, write: true });
    let sources = Sources { first: Some((socket.as_fd(), interest)), ..Sources::default() };
    loop {
        let left = most.saturating_sub(start.elapsed());
        if wait(&sources, Some(left))?.first.write {
            return Ok(());
        }
        // A signal may have ended the wait.
        if left.is_zero() {
            return Err(ConnectError::TimedOut);
        }
    }
}

/// Connects to a Unix socket.
fn to_path(path: &Path, clock: &mut Clock<'_>, kind: Type) -> Result<Socket, ConnectError> {
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    if kind == Type::DGRAM {
        bind_anywhere(&socket)?;
    }
    let address = SockAddr::unix(path)?;
    clock.run(clock.left(), |most| {
        // Also bounds how long a connection waits for its place in the peer's queue; zero would not.
        socket.set_write_timeout(Some(most.max(Duration::from_millis(1))))?;
        match socket.connect(&address) {
            // A signal came; nothing has begun.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(ConnectError::TimedOut),
            done => Ok(done?),
        }
    })?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that may wait, and is gone after so many looks.
    struct Client {
        asked: usize,
        may_wait: bool,
        looks: core::cell::Cell<usize>,
    }

    impl Caller for Client {
        fn may_wait(&mut self) -> bool {
            self.asked += 1;
            self.may_wait
        }

        fn is_there(&self) -> bool {
            self.looks.set(self.looks.get().saturating_sub(1));
            self.looks.get() > 0
        }
    }

    fn client(may_wait: bool, looks: usize) -> Client {
        Client { asked: 0, may_wait, looks: looks.into() }
    }

    /// What waiting for something comes to that takes so long.
    fn run(client: &mut Client, takes: Duration, most: Duration) -> Result<(), ConnectError> {
        let begun = Instant::now();
        let mut clock = Clock { begun, deadline: begun + most, caller: client, waits: false };
        clock.run(most, |most| {
            let left = takes.saturating_sub(begun.elapsed());
            thread::sleep(left.min(most));
            if left <= most { Ok(()) } else { Err(ConnectError::TimedOut) }
        })
    }

    #[test]
    fn who_is_quick_does_not_wait() {
        let mut client = client(false, 0);
        assert!(run(&mut client, Duration::ZERO, LOOK).is_ok());
        assert_eq!(client.asked, 0);
    }

    #[test]
    fn who_has_to_wait_asks_once_and_looks_whether_somebody_is_there() {
        let takes = 3 * LOOK;
        let mut patient = client(true, 10);
        assert!(run(&mut patient, takes, 9 * LOOK).is_ok());
        assert_eq!(patient.asked, 1);
        assert!(patient.looks.get() < 10);
        let error = run(&mut client(false, 10), takes, 9 * LOOK).unwrap_err();
        assert!(matches!(error, ConnectError::NotNow));
        let error = run(&mut client(true, 2), takes, 9 * LOOK).unwrap_err();
        assert!(matches!(error, ConnectError::Unwanted));
        let error = run(&mut client(true, 99), takes, 2 * LOOK).unwrap_err();
        assert!(matches!(error, ConnectError::TimedOut));
    }

    #[test]
    fn look_ups_have_a_bound() {
        static OWN: LookUps = LookUps(AtomicUsize::new(0));
        let mut running: Vec<_> = (0..MOST_LOOK_UPS).map(|_| OWN.begin().unwrap()).collect();
        for _ in 0..3 {
            assert!(OWN.begin().is_none());
        }
        running.pop();
        running.push(OWN.begin().unwrap());
        assert!(OWN.begin().is_none());
        drop(running);
        assert_eq!(OWN.0.load(Ordering::Relaxed), 0);
    }
}
