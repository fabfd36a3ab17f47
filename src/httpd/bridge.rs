//! Which peer a request leads to, and the connection to it.
//!
//! All of it happens in the handler phase, on httpd's thread, before the client is answered: so a peer that cannot be
//! reached is a 502 or 504, and no thread of the module's ever waits for one.

use core::{
    ffi::{CStr, c_int},
    ptr,
};
use std::{ffi::CString, os::fd::BorrowedFd, sync::Arc};

use super::{handler, log, sys, wrap::Request};
use crate::{
    bridge::{
        Address, Framing, Target,
        connect::{ConnectError, connect},
        framing, proxy,
        relay::Relay,
        settings::Settings,
        socket::PeerSocket,
    },
    journal::Level,
    outbox::Outbox,
};

/// Where a section's peers come from.
#[derive(Clone)]
pub(super) enum Source {
    /// From the configuration.
    Fixed(Address),
    /// From what the configuration makes of the request.
    Expression(Expression),
}

/// An expression with `%{…}` that gives a string.
#[derive(Clone, Copy)]
pub(super) struct Expression(*const sys::ap_expr_info_t);

impl Expression {
    /// # Safety
    /// - `parms` is what httpd calls a directive's function with. The result lives as long as its pool.
    pub(super) unsafe fn parse(parms: &sys::cmd_parms, text: &str) -> Result<Self, String> {
        let text = CString::new(text).map_err(|e| e.to_string())?;
        let mut error = ptr::null();
        // SAFETY: the caller's word. httpd keeps pointers into the text, which is therefore copied to the pool.
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
    fn evaluate(self, r: Request<'_>) -> Result<String, String> {
        let mut error = ptr::null();
        // SAFETY: the expression lives as long as the configuration (wrap::R3), the request for the call (wrap::R1), and the
        // results, strings or NULL, as long as the request.
        unsafe {
            let value = sys::ap_expr_str_exec(r.as_ptr(), self.0, &raw mut error);
            let text = |s: *const core::ffi::c_char| CStr::from_ptr(s).to_str().map(str::to_owned);
            if !error.is_null() {
                return Err(text(error).unwrap_or_default());
            }
            if value.is_null() {
                return Err("it has no value".into());
            }
            text(value).map_err(|_| "its value is not UTF-8".into())
        }
    }
}

/// A peer that is connected, before the client is.
pub(super) struct Bridge {
    socket: PeerSocket,
    framing: Box<dyn Framing>,
    /// What the peer is told first.
    first: Vec<u8>,
    max_piece: usize,
    /// Which of the offered subprotocols to announce.
    pub(super) protocol: Option<usize>,
}

impl Bridge {
    /// Finds out which peer a request leads to, and connects to it; otherwise the status that refuses the request.
    pub(super) fn reach(
        r: Request<'_>,
        source: &Source,
        settings: &Settings,
        max_message: usize,
        offered: &[&str],
    ) -> Result<Self, c_int> {
        let refuse = |status: u32, level, line: std::fmt::Arguments<'_>| {
            log::request(r, level, line);
            status as c_int
        };
        let Target { peer, framing, framing_config, protocol } =
            target(r, source, settings, offered)
                .map_err(|(status, line)| refuse(status, Level::Info, format_args!("{line}")))?;
        let framing = framing::make(&framing, &framing_config).map_err(|e| {
            let line = format_args!("WS0507: no framing for {peer}: {e}");
            refuse(sys::HTTP_INTERNAL_SERVER_ERROR, Level::Error, line)
        })?;
        let socket = connect(&peer, settings.connect_timeout()).map_err(|e| {
            let status = match e {
                ConnectError::TimedOut => sys::HTTP_GATEWAY_TIME_OUT,
                ConnectError::Failed(_) => sys::HTTP_BAD_GATEWAY,
            };
            refuse(status, Level::Error, format_args!("WS0501: no connection to {peer}: {e}"))
        })?;
        // SAFETY: the socket keeps the descriptor open while it is borrowed.
        let descriptor = unsafe { BorrowedFd::borrow_raw(socket.descriptor()) };
        handler::spare(descriptor).map_err(|e| handler::unavailable(r, &e))?;
        let mut first = Vec::new();
        if settings.proxy_protocol.unwrap_or(false) && !peer.is_datagram() {
            first = r.addresses().map_or(first, |(client, own)| proxy::header(client, own));
        }
        let max_piece = settings.max_piece.unwrap_or(max_message);
        log::request(r, Level::Debug, format_args!("bridged to {peer}"));
        Ok(Self { socket, framing, first, max_piece, protocol })
    }

    /// The endpoint of the client whose messages go through `outbox`.
    pub(super) fn open(self, outbox: Arc<Outbox>) -> Relay {
        Relay::new(outbox, self.socket, self.framing, self.first, self.max_piece)
    }
}

/// The peer of a request, or a status and a line that says why there is none.
fn target(
    r: Request<'_>,
    source: &Source,
    settings: &Settings,
    offered: &[&str],
) -> Result<Target, (u32, String)> {
    let peer = match source {
        Source::Fixed(address) => address.clone(),
        Source::Expression(expression) => {
            let value = expression.evaluate(r).map_err(|e| {
                let line = format!("WS0508: WebSocketBridge cannot be evaluated: {e}");
                (sys::HTTP_INTERNAL_SERVER_ERROR, line)
            })?;
            let address = Address::parse(&value);
            let address =
                address.map_err(|e| (sys::HTTP_FORBIDDEN, format!("WS0502: refused: {e}")))?;
            if !settings.allows(&address) {
                let line = format!("WS0502: refused: WebSocketBridgeAllow does not list {address}");
                return Err((sys::HTTP_FORBIDDEN, line));
            }
            address
        }
    };
    let (framing, framing_config) = settings.framing();
    Ok(Target {
        peer,
        framing: framing.into(),
        framing_config: framing_config.into(),
        protocol: settings.choose(offered),
    })
}
