//! `defaultpeer`: one peer for every connection, websocksy's default backend.

use std::path::Path;

use super::{Backend, Query, address, choose, host_and_port};
use crate::bridge::{PeerChoice, framing};

/// The peer of every connection, as its options say.
#[derive(Debug)]
pub struct Fixed {
    target: PeerChoice,
    /// The subprotocol; without one, clients that offer some are refused.
    protocol: Option<String>,
}

impl Fixed {
    /// The options are `host` (`tcp://localhost`), `port` (the host's, or else 5900), `framing` (`auto`),
    /// `framing-config` and `protocol`; the last one of a name counts.
    pub fn new(options: &[(String, String)], root: &Path) -> Result<Self, String> {
        let mut host = "tcp://localhost";
        let (mut port, mut protocol) = (None, None);
        let (mut framing, mut framing_config) = (framing::DEFAULT, None);
        for (key, value) in options {
            match key.as_str() {
                "host" => host = value,
                "port" => port = Some(value.as_str()),
                "framing" => framing = value,
                "framing-config" => framing_config = Some(value.as_str()),
                "protocol" => protocol = Some(value.clone()),
                _ => {
                    return Err(format!(
                        "the backend defaultpeer has no option '{key}': it knows host, port, framing, \
                         framing-config and protocol"
                    ));
                }
            }
        }
        framing::make(framing, framing_config)?;
        let bare = host.split_once("://").map_or(host, |(_, rest)| rest);
        let port = port.or_else(|| host_and_port(bare).1.is_none().then_some("5900"));
        let target = PeerChoice {
            peer: address(host, port, root)?,
            framing: framing.to_owned(),
            framing_config: framing_config.map(str::to_owned),
            protocol: None,
        };
        Ok(Self { target, protocol })
    }
}

impl Backend for Fixed {
    fn query(&self, query: &Query<'_>) -> Result<Option<PeerChoice>, String> {
        if query.protocols.is_empty() {
            return Ok(Some(self.target.clone()));
        }
        let wanted = self.protocol.as_deref();
        let protocol =
            wanted.and_then(|wanted| choose(query.protocols, wanted, str::eq_ignore_ascii_case));
        Ok(protocol.map(|index| PeerChoice { protocol: Some(index), ..self.target.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(options: &[(&str, &str)]) -> Result<Fixed, String> {
        let options: Vec<_> =
            options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Fixed::new(&options, Path::new("/"))
    }

    fn target(options: &[(&str, &str)], protocols: &[&str]) -> Option<PeerChoice> {
        let query = Query { endpoint: "/", protocols, headers: &[] };
        fixed(options).expect("the options are right").query(&query).expect("it does not fail")
    }

    #[test]
    fn the_options_say_where_connections_go() {
        let nothing = target(&[], &[]).unwrap();
        assert_eq!(nothing.peer, "tcp://localhost:5900");
        assert_eq!(nothing.framing, "auto");
        assert_eq!((nothing.framing_config, nothing.protocol), (None, None));
        let peer = |options: &[_]| target(options, &[]).unwrap().peer;
        assert_eq!(peer(&[("host", "tcp://h:80")]), "tcp://h:80");
        assert_eq!(peer(&[("port", "81"), ("host", "tcp://h:80")]), "tcp://h:81");
        assert_eq!(peer(&[("host", "h"), ("port", "1"), ("port", "2")]), "tcp://h:2");
        assert_eq!(peer(&[("host", "unix:///run/x"), ("port", "1")]), "unix:///run/x");
        let lines = target(&[("framing", "newline"), ("framing-config", "lf")], &[]).unwrap();
        assert_eq!(
            (lines.framing.as_str(), lines.framing_config.as_deref()),
            ("newline", Some("lf"))
        );
        let empty = target(&[("framing-config", "")], &[]).unwrap();
        assert_eq!(empty.framing_config.as_deref(), Some(""));
    }

    #[test]
    fn the_protocol_decides_about_clients_that_offer_some() {
        let chosen = |options: &[_], offered: &[_]| target(options, offered).map(|t| t.protocol);
        assert_eq!(chosen(&[], &["a"]), None);
        assert_eq!(chosen(&[("protocol", "b")], &[]), Some(None));
        assert_eq!(chosen(&[("protocol", "b")], &["a", "B"]), Some(Some(1)));
        assert_eq!(chosen(&[("protocol", "b")], &["a", "c"]), None);
        assert_eq!(chosen(&[("protocol", "*")], &["a", "c"]), Some(Some(0)));
        assert_eq!(chosen(&[("protocol", "*")], &[]), Some(None));
    }

    #[test]
    fn wrong_options_are_refused() {
        assert!(fixed(&[("hots", "x")]).unwrap_err().contains("no option 'hots'"));
        assert!(fixed(&[("host", "h:x")]).unwrap_err().contains("no valid port"));
        assert!(fixed(&[("framing", "x")]).unwrap_err().contains("no framing 'x'"));
        assert!(fixed(&[("framing", "newline")]).unwrap_err().contains("one of crlf"));
    }
}
