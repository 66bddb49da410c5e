//! [`Sim`]: owns the cores of all nodes and decides, by the seed, what happens next.
//!
//! Invariants:
//! - One step is: fire what is due, then let one runnable core, chosen at random, poll a few tasks. Only when nothing
//!   is runnable does time jump to the next timer or event.
//! - Every poll takes a little virtual time, so that tasks that yield in a loop do not stop the clock.
//! - Nothing runnable, no timer and no event while somebody waits is a deadlock: a panic that says who is left.
//! - Observers run between polls: no core is current, and the world is not locked. What they are told has run is all that
//!   has run since they were called before.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::Future;
use std::ops::Deref;
use std::rc::{Rc, Weak};

use super::breakpoints::Breakpoints;
use super::clock::SharedClock;
use super::control::Control;
use super::faults::PowerLoss;
use super::machine::Ending;
use super::middlebox::{Middlebox, Piece};
use super::net::{self, EndId, Passing};
use super::node::{NodePort, SimNode};
use super::random::{hash, mix};
use super::world::World;
use crate::context;
use crate::executor::{Backend, Bell, Core, CoreShared};
use crate::runtime::{Inner, Kind, Runtime};
use crate::sync::Arc;

/// The most polls of one core before another one may be chosen.
const POLLS_MAX: u64 = 4;
/// The name of the machine that the futures of [`Sim::run_until`] run on.
pub(super) const DRIVER: &str = "driver";

thread_local! {
    static SIMS: RefCell<BTreeMap<u64, Weak<Driver>>> = const { RefCell::new(BTreeMap::new()) };
    static NEXT_ID: Cell<u64> = const { Cell::new(0) };
}

/// A simulation: any number of nodes on one thread, in virtual time, by a seed.
///
/// What [`Control`] can do, it can do too. Dropping it drops all tasks of all nodes.
pub struct Sim {
    driver: Rc<Driver>,
    control: Control,
    /// Runs the futures of `run_until`.
    core: Rc<Core>,
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim").field("now_ns", &self.now_ns()).finish_non_exhaustive()
    }
}

impl Deref for Sim {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

/// What drives the nodes of one simulation.
pub(super) struct Driver {
    id: u64,
    pub(super) world: Arc<World>,
    /// The cores that run, in the order of their start.
    seats: RefCell<Vec<Seat>>,
    next_seat: Cell<u64>,
    is_driving: Cell<bool>,
    /// A fault was injected in the current turn: it ends here.
    has_acted: Cell<bool>,
    observers: RefCell<Vec<Box<dyn FnMut()>>>,
    middlebox: RefCell<Option<Box<dyn Middlebox>>>,
    /// Room for the places of the seats that can be chosen.
    runnable: RefCell<Vec<usize>>,
    /// How often each machine was polled, and what is to be done after which poll.
    breakpoints: RefCell<Breakpoints>,
    /// What has run since observers were called.
    ran: Cell<Ran>,
}

/// What has run since observers were called before: whatever a task could change has not changed elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// No task: bytes arrived, or operations ended.
    Nothing,
    /// Tasks of this machine's process. Machines are numbered in the order of their first start; the driver's is 0.
    Machine(usize),
    /// Tasks of several machines, or a fault was injected, or a process started or ended.
    Anything,
}

/// A core that runs.
struct Seat {
    core: Rc<Core>,
    node: usize,
    clock: Arc<SharedClock>,
    /// Names the core in the trace.
    number: u64,
}

/// What the next step is.
struct Turn {
    core: Rc<Core>,
    node: usize,
    number: u64,
    polls: u64,
}

impl Sim {
    /// A simulation in which everything that is left to chance comes from `seed`.
    pub fn new(seed: u64) -> Sim {
        let id = NEXT_ID.replace(NEXT_ID.get() + 1);
        let driver = Rc::new(Driver {
            id,
            world: Arc::new(World::new(seed)),
            seats: RefCell::default(),
            next_seat: Cell::new(0),
            is_driving: Cell::new(false),
            has_acted: Cell::new(false),
            observers: RefCell::default(),
            middlebox: RefCell::default(),
            runnable: RefCell::default(),
            breakpoints: RefCell::default(),
            ran: Cell::new(Ran::Anything),
        });
        SIMS.with_borrow_mut(|sims| sims.insert(id, Rc::downgrade(&driver)));
        driver.start(DRIVER, 1);
        let core = driver.seats.borrow()[0].core.clone();
        let control = Control::new(Rc::downgrade(&driver));
        Sim { driver, control, core }
    }

