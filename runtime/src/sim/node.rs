//! One simulated machine: what its runtime and its cores know of the world.

use super::driver;
use super::random::Random;
use super::world::{EPOCH_MS, World};
use crate::sync::{Arc, Mutex};

/// A core's way to the world: its I/O backend.
#[derive(Clone)]
pub(crate) struct NodePort {
    pub(super) world: Arc<World>,
    /// The index of the node, and of its disk.
    pub(super) node: usize,
}

/// The runtime's way to the world.
pub(crate) struct SimNode {
    pub(super) port: NodePort,
    random: Mutex<Random>,
    /// Which [`super::Sim`] of the thread drives this node.
    sim_id: u64,
}

impl SimNode {
    pub(super) fn new(port: NodePort, sim_id: u64, random: Random) -> Self {
        Self { port, random: Mutex::new(random), sim_id }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.port.world.now_ns()
    }

    pub(crate) fn unix_ms(&self) -> u64 {
        EPOCH_MS + self.now_ns() / 1_000_000
    }

    pub(crate) fn random_u64(&self) -> u64 {
        self.random.lock().next()
    }

    /// The cores were asked to stop: done at once from outside, or by the driver after the current poll.
    pub(crate) fn stop(&self) {
        driver::stop_if_idle(self.sim_id);
    }

    /// Drives the simulation until `is_done`. Must be called on the thread of its Sim.
    pub(crate) fn drive_until(&self, is_done: impl Fn() -> bool) {
        driver::drive_until(self.sim_id, is_done);
    }
}
