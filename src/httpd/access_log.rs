//! The access log's line for the end of a connection whose request is long gone.
//!
//! A detached connection has its first line when httpd's worker lets go of it. When the conversation is over, a request is
//! put together from what was kept and run through httpd's own logging, so every format works: `%D` is the whole
//! duration, `%I` and `%O` are the bytes of the conversation on the wire, and the notes tell the rest.
//!
//! The line is written on a thread of the service. What must not be done there is avoided: the client's name is looked up
//! before, on httpd's thread, and where the MPM has no threads only httpd's own loggers are run.

use core::{
    ffi::{CStr, c_char, c_int},
    ptr, slice,
};
use std::sync::Arc;

use super::{
    connection::Connection,
    is_threaded,
    request::{Request, Table},
    sys, tls, tree,
    upgrade::note_summary,
};
use crate::{driver::service::Finished, plugin::headers::Headers};

/// The modules of httpd whose part in logging may be done on any thread. Others need not be made for threads where the MPM
/// has none, as mod_perl is not.
const LOGGERS: [&CStr; 2] = [c"mod_log_config.c", c"mod_logio.c"];

/// Whether httpd's logging may be used from our threads. mod_log_config's buffers have no lock where the MPM has no
/// threads.
pub(super) fn is_possible() -> bool {
    is_threaded() || !tree::has(&["BufferedLogs On"])
}

/// What is kept of a request.
pub(super) struct Record {
    server: *mut sys::server_rec,
    headers: Arc<Headers>,
    /// The rest that is text, in one block of memory, under names of our own; and under mod_ssl's names its variables.
    words: Headers,
    /// What the client was answered.
    status: c_int,
    time: sys::apr_time_t,
    connection_id: i64,
    client_port: u16,
    local_port: u16,
}

/// What is kept of a request that is text.
const LINE: &CStr = c"request line";
const URI: &CStr = c"uri";
const ARGS: &CStr = c"args";
const HOST: &CStr = c"host";
const USER: &CStr = c"user";
const CLIENT: &CStr = c"client";
/// The client's name, if it has one and HostnameLookups is on.
const CLIENT_NAME: &CStr = c"client name";
const LOCAL: &CStr = c"local";

// SAFETY: the raw pointer is a server, which lives as long as the child process and does not change.
unsafe impl Send for Record {}

impl Record {
    /// What the line at the end of this request's connection needs. May ask the DNS, as httpd does for its own line.
    pub(super) fn of(r: Request<'_>, headers: Arc<Headers>) -> Self {
        let remote_host = sys::REMOTE_HOST as i32;
        // SAFETY: request::R1; the result is NULL or a string of the request or its connection (R2).
        let name = unsafe { sys::ap_get_useragent_host(r.as_ptr(), remote_host, ptr::null_mut()) };
        // SAFETY: request::R1.
        let rec = unsafe { &*r.as_ptr() };
        // SAFETY: request::R1.
        let connection = unsafe { &*rec.connection };
        let own = r.and_previous().last().unwrap_or(r.as_ptr());
        // SAFETY: request::R1. `%U` is the path of the client's own request, if that was redirected.
        let uri = unsafe { (*own).uri };
        let words = [
            (LINE, rec.the_request.cast_const()),
            (URI, uri.cast_const()),
            (ARGS, rec.args.cast_const()),
            (HOST, rec.hostname),
            (USER, rec.user.cast_const()),
            (CLIENT, rec.useragent_ip.cast_const()),
            (CLIENT_NAME, name),
            (LOCAL, connection.local_ip.cast_const()),
        ];
        let words = words.into_iter().filter(|(_, word)| !word.is_null());
        // SAFETY: request::R2: all of them are strings of the request or its connection.
        let words = words.map(|(name, word)| (name, unsafe { CStr::from_ptr(word) }));
        let port = |address: *const sys::apr_sockaddr_t| {
            // SAFETY: request::R1: an address is NULL or live.
            unsafe { address.as_ref() }.map(|a| a.port)
        };
        Self {
            server: rec.server,
            headers,
            words: Headers::copy(words.chain(tls::variables(r))).0,
            status: rec.status,
            time: rec.request_time,
            connection_id: connection.id,
            client_port: port(rec.useragent_addr).unwrap_or_default(),
            local_port: port(connection.local_addr).unwrap_or_default(),
        }
    }