    /// A simulated machine with cores and a disk of its own. Addresses are shared by all nodes. See [`Control::start`].
    pub fn node(&self, name: &str, cores: usize) -> Runtime {
        self.control.start(name, cores)
    }

    /// The handle by which tasks inject faults.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Cuts the power of `node`'s machine: nothing that was not synced survives. See [`Control::cut_power`].
    pub fn cut_power(&self, node: &Runtime) {
        assert!(matches!(node.inner().kind, Kind::Sim(_)), "cut_power is for simulated nodes");
        self.control.cut_power(node.name(), PowerLoss::All);
    }

    /// Drives all nodes until `future`, which runs on a core of its own, is done.
    ///
    /// Panics on a deadlock: when `future` is not done, and nothing is runnable and no timer or I/O is pending.
    pub fn run_until<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let place = result.clone();
        context::enter(&self.core, || {
            self.core.spawn(Box::pin(async move {
                let value = future.await;
                place.borrow_mut().replace(value);
            }));
        });
        self.driver.drive_until(|| result.borrow().is_some());
        let value = result.borrow_mut().take();
        value.expect("driven until it is there")
    }
}

impl Driver {
    /// Starts a process with its cores.
    pub(super) fn start(&self, name: &str, cores: usize) -> Runtime {
        assert!(cores > 0, "node {name:?}: a node has at least one core");
        let started = self.world.with(|state| {
            let node = state.start_process(name)?;
            state.trace(hash(name.as_bytes()) ^ cores as u64);
            let machine = &state.machines[node];
            Some((node, machine.process, machine.clock.clone()))
        });
        let Some((node, process, clock)) = started else {
            panic!("node {name:?} is running: shut it down first");
        };
        let port = NodePort { world: self.world.clone(), node, process, sim_id: self.id };
        let shared: Vec<_> = (0..cores).map(|index| Arc::new(CoreShared::new(index, Bell::Silent))).collect();
        let kind = Kind::Sim(SimNode::new(port.clone(), clock.clone()));
        let inner = Inner::new(name.to_owned(), shared.clone(), kind);
        let mut seats = self.seats.borrow_mut();
        for shared in shared {
            let core = Rc::new(Core::new(shared, inner.clone(), Backend::Sim(port.clone())));
            let number = self.next_seat.replace(self.next_seat.get() + 1);
            seats.push(Seat { core, node, clock: clock.clone(), number });
        }
        Runtime::of_inner(&inner)
    }

    /// How many tasks a machine's process has.
    pub(super) fn tasks(&self, node: usize) -> usize {
        self.seats.borrow().iter().filter(|seat| seat.node == node).map(|seat| seat.core.tasks()).sum()
    }

    fn note_ran(&self, more: Ran) {
        let ran = match (self.ran.get(), more) {
            (Ran::Nothing, one) | (one, Ran::Nothing) => one,
            (one, other) if one == other => one,
            _ => Ran::Anything,
        };
        self.ran.set(ran);
    }

    /// For observers: what has run since they were called before.
    pub(super) fn ran(&self) -> Ran {
        self.ran.get()
    }

    /// Ends the process of a machine.
    pub(super) fn end_process(&self, node: usize, ending: Ending) {
        self.note_ran(Ran::Anything);
        let mut cores = Vec::new();
        self.seats.borrow_mut().retain(|seat| {
            let stays = seat.node != node;
            if !stays {
                cores.push(seat.core.clone());
            }
            stays
        });
        let drop_tasks = || cores.iter().for_each(|core| context::enter(core, || core.drop_tasks()));
        let end = || self.world.with(|state| state.end_process(node, ending));
        if ending == Ending::Exit {
            drop_tasks();
            end();
        } else {
            // What the tasks' drops start cannot reach anything any more.
            end();
            drop_tasks();
        }
    }

    fn drive_until(&self, is_done: impl Fn() -> bool) {
        assert!(
            !self.is_driving.get() && !context::is_core_thread(),
            "the simulation was driven from one of its own tasks: await instead"
        );
        let _driving = Driving::new(&self.is_driving);
        while !is_done() {
            self.step();
        }
        self.stop_asked();
    }

