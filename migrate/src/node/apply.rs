//! Applying the control log: the map changes, and this node's gates, streams and jobs follow.
//!
//! The effect on this node is derived from the map alone ([`super::desired`]), slot by slot where an entry touched it, so
//! that a replay, a restart or a snapshot leads to the same place as the entries did.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockgate_engine::{Gate, Generation, Slot, SlotError, SlotStatus, Term};
use lockgate_runtime::mutation;
use lockgate_runtime::sync::atomic::Ordering;
use lockgate_runtime::sync::{Arc, Mutex};

use super::desired::{Desired, Role, View};
use super::driver::Driver;
use super::messages::ControlMessage;
use super::office::reign_of;
use super::receivers::Receivers;
use super::shared::Shared;
use crate::control::{
    ClusterMap, CodecError, CommitOutcome, CommitResult, Effect, EntryBody, Incarnation, JobId, JobState,
    MapSnapshot, MembersChange, RaftEntry, decode_entry, decode_map, slots_of,
};

/// Slots whose data is dropped before the core does something else.
const DROPS_PER_STEP: usize = 32;

/// Which slots entries have touched since the last reconciliation.
#[derive(Default)]
struct Touched {
    all: bool,
    slots: BTreeSet<Slot>,
    jobs: BTreeSet<JobId>,
}

impl Touched {
    fn note(&mut self, body: &EntryBody, map: &ClusterMap) {
        match body {
            EntryBody::AddNode(_)
            | EntryBody::RemoveNode { .. }
            | EntryBody::SetInSync { .. }
            | EntryBody::SetVoters { .. } => {}
            // Rare, and they change what many slots rest on.
            EntryBody::CreateShard { .. }
            | EntryBody::RemoveShard { .. }
            | EntryBody::SetReplicas { .. }
            | EntryBody::Restarted { .. }
            | EntryBody::Failover { .. } => self.all = true,
            EntryBody::AssignSlots { ranges, .. } | EntryBody::StartJob { ranges, .. } => {
                self.slots.extend(slots_of(ranges))
            }
            EntryBody::CommitJobs(jobs) => {
                jobs.iter().for_each(|evidence| self.note_job(evidence.job, map));
            }
            EntryBody::EndAttempt { job, .. }
            | EntryBody::AbortJob { job, .. }
            | EntryBody::Decide { job, .. }
            | EntryBody::Activated { job } => self.note_job(*job, map),
        }
    }

    fn note_job(&mut self, id: JobId, map: &ClusterMap) {
        self.jobs.insert(id);
        self.slots.extend(map.jobs.get(&id).iter().flat_map(|job| slots_of(&job.slots)));
    }

    fn into_slots(self) -> Vec<Slot> {
        if self.all { Slot::all().collect() } else { self.slots.into_iter().collect() }
    }
}

impl Driver {
    /// Applies committed entries in order, then brings this node in line with the new map, once.
    pub(super) fn apply_committed(&mut self, committed: Vec<RaftEntry>) {
        if committed.is_empty() {
            return;
        }
        // To free the map before takes about as long as to copy it: that comes last.
        let _before = self.shared.map.load_full();
        let mut touched = Touched::default();
        for entry in committed {
            self.apply_entry(entry, &mut touched);
        }
        let committed: Vec<JobId> = self.committed_among(&touched.jobs);
        for &job in &committed {
            self.shared.job_times.note(job, |times| &mut times.committed_ns);
        }
        self.note_commits(&committed);
        let slots = touched.into_slots();
        self.follow_map(&slots);
        let mine = self.my_primary_shard();
        for job in committed {
            if self.map.jobs.get(&job).is_some_and(|job| Some(job.source) == mine) {
                self.give_release(job);
            }
        }
    }

    /// Takes a snapshot from the leader as this node's map, by the same way as entries.
    pub(super) fn install(&mut self, snapshot: &MapSnapshot) -> Result<(), CodecError> {
        self.map = decode_map(&snapshot.map)?;
        let jobs = self.map.jobs.keys().copied().collect();
        let committed = self.committed_among(&jobs);
        self.note_commits(&committed);
        self.follow_map(&Slot::all().collect::<Vec<_>>());
        Ok(())
    }

