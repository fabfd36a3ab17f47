//! TLS connections that leave httpd: the module takes over the `SSL` that mod_ssl made.
//!
//! mod_ssl does the handshake, with its certificates, sessions and client certificates; then httpd lets go of the
//! connection and its memory, and the `SSL` lives on over a socket of ours ([`driver::tls`](crate::driver::tls)). All
//! that this needs is looked at before it begins, so that a connection for which anything is not as it should be is
//! served on httpd's thread, through httpd's filters:
//!
//! - OpenSSL's functions are there, as mod_ssl itself is linked with them ([`find`]);
//! - mod_ssl told of the `SSL` before the handshake ([`before_handshake`]), it belongs to this connection, and it reads
//!   through mod_ssl's filter;
//! - nobody follows it beyond the connection's end (no `SSLKEYLOGFILE`), and the session cache of its server is known to
//!   leave our threads alone ([`keep_from_cache`]).
//!
//! mod_ssl lets go of its own accord: it is told the end of the connection (an EOC bucket), as httpd would tell it next,
//! while the `SSL` is made to write nothing.

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    mem, ptr,
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering},
};
use std::sync::Arc;

use super::{boundary, connection::Connection, detach, request::Request, sys};
use crate::{
    driver::{
        openssl::{self, BioMethod, Context, OpenSsl, RemoveSession, Ssl},
        plain::{Early, Socket},
        tls::{self, Tls},
    },
    limits::memory::Claim,
};

/// `SSL_get_ex_data` gives mod_ssl's conn_rec at this index, which OpenSSL calls app data.
const CONNECTION: c_int = 0;
/// So many of the following ones are searched for a request.
const INDICES: c_int = 32;
/// What mod_ssl calls the BIO by which an `SSL` reads from its input filter.
const MOD_SSL_BIO: &CStr = c"APR input filter";

/// OpenSSL's functions, in httpd's configuration pool; null if they cannot be used.
static OPENSSL: AtomicPtr<OpenSsl> = AtomicPtr::new(ptr::null_mut());
/// The kind of our BIOs; null before the child begins.
static METHOD: AtomicPtr<BioMethod> = AtomicPtr::new(ptr::null_mut());
/// mod_ssl's callback for a session that is removed from its cache.
static REMOVE_SESSION: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
/// Some server's callback for that is another one. An `SSL` removes its session from the server that it was made for,
/// which is not known once the client has named another one.
static FOREIGN_CACHE: AtomicBool = AtomicBool::new(false);

fn openssl() -> Option<&'static OpenSsl> {
    // SAFETY: `find` stores a table that lives as long as the configuration, which a child has to its end (request::R3).
    unsafe { OPENSSL.load(Ordering::Acquire).as_ref() }
}

/// Registers for mod_ssl's optional hooks; without mod_ssl nobody calls them.
pub(super) fn register() {
    type Function = unsafe extern "C" fn();
    type BeforeHandshake = unsafe extern "C" fn(*mut sys::conn_rec, *mut Ssl, c_int) -> c_int;
    type ServerMade = unsafe extern "C" fn(
        *mut sys::server_rec,
        *mut sys::apr_pool_t,
        c_int,
        *mut Context,
    ) -> c_int;
    let (none, middle) = (ptr::null(), sys::APR_HOOK_MIDDLE as c_int);
    // SAFETY: mod_ssl_openssl.h declares both hooks with these types, and mod_ssl calls them with these; the names live as
    // long as the module.
    unsafe {
        let function = mem::transmute::<BeforeHandshake, Function>(before_handshake);
        let name = c"pre_handshake".as_ptr();
        sys::apr_optional_hook_add(name, Some(function), none, none, middle);
        let function = mem::transmute::<ServerMade, Function>(server_made);
        let name = c"init_server".as_ptr();
        sys::apr_optional_hook_add(name, Some(function), none, none, middle);
    }
}

