//! The directives: their table, their setters, and the life of the settings they make.
//!
//! A setter turns words into a value of [`Settings`], or into a sentence that says what was expected; httpd puts the
//! file and the line in front of it. One function per number of arguments carries the words from httpd to it.

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
};
use std::{
    borrow::Cow,
    ffi::CString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    boundary,
    bridge::{Discovery, Expression, Source},
    log, module,
    request::Request,
    sys,
};
use crate::{
    bridge::{Address, address::Pattern, framing, settings::Protocol, websocksy},
    conn::log::Level,
    limits::workers::Share,
    plugin::Plugin,
    proto::handshake::{self, OriginCheck},
    settings::{self, AddressLimit, Detach, Limit, MessageTimeout, Origins, Settings},
};

/// Legal in server configuration and in sections, but not in .htaccess files.
const ADMIN: u32 = sys::RSRC_CONF | sys::ACCESS_CONF;
/// Legal in .htaccess files too, with `AllowOverride AuthConfig`.
const ANYONE: u32 = sys::RSRC_CONF | sys::OR_AUTHCFG;
/// Legal in the main server's configuration only.
const GLOBAL: u32 = sys::RSRC_CONF;

pub(super) static COMMANDS: Commands<34> = Commands([
    take2(
        c"WebSocketHandler",
        &(handler as Setter),
        ADMIN,
        c"the plugin's shared library and its init function",
    ),
    take1(
        c"WebSocketMaxMessageSize",
        &(max_message_size as Setter),
        ANYONE,
        c"the largest message a client may send, in bytes; k, M and G are understood",
    ),
    take1(
        c"MaxMessageSize",
        &(max_message_size_old as Setter),
        ANYONE,
        c"the old name of WebSocketMaxMessageSize",
    ),
    take1(
        c"WebSocketSendQueueLimit",
        &(send_queue_limit as Setter),
        ADMIN,
        c"how much may wait for a slow client before senders are held up, in bytes",
    ),
    take1(
        c"WebSocketOriginCheck",
        &(origin_check as Setter),
        ANYONE,
        c"which pages may connect: Off, Same or Trusted",
    ),
    iterate(
        c"WebSocketTrustedOrigin",
        &(trusted_origin as Setter),
        ANYONE,
        c"origins for WebSocketOriginCheck Trusted, such as https://www.example.com",
    ),
    flag(
        c"WebSocketAllowReservedStatusCodes",
        &(allow_reserved as Setter),
        ANYONE,
        c"On to let clients close with codes that are reserved for future use",
    ),
    take1(
        c"WebSocketMaxConnections",
        &(max_connections as Setter),
        ADMIN,
        c"the most WebSockets that this section may have open, in all children; or Off",
    ),
    take12(
        c"WebSocketMaxConnectionsPerIP",
        &(max_connections_per_ip as Setter),
        ADMIN,
        c"the most WebSockets that one client address may have open in this section, or Off; and the bits of an IPv6 \
          address that count, 64 if not given",
    ),
    take1(
        c"WebSocketDetach",
        &(detach as Setter),
        ADMIN,
        c"whether connections leave httpd's threads: Auto, On or Off",
    ),
    take1(
        c"WebSocketPingInterval",
        &(ping_interval as Setter),
        ADMIN,
        c"the silence after which a client is pinged, and then given up; or Off",
    ),
    take1(
        c"WebSocketIdleTimeout",
        &(idle_timeout as Setter),
        ADMIN,
        c"the time without a message after which a connection is closed; or Off",
    ),
    take1(
        c"WebSocketCloseTimeout",
        &(close_timeout as Setter),
        ADMIN,
        c"the time a client has to answer a Close; or Off",
    ),
    take1(
        c"WebSocketMessageTimeout",
        &(message_timeout as Setter),
        ADMIN,
        c"the time a message may take to arrive, and at what rate it gets more, such as 60s,MinRate=500; or Off",
    ),
    take1(
        c"WebSocketDrainTime",
        &(drain_time as Setter),
        GLOBAL,
        c"the time over which a child that ends gracefully spreads the end of its connections",
    ),
    take1(
        c"WebSocketThreads",
        &(threads as Setter),
        GLOBAL,
        c"the most threads per child that serve detached connections",
    ),
    take1(
        c"WebSocketWorkerShare",
        &(worker_share as Setter),
        GLOBAL,
        c"how many percent of httpd's workers WebSockets may hold; or Off",
    ),
    flag(
        c"WebSocketCompression",
        &(compression as Setter),
        ADMIN,
        c"On to compress messages for clients that offer permessage-deflate",
    ),
    take1(
        c"WebSocketCompressionLevel",
        &(compression_level as Setter),
        ADMIN,
        c"the effort of compressing, 1 (fast) to 9 (small)",
    ),
    take1(
        c"WebSocketCompressionMinSize",
        &(compression_min_size as Setter),
        ADMIN,
        c"the shortest message worth compressing, in bytes",
    ),
    take1(
        c"WebSocketCompressionContextTakeover",
        &(compression_takeover as Setter),
        ADMIN,
        c"who keeps the compression context between messages: None, Server, Client or Both",
    ),
    take12(
        c"WebSocketCompressionWindowBits",
        &(compression_window_bits as Setter),
        ADMIN,
        c"the server's compression window in bits, and the one asked of clients; 9 to 15",
    ),
    take1(
        c"WebSocketMemoryLimit",
        &(memory_limit as Setter),
        GLOBAL,
        c"how much memory the messages, queues and compression of a child may take, in bytes",
    ),
    take1(
        c"WebSocketBridge",
        &(bridge as Setter),
        ADMIN,
        c"the peer that messages are relayed to, such as tcp://127.0.0.1:5900 or unix:///run/service.sock",
    ),
    iterate(
        c"WebSocketBridgeAllow",
        &(bridge_allow as Setter),
        ADMIN,
        c"the peers that an expression in WebSocketBridge may lead to",
    ),
    take12(
        c"WebSocketBridgeFraming",
        &(bridge_framing as Setter),
        ADMIN,
        c"how a peer's stream is cut into messages: a framing's name, and its configuration",
    ),
    take12(
        c"WebSocketBridgeBackend",
        &(bridge_backend as Setter),
        ADMIN,
        c"what finds a request's peer: defaultpeer, file or a library's path; Parallel if threads may share it",
    ),
    take2(
        c"WebSocketBridgeOption",
        &(bridge_option as Setter),
        ADMIN,
        c"an option of the section's WebSocketBridgeBackend: its name and its value",
    ),
    take12(
        c"WebSocketBridgeConfig",
        &(bridge_config as Setter),
        ADMIN,
        c"a configuration file of websocksy's, and the folder of its backends",
    ),
    take1(
        c"WebSocketBridgeProtocol",
        &(bridge_protocol as Setter),
        ADMIN,
        c"the subprotocol to announce if the client offers it, * for the first one offered, or none",
    ),
    take1(
        c"WebSocketBridgeConnectTimeout",
        &(bridge_connect_timeout as Setter),
        ADMIN,
        c"how long connecting to a peer may take, the look-up of its name included",
    ),
    take1(
        c"WebSocketBridgeProxyProtocol",
        &(bridge_proxy_protocol as Setter),
        ADMIN,
        c"v2 to tell stream peers the client's address by the PROXY protocol; or Off",
    ),
    take1(
        c"WebSocketBridgeMaxPieceSize",
        &(bridge_max_piece as Setter),
        ADMIN,
        c"the largest message that a framing may make of a peer's stream, in bytes",
    ),
    END,
]);

