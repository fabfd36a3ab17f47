//! Which peer a request leads to, and the connection to it.
//!
//! All of it happens in the handler phase, on httpd's thread, before the client is answered: so a peer that cannot be
//! reached is a 502 or 504, and no thread of the module's ever waits for one.

use core::ffi::{CStr, c_int};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::{Duration, Instant},
};

use super::{
    child,
    expression::Expression,
    handler, log,
    request::{Request, Table},
    sys,
};
use crate::{
    bridge::{
        Address, Framing, PeerChoice,
        backend::{self, Backend, Query},
        connect::{Caller, ConnectError, connect},
        framing, proxy,
        relay::Relay,
        settings::BridgeSettings,
        socket::PeerSocket,
    },
    conn::{log::Level, outbox::Outbox},
    proto::handshake::Offered,
    sync::Lock as _,
};

/// Where a section's peers come from.
#[derive(Clone)]
pub(super) enum Source {
    /// From the configuration.
    Fixed(Address),
    /// From what the configuration makes of the request.
    Expression(Expression),
    /// From what a backend says.
    Backend(Arc<Discovery>),
}

/// A backend with its options, which is opened when the whole configuration has been read.
pub(super) struct Discovery {
    name: String,
    /// Keys and values, in their order.
    options: Mutex<Vec<(String, String)>>,
    /// What relative paths are relative to.
    root: PathBuf,
    /// Several threads may ask it at once.
    parallel: bool,
    backend: OnceLock<Arc<dyn Backend>>,
}

impl Discovery {
    pub(super) fn new(name: String, root: PathBuf, parallel: bool) -> Arc<Self> {
        let (options, backend) = (Mutex::default(), OnceLock::new());
        Arc::new(Self { name, options, root, parallel, backend })
    }

    /// One more option.
    pub(super) fn add(&self, key: &str, value: &str) {
        self.options().push((key.to_owned(), value.to_owned()));
    }

    /// Loads and configures the backend.
    pub(super) fn open(&self) -> Result<(), String> {
        let backend = backend::open(&self.name, &self.options(), &self.root, self.parallel)?;
        let _ = self.backend.set(backend);
        Ok(())
    }

    /// What the backend, once it is open, sees wrong with its options.
    pub(super) fn doubt(&self) -> Option<String> {
        self.backend.get()?.doubt()
    }