    /// Lets one thing happen.
    fn step(&self) {
        self.stop_asked();
        if self.fire_due() {
            self.tell_closed_flows();
            self.observe();
        }
        match self.next_turn() {
            Some(turn) => {
                self.take_turn(&turn);
                // They may set others for the polls to come.
                let due = self.breakpoints.borrow_mut().take_due(turn.node);
                self.note_ran(if due.is_empty() { Ran::Machine(turn.node) } else { Ran::Anything });
                due.into_iter().for_each(|act| act());
                self.observe();
            }
            None => self.jump(),
        }
    }

    /// Fires the events and the timers that are due. Returns whether there were events.
    fn fire_due(&self) -> bool {
        self.world.with(|state| {
            let fired = state.fire_due();
            for seat in self.seats.borrow().iter() {
                if state.machines[seat.node].is_paused {
                    continue;
                }
                let Some(deadline_ns) = seat.core.timers.borrow().next_deadline_ns() else { continue };
                let now_ns = seat.clock.boot_ns(state.now_ns);
                if deadline_ns <= now_ns {
                    state.wake_due(&mut seat.core.timers.borrow_mut(), now_ns);
                }
            }
            fired
        })
    }

    /// Chooses a core that can run.
    fn next_turn(&self) -> Option<Turn> {
        let seats = self.seats.borrow();
        let mut runnable = self.runnable.borrow_mut();
        self.world.with(|state| {
            let is_runnable = |seat: &Seat| {
                (seat.core.has_runnable() || seat.core.shared.has_injected())
                    && !state.machines[seat.node].is_paused
            };
            runnable.clear();
            runnable.extend((0..seats.len()).filter(|&place| is_runnable(&seats[place])));
            if runnable.is_empty() {
                return None;
            }
            let awake =
                runnable.iter().fold(0, |awake: u64, &place| awake.rotate_left(6) ^ mix(seats[place].number));
            state.trace(awake);
            let Seat { core, node, number, .. } = &seats[runnable[state.random.index(runnable.len())]];
            let polls = state.random.between(1, POLLS_MAX);
            Some(Turn { core: core.clone(), node: *node, number: *number, polls })
        })
    }

    fn take_turn(&self, turn: &Turn) {
        let Turn { core, node, number, polls } = turn;
        self.has_acted.set(false);
        context::enter(core, || {
            core.drain_injected();
            for _ in 0..*polls {
                let Some(task) = core.poll_next() else { return };
                self.world.polled(*number, task);
                let is_due = self.breakpoints.borrow_mut().polled(*node);
                if is_due || core.shared.is_stopping() || self.has_acted.get() {
                    return;
                }
            }
        });
    }

    /// Nothing is runnable: moves time to what comes next.
    fn jump(&self) {
        let timer = self.world.with(|state| {
            let seats = self.seats.borrow();
            let seats = seats.iter().filter(|seat| !state.machines[seat.node].is_paused);
            let due = seats.filter_map(|seat| {
                let deadline_ns = seat.core.timers.borrow().next_deadline_ns()?;
                let at_ns = seat.clock.get().world_ns_at(deadline_ns);
                // Who sleeps until the end of time waits for nothing.
                (at_ns < u64::MAX).then_some(at_ns)
            });
            due.min()
        });
        let Some(next) = timer.into_iter().chain(self.world.next_event_ns()).min() else {
            panic!("{}", self.deadlock_message());
        };
        self.world.advance_to(next.max(self.world.now_ns()));
    }

    fn deadlock_message(&self) -> String {
        let mut text = format!(
            "deadlock in the simulation at {} ns: nothing is runnable, and no timer and no I/O is pending; waiting tasks:",
            self.world.now_ns()
        );
        for Seat { core, node, .. } in self.seats.borrow().iter() {
            let is_paused = self.world.with(|state| state.machines[*node].is_paused);
            let paused = if is_paused { " (paused)" } else { "" };
            let _ = write!(text, " {}/{}{paused}: {};", core.inner.name, core.shared.index, core.tasks());
        }
        text
    }

    /// Ends processes that were asked to stop.
    fn stop_asked(&self) {
        let asked = || {
            let seats = self.seats.borrow();
            seats.iter().find(|seat| seat.core.shared.is_stopping()).map(|seat| seat.node)
        };
        while let Some(node) = asked() {
            self.end_process(node, Ending::Exit);
        }
    }