    /// Writes the line, unless that cannot be done from this thread.
    pub(super) fn log(self, finished: &Finished) {
        if !is_possible() {
            return;
        }
        let mut pool = ptr::null_mut();
        // SAFETY: the result is a live pointer; a pool without a parent may be used by this thread alone.
        let status = unsafe {
            sys::apr_pool_create_ex(&raw mut pool, ptr::null_mut(), None, ptr::null_mut())
        };
        if status == sys::APR_SUCCESS as i32 {
            // SAFETY: the pool was just made, and is destroyed when nothing uses it any more.
            unsafe {
                self.log_in(pool, finished);
                sys::apr_pool_destroy(pool);
            }
        }
    }

    /// # Safety
    /// - `pool` is live and used by this thread only.
    unsafe fn log_in(&self, pool: *mut sys::apr_pool_t, finished: &Finished) {
        // SAFETY: the pool is live and ours, as this function demands. What is made in it lives until the pool goes, and
        // nobody else knows it (R5).
        unsafe {
            let connection = self.connection_rec(pool);
            let rec = self.request_rec(pool, connection);
            let r = Request::from_ptr(ptr::NonNull::new_unchecked(rec));
            for (name, value) in self.headers.iter() {
                r.set(Table::HeadersIn, name, value);
            }
            for (name, value) in self.words.iter().filter(|(name, _)| tls::VARIABLES.contains(name))
            {
                sys::apr_table_set((*rec).subprocess_env, name.as_ptr(), value.as_ptr());
            }
            note_summary(r, &finished.summary);
            prepare_logio(connection);
            let connection = Connection::from_ptr(ptr::NonNull::new_unchecked(connection));
            let (received, sent) = (finished.received as i64, finished.summary.bytes_out as i64);
            super::count_bytes(connection, received, sent);
            if is_threaded() {
                sys::ap_run_log_transaction(rec);
            } else {
                run_loggers(rec);
            }
        }
    }

    /// What logging looks at of the connection.
    ///
    /// # Safety
    /// - As for [`log_in`](Self::log_in).
    unsafe fn connection_rec(&self, pool: *mut sys::apr_pool_t) -> *mut sys::conn_rec {
        // SAFETY: the pool is live, as this function demands. The record consists of integers and pointers, for which zero
        // is a value that httpd itself starts from. The server lives as long as the process (R3).
        unsafe {
            let connection = zeroed::<sys::conn_rec>(pool);
            (*connection).pool = pool;
            (*connection).base_server = self.server;
            (*connection).conn_config = sys::ap_create_conn_config(pool);
            (*connection).notes = sys::apr_table_make(pool, 1);
            (*connection).id = self.connection_id as _;
            (*connection).keepalive = sys::ap_conn_keepalive_e_AP_CONN_CLOSE;
            let (client, local) = (self.word(CLIENT), self.word(LOCAL));
            ((*connection).client_ip, (*connection).local_ip) = (client, local);
            (*connection).client_addr = address(client, self.client_port, pool);
            (*connection).local_addr = address(local, self.local_port, pool);
            // Not NULL, or httpd would look it up; empty stands for a look-up that failed.
            let name = self.words.get(CLIENT_NAME).unwrap_or_default();
            (*connection).remote_host = name.as_ptr().cast_mut();
            connection
        }
    }

    /// What logging looks at of the request.
    ///
    /// # Safety
    /// - As for [`log_in`](Self::log_in), and `connection` was made in the same pool.
    unsafe fn request_rec(
        &self,
        pool: *mut sys::apr_pool_t,
        connection: *mut sys::conn_rec,
    ) -> *mut sys::request_rec {
        // SAFETY: as for the connection's record.
        unsafe {
            let rec = zeroed::<sys::request_rec>(pool);
            (*rec).pool = pool;
            (*rec).connection = connection;
            (*rec).server = self.server;
            (*rec).per_dir_config = (*self.server).lookup_defaults;
            (*rec).request_config = sys::ap_create_request_config(pool);
            for table in [
                &raw mut (*rec).headers_in,
                &raw mut (*rec).headers_out,
                &raw mut (*rec).err_headers_out,
                &raw mut (*rec).trailers_in,
                &raw mut (*rec).trailers_out,
                &raw mut (*rec).notes,
                &raw mut (*rec).subprocess_env,
            ] {
                *table = sys::apr_table_make(pool, 4);
            }
            (*rec).the_request = self.word(LINE);
            (*rec).uri = self.word(URI);
            (*rec).unparsed_uri = self.word(URI);
            (*rec).args = self.word(ARGS);
            (*rec).hostname = self.word(HOST);
            (*rec).user = self.word(USER);
            (*rec).method = c"GET".as_ptr();
            (*rec).method_number = sys::M_GET as i32;
            (*rec).protocol = c"HTTP/1.1".as_ptr().cast_mut();
            (*rec).proto_num = 1001;
            (*rec).status = self.status;
            (*rec).request_time = self.time;
            (*rec).useragent_ip = (*connection).client_ip;
            (*rec).useragent_addr = (*connection).client_addr;
            (*rec).useragent_host = (*connection).remote_host;
            rec
        }
    }

