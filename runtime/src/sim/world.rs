//! What all nodes of a simulation share: virtual time, pending completions, disks, the network, random numbers.
//!
//! Invariants:
//! - Time never goes back, and an event fires at its time: ties go by the order of scheduling.
//! - No waker runs while the world is locked: they are collected and run by [`World::with`] after the unlock.
//! - An operation takes effect even if its future was dropped; what its result would have opened is undone then.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::disk::Disk;
use super::net::Network;
use super::random::{Random, mix};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};

/// The machine has been up for a second when the simulation begins.
const START_NS: u64 = 1_000_000_000;
/// The wall clock when the machine was started: 2026-01-01.
pub(super) const EPOCH_MS: u64 = 1_767_225_600_000;

type Action = Box<dyn FnOnce(&mut State) + Send>;

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
    pub(super) disks: Vec<Disk>,
    pub(super) network: Network,
    /// Names of nodes in the order of their disks.
    pub(super) names: Vec<String>,
    /// Nodes whose cores run.
    pub(super) running: BTreeSet<usize>,
    trace: u64,
    next_sequence: u64,
    events: BTreeMap<(u64, u64), Action>,
    wakes: Vec<Waker>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let state = State {
            now_ns: START_NS,
            seed,
            random: Random::new(seed, 0),
            disks: Vec::new(),
            network: Network::new(),
            names: Vec::new(),
            running: BTreeSet::new(),
            trace: mix(seed),
            next_sequence: 0,
            events: BTreeMap::new(),
            wakes: Vec::new(),
        };
        Self { now_ns: AtomicU64::new(START_NS), state: Mutex::new(state) }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Acquire)
    }

    /// Runs `f` with the world locked, then the wakers that it has collected.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let (value, wakes) = {
            let mut state = self.state.lock();
            let value = f(&mut state);
            (value, std::mem::take(&mut state.wakes))
        };
        for waker in wakes {
            waker.wake();
        }
        value
    }

    /// Moves time forward.
    pub(super) fn advance_to(&self, now_ns: u64) {
        let mut state = self.state.lock();
        debug_assert!(now_ns >= state.now_ns, "time never goes back");
        state.now_ns = now_ns;
        self.now_ns.store(now_ns, Ordering::Release);
    }

    /// When the next event is due.
    pub(super) fn next_event_ns(&self) -> Option<u64> {
        self.state.lock().events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Fires the events that are due.
    pub(super) fn fire_due(&self) {
        while self.with(State::fire_next_due) {}
    }

    /// Mixes `value` into the trace.
    pub(super) fn trace(&self, value: u64) {
        let mut state = self.state.lock();
        state.trace = mix(state.trace.rotate_left(5) ^ value);
    }

    pub(super) fn trace_hash(&self) -> u64 {
        self.state.lock().trace
    }

    /// Forgets everything that refers to tasks.
    pub(super) fn clear(&self) {
        let forgotten = {
            let mut state = self.state.lock();
            let events = std::mem::take(&mut state.events);
            let network = std::mem::replace(&mut state.network, Network::new());
            let wakes = std::mem::take(&mut state.wakes);
            (events, network, wakes)
        };
        drop(forgotten);
    }

    /// Starts an operation that takes `latency_ns`: then `action` happens. If its future is gone by then, `undo` gets
    /// its result.
    pub(super) fn operate<T: Send + 'static>(
        self: &Arc<Self>,
        latency_ns: u64,
        action: impl FnOnce(&mut State) -> T + Send + 'static,
        undo: fn(&mut State, T),
    ) -> Operation<T> {
        let cell = Arc::new(Mutex::new(Cell::Pending(None)));
        let result_cell = cell.clone();
        self.with(|state| {
            state.schedule(latency_ns, move |state| {
                let result = action(state);
                let mut cell = result_cell.lock();
                match std::mem::replace(&mut *cell, Cell::Gone) {
                    Cell::Pending(waker) => {
                        *cell = Cell::Done(result);
                        state.wakes.extend(waker);
                    }
                    Cell::Gone => {
                        drop(cell);
                        undo(state, result);
                    }
                    Cell::Done(_) => unreachable!("an event fires once"),
                }
            });
        });
        Operation { world: self.clone(), cell, undo, not_moved: PhantomData }
    }
}

impl State {
    /// Has `action` happen after `delay_ns`.
    pub(super) fn schedule(&mut self, delay_ns: u64, action: impl FnOnce(&mut State) + Send + 'static) {
        self.schedule_at(self.now_ns.saturating_add(delay_ns), action);
    }

    /// Has `action` happen at `at_ns`.
    pub(super) fn schedule_at(&mut self, at_ns: u64, action: impl FnOnce(&mut State) + Send + 'static) {
        self.next_sequence += 1;
        self.events.insert((at_ns, self.next_sequence), Box::new(action));
    }

    /// Has a waker run when the lock is released.
    pub(super) fn wake(&mut self, waker: Option<Waker>) {
        self.wakes.extend(waker);
    }

    fn fire_next_due(&mut self) -> bool {
        let now_ns = self.now_ns;
        let Some(first) = self.events.first_entry() else { return false };
        if first.key().0 > now_ns {
            return false;
        }
        let action = first.remove();
        action(self);
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

/// The future of an operation of the world. It belongs to its core, as on the machine.
pub(super) struct Operation<T: Send + 'static> {
    world: Arc<World>,
    cell: Arc<Mutex<Cell<T>>>,
    undo: fn(&mut State, T),
    not_moved: PhantomData<*const ()>,
}

impl<T: Send + 'static> Future for Operation<T> {
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

impl<T: Send + 'static> Drop for Operation<T> {
    fn drop(&mut self) {
        let cell = std::mem::replace(&mut *self.cell.lock(), Cell::Gone);
        if let Cell::Done(result) = cell {
            self.world.with(|state| (self.undo)(state, result));
        }
    }
}

/// For operations that leave nothing open.
pub(super) fn nothing_to_undo<T>(_: &mut State, _: T) {}
