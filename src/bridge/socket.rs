//! The peer's socket: a connected stream or datagram socket that never blocks.

use std::{
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::fd::{AsFd as _, BorrowedFd},
};

use socket2::Socket;

use super::Address;
use crate::os;

/// A connected socket.
#[derive(Debug)]
pub struct PeerSocket {
    socket: Socket,
    kind: SocketKind,
}

/// What travels over a socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SocketKind {
    /// Bytes.
    Stream,
    /// Datagrams that fit a read.
    Udp,
    /// Datagrams of any size.
    UnixDatagram,
}

impl PeerSocket {
    /// Takes over a socket that is connected to a peer of this kind of address.
    pub fn new(socket: Socket, address: &Address) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let kind = match address {
            Address::Tcp(..) | Address::Unix(_) => SocketKind::Stream,
            Address::Udp(..) => SocketKind::Udp,
            Address::UnixDatagram(_) => SocketKind::UnixDatagram,
        };
        Ok(Self { socket, kind })
    }

    /// What travels over it.
    pub fn kind(&self) -> SocketKind {
        self.kind
    }

    /// The descriptor to wait on.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what is there; 0 at the end of the stream.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        retry(|| (&self.socket).read(buffer))
    }

    /// Writes some of the bytes, or sends all of them as a datagram.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        retry(|| (&self.socket).write(bytes))
    }

    /// How many bytes the next datagram has, if that may be more than a read takes.
    pub fn next_len(&self) -> io::Result<usize> {
        retry(|| os::peek_len(self.descriptor()))
    }

    /// Ends our direction of the stream. What is already ended, or lost, stays so.
    pub fn finish(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// How many bytes the peer has not got.
    pub fn unacknowledged(&self) -> u64 {
        os::unacknowledged(self.descriptor()).unwrap_or(0)
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