/// Looks OpenSSL's functions up in what mod_ssl is linked with. `None` without mod_ssl; otherwise the reason if they cannot
/// be used.
///
/// # Safety
/// - `pool` is the configuration's pool, while httpd runs its post_config hooks.
pub(super) unsafe fn find(pool: *mut sys::apr_pool_t) -> Option<Result<(), String>> {
    unsafe extern "C" fn forget(_: *mut c_void) -> sys::apr_status_t {
        OPENSSL.store(ptr::null_mut(), Ordering::Release);
        METHOD.store(ptr::null_mut(), Ordering::Release);
        FOREIGN_CACHE.store(false, Ordering::Release);
        REMOVE_SESSION.store(ptr::null_mut(), Ordering::Release);
        sys::APR_SUCCESS as sys::apr_status_t
    }
    // SAFETY: the name lives for the call.
    let mod_ssl = unsafe { sys::ap_find_linked_module(c"mod_ssl.c".as_ptr()).as_ref() }?;
    if openssl().is_some() {
        return Some(Ok(()));
    }
    // A mod_ssl that is part of httpd has no library of its own.
    let mut library = libc::RTLD_DEFAULT;
    if !mod_ssl.dynamic_load_handle.is_null() {
        // SAFETY: httpd stores the library's handle there, which is live as long as the module is loaded.
        unsafe {
            sys::apr_os_dso_handle_get(&raw mut library, mod_ssl.dynamic_load_handle.cast());
        }
    }
    // SAFETY: the handle is that of mod_ssl's library, which is linked with OpenSSL's; what these have under OpenSSL's
    // names are its functions. httpd unloads mod_ssl when the configuration's pool is cleared, not before.
    let found = unsafe { OpenSsl::find(|name| libc::dlsym(library, name.as_ptr())) };
    let table = match found {
        Ok(table) => table,
        Err(reason) => return Some(Err(reason)),
    };
    for name in [IS_HTTPS, LOOK_UP] {
        // SAFETY: the name lives for the call.
        if unsafe { sys::apr_dynamic_fn_retrieve(name.as_ptr()) }.is_none() {
            return Some(Err(format!("it has no function {}", name.to_string_lossy())));
        }
    }
    // SAFETY: a pool's memory is aligned for any C type, as the table's pointers are. The cleanup runs before the
    // memory goes.
    unsafe {
        let memory = sys::apr_palloc(pool, size_of::<OpenSsl>()).cast::<OpenSsl>();
        memory.write(table);
        let nothing = Some(sys::apr_pool_cleanup_null as _);
        sys::apr_pool_cleanup_register(pool, ptr::null(), Some(forget), nothing);
        OPENSSL.store(memory, Ordering::Release);
    }
    Some(Ok(()))
}

/// A child begins.
pub(super) fn begin() {
    let method = openssl().and_then(tls::new_method);
    METHOD.store(method.map_or(ptr::null_mut(), NonNull::as_ptr), Ordering::Release);
}

/// mod_ssl has made the settings of a server: its init_server hook.
unsafe extern "C" fn server_made(
    _server: *mut sys::server_rec,
    pool: *mut sys::apr_pool_t,
    is_proxy: c_int,
    context: *mut Context,
) -> c_int {
    boundary((), || {
        // SAFETY: mod_ssl calls its hook from post_config, with the configuration's pool.
        if is_proxy == 0 && matches!(unsafe { find(pool) }, Some(Ok(()))) {
            // SAFETY: mod_ssl passes settings that no connection uses yet.
            unsafe { keep_from_cache(context) };
        }
    });
    sys::DECLINED
}

/// Has mod_ssl's session cache asked for nothing on our threads: OpenSSL removes a session when a connection fails, which a
/// client can bring about with one bad record, and the cache may be behind a lock of all children or a network. The session
/// that stays there ends with its time.
///
/// # Safety
/// - `context` is live, and no connection uses it yet.
unsafe fn keep_from_cache(context: *mut Context) {
    let Some(openssl) = openssl() else { return };
    // SAFETY: the settings are live, as this function demands.
    let Some(theirs) = (unsafe { (openssl.SSL_CTX_sess_get_remove_cb)(context) }) else { return };
    if ptr::fn_addr_eq(theirs, remove_session as RemoveSession) {
        return;
    }
    let theirs = theirs as *mut c_void;
    let (order, none) = (Ordering::AcqRel, ptr::null_mut());
    let known = REMOVE_SESSION.compare_exchange(none, theirs, order, Ordering::Acquire);
    if known.is_ok() || known == Err(theirs) {
        // SAFETY: as above; no connection uses them yet.
        unsafe { (openssl.SSL_CTX_sess_set_remove_cb)(context, Some(remove_session)) };
    } else {
        FOREIGN_CACHE.store(true, Ordering::Release);
    }
}