    fn options(&self) -> MutexGuard<'_, Vec<(String, String)>> {
        self.options.acquire()
    }

    /// Asks the backend for a request's peer; an error is a status and a line for the log.
    fn ask(&self, r: Request<'_>, protocols: &[&str]) -> Result<PeerChoice, (u32, String)> {
        let failed = |e: &str| {
            let line = format!("WS0508: the backend {} gives no peer: {e}", self.name);
            (sys::HTTP_INTERNAL_SERVER_ERROR, line)
        };
        // A backend is given text; what is none stays out.
        let fields = r.fields(Table::HeadersIn);
        let text = |&(name, value): &(&'_ CStr, &'_ CStr)| {
            Some((name.to_str().ok()?.to_owned(), value.to_str().ok()?.to_owned()))
        };
        let headers: Vec<_> = fields.iter().filter_map(text).collect();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let endpoint = r.unparsed_uri().to_string_lossy();
        let query = Query { endpoint: &endpoint, protocols, headers: &headers };
        let backend = self.backend.get().ok_or_else(|| failed("it is not open"))?;
        match backend.query(&query) {
            Ok(Some(target)) => Ok(target),
            Ok(None) => {
                let line = format!("WS0509: the backend {} refuses the request", self.name);
                Err((sys::HTTP_FORBIDDEN, line))
            }
            Err(e) => Err(failed(&e)),
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
    /// Finds out which peer a request leads to, and connects to it; otherwise the status that refuses the request. Asks
    /// the caller if that takes more than a moment.
    pub(super) fn reach(
        r: Request<'_>,
        source: &Source,
        settings: &BridgeSettings,
        max_message: usize,
        offered: Offered<'_>,
        caller: &mut dyn Caller,
    ) -> Result<Self, c_int> {
        let refuse = |status: u32, level, line: std::fmt::Arguments<'_>| {
            log::request(r, level, line);
            status as c_int
        };
        let Goal { peer, framing, framing_config, protocol } =
            goal(r, source, settings, &offered.iter().collect::<Vec<_>>()).map_err(
                |(status, line)| {
                    let ours = status == sys::HTTP_INTERNAL_SERVER_ERROR;
                    let level = if ours { Level::Error } else { Level::Info };
                    refuse(status, level, format_args!("{line}"))
                },
            )?;
        let framing = framing::make(&framing, framing_config.as_deref()).map_err(|e| {
            refuse(
                sys::HTTP_INTERNAL_SERVER_ERROR,
                Level::Error,
                format_args!("WS0507: no framing for {peer}: {e}"),
            )
        })?;
        let begun = Instant::now();
        let socket = connect(&peer, settings.connect_timeout(), caller)
            .map_err(|error| unconnected(r, &peer, &error, begun.elapsed()))?;
        child::spare(socket.descriptor()).map_err(|e| handler::unavailable(r, &e))?;
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

/// How long a client waits at least whose leaving shows that the peer does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The status that refuses a request whose peer is not connected after `waited`; a line says why.
fn unconnected(r: Request<'_>, peer: &Address, error: &ConnectError, waited: Duration) -> c_int {
    static SAID: log::OnceAMinute = log::OnceAMinute::new();
    let (status, is_error) = match error {
        ConnectError::TimedOut => (sys::HTTP_GATEWAY_TIME_OUT, true),
        ConnectError::Failed(_) => (sys::HTTP_BAD_GATEWAY, true),
        // The caller has written why.
        ConnectError::NotNow => return handler::come_later(r),
        ConnectError::NoLookUp(_) => (sys::HTTP_SERVICE_UNAVAILABLE, SAID.is_due()),
        ConnectError::Unwanted if child::is_near() => return handler::leave_to_next(r),
        // Who leaves at once may have changed its mind.
        ConnectError::Unwanted => (sys::HTTP_GATEWAY_TIME_OUT, waited >= PATIENCE),
    };
    let level = if is_error { Level::Error } else { Level::Info };
    log::request(r, level, format_args!("WS0501: no connection to {peer}: {error}"));
    if status == sys::HTTP_SERVICE_UNAVAILABLE { handler::come_later(r) } else { status as c_int }
}

/// Where a request leads to.
struct Goal {
    peer: Address,
    framing: String,
    framing_config: Option<String>,
    protocol: Option<usize>,
}

/// Where a request leads to, or a status and a line that says why it leads nowhere.
fn goal(
    r: Request<'_>,
    source: &Source,
    settings: &BridgeSettings,
    offered: &[&str],
) -> Result<Goal, (u32, String)> {
    let peer = match source {
        Source::Fixed(address) => address.clone(),
        Source::Expression(expression) => {
            let value = expression.evaluate(r).map_err(|e| {
                let line = format!("WS0508: WebSocketBridge cannot be evaluated: {e}");
                (sys::HTTP_INTERNAL_SERVER_ERROR, line)
            })?;
            allowed(&value, settings, true)?
        }
        Source::Backend(discovery) => {
            let PeerChoice { peer, framing, framing_config, protocol } =
                discovery.ask(r, offered)?;
            let peer = allowed(&peer, settings, false)?;
            return Ok(Goal { peer, framing, framing_config, protocol });
        }
    };
    let (framing, framing_config) = settings.framing();
    Ok(Goal {
        peer,
        framing: framing.into(),
        framing_config: framing_config.map(str::to_owned),
        protocol: settings.choose(offered),
    })
}

/// An address that was made for a request, if WebSocketBridgeAllow lists it. Without a list nothing is allowed if there
/// has to be one; otherwise everything.
fn allowed(text: &str, settings: &BridgeSettings, has_to: bool) -> Result<Address, (u32, String)> {
    let refused = |why: &str| (sys::HTTP_FORBIDDEN, format!("WS0502: refused: {why}"));
    let address = Address::parse(text).map_err(|e| refused(&e))?;
    if matches!(&address, Address::Unix(path) | Address::UnixDatagram(path) if path.is_relative()) {
        return Err(refused(&format!("the path of {address} does not begin with /")));
    }
    if (has_to || settings.allow.is_some()) && !settings.allows(&address) {
        return Err(refused(&format!("WebSocketBridgeAllow does not list {address}")));
    }
    Ok(address)
}
