//! Backends in libraries, with the interface of `include/websocket_bridge.h`: loading, configuring and asking one.
//!
//! A library has one configuration, since its functions are told of no other: it is set up once, for all that use it with
//! the same options, and refused with others. When the configuration goes away, `cleanup` is called and the library closed,
//! so that the next `init` finds it as new. One that has registered framings stays mapped, however.
#![expect(unsafe_code, reason = "backends may be C")]

use core::{
    ffi::{CStr, c_char, c_void},
    mem, ptr,
};
use std::{
    ffi::CString,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{SystemTime, UNIX_EPOCH},
};

use libloading::os::unix::Library as Handle;

use super::{Backend, Query, address};
use crate::{
    bridge::{
        PeerChoice, abi,
        framing::{self, registry},
    },
    library::{self, NoFunction},
    sync::Lock as _,
};

/// The handshake's own headers, which a backend does not see.
const HIDDEN: [&str; 5] = [
    "Connection",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Version",
    "Upgrade",
];

/// A library that is loaded and configured.
pub struct Library {
    path: PathBuf,
    /// Where relative paths of Unix sockets start.
    root: PathBuf,
    query: abi::ws_backend_query,
    cleanup: Option<abi::ws_backend_cleanup>,
    /// Held during each query, unless the administrator says that the library needs no such care.
    turn: Option<Mutex<()>>,
    /// Closed after `drop` has called `cleanup`.
    _handle: Handle,
}

/// A library in use.
struct Loaded {
    handle: *mut c_void,
    options: Vec<(String, String)>,
    parallel: bool,
    library: Weak<Library>,
}

// SAFETY: the pointer is compared with others and never followed.
unsafe impl Send for Loaded {}

static LOADED: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

impl Library {
    /// Loads the library at `path` and configures it; an error is a sentence for the administrator.
    ///
    /// Runs the library's own code, its constructors and `init`; so only an administrator's configuration may name it.
    pub fn open(
        path: &Path,
        options: &[(String, String)],
        root: &Path,
        parallel: bool,
    ) -> Result<Arc<Self>, String> {
        let mut loaded = LOADED.acquire();
        loaded.retain(|loaded| loaded.library.strong_count() > 0);
        let wrong = |what: &str| format!("the backend {}: {what}", path.display());
        // A backend may ask for framings of this module, wherever httpd's loader has put its symbols.
        registry::pin(registry::core_framing as *const c_void, libc::RTLD_GLOBAL);
        // SAFETY: the administrator vouches for the library's constructors by naming it.
        let handle = unsafe { library::open(path) };
        let raw = handle.map_err(|e| wrong(&e))?.into_raw();
        // SAFETY: the pointer comes from `into_raw`.
        let handle = unsafe { Handle::from_raw(raw) };
        // The loader gives one mapping one handle, whatever the path was.
        if let Some(same) = loaded.iter().find(|loaded| loaded.handle == raw) {
            if same.options != options || same.parallel != parallel {
                return Err(wrong(
                    "it is in use with other options, and has room for one set only; a copy of the \
                     library under another name can have its own",
                ));
            }
            if let Some(library) = same.library.upgrade() {
                return Ok(library);
            }
        }
        let library =
            Arc::new(Self::set_up(path, handle, options, root, parallel).map_err(|e| wrong(&e))?);
        let options = options.to_vec();
        loaded.push(Loaded { handle: raw, options, parallel, library: Arc::downgrade(&library) });
        Ok(library)
    }

