//! httpd's connection as a Rust value: what a handler, or a hook of the connection's, may do with it.

use core::{marker::PhantomData, ptr::NonNull};

use super::sys;

/// A connection that a handler or a hook was called for (rule R5 in request.rs).
#[derive(Clone, Copy)]
pub(super) struct Connection<'c> {
    ptr: NonNull<sys::conn_rec>,
    _life: PhantomData<&'c sys::conn_rec>,
}

impl<'c> Connection<'c> {
    /// # Safety
    /// - `ptr` is a live connection that the calling thread owns, as long as `'c`.
    pub(super) unsafe fn from_ptr(ptr: NonNull<sys::conn_rec>) -> Self {
        Self { ptr, _life: PhantomData }
    }

    pub(super) fn as_ptr(self) -> *mut sys::conn_rec {
        self.ptr.as_ptr()
    }

    pub(super) fn rec(self) -> &'c sys::conn_rec {
        // SAFETY: R5. Fields are read one by one while nothing writes to the record.
        unsafe { &*self.ptr.as_ptr() }
    }

    /// Whether it is a stream of another one (HTTP/2).
    pub(super) fn is_stream(self) -> bool {
        !self.rec().master.is_null()
    }

    /// Whether the client is known to be gone: httpd marks a connection that could not be written to.
    pub(super) fn is_aborted(self) -> bool {
        self.rec().aborted != 0
    }

    /// Has httpd close it without a word to the client, and without waiting for one.
    pub(super) fn abort(self) {
        // SAFETY: R5.
        unsafe { (*self.as_ptr()).aborted = 1 };
    }

    /// What a module keeps in it; null if that is nothing.
    ///
    /// # Safety
    /// - httpd has loaded `module`.
    pub(super) unsafe fn config(self, module: *const sys::module) -> *mut core::ffi::c_void {
        // SAFETY: R5; the vector is the connection's own, and has a place for each loaded module.
        unsafe { sys::ap_get_module_config(self.rec().conn_config, module) }
    }

    /// A brigade of its own, as long as its pool.
    pub(super) fn brigade(self) -> *mut sys::apr_bucket_brigade {
        let rec = self.rec();
        // SAFETY: R5: pool and allocator are the connection's.
        unsafe { sys::apr_brigade_create(rec.pool, rec.bucket_alloc) }
    }
}
