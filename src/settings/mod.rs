//! The settings of a Location as plain values: defaults, merging, and the reading of sizes.
//!
//! Every field is optional until a request asks for it, so that an inner section overrides only what it sets.

pub mod scope;

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use crate::proto::{deflate::Policy, handshake::OriginCheck};

/// The default of `WebSocketMaxMessageSize`: 32 MiB.
pub const MAX_MESSAGE: usize = 32 << 20;

/// The default of `WebSocketPingInterval`.
pub const PING_INTERVAL: Duration = Duration::from_secs(30);
/// The default of `WebSocketCloseTimeout`.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The default of `WebSocketMessageTimeout`.
pub const MESSAGE_TIMEOUT: MessageTimeout =
    MessageTimeout { time: Duration::from_secs(60), rate: Some(500) };
/// The default of `WebSocketDrainTime`.
pub const DRAIN_TIME: Duration = Duration::from_secs(10);
/// The default of `WebSocketThreads`.
pub const THREADS: u16 = 32;
/// The default of `WebSocketMemoryLimit`: 256 MiB.
pub const MEMORY_LIMIT: usize = 256 << 20;

/// What one section sets of a thing, so that an inner section overrides it.
pub trait Merge: Sized {
    /// What holds in a section inside this one.
    fn merge(&self, inner: &Self) -> Self;
}

impl<T: Clone> Merge for Option<T> {
    fn merge(&self, inner: &Self) -> Self {
        inner.as_ref().or(self.as_ref()).cloned()
    }
}

