//! Every rule under which an entry takes effect, in one place.
//!
//! Each check reads the map and the entry and nothing else, and changes nothing; [`super::apply`] calls it first and acts
//! only when it passed. An entry that does not pass is *refused* and leaves no trace. Evidence that does not pass is *void*,
//! which is an outcome: it consumes the attempt that it names (invariant 6), unless that attempt is not the current one.

use std::collections::BTreeSet;

use lockgate_engine::Slot;
use lockgate_runtime::mutation;

use super::entry::{Evidence, MEMBERS_MAX, Origin};
use super::map::{ClusterMap, Job, JobState, NodeInfo, PROPOSALS_KEPT, Proposals, Shard, VOTERS_MAX};
use super::types::{Attempt, Epoch, Incarnation, JobId, Name, NodeId, ShardId, SlotRange, slots_of};

/// Why an entry had no effect. The texts are for operators; where clients of the cluster protocol match on a text, it is
/// the one that they know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it means, its fields are named in it")]
pub enum Refusal {
    #[error("this proposal of {node} was seen before, or is too old to tell: ask again under a new number")]
    Duplicate { node: NodeId },
    #[error("node {node} is not in the cluster")]
    UnknownNode { node: NodeId },
    #[error("node {node} is in the cluster already")]
    NodeExists { node: NodeId },
    #[error("node number {node} was used before: give the node a new one")]
    NodeRetired { node: NodeId },
    #[error("node number 0 means nobody: numbers start at 1")]
    NodeZero,
    #[error("the name {name} is taken by node {node}")]
    NameTaken { name: Name, node: NodeId },
    #[error("node {node} must join as a learner: SetVoters makes it a voter")]
    VotersFixed { node: NodeId },
    #[error("node {node} is a voter and cannot be removed: take it from the voters first")]
    IsVoter { node: NodeId },
    #[error("node {node} serves shard {shard}")]
    NodeInShard { node: NodeId, shard: ShardId },
    #[error("shard {shard} does not exist")]
    UnknownShard { shard: ShardId },
    #[error("shard {shard} exists already")]
    ShardExists { shard: ShardId },
    #[error("shard {shard} would have {members} members, at most {MEMBERS_MAX} are possible")]
    TooManyMembers { shard: ShardId, members: usize },
    #[error("shard {shard} owns {slots} slots: move them to another shard first")]
    ShardOwnsSlots { shard: ShardId, slots: usize },
    #[error("shard {shard} takes part in job {job}, which has not ended")]
    ShardInJob { shard: ShardId, job: JobId },
    #[error("node {node} is named twice")]
    NamedTwice { node: NodeId },
    #[error("{named} is not what the node is known as: {known}")]
    NotKnownAs { named: Incarnation, known: Incarnation },
    #[error("node {node} is known by boot {known}, boot {named} does not come after it")]
    BootNotNewer { node: NodeId, known: u64, named: u64 },
    #[error(
        "node {node} came back with another data directory: a voter with an empty directory is a new voter. \
         Restore its directory, or add it under a new node number"
    )]
    VoterDirectoryChanged { node: NodeId },
    #[error(
        "node {node} came back with another data directory: it is a new node. Restore its directory, or remove it and \
         add it under a new node number"
    )]
    DirectoryChanged { node: NodeId },
    #[error("shard {shard} is at epoch {current}, not {expected}")]
    EpochChanged { shard: ShardId, expected: Epoch, current: Epoch },
    #[error("{primary} leads shard {shard} already")]
    AlreadyPrimary { shard: ShardId, primary: Incarnation },
    #[error("node {node} is not a member of shard {shard}")]
    NotMember { node: NodeId, shard: ShardId },
    #[error("{candidate} is not in sync with shard {shard}: it may lack acknowledged writes")]
    NotInSync { candidate: Incarnation, shard: ShardId },
    #[error("{candidate} may lack acknowledged writes of shard {shard}, which its in-sync replicas have")]
    MayLackWrites { candidate: Incarnation, shard: ShardId },
    #[error("the in-sync set of shard {shard} is at version {current}, not {expected}")]
    InSyncChanged { shard: ShardId, expected: u64, current: u64 },
    #[error("boot {named} of node {node} cannot be in sync: the node is known by boot {known}")]
    BootNotKnown { node: NodeId, named: u64, known: u64 },
    #[error("No slot ranges specified")]
    NoSlots,
    #[error("Invalid or out of range slot")]
    SlotOutOfRange,
    #[error("Start slot number {start} is greater than end slot number {end}.")]
    RangeReversed { start: u16, end: u16 },
    #[error("Slot range {range} overlaps with previous range {previous}.", range = Dashed(*range), previous = Dashed(*previous))]
    RangesOverlap { range: SlotRange, previous: SlotRange },
    #[error("Target node can not be this node.")]
    TargetIsSource,
    #[error("Slot {slot} has no node served.")]
    SlotNotServed { slot: Slot },
    #[error("Requested slots span multiple shards")]
    SlotsSpanShards,
    #[error("Slots are not served by this node.")]
    SlotsElsewhere { slot: Slot, owner: ShardId },
    #[error("Slot {slot} waits for its release by shard {from}: job {job} must be activated first.")]
    SlotPending { slot: Slot, from: ShardId, job: JobId },
    #[error("I am already migrating slot {slot}.")]
    SlotInJob { slot: u16, job: JobId },
    #[error("slot {slot} is owned by shard {owner}: only a migration moves it")]
    SlotOwned { slot: Slot, owner: ShardId },
    #[error("the name {name} is taken by job {job}")]
    JobNameTaken { name: Name, job: JobId },
    #[error("job {job} does not exist, or has ended long ago")]
    UnknownJob { job: JobId },
    #[error("job {job} is {state}, and it must be {needed} for this")]
    JobState { job: JobId, state: &'static str, needed: &'static str },
    #[error("job {job} is committed: its slots belong to the target and it can no longer be stopped")]
    TooLate { job: JobId },
    #[error("job {job} is at attempt {current}, attempt {named} was consumed")]
    AttemptConsumed { job: JobId, named: Attempt, current: Attempt },
    #[error("a vote must name at least one job")]
    NoJobs,
    #[error("a cluster has 1 to {VOTERS_MAX} voters, not {voters}")]
    VoterCount { voters: usize },
    #[error("shard {shard} has no claim to the slots of job {job}: only its source and its target have")]
    NoClaim { job: JobId, shard: ShardId },
}

