//! The cluster map: the state that the control log decides.
//!
//! Invariants, all checked by [`ClusterMap::validate`]:
//! - every term, job, attempt and generation came from `counter` and is not above it (R1);
//! - a node serves at most one shard (R13); a shard's in-sync set holds its primary, and otherwise replicas with the boot
//!   that the map knows them by (R2);
//! - a slot of an active or disputed job belongs to its source and to no other such job; a slot is pending exactly while the job that
//!   moved it is committed and not activated, and then it belongs to that job's target (R16);
//! - finished jobs are kept up to [`JOBS_KEPT`].
//!
//! The map changes only by [`ClusterMap::apply`](super::apply), one index after the other, and equal entries make equal maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use lockgate_engine::{Generation, Slot, Term};
use serde::{Deserialize, Serialize};

use super::slot_table::SlotTable;
use super::types::{
    Attempt, ClusterId, Epoch, Incarnation, JobId, Name, NodeId, ShardId, SlotRange, slots_of,
};
use super::validate::Invalid;
use super::wire;

/// How many finished jobs are remembered.
pub const JOBS_KEPT: usize = 64;
/// How many of a node's last proposals are remembered one by one; older ones are refused as duplicates.
pub const PROPOSALS_KEPT: usize = 64;
/// The most voters of the control log.
pub const VOTERS_MAX: usize = 7;
/// The raft index at which every node starts: the genesis is its snapshot.
pub const GENESIS_INDEX: u64 = 1;
/// The raft term of the genesis.
pub const GENESIS_TERM: u64 = 1;

/// What the cluster knows of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The name that clients know it by.
    pub name: Name,
    /// Where other nodes reach it.
    pub link: SocketAddr,
    /// Where clients reach it.
    pub listen: SocketAddr,
    /// Its latest announced incarnation, which holds its number too.
    pub incarnation: Incarnation,
    /// Whether it votes in the control log.
    pub voter: bool,
}

/// A primary and those who follow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its reign.
    pub epoch: Epoch,
    /// Who leads. If that node's known boot is higher, the primary restarted and serves again only after a failover.
    pub primary: Incarnation,
    /// Who follows, in ascending order.
    pub replicas: Vec<NodeId>,
    /// Who holds everything acknowledged, by boot: the primary, and replicas.
    pub in_sync: BTreeMap<NodeId, u64>,
    /// Changes with the set, with every failover, and with every job committed towards this shard (R11).
    pub in_sync_version: u64,
    /// The last entry that touched this shard: a lease is granted only to who has applied it (R6).
    pub changed_index: u64,
}

impl Shard {
    /// Whether this incarnation leads the shard now.
    pub fn is_led_by(&self, incarnation: Incarnation) -> bool {
        self.primary == incarnation
    }

    /// All members, the primary first.
    pub fn members(&self) -> impl Iterator<Item = NodeId> {
        std::iter::once(self.primary.node).chain(self.replicas.iter().copied())
    }
}

/// A slot that was given to a target which may not have been released to it yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The committed job.
    pub job: JobId,
    /// The shard that must let go.
    pub from: ShardId,
    /// Who led that shard when the job was committed: its word releases the slot.
    pub from_primary: Incarnation,
    /// Where the slot's clock begins with whoever serves it next, or later (R17). In milliseconds since 1970.
    pub clock_ms: u64,
}

/// Who owns a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotOwner {
    /// The owner, if any.
    pub shard: Option<ShardId>,
    /// The term of this ownership: writes carry it, and a later owner's writes win.
    #[serde(with = "wire::term")]
    pub term: Term,
    /// Bumped with every change of this slot: maps and redirects are compared by it, never by owner.
    pub version: u64,
    /// The generation of the owner's copy.
    #[serde(with = "wire::generation")]
    pub generation: Generation,
    /// Set while the slot waits to be released by its last owner.
    pub pending: Option<Pending>,
}

impl SlotOwner {
    /// Nobody.
    pub(super) const UNOWNED: SlotOwner =
        SlotOwner { shard: None, term: Term(0), version: 0, generation: Generation(0), pending: None };
}

/// Where a job stands in the control log. What happens between two of these is the nodes' own business.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// Copying, catching up, frozen: nothing is decided.
    Active,
    /// The slots belong to the target, which waits for their release.
    Committed {
        /// The index of the entry that decided it.
        index: u64,
        /// The term that the slots got.
        #[serde(with = "wire::term")]
        term: Term,
    },
    /// The target serves.
    Activated {
        /// The index of the entry that decided it.
        index: u64,
    },
    /// Whether it was committed went down with a majority of the voters: its slots are nobody's to serve until an operator
    /// decides.
    Disputed,
    /// Ended without moving anything.
    Failed {
        /// Why.
        why: String,
    },
    /// Ended without moving anything, because it was asked for.
    Cancelled {
        /// Why.
        why: String,
    },
}

