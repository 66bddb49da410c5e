//! [`Sim`]: owns the cores of all nodes and decides, by the seed, what happens next.
//!
//! Invariants:
//! - One step is: fire what is due, then let one runnable core, chosen at random, poll a few tasks. Only when nothing
//!   is runnable does time jump to the next timer or event.
//! - Every poll takes a little virtual time, so that tasks that yield in a loop do not stop the clock.
//! - Nothing runnable, no timer and no event while somebody waits is a deadlock: a panic that says who is left.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::Future;
use std::rc::{Rc, Weak};

use super::disk::Disk;
use super::node::{NodePort, SimNode};
use super::random::Random;
use super::world::World;
use crate::context;
use crate::executor::{Backend, Bell, Core, CoreShared};
use crate::runtime::{Inner, Kind, Runtime};
use crate::sync::Arc;

/// The most polls of one core before another one may be chosen.
const POLLS_MAX: u64 = 4;
/// What one poll takes in virtual time.
const POLL_NS: (u64, u64) = (100, 1_000);

thread_local! {
    static SIMS: RefCell<BTreeMap<u64, Weak<Driver>>> = const { RefCell::new(BTreeMap::new()) };
    static NEXT_ID: Cell<u64> = const { Cell::new(0) };
}

/// A simulation: any number of nodes on one thread, in virtual time, by a seed.
///
/// Dropping it drops all tasks of all nodes.
pub struct Sim(Rc<Driver>);

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim").field("now_ns", &self.now_ns()).finish_non_exhaustive()
    }
}

/// What drives the nodes of one simulation.
struct Driver {
    id: u64,
    world: Arc<World>,
    seats: RefCell<Vec<Seat>>,
    is_driving: Cell<bool>,
}

/// A core and whether it was stopped. Seats are never removed, so that their numbers stay.
#[derive(Clone)]
struct Seat {
    core: Rc<Core>,
    node: usize,
    is_stopped: bool,
}

impl Sim {
    /// A simulation in which everything that is left to chance comes from `seed`.
    pub fn new(seed: u64) -> Sim {
        let id = NEXT_ID.replace(NEXT_ID.get() + 1);
        let driver = Rc::new(Driver {
            id,
            world: Arc::new(World::new(seed)),
            seats: RefCell::new(Vec::new()),
            is_driving: Cell::new(false),
        });
        SIMS.with_borrow_mut(|sims| sims.insert(id, Rc::downgrade(&driver)));
        // Its only core is the one that `run_until` runs its future on.
        driver.add_node("driver", 1);
        Sim(driver)
    }

    /// A simulated machine with cores and a disk of its own. Addresses are shared by all nodes.
    ///
    /// With the name of a node that was shut down, this is its restart: new cores, the same disk. Panics when the
    /// node of that name still runs.
    pub fn node(&self, name: &str, cores: usize) -> Runtime {
        self.0.add_node(name, cores)
    }

    /// Cuts the power of `node`: its tasks are gone without a chance to do anything, its disk holds only what was
    /// durable. Its connections end. Called from a task of another node (or of `run_until`), it happens before
    /// anything else runs.
    pub fn cut_power(&self, node: &Runtime) {
        let Kind::Sim(of_node) = &node.inner().kind else { panic!("cut_power is for simulated nodes") };
        let index = of_node.port.node;
        // First the disk: what the tasks' drops start cannot reach it any more.
        self.0.world.with(|state| state.disks[index].cut_power());
        node.shutdown();
    }

    /// Drives all nodes until `future`, which runs on a core of its own, is done.
    ///
    /// Panics on a deadlock: when `future` is not done, and nothing is runnable and no timer or I/O is pending.
    pub fn run_until<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let place = result.clone();
        let core = self.0.seats.borrow()[0].core.clone();
        context::enter(&core, || {
            core.spawn(Box::pin(async move {
                let value = future.await;
                place.borrow_mut().replace(value);
            }));
        });
        self.0.drive_until(|| result.borrow().is_some());
        let value = result.borrow_mut().take();
        value.expect("driven until it is there")
    }

    /// The virtual time.
    pub fn now_ns(&self) -> u64 {
        self.0.world.now_ns()
    }

    /// A hash of the schedule so far: two runs of one seed agree.
    pub fn trace_hash(&self) -> u64 {
        self.0.world.trace_hash()
    }
}