/// The directives of `websocket_draft76_module`, whose sections hold nothing else.
pub(super) static DRAFT_COMMANDS: Commands<2> = Commands([
    flag(
        c"SupportDraft75",
        &(support_draft75 as Setter),
        ADMIN,
        c"On to serve clients that speak draft 75, too",
    ),
    END,
]);

fn handler(parms: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    let [library, init] = words else { return Err(ARGUMENTS.into()) };
    let path = parms.server_root_relative(library);
    let path = path.ok_or_else(|| format!("'{library}' is not a path that can be resolved"))?;
    let symbol = CString::new(*init).map_err(|e| e.to_string())?;
    let plugin = Plugin::load(&path, &symbol).map_err(|e| {
        format!("cannot use function '{init}' of library {}: {e}", path.to_string_lossy())
    })?;
    section.plugin = Some(plugin);
    one_endpoint(section)
}

/// A section's own endpoint is a plugin or the bridge.
fn one_endpoint(section: &Section) -> Result<(), String> {
    if section.plugin.is_some() && section.bridge.is_some() {
        let both = "the same section has a WebSocketHandler and a WebSocketBridge: remove one";
        return Err(both.into());
    }
    Ok(())
}

fn max_message_size(parms: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    let (settings, size) = (&mut section.settings, size(words)?);
    match parms.place_in_htaccess() {
        Some(place) => settings.htaccess.max_message = Some((size, place)),
        None => settings.max_message = Some(size),
    }
    Ok(())
}

fn max_message_size_old(
    parms: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let line = "it is deprecated: use its new name, WebSocketMaxMessageSize";
    parms.warn_once("WS0401", line);
    max_message_size(parms, section, words)
}

fn send_queue_limit(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.send_queue = Some(size(words)?);
    Ok(())
}

fn origin_check(parms: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    let choices =
        [("Off", OriginCheck::Off), ("Same", OriginCheck::Same), ("Trusted", OriginCheck::Trusted)];
    origins(parms, section).check = Some(choice(words, &choices)?);
    Ok(())
}

