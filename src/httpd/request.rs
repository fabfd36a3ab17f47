//! httpd's request as a Rust value: the getters and setters that the handler needs.
//!
//! Rules of httpd on which the SAFETY notes of this folder rely:
//! - **R1** A request_rec, its connection, its pools and its tables live until the handler has returned, and only the
//!   thread that runs the handler touches them meanwhile.
//! - **R2** Strings in tables and records are NUL-terminated and live as long as the pool of their record.
//! - **R3** A server_rec and the configuration live until the child process ends.
//! - **R4** Configuration is read, merged and cleaned up by one thread at a time, except for .htaccess files, whose
//!   sections belong to the request that reads them.
//! - **R5** A conn_rec, its pool, its filters and its configuration vector live until its pre_close_connection hooks have
//!   returned, and only the thread that runs its hooks and its handler touches them meanwhile; but for
//!   `aborted`, which mod_http2 sets for a stream from the thread of its client's connection.

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    marker::PhantomData,
    ptr::NonNull,
};
use std::{net::SocketAddr, time::Duration};

use super::{connection::Connection, sys};

/// A request that a handler was called for.
#[derive(Clone, Copy)]
pub(super) struct Request<'r> {
    ptr: NonNull<sys::request_rec>,
    _life: PhantomData<&'r sys::request_rec>,
}

/// One of a request's header tables.
#[derive(Clone, Copy)]
pub(super) enum Table {
    /// `headers_in`
    HeadersIn,
    /// `headers_out`
    HeadersOut,
    /// `err_headers_out`: also sent with errors.
    ErrHeadersOut,
    /// `notes`, which LogFormat shows with `%{…}n`.
    Notes,
}

impl<'r> Request<'r> {
    /// # Safety
    /// - `ptr` is a live request, and `'r` does not outlast the handler that was called with it.
    pub(super) unsafe fn from_ptr(ptr: NonNull<sys::request_rec>) -> Self {
        Self { ptr, _life: PhantomData }
    }

    pub(super) fn as_ptr(self) -> *mut sys::request_rec {
        self.ptr.as_ptr()
    }