unsafe extern "C" fn remove_session(context: *mut Context, session: *mut c_void) {
    let theirs = REMOVE_SESSION.load(Ordering::Acquire);
    if !theirs.is_null() && !tls::is_at_work() {
        // SAFETY: `keep_from_cache` stored a function of this type.
        let theirs = unsafe { mem::transmute::<*mut c_void, RemoveSession>(theirs) };
        // SAFETY: OpenSSL's own call is passed on.
        unsafe { theirs(context, session) };
    }
}

/// A connection begins its handshake: mod_ssl's pre_handshake hook.
unsafe extern "C" fn before_handshake(
    connection: *mut sys::conn_rec,
    ssl: *mut Ssl,
    is_proxy: c_int,
) -> c_int {
    if let (0, Some(connection)) = (is_proxy, NonNull::new(connection)) {
        // SAFETY: mod_ssl passes a live connection that this thread owns, and the value is used within this call only.
        let connection = unsafe { Connection::from_ptr(connection) };
        // SAFETY: it passes the connection's SSL, which is freed when it lets go of the connection.
        boundary((), || unsafe { detach::remember(connection, ssl) });
    }
    sys::DECLINED
}

/// The names of mod_ssl's optional functions (mod_ssl.h).
const IS_HTTPS: &CStr = c"ssl_is_https";
const LOOK_UP: &CStr = c"ssl_var_lookup";

/// Whether mod_ssl has a connection in its hands.
pub(super) fn is_https(connection: Connection<'_>) -> bool {
    type IsHttps = unsafe extern "C" fn(*mut sys::conn_rec) -> c_int;
    // SAFETY: the name lives for the call.
    let Some(function) = (unsafe { sys::apr_dynamic_fn_retrieve(IS_HTTPS.as_ptr()) }) else {
        return false;
    };
    // SAFETY: mod_ssl.h declares the function with this type.
    let function = unsafe { mem::transmute::<unsafe extern "C" fn(), IsHttps>(function) };
    // SAFETY: R5.
    unsafe { function(connection.as_ptr()) != 0 }
}

/// What the access log may want to know of a TLS connection that is gone, by mod_ssl's names.
pub(super) const VARIABLES: [&CStr; 4] =
    [c"SSL_PROTOCOL", c"SSL_CIPHER", c"SSL_CLIENT_VERIFY", c"SSL_CLIENT_S_DN"];

/// Those of the variables that the request's connection has; none without TLS.
pub(super) fn variables(r: Request<'_>) -> Vec<(&'static CStr, &CStr)> {
    type LookUp = unsafe extern "C" fn(
        *mut sys::apr_pool_t,
        *mut sys::server_rec,
        *mut sys::conn_rec,
        *mut sys::request_rec,
        *mut c_char,
    ) -> *mut c_char;
    if !is_https(r.connection()) {
        return Vec::new();
    }
    // SAFETY: the name lives for the call.
    let Some(function) = (unsafe { sys::apr_dynamic_fn_retrieve(LOOK_UP.as_ptr()) }) else {
        return Vec::new();
    };
    // SAFETY: mod_ssl.h declares the function with this type.
    let function = unsafe { mem::transmute::<unsafe extern "C" fn(), LookUp>(function) };
    let (rec, connection) = (r.as_ptr(), r.connection());
    let look_up = |name: &'static CStr| {
        // SAFETY: the request is live (request::R1), and the name, which is not written to, lives as long as the module.
        let value = unsafe {
            function((*rec).pool, (*rec).server, connection.as_ptr(), rec, name.as_ptr().cast_mut())
        };
        // SAFETY: mod_ssl gives NULL or a string that lives as long as the pool (request::R2).
        let value = (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })?;
        (!value.is_empty()).then_some((name, value))
    };
    VARIABLES.into_iter().filter_map(look_up).collect()
}

/// A TLS connection that may be taken over.
pub(super) struct Takeover {
    openssl: &'static OpenSsl,
    method: NonNull<BioMethod>,
    ssl: NonNull<Ssl>,
    /// Where the `SSL` has requests, bit by bit.
    requests: u32,
}

