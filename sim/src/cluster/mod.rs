//! The machines of a run: real nodes, started, killed and started again.
//!
//! A machine's process is what `lockgate serve` runs: an engine, a node, and the server's commands on every core. This
//! module starts it and knows whether it runs; it does not know why it should not.

mod form;

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use futures_channel::oneshot;
use lockgate::serve::{CONNECTIONS_MAX, LARGE_INPUT_BYTES_MAX};
use lockgate::service::Commands;
use lockgate_engine::{Engine, Slot};
use lockgate_migrate::control::{ClusterMap, NodeId};
use lockgate_migrate::{AckPolicy, Node, Times};
use lockgate_net::resp::Limits;
use lockgate_runtime::sim::Control;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::{Event, Runtime, TcpListener};

use crate::plan::Shape;

const FIRST_LINK_PORT: u16 = 7_000;
const FIRST_CLIENT_PORT: u16 = 6_000;
/// Of each machine's engine: sizes that simulated clusters never reach, and that bound what a bug may take.
const MEMORY_BYTES_MAX: u64 = 256 << 20;
/// The bound on drift that nodes go by: two clocks that run apart as fast as any that is drawn stay within it.
const DRIFT_PPM: u64 = 120_000;
/// How long a node that has stopped may take to write what is left, before its process ends.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// What a machine's process is at.
enum Process {
    Down,
    Starting,
    Up(Node),
    /// It will not start again in this run: its disk is beyond what the project can mend by itself.
    Lost,
}

/// One machine.
pub struct Machine {
    /// Its name in the simulation.
    pub name: String,
    /// Where other nodes reach it.
    pub link: SocketAddr,
    /// Where clients reach it.
    pub listen: SocketAddr,
    process: RefCell<Process>,
    /// Counts starts, so that nothing of one process is taken for another's.
    starts: Cell<u64>,
    /// Whether a fault has made its logs fail, or may have.
    pub may_step_down: Cell<bool>,
    /// Whether bits of its files have flipped: then it may refuse to start.
    pub is_rotten: Cell<bool>,
}

/// All machines, and the power over them.
pub struct Cluster {
    /// The simulation's controls.
    pub control: Control,
    /// Its shape.
    pub shape: Shape,
    /// The machines: shard by shard, the first primary first.
    pub machines: Vec<Machine>,
    /// Notified when a process starts or ends.
    pub changed: Event,
    /// Processes that stopped by themselves because a log of theirs failed.
    pub stepped_down: Cell<u64>,
    /// What went wrong where nothing should: told to the run.
    pub complaints: RefCell<Vec<String>>,
    /// Whether a process that ends is started again at once, as a service manager does.
    pub restarts: Cell<bool>,
    /// Requests that a machine told to try again, by slot, since the last look.
    pub told_to_try_again: RefCell<Vec<(usize, Slot)>>,
}

