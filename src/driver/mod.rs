//! Drivers move bytes between a transport, a session and an outbox, and call the endpoint.
//!
//! What every driver promises:
//! - Callbacks of one connection never overlap, and `closed` is called once, last.
//! - Bytes go out in the order in which they were queued; only the owning thread touches the transport.
//! - No lock is held while a callback runs or while the network is waited for.
//! - When the conversation is over every sender is released before `closed` is called.
//! - When the child goes down, each connection gets Close 1001 and its `closed`.
//!
//! | file | owns |
//! |---|---|
//! | [`blocking`] | one thread per connection |
//! | [`socket`] | the transport over a descriptor of our own |
//! | [`stop`] | telling every connection that the child goes down |
//! | [`wait`] | waiting for a descriptor, a wake-up or a deadline |

use std::{io, os::fd::RawFd};

pub mod blocking;
pub mod socket;
pub mod stop;
pub mod wait;

/// A byte stream that never blocks: [`io::ErrorKind::WouldBlock`] says that it would.
pub trait Transport: Send {
    /// Reads what is there; 0 at the end of the stream.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Takes some of `bytes`, at least one.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Pushes out what `write` has taken but not passed on; `true` when nothing is left inside.
    fn flush(&mut self) -> io::Result<bool>;

    /// Whether bytes may wait inside that the descriptor does not show: then reading goes on until it
    /// would block, whatever the last read returned.
    fn holds_input(&self) -> bool;

    /// The descriptor to wait on.
    fn descriptor(&self) -> RawFd;
}
