//! Which callbacks of plugins are running, for the code that ends a child and must not wait for them for ever.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// One connection's callbacks, of which at most one runs at a time.
#[derive(Debug)]
pub struct Callbacks {
    library: Arc<str>,
    /// One runs now. Who looks at it does so long after it began, and needs nothing else of it.
    running: AtomicBool,
}

impl Callbacks {
    /// Those of a connection that `library`, a file, serves.
    pub fn new(library: Arc<str>) -> Self {
        Self { library, running: AtomicBool::new(false) }
    }

    /// Runs one.
    pub fn run<R>(&self, callback: impl FnOnce() -> R) -> R {
        struct Running<'c>(&'c AtomicBool);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Relaxed);
            }
        }
        self.running.store(true, Ordering::Relaxed);
        let _running = Running(&self.running);
        callback()
    }

    /// The library whose callback has not returned, if one runs now.
    pub fn running(&self) -> Option<Arc<str>> {
        self.running.load(Ordering::Relaxed).then(|| self.library.clone())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_callback_runs_until_it_returns_or_panics() {
        let callbacks = Callbacks::new("a.so".into());
        assert_eq!(callbacks.running(), None);
        assert_eq!(callbacks.run(|| callbacks.running()).as_deref(), Some("a.so"));
        assert_eq!(callbacks.running(), None);
        let panics = || callbacks.run(|| panic!("as the test says"));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert_eq!(callbacks.running(), None);
    }
}
