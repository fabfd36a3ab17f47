//! The opening handshake as functions over header strings (RFC 6455 §4.2).
//!
//! httpd has parsed the request; here is decided whether it opens a WebSocket, and with what answer. Nothing here
//! knows where the strings come from.

use core::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use sha1::{Digest as _, Sha1};

use super::{Version, is_token_byte};

/// What is hashed behind the client's key (RFC 6455 §1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The versions spoken, as a 400 answer lists them (RFC 6455 §4.4).
pub const VERSIONS: &str = "13, 8, 7";

/// A request as far as the handshake looks at it.
pub struct Request<'a> {
    /// The method is GET.
    pub is_get: bool,
    /// Major and minor version of HTTP.
    pub http: (u32, u32),
    /// Looks a request header up, without regard to case; several fields of one name joined with commas.
    pub header: &'a dyn Fn(&str) -> Option<&'a [u8]>,
}

/// An opening handshake that obeys the rules.
#[derive(Debug, Eq, PartialEq)]
pub struct Opening<'a> {
    /// The protocol version.
    pub version: Version,
    /// The value of `Sec-WebSocket-Accept`.
    pub accept: String,
    /// What follows the headers of the answer; draft 76 only.
    pub proof: Option<[u8; 16]>,
    /// The subprotocols offered.
    pub protocols: Offered<'a>,
    /// The extensions offered, as they were sent.
    pub extensions: &'a str,
    /// The origins of the page that opened it, as far as it names them: of `Origin`, and of `Sec-WebSocket-Origin` where
    /// a version has that, too. Bytes, since only an exact match counts.
    pub origins: [Option<&'a [u8]>; 2],
}

/// The longest list of subprotocols that is read, in bytes.
const MAX_PROTOCOLS: usize = 64 * 1024 - 1;

/// The subprotocols that a client offers, in its order: the list as it was sent, which has been checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offered<'a> {
    list: &'a str,
    separator: char,
}

impl Default for Offered<'_> {
    fn default() -> Self {
        Self { list: "", separator: ',' }
    }
}

impl<'a> Offered<'a> {
    /// Reads a list of at least one element, each of which is what `is_legal` says. Empty ones do not count, nor does
    /// white space around them. `None` if it is none, or too long.
    pub fn parse(list: &'a [u8], separator: char, is_legal: impl Fn(u8) -> bool) -> Option<Self> {
        let list = core::str::from_utf8(list).ok().filter(|list| list.len() <= MAX_PROTOCOLS)?;
        let protocols = Self { list, separator };
        let legal = protocols.iter().all(|name| name.bytes().all(&is_legal));
        (legal && protocols.iter().next().is_some()).then_some(protocols)
    }

    /// Their names.
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        self.list.split(self.separator).map(str::trim_ascii).filter(|name| !name.is_empty())
    }
}

/// Why a request to open a WebSocket is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// It has a body.
    Body,
    /// `Sec-WebSocket-Key1` and `-Key2` hide no numbers; draft 76 only.
    Challenge,
    /// `Connection` does not contain `upgrade`.
    Connection,
    /// No `Host`.
    Host,
    /// HTTP older than 1.1.
    HttpVersion,
    /// `Sec-WebSocket-Key` is not the base64 of 16 bytes.
    Key,
    /// Not a GET.
    Method,
    /// The origin is not trusted.
    Origin,
    /// `Sec-WebSocket-Protocol` is not a list of tokens, or too long.
    Protocols,
    /// `Sec-WebSocket-Version` is not one of [`VERSIONS`].
    Version,
}

impl Refusal {
    /// The HTTP status that says so.
    pub fn status(self) -> u16 {
        match self {
            Self::Origin => 403,
            _ => 400,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Body => "the opening request has a body",
            Self::Challenge => "Sec-WebSocket-Key1 and -Key2 are not as draft 76 has them",
            Self::Connection => "the Connection header does not contain \"upgrade\"",
            Self::Host => "the Host header is missing",
            Self::HttpVersion => "the HTTP version is older than 1.1",
            Self::Key => "Sec-WebSocket-Key is not the base64 of 16 bytes",
            Self::Method => "the method is not GET",
            Self::Origin => "the origin is not allowed by WebSocketOriginCheck",
            Self::Protocols => {
                "Sec-WebSocket-Protocol is not a list of tokens, of less than 64 KiB"
            }
            Self::Version => "Sec-WebSocket-Version is none of 13, 8 and 7",
        })
    }
}

