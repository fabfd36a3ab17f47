//! The transport over a descriptor of our own: clear text, nothing between us and the kernel.

use std::{
    io::{self, IoSlice, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use super::Transport;
use crate::{
    conn::outbox,
    limits::memory::{Budget, Claim, Exhausted},
};

/// A stream socket in non-blocking mode.
#[derive(Debug)]
pub struct Socket {
    /// The standard library's type for any connected stream socket; also of a Unix listener.
    stream: TcpStream,
}

impl Socket {
    /// Takes over a connected stream socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let stream = TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(Self { stream })
    }

    /// The descriptor to wait on.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Ends the stream in one direction or both. What is already ended, or lost, stays so.
    pub fn shutdown(&self, how: Shutdown) {
        let _ = self.stream.shutdown(how);
    }

    /// Reads what is there; 0 at the end of the stream.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(buffer)
    }
}

impl outbox::WriteSocket for Socket {
    fn write(&self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        match bytes {
            [one] => (&self.stream).write(one),
            several => (&self.stream).write_vectored(several),
        }
    }
}

/// The transport of a [`Socket`], with the bytes that somebody else had already read from it.
#[derive(Debug)]
pub struct Plain {
    socket: Arc<Socket>,
    /// Read before the socket itself.
    early: Early,
    /// The socket has not been read since it was shown to be ready: what was read so far were early bytes.
    unread: bool,
}

impl Plain {
    /// Reads `early` and then `socket`.
    pub fn new(socket: Arc<Socket>, early: Early) -> Self {
        Self { socket, early, unread: true }
    }
}

impl Transport for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.early.is_empty() {
            self.unread = false;
            return self.socket.read(buffer);
        }
        Ok(self.early.take(buffer))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        outbox::WriteSocket::write(&*self.socket, &[IoSlice::new(bytes)])
    }

    fn flush(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn holds_input(&self) -> bool {
        self.unread
    }

    fn socket(&self) -> Option<Arc<Socket>> {
        Some(self.socket.clone())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.descriptor()
    }

    fn end_output(&mut self) {
        self.socket.shutdown(Shutdown::Write);
    }
}

/// Bytes that a client sent behind its handshake, and that were read with it.
#[derive(Debug)]
pub struct Early {
    bytes: Vec<u8>,
    claim: Claim,
}

impl Early {
    /// None yet; their memory will be taken from `budget`.
    pub fn new(budget: &'static Budget) -> Self {
        Self { bytes: Vec::new(), claim: budget.claim() }
    }

    /// Adds some, if there is memory for them.
    pub fn extend(&mut self, bytes: &[u8]) -> Result<(), Exhausted> {
        self.claim.cover(self.bytes.len() + bytes.len())?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Moves bytes from their front into `buffer`; their memory goes with the last of them.
    pub fn take(&mut self, buffer: &mut [u8]) -> usize {
        let n = self.bytes.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.bytes[..n]);
        self.bytes.drain(..n);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
            self.claim.release();
        }
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::memory;
    use std::os::unix::net::UnixStream;

    #[test]
    fn early_bytes_do_not_stand_for_those_in_the_socket() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut early = Early::new(&memory::UNLIMITED);
        early.extend(b"early").unwrap();
        let mut plain = Plain::new(Arc::new(Socket::new(ours.into()).unwrap()), early);
        theirs.write_all(b"late").unwrap();
        let mut buffer = [0; 64];
        assert_eq!(plain.read(&mut buffer).unwrap(), 5);
        // A single event has told of both; a driver that stopped here would never hear of the rest.
        assert!(plain.holds_input());
        assert_eq!(plain.read(&mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"late");
        assert!(!plain.holds_input());
    }
}