    fn apply_entry(&mut self, entry: RaftEntry, touched: &mut Touched) {
        let RaftEntry { index, data, change, .. } = entry;
        let mut effect = None;
        if data.is_empty() {
            self.map.skip(index);
        } else {
            match decode_entry(&data) {
                Ok(entry) => {
                    // What an entry ends may be forgotten by the next one of the batch.
                    touched.note(&entry.body, &self.map);
                    let outcome = self.map.apply(index, &entry);
                    debug_assert!(self.map.validate().is_ok(), "after {index}: {:?}", self.map.validate());
                    tracing::debug!(index, kind = entry.body.kind(), ?outcome, "applied");
                    self.proposals.applied(&entry.origin, &outcome);
                    effect = outcome.into_result().ok();
                }
                // The same bytes are refused by every node alike: the maps stay equal.
                Err(error) => {
                    tracing::error!(index, %error, "an entry of the control log cannot be read; it has no effect");
                    self.map.skip(index);
                }
            }
        }
        match effect {
            Some(Effect::Voted(outcomes)) => {
                self.reconciler.given.extend(given_away(&self.map, &self.me, &outcomes));
            }
            Some(Effect::JobActivated { job }) => {
                self.shared.job_times.note(job, |times| &mut times.activated_ns);
            }
            Some(Effect::NodeAdded { node }) => self.raft.add_learner(node),
            Some(Effect::NodeRemoved { node }) => self.raft.remove_learner(node),
            Some(Effect::VotersSet { voters }) => return self.raft.finish_change(index, Some(&voters)),
            _ => {}
        }
        if change == MembersChange::Voters {
            self.raft.finish_change(index, None);
        }
    }

    /// A replica is linked to its primary whether there is anything to follow or not.
    pub(super) fn stay_linked(&mut self) {
        if let Role::Replica(shard) = Role::of(&self.map, &self.me) {
            self.receivers.stay_linked(self.map.shards[&shard].primary.node);
        }
    }

    /// Brings this node in line with its map where `slots` are concerned.
    pub(super) fn follow_map(&mut self, slots: &[Slot]) {
        let (mine, now_ns) = (self.my_primary_shard(), lockgate_runtime::now_ns());
        self.reign_follows_map();
        self.source.adopt(&self.shared, &self.map, mine, now_ns);
        self.shared.map.store(Some(Arc::new(self.map.clone())));
        self.shared.job_times.retain(&self.map);
        let shard = mine.map(|id| &self.map.shards[&id]);
        let members = shard.map(|shard| shard.in_sync.clone()).unwrap_or_default();
        self.shared.in_sync.store(members.len(), Ordering::Relaxed);
        self.shared.acks.set_members(members.into_iter().filter(|(node, _)| *node != self.me.node).collect());

        self.stay_linked();
        self.target.map_changed(&self.map);
        self.reconciler.reconcile(&self.map, slots, self.target.released(), &mut self.receivers);
        let errands = self.source.map_changed(&self.shared, &self.map, mine, now_ns);
        self.run_errands(errands);
        self.announce_activations();
        self.look_soon(mine, now_ns);
        self.begin_early_barriers();
        self.take_freshness();
        self.shared.map_changed.notify_all();
        self.shared.acks.wake();
    }

    /// Tries again with slots that could not follow the map.
    pub(super) fn reconcile_unsettled(&mut self) {
        let slots: Vec<Slot> = std::mem::take(&mut self.reconciler.unsettled).into_iter().collect();
        if !slots.is_empty() {
            self.reconciler.reconcile(&self.map, &slots, self.target.released(), &mut self.receivers);
            self.announce_activations();
        }
    }

    /// A job's slots may be served here, if this node's map says the same: something other than an entry changed what it
    /// should be.
    pub(super) fn on_release(&mut self, id: JobId) {
        self.shared.job_times.note(id, |times| &mut times.released_ns);
        self.target.release(id);
        let Some(job) = self.map.jobs.get(&id) else { return };
        let slots: Vec<Slot> = slots_of(&job.slots).collect();
        self.reconciler.reconcile(&self.map, &slots, self.target.released(), &mut self.receivers);
        self.announce_activations();
    }

