//! Peer addresses as the configuration writes them, and the list of those that are allowed.
//!
//! An address may be made of what a client sent, so it is taken apart strictly, and compared with the list as what it
//! means, not as it is spelled.
#![forbid(unsafe_code)]

use core::fmt;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// The longest path of a Unix socket.
const PATH_MAX: usize = 107;
/// The longest host name.
const NAME_MAX: usize = 253;

/// Where a peer is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// `tcp://host:port`
    Tcp(Host, u16),
    /// `udp://host:port`
    Udp(Host, u16),
    /// `unix://path`, a stream
    Unix(PathBuf),
    /// `unix-dgram://path`
    UnixDatagram(PathBuf),
}

/// A host by its name or its number.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Host {
    /// A name for the resolver, in lower case.
    Name(String),
    /// An address; never an IPv6 address that stands for an IPv4 one.
    Ip(IpAddr),
}

/// What [`Address::parse`] expects.
pub const EXPECTED: &str =
    "tcp://host:port, udp://host:port (IPv6 in brackets), unix://path or unix-dgram://path";

impl Address {
    /// Takes an address apart; the error is a sentence's end that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_with_port(text, None)
    }

    /// The same, with a port for addresses that name none.
    pub fn parse_with_port(text: &str, port: Option<u16>) -> Result<Self, String> {
        let wrong = |what: &str| format!("'{}' {what}: expected {EXPECTED}", text.escape_debug());
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        let make: fn(Host, u16) -> Self = match scheme {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "unix" | "unix-dgram" => {
                let path = path(rest).map_err(|e| wrong(&e))?;
                let stream = scheme == "unix";
                return Ok(if stream { Self::Unix(path) } else { Self::UnixDatagram(path) });
            }
            _ => return Err(wrong("has an unknown scheme")),
        };
        let (host, given) = split_port(rest).map_err(wrong)?;
        let port = match given {
            Some(digits) => Some(number(digits).ok_or_else(|| wrong("has no valid port"))?),
            None => port,
        };
        let port = port.filter(|&port| port > 0).ok_or_else(|| wrong("lacks a port"))?;
        Ok(make(Host::parse(host).map_err(wrong)?, port))
    }

    /// Whether messages are datagrams.
    pub fn is_datagram(&self) -> bool {
        matches!(self, Self::Udp(..) | Self::UnixDatagram(_))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "tcp://{host}:{port}"),
            Self::Udp(host, port) => write!(f, "udp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::UnixDatagram(path) => write!(f, "unix-dgram://{}", path.display()),
        }
    }
}

impl Host {
    /// Reads a name, an IPv4 address, or an IPv6 address in brackets or without them.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        if let Some(inner) = inner {
            let ip: Ipv6Addr =
                inner.parse().map_err(|_| "has no valid IPv6 address in brackets")?;
            return Ok(Self::Ip(IpAddr::V6(ip).to_canonical()));
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Ip(ip.to_canonical()));
        }
        let labels = text.strip_suffix('.').unwrap_or(text);
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let valid = |label: &str| !label.is_empty() && label.bytes().all(legal);
        if labels.len() > NAME_MAX || !labels.split('.').all(valid) {
            return Err("has no valid host name");
        }
        // The resolver would take it for an address in one of its old notations (127.1, 0x7f000001).
        let last = labels.rsplit('.').next().unwrap_or_default();
        if last.starts_with(|c: char| c.is_ascii_digit()) {
            return Err("has a host that is neither a name nor an IP address");
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V4(ip)) => write!(f, "{ip}"),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// What stands before and, if there is one, behind the colon of a port.
fn split_port(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    let after_host = text.rfind(']').map_or(0, |bracket| bracket + 1);
    let (host, port) = match text[after_host..].split_once(':') {
        Some((_, port)) => (&text[..text.len() - port.len() - 1], Some(port)),
        None => (text, None),
    };
    if host.starts_with('[') != host.ends_with(']') || port.is_some_and(|p| p.contains(':')) {
        return Err("has an IPv6 address without brackets, or something behind them");
    }
    Ok((host, port))
}

fn number(digits: &str) -> Option<u16> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The path of a Unix socket, of plain components.
fn path(text: &str) -> Result<PathBuf, String> {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    let parts = text.strip_prefix('/').unwrap_or(text);
    if !parts.split('/').all(plain) || text.chars().any(char::is_control) {
        return Err("has no plain path".into());
    }
    if text.len() > PATH_MAX {
        return Err(format!("has a path of more than {PATH_MAX} bytes"));
    }
    Ok(text.into())
}

/// Which peers a request may lead to (`WebSocketBridgeAllow`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Pattern {
    /// Hosts: of a stream (`tcp://`) or of datagrams (`udp://`).
    Host {
        /// For datagrams.
        datagram: bool,
        /// Which hosts.
        hosts: Hosts,
        /// Which ports.
        ports: RangeInclusive<u16>,
    },
    /// A Unix socket; or all below a folder, if the path ends with a slash.
    Path {
        /// For datagrams.
        datagram: bool,
        /// The path, without the slash.
        path: PathBuf,
        /// All below it.
        below: bool,
    },
}

