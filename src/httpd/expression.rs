//! Expressions of httpd's in our directives: what they make of a request.

use core::{ffi::CStr, ptr};
use std::ffi::CString;

use super::{request::Request, sys};

/// An expression with `%{…}` that gives a string.
#[derive(Clone, Copy)]
pub(super) struct Expression(*const sys::ap_expr_info_t);

impl Expression {
    /// # Safety
    /// - `parms` is what httpd calls a directive's function with. The result lives as long as its pool.
    pub(super) unsafe fn parse(parms: &sys::cmd_parms, text: &str) -> Result<Self, String> {
        let text = CString::new(text).map_err(|e| e.to_string())?;
        let mut error = ptr::null();
        // SAFETY: httpd reads a directive, as this function demands. httpd keeps pointers into the text, which is
        // therefore copied to the pool.
        let (info, error) = unsafe {
            let text = sys::apr_pstrdup(parms.pool, text.as_ptr());
            let flags = sys::AP_EXPR_FLAG_STRING_RESULT;
            let (error, index) = (&raw mut error, super::module_index());
            let info = sys::ap_expr_parse_cmd_mi(parms, text, flags, error, None, index);
            (info, (!(*error).is_null()).then(|| CStr::from_ptr(*error)))
        };
        match error {
            Some(error) => Err(format!("the expression is wrong: {}", error.to_string_lossy())),
            None => Ok(Self(info)),
        }
    }

    /// The expression's value for a request.
    pub(super) fn evaluate(self, r: Request<'_>) -> Result<String, String> {
        String::from_utf8(self.bytes(r)?).map_err(|_| "its value is not UTF-8".into())
    }

    /// The same as bytes.
    pub(super) fn bytes(self, r: Request<'_>) -> Result<Vec<u8>, String> {
        let mut error = ptr::null();
        // SAFETY: the expression lives as long as the configuration (request::R3), the request for the call
        // (request::R1), and the results, strings or NULL, as long as the request.
        unsafe {
            let value = sys::ap_expr_str_exec(r.as_ptr(), self.0, &raw mut error);
            if !error.is_null() {
                return Err(CStr::from_ptr(error).to_string_lossy().into_owned());
            }
            if value.is_null() {
                return Err("it has no value".into());
            }
            Ok(CStr::from_ptr(value).to_bytes().to_owned())
        }
    }
}
