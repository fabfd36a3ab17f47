//! httpd and APR as bindgen sees them, and the macros that it cannot see.
//!
//! Only `httpd/` names this module.

mod bindings {
    #![allow(warnings, clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks)]
    #![allow(clippy::missing_safety_doc, clippy::multiple_unsafe_ops_per_block, clippy::use_self)]
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

use core::ffi::c_int;

pub(super) use bindings::*;

/// `OK` as hooks return it.
pub(super) const HOOK_OK: c_int = OK as c_int;

/// `APR_BRIGADE_SENTINEL`: what the last bucket's `next` and the first one's `prev` point at.
///
/// # Safety
/// - `brigade` is a live brigade.
pub(super) unsafe fn brigade_sentinel(brigade: *mut apr_bucket_brigade) -> *mut apr_bucket {
    // The ring's head stands where a bucket has its link, which is a bucket's first member.
    const { assert!(core::mem::offset_of!(apr_bucket, link) == 0) };
    // SAFETY: the brigade is live, as this function demands; only an address is taken.
    unsafe { (&raw mut (*brigade).list).cast() }
}

/// `APR_BRIGADE_INSERT_TAIL`.
///
/// # Safety
/// - `brigade` is a live brigade, `bucket` a live bucket in no brigade.
pub(super) unsafe fn brigade_insert_tail(
    brigade: *mut apr_bucket_brigade,
    bucket: *mut apr_bucket,
) {
    // SAFETY: brigade and bucket are live, as this function demands; in a ring, the sentinel's `prev` is a live bucket
    // or the sentinel.
    unsafe {
        let sentinel = brigade_sentinel(brigade);
        let last = (*sentinel).link.prev;
        (*bucket).link.next = sentinel;
        (*bucket).link.prev = last;
        (*last).link.next = bucket;
        (*sentinel).link.prev = bucket;
    }
}

/// `APR_BRIGADE_EMPTY`.
///
/// # Safety
/// - `brigade` is a live brigade.
pub(super) unsafe fn brigade_is_empty(brigade: *mut apr_bucket_brigade) -> bool {
    // SAFETY: the brigade is live, as this function demands.
    unsafe {
        let sentinel = brigade_sentinel(brigade);
        (*sentinel).link.next == sentinel
    }
}

/// Whether a brigade contains an EOS bucket (`APR_BUCKET_IS_EOS`).
///
/// # Safety
/// - `brigade` is a live brigade.
pub(super) unsafe fn brigade_has_eos(brigade: *mut apr_bucket_brigade) -> bool {
    // SAFETY: the brigade is live, as this function demands; each `next` of a ring is a live bucket until the sentinel
    // comes.
    unsafe {
        let sentinel = brigade_sentinel(brigade);
        let mut bucket = (*sentinel).link.next;
        while bucket != sentinel {
            if (*bucket).type_ == &raw const apr_bucket_type_eos {
                return true;
            }
            bucket = (*bucket).link.next;
        }
        false
    }
}

/// Takes the FLUSH buckets (`APR_BUCKET_IS_FLUSH`) out of a brigade.
///
/// # Safety
/// - `brigade` is a live brigade of this thread.
pub(super) unsafe fn brigade_drop_flushes(brigade: *mut apr_bucket_brigade) {
    // SAFETY: the brigade is live, as this function demands; each `next` of a ring is a live bucket until the sentinel
    // comes, and one that is taken out of the ring (APR_BUCKET_REMOVE) is destroyed as its type says
    // (apr_bucket_delete).
    unsafe {
        let sentinel = brigade_sentinel(brigade);
        let mut bucket = (*sentinel).link.next;
        while bucket != sentinel {
            let next = (*bucket).link.next;
            if (*bucket).type_ == &raw const apr_bucket_type_flush {
                let previous = (*bucket).link.prev;
                (*previous).link.next = next;
                (*next).link.prev = previous;
                if let Some(destroy) = (*(*bucket).type_).destroy {
                    destroy((*bucket).data);
                }
                if let Some(free) = (*bucket).free {
                    free(bucket.cast());
                }
            }
            bucket = next;
        }
    }
}

/// A number that the MPM gives; 0 if it has none.
pub(super) fn mpm(code: u32) -> u64 {
    let mut answer = 0;
    // SAFETY: the result is a live integer.
    let status = unsafe { ap_mpm_query(code as c_int, &raw mut answer) };
    if status == APR_SUCCESS as c_int { u64::try_from(answer).unwrap_or(0) } else { 0 }
}