impl JobState {
    /// Whether nothing more will happen to the job in the control log.
    pub fn is_finished(&self) -> bool {
        matches!(self, JobState::Activated { .. } | JobState::Failed { .. } | JobState::Cancelled { .. })
    }

    /// The state as a word.
    pub fn word(&self) -> &'static str {
        match self {
            JobState::Active => "active",
            JobState::Committed { .. } => "committed",
            JobState::Activated { .. } => "activated",
            JobState::Disputed => "disputed",
            JobState::Failed { .. } => "failed",
            JobState::Cancelled { .. } => "cancelled",
        }
    }
}

/// A migration of slots from one shard to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// The name that clients know it by.
    pub name: Name,
    /// Who owns the slots until it is committed.
    pub source: ShardId,
    /// Who owns them afterwards.
    pub target: ShardId,
    /// The slots, in ascending ranges.
    pub slots: Vec<SlotRange>,
    /// The only attempt that a vote may name.
    pub attempt: Attempt,
    /// The generation that the target imports under.
    #[serde(with = "wire::generation")]
    pub generation: Generation,
    /// Where it stands.
    pub state: JobState,
    /// Why the last attempt ended; empty if none has.
    pub last_attempt: String,
    /// When it was asked for, by its proposer's clock.
    pub created_ms: u64,
    /// When it last changed, by the clock of who proposed that.
    pub updated_ms: u64,
    /// The index of its last change.
    pub changed_index: u64,
    /// Who asked for it.
    pub origin: super::entry::Origin,
}

impl Job {
    /// Why it ended without moving anything, or why its last attempt did; empty if neither.
    pub fn reason(&self) -> &str {
        match &self.state {
            JobState::Failed { why } | JobState::Cancelled { why } => why,
            _ => &self.last_attempt,
        }
    }

    /// How many slots it moves.
    pub fn slot_count(&self) -> usize {
        self.slots.iter().map(|range| range.len()).sum()
    }
}

/// The proposals of one node that were seen, so that a delayed duplicate does not act twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proposals {
    /// The boot that the numbers belong to. Proposals of earlier boots are duplicates or too late.
    pub(super) boot: u64,
    /// Every number up to this one counts as seen.
    pub(super) floor: u64,
    /// Numbers above the floor that were seen.
    pub(super) seen: BTreeSet<u64>,
}

/// The state that the control log decides. Public fields are for reading; only [`ClusterMap::apply`] changes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// The cluster's identity.
    pub cluster: ClusterId,
    /// How often the control log was begun anew because a majority of its voters was lost.
    pub generation: u64,
    /// Names the last time that it was; zeros before.
    pub recovery: [u8; 16],
    /// The last value that was given out as a term, job, attempt or generation (R1).
    pub counter: u64,
    /// The last applied index.
    pub applied: u64,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, NodeInfo>,
    /// The numbers of nodes that left, which are not used again.
    pub retired: BTreeSet<NodeId>,
    /// The shards.
    pub shards: BTreeMap<ShardId, Shard>,
    /// The slots, by number: always [`SLOT_COUNT`] of them.
    pub slots: SlotTable,
    /// The jobs: all that are not finished, and the last [`JOBS_KEPT`] that are.
    pub jobs: BTreeMap<JobId, Job>,
    pub(super) proposals: BTreeMap<NodeId, Proposals>,
}

/// A shard as it is when the cluster is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisShard {
    /// The shard.
    pub shard: ShardId,
    /// Who leads it.
    pub primary: Incarnation,
    /// Who follows.
    pub replicas: Vec<Incarnation>,
    /// The slots that it owns.
    pub slots: Vec<SlotRange>,
}

/// What a cluster is created from: the same on every node, byte by byte. It is the snapshot at [`GENESIS_INDEX`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// The cluster's identity.
    pub cluster: ClusterId,
    /// The generation in which it is given to nodes that come later; 0 when the cluster is created.
    pub generation: u64,
    /// All nodes; their `voter` flags are the voters of the control log.
    pub nodes: Vec<NodeInfo>,
    /// All shards. Slots that none of them names are owned by nobody.
    pub shards: Vec<GenesisShard>,
}

