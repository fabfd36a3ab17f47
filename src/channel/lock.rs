//! The lock of those who publish, in memory that all children share: the next one gets it if its holder dies.
#![expect(unsafe_code, reason = "there is no safe wrapper for a lock that processes share")]

use core::{cell::UnsafeCell, marker::PhantomData, mem::MaybeUninit};
use std::{
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::os::AllSignals;

/// The lock. It stays where it is.
#[repr(transparent)]
pub struct RobustLock(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: a pthread mutex is made for use by several threads; it is reached by its functions only.
unsafe impl Sync for RobustLock {}

/// What holds it until it is dropped. Signals are held back meanwhile: prefork's handler ends the process.
pub struct Held<'lock> {
    lock: &'lock RobustLock,
    /// Its last holder has died under it.
    pub died: bool,
    _signals: AllSignals,
    /// The thread that took it gives it back.
    _thread: PhantomData<*const ()>,
}

impl RobustLock {
    /// Makes a lock of memory that is all zero.
    ///
    /// # Safety
    /// - Nobody has used it yet.
    pub unsafe fn begin(&self) -> io::Result<()> {
        let check = |status| match status {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        };
        let mut how = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        // SAFETY: the attributes are live, and initialised before they are used; the mutex is live, and nobody else's, as
        // this function demands.
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "one rule covers them")]
        unsafe {
            check(libc::pthread_mutexattr_init(how.as_mut_ptr()))?;
            check(libc::pthread_mutexattr_setpshared(
                how.as_mut_ptr(),
                libc::PTHREAD_PROCESS_SHARED,
            ))?;
            check(libc::pthread_mutexattr_setrobust(how.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST))?;
            check(libc::pthread_mutex_init(self.0.get(), how.as_ptr()))
        }
    }

    /// Waits for the lock, for `most` at most.
    pub fn acquire(&self, most: Duration) -> Option<Held<'_>> {
        let signals = AllSignals::block();
        // SAFETY: the mutex was initialised before others could reach it.
        let mut status = unsafe { libc::pthread_mutex_trylock(self.0.get()) };
        if status == libc::EBUSY {
            let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + most;
            let until = libc::timespec {
                tv_sec: until.as_secs() as libc::time_t,
                tv_nsec: until.subsec_nanos() as _,
            };
            // SAFETY: as above; the time is live.
            status = unsafe { libc::pthread_mutex_timedlock(self.0.get(), &raw const until) };
        }
        let died = status == libc::EOWNERDEAD;
        if status != 0 && !died {
            return None;
        }
        Some(Held { lock: self, died, _signals: signals, _thread: PhantomData })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mutex = self.lock.0.get();
        if self.died {
            // SAFETY: the calling thread holds the mutex, and has repaired what it guards.
            unsafe { libc::pthread_mutex_consistent(mutex) };
        }
        // SAFETY: the calling thread holds the mutex.
        unsafe { libc::pthread_mutex_unlock(mutex) };
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn lock() -> &'static RobustLock {
        let lock: &'static RobustLock =
            // SAFETY: a mutex may be made of memory that is all zero.
            Box::leak(Box::new(unsafe { MaybeUninit::zeroed().assume_init() }));
        // SAFETY: it is new.
        unsafe { lock.begin() }.unwrap();
        lock
    }

    #[test]
    fn one_at_a_time_and_a_wait_has_an_end() {
        let lock = lock();
        let held = lock.acquire(Duration::ZERO).unwrap();
        assert!(!held.died);
        let other = || thread::spawn(|| lock.acquire(Duration::from_millis(20)).is_some()).join();
        assert!(!other().unwrap());
        drop(held);
        assert!(other().unwrap());
    }

    #[test]
    fn who_dies_with_it_leaves_it_to_the_next_one() {
        let lock = lock();
        // A thread's death is a process's, to the kernel.
        thread::spawn(|| core::mem::forget(lock.acquire(Duration::ZERO))).join().unwrap();
        let held = lock.acquire(Duration::ZERO).unwrap();
        assert!(held.died);
        drop(held);
        assert!(!lock.acquire(Duration::ZERO).unwrap().died);
    }
}
