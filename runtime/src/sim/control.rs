//! [`Control`]: the handle by which tasks inject faults.

use std::fmt;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::clock::PPM_MAX;
use super::driver::{DRIVER, Driver, Ran};
use super::faults::{DiskFaults, LinkFaults, PowerLoss};
use super::image::{DiskImage, Outage, Recorder};
use super::machine::{Ending, Machine};
use super::middlebox::Middlebox;
use super::net_faults;
use super::random::hash;
use super::world::State;
use crate::runtime::Runtime;

/// Injects faults into a simulation, and tells what it has come to. Cheap to clone; it does not keep the simulation.
///
/// Machines are named by the name that was given to [`super::Sim::node`]; the futures of [`super::Sim::run_until`] run
/// on the machine `"driver"`, which cannot fail, but its links can. Every method panics for a name that is not known,
/// and when the simulation is gone.
///
/// A call takes effect before anything else runs. It may be made by tasks of the simulation (then observers are called
/// when the current poll has ended) or from outside.
#[derive(Clone)]
pub struct Control(Weak<Driver>);

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

/// The place of a machine.
fn find(state: &State, name: &str) -> usize {
    state.machine(name).unwrap_or_else(|| panic!("no machine of the simulation is named {name:?}"))
}

/// Processes and machines.
impl Control {
    pub(super) fn new(driver: Weak<Driver>) -> Self {
        Self(driver)
    }

    fn driver(&self) -> Rc<Driver> {
        self.0.upgrade().expect("the simulation of this control is gone")
    }

    fn look<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        self.driver().world.with(f)
    }

    /// Has something happen that shows in the trace.
    fn act<T>(&self, what: fmt::Arguments<'_>, f: impl FnOnce(&mut State) -> T) -> T {
        let driver = self.driver();
        let value = driver.world.with(|state| {
            state.trace(hash(what.to_string().as_bytes()));
            f(state)
        });
        driver.acted();
        value
    }

    fn act_on<T>(&self, what: fmt::Arguments<'_>, name: &str, f: impl FnOnce(&mut Machine, u64) -> T) -> T {
        self.act(format_args!("{what} {name}"), |state| {
            let node = find(state, name);
            let now_ns = state.now_ns;
            f(&mut state.machines[node], now_ns)
        })
    }

    /// Starts a process on a machine, which is new or has no process now. It is the restart of a process that has
    /// ended or was killed, and gives a machine without power its power back. The disk is what it was.
    ///
    /// Panics when the machine has a process.
    pub fn start(&self, name: &str, cores: usize) -> Runtime {
        let driver = self.driver();
        let runtime = driver.start(name, cores);
        driver.acted();
        runtime
    }

    fn end(&self, what: &str, name: &str, ending: Ending) {
        assert!(name != DRIVER, "{what}: the machine that drives the simulation cannot fail");
        let node = self.look(|state| {
            state.trace(hash(format!("{what} {name} {ending:?}").as_bytes()));
            find(state, name)
        });
        let driver = self.driver();
        driver.end_process(node, ending);
        driver.acted();
    }

    /// Kills a process as SIGKILL does: its tasks are gone, and what their drops would start does not happen.
    ///
    /// Operations of its disk that are under way take effect or not, by the seed. What it has written stays. Its sockets
    /// end: each peer gets the end of the stream, or a reset and then perhaps not all that was sent. Panics when it
    /// does not run.
    pub fn kill(&self, name: &str) {
        assert!(self.is_running(name), "kill: no process runs on {name:?}");
        self.end("kill", name, Ending::Kill);
    }

    /// Cuts the power of a machine: its process, if one runs, is gone as by [`Control::kill`], and `loss` says what its
    /// disk keeps of what was not synced.
    ///
    /// Its peers hear nothing: what they send fills their buffers, and connecting waits. After the next
    /// [`Control::start`], what they send over old connections is answered by a reset, and CLOCK_BOOTTIME begins anew
    /// near one second. A machine without power stays as it is.
    pub fn cut_power(&self, name: &str, loss: PowerLoss) {
        if self.has_power(name) {
            self.end("cut_power", name, Ending::PowerCut(loss));
        }
    }

    /// Stops a process as SIGSTOP does: its cores do not run and its timers do not fire. Bytes still arrive in its
    /// sockets, and operations of its disk come to their end. Panics when it does not run.
    pub fn pause(&self, name: &str) {
        assert!(name != DRIVER, "pause: the machine that drives the simulation cannot fail");
        self.act_on(format_args!("pause"), name, |machine, _| {
            assert!(machine.is_running, "pause: no process runs on {name:?}");
            machine.is_paused = true;
        });
    }

    /// Lets a process go on after [`Control::pause`]. Does nothing when it is not paused.
    pub fn resume(&self, name: &str) {
        self.act_on(format_args!("resume"), name, |machine, _| machine.is_paused = false);
    }

    /// Gives a machine a new and empty disk without faults. Panics when its process runs.
    pub fn wipe_disk(&self, name: &str) {
        self.act_on(format_args!("wipe_disk"), name, |machine, _| {
            assert!(!machine.is_running, "wipe_disk: a process runs on {name:?}");
            machine.disk = super::disk::Disk::new();
        });
    }

    /// Whether a process runs on the machine, paused or not.
    pub fn is_running(&self, name: &str) -> bool {
        self.look(|state| state.machines[find(state, name)].is_running)
    }

    /// Whether the machine's process is paused.
    pub fn is_paused(&self, name: &str) -> bool {
        self.look(|state| state.machines[find(state, name)].is_paused)
    }

    /// Whether the machine has power: always, but from a power cut to the next start.
    pub fn has_power(&self, name: &str) -> bool {
        self.look(|state| state.machines[find(state, name)].has_power)
    }
}

