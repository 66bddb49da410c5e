//! One simulated machine: whether it has power, whether its process runs, and what ends either.
//!
//! Invariants:
//! - A machine has at most one process. What belongs to an earlier one does nothing any more.
//! - When a process is gone, nothing of it is under way: its operations have happened or will never.

use super::clock::{BOOTED_NS, SharedClock};
use super::disk::{Disk, Survivors};
use super::disk_call::{self, Calls};
use super::image::Recorder;
use super::net_faults;
use super::random::Random;
use super::world::State;
use crate::sim::PowerLoss;
use crate::sync::Arc;

/// How far from the start of its clock a machine is when its process starts after a power cut, in nanoseconds.
const BOOT_SPREAD_NS: u64 = 100_000_000;

/// One machine.
pub(super) struct Machine {
    pub(super) name: Arc<str>,
    pub(super) disk: Disk,
    /// Operations of the disk that are under way.
    pub(super) calls: Calls,
    /// Takes images of the disk, where asked for.
    pub(super) recorder: Option<Recorder>,
    pub(super) clock: Arc<SharedClock>,
    /// The random numbers of its process.
    pub(super) random: Random,
    /// Counts its processes.
    pub(super) process: u64,
    /// Counts how often it got power.
    pub(super) os_boots: u32,
    /// The simulation's seed and the machine's number that its operating system began under, if not these.
    pub(super) os_origin: Option<(u64, u32)>,
    pub(super) has_power: bool,
    pub(super) is_running: bool,
    pub(super) is_paused: bool,
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// By itself: it has waited for its operations.
    Exit,
    /// By SIGKILL.
    Kill,
    /// With its machine.
    PowerCut(PowerLoss),
}

impl Machine {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            disk: Disk::new(),
            calls: Calls::default(),
            recorder: None,
            clock: Arc::new(SharedClock::new()),
            random: Random::new(0, 0),
            process: 0,
            os_boots: 1,
            os_origin: None,
            has_power: true,
            is_running: false,
            is_paused: false,
        }
    }

    /// Whether `process` is the one that runs.
    pub(super) fn runs(&self, process: u64) -> bool {
        self.is_running && self.process == process
    }
}

impl State {
    /// The number of the machine of that name.
    pub(super) fn machine(&self, name: &str) -> Option<usize> {
        self.machines.iter().position(|machine| &*machine.name == name)
    }

    /// The number of the machine of that name, which is made if there is none.
    pub(super) fn machine_or_new(&mut self, name: &str) -> usize {
        self.machine(name).unwrap_or_else(|| {
            self.machines.push(Machine::new(name));
            self.machines.len() - 1
        })
    }

    /// Starts a process, on a machine that is new or known. Returns the number of the machine, or None when its
    /// process runs.
    pub(super) fn start_process(&mut self, name: &str) -> Option<usize> {
        let node = self.machine_or_new(name);
        let stream = self.random.next();
        let random = Random::new(self.seed ^ stream, 1 + node as u64);
        let machine = &mut self.machines[node];
        if machine.is_running {
            return None;
        }
        machine.random = random;
        machine.process += 1;
        machine.is_running = true;
        if !std::mem::replace(&mut machine.has_power, true) {
            machine.os_boots += 1;
            let boot_ns = BOOTED_NS + self.random.between(0, BOOT_SPREAD_NS);
            self.machines[node].clock.boot(self.now_ns, boot_ns);
            net_faults::power_is_back(self, node);
        }
        Some(node)
    }

    /// Ends the process of a machine, if it runs, and the machine itself if its power is cut.
    pub(super) fn end_process(&mut self, node: usize, ending: Ending) {
        let machine = &mut self.machines[node];
        machine.is_running = false;
        machine.is_paused = false;
        disk_call::end_all(self, node, ending);
        let machine = &mut self.machines[node];
        machine.disk.close_all();
        if let Ending::PowerCut(loss) = ending {
            machine.has_power = false;
            machine.disk.cut_power(match loss {
                PowerLoss::All => Survivors::None,
                PowerLoss::Seeded => Survivors::Some(&mut self.random),
            });
        }
        net_faults::end_sockets(self, node, ending);
    }
}
