//! One simulated process: what its runtime and its cores know of the world.

use super::clock::SharedClock;
use super::driver;
use super::world::World;
use crate::sync::Arc;

/// A core's way to the world: its I/O backend.
#[derive(Clone)]
pub(crate) struct NodePort {
    pub(super) world: Arc<World>,
    /// The number of the machine.
    pub(super) node: usize,
    /// The number of the process among those of the machine.
    pub(super) process: u64,
    /// Which [`super::Sim`] of the thread drives this node.
    pub(super) sim_id: u64,
}

/// The runtime's way to the world.
pub(crate) struct SimNode {
    port: NodePort,
    clock: Arc<SharedClock>,
}

impl SimNode {
    pub(super) fn new(port: NodePort, clock: Arc<SharedClock>) -> Self {
        Self { port, clock }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.boot_ns(self.port.world.now_ns())
    }

    pub(crate) fn unix_ms(&self) -> u64 {
        self.clock.unix_ms(self.port.world.now_ns())
    }

    /// Different for each start of each machine in simulations of each seed. Drawn from none of the random numbers.
    pub(crate) fn os_boot_id(&self) -> [u8; 16] {
        self.port.world.with(|state| {
            let mut id = [0; 16];
            let machine = &state.machines[self.port.node];
            let (seed, node) = machine.os_origin.unwrap_or((state.seed, self.port.node as u32));
            id[..8].copy_from_slice(&seed.to_le_bytes());
            id[8..12].copy_from_slice(&node.to_le_bytes());
            id[12..].copy_from_slice(&machine.os_boots.to_le_bytes());
            id
        })
    }

    pub(crate) fn random_u64(&self) -> u64 {
        self.port.world.with(|state| {
            let number = state.machines[self.port.node].random.next();
            state.trace(number);
            number
        })
    }

    /// The cores were asked to stop: done at once from outside, or by the driver after the current poll.
    pub(crate) fn stop(&self) {
        driver::stop_if_idle(self.port.sim_id);
    }

    /// Drives the simulation until `is_done`. Must be called on the thread of its Sim.
    pub(crate) fn drive_until(&self, is_done: impl Fn() -> bool) {
        driver::drive_until(self.port.sim_id, is_done);
    }
}