/// Clocks and disks.
impl Control {
    /// Sets the drift of both clocks of a machine against ideal time, in parts per million: positive is fast. They go on
    /// from what they show; timers are due by them. Panics beyond 500,000 either way.
    pub fn set_clock_rate(&self, name: &str, ppm: i32) {
        assert!((-PPM_MAX..=PPM_MAX).contains(&ppm), "set_clock_rate: {ppm} ppm is beyond {PPM_MAX}");
        self.act_on(format_args!("set_clock_rate {ppm}"), name, |machine, now_ns| {
            machine.clock.set_rate(now_ns, ppm);
        });
    }

    /// Moves CLOCK_BOOTTIME of a machine forward, as if it had slept. Timers that are due by that fire.
    pub fn jump_boottime(&self, name: &str, by: Duration) {
        let by_ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.act_on(format_args!("jump_boottime {by_ns}"), name, |machine, now_ns| {
            machine.clock.jump_boot(now_ns, by_ns);
        });
    }

    /// Moves the wall clock of a machine, forward or back.
    pub fn jump_wall_clock(&self, name: &str, ms: i64) {
        self.act_on(format_args!("jump_wall_clock {ms}"), name, |machine, now_ns| {
            machine.clock.jump_wall(now_ns, ms);
        });
    }

    /// Sets how a machine's disk fails from now on. [`DiskFaults::default`] heals it: syncs that were to fail do not.
    pub fn set_disk_faults(&self, name: &str, faults: DiskFaults) {
        self.act_on(format_args!("set_disk_faults {faults:?}"), name, |machine, _| {
            machine.disk.faults = faults;
            if faults == DiskFaults::default() {
                machine.disk.syncs_to_fail = 0;
            }
        });
    }

    /// The next sync of a file that is asked for on the machine fails with EIO. Calls add up.
    pub fn fail_next_sync(&self, name: &str) {
        self.act_on(format_args!("fail_next_sync"), name, |machine, _| machine.disk.syncs_to_fail += 1);
    }

    /// Flips `bits` random bits in what is stored in files whose path from the root starts with `path_prefix`: in pages
    /// that hold more than zeros, on the disk and in memory alike. Returns how many; fewer only where there are fewer.
    pub fn rot(&self, name: &str, path_prefix: &str, bits: usize) -> usize {
        self.act(format_args!("rot {path_prefix} {bits} {name}"), |state| {
            let node = find(state, name);
            state.machines[node].disk.rot(path_prefix, bits, &mut state.random)
        })
    }

    /// How many bytes are allocated on a machine's disk, as [`DiskFaults::capacity_bytes`] counts them.
    pub fn disk_bytes(&self, name: &str) -> u64 {
        self.look(|state| state.machines[find(state, name)].disk.allocated_bytes())
    }
}

/// Images of disks. Taking them draws nothing and does not show in the trace.
impl Control {
    /// From now on an image of the machine's disk is taken whenever an operation that may change what it holds, or what
    /// of it is durable, has been asked for, and again when it is done: a write, a sync, a creation, a rename, a
    /// removal, a sync of a directory. These moments are numbered from 0.
    pub fn record_images(&self, name: &str) {
        self.look(|state| {
            let node = find(state, name);
            state.machines[node].recorder = Some(Recorder::default());
        });
    }

    /// The images that were taken since the last call, in order. Empty where none are recorded.
    ///
    /// Who calls this from [`Control::on_step`] knows what tasks knew when they were taken: no task learns within a poll
    /// that an operation is done.
    pub fn take_images(&self, name: &str) -> Vec<DiskImage> {
        self.look(|state| {
            let node = find(state, name);
            state.machines[node].recorder.as_mut().map(Recorder::take).unwrap_or_default()
        })
    }

    /// Gives a machine, which is new or has no process now, the disk that the machine of the image would find after
    /// `outage`. Its next process starts there: on the same start of the operating system only if that has outlived it.
    ///
    /// Panics when the machine has a process.
    pub fn put_disk(&self, name: &str, image: &DiskImage, outage: Outage) {
        self.act(format_args!("put_disk {} {outage:?} {name}", image.number()), |state| {
            let node = state.machine_or_new(name);
            let machine = &mut state.machines[node];
            assert!(!machine.is_running, "put_disk: a process runs on {name:?}");
            image.put_into(machine, outage);
        });
    }

