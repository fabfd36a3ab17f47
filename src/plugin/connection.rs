//! One connection of a plugin: the endpoint that its driver calls, and the functions that the plugin may call.
//!
//! The plugin holds a pointer to a [`abi::WebSocketServer`] and may use it from any thread until its on_disconnect
//! returns. A thread that it fails to join in time would then read freed memory, so the structures of the last
//! `KEPT` connections are kept: such a call finds a closed connection, not somebody else's memory.
#![expect(unsafe_code, reason = "plugins are C")]

use core::{
    ffi::{CStr, c_char, c_int, c_uchar, c_void},
    ptr::NonNull,
};
use std::{
    collections::VecDeque,
    ffi::CString,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicPtr, Ordering},
    },
};

use super::{Plugin, abi, headers::Headers, protocols::Protocols};
use crate::{
    conn::{
        callbacks::Callbacks,
        endpoint::Endpoint,
        log::Level,
        outbox::{Outbox, Refused},
    },
    proto::{Kind, frame::Opcode, is_token_byte},
    sync::Lock as _,
};

/// How many ended connections keep their structures.
const KEPT: usize = 256;

/// What the request brought for the plugin, and where its answers go.
pub struct PluginOpening {
    /// Where sends go.
    pub outbox: Arc<Outbox>,
    /// httpd's request; valid until the connection is closed or [`Connection::forget_request`] is called.
    pub request: *mut abi::request_rec,
    /// The request's headers.
    pub headers: Arc<Headers>,
    /// The subprotocols offered.
    pub protocols: Protocols,
    /// The process serves one connection after the other: the plugin sees all of them at one address.
    pub alone: bool,
    /// Those of this connection.
    pub callbacks: Arc<Callbacks>,
}

/// What the plugin wants in the 101.
#[derive(Debug, Default)]
pub struct Answer {
    /// Header fields, each name once.
    pub headers: Vec<(CString, CString)>,
    /// The subprotocol chosen, one of those offered.
    pub protocol: Option<CString>,
}

/// A connection that a plugin has accepted.
pub struct Connection {
    plugin: Arc<Plugin>,
    /// What on_connect returned.
    private: AtomicPtr<c_void>,
    /// `Some` until `closed`.
    handle: Mutex<Option<Owned<Handle>>>,
    /// The plugin's pointer, which stays the same.
    server: AtomicPtr<abi::WebSocketServer>,
    /// As in [`PluginOpening`].
    alone: bool,
    /// As in [`PluginOpening`].
    callbacks: Arc<Callbacks>,
}

/// The way from a plugin's pointer to a connection.
struct View {
    /// Its `state` leads to `shown`, so that a plugin's copy of it sees the same.
    server: abi::WebSocketServer,
    shown: AtomicPtr<ServerState>,
}

