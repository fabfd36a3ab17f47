//! OpenSSL as the module finds it in the running httpd: the functions that a TLS connection of our own needs.
//!
//! Nothing links to OpenSSL. The functions are those that mod_ssl itself is linked with, looked up when httpd has read its
//! configuration: another copy in the same process would not know mod_ssl's objects.
#![expect(unsafe_code, reason = "OpenSSL is C")]

use core::{
    ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void},
    mem,
    ptr::NonNull,
};

/// `SSL`: one TLS connection.
#[repr(C)]
#[derive(Debug)]
pub struct Ssl([u8; 0]);
/// `SSL_CTX`: the settings that connections share.
#[repr(C)]
#[derive(Debug)]
pub struct Context([u8; 0]);
/// `BIO`: where an `SSL` reads records from and writes them to.
#[repr(C)]
#[derive(Debug)]
pub struct Bio([u8; 0]);
/// `BIO_METHOD`: the functions of a kind of BIO.
#[repr(C)]
#[derive(Debug)]
pub struct BioMethod([u8; 0]);

/// `SSL_CTX_sess_set_remove_cb`'s callback.
pub type RemoveSession = unsafe extern "C" fn(*mut Context, *mut c_void);
/// `BIO_meth_set_read`'s function.
pub type BioRead = unsafe extern "C" fn(*mut Bio, *mut c_char, c_int) -> c_int;
/// `BIO_meth_set_write`'s function.
pub type BioWrite = unsafe extern "C" fn(*mut Bio, *const c_char, c_int) -> c_int;
/// `BIO_meth_set_ctrl`'s function.
pub type BioControl = unsafe extern "C" fn(*mut Bio, c_int, c_long, *mut c_void) -> c_long;
/// `BIO_meth_set_create`'s function.
pub type BioCreate = unsafe extern "C" fn(*mut Bio) -> c_int;