    fn committed_among(&self, jobs: &BTreeSet<JobId>) -> Vec<JobId> {
        let is_committed = |id: &&JobId| {
            self.map.jobs.get(id).is_some_and(|job| matches!(job.state, JobState::Committed { .. }))
        };
        jobs.iter().filter(is_committed).copied().collect()
    }

    /// The gates are closed by now: the target need not ask.
    fn give_release(&mut self, id: JobId) {
        let target = self.map.jobs.get(&id).and_then(|job| self.map.shards.get(&job.target));
        if let Some(node) = target.map(|shard| shard.primary.node)
            && let Some(word) = self.has_let_go(id)
        {
            self.tell(node, word);
        }
    }

    /// Tells the control log of the jobs whose slots this node serves now.
    pub(super) fn announce_activations(&mut self) {
        if !self.shared.holds_lease() {
            return;
        }
        let mine = self.my_primary_shard();
        let engine = &self.shared.engine;
        let is_served = |slot: Slot| matches!(engine.gate(slot), Gate::Owned | Gate::Frozen);
        let serving: Vec<JobId> = self
            .map
            .jobs
            .values()
            .filter(|job| Some(job.target) == mine && matches!(job.state, JobState::Committed { .. }))
            .filter(|job| self.target.released().contains(&job.id))
            .filter(|job| slots_of(&job.slots).all(is_served))
            .map(|job| job.id)
            .collect();
        for job in serving {
            if !self.proposals.any(|body| *body == EntryBody::Activated { job }) {
                self.shared.job_times.note(job, |times| &mut times.serving_ns);
                self.propose(EntryBody::Activated { job }, None);
                let source = self.map.jobs.get(&job).and_then(|job| self.map.shards.get(&job.source));
                if let Some(node) = source.map(|shard| shard.primary.node) {
                    self.tell(node, ControlMessage::Serving { job });
                }
            }
        }
    }
}

/// The slots that `me` gave away by votes of its own, with the terms that they have now, and in which reign it was. `map` is as
/// the entry of the votes left it, not as a whole batch did: who leads the source by then may be another one.
fn given_away(map: &ClusterMap, me: &Incarnation, outcomes: &[CommitOutcome]) -> Vec<(Slot, (Term, u64))> {
    let of_one = |outcome: &CommitOutcome| {
        let CommitResult::Committed { term } = outcome.result else { return None };
        let job = map.jobs.get(&outcome.job)?;
        let source = map.shards.get(&job.source)?;
        let is_mine = source.primary == *me || mutation!("commit-of-another-reign-covers");
        let reign = reign_of(job.source, source.epoch);
        is_mine.then(|| slots_of(&job.slots).map(move |slot| (slot, (term, reign))))
    };
    outcomes.iter().filter_map(of_one).flatten().collect()
}

/// Closes the difference between what the map wants of this node and what the engine's gates say.
pub(crate) struct Reconciler {
    shared: Arc<Shared>,
    me: Incarnation,
    janitor: Arc<Janitor>,
    /// Slots that could not follow the map yet (a log that was behind, say): tried again with the next tick.
    unsettled: BTreeSet<Slot>,
    /// Slots that votes of this node gave away, until their gates are closed: under which terms, and in which reigns.
    given: BTreeMap<Slot, (Term, u64)>,
}

impl Reconciler {
    pub fn new(shared: Arc<Shared>, me: Incarnation) -> Self {
        Self { shared, me, janitor: Arc::default(), unsettled: BTreeSet::new(), given: BTreeMap::new() }
    }

