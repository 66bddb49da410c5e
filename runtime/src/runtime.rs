//! [`Runtime`]: the handle to all cores of one node, on either backend.
//!
//! Invariants:
//! - The handle is Send + Sync on both backends; what belongs to one core stays inside of that core.
//! - When the last handle outside of the cores is dropped, an io_uring runtime stops, as by [`Runtime::shutdown`].

use std::fmt;
use std::future::Future;

use crate::clock;
use crate::context;
use crate::error::RuntimeError;
use crate::executor::{Core, CoreShared, Inject, LocalFuture};
use crate::sim::SimNode;
use crate::sync::{Arc, Condvar, Mutex, Weak};
use crate::uring::UringCores;

/// The most cores of one runtime.
pub(crate) const CORES_MAX: usize = 1024;

/// All cores of one node. Cheap to clone; usable from every thread.
#[derive(Clone)]
pub struct Runtime(Arc<Handle>);

/// Counts the handles, without those that the cores themselves need.
struct Handle(Arc<Inner>);

/// What all cores of a runtime share.
pub(crate) struct Inner {
    pub(crate) name: String,
    pub(crate) cores: Vec<Arc<CoreShared>>,
    pub(crate) kind: Kind,
    handle: Mutex<Weak<Handle>>,
}

/// The two backends.
pub(crate) enum Kind {
    Uring(UringCores),
    Sim(SimNode),
}

impl Inner {
    pub(crate) fn new(name: String, cores: Vec<Arc<CoreShared>>, kind: Kind) -> Arc<Self> {
        Arc::new(Self { name, cores, kind, handle: Mutex::new(Weak::new()) })
    }

    pub(crate) fn now_ns(&self) -> u64 {
        match &self.kind {
            Kind::Uring(_) => clock::boottime_ns(),
            Kind::Sim(node) => node.now_ns(),
        }
    }

    pub(crate) fn unix_ms(&self) -> u64 {
        match &self.kind {
            Kind::Uring(_) => clock::wall_ms(),
            Kind::Sim(node) => node.unix_ms(),
        }
    }

    pub(crate) fn os_boot_id(&self) -> Option<[u8; 16]> {
        match &self.kind {
            Kind::Uring(_) => clock::os_boot_id(),
            Kind::Sim(node) => Some(node.os_boot_id()),
        }
    }

    pub(crate) fn random_u64(&self) -> u64 {
        match &self.kind {
            Kind::Uring(cores) => cores.random_u64(),
            Kind::Sim(node) => node.random_u64(),
        }
    }