    fn set_up(
        path: &Path,
        handle: Handle,
        options: &[(String, String)],
        root: &Path,
        parallel: bool,
    ) -> Result<Self, String> {
        // SAFETY: the administrator vouches for the types of these functions by naming the library as a backend; so too
        // below.
        let init = unsafe { symbol::<abi::ws_backend_init>(&handle, c"init") }?;
        let init = init.ok_or("it exports no function init, so it is no backend")?;
        // SAFETY: as above.
        let query = unsafe { symbol::<abi::ws_backend_query>(&handle, c"query") }?;
        let query = query.ok_or("it exports no function query, so it is no backend")?;
        // SAFETY: as above.
        let configure = unsafe { symbol::<abi::ws_backend_configure>(&handle, c"configure") }?;
        // SAFETY: as above.
        let cleanup = unsafe { symbol::<abi::ws_backend_cleanup>(&handle, c"cleanup") }?;
        // SAFETY: the interface calls it first and without arguments.
        let version = unsafe { init() };
        if version != abi::WEBSOCKSY_API_VERSION {
            return Err(format!(
                "it is of interface version {version}, this module knows version {}",
                abi::WEBSOCKSY_API_VERSION
            ));
        }
        // From here on its end calls cleanup.
        let turn = (!parallel).then(|| Mutex::new(()));
        let library = Self {
            path: path.to_owned(),
            root: root.to_owned(),
            query,
            cleanup,
            turn,
            _handle: handle,
        };
        for (key, value) in options {
            let configure =
                configure.ok_or("it takes no options: it exports no function configure")?;
            let mut key_text = Text::new(key).ok_or("an option has a NUL byte")?;
            let mut value = Text::new(value).ok_or("an option has a NUL byte")?;
            // SAFETY: the interface passes two strings, which the library may change.
            if unsafe { configure(key_text.as_mut_ptr(), value.as_mut_ptr()) } != 0 {
                return Err(format!("it refuses the option '{key}'"));
            }
        }
        Ok(library)
    }

    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.turn.as_ref().map(|turn| turn.acquire())
    }
}

/// A function that the library exports, if it does; an error if it exports data of this name.
///
/// # Safety
/// - `F` is the type of a pointer to the function.
unsafe fn symbol<F: Copy>(handle: &Handle, name: &CStr) -> Result<Option<F>, String> {
    // SAFETY: `F` is the type of a pointer to the function, as this function demands.
    match unsafe { library::function(handle, name) } {
        Ok(function) => Ok(Some(function)),
        Err(NoFunction::Absent) => Ok(None),
        Err(NoFunction::Data) => Err(format!(
            "its {} is data and no function, so it is no backend",
            name.to_string_lossy()
        )),
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        if let Some(cleanup) = self.cleanup {
            // SAFETY: the interface calls it last; nobody is in a query, since that borrows the library.
            unsafe { cleanup() };
        }
    }
}

/// A string of C that the library may change.
struct Text(Vec<u8>);

impl Text {
    fn new(text: &str) -> Option<Self> {
        Some(Self(CString::new(text).ok()?.into_bytes_with_nul()))
    }

    fn as_mut_ptr(&mut self) -> *mut c_char {
        self.0.as_mut_ptr().cast()
    }
}

/// Strings and the array of pointers to them, which ends with NULL.
struct Texts {
    _texts: Vec<Text>,
    pointers: Vec<*mut c_char>,
}

impl Texts {
    /// What has a NUL byte is empty here; httpd lets none through.
    fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let mut texts: Vec<_> =
            texts.map(|text| Text::new(text).unwrap_or_else(|| Text(vec![0]))).collect();
        let mut pointers: Vec<_> = texts.iter_mut().map(Text::as_mut_ptr).collect();
        pointers.push(ptr::null_mut());
        Self { _texts: texts, pointers }
    }
}

/// A string that the library has allocated, which is freed with it.
struct Allocated(*mut c_char);

impl Allocated {
    /// The string, if there is one; an error names what it was meant to be.
    fn text(&self, what: &str) -> Result<Option<&str>, String> {
        if self.0.is_null() {
            return Ok(None);
        }
        // SAFETY: the interface says that it is NULL or a string.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(Some).map_err(|_| format!("the {what} that it returned is not UTF-8"))
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        // SAFETY: the interface says that it is NULL or came from malloc, and is the module's to free.
        unsafe { libc::free(self.0.cast()) };
    }
}

