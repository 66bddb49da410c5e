//! One core's ring, and the slots of its operations in flight.
//!
//! Access rule for the memory of operations:
//! - [`Ring::submit`] moves a request into a box of its own, and keeps only the raw pointer, in the operation's slot.
//!   From then until the completion arrives nobody forms a reference to it: it is the kernel's.
//! - When the completion arrives, the pointer goes exactly once back into a box: to the future ([`Op`]) if that still
//!   waits, or else (slot ORPHANED) it is dropped by the loop.
//! - A slot is freed only together with that, so the memory outlives the operation even if the future is dropped.
//!   Slots that are still in flight when the ring itself is dropped leak their request on purpose.
//!
//! Invariants:
//! - Completions are first moved to a queue; wakers and drops run from [`Ring::process`] with nothing borrowed.
//! - The number that names an operation to the kernel carries a generation, so that a late cancel cannot hit another
//!   operation in the same slot.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use super::request::{OnDrop, Request};

/// Entries of the submission queue. When it is full, it is submitted and filled anew.
const SUBMISSION_ENTRIES: u32 = 256;
/// Entries of the completion queue. The kernel keeps what does not fit.
const COMPLETION_ENTRIES: u32 = 4096;
const _: () = assert!(COMPLETION_ENTRIES >= 2 * SUBMISSION_ENTRIES, "submissions of one round fit");

/// The name of cancellations, whose own result does not matter.
const IGNORED: u64 = u64::MAX;

/// One core's ring.
pub(crate) struct Ring {
    ring: RefCell<IoUring>,
    slots: RefCell<Slab<Slot>>,
    completed: RefCell<VecDeque<(u64, i32)>>,
    next_generation: Cell<u32>,
}

/// An operation in flight.
struct Slot {
    generation: u32,
    state: State,
    /// From `Box::into_raw`; see the access rule.
    request: *mut dyn Any,
    on_drop: OnDrop,
}

enum State {
    /// The future is there and has perhaps left a waker.
    Waiting(Option<Waker>),
    /// The future is gone.
    Orphaned,
    /// The completion is there, the future has not fetched it yet.
    Done(i32),
}