/// Where the origins of the section being read belong.
fn origins<'s>(parms: Parms<'_>, section: &'s mut Section) -> &'s mut Origins {
    let Settings { origins, htaccess, .. } = &mut section.settings;
    let Some(place) = parms.place_in_htaccess() else { return origins };
    htaccess.origins_place = Some(place);
    &mut htaccess.origins
}

fn trusted_origin(parms: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    for word in words {
        if let Some(warning) = handshake::check_trusted(word)? {
            parms.warn_once("WS0424", &warning);
        }
        let trusted = &mut origins(parms, section).trusted;
        trusted.get_or_insert_default().push((*word).to_owned());
    }
    Ok(())
}

fn allow_reserved(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.allow_reserved = Some(on(words));
    Ok(())
}

fn max_connections(parms: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.max_connections = Some(limit(parms, words)?);
    Ok(())
}

fn max_connections_per_ip(
    parms: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let ipv6_prefix = match words.get(1) {
        Some(word) => number(Some(word), 1, 128)? as u8,
        None => settings::IPV6_PREFIX,
    };
    let limit = limit(parms, words)?;
    section.settings.max_connections_per_ip =
        Some(limit.map(|limit| AddressLimit { limit, ipv6_prefix }));
    Ok(())
}

/// A number of connections for the section being read, or Off.
fn limit(parms: Parms<'_>, words: &[&str]) -> Result<Option<Limit>, String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    if word.eq_ignore_ascii_case("Off") {
        return Ok(None);
    }
    let digits = word.bytes().all(|b| b.is_ascii_digit());
    let most = word.parse().ok().filter(|most| digits && (1..=200_000).contains(most));
    let most =
        most.ok_or_else(|| format!("'{word}' is neither a number from 1 to 200000 nor Off"))?;
    Ok(Some(Limit { most, section: parms.section() }))
}

fn detach(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    let choices = [("Auto", Detach::Auto), ("On", Detach::On), ("Off", Detach::Off)];
    section.settings.detach = Some(choice(words, &choices)?);
    Ok(())
}

fn ping_interval(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.ping_interval = Some(duration_or_off(words)?);
    Ok(())
}

fn idle_timeout(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.idle_timeout = Some(duration_or_off(words)?);
    Ok(())
}

fn close_timeout(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.close_timeout = Some(duration_or_off(words)?);
    Ok(())
}

fn drain_time(parms: Parms<'_>, _: &mut Section, words: &[&str]) -> Result<(), String> {
    parms.main_server()?.drain_time = Some(duration(words)?);
    Ok(())
}

fn threads(parms: Parms<'_>, _: &mut Section, words: &[&str]) -> Result<(), String> {
    parms.main_server()?.threads = Some(number(words.first(), 1, 1024)?);
    Ok(())
}

fn worker_share(parms: Parms<'_>, _: &mut Section, words: &[&str]) -> Result<(), String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    let off = word.eq_ignore_ascii_case("Off");
    let percent = if off { None } else { number(Some(word), 1, 100).ok() };
    let share = match percent {
        Some(percent) => Share::Percent(percent as u8),
        None if off => Share::Off,
        None => {
            return Err(format!(
                "'{word}' is neither a number of percent from 1 to 100 nor Off: write 75 for three quarters, Off for no \
                 limit"
            ));
        }
    };
    parms.main_server()?.worker_share = Some(share);
    Ok(())
}

fn compression(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.compression.enabled = Some(on(words));
    Ok(())
}

fn compression_level(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.compression.level = Some(number(words.first(), 1, 9)? as u8);
    Ok(())
}

fn compression_min_size(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.compression.min_size = Some(size(words)?);
    Ok(())
}

fn compression_takeover(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    let choices = [
        ("None", (false, false)),
        ("Server", (true, false)),
        ("Client", (false, true)),
        ("Both", (true, true)),
    ];
    section.settings.compression.takeover = Some(choice(words, &choices)?);
    Ok(())
}

fn compression_window_bits(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let server = number(words.first(), 9, 15)?;
    let client = number(words.last(), 9, 15)?;
    section.settings.compression.window_bits = Some((server as u8, client as u8));
    Ok(())
}

fn memory_limit(parms: Parms<'_>, _: &mut Section, words: &[&str]) -> Result<(), String> {
    parms.main_server()?.memory_limit = Some(size(words)?);
    Ok(())
}

fn support_draft75(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.draft75 = Some(on(words));
    Ok(())
}

fn bridge(parms: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    let source = if word.contains("%{") {
        let (section, place) = (ptr::from_ref(section), parms.place());
        parms.server().expressions.push((section, place));
        // SAFETY: httpd reads a directive, whose pool is that of the configuration (R4).
        Source::Expression(unsafe { Expression::parse(parms.0, word) }?)
    } else {
        no_reference(word)?;
        Source::Fixed(parms.absolute(Address::parse(word)?)?)
    };
    set_source(section, source)
}

