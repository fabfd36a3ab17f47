//! One connection without its socket: bytes and events in, bytes and decisions out.
//!
//! | file | owns |
//! |---|---|
//! | [`session`] | the inbound half: frames become messages |
//! | [`outbox`] | the outbound half: messages become frames; the queue, its bounds, the state of the conversation |
//! | [`waiting`] | how long threads wait for clients that read slowly |
//! | [`deadlines`] | when a connection is pinged, closed or given up |
//! | [`endpoint`] | what receives messages: the other side of a driver |
//! | [`callbacks`] | which plugins' callbacks are running |
//! | [`log`] | where log lines go |

pub mod callbacks;
pub mod deadlines;
pub mod endpoint;
pub mod log;
pub mod outbox;
pub mod session;
pub mod waiting;
