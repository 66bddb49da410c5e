//! What a node tells operators of itself and of its map.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Node;
use crate::control::{ClusterMap, NodeId, ShardId, SlotRange, ranges_of};

/// A node's view of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node that answers.
    pub node: NodeId,
    /// Its applied index of the control log.
    pub applied: u64,
    /// Who leads the control log, as far as it knows.
    pub leader: Option<NodeId>,
    /// The shards.
    pub shards: Vec<ShardStatus>,
    /// Jobs, oldest first.
    pub jobs: Vec<JobStatus>,
}

/// One shard in a [`NodeStatus`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardStatus {
    /// The shard.
    pub id: ShardId,
    /// Its epoch.
    pub epoch: u64,
    /// Its members, the primary first.
    pub members: Vec<MemberStatus>,
    /// The slots that it owns.
    pub slots: Vec<SlotRange>,
}

/// One member in a [`ShardStatus`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The node.
    pub node: NodeId,
    /// Where clients reach it.
    pub listen: SocketAddr,
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
    /// Whether it votes in the control log.
    pub voter: bool,
}

/// One job in a [`NodeStatus`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its name, 40 hexadecimal digits.
    pub name: String,
    /// From this shard.
    pub source: ShardId,
    /// To this shard.
    pub target: ShardId,
    /// The slots.
    pub slots: Vec<SlotRange>,
    /// `active`, `committed`, `activated`, `failed` or `cancelled`.
    pub state: String,
    /// Why it failed, or why its last attempt did; empty if neither.
    pub reason: String,
    /// Payload bytes in the moving slots; 0 unless this node is the source.
    pub bytes: u64,
    /// From freeze to activation as the source saw it, in microseconds; 0 while unknown.
    pub freeze_to_activate_us: u64,
    /// Where it stands at its source; empty unless this node is the source.
    pub phase: String,
}

impl Node {
    /// What this node's applied map and its own jobs say; `None` before it belongs to a cluster.
    pub fn status(&self) -> Option<NodeStatus> {
        let (map, identity) = (self.map()?, self.shared.identity.get()?);
        let shards = map.shards.iter().map(|(&id, _)| shard_status(&map, id)).collect();
        let progress = self.shared.progress.lock().clone();
        let jobs = map.jobs.values().map(|job| {
            let report = progress.get(&job.id);
            JobStatus {
                name: job.name.to_string(),
                source: job.source,
                target: job.target,
                slots: job.slots.clone(),
                state: job.state.word().to_owned(),
                reason: job.reason().to_owned(),
                bytes: report.map_or(0, |report| report.bytes_total),
                freeze_to_activate_us: report.map_or(0, |report| report.freeze_to_activate_us),
                phase: report.map_or_else(String::new, |report| format!("{:?}", report.phase)),
            }
        });
        Some(NodeStatus {
            node: identity.me.node,
            applied: map.applied,
            leader: self.leader(),
            shards,
            jobs: jobs.collect(),
        })
    }
}

fn shard_status(map: &ClusterMap, id: ShardId) -> ShardStatus {
    let shard = &map.shards[&id];
    let members = shard.members().filter_map(|node| {
        let info = map.nodes.get(&node)?;
        let in_sync = shard.in_sync.get(&node) == Some(&info.incarnation.boot);
        Some(MemberStatus { node, listen: info.listen, in_sync, voter: info.voter })
    });
    let owned = lockgate_engine::Slot::all().filter(|slot| map.slots[*slot].shard == Some(id));
    ShardStatus { id, epoch: shard.epoch.0, members: members.collect(), slots: ranges_of(owned) }
}
