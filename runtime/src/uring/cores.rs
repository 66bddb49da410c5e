//! Starting and joining the threads of a runtime's cores.
//!
//! Invariants:
//! - `start` returns either a runtime whose rings all exist, or an error and no thread.
//! - A panic in a task stops all cores of its runtime: half of a node must not go on.

use std::any::Any;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::disk_threads::DiskThreads;
use super::event_loop::EventLoop;
use super::ring::Ring;
use crate::context;
use crate::error::RuntimeError;
use crate::executor::{Backend, Bell, Core, CoreShared};
use crate::runtime::{Inner, Kind, Runtime, RuntimeBuilder};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};

/// What the cores of a runtime with io_uring share.
pub(crate) struct UringCores {
    threads: Mutex<Vec<JoinHandle<()>>>,
    panic: Mutex<Option<String>>,
    /// A keyed hash of a counter, with the system's randomness as the key.
    random_key: RandomState,
    random_counter: AtomicU64,
    pub(super) disk: DiskThreads,
}

impl UringCores {
    fn new(disk: DiskThreads) -> Self {
        Self {
            disk,
            threads: Mutex::new(Vec::new()),
            panic: Mutex::new(None),
            random_key: RandomState::new(),
            random_counter: AtomicU64::new(0),
        }
    }

    pub(crate) fn random_u64(&self) -> u64 {
        let count = self.random_counter.fetch_add(1, Ordering::Relaxed);
        self.random_key.hash_one(count)
    }

    /// Waits for the threads, unless the caller is a core itself.
    pub(crate) fn join(&self) {
        if context::is_core_thread() {
            return;
        }
        // The lock is held meanwhile, so that a second caller returns only when the threads have ended, too.
        let mut threads = self.threads.lock();
        for thread in threads.drain(..) {
            // A core's thread catches its panics and notes them.
            let _ = thread.join();
        }
        self.disk.join();
    }

    /// For messages: the panic that has stopped the runtime.
    pub(crate) fn panic_note(&self) -> String {
        self.panic.lock().as_ref().map_or_else(String::new, |note| format!(": {note}"))
    }
}

/// Starts a runtime.
pub(crate) fn start(builder: &RuntimeBuilder) -> Result<Runtime, RuntimeError> {
    let mut cores = Vec::with_capacity(builder.cores);
    for index in 0..builder.cores {
        // Blocking on purpose: a read of a non-blocking descriptor would not wait in the ring.
        let bell = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|error| RuntimeError::Thread { core: index, source: error.into() })?;
        cores.push(Arc::new(CoreShared::new(index, Bell::EventFd(bell))));
    }
    let processors = if builder.pin { processors(builder.cores) } else { Vec::new() };
    let disk = DiskThreads::new(&builder.name, processors.clone());
    let inner = Inner::new(builder.name.clone(), cores, Kind::Uring(UringCores::new(disk)));
    let runtime = Runtime::of_inner(&inner);
    let (report, reports) = mpsc::channel();
    for index in 0..builder.cores {
        let (of_core, report) = (inner.clone(), report.clone());
        let (spin_us, processors) = (builder.spin_us, processors.clone());
        let thread = thread::Builder::new()
            .name(format!("{}-{index}", builder.name))
            .spawn(move || {
                pin_to(processors.get(index..=index).unwrap_or_default());
                run_core(&of_core, index, spin_us, &processors, &report);
            })
            .map_err(|source| RuntimeError::Thread { core: index, source })?;
        cores_of(&inner).threads.lock().push(thread);
    }
    drop(report);
    for _ in 0..builder.cores {
        // An error drops `runtime`, which stops and joins the threads that have started.
        let (core, result) = reports.recv().map_err(|_| RuntimeError::Thread {
            core: 0,
            source: io::Error::other("a thread ended before it made its ring"),
        })?;
        result.map_err(|source| ring_error(core, source))?;
    }
    Ok(runtime)
}

pub(super) fn cores_of(inner: &Inner) -> &UringCores {
    match &inner.kind {
        Kind::Uring(cores) => cores,
        Kind::Sim(_) => unreachable!("these cores have threads"),
    }
}

fn ring_error(core: usize, source: io::Error) -> RuntimeError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => RuntimeError::RingForbidden { core, source },
        Some(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP) => {
            RuntimeError::RingUnsupported { core, source }
        }
        _ => RuntimeError::Ring { core, source },
    }
}

/// The processors that `cores` threads may be pinned to, the first of them to the first; none when there are not enough for all.
fn processors(cores: usize) -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(None) else { return Vec::new() };
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    if allowed.len() < cores { Vec::new() } else { allowed }
}

/// Has the calling thread run only there; empty: where it may.
pub(super) fn pin_to(processors: &[usize]) {
    if processors.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    processors.iter().for_each(|processor| set.set(*processor));
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::warn!(?processors, %error, "a thread could not be pinned; it runs unpinned");
    }
}

type Report = mpsc::Sender<(usize, io::Result<()>)>;

fn run_core(inner: &Arc<Inner>, index: usize, spin_us: u32, processors: &[usize], report: &Report) {
    let shared = inner.cores[index].clone();
    let ring = match Ring::new() {
        Ok(ring) => Rc::new(ring),
        Err(error) => {
            shared.close();
            let _ = report.send((index, Err(error)));
            return;
        }
    };
    if !processors.is_empty()
        && let Err(error) = ring.let_workers_run_on(processors)
    {
        tracing::warn!(core = index, %error, "the kernel's workers stay on their core's processor");
    }
    let core = Rc::new(Core::new(shared, inner.clone(), Backend::Uring(ring.clone())));
    let _ = report.send((index, Ok(())));
    context::enter(&core, || {
        let mut event_loop = EventLoop::new(core.clone(), ring, spin_us);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| event_loop.run())) {
            note_panic(inner, index, &*panic);
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| event_loop.finish())) {
            note_panic(inner, index, &*panic);
        }
    });
}

fn note_panic(inner: &Inner, index: usize, panic: &(dyn Any + Send)) {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text");
    tracing::error!(core = index, panic = text, "a task panicked; the runtime stops");
    cores_of(inner).panic.lock().get_or_insert_with(|| format!("core {index} panicked: {text}"));
    for core in &inner.cores {
        core.request_stop();
    }
}
