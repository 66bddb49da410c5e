//! What this node should be for a slot, derived from nothing but the applied map.
//!
//! One activation path for whatever brought the map to its state: entries one by one, a replay after a restart, later a
//! snapshot. The driver compares this with the engine's gates and closes the difference.
//!
//! Invariants
//! - [`Desired::Own`] needs this very incarnation as the shard's primary (R2), and no release outstanding (R16).
//! - A slot with a release outstanding is nobody's to serve: not the old owner's, and the new one awaits it.

use std::collections::BTreeSet;

use lockgate_engine::{Generation, Slot, Term};
use lockgate_runtime::mutation;

use crate::control::{ClusterMap, Incarnation, Job, JobId, JobState, NodeId, ShardId, SlotRange};

/// What this node should be for one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Desired {
    /// Nothing of this slot belongs here.
    Nothing,
    /// This node's shard has it, or claims it, but this incarnation may not serve it (yet).
    Wait,
    /// Serve it. Its clock begins at `clock_floor_ms` or later.
    Own { generation: Generation, term: Term, clock_floor_ms: u64 },
    /// Owned by this node's shard; serving begins when the release has been pulled.
    AwaitRelease { generation: Generation, job: JobId },
    /// This node is the target's primary of an active job.
    Import { generation: Generation, from: NodeId, source_generation: Generation },
    /// This node is a replica: of the owner, or of an active job's target.
    Follow { generation: Generation, from: NodeId, source_generation: Generation },
}

/// This node's place in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// In no shard.
    None,
    /// Primary under this incarnation.
    Primary(ShardId),
    /// Named as primary under an older incarnation: a Failover entry must come first.
    Stale(ShardId),
    /// Replica.
    Replica(ShardId),
}

impl Role {
    pub(crate) fn of(map: &ClusterMap, me: &Incarnation) -> Role {
        for (&id, shard) in &map.shards {
            let is_older = shard.primary.node == me.node && mutation!("restarted-primary-serves-at-once");
            if shard.primary == *me || is_older {
                return Role::Primary(id);
            }
            if shard.primary.node == me.node {
                return Role::Stale(id);
            }
            if shard.replicas.contains(&me.node) {
                return Role::Replica(id);
            }
        }
        Role::None
    }

    pub(crate) fn shard(self) -> Option<ShardId> {
        match self {
            Role::None => None,
            Role::Primary(id) | Role::Stale(id) | Role::Replica(id) => Some(id),
        }
    }
}

/// The map as one node sees it: computed once per change, asked per slot.
pub(crate) struct View<'a> {
    map: &'a ClusterMap,
    pub(crate) role: Role,
    /// Slots that active jobs bring to this node's shard, with the job, in ascending order: no two overlap.
    importing: Vec<(SlotRange, JobId)>,
    /// Slots that this node's shard and another one both have a claim to.
    disputed: Vec<SlotRange>,
}

impl<'a> View<'a> {
    pub(crate) fn new(map: &'a ClusterMap, me: &Incarnation) -> Self {
        let role = Role::of(map, me);
        let mine = map.active_jobs().filter(|job| Some(job.target) == role.shard());
        let mut importing: Vec<_> =
            mine.flat_map(|job| job.slots.iter().map(|&range| (range, job.id))).collect();
        importing.sort_unstable_by_key(|(range, _)| range.start);
        let claims = |job: &&Job| [Some(job.source), Some(job.target)].contains(&role.shard());
        let disputed = map.jobs.values().filter(|job| job.state == JobState::Disputed).filter(claims);
        let disputed = disputed.flat_map(|job| job.slots.iter().copied()).collect();
        Self { map, role, importing, disputed }
    }

    /// `released`: jobs whose release this node has pulled since it started.
    pub(crate) fn desired(&self, slot: Slot, released: &BTreeSet<JobId>) -> Desired {
        let owner = &self.map.slots[slot];
        let Some(mine) = self.role.shard() else { return Desired::Nothing };
        let primary = self.map.shards[&mine].primary.node;
        // Neither served nor dropped before an operator has decided.
        if self.disputed.iter().any(|range| range.contains(slot.number())) {
            return Desired::Wait;
        }
        if owner.shard == Some(mine) {
            let generation = owner.generation;
            return match (self.role, owner.pending.as_ref()) {
                (Role::Primary(_), Some(pending))
                    if !released.contains(&pending.job) && !mutation!("serve-before-the-release") =>
                {
                    Desired::AwaitRelease { generation, job: pending.job }
                }
                (Role::Primary(_), pending) => {
                    let clock_floor_ms = pending.map_or(0, |pending| pending.clock_ms);
                    Desired::Own { generation, term: owner.term, clock_floor_ms }
                }
                (Role::Replica(_), _) => {
                    Desired::Follow { generation, from: primary, source_generation: generation }
                }
                _ => Desired::Wait,
            };
        }
        let Some(job) = self.importing(slot).and_then(|job| self.map.jobs.get(&job)) else {
            return Desired::Nothing;
        };
        let generation = job.generation;
        match self.role {
            Role::Primary(_) => {
                let from = self.map.shards[&job.source].primary.node;
                Desired::Import { generation, from, source_generation: owner.generation }
            }
            Role::Replica(_) => Desired::Follow { generation, from: primary, source_generation: generation },
            _ => Desired::Wait,
        }
    }

    fn importing(&self, slot: Slot) -> Option<JobId> {
        let after = self.importing.partition_point(|(range, _)| range.start <= slot.number());
        let (range, job) = self.importing.get(after.checked_sub(1)?)?;
        range.contains(slot.number()).then_some(*job)
    }

    /// Whether data that this node holds of a slot may be dropped, given that it should have nothing of it: the commit
    /// is applied and the target serves (invariant 8), and the data is not of a time that this map has not reached.
    pub(crate) fn may_drop(&self, slot: Slot, held: Generation) -> bool {
        if mutation!("early-clean-up") {
            return true;
        }
        self.map.slots[slot].pending.is_none() && held.major() <= self.map.counter
    }
}
