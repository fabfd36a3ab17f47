//! The directives: their table, the setters below it, and the life of a section's settings.
//!
//! Each setter turns words into a value of [`Settings`] or into a sentence that says what was expected; httpd puts the
//! file and the line in front of it.

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
};
use std::{ffi::CString, sync::Arc};

use super::{boundary, log, sys, wrap::Request};
use crate::{
    config::{self, Settings},
    journal::Level,
    plugin::Plugin,
    proto::handshake::OriginCheck,
};

/// What one section of the configuration (server, Directory, Location, .htaccess file) sets.
#[derive(Clone, Default)]
pub(super) struct Section {
    pub(super) settings: Settings,
    pub(super) plugin: Option<Arc<Plugin>>,
}

/// A table that httpd reads; it never changes.
#[repr(transparent)]
pub(super) struct Commands([sys::command_rec; 12]);

// SAFETY: httpd only reads the table, and nothing in it changes.
unsafe impl Sync for Commands {}

impl Commands {
    pub(super) const fn as_ptr(&self) -> *const sys::command_rec {
        self.0.as_ptr()
    }
}

/// Legal in server configuration and in sections, but not in .htaccess files.
const ADMIN: u32 = sys::RSRC_CONF | sys::ACCESS_CONF;
/// Legal in .htaccess files too, with `AllowOverride AuthConfig`.
const ANYONE: u32 = sys::RSRC_CONF | sys::OR_AUTHCFG;

type Take1 = unsafe extern "C" fn(*mut sys::cmd_parms, *mut c_void, *const c_char) -> *const c_char;
type Take2 = unsafe extern "C" fn(
    *mut sys::cmd_parms,
    *mut c_void,
    *const c_char,
    *const c_char,
) -> *const c_char;
type Flag = unsafe extern "C" fn(*mut sys::cmd_parms, *mut c_void, c_int) -> *const c_char;

const fn command(
    name: &'static CStr,
    func: sys::cmd_func,
    args_how: sys::cmd_how,
    req_override: u32,
    help: &'static CStr,
) -> sys::command_rec {
    sys::command_rec {
        name: name.as_ptr(),
        func,
        cmd_data: ptr::null_mut(),
        req_override: req_override as c_int,
        args_how,
        errmsg: help.as_ptr(),
    }
}

const fn take1(name: &'static CStr, f: Take1, legal: u32, help: &'static CStr) -> sys::command_rec {
    command(name, sys::cmd_func { take1: Some(f) }, sys::cmd_how_TAKE1, legal, help)
}

const fn flag(name: &'static CStr, f: Flag, legal: u32, help: &'static CStr) -> sys::command_rec {
    command(name, sys::cmd_func { flag: Some(f) }, sys::cmd_how_FLAG, legal, help)
}

pub(super) static COMMANDS: Commands = Commands([
    command(
        c"WebSocketHandler",
        sys::cmd_func { take2: Some(cmd_handler as Take2) },
        sys::cmd_how_TAKE2,
        ADMIN,
        c"the plugin's shared library and its init function",
    ),
    take1(
        c"WebSocketMaxMessageSize",
        cmd_max_message_size,
        ANYONE,
        c"the largest message a client may send, in bytes; k, M and G are understood",
    ),
    take1(
        c"MaxMessageSize",
        cmd_max_message_size_old,
        ANYONE,
        c"the old name of WebSocketMaxMessageSize",
    ),
    take1(
        c"WebSocketSendQueueLimit",
        cmd_send_queue_limit,
        ADMIN,
        c"how much may wait for a slow client before senders are held up, in bytes",
    ),
    take1(c"WebSocketOriginCheck", cmd_origin_check, ANYONE, c"Off, Same or Trusted"),
    command(
        c"WebSocketTrustedOrigin",
        sys::cmd_func { take1: Some(cmd_trusted_origin as Take1) },
        sys::cmd_how_ITERATE,
        ANYONE,
        c"origins for WebSocketOriginCheck Trusted, such as https://www.example.com",
    ),
    flag(
        c"WebSocketAllowReservedStatusCodes",
        cmd_allow_reserved,
        ANYONE,
        c"On to let clients close with codes that are reserved for future use",
    ),
    flag(
        c"WebSocketCompression",
        cmd_compression,
        ADMIN,
        c"On to compress messages for clients that offer permessage-deflate",
    ),
    take1(
        c"WebSocketCompressionLevel",
        cmd_compression_level,
        ADMIN,
        c"the effort of compressing, 1 (fast) to 9 (small)",
    ),
    take1(
        c"WebSocketCompressionMinSize",
        cmd_compression_min_size,
        ADMIN,
        c"the shortest message worth compressing, in bytes",
    ),
    take1(
        c"WebSocketCompressionContextTakeover",
        cmd_compression_takeover,
        ADMIN,
        c"None, Server, Client or Both: who keeps the compression context between messages",
    ),
    // httpd knows the end of the table by its name of NULL.
    sys::command_rec {
        name: ptr::null(),
        func: sys::cmd_func { no_args: None },
        cmd_data: ptr::null_mut(),
        req_override: 0,
        args_how: sys::cmd_how_RAW_ARGS,
        errmsg: ptr::null(),
    },
]);

