//! `CLUSTER`: the map as clients of the cluster protocol read it.
//!
//! All of it is told from the one map that this node has applied, so that the answers agree with each other. What the map
//! does not say is not told: who is down, before a failover or an in-sync set has said so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use lockgate_engine::{SLOTS, Slot};
use lockgate_migrate::control::{
    ClusterMap, Incarnation, NodeId, NodeInfo, Shard, ShardId, SlotRange, ranges_of,
};
use lockgate_net::resp::{Reply, Request};

use super::{Commands, arity};

impl Commands {
    /// Dispatches the subcommands.
    pub(super) async fn cluster(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
        let Some(sub) = request.args().get(1) else { return Err(arity("CLUSTER")) };
        match sub.to_ascii_uppercase().as_slice() {
            b"SLOTS" => self.slots(reply),
            b"SHARDS" => self.shards(reply),
            b"NODES" => self.nodes(reply),
            b"INFO" => self.cluster_info(reply),
            b"MYID" => self.my_id(reply),
            b"KEYSLOT" => key_slot(request, reply),
            b"MIGRATESLOTS" => self.migrate_slots(request, reply).await,
            b"GETSLOTMIGRATIONS" => self.get_slot_migrations(request, reply),
            b"CANCELSLOTMIGRATIONS" => self.cancel_slot_migrations(reply).await,
            _ => {
                let sub = String::from_utf8_lossy(sub);
                Err(format!(
                    "ERR unknown subcommand '{sub}'. Try CLUSTER SLOTS, SHARDS, NODES, INFO, MYID, KEYSLOT, MIGRATESLOTS."
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
        let owned = owned_ranges(&map);
        for (id, shard) in &map.shards {
            rows.extend(owned[id].iter().map(|range| (*range, shard)));
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

    /// Shard by shard: its slots, and its members with their health. A replica that is not in sync is `loading`; a primary
    /// that was started again and leads nothing until its shard has failed over is `failed`.
    fn shards(&self, reply: &mut Reply) -> Result<(), String> {
        let Some(map) = self.node.map() else {
            reply.array(0);
            return Ok(());
        };
        let owned = owned_ranges(&map);
        reply.array(map.shards.len());
        for (id, shard) in &map.shards {
            reply.map(2);
            reply.bulk(b"slots");
            reply.array(2 * owned[id].len());
            for range in &owned[id] {
                reply.integer(range.start.into());
                reply.integer(range.end.into());
            }
            reply.bulk(b"nodes");
            let members: Vec<&NodeInfo> = shard.members().filter_map(|node| map.nodes.get(&node)).collect();
            reply.array(members.len());
            for info in members {
                member(shard, info, reply);
            }
        }
        Ok(())
    }

    /// One line for each node.
    fn nodes(&self, reply: &mut Reply) -> Result<(), String> {
        let (map, me) = (self.node.map(), self.node.id());
        let map = map.ok_or("ERR this node does not belong to a cluster yet")?;
        let owned = owned_ranges(&map);
        let mut text = String::new();
        for (&node, info) in &map.nodes {
            let shard = shard_of(&map, node);
            let (role, primary, slots) = match shard {
                Some((_, shard)) if shard.primary.node != node => {
                    let primary = map.nodes.get(&shard.primary.node);
                    ("slave", primary.map_or("-".to_owned(), |info| info.name.to_string()), &[][..])
                }
                Some((id, _)) => ("master", "-".to_owned(), owned[&id].as_slice()),
                // What other servers call a node that was not given anything yet.
                None => ("master", "-".to_owned(), &[][..]),
            };
            let myself = if Some(node) == me { "myself," } else { "" };
            let epoch = shard.map_or(0, |(_, shard)| shard.epoch.0);
            let (listen, bus) = (info.listen, info.link.port());
            // Writing to a String cannot fail. Of pings the map knows nothing: 0 is "none is waited for", and "never".
            let _ =
                write!(text, "{} {listen}@{bus} {myself}{role} {primary} 0 0 {epoch} connected", info.name);
            for range in slots {
                let _ = write!(text, " {range}");
            }
            text.push('\n');
        }
        reply.bulk(text.as_bytes());
        Ok(())
    }

    fn cluster_info(&self, reply: &mut Reply) -> Result<(), String> {
        let map = self.node.map();
        let facts = map.as_ref().map_or_else(Facts::default, |map| Facts::of(map));
        let served = facts.assigned == usize::from(SLOTS) && facts.vacant == 0;
        // Without a leader of the control log no lease is renewed.
        let state = if served && self.node.leader().is_some() { "ok" } else { "fail" };
        let mine = map.as_ref().zip(self.node.id()).and_then(|(map, me)| shard_of(map, me));
        let my_epoch = mine.map_or(0, |(_, shard)| shard.epoch.0);
        let nodes = map.as_ref().map_or(0, |map| map.nodes.len());
        let (epoch, applied) = map.as_ref().map_or((0, 0), |map| (map.counter, map.applied));
        let leader = self.node.leader().map_or(0, |leader| leader.0);
        let Facts { assigned, pending, vacant, ok, size } = facts;
        let text = format!(
            "cluster_enabled:1\r\ncluster_state:{state}\r\ncluster_slots_assigned:{assigned}\r\ncluster_slots_ok:{ok}\r\n\
             cluster_slots_pending_release:{pending}\r\ncluster_slots_pfail:0\r\ncluster_slots_fail:{vacant}\r\n\
             cluster_known_nodes:{nodes}\r\ncluster_size:{size}\r\ncluster_current_epoch:{epoch}\r\n\
             cluster_my_epoch:{my_epoch}\r\ncluster_control_leader:{leader}\r\ncluster_control_applied:{applied}\r\n"
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

/// What `CLUSTER INFO` counts.
#[derive(Default)]
struct Facts {
    /// Slots that have an owner.
    assigned: usize,
    /// Slots that wait for their release by the last owner.
    pending: usize,
    /// Slots of shards that nobody leads: their primary was started again, and they have not failed over yet.
    vacant: usize,
    /// Slots that are neither.
    ok: usize,
    /// Shards that own slots.
    size: usize,
}

impl Facts {
    fn of(map: &ClusterMap) -> Facts {
        let mut facts = Facts::default();
        let mut owners = BTreeSet::new();
        for owner in map.slots.iter() {
            facts.assigned += usize::from(owner.shard.is_some());
            facts.pending += usize::from(owner.pending.is_some());
            let shard = owner.shard.and_then(|id| map.shards.get(&id));
            let vacant = shard.is_some_and(|shard| is_vacant(map, shard));
            facts.vacant += usize::from(vacant);
            facts.ok += usize::from(shard.is_some() && owner.pending.is_none() && !vacant);
            owners.extend(owner.shard);
        }
        facts.size = owners.len();
        facts
    }
}

/// Whether the shard's primary was started again and has not been confirmed, nor another one put into its place.
fn is_vacant(map: &ClusterMap, shard: &Shard) -> bool {
    map.nodes.get(&shard.primary.node).is_none_or(|info| info.incarnation != shard.primary)
}

/// The slots of every shard, in ranges.
fn owned_ranges(map: &ClusterMap) -> BTreeMap<ShardId, Vec<SlotRange>> {
    let mut owned: BTreeMap<ShardId, Vec<Slot>> = map.shards.keys().map(|id| (*id, Vec::new())).collect();
    for (slot, owner) in Slot::all().zip(map.slots.iter()) {
        if let Some(slots) = owner.shard.and_then(|id| owned.get_mut(&id)) {
            slots.push(slot);
        }
    }
    owned.into_iter().map(|(id, slots)| (id, ranges_of(slots))).collect()
}

/// One member of a shard, as `CLUSTER SHARDS` tells it.
fn member(shard: &Shard, info: &NodeInfo, reply: &mut Reply) {
    let Incarnation { node, boot, .. } = info.incarnation;
    let leads = shard.primary.node == node;
    let health = match (leads, shard.in_sync.get(&node) == Some(&boot)) {
        (_, true) => "online",
        (true, false) => "failed",
        (false, false) => "loading",
    };
    let ip = info.listen.ip().to_string();
    let role = if leads { "master" } else { "replica" };
    reply.map(6);
    reply.bulk(b"id");
    reply.bulk(info.name.to_string().as_bytes());
    reply.bulk(b"port");
    reply.integer(info.listen.port().into());
    for (key, value) in [("ip", ip.as_str()), ("endpoint", &ip), ("role", role), ("health", health)] {
        reply.bulk(key.as_bytes());
        reply.bulk(value.as_bytes());
    }
}

/// The shard that `node` belongs to.
pub(super) fn shard_of(map: &ClusterMap, node: NodeId) -> Option<(ShardId, &Shard)> {
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
