//! What all nodes of a simulation share: ideal time, what is to happen, machines, the network, random numbers.
//!
//! Invariants:
//! - Time never goes back, and an event fires at its time: ties go by the order of scheduling.
//! - No waker runs while the world is locked: they are collected and run by [`World::with`] after the unlock.
//! - An operation takes effect even if its future was dropped; what its result would have opened is undone then.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::clock::BOOTED_NS;
use super::machine::Machine;
use super::net::{self, EndId, Network};
use super::random::{Random, mix};
use super::{connect, disk_call};
use crate::executor::Timers;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};

/// What one poll takes in ideal time, in nanoseconds, from and to.
const POLL_NS: (u64, u64) = (100, 1_000);

/// The shared world, behind a lock that is never contended.
pub(crate) struct World {
    now_ns: AtomicU64,
    state: Mutex<State>,
}

/// What is in the world.
pub(super) struct State {
    pub(super) now_ns: u64,
    pub(super) seed: u64,
    pub(super) random: Random,
    /// In the order of their first start: a machine's place is its number.
    pub(super) machines: Vec<Machine>,
    pub(super) network: Network,
    trace: u64,
    polls: u64,
    next_sequence: u64,
    events: BinaryHeap<Reverse<Due>>,
    wakes: Vec<Waker>,
}

/// An event and its time.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at_ns: u64,
    sequence: u64,
    happening: Happening,
}

/// What an event does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happening {
    /// An operation of a disk is done.
    DiskCall { node: usize, number: u64 },
    /// Something arrives at an end of a connection.
    Arrival(EndId),
    /// An end's peer learns what was received there.
    Acknowledgement(EndId),
    /// An attempt to connect is answered, or made again.
    Connect(u64),
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let state = State {
            now_ns: BOOTED_NS,
            seed,
            random: Random::new(seed, 0),
            machines: Vec::new(),
            network: Network::new(),
            trace: mix(seed),
            polls: 0,
            next_sequence: 0,
            events: BinaryHeap::new(),
            wakes: Vec::new(),
        };
        Self { now_ns: AtomicU64::new(BOOTED_NS), state: Mutex::new(state) }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Acquire)
    }

    /// Runs `f` with the world locked, then the wakers that it has collected.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let (value, mut wakes) = {
            let mut state = self.state.lock();
            let value = f(&mut state);
            if state.wakes.is_empty() {
                return value;
            }
            (value, std::mem::take(&mut state.wakes))
        };
        for waker in wakes.drain(..) {
            waker.wake();
        }
        // There are more to come: the room for them stays.
        let mut state = self.state.lock();
        if state.wakes.is_empty() {
            state.wakes = wakes;
        }
        value
    }

    /// Moves time forward.
    pub(super) fn advance_to(&self, now_ns: u64) {
        self.set_now(&mut self.state.lock(), now_ns);
    }

    fn set_now(&self, state: &mut State, now_ns: u64) {
        debug_assert!(now_ns >= state.now_ns, "time never goes back");
        state.now_ns = now_ns;
        self.now_ns.store(now_ns, Ordering::Release);
    }

    /// A task was polled: that has taken a little time.
    pub(super) fn polled(&self, core: u64, task: usize) {
        let mut state = self.state.lock();
        let now_ns = state.now_ns + state.random.between(POLL_NS.0, POLL_NS.1);
        self.set_now(&mut state, now_ns);
        state.polls += 1;
        state.trace(core << 32 ^ task as u64 ^ now_ns << 16);
    }

    /// When the next event is due.
    pub(super) fn next_event_ns(&self) -> Option<u64> {
        self.state.lock().events.peek().map(|Reverse(due)| due.at_ns)
    }

    /// Forgets everything that refers to tasks.
    pub(super) fn clear(&self) {
        let forgotten = {
            let mut state = self.state.lock();
            let events = std::mem::take(&mut state.events);
            let network = std::mem::replace(&mut state.network, Network::new());
            let calls: Vec<_> =
                state.machines.iter_mut().map(|machine| std::mem::take(&mut machine.calls)).collect();
            let wakes = std::mem::take(&mut state.wakes);
            (events, network, calls, wakes)
        };
        drop(forgotten);
    }
}

impl State {
    /// Has something happen after `delay_ns`.
    pub(super) fn schedule(&mut self, delay_ns: u64, happening: Happening) {
        self.schedule_at(self.now_ns.saturating_add(delay_ns), happening);
    }

