//! `SetHandler websocket-metrics`: what all children have counted, as OpenMetrics text.

use core::ffi::{CStr, c_int};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{
    access::{self, Refusal},
    channel, directives, log,
    request::{Request, Table},
    shared, sys,
};
use crate::{
    conn::log::Level,
    metrics::{Metric, Sums, TABLE},
};

/// The name that SetHandler gives to requests of those who watch the server.
const HANDLER: &CStr = c"websocket-metrics";
/// The media type of the page, as C wants it.
const MEDIA_TYPE: &CStr = c"application/openmetrics-text; version=1.0.0; charset=utf-8";

/// httpd's handler hook; `None` for requests of others.
pub(super) fn handle(r: Request<'_>) -> Option<c_int> {
    if r.handler() != Some(HANDLER) || !r.is_main() {
        return None;
    }
    Some(match page(r) {
        Ok(page) => r.answer(sys::HTTP_OK, MEDIA_TYPE, &page),
        Err((status, why)) => {
            let uri = r.uri().to_string_lossy();
            log::request(r, Level::Info, format_args!("WS0710: {uri} is answered {status}: {why}"));
            r.answer(status, c"text/plain; charset=utf-8", &format!("{why}\n"))
        }
    })
}

fn page(r: Request<'_>) -> Result<String, Refusal> {
    // HEAD has the number of GET.
    if r.method() != sys::M_GET {
        r.set(Table::ErrHeadersOut, c"Allow", c"GET, HEAD");
        return Err((sys::HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD are understood here"));
    }
    access::check(r, directives::section(r))?;
    let none = "there is no shared memory, which the error log has said at the start (WS0404)";
    let sums = sums().ok_or((sys::HTTP_SERVICE_UNAVAILABLE, none))?;
    Ok(sums.page())
}

/// What all children have counted, and what is known of the channels; `None` without shared memory.
pub(super) fn sums() -> Option<Sums> {
    let mut sums = Sums { numbers: shared::sums()?, left_out: Vec::new() };
    let Some(store) = channel::store() else {
        let metrics = TABLE.iter().map(|row| row.metric);
        sums.left_out.extend(metrics.filter(|metric| metric.is_of_channels()));
        return Some(sums);
    };
    sums.set(Metric::ChannelMemory, store.ring().size() as u64);
    match store.ring().oldest() {
        Some(oldest) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let age = (now.as_millis() as u64).saturating_sub(oldest.time) / 1000;
            sums.set(Metric::ChannelOldest, age);
        }
        None => sums.left_out.push(Metric::ChannelOldest),
    }
    Some(sums)
}
