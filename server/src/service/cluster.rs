//! `CLUSTER`: the map as clients of the cluster protocol read it.

use lockgate_engine::{SLOTS, Slot};
use lockgate_migrate::control::{ClusterMap, NodeId, Shard, ranges_of};
use lockgate_net::resp::{Reply, Request};

use super::{Commands, arity};

impl Commands {
    /// Dispatches the subcommands.
    pub(super) async fn cluster(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
        let Some(sub) = request.args().get(1) else { return Err(arity("CLUSTER")) };
        match sub.to_ascii_uppercase().as_slice() {
            b"SLOTS" => self.slots(reply),
            b"INFO" => self.cluster_info(reply),
            b"MYID" => self.my_id(reply),
            b"KEYSLOT" => key_slot(request, reply),
            b"MIGRATESLOTS" => self.migrate_slots(request, reply).await,
            b"GETSLOTMIGRATIONS" => self.get_slot_migrations(request, reply),
            b"CANCELSLOTMIGRATIONS" => self.cancel_slot_migrations(reply).await,
            _ => {
                let sub = String::from_utf8_lossy(sub);
                Err(format!(
                    "ERR unknown subcommand '{sub}'. Try CLUSTER SLOTS, INFO, MYID, KEYSLOT, MIGRATESLOTS."
                ))
            }
        }
    }

    fn slots(&self, reply: &mut Reply) -> Result<(), String> {
        let Some(map) = self.node.map() else {
            reply.array(0);
            return Ok(());
        };
        let mut rows = Vec::new();
        for (&id, shard) in &map.shards {
            let owned = ranges_of(Slot::all().filter(|slot| map.slots[*slot].shard == Some(id)));
            rows.extend(owned.into_iter().map(|range| (range, shard)));
        }
        rows.sort_by_key(|(range, _)| range.start);
        reply.array(rows.len());
        for (range, shard) in rows {
            let members: Vec<_> = shard.members().filter_map(|node| map.nodes.get(&node)).collect();
            reply.array(2 + members.len());
            reply.integer(range.start.into());
            reply.integer(range.end.into());
            for info in members {
                reply.array(3);
                reply.bulk(info.listen.ip().to_string().as_bytes());
                reply.integer(info.listen.port().into());
                reply.bulk(info.name.to_string().as_bytes());
            }
        }
        Ok(())
    }

    fn cluster_info(&self, reply: &mut Reply) -> Result<(), String> {
        let map = self.node.map();
        let assigned =
            map.as_ref().map_or(0, |map| map.slots.iter().filter(|owner| owner.shard.is_some()).count());
        let pending =
            map.as_ref().map_or(0, |map| map.slots.iter().filter(|owner| owner.pending.is_some()).count());
        let state = if assigned == usize::from(SLOTS) { "ok" } else { "fail" };
        let nodes = map.as_ref().map_or(0, |map| map.nodes.len());
        let size = map.as_ref().map_or(0, |map| owning_shards(map));
        let epoch = map.as_ref().map_or(0, |map| map.counter);
        let applied = map.as_ref().map_or(0, |map| map.applied);
        let text = format!(
            "cluster_enabled:1\r\ncluster_state:{state}\r\ncluster_slots_assigned:{assigned}\r\ncluster_slots_ok:{}\r\n\
             cluster_slots_pending_release:{pending}\r\ncluster_slots_pfail:0\r\ncluster_slots_fail:0\r\n\
             cluster_known_nodes:{nodes}\r\ncluster_size:{size}\r\ncluster_current_epoch:{epoch}\r\n\
             cluster_control_applied:{applied}\r\n",
            assigned - pending
        );
        reply.bulk(text.as_bytes());
        Ok(())
    }

    fn my_id(&self, reply: &mut Reply) -> Result<(), String> {
        let map = self.node.map();
        let info = map.as_ref().zip(self.node.id()).and_then(|(map, id)| map.nodes.get(&id));
        let info = info.ok_or("ERR this node does not belong to a cluster yet")?;
        reply.bulk(info.name.to_string().as_bytes());
        Ok(())
    }
}

/// Shards that own at least one slot.
fn owning_shards(map: &ClusterMap) -> usize {
    map.shards.keys().filter(|&&id| map.slots.iter().any(|owner| owner.shard == Some(id))).count()
}

/// The shard that `node` belongs to.
pub(super) fn shard_of(
    map: &ClusterMap,
    node: NodeId,
) -> Option<(lockgate_migrate::control::ShardId, &Shard)> {
    map.shards
        .iter()
        .find(|(_, shard)| shard.members().any(|member| member == node))
        .map(|(&id, shard)| (id, shard))
}

fn key_slot(request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
    let [_, _, key] = request.args() else { return Err(arity("CLUSTER|KEYSLOT")) };
    reply.integer(Slot::of_key(key).number().into());
    Ok(())
}
