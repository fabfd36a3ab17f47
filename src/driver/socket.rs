//! The transport over a descriptor of our own: clear text, nothing between us and the kernel.
#![deny(unsafe_code)]

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
};

use super::Transport;

/// A stream socket in non-blocking mode, with the bytes that somebody else had already read from it.
#[derive(Debug)]
pub struct Socket {
    /// The standard library's type for any connected stream socket; also of a Unix listener.
    stream: TcpStream,
    /// Read before the socket itself.
    early: Vec<u8>,
    /// How many bytes came and went.
    traffic: Traffic,
}

/// Bytes on the wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Received, without `early` ones, which somebody else counted.
    pub received: u64,
    /// Sent.
    pub sent: u64,
}

impl Socket {
    /// Takes over a connected stream socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(Self { stream, early: Vec::new(), traffic: Traffic::default() })
    }

    /// Has bytes read that somebody else took out of the socket.
    pub fn unread(&mut self, early: Vec<u8>) {
        self.early = early;
    }

    /// How many bytes came and went so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }
}

impl Transport for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.early.is_empty() {
            let n = self.early.len().min(buffer.len());
            buffer[..n].copy_from_slice(&self.early[..n]);
            self.early.drain(..n);
            return Ok(n);
        }
        let n = self.stream.read(buffer)?;
        self.traffic.received += n as u64;
        Ok(n)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.stream.write(bytes)?;
        self.traffic.sent += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn holds_input(&self) -> bool {
        !self.early.is_empty()
    }

    fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
