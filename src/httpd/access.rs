//! Who may ask for what is there for programs, besides what `Require` says: `WebSocketPublish`.

use core::ffi::CStr;
use std::net::IpAddr;

use super::{
    directives::Section,
    handler,
    request::{Request, Table},
    sys,
};
use crate::channel::settings::Publishers;

/// What a request is refused with: a status and a sentence.
pub(super) type Refusal = (u32, &'static str);

/// Whether WebSocketPublish lets a request have what it asks for.
pub(super) fn check(r: Request<'_>, section: &Section) -> Result<(), Refusal> {
    if section.channel.publishers() == Publishers::Any {
        let origin = r.get(Table::HeadersIn, c"Origin").map(CStr::to_bytes);
        let allowed = handler::origin_is_allowed(r, &section.settings, [origin, None]);
        let why = "pages of this origin may not ask for this (WebSocketOriginCheck)";
        return if allowed { Ok(()) } else { Err((sys::HTTP_FORBIDDEN, why)) };
    }
    let is_local = |address: &CStr| {
        let address = address.to_str().ok().and_then(|text| text.parse::<IpAddr>().ok());
        address.is_some_and(|address| address.to_canonical().is_loopback())
    };
    if !is_local(r.client_ip()) || !is_local(r.connection_ip()) {
        let why = "only programs on this host may ask for this (WebSocketPublish Local)";
        return Err((sys::HTTP_FORBIDDEN, why));
    }
    // A proxy on this host makes everyone local, and a page can have its visitor publish.
    let passed_on = |name: &CStr| {
        let name = name.to_bytes();
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        ["Origin", "Forwarded", "X-Real-IP", "Via"].into_iter().any(is)
            || name.get(..11).is_some_and(|begin| begin.eq_ignore_ascii_case(b"X-Forwarded"))
    };
    // What a browser says who its visitor has not asked for this himself.
    let site = r.get(Table::HeadersIn, c"Sec-Fetch-Site").map(CStr::to_bytes);
    let by_page = site.is_some_and(|site| site != b"none");
    if by_page || r.fields(Table::HeadersIn).into_iter().any(|(name, _)| passed_on(name)) {
        let why = "the request comes from a page or through a proxy (WebSocketPublish Local)";
        return Err((sys::HTTP_FORBIDDEN, why));
    }
    Ok(())
}