    /// Works through `slots`.
    pub fn reconcile(
        &mut self,
        map: &ClusterMap,
        slots: &[Slot],
        released: &BTreeSet<JobId>,
        receivers: &mut Receivers,
    ) {
        let view = View::new(map, &self.me);
        for &slot in slots {
            let desired = view.desired(slot, released);
            // Of what is neither here nor wanted nothing else is of interest: often that is nearly every slot.
            if desired == Desired::Nothing && self.shared.engine.gate(slot) == Gate::Absent {
                receivers.unwant(slot);
                continue;
            }
            let status = self.shared.engine.slot_status(slot);
            if let Err(error) = self.settle(&view, map, slot, desired, &status, receivers) {
                // Stale: the data is of a time that this map has not reached yet (a replay); later entries settle it.
                if !matches!(error, SlotError::Stale { .. }) {
                    // A log that is behind catches up. One that failed stops the node; the rest no retry mends.
                    if matches!(error, SlotError::Log { .. }) {
                        self.unsettled.insert(slot);
                    }
                    tracing::error!(%slot, ?desired, gate = ?status.gate, %error, "slot cannot follow the map");
                }
            }
        }
        Janitor::start(&self.janitor, &self.shared);
    }

    fn settle(
        &mut self,
        view: &View<'_>,
        map: &ClusterMap,
        slot: Slot,
        desired: Desired,
        status: &SlotStatus,
        receivers: &mut Receivers,
    ) -> Result<(), SlotError> {
        let engine = &self.shared.engine;
        match desired {
            Desired::Own { generation, term, clock_floor_ms } => {
                receivers.unwant(slot);
                let serving = matches!(status.gate, Gate::Owned | Gate::Frozen) && status.term == term;
                if !serving {
                    // Data of another generation is not what the map speaks of: to serve nothing is better than to serve it.
                    if status.gate != Gate::Absent && !status.generation.same_major(generation) {
                        if matches!(status.gate, Gate::Owned | Gate::Frozen) {
                            engine.follow(slot, status.generation)?;
                        }
                        return Err(SlotError::NotOpen { slot, have: status.generation, wanted: generation });
                    }
                    let held = self.hold(slot, generation, status, Gate::Importing)?;
                    engine.own_from(slot, held, term, clock_floor_ms)?;
                }
            }
            Desired::AwaitRelease { generation, .. } => {
                receivers.unwant(slot);
                self.hold(slot, generation, status, Gate::Importing)?;
            }
            Desired::Import { generation, from, source_generation } => {
                let held = self.hold(slot, generation, status, Gate::Importing)?;
                receivers.want(from, slot, held, source_generation);
            }
            Desired::Follow { generation, from, source_generation } => {
                let held = self.hold(slot, generation, status, Gate::Follower)?;
                receivers.want(from, slot, held, source_generation);
            }
            Desired::Wait => {
                receivers.unwant(slot);
                if matches!(status.gate, Gate::Owned | Gate::Frozen) {
                    engine.follow(slot, status.generation)?;
                }
            }
            Desired::Nothing => {
                receivers.unwant(slot);
                let owner = &map.slots[slot];
                let given_away =
                    owner.pending.as_ref().is_some_and(|pending| pending.from_primary == self.me);
                assert!(
                    !given_away || status.gate != Gate::Owned,
                    "slot {slot} took writes after the final version that the vote on it named"
                );
                let is_served = matches!(status.gate, Gate::Owned | Gate::Frozen);
                if is_served && !mutation!("reads-at-the-source-after-commit") {
                    engine.hand_off(slot, status.generation)?;
                    // Another primary's vote covers nothing that only this node has.
                    if let Some((term, reign)) = self.given.remove(&slot) {
                        self.shared.acks.released(slot, term, reign);
                    }
                }
                if status.gate != Gate::Absent && view.may_drop(slot, status.generation) {
                    self.janitor.drops.lock().push_back((slot, status.generation));
                }
            }
        }
        Ok(())
    }