    /// A fault was injected: the current turn ends, and observers see it.
    pub(super) fn acted(&self) {
        self.has_acted.set(true);
        self.note_ran(Ran::Anything);
        if !self.is_driving.get() && !context::is_core_thread() {
            self.tell_closed_flows();
            self.observe();
        }
    }

    pub(super) fn breakpoints(&self) -> &RefCell<Breakpoints> {
        &self.breakpoints
    }

    pub(super) fn add_observer(&self, observer: Box<dyn FnMut()>) {
        self.note_ran(Ran::Anything);
        self.observers.borrow_mut().push(observer);
    }

    fn observe(&self) {
        if self.observers.borrow().is_empty() {
            return;
        }
        let mut observers = self.observers.take();
        observers.iter_mut().for_each(|observer| observer());
        // Those that were added meanwhile come after them.
        let added = self.observers.replace(observers);
        // These have yet to see what there is.
        self.ran.set(if added.is_empty() { Ran::Nothing } else { Ran::Anything });
        self.observers.borrow_mut().extend(added);
    }

    pub(super) fn set_middlebox(&self, middlebox: Option<Box<dyn Middlebox>>) {
        let has_one = middlebox.is_some();
        let before = self.middlebox.replace(middlebox);
        self.world.with(|state| {
            state.network.has_middlebox = has_one;
            state.network.closed_flows.clear();
        });
        drop(before);
    }

    /// Runs `f` with the middlebox, which is away meanwhile.
    fn with_middlebox<T>(&self, f: impl FnOnce(&mut dyn Middlebox) -> T) -> Option<T> {
        let mut middlebox = self.middlebox.take()?;
        let value = f(&mut *middlebox);
        self.middlebox.borrow_mut().get_or_insert(middlebox);
        Some(value)
    }

    fn tell_closed_flows(&self) {
        let closed = self.world.with(|state| std::mem::take(&mut state.network.closed_flows));
        if !closed.is_empty() {
            self.with_middlebox(|middlebox| closed.iter().for_each(|flow| middlebox.closed(flow)));
        }
    }

    fn pass(&self, from: EndId, passing: Passing) {
        self.tell_closed_flows();
        let Passing { flow, bytes, at_ns } = passing;
        let mut bytes = Some(bytes);
        let mut draw = || self.world.with(|state| state.random.next());
        let pieces = self
            .with_middlebox(|middlebox| middlebox.pass(&flow, bytes.take().unwrap_or_default(), &mut draw));
        let untouched = || vec![Piece { delay_ns: 0, bytes: bytes.take().unwrap_or_default() }];
        let pieces = pieces.unwrap_or_else(untouched);
        self.world.with(|state| net::send_pieces(state, from, at_ns, pieces));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = SIMS.try_with(|sims| sims.borrow_mut().remove(&self.id));
        for seat in self.seats.borrow().iter() {
            context::enter(&seat.core, || seat.core.drop_tasks());
        }
        self.world.clear();
    }
}

/// Marks that the simulation is being driven.
struct Driving<'a>(&'a Cell<bool>);

impl<'a> Driving<'a> {
    fn new(flag: &'a Cell<bool>) -> Self {
        flag.set(true);
        Self(flag)
    }
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

fn find(sim_id: u64) -> Option<Rc<Driver>> {
    SIMS.try_with(|sims| sims.borrow().get(&sim_id).and_then(Weak::upgrade)).ok().flatten()
}

/// Stops what was asked to stop, unless a task is being polled (then the driver does it after that).
pub(super) fn stop_if_idle(sim_id: u64) {
    if let Some(driver) = find(sim_id)
        && !driver.is_driving.get()
    {
        driver.stop_asked();
    }
}

/// Has the middlebox see what was sent from an end, and sends on what it makes of it.
pub(super) fn pass(port: &NodePort, from: EndId, passing: Passing) {
    if let Some(driver) = find(port.sim_id) {
        driver.pass(from, passing);
    }
}

/// Drives the simulation of this thread with that number.
pub(super) fn drive_until(sim_id: u64, is_done: impl Fn() -> bool) {
    match find(sim_id) {
        Some(driver) => driver.drive_until(is_done),
        None => panic!(
            "Runtime::block_on on a simulated node: call it on the thread of its Sim, while the Sim lives"
        ),
    }
}
