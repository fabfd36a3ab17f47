//! What the servers have in common.

use std::net::{Ipv4Addr, SocketAddr};

/// The address to listen on: the loopback one, and the port that is the program's only argument.
pub fn address() -> SocketAddr {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok());
    (Ipv4Addr::LOCALHOST, port.expect("usage: PROGRAM PORT")).into()
}
