//! Connecting to a peer, on the thread of httpd that handles the request: the client is answered only afterwards.
//!
//! Names are looked up on a thread of their own, since the resolver cannot be told how long it may take.
#![deny(unsafe_code)]

use core::fmt;
use std::{
    io,
    net::{SocketAddr, ToSocketAddrs as _},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{Address, address::Host, socket::PeerSocket};
use crate::driver::wait::{AllSignals, bind_anywhere};

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// The peer, or the resolver, did not answer in time.
    TimedOut,
    /// The peer refuses, or cannot be reached.
    Failed(io::Error),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("no answer within WebSocketBridgeConnectTimeout"),
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

/// Connects within `timeout`, to the first of a name's addresses that accepts.
pub fn connect(address: &Address, timeout: Duration) -> Result<PeerSocket, ConnectError> {
    let deadline = Instant::now() + timeout;
    let socket = match address {
        Address::Tcp(host, port) => {
            to_any(&resolve(host, *port, deadline)?, deadline, Type::STREAM)?
        }
        Address::Udp(host, port) => {
            to_any(&resolve(host, *port, deadline)?, deadline, Type::DGRAM)?
        }
        Address::Unix(path) => to_path(path, timeout, Type::STREAM)?,
        Address::UnixDatagram(path) => to_path(path, timeout, Type::DGRAM)?,
    };
    Ok(PeerSocket::new(socket, address)?)
}

/// The addresses of a host.
fn resolve(host: &Host, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>, ConnectError> {
    let name = match host {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
        Host::Name(name) => name.clone(),
    };
    let (sender, receiver) = mpsc::sync_channel(1);
    {
        // Signals are for httpd's threads.
        let _blocked = AllSignals::block();
        let look_up = move || {
            let addresses = (&*name, port).to_socket_addrs().map(|found| found.collect());
            // Nobody waits for it any more if it took too long.
            let _ = sender.send(addresses);
        };
        thread::Builder::new().name("ws-resolver".into()).spawn(look_up)?;
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let addresses: Vec<_> = receiver.recv_timeout(left).map_err(|_| ConnectError::TimedOut)??;
    if addresses.is_empty() {
        return Err(io::Error::other("the name has no address").into());
    }
    Ok(addresses)
}

/// Connects to the first address that accepts; each one has its share of the time that is left.
fn to_any(addresses: &[SocketAddr], deadline: Instant, kind: Type) -> Result<Socket, ConnectError> {
    let mut failure = ConnectError::TimedOut;
    for (n, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / (addresses.len() - n) as u32;
        if share.is_zero() {
            break;
        }
        let connected = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::for_address(*address), kind, None)?;
            if kind == Type::STREAM {
                socket.set_tcp_nodelay(true)?;
            }
            socket.connect_timeout(&(*address).into(), share)?;
            Ok(socket)
        };
        match connected() {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

/// Connects to a Unix socket.
fn to_path(path: &Path, timeout: Duration, kind: Type) -> Result<Socket, ConnectError> {
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    if kind == Type::DGRAM {
        bind_anywhere(&socket)?;
    }
    // Also bounds how long a connection waits for its place in the peer's queue.
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}
