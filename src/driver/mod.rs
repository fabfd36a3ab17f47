//! Drivers move bytes between a transport, a session and an outbox, and call the endpoint.
//!
//! What every driver promises:
//! - Callbacks of one connection never overlap, and `closed` is called once, last.
//! - Bytes go out in the order in which they were queued.
//! - No lock is held while a callback runs or while the network is waited for.
//! - When the conversation is over every sender is released before `closed` is called.
//! - When the child goes down, each connection gets Close 1001 and its `closed`, unless a callback does not return in time.
//!
//! | file | owns |
//! |---|---|
//! | [`conn_io`] | a connection's bytes on their way out and in, for the thread at work on it |
//! | `judging` | what its deadlines are asked with, and what follows |
//! | [`reader`] | what happens when a connection is ready: read, handle, write |
//! | [`blocking`] | one thread per connection |
//! | [`service`] | few threads for all connections on sockets of our own |
//! | [`run_state`] | what keeps a second thread away from a connection |
//! | [`plain`] | the transport over such a socket |
//! | [`tls`] | the transport over such a socket with TLS |
//! | [`openssl`] | the functions of OpenSSL that it needs |
//! | [`shutdown`] | how a child ends, and telling every blocking connection |
//! | [`signals`] | the signals by which it is told, held back while a connection is served on its only thread |

use std::{io, os::fd::BorrowedFd, sync::Arc, time::Duration};

pub mod blocking;
pub mod conn_io;
mod judging;
pub mod openssl;
pub mod plain;
pub mod reader;
pub mod run_state;
pub mod service;
pub mod shutdown;
pub mod signals;
pub mod tls;

/// A byte stream that never blocks: [`io::ErrorKind::WouldBlock`] says that it would.
pub trait Transport: Send {
    /// Reads what is there; 0 at the end of the stream. [`io::ErrorKind::Interrupted`] says that nothing has come of it
    /// yet, and that there may be more to read at once.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Takes some of `bytes`, at least one.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Pushes out what `write` has taken but not passed on; `true` when nothing is left inside.
    fn flush(&mut self) -> io::Result<bool>;

    /// Whether bytes may wait inside that the descriptor does not show: then reading goes on until it
    /// would block, whatever the last read returned.
    fn holds_input(&self) -> bool;

    /// The socket beneath, if any thread may write to it; then `write` and `flush` are not used.
    fn socket(&self) -> Option<Arc<plain::Socket>>;

    /// The descriptor to wait on: always the same, and open as long as the transport lives; or, if it is httpd's, until an
    /// ungraceful stop.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Whether `read` would block because of output that has to leave first; the descriptor need not show when to read on.
    fn is_held_up(&self) -> bool {
        false
    }

    /// How many bytes `write` has made of what it took that have not left, if they count as unsent.
    fn held_output(&self) -> usize {
        0
    }

    /// How many bytes were received and sent, if those are others than `read` gave and `write` took.
    fn on_the_wire(&self) -> Option<(u64, u64)> {
        None
    }

    /// Ends our direction of the stream, as far as that is the driver's to do. Everything was flushed, or is lost.
    fn end_output(&mut self) {}

    /// When to try again after `write` would have blocked, if the descriptor does not show that there is room.
    fn retry(&self) -> Option<Duration> {
        None
    }
}
