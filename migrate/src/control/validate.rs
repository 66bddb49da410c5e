//! The cluster map's invariants as code: what [`super::map`] promises at its top, checked in full.
//!
//! It is run on every map that is decoded, after genesis, and in tests after every entry. It costs about as much as
//! walking all slots once that have an owner.

use std::collections::{BTreeMap, BTreeSet};

use lockgate_engine::Slot;

use super::map::{ClusterMap, JOBS_KEPT, Job, JobState, PROPOSALS_KEPT, Shard, VOTERS_MAX};
use super::types::{JobId, NodeId, ShardId, slots_of};

/// A cluster map that breaks an invariant. It must not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster map is not valid: {what}")]
pub struct Invalid {
    /// Which invariant, and what breaks it.
    pub what: String,
}

macro_rules! hold {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err(Invalid { what: format!($($what)+) });
        }
    };
}

impl ClusterMap {
    /// Checks every invariant of the map.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.validate_nodes()?;
        let mut serving = BTreeSet::new();
        for (id, shard) in &self.shards {
            self.validate_shard(*id, shard, &mut serving)?;
        }
        let mut moved_by = BTreeMap::new();
        let mut attempts = BTreeSet::new();
        for (id, job) in &self.jobs {
            self.validate_job(*id, job, &mut moved_by)?;
            hold!(attempts.insert(job.attempt), "job {id} shares attempt {} with another job", job.attempt);
        }
        let finished = self.jobs.values().filter(|job| job.state.is_finished()).count();
        hold!(finished <= JOBS_KEPT, "{finished} finished jobs are kept");
        self.validate_slots(&moved_by)
    }

    fn validate_nodes(&self) -> Result<(), Invalid> {
        let mut names = BTreeSet::new();
        for (id, node) in &self.nodes {
            hold!(
                id.0 != 0 && *id == node.incarnation.node,
                "node {id} is filed as node {}",
                node.incarnation.node
            );
            hold!(!self.retired.contains(id), "node {id} is retired and present");
            hold!(names.insert(node.name), "node {id} shares its name with another node");
        }
        let voters = self.voters().len();
        hold!((1..=VOTERS_MAX).contains(&voters), "a cluster has 1 to {VOTERS_MAX} voters, not {voters}");
        for (id, proposals) in &self.proposals {
            hold!(self.nodes.contains_key(id), "proposals of node {id}, which does not exist, are kept");
            hold!(
                proposals.seen.len() <= PROPOSALS_KEPT,
                "{} proposals of node {id} are kept",
                proposals.seen.len()
            );
            let above = proposals.seen.iter().all(|seq| *seq > proposals.floor);
            hold!(above, "proposals of node {id} are kept below their floor");
        }
        Ok(())
    }

    fn validate_shard(
        &self,
        id: ShardId,
        shard: &Shard,
        serving: &mut BTreeSet<NodeId>,
    ) -> Result<(), Invalid> {
        hold!(shard.replicas.is_sorted(), "shard {id} has unordered replicas");
        for member in shard.members() {
            hold!(self.nodes.contains_key(&member), "shard {id} has node {member}, which does not exist");
            hold!(serving.insert(member), "shard {id} has node {member}, which serves a shard already");
        }
        let primary = self.nodes[&shard.primary.node].incarnation;
        let known = shard.primary.directory == primary.directory && shard.primary.boot <= primary.boot;
        hold!(known, "shard {id} is led by {}, but the node is known as {primary}", shard.primary);
        let leads_in_sync = shard.in_sync.get(&shard.primary.node) == Some(&shard.primary.boot);
        hold!(leads_in_sync, "shard {id} has a primary that is not in its in-sync set");
        for (node, boot) in shard.in_sync.iter().filter(|(node, _)| **node != shard.primary.node) {
            hold!(
                shard.replicas.contains(node),
                "shard {id} has node {node} in sync, which is not a replica"
            );
            hold!(self.known_boot(*node) == Some(*boot), "shard {id} has an old boot of node {node} in sync");
        }
        hold!(shard.changed_index <= self.applied, "shard {id} was changed by an entry that is not applied");
        Ok(())
    }

    fn validate_job(
        &self,
        id: JobId,
        job: &Job,
        moved_by: &mut BTreeMap<Slot, JobId>,
    ) -> Result<(), Invalid> {
        hold!(id == job.id && id.0 <= job.attempt.0, "job {id} is filed as job {}", job.id);
        hold!(job.attempt.0 <= self.counter, "job {id} has an attempt that was not given out");
        hold!(job.generation.major() <= self.counter, "job {id} has a generation that was not given out");
        hold!(job.changed_index <= self.applied, "job {id} was changed by an entry that is not applied");
        let valid = !job.slots.is_empty() && job.slots.iter().all(|range| range.is_valid());
        hold!(valid && job.slots.is_sorted_by(|a, b| a.end < b.start), "job {id} has unordered slot ranges");
        hold!(job.source != job.target, "job {id} moves slots to where they are");
        if job.state.is_finished() {
            return Ok(());
        }
        let shards = self.shards.contains_key(&job.source) && self.shards.contains_key(&job.target);
        hold!(shards, "job {id} moves slots between shards that do not exist");
        for slot in slots_of(&job.slots) {
            hold!(moved_by.insert(slot, id).is_none(), "slot {slot} is moved by job {id} and by another");
        }
        Ok(())
    }

    /// Runs of slots that nothing moves and whose owners are the same ones hold or break the same: one stands for all.
    fn validate_slots(&self, moved_by: &BTreeMap<Slot, JobId>) -> Result<(), Invalid> {
        let mut moved: Vec<(Slot, JobId)> = moved_by.iter().map(|(slot, job)| (*slot, *job)).rev().collect();
        let mut was_still = false;
        for (run, is_repeated) in self.slots.runs() {
            let is_still = moved.last().is_none_or(|(slot, _)| slot.number() >= run.end);
            if !(is_repeated && is_still && was_still) {
                for slot in run.filter_map(Slot::new) {
                    let by = moved.pop_if(|(next, _)| *next == slot);
                    self.validate_slot(slot, by.map(|(_, job)| job))?;
                }
            }
            was_still = is_still;
        }
        Ok(())
    }

    fn validate_slot(&self, slot: Slot, moved_by: Option<JobId>) -> Result<(), Invalid> {
        let owner = self.owner(slot);
        hold!(owner.term.0 <= self.counter, "slot {slot} has a term that was not given out");
        let given = owner.generation.major() <= self.counter && owner.generation.minor() == 0;
        hold!(given, "slot {slot} has a generation that was not given out");
        match owner.shard {
            Some(shard) => {
                hold!(self.shards.contains_key(&shard), "slot {slot} belongs to no shard that exists")
            }
            None => hold!(
                owner.version == 0 && moved_by.is_none(),
                "slot {slot} is owned by nobody but has a history"
            ),
        }
        let committed = match moved_by.map(|job| &self.jobs[&job]) {
            Some(job) if matches!(job.state, JobState::Active | JobState::Disputed) => {
                hold!(
                    owner.shard == Some(job.source),
                    "slot {slot} of active job {} is not its source's",
                    job.id
                );
                None
            }
            other => other,
        };
        hold!(
            committed.map(|job| (job.id, job.source))
                == owner.pending.map(|pending| (pending.job, pending.from)),
            "slot {slot} is pending otherwise than its committed job says"
        );
        if let Some(job) = committed {
            hold!(
                owner.shard == Some(job.target),
                "slot {slot} of committed job {} is not its target's",
                job.id
            );
            hold!(
                owner.generation == job.generation,
                "slot {slot} does not have the generation of job {}",
                job.id
            );
        }
        Ok(())
    }
}
