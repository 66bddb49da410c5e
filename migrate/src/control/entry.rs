//! The entries of the control log: what may be asked of the cluster map.
//!
//! An entry says what its proposer saw (epochs, versions, attempts, evidence) and what it wants. It takes effect only if
//! what it saw still holds when it is applied: that is decided in [`super::preconditions`], never here. Entries are small
//! except for evidence, which has about 30 bytes for each slot; [`EntryBody::check_sizes`] bounds every list, before
//! proposing and after decoding.

use lockgate_engine::{Slot, Term, Version};
use serde::{Deserialize, Serialize};

use super::map::{NodeInfo, VOTERS_MAX};
use super::types::{Attempt, Epoch, Incarnation, JobId, Name, NodeId, SLOT_COUNT, ShardId, SlotRange};
use super::wire;

/// The most ranges that one entry may name: no set of slots needs more.
pub const RANGES_MAX: usize = SLOT_COUNT as usize / 2;
/// The most jobs that one `CommitJobs` may decide.
pub const COMMITS_MAX: usize = 1_024;
/// The most members of a shard, and so of an in-sync or synced set.
pub const MEMBERS_MAX: usize = 64;
/// The longest reason that an entry may carry.
pub const REASON_BYTES_MAX: usize = 1_024;

/// Who proposed an entry, and its number among that node's proposals: what a delayed duplicate is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The proposing node.
    pub node: NodeId,
    /// Its boot number.
    pub boot: u64,
    /// Counts up within that boot. A retry of the same proposal keeps its number.
    pub seq: u64,
}

/// One entry of the control log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Who proposed it.
    pub origin: Origin,
    /// The proposer's wall clock in milliseconds: shown to operators, decides nothing.
    pub at_ms: u64,
    /// What is asked.
    pub body: EntryBody,
}

/// What an entry asks of the cluster map. The order is part of the format: new kinds are added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryBody {
    /// A node joins, as a learner and with no role.
    AddNode(NodeInfo),
    /// A node without role leaves for good: its number is not used again.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// A shard without slots is made. Its members have no data, so all of them are in sync.
    CreateShard {
        /// The new shard.
        shard: ShardId,
        /// The incarnation that leads it.
        primary: Incarnation,
        /// The nodes that follow.
        replicas: Vec<NodeId>,
    },
    /// Slots that nobody owns are given to a shard.
    AssignSlots {
        /// The shard.
        shard: ShardId,
        /// The slots.
        ranges: Vec<SlotRange>,
    },
    /// A shard's in-sync set is replaced, if its version is still the one that the proposer saw.
    SetInSync {
        /// The shard.
        shard: ShardId,
        /// The version of the set that this one replaces.
        expected_version: u64,
        /// The members as (node, boot). The primary is a member whether named or not.
        in_sync: Vec<(NodeId, u64)>,
    },
    /// A node was started again.
    Restarted {
        /// What it is now.
        incarnation: Incarnation,
    },
    /// A shard gets a new reign: under another primary, or under the same one after its restart.
    Failover {
        /// The shard.
        shard: ShardId,
        /// The epoch that it ends.
        expected_epoch: Epoch,
        /// Who leads from now on: fenced, and synced up to what it reported (R12).
        primary: Incarnation,
        /// Whether the last primary itself, started again, is known to hold all that it ever acknowledged: then it may
        /// lead although replicas are in sync.
        holds_all: bool,
    },
    /// A migration job begins.
    StartJob {
        /// The shard that owns the slots.
        source: ShardId,
        /// The shard that shall own them.
        target: ShardId,
        /// The slots.
        ranges: Vec<SlotRange>,
        /// The name that clients know the job by.
        name: Name,
    },
    /// The vote: slots of several jobs change owner, each job for itself.
    CommitJobs(Vec<Evidence>),
    /// The source gives an attempt up before its vote was cast: whatever of it is still under way is void.
    EndAttempt {
        /// The job.
        job: JobId,
        /// The attempt that ends.
        attempt: Attempt,
        /// Why, for operators.
        why: String,
    },
    /// A job ends without moving anything.
    AbortJob {
        /// The job.
        job: JobId,
        /// Why, for operators.
        why: String,
        /// Whether it was asked for, rather than a failure.
        cancelled: bool,
    },
    /// The target has pulled the release and serves: the slots are no longer pending.
    Activated {
        /// The job.
        job: JobId,
    },
    /// A shard's replicas are replaced: a new one starts from nothing, one that is not named leaves the shard.
    SetReplicas {
        /// The shard.
        shard: ShardId,
        /// Who follows from now on.
        replicas: Vec<NodeId>,
    },
    /// A shard without slots and jobs ends; its members have no role then.
    RemoveShard {
        /// The shard.
        shard: ShardId,
    },
    /// The voters of the control log are replaced; who loses its vote learns on. Acts once: a duplicate is refused.
    SetVoters {
        /// Who votes from now on.
        voters: Vec<NodeId>,
    },
    /// An operator says whose a disputed job's slots are.
    Decide {
        /// The job.
        job: JobId,
        /// Its source or its target.
        owner: ShardId,
    },
}