/// Hosts of a [`Pattern`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Hosts {
    /// This one.
    One(Host),
    /// Those whose address begins with as many bits of this one.
    Network(IpAddr, u8),
}

/// What [`Pattern::parse`] expects.
pub const EXPECTED_PATTERN: &str = "tcp://host:port or udp://host:port, where the host may be a network \
    (10.0.0.0/8, [fd00::]/8) and the port a range (5900-5999) or *; unix://path or unix-dgram://path, where a path that \
    ends with / allows all below it";

impl Pattern {
    /// Takes a pattern apart; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("'{text}' {what}: expected {EXPECTED_PATTERN}");
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        let datagram = match scheme {
            "tcp" => false,
            "udp" => true,
            "unix" | "unix-dgram" => {
                let below = rest.ends_with('/') && rest != "/";
                let path = path(rest.strip_suffix('/').unwrap_or(rest)).map_err(|e| wrong(&e))?;
                if !path.is_absolute() {
                    return Err(wrong("has a path that does not begin with /"));
                }
                return Ok(Self::Path { datagram: scheme == "unix-dgram", path, below });
            }
            _ => return Err(wrong("has an unknown scheme")),
        };
        let (hosts, ports) = rest.rsplit_once(':').ok_or_else(|| wrong("lacks a port"))?;
        let ports = match ports.split_once('-') {
            _ if ports == "*" => Some(1..=u16::MAX),
            Some((low, high)) => number(low).zip(number(high)).map(|(low, high)| low..=high),
            None => number(ports).map(|port| port..=port),
        };
        if let Some((low, high)) =
            ports.as_ref().map(|p| (p.start(), p.end())).filter(|(low, high)| low > high)
        {
            return Err(wrong(&format!(
                "has a range of ports that ends before it begins (write {high}-{low})"
            )));
        }
        let ports = ports.filter(|ports| *ports.start() > 0);
        let ports = ports.ok_or_else(|| wrong("has no valid port"))?;
        let hosts = match hosts.split_once('/') {
            None => Hosts::One(Host::parse(hosts).map_err(wrong)?),
            Some((net, bits)) => {
                let Ok(Host::Ip(ip)) = Host::parse(net) else {
                    return Err(wrong("has no network"));
                };
                let most = if ip.is_ipv4() { 32 } else { 128 };
                let bits = number(bits).filter(|&bits| bits <= most);
                Hosts::Network(ip, bits.ok_or_else(|| wrong("has no valid network size"))? as u8)
            }
        };
        if matches!(hosts, Hosts::One(Host::Ip(IpAddr::V6(_)))) && !rest.starts_with('[') {
            return Err(wrong("has an IPv6 address without brackets"));
        }
        Ok(Self::Host { datagram, hosts, ports })
    }

    /// Whether it allows an address. A name is allowed as a name only: what it resolves to is up to who listed it.
    pub fn allows(&self, address: &Address) -> bool {
        match (self, address) {
            (Self::Host { datagram: false, hosts, ports }, Address::Tcp(host, port))
            | (Self::Host { datagram: true, hosts, ports }, Address::Udp(host, port)) => {
                ports.contains(port) && hosts.contain(host)
            }
            (Self::Path { datagram: false, path, below }, Address::Unix(socket))
            | (Self::Path { datagram: true, path, below }, Address::UnixDatagram(socket)) => {
                if *below {
                    is_below(socket, path)
                } else {
                    socket == path
                }
            }
            _ => false,
        }
    }
}

fn is_below(path: &Path, folder: &Path) -> bool {
    path != folder && path.starts_with(folder)
}

impl Hosts {
    fn contain(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::One(one), host) => one == host,
            (Self::Network(IpAddr::V4(net), bits), Host::Ip(IpAddr::V4(ip))) => {
                let word = |ip: &Ipv4Addr| u128::from(ip.to_bits()) << 96;
                same_network(word(net), word(ip), *bits)
            }
            (Self::Network(IpAddr::V6(net), bits), Host::Ip(IpAddr::V6(ip))) => {
                same_network(net.to_bits(), ip.to_bits(), *bits)
            }
            _ => false,
        }
    }
}

