//! The settings that directives make, and their life: made, merged, checked, looked up for a request, dropped.

use core::{
    ffi::{c_char, c_void},
    ptr,
};
use std::{sync::Arc, time::Duration};

use super::super::{
    boundary,
    bridge::{Discovery, Source},
    channel::Channels,
    expression::Expression,
    module,
    request::Request,
    sys,
};
use crate::{
    bridge::settings::BridgeSettings,
    channel::settings::ChannelSettings,
    limits::workers::Share,
    plugin::Plugin,
    settings::{self, Merge as _, Settings},
};

/// What one section of the configuration (server, Directory, Location, .htaccess file) sets.
#[derive(Clone, Default)]
pub(in super::super) struct Section {
    /// A directive has been read into it.
    pub(super) is_set: bool,
    pub(in super::super) settings: Settings,
    /// What the `WebSocketBridge…` directives set.
    pub(in super::super) bridge: BridgeSettings,
    /// What the `WebSocketChannel…` directives set, and `WebSocketPublish`.
    pub(in super::super) channel: ChannelSettings,
    pub(in super::super) target: Option<Target>,
}

/// Where the messages of a section's WebSockets go.
#[derive(Clone)]
pub(in super::super) enum Target {
    /// `WebSocketHandler`.
    Plugin(Arc<Plugin>),
    /// The bridge, with where its peers come from.
    Bridge(Source),
    /// `WebSocketChannel`.
    Channel(Channels),
}

impl Section {
    pub(in super::super) fn has_endpoint(&self) -> bool {
        self.target.is_some()
    }

    /// Messages go to this plugin, unless the same section says something else. `true` if it takes another one's place.
    pub(super) fn set_plugin(&mut self, plugin: Arc<Plugin>) -> Result<bool, String> {
        match &self.target {
            Some(Target::Bridge(_)) => return Err(TWO_ENDPOINTS.into()),
            Some(Target::Channel(_)) => return Err(CHANNEL_AND_OTHER.into()),
            Some(Target::Plugin(_)) | None => {}
        }
        Ok(self.target.replace(Target::Plugin(plugin)).is_some())
    }

    /// Messages come from one more channel, unless the same section says something else.
    pub(super) fn add_channel(&mut self, name: Expression) -> Result<(), String> {
        match &mut self.target {
            None => self.target = Some(Target::Channel(Channels::new(name))),
            Some(Target::Channel(channels)) => channels.add(name)?,
            Some(_) => return Err(CHANNEL_AND_OTHER.into()),
        }
        self.check_client_publish()
    }

    /// What clients send is published, or not.
    pub(super) fn set_client_publish(&mut self, on: bool) -> Result<(), String> {
        self.channel.client_publish = Some(on);
        self.check_client_publish()
    }

    fn check_client_publish(&self) -> Result<(), String> {
        match &self.target {
            Some(Target::Channel(channels)) if channels.len() > 1 && self.channel.client_publish() => {
                Err("the same section has several channels, and what clients send would be published to one of them: remove \
                     the others, or write 'WebSocketChannelClientPublish Off'"
                    .into())
            }
            _ => Ok(()),
        }
    }

    /// Messages go to the peers that come from this source, unless the same section says something else.
    pub(super) fn set_bridge(&mut self, source: Source) -> Result<(), String> {
        match &self.target {
            None => self.target = Some(Target::Bridge(source)),
            Some(Target::Plugin(_)) => return Err(TWO_ENDPOINTS.into()),
            Some(Target::Channel(_)) => return Err(CHANNEL_AND_OTHER.into()),
            Some(Target::Bridge(_)) => {
                let both = "the same section says already where its peers are: remove one";
                return Err(both.into());
            }
        }
        Ok(())
    }
}

/// What is said of a section that has channels and something else.
const CHANNEL_AND_OTHER: &str =
    "the same section has a WebSocketChannel and another endpoint: remove one";

/// What is said of a section that has two kinds of endpoints.
const TWO_ENDPOINTS: &str =
    "the same section has a WebSocketHandler and a WebSocketBridge: remove one";

/// What the main server's configuration sets for each child process.
#[derive(Clone, Default)]
pub(in super::super) struct Server {
    /// `WebSocketMemoryLimit`, in bytes.
    pub(super) memory_limit: Option<usize>,
    /// `WebSocketDrainTime`.
    pub(in super::super) drain_time: Option<Duration>,
    /// `WebSocketChannelMemory`, in bytes.
    pub(in super::super) channel_memory: Option<usize>,
    /// `WebSocketThreads`.
    pub(in super::super) threads: Option<u16>,
    /// `WebSocketWorkerShare`.
    pub(in super::super) worker_share: Option<Share>,
    /// The backends, and where each is named.
    pub(super) discoveries: Vec<(Arc<Discovery>, String)>,
}

impl Server {
    /// How many bytes the connections of a child may hold.
    pub(in super::super) fn memory_limit(&self) -> usize {
        self.memory_limit.unwrap_or(settings::MEMORY_LIMIT)
    }
}

