//! The log decides once: maps at one index are equal everywhere, and indices, counters, epochs and versions only rise.

use std::collections::BTreeMap;

use lockgate_engine::Slot;
use lockgate_migrate::control::ClusterMap;
use lockgate_runtime::sync::Arc;

use super::Oracle;
use crate::watch::{MapChange, View};

/// Maps that are remembered for comparison with those of machines that are behind.
const MAPS_KEPT: usize = 64;

/// See the module.
#[derive(Default)]
pub struct Rising {
    by_index: BTreeMap<u64, Arc<ClusterMap>>,
}

impl Oracle for Rising {
    fn name(&self) -> &'static str {
        "versions only rise"
    }

    fn map(&mut self, change: &MapChange, view: &View) -> Result<(), String> {
        let (name, after) = (view.name(change.machine), &change.after);
        if let Some(before) = &change.before {
            rises(before, after, &view.hot).map_err(|what| format!("{name}: {what}"))?;
        }
        if let Some(known) = self.by_index.get(&after.applied) {
            if **known != **after {
                return Err(format!("{name} has another map at index {} than others had", after.applied));
            }
            return Ok(());
        }
        after
            .validate()
            .map_err(|invalid| format!("{name}: the map at {} is invalid: {invalid}", after.applied))?;
        // Neighbours in the order of the log, whichever machine has shown them first.
        if let Some((_, before)) = self.by_index.range(..after.applied).next_back() {
            rises(before, after, &view.hot)?;
        }
        if let Some((_, later)) = self.by_index.range(after.applied..).next() {
            rises(after, later, &view.hot)?;
        }
        self.by_index.insert(after.applied, Arc::clone(after));
        if self.by_index.len() > MAPS_KEPT {
            self.by_index.pop_first();
        }
        Ok(())
    }
}

fn rises(before: &ClusterMap, after: &ClusterMap, slots: &[Slot]) -> Result<(), String> {
    let at = |what: String| format!("{what} between index {} and {}", before.applied, after.applied);
    if after.applied < before.applied || after.counter < before.counter {
        return Err(at(format!("the counter went from {} to {}", before.counter, after.counter)));
    }
    for (id, shard) in &before.shards {
        let Some(later) = after.shards.get(id) else { return Err(at(format!("shard {id} is gone"))) };
        if later.epoch < shard.epoch || later.in_sync_version < shard.in_sync_version {
            return Err(at(format!("shard {id} went from epoch {} to {}", shard.epoch, later.epoch)));
        }
    }
    for &slot in slots {
        let (old, new) = (before.owner(slot), after.owner(slot));
        if new.version < old.version || new.term < old.term {
            let what = format!("slot {slot} went from version {} to {}", old.version, new.version);
            return Err(at(what));
        }
        if new.version == old.version && new.shard != old.shard {
            return Err(at(format!("slot {slot} changed hands, and not its version")));
        }
    }
    Ok(())
}
