//! Barrier before vote: when a commit is applied anywhere, every machine that the target's in-sync set names holds what
//! the source froze, equal, and on its disk.

use std::collections::BTreeSet;

use lockgate_engine::{Gate, Slot};
use lockgate_migrate::control::{ClusterMap, Job, JobId, JobState, slots_of};

use super::Oracle;
use crate::cluster::Cluster;
use crate::watch::{MapChange, View};

/// See the module.
#[derive(Default)]
pub struct BarrierBeforeVote {
    checked: BTreeSet<JobId>,
}

impl Oracle for BarrierBeforeVote {
    fn name(&self) -> &'static str {
        "barrier before vote"
    }

    fn map(&mut self, change: &MapChange, view: &View) -> Result<(), String> {
        let map = &change.after;
        for job in map.jobs.values() {
            if matches!(job.state, JobState::Committed { .. }) && self.checked.insert(job.id) {
                for (&node, &boot) in &map.shards[&job.target].in_sync {
                    holds(view, map, job, Cluster::machine_of(node), boot)?;
                }
            }
        }
        Ok(())
    }
}

/// What the member's memory and disk have of the job's slots. A member that has restarted since is judged by what clients
/// read afterwards.
fn holds(view: &View, map: &ClusterMap, job: &Job, machine: usize, boot: u64) -> Result<(), String> {
    let source = Cluster::machine_of(map.shards[&job.source].primary.node);
    let checked = view.cluster.with_node(machine, |member, _| {
        if member.engine().boot().number != boot {
            return Ok(());
        }
        for slot in slots_of(&job.slots) {
            let held = member.engine().slot_status(slot);
            if !held.generation.same_major(job.generation) {
                return Err(format!("holds slot {slot} in generation {}", held.generation));
            }
            let ticket = member.engine().ticket_at(slot, held.position);
            // A new owner's own records follow the finals as soon as it serves.
            let is_final = matches!(held.gate, Gate::Importing | Gate::Follower)
                && held.version.term <= frozen_term(view, source, slot);
            if is_final && !member.engine().synced(ticket) {
                return Err(format!("has not synced slot {slot} at {}", held.version));
            }
            if let Some(frozen) = frozen(view, source, slot)
                && is_final
                && (frozen.version, frozen.digest) != (held.version, held.digest)
            {
                let (here, there) = (held.version, frozen.version);
                return Err(format!("holds slot {slot} at {here}, and the source froze it at {there}"));
            }
        }
        Ok(())
    });
    let (id, name) = (job.id, view.name(machine));
    checked.unwrap_or(Ok(())).map_err(|what| format!("job {id} is committed, and {name} {what}"))
}

/// What the source still holds of a slot that it froze.
fn frozen(view: &View, source: usize, slot: Slot) -> Option<lockgate_engine::SlotStatus> {
    let status = view.cluster.with_node(source, |node, _| node.engine().slot_status(slot))?;
    matches!(status.gate, Gate::Frozen | Gate::HandedOff).then_some(status)
}

fn frozen_term(view: &View, source: usize, slot: Slot) -> lockgate_engine::Term {
    frozen(view, source, slot).map_or(lockgate_engine::Term(0), |status| status.version.term)
}