    /// A hash of what a machine's disk shows: its names, and the content of its files. Equal disks have equal hashes,
    /// also in different simulations.
    pub fn disk_hash(&self, name: &str) -> u64 {
        self.look(|state| state.machines[find(state, name)].disk.live_hash())
    }
}

/// The network.
impl Control {
    fn act_on_pair(
        &self,
        what: fmt::Arguments<'_>,
        (a, b): (&str, &str),
        f: impl FnOnce(&mut State, (usize, usize)),
    ) {
        self.act(format_args!("{what} {a} {b}"), |state| {
            let pair = (find(state, a), find(state, b));
            f(state, pair);
        });
    }

    /// Blocks what machine `from` sends to machine `to`: it waits. What goes the other way arrives, but the sender does
    /// not learn that, so that its buffer fills. Connecting waits too, whichever direction is blocked, and fails with
    /// `TimedOut` after 60 s.
    pub fn block(&self, from: &str, to: &str) {
        self.act_on_pair(format_args!("block"), (from, to), |state, pair| {
            state.network.links.block(pair, state.now_ns);
        });
    }

    /// Ends [`Control::block`]: what waited arrives, in order, by its retransmission, between 1 ms and the time that it
    /// was blocked (2 s at most) from now.
    pub fn unblock(&self, from: &str, to: &str) {
        self.act_on_pair(format_args!("unblock"), (from, to), net_faults::unblock);
    }

    /// Unblocks all links, and takes away what was set by [`Control::set_link`] and [`Control::set_default_link`].
    pub fn heal_network(&self) {
        self.act(format_args!("heal_network"), net_faults::heal);
    }

    /// Sets how the link from one machine to another one (or to itself) behaves for what is sent from now on.
    pub fn set_link(&self, from: &str, to: &str, faults: LinkFaults) {
        self.act_on_pair(format_args!("set_link {faults:?}"), (from, to), |state, pair| {
            state.network.links.set(pair, faults);
        });
    }

    /// Sets how the links between different machines behave that were not set by [`Control::set_link`].
    pub fn set_default_link(&self, faults: LinkFaults) {
        self.act(format_args!("set_default_link {faults:?}"), |state| {
            state.network.links.set_default(faults)
        });
    }

    /// Breaks every connection between two machines: at both ends, what is under way is lost, and the next receive (after
    /// what has arrived) and the next send fail with `ConnectionReset`, those that wait too.
    pub fn reset_connections(&self, a: &str, b: &str) {
        self.act_on_pair(format_args!("reset_connections"), (a, b), |state, (a, b)| {
            net_faults::reset_connections(state, a, b);
        });
    }

    /// Puts a box into the middle of all connections, or takes it away. What is under way is not touched.
    pub fn set_middlebox(&self, middlebox: Option<Box<dyn Middlebox>>) {
        let driver = self.driver();
        driver.world.with(|state| state.trace(hash(b"set_middlebox") ^ u64::from(middlebox.is_some())));
        driver.set_middlebox(middlebox);
        driver.acted();
    }
}

/// What the simulation has come to.
impl Control {
    /// Ideal time in nanoseconds, which no machine's clock shows after a fault.
    pub fn now_ns(&self) -> u64 {
        self.driver().world.now_ns()
    }

    /// How many polls there were so far.
    pub fn steps(&self) -> u64 {
        self.look(|state| state.polls())
    }

    /// How often a machine's cores were polled so far, in all its processes.
    pub fn polls(&self, name: &str) -> u64 {
        let node = self.look(|state| find(state, name));
        self.driver().breakpoints().borrow().polls(node)
    }

    /// Has `act` called right after the machine's poll of this number (as [`Control::polls`] counts), before anything
    /// else runs, outside of every task: it may inject faults and notify, and cannot spawn. The history up to that poll
    /// is the one without it. A poll that is past never comes again.
    pub fn after_poll(&self, name: &str, number: u64, act: impl FnOnce() + 'static) {
        let node = self.look(|state| find(state, name));
        self.driver().breakpoints().borrow_mut().add(node, number, Box::new(act));
    }

    /// How many tasks a machine's process has.
    pub fn tasks(&self, name: &str) -> usize {
        let node = self.look(|state| find(state, name));
        self.driver().tasks(node)
    }

    /// A hash of the history so far: two runs of one seed agree. In it are what was polled and when, which cores were
    /// awake, what was sent, written and drawn, and which faults were injected.
    pub fn trace_hash(&self) -> u64 {
        self.look(|state| state.trace_hash())
    }

    /// Has `observer` called after every turn of a core (some polls), after events, and after faults; never inside a
    /// poll. It may look at nodes, and must not change anything. If it panics, that comes out of what drives the
    /// simulation. Observers stay until the simulation is dropped, and are called in the order of their coming.
    pub fn on_step(&self, observer: impl FnMut() + 'static) {
        self.driver().add_observer(Box::new(observer));
    }

    /// For an observer: what has run since observers were called before. A fault that was injected counts as anything.
    pub fn ran(&self) -> Ran {
        self.driver().ran()
    }

    /// The number of a machine; `None` before its first start. See [`Ran`].
    pub fn number(&self, name: &str) -> Option<usize> {
        self.look(|state| state.machine(name))
    }
}