    /// One of the words that were kept; NULL if there is none of that name.
    fn word(&self, name: &CStr) -> *mut c_char {
        self.words.get(name).map_or(ptr::null(), CStr::as_ptr).cast_mut()
    }
}

/// Runs the log_transaction hooks of [`LOGGERS`] in their order.
///
/// # Safety
/// - `rec` is a live request.
unsafe fn run_loggers(rec: *mut sys::request_rec) {
    // SAFETY: the result is NULL or an array, which does not change once httpd has read its configuration.
    let Some(hooks) = (unsafe { sys::ap_hook_get_log_transaction().as_ref() }) else { return };
    let (first, count) =
        (hooks.elts.cast::<sys::ap_LINK_log_transaction_t>(), hooks.nelts as usize);
    // SAFETY: APR_IMPLEMENT_EXTERNAL_HOOK_BASE (apr_hooks.h) makes an array of so many of these, at least one.
    let hooks = unsafe { slice::from_raw_parts(first, count) };
    for hook in hooks.iter().filter(|hook| !hook.szName.is_null()) {
        // SAFETY: the name is that of the module, a string as long as the module is loaded.
        let name = unsafe { CStr::from_ptr(hook.szName) };
        if let Some(function) = hook.pFunc.filter(|_| LOGGERS.contains(&name)) {
            // SAFETY: the request is live, as this function demands, and the function is a hook for requests.
            unsafe { function(rec) };
        }
    }
}

/// An address as httpd has it, made from its numbers: no name is looked up. NULL without an IP.
///
/// # Safety
/// - `ip` is NULL or a string, and `pool` is live.
unsafe fn address(
    ip: *const c_char,
    port: u16,
    pool: *mut sys::apr_pool_t,
) -> *mut sys::apr_sockaddr_t {
    let mut address = ptr::null_mut();
    if !ip.is_null() {
        // SAFETY: the string and the pool are live, as this function demands.
        unsafe {
            // A family that is left open makes the resolver ask the kernel for all of the machine's addresses.
            let is_v6 = CStr::from_ptr(ip).to_bytes().contains(&b':');
            let family = if is_v6 { libc::AF_INET6 } else { libc::AF_INET };
            sys::apr_sockaddr_info_get(&raw mut address, ip, family, port, 0, pool);
        }
    }
    address
}

/// Memory for a `T`, all zero.
///
/// # Safety
/// - `pool` is live.
unsafe fn zeroed<T>(pool: *mut sys::apr_pool_t) -> *mut T {
    // SAFETY: the pool is live, as this function demands; a pool's memory is aligned for any C type.
    unsafe {
        let memory = sys::apr_palloc(pool, size_of::<T>());
        ptr::write_bytes(memory.cast::<T>(), 0, 1);
        memory.cast()
    }
}

/// Gives the connection what mod_logio keeps for each one, and without which its formats would read NULL.
///
/// # Safety
/// - `connection` is live, with a configuration vector of its own.
unsafe fn prepare_logio(connection: *mut sys::conn_rec) {
    /// Counters, of which mod_logio has three or four of eight bytes.
    const ROOM: usize = 128;
    // SAFETY: the connection is live, as this function demands; the name lives for the call, and the module as long as
    // the process. Zero is what mod_logio starts from.
    unsafe {
        let logio = sys::ap_find_linked_module(c"mod_logio.c".as_ptr());
        if !logio.is_null() {
            let counters = zeroed::<[u8; ROOM]>((*connection).pool);
            sys::ap_set_module_config((*connection).conn_config, logio, counters.cast());
        }
    }
}