/// Refuses `$1`, which some directives replace by what the section's pattern has found, but these do not.
fn no_reference(word: &str) -> Result<(), String> {
    let is_reference = |pair: &[u8]| pair[0] == b'$' && pair[1].is_ascii_digit();
    let Some(at) = word.as_bytes().windows(2).position(is_reference) else { return Ok(()) };
    Err(format!(
        "'{word}' has {}, which is not replaced here: name the group, as in <LocationMatch \
         \"^/vnc/(?<port>59[0-9][0-9])$\">, and write 'WebSocketBridge \"tcp://127.0.0.1:%{{env:MATCH_PORT}}\"', with \
         'WebSocketBridgeAllow tcp://127.0.0.1:5900-5999'",
        &word[at..at + 2]
    ))
}

/// A section's peers come from one place.
fn set_source(section: &mut Section, source: Source) -> Result<(), String> {
    if section.bridge.replace(source).is_some() {
        let both = "the same section says already where its peers are: remove one";
        return Err(both.into());
    }
    one_endpoint(section)
}

fn bridge_backend(parms: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    let name = words.first().ok_or(ARGUMENTS)?;
    let parallel = match words.get(1) {
        Some(word) => choice(&[word], &[("Serial", false), ("Parallel", true)])?,
        None => false,
    };
    let discovery = Discovery::new((*name).to_owned(), parms.server_root()?, parallel);
    parms.server().discoveries.push((discovery.clone(), parms.place()));
    set_source(section, Source::Backend(discovery))
}

fn bridge_option(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    let [key, value] = words else { return Err(ARGUMENTS.into()) };
    let Some(Source::Backend(discovery)) = &section.bridge else {
        return Err("the option belongs to no backend: name it before, in the same section, with \
                    WebSocketBridgeBackend"
            .into());
    };
    discovery.add(key, value);
    Ok(())
}

fn bridge_config(parms: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    let name = words.first().ok_or(ARGUMENTS)?;
    let path = parms.server_root()?.join(name);
    let text =
        std::fs::read(&path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
    let text = String::from_utf8(text).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    let config = websocksy::parse(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    for warning in &config.warnings {
        parms.warn_once("WS0510", &format!("{}: {warning}", path.display()));
    }
    if let Some(seconds) = config.ping {
        let interval = Duration::from_secs(seconds.into());
        section.settings.ping_interval = Some((seconds > 0).then_some(interval));
    }
    let plugins = words.get(1).copied().unwrap_or("plugins");
    let backend = websocksy::backend(config.backend.as_deref(), plugins);
    bridge_backend(parms, section, &[&backend])?;
    for (key, value) in &config.options {
        bridge_option(parms, section, &[key, value])?;
    }
    Ok(())
}

fn bridge_allow(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    for word in words {
        no_reference(word)?;
        let pattern = Pattern::parse(word)?;
        section.settings.bridge.allow.get_or_insert_default().push(pattern);
    }
    Ok(())
}

fn bridge_framing(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    let name = words.first().ok_or(ARGUMENTS)?;
    let config = words.get(1).copied();
    framing::make(name, config)?;
    section.settings.bridge.framing = Some(((*name).to_owned(), config.map(str::to_owned)));
    Ok(())
}

fn bridge_protocol(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.bridge.protocol = Some(match *words.first().ok_or(ARGUMENTS)? {
        "*" => Protocol::First,
        word if word.eq_ignore_ascii_case("none") => Protocol::None,
        word if is_token(word) => Protocol::Named(word.to_owned()),
        word => return Err(format!("'{word}' is no subprotocol, nor * or none")),
    });
    Ok(())
}

/// A token of HTTP (RFC 9110 §5.6.2), which the name of a subprotocol is.
fn is_token(word: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !word.is_empty() && word.bytes().all(legal)
}

fn bridge_connect_timeout(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let time = duration(words)?;
    if time.is_zero() {
        return Err(format!("0 leaves a peer no time: expected {}", settings::DURATION));
    }
    section.settings.bridge.connect_timeout = Some(time);
    Ok(())
}

fn bridge_proxy_protocol(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    section.settings.bridge.proxy_protocol = Some(choice(words, &[("Off", false), ("v2", true)])?);
    Ok(())
}

fn bridge_max_piece(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    section.settings.bridge.max_piece = Some(size(words)?);
    Ok(())
}

/// What a setter says if httpd ever passed the wrong number of words.
const ARGUMENTS: &str = "wrong number of arguments";

/// The words of a flag, which httpd has read.
fn on(words: &[&str]) -> bool {
    words == ["On"]
}

fn size(words: &[&str]) -> Result<usize, String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    settings::size(word).ok_or_else(|| format!("'{word}' is not {}", settings::SIZE))
}

fn message_timeout(_: Parms<'_>, section: &mut Section, words: &[&str]) -> Result<(), String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    let timeout = if word.eq_ignore_ascii_case("Off") {
        None
    } else {
        let (time, _) = word.split_once(',').unwrap_or((word, ""));
        let wrong = || {
            format!(
                "'{word}' is neither {} above 0, with a number of bytes a second if need be, as 60s,MinRate=500, nor Off",
                settings::DURATION
            )
        };
        let advice = || settings::duration_advice(time).unwrap_or_else(wrong);
        Some(MessageTimeout::parse(word).ok_or_else(advice)?)
    };
    section.settings.message_timeout = Some(timeout);
    Ok(())
}