    /// Makes sure that the slot is held under this generation, unserved, behind `gate`; returns the generation with
    /// this node's own count of restarts.
    fn hold(
        &self,
        slot: Slot,
        wanted: Generation,
        status: &SlotStatus,
        gate: Gate,
    ) -> Result<Generation, SlotError> {
        let engine = &self.shared.engine;
        // What is served stops to be first, also where it went and came back while this node was out of the world.
        if matches!(status.gate, Gate::Owned | Gate::Frozen) {
            engine.follow(slot, status.generation)?;
        }
        if status.gate == Gate::Absent || !status.generation.same_major(wanted) {
            // A restart of this node's own copy counts on, also when nothing had arrived yet.
            let same = status.generation.same_major(wanted);
            let generation = if same { status.generation.max(wanted) } else { wanted };
            engine.open_slot(slot, generation, gate)?;
            return Ok(generation);
        }
        let held = status.generation;
        if status.gate != gate {
            engine.open_slot(slot, held, gate)?;
        }
        Ok(held)
    }
}

/// Drops what moved away, in small steps between other work: by segments, never by keys.
#[derive(Default)]
struct Janitor {
    drops: Mutex<VecDeque<(Slot, Generation)>>,
    running: Mutex<bool>,
}

impl Janitor {
    fn start(this: &Arc<Self>, shared: &Arc<Shared>) {
        if this.drops.lock().is_empty() || std::mem::replace(&mut *this.running.lock(), true) {
            return;
        }
        let (this, shared) = (Arc::clone(this), Arc::clone(shared));
        lockgate_runtime::spawn(async move {
            while this.step(&shared) {
                lockgate_runtime::yield_now().await;
            }
        });
    }

    /// Drops a few slots; `false` when there is nothing left.
    fn step(&self, shared: &Shared) -> bool {
        let mut running = self.running.lock();
        let mut drops = self.drops.lock();
        let some: Vec<_> = {
            let count = drops.len().min(DROPS_PER_STEP);
            drops.drain(..count).collect()
        };
        *running = !some.is_empty();
        drop((running, drops));
        for &(slot, generation) in &some {
            // A slot that came back meanwhile has a newer generation: then there is nothing of this one to drop.
            match shared.engine.drop_slot(slot, generation) {
                Ok(()) | Err(SlotError::Stale { .. }) => {}
                Err(error) => tracing::error!(%slot, %generation, %error, "moved slot could not be dropped"),
            }
        }
        !some.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::{Cluster, incarnation};
    use crate::control::{Epoch, ShardId};

    #[test]
    fn a_primary_gave_away_what_votes_of_its_own_reign_took() {
        let mut cluster = Cluster::new();
        let (first, second) = (cluster.start(1, 2, 0, 1), cluster.start(1, 2, 8, 8));
        let (me, heir, target) = (incarnation(1, 1), incarnation(2, 1), incarnation(3, 1));
        let late = cluster.evidence(second);
        let outcomes = cluster.vote(vec![cluster.evidence(first)]);
        let CommitResult::Committed { term } = outcomes[0].result else { panic!("{outcomes:?}") };
        let slot = |number| Slot::new(number).expect("a slot");
        let given = |term, epoch, numbers: &[u16]| -> Vec<_> {
            let reign = reign_of(ShardId(1), Epoch(epoch));
            numbers.iter().map(|&number| (slot(number), (term, reign))).collect()
        };
        assert_eq!(given_away(&cluster.map, &me, &outcomes), given(term, 1, &[0, 1]));
        for other in [heir, target, incarnation(1, 2)] {
            assert_eq!(given_away(&cluster.map, &other, &outcomes), []);
        }

        // Who was deposed gives nothing away by its successor's vote, and nobody does by one that takes nothing.
        cluster.fail_over(1, heir);
        let outcomes = cluster.vote(vec![late]);
        assert!(!matches!(outcomes[0].result, CommitResult::Committed { .. }), "{outcomes:?}");
        assert_eq!(given_away(&cluster.map, &heir, &outcomes), []);
        let outcomes = cluster.vote(vec![cluster.evidence(second)]);
        let CommitResult::Committed { term } = outcomes[0].result else { panic!("{outcomes:?}") };
        assert_eq!(given_away(&cluster.map, &heir, &outcomes), given(term, 2, &[8]));
        assert_eq!(given_away(&cluster.map, &me, &outcomes), []);
    }
}
