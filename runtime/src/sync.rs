//! The one place that names locks and atomics: parking_lot and std normally, loom's types under `cfg(loom)`.
//!
//! Everything that needs a proof of its interleavings uses these names, so that the same source runs under loom.
//! `Arc`, `Weak` and `OnceLock` are std's in both worlds: they are not what the models are about, and wakers need
//! std's `Arc`.
//!
//! Rule for users: no `.await` while a guard is held.

pub use std::sync::{Arc, OnceLock, Weak};

#[cfg(not(loom))]
mod imp {
    pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

    /// Atomic integers, fences and orderings.
    pub mod atomic {
        pub use std::sync::atomic::{
            AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        };
    }
}

#[cfg(loom)]
mod imp {
    pub use super::loom_locks::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

    /// Atomic integers, fences and orderings.
    pub mod atomic {
        pub use loom::sync::atomic::{
            AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        };
    }
}

pub use imp::*;

/// Explores the interleavings of a model with at most so many preemptions, unless `LOOM_MAX_PREEMPTIONS` says otherwise, and
/// makes sure that there was more than one.
#[cfg(loom)]
pub fn explore(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        body();
    });
    let count = count.load(Ordering::Relaxed);
    assert!(count > 1, "only {count} interleaving was explored");
    println!("{count} interleavings");
}

/// Loom's locks with parking_lot's signatures (no poisoning, `wait(&mut guard)`).
#[cfg(loom)]
mod loom_locks {
    use std::ops::{Deref, DerefMut};
    use std::time::Duration;

    pub use loom::sync::{RwLockReadGuard, RwLockWriteGuard};

    /// A mutual exclusion lock.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    /// Holds a [`Mutex`] until it is dropped.
    pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        /// A new, unlocked lock around `value`.
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().expect("loom mutexes are not poisoned")))
        }

        /// Takes the lock if it is free.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok().map(|guard| MutexGuard(Some(guard)))
        }

        /// The value, without a lock.
        pub fn into_inner(self) -> T {
            self.0.into_inner().expect("loom mutexes are not poisoned")
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_ref().expect("held outside of wait")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("held outside of wait")
        }
    }

    /// A condition variable.
    #[derive(Debug, Default)]
    pub struct Condvar(loom::sync::Condvar);

    /// Whether a timed wait timed out.
    #[derive(Debug, Clone, Copy)]
    pub struct WaitTimeoutResult(bool);

    impl WaitTimeoutResult {
        /// True when the wait ended because of its timeout.
        pub fn timed_out(&self) -> bool {
            self.0
        }
    }

    impl Condvar {
        /// A new condition variable.
        pub fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        /// Releases the guard's lock, waits for a notification, takes the lock again.
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let inner = guard.0.take().expect("held outside of wait");
            guard.0 = Some(self.0.wait(inner).expect("loom mutexes are not poisoned"));
        }

        /// As [`Condvar::wait`], for at most `timeout` (loom has no time: it may end at any moment).
        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, timeout: Duration) -> WaitTimeoutResult {
            let inner = guard.0.take().expect("held outside of wait");
            let (inner, result) = self.0.wait_timeout(inner, timeout).expect("loom mutexes are not poisoned");
            guard.0 = Some(inner);
            WaitTimeoutResult(result.timed_out())
        }

        /// Wakes one waiter.
        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Wakes all waiters.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// A lock for one writer or many readers.
    #[derive(Debug, Default)]
    pub struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        /// A new, unlocked lock around `value`.
        pub fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }

        /// Waits for shared access.
        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect("loom locks are not poisoned")
        }

        /// Waits for exclusive access.
        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect("loom locks are not poisoned")
        }
    }
}