impl<'a> Opening<'a> {
    /// Checks a request: `Ok(None)` if it does not ask for a WebSocket at all (RFC 6455 §4.2.1).
    pub fn check(request: &Request<'a>) -> Result<Option<Self>, Refusal> {
        if !asks(request)? {
            return Ok(None);
        }
        if body_of(request) != Some(0) {
            return Err(Refusal::Body);
        }
        let header = request.header;
        let version = match header("Sec-WebSocket-Version") {
            Some(b"13") => Version::V13,
            Some(b"8") => Version::V8,
            Some(b"7") => Version::V7,
            _ => return Err(Refusal::Version),
        };
        let accept = header("Sec-WebSocket-Key").and_then(accept).ok_or(Refusal::Key)?;
        let protocols = match header("Sec-WebSocket-Protocol") {
            Some(value) => tokens(value).ok_or(Refusal::Protocols)?,
            None => Offered::default(),
        };
        let extensions =
            header("Sec-WebSocket-Extensions").and_then(|v| core::str::from_utf8(v).ok());
        // Version 7, and the drafts of version 8 before hybi-11, name the origin Sec-WebSocket-Origin.
        let origins = match version {
            Version::V7 | Version::V8 => [header("Origin"), header("Sec-WebSocket-Origin")],
            Version::V13 | Version::Draft(_) | Version::EventStream => [header("Origin"), None],
        };
        let extensions = extensions.unwrap_or("");
        Ok(Some(Self { version, accept, proof: None, protocols, extensions, origins }))
    }
}

/// Whether all origins that a request names are allowed. Who names none is no browser.
pub fn are_allowed(origins: [Option<&[u8]>; 2], allowed: impl Fn(&[u8]) -> bool) -> bool {
    origins.into_iter().flatten().all(allowed)
}

/// Whether a request asks for a WebSocket of any version, as it may.
pub(super) fn asks(request: &Request<'_>) -> Result<bool, Refusal> {
    let header = request.header;
    let lists = |name, token: &str| {
        header(name).is_some_and(|value| {
            value
                .split(|&b| b == b',')
                .any(|e| e.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
        })
    };
    if !lists("Upgrade", "websocket") {
        return Ok(false);
    }
    if !request.is_get {
        return Err(Refusal::Method);
    }
    if request.http < (1, 1) {
        return Err(Refusal::HttpVersion);
    }
    if header("Host").is_none_or(<[u8]>::is_empty) {
        return Err(Refusal::Host);
    }
    if !lists("Connection", "upgrade") {
        return Err(Refusal::Connection);
    }
    Ok(true)
}

/// The length of a request's body; `None` if it is not known, or no number.
pub(super) fn body_of(request: &Request<'_>) -> Option<u64> {
    if (request.header)("Transfer-Encoding").is_some() {
        return None;
    }
    let Some(length) = (request.header)("Content-Length") else { return Some(0) };
    let length = core::str::from_utf8(length.trim_ascii()).ok()?;
    length.bytes().all(|b| b.is_ascii_digit()).then(|| length.parse().ok())?
}

/// The answer to a key, or `None` if it is not the canonical base64 of 16 bytes (RFC 6455 §4.2.2).
fn accept(key: &[u8]) -> Option<String> {
    // The engine refuses a last character with stray bits and missing padding.
    if key.len() != 24 || BASE64.decode(key).ok()?.len() != 16 {
        return None;
    }
    Some(BASE64.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize()))
}

/// A comma-separated list of at least one token (RFC 9110 §5.6.1: empty elements do not count).
fn tokens(value: &[u8]) -> Option<Offered<'_>> {
    Offered::parse(value, ',', is_token_byte)
}

/// Which origins may open a WebSocket (RFC 6455 §10.2).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OriginCheck {
    /// Any.
    Off,
    /// The one of the request itself: scheme, host and port are equal (RFC 6454 §5).
    #[default]
    Same,
    /// Those that are listed.
    Trusted,
}

impl fmt::Display for OriginCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "Off",
            Self::Same => "Same",
            Self::Trusted => "Trusted",
        })
    }
}

impl OriginCheck {
    /// Whether a page of this origin may open the WebSocket. `own` is the origin of the request itself.
    pub fn allows(self, origin: &[u8], own: &str, trusted: &[String]) -> bool {
        match self {
            Self::Off => true,
            Self::Same => origin == own.as_bytes(),
            Self::Trusted => trusted.iter().any(|t| t.as_bytes() == origin),
        }
    }
}