/// A time above 0, or Off.
fn duration_or_off(words: &[&str]) -> Result<Option<Duration>, String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    if word.eq_ignore_ascii_case("Off") {
        return Ok(None);
    }
    match settings::duration(word) {
        Some(time) if !time.is_zero() => Ok(Some(time)),
        _ => {
            let neither = || format!("'{word}' is neither {} nor Off", settings::DURATION);
            Err(settings::duration_advice(word).unwrap_or_else(neither))
        }
    }
}

fn duration(words: &[&str]) -> Result<Duration, String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    settings::duration(word).ok_or_else(|| {
        let expected = || format!("'{word}' is not {}", settings::DURATION);
        settings::duration_advice(word).unwrap_or_else(expected)
    })
}

/// A whole number between two bounds.
fn number(word: Option<&&str>, low: u16, high: u16) -> Result<u16, String> {
    let word = word.ok_or(ARGUMENTS)?;
    let digits = word.bytes().all(|b| b.is_ascii_digit());
    let number = word.parse().ok().filter(|n| digits && (low..=high).contains(n));
    number.ok_or_else(|| format!("'{word}' is not a number from {low} to {high}"))
}

/// One of a directive's words, upper and lower case being the same.
fn choice<T: Copy>(words: &[&str], choices: &[(&str, T)]) -> Result<T, String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    let chosen = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    chosen.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        format!("'{word}' is none of {}", names.join(", "))
    })
}

/// What one section of the configuration (server, Directory, Location, .htaccess file) sets.
#[derive(Clone, Default)]
pub(super) struct Section {
    /// A directive has been read into it.
    is_set: bool,
    pub(super) settings: Settings,
    pub(super) plugin: Option<Arc<Plugin>>,
    /// Where the bridge's peers come from. A section has one of the two at most.
    pub(super) bridge: Option<Source>,
}

impl Section {
    pub(super) fn has_endpoint(&self) -> bool {
        self.plugin.is_some() || self.bridge.is_some()
    }
}

/// What the main server's configuration sets for each child process.
#[derive(Clone, Default)]
pub(super) struct Server {
    /// `WebSocketMemoryLimit`, in bytes.
    memory_limit: Option<usize>,
    /// `WebSocketDrainTime`.
    pub(super) drain_time: Option<Duration>,
    /// `WebSocketThreads`.
    pub(super) threads: Option<u16>,
    /// `WebSocketWorkerShare`.
    pub(super) worker_share: Option<Share>,
    /// The sections with an expression in `WebSocketBridge`, and where that stands.
    expressions: Vec<(*const Section, String)>,
    /// The backends, and where each is named.
    discoveries: Vec<(Arc<Discovery>, String)>,
}

impl Server {
    /// How many bytes the connections of a child may hold.
    pub(super) fn memory_limit(&self) -> usize {
        self.memory_limit.unwrap_or(settings::MEMORY_LIMIT)
    }
}

