//! What the `WebSocketChannel…` directives of a section set: defaults and merging.
#![forbid(unsafe_code)]

use super::{Replay, SlowClient};
use crate::settings::settings;

/// The default of `WebSocketChannelMemory`, in bytes.
pub const MEMORY: usize = 16 << 20;

/// Who may publish, besides what `Require` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Publishers {
    /// Programs on this host, without a proxy between.
    Local,
    /// Everybody.
    Any,
}

settings! {
    /// What the directives of one section set.
    #[derive(Clone, Debug, Default)]
    pub struct ChannelSettings {
        /// `WebSocketChannelClientPublish`.
        pub client_publish: Option<bool>,
        /// `WebSocketChannelReplay`.
        pub replay: Option<Option<Replay>>,
        /// `WebSocketChannelSlowClient`.
        pub slow_client: Option<SlowClient>,
        /// `WebSocketPublish`.
        pub publishers: Option<Publishers>,
    }
}

impl ChannelSettings {
    /// Whether what clients send is published.
    pub fn client_publish(&self) -> bool {
        self.client_publish.unwrap_or(false)
    }

    /// How much of what is there a new subscriber gets.
    pub fn replay(&self) -> Option<Replay> {
        self.replay.flatten()
    }

    /// What becomes of a subscriber that is overtaken.
    pub fn slow_client(&self) -> SlowClient {
        self.slow_client.unwrap_or(SlowClient::Close)
    }

    /// Who may publish.
    pub fn publishers(&self) -> Publishers {
        self.publishers.unwrap_or(Publishers::Local)
    }
}
