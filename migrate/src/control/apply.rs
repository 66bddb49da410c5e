//! What each entry does to the cluster map.
//!
//! Deterministic: the new map and the outcome follow from the map, the index and the entry. An entry that is refused leaves
//! no trace but the applied index; `StartJob` also leaves its number among the seen, so that a delayed duplicate of a
//! refused one does not start a job that nobody expects any more.
//!
//! The counter (R1) moves here only: one value for each applied AssignSlots, Failover, CommitJobs and Decide (the term of
//! the slots they give), for each StartJob (job, attempt and generation), and for each attempt that takes a consumed one's place.

use lockgate_engine::{Generation, Slot, Term};
use lockgate_runtime::mutation;

use super::entry::{Entry, EntryBody, Evidence, Origin};
use super::map::{ClusterMap, JOBS_KEPT, Job, JobState, NodeInfo, PROPOSALS_KEPT, Pending, Shard, SlotOwner};
use super::preconditions::{self as check, Refusal, VoidReason};
use super::types::{Attempt, Epoch, Incarnation, JobId, Name, NodeId, ShardId, SlotRange, slots_of};

/// What became of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect.
    Applied(Effect),
    /// What its proposer saw did not hold: nothing happened.
    Refused(Refusal),
}

impl Outcome {
    /// The effect, or why there was none.
    pub fn into_result(self) -> Result<Effect, Refusal> {
        match self {
            Outcome::Applied(effect) => Ok(effect),
            Outcome::Refused(refusal) => Err(refusal),
        }
    }
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The node is in the cluster.
    NodeAdded {
        /// The node: its raft core's owner adds it as a learner.
        node: NodeId,
    },
    /// The node is gone.
    NodeRemoved {
        /// The node: its raft core's owner removes the learner.
        node: NodeId,
    },
    /// The shard exists.
    ShardCreated {
        /// The shard.
        shard: ShardId,
    },
    /// The slots have an owner.
    SlotsAssigned {
        /// The owner.
        shard: ShardId,
        /// Their term.
        term: Term,
    },
    /// The in-sync set was replaced.
    InSyncSet {
        /// The shard.
        shard: ShardId,
        /// The new set's version.
        version: u64,
    },
    /// The node is known by its new boot.
    Restarted {
        /// What it is known as.
        incarnation: Incarnation,
    },
    /// The shard has a new reign.
    FailedOver {
        /// The shard.
        shard: ShardId,
        /// Its epoch.
        epoch: Epoch,
        /// The term of its slots.
        term: Term,
        /// Its active jobs, which go on under these attempts: what was under way under earlier ones is void.
        jobs: Vec<(JobId, Attempt)>,
    },
    /// The job runs.
    JobStarted {
        /// The job.
        job: JobId,
        /// Its first attempt.
        attempt: Attempt,
        /// What the target imports under.
        generation: Generation,
    },
    /// The vote was counted, job by job, in the entry's order.
    Voted(Vec<CommitOutcome>),
    /// The attempt is consumed.
    AttemptEnded {
        /// The job.
        job: JobId,
        /// The attempt that takes its place.
        next: Attempt,
    },
    /// The shard has these replicas.
    ReplicasSet {
        /// The shard.
        shard: ShardId,
    },
    /// The shard is gone.
    ShardRemoved {
        /// The shard.
        shard: ShardId,
    },
    /// The job ended without moving anything.
    JobAborted {
        /// The job.
        job: JobId,
    },
    /// The slots are no longer pending.
    JobActivated {
        /// The job.
        job: JobId,
    },
    /// A disputed job's slots have an owner.
    Decided {
        /// The job.
        job: JobId,
        /// The owner.
        owner: ShardId,
        /// Their term.
        term: Term,
    },
    /// The control log has other voters.
    VotersSet {
        /// All of them, in ascending order: the raft core's owner tells it.
        voters: Vec<NodeId>,
    },
}

