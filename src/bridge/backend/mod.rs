//! The backends: where a connection goes, decided from what its request says.
//!
//! | file | backend |
//! |---|---|
//! | [`fixed`] | the same peer for everyone; websocksy's default backend, `defaultpeer` |
//! | [`mod@file`] | looks it up in files that the request selects |
//! | [`library`] | a library with websocksy's interface |
//!
//! A query runs in httpd's handler phase, on a thread of httpd's, so it may take its time.

use std::{path::Path, sync::Arc};

use super::{Address, PeerChoice};

pub mod file;
pub mod fixed;
pub mod library;

/// What a request says about itself.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Path and query string, as they came.
    pub endpoint: &'a str,
    /// The subprotocols that the client offers, in its order.
    pub protocols: &'a [&'a str],
    /// All headers, names and values, in their order.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Finds the peer of a connection.
pub trait Backend: Send + Sync {
    /// The peer, or `None` to refuse the connection; an error is a sentence for the log.
    fn query(&self, query: &Query<'_>) -> Result<Option<PeerChoice>, String>;

    /// What in its options is legal and looks like a mistake: a sentence for the administrator.
    fn doubt(&self) -> Option<String> {
        None
    }
}

/// Sets up the backend `name` with these options, in their order; an error is a sentence for the administrator.
///
/// `defaultpeer` and `file` are built in; anything else is the path of a library. Relative paths are relative to `root`.
/// `parallel` tells of a library that several threads may call it at once.
pub fn open(
    name: &str,
    options: &[(String, String)],
    root: &Path,
    parallel: bool,
) -> Result<Arc<dyn Backend>, String> {
    Ok(match name {
        "defaultpeer" => Arc::new(fixed::Fixed::new(options, root)?),
        "file" => Arc::new(file::File::new(options, root)?),
        _ => library::Library::open(&root.join(name), options, root, parallel)?,
    })
}

/// The place of the first offered subprotocol that `wanted` accepts; `*` accepts every one.
fn choose(offered: &[&str], wanted: &str, same: fn(&str, &str) -> bool) -> Option<usize> {
    offered.iter().position(|offer| wanted == "*" || same(offer, wanted))
}

/// The address of a peer of which host and port may be given apart: a port that stands alone takes precedence over one
/// in the host. Without a scheme it is TCP, and a relative path starts at `root`.
fn address(host: &str, port: Option<&str>, root: &Path) -> Result<String, String> {
    let (scheme, rest) = host.split_once("://").unwrap_or(("tcp", host));
    if !matches!(scheme, "tcp" | "udp") {
        return Ok(match Address::parse(host)? {
            Address::Unix(path) => Address::Unix(root.join(path)),
            Address::UnixDatagram(path) => Address::UnixDatagram(root.join(path)),
            other => other,
        }
        .to_string());
    }
    let (name, own) = host_and_port(rest);
    let port = port.or(own).map_or_else(String::new, |port| format!(":{port}"));
    let brackets = if name.contains(':') { ["[", "]"] } else { ["", ""] };
    Address::parse(&format!("{scheme}://{}{name}{}{port}", brackets[0], brackets[1]))
        .map(|address| address.to_string())
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; what has several colons and no brackets is an IPv6 address.
fn host_and_port(text: &str) -> (&str, Option<&str>) {
    if let Some((name, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (name, rest.strip_prefix(':'));
    }
    match text.split_once(':') {
        Some((name, port)) if !port.contains(':') => (name, Some(port)),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_make_an_address() {
        let table = [
            ("tcp://h:80", None, "tcp://h:80"),
            ("tcp://h:80", Some("81"), "tcp://h:81"),
            ("tcp://h", Some("81"), "tcp://h:81"),
            ("h", Some("81"), "tcp://h:81"),
            ("udp://10.0.0.1", Some("53"), "udp://10.0.0.1:53"),
            ("tcp://[::1]:80", None, "tcp://[::1]:80"),
            ("tcp://[::1]", Some("81"), "tcp://[::1]:81"),
            ("tcp://::1", Some("81"), "tcp://[::1]:81"),
            ("unix:///run/a:b", Some("81"), "unix:///run/a:b"),
            ("unix://a", None, "unix:///root/a"),
            ("unix-dgram:///run/a", None, "unix-dgram:///run/a"),
        ];
        for (host, port, expected) in table {
            let address = address(host, port, Path::new("/root")).unwrap();
            assert_eq!(address, expected, "{host} {port:?}");
        }
        for (host, port) in
            [("tcp://h", None), ("fifotx:///x", None), ("h", Some("x")), ("", Some("1"))]
        {
            assert!(address(host, port, Path::new("/")).is_err(), "{host} {port:?}");
        }
    }
}