/// A struct of settings: what an inner section sets overrides what the outer one does, field by field.
macro_rules! settings {
    (
        $(#[$about:meta])+
        pub struct $name:ident {
            $($(#[$doc:meta])+ pub $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$about])+
        pub struct $name {
            $($(#[$doc])+ pub $field: $type,)+
        }

        impl $crate::settings::Merge for $name {
            fn merge(&self, inner: &Self) -> Self {
                Self { $($field: $crate::settings::Merge::merge(&self.$field, &inner.$field),)+ }
            }
        }
    };
}
pub(crate) use settings;

settings! {
    /// What the directives of one section set, but for the bridge's.
    #[derive(Clone, Debug, Default)]
    pub struct Settings {
        /// `WebSocketMaxMessageSize`, in bytes.
        pub max_message: Option<usize>,
        /// `WebSocketSendQueueLimit`, in bytes.
        pub send_queue: Option<usize>,
        /// Which pages may connect.
        pub origins: Origins,
        /// `WebSocketAllowReservedStatusCodes`.
        pub allow_reserved: Option<bool>,
        /// `WebSocketMaxConnections`; `Some(None)` is Off.
        pub max_connections: Option<Option<Limit>>,
        /// `WebSocketMaxConnectionsPerIP`; `Some(None)` is Off.
        pub max_connections_per_ip: Option<Option<AddressLimit>>,
        /// `WebSocketDetach`.
        pub detach: Option<Detach>,
        /// `WebSocketPingInterval`; `Some(None)` is Off.
        pub ping_interval: Option<Option<Duration>>,
        /// `WebSocketIdleTimeout`; `Some(None)` is Off.
        pub idle_timeout: Option<Option<Duration>>,
        /// `WebSocketCloseTimeout`; `Some(None)` is Off.
        pub close_timeout: Option<Option<Duration>>,
        /// `WebSocketMessageTimeout`; `Some(None)` is Off.
        pub message_timeout: Option<Option<MessageTimeout>>,
        /// What the `WebSocketCompression…` directives set.
        pub compression: Compression,
        /// `SupportDraft75`.
        pub draft75: Option<bool>,
        /// What .htaccess files demand besides.
        pub htaccess: Htaccess,
    }
}

settings! {
    /// Which pages may connect.
    #[derive(Clone, Debug, Default)]
    pub struct Origins {
        /// `WebSocketOriginCheck`.
        pub check: Option<OriginCheck>,
        /// `WebSocketTrustedOrigin`, all of the section's.
        pub trusted: Option<Vec<String>>,
    }
}

settings! {
    /// What .htaccess files set of what protects the server and its users. It is kept apart from what the server's own
    /// configuration sets, whatever the order in which httpd merges them: both hold, so that such a file can make that
    /// stricter, and never looser. Among themselves .htaccess files override each other as sections do.
    #[derive(Clone, Debug, Default)]
    pub struct Htaccess {
        /// `WebSocketMaxMessageSize`, in bytes, and where it stands.
        pub max_message: Option<(usize, String)>,
        /// Which pages may connect.
        pub origins: Origins,
        /// Where the last directive of `origins` stands.
        pub origins_place: Option<String>,
    }
}

/// How many connections a section allows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limit {
    /// The most there may be at a time.
    pub most: u64,
    /// The section that says so: all that inherit the limit from it are counted together.
    pub section: String,
}

/// How many bits of an IPv6 address `WebSocketMaxConnectionsPerIP` looks at unless it says otherwise: those of the
/// network that a client has for itself, as a rule.
pub const IPV6_PREFIX: u8 = 64;

/// How many connections a client's address may have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AddressLimit {
    /// How many.
    pub limit: Limit,
    /// So many bits of an IPv6 address, 1 to 128, are the client's.
    pub ipv6_prefix: u8,
}

impl AddressLimit {
    /// What stands for the client with this address: all that have the same are counted together.
    pub fn client(&self, ip: &str) -> String {
        // A link-local address may be followed by the name of an interface.
        let address = ip.split('%').next().and_then(|ip| ip.parse::<IpAddr>().ok());
        match address.map(|address| address.to_canonical()) {
            Some(IpAddr::V6(address)) => {
                let host = u128::MAX.checked_shr(self.ipv6_prefix.into()).unwrap_or(0);
                Ipv6Addr::from(u128::from(address) & !host).to_string()
            }
            Some(IpAddr::V4(address)) => address.to_string(),
            None => ip.to_owned(),
        }
    }
}

/// Whether connections leave httpd's threads (`WebSocketDetach`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Detach {
    /// Unless the plugin asks for httpd's request, or the MPM has no threads: plugins count on one connection per process
    /// there.
    #[default]
    Auto,
    /// Even then: the request is there during on_connect only, and the plugin has to bear many connections per process.
    On,
    /// Never.
    Off,
}

impl Detach {
    /// Whether a plugin's connection may leave httpd's threads. `wants_request`: it has asked for httpd's request;
    /// `threaded`: the MPM has threads.
    pub fn allows_plugin(self, wants_request: bool, threaded: bool) -> bool {
        match self {
            Self::Auto => threaded && !wants_request,
            Self::On => true,
            Self::Off => false,
        }
    }

    /// Whether a bridge's connection may.
    pub fn allows_bridge(self) -> bool {
        self != Self::Off
    }
}

/// How long a message may take to arrive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MessageTimeout {
    /// The time it has.
    pub time: Duration,
    /// If so many bytes a second have come in that time it has as much again.
    pub rate: Option<u32>,
}

impl MessageTimeout {
    /// Reads `60` or `60s,MinRate=500`.
    pub fn parse(text: &str) -> Option<Self> {
        let (time, rate) = text.split_once(',').map_or((text, None), |(t, r)| (t, Some(r)));
        let rate = rate.map(|rate| {
            let (name, number) = rate.split_once('=')?;
            let digits = number.bytes().all(|b| b.is_ascii_digit());
            let number = number.parse().ok().filter(|&number| digits && number > 0);
            number.filter(|_| name.eq_ignore_ascii_case("MinRate"))
        });
        let time = duration(time).filter(|time| !time.is_zero())?;
        match rate {
            Some(None) => None,
            rate => Some(Self { time, rate: rate.flatten() }),
        }
    }

    /// Whether a message may go on of which `len` bytes have come in `passed`.
    pub fn is_met(&self, len: u64, passed: Duration) -> bool {
        let enough = |rate: u32| u128::from(len) * 1000 >= u128::from(rate) * passed.as_millis();
        passed < self.time || self.rate.is_some_and(enough)
    }
}

/// How long to wait for what; `None` is for ever.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// `WebSocketPingInterval`: silence after which the client is pinged, and then given up.
    pub ping: Option<Duration>,
    /// `WebSocketIdleTimeout`: time without a data message either way.
    pub idle: Option<Duration>,
    /// `WebSocketCloseTimeout`: how long a client has to answer our Close.
    pub close: Option<Duration>,
    /// `WebSocketMessageTimeout`: how long a message may take once it has begun to arrive.
    pub message: Option<MessageTimeout>,
    /// httpd's `Timeout`: the time in which a client has to take enough of what waits for it.
    pub stall: Duration,
    /// The client never says anything: it is pinged each time, but its silence means nothing.
    pub one_way: bool,
}

settings! {
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
}

impl Settings {
    /// The most bytes of a message.
    pub fn max_message(&self) -> usize {
        let most = self.max_message_of_server();
        self.htaccess.max_message.as_ref().map_or(most, |(size, _)| most.min(*size))
    }

    /// The most bytes of a message that the server's own configuration allows.
    pub fn max_message_of_server(&self) -> usize {
        self.max_message.unwrap_or(MAX_MESSAGE)
    }

    /// The most bytes that wait for a slow client; as many as the largest message of the server's own configuration unless
    /// set. What a .htaccess file says of the client's messages is no reason to let the plugin wait.
    pub fn send_queue(&self) -> usize {
        self.send_queue.unwrap_or_else(|| self.max_message_of_server())
    }

    /// Whether a page's origin is compared with the server's own.
    pub fn compares_origins(&self) -> bool {
        let own = |origins: &Origins| origins.check() == OriginCheck::Same;
        own(&self.origins) || own(&self.origins.merge(&self.htaccess.origins))
    }

    /// Whether the server's own configuration lets a page of this origin in. `own` is the request's.
    pub fn server_allows(&self, origin: &[u8], own: &str) -> bool {
        self.origins.allow(origin, own)
    }

    /// Whether .htaccess files do, as far as they say something.
    pub fn htaccess_allows(&self, origin: &[u8], own: &str) -> bool {
        self.origins.merge(&self.htaccess.origins).allow(origin, own)
    }

    /// Whether `Trusted` has nobody to trust, so that all pages are kept out.
    pub fn trusts_nobody(&self) -> bool {
        let nobody = |origins: &Origins| {
            origins.check() == OriginCheck::Trusted && origins.trusted().is_empty()
        };
        nobody(&self.origins) || nobody(&self.origins.merge(&self.htaccess.origins))
    }

    /// How many connections there may be.
    pub fn max_connections(&self) -> Option<&Limit> {
        self.max_connections.as_ref()?.as_ref()
    }

    /// How many of one client address there may be.
    pub fn max_connections_per_ip(&self) -> Option<&AddressLimit> {
        self.max_connections_per_ip.as_ref()?.as_ref()
    }

    /// Whether connections leave httpd's threads.
    pub fn detach(&self) -> Detach {
        self.detach.unwrap_or_default()
    }

    /// How long a connection waits for what; `stall` is httpd's `Timeout`.
    pub fn timeouts(&self, stall: Duration) -> Timeouts {
        Timeouts {
            ping: self.ping_interval.unwrap_or(Some(PING_INTERVAL)),
            idle: self.idle_timeout.unwrap_or(None),
            close: self.close_timeout.unwrap_or(Some(CLOSE_TIMEOUT)),
            message: self.message_timeout.unwrap_or(Some(MESSAGE_TIMEOUT)),
            stall,
            one_way: false,
        }
    }

    /// Whether clients may speak draft 75.
    pub fn draft75(&self) -> bool {
        self.draft75.unwrap_or(false)
    }

    /// Whether clients may close with reserved codes.
    pub fn allow_reserved(&self) -> bool {
        self.allow_reserved.unwrap_or(false)
    }
}

impl Origins {
    /// Which of them are let in.
    pub fn check(&self) -> OriginCheck {
        self.check.unwrap_or_default()
    }

    fn trusted(&self) -> &[String] {
        self.trusted.as_deref().unwrap_or_default()
    }

    fn allow(&self, origin: &[u8], own: &str) -> bool {
        self.check().allows(origin, own, self.trusted())
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
    pub fn level(&self) -> u8 {
        self.level.unwrap_or(1)
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

/// What [`duration`] expects.
pub const DURATION: &str = "a time such as 30s, 500ms, 5 (seconds) or 2min";

/// What to write instead of a time that [`duration`] does not take, if that is not said by [`DURATION`] alone.
pub fn duration_advice(text: &str) -> Option<String> {
    let digits = text.strip_suffix(['m', 'M'])?;
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| {
        format!(
            "'{text}' has the unit m, which httpd's own directives do not know either: write \
             {digits}min for minutes, {digits}ms for milliseconds"
        )
    })
}

/// Reads a time as httpd's directives write it: a number with an optional unit ms, s, min or h; seconds
/// without one.
pub fn duration(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let millis = match unit.to_ascii_lowercase().as_str() {
        "ms" => 1,
        "" | "s" => 1000,
        "mi" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    // A time that takes longer than a century to pass is nonsense, and would overflow later.
    let millis = digits.parse::<u64>().ok()?.checked_mul(millis)?;
    (millis < 100 * 366 * 24 * 3_600_000).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_timeouts() {
        let timeout = |seconds, rate| MessageTimeout { time: Duration::from_secs(seconds), rate };
        for (text, expected) in [
            ("60", Some(timeout(60, None))),
            ("2min,MinRate=500", Some(timeout(120, Some(500)))),
            ("1s,minrate=1", Some(timeout(1, Some(1)))),
            ("0", None),
            ("60,", None),
            ("60,MinRate", None),
            ("60,MinRate=", None),
            ("60,MinRate=0", None),
            ("60,MinRate=+5", None),
            ("60,MaxRate=5", None),
            ("60,MinRate=5,MinRate=5", None),
            (",MinRate=5", None),
        ] {
            assert_eq!(MessageTimeout::parse(text), expected, "{text}");
        }
        let is_met = |rate, len, passed| timeout(60, rate).is_met(len, Duration::from_secs(passed));
        assert!(is_met(None, 0, 59) && !is_met(None, 1 << 40, 60));
        assert!(is_met(Some(500), 30_000, 60) && !is_met(Some(500), 29_999, 60));
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("30", Some(30_000)),
            ("30s", Some(30_000)),
            ("500ms", Some(500)),
            ("2min", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("0", Some(0)),
            ("", None),
            ("s", None),
            ("-1", None),
            ("1.5s", None),
            ("10 s", None),
            ("10y", None),
            ("5m", None),
            ("5M", None),
            ("99999999999999999999", None),
            ("9999999999h", None),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(duration(text), expected, "{text:?}");
        }
    }

    #[test]
    fn minutes_or_milliseconds() {
        let advice = duration_advice("5m").unwrap();
        assert!(advice.contains("5min") && advice.contains("5ms"), "{advice}");
        for text in ["m", "5", "5min", "xm", ""] {
            assert_eq!(duration_advice(text), None, "{text:?}");
        }
    }

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
    fn who_may_be_detached() {
        // Has the plugin asked for the request, and has the MPM threads?
        let asked = [(false, true), (true, true), (false, false), (true, false)];
        for (detach, bridge, plugins) in [
            (Detach::Auto, true, [true, false, false, false]),
            (Detach::On, true, [true; 4]),
            (Detach::Off, false, [false; 4]),
        ] {
            assert_eq!(detach.allows_bridge(), bridge, "{detach:?}");
            for ((request, threads), plugin) in asked.into_iter().zip(plugins) {
                let allowed = detach.allows_plugin(request, threads);
                assert_eq!(allowed, plugin, "{detach:?}, request {request}, threads {threads}");
            }
        }
    }

    #[test]
    fn an_inner_section_overrides_only_what_it_sets() {
        let outer = Settings {
            max_message: Some(10),
            origins: Origins {
                check: Some(OriginCheck::Off),
                trusted: Some(vec!["http://a.example".into()]),
            },
            ..Settings::default()
        };
        let inner = Settings { max_message: Some(20), ..Settings::default() };
        let merged = outer.merge(&inner);
        assert_eq!(merged.max_message(), 20);
        assert_eq!(merged.send_queue(), 20);
        assert_eq!(merged.origins.check(), OriginCheck::Off);
        assert_eq!(merged.origins.trusted(), ["http://a.example"]);
        assert!(!merged.allow_reserved());
        assert_eq!(outer.merge(&Settings::default()).max_message(), 10);
    }

    #[test]
    fn htaccess_files_only_make_stricter_whatever_the_order() {
        let (a, b, own) = ("http://a.example", "http://b.example", "http://own.example");
        let trusted = |check, list: &[&str]| Origins {
            check,
            trusted: (!list.is_empty()).then(|| list.iter().map(ToString::to_string).collect()),
        };
        let server = |size, origins| Settings { max_message: size, origins, ..Settings::default() };
        let local = |size: usize, origins| Settings {
            htaccess: Htaccess {
                max_message: Some((size, String::new())),
                origins,
                origins_place: None,
            },
            ..Settings::default()
        };
        let (off, same, list) = (OriginCheck::Off, OriginCheck::Same, OriginCheck::Trusted);
        for (before, file, after, size, allowed) in [
            (
                server(None, trusted(None, &[])),
                (64 << 20, Some(off), &[][..]),
                None,
                32 << 20,
                &[own][..],
            ),
            (server(Some(9), trusted(None, &[])), (8, Some(list), &[a]), None, 8, &[]),
            (server(Some(9), trusted(Some(off), &[])), (10, Some(list), &[a]), None, 9, &[a]),
            (server(Some(9), trusted(Some(off), &[])), (10, Some(same), &[]), None, 9, &[own]),
            (server(Some(9), trusted(Some(list), &[a])), (10, None, &[a, b]), None, 9, &[a]),
            // A section for a path is merged behind a .htaccess file.
            (server(Some(9), trusted(None, &[])), (8, Some(off), &[]), Some(99), 8, &[b]),
            (server(Some(9), trusted(None, &[])), (999, Some(list), &[b]), Some(99), 99, &[b]),
        ] {
            let file = local(file.0, trusted(file.1, file.2));
            let queue = after.or(before.max_message).unwrap_or(MAX_MESSAGE);
            let after = after.map_or_else(Settings::default, |size| {
                server(Some(size), trusted(Some(list), &[b]))
            });
            for merged in [
                before.merge(&file).merge(&after),
                before.merge(&file.merge(&after)),
                file.merge(&before).merge(&after),
                before.merge(&after).merge(&file),
            ] {
                assert_eq!((merged.max_message(), merged.send_queue()), (size, queue));
                for origin in [a, b, own] {
                    let bytes = origin.as_bytes();
                    let is_allowed =
                        merged.server_allows(bytes, own) && merged.htaccess_allows(bytes, own);
                    assert_eq!(is_allowed, allowed.contains(&origin), "{origin} {merged:?}");
                }
            }
        }
    }

    #[test]
    fn when_the_servers_own_origin_matters() {
        let origins = |check| Origins { check, trusted: None };
        let (off, same, list) = (OriginCheck::Off, OriginCheck::Same, OriginCheck::Trusted);
        for (server, file, compares) in [
            (None, None, true),
            (Some(off), None, false),
            (Some(list), None, false),
            (Some(off), Some(list), false),
            (Some(off), Some(same), true),
            (Some(same), Some(list), true),
        ] {
            let htaccess = Htaccess { origins: origins(file), ..Htaccess::default() };
            let settings = Settings { origins: origins(server), htaccess, ..Settings::default() };
            assert_eq!(settings.compares_origins(), compares, "{server:?} {file:?}");
        }
    }

    #[test]
    fn whose_connections_are_counted_together() {
        let limit = Limit { most: 1, section: String::new() };
        for (prefix, ip, counted) in [
            (64, "192.0.2.1", "192.0.2.1"),
            (64, "::ffff:192.0.2.1", "192.0.2.1"),
            (64, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            (64, "2001:db8:1:2::", "2001:db8:1:2::"),
            (56, "2001:db8:1:2ff::1", "2001:db8:1:200::"),
            (1, "ffff::1", "8000::"),
            (128, "2001:db8::1", "2001:db8::1"),
            (64, "fe80::1%eth0", "fe80::"),
            (64, "?", "?"),
        ] {
            let limit = AddressLimit { limit: limit.clone(), ipv6_prefix: prefix };
            assert_eq!(limit.client(ip), counted, "{ip}/{prefix}");
        }
    }
}