/// Runs a setter: its error becomes httpd's error message, in the pool of the configuration.
///
/// # Safety
/// - `parms` and `section` are what httpd calls a directive's function with.
unsafe fn set(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    f: impl FnOnce(&mut Section) -> Result<(), String>,
) -> *const c_char {
    let failed: *const c_char = c"an internal error while reading the directive".as_ptr();
    boundary(failed, || {
        // SAFETY: the caller's word: httpd passes the section that create_dir made, which nothing else uses (R4).
        let section = unsafe { &mut *section.cast::<Section>() };
        match f(section) {
            Ok(()) => ptr::null(),
            Err(message) => {
                // SAFETY: the caller's word: parms is live, with the directive it is about.
                let name = unsafe { CStr::from_ptr((*(*parms).cmd).name) };
                let message = format!("{}: {message}", name.to_string_lossy());
                let message = CString::new(message).unwrap_or_default();
                // SAFETY: the pool lives as long as the configuration is being read, and copies the string.
                unsafe { sys::apr_pstrdup((*parms).pool, message.as_ptr()) }
            }
        }
    })
}

/// An argument as text; what is not UTF-8 is shown as such in the error message.
///
/// # Safety
/// - `word` is an argument that httpd passes to a directive's function.
unsafe fn text<'w>(word: *const c_char) -> std::borrow::Cow<'w, str> {
    // SAFETY: the caller's word: arguments of directives that take them are strings of the configuration's pool.
    unsafe { CStr::from_ptr(word) }.to_string_lossy()
}

unsafe extern "C" fn cmd_handler(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    library: *const c_char,
    init: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, which passes what it passes to every directive.
    unsafe {
        set(parms, section, |section| {
            let path = sys::ap_server_root_relative((*parms).pool, library);
            if path.is_null() {
                return Err(format!("'{}' is not a path that can be resolved", text(library)));
            }
            let (path, init) = (CStr::from_ptr(path), CStr::from_ptr(init));
            let plugin = Plugin::load(path, init).map_err(|e| {
                let (path, init) = (path.to_string_lossy(), init.to_string_lossy());
                format!("cannot use function '{init}' of library {path}: {e}")
            })?;
            section.plugin = Some(plugin);
            Ok(())
        })
    }
}

unsafe extern "C" fn cmd_max_message_size(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    word: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, which passes what it passes to every directive.
    unsafe {
        set(parms, section, |section| {
            section.settings.max_message = Some(size(&text(word))?);
            Ok(())
        })
    }
}

unsafe extern "C" fn cmd_max_message_size_old(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    word: *const c_char,
) -> *const c_char {
    // SAFETY: httpd answers these with numbers.
    let (state, mode) = unsafe {
        let query = |code: u32| sys::ap_state_query(code as c_int) as u32;
        (query(sys::AP_SQ_MAIN_STATE), query(sys::AP_SQ_RUN_MODE))
    };
    // At a start the configuration is read twice; once is enough to be told.
    if state != sys::AP_SQ_MS_CREATE_PRE_CONFIG || mode == sys::AP_SQ_RM_CONFIG_TEST {
        let line = "WS0401: MaxMessageSize is deprecated: use its new name, WebSocketMaxMessageSize";
        // SAFETY: parms and its server are live while the configuration is read.
        unsafe { log::server((*parms).server, Level::Warn, format_args!("{line}")) };
    }
    // SAFETY: the arguments are passed on as they came.
    unsafe { cmd_max_message_size(parms, section, word) }
}

unsafe extern "C" fn cmd_send_queue_limit(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    word: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, which passes what it passes to every directive.
    unsafe {
        set(parms, section, |section| {
            section.settings.send_queue = Some(size(&text(word))?);
            Ok(())
        })
    }
}

fn size(word: &str) -> Result<usize, String> {
    config::size(word).ok_or_else(|| format!("'{word}' is not {}", config::SIZE))
}

unsafe extern "C" fn cmd_origin_check(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    word: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, which passes what it passes to every directive.
    unsafe {
        set(parms, section, |section| {
            let word = text(word);
            let checks = [
                ("Off", OriginCheck::Off),
                ("Same", OriginCheck::Same),
                ("Trusted", OriginCheck::Trusted),
            ];
            let check = checks.iter().find(|(name, _)| name.eq_ignore_ascii_case(&word));
            let (_, check) =
                check.ok_or_else(|| format!("'{word}' is none of Off, Same and Trusted"))?;
            section.settings.origin_check = Some(*check);
            Ok(())
        })
    }
}

