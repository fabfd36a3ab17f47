//! Memory that all child processes share, of all generations: the counts behind the connection limits, and what
//! each child has counted for server-status and the metrics.
//!
//! It is mapped once, in the parent, before the first child is made; the address is kept with httpd's process record,
//! which outlives restarts and the unloading of this module.

use core::{
    ffi::c_void,
    ptr,
    sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering},
};
use std::{
    ffi::CString,
    hash::{BuildHasher as _, RandomState},
    io,
    os::fd::{BorrowedFd, IntoRawFd as _},
};

use super::sys;
use crate::{
    limits::{connections, presence},
    metrics::{self, Line, Lines, Numbers},
    os,
};

/// The key under which the address is kept. A change of the layout, or of what a key of a limit is hashed to, changes
/// it: old children and new ones of another build would count apart in the same memory. The number is for what neither
/// the size nor the table of the metrics shows.
fn key() -> io::Result<CString> {
    let (size, layout) = (size_of::<Shared>(), metrics::layout());
    Ok(CString::new(format!("mod_websocket shared memory 6, {size} bytes: {layout}"))?)
}

/// What is shared.
#[repr(C)]
struct Shared {
    seed: AtomicU64,
    /// The descriptor by which children know of each other, the same in all of them: [`presence`].
    presence: AtomicI32,
    words: [AtomicU64; connections::WORDS],
    lines: Lines,
}

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());

/// This child's line; null if it has none. Stored by one thread, when the child begins, and only read by others.
static LINE: AtomicPtr<Line> = AtomicPtr::new(ptr::null_mut());

/// Where a child counts that has none, for nobody.
static UNSEEN: Line = Line::new();

/// Maps the memory, or finds it mapped by an earlier reading of the configuration.
///
/// # Safety
/// - `server` is the main server, while httpd runs its post_config hooks.
pub(super) unsafe fn map(server: *const sys::server_rec) -> io::Result<()> {
    let mut address: *mut c_void = ptr::null_mut();
    let key = key()?;
    // SAFETY: the server is live, as this function demands: the process record and its pool live as long as the process.
    let pool = unsafe { (*(*server).process).pool };
    // SAFETY: the key lives for the call; the result is a live pointer.
    unsafe { sys::apr_pool_userdata_get(&raw mut address, key.as_ptr(), pool) };
    if address.is_null() {
        let presence = presence::file()?;
        address = os::map_shared(size_of::<Shared>())?;
        let seed = RandomState::new().hash_one(&key);
        // SAFETY: the mapping has the size of the structure, is all zero, and zero is a value of every atomic.
        let shared = unsafe { &*address.cast::<Shared>() };
        shared.seed.store(seed, Ordering::Relaxed);
        // It stays open until the process ends, as the mapping stays.
        shared.presence.store(presence.into_raw_fd(), Ordering::Relaxed);
        // SAFETY: the key is copied; there is nothing to clean up, since the mapping stays until the process ends.
        unsafe { sys::apr_pool_userdata_set(address, key.as_ptr(), None, pool) };
    }
    SHARED.store(address.cast(), Ordering::Release);
    Ok(())
}

fn shared() -> Option<&'static Shared> {
    // SAFETY: `map` stores a mapping that is never removed.
    unsafe { SHARED.load(Ordering::Acquire).as_ref() }
}

/// A child begins. What others of its number have left behind is removed.
pub(super) fn begin() -> io::Result<()> {
    LINE.store(ptr::null_mut(), Ordering::Release);
    let (Some(shared), Some(counts)) = (shared(), counts()) else { return Ok(()) };
    let pid = std::process::id();
    // Before it is known to be there: their gauges would count as its own.
    shared.lines.forget(pid);
    presence::enter(shared.presence(), pid)?;
    counts.begin();
    if let Some(line) = shared.lines.take(pid, is_alive) {
        LINE.store(ptr::from_ref(line).cast_mut(), Ordering::Release);
    }
    Ok(())
}

/// The connection counts, for this process.
pub(super) fn counts() -> Option<connections::Counts> {
    let shared = shared()?;
    let seed = shared.seed.load(Ordering::Relaxed);
    Some(connections::Counts::new(&shared.words, seed, std::process::id(), is_alive))
}

/// Whether a child is still there.
pub(super) fn is_alive(pid: u32) -> bool {
    let is_there = |shared: &Shared| presence::is_there(shared.presence(), pid);
    pid == std::process::id() || shared().is_none_or(is_there)
}

/// Where this child counts.
pub(super) fn line() -> &'static Line {
    // SAFETY: `begin` stores a line in the mapping, which is never removed.
    unsafe { LINE.load(Ordering::Acquire).as_ref() }.unwrap_or(&UNSEEN)
}

/// What all children have counted; `None` without shared memory.
pub(super) fn sums() -> Option<Numbers> {
    Some(shared()?.lines.sums(is_alive))
}

/// The children that are there, and what each of them has counted.
pub(super) fn children() -> impl Iterator<Item = (u32, Numbers)> {
    shared().into_iter().flat_map(|shared| shared.lines.processes(is_alive))
}

impl Shared {
    fn presence(&self) -> BorrowedFd<'_> {
        // SAFETY: `map` stores a descriptor that is never closed; the children have it from the process that opened it.
        unsafe { BorrowedFd::borrow_raw(self.presence.load(Ordering::Relaxed)) }
    }
}