/// A directive's own part: takes its words and changes the section, or says what is wrong with them.
type Setter = fn(Parms<'_>, &mut Section, &[&str]) -> Result<(), String>;

/// A table that httpd reads; it never changes.
#[repr(transparent)]
pub(super) struct Commands<const N: usize>([sys::command_rec; N]);

// SAFETY: httpd only reads the table, and nothing in it changes.
unsafe impl<const N: usize> Sync for Commands<N> {}

impl<const N: usize> Commands<N> {
    pub(super) const fn as_ptr(&self) -> *const sys::command_rec {
        self.0.as_ptr()
    }
}

/// httpd knows the end of a table by its name of NULL.
const END: sys::command_rec = sys::command_rec {
    name: ptr::null(),
    func: sys::cmd_func { no_args: None },
    cmd_data: ptr::null_mut(),
    req_override: 0,
    args_how: sys::cmd_how_RAW_ARGS,
    errmsg: ptr::null(),
};

const fn command(
    name: &'static CStr,
    (func, args_how): (sys::cmd_func, sys::cmd_how),
    setter: &'static Setter,
    legal: u32,
    help: &'static CStr,
) -> sys::command_rec {
    sys::command_rec {
        name: name.as_ptr(),
        func,
        cmd_data: ptr::from_ref(setter).cast_mut().cast(),
        req_override: legal as c_int,
        args_how,
        errmsg: help.as_ptr(),
    }
}

const fn take1(
    name: &'static CStr,
    setter: &'static Setter,
    legal: u32,
    help: &'static CStr,
) -> sys::command_rec {
    let how = (sys::cmd_func { take1: Some(cmd_one) }, sys::cmd_how_TAKE1);
    command(name, how, setter, legal, help)
}

const fn iterate(
    name: &'static CStr,
    setter: &'static Setter,
    legal: u32,
    help: &'static CStr,
) -> sys::command_rec {
    let how = (sys::cmd_func { take1: Some(cmd_one) }, sys::cmd_how_ITERATE);
    command(name, how, setter, legal, help)
}

const fn take2(
    name: &'static CStr,
    setter: &'static Setter,
    legal: u32,
    help: &'static CStr,
) -> sys::command_rec {
    let how = (sys::cmd_func { take2: Some(cmd_two) }, sys::cmd_how_TAKE2);
    command(name, how, setter, legal, help)
}

const fn take12(
    name: &'static CStr,
    setter: &'static Setter,
    legal: u32,
    help: &'static CStr,
) -> sys::command_rec {
    let how = (sys::cmd_func { take2: Some(cmd_two) }, sys::cmd_how_TAKE12);
    command(name, how, setter, legal, help)
}

const fn flag(
    name: &'static CStr,
    setter: &'static Setter,
    legal: u32,
    help: &'static CStr,
) -> sys::command_rec {
    let how = (sys::cmd_func { flag: Some(cmd_flag) }, sys::cmd_how_FLAG);
    command(name, how, setter, legal, help)
}

/// What httpd says about the directive that it is reading.
#[derive(Clone, Copy)]
struct Parms<'p>(&'p sys::cmd_parms);

impl Parms<'_> {
    /// A path that may be relative to ServerRoot.
    fn server_root_relative(self, path: &str) -> Option<CString> {
        let path = CString::new(path).ok()?;
        // SAFETY: the pool lives while the configuration is read (R4); the result is NULL or a string in it.
        unsafe {
            let path = sys::ap_server_root_relative(self.0.pool, path.as_ptr());
            (!path.is_null()).then(|| CStr::from_ptr(path).to_owned())
        }
    }

    /// A name for the section being read that is the same in every child and after a restart.
    fn section(self) -> String {
        // SAFETY: the server being configured and its strings are live (R4); each of them may be NULL.
        unsafe {
            let text =
                |s: *const c_char| (!s.is_null()).then(|| CStr::from_ptr(s).to_string_lossy());
            let server = &*self.0.server;
            let (file, path) = (text(server.defn_name), text(self.0.path));
            let (file, path) = (file.unwrap_or_default(), path.unwrap_or_default());
            format!("{file}:{} {path}", server.defn_line_number)
        }
    }

    /// An address whose path may be relative to ServerRoot.
    fn absolute(self, address: Address) -> Result<Address, String> {
        let resolve = |path: &Path| {
            let path = self.server_root_relative(&path.to_string_lossy());
            let path = path.and_then(|path| path.into_string().ok());
            path.ok_or_else(|| "the path cannot be resolved".to_owned())
        };
        match &address {
            Address::Unix(path) => Address::parse(&format!("unix://{}", resolve(path)?)),
            Address::UnixDatagram(path) => {
                Address::parse(&format!("unix-dgram://{}", resolve(path)?))
            }
            Address::Tcp(..) | Address::Udp(..) => Ok(address),
        }
    }

    /// ServerRoot.
    fn server_root(self) -> Result<PathBuf, String> {
        let root = self.server_root_relative("").and_then(|root| root.into_string().ok());
        root.map(PathBuf::from).ok_or_else(|| "ServerRoot is no path that can be used".into())
    }

    /// Where the directive stands.
    fn place(self) -> String {
        // SAFETY: the directive being read, its name and that of its file are live (R4).
        unsafe {
            let directive = &*self.0.directive;
            let name = CStr::from_ptr(directive.directive).to_string_lossy();
            let file = CStr::from_ptr(directive.filename).to_string_lossy();
            format!("{name} on line {} of {file}", directive.line_num)
        }
    }

    /// The same if that is in a .htaccess file.
    fn place_in_htaccess(self) -> Option<String> {
        // SAFETY: the function reads the live structure (R4); an error is a string in its pool.
        let refusal = unsafe {
            sys::ap_check_cmd_context(ptr::from_ref(self.0).cast_mut(), sys::NOT_IN_HTACCESS)
        };
        (!refusal.is_null()).then(|| self.place())
    }

    /// The settings of the server being configured.
    fn server(self) -> &'static mut Server {
        // SAFETY: it has this module's settings, which one thread at a time uses (R4), and for the length of a call only.
        unsafe { &mut *server(self.0.server) }
    }

    /// The settings for the child processes, where they may be set.
    fn main_server(self) -> Result<&'static mut Server, String> {
        // SAFETY: the function reads the live structure; an error is a string in its pool.
        let refusal = unsafe {
            sys::ap_check_cmd_context(ptr::from_ref(self.0).cast_mut(), sys::GLOBAL_ONLY)
        };
        if refusal.is_null() {
            // SAFETY: the server being configured has this module's settings, which one thread at a time uses (R4).
            Ok(unsafe { &mut *server(self.0.server) })
        } else {
            // SAFETY: see above.
            Err(unsafe { CStr::from_ptr(refusal) }.to_string_lossy().into_owned())
        }
    }

    /// Warns of the directive, but on one of the two passes only that a start makes over the configuration, and not each
    /// time that a request makes httpd read a .htaccess file.
    fn warn_once(self, tag: &str, line: &str) {
        // SAFETY: httpd answers this with a number.
        let state = unsafe { sys::ap_state_query(sys::AP_SQ_MAIN_STATE as c_int) } as u32;
        let level = match state {
            sys::AP_SQ_MS_CREATE_PRE_CONFIG if !super::is_configtest() => return,
            sys::AP_SQ_MS_RUN_MPM => Level::Debug,
            _ => Level::Warn,
        };
        let place = self.place();
        // SAFETY: the server is live while it is being configured (R4).
        unsafe { log::server(self.0.server, level, format_args!("{tag}: {place}: {line}")) };
    }
}

