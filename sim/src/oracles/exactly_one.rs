//! Once faults have healed, exactly one machine serves each slot: the primary of the shard that owns it in every map.

use super::Oracle;
use crate::cluster::Cluster;
use crate::watch::View;

/// See the module.
pub struct ExactlyOne;

impl Oracle for ExactlyOne {
    fn name(&self) -> &'static str {
        "exactly one server after healing"
    }

    fn healed(&mut self, view: &View) -> Result<(), String> {
        let map = view.newest_map().ok_or("no machine has a map")?;
        for (at, &slot) in view.hot.iter().enumerate() {
            let owner = map.owner(slot).shard.ok_or_else(|| format!("slot {slot} has no owner"))?;
            let primary = Cluster::machine_of(map.shards[&owner].primary.node);
            let servers = view.servers(at);
            if servers != [primary] && !view.cluster.is_lost(primary) {
                let names: Vec<&str> = servers.iter().map(|&machine| view.name(machine)).collect();
                let owner = view.name(primary);
                return Err(format!("slot {slot} is owned by {owner}, and served by {names:?}"));
            }
        }
        Ok(())
    }
}
