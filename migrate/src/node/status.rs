//! What a node tells operators of itself and of its map.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use lockgate_runtime::sync::atomic::Ordering;

use super::Node;
use super::quorum::frozen_slots;
use crate::control::{ClusterMap, Incarnation, JobId, NodeId, NodeInfo, ShardId, SlotRange, ranges_of};

/// A node's view of the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node that answers.
    pub node: NodeId,
    /// Its applied index of the control log.
    pub applied: u64,
    /// Who leads the control log, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Whether this node has the lease of a shard that it leads, at this moment.
    pub lease_held: bool,
    /// The node timeout that this node goes by, in milliseconds.
    pub node_timeout_ms: u64,
    /// After how long any lease is over that is not renewed, in milliseconds.
    pub lease_over_ms: u64,
    /// How often the control log was begun anew.
    pub generation: u64,
    /// Names the last time that it was.
    pub recovery: [u8; 16],
    /// Whether this node has left that generation: it serves nothing, and waits to enter the next.
    pub has_left: bool,
    /// The slots that are frozen here: without a decision of the control log they stay so.
    pub frozen: Vec<SlotRange>,
    /// The lowest number that no node has had yet.
    pub next_node: NodeId,
    /// The nodes, in the order of their numbers.
    pub nodes: Vec<KnownNode>,
    /// The shards, in the order of their numbers.
    pub shards: Vec<ShardStatus>,
    /// Jobs, oldest first.
    pub jobs: Vec<JobStatus>,
}

/// One node in a [`NodeStatus`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KnownNode {
    /// Its number, data directory and boot.
    pub incarnation: Incarnation,
    /// The name that clients know it by, 40 hexadecimal digits.
    pub name: String,
    /// Where other nodes reach it.
    pub link: SocketAddr,
    /// Where clients reach it.
    pub listen: SocketAddr,
    /// Whether it votes in the control log.
    pub voter: bool,
}

/// One shard in a [`NodeStatus`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShardStatus {
    /// The shard.
    pub id: ShardId,
    /// Its epoch.
    pub epoch: u64,
    /// Who leads it.
    pub primary: NodeId,
    /// Whether nobody does: the primary was started again, and its shard has not failed over yet.
    pub is_vacant: bool,
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

impl NodeStatus {
    /// The node with this number.
    pub fn known(&self, node: NodeId) -> Option<&KnownNode> {
        self.nodes.iter().find(|known| known.incarnation.node == node)
    }

    /// The shard that a node is a member of.
    pub fn shard_of(&self, node: NodeId) -> Option<&ShardStatus> {
        self.shards.iter().find(|shard| shard.members.iter().any(|member| member.node == node))
    }
}

impl ShardStatus {
    /// Who follows.
    pub fn replicas(&self) -> impl Iterator<Item = &MemberStatus> {
        self.members.iter().filter(|member| member.node != self.primary)
    }
}

/// One job in a [`NodeStatus`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobStatus {
    /// Its name, 40 hexadecimal digits.
    pub name: String,
    /// Its number.
    pub id: JobId,
    /// From this shard.
    pub source: ShardId,
    /// To this shard.
    pub target: ShardId,
    /// The slots.
    pub slots: Vec<SlotRange>,
    /// `active`, `committed`, `activated`, `disputed`, `failed` or `cancelled`.
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
        let shards = map.shards.iter().map(|(&id, _)| shard_status(&map, &identity.me, id)).collect();
        let progress = self.shared.progress.lock().clone();
        let jobs = map.jobs.values().map(|job| {
            let report = progress.get(&job.id);
            JobStatus {
                name: job.name.to_string(),
                id: job.id,
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
            lease_held: self.holds_lease(),
            node_timeout_ms: self.shared.config.times.node_timeout_ns / 1_000_000,
            lease_over_ms: self.shared.config.times.lease_over_ns().div_ceil(1_000_000),
            generation: map.generation,
            recovery: map.recovery,
            has_left: self.shared.has_left.load(Ordering::SeqCst),
            frozen: frozen_slots(&self.shared.engine),
            next_node: next_node(&map),
            nodes: map.nodes.values().map(|info| known_node(info, &identity.me)).collect(),
            shards,
            jobs: jobs.collect(),
        })
    }
}

/// Numbers of nodes that left are not used again.
fn next_node(map: &ClusterMap) -> NodeId {
    let last = map.nodes.keys().chain(&map.retired).max();
    NodeId(last.map_or(0, |node| node.0) + 1)
}

/// What a node is known as; of itself this one knows better than a map that has yet to hear of its start.
fn known_as(info: &NodeInfo, me: &Incarnation) -> Incarnation {
    if info.incarnation.node == me.node { *me } else { info.incarnation }
}

fn known_node(info: &NodeInfo, me: &Incarnation) -> KnownNode {
    KnownNode {
        incarnation: known_as(info, me),
        name: info.name.to_string(),
        link: info.link,
        listen: info.listen,
        voter: info.voter,
    }
}

fn shard_status(map: &ClusterMap, me: &Incarnation, id: ShardId) -> ShardStatus {
    let shard = &map.shards[&id];
    let members = shard.members().filter_map(|node| {
        let info = map.nodes.get(&node)?;
        let in_sync = shard.in_sync.get(&node) == Some(&known_as(info, me).boot);
        Some(MemberStatus { node, listen: info.listen, in_sync, voter: info.voter })
    });
    let owned = lockgate_engine::Slot::all().filter(|slot| map.slots[*slot].shard == Some(id));
    let primary = shard.primary.node;
    let is_vacant = map.nodes.get(&primary).is_none_or(|info| known_as(info, me) != shard.primary);
    let (epoch, members) = (shard.epoch.0, members.collect());
    ShardStatus { id, epoch, primary, is_vacant, members, slots: ranges_of(owned) }
}
