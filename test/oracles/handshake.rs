//! The opening handshake (RFC 6455 §4.2).

use mod_websocket::proto::handshake::{Opening, Request};

/// Checks arbitrary header values.
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
