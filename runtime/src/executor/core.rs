//! One core: its tasks, its run queue, what other threads inject, and its timers.
//!
//! Invariants:
//! - A future is polled only by [`Core::poll_next`], never inside another poll, and no cell of the core is borrowed
//!   while foreign code (a poll, a drop, a waker) runs.
//! - What was injected before a [`CoreShared::notify`] is drained before the core parks (see `parking`).
//! - After [`CoreShared::close`] nothing stays in the inject queue: who injects later drops it himself.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Waker};

use crossbeam::queue::SegQueue;
use slab::Slab;

use super::task::{LocalFuture, Task, TaskHandle};
use super::timers::Timers;
use crate::parking::ParkFlag;
use crate::runtime::Inner;
use crate::sim::NodePort;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering, fence};
use crate::uring::Ring;

/// What other threads send to a core.
pub(crate) enum Inject {
    /// A task of this core was woken.
    Wake(Arc<Task>),
    /// A future is to be made and spawned.
    Spawn(Box<dyn FnOnce() -> LocalFuture + Send>),
}

/// How a parked core is woken.
pub(crate) enum Bell {
    /// A write to the eventfd that the core's ring reads.
    EventFd(OwnedFd),
    /// Simulated cores do not sleep: their driver looks at all of them.
    Silent,
}

/// The part of a core that other threads see.
pub(crate) struct CoreShared {
    /// The index within the runtime.
    pub(crate) index: usize,
    pub(crate) park: ParkFlag,
    pub(crate) bell: Bell,
    queue: SegQueue<Inject>,
    stop: AtomicBool,
    closed: AtomicBool,
}

impl CoreShared {
    pub(crate) fn new(index: usize, bell: Bell) -> Self {
        Self {
            index,
            park: ParkFlag::new(),
            bell,
            queue: SegQueue::new(),
            stop: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// Sends something to the core and wakes it if it sleeps.
    pub(crate) fn inject(&self, what: Inject) {
        self.queue.push(what);
        self.notify();
        fence(Ordering::SeqCst);
        if self.closed.load(Ordering::Relaxed) {
            self.discard();
        }
    }

    /// Says that something was published for the core; rings its bell if it sleeps.
    pub(crate) fn notify(&self) {
        if self.park.notify()
            && let Bell::EventFd(fd) = &self.bell
        {
            // Cannot fail in a way that matters: the counter is drained by each read, and the descriptor is open.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }

    /// Asks the core to stop.
    pub(crate) fn request_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.notify();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn has_injected(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The core will not look at its queue again.
    pub(crate) fn close(&self) {
        self.stop.store(true, Ordering::Release);
        self.closed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.discard();
    }

    fn discard(&self) {
        while let Some(what) = self.queue.pop() {
            drop(what);
        }
    }
}

/// What a core does its I/O with.
pub(crate) enum Backend {
    Uring(Rc<Ring>),
    Sim(NodePort),
}

/// A task in its core's table.
struct Entry {
    task: Arc<Task>,
    /// None while it is polled.
    future: Option<LocalFuture>,
}

/// One core, on its own thread (or on the simulation's).
pub(crate) struct Core {
    pub(crate) shared: Arc<CoreShared>,
    pub(crate) inner: Arc<Inner>,
    pub(crate) backend: Backend,
    pub(crate) timers: Rc<RefCell<Timers>>,
    tasks: RefCell<Slab<Entry>>,
    run_queue: RefCell<VecDeque<Arc<Task>>>,
    closed: Cell<bool>,
}

impl Core {
    pub(crate) fn new(shared: Arc<CoreShared>, inner: Arc<Inner>, backend: Backend) -> Self {
        Self {
            shared,
            inner,
            backend,
            timers: Rc::default(),
            tasks: RefCell::default(),
            run_queue: RefCell::default(),
            closed: Cell::new(false),
        }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.inner.now_ns()
    }

    /// Adds a task and queues it. On a core that has stopped, the future is dropped.
    pub(crate) fn spawn(&self, future: LocalFuture) -> TaskHandle {
        if self.closed.get() {
            return TaskHandle(Arc::new(Task::new(self.shared.clone(), usize::MAX)));
        }
        let task = {
            let mut tasks = self.tasks.borrow_mut();
            let place = tasks.vacant_entry();
            let task = Arc::new(Task::new(self.shared.clone(), place.key()));
            place.insert(Entry { task: task.clone(), future: Some(future) });
            task
        };
        Waker::from(task.clone()).wake();
        TaskHandle(task)
    }

    /// Queues a task of this core.
    pub(super) fn push_local(&self, task: Arc<Task>) {
        self.run_queue.borrow_mut().push_back(task);
    }

    /// Takes in all that other threads have sent.
    pub(crate) fn drain_injected(&self) {
        while let Some(what) = self.shared.queue.pop() {
            match what {
                Inject::Wake(task) => self.push_local(task),
                Inject::Spawn(make) => {
                    self.spawn(make());
                }
            }
        }
    }

    pub(crate) fn has_runnable(&self) -> bool {
        !self.run_queue.borrow().is_empty()
    }

    pub(crate) fn runnable(&self) -> usize {
        self.run_queue.borrow().len()
    }

    pub(crate) fn tasks(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Wakes the tasks whose timers are due.
    pub(crate) fn fire_timers(&self, now_ns: u64) {
        loop {
            let due = self.timers.borrow_mut().pop_due(now_ns);
            match due {
                Some(waker) => waker.wake(),
                None => return,
            }
        }
    }

    /// Polls the next runnable task. Returns its place in the table, or None when nothing is runnable.
    pub(crate) fn poll_next(&self) -> Option<usize> {
        let task = self.run_queue.borrow_mut().pop_front()?;
        task.unqueue();
        let key = task.key;
        if task.is_aborted() {
            let removed = self.remove(&task);
            drop(removed);
            return Some(key);
        }
        let future = {
            let mut tasks = self.tasks.borrow_mut();
            tasks
                .get_mut(key)
                .filter(|entry| Arc::ptr_eq(&entry.task, &task))
                .and_then(|entry| entry.future.take())
        };
        // A stale wake of a task that has ended.
        let Some(mut future) = future else { return Some(key) };
        let waker = Waker::from(task.clone());
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            drop(future);
            let removed = self.remove(&task);
            drop(removed);
        } else if let Some(entry) = self.tasks.borrow_mut().get_mut(key) {
            entry.future = Some(future);
        }
        Some(key)
    }

    fn remove(&self, task: &Arc<Task>) -> Option<Entry> {
        let mut tasks = self.tasks.borrow_mut();
        if !Arc::ptr_eq(&tasks.get(task.key)?.task, task) {
            return None;
        }
        tasks.try_remove(task.key)
    }

    /// Drops all tasks, and those that their drops spawn. The core takes no more tasks.
    pub(crate) fn drop_tasks(&self) {
        self.closed.set(true);
        self.shared.close();
        loop {
            let entries: Vec<Entry> = self.tasks.borrow_mut().drain().collect();
            if entries.is_empty() {
                break;
            }
            drop(entries);
        }
        self.run_queue.borrow_mut().clear();
    }
}
