//! Close payloads (RFC 6455 §5.5.1, §7.4).

use mod_websocket::proto::{
    Violation,
    close::{CloseCode, CloseReason},
};

/// Reads arbitrary Close payloads as a second statement of the rules does.
pub fn fuzz_close_payload(data: &[u8]) {
    let Some((&flags, body)) = data.split_first() else { return };
    let allow_reserved = flags & 1 != 0;
    let parsed = CloseReason::parse(body, allow_reserved);
    if body.len() < 2 {
        let nothing = CloseReason { code: None, text: "" };
        let expected = if body.is_empty() { Ok(nothing) } else { Err(Violation::ClosePayload) };
        return assert_eq!(parsed, expected);
    }
    let code = u16::from(body[0]) * 256 + u16::from(body[1]);
    // §7.4.2 by range, then §7.4.1 and the registry of §11.7 by number.
    let legal = match code / 1000 {
        1 | 2 if [1005, 1006, 1015].contains(&code) => false,
        1 | 2 if allow_reserved => true,
        1 | 2 => [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013].contains(&code),
        3 | 4 => true,
        _ => false,
    };
    let expected = match core::str::from_utf8(&body[2..]) {
        _ if !legal => Err(Violation::CloseCode),
        Err(_) => Err(Violation::CloseReason),
        Ok(text) => Ok(CloseReason { code: Some(CloseCode(code)), text }),
    };
    assert_eq!(parsed, expected);
}
