//! Close codes and the payload of a Close frame (RFC 6455 §5.5.1 and §7.4).

use super::{Violation, utf8};

/// A status code of a Close frame (RFC 6455 §7.4.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// The purpose of the connection is fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// The server goes down.
    pub const GOING_AWAY: Self = Self(1001);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// Versions 7 and 8 only: a frame is too large.
    pub const FRAME_TOO_LARGE: Self = Self(1004);
    /// Never on the wire: a Close frame without a code was received or sent.
    pub const NO_STATUS: Self = Self(1005);
    /// Never on the wire: the connection was lost without a Close frame.
    pub const ABNORMAL: Self = Self(1006);
    /// Data inconsistent with the message's type, such as text that is not UTF-8.
    pub const INVALID_DATA: Self = Self(1007);
    /// The peer broke a policy, such as the speed at which it has to read.
    pub const POLICY: Self = Self(1008);
    /// A message is too big to process.
    pub const TOO_BIG: Self = Self(1009);
    /// The server cannot go on.
    pub const INTERNAL: Self = Self(1011);
    /// There is no room now (IANA's registry).
    pub const TRY_AGAIN_LATER: Self = Self(1013);

    /// Whether a client may send this code.
    ///
    /// Registered ones (1000–1003, 1007–1013) and the ranges for libraries and applications
    /// (3000–4999) may. 1005, 1006 and 1015 never may, nor anything below 1000 or above 4999.
    /// The rest of 1000–2999 is reserved for future use, so `allow_reserved` lets it pass.
    pub fn may_travel(self, allow_reserved: bool) -> bool {
        match self.0 {
            1000..=1003 | 1007..=1013 | 3000..=4999 => true,
            1005 | 1006 | 1015 => false,
            1000..=2999 => allow_reserved,
            _ => false,
        }
    }
}

/// What a Close frame says: its code and reason, or neither.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CloseReason<'b> {
    /// `None` when the payload is empty.
    pub code: Option<CloseCode>,
    /// Valid UTF-8, at most 123 bytes.
    pub text: &'b str,
}

impl<'b> CloseReason<'b> {
    /// Reads a Close payload that is already unmasked.
    pub fn parse(payload: &'b [u8], allow_reserved: bool) -> Result<Self, Violation> {
        let (code, text) = match payload {
            [] => return Ok(Self { code: None, text: "" }),
            // §5.5.1: if there is a body, its first two bytes are the code.
            [_] => return Err(Violation::ClosePayload),
            [high, low, text @ ..] => (CloseCode(u16::from_be_bytes([*high, *low])), text),
        };
        if !code.may_travel(allow_reserved) {
            return Err(Violation::CloseCode);
        }
        let text = utf8::whole(text).ok_or(Violation::CloseReason)?;
        Ok(Self { code: Some(code), text })
    }
}

/// The payload of a Close frame with `code` and no reason.
pub fn payload(code: CloseCode) -> [u8; 2] {
    code.0.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_may_travel() {
        for code in 0..=u16::MAX {
            let registered = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013];
            let expected = registered.contains(&code) || (3000..5000).contains(&code);
            assert_eq!(CloseCode(code).may_travel(false), expected, "{code}");
            let prohibited = [1005, 1006, 1015].contains(&code);
            let expected = expected || ((1000..3000).contains(&code) && !prohibited);
            assert_eq!(CloseCode(code).may_travel(true), expected, "{code} with reserved ones");
        }
    }

    #[test]
    fn payloads() {
        let parse = |bytes| CloseReason::parse(bytes, false);
        assert_eq!(parse(b""), Ok(CloseReason { code: None, text: "" }));
        assert_eq!(parse(b"\x03"), Err(Violation::ClosePayload));
        let normal = Some(CloseCode::NORMAL);
        assert_eq!(parse(b"\x03\xe8"), Ok(CloseReason { code: normal, text: "" }));
        assert_eq!(parse(b"\x03\xe8bye"), Ok(CloseReason { code: normal, text: "bye" }));
        assert_eq!(parse(b"\x03\xe8\xff"), Err(Violation::CloseReason));
        assert_eq!(parse(b"\x03\xe8\xc3"), Err(Violation::CloseReason));
        assert_eq!(parse(b"\x03\xed"), Err(Violation::CloseCode));
    }
}
