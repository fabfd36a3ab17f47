//! What a service has done so far, as server-status shows it.

use super::Finished;

macro_rules! totals {
    ($($(#[doc = $doc:literal])+ $field:ident: $name:literal,)+) => {
        /// What a service has done so far.
        #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
        pub struct Totals {
            $($(#[doc = $doc])+ pub $field: u64,)+
        }

        impl Totals {
            /// What server-status calls them, in the order of [`numbers`](Self::numbers).
            pub const NAMES: [&str; [$($name),+].len()] = [$($name),+];

            /// All of them.
            pub fn numbers(&self) -> [u64; Self::NAMES.len()] {
                [$(self.$field),+]
            }
        }
    };
}

totals! {
    /// Connections that there are now.
    connections: "Connections",
    /// Data messages received, by connections that are gone too.
    messages_in: "MessagesIn",
    /// Data messages sent.
    messages_out: "MessagesOut",
    /// Bytes received.
    bytes_in: "BytesIn",
    /// Bytes sent.
    bytes_out: "BytesOut",
    /// How often all threads there may be were in callbacks, for a second at least.
    threads_exhausted: "ThreadsExhausted",
    /// Connections that were closed because too many threads waited for clients already.
    refused_waits: "RefusedWaits",
    /// Connections that were closed for want of memory.
    refused_memory: "RefusedMemory",
    /// How much memory of the budget is held, in bytes.
    memory: "Memory",
}

impl Totals {
    /// Counts what a connection has done.
    pub(super) fn add(&mut self, Finished { summary, received }: &Finished) {
        self.messages_in += summary.messages_in;
        self.messages_out += summary.messages_out;
        self.bytes_in += received;
        self.bytes_out += summary.bytes_out;
    }
}
