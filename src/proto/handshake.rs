//! The opening handshake as functions over header strings (RFC 6455 §4.2).
//!
//! httpd has parsed the request; here is decided whether it opens a WebSocket, and with what answer. Nothing here
//! knows where the strings come from.

use core::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use sha1::{Digest as _, Sha1};

use super::Version;

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
    /// The subprotocols offered, in the client's order.
    pub protocols: Vec<&'a str>,
    /// The extensions offered, as they were sent.
    pub extensions: &'a str,
    /// The origin of the page that opened it; bytes, since only an exact match counts.
    pub origin: Option<&'a [u8]>,
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
    /// `Sec-WebSocket-Protocol` is not a list of tokens.
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
            Self::Protocols => "Sec-WebSocket-Protocol is not a list of tokens",
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
            None => Vec::new(),
        };
        let extensions =
            header("Sec-WebSocket-Extensions").and_then(|v| core::str::from_utf8(v).ok());
        // Version 7, and the drafts of version 8 before hybi-11, name the origin Sec-WebSocket-Origin.
        let origin = match version {
            Version::V13 => header("Origin"),
            Version::V8 => header("Origin").or_else(|| header("Sec-WebSocket-Origin")),
            Version::V7 => header("Sec-WebSocket-Origin").or_else(|| header("Origin")),
            Version::Draft(_) => None,
        };
        let extensions = extensions.unwrap_or("");
        Ok(Some(Self { version, accept, proof: None, protocols, extensions, origin }))
    }
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
fn tokens(value: &[u8]) -> Option<Vec<&str>> {
    let is_token = |element: &[u8]| {
        element.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
    };
    let list: Vec<&str> = value
        .split(|&b| b == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
        .map(|element| if is_token(element) { core::str::from_utf8(element).ok() } else { None })
        .collect::<Option<_>>()?;
    (!list.is_empty()).then_some(list)
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

impl OriginCheck {
    /// Whether a page of this origin may open the WebSocket. Who sends no origin is no browser.
    pub fn allows(self, origin: Option<&[u8]>, own: &str, trusted: &[String]) -> bool {
        match (self, origin) {
            (Self::Off, _) | (_, None) => true,
            (Self::Same, Some(origin)) => origin == own.as_bytes(),
            (Self::Trusted, Some(origin)) => trusted.iter().any(|t| t.as_bytes() == origin),
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

/// Checks arbitrary header values (a fuzz target).
#[doc(hidden)]
pub fn fuzz_handshake(data: &[u8]) {
    let mut fields = data.split(|&b| b == b'\n');
    let mut next = || fields.next();
    let (version, key, protocols, extensions, connection, upgrade, origin) =
        (next(), next(), next(), next(), next(), next(), next());
    let header = |name: &str| match name {
        "Upgrade" => Some(upgrade.unwrap_or(b"websocket")),
        "Connection" => Some(connection.unwrap_or(b"upgrade")),
        "Host" => Some(&b"localhost"[..]),
        "Sec-WebSocket-Version" => version,
        "Sec-WebSocket-Key" => key,
        "Sec-WebSocket-Protocol" => protocols,
        "Sec-WebSocket-Extensions" => extensions,
        "Origin" => origin,
        _ => None,
    };
    let request = Request { is_get: true, http: (1, 1), header: &header };
    if let Ok(Some(opening)) = Opening::check(&request) {
        assert_eq!(opening.accept.len(), 28);
        assert!(opening.protocols.iter().all(|p| !p.is_empty() && !p.contains([',', ' '])));
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

    fn verdict<T>(fields: &Fields, f: impl FnOnce(Result<Option<Opening<'_>>, Refusal>) -> T) -> T {
        let header = |name: &str| {
            fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_bytes())
        };
        f(Opening::check(&Request { is_get: true, http: (1, 1), header: &header }))
    }

    #[test]
    fn the_sample_of_rfc_6455_section_1_3() {
        verdict(&good(), |v| {
            assert_eq!(v.unwrap().unwrap().accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        });
    }

    #[test]
    fn refusals() {
        let refusal = |name, value| verdict(&with(name, value), |v| v.err());
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
            verdict(&with("Upgrade", value), |v| assert_eq!(v, Ok(None), "{value:?}"));
        }
        verdict(&with("Upgrade", Some("h2c, WebSocket")), |v| assert!(v.unwrap().is_some()));
    }

    #[test]
    fn origins() {
        let own = own_origin("https", "::1", 8443);
        assert_eq!(own, "https://[::1]:8443");
        assert_eq!(own_origin("http", "[::1]", 80), "http://[::1]");
        assert_eq!(own_origin("http", "a.example", 443), "http://a.example:443");
        let trusted = ["https://b.example".to_owned()];
        for (check, origin, expected) in [
            (OriginCheck::Off, Some("https://evil.example"), true),
            (OriginCheck::Same, None, true),
            (OriginCheck::Same, Some("https://[::1]:8443"), true),
            (OriginCheck::Same, Some("http://[::1]:8443"), false),
            (OriginCheck::Same, Some("null"), false),
            (OriginCheck::Trusted, Some("https://b.example"), true),
            (OriginCheck::Trusted, Some("https://[::1]:8443"), false),
            (OriginCheck::Trusted, None, true),
        ] {
            let origin = origin.map(str::as_bytes);
            assert_eq!(check.allows(origin, &own, &trusted), expected, "{check:?} {origin:?}");
        }
    }
}