/// Makes a section's settings, which live as long as `pool`.
pub(in super::super) unsafe extern "C" fn create_dir(
    pool: *mut sys::apr_pool_t,
    _dir: *mut c_char,
) -> *mut c_void {
    boundary(ptr::null_mut(), || register(pool, Section::default()))
}

/// Merges an outer section with one inside it. If one of them sets nothing the result is the other one itself, as most
/// often: httpd merges several times per request.
pub(in super::super) unsafe extern "C" fn merge_dir(
    pool: *mut sys::apr_pool_t,
    outer: *mut c_void,
    inner: *mut c_void,
) -> *mut c_void {
    boundary(ptr::null_mut(), || {
        // SAFETY: httpd passes sections that create_dir or merge_dir made; while sections are merged nobody writes
        // to them (R4). What is given back lives as long as the result has to: both sections outlive the request, or
        // are of the configuration as the result is.
        let (outside, inside) = unsafe { (&*outer.cast::<Section>(), &*inner.cast::<Section>()) };
        if !inside.is_set {
            return outer;
        }
        if !outside.is_set {
            return inner;
        }
        let target = inside.target.as_ref().or(outside.target.as_ref()).cloned();
        let settings = outside.settings.merge(&inside.settings);
        let bridge = outside.bridge.merge(&inside.bridge);
        let channel = outside.channel.merge(&inside.channel);
        register(pool, Section { is_set: true, settings, bridge, channel, target })
    })
}

/// Makes a server's settings, which live as long as `pool`.
pub(in super::super) unsafe extern "C" fn create_server(
    pool: *mut sys::apr_pool_t,
    _server: *mut sys::server_rec,
) -> *mut c_void {
    boundary(ptr::null_mut(), || register(pool, Server::default()))
}

/// Has the backends take their options.
///
/// # Safety
/// - `main` is the main server, after the whole configuration was read.
pub(in super::super) unsafe fn check(main: *const sys::server_rec) -> Result<(), String> {
    let mut next = main;
    while !next.is_null() {
        // SAFETY: `next` is the main server or one behind it; the settings were made by create_server.
        for (discovery, place) in unsafe { &(*server(next)).discoveries } {
            discovery.open().map_err(|e| format!("WS0429: {place}: {e}"))?;
        }
        // SAFETY: each server's `next` is another one or NULL.
        next = unsafe { (*next).next };
    }
    Ok(())
}

/// What the backends, open since [`check`], see wrong with their options: warnings that say where they are named.
///
/// # Safety
/// - As for [`check`].
pub(in super::super) unsafe fn doubts(main: *const sys::server_rec) -> Vec<String> {
    let mut doubts = Vec::new();
    let mut next = main;
    while !next.is_null() {
        // SAFETY: `next` is the main server or one behind it, whose settings were made by create_server.
        for (discovery, place) in unsafe { &(*server(next)).discoveries } {
            doubts.extend(discovery.doubt().map(|doubt| format!("WS0425: {place}: {doubt}")));
        }
        // SAFETY: each server's `next` is another one or NULL.
        next = unsafe { (*next).next };
    }
    doubts
}

/// The section that applies to a request.
pub(in super::super) fn section(r: Request<'_>) -> &Section {
    // SAFETY: httpd has loaded the module, whose handler this is.
    unsafe { section_of(r, module()) }
}

/// The section of one of our modules that applies to a request.
///
/// # Safety
/// - httpd has loaded `module`, and its sections are made by [`create_dir`].
pub(in super::super) unsafe fn section_of(r: Request<'_>, module: *const sys::module) -> &Section {
    // SAFETY: every vector of the configuration has a section of the module, made by create_dir or merge_dir; it lives
    // at least as long as the request and does not change any more.
    unsafe { &*r.dir_config(module).cast::<Section>() }
}

/// The settings of a server; those for the child processes are the main server's.
///
/// # Safety
/// - `server` is live and its configuration was made with this module loaded.
pub(in super::super) unsafe fn server(server: *const sys::server_rec) -> *mut Server {
    // SAFETY: the server is live and has a place for this module, as this function demands.
    unsafe { sys::ap_get_module_config((*server).module_config, module()) }.cast()
}

/// Gives settings to a pool, which drops them when it is cleared: with its last reference a plugin is unloaded.
fn register<S>(pool: *mut sys::apr_pool_t, settings: S) -> *mut c_void {
    let settings: *mut c_void = Box::into_raw(Box::new(settings)).cast();
    let (now, in_child) = (Some(cleanup::<S> as _), Some(sys::apr_pool_cleanup_null as _));
    // SAFETY: the callers got the pool from httpd; the cleanup runs once, when nobody uses the settings any more.
    unsafe { sys::apr_pool_cleanup_register(pool, settings, now, in_child) };
    settings
}

unsafe extern "C" fn cleanup<S>(settings: *mut c_void) -> sys::apr_status_t {
    boundary(0, || {
        // SAFETY: `register` made it from a Box, and a cleanup runs once.
        drop(unsafe { Box::from_raw(settings.cast::<S>()) });
        0
    })
}
