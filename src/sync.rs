//! Locks and atomics: those of the standard library, or loom's while its models are checked (`--cfg loom`).
//!
//! Whatever threads agree on without a lock, or by more than one, uses these and has a model beside it (`loom_tests`).
//! Plain counters, and flags that are set once, use the standard library's.

#[cfg(not(loom))]
pub use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};

#[cfg(loom)]
pub use self::atomics::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
#[cfg(loom)]
pub use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{Ordering, fence},
};

/// A lock that goes on after a panic under it. Such a panic is a bug of ours, and what our locks guard is whole at each
/// moment at which one may come: the connection of the thread that panicked is dropped, and others live on.
pub trait Lock {
    /// What holds the lock until it is dropped.
    type Guard<'lock>
    where
        Self: 'lock;

    /// Waits for the lock and takes it.
    fn acquire(&self) -> Self::Guard<'_>;
}

impl<T> Lock for Mutex<T> {
    type Guard<'lock>
        = MutexGuard<'lock, T>
    where
        T: 'lock;

    fn acquire(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(loom)]
impl<T> Lock for std::sync::Mutex<T> {
    type Guard<'lock>
        = std::sync::MutexGuard<'lock, T>
    where
        T: 'lock;

    fn acquire(&self) -> std::sync::MutexGuard<'_, T> {
        self.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// loom takes `SeqCst` for `AcqRel`, but its fences are what they say: here a load with it that follows a store with it has
/// one in front. That is what our protocols ask of `SeqCst`, that of two threads which store first and load then one sees
/// the other, and it is not there if either of the two says less.
#[cfg(loom)]
mod atomics {
    use core::cell::Cell;

    use loom::sync::atomic::{self, Ordering, fence};

    loom::thread_local!(
        /// The last store of this thread was one with `SeqCst`.
        static STORED: Cell<bool> = Cell::new(false)
    );

    #[track_caller]
    fn loading<R>(order: Ordering, load: impl FnOnce() -> R) -> R {
        if order == Ordering::SeqCst && STORED.with(Cell::get) {
            fence(order);
        }
        load()
    }

    #[track_caller]
    fn storing<R>(order: Ordering, store: impl FnOnce() -> R) -> R {
        STORED.with(|stored| stored.set(order == Ordering::SeqCst));
        store()
    }

    macro_rules! atomic {
        ($name:ident, $value:ty, $($rest:tt)*) => {
            /// The atomic of this name.
            #[derive(Debug, Default)]
            pub struct $name(atomic::$name);

            #[allow(missing_docs, reason = "as in the standard library")]
            impl $name {
                #[track_caller]
                pub fn new(value: $value) -> Self {
                    Self(atomic::$name::new(value))
                }

                #[track_caller]
                pub fn load(&self, order: Ordering) -> $value {
                    loading(order, || self.0.load(order))
                }

                #[track_caller]
                pub fn store(&self, value: $value, order: Ordering) {
                    storing(order, || self.0.store(value, order));
                }

                #[track_caller]
                pub fn swap(&self, value: $value, order: Ordering) -> $value {
                    storing(order, || self.0.swap(value, order))
                }

                #[track_caller]
                pub fn compare_exchange(
                    &self,
                    old: $value,
                    new: $value,
                    order: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    storing(order, || self.0.compare_exchange(old, new, order, failure))
                }

                #[track_caller]
                pub fn fetch_update(
                    &self,
                    order: Ordering,
                    failure: Ordering,
                    f: impl FnMut($value) -> Option<$value>,
                ) -> Result<$value, $value> {
                    storing(order, || self.0.fetch_update(order, failure, f))
                }
            }

            atomic!(@sums $name, $value, $($rest)*);
        };
        (@sums $name:ident, $value:ty, ) => {};
        (@sums $name:ident, $value:ty, $($sum:ident)*) => {
            #[allow(missing_docs, reason = "as in the standard library")]
            impl $name {$(
                #[track_caller]
                pub fn $sum(&self, value: $value, order: Ordering) -> $value {
                    storing(order, || self.0.$sum(value, order))
                }
            )*}
        };
    }

    atomic!(AtomicBool, bool,);
    atomic!(AtomicU8, u8, fetch_max fetch_or);
    atomic!(AtomicU32, u32, fetch_add fetch_or);
    atomic!(AtomicU64, u64,);
    atomic!(AtomicUsize, usize, fetch_add fetch_sub);
}

/// Checks all interleavings of a model in which a thread is interrupted at most `bound` times where it need not be: without
/// a bound, those of a larger model are too many, and what is wrong shows with two.
#[cfg(all(test, loom))]
pub fn check(bound: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(model);
}