impl Driver {
    fn add_node(&self, name: &str, cores: usize) -> Runtime {
        assert!(cores > 0, "node {name:?}: a node has at least one core");
        let (node, random) = self.world.with(|state| {
            let known = state.names.iter().position(|known| known == name);
            let node = known.unwrap_or_else(|| {
                state.names.push(name.to_owned());
                state.disks.push(Disk::new());
                state.names.len() - 1
            });
            assert!(state.running.insert(node), "node {name:?} is running: shut it down first");
            let start = state.random.next();
            (node, Random::new(state.seed ^ start, 1 + node as u64))
        });
        let port = NodePort { world: self.world.clone(), node };
        let shared: Vec<_> = (0..cores).map(|index| Arc::new(CoreShared::new(index, Bell::Silent))).collect();
        let kind = Kind::Sim(SimNode::new(port.clone(), self.id, random));
        let inner = Inner::new(name.to_owned(), shared.clone(), kind);
        let mut seats = self.seats.borrow_mut();
        for shared in shared {
            let core = Rc::new(Core::new(shared, inner.clone(), Backend::Sim(port.clone())));
            seats.push(Seat { core, node, is_stopped: false });
        }
        Runtime::of_inner(&inner)
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
        self.world.fire_due();
        let seats = self.seats.borrow().clone();
        let now_ns = self.world.now_ns();
        for seat in &seats {
            seat.core.fire_timers(now_ns);
        }
        let runnable: Vec<usize> = (0..seats.len())
            .filter(|&number| {
                let Seat { core, is_stopped, .. } = &seats[number];
                !is_stopped && (core.has_runnable() || core.shared.has_injected())
            })
            .collect();
        if runnable.is_empty() {
            self.jump(&seats);
            return;
        }
        let (number, polls) = self.world.with(|state| {
            let number = runnable[state.random.index(runnable.len())];
            (number, state.random.between(1, POLLS_MAX))
        });
        self.run_core(number, &seats[number].core, polls);
    }

    fn run_core(&self, number: usize, core: &Rc<Core>, polls: u64) {
        context::enter(core, || {
            core.drain_injected();
            for _ in 0..polls {
                let Some(task) = core.poll_next() else { return };
                let took_ns = self.world.with(|state| state.random.between(POLL_NS.0, POLL_NS.1));
                let now_ns = self.world.now_ns() + took_ns;
                self.world.advance_to(now_ns);
                self.world.trace((number as u64) << 32 ^ task as u64 ^ now_ns << 16);
                if core.shared.is_stopping() {
                    return;
                }
            }
        });
    }

    /// Nothing is runnable: moves time to what comes next.
    fn jump(&self, seats: &[Seat]) {
        let timer = seats.iter().filter_map(|seat| seat.core.timers.borrow().next_deadline_ns()).min();
        let Some(next) = timer.into_iter().chain(self.world.next_event_ns()).min() else {
            panic!("{}", self.deadlock_message(seats));
        };
        self.world.advance_to(next.max(self.world.now_ns()));
    }

    fn deadlock_message(&self, seats: &[Seat]) -> String {
        let mut text = format!(
            "deadlock in the simulation at {} ns: nothing is runnable, and no timer and no I/O is pending; waiting tasks:",
            self.world.now_ns()
        );
        for seat in seats {
            let core = &seat.core;
            let _ = write!(text, " {}/{}: {};", core.inner.name, core.shared.index, core.tasks());
        }
        text
    }

    /// Drops the tasks of cores that were asked to stop.
    fn stop_asked(&self) {
        let asked: Vec<(usize, Seat)> = {
            let seats = self.seats.borrow();
            let asked = |seat: &Seat| !seat.is_stopped && seat.core.shared.is_stopping();
            seats.iter().cloned().enumerate().filter(|(_, seat)| asked(seat)).collect()
        };
        for (number, seat) in asked {
            self.seats.borrow_mut()[number].is_stopped = true;
            context::enter(&seat.core, || seat.core.drop_tasks());
            self.world.with(|state| state.running.remove(&seat.node));
        }
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

/// Drives the simulation of this thread with that number.
pub(super) fn drive_until(sim_id: u64, is_done: impl Fn() -> bool) {
    match find(sim_id) {
        Some(driver) => driver.drive_until(is_done),
        None => panic!(
            "Runtime::block_on on a simulated node: call it on the thread of its Sim, while the Sim lives"
        ),
    }
}
