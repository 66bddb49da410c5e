//! Once faults have healed, every in-sync replica holds the very records that its primary holds.

use super::Oracle;
use crate::cluster::Cluster;
use crate::watch::View;

/// See the module.
pub struct ReplicasEqual;

impl Oracle for ReplicasEqual {
    fn name(&self) -> &'static str {
        "replicas hold what their primary holds"
    }

    fn healed(&mut self, view: &View) -> Result<(), String> {
        let map = view.newest_map().ok_or("no machine has a map")?;
        for &slot in &view.hot {
            let Some(shard) = map.owner(slot).shard.and_then(|shard| map.shards.get(&shard)) else {
                continue;
            };
            let status = |machine| view.cluster.with_node(machine, |node, _| node.engine().slot_status(slot));
            let primary = Cluster::machine_of(shard.primary.node);
            let Some(led) = status(primary) else { continue };
            for replica in shard.in_sync.keys().map(|&node| Cluster::machine_of(node)) {
                let Some(held) = status(replica) else { continue };
                if (held.version, held.digest, held.keys) != (led.version, led.digest, led.keys) {
                    return Err(format!(
                        "slot {slot}: {} has {} keys at {}, its primary {} has {} keys at {}",
                        view.name(replica),
                        held.keys,
                        held.version,
                        view.name(primary),
                        led.keys,
                        led.version
                    ));
                }
            }
        }
        Ok(())
    }
}