/// Calls the setter of a directive. Its error becomes httpd's, in the pool of the configuration.
///
/// # Safety
/// - `parms` and `section` are what httpd calls a directive's function with, and `words` its arguments.
unsafe fn set(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    words: &[*const c_char],
) -> *const c_char {
    let failed = c"an internal error while reading the directive".as_ptr();
    boundary(failed, || {
        // SAFETY: the caller's word: the structure is live while the directive is read.
        let parms = unsafe { &*parms };
        // SAFETY: the caller's word: the section was made by create_dir, and nothing else uses it (R4).
        let section = unsafe { &mut *section.cast::<Section>() };
        // SAFETY: `command` put a setter of static life there.
        let setter = unsafe { *(*parms.cmd).cmd_data.cast::<Setter>() };
        // SAFETY: arguments are strings; one that is optional may be NULL.
        let word = |&word: &*const c_char| unsafe {
            (!word.is_null()).then(|| CStr::from_ptr(word).to_string_lossy())
        };
        let words: Vec<Cow<'_, str>> = words.iter().filter_map(word).collect();
        let words: Vec<&str> = words.iter().map(|word| &**word).collect();
        section.is_set = true;
        let Err(message) = setter(Parms(parms), section, &words) else { return ptr::null() };
        // SAFETY: the directive's name is of static life.
        let name = unsafe { CStr::from_ptr((*parms.cmd).name) }.to_string_lossy();
        let message = CString::new(format!("{name}: {message}")).unwrap_or_default();
        // SAFETY: the pool lives while the configuration is read, and copies the string.
        unsafe { sys::apr_pstrdup(parms.pool, message.as_ptr()) }
    })
}

unsafe extern "C" fn cmd_one(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    word: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, for a directive of the table.
    unsafe { set(parms, section, &[word]) }
}

unsafe extern "C" fn cmd_two(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    first: *const c_char,
    second: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, for a directive of the table.
    unsafe { set(parms, section, &[first, second]) }
}

unsafe extern "C" fn cmd_flag(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    on: c_int,
) -> *const c_char {
    let word = if on == 0 { c"Off" } else { c"On" };
    // SAFETY: called by httpd, for a directive of the table.
    unsafe { set(parms, section, &[word.as_ptr()]) }
}

/// Makes a section's settings, which live as long as `pool`.
pub(super) unsafe extern "C" fn create_dir(
    pool: *mut sys::apr_pool_t,
    _dir: *mut c_char,
) -> *mut c_void {
    boundary(ptr::null_mut(), || register(pool, Section::default()))
}

/// Merges an outer section with one inside it. If one of them sets nothing the result is the other one itself, as most often:
/// httpd merges several times per request.
pub(super) unsafe extern "C" fn merge_dir(
    pool: *mut sys::apr_pool_t,
    outer: *mut c_void,
    inner: *mut c_void,
) -> *mut c_void {
    boundary(ptr::null_mut(), || {
        // SAFETY: httpd passes sections that create_dir or merge_dir made; while sections are merged nobody writes
        // to them (R4). What is given back lives as long as the result has to: both sections outlive the request, or
        // are of the configuration as the result is.
        let (outside, inside) = unsafe { (&*outer.cast::<Section>(), &*inner.cast::<Section>()) };
        if !inside.is_set {
            return outer;
        }
        if !outside.is_set {
            return inner;
        }
        let of_endpoint = if inside.has_endpoint() { inside } else { outside };
        let Section { plugin, bridge, .. } = of_endpoint.clone();
        let settings = outside.settings.merge(&inside.settings);
        register(pool, Section { is_set: true, settings, plugin, bridge })
    })
}