    fn rec(self) -> &'r sys::request_rec {
        // SAFETY: R1. Fields are read one by one while nothing writes to the record.
        unsafe { &*self.ptr.as_ptr() }
    }

    pub(super) fn connection(self) -> Connection<'r> {
        // SAFETY: R1: a request has a connection, which lives as long as it.
        unsafe { Connection::from_ptr(NonNull::new_unchecked(self.rec().connection)) }
    }

    pub(super) fn server(self) -> *mut sys::server_rec {
        self.rec().server
    }

    /// `Timeout` of its server.
    pub(super) fn timeout(self) -> Duration {
        // SAFETY: a request's server is live (R3). The value is in microseconds.
        Duration::from_micros(unsafe { (*self.server()).timeout }.unsigned_abs())
    }

    /// The connection's number in its child process, which httpd gives again when it has let go of the connection.
    pub(super) fn connection_id(self) -> i64 {
        self.connection().id()
    }

    /// The address that httpd takes for the client's, also for access control.
    pub(super) fn client_ip(self) -> &'r CStr {
        string(self.rec().useragent_ip).unwrap_or(c"?")
    }

    /// The address at the other end of the connection.
    pub(super) fn connection_ip(self) -> &'r CStr {
        string(self.connection().client_ip()).unwrap_or(c"?")
    }

    /// Answers with a short text of a media type, which nobody is to keep.
    pub(super) fn answer(self, status: u32, media_type: &'static CStr, body: &str) -> c_int {
        self.set(Table::ErrHeadersOut, c"Cache-Control", c"no-store");
        // SAFETY: R1; the type is a literal, and the body lives for the call.
        unsafe {
            (*self.as_ptr()).status = status as c_int;
            sys::ap_set_content_type(self.as_ptr(), media_type.as_ptr());
            sys::ap_rwrite(body.as_ptr().cast(), body.len() as c_int, self.as_ptr());
        }
        sys::HOOK_OK
    }

    /// The connection serves no further request.
    pub(super) fn close_afterwards(self) {
        // SAFETY: R1, and R5 of its connection.
        unsafe {
            (*self.rec().connection).keepalive = sys::ap_conn_keepalive_e_AP_CONN_CLOSE;
        }
    }

    /// The addresses of the client, as httpd takes it, and of this end of its connection.
    pub(super) fn addresses(self) -> Option<(SocketAddr, SocketAddr)> {
        let address = |ip: *const c_char, address: *const sys::apr_sockaddr_t| {
            let ip = string(ip)?.to_str().ok()?.parse().ok()?;
            // SAFETY: R1: it is NULL or live.
            Some(SocketAddr::new(ip, unsafe { address.as_ref() }?.port))
        };
        let connection = self.connection();
        let client = address(self.rec().useragent_ip, self.rec().useragent_addr)?;
        Some((client, address(connection.local_ip(), connection.local_addr())?))
    }

    /// The same with its port.
    pub(super) fn client(self) -> String {
        let ip = self.client_ip().to_string_lossy();
        // SAFETY: R1; a request has an address of its client, of which the port is read.
        let port = unsafe { self.rec().useragent_addr.as_ref() }.map_or(0, |a| a.port);
        format!("{ip}:{port}")
    }

    /// Whether it is the request of a client, and not one that httpd makes on its behalf.
    pub(super) fn is_main(self) -> bool {
        self.rec().main.is_null()
    }

    /// Whether it is that, as the client has sent it, and not where another one was redirected to.
    pub(super) fn is_initial(self) -> bool {
        self.is_main() && self.rec().prev.is_null()
    }

    pub(super) fn handler(self) -> Option<&'r CStr> {
        string(self.rec().handler)
    }

    pub(super) fn uri(self) -> &'r CStr {
        string(self.rec().uri).unwrap_or(c"?")
    }

    /// The request's target as the client sent it.
    pub(super) fn unparsed_uri(self) -> &'r CStr {
        string(self.rec().unparsed_uri).unwrap_or(c"")
    }

    /// What is behind the ? of its target.
    pub(super) fn query(self) -> Option<&'r CStr> {
        string(self.rec().args)
    }

    /// httpd's number of its method.
    pub(super) fn method(self) -> u32 {
        self.rec().method_number.unsigned_abs()
    }

    pub(super) fn is_get(self) -> bool {
        self.rec().method_number == sys::M_GET as c_int && self.rec().header_only == 0
    }

    /// Major and minor version of HTTP.
    pub(super) fn http_version(self) -> (u32, u32) {
        let number = self.rec().proto_num.unsigned_abs();
        (number / 1000, number % 1000)
    }

    /// Path and query, as the client wrote them.
    pub(super) fn target(self) -> &'r CStr {
        let uri = &raw const self.rec().parsed_uri;
        // SAFETY: R1; the result is a string in the request's pool.
        let path =
            unsafe { sys::apr_uri_unparse(self.rec().pool, uri, sys::APR_URI_UNP_OMITSITEPART) };
        string(path).unwrap_or(c"/")
    }

    /// Scheme, host and port of the request, as `UseCanonicalName` and `UseCanonicalPhysicalPort` have them. With
    /// `UseCanonicalName DNS` the host is asked of the DNS.
    pub(super) fn origin(self) -> (&'r CStr, &'r CStr, u16) {
        // SAFETY: R1; httpd's core answers this hook with a literal.
        let scheme = string(unsafe { sys::ap_run_http_scheme(self.as_ptr()) }).unwrap_or(c"http");
        // SAFETY: R1; the result is a string of the request, its connection or its server (R2).
        let host = string(unsafe { sys::ap_get_server_name(self.as_ptr()) }).unwrap_or(c"");
        // SAFETY: R1.
        let port = unsafe { sys::ap_get_server_port(self.as_ptr()) };
        (scheme, host, port)
    }

    /// The request itself, and those that httpd has redirected to it (RewriteRule in a folder, ErrorDocument), up to the
    /// client's own.
    pub(super) fn and_previous(self) -> impl Iterator<Item = *mut sys::request_rec> {
        // SAFETY: R1: `prev` is NULL or a request that lives as long, in the same pool.
        let previous = |&r: &*mut sys::request_rec| unsafe { (*r).prev };
        core::iter::successors(Some(self.as_ptr()), move |r| {
            Some(previous(r)).filter(|previous| !previous.is_null())
        })
    }

    /// The request that this one was made of by rewriting, and not to show an error (ErrorDocument).
    pub(super) fn rewritten_from(self) -> Option<Self> {
        let before = NonNull::new(self.rec().prev)?;
        // SAFETY: R1: the request before lives as long, in the same pool.
        let before = unsafe { Self::from_ptr(before) };
        (before.rec().status == sys::HTTP_OK as c_int).then_some(before)
    }

    /// From here on the request has no body to read and no response to write, and no request follows it: its filters step
    /// aside, so that httpd neither waits for the one nor sends the other. httpd ends each request of a redirection, and
    /// would send a response for each.
    pub(super) fn leave_http(self) {
        for rec in self.and_previous() {
            // SAFETY: R1; the filters put in place are the connection's own.
            unsafe {
                let connection = (*rec).connection;
                (*rec).input_filters = (*connection).input_filters;
                (*rec).proto_input_filters = (*connection).input_filters;
                (*rec).output_filters = (*connection).output_filters;
                (*rec).proto_output_filters = (*connection).output_filters;
                (*rec).eos_sent = 1;
                (*connection).keepalive = sys::ap_conn_keepalive_e_AP_CONN_CLOSE;
            }
        }
    }

    /// Sets a variable of the environment that `CustomLog … env=` asks, which looks at the client's own request.
    pub(super) fn set_for_log(self, name: &CStr) {
        for rec in self.and_previous() {
            // SAFETY: R1; the name lives for the call, which copies it and the literal.
            unsafe {
                sys::apr_table_set((*rec).subprocess_env, name.as_ptr(), c"1".as_ptr());
            }
        }
    }

    fn table(self, table: Table) -> *mut sys::apr_table_t {
        let rec = self.rec();
        match table {
            Table::HeadersIn => rec.headers_in,
            Table::HeadersOut => rec.headers_out,
            Table::ErrHeadersOut => rec.err_headers_out,
            Table::Notes => rec.notes,
        }
    }

    /// The first value of a field.
    pub(super) fn get(self, table: Table, key: &CStr) -> Option<&'r CStr> {
        // SAFETY: R1; the key lives for the call.
        string(unsafe { sys::apr_table_get(self.table(table), key.as_ptr()) })
    }

    /// Sets a field; both strings are copied.
    pub(super) fn set(self, table: Table, key: &CStr, value: &CStr) {
        // SAFETY: R1; both strings live for the call.
        unsafe { sys::apr_table_set(self.table(table), key.as_ptr(), value.as_ptr()) };
    }

    /// Adds a field, beside those of the same name; both strings are copied.
    pub(super) fn add(self, table: Table, key: &CStr, value: &CStr) {
        // SAFETY: R1; both strings live for the call.
        unsafe { sys::apr_table_add(self.table(table), key.as_ptr(), value.as_ptr()) };
    }

    /// Adds a value to those that a field has, unless it is among them; both strings are copied.
    pub(super) fn merge(self, table: Table, key: &CStr, value: &CStr) {
        let before = self.get(table, key).map_or(&b""[..], CStr::to_bytes);
        let is_it = |part: &[u8]| part.trim_ascii().eq_ignore_ascii_case(value.to_bytes());
        if !before.split(|&b| b == b',').any(is_it) {
            // SAFETY: R1; both strings live for the call.
            unsafe { sys::apr_table_merge(self.table(table), key.as_ptr(), value.as_ptr()) };
        }
    }

    /// Sets a variable of the request's environment; both strings are copied.
    pub(super) fn set_env(self, name: &CStr, value: &CStr) {
        // SAFETY: R1; both strings live for the call.
        unsafe {
            sys::apr_table_set(self.rec().subprocess_env, name.as_ptr(), value.as_ptr());
        }
    }

    /// Removes all fields. Their strings live on.
    pub(super) fn clear(self, table: Table) {
        // SAFETY: R1.
        unsafe { sys::apr_table_clear(self.table(table)) };
    }

    pub(super) fn unset(self, table: Table, key: &CStr) {
        // SAFETY: R1; the key lives for the call.
        unsafe { sys::apr_table_unset(self.table(table), key.as_ptr()) };
    }

    /// Puts the fields of `from` over those of the same name in `into`.
    pub(super) fn overlay(self, into: Table, from: Table) {
        let flags = sys::APR_OVERLAP_TABLES_SET;
        // SAFETY: R1; both tables are of this request, so their strings live equally long.
        unsafe { sys::apr_table_overlap(self.table(into), self.table(from), flags) };
    }

    /// All fields of a table.
    pub(super) fn fields(self, table: Table) -> Vec<(&'r CStr, &'r CStr)> {
        // SAFETY: R1; apr_table_elts gives the array that the table is made of.
        let array = unsafe { &*sys::apr_table_elts(self.table(table)) };
        if array.elts.is_null() {
            return Vec::new();
        }
        let (first, count) = (array.elts.cast::<sys::apr_table_entry_t>(), array.nelts as usize);
        // SAFETY: the array of a table holds `nelts` entries.
        let entries = unsafe { core::slice::from_raw_parts(first, count) };
        entries.iter().filter_map(|e| Some((string(e.key)?, string(e.val)?))).collect()
    }

    /// A loaded module's section for this request.
    ///
    /// # Safety
    /// - httpd has loaded `module`.
    pub(super) unsafe fn dir_config(self, module: *const sys::module) -> *mut c_void {
        // SAFETY: R1; the vector is the request's own, and has a place for each loaded module.
        unsafe { sys::ap_get_module_config(self.rec().per_dir_config, module) }
    }
}

/// A string of httpd's; `None` for NULL.
fn string<'r>(string: *const c_char) -> Option<&'r CStr> {
    // SAFETY: R2. The callers give it to a Request's lifetime, within which its pool lives.
    (!string.is_null()).then(|| unsafe { CStr::from_ptr(string) })
}