/// Whether two addresses agree in their first bits.
fn same_network(a: u128, b: u128, bits: u8) -> bool {
    bits == 0 || (a ^ b) >> (128 - u32::from(bits)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in [
            "tcp://127.0.0.1:5900",
            "tcp://[::1]:5900",
            "udp://[fd00::1]:53",
            "tcp://db.example.com:1",
            "tcp://my_service:65535",
            "unix:///run/redis.sock",
            "unix://run/redis.sock",
            "unix-dgram:///dev/log",
        ] {
            assert_eq!(Address::parse(text).map(|a| a.to_string()).as_deref(), Ok(text));
        }
        assert_eq!(
            Address::parse("tcp://LocalHost:80"),
            Ok(Address::Tcp(Host::Name("localhost".into()), 80))
        );
        // An IPv4 address in the clothes of IPv6 is what it stands for.
        assert_eq!(
            Address::parse("tcp://[::ffff:10.0.0.1]:80"),
            Address::parse("tcp://10.0.0.1:80")
        );
        assert_eq!(Address::parse_with_port("tcp://h", Some(5)), Address::parse("tcp://h:5"));
        assert_eq!(
            Address::parse_with_port("tcp://[::1]", Some(5)),
            Address::parse("tcp://[::1]:5")
        );
        assert_eq!(Address::parse_with_port("tcp://h:6", Some(5)), Address::parse("tcp://h:6"));
    }

    #[test]
    fn what_is_no_address() {
        for text in [
            "",
            "localhost:80",
            "http://localhost:80",
            "fifotx:///x",
            "TCP://localhost:80",
            "tcp://localhost",
            "tcp://localhost:",
            "tcp://localhost:0",
            "tcp://localhost:65536",
            "tcp://localhost:+80",
            "tcp://localhost:80 ",
            "tcp://localhost:80/",
            "tcp://localhost:80:80",
            "tcp://:80",
            "tcp://user@localhost:80",
            "tcp://local host:80",
            "tcp://localhost\r\n:80",
            "tcp://localhost\0:80",
            "tcp://a..b:80",
            "tcp://::1:80",
            "tcp://[::1:80",
            "tcp://[::1]x:80",
            "tcp://x[::1]:80",
            "tcp://[localhost]:80",
            "tcp://[127.0.0.1]:80",
            "tcp://[fe80::1%eth0]:80",
            "tcp://127.1:80",
            "tcp://0x7f000001:80",
            "tcp://2130706433:80",
            "tcp://127.0.0.01:80",
            "tcp://%31:80",
            "unix://",
            "unix:///",
            "unix:///run/../etc/x",
            "unix:///run//x",
            "unix:///run/./x",
            "unix:///run/x/",
            "unix:///run/x\n",
        ] {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
        assert!(Address::parse(&format!("unix:///{}", "x".repeat(107))).is_err());
        assert!(Address::parse(&format!("tcp://{}:1", "x.".repeat(127))).is_ok());
        assert!(Address::parse(&format!("tcp://{}:1", "x.".repeat(128))).is_err());
    }

    #[test]
    fn what_is_allowed() {
        for (pattern, allowed, refused) in [
            (
                "tcp://vnc.example:5900-5909",
                &["tcp://vnc.example:5900", "tcp://VNC.example:5909"][..],
                &[
                    "tcp://vnc.example:5910",
                    "tcp://vnc.example.:5900",
                    "tcp://x.vnc.example:5900",
                    "udp://vnc.example:5900",
                ][..],
            ),
            (
                "tcp://10.0.0.0/8:*",
                &["tcp://10.255.0.1:1", "tcp://[::ffff:10.0.0.1]:65535"],
                &["tcp://11.0.0.1:1", "tcp://localhost:1", "tcp://[a00::]:1"],
            ),
            (
                "udp://[fd00::]/8:53",
                &["udp://[fd12::1]:53"],
                &["udp://[fe80::1]:53", "tcp://[fd12::1]:53", "udp://[fd12::1]:54"],
            ),
            ("tcp://0.0.0.0/0:80", &["tcp://1.2.3.4:80"], &["tcp://[::1]:80"]),
            ("tcp://[::1]:80", &["tcp://[0::1]:80"], &["tcp://127.0.0.1:80"]),
            (
                "unix:///run/vnc/",
                &["unix:///run/vnc/a", "unix:///run/vnc/a/b"],
                &["unix:///run/vnc", "unix:///run/vnc2/a", "unix-dgram:///run/vnc/a"],
            ),
            ("unix:///run/a", &["unix:///run/a"], &["unix:///run/a/b", "unix:///run/ab"]),
        ] {
            let parsed = Pattern::parse(pattern).unwrap();
            for text in allowed {
                assert!(parsed.allows(&Address::parse(text).unwrap()), "{pattern}: {text}");
            }
            for text in refused {
                assert!(!parsed.allows(&Address::parse(text).unwrap()), "{pattern}: {text}");
            }
        }
        for text in [
            "localhost:80",
            "tcp://localhost",
            "tcp://localhost:0",
            "tcp://localhost:9-5",
            "tcp://*:80",
            "tcp://*.example:80",
            "tcp://::1:80",
            "tcp://10.0.0.0/33:80",
            "tcp://localhost/8:80",
            "unix://run/x",
            "unix:///run/../x",
            "unix:///",
        ] {
            assert!(Pattern::parse(text).is_err(), "{text:?}");
        }
    }
}
