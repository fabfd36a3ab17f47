//! httpd's connection as a Rust value: what a handler, or a hook of the connection's, may do with it.

use core::{marker::PhantomData, ptr::NonNull};
use std::os::fd::BorrowedFd;

use super::sys;
use crate::os::is_hung_up;

/// A connection that a handler or a hook was called for (rule R5 in request.rs).
#[derive(Clone, Copy)]
pub(super) struct Connection<'c> {
    ptr: NonNull<sys::conn_rec>,
    _life: PhantomData<&'c sys::conn_rec>,
}

impl Connection<'_> {
    /// # Safety
    /// - `ptr` is a live connection that the calling thread owns, as long as `'c`.
    pub(super) unsafe fn from_ptr(ptr: NonNull<sys::conn_rec>) -> Self {
        Self { ptr, _life: PhantomData }
    }

    pub(super) fn as_ptr(self) -> *mut sys::conn_rec {
        self.ptr.as_ptr()
    }

    /// Whether it is a stream of another one (HTTP/2).
    pub(super) fn is_stream(self) -> bool {
        !self.master().is_null()
    }

    /// Whether the client is known to be gone: httpd marks a connection that could not be written to.
    pub(super) fn is_aborted(self) -> bool {
        // SAFETY: R5. mod_http2 may write it meanwhile.
        unsafe { (&raw const (*self.as_ptr()).aborted).read_volatile() != 0 }
    }

    /// Whether the client has gone, as far as the kernel knows: it has ended its stream, or reset the connection. Of a
    /// stream mod_http2 knows.
    pub(super) fn is_gone(self) -> bool {
        if self.is_aborted() || self.is_stream() {
            return self.is_aborted();
        }
        let mut descriptor = -1;
        // SAFETY: R5; the socket is the connection's own.
        let status = unsafe {
            sys::apr_os_sock_get(&raw mut descriptor, sys::ap_get_conn_socket(self.as_ptr()))
        };
        if status != sys::APR_SUCCESS as i32 || descriptor < 0 {
            return true;
        }
        // SAFETY: it stays open as long as its connection is being served; event and worker close it at a stop, and what
        // is asked of a number that means nothing, or something else, by then does not matter any more.
        is_hung_up(unsafe { BorrowedFd::borrow_raw(descriptor) })
    }

    /// Has httpd close it without a word to the client, and without waiting for one.
    pub(super) fn abort(self) {
        // SAFETY: R5. mod_http2 may write it meanwhile.
        unsafe { (&raw mut (*self.as_ptr()).aborted).write_volatile(1) };
    }

    /// What a module keeps in it; null if that is nothing.
    ///
    /// # Safety
    /// - httpd has loaded `module`.
    pub(super) unsafe fn config(self, module: *const sys::module) -> *mut core::ffi::c_void {
        // SAFETY: R5; the vector is the connection's own, and has a place for each loaded module.
        unsafe { sys::ap_get_module_config((*self.as_ptr()).conn_config, module) }
    }

    /// A brigade of its own, as long as its pool.
    pub(super) fn brigade(self) -> *mut sys::apr_bucket_brigade {
        // SAFETY: R5: pool and allocator are the connection's.
        unsafe { sys::apr_brigade_create(self.pool(), self.bucket_alloc()) }
    }
}

/// Fields of the record, which are read one by one: httpd writes to others meanwhile.
macro_rules! fields {
    ($($(#[$doc:meta])+ $name:ident: $field:ident: $type:ty,)+) => {
        impl Connection<'_> {
            $($(#[$doc])+ pub(super) fn $name(self) -> $type {
                // SAFETY: R5.
                unsafe { (*self.as_ptr()).$field }
            })+
        }
    };
}

fields! {
    /// The connection's number in its child process.
    id: id: core::ffi::c_long,
    /// Its pool.
    pool: pool: *mut sys::apr_pool_t,
    /// The allocator of its buckets.
    bucket_alloc: bucket_alloc: *mut sys::apr_bucket_alloc_t,
    /// The first of its input filters.
    input_filters: input_filters: *mut sys::ap_filter_t,
    /// The first of its output filters.
    output_filters: output_filters: *mut sys::ap_filter_t,
    /// The connection that it is a stream of; null if it is none.
    master: master: *mut sys::conn_rec,
    /// Its notes.
    notes: notes: *mut sys::apr_table_t,
    /// The server that it came to.
    base_server: base_server: *mut sys::server_rec,
    /// Where modules keep what is theirs.
    conn_config: conn_config: *mut sys::ap_conf_vector_t,
    /// The IP of the other end, a string.
    client_ip: client_ip: *mut core::ffi::c_char,
    /// The IP of this end, a string.
    local_ip: local_ip: *mut core::ffi::c_char,
    /// The address of this end.
    local_addr: local_addr: *mut sys::apr_sockaddr_t,
}