impl View {
    fn new() -> Self {
        Self {
            server: abi::WebSocketServer {
                size: size_of::<abi::WebSocketServer>() as u32,
                version: abi::WEBSOCKET_SERVER_VERSION_1,
                state: ptr::null_mut(),
                request: cb_request,
                header_get: cb_header_get,
                header_set: cb_header_set,
                protocol_count: cb_protocol_count,
                protocol_index: cb_protocol_index,
                protocol_set: cb_protocol_set,
                send: cb_send,
                close: cb_close,
            },
            shown: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Completes a view that has come to its place in memory, where it has to stay.
    ///
    /// # Safety
    /// - `view` is live, and nobody else knows it.
    unsafe fn settle(view: *mut Self) {
        // SAFETY: `view` is live, as this function demands.
        let shown = unsafe { &raw mut (*view).shown };
        // SAFETY: as above.
        unsafe { (*view).server.state = shown.cast() };
    }
}

/// What the plugin's pointer points at, and what the module keeps behind it.
struct Handle {
    view: View,
    state: ServerState,
}

// SAFETY: the raw pointers in a view lead to itself and to a state, and the request's is only handed out.
unsafe impl Send for Handle {}

/// A value that we own and the plugin points at: a Box would claim to be the only pointer.
struct Owned<T>(NonNull<T>);

// SAFETY: an Owned is the only owner of its value, which may change threads as its type says.
unsafe impl<T: Send> Send for Owned<T> {}

impl<T> Owned<T> {
    fn new(value: T) -> Self {
        Self(NonNull::from(Box::leak(Box::new(value))))
    }

    fn get(&self) -> &T {
        // SAFETY: it is live until `drop`, and nobody changes it but through its locks and atomics.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `new` made it from a Box, and it is dropped once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Where a plugin sees the connections that a process serves one after the other: all at one address, which it may have
/// kept from the first of them.
pub(super) struct Window {
    view: Owned<View>,
    /// The connection that ended last, which the view shows until there is another one.
    ended: Mutex<Option<Owned<Handle>>>,
}

impl Window {
    pub(super) fn new() -> Self {
        let view = Owned::new(View::new());
        // SAFETY: it was just made, and stays where it is until it is dropped.
        unsafe { View::settle(view.0.as_ptr()) };
        Self { view, ended: Mutex::new(None) }
    }
}

/// What the `server` that a plugin is given leads to.
struct ServerState {
    /// The plugin's.
    wants_request: Arc<AtomicBool>,
    outbox: Arc<Outbox>,
    /// httpd's request while it is there for the plugin; null afterwards.
    request: AtomicPtr<abi::request_rec>,
    /// The plugin asked for the request.
    asked: AtomicBool,
    /// `None` when the connection is closed.
    brought: Mutex<Option<Box<Brought>>>,
    /// `None` as soon as the 101 is decided.
    answer: Mutex<Option<Answer>>,
}

/// What the request brought. The plugin has pointers into it, so it stays where it is.
struct Brought {
    headers: Arc<Headers>,
    protocols: Protocols,
}

impl ServerState {
    fn brought(&self) -> MutexGuard<'_, Option<Box<Brought>>> {
        self.brought.acquire()
    }

    fn answer(&self) -> MutexGuard<'_, Option<Answer>> {
        self.answer.acquire()
    }

    fn warn(&self, line: core::fmt::Arguments<'_>) {
        self.outbox.log().write(Level::Warn, line);
    }
}

/// The handles of connections that ended last.
static RETIRED: Mutex<VecDeque<Owned<Handle>>> = Mutex::new(VecDeque::new());

impl Connection {
    /// Asks the plugin's on_connect. `None` if it refuses.
    pub fn open(plugin: Arc<Plugin>, opening: PluginOpening) -> Option<(Self, Answer)> {
        let PluginOpening { outbox, request, headers, protocols, alone, callbacks } = opening;
        let handle = Owned::new(Handle {
            view: View::new(),
            state: ServerState {
                wants_request: plugin.wants_request.clone(),
                outbox,
                request: AtomicPtr::new(request),
                asked: AtomicBool::new(false),
                brought: Mutex::new(Some(Box::new(Brought { headers, protocols }))),
                answer: Mutex::new(Some(Answer::default())),
            },
        });
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one reason covers all three")]
        // SAFETY: the handle was just made, and nobody else knows it. The window's view is as live as the plugin.
        let server = unsafe {
            let handle = handle.0.as_ptr();
            let own = &raw mut (*handle).view;
            View::settle(own);
            let view = if alone { plugin.window.view.0.as_ptr() } else { own };
            // Release: who follows the pointer sees a whole state.
            (*view).shown.store(&raw mut (*handle).state, Ordering::Release);
            &raw mut (*view).server
        };
        let private = match plugin.on_connect {
            None => ptr::null_mut(),
            Some(on_connect) => {
                // SAFETY: the ABI's on_connect takes a server structure, which lives on the heap until its handle is
                // retired, or as long as the plugin.
                let private = callbacks.run(|| unsafe { on_connect(server) });
                if private.is_null() {
                    handle.get().state.request.store(ptr::null_mut(), Ordering::Release);
                    handle.get().state.outbox.end("the plugin refuses");
                    retire(handle, alone.then_some(&plugin.window));
                    return None;
                }
                private
            }
        };
        let answer = handle.get().state.answer().take().unwrap_or_default();
        let connection = Self {
            plugin,
            private: AtomicPtr::new(private),
            handle: Mutex::new(Some(handle)),
            server: AtomicPtr::new(server),
            alone,
            callbacks,
        };
        Some((connection, answer))
    }

    /// Whether the plugin has asked for httpd's request, or wished it had on an earlier connection.
    pub fn wants_request(&self) -> bool {
        let handle = self.handle.acquire();
        let asked = handle.as_ref().is_some_and(|h| h.get().state.asked.load(Ordering::Relaxed));
        asked || self.plugin.wants_request()
    }
}

impl Endpoint for Connection {
    fn message(&self, kind: Kind, data: &mut [u8]) {
        let kind = match kind {
            Kind::Text => abi::MESSAGE_TYPE_TEXT,
            Kind::Binary => abi::MESSAGE_TYPE_BINARY,
        };
        let server = self.server.load(Ordering::Relaxed);
        let private = self.private.load(Ordering::Relaxed);
        let (buffer, size) = (data.as_mut_ptr(), data.len());
        // SAFETY: the ABI's on_message takes what on_connect returned, the same server structure, and a buffer
        // that it may change during the call.
        let call = || unsafe { (self.plugin.on_message)(private, server, kind, buffer, size) };
        let _ = self.callbacks.run(call);
    }

    fn closed(&self) {
        let handle = self.handle.acquire().take();
        let Some(handle) = handle else { return };
        if let Some(on_disconnect) = self.plugin.on_disconnect {
            let server = self.server.load(Ordering::Relaxed);
            // SAFETY: as for on_message; it is the last call of this connection.
            let call = || unsafe { on_disconnect(self.private.load(Ordering::Relaxed), server) };
            self.callbacks.run(call);
        }
        handle.get().state.request.store(ptr::null_mut(), Ordering::Release);
        retire(handle, self.alone.then_some(&self.plugin.window));
    }

    fn callbacks(&self) -> Option<&Callbacks> {
        Some(&self.callbacks)
    }

    /// From now on the plugin gets NULL for it.
    fn forget_request(&self) {
        if let Some(handle) = &*self.handle.acquire() {
            handle.get().state.request.store(ptr::null_mut(), Ordering::Release);
        }
    }
}

/// Keeps a handle for a while, that of a window at least until the next one has ended there; the oldest one goes.
fn retire(handle: Owned<Handle>, window: Option<&Window>) {
    let state = &handle.get().state;
    state.outbox.dispose();
    // As large as a client has made it; what is kept for a call that comes late must be small.
    drop(state.brought().take());
    let handle = match window {
        Some(window) => window.ended.acquire().replace(handle),
        None => Some(handle),
    };
    let Some(handle) = handle else { return };
    let mut retired = RETIRED.acquire();
    retired.push_back(handle);
    let oldest = if retired.len() > KEPT { retired.pop_front() } else { None };
    drop(retired);
    drop(oldest);
}

/// Runs `f` with the connection behind `server`; `default` for NULL and for a panic, which must not
/// reach the plugin's frames.
fn boundary<R>(
    server: *const abi::WebSocketServer,
    default: R,
    f: impl FnOnce(&ServerState) -> R,
) -> R {
    // SAFETY: the ABI makes the plugin pass the pointer that it was given, or it is NULL.
    let server = unsafe { server.as_ref() };
    let shown = server.map(|server| server.state.cast::<AtomicPtr<ServerState>>());
    // SAFETY: `shown` is in the view that holds `server`; both live as long.
    let shown = shown.and_then(|shown| unsafe { shown.as_ref() });
    // Acquire: as stored by `open`.
    let state = shown.map(|shown| shown.load(Ordering::Acquire));
    // SAFETY: the state is in the view's own handle, or in one that is kept until long after a window has shown another.
    let Some(state) = state.and_then(|state| unsafe { state.as_ref() }) else { return default };
    catch_unwind(AssertUnwindSafe(|| f(state))).unwrap_or(default)
}

/// A string of the plugin's; `None` for NULL.
///
/// # Safety
/// - `string` is NULL or NUL-terminated and stays so for `'s`.
unsafe fn string<'s>(string: *const c_char) -> Option<&'s CStr> {
    // SAFETY: it is NULL or a string that lives as long as the result, as this function demands.
    (!string.is_null()).then(|| unsafe { CStr::from_ptr(string) })
}

unsafe extern "C" fn cb_request(server: *const abi::WebSocketServer) -> *mut abi::request_rec {
    boundary(server, ptr::null_mut(), |state| {
        state.asked.store(true, Ordering::Relaxed);
        let request = state.request.load(Ordering::Acquire);
        if request.is_null() && !state.wants_request.swap(true, Ordering::Relaxed) {
            state.warn(format_args!(
                "WS0207: request was called after on_connect, when the request was gone; from now \
                 on connections of this plugin are not detached, unless WebSocketDetach is On"
            ));
        }
        request
    })
}

unsafe extern "C" fn cb_header_get(
    server: *const abi::WebSocketServer,
    key: *const c_char,
) -> *const c_char {
    boundary(server, ptr::null(), |state| {
        // SAFETY: the ABI's key is NULL or a string for the length of the call.
        let key = unsafe { string(key) };
        let brought = state.brought();
        let value = key.and_then(|key| brought.as_ref()?.headers.get(key));
        value.map_or(ptr::null(), CStr::as_ptr)
    })
}

unsafe extern "C" fn cb_header_set(
    server: *const abi::WebSocketServer,
    key: *const c_char,
    value: *const c_char,
) {
    boundary(server, (), |state| {
        // SAFETY: the ABI's key is NULL or a string for the length of the call.
        let key = unsafe { string(key) };
        // SAFETY: the same is true of its value.
        let value = unsafe { string(value) };
        let (Some(key), Some(value)) = (key, value) else {
            state.warn(format_args!("WS0201: header_set was given NULL; ignored"));
            return;
        };
        if !is_header_name(key.to_bytes()) || value.to_bytes().iter().any(|&b| is_control(b)) {
            let key = key.to_bytes().escape_ascii();
            state.warn(format_args!(
                "WS0202: header_set \"{key}\": the name is not a token or the value has control \
                 characters; ignored"
            ));
            return;
        }
        if is_ours(key.to_bytes()) {
            let key = key.to_bytes().escape_ascii();
            state.warn(format_args!("WS0203: header_set {key}: the module sets it; ignored"));
            return;
        }
        if let Some(answer) = &mut *state.answer() {
            answer.headers.retain(|(k, _)| !k.to_bytes().eq_ignore_ascii_case(key.to_bytes()));
            answer.headers.push((key.to_owned(), value.to_owned()));
        }
    });
}

/// A field name is a token (RFC 9110 §5.1).
fn is_header_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().copied().all(is_token_byte)
}

/// A byte that would break a field value apart; a tab is allowed (RFC 9110 §5.5).
fn is_control(byte: u8) -> bool {
    byte != b'\t' && byte.is_ascii_control()
}

/// Headers of the 101 that decide how the connection is read (RFC 6455 §4.2.2, RFC 9110 §15.2).
fn is_ours(name: &[u8]) -> bool {
    let ours: [&[u8]; 4] = [b"Upgrade", b"Connection", b"Content-Length", b"Transfer-Encoding"];
    let prefix = b"Sec-WebSocket-";
    ours.iter().any(|n| n.eq_ignore_ascii_case(name))
        || name.len() >= prefix.len() && name[..prefix.len()].eq_ignore_ascii_case(prefix)
}

unsafe extern "C" fn cb_protocol_count(server: *const abi::WebSocketServer) -> usize {
    boundary(server, 0, |state| {
        state.brought().as_ref().map_or(0, |brought| brought.protocols.count())
    })
}

unsafe extern "C" fn cb_protocol_index(
    server: *const abi::WebSocketServer,
    index: usize,
) -> *const c_char {
    boundary(server, ptr::null(), |state| {
        let brought = state.brought();
        let name = brought.as_ref().and_then(|brought| brought.protocols.get(index));
        name.map_or(ptr::null(), CStr::as_ptr)
    })
}

unsafe extern "C" fn cb_protocol_set(server: *const abi::WebSocketServer, protocol: *const c_char) {
    boundary(server, (), |state| {
        // SAFETY: the ABI's protocol is NULL or a string for the length of the call.
        let Some(protocol) = (unsafe { string(protocol) }) else {
            state.warn(format_args!("WS0204: protocol_set was given NULL; ignored"));
            return;
        };
        // RFC 6455 §4.2.2: the subprotocol is one of those that the client sent.
        let offered = match &*state.brought() {
            Some(brought) => brought.protocols.find(protocol).map(CStr::to_owned),
            // A call that comes late.
            None => return,
        };
        let Some(offered) = offered else {
            let protocol = protocol.to_bytes().escape_ascii();
            state.warn(format_args!(
                "WS0205: protocol_set {protocol}: the client did not offer it; ignored"
            ));
            return;
        };
        if let Some(answer) = &mut *state.answer() {
            answer.protocol = Some(offered);
        }
    });
}

unsafe extern "C" fn cb_send(
    server: *const abi::WebSocketServer,
    kind: c_int,
    buffer: *const c_uchar,
    size: usize,
) -> usize {
    boundary(server, 0, |state| {
        let payload = match size {
            0 => &[],
            _ if buffer.is_null() || size > isize::MAX as usize => return 0,
            // SAFETY: the ABI's buffer holds `size` bytes for the length of the call.
            _ => unsafe { slice::from_raw_parts(buffer, size) },
        };
        let outbox = &state.outbox;
        let sent = match kind {
            abi::MESSAGE_TYPE_TEXT => outbox.send_message(Kind::Text, payload),
            abi::MESSAGE_TYPE_BINARY => outbox.send_message(Kind::Binary, payload),
            abi::MESSAGE_TYPE_PING => outbox.send_control(Opcode::Ping, payload),
            abi::MESSAGE_TYPE_PONG => outbox.send_control(Opcode::Pong, payload),
            abi::MESSAGE_TYPE_CLOSE => outbox.close_with(payload),
            _ => Err(Refused::Illegal),
        };
        match sent {
            Ok(()) => size,
            Err(Refused::Closing | Refused::Full) => 0,
            Err(Refused::Illegal) => {
                state.warn(format_args!(
                    "WS0206: send of type {kind} with {size} bytes is not possible; ignored"
                ));
                0
            }
        }
    })
}

unsafe extern "C" fn cb_close(server: *const abi::WebSocketServer) {
    boundary(server, (), |state| {
        state.outbox.close(&[], "the plugin closes");
    });
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{cell::RefCell, thread};

    use libloading::os::unix::Library;

    use super::*;
    use crate::{
        conn::outbox::State as Conversation,
        fakes::{Driver, Lines, Wire, from_us, outbox},
    };

    thread_local! {
        /// What the plugin was called for on this thread, which is the test.
        static CALLS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    fn calls() -> Vec<String> {
        CALLS.take()
    }

    /// Accepts everybody, and chooses a header.
    unsafe extern "C" fn accept(server: *const abi::WebSocketServer) -> *mut c_void {
        CALLS.with_borrow_mut(|calls| calls.push("connect".to_owned()));
        // SAFETY: the module passes a live structure.
        let server_ref = unsafe { &*server };
        for value in [c"one", c"two"] {
            // SAFETY: as above; the strings live for the call.
            unsafe { (server_ref.header_set)(server, c"X-Chosen".as_ptr(), value.as_ptr()) };
        }
        // SAFETY: as above.
        unsafe { (server_ref.header_set)(server, c"Upgrade".as_ptr(), c"x".as_ptr()) };
        server.cast_mut().cast()
    }

    unsafe extern "C" fn refuse(_: *const abi::WebSocketServer) -> *mut c_void {
        ptr::null_mut()
    }

    /// Sends messages back in upper case.
    unsafe extern "C" fn on_message(
        private: *mut c_void,
        server: *const abi::WebSocketServer,
        kind: c_int,
        buffer: *mut c_uchar,
        size: usize,
    ) -> usize {
        assert_eq!(private.cast_const(), server.cast());
        // SAFETY: the module passes a buffer that may be changed.
        let data = unsafe { slice::from_raw_parts_mut(buffer, size) };
        data.make_ascii_uppercase();
        // SAFETY: the module passes a live structure.
        let server_ref = unsafe { &*server };
        // SAFETY: as above, and the buffer holds so many bytes.
        unsafe { (server_ref.send)(server, kind, buffer, size) }
    }

    unsafe extern "C" fn on_disconnect(_: *mut c_void, server: *const abi::WebSocketServer) {
        let sent = send(server, abi::MESSAGE_TYPE_TEXT, b"too late");
        CALLS.with_borrow_mut(|calls| calls.push(format!("disconnect, sent {sent}")));
    }

    fn plugin(on_connect: abi::WS_OnConnect) -> Arc<Plugin> {
        Arc::new(Plugin {
            plugin: NonNull::dangling(),
            destroy: None,
            on_connect: Some(on_connect),
            on_message,
            on_disconnect: Some(on_disconnect),
            wants_request: Arc::default(),
            window: Window::new(),
            file: "a.so".into(),
            _library: Library::this(),
        })
    }

    fn send(server: *const abi::WebSocketServer, kind: c_int, data: &[u8]) -> usize {
        // SAFETY: the tests pass a structure that they were given, or one that is kept; the data live for the call.
        unsafe { cb_send(server, kind, data.as_ptr(), data.len()) }
    }

    /// A connection of a plugin, and a client who gets what is sent.
    struct Opened {
        connection: Connection,
        outbox: Arc<Outbox>,
        headers: Arc<Headers>,
        wire: Wire,
        log: Lines,
        _driver: Arc<Driver>,
    }

    fn open(plugin: &Arc<Plugin>, alone: bool) -> Opened {
        let ((outbox, log), wire) = (outbox(1000), Wire::new());
        let driver = Driver::new(Some(&wire), || panic!("nobody has to wait"));
        driver.rest(&outbox);
        let headers: Arc<Headers> = Arc::default();
        let opening = PluginOpening {
            outbox: outbox.clone(),
            request: ptr::dangling_mut::<c_void>().cast(),
            headers: headers.clone(),
            protocols: Protocols::default(),
            alone,
            callbacks: plugin.callbacks(),
        };
        calls();
        let (connection, answer) = Connection::open(plugin.clone(), opening).unwrap();
        assert_eq!(answer.headers, [(c"X-Chosen".into(), c"two".into())]);
        assert!(log.has("WS0203: header_set Upgrade"));
        assert_eq!(calls(), ["connect"]);
        Opened { connection, outbox, headers, wire, log, _driver: driver }
    }

    impl Opened {
        fn server(&self) -> *const abi::WebSocketServer {
            self.connection.server.load(Ordering::Relaxed)
        }

        /// Ends it as a driver does.
        fn end(&self) {
            self.outbox.end("test");
            self.connection.closed();
        }
    }

    #[test]
    fn a_message_is_the_plugins_to_change_and_to_answer() {
        let opened = open(&plugin(accept), false);
        opened.connection.message(Kind::Text, &mut b"hello".to_owned());
        opened.connection.message(Kind::Binary, &mut []);
        let sent = [from_us(Opcode::Text, b"HELLO"), from_us(Opcode::Binary, b"")];
        assert_eq!(opened.wire.sent(), sent.concat());
    }

    #[test]
    fn the_end_is_told_once_and_nothing_can_be_sent_in_it() {
        let opened = open(&plugin(accept), false);
        opened.end();
        opened.end();
        assert_eq!(calls(), ["disconnect, sent 0"]);
        assert_eq!(opened.wire.sent(), b"");
    }

    #[test]
    fn other_threads_send_until_the_end_and_are_refused_afterwards() {
        let opened = open(&plugin(accept), false);
        let server = opened.server().addr();
        let send_from_thread = || {
            let sent = thread::spawn(move || {
                let server = ptr::with_exposed_provenance::<abi::WebSocketServer>(server);
                send(server, abi::MESSAGE_TYPE_BINARY, b"1")
            });
            sent.join().unwrap()
        };
        let _ = opened.server().expose_provenance();
        assert_eq!(send_from_thread(), 1);
        assert_eq!(opened.wire.sent(), from_us(Opcode::Binary, b"1"));
        opened.end();
        // A thread that the plugin has not joined in time.
        let Opened { connection, outbox, headers, log, .. } = opened;
        drop(connection);
        assert_eq!(Arc::strong_count(&headers), 1, "what the request brought is gone");
        let key = c"host".as_ptr();
        let server = ptr::with_exposed_provenance::<abi::WebSocketServer>(server);
        // SAFETY: the structure is kept, and the key is a string.
        assert!(unsafe { cb_header_get(server, key) }.is_null());
        // SAFETY: as above.
        unsafe { cb_protocol_set(server, key) };
        assert!(!log.has("WS0205"), "nobody knows any more what was offered");
        assert_eq!(send_from_thread(), 0);
        // So many connections later nobody calls any more, and the memory goes.
        let weak = Arc::downgrade(&outbox);
        drop(outbox);
        assert!(weak.upgrade().is_some());
        for _ in 0..=KEPT {
            open(&plugin(accept), false).end();
            calls();
        }
        assert!(weak.upgrade().is_none());
    }

    #[test]
    fn a_plugin_lives_as_long_as_its_connections() {
        let plugin = plugin(accept);
        let opened = open(&plugin, false);
        assert_eq!(Arc::strong_count(&plugin), 2);
        opened.end();
        drop(opened);
        assert_eq!(Arc::strong_count(&plugin), 1);
    }

    #[test]
    fn a_plugin_that_refuses_is_not_told_of_an_end() {
        let (outbox, _) = outbox(1000);
        let opening = PluginOpening {
            outbox: outbox.clone(),
            request: ptr::null_mut(),
            headers: Arc::default(),
            protocols: Protocols::default(),
            alone: false,
            callbacks: plugin(refuse).callbacks(),
        };
        assert!(Connection::open(plugin(refuse), opening).is_none());
        assert_eq!((outbox.state(), calls()), (Conversation::Closed, vec![]));
    }

    #[test]
    fn the_request_is_there_until_it_is_forgotten() {
        let plugin = plugin(accept);
        let opened = open(&plugin, false);
        // SAFETY: the structure is live.
        let request = || unsafe { cb_request(opened.server()) };
        assert!(!opened.connection.wants_request());
        assert!(!request().is_null());
        assert!(opened.connection.wants_request() && !opened.log.has("WS0207"));
        opened.connection.forget_request();
        assert!(request().is_null() && opened.log.has("WS0207"));
        assert!(open(&plugin, false).connection.wants_request());
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let opened = open(&plugin(accept), false);
        let server = opened.server();
        assert_eq!(send(ptr::null(), abi::MESSAGE_TYPE_TEXT, b"1"), 0);
        for (kind, data) in [
            (999, &b"1"[..]),
            (abi::MESSAGE_TYPE_INVALID, b"1"),
            (abi::MESSAGE_TYPE_PING, &[0; 126]),
            (abi::MESSAGE_TYPE_CLOSE, b"\x03\xed"),
        ] {
            assert_eq!(send(server, kind, data), 0);
            assert!(opened.log.has(&format!("WS0206: send of type {kind}")));
        }
        // SAFETY: the structure is live; the module looks at what it is given.
        assert_eq!(unsafe { cb_send(server, abi::MESSAGE_TYPE_TEXT, ptr::null(), 5) }, 0);
        assert_eq!(send(server, abi::MESSAGE_TYPE_PING, b"1"), 1);
        // SAFETY: as above.
        unsafe { cb_close(server) };
        assert_eq!(send(server, abi::MESSAGE_TYPE_TEXT, b"1"), 0);
        let sent = [from_us(Opcode::Ping, b"1"), from_us(Opcode::Close, b"")];
        assert_eq!(opened.wire.sent(), sent.concat());
    }

    #[test]
    fn a_process_that_serves_one_after_the_other_shows_all_at_one_address() {
        let plugin = plugin(accept);
        let first = open(&plugin, true);
        let server = first.server();
        first.end();
        calls();
        assert_eq!(send(server, abi::MESSAGE_TYPE_TEXT, b"1"), 0);
        let second = open(&plugin, true);
        assert_eq!(second.server(), server);
        // What was kept from the first one leads to the second.
        assert_eq!(send(server, abi::MESSAGE_TYPE_TEXT, b"1"), 1);
        assert_eq!(second.wire.sent(), from_us(Opcode::Text, b"1"));
        assert_eq!(first.wire.sent(), b"");
        second.end();
        assert_ne!(open(&plugin, false).server(), server);
    }
}
