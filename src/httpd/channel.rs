//! Which channels a request is about, and the subscription of one that opens a WebSocket.

use core::{
    ffi::{CStr, c_int, c_void},
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};
use std::{
    ffi::CString,
    hash::{BuildHasher as _, RandomState},
    io, process,
    sync::Arc,
};

use super::{
    child, directives,
    expression::Expression,
    log,
    request::{Request, Table},
    shared, sys, tree,
};
use crate::{
    channel::{
        self, Kind, Replay,
        cursor::{Cursor, Next},
        feed::Feed,
        format::{Format, META},
        hub::Hub,
        name,
        publisher::Publisher,
        settings::{ChannelSettings, MEMORY},
        store::{self, Mapping, Store},
        subscriber::{Options, Subscriber},
        subscription::Subscription,
    },
    conn::{log::Level, outbox::Outbox},
    metrics::Metric,
    proto::{self, deflate::Packing, handshake::Offered},
};

/// The channels of a section.
#[derive(Clone)]
pub(super) struct Channels(Vec<Expression>);

impl Channels {
    pub(super) fn new(name: Expression) -> Self {
        Self(vec![name])
    }

    pub(super) fn add(&mut self, name: Expression) -> Result<(), String> {
        if self.0.len() == channel::MOST {
            return Err(format!("a section has {} channels at most", channel::MOST));
        }
        self.0.push(name);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The names of the channels that a request is about, each of which is there once; or a status that refuses it, whose
    /// reason is in the log.
    pub(super) fn names(&self, r: Request<'_>) -> Result<Vec<String>, c_int> {
        let mut names = Vec::with_capacity(self.0.len());
        for expression in &self.0 {
            let name = expression.bytes(r).map_err(|e| {
                log::request(
                    r,
                    Level::Error,
                    format_args!("WS0702: WebSocketChannel cannot be evaluated: {e}"),
                );
                sys::HTTP_INTERNAL_SERVER_ERROR as c_int
            })?;
            let name =
                String::from_utf8(name).map_err(|e| refuse(r, e.as_bytes(), "it is not UTF-8"))?;
            name::check(&name).map_err(|why| refuse(r, name.as_bytes(), why))?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// Refuses a request that gives no channel.
fn refuse(r: Request<'_>, name: &[u8], why: &str) -> c_int {
    let (uri, shown) = (r.uri().to_string_lossy(), name[..name.len().min(100)].escape_ascii());
    log::request(
        r,
        Level::Info,
        format_args!("WS0701: refused: {uri} gives no channel: '{shown}': {why}"),
    );
    sys::HTTP_FORBIDDEN as c_int
}

/// What a client is subscribed to, once its handshake is answered.
pub(super) struct Subscribing {
    hub: &'static Hub,
    names: Vec<String>,
    last: Option<String>,
    replay: Option<Replay>,
    options: Options,
    publishes: bool,
}

impl Subscribing {
    /// What a request asks for; or a status that refuses it.
    pub(super) fn new(
        r: Request<'_>,
        channels: &Channels,
        settings: &ChannelSettings,
        format: Format,
    ) -> Result<Self, c_int> {
        let names = channels.names(r)?;
        let hub = hub().ok_or_else(|| missing(r))?;
        let last = (format != Format::Plain).then(|| last_id(r)).flatten();
        let options = Options { format, slow: settings.slow_client(), packing: None };
        // Who gets events sends nothing.
        let publishes = settings.client_publish() && format != Format::Event;
        if publishes && names.len() > 1 {
            let line = "WS0711: WebSocketChannelClientPublish On needs a single channel, and there are several: remove the \
                        others, or write 'WebSocketChannelClientPublish Off'";
            log::request(r, Level::Error, format_args!("{line}"));
            return Err(sys::HTTP_INTERNAL_SERVER_ERROR as c_int);
        }
        Ok(Self { hub, names, last, replay: settings.replay(), options, publishes })
    }

    /// How a client that opens a WebSocket gets messages.
    pub(super) fn format(offered: Offered<'_>) -> Format {
        if offered.iter().any(|name| name == META) { Format::Meta } else { Format::Plain }
    }

    /// The subprotocol to announce.
    pub(super) fn protocol(&self) -> Option<CString> {
        (self.options.format == Format::Meta).then(|| CString::new(META).ok()).flatten()
    }

    /// Subscribes a client, whose messages go through `outbox`, compressed if that was agreed.
    pub(super) fn open(
        mut self,
        outbox: Arc<Outbox>,
        packing: Option<Packing>,
    ) -> io::Result<Subscriber> {
        self.options.packing = packing;
        let (hub, ring) = (self.hub, self.hub.store().ring());
        let feed = Feed::new(outbox.clone());
        let subscriptions = hub.subscribe(&self.names, &feed)?;
        let begin = Cursor::new(ring, subscriptions, self.last.as_deref(), self.replay);
        let publisher = self.publishes.then(|| Publisher::new(hub.store().ring(), &self.names[0]));
        Ok(Subscriber::new(hub, (feed, outbox), self.options, begin, publisher))
    }

    /// What is there for a client that is not subscribed but comes again: events, of which one is enough beyond `most`
    /// bytes; and whether there is more.
    pub(super) fn events(&self, most: usize) -> (Vec<u8>, bool) {
        let (ring, line, feed) = (self.hub.store().ring(), self.hub.line(), Feed::silent());
        let subscriptions = Subscription::untold(ring, &self.names);
        let (cursor, gap) = Cursor::new(ring, subscriptions, self.last.as_deref(), self.replay);
        let mut cursor = cursor.of_one_that_polls();
        let (format, seed) = (self.options.format, ring.seed());
        let told = |cursor: &Cursor| format.gap(cursor.id(ring)).unwrap_or_default().into_bytes();
        let mut events = if gap { told(&cursor) } else { Vec::new() };
        line.add(Metric::ChannelGaps, u64::from(gap));
        let mut more = true;
        while events.len() < most && more {
            match cursor.next(self.hub, &feed) {
                Next::Nothing | Next::Full => more = false,
                Next::Later => {}
                Next::Gap => {
                    line.add(Metric::ChannelGaps, 1);
                    events.extend(told(&cursor));
                }
                Next::Message(message) => {
                    if message.kind == Kind::End {
                        events.extend(proto::events::event(None, Some("close"), "").bytes());
                        return (events, false);
                    }
                    events.extend(format.wrap(&message, seed).unwrap_or_default());
                    line.add(Metric::ChannelDelivered, 1);
                    cursor.pass();
                }
            }
        }
        events.extend(format.greeting(cursor.id(ring)).unwrap_or_default().bytes());
        (events, more)
    }
}

/// The id of the message that a client got last, as it says: Last-Event-ID, or `last_event_id` in the query.
fn last_id(r: Request<'_>) -> Option<String> {
    let id = r.get(Table::HeadersIn, c"Last-Event-ID").map(CStr::to_string_lossy);
    if let Some(id) = id.filter(|id| !id.trim().is_empty()) {
        return Some(id.into_owned());
    }
    let query = r.query()?.to_string_lossy();
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let id = pairs.find(|(key, _)| *key == "last_event_id").map(|(_, id)| id.to_owned());
    id.filter(|id| !id.is_empty())
}

/// There is no memory for channels, which the log has said at the start.
pub(super) fn missing(r: Request<'_>) -> c_int {
    static SAID: log::OnceAMinute = log::OnceAMinute::new();
    let level = if SAID.is_due() { Level::Error } else { Level::Debug };
    log::request(r, level, format_args!("WS0703: there is no memory for channels"));
    sys::HTTP_SERVICE_UNAVAILABLE as c_int
}

// --- the memory, and the hub of this child --------------------------------------------------------

/// Where the shared memory is, once it is mapped: stored by one thread, and only read by others.
static MAPPING: AtomicPtr<Mapping> = AtomicPtr::new(ptr::null_mut());

/// The child's hub; it lives as long as the process.
static HUB: AtomicPtr<Hub> = AtomicPtr::new(ptr::null_mut());

/// Maps the memory if a channel is configured, or finds it mapped by an earlier reading of the configuration.
///
/// # Safety
/// - `server` is the main server, while httpd runs its post_config hooks.
pub(super) unsafe fn map(server: *const sys::server_rec) {
    let mut is_wanted = false;
    tree::each(&mut |directive| is_wanted |= directive.is("WebSocketChannel"));
    if !is_wanted {
        return;
    }
    // SAFETY: httpd has made the main server's settings when it read the configuration.
    let size = unsafe { (*directives::server(server)).channel_memory }.unwrap_or(MEMORY);
    // SAFETY: as this function demands.
    let line = match unsafe { find_or_map(server, size) } {
        Err(error) => format!("WS0703: no memory for channels, so they do not work: {error}"),
        Ok(now) if now != store::rounded(size) => format!(
            "WS0704: WebSocketChannelMemory takes effect when httpd is stopped and started: channels have {now} bytes \
             until then"
        ),
        Ok(_) => return,
    };
    // SAFETY: as this function demands.
    unsafe { log::server(server, Level::Warn, format_args!("{line}")) };
}

/// How many bytes the ring has.
///
/// # Safety
/// - As for [`map`].
unsafe fn find_or_map(server: *const sys::server_rec, size: usize) -> io::Result<usize> {
    let key = CString::new(format!("mod_websocket channels {}", store::layout()))?;
    let mut kept: *mut c_void = ptr::null_mut();
    // SAFETY: the server is live, as this function demands: the process record and its pool live as long as the process.
    let pool = unsafe { (*(*server).process).pool };
    // SAFETY: the key lives for the call; the result is a live pointer.
    unsafe { sys::apr_pool_userdata_get(&raw mut kept, key.as_ptr(), pool) };
    if kept.is_null() {
        let seed = [0, 1].map(|part: u8| RandomState::new().hash_one(part));
        let mapping = store::map(size, seed)?;
        // SAFETY: the pool is live. As the mapping, the memory stays until the process ends, whichever build of this module
        // finds it.
        kept = unsafe { sys::apr_palloc(pool, size_of::<Mapping>()) };
        // SAFETY: it is as large as it has to be, and aligned for any type.
        unsafe { kept.cast::<Mapping>().write(mapping) };
        // SAFETY: the key is copied; there is nothing to clean up.
        unsafe { sys::apr_pool_userdata_set(kept, key.as_ptr(), None, pool) };
    }
    MAPPING.store(kept.cast(), Ordering::Release);
    Ok(mapping().map_or(0, Mapping::size))
}

fn mapping() -> Option<&'static Mapping> {
    // SAFETY: `find_or_map` stores what is never dropped; its layout is part of the key under which it was found.
    unsafe { MAPPING.load(Ordering::Acquire).as_ref() }
}

/// The shared memory, as this process sees it.
pub(super) fn store() -> Option<Store> {
    // SAFETY: `find_or_map` has stored what `store::map` gave in this process or its parent.
    mapping().map(|mapping| unsafe { Store::at(mapping, process::id(), shared::is_alive) })
}

/// A child begins.
pub(super) fn begin() {
    let Some(store) = store() else { return };
    store.counts().begin();
    let run = Box::new(|| {
        if let Some(service) = child::service() {
            service.run_ready();
        }
    });
    HUB.store(ptr::from_ref(Hub::new(store, shared::line(), run)).cast_mut(), Ordering::Release);
}

/// The child's hub.
fn hub() -> Option<&'static Hub> {
    // SAFETY: `begin` stores a hub that is never dropped.
    unsafe { HUB.load(Ordering::Acquire).as_ref() }
}

/// The child ends: its connections are gone.
pub(super) fn end() {
    if let Some(hub) = hub() {
        hub.end();
    }
}

/// The text of a header of httpd's, in UTF-8 or not.
pub(super) fn text(value: Option<&CStr>) -> String {
    value.map_or_else(String::new, |value| value.to_string_lossy().into_owned())
}
