//! The transport through httpd's connection filters, for TLS and whatever else sits there.
//!
//! It never blocks: the core output filter would if it were given more than it may hold back, or a flush, so it gets
//! one portion at a time and is pushed until that has left. A stream of HTTP/2 has mod_http2's filter there instead,
//! which blocks likewise, and gets no more at a time than it has room for.

use core::{
    ffi::CStr,
    ptr::{self, NonNull},
};
use std::{
    io,
    os::fd::{BorrowedFd, RawFd},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{MEMORY, connection::Connection, http2, sys, tls};
use crate::{
    driver::{
        Transport,
        plain::{Early, Socket},
    },
    os::{self, Interest, Sources},
    proto::Violation,
};

/// The largest portion for the output filters, as a part of the limit at which the core filter starts to block
/// (`FlushMaxThreshold`, 64 KiB): with what TLS adds it stays below that.
const PORTION: (usize, usize) = (3, 4);
/// How many bytes of a client that keeps sending are taken out of the filters before the connection stays with them, and
/// how many reads that may take: a record of TLS may have a single byte, so that those are 400 KB at least on the wire, and
/// some ten milliseconds of this thread's time.
const EARLY: usize = 1 << 20;
const EARLY_READS: usize = 16 * 1024;
/// How many records without data are read before others of the connection's affairs have their turn.
const EMPTY_READS: usize = 256;

/// A connection as httpd's filters see it.
pub(super) struct Filters {
    connection: *mut sys::conn_rec,
    /// Of the connection's pool, emptied after each use.
    input: *mut sys::apr_bucket_brigade,
    output: *mut sys::apr_bucket_brigade,
    descriptor: RawFd,
    /// How much the output filters take at a time.
    portion: usize,
    /// What mod_http2 holds, if it has the last output filter instead of httpd's core.
    stream: Option<http2::HeldBytes>,
    /// TLS is among the filters.
    is_tls: bool,
    /// Read before the filters themselves.
    early: Early,
}

// SAFETY: a driver uses a transport on one thread at a time: the one that owns the connection.
unsafe impl Send for Filters {}

impl Filters {
    /// # Safety
    /// - The value's methods are called while the connection lives, by the thread that owns it. It may be dropped later, and
    ///   on any thread.
    pub(super) unsafe fn new(connection: Connection<'_>) -> io::Result<Self> {
        let descriptor = descriptor(connection)?;
        // SAFETY: R3 and R5: a connection's server is live, and has its core settings.
        let threshold = unsafe {
            let core = &raw const sys::core_module;
            let server = connection.base_server();
            let core = sys::ap_get_module_config((*server).module_config, core);
            (*core.cast::<sys::core_server_config>()).flush_max_threshold
        };
        let portion = (threshold.min(64 << 10) * PORTION.0 / PORTION.1).max(1);
        let stream = connection.is_stream().then(http2::HeldBytes::default);
        let is_tls = stream.is_none() && tls::is_https(connection);
        let (input, output) = (connection.brigade(), connection.brigade());
        let (connection, early) = (connection.as_ptr(), Early::new(&MEMORY));
        Ok(Self { connection, input, output, descriptor, portion, stream, is_tls, early })
    }

    /// Whether the number of the connection's descriptor is still the same: event and worker close the sockets of their
    /// threads when the server is stopped, whatever these are doing.
    pub(super) fn has_its_descriptor(&self) -> bool {
        descriptor(self.connection()).is_ok_and(|now| now == self.descriptor)
    }

    fn connection(&self) -> Connection<'_> {
        // SAFETY: it is no null pointer, and outlives this value, as `new` demands.
        unsafe { Connection::from_ptr(NonNull::new_unchecked(self.connection)) }
    }

    /// The connection's descriptor, which is httpd's.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: httpd closes it after the connection's last hook; but event and worker do so in the midst of an
        // ungraceful stop, when its number may become another one's. It is only waited on, or duplicated by who asks
        // `has_its_descriptor` then.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }

    /// Takes out what the input filters have read ahead. `None` if the client sends faster than that can be done: then
    /// what was taken is read again first, and the filters stay in use. An error if there is no memory for it.
    pub(super) fn drain(&mut self) -> io::Result<Option<Early>> {
        let mut early = Early::new(&MEMORY);
        let mut buffer = vec![0; 64 * 1024];
        for _ in 0..EARLY_READS {
            match self.get(&mut buffer, sys::apr_read_type_e_APR_NONBLOCK_READ) {
                Ok(0) => return Ok(Some(early)),
                Ok(n) => {
                    early.extend(&buffer[..n]).map_err(|_| {
                        MEMORY.refuse();
                        io::Error::new(io::ErrorKind::OutOfMemory, Violation::Memory)
                    })?;
                    // A short read leaves nothing behind in the core filter; there may be more in the socket.
                    if !self.is_tls && n < buffer.len() {
                        return Ok(Some(early));
                    }
                }
                // Behind a record without data, a KeyUpdate, mod_ssl says so although httpd's core has more.
                Err(e)
                    if e.kind() == io::ErrorKind::WouldBlock
                        && self.is_tls
                        && self.core_holds_input()? => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Some(early)),
                Err(e) => return Err(e),
            }
            if early.len() > EARLY {
                break;
            }
        }
        self.early = early;
        Ok(None)
    }

    /// Whether the last input filter, httpd's core, has bytes or the end of the stream. It asks the socket, too.
    fn core_holds_input(&mut self) -> io::Result<bool> {
        // SAFETY: connection and brigade are live and ours; each filter's `next` is a live filter or NULL. Nothing is
        // taken out.
        let (status, empty) = unsafe {
            let mut core = (*self.connection).input_filters;
            while !(*core).next.is_null() {
                core = (*core).next;
            }
            let status = sys::ap_get_brigade(
                core,
                self.input,
                sys::ap_input_mode_t_AP_MODE_SPECULATIVE,
                sys::apr_read_type_e_APR_NONBLOCK_READ,
                1,
            );
            let empty = sys::brigade_is_empty(self.input);
            sys::apr_brigade_cleanup(self.input.cast());
            (status, empty)
        };
        match status as u32 {
            sys::APR_SUCCESS => Ok(!empty),
            // The end of the stream: the next read finds it, too, wherever that takes place.
            sys::APR_EAGAIN | sys::APR_EOF => Ok(false),
            _ => Err(Self::error(status)),
        }
    }

    /// Fills the rest of `buffer` behind the first `filled` bytes, which grow, and waits for the client until
    /// `deadline`; mod_reqtimeout may end that before. For the handshake.
    pub(super) fn fill(
        &mut self,
        buffer: &mut [u8],
        filled: &mut usize,
        deadline: Instant,
    ) -> io::Result<()> {
        while *filled < buffer.len() {
            // Not a read that blocks: it would wait anew for each part of a record of TLS.
            match self.read(&mut buffer[*filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => *filled += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    let interest = Interest { read: true, write: false };
                    let first = Some((self.descriptor(), interest));
                    os::wait(&Sources { first, ..Sources::default() }, Some(left))?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted && Instant::now() < deadline => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes all of `bytes`, waiting for the client as long as httpd's `Timeout` allows. For the handshake.
    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the connection is live and ours, and so is its allocator; the flush has nothing of `bytes` left when the
        // call returns.
        unsafe {
            let list = (*self.connection).bucket_alloc;
            let data = sys::apr_bucket_transient_create(bytes.as_ptr().cast(), bytes.len(), list);
            sys::brigade_insert_tail(self.output, data);
            self.pass(sys::apr_bucket_flush_create(list))
        }
    }

    /// Reads what the filters have, and waits for it if they have nothing and are to block: the status, how many bytes, and
    /// whether the end of the stream is among it.
    fn take(
        &mut self,
        buffer: &mut [u8],
        how: sys::apr_read_type_e,
    ) -> (sys::apr_status_t, usize, bool) {
        let mut len = buffer.len();
        // SAFETY: connection and brigade are live and ours; the buffer holds `len` bytes. What ap_get_brigade returns
        // has at most as many, and the brigade is emptied before its bytes could become stale.
        unsafe {
            let status = sys::ap_get_brigade(
                (*self.connection).input_filters,
                self.input,
                sys::ap_input_mode_t_AP_MODE_READBYTES,
                how,
                len as sys::apr_off_t,
            );
            let eos = sys::brigade_has_eos(self.input);
            sys::apr_brigade_flatten(self.input, buffer.as_mut_ptr().cast(), &raw mut len);
            sys::apr_brigade_cleanup(self.input.cast());
            (status, len, eos)
        }
    }

    /// Whether the last filter, httpd's core, still holds output. What mod_http2 holds has left us.
    pub(super) fn holds_output(&self) -> bool {
        // SAFETY: the connection is live and ours.
        self.stream.is_none() && unsafe { (*self.connection).data_in_output_filters != 0 }
    }

    /// Gives what was put into the brigade, and a bucket behind it, to the output filters.
    ///
    /// # Safety
    /// - `bucket` is live, of the connection's allocator, and in no brigade.
    unsafe fn pass(&mut self, bucket: *mut sys::apr_bucket) -> io::Result<()> {
        // SAFETY: connection and brigade are live and ours; the bucket is as the caller says.
        let status = unsafe {
            sys::brigade_insert_tail(self.output, bucket);
            let status = sys::ap_pass_brigade((*self.connection).output_filters, self.output);
            sys::apr_brigade_cleanup(self.output.cast());
            status
        };
        if status == sys::APR_SUCCESS as i32 { Ok(()) } else { Err(Self::error(status)) }
    }

    /// How many bytes a stream may write now; 0 if it has to wait.
    fn stream_room(&mut self, wanted: usize) -> io::Result<usize> {
        // SAFETY: the connection is live and ours.
        let list = unsafe { (*self.connection).bucket_alloc };
        let Some(held) = &mut self.stream else { return Ok(self.portion) };
        if let Some(room) = held.room(wanted) {
            return Ok(room);
        }
        // mod_http2 lets go of what the client has taken when it is called, and not before.
        // SAFETY: the bucket is new, and of the connection's allocator.
        unsafe { self.pass(sys::apr_bucket_flush_create(list))? };
        let room = self.stream.as_mut().and_then(|held| held.room(wanted));
        Ok(room.unwrap_or_default())
    }

    pub(super) fn error(status: sys::apr_status_t) -> io::Error {
        match status {
            s if s == sys::APR_EAGAIN as i32 => io::ErrorKind::WouldBlock.into(),
            s if s == sys::APR_TIMEUP as i32 => io::ErrorKind::TimedOut.into(),
            s if s > 0 && s < sys::APR_OS_START_ERROR as i32 => io::Error::from_raw_os_error(s),
            s => io::Error::other(format!("APR status {s}")),
        }
    }

    /// Reads what the filters have, and waits for it if they have nothing and are to block.
    fn get(&mut self, buffer: &mut [u8], how: sys::apr_read_type_e) -> io::Result<usize> {
        let (mut status, mut len, mut eos) = self.take(buffer, how);
        if eos && len == 0 && self.stream.is_some() {
            // mod_http2 ends the request, which has no body, and then begins with what the client sends. After the end
            // of the stream another read gives APR_EOF.
            (status, len, eos) = self.take(buffer, how);
        }
        match status as u32 {
            sys::APR_SUCCESS if len > 0 => Ok(len),
            sys::APR_SUCCESS if eos => Ok(0),
            // The core filter's way of saying that there is nothing now.
            sys::APR_SUCCESS => Err(io::ErrorKind::WouldBlock.into()),
            sys::APR_EOF => Ok(0),
            _ => Err(Self::error(status)),
        }
    }
}

impl Transport for Filters {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.early.is_empty() {
            return Ok(self.early.take(buffer));
        }
        // Behind a record without data, a KeyUpdate, mod_ssl says that there is nothing, though httpd's core has more.
        for _ in 0..EMPTY_READS {
            match self.get(buffer, sys::apr_read_type_e_APR_NONBLOCK_READ) {
                Err(e)
                    if e.kind() == io::ErrorKind::WouldBlock
                        && self.is_tls
                        && self.core_holds_input()? => {}
                result => return result,
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.flush()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let room = self.stream_room(bytes.len())?;
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let portion = &bytes[..bytes.len().min(room)];
        // SAFETY: the connection is live and ours, and so is its allocator. A transient bucket refers to `portion`;
        // filters that keep data beyond the call have to copy it out of such buckets.
        unsafe {
            let list = (*self.connection).bucket_alloc;
            let bucket = match &self.stream {
                Some(held) => held.bucket(portion, list),
                None => {
                    sys::apr_bucket_transient_create(portion.as_ptr().cast(), portion.len(), list)
                }
            };
            self.pass(bucket)?;
        }
        self.flush()?;
        Ok(portion.len())
    }

    fn flush(&mut self) -> io::Result<bool> {
        if !self.holds_output() {
            return Ok(true);
        }
        // SAFETY: the connection is live and ours. The last output filter is httpd's core filter, whose function takes
        // NULL as the request to write what it has set aside, without blocking; ap_pass_brigade does not pass that on.
        let status = unsafe {
            let mut filter = (*self.connection).output_filters;
            while !(*filter).next.is_null() {
                filter = (*filter).next;
            }
            let write = (*(*filter).frec).filter_func.out_func;
            write.map_or(sys::APR_SUCCESS as i32, |write| write(filter, ptr::null_mut()))
        };
        if status != sys::APR_SUCCESS as i32 {
            return Err(Self::error(status));
        }
        Ok(!self.holds_output())
    }

    fn holds_input(&self) -> bool {
        true
    }

    fn socket(&self) -> Option<Arc<Socket>> {
        None
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor()
    }

    fn retry(&self) -> Option<Duration> {
        self.stream.as_ref().map(http2::HeldBytes::retry)
    }
}

/// Sets the timeout of a connection's socket, in microseconds. A stream of HTTP/2 has none of its own.
pub(super) fn set_timeout(connection: Connection<'_>, timeout: sys::apr_interval_time_t) {
    if !connection.is_stream() {
        // SAFETY: R5; the socket is the connection's own.
        unsafe {
            sys::apr_socket_timeout_set(sys::ap_get_conn_socket(connection.as_ptr()), timeout);
        }
    }
}

/// Tells the client of the end of a stream of HTTP/2, which mod_http2 would not; other connections end when httpd closes
/// them.
pub(super) fn end_stream(connection: Connection<'_>) {
    if connection.is_stream() {
        let brigade = connection.brigade();
        // SAFETY: R5; brigade and bucket are of the connection's pool. An error means that the client is gone.
        unsafe {
            let eos = sys::apr_bucket_eos_create(connection.bucket_alloc());
            sys::brigade_insert_tail(brigade, eos);
            sys::ap_pass_brigade(connection.output_filters(), brigade);
        }
    }
}

/// Has httpd close a connection without waiting for the client, whose Close is all that was expected of it: it reads
/// the end of the stream as soon as it has read what is there. Its own goodbye still leaves. Not while the child is
/// stopped: event and worker close the descriptors of their threads then, and the number may be another one's.
pub(super) fn end_input(connection: Connection<'_>) {
    if !connection.is_stream() {
        // SAFETY: R5; the socket is the connection's own. A stop that comes just now may close it, which gives an error.
        unsafe {
            let socket = sys::ap_get_conn_socket(connection.as_ptr());
            sys::apr_socket_shutdown(socket, sys::apr_shutdown_how_e_APR_SHUTDOWN_READ);
        }
    }
}

/// The descriptor that shows what a connection receives: its socket, unless it is a stream.
fn descriptor(connection: Connection<'_>) -> io::Result<RawFd> {
    if connection.is_stream() {
        return http2::descriptor(connection);
    }
    let mut descriptor = -1;
    // SAFETY: R5; the socket is the connection's own.
    let status = unsafe {
        sys::apr_os_sock_get(&raw mut descriptor, sys::ap_get_conn_socket(connection.as_ptr()))
    };
    match status {
        s if s != sys::APR_SUCCESS as i32 => Err(Filters::error(s)),
        // event and worker close the sockets of their threads when the server stops.
        _ if descriptor < 0 => Err(io::ErrorKind::NotConnected.into()),
        _ => Ok(descriptor),
    }
}

/// Removes filters that would stand in the way of a conversation: request timeouts, and the one that holds small TLS
/// records back until a flush.
pub(super) fn remove_obstacles(connection: Connection<'_>) {
    for filter in input_filters(connection) {
        // SAFETY: the list was just made from the connection's live filters.
        if unsafe { is_named(filter, c"reqtimeout") } {
            // SAFETY: as above; it is removed once.
            unsafe { sys::ap_remove_input_filter(filter) };
        }
    }
    for filter in output_filters(connection) {
        let names = [c"reqtimeout", c"SSL/TLS Coalescing Filter"];
        // SAFETY: the list was just made from the connection's live filters.
        if names.iter().any(|name| unsafe { is_named(filter, name) }) {
            // SAFETY: as above; it is removed once.
            unsafe { sys::ap_remove_output_filter(filter) };
        }
    }
}

/// The filter that keeps others from flushing while a conversation goes on. OpenSSL flushes its answer to a KeyUpdate
/// within a read; httpd's core filter would wait there until the client has taken all that waits for it, or fail.
const NO_FLUSH: &CStr = c"WEBSOCKET_NO_FLUSH";

/// Registers the module's own filter; called from the module's hook for that.
pub(super) fn register() {
    let kind = sys::ap_filter_type_AP_FTYPE_NETWORK - 1;
    // SAFETY: httpd calls the hook to have things registered; the name is a literal.
    unsafe { sys::ap_register_output_filter(NO_FLUSH.as_ptr(), Some(drop_flushes), None, kind) };
}

unsafe extern "C" fn drop_flushes(
    filter: *mut sys::ap_filter_t,
    brigade: *mut sys::apr_bucket_brigade,
) -> sys::apr_status_t {
    // SAFETY: httpd passes a live filter of a connection that this thread owns, and a live brigade of its.
    unsafe {
        sys::brigade_drop_flushes(brigade);
        sys::ap_pass_brigade((*filter).next, brigade)
    }
}

/// Has nothing flush while the conversation goes on: from now on [`Filters`] pushes what waits. mod_http2 does not wait
/// for a flush.
pub(super) fn forbid_flushes(connection: Connection<'_>) {
    if !connection.is_stream() {
        let (none, raw) = (ptr::null_mut(), connection.as_ptr());
        // SAFETY: R5; the name is a literal.
        unsafe { sys::ap_add_output_filter(NO_FLUSH.as_ptr(), none, ptr::null_mut(), raw) };
    }
}

/// The conversation is over: httpd's end of the connection flushes again.
pub(super) fn allow_flushes(connection: Connection<'_>) {
    for filter in output_filters(connection) {
        // SAFETY: the list was just made from the connection's live filters.
        if unsafe { is_named(filter, NO_FLUSH) } {
            // SAFETY: as above; it is removed once.
            unsafe { sys::ap_remove_output_filter(filter) };
        }
    }
}

/// The name of the first filter that is not one of httpd's own for plain sockets, nor, if that is said, of mod_ssl's.
pub(super) fn foreign(connection: Connection<'_>, with_tls: bool) -> Option<String> {
    if connection.is_stream() {
        return Some("HTTP/2".to_owned());
    }
    // remoteip_input is done once it has read its header, which comes before the request; reqtimeout is removed.
    let own = [c"core", c"core_in", c"log_input_output", c"remoteip_input", c"reqtimeout"];
    let mod_ssls = [c"SSL/TLS Filter", c"SSL/TLS Coalescing Filter"];
    let known = [&own[..], if with_tls { &mod_ssls } else { &[] }].concat();
    let filters = [input_filters(connection), output_filters(connection)].concat();
    // SAFETY: the list was just made from the connection's live filters.
    let foreign = |&&f: &&_| !known.iter().any(|name| unsafe { is_named(f, name) });
    let &found = filters.iter().find(foreign)?;
    // SAFETY: as above; a filter's record and its name live as long as httpd.
    let name = unsafe { CStr::from_ptr((*(*found).frec).name) };
    Some(name.to_string_lossy().into_owned())
}

fn input_filters(connection: Connection<'_>) -> Vec<*mut sys::ap_filter_t> {
    list(connection.input_filters())
}

fn output_filters(connection: Connection<'_>) -> Vec<*mut sys::ap_filter_t> {
    list(connection.output_filters())
}

fn list(first: *mut sys::ap_filter_t) -> Vec<*mut sys::ap_filter_t> {
    // SAFETY: a filter's `next` is the next live filter of its connection, or NULL.
    core::iter::successors((!first.is_null()).then_some(first), |&f| unsafe {
        (!(*f).next.is_null()).then_some((*f).next)
    })
    .collect()
}

/// # Safety
/// - `filter` is live.
unsafe fn is_named(filter: *mut sys::ap_filter_t, name: &CStr) -> bool {
    // SAFETY: the filter is live, as this function demands; its record and its name live as long as httpd.
    let own = unsafe { CStr::from_ptr((*(*filter).frec).name) };
    own.to_bytes().eq_ignore_ascii_case(name.to_bytes())
}