/// Makes a server's settings, which live as long as `pool`.
pub(super) unsafe extern "C" fn create_server(
    pool: *mut sys::apr_pool_t,
    _server: *mut sys::server_rec,
) -> *mut c_void {
    boundary(ptr::null_mut(), || register(pool, Server::default()))
}

/// Checks what the directives mean together: an expression needs a list of what it may lead to, and a backend has to take
/// its options.
///
/// # Safety
/// - `main` is the main server, after the whole configuration was read.
pub(super) unsafe fn check(main: *const sys::server_rec) -> Result<(), String> {
    // SAFETY: the caller's word: the vectors have sections of this module, made by create_dir or merge_dir.
    let defaults = |server: *const sys::server_rec| unsafe {
        &*sys::ap_get_module_config((*server).lookup_defaults, module()).cast::<Section>()
    };
    let mut next = main;
    while !next.is_null() {
        // SAFETY: the caller's word; the settings were made by create_server.
        for (section, place) in unsafe { &(*server(next)).expressions } {
            // SAFETY: the section was being read when it was noted, and lives as long as the configuration.
            let sections = [unsafe { &**section }, defaults(next), defaults(main)];
            if sections.iter().all(|section| section.settings.bridge.allow.is_none()) {
                return Err(format!(
                    "WS0428: {place} has an expression: name the peers that it may lead to with \
                     WebSocketBridgeAllow in the same section or for the whole server"
                ));
            }
        }
        // SAFETY: as above.
        for (discovery, place) in unsafe { &(*server(next)).discoveries } {
            discovery.open().map_err(|e| format!("WS0429: {place}: {e}"))?;
        }
        // SAFETY: the caller's word: each server's `next` is another one or NULL.
        next = unsafe { (*next).next };
    }
    Ok(())
}

/// What the backends, open since [`check`], see wrong with their options: warnings that say where they are named.
///
/// # Safety
/// - As for [`check`].
pub(super) unsafe fn doubts(main: *const sys::server_rec) -> Vec<String> {
    let mut doubts = Vec::new();
    let mut next = main;
    while !next.is_null() {
        // SAFETY: `next` is the main server or one behind it, whose settings were made by create_server.
        for (discovery, place) in unsafe { &(*server(next)).discoveries } {
            doubts.extend(discovery.doubt().map(|doubt| format!("WS0425: {place}: {doubt}")));
        }
        // SAFETY: each server's `next` is another one or NULL.
        next = unsafe { (*next).next };
    }
    doubts
}

/// The section that applies to a request.
pub(super) fn section(r: Request<'_>) -> &Section {
    // SAFETY: httpd has loaded the module, whose handler this is.
    unsafe { section_of(r, module()) }
}

/// The section of one of our modules that applies to a request.
///
/// # Safety
/// - httpd has loaded `module`, and its sections are made by [`create_dir`].
pub(super) unsafe fn section_of(r: Request<'_>, module: *const sys::module) -> &Section {
    // SAFETY: every vector of the configuration has a section of the module, made by create_dir or merge_dir; it lives
    // at least as long as the request and does not change any more.
    unsafe { &*r.dir_config(module).cast::<Section>() }
}

/// The settings of a server; those for the child processes are the main server's.
///
/// # Safety
/// - `server` is live and its configuration was made with this module loaded.
pub(super) unsafe fn server(server: *const sys::server_rec) -> *mut Server {
    // SAFETY: the caller's word.
    unsafe { sys::ap_get_module_config((*server).module_config, module()) }.cast()
}

/// Gives settings to a pool, which drops them when it is cleared: with its last reference a plugin is unloaded.
fn register<S>(pool: *mut sys::apr_pool_t, settings: S) -> *mut c_void {
    let settings: *mut c_void = Box::into_raw(Box::new(settings)).cast();
    let (now, in_child) = (Some(cleanup::<S> as _), Some(sys::apr_pool_cleanup_null as _));
    // SAFETY: the callers got the pool from httpd; the cleanup runs once, when nobody uses the settings any more.
    unsafe { sys::apr_pool_cleanup_register(pool, settings, now, in_child) };
    settings
}

unsafe extern "C" fn cleanup<S>(settings: *mut c_void) -> sys::apr_status_t {
    boundary(0, || {
        // SAFETY: `register` made it from a Box, and a cleanup runs once.
        drop(unsafe { Box::from_raw(settings.cast::<S>()) });
        0
    })
}
