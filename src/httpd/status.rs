//! What server-status shows of the WebSockets: a line for each child, as of the last second.

use core::{ffi::c_int, mem, ptr};
use std::fmt::Write as _;

use super::{boundary, shared, sys};
use crate::driver::service::Totals;

/// mod_status's flag for a page that programs read (`?auto`).
const SHORT: c_int = 0x1;

/// Registers with mod_status, if that is there.
pub(super) fn register() {
    type Hook = unsafe extern "C" fn(*mut sys::request_rec, c_int) -> c_int;
    let (hook, none): (Hook, _) = (hook_status, ptr::null());
    // SAFETY: mod_status.h declares the hook of this name with this type; an optional hook is registered without it.
    unsafe {
        let function = mem::transmute::<Hook, unsafe extern "C" fn()>(hook);
        let order = sys::APR_HOOK_MIDDLE as c_int;
        sys::apr_optional_hook_add(c"status_hook".as_ptr(), Some(function), none, none, order);
    }
}

unsafe extern "C" fn hook_status(r: *mut sys::request_rec, flags: c_int) -> c_int {
    let text = boundary(String::new(), || page(flags & SHORT != 0));
    // SAFETY: mod_status passes the live request whose page it writes; the text lives for the call.
    unsafe { sys::ap_rwrite(text.as_ptr().cast(), text.len() as c_int, r) };
    sys::HOOK_OK
}

/// The page's part about WebSockets.
fn page(short: bool) -> String {
    let mut page = String::new();
    // Writing to a String cannot fail.
    let mut write = |line: core::fmt::Arguments<'_>| {
        let _ = page.write_fmt(line);
    };
    let names = Totals::NAMES;
    if !short {
        write(format_args!("<hr />\n<h2>WebSockets served by threads of their own</h2>\n"));
        write(format_args!("<table border=\"0\"><tr><th>PID</th><th>Threads</th>"));
        for name in names {
            write(format_args!("<th>{name}</th>"));
        }
        write(format_args!("</tr>\n"));
    }
    let mut sums = [0; Totals::NAMES.len()];
    for (pid, threads, numbers) in shared::children() {
        for (sum, number) in sums.iter_mut().zip(numbers) {
            *sum += number;
        }
        if !short {
            write(format_args!("<tr><td>{pid}</td><td>{threads}</td>"));
            for number in numbers {
                write(format_args!("<td>{number}</td>"));
            }
            write(format_args!("</tr>\n"));
        }
    }
    if short {
        for (name, sum) in names.iter().zip(sums) {
            write(format_args!("WebSocket{name}: {sum}\n"));
        }
    } else {
        write(format_args!("</table>\n"));
    }
    page
}
