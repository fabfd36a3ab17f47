//! What each directive does with its words: they become a value in the section, or a sentence that says what was expected.

use std::{ffi::CString, time::Duration};

use super::{
    super::{
        bridge::{Discovery, Source},
        expression::Expression,
    },
    parms::Parms,
    section::{Section, Target},
    words::{ARGUMENTS, choice, duration, number, size},
};
use crate::{
    bridge::{Address, address::Pattern, framing, settings::Protocol, websocksy},
    channel::{Replay, name, store},
    limits::workers::Share,
    plugin::Plugin,
    proto::{
        handshake::{self, OriginCheck},
        is_token_byte,
    },
    settings::{self, AddressLimit, Limit, MessageTimeout, Origins, Settings},
};

pub(super) fn handler(
    parms: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let [library, init] = words else { return Err(ARGUMENTS.into()) };
    let path = parms.server_root_relative(library);
    let path = path.ok_or_else(|| format!("'{library}' is not a path that can be resolved"))?;
    let symbol = CString::new(*init).map_err(|e| e.to_string())?;
    let plugin = Plugin::load(&path, &symbol).map_err(|e| {
        format!("cannot use function '{init}' of library {}: {e}", path.to_string_lossy())
    })?;
    if section.set_plugin(plugin)? {
        let line =
            "it takes the place of the WebSocketHandler before it in the same section: remove one";
        parms.warn_once("WS0432", line);
    }
    Ok(())
}

pub(super) fn max_message_size(
    parms: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let (settings, size) = (&mut section.settings, size(words)?);
    match parms.place_in_htaccess() {
        Some(place) => settings.htaccess.max_message = Some((size, place)),
        None => settings.max_message = Some(size),
    }
    Ok(())
}

pub(super) fn max_message_size_old(
    parms: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let line = "it is deprecated: use its new name, WebSocketMaxMessageSize";
    parms.warn_once("WS0401", line);
    max_message_size(parms, section, words)
}