/// Looks at an origin of [`OriginCheck::Trusted`]: an error says why it is none, `Some` why no browser will ever send
/// it. Both say what to write.
pub fn check_trusted(word: &str) -> Result<Option<String>, String> {
    if word == "null" {
        return Ok(None);
    }
    if word == "*" {
        return Err("'*' is not an origin: write 'WebSocketOriginCheck Off' to let in the pages of all sites".into());
    }
    let expected = "a scheme and a host, and a port if it is not the scheme's own, but no path \
                    (https://www.example.com, http://[::1]:8080)";
    let (scheme, authority) = word.split_once("://").unwrap_or_default();
    if scheme.is_empty() || authority.is_empty() {
        return Err(format!("'{word}' is not an origin: expected {expected}"));
    }
    if authority.contains('*') {
        return Err(format!(
            "'{word}' has a *, which stands for nothing here: name each origin by itself, such as \
             https://a.example.com https://b.example.com"
        ));
    }
    if let Some(end) = authority.find(['/', '?', '#']) {
        let origin = &word[..word.len() - authority.len() + end];
        return Err(format!("'{word}' has a path, and is not an origin: write {origin}"));
    }
    let lower = word.to_ascii_lowercase();
    let (scheme, authority) = lower.split_once("://").unwrap_or_default();
    let web = match scheme {
        "ws" => "http",
        "wss" => "https",
        other => other,
    };
    let own_port = match web {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let meant = format!("{web}://{}", authority.strip_suffix(own_port).unwrap_or(authority));
    let is_web = matches!(web, "http" | "https");
    Ok((is_web && meant != word).then(|| {
        format!(
            "no browser sends the origin '{word}', which names the page's scheme and host in lower case, without the \
             scheme's own port: write {meant}"
        )
    }))
}

/// The origin of a request in its serialised form (RFC 6454 §6.2): an IPv6 address in brackets, the
/// scheme's own port left out.
pub fn own_origin(scheme: &str, host: &str, port: u16) -> String {
    let bracketed;
    let host = if host.contains(':') && !host.starts_with('[') {
        bracketed = format!("[{host}]");
        &bracketed
    } else {
        host
    };
    match (scheme, port) {
        ("http", 80) | ("https", 443) => format!("{scheme}://{host}"),
        _ => format!("{scheme}://{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_origins() {
        for word in [
            "null",
            "https://www.example.com",
            "http://localhost:8080",
            "http://[::1]:8080",
            "https://example.com:80",
            "chrome-extension://AbC",
            "file://x",
        ] {
            assert_eq!(check_trusted(word), Ok(None), "{word}");
        }
        for (word, meant) in [
            ("https://Example.com", "https://example.com"),
            ("HTTPS://example.com", "https://example.com"),
            ("https://example.com:443", "https://example.com"),
            ("http://example.com:80", "http://example.com"),
            ("wss://example.com", "https://example.com"),
            ("ws://example.com:8080", "http://example.com:8080"),
        ] {
            let warning = check_trusted(word).unwrap().unwrap();
            assert!(warning.ends_with(&format!(": write {meant}")), "{warning}");
        }
        for (word, said) in [
            ("*", "WebSocketOriginCheck Off"),
            ("https://*.example.com", "name each origin"),
            ("https://example.com/", "write https://example.com"),
            ("https://example.com/a?b", "write https://example.com"),
            ("example.com", "not an origin"),
            ("https://", "not an origin"),
            ("://x", "not an origin"),
            ("", "not an origin"),
        ] {
            let error = check_trusted(word).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    type Fields = Vec<(&'static str, &'static str)>;

    fn good() -> Fields {
        vec![
            ("Host", "example.com"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Version", "13"),
        ]
    }

    fn with(name: &'static str, value: Option<&'static str>) -> Fields {
        let mut fields = good();
        fields.retain(|(n, _)| *n != name);
        fields.extend(value.map(|value| (name, value)));
        fields
    }

    fn action<T>(fields: &Fields, f: impl FnOnce(Result<Option<Opening<'_>>, Refusal>) -> T) -> T {
        let header = |name: &str| {
            fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_bytes())
        };
        f(Opening::check(&Request { is_get: true, http: (1, 1), header: &header }))
    }

    #[test]
    fn the_sample_of_rfc_6455_section_1_3() {
        action(&good(), |v| {
            assert_eq!(v.unwrap().unwrap().accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        });
    }

    #[test]
    fn refusals() {
        let refusal = |name, value| action(&with(name, value), |v| v.err());
        for (name, value, expected) in [
            ("Host", None, Some(Refusal::Host)),
            ("Connection", None, Some(Refusal::Connection)),
            ("Connection", Some("keep-alive, Upgrade"), None),
            ("Connection", Some("upgraded"), Some(Refusal::Connection)),
            ("Content-Length", Some("0"), None),
            ("Content-Length", Some("5"), Some(Refusal::Body)),
            ("Content-Length", Some("+0"), Some(Refusal::Body)),
            ("Content-Length", Some(""), Some(Refusal::Body)),
            ("Transfer-Encoding", Some("chunked"), Some(Refusal::Body)),
            ("Sec-WebSocket-Key", None, Some(Refusal::Key)),
            ("Sec-WebSocket-Key", Some("dGhlIHNhbXBsZSBub25jZR=="), Some(Refusal::Key)),
            ("Sec-WebSocket-Key", Some("dGhlIHNhbXBsZSBub25jZQ"), Some(Refusal::Key)),
            ("Sec-WebSocket-Key", Some("dGhlIHNhbXBsZSBub25jZVG="), Some(Refusal::Key)),
            ("Sec-WebSocket-Version", None, Some(Refusal::Version)),
            ("Sec-WebSocket-Version", Some("013"), Some(Refusal::Version)),
            ("Sec-WebSocket-Version", Some("9"), Some(Refusal::Version)),
            ("Sec-WebSocket-Version", Some("256"), Some(Refusal::Version)),
            ("Sec-WebSocket-Version", Some("13, 8"), Some(Refusal::Version)),
            ("Sec-WebSocket-Version", Some("8"), None),
            ("Sec-WebSocket-Version", Some("7"), None),
            ("Sec-WebSocket-Protocol", Some(""), Some(Refusal::Protocols)),
            ("Sec-WebSocket-Protocol", Some(" , "), Some(Refusal::Protocols)),
            ("Sec-WebSocket-Protocol", Some("a b"), Some(Refusal::Protocols)),
            ("Sec-WebSocket-Protocol", Some("a,b/c"), Some(Refusal::Protocols)),
            ("Sec-WebSocket-Protocol", Some("a,, b"), None),
        ] {
            assert_eq!(refusal(name, value), expected, "{name}: {value:?}");
        }
    }

    #[test]
    fn what_is_no_upgrade_at_all() {
        for value in [None, Some("h2c"), Some("websockets")] {
            action(&with("Upgrade", value), |v| assert_eq!(v, Ok(None), "{value:?}"));
        }
        action(&with("Upgrade", Some("h2c, WebSocket")), |v| assert!(v.unwrap().is_some()));
    }

    #[test]
    fn origins() {
        let own = own_origin("https", "::1", 8443);
        assert_eq!(own, "https://[::1]:8443");
        assert_eq!(own_origin("http", "[::1]", 80), "http://[::1]");
        assert_eq!(own_origin("http", "a.example", 443), "http://a.example:443");
        let trusted = ["https://b.example".to_owned()];
        for (check, origin, expected) in [
            (OriginCheck::Off, "https://evil.example", true),
            (OriginCheck::Same, "https://[::1]:8443", true),
            (OriginCheck::Same, "http://[::1]:8443", false),
            (OriginCheck::Same, "null", false),
            (OriginCheck::Trusted, "https://b.example", true),
            (OriginCheck::Trusted, "https://[::1]:8443", false),
        ] {
            let allowed = check.allows(origin.as_bytes(), &own, &trusted);
            assert_eq!(allowed, expected, "{check:?} {origin:?}");
        }
    }

    #[test]
    fn all_origins_that_a_version_has_are_asked_for() {
        let is_from = |version, origin: Option<&'static str>, other: Option<&'static str>| {
            let mut fields = with("Sec-WebSocket-Version", Some(version));
            fields.extend(origin.map(|origin| ("Origin", origin)));
            fields.extend(other.map(|origin| ("Sec-WebSocket-Origin", origin)));
            action(&fields, |v| {
                are_allowed(v.unwrap().unwrap().origins, |origin| origin == b"good")
            })
        };
        let (good, evil) = (Some("good"), Some("evil"));
        for version in ["7", "8", "13"] {
            let newest = version == "13";
            assert!(is_from(version, None, None));
            assert!(is_from(version, good, good));
            assert!(is_from(version, None, good));
            assert!(!is_from(version, evil, good), "{version}");
            assert_eq!(is_from(version, good, evil), newest);
            assert_eq!(is_from(version, None, evil), newest);
        }
    }

    #[test]
    fn subprotocols() {
        let offered = |list: &'static str| {
            action(&with("Sec-WebSocket-Protocol", Some(list)), |v| {
                v.unwrap().unwrap().protocols.iter().collect::<Vec<_>>().join("|")
            })
        };
        assert_eq!(offered("a,, b\t,c"), "a|b|c");
        let longest = "a".repeat(MAX_PROTOCOLS);
        assert!(tokens(longest.as_bytes()).is_some());
        assert_eq!(tokens(&[longest.as_bytes(), b"a"].concat()), None);
    }
}
