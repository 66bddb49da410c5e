//! What must always hold, one file an invariant.
//!
//! These look at nodes while faults happen, and once more after healing. What clients saw is judged at the end, key by key,
//! by [`crate::checker`].

mod barrier;
mod deletion;
mod exactly_one;
mod fenced;
mod frozen;
mod memory;
mod one_server;
mod replicas;
mod rising;
mod thaw;

use crate::plan::Plan;
use crate::watch::{MapChange, SlotChange, View};

/// One invariant.
pub trait Oracle {
    /// Its name.
    fn name(&self) -> &'static str;

    /// A slot has changed on a machine.
    fn slot(&mut self, _change: &SlotChange, _view: &View) -> Result<(), String> {
        Ok(())
    }

    /// A machine's gates, lease or map have changed.
    fn server(&mut self, _machine: usize, _view: &View) -> Result<(), String> {
        Ok(())
    }

    /// A machine has applied a newer map.
    fn map(&mut self, _change: &MapChange, _view: &View) -> Result<(), String> {
        Ok(())
    }

    /// Something may have happened to `view.looked_at`: called after every step, and cheap where nothing is to be seen.
    fn step(&mut self, _view: &View) -> Result<(), String> {
        Ok(())
    }

    /// Faults are over, and the cluster says that it has settled.
    fn healed(&mut self, _view: &View) -> Result<(), String> {
        Ok(())
    }
}

/// Those that hold in a run of this plan: all of them, unless clocks break the promise that leases rest on.
pub fn of(plan: &Plan) -> Vec<Box<dyn Oracle>> {
    let mut oracles = independent_of_leases();
    if plan.scenario.keeps_drift_bound() {
        oracles.push(Box::new(one_server::OneServer::default()));
    }
    oracles
}

fn independent_of_leases() -> Vec<Box<dyn Oracle>> {
    vec![
        Box::new(exactly_one::ExactlyOne),
        Box::new(rising::Rising::default()),
        Box::new(barrier::BarrierBeforeVote::default()),
        Box::new(thaw::NoThawOnATimer),
        Box::new(deletion::DeletionAfterCommit::default()),
        Box::new(frozen::NotFrozenForEver),
        Box::new(fenced::FencedTakesNothing::default()),
        Box::new(replicas::ReplicasEqual),
        Box::new(memory::BoundedMemory),
    ]
}