/// What a source gathered before it asked for the vote on one job (R14). Void unless all of it still holds on apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The job.
    pub job: JobId,
    /// The attempt that this evidence belongs to.
    pub attempt: Attempt,
    /// The source shard's epoch.
    pub source_epoch: Epoch,
    /// The target shard's epoch.
    pub target_epoch: Epoch,
    /// Each slot of the job, frozen.
    pub slots: Vec<SlotEvidence>,
    /// Where the slots' clocks stood under the freeze, the latest of them, in milliseconds since 1970: the target's begin
    /// there or later (R17).
    pub clock_ms: u64,
    /// Who of the target has synced all of it, as (node, boot): the primary too.
    pub synced: Vec<(NodeId, u64)>,
    /// The version of the target's in-sync set that the barrier was passed under. Kept as a record: what counts is that
    /// the set at apply lies within `synced`.
    pub target_in_sync_version: u64,
}

/// A frozen slot's last state, as source and target agreed on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotEvidence {
    /// The slot.
    #[serde(with = "wire::slot")]
    pub slot: Slot,
    /// The term under which the source owned it.
    #[serde(with = "wire::term")]
    pub term: Term,
    /// Its last version.
    #[serde(with = "wire::version")]
    pub last: Version,
    /// The order-independent sum over its live records.
    pub digest: u64,
}

/// A list or a text in an entry is longer than the format allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} has {len} elements, at most {max} are allowed in one entry")]
pub struct TooLong {
    /// Which part of the entry.
    pub what: &'static str,
    /// Its length.
    pub len: usize,
    /// The limit.
    pub max: usize,
}

fn within(what: &'static str, len: usize, max: usize) -> Result<(), TooLong> {
    if len > max { Err(TooLong { what, len, max }) } else { Ok(()) }
}

impl EntryBody {
    /// Checks every length against its limit, so that what is applied is bounded whoever proposed it.
    pub fn check_sizes(&self) -> Result<(), TooLong> {
        match self {
            EntryBody::AddNode(_)
            | EntryBody::RemoveNode { .. }
            | EntryBody::Restarted { .. }
            | EntryBody::Failover { .. }
            | EntryBody::RemoveShard { .. }
            | EntryBody::Decide { .. }
            | EntryBody::Activated { .. } => Ok(()),
            EntryBody::SetVoters { voters } => within("the list of voters", voters.len(), VOTERS_MAX),
            EntryBody::CreateShard { replicas, .. } | EntryBody::SetReplicas { replicas, .. } => {
                within("the list of replicas", replicas.len(), MEMBERS_MAX)
            }
            EntryBody::AssignSlots { ranges, .. } | EntryBody::StartJob { ranges, .. } => {
                within("the list of slot ranges", ranges.len(), RANGES_MAX)
            }
            EntryBody::SetInSync { in_sync, .. } => within("the in-sync set", in_sync.len(), MEMBERS_MAX),
            EntryBody::CommitJobs(jobs) => {
                within("the list of jobs", jobs.len(), COMMITS_MAX)?;
                for evidence in jobs {
                    within("the list of slots", evidence.slots.len(), usize::from(SLOT_COUNT))?;
                    within("the synced set", evidence.synced.len(), MEMBERS_MAX)?;
                }
                // Valid jobs share no slot, so together they have no more than there are.
                let slots = jobs.iter().map(|evidence| evidence.slots.len()).sum();
                within("the list of all jobs' slots", slots, usize::from(SLOT_COUNT))
            }
            EntryBody::EndAttempt { why, .. } | EntryBody::AbortJob { why, .. } => {
                within("the reason", why.len(), REASON_BYTES_MAX)
            }
        }
    }

    /// The entry's kind as a word, for logs and messages.
    pub fn kind(&self) -> &'static str {
        match self {
            EntryBody::AddNode(_) => "AddNode",
            EntryBody::RemoveNode { .. } => "RemoveNode",
            EntryBody::CreateShard { .. } => "CreateShard",
            EntryBody::AssignSlots { .. } => "AssignSlots",
            EntryBody::SetInSync { .. } => "SetInSync",
            EntryBody::Restarted { .. } => "Restarted",
            EntryBody::Failover { .. } => "Failover",
            EntryBody::StartJob { .. } => "StartJob",
            EntryBody::CommitJobs(_) => "CommitJobs",
            EntryBody::EndAttempt { .. } => "EndAttempt",
            EntryBody::AbortJob { .. } => "AbortJob",
            EntryBody::Activated { .. } => "Activated",
            EntryBody::SetReplicas { .. } => "SetReplicas",
            EntryBody::RemoveShard { .. } => "RemoveShard",
            EntryBody::SetVoters { .. } => "SetVoters",
            EntryBody::Decide { .. } => "Decide",
        }
    }
}
