//! How httpd calls a directive: what it says about the one that it reads, and the way of its words to the setter.

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
};
use std::{
    borrow::Cow,
    ffi::CString,
    path::{Path, PathBuf},
};

use super::{
    super::{boundary, expression::Expression, is_configtest, log, sys},
    Setter,
    section::{Section, Server, server},
};
use crate::{bridge::Address, conn::log::Level};

/// What httpd says about the directive that it is reading.
#[derive(Clone, Copy)]
pub(super) struct Parms<'p>(&'p sys::cmd_parms);

impl Parms<'_> {
    /// A path that may be relative to ServerRoot.
    pub(super) fn server_root_relative(self, path: &str) -> Option<CString> {
        let path = CString::new(path).ok()?;
        // SAFETY: the pool lives while the configuration is read (R4); the result is NULL or a string in it.
        unsafe {
            let path = sys::ap_server_root_relative(self.0.pool, path.as_ptr());
            (!path.is_null()).then(|| CStr::from_ptr(path).to_owned())
        }
    }

    /// An expression of httpd's, which lives as long as the configuration.
    pub(super) fn expression(self, word: &str) -> Result<Expression, String> {
        // SAFETY: httpd reads a directive, whose pool is that of the configuration (R4).
        unsafe { Expression::parse(self.0, word) }
    }

    /// A name for the section being read that is the same in every child and after a restart.
    pub(super) fn section(self) -> String {
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
    pub(super) fn absolute(self, address: Address) -> Result<Address, String> {
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
    pub(super) fn server_root(self) -> Result<PathBuf, String> {
        let root = self.server_root_relative("").and_then(|root| root.into_string().ok());
        root.map(PathBuf::from).ok_or_else(|| "ServerRoot is no path that can be used".into())
    }

    /// Where the directive stands.
    pub(super) fn place(self) -> String {
        // SAFETY: the directive being read, its name and that of its file are live (R4).
        unsafe {
            let directive = &*self.0.directive;
            let name = CStr::from_ptr(directive.directive).to_string_lossy();
            let file = CStr::from_ptr(directive.filename).to_string_lossy();
            format!("{name} on line {} of {file}", directive.line_num)
        }
    }

    /// The same if that is in a .htaccess file.
    pub(super) fn place_in_htaccess(self) -> Option<String> {
        // SAFETY: the function reads the live structure (R4); an error is a string in its pool.
        let refusal = unsafe {
            sys::ap_check_cmd_context(ptr::from_ref(self.0).cast_mut(), sys::NOT_IN_HTACCESS)
        };
        (!refusal.is_null()).then(|| self.place())
    }

    /// The settings of the server being configured.
    pub(super) fn server(self) -> &'static mut Server {
        // SAFETY: it has this module's settings, which one thread at a time uses (R4), and for the length of a call only.
        unsafe { &mut *server(self.0.server) }
    }

    /// The settings for the child processes, where they may be set.
    pub(super) fn main_server(self) -> Result<&'static mut Server, String> {
        // SAFETY: the function reads the live structure; an error is a string in its pool.
        let refusal = unsafe {
            sys::ap_check_cmd_context(ptr::from_ref(self.0).cast_mut(), sys::GLOBAL_ONLY)
        };
        if refusal.is_null() {
            // SAFETY: the server being configured has this module's settings, which one thread at a time uses (R4).
            Ok(unsafe { &mut *server(self.0.server) })
        } else {
            // SAFETY: where ap_check_cmd_context refuses, its answer is a string in the configuration's pool.
            Err(unsafe { CStr::from_ptr(refusal) }.to_string_lossy().into_owned())
        }
    }

    /// Warns of the directive, but on one of the two passes only that a start makes over the configuration, and not each
    /// time that a request makes httpd read a .htaccess file.
    pub(super) fn warn_once(self, tag: &str, line: &str) {
        // SAFETY: httpd answers this with a number.
        let state = unsafe { sys::ap_state_query(sys::AP_SQ_MAIN_STATE as c_int) } as u32;
        let level = match state {
            sys::AP_SQ_MS_CREATE_PRE_CONFIG if !is_configtest() => return,
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
        // SAFETY: httpd passes it, as this function demands: the structure is live while the directive is read.
        let parms = unsafe { &*parms };
        // SAFETY: httpd passes it, as this function demands: the section was made by create_dir, and nothing else uses
        // it (R4).
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

pub(super) unsafe extern "C" fn cmd_one(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    word: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, for a directive of the table.
    unsafe { set(parms, section, &[word]) }
}

pub(super) unsafe extern "C" fn cmd_two(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    first: *const c_char,
    second: *const c_char,
) -> *const c_char {
    // SAFETY: called by httpd, for a directive of the table.
    unsafe { set(parms, section, &[first, second]) }
}

pub(super) unsafe extern "C" fn cmd_flag(
    parms: *mut sys::cmd_parms,
    section: *mut c_void,
    on: c_int,
) -> *const c_char {
    let word = if on == 0 { c"Off" } else { c"On" };
    // SAFETY: called by httpd, for a directive of the table.
    unsafe { set(parms, section, &[word.as_ptr()]) }
}
