//! Deletion implies an applied commit: what a machine served it drops only when the slot is another shard's by an entry
//! that this machine has applied, and the new owner has activated it.

use std::collections::BTreeMap;

use lockgate_engine::{Gate, Generation};

use super::Oracle;
use crate::watch::{SlotChange, View, serves};

/// See the module.
#[derive(Default)]
pub struct DeletionAfterCommit {
    /// What each machine served last of a slot.
    served: BTreeMap<(usize, usize), Generation>,
}

impl Oracle for DeletionAfterCommit {
    fn name(&self) -> &'static str {
        "deletion implies an applied commit"
    }

    fn slot(&mut self, change: &SlotChange, view: &View) -> Result<(), String> {
        let place = (change.machine, change.at);
        match change.after {
            Some(after) if serves(after.gate) => {
                self.served.insert(place, after.generation);
            }
            Some(after) if after.gate == Gate::Absent => {
                let Some(served) = self.served.get(&place) else { return Ok(()) };
                // A start finds no gate open; its data is there until the generation has ended.
                if after.generation < *served || change.before.is_none() {
                    return Ok(());
                }
                self.served.remove(&place);
                let (slot, name) = (view.hot[change.at], view.name(change.machine));
                let map = view.seen[change.machine].map.as_ref().ok_or("dropped a slot without a map")?;
                let owner = map.owner(slot);
                let is_away = !owner.generation.same_major(after.generation);
                if !is_away || owner.pending.is_some() {
                    return Err(format!(
                        "{name} dropped slot {slot}, which its map gives to generation {} (pending: {:?})",
                        owner.generation, owner.pending
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