    /// Has something happen at `at_ns`.
    pub(super) fn schedule_at(&mut self, at_ns: u64, happening: Happening) {
        self.next_sequence += 1;
        self.events.push(Reverse(Due { at_ns, sequence: self.next_sequence, happening }));
    }

    /// Has a waker run when the lock is released.
    pub(super) fn wake(&mut self, waker: Option<Waker>) {
        self.wakes.extend(waker);
    }

    /// As [`State::wake`], for all timers that are due.
    pub(super) fn wake_due(&mut self, timers: &mut Timers, now_ns: u64) {
        while let Some(waker) = timers.pop_due(now_ns) {
            self.wakes.push(waker);
        }
    }

    /// Mixes `value` into the trace.
    pub(super) fn trace(&mut self, value: u64) {
        self.trace = mix(self.trace.rotate_left(5) ^ value);
    }

    pub(super) fn trace_hash(&self) -> u64 {
        self.trace
    }

    pub(super) fn polls(&self) -> u64 {
        self.polls
    }

    /// Fires the events that are due. Returns whether there were any.
    pub(super) fn fire_due(&mut self) -> bool {
        let mut fired = false;
        while self.fire_next_due() {
            fired = true;
        }
        fired
    }

    fn fire_next_due(&mut self) -> bool {
        match self.events.peek() {
            Some(Reverse(due)) if due.at_ns <= self.now_ns => {}
            _ => return false,
        }
        let Some(Reverse(Due { happening, .. })) = self.events.pop() else { return false };
        match happening {
            Happening::DiskCall { node, number } => disk_call::finish(self, node, number),
            Happening::Arrival(end) => net::arrive(self, end),
            Happening::Acknowledgement(end) => net::acknowledge(self, end),
            Happening::Connect(attempt) => connect::answer(self, attempt),
        }
        true
    }
}

/// Where the result of an operation arrives.
enum Cell<T> {
    Pending(Option<Waker>),
    Done(T),
    /// The future has got it, or is gone.
    Gone,
}

/// The world's side of an operation: what will give its result.
pub(super) struct Promise<T> {
    cell: Arc<Mutex<Cell<T>>>,
    undo: fn(&mut State, T),
}

/// The future of an operation of the world. It belongs to its core, as on the machine.
pub(super) struct Operation<T> {
    world: Arc<World>,
    cell: Arc<Mutex<Cell<T>>>,
    undo: fn(&mut State, T),
    not_moved: PhantomData<*const ()>,
}

/// An operation and who will give its result. `undo` gets the result if the future is gone by then.
pub(super) fn promise<T>(world: &Arc<World>, undo: fn(&mut State, T)) -> (Promise<T>, Operation<T>) {
    let cell = Arc::new(Mutex::new(Cell::Pending(None)));
    let promise = Promise { cell: cell.clone(), undo };
    (promise, Operation { world: world.clone(), cell, undo, not_moved: PhantomData })
}

impl<T> Promise<T> {
    /// Gives the result.
    pub(super) fn keep(self, state: &mut State, result: T) {
        let mut cell = self.cell.lock();
        match std::mem::replace(&mut *cell, Cell::Gone) {
            Cell::Pending(waker) => {
                *cell = Cell::Done(result);
                state.wake(waker);
            }
            Cell::Gone => {
                drop(cell);
                (self.undo)(state, result);
            }
            Cell::Done(_) => unreachable!("a promise is kept once"),
        }
    }

    /// Whether nobody waits for the result.
    pub(super) fn is_unwanted(&self) -> bool {
        matches!(*self.cell.lock(), Cell::Gone)
    }
}

impl<T> Future for Operation<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut cell = self.cell.lock();
        match std::mem::replace(&mut *cell, Cell::Gone) {
            Cell::Done(result) => Poll::Ready(result),
            Cell::Pending(_) => {
                *cell = Cell::Pending(Some(cx.waker().clone()));
                Poll::Pending
            }
            Cell::Gone => panic!("an operation was polled after its end"),
        }
    }
}

impl<T> Drop for Operation<T> {
    fn drop(&mut self) {
        let cell = std::mem::replace(&mut *self.cell.lock(), Cell::Gone);
        if let Cell::Done(result) = cell {
            self.world.with(|state| (self.undo)(state, result));
        }
    }
}
