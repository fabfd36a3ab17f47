//! Plugins: shared libraries written against `include/websocket_plugin.h`.
//!
//! | file | owns |
//! |---|---|
//! | [`abi`] | the C types |
//! | this one | loading, checking and unloading a plugin |
//! | [`connection`] | one connection of a plugin: what it is called with, and the functions it may call |
//! | [`headers`] | the copy of the request's headers that a connection keeps |
//! | [`protocols`] | the subprotocols that it keeps |
#![expect(unsafe_code, reason = "plugins are C")]

use core::{fmt, ptr::NonNull};
use std::{
    ffi::{CStr, CString, OsStr},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use libloading::os::unix::Library;

use crate::{
    conn::callbacks::Callbacks,
    library::{self, NoFunction},
    sync::Lock as _,
};

pub mod abi;
pub mod connection;
pub mod headers;
pub mod protocols;

/// A loaded plugin; it is destroyed and its library closed with the last reference.
pub struct Plugin {
    plugin: NonNull<abi::WebSocketPlugin>,
    destroy: Option<abi::WS_Destroy>,
    on_connect: Option<abi::WS_OnConnect>,
    on_message: abi::WS_OnMessage,
    on_disconnect: Option<abi::WS_OnDisconnect>,
    /// A connection asked for its request when that was gone: later ones keep theirs.
    wants_request: Arc<AtomicBool>,
    /// Where it sees the connections of a process that serves one after the other.
    window: connection::Window,
    /// The library's file.
    file: Arc<str>,
    /// Closed after `drop` has called `destroy`.
    _library: Library,
}

// SAFETY: the ABI allows callbacks from any thread; the pointer itself is used in `drop` only.
unsafe impl Send for Plugin {}
// SAFETY: as above; what changes in it after loading are atomics and what has a lock.
unsafe impl Sync for Plugin {}

/// Why a plugin cannot be used: the reason that a configuration error gives.
#[derive(Debug)]
pub enum LoadError {
    /// The library cannot be loaded, and why.
    Library(String),
    /// The library has no such function.
    Symbol(NoFunction),
    /// The init function returned NULL.
    Null,
    /// The plugin is of a version that this module does not know.
    Version(u32),
    /// The plugin's structure is too small for its version.
    Size(u32),
    /// The plugin has no on_message.
    OnMessage,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(reason) => write!(f, "the library cannot be loaded: {reason}"),
            Self::Symbol(NoFunction::Absent) => {
                f.write_str("the library does not export this function")
            }
            Self::Symbol(NoFunction::Data) => f.write_str(
                "the library exports data of this name: name the function that returns the plugin",
            ),
            Self::Null => f.write_str("the function returned NULL instead of a plugin"),
            Self::Version(version) => {
                write!(f, "the plugin has version {version}, this module knows version 0")
            }
            Self::Size(size) => {
                let needed = size_of::<abi::WebSocketPlugin>();
                write!(f, "the plugin's size is {size}, version 0 has {needed} bytes")
            }
            Self::OnMessage => f.write_str("the plugin has no on_message function"),
        }
    }
}

/// The plugins in use, so that a plugin named in several places is loaded and initialised once.
static LOADED: Mutex<Vec<(CString, CString, Weak<Plugin>)>> = Mutex::new(Vec::new());

impl Plugin {
    /// Loads `library`, calls its function `init` and checks what it returns.
    ///
    /// Runs the library's own code, its constructors and `init`; so only an administrator's configuration may name it.
    pub fn load(library: &CStr, init: &CStr) -> Result<Arc<Self>, LoadError> {
        let mut loaded = LOADED.acquire();
        loaded.retain(|(_, _, plugin)| plugin.strong_count() > 0);
        let same = loaded.iter().find(|(l, i, _)| **l == *library && **i == *init);
        if let Some(plugin) = same.and_then(|(_, _, plugin)| plugin.upgrade()) {
            return Ok(plugin);
        }
        let plugin = Arc::new(Self::load_anew(library, init)?);
        loaded.push((library.to_owned(), init.to_owned(), Arc::downgrade(&plugin)));
        Ok(plugin)
    }

    /// Whether its connections need httpd's request beyond on_connect, as one of them has asked for it then.
    pub fn wants_request(&self) -> bool {
        self.wants_request.load(Ordering::Relaxed)
    }

    /// The callbacks of a connection that it is going to have.
    pub fn callbacks(&self) -> Arc<Callbacks> {
        Arc::new(Callbacks::new(self.file.clone()))
    }

    fn load_anew(library: &CStr, init: &CStr) -> Result<Self, LoadError> {
        let path = Path::new(OsStr::from_bytes(library.to_bytes()));
        // SAFETY: the administrator vouches for the library's constructors by naming it.
        let library = unsafe { library::open(path) }.map_err(LoadError::Library)?;
        // SAFETY: the administrator vouches for the function's type by naming it in WebSocketHandler.
        let init = unsafe { library::function::<abi::WS_Init>(&library, init) };
        let init = init.map_err(LoadError::Symbol)?;
        // SAFETY: as above; the ABI gives it no arguments.
        let plugin = NonNull::new(unsafe { init() }).ok_or(LoadError::Null)?;
        // SAFETY: the ABI says that init returns a structure that stays valid until destroy. Its first two members
        // are there in every version; they decide whether the rest may be read.
        let [size, version] = unsafe { plugin.cast::<[u32; 2]>().read() };
        if version != abi::WEBSOCKET_PLUGIN_VERSION_0 {
            return Err(LoadError::Version(version));
        }
        if (size as usize) < size_of::<abi::WebSocketPlugin>() {
            return Err(LoadError::Size(size));
        }
        // SAFETY: version and size say that all members of version 0 are there.
        let members = unsafe { plugin.as_ref() };
        Ok(Self {
            plugin,
            destroy: members.destroy,
            on_connect: members.on_connect,
            on_message: members.on_message.ok_or(LoadError::OnMessage)?,
            on_disconnect: members.on_disconnect,
            wants_request: Arc::default(),
            window: connection::Window::new(),
            file: path.to_string_lossy().into(),
            _library: library,
        })
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if let Some(destroy) = self.destroy {
            // SAFETY: the plugin was returned by init and is destroyed once. No connection uses it, since each
            // one holds a reference.
            unsafe { destroy(self.plugin.as_ptr()) };
        }
        // httpd unloads the module before it reads its configuration again: the list goes with its last plugin.
        let mut loaded = LOADED.acquire();
        loaded.retain(|(_, _, plugin)| plugin.strong_count() > 0);
        loaded.shrink_to_fit();
    }
}
