//! The current core: a thread-local that is set while a core's tasks are polled, and the free functions that use it.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use crate::clock;
use crate::executor::{Core, TaskHandle};
use crate::runtime::Runtime;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// Restores the core that was current before.
struct Leave(Option<Rc<Core>>);

impl Drop for Leave {
    fn drop(&mut self) {
        let before = self.0.take();
        let _ = CURRENT.try_with(|current| current.replace(before));
    }
}

/// Runs `f` with `core` as the current core.
pub(crate) fn enter<T>(core: &Rc<Core>, f: impl FnOnce() -> T) -> T {
    let before = CURRENT.with(|current| current.replace(Some(core.clone())));
    let _leave = Leave(before);
    f()
}

/// Runs `f` with the current core, or returns None on a foreign thread.
pub(crate) fn try_with<T>(f: impl FnOnce(&Rc<Core>) -> T) -> Option<T> {
    let core = CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()?;
    Some(f(&core))
}

/// Runs `f` with the current core's executor while it is borrowed: `f` must not run foreign code.
pub(crate) fn peek<T>(f: impl FnOnce(Option<&Core>) -> T) -> T {
    let mut f = Some(f);
    let done = CURRENT.try_with(|current| {
        let current = current.borrow();
        f.take().map(|f| f(current.as_deref()))
    });
    match (done, f) {
        (Ok(Some(value)), _) => value,
        (_, Some(f)) => f(None),
        _ => unreachable!("the closure was either called or is still there"),
    }
}

/// The current core. Panics on a foreign thread, naming the function that was called.
pub(crate) fn expect(what: &str) -> Rc<Core> {
    match try_with(Rc::clone) {
        Some(core) => core,
        None => panic!(
            "lockgate_runtime::{what} was called outside of a core; call it from a task (see Runtime::spawn_on)"
        ),
    }
}

/// Whether the calling thread runs a core now.
pub(crate) fn is_core_thread() -> bool {
    peek(|core| core.is_some())
}

/// The index of the current core within its runtime; None on a foreign thread.
pub fn core_index() -> Option<usize> {
    peek(|core| core.map(|core| core.shared.index))
}

/// The runtime of the current core. Panics on a foreign thread.
pub fn current() -> Runtime {
    Runtime::of_core(&expect("current"))
}

/// Spawns a task on the current core. Panics on a foreign thread (use [`Runtime::spawn_on`] there).
pub fn spawn(future: impl Future<Output = ()> + 'static) -> TaskHandle {
    expect("spawn").spawn(Box::pin(future))
}

/// CLOCK_BOOTTIME in nanoseconds; virtual time in the simulation; the real clock on foreign threads.
pub fn now_ns() -> u64 {
    peek(|core| core.map_or_else(clock::boottime_ns, Core::now_ns))
}

/// The wall clock in milliseconds since 1970; virtual in the simulation; the real clock on foreign threads.
pub fn unix_ms() -> u64 {
    peek(|core| core.map_or_else(clock::wall_ms, |core| core.inner.unix_ms()))
}

/// Which start of its operating system the machine is in: as long as this is the same, what was written to a file is in
/// the system's cache or on the disk. `None` if the system does not tell. Each power cut of a simulated machine changes it;
/// the real one on foreign threads.
pub fn os_boot_id() -> Option<[u8; 16]> {
    peek(|core| core.map_or_else(clock::os_boot_id, |core| core.inner.os_boot_id()))
}

/// A random number from the current core's runtime. Panics on a foreign thread (use [`Runtime::random_u64`] there).
pub fn random_u64() -> u64 {
    expect("random_u64").inner.random_u64()
}
