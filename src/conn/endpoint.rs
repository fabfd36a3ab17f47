//! What receives a connection's messages, the other side of a driver: a plugin, or the bridge.

use std::{os::fd::BorrowedFd, time::Duration};

use super::callbacks::Callbacks;
use crate::{
    os::{Interest, Readiness},
    proto::Kind,
};

/// The receiver of one connection's messages: a plugin, or the bridge.
///
/// A driver never calls it from two threads at once, though not always from the same thread. It answers
/// through the connection's [`Outbox`](crate::conn::outbox::Outbox).
pub trait Endpoint: Send + Sync {
    /// A message has arrived. `data` may be changed; it is gone when the call returns.
    fn message(&self, kind: Kind, data: &mut [u8]);

    /// The connection is over: called once, last, when sends already answer that it is closing.
    fn closed(&self);

    /// httpd's request, which the connection outlives, is about to go.
    fn forget_request(&self) {}

    /// The calls of a library that it makes, one of which may not return.
    fn callbacks(&self) -> Option<&Callbacks> {
        None
    }

    /// Adds what it has counted since it was asked last to the child's metrics. Called about once a second, by any thread.
    fn count(&self) {}

    /// Where messages go on to, if they are not for the endpoint itself.
    fn sink(&self) -> Option<&dyn Sink> {
        None
    }

    /// The far side, if messages are relayed to one. It is the [`sink`](Self::sink), too.
    fn peer(&self) -> Option<&dyn Peer> {
        None
    }

    /// Moves what has come for the client from elsewhere, as far as there is room, and what waits for the far side.
    /// `buffer` is for the bytes on their way, at least two. Called in each turn, by the thread at work on the connection;
    /// it does not block.
    fn pull(&self, buffer: &mut [u8]) -> Relayed {
        self.peer().map_or(NOTHING, |peer| peer.relay(buffer))
    }
}

/// Nothing was relayed, and nothing waits.
pub const NOTHING: Relayed = Relayed { again: false, paused: false, settled: true };

/// What takes a client's messages on, and answers none of them by itself: what comes back for the client is
/// [pulled](Endpoint::pull).
pub trait Sink: Send + Sync {
    /// Whether reading from the client should pause, because enough was taken for now.
    fn is_crowded(&self) -> bool;

    /// Whether reading, which paused, can go on without anything having happened. Asked about once a second.
    fn has_room_again(&self) -> bool {
        false
    }
}

/// The far side of a relay: a second descriptor, which the driver waits for together with the client's.
///
/// Its calls are the driver's, as those of [`Endpoint`]; all but [`check`](Self::check) come from the thread at work on
/// the connection. None of them blocks.
pub trait Peer: Sink {
    /// The descriptor to wait on, until the endpoint is dropped.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Takes note of what the descriptor is ready for.
    fn note(&self, ready: Readiness);

    /// Moves what can be moved in both directions. `buffer` is for the bytes on their way, at least two.
    fn relay(&self, buffer: &mut [u8]) -> Relayed;

    /// What to wait for on the descriptor.
    fn interest(&self) -> Interest;

    /// Asks the clock, about once a second; `now` is the time since some fixed moment. If the peer has taken nothing of
    /// what waits for it for `timeout`, that is dropped and the client told; `true` if so. With no timeout it is, whatever
    /// the peer has taken.
    fn check(&self, now: Duration, timeout: Duration) -> bool;

    /// After `closed`: throws away what the peer still sends. `true` when it has got everything, so that the descriptor may
    /// be closed: before that, the kernel would take back what it has not passed on.
    fn finish(&self, buffer: &mut [u8]) -> bool;
}

/// What relaying came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Relayed {
    /// There is more to read, but others should have their turn first.
    pub again: bool,
    /// There may be more to read when the client has taken what waits for it.
    pub paused: bool,
    /// Nothing waits for the peer.
    pub settled: bool,
}