impl Backend for Library {
    fn query(&self, query: &Query<'_>) -> Result<Option<PeerChoice>, String> {
        let endpoint = Texts::new([query.endpoint].into_iter());
        let mut protocols = Texts::new(query.protocols.iter().copied());
        let visible = |name: &str| !HIDDEN.iter().any(|hidden| hidden.eq_ignore_ascii_case(name));
        let headers = query.headers.iter().filter(|(name, _)| visible(name));
        let tags = Texts::new(headers.clone().map(|(tag, _)| *tag));
        let values = Texts::new(headers.map(|(_, value)| *value));
        let pairs = tags.pointers.iter().zip(&values.pointers);
        let mut headers: Vec<_> =
            pairs.map(|(&tag, &value)| abi::ws_http_header { tag, value }).collect();
        // The pair of NULLs at the end is not counted.
        let count = headers.len() - 1;
        let key = query.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("Sec-WebSocket-Key"));
        let key = Texts::new(key.iter().map(|(_, key)| *key));

        let mut socket = socket(&headers[..count]);
        socket.request_path = endpoint.pointers[0];
        socket.socket_key = key.pointers[0];
        socket.protocols = query.protocols.len();
        socket.protocol = protocols.pointers.as_mut_ptr();
        let result = {
            let _turn = self.turn();
            // SAFETY: init and configure have succeeded, and the arguments are what the interface promises: strings and
            // arrays of them that may be changed and that live until the end of this function.
            unsafe {
                (self.query)(
                    endpoint.pointers[0],
                    query.protocols.len(),
                    protocols.pointers.as_mut_ptr(),
                    count,
                    headers.as_mut_ptr(),
                    &raw mut *socket,
                )
            }
        };
        self.target(result, query.protocols.len())
    }
}

impl Library {
    /// What a backend's answer means; `protocols` is how many the client offers.
    fn target(
        &self,
        result: abi::ws_peer_info,
        protocols: usize,
    ) -> Result<Option<PeerChoice>, String> {
        let (host, port) = (Allocated(result.host), Allocated(result.port));
        let config = Allocated(result.framing_config);
        let wrong = |what: String| format!("the backend {}: {what}", self.path.display());
        let Some(host) = host.text("host").map_err(wrong)? else { return Ok(None) };
        let port = port.text("port").map_err(wrong)?.filter(|port| !port.is_empty());
        let host = match result.transport {
            abi::peer_transport_detect => host.to_owned(),
            abi::peer_tcp_client => format!("tcp://{host}"),
            abi::peer_udp_client => format!("udp://{host}"),
            abi::peer_unix_stream => format!("unix://{host}"),
            abi::peer_unix_dgram => format!("unix-dgram://{host}"),
            other => {
                return Err(wrong(format!(
                    "the transport {other} that it returned is not supported"
                )));
            }
        };
        let protocol = Some(result.protocol).filter(|index| *index < protocols);
        Ok(Some(PeerChoice {
            peer: address(&host, port, &self.root).map_err(wrong)?,
            framing: result.framing.map_or_else(|| framing::DEFAULT.to_owned(), registry::name_of),
            framing_config: config.text("framing_config").map_err(wrong)?.map(str::to_owned),
            protocol,
        }))
    }
}

/// A client's connection as websocksy shows it to its backends, with the headers that have room there.
fn socket(headers: &[abi::ws_http_header]) -> Box<abi::websocket> {
    // SAFETY: integers, arrays, pointers and an optional function: all zeroes are a value of each.
    let mut socket: Box<abi::websocket> = Box::new(unsafe { mem::zeroed() });
    socket.ws_fd = -1;
    socket.state = abi::ws_http;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    socket.last_event = now.as_secs().try_into().unwrap_or_default();
    socket.headers = headers.len().min(abi::WS_HEADER_LIMIT);
    for (own, header) in socket.header.iter_mut().zip(headers) {
        *own = abi::ws_http_header { ..*header };
    }
    socket.websocket_version = 13;
    socket.want_upgrade = 1;
    socket.peer_fd = -1;
    socket
}