    /// Stops all cores; waits for their threads unless called on one of them.
    fn stop(&self) {
        for core in &self.cores {
            core.request_stop();
        }
        match &self.kind {
            Kind::Uring(cores) => cores.join(),
            Kind::Sim(node) => node.stop(),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Tests drop handles of simulated nodes that go on living in their Sim.
        if matches!(self.0.kind, Kind::Uring(_)) {
            self.0.stop();
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("name", &self.0.0.name)
            .field("cores", &self.cores())
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// Settings for a runtime of real cores with io_uring. Simulated ones come from [`crate::sim::Sim::node`].
    pub fn builder() -> RuntimeBuilder {
        RuntimeBuilder::default()
    }

    /// The handle to `inner`: the one that exists, or a new one.
    pub(crate) fn of_inner(inner: &Arc<Inner>) -> Self {
        let mut weak = inner.handle.lock();
        if let Some(handle) = weak.upgrade() {
            return Self(handle);
        }
        let handle = Arc::new(Handle(inner.clone()));
        *weak = Arc::downgrade(&handle);
        Self(handle)
    }

    pub(crate) fn of_core(core: &Core) -> Self {
        Self::of_inner(&core.inner)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0.0
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        self.inner().cores.len()
    }

    /// The name that was given to the runtime.
    pub fn name(&self) -> &str {
        &self.inner().name
    }

    /// Calls `make` on core `core` and spawns the future that it returns there. Callable from any thread.
    ///
    /// After a shutdown, `make` is dropped without being called. Panics if there is no such core.
    pub fn spawn_on<M, F>(&self, core: usize, make: M)
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        let count = self.cores();
        assert!(core < count, "spawn_on(core {core}): the runtime has {count} cores");
        let make = Box::new(move || -> LocalFuture { Box::pin(make()) });
        self.inner().cores[core].inject(Inject::Spawn(make));
    }

    /// As [`Runtime::spawn_on`], and waits for the future's result. In the simulation, this drives it meanwhile.
    ///
    /// Panics on a core's thread (await instead), and when the runtime stops before the future is done.
    pub fn block_on<M, F, T>(&self, core: usize, make: M) -> T
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        assert!(
            !context::is_core_thread(),
            "Runtime::block_on was called on a core's thread, which it would stop: await the future instead"
        );
        let answer = Arc::new(Answer { state: Mutex::new(AnswerState::Waiting), changed: Condvar::new() });
        let sender = AnswerSender(answer.clone());
        self.spawn_on(core, move || {
            let future = make();
            async move {
                let value = future.await;
                sender.0.set(AnswerState::Done(value));
            }
        });
        if let Kind::Sim(node) = &self.inner().kind {
            let answer = answer.clone();
            node.drive_until(move || !matches!(*answer.state.lock(), AnswerState::Waiting));
        }
        match answer.wait() {
            Some(value) => value,
            None => panic!(
                "runtime {:?} stopped before a future on core {core} was done{}",
                self.name(),
                self.panic_note()
            ),
        }
    }

    fn panic_note(&self) -> String {
        match &self.inner().kind {
            Kind::Uring(cores) => cores.panic_note(),
            Kind::Sim(_) => String::new(),
        }
    }

    /// The runtime's clock in nanoseconds: CLOCK_BOOTTIME, or virtual time in the simulation.
    pub fn now_ns(&self) -> u64 {
        self.inner().now_ns()
    }

    /// The runtime's wall clock in milliseconds since 1970; virtual in the simulation.
    pub fn unix_ms(&self) -> u64 {
        self.inner().unix_ms()
    }

    /// A random number that cannot be guessed from earlier ones; drawn from the seed in the simulation.
    pub fn random_u64(&self) -> u64 {
        self.inner().random_u64()
    }

    /// Stops all cores: their tasks are dropped, buffers of operations in flight are kept until they complete, and
    /// the threads are joined (not when called on one of them). Idempotent.
    pub fn shutdown(&self) {
        self.inner().stop();
    }
}

/// Where the result of a `block_on` arrives.
struct Answer<T> {
    state: Mutex<AnswerState<T>>,
    changed: Condvar,
}

enum AnswerState<T> {
    Waiting,
    Done(T),
    /// The future was dropped.
    Gone,
}

impl<T> Answer<T> {
    fn set(&self, to: AnswerState<T>) {
        let mut state = self.state.lock();
        if matches!(*state, AnswerState::Waiting) {
            *state = to;
            self.changed.notify_all();
        }
    }

    fn wait(&self) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            match std::mem::replace(&mut *state, AnswerState::Waiting) {
                AnswerState::Waiting => self.changed.wait(&mut state),
                AnswerState::Done(value) => return Some(value),
                AnswerState::Gone => return None,
            }
        }
    }
}

struct AnswerSender<T>(Arc<Answer<T>>);

impl<T> Drop for AnswerSender<T> {
    fn drop(&mut self) {
        self.0.set(AnswerState::Gone);
    }
}

/// Settings of a runtime with io_uring.
#[derive(Debug, Clone)]
pub struct RuntimeBuilder {
    pub(crate) cores: usize,
    pub(crate) pin: bool,
    pub(crate) spin_us: u32,
    pub(crate) name: String,
}

impl Default for RuntimeBuilder {
    fn default() -> Self {
        Self { cores: 1, pin: true, spin_us: 20, name: "lockgate".to_owned() }
    }
}

impl RuntimeBuilder {
    /// How many cores: threads, each with its ring. Default 1.
    pub fn cores(mut self, cores: usize) -> Self {
        self.cores = cores;
        self
    }

    /// Whether each core's thread is pinned to a processor of its own (as far as they reach). Default true.
    pub fn pin(mut self, pin: bool) -> Self {
        self.pin = pin;
        self
    }

    /// How long a core with nothing to do spins before it parks; 0 turns spinning off. Default 20.
    pub fn spin_us(mut self, spin_us: u32) -> Self {
        self.spin_us = spin_us;
        self
    }

    /// The name of the runtime, which its threads bear.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Starts the cores.
    pub fn build(self) -> Result<Runtime, RuntimeError> {
        if self.cores == 0 || self.cores > CORES_MAX {
            return Err(RuntimeError::Cores { cores: self.cores, max: CORES_MAX });
        }
        crate::uring::start(&self)
    }
}