impl Ring {
    /// A ring for the calling thread, which must be the only one that uses it.
    pub(crate) fn new() -> io::Result<Self> {
        let ring = match Self::build(true, true) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                // Older kernels know fewer flags.
                Self::build(false, true).or_else(|_| Self::build(false, false))
            }
            other => other,
        }?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        Ok(Self {
            ring: RefCell::new(ring),
            slots: RefCell::default(),
            completed: RefCell::default(),
            next_generation: Cell::new(0),
        })
    }

    /// Where the kernel's workers may run, which do for this ring what cannot be done at once, such as writes. Otherwise it is
    /// where the thread that made the ring may: of a pinned one that is its own processor, which it keeps busy. Since Linux 6.2
    /// it is that all the same (a worker inherits what its thread asked for itself): so syncs are not left to them.
    pub(crate) fn let_workers_run_on(&self, processors: &[usize]) -> io::Result<()> {
        // SAFETY: it is a set of bits, and empty when they are all zero.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for processor in processors {
            // SAFETY: it sets a bit of the set, whose bounds it checks.
            unsafe { libc::CPU_SET(*processor, &mut set) };
        }
        self.ring.borrow().submitter().register_iowq_aff(&set)
    }

    fn build(defer: bool, cooperate: bool) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETION_ENTRIES).setup_clamp().dontfork();
        if cooperate {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if defer {
            builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
        }
        builder.build(SUBMISSION_ENTRIES)
    }

    /// Queues an operation. It owns `request` until its completion.
    pub(crate) fn submit<R: Request>(self: &Rc<Self>, request: R) -> Op<R> {
        let request: *mut R = Box::into_raw(Box::new(request));
        // SAFETY: fresh from `Box::into_raw`, and the kernel does not know of it yet (access rule).
        let entry = unsafe { &mut *request }.entry();
        let generation = self.next_generation.get();
        self.next_generation.set(generation.wrapping_add(1));
        let slot = Slot { generation, state: State::Waiting(None), request, on_drop: R::ON_DROP };
        let key = self.slots.borrow_mut().insert(slot);
        let name = name_of(key, generation);
        self.push(entry.user_data(name));
        Op { ring: self.clone(), name: Some(name), request: PhantomData }
    }

    /// Adds an entry to the submission queue; submits the queue first when it is full.
    fn push(&self, entry: squeue::Entry) {
        loop {
            // SAFETY: the entry refers only to memory of a request in a slot (Request's promise), which stays
            // valid until its completion (access rule), or to no memory (cancellations).
            if unsafe { self.ring.borrow_mut().submission().push(&entry) }.is_ok() {
                return;
            }
            self.enter(0, None);
        }
    }

    /// Whether entries wait for submission, or completions for being fetched with a system call.
    pub(crate) fn wants_enter(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        let submission = ring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// Whether completions are there to be processed, or can be fetched.
    pub(crate) fn has_completions(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        !ring.completion().is_empty() || {
            let submission = ring.submission();
            submission.taskrun() || submission.cq_overflow()
        }
    }

    /// Submits what is queued, without waiting.
    pub(crate) fn flush(&self) {
        self.enter(0, None);
    }

    /// Submits what is queued and waits for a completion, at most for `timeout_ns`.
    pub(crate) fn park(&self, timeout_ns: Option<u64>) {
        self.enter(1, timeout_ns);
    }

    fn enter(&self, want: usize, timeout_ns: Option<u64>) {
        let result = {
            let ring = self.ring.borrow();
            match timeout_ns {
                None => ring.submitter().submit_and_wait(want),
                Some(nanos) => {
                    let timespec = types::Timespec::from(Duration::from_nanos(nanos));
                    let args = types::SubmitArgs::new().timespec(&timespec);
                    ring.submitter().submit_with_args(want, &args)
                }
            }
        };
        self.collect();
        let Err(error) = result else { return };
        match error.raw_os_error() {
            // Waited long enough, or interrupted by a signal: the loop comes back.
            Some(libc::ETIME | libc::EINTR) => {}
            // Completions have overflown, or the kernel is short of memory: room was made by `collect`.
            Some(libc::EBUSY | libc::EAGAIN) => std::thread::yield_now(),
            _ => panic!("io_uring_enter failed ({error}): the core cannot do I/O any more"),
        }
    }

    /// Moves completions from the ring to the queue.
    fn collect(&self) {
        let mut ring = self.ring.borrow_mut();
        let mut completed = self.completed.borrow_mut();
        completed.extend(ring.completion().map(|entry| (entry.user_data(), entry.result())));
    }

    /// Runs the wakers of completed operations, and drops what orphaned ones owned.
    pub(crate) fn process(&self) {
        self.collect();
        loop {
            let next = self.completed.borrow_mut().pop_front();
            let Some((name, result)) = next else { return };
            if name != IGNORED {
                self.complete(name, result);
            }
        }
    }

    fn complete(&self, name: u64, result: i32) {
        let (key, generation) = parts_of(name);
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key).filter(|slot| slot.generation == generation) else {
            debug_assert!(false, "a completion without its operation");
            return;
        };
        match std::mem::replace(&mut slot.state, State::Done(result)) {
            State::Waiting(waker) => {
                drop(slots);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            State::Orphaned => {
                let slot = slots.remove(key);
                drop(slots);
                if matches!(slot.on_drop, OnDrop::CancelAndClose) && result >= 0 {
                    // SAFETY: the completion of an accept or open hands over a descriptor, and the future that
                    // would have taken it is gone.
                    drop(unsafe { OwnedFd::from_raw_fd(result) });
                }
                // SAFETY: the completion has arrived and the slot is removed, so this is the one place where the
                // pointer becomes a box again (access rule).
                drop(unsafe { Box::from_raw(slot.request) });
            }
            State::Done(_) => debug_assert!(false, "a second completion of one operation"),
        }
    }

    /// The result of an operation, if it is complete; otherwise leaves the waker.
    fn fetch<R: Request>(&self, name: u64, waker: &Waker) -> Option<(i32, Box<R>)> {
        let (key, generation) = parts_of(name);
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[key];
        debug_assert_eq!(slot.generation, generation, "an operation that was fetched twice");
        match &mut slot.state {
            State::Done(result) => {
                let result = *result;
                let slot = slots.remove(key);
                // SAFETY: the completion has arrived and the slot is removed, so this is the one place where the
                // pointer becomes a box again (access rule). Its type is the one that `submit` put in: `Op<R>` is
                // made only there, with the slot's name.
                Some((result, unsafe { Box::from_raw(slot.request.cast::<R>()) }))
            }
            State::Waiting(Some(registered)) => {
                registered.clone_from(waker);
                None
            }
            State::Waiting(registered) => {
                *registered = Some(waker.clone());
                None
            }
            State::Orphaned => unreachable!("only the future's drop orphans its operation"),
        }
    }

    /// The future of an operation is gone.
    fn abandon(&self, name: u64) {
        let (key, _) = parts_of(name);
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[key];
        let on_drop = slot.on_drop;
        match std::mem::replace(&mut slot.state, State::Orphaned) {
            State::Done(result) => {
                drop(slots);
                self.completed.borrow_mut().push_back((name, result));
            }
            State::Waiting(waker) => {
                drop(slots);
                drop(waker);
                if !matches!(on_drop, OnDrop::Leave) {
                    self.push(opcode::AsyncCancel::new(name).build().user_data(IGNORED));
                }
            }
            State::Orphaned => unreachable!("a future is dropped once"),
        }
    }

    /// Waits until no operation is in flight, at most for `patience`. Returns how many are left.
    pub(crate) fn drain(&self, patience: Duration) -> usize {
        const STEP_NS: u64 = 50_000_000;
        let start = Instant::now();
        loop {
            self.process();
            let left = self.slots.borrow().len();
            if left == 0 || start.elapsed() >= patience {
                return left;
            }
            self.enter(1, Some(STEP_NS));
        }
    }
}

