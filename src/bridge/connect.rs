//! Connecting to a peer, on the thread of httpd that handles the request: the client is answered only afterwards.
//!
//! Names are looked up on a thread of their own, since the resolver cannot be told how long it may take.

use core::fmt;
use std::{
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    os::fd::AsFd as _,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{Address, address::Host, socket::PeerSocket};
use crate::os::{AllSignals, Interest, Sources, bind_anywhere, wait};

/// Whoever connects within this time does not wait.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// The peer, or the resolver, did not answer in time.
    TimedOut,
    /// It would have to wait, and may not.
    NotNow,
    /// The peer refuses, or cannot be reached.
    Failed(io::Error),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("no answer within WebSocketBridgeConnectTimeout"),
            Self::NotNow => f.write_str("too many wait already"),
            Self::Failed(error) => error.fmt(f),
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

/// The time that connecting has.
struct Clock<'a> {
    begun: Instant,
    deadline: Instant,
    /// Says whether the thread may wait; asked once, if it has to.
    may_wait: Option<&'a mut dyn FnMut() -> bool>,
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
        let at_once = AT_ONCE.saturating_sub(self.begun.elapsed()).min(most);
        let Some(may_wait) = self.may_wait.take() else { return attempt(most) };
        match attempt(at_once) {
            Err(ConnectError::TimedOut) if !may_wait() => Err(ConnectError::NotNow),
            Err(ConnectError::TimedOut) => attempt(most - at_once),
            done => {
                self.may_wait = Some(may_wait);
                done
            }
        }
    }
}

/// Connects within `timeout`, to the first of a name's addresses that accepts. If that does not happen at once, `may_wait`
/// is asked.
pub fn connect(
    address: &Address,
    timeout: Duration,
    may_wait: &mut dyn FnMut() -> bool,
) -> Result<PeerSocket, ConnectError> {
    let begun = Instant::now();
    let mut clock = Clock { begun, deadline: begun + timeout, may_wait: Some(may_wait) };
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
    let (sender, receiver) = mpsc::sync_channel(1);
    {
        // Signals are for httpd's threads.
        let _blocked = AllSignals::block();
        let look_up = move || {
            let addresses = (&*name, port).to_socket_addrs().map(|found| found.collect::<Vec<_>>());
            // Nobody waits for it any more if it took too long.
            let _ = sender.send(addresses);
        };
        thread::Builder::new().name("ws-resolver".into()).spawn(look_up)?;
    }
    let answer = |most| receiver.recv_timeout(most).map_err(|_| ConnectError::TimedOut);
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
        Ok(socket.connect(&address)?)
    })?;
    Ok(socket)
}