impl Takeover {
    /// Sees whether the TLS connection of a request may be taken over, or says why not. Nothing is changed.
    pub(super) fn check(r: Request<'_>) -> Result<Self, &'static str> {
        let connection = r.connection();
        let openssl = openssl().ok_or("mod_ssl's TLS library, which cannot be used")?;
        let method = NonNull::new(METHOD.load(Ordering::Acquire));
        let method = method.ok_or("no memory for OpenSSL's BIO")?;
        let ssl = detach::remembered(connection);
        let ssl = NonNull::new(ssl).ok_or("mod_ssl, which did not tell of its SSL")?;
        // SAFETY: mod_ssl told of the SSL, and has it as long as it calls the connection https, as it does now.
        unsafe {
            let raw = ssl.as_ptr();
            if (openssl.SSL_get_ex_data)(raw, CONNECTION) != connection.as_ptr().cast() {
                return Err("an SSL that is another connection's");
            }
            if (openssl.SSL_is_init_finished)(raw) == 0 {
                return Err("a TLS handshake that goes on");
            }
            let bio = (openssl.SSL_get_rbio)(raw);
            if bio.is_null() || CStr::from_ptr((openssl.BIO_method_name)(bio)) != MOD_SSL_BIO {
                return Err("an SSL that does not read through mod_ssl");
            }
            let context = (openssl.SSL_get_SSL_CTX)(raw);
            if !(openssl.SSL_CTX_get_keylog_callback)(context).is_null() {
                return Err("SSLKEYLOGFILE");
            }
            let remove = (openssl.SSL_CTX_sess_get_remove_cb)(context);
            if FOREIGN_CACHE.load(Ordering::Acquire)
                || remove
                    .is_some_and(|remove| !ptr::fn_addr_eq(remove, remove_session as RemoveSession))
            {
                return Err("a session cache that is not mod_ssl's");
            }
        }
        let has_request = |index: &c_int| {
            // SAFETY: as above.
            let value = unsafe { (openssl.SSL_get_ex_data)(ssl.as_ptr(), *index) };
            !value.is_null() && r.and_previous().any(|rec| rec.cast() == value)
        };
        let places = (CONNECTION + 1..INDICES).filter(has_request);
        let requests = places.fold(0, |requests, index| requests | (1 << index));
        Ok(Self { openssl, method, ssl, requests })
    }

    /// Takes the connection over: mod_ssl lets go, and httpd has nothing to write to it any more. On failure it is lost.
    ///
    /// # Safety
    /// - `connection` is the one that was checked, and httpd is about to close it; its input
    ///   filters have been emptied, and httpd has read nothing since, as of any connection that is not kept alive.
    pub(super) unsafe fn take(
        self,
        connection: Connection<'_>,
        socket: Arc<Socket>,
        early: Early,
        claim: Claim,
    ) -> Result<Tls, &'static str> {
        unsafe extern "C" fn no_info(_: *const Ssl, _: c_int, _: c_int) {}
        unsafe extern "C" fn no_verify(_: c_int, _: *mut c_void) -> c_int {
            0
        }
        let Self { openssl, method, ssl, requests } = self;
        let raw = ssl.as_ptr();
        // SAFETY: R5, and what this function demands: mod_ssl still has its reference, from which ours is made.
        unsafe {
            let shutdown = (openssl.SSL_get_shutdown)(raw);
            if (openssl.SSL_up_ref)(raw) == 0 {
                return Err("OpenSSL gives no reference");
            }
            (openssl.SSL_set_quiet_shutdown)(raw, 1);
            let brigade = connection.brigade();
            let eoc = sys::ap_bucket_eoc_create(connection.bucket_alloc());
            sys::brigade_insert_tail(brigade, eoc);
            sys::ap_pass_brigade(connection.output_filters(), brigade);
            connection.abort();
            if is_https(connection) {
                (openssl.SSL_free)(raw);
                return Err("mod_ssl does not let go");
            }
            (openssl.SSL_set_quiet_shutdown)(raw, 0);
            (openssl.SSL_set_shutdown)(raw, shutdown);
            (openssl.SSL_set_ex_data)(raw, CONNECTION, ptr::null_mut());
            for index in (CONNECTION + 1..INDICES).filter(|index| requests & (1 << index) != 0) {
                (openssl.SSL_set_ex_data)(raw, index, ptr::null_mut());
            }
            // The callbacks of the SSL_CTX, which an absent one would fall back to, look at httpd's connection.
            (openssl.SSL_set_info_callback)(raw, Some(no_info));
            (openssl.SSL_set_verify)(raw, openssl::VERIFY_NONE, Some(no_verify));
            (openssl.SSL_set_options)(raw, openssl::OP_NO_RENEGOTIATION);
            let tls = Tls::new(openssl, method, ssl, socket, early, claim);
            tls.map_err(|_| "no memory for its BIO")
        }
    }
}