/// Why the vote on one job moved nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it means, its fields are named in it")]
pub enum VoidReason {
    #[error("job {job} does not exist, or has ended long ago")]
    UnknownJob { job: JobId },
    #[error("job {job} is {state}")]
    NotActive { job: JobId, state: &'static str },
    #[error("attempt {named} of job {job} was consumed, the current one is {current}")]
    AttemptConsumed { job: JobId, named: Attempt, current: Attempt },
    #[error("shard {shard} is at epoch {current}, the evidence was gathered at {named}")]
    EpochChanged { shard: ShardId, named: Epoch, current: Epoch },
    #[error("the evidence does not name exactly the slots of job {job}")]
    OtherSlots { job: JobId },
    #[error("slot {slot} changed hands since the evidence was gathered")]
    SlotChanged { slot: Slot },
    #[error(
        "node {node} boot {boot} is in sync with target shard {shard}, but has not synced what the evidence names"
    )]
    NotSynced { shard: ShardId, node: NodeId, boot: u64 },
}

impl VoidReason {
    /// Whether the evidence was for an attempt that is not the job's current one: then there is nothing left to consume.
    pub fn is_stale(&self) -> bool {
        matches!(
            self,
            VoidReason::UnknownJob { .. } | VoidReason::NotActive { .. } | VoidReason::AttemptConsumed { .. }
        )
    }
}

/// A range with both ends, even when they are the same slot: the form of the texts that clients know.
struct Dashed(SlotRange);

impl std::fmt::Display for Dashed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0.start, self.0.end)
    }
}

pub(super) fn node(map: &ClusterMap, node: NodeId) -> Result<&NodeInfo, Refusal> {
    map.nodes.get(&node).ok_or(Refusal::UnknownNode { node })
}

pub(super) fn shard(map: &ClusterMap, shard: ShardId) -> Result<&Shard, Refusal> {
    map.shards.get(&shard).ok_or(Refusal::UnknownShard { shard })
}

fn no_shard(map: &ClusterMap, node: NodeId) -> Result<(), Refusal> {
    match map.shard_of_node(node) {
        Some((shard, _)) => Err(Refusal::NodeInShard { node, shard }),
        None => Ok(()),
    }
}

pub(super) fn add_node(map: &ClusterMap, info: &NodeInfo) -> Result<(), Refusal> {
    let node = info.incarnation.node;
    if node.0 == 0 {
        return Err(Refusal::NodeZero);
    }
    if map.nodes.contains_key(&node) {
        return Err(Refusal::NodeExists { node });
    }
    if map.retired.contains(&node) {
        return Err(Refusal::NodeRetired { node });
    }
    if let Some((other, _)) = map.node_by_name(info.name) {
        return Err(Refusal::NameTaken { name: info.name, node: other });
    }
    if info.voter { Err(Refusal::VotersFixed { node }) } else { Ok(()) }
}

