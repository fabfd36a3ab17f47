//! What server-status shows of the WebSockets: a line for each child, and the sums that the page of metrics has, too.

use core::{ffi::c_int, fmt, mem, ptr};
use std::fmt::Write as _;

use super::{boundary, metrics, shared, sys};
use crate::metrics::{Kind, Row, Sums};

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

/// The page's part about WebSockets; nothing without shared memory.
fn page(short: bool) -> String {
    let mut page = String::new();
    if let Some(sums) = metrics::sums() {
        // Writing to a String cannot fail.
        let _ = if short { write_short(&mut page, &sums) } else { write_tables(&mut page, &sums) };
    }
    page
}

/// The sums, and those of each value of a label: `WebSocketCloses` and `WebSocketCloses1000`.
fn write_short(page: &mut String, sums: &Sums) -> fmt::Result {
    for (row, numbers) in sums.rows() {
        writeln!(page, "WebSocket{}: {}", row.short, numbers.iter().sum::<u64>())?;
        for (value, number) in labelled(row, numbers) {
            let (first, rest) = value.split_at(1);
            writeln!(page, "WebSocket{}{}{rest}: {number}", row.short, first.to_ascii_uppercase())?;
        }
    }
    Ok(())
}

/// A line for each child that is there; then what all have counted, also those that are gone.
fn write_tables(page: &mut String, sums: &Sums) -> fmt::Result {
    let of_children = || sums.rows().filter(|(row, _)| row.kind != Kind::Common);
    writeln!(page, "<hr />\n<h2>WebSockets</h2>\n<table border=\"0\"><tr><th>PID</th>")?;
    for (row, _) in of_children() {
        write!(page, "<th>{}</th>", row.short)?;
    }
    writeln!(page, "</tr>")?;
    for (pid, numbers) in shared::children() {
        write!(page, "<tr><td>{pid}</td>")?;
        for (row, _) in of_children() {
            write!(page, "<td>{}</td>", row.metric.total(&numbers))?;
        }
        writeln!(page, "</tr>")?;
    }
    writeln!(page, "</table>\n<h3>All children, those that have gone included</h3>")?;
    writeln!(page, "<table border=\"0\">")?;
    for (row, numbers) in sums.rows() {
        let sum: u64 = numbers.iter().sum();
        write!(page, "<tr><th>{}</th><td>{sum}</td><td>{}", row.short, row.help)?;
        // Most of them are 0.
        for (value, number) in labelled(row, numbers).filter(|(_, number)| *number > 0) {
            write!(page, "; {value}: {number}")?;
        }
        writeln!(page, "</td></tr>")?;
    }
    writeln!(page, "</table>")
}

/// The values of a metric's label, if it has one, with their numbers.
fn labelled(row: &Row, numbers: &[u64]) -> impl Iterator<Item = (&'static str, u64)> {
    let values = row.label.values.iter().copied().filter(|value| !value.is_empty());
    values.zip(numbers.iter().copied())
}
