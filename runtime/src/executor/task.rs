//! A task's header, which its wakers share, and the handle by which it can be aborted.
//!
//! Invariants:
//! - The future itself never leaves its core: the header holds only its place there.
//! - `queued` is true from a wake until just before the poll that answers it, so that a task is in the run queue or in
//!   the inject queue at most once, and a wake during a poll queues it again.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::Wake;

use super::core::{CoreShared, Inject};
use crate::context;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};

/// A future that stays on its core.
pub(crate) type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// What a task's wakers share.
pub(crate) struct Task {
    core: Arc<CoreShared>,
    /// The place in the core's table of tasks, which may have been given to another task since.
    pub(super) key: usize,
    queued: AtomicBool,
    aborted: AtomicBool,
}

impl Task {
    pub(super) fn new(core: Arc<CoreShared>, key: usize) -> Self {
        Self { core, key, queued: AtomicBool::new(false), aborted: AtomicBool::new(false) }
    }

    /// Begins the answer to all wakes until now: later ones queue the task again.
    pub(super) fn unqueue(&self) {
        self.queued.swap(false, Ordering::AcqRel);
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.enqueue();
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.clone().enqueue();
        }
    }
}

impl Task {
    /// Puts the task into its core's run queue from that core, or into its inject queue from elsewhere.
    fn enqueue(self: Arc<Self>) {
        let left = context::peek(|core| match core {
            Some(core) if Arc::ptr_eq(&core.shared, &self.core) => {
                core.push_local(self);
                None
            }
            _ => Some(self),
        });
        if let Some(task) = left {
            let core = task.core.clone();
            core.inject(Inject::Wake(task));
        }
    }
}

/// Names a spawned task. Dropping it detaches the task.
#[derive(Clone)]
pub struct TaskHandle(pub(super) Arc<Task>);

impl fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskHandle").field("core", &self.0.core.index).finish_non_exhaustive()
    }
}

impl TaskHandle {
    /// Drops the task's future on its core, soon. Operations that it has in flight keep their buffers until they
    /// are complete. Does nothing for a task that has ended.
    pub fn abort(&self) {
        self.0.aborted.store(true, Ordering::Release);
        self.0.wake_by_ref();
    }
}