impl Cluster {
    /// Machines of this shape, none of which runs yet.
    pub fn new(control: Control, shape: Shape) -> Rc<Cluster> {
        let machine = |index: usize| Machine {
            name: format!("node-{}", index + 1),
            link: SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_LINK_PORT + index as u16)),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_CLIENT_PORT + index as u16)),
            process: RefCell::new(Process::Down),
            starts: Cell::new(0),
            may_step_down: Cell::new(false),
            is_rotten: Cell::new(false),
        };
        let machines = (0..shape.machines()).map(machine).collect();
        Rc::new(Cluster {
            control,
            shape,
            machines,
            changed: Event::new(),
            stepped_down: Cell::new(0),
            complaints: RefCell::default(),
            restarts: Cell::new(false),
            told_to_try_again: RefCell::default(),
        })
    }

    /// Starts all machines and makes a cluster of them.
    pub async fn form(self: &Rc<Self>) -> Result<(), String> {
        for index in 0..self.machines.len() {
            self.start(index);
        }
        self.all_up().await;
        form::form(self).await
    }

    /// The node on this machine, if its process runs.
    pub fn node(&self, index: usize) -> Option<Node> {
        match &*self.machines[index].process.borrow() {
            Process::Up(node) => Some(node.clone()),
            _ => None,
        }
    }

    /// Calls `f` with the node on this machine and the number of its start, if its process runs.
    pub fn with_node<T>(&self, index: usize, f: impl FnOnce(&Node, u64) -> T) -> Option<T> {
        match &*self.machines[index].process.borrow() {
            Process::Up(node) => Some(f(node, self.machines[index].starts.get())),
            _ => None,
        }
    }

    /// Steps of compactions, by the processes that run now.
    pub fn compactions(&self) -> u64 {
        let steps = |index| self.with_node(index, |node, _| node.engine().compaction_stats().steps);
        (0..self.machines.len()).filter_map(steps).sum()
    }

    /// Checkpoints, by the directories of the processes that run now.
    pub fn checkpoints(&self) -> u64 {
        let latest = |index| self.with_node(index, |node, _| node.engine().checkpoint_stats().last);
        (0..self.machines.len()).filter_map(latest).flatten().map(|last| last.number).sum()
    }

    /// Whether the machine has no process and will get none in this run.
    pub fn is_lost(&self, index: usize) -> bool {
        matches!(*self.machines[index].process.borrow(), Process::Lost)
    }

    /// Whether the machine has a process, be it starting.
    pub fn is_running(&self, index: usize) -> bool {
        matches!(*self.machines[index].process.borrow(), Process::Starting | Process::Up(_))
    }

    /// Waits until every process that should run has started.
    pub async fn all_up(&self) {
        loop {
            let changed = self.changed.listen();
            let settled = |index| self.node(index).is_some() || self.is_lost(index);
            if (0..self.machines.len()).all(settled) || !self.complaints.borrow().is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// The applied map that is ahead of all others.
    pub fn newest_map(&self) -> Option<Arc<ClusterMap>> {
        let maps =
            (0..self.machines.len()).filter_map(|index| self.with_node(index, |node, _| node.map())?);
        maps.max_by_key(|map| map.applied)
    }

    /// The machine of a node.
    pub fn machine_of(node: NodeId) -> usize {
        node.0 as usize - 1
    }

    /// The machine that the newest map calls the primary of a slot's owner.
    pub fn owner(&self, slot: Slot) -> Option<usize> {
        let map = self.newest_map()?;
        let shard = map.shards.get(&map.owner(slot).shard?)?;
        Some(Self::machine_of(shard.primary.node))
    }

    /// The slots that have keys and move.
    pub fn hot_slots(&self) -> Vec<Slot> {
        (0..self.shape.shards).flat_map(|shard| self.shape.hot(shard)).filter_map(Slot::new).collect()
    }

    /// Starts the machine's process, unless it runs or is lost.
    pub fn start(self: &Rc<Self>, index: usize) {
        let machine = &self.machines[index];
        if !matches!(*machine.process.borrow(), Process::Down) {
            return;
        }
        *machine.process.borrow_mut() = Process::Starting;
        machine.starts.set(machine.starts.get() + 1);
        let start = machine.starts.get();
        let runtime = self.control.start(&machine.name, self.shape.cores);
        let (this, shape) = (Rc::clone(self), self.shape.clone());
        let (link, listen) = (machine.link, machine.listen);
        lockgate_runtime::spawn(async move {
            let started = serve(&runtime, &shape, link, listen).await;
            if this.machines[index].starts.get() == start && this.is_running(index) {
                this.started(index, started);
            }
        });
    }

    fn started(self: &Rc<Self>, index: usize, started: Result<Node, String>) {
        let machine = &self.machines[index];
        match started {
            Ok(node) => {
                tracing::info!(machine = %machine.name, boot = node.engine().boot().number, "process is up");
                *machine.process.borrow_mut() = Process::Up(node.clone());
                self.supervise(index, node);
            }
            Err(why) => {
                tracing::info!(machine = %machine.name, %why, "process does not start");
                self.control.kill(&machine.name);
                let expected = machine.is_rotten.get();
                *machine.process.borrow_mut() = if expected { Process::Lost } else { Process::Down };
                // A fault of its disk may still have struck this start; when all have ended, the next one must succeed.
                let excused = machine.may_step_down.get();
                if excused && self.restarts.get() {
                    machine.may_step_down.set(false);
                    self.start(index);
                } else if !expected && !excused {
                    self.complaints.borrow_mut().push(format!("{} does not start: {why}", machine.name));
                }
            }
        }
        self.changed.notify_all();
    }

    /// Ends the process when its node has stepped down, as the server's main thread does.
    fn supervise(self: &Rc<Self>, index: usize, node: Node) {
        let (this, start) = (Rc::clone(self), self.machines[index].starts.get());
        lockgate_runtime::spawn(async move {
            node.stopped().await;
            let (tell, closed) = oneshot::channel();
            let engine = node.engine().clone();
            node.engine().runtime().spawn_on(0, move || async move {
                // The failure that made the node step down has been told.
                let _ = engine.close().await;
                let _ = tell.send(());
            });
            // A log that failed may never be closed; its process ends all the same.
            let _ = lockgate_runtime::timeout(CLOSE_LIMIT, closed).await;
            let machine = &this.machines[index];
            if machine.starts.get() != start || !this.is_running(index) {
                return;
            }
            this.stepped_down.set(this.stepped_down.get() + 1);
            if !machine.may_step_down.get() {
                let complaint = format!("{} stepped down, and nothing was done to its disk", machine.name);
                this.complaints.borrow_mut().push(complaint);
            }
            tracing::info!(machine = %machine.name, "stepped down");
            this.control.kill(&machine.name);
            this.gone(index);
            if this.restarts.get() {
                this.start(index);
            }
        });
    }

    /// Notes that the machine's process has been ended by the simulation's controls.
    pub fn gone(&self, index: usize) {
        let process = &mut *self.machines[index].process.borrow_mut();
        if !matches!(process, Process::Lost) {
            *process = Process::Down;
        }
        self.changed.notify_all();
    }
}

/// Starts a process: engine, node, commands. Fails when the process ends before it is up.
async fn serve(
    runtime: &Runtime,
    shape: &Shape,
    link: SocketAddr,
    listen: SocketAddr,
) -> Result<Node, String> {
    let (tell, started) = oneshot::channel();
    let (on, shape) = (runtime.clone(), shape.clone());
    runtime.spawn_on(0, move || async move {
        let node = start_node(&on, &shape, link, listen).await;
        // Nobody listens when the process was given up meanwhile.
        let _ = tell.send(node);
    });
    let node = started.await.map_err(|_| "the process ended while it started".to_owned())??;
    let limits = Limits::new(CONNECTIONS_MAX, LARGE_INPUT_BYTES_MAX);
    for core in 0..runtime.cores() {
        let (node, limits) = (node.clone(), limits.clone());
        runtime.spawn_on(core, move || async move {
            match TcpListener::bind(listen).await {
                Ok(listener) => Commands::new(node).serve(listener, limits).await,
                Err(error) => tracing::error!(core, %listen, %error, "this core takes no clients"),
            }
        });
    }
    Ok(node)
}

async fn start_node(
    runtime: &Runtime,
    shape: &Shape,
    link: SocketAddr,
    listen: SocketAddr,
) -> Result<Node, String> {
    let policy = if shape.synced { AckPolicy::InSyncSynced } else { AckPolicy::InSync };
    let timeout = Duration::from_millis(shape.node_timeout_ms);
    let times = Times::new(timeout, DRIFT_PPM).map_err(|error| error.to_string())?;
    let builder = Engine::builder("/data").clustered(true).cores(runtime.cores());
    let builder = builder.log_file_bytes(shape.log_file_bytes).memory_bytes_max(MEMORY_BYTES_MAX);
    // Every process of a run opens one, and has some kilobytes in it.
    let builder = builder.checkpoint_log_bytes(shape.checkpoint_log_bytes).huge_pages(false);
    let engine = builder.open_on(runtime).await.map_err(|error| error.to_string())?;
    let node = Node::builder(engine).link(link).listen(listen).ack(policy).times(times).start().await;
    node.map_err(|error| error.to_string())
}