/// What the vote decided on one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitOutcome {
    /// The job.
    pub job: JobId,
    /// The attempt that the evidence named.
    pub attempt: Attempt,
    /// The decision.
    pub result: CommitResult,
}

/// Whether the vote moved a job's slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitResult {
    /// They belong to the target, pending release.
    Committed {
        /// Their new term.
        term: Term,
    },
    /// The evidence did not hold. The source freezes, drains and passes the barrier again, under this attempt.
    Void {
        /// What did not hold.
        why: VoidReason,
        /// The attempt that takes the consumed one's place.
        next: Attempt,
    },
    /// The attempt was consumed before, by another entry: a late or repeated vote, which changes nothing.
    Stale {
        /// What the job is instead.
        why: VoidReason,
    },
}

impl ClusterMap {
    /// Applies the entry at `index`. Panics unless that is the next index: an entry is applied once and in order, or the
    /// node's map is not the cluster's.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Outcome {
        self.skip(index);
        match self.apply_body(entry) {
            Ok(effect) => Outcome::Applied(effect),
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    /// Passes over an index that holds no entry: what a new leader writes to begin its term. Panics as `apply` does.
    pub fn skip(&mut self, index: u64) {
        assert_eq!(index, self.applied + 1, "control entries are applied in order, each once");
        self.applied = index;
    }

    fn apply_body(&mut self, entry: &Entry) -> Result<Effect, Refusal> {
        match &entry.body {
            EntryBody::AddNode(info) => self.add_node(info),
            EntryBody::RemoveNode { node } => self.remove_node(*node),
            EntryBody::CreateShard { shard, primary, replicas } => {
                self.create_shard(*shard, *primary, replicas)
            }
            EntryBody::AssignSlots { shard, ranges } => self.assign_slots(*shard, ranges),
            EntryBody::SetInSync { shard, expected_version, in_sync } => {
                self.set_in_sync(*shard, *expected_version, in_sync)
            }
            EntryBody::Restarted { incarnation } => self.restarted(*incarnation),
            EntryBody::Failover { shard, expected_epoch, primary, holds_all } => {
                check::failover(self, *shard, *expected_epoch, *primary, *holds_all)?;
                Ok(self.fail_over(entry.at_ms, *shard, *primary))
            }
            EntryBody::StartJob { source, target, ranges, name } => {
                self.start_job(entry, *source, *target, ranges, *name)
            }
            EntryBody::CommitJobs(jobs) => self.commit_jobs(entry.at_ms, jobs),
            EntryBody::EndAttempt { job, attempt, why } => self.end_attempt(entry.at_ms, *job, *attempt, why),
            EntryBody::AbortJob { job, why, cancelled } => self.abort_job(entry.at_ms, *job, why, *cancelled),
            EntryBody::Activated { job } => self.activated(entry.at_ms, *job),
            EntryBody::SetReplicas { shard, replicas } => self.set_replicas(*shard, replicas),
            EntryBody::RemoveShard { shard } => {
                check::remove_shard(self, *shard)?;
                self.shards.remove(shard);
                Ok(Effect::ShardRemoved { shard: *shard })
            }
            EntryBody::SetVoters { voters } => self.set_voters(entry.origin, voters),
            EntryBody::Decide { job, owner } => self.decide(entry.at_ms, *job, *owner),
        }
    }

    fn take(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(super) fn touch(&mut self, shard: ShardId) -> &mut Shard {
        let index = self.applied;
        let shard = self.shards.get_mut(&shard).expect("the preconditions have seen the shard");
        shard.changed_index = index;
        shard
    }

    fn slot_mut(&mut self, slot: Slot) -> &mut SlotOwner {
        let owner = &mut self.slots[slot];
        owner.version += 1;
        owner
    }

    fn add_node(&mut self, info: &NodeInfo) -> Result<Effect, Refusal> {
        check::add_node(self, info)?;
        let node = info.incarnation.node;
        self.nodes.insert(node, info.clone());
        Ok(Effect::NodeAdded { node })
    }

    fn remove_node(&mut self, node: NodeId) -> Result<Effect, Refusal> {
        check::remove_node(self, node)?;
        self.nodes.remove(&node);
        self.proposals.remove(&node);
        self.retired.insert(node);
        Ok(Effect::NodeRemoved { node })
    }

    fn set_voters(&mut self, origin: Origin, voters: &[NodeId]) -> Result<Effect, Refusal> {
        check::not_seen(self, origin)?;
        check::set_voters(self, voters)?;
        self.remember(origin);
        for (id, node) in &mut self.nodes {
            node.voter = voters.contains(id);
        }
        Ok(Effect::VotersSet { voters: self.voters() })
    }

    fn create_shard(
        &mut self,
        id: ShardId,
        primary: Incarnation,
        replicas: &[NodeId],
    ) -> Result<Effect, Refusal> {
        check::create_shard(self, id, primary, replicas)?;
        let mut replicas = replicas.to_vec();
        replicas.sort_unstable();
        let members = std::iter::once(&primary.node).chain(&replicas);
        let in_sync = members.map(|node| (*node, self.nodes[node].incarnation.boot)).collect();
        let shard = Shard {
            epoch: Epoch(1),
            primary,
            replicas,
            in_sync,
            in_sync_version: 1,
            changed_index: self.applied,
        };
        self.shards.insert(id, shard);
        Ok(Effect::ShardCreated { shard: id })
    }

    fn assign_slots(&mut self, shard: ShardId, ranges: &[SlotRange]) -> Result<Effect, Refusal> {
        let ranges = check::assign_slots(self, shard, ranges)?;
        let value = self.take();
        for slot in slots_of(&ranges) {
            let owner = self.slot_mut(slot);
            owner.shard = Some(shard);
            owner.term = Term(value);
            owner.generation = Generation::new(value);
        }
        self.touch(shard);
        Ok(Effect::SlotsAssigned { shard, term: Term(value) })
    }

    fn set_in_sync(
        &mut self,
        id: ShardId,
        expected: u64,
        in_sync: &[(NodeId, u64)],
    ) -> Result<Effect, Refusal> {
        check::set_in_sync(self, id, expected, in_sync)?;
        let shard = self.touch(id);
        shard.in_sync = in_sync.iter().copied().collect();
        shard.in_sync.insert(shard.primary.node, shard.primary.boot);
        shard.in_sync_version += 1;
        Ok(Effect::InSyncSet { shard: id, version: shard.in_sync_version })
    }

    fn set_replicas(&mut self, id: ShardId, replicas: &[NodeId]) -> Result<Effect, Refusal> {
        check::set_replicas(self, id, replicas)?;
        let shard = self.touch(id);
        shard.replicas = replicas.to_vec();
        shard.replicas.sort_unstable();
        // Who comes new has shown nothing yet, and who left counts no more.
        let before = shard.in_sync.len();
        let Shard { primary, replicas, in_sync, .. } = shard;
        in_sync.retain(|node, _| *node == primary.node || replicas.contains(node));
        if in_sync.len() != before {
            shard.in_sync_version += 1;
        }
        Ok(Effect::ReplicasSet { shard: id })
    }

    fn restarted(&mut self, incarnation: Incarnation) -> Result<Effect, Refusal> {
        check::restarted(self, incarnation)?;
        let node = incarnation.node;
        self.nodes.get_mut(&node).expect("the preconditions have seen the node").incarnation = incarnation;
        let Some((id, _)) = self.shard_of_node(node) else {
            return Ok(Effect::Restarted { incarnation });
        };
        // The old boot's place is void. A primary keeps it on paper until a failover names its new boot: until then its
        // shard has nobody who serves.
        let shard = self.touch(id);
        if shard.primary.node != node && shard.in_sync.remove(&node).is_some() {
            shard.in_sync_version += 1;
        }
        Ok(Effect::Restarted { incarnation })
    }

    fn fail_over(&mut self, at_ms: u64, id: ShardId, primary: Incarnation) -> Effect {
        let term = Term(self.take());
        let shard = self.touch(id);
        let before = shard.primary;
        shard.epoch = Epoch(shard.epoch.0 + 1);
        shard.primary = primary;
        if before.node != primary.node {
            shard.replicas.retain(|node| *node != primary.node);
            shard.replicas.push(before.node);
            shard.replicas.sort_unstable();
            shard.in_sync.remove(&before.node);
        }
        shard.in_sync.insert(primary.node, primary.boot);
        shard.in_sync_version += 1;
        let epoch = shard.epoch;
        self.slots.change(
            |owner| owner.shard == Some(id),
            |owner| {
                if !mutation!("failover-keeps-the-term") {
                    owner.term = term;
                }
                owner.version += 1;
                if mutation!("lost-ownership-on-target-bump") && owner.pending.is_some() {
                    (owner.shard, owner.pending) = (None, None);
                }
            },
        );
        if mutation!("flip-back-on-source-bump") {
            self.slots.change(
                |owner| owner.pending.is_some_and(|pending| pending.from == id),
                |owner| {
                    (owner.shard, owner.pending, owner.term) = (Some(id), None, term);
                    owner.version += 1;
                },
            );
        }
        let concerns = |job: &&Job| job.source == id || job.target == id;
        let concerned: Vec<JobId> = self.active_jobs().filter(concerns).map(|job| job.id).collect();
        let attempts = concerned.into_iter().map(|job| {
            let side = if self.jobs[&job].source == id { "source" } else { "target" };
            let why = format!("{side} shard {id} failed over to {primary}");
            (job, self.consume_attempt(job, at_ms, why))
        });
        let jobs = attempts.collect();
        Effect::FailedOver { shard: id, epoch, term, jobs }
    }

    pub(super) fn remember(&mut self, origin: Origin) {
        let proposals = self.proposals.entry(origin.node).or_default();
        if proposals.boot != origin.boot {
            *proposals = Default::default();
            proposals.boot = origin.boot;
        }
        proposals.seen.insert(origin.seq);
        while proposals.seen.len() > PROPOSALS_KEPT {
            proposals.floor = proposals.seen.pop_first().expect("it is longer than the limit");
        }
    }

    fn start_job(
        &mut self,
        entry: &Entry,
        source: ShardId,
        target: ShardId,
        ranges: &[SlotRange],
        name: Name,
    ) -> Result<Effect, Refusal> {
        check::not_seen(self, entry.origin)?;
        self.remember(entry.origin);
        let slots = check::start_job(self, source, target, ranges, name)?;
        let value = self.take();
        let (id, attempt, generation) = (JobId(value), Attempt(value), Generation::new(value));
        let job = Job {
            id,
            name,
            source,
            target,
            slots,
            attempt,
            generation,
            state: JobState::Active,
            last_attempt: String::new(),
            created_ms: entry.at_ms,
            updated_ms: entry.at_ms,
            changed_index: self.applied,
            origin: entry.origin,
        };
        self.jobs.insert(id, job);
        Ok(Effect::JobStarted { job: id, attempt, generation })
    }

    fn commit_jobs(&mut self, at_ms: u64, jobs: &[Evidence]) -> Result<Effect, Refusal> {
        if jobs.is_empty() {
            return Err(Refusal::NoJobs);
        }
        // One vote, one term for all that it gives. The first job that passes takes it.
        let mut term = None;
        let mut outcomes = Vec::with_capacity(jobs.len());
        for evidence in jobs {
            let result = match check::commit(self, evidence) {
                Ok(()) => {
                    let term = *term.get_or_insert_with(|| Term(self.take()));
                    self.commit_job(at_ms, evidence, term);
                    CommitResult::Committed { term }
                }
                Err(why) if why.is_stale() => CommitResult::Stale { why },
                Err(why) => {
                    let next = self.consume_attempt(evidence.job, at_ms, why.to_string());
                    CommitResult::Void { why, next }
                }
            };
            outcomes.push(CommitOutcome { job: evidence.job, attempt: evidence.attempt, result });
        }
        Ok(Effect::Voted(outcomes))
    }

    fn commit_job(&mut self, at_ms: u64, evidence: &Evidence, term: Term) {
        let Evidence { job: id, clock_ms, .. } = *evidence;
        let state = JobState::Committed { index: self.applied, term };
        let job = self.change_job(id, at_ms);
        job.state = state;
        let (source, target, generation) = (job.source, job.target, job.generation);
        let slots = job.slots.clone();
        let from_primary = self.touch(source).primary;
        self.touch(target).in_sync_version += 1;
        for slot in slots_of(&slots) {
            let owner = self.slot_mut(slot);
            owner.shard = Some(target);
            owner.term = term;
            owner.generation = generation;
            owner.pending = Some(Pending { job: id, from: source, from_primary, clock_ms });
        }
    }

    pub(super) fn consume_attempt(&mut self, id: JobId, at_ms: u64, why: String) -> Attempt {
        let next = Attempt(self.take());
        let job = self.change_job(id, at_ms);
        job.attempt = next;
        job.last_attempt = why;
        next
    }

    pub(super) fn change_job(&mut self, id: JobId, at_ms: u64) -> &mut Job {
        let index = self.applied;
        let job = self.jobs.get_mut(&id).expect("the preconditions have seen the job");
        job.updated_ms = at_ms;
        job.changed_index = index;
        job
    }

    fn finish_job(&mut self, id: JobId, at_ms: u64, state: JobState) {
        self.change_job(id, at_ms).state = state;
        let finished = self.jobs.values().filter(|job| job.state.is_finished());
        if finished.clone().count() > JOBS_KEPT {
            let oldest = finished.min_by_key(|job| (job.changed_index, job.id)).map(|job| job.id);
            self.jobs.remove(&oldest.expect("there are more than the limit"));
        }
    }

    fn end_attempt(
        &mut self,
        at_ms: u64,
        job: JobId,
        attempt: Attempt,
        why: &str,
    ) -> Result<Effect, Refusal> {
        check::end_attempt(self, job, attempt)?;
        let next = self.consume_attempt(job, at_ms, why.to_owned());
        Ok(Effect::AttemptEnded { job, next })
    }

    fn abort_job(&mut self, at_ms: u64, job: JobId, why: &str, cancelled: bool) -> Result<Effect, Refusal> {
        check::active(self, job)?;
        let why = why.to_owned();
        let state = if cancelled { JobState::Cancelled { why } } else { JobState::Failed { why } };
        self.finish_job(job, at_ms, state);
        Ok(Effect::JobAborted { job })
    }

    fn decide(&mut self, at_ms: u64, id: JobId, owner: ShardId) -> Result<Effect, Refusal> {
        check::decide(self, id, owner)?;
        let term = Term(self.take());
        let job = &self.jobs[&id];
        let (source, target, generation, slots) = (job.source, job.target, job.generation, job.slots.clone());
        for slot in slots_of(&slots) {
            let given = self.slot_mut(slot);
            given.term = term;
            if owner == target {
                (given.shard, given.generation) = (Some(target), generation);
            }
        }
        self.touch(source);
        self.touch(target).in_sync_version += 1;
        let state = if owner == target {
            JobState::Activated { index: self.applied }
        } else {
            JobState::Failed { why: "an operator decided that its slots have not moved".to_owned() }
        };
        self.finish_job(id, at_ms, state);
        Ok(Effect::Decided { job: id, owner, term })
    }

    fn activated(&mut self, at_ms: u64, id: JobId) -> Result<Effect, Refusal> {
        check::activated(self, id)?;
        let job = &self.jobs[&id];
        let (source, target, slots) = (job.source, job.target, job.slots.clone());
        for slot in slots_of(&slots) {
            self.slot_mut(slot).pending = None;
        }
        self.touch(source);
        self.touch(target);
        self.finish_job(id, at_ms, JobState::Activated { index: self.applied });
        Ok(Effect::JobActivated { job: id })
    }
}
