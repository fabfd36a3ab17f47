//! Memory that all child processes share, of all generations: the counts behind the connection limits, and what
//! each child tells server-status.
//!
//! It is mapped once, in the parent, before the first child is made; the address is kept with httpd's process record,
//! which outlives restarts and the unloading of this module.

use core::{
    ffi::{CStr, c_void},
    ptr,
    sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering},
};
use std::{
    hash::{BuildHasher as _, RandomState},
    io,
    os::fd::{BorrowedFd, IntoRawFd as _},
};

use super::sys;
use crate::{
    driver::service::Totals,
    limits::{connections, presence},
    os,
};

/// The key under which the address is kept. A change of the layout, or of what a key of a limit is hashed to, changes
/// it: old children and new ones of another build would count apart in the same memory.
const KEY: &CStr = c"mod_websocket shared memory 5";
/// The most children that server-status shows.
const CHILDREN: usize = 512;

/// What is shared.
#[repr(C)]
struct Shared {
    seed: AtomicU64,
    /// The descriptor by which children know of each other, the same in all of them: [`presence`].
    presence: AtomicI32,
    words: [AtomicU64; connections::WORDS],
    children: [Child; CHILDREN],
}

/// One child's line in server-status.
#[repr(C)]
pub(super) struct Child {
    /// 0 if the line is free. Whoever changes it in one operation has the line.
    pid: AtomicU32,
    threads: AtomicU32,
    /// Those of [`Totals`]: mere counts, each read by itself.
    numbers: [AtomicU64; Totals::NAMES.len()],
}

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());

/// Maps the memory, or finds it mapped by an earlier reading of the configuration.
///
/// # Safety
/// - `server` is the main server, while httpd runs its post_config hooks.
pub(super) unsafe fn map(server: *const sys::server_rec) -> io::Result<()> {
    let mut address: *mut c_void = ptr::null_mut();
    // SAFETY: the server is live, as this function demands: the process record and its pool live as long as the process.
    let pool = unsafe { (*(*server).process).pool };
    // SAFETY: the key lives for the call; the result is a live pointer.
    unsafe { sys::apr_pool_userdata_get(&raw mut address, KEY.as_ptr(), pool) };
    if address.is_null() {
        let presence = presence::file()?;
        address = os::map_shared(size_of::<Shared>())?;
        let seed = RandomState::new().hash_one(KEY);
        // SAFETY: the mapping has the size of the structure, is all zero, and zero is a value of every atomic.
        let shared = unsafe { &*address.cast::<Shared>() };
        shared.seed.store(seed, Ordering::Relaxed);
        // It stays open until the process ends, as the mapping stays.
        shared.presence.store(presence.into_raw_fd(), Ordering::Relaxed);
        // SAFETY: the key is copied; there is nothing to clean up, since the mapping stays until the process ends.
        unsafe { sys::apr_pool_userdata_set(address, KEY.as_ptr(), None, pool) };
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
    let (Some(shared), Some(counts)) = (shared(), counts()) else { return Ok(()) };
    let pid = std::process::id();
    presence::enter(shared.presence(), pid)?;
    counts.begin();
    for child in &shared.children {
        let _ = child.pid.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Relaxed);
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

/// This child's line in server-status, if one is free.
pub(super) fn child() -> Option<&'static Child> {
    let pid = std::process::id();
    shared()?.children.iter().find(|child| {
        let before = child.pid.load(Ordering::Relaxed);
        let free = before == 0 || !is_alive(before);
        let taken = || child.pid.compare_exchange(before, pid, Ordering::AcqRel, Ordering::Relaxed);
        free && taken().is_ok()
    })
}

/// The lines of the children that are there: process, threads, and the numbers of its [`Totals`].
pub(super) fn children() -> impl Iterator<Item = (u32, u32, [u64; Totals::NAMES.len()])> {
    let children = shared().map_or(&[][..], |shared| &shared.children[..]);
    children.iter().filter_map(|child| {
        let pid = child.pid.load(Ordering::Acquire);
        let threads = child.threads.load(Ordering::Relaxed);
        let numbers = child.numbers.each_ref().map(|number| number.load(Ordering::Relaxed));
        (pid != 0 && is_alive(pid)).then_some((pid, threads, numbers))
    })
}

impl Shared {
    fn presence(&self) -> BorrowedFd<'_> {
        // SAFETY: `map` stores a descriptor that is never closed; the children have it from the process that opened it.
        unsafe { BorrowedFd::borrow_raw(self.presence.load(Ordering::Relaxed)) }
    }
}

impl Child {
    /// Tells what there is now.
    pub(super) fn tell(&self, threads: usize, totals: &Totals) {
        self.threads.store(threads as u32, Ordering::Relaxed);
        for (place, number) in self.numbers.iter().zip(totals.numbers()) {
            place.store(number, Ordering::Relaxed);
        }
    }

    /// The child has gone.
    pub(super) fn leave(&self) {
        self.tell(0, &Totals::default());
        self.pid.store(0, Ordering::Release);
    }
}
