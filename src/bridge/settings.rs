//! What the `WebSocketBridge…` directives of a section set: defaults and merging.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::address::{Address, Pattern};
use crate::settings::settings;

/// The default of `WebSocketBridgeConnectTimeout`.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

settings! {
    /// What the directives of one section set.
    #[derive(Clone, Debug, Default)]
    pub struct BridgeSettings {
        /// `WebSocketBridgeAllow`, all of the section's.
        pub allow: Option<Vec<Pattern>>,
        /// `WebSocketBridgeFraming`: a name, and what it is configured with.
        pub framing: Option<(String, Option<String>)>,
        /// `WebSocketBridgeProtocol`.
        pub protocol: Option<Protocol>,
        /// `WebSocketBridgeConnectTimeout`.
        pub connect_timeout: Option<Duration>,
        /// `WebSocketBridgeProxyProtocol`: whether to send the header of version 2.
        pub proxy_protocol: Option<bool>,
        /// `WebSocketBridgeMaxPieceSize`, in bytes.
        pub max_piece: Option<usize>,
    }
}

/// Which of the subprotocols that a client offers is announced.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Protocol {
    /// None.
    #[default]
    None,
    /// The first.
    First,
    /// The one of this name, if it is offered; upper and lower case are the same.
    Named(String),
}

impl BridgeSettings {
    /// The framing's name and what it is configured with.
    pub fn framing(&self) -> (&str, Option<&str>) {
        self.framing.as_ref().map_or(("auto", None), |(name, config)| (name, config.as_deref()))
    }

    /// Which of the offered subprotocols to announce.
    pub fn choose(&self, offered: &[&str]) -> Option<usize> {
        match self.protocol.as_ref()? {
            Protocol::None => None,
            Protocol::First => (!offered.is_empty()).then_some(0),
            Protocol::Named(name) => offered.iter().position(|o| o.eq_ignore_ascii_case(name)),
        }
    }

    /// How long connecting may take, the resolver's part included.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout.unwrap_or(CONNECT_TIMEOUT)
    }

    /// Whether a list of allowed peers has this one.
    pub fn allows(&self, address: &Address) -> bool {
        self.allow.iter().flatten().any(|pattern| pattern.allows(address))
    }
}
