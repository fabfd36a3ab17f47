//! The settings of a Location as plain values: defaults, merging, and the reading of sizes.
//!
//! Every field is optional until a request asks for it, so that an inner section overrides only what it sets.
#![deny(unsafe_code)]

use crate::proto::{deflate::Policy, handshake::OriginCheck};

/// The default of `WebSocketMaxMessageSize`: 32 MiB.
pub const MAX_MESSAGE: usize = 32 << 20;

/// The default of `WebSocketCompressionMemory`: 64 MiB.
pub const COMPRESSION_MEMORY: usize = 64 << 20;

/// What the directives of one section set.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `WebSocketMaxMessageSize`, in bytes.
    pub max_message: Option<usize>,
    /// `WebSocketSendQueueLimit`, in bytes.
    pub send_queue: Option<usize>,
    /// `WebSocketOriginCheck`.
    pub origin_check: Option<OriginCheck>,
    /// `WebSocketTrustedOrigin`, all of the section's.
    pub trusted_origins: Option<Vec<String>>,
    /// `WebSocketAllowReservedStatusCodes`.
    pub allow_reserved: Option<bool>,
    /// What the `WebSocketCompression…` directives set.
    pub compression: Compression,
}

/// The settings of permessage-deflate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compression {
    /// `WebSocketCompression`.
    pub enabled: Option<bool>,
    /// `WebSocketCompressionLevel`, 1 to 9.
    pub level: Option<u8>,
    /// `WebSocketCompressionMinSize`, in bytes.
    pub min_size: Option<usize>,
    /// `WebSocketCompressionWindowBits`, server and client, 9 to 15.
    pub window_bits: Option<(u8, u8)>,
    /// `WebSocketCompressionContextTakeover`, server and client.
    pub takeover: Option<(bool, bool)>,
}

impl Settings {
    /// The settings of a section inside this one.
    pub fn merge(&self, inner: &Self) -> Self {
        let (outer_c, inner_c) = (&self.compression, &inner.compression);
        Self {
            max_message: inner.max_message.or(self.max_message),
            send_queue: inner.send_queue.or(self.send_queue),
            origin_check: inner.origin_check.or(self.origin_check),
            trusted_origins: inner
                .trusted_origins
                .as_ref()
                .or(self.trusted_origins.as_ref())
                .cloned(),
            allow_reserved: inner.allow_reserved.or(self.allow_reserved),
            compression: Compression {
                enabled: inner_c.enabled.or(outer_c.enabled),
                level: inner_c.level.or(outer_c.level),
                min_size: inner_c.min_size.or(outer_c.min_size),
                window_bits: inner_c.window_bits.or(outer_c.window_bits),
                takeover: inner_c.takeover.or(outer_c.takeover),
            },
        }
    }

    /// The most bytes of a message.
    pub fn max_message(&self) -> usize {
        self.max_message.unwrap_or(MAX_MESSAGE)
    }

    /// The most bytes that wait for a slow client; twice the largest message unless set.
    pub fn send_queue(&self) -> usize {
        self.send_queue.unwrap_or_else(|| self.max_message().saturating_mul(2))
    }

    /// Which origins are let in.
    pub fn origin_check(&self) -> OriginCheck {
        self.origin_check.unwrap_or_default()
    }

    /// The origins of `WebSocketOriginCheck Trusted`.
    pub fn trusted_origins(&self) -> &[String] {
        self.trusted_origins.as_deref().unwrap_or_default()
    }

    /// Whether clients may close with reserved codes.
    pub fn allow_reserved(&self) -> bool {
        self.allow_reserved.unwrap_or(false)
    }
}

impl Compression {
    /// What may be negotiated; `None` if compression is off.
    pub fn policy(&self) -> Option<Policy> {
        let (server_takeover, client_takeover) = self.takeover.unwrap_or((false, false));
        let (server_window, client_window) = self.window_bits.unwrap_or((15, 15));
        self.enabled.unwrap_or(false).then_some(Policy {
            server_takeover,
            client_takeover,
            server_window,
            client_window,
        })
    }

    /// The effort of compressing, 1 to 9.
    pub fn level(&self) -> u32 {
        self.level.unwrap_or(1).into()
    }

    /// The shortest message worth compressing, in bytes.
    pub fn min_size(&self) -> usize {
        self.min_size.unwrap_or(64)
    }
}

/// What [`size`] expects, for messages.
pub const SIZE: &str = "a number of bytes above 0, which may end in k, M or G (64k, 32M)";

/// Reads a number of bytes, with an optional suffix k, M or G (powers of 1024, either case).
pub fn size(text: &str) -> Option<usize> {
    let (digits, unit) = match text.as_bytes() {
        [.., b'k' | b'K'] => (&text[..text.len() - 1], 1 << 10),
        [.., b'm' | b'M'] => (&text[..text.len() - 1], 1 << 20),
        [.., b'g' | b'G'] => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // Lengths are handled as isize by the language, so a size beyond that is nonsense.
    let bytes: usize = digits.parse::<usize>().ok()?.checked_mul(unit)?;
    (bytes > 0 && isize::try_from(bytes).is_ok()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("1", Some(1)),
            ("64k", Some(65_536)),
            ("64K", Some(65_536)),
            ("32M", Some(33_554_432)),
            ("2g", Some(1 << 31)),
            ("33554432", Some(33_554_432)),
            ("0", None),
            ("0k", None),
            ("-1", None),
            ("+1", None),
            ("", None),
            ("k", None),
            ("64X", None),
            ("64kk", None),
            ("6 4", None),
            ("1.5M", None),
            ("99999999999999999999", None),
            ("9999999999G", None),
        ] {
            assert_eq!(size(text), expected, "{text:?}");
        }
    }

    #[test]
    fn an_inner_section_overrides_only_what_it_sets() {
        let outer = Settings {
            max_message: Some(10),
            origin_check: Some(OriginCheck::Off),
            trusted_origins: Some(vec!["http://a.example".into()]),
            ..Settings::default()
        };
        let inner = Settings { max_message: Some(20), ..Settings::default() };
        let merged = outer.merge(&inner);
        assert_eq!(merged.max_message(), 20);
        assert_eq!(merged.send_queue(), 40);
        assert_eq!(merged.origin_check(), OriginCheck::Off);
        assert_eq!(merged.trusted_origins(), ["http://a.example"]);
        assert!(!merged.allow_reserved());
        assert_eq!(outer.merge(&Settings::default()).max_message(), 10);
    }
}