impl ClusterMap {
    /// The map that a cluster begins with. All data is empty, so every replica is in sync.
    pub fn genesis(genesis: Genesis) -> Result<ClusterMap, Invalid> {
        let invalid = |what: String| Err(Invalid { what });
        let mut map = ClusterMap {
            cluster: genesis.cluster,
            generation: genesis.generation,
            recovery: [0; 16],
            counter: 1,
            applied: GENESIS_INDEX,
            nodes: BTreeMap::new(),
            retired: BTreeSet::new(),
            shards: BTreeMap::new(),
            slots: SlotTable::filled(SlotOwner::UNOWNED),
            jobs: BTreeMap::new(),
            proposals: BTreeMap::new(),
        };
        for node in genesis.nodes {
            let id = node.incarnation.node;
            if map.nodes.insert(id, node).is_some() {
                return invalid(format!("node {id} is named twice"));
            }
        }
        for shard in genesis.shards {
            map.add_genesis_shard(shard)?;
        }
        let voters = map.voters().len();
        if voters == 0 || voters > VOTERS_MAX {
            return invalid(format!("a cluster has 1 to {VOTERS_MAX} voters, not {voters}"));
        }
        map.validate()?;
        Ok(map)
    }

    fn add_genesis_shard(&mut self, genesis: GenesisShard) -> Result<(), Invalid> {
        let id = genesis.shard;
        let invalid = |what: String| Err(Invalid { what });
        let mut replicas: Vec<NodeId> = genesis.replicas.iter().map(|replica| replica.node).collect();
        replicas.sort_unstable();
        let members = std::iter::once(&genesis.primary).chain(&genesis.replicas);
        let in_sync = members.map(|member| (member.node, member.boot)).collect();
        for range in &genesis.slots {
            if !range.is_valid() {
                return invalid(format!("shard {id} names the slots {range}, which do not exist"));
            }
        }
        for slot in slots_of(&genesis.slots) {
            let owner = &mut self.slots[slot];
            if owner.shard.is_some() {
                return invalid(format!("slot {} is given to two shards", slot.number()));
            }
            // One value for all: terms and generations are compared within a slot only.
            *owner = SlotOwner {
                shard: Some(id),
                term: Term(self.counter),
                version: 1,
                generation: Generation::new(self.counter),
                pending: None,
            };
        }
        let shard = Shard {
            epoch: Epoch(1),
            primary: genesis.primary,
            replicas,
            in_sync,
            in_sync_version: 1,
            changed_index: GENESIS_INDEX,
        };
        match self.shards.insert(id, shard) {
            Some(_) => invalid(format!("shard {id} is named twice")),
            None => Ok(()),
        }
    }

    /// Who owns the slot.
    pub fn owner(&self, slot: Slot) -> &SlotOwner {
        &self.slots[slot]
    }

    /// The slots that a shard owns, pending ones too, in order.
    pub fn slots_of_shard(&self, shard: ShardId) -> impl Iterator<Item = (Slot, &SlotOwner)> {
        let all = Slot::all().zip(self.slots.iter());
        all.filter(move |(_, owner)| owner.shard == Some(shard))
    }

    /// The shard that a node is a member of.
    pub fn shard_of_node(&self, node: NodeId) -> Option<(ShardId, &Shard)> {
        let mut shards = self.shards.iter().map(|(id, shard)| (*id, shard));
        shards.find(|(_, shard)| shard.members().any(|member| member == node))
    }

    /// The node with this name.
    pub fn node_by_name(&self, name: Name) -> Option<(NodeId, &NodeInfo)> {
        self.nodes.iter().map(|(id, node)| (*id, node)).find(|(_, node)| node.name == name)
    }

    /// The job with this name.
    pub fn job_by_name(&self, name: Name) -> Option<&Job> {
        self.jobs.values().find(|job| job.name == name)
    }

    /// Jobs on which nothing is decided yet.
    pub fn active_jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values().filter(|job| job.state == JobState::Active)
    }

    /// Jobs whose slots belong to no other one: active, or disputed.
    pub fn undecided_jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values().filter(|job| matches!(job.state, JobState::Active | JobState::Disputed))
    }

    /// Whether nobody may serve the slot before an operator has decided whose it is.
    pub fn is_disputed(&self, slot: Slot) -> bool {
        let mut disputed = self.jobs.values().filter(|job| job.state == JobState::Disputed);
        disputed.any(|job| job.slots.iter().any(|range| range.contains(slot.number())))
    }

    /// The active job that moves this slot.
    pub fn active_job_of(&self, slot: Slot) -> Option<&Job> {
        let slot = slot.number();
        self.active_jobs().find(|job| job.slots.iter().any(|range| range.contains(slot)))
    }

    /// The nodes that vote in the control log.
    pub fn voters(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.voter).map(|(id, _)| *id).collect()
    }

    /// The nodes that learn the control log without voting.
    pub fn learners(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| !node.voter).map(|(id, _)| *id).collect()
    }

    /// The boot that the map knows a node by.
    pub fn known_boot(&self, node: NodeId) -> Option<u64> {
        self.nodes.get(&node).map(|node| node.incarnation.boot)
    }
}