fn name_of(key: usize, generation: u32) -> u64 {
    let key = u32::try_from(key).expect("fewer than 2^32 operations in flight");
    u64::from(generation) << 32 | u64::from(key)
}

fn parts_of(name: u64) -> (usize, u32) {
    let key = usize::try_from(name & u64::from(u32::MAX)).expect("usize holds 32 bits");
    let generation = u32::try_from(name >> 32).expect("32 bits are left");
    (key, generation)
}

/// The future of an operation: its result and the request with all that it owns.
#[must_use = "dropping an operation abandons it"]
pub(crate) struct Op<R: Request> {
    ring: Rc<Ring>,
    /// None once the result was fetched.
    name: Option<u64>,
    request: PhantomData<Box<R>>,
}

impl<R: Request> Unpin for Op<R> {}

impl<R: Request> Future for Op<R> {
    type Output = (io::Result<u32>, Box<R>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let name = self.name.expect("an operation is not polled after its end");
        let Some((result, mut request)) = self.ring.fetch::<R>(name, cx.waker()) else {
            return Poll::Pending;
        };
        self.name = None;
        let result = match u32::try_from(result) {
            Ok(count) => {
                // SAFETY: `fetch` gives each result once, and here it goes to its request and to nobody else: the
                // caller gets it as a mere number.
                unsafe { request.completed(count) };
                Ok(count)
            }
            Err(_) => Err(io::Error::from_raw_os_error(result.saturating_neg())),
        };
        Poll::Ready((result, request))
    }
}

impl<R: Request> Drop for Op<R> {
    fn drop(&mut self) {
        if let Some(name) = self.name {
            self.ring.abandon(name);
        }
    }
}
