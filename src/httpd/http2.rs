//! WebSockets over HTTP/2 (RFC 8441): what mod_http2 tells of its streams, and how many threads it has for them.
//!
//! mod_http2 turns an extended CONNECT into a GET with `Upgrade: websocket` on a connection of its own, whose master is the
//! client's, and the 101 into a 200. Such a connection has no socket: what httpd gives as one belongs to nobody, or to
//! everybody. Its input can be waited for. Its output goes to mod_http2, which keeps some of what the client has no room
//! for yet, lets the writer wait with the rest, and cannot be asked how much that is: so it gets little at a time, and more
//! when it has let go of that. The stream holds one of mod_http2's worker threads (`H2MaxWorkers`) as long as it lives.

use core::{
    ffi::{c_int, c_void},
    mem, ptr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use std::{io, os::fd::RawFd, sync::Arc};

use super::{connection::Connection, filters::Filters, log, request::Request, sys};
use crate::conn::log::Level;

/// Sees whether a request that came on a stream can become a WebSocket; the status that refuses it if not.
pub(super) fn check(r: Request<'_>) -> Result<(), c_int> {
    if !r.connection().is_stream() {
        return Ok(());
    }
    if let Err(error) = descriptor(r.connection()) {
        let line = "WS0103: no WebSocket on this stream of HTTP/2:";
        log::request(r, Level::Info, format_args!("{line} {error}"));
        return Err(sys::HTTP_NOT_IMPLEMENTED as c_int);
    }
    Ok(())
}

/// The descriptor that shows a stream's input, a pipe of mod_http2's.
pub(super) fn descriptor(connection: Connection<'_>) -> io::Result<RawFd> {
    type GetPollfd = unsafe extern "C" fn(
        *mut sys::conn_rec,
        *mut sys::apr_pollfd_t,
        *mut sys::apr_interval_time_t,
    ) -> sys::apr_status_t;
    let name = c"ap_get_pollfd_from_conn";
    // SAFETY: the name lives for the call. A link to the function would keep an httpd without it from loading us.
    let function = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if function.is_null() {
        return Err(io::Error::other("that needs httpd 2.4.58 or newer"));
    }
    // SAFETY: http_core.h declares it with this type.
    let get = unsafe { mem::transmute::<*mut c_void, GetPollfd>(function) };
    // SAFETY: apr_pollfd_t is plain data for which all-zero is a valid value.
    let mut poll: sys::apr_pollfd_t = unsafe { mem::zeroed() };
    // SAFETY: R5; the structure is live, and the timeout is optional.
    let status = unsafe { get(connection.as_ptr(), &raw mut poll, ptr::null_mut()) };
    if status != sys::APR_SUCCESS as i32 {
        return Err(io::Error::other("mod_http2 gives no descriptor to wait on"));
    }
    let mut descriptor = -1;
    let status = match poll.desc_type {
        // SAFETY: the type says that this is the form of the descriptor; it is live as long as the connection.
        sys::apr_datatype_e_APR_POLL_FILE => unsafe {
            sys::apr_os_file_get(&raw mut descriptor, poll.desc.f)
        },
        // SAFETY: as above.
        sys::apr_datatype_e_APR_POLL_SOCKET => unsafe {
            sys::apr_os_sock_get(&raw mut descriptor, poll.desc.s)
        },
        _ => return Err(io::Error::other("the client has ended it already")),
    };
    match status {
        s if s != sys::APR_SUCCESS as i32 => Err(Filters::error(s)),
        // One that is closed already has no number.
        _ if descriptor < 0 => Err(io::ErrorKind::NotConnected.into()),
        _ => Ok(descriptor),
    }
}

/// How much of a stream mod_http2 may hold: less than the 32 KiB at which it lets the writer wait. (Only where
/// `H2StreamMaxMemSize` is set to less than this do writers wait, up to `Timeout`.)
const MOST_HELD: usize = 24 * 1024;

/// The bytes of a stream that mod_http2 has and the client has no room for.
#[derive(Debug, Default)]
pub(super) struct HeldBytes {
    bytes: Arc<AtomicUsize>,
    /// How often in a row there was no room.
    refused: u32,
}

/// What stands before the bytes of a bucket that [`HeldBytes`] counts.
struct Header {
    held: Arc<AtomicUsize>,
    size: usize,
}

impl HeldBytes {
    /// How many of `wanted` bytes may be written now; `None` if that would be too few to be worth it.
    pub(super) fn room(&mut self, wanted: usize) -> Option<usize> {
        let room = MOST_HELD.saturating_sub(self.bytes.load(Ordering::Relaxed));
        let enough = room >= wanted.min(MOST_HELD / 2);
        self.refused = if enough { 0 } else { self.refused.saturating_add(1) };
        enough.then_some(room)
    }

    /// When to ask again: soon at first, since most clients have room all the time, and later for one that has none.
    pub(super) fn retry(&self) -> Duration {
        Duration::from_micros(20 << self.refused.min(11))
    }

    /// A bucket with a copy of `bytes`, counted as long as it or a part of it exists.
    ///
    /// # Safety
    /// - `list` is a live bucket allocator, of this thread.
    pub(super) unsafe fn bucket(
        &self,
        bytes: &[u8],
        list: *mut sys::apr_bucket_alloc_t,
    ) -> *mut sys::apr_bucket {
        const HEADER: usize = size_of::<Header>();
        // SAFETY: malloc has no preconditions.
        let memory = unsafe { libc::malloc(HEADER + bytes.len()) }.cast::<u8>();
        assert!(!memory.is_null(), "memory for a few bytes to write");
        self.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        let header = Header { held: self.bytes.clone(), size: bytes.len() };
        // SAFETY: the memory is aligned for anything, and has room for the header and the bytes behind it. A bucket of
        // the heap type takes the whole memory over and gives it to `release`; the part it shows is moved behind the
        // header.
        unsafe {
            memory.cast::<Header>().write(header);
            ptr::copy_nonoverlapping(bytes.as_ptr(), memory.add(HEADER), bytes.len());
            let size = HEADER + bytes.len();
            let bucket = sys::apr_bucket_heap_create(memory.cast(), size, Some(release), list);
            (*bucket).start = HEADER as sys::apr_off_t;
            (*bucket).length = bytes.len();
            bucket
        }
    }
}

/// The last bucket with some of these bytes is gone; on any thread.
unsafe extern "C" fn release(memory: *mut c_void) {
    // SAFETY: `HeldBytes::bucket` made the memory, and a heap bucket gives it back once.
    unsafe {
        let Header { held, size } = memory.cast::<Header>().read();
        held.fetch_sub(size, Ordering::Relaxed);
        libc::free(memory);
    }
}

/// mod_http2's `H2MaxWorkers`, set or not; `None` without mod_http2.
///
/// # Safety
/// - `server` is live.
pub(super) unsafe fn workers(server: *mut sys::server_rec) -> Option<u32> {
    type GetNumWorkers = unsafe extern "C" fn(*mut sys::server_rec, *mut c_int, *mut c_int);
    // SAFETY: the name lives for the call.
    let function = unsafe { sys::apr_dynamic_fn_retrieve(c"http2_get_num_workers".as_ptr()) }?;
    // SAFETY: mod_http2.h declares the function with this type.
    let get = unsafe { mem::transmute::<unsafe extern "C" fn(), GetNumWorkers>(function) };
    let (mut least, mut most) = (0, 0);
    // SAFETY: the server is live, as this function demands; both integers are live.
    unsafe { get(server, &raw mut least, &raw mut most) };
    u32::try_from(most).ok()
}