pub(super) fn remove_node(map: &ClusterMap, id: NodeId) -> Result<(), Refusal> {
    // Slots, pending ones too, belong to shards, so a node without a shard has neither.
    no_shard(map, id)?;
    if node(map, id)?.voter { Err(Refusal::IsVoter { node: id }) } else { Ok(()) }
}

pub(super) fn set_voters(map: &ClusterMap, voters: &[NodeId]) -> Result<(), Refusal> {
    if voters.is_empty() || voters.len() > VOTERS_MAX {
        return Err(Refusal::VoterCount { voters: voters.len() });
    }
    let mut named = BTreeSet::new();
    for voter in voters {
        node(map, *voter)?;
        if !named.insert(*voter) {
            return Err(Refusal::NamedTwice { node: *voter });
        }
    }
    Ok(())
}

pub(super) fn create_shard(
    map: &ClusterMap,
    shard: ShardId,
    primary: Incarnation,
    replicas: &[NodeId],
) -> Result<(), Refusal> {
    if map.shards.contains_key(&shard) {
        return Err(Refusal::ShardExists { shard });
    }
    known_as(map, primary)?;
    no_shard(map, primary.node)?;
    members(map, shard, primary.node, replicas)
}

/// Whether these nodes can be the members of that shard: known, each once, and in no other one (R13).
fn members(map: &ClusterMap, shard: ShardId, primary: NodeId, replicas: &[NodeId]) -> Result<(), Refusal> {
    let mut members = BTreeSet::from([primary]);
    if replicas.len() + 1 > MEMBERS_MAX {
        return Err(Refusal::TooManyMembers { shard, members: replicas.len() + 1 });
    }
    for &member in replicas {
        node(map, member)?;
        match map.shard_of_node(member) {
            Some((other, _)) if other != shard && !mutation!("a-node-in-two-shards") => {
                return Err(Refusal::NodeInShard { node: member, shard: other });
            }
            _ if !members.insert(member) => return Err(Refusal::NamedTwice { node: member }),
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn set_replicas(map: &ClusterMap, id: ShardId, replicas: &[NodeId]) -> Result<(), Refusal> {
    members(map, id, shard(map, id)?.primary.node, replicas)
}

pub(super) fn remove_shard(map: &ClusterMap, id: ShardId) -> Result<(), Refusal> {
    shard(map, id)?;
    let slots = map.slots_of_shard(id).count();
    if slots > 0 {
        return Err(Refusal::ShardOwnsSlots { shard: id, slots });
    }
    // A committed job's slots are its target's, but its source has yet to let go.
    let unfinished = |job: &&Job| !job.state.is_finished() && (job.source == id || job.target == id);
    match map.jobs.values().find(unfinished) {
        Some(job) => Err(Refusal::ShardInJob { shard: id, job: job.id }),
        None => Ok(()),
    }
}

fn known_as(map: &ClusterMap, named: Incarnation) -> Result<(), Refusal> {
    let known = node(map, named.node)?.incarnation;
    if named == known { Ok(()) } else { Err(Refusal::NotKnownAs { named, known }) }
}

/// The ranges in ascending order, if they are ranges of slots and share none.
pub(super) fn slot_ranges(ranges: &[SlotRange]) -> Result<Vec<SlotRange>, Refusal> {
    if ranges.is_empty() {
        return Err(Refusal::NoSlots);
    }
    for range in ranges {
        if range.start > range.end {
            return Err(Refusal::RangeReversed { start: range.start, end: range.end });
        }
        if !range.is_valid() {
            return Err(Refusal::SlotOutOfRange);
        }
    }
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
        Some(pair) => Err(Refusal::RangesOverlap { range: pair[1], previous: pair[0] }),
        None => Ok(sorted),
    }
}

pub(super) fn assign_slots(
    map: &ClusterMap,
    to: ShardId,
    ranges: &[SlotRange],
) -> Result<Vec<SlotRange>, Refusal> {
    shard(map, to)?;
    let sorted = slot_ranges(ranges)?;
    // Unowned slots are in no job and not pending, so that needs no check of its own.
    for slot in slots_of(&sorted) {
        if let Some(owner) = map.owner(slot).shard {
            return Err(Refusal::SlotOwned { slot, owner });
        }
    }
    Ok(sorted)
}

pub(super) fn set_in_sync(
    map: &ClusterMap,
    id: ShardId,
    expected: u64,
    in_sync: &[(NodeId, u64)],
) -> Result<(), Refusal> {
    let shard = shard(map, id)?;
    if shard.in_sync_version != expected && !mutation!("in-sync-set-not-compared") {
        return Err(Refusal::InSyncChanged { shard: id, expected, current: shard.in_sync_version });
    }
    for &(member, named) in in_sync {
        let known = if member == shard.primary.node {
            shard.primary.boot
        } else if shard.replicas.contains(&member) {
            node(map, member)?.incarnation.boot
        } else {
            return Err(Refusal::NotMember { node: member, shard: id });
        };
        if named != known {
            return Err(Refusal::BootNotKnown { node: member, named, known });
        }
    }
    Ok(())
}

pub(super) fn restarted(map: &ClusterMap, incarnation: Incarnation) -> Result<(), Refusal> {
    let info = node(map, incarnation.node)?;
    let (node, known) = (incarnation.node, info.incarnation);
    if known.directory != incarnation.directory {
        // In-sync sets and evidence name (node, boot). That is one run of one directory only while a node keeps its own.
        return Err(match info.voter {
            true => Refusal::VoterDirectoryChanged { node },
            false => Refusal::DirectoryChanged { node },
        });
    }
    if incarnation.boot <= known.boot {
        return Err(Refusal::BootNotNewer { node, known: known.boot, named: incarnation.boot });
    }
    Ok(())
}

pub(super) fn failover(
    map: &ClusterMap,
    id: ShardId,
    expected: Epoch,
    candidate: Incarnation,
    holds_all: bool,
) -> Result<(), Refusal> {
    let shard = shard(map, id)?;
    if shard.epoch != expected {
        return Err(Refusal::EpochChanged { shard: id, expected, current: shard.epoch });
    }
    known_as(map, candidate)?;
    if candidate.node == shard.primary.node {
        if shard.is_led_by(candidate) {
            return Err(Refusal::AlreadyPrimary { shard: id, primary: candidate });
        }
        // What is known is never older than who leads, so another incarnation is a newer one, on the same directory. It
        // may have lost writes that only memory held, and that replicas still have.
        let alone = shard.in_sync.keys().all(|node| *node == candidate.node);
        return match alone || holds_all {
            true => Ok(()),
            false => Err(Refusal::MayLackWrites { candidate, shard: id }),
        };
    }
    if !shard.replicas.contains(&candidate.node) {
        return Err(Refusal::NotMember { node: candidate.node, shard: id });
    }
    let in_sync = shard.in_sync.get(&candidate.node) == Some(&candidate.boot);
    if !in_sync && !mutation!("promotes-who-is-not-in-sync") {
        return Err(Refusal::NotInSync { candidate, shard: id });
    }
    Ok(())
}

/// Whether a node's proposal with this number has not been seen.
pub(super) fn not_seen(map: &ClusterMap, origin: Origin) -> Result<(), Refusal> {
    node(map, origin.node)?;
    let duplicate = match map.proposals.get(&origin.node) {
        None => false,
        Some(proposals) if origin.boot != proposals.boot => origin.boot < proposals.boot,
        Some(Proposals { floor, seen, .. }) => origin.seq <= *floor || seen.contains(&origin.seq),
    };
    if duplicate { Err(Refusal::Duplicate { node: origin.node }) } else { Ok(()) }
}

const _: () = assert!(PROPOSALS_KEPT > 0, "not_seen tells nothing if nothing is remembered");

pub(super) fn start_job(
    map: &ClusterMap,
    source: ShardId,
    target: ShardId,
    ranges: &[SlotRange],
    name: Name,
) -> Result<Vec<SlotRange>, Refusal> {
    shard(map, source)?;
    shard(map, target)?;
    if source == target {
        return Err(Refusal::TargetIsSource);
    }
    let sorted = slot_ranges(ranges)?;
    served_by(map, source, &sorted)?;
    for slot in slots_of(&sorted) {
        if let Some(pending) = map.owner(slot).pending {
            return Err(Refusal::SlotPending { slot, from: pending.from, job: pending.job });
        }
    }
    for job in map.undecided_jobs() {
        let shared = job.slots.iter().flat_map(|theirs| sorted.iter().map(move |ours| (theirs, ours)));
        if let Some((theirs, ours)) = shared.into_iter().find(|(theirs, ours)| theirs.overlaps(**ours)) {
            return Err(Refusal::SlotInJob { slot: theirs.start.max(ours.start), job: job.id });
        }
    }
    match map.job_by_name(name) {
        Some(job) => Err(Refusal::JobNameTaken { name, job: job.id }),
        None => Ok(sorted),
    }
}

fn served_by(map: &ClusterMap, source: ShardId, ranges: &[SlotRange]) -> Result<(), Refusal> {
    let mut first: Option<(Slot, ShardId)> = None;
    for slot in slots_of(ranges) {
        let owner = map.owner(slot).shard.ok_or(Refusal::SlotNotServed { slot })?;
        match first {
            Some((_, other)) if other != owner => return Err(Refusal::SlotsSpanShards),
            Some(_) => {}
            None => first = Some((slot, owner)),
        }
    }
    match first {
        Some((slot, owner)) if owner != source => Err(Refusal::SlotsElsewhere { slot, owner }),
        _ => Ok(()),
    }
}

pub(super) fn job(map: &ClusterMap, job: JobId) -> Result<&Job, Refusal> {
    map.jobs.get(&job).ok_or(Refusal::UnknownJob { job })
}

pub(super) fn end_attempt(map: &ClusterMap, id: JobId, named: Attempt) -> Result<(), Refusal> {
    let job = active(map, id)?;
    if job.attempt != named {
        return Err(Refusal::AttemptConsumed { job: id, named, current: job.attempt });
    }
    Ok(())
}

/// The job, if nothing is decided on it yet.
pub(super) fn active(map: &ClusterMap, id: JobId) -> Result<&Job, Refusal> {
    let job = job(map, id)?;
    match &job.state {
        JobState::Active => Ok(job),
        JobState::Committed { .. } if mutation!("cancel-after-commit") => Ok(job),
        JobState::Committed { .. } => Err(Refusal::TooLate { job: id }),
        state => Err(Refusal::JobState { job: id, state: state.word(), needed: "active" }),
    }
}

pub(super) fn activated(map: &ClusterMap, id: JobId) -> Result<(), Refusal> {
    match &job(map, id)?.state {
        JobState::Committed { .. } => Ok(()),
        state => Err(Refusal::JobState { job: id, state: state.word(), needed: "committed" }),
    }
}

/// Whether an operator may give the slots of a disputed job to that shard.
pub(super) fn decide(map: &ClusterMap, id: JobId, owner: ShardId) -> Result<(), Refusal> {
    let job = job(map, id)?;
    match &job.state {
        JobState::Disputed if [job.source, job.target].contains(&owner) => Ok(()),
        JobState::Disputed => Err(Refusal::NoClaim { job: id, shard: owner }),
        state => Err(Refusal::JobState { job: id, state: state.word(), needed: "disputed" }),
    }
}

/// Whether the vote on one job may move its slots: everything that the evidence says still holds (R14).
pub(super) fn commit(map: &ClusterMap, evidence: &Evidence) -> Result<(), VoidReason> {
    let id = evidence.job;
    let job = map.jobs.get(&id).ok_or(VoidReason::UnknownJob { job: id })?;
    if job.state != JobState::Active && !mutation!("commit-after-cancel") {
        return Err(VoidReason::NotActive { job: id, state: job.state.word() });
    }
    if job.attempt != evidence.attempt {
        return Err(VoidReason::AttemptConsumed { job: id, named: evidence.attempt, current: job.attempt });
    }
    for (shard, named) in [(job.source, evidence.source_epoch), (job.target, evidence.target_epoch)] {
        let current = map.shards[&shard].epoch;
        if current != named {
            return Err(VoidReason::EpochChanged { shard, named, current });
        }
    }
    commit_slots(map, job, evidence)?;
    let synced: BTreeSet<(NodeId, u64)> = evidence.synced.iter().copied().collect();
    for (&node, &boot) in &map.shards[&job.target].in_sync {
        if !synced.contains(&(node, boot)) && !mutation!("barrier-without-the-replicas") {
            return Err(VoidReason::NotSynced { shard: job.target, node, boot });
        }
    }
    Ok(())
}

fn commit_slots(map: &ClusterMap, job: &Job, evidence: &Evidence) -> Result<(), VoidReason> {
    let named: BTreeSet<Slot> = evidence.slots.iter().map(|slot| slot.slot).collect();
    let exactly = named.len() == evidence.slots.len() && named.into_iter().eq(slots_of(&job.slots));
    if !exactly {
        return Err(VoidReason::OtherSlots { job: job.id });
    }
    for slot in &evidence.slots {
        let owner = map.owner(slot.slot);
        let held = owner.shard == Some(job.source) && owner.term == slot.term && owner.pending.is_none();
        // A version of a later term than the slot ever had cannot be its last one.
        if !held || slot.last.term > slot.term {
            return Err(VoidReason::SlotChanged { slot: slot.slot });
        }
    }
    Ok(())
}