pub(super) fn origin_check(
    parms: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
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

pub(super) fn trusted_origin(
    parms: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    for word in words {
        if let Some(warning) = handshake::check_trusted(word)? {
            parms.warn_once("WS0424", &warning);
        }
        let trusted = &mut origins(parms, section).trusted;
        trusted.get_or_insert_default().push((*word).to_owned());
    }
    Ok(())
}

pub(super) fn max_connections_per_ip(
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
pub(super) fn limit(parms: Parms<'_>, words: &[&str]) -> Result<Option<Limit>, String> {
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

pub(super) fn worker_share(
    parms: Parms<'_>,
    _: &mut Section,
    words: &[&str],
) -> Result<(), String> {
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

pub(super) fn message_timeout(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
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

pub(super) fn compression_takeover(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let choices = [
        ("None", (false, false)),
        ("Server", (true, false)),
        ("Client", (false, true)),
        ("Both", (true, true)),
    ];
    section.settings.compression.takeover = Some(choice(words, &choices)?);
    Ok(())
}

pub(super) fn compression_window_bits(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let server = number(words.first(), 9, 15)?;
    let client = number(words.last(), 9, 15)?;
    section.settings.compression.window_bits = Some((server as u8, client as u8));
    Ok(())
}

pub(super) fn bridge(
    parms: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    let source = if word.contains("%{") {
        Source::Expression(parms.expression(word)?)
    } else {
        no_reference(word)?;
        Source::Fixed(parms.absolute(Address::parse(word)?)?)
    };
    section.set_bridge(source)
}

/// Refuses `$1`, which some directives replace by what the section's pattern has found, but these do not.
pub(super) fn no_reference(word: &str) -> Result<(), String> {
    let is_reference = |pair: &[u8]| pair[0] == b'$' && pair[1].is_ascii_digit();
    let Some(at) = word.as_bytes().windows(2).position(is_reference) else { return Ok(()) };
    Err(format!(
        "'{word}' has {}, which is not replaced here: name the group, as in <LocationMatch \
         \"^/vnc/(?<port>59[0-9][0-9])$\">, and write 'WebSocketBridge \"tcp://127.0.0.1:%{{env:MATCH_PORT}}\"', with \
         'WebSocketBridgeAllow tcp://127.0.0.1:5900-5999'",
        &word[at..at + 2]
    ))
}

pub(super) fn bridge_backend(
    parms: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let name = words.first().ok_or(ARGUMENTS)?;
    let parallel = match words.get(1) {
        Some(word) => choice(&[word], &[("Serial", false), ("Parallel", true)])?,
        None => false,
    };
    let discovery = Discovery::new((*name).to_owned(), parms.server_root()?, parallel);
    parms.server().discoveries.push((discovery.clone(), parms.place()));
    section.set_bridge(Source::Backend(discovery))
}

pub(super) fn bridge_option(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let [key, value] = words else { return Err(ARGUMENTS.into()) };
    let Some(Target::Bridge(Source::Backend(discovery))) = &section.target else {
        return Err("the option belongs to no backend: name it before, in the same section, with \
                    WebSocketBridgeBackend"
            .into());
    };
    discovery.add(key, value);
    Ok(())
}

pub(super) fn bridge_config(
    parms: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
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

pub(super) fn bridge_allow(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    for word in words {
        no_reference(word)?;
        let pattern = Pattern::parse(word)?;
        section.bridge.allow.get_or_insert_default().push(pattern);
    }
    Ok(())
}

pub(super) fn bridge_framing(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let name = words.first().ok_or(ARGUMENTS)?;
    let config = words.get(1).copied();
    framing::make(name, config)?;
    section.bridge.framing = Some(((*name).to_owned(), config.map(str::to_owned)));
    Ok(())
}

pub(super) fn bridge_protocol(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    section.bridge.protocol = Some(match *words.first().ok_or(ARGUMENTS)? {
        "*" => Protocol::First,
        word if word.eq_ignore_ascii_case("none") => Protocol::None,
        word if is_token(word) => Protocol::Named(word.to_owned()),
        word => return Err(format!("'{word}' is no subprotocol, nor * or none")),
    });
    Ok(())
}

/// A token of HTTP (RFC 9110 §5.6.2), which the name of a subprotocol is.
pub(super) fn is_token(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(is_token_byte)
}

pub(super) fn bridge_connect_timeout(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let time = duration(words)?;
    if time.is_zero() {
        return Err(format!("0 leaves a peer no time: expected {}", settings::DURATION));
    }
    section.bridge.connect_timeout = Some(time);
    Ok(())
}

pub(super) fn channel(parms: Parms<'_>, words: &[&str]) -> Result<Expression, String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    let is_reference = |pair: &[u8]| pair[0] == b'$' && pair[1].is_ascii_digit();
    if word.as_bytes().windows(2).any(is_reference) {
        return Err(format!(
            "'{word}' has a reference as $1, which is not replaced here: name the group, as in <LocationMatch \
             \"^/live/(?<room>[a-z0-9]+)$\">, and write 'WebSocketChannel \"room/%{{env:MATCH_ROOM}}\"'"
        ));
    }
    if !word.contains("%{") {
        name::check(word).map_err(|e| format!("'{word}' cannot be a channel's name: {e}"))?;
    }
    parms.expression(word)
}

pub(super) fn channel_replay(
    _: Parms<'_>,
    section: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let word = words.first().ok_or(ARGUMENTS)?;
    let replay = if word.eq_ignore_ascii_case("None") {
        None
    } else if word.eq_ignore_ascii_case("All") {
        Some(Replay::All)
    } else {
        let wrong = |_| format!("'{word}' is neither None, nor All, nor a number from 1 to 65535");
        Some(Replay::Last(number(Some(word), 1, u16::MAX).map_err(wrong)?.into()))
    };
    section.channel.replay = Some(replay);
    Ok(())
}

pub(super) fn channel_memory(
    parms: Parms<'_>,
    _: &mut Section,
    words: &[&str],
) -> Result<(), String> {
    let size = size(words)?;
    let (least, most) = store::SIZES;
    if !(least..=most).contains(&size) {
        return Err("expected a size from 1M to 4G".into());
    }
    parms.main_server()?.channel_memory = Some(size);
    Ok(())
}