unsafe extern "C" fn cmd_trusted_origin(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    word: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, which passes what it passes to every directive.
    unsafe {
        set(parms, section, |section| {
            let word = text(word);
            let host = word.split_once("://").map(|(_, host)| host);
            if word != "null" && host.is_none_or(|h| h.is_empty() || h.contains(['/', '?', '#'])) {
                return Err(format!(
                    "'{word}' is not an origin: expected a scheme and a host, and a port if it is \
                     not the scheme's own, but no path (https://www.example.com, http://[::1]:8080)"
                ));
            }
            let origins = section.settings.trusted_origins.get_or_insert_default();
            origins.push(word.into_owned());
            Ok(())
        })
    }
}

unsafe extern "C" fn cmd_allow_reserved(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    on: c_int,
) -> *const c_char {
    // SAFETY: called by httpd, which passes what it passes to every directive.
    unsafe {
        set(parms, section, |section| {
            section.settings.allow_reserved = Some(on != 0);
            Ok(())
        })
    }
}

unsafe extern "C" fn cmd_compression(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    on: c_int,
) -> *const c_char {
    // SAFETY: called by httpd, which passes what it passes to every directive.
    unsafe {
        set(parms, section, |section| {
            section.settings.compression.enabled = Some(on != 0);
            Ok(())
        })
    }
}

unsafe extern "C" fn cmd_compression_level(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    word: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, which passes what it passes to every directive.
    unsafe {
        set(parms, section, |section| {
            section.settings.compression.level = Some(number(&text(word), 1, 9)?);
            Ok(())
        })
    }
}

unsafe extern "C" fn cmd_compression_min_size(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    word: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, which passes what it passes to every directive.
    unsafe {
        set(parms, section, |section| {
            section.settings.compression.min_size = Some(size(&text(word))?);
            Ok(())
        })
    }
}

unsafe extern "C" fn cmd_compression_takeover(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    word: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, which passes what it passes to every directive.
    unsafe {
        set(parms, section, |section| {
            let word = text(word);
            let choices = [
                ("None", (false, false)),
                ("Server", (true, false)),
                ("Client", (false, true)),
                ("Both", (true, true)),
            ];
            let choice = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(&word));
            let (_, choice) =
                choice.ok_or_else(|| format!("'{word}' is none of None, Server, Client, Both"))?;
            section.settings.compression.takeover = Some(*choice);
            Ok(())
        })
    }
}

/// A whole number between two bounds.
fn number(word: &str, low: u8, high: u8) -> Result<u8, String> {
    let digits = word.bytes().all(|b| b.is_ascii_digit());
    let number = word.parse().ok().filter(|n| digits && (low..=high).contains(n));
    number.ok_or_else(|| format!("'{word}' is not a number from {low} to {high}"))
}

/// Makes a section's settings, which live as long as `pool`.
pub(super) unsafe extern "C" fn create_dir(
    pool: *mut sys::apr_pool_t,
    _dir: *mut c_char,
) -> *mut c_void {
    boundary(ptr::null_mut(), || register(pool, Section::default()))
}

/// Merges an outer section with one inside it.
pub(super) unsafe extern "C" fn merge_dir(
    pool: *mut sys::apr_pool_t,
    outer: *mut c_void,
    inner: *mut c_void,
) -> *mut c_void {
    boundary(ptr::null_mut(), || {
        // SAFETY: httpd passes sections that create_dir or merge_dir made; while sections are merged nobody writes
        // to them (R4).
        let outer = unsafe { &*outer.cast::<Section>() };
        // SAFETY: as above.
        let inner = unsafe { &*inner.cast::<Section>() };
        let plugin = inner.plugin.as_ref().or(outer.plugin.as_ref()).cloned();
        register(pool, Section { settings: outer.settings.merge(&inner.settings), plugin })
    })
}

/// Gives a section to a pool, which drops it when it is cleared: with its last reference a plugin is unloaded.
fn register(pool: *mut sys::apr_pool_t, section: Section) -> *mut c_void {
    let section: *mut c_void = Box::into_raw(Box::new(section)).cast();
    // SAFETY: the callers got the pool from httpd; the cleanup runs once, when nobody uses the section any more.
    unsafe {
        sys::apr_pool_cleanup_register(pool, section, Some(cleanup), Some(sys::apr_pool_cleanup_null));
    }
    section
}

unsafe extern "C" fn cleanup(section: *mut c_void) -> sys::apr_status_t {
    boundary(0, || {
        // SAFETY: `register` made it from a Box, and a cleanup runs once.
        drop(unsafe { Box::from_raw(section.cast::<Section>()) });
        0
    })
}

/// The section that applies to a request.
pub(super) fn section(r: Request<'_>) -> &Section {
    // SAFETY: every vector of the configuration has a section of this module, made by create_dir or merge_dir; it
    // lives at least as long as the request and does not change any more.
    unsafe { &*r.dir_config().cast::<Section>() }
}