/// Declares the table of functions, and how it is filled.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions, under the names that OpenSSL's manual has them.
        #[expect(non_snake_case, reason = "OpenSSL's names")]
        #[expect(missing_docs, reason = "OpenSSL's manual has a page for each")]
        #[derive(Debug)]
        pub struct OpenSsl {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl OpenSsl {
            /// Looks all functions up; the name of the first that is missing.
            ///
            /// # Safety
            /// - What `look_up` gives for a name is OpenSSL's function of that name, or NULL.
            unsafe fn look_up(
                look_up: impl Fn(&CStr) -> *mut c_void,
            ) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        const NAME: &str = concat!(stringify!($name), "\0");
                        let name = CStr::from_bytes_with_nul(NAME.as_bytes()).unwrap_or_default();
                        let address = NonNull::new(look_up(name)).ok_or(stringify!($name))?;
                        // SAFETY: what `look_up` gives is OpenSSL's function of this name, as this one demands; the
                        // type is the one that OpenSSL's headers declare since 1.1.1 (SSL_set_options had an unsigned
                        // long then, which is as long on 64-bit systems).
                        unsafe {
                            mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) $(-> $result)?,
                            >(address.as_ptr())
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    BIO_clear_flags: fn(*mut Bio, c_int);
    BIO_get_data: fn(*mut Bio) -> *mut c_void;
    BIO_get_new_index: fn() -> c_int;
    BIO_meth_new: fn(c_int, *const c_char) -> *mut BioMethod;
    BIO_meth_set_create: fn(*mut BioMethod, BioCreate) -> c_int;
    BIO_meth_set_ctrl: fn(*mut BioMethod, BioControl) -> c_int;
    BIO_meth_set_read: fn(*mut BioMethod, BioRead) -> c_int;
    BIO_meth_set_write: fn(*mut BioMethod, BioWrite) -> c_int;
    BIO_method_name: fn(*const Bio) -> *const c_char;
    BIO_new: fn(*const BioMethod) -> *mut Bio;
    BIO_set_data: fn(*mut Bio, *mut c_void);
    BIO_set_flags: fn(*mut Bio, c_int);
    BIO_set_init: fn(*mut Bio, c_int);
    ERR_clear_error: fn();
    ERR_error_string_n: fn(c_ulong, *mut c_char, usize);
    ERR_peek_error: fn() -> c_ulong;
    OpenSSL_version: fn(c_int) -> *const c_char;
    OpenSSL_version_num: fn() -> c_ulong;
    SSL_CTX_get_keylog_callback: fn(*const Context) -> *const c_void;
    SSL_CTX_sess_get_remove_cb: fn(*mut Context) -> Option<RemoveSession>;
    SSL_CTX_sess_set_remove_cb: fn(*mut Context, Option<RemoveSession>);
    SSL_ctrl: fn(*mut Ssl, c_int, c_long, *mut c_void) -> c_long;
    SSL_free: fn(*mut Ssl);
    SSL_get_SSL_CTX: fn(*const Ssl) -> *mut Context;
    SSL_get_error: fn(*const Ssl, c_int) -> c_int;
    SSL_get_ex_data: fn(*const Ssl, c_int) -> *mut c_void;
    SSL_get_rbio: fn(*const Ssl) -> *mut Bio;
    SSL_get_shutdown: fn(*const Ssl) -> c_int;
    SSL_is_init_finished: fn(*const Ssl) -> c_int;
    SSL_read: fn(*mut Ssl, *mut c_void, c_int) -> c_int;
    SSL_set_bio: fn(*mut Ssl, *mut Bio, *mut Bio);
    SSL_set_ex_data: fn(*mut Ssl, c_int, *mut c_void) -> c_int;
    SSL_set_info_callback: fn(*mut Ssl, Option<unsafe extern "C" fn(*const Ssl, c_int, c_int)>);
    SSL_set_options: fn(*mut Ssl, u64) -> u64;
    SSL_set_quiet_shutdown: fn(*mut Ssl, c_int);
    SSL_set_read_ahead: fn(*mut Ssl, c_int);
    SSL_set_shutdown: fn(*mut Ssl, c_int);
    SSL_set_verify: fn(*mut Ssl, c_int, Option<unsafe extern "C" fn(c_int, *mut c_void) -> c_int>);
    SSL_shutdown: fn(*mut Ssl) -> c_int;
    SSL_up_ref: fn(*mut Ssl) -> c_int;
    SSL_write: fn(*mut Ssl, *const c_void, c_int) -> c_int;
}

/// `SSL_CTRL_MODE`, by which SSL_set_mode is a macro.
const CTRL_MODE: c_int = 33;
/// `BIO_TYPE_SOURCE_SINK`.
const BIO_TYPE_SOURCE_SINK: c_int = 0x0400;

/// `SSL_MODE_ENABLE_PARTIAL_WRITE`: a write may take one record's worth.
pub const MODE_PARTIAL_WRITE: c_uint = 0x1;
/// `SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER`: the same bytes may be offered again from elsewhere.
pub const MODE_MOVING_WRITE_BUFFER: c_uint = 0x2;
/// `SSL_MODE_AUTO_RETRY`: a read goes on behind a record that has no data for us.
pub const MODE_AUTO_RETRY: c_uint = 0x4;
/// `SSL_MODE_RELEASE_BUFFERS`: a connection at rest has no buffers.
pub const MODE_RELEASE_BUFFERS: c_uint = 0x10;
/// `SSL_OP_NO_RENEGOTIATION`.
pub const OP_NO_RENEGOTIATION: u64 = 1 << 30;
/// `SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN`.
pub const BOTH_SHUTDOWNS: c_int = 3;
/// `SSL_VERIFY_NONE`.
pub const VERIFY_NONE: c_int = 0;
/// `SSL_ERROR_WANT_READ`.
pub const ERROR_WANT_READ: c_int = 2;
/// `SSL_ERROR_WANT_WRITE`.
pub const ERROR_WANT_WRITE: c_int = 3;
/// `SSL_ERROR_ZERO_RETURN`: the client's close_notify.
pub const ERROR_ZERO_RETURN: c_int = 6;
/// `BIO_CTRL_FLUSH`.
pub const BIO_CTRL_FLUSH: c_int = 11;
/// `BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY`.
pub const BIO_RETRY_READ: c_int = 0x9;
/// `BIO_FLAGS_WRITE | BIO_FLAGS_SHOULD_RETRY`.
pub const BIO_RETRY_WRITE: c_int = 0xa;
/// `BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY`.
pub const BIO_RETRY: c_int = 0xf;

/// OpenSSL 1.1.1, the first with TLS 1.3.
const OLDEST: c_ulong = 0x1010_1000;

impl OpenSsl {
    /// Looks OpenSSL's functions up and sees whether they are of a version that is known; the reason if not.
    ///
    /// # Safety
    /// - What `look_up` gives for a name is the OpenSSL library's function of that name, or NULL; the library stays loaded
    ///   as long as the value is used.
    pub unsafe fn find(look_up: impl Fn(&CStr) -> *mut c_void) -> Result<Self, String> {
        // SAFETY: `look_up` is what this function demands, too.
        let found = unsafe { Self::look_up(look_up) }
            .map_err(|name| format!("its TLS library has no function {name}"))?;
        // SAFETY: the function has no preconditions.
        let name = unsafe { (found.OpenSSL_version)(0) };
        // SAFETY: it returns a literal.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        // SAFETY: the function has no preconditions.
        let version = unsafe { (found.OpenSSL_version_num)() };
        // LibreSSL and AWS-LC have these functions and numbers, too.
        if !name.starts_with("OpenSSL ") || version < OLDEST {
            return Err(format!("its TLS library is {name}; OpenSSL 1.1.1 or newer would do"));
        }
        Ok(found)
    }

    /// `SSL_set_mode`.
    ///
    /// # Safety
    /// - `ssl` is live and used by this thread only.
    pub unsafe fn set_mode(&self, ssl: *mut Ssl, mode: c_uint) {
        // SAFETY: `ssl` is live and ours, as this function demands.
        unsafe { (self.SSL_ctrl)(ssl, CTRL_MODE, mode as c_long, core::ptr::null_mut()) };
    }

    /// A new kind of BIO; `None` without memory.
    pub fn new_method(
        &self,
        name: &'static CStr,
        (read, write, control, create): (BioRead, BioWrite, BioControl, BioCreate),
    ) -> Option<NonNull<BioMethod>> {
        // SAFETY: the function has no preconditions.
        let index = unsafe { (self.BIO_get_new_index)() };
        // SAFETY: the name lives as long as the process.
        let method = unsafe { (self.BIO_meth_new)(index | BIO_TYPE_SOURCE_SINK, name.as_ptr()) };
        let method = NonNull::new(method)?;
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one reason covers all")]
        // SAFETY: the method was just made, and nobody else knows it.
        unsafe {
            (self.BIO_meth_set_read)(method.as_ptr(), read);
            (self.BIO_meth_set_write)(method.as_ptr(), write);
            (self.BIO_meth_set_ctrl)(method.as_ptr(), control);
            (self.BIO_meth_set_create)(method.as_ptr(), create);
        }
        Some(method)
    }

    /// The text of this thread's first error, which is taken note of.
    pub fn error(&self) -> String {
        let mut text = [0; 256];
        // SAFETY: the function has no preconditions.
        let code = unsafe { (self.ERR_peek_error)() };
        if code == 0 {
            return "no reason is known".to_owned();
        }
        // SAFETY: the buffer is live and as long as said; what is written ends with a NUL.
        unsafe { (self.ERR_error_string_n)(code, text.as_mut_ptr(), text.len()) };
        // SAFETY: the function has no preconditions.
        unsafe { (self.ERR_clear_error)() };
        // SAFETY: as above.
        unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned()
    }
}
