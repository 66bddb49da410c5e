//! The source's side of jobs: feeds the pure machines with what happens, and executes their commands.
//!
//! Invariants
//! - Slots are frozen only by [`Command::Freeze`] and thawed only by [`Command::Thaw`]; the hand-off itself is the
//!   reconciler's, from the applied commit.
//! - The evidence of a vote is gathered under the freeze of that very attempt and is never changed afterwards.

use std::collections::BTreeMap;

use lockgate_engine::{Engine, Gate, Slot};

use super::messages::ControlMessage;
use super::shared::{JobProgress, Shared};
use crate::control::{
    Attempt, ClusterMap, EntryBody, Evidence, Incarnation, Job, JobId, JobState, NodeId, REASON_BYTES_MAX,
    ShardId, SlotEvidence, slots_of,
};
use crate::job::{Command, Event, JobMachine, Phase, Progress, SlotFinal};

/// One job that this node drives.
struct SourceJob {
    machine: JobMachine,
    slots: Vec<Slot>,
    target: NodeId,
    target_boot: u64,
    /// Counter of each slot when the job was first seen: the copy is whole when the target has reached them.
    start_counters: Vec<u64>,
    copied_upto: usize,
    bytes_total: u64,
    commit: Option<Evidence>,
    frozen_ns: u64,
    activated_us: u64,
    drain: DrainRate,
    lag_bytes: u64,
}

/// Bytes acknowledged per second, from two looks at the lag and what was appended between them.
#[derive(Default)]
struct DrainRate {
    acked_records: u64,
    at_ns: u64,
    bytes_per_s: u64,
}

impl DrainRate {
    fn look(&mut self, acked_records: u64, record_bytes: u64, now_ns: u64) -> u64 {
        let elapsed_ns = now_ns.saturating_sub(self.at_ns);
        if self.at_ns != 0 && elapsed_ns > 0 && acked_records > self.acked_records {
            let bytes = u128::from(acked_records - self.acked_records) * u128::from(record_bytes);
            self.bytes_per_s = (bytes * 1_000_000_000 / u128::from(elapsed_ns)) as u64;
        }
        (self.acked_records, self.at_ns) = (acked_records, now_ns);
        self.bytes_per_s
    }
}

/// What the driver must send or propose for the jobs.
pub(crate) enum Errand {
    /// To the target's primary.
    Tell(NodeId, ControlMessage),
    /// Into the next CommitJobs entry.
    Vote(Evidence),
    /// An entry of its own.
    Propose(EntryBody),
}

/// All jobs whose source is this node's shard while it is primary.
#[derive(Default)]
pub(crate) struct SourceJobs {
    jobs: BTreeMap<JobId, SourceJob>,
}

impl SourceJobs {
    /// Whether any job may still need looks at its progress.
    pub fn is_busy(&self) -> bool {
        self.jobs.values().any(|job| !matches!(job.machine.phase(), Phase::Over))
    }

    /// Takes up the active jobs of this node's shard that are new in `map`. Must run before the map is published: what
    /// the target acknowledged of these slots in an earlier job is forgotten before it can open its streams.
    pub fn adopt(&mut self, shared: &Shared, map: &ClusterMap, mine: Option<ShardId>, now_ns: u64) {
        for job in map.jobs.values().filter(|job| Some(job.source) == mine && job.state == JobState::Active) {
            let known = self.jobs.entry(job.id).or_insert_with(|| SourceJob::new(shared, map, job, now_ns));
            known.follow_target(shared, map.shards[&job.target].primary);
        }
    }

    /// Tells each machine what the applied map says of its job.
    pub fn map_changed(
        &mut self,
        shared: &Shared,
        map: &ClusterMap,
        mine: Option<ShardId>,
        now_ns: u64,
    ) -> Vec<Errand> {
        let mut errands = Vec::new();
        for (&id, known) in &mut self.jobs {
            let event = match map.jobs.get(&id) {
                Some(job) if Some(job.source) == mine => Event::Map(job.state.clone(), job.attempt),
                // It ended and was forgotten in one go; a commit is remembered until this node has let go.
                None if known.machine.phase() != Phase::Committed => {
                    let why = "the job ended and is no longer remembered".to_owned();
                    Event::Map(JobState::Failed { why }, known.machine.attempt())
                }
                _ => continue,
            };
            if matches!(event, Event::Map(JobState::Activated { .. }, _)) {
                // The target's own word is a message like any other and may have been lost.
                known.note_serving(now_ns);
            }
            known.take(id, event, shared, map, now_ns, &mut errands);
        }
        // A job that the map has forgotten has ended before; one whose shard this node no longer leads is nobody's here,
        // and the reconciler has closed its gates. Neither touches slots: they may be another job's by now.
        self.jobs.retain(|id, _| map.jobs.get(id).is_some_and(|job| Some(job.source) == mine));
        self.publish(shared);
        errands
    }

    /// Looks at every job's progress and at the clock.
    pub fn tick(&mut self, shared: &Shared, map: &ClusterMap, now_ns: u64) -> Vec<Errand> {
        let mut errands = Vec::new();
        for (&id, job) in &mut self.jobs {
            if matches!(job.machine.phase(), Phase::Streaming | Phase::CatchingUp) {
                let progress = job.progress(shared, now_ns);
                job.take(id, Event::Progress(progress), shared, map, now_ns, &mut errands);
            }
            job.take(id, Event::Clock, shared, map, now_ns, &mut errands);
        }
        self.publish(shared);
        errands
    }

    /// The target's word on a barrier.
    pub fn barrier(
        &mut self,
        shared: &Shared,
        map: &ClusterMap,
        from: NodeId,
        (id, attempt): (JobId, Attempt),
        result: Result<Vec<(NodeId, u64)>, String>,
        now_ns: u64,
    ) -> Vec<Errand> {
        let mut errands = Vec::new();
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.target == from) else { return errands };
        let event = match result {
            Ok(synced) => {
                // The evidence is completed once, under the attempt that gathered it.
                if let Some(commit) =
                    job.commit.as_mut().filter(|c| c.attempt == attempt && c.synced.is_empty())
                {
                    commit.synced = synced;
                    shared.job_times.note(id, |times| &mut times.passed_ns);
                }
                Event::BarrierPassed(attempt)
            }
            Err(why) => Event::BarrierFailed(attempt, why),
        };
        job.take(id, event, shared, map, now_ns, &mut errands);
        self.publish(shared);
        errands
    }

    /// The target's word that it serves, for the figures only: what follows from it follows from the entry.
    pub fn target_serves(&mut self, id: JobId, from: NodeId, now_ns: u64) {
        if let Some(job) = self.jobs.get_mut(&id).filter(|job| job.target == from) {
            job.note_serving(now_ns);
        }
    }

    fn publish(&self, shared: &Shared) {
        let mut progress = shared.progress.lock();
        for (&id, job) in &self.jobs {
            // What is over was published with its last figures.
            if job.machine.phase() != Phase::Over || !progress.get(&id).is_some_and(JobProgress::is_over) {
                progress.insert(id, job.report());
            }
        }
        // Reports live as long as the map's memory of the job.
        progress.retain(|id, _| self.jobs.contains_key(id));
    }
}

impl SourceJob {
    fn new(shared: &Shared, map: &ClusterMap, job: &Job, now_ns: u64) -> Self {
        let slots: Vec<Slot> = slots_of(&job.slots).collect();
        let (mut start_counters, mut bytes_total) = (Vec::with_capacity(slots.len()), 0);
        for &slot in &slots {
            let status = shared.engine.slot_status(slot);
            start_counters.push(status.version.counter);
            bytes_total += status.live_bytes;
        }
        let target = &map.shards[&job.target].primary;
        shared.acks.forget(target.node, slots.iter().copied());
        Self {
            machine: JobMachine::new(job.attempt, shared.config.limits, now_ns),
            slots,
            target: target.node,
            target_boot: target.boot,
            start_counters,
            copied_upto: 0,
            bytes_total,
            commit: None,
            frozen_ns: 0,
            activated_us: 0,
            drain: DrainRate::default(),
            lag_bytes: 0,
        }
    }

    /// The target has failed over: its new primary shows anew what it has, and most of that from its cursors.
    fn follow_target(&mut self, shared: &Shared, primary: Incarnation) {
        if (self.target, self.target_boot) != (primary.node, primary.boot) {
            (self.target, self.target_boot) = (primary.node, primary.boot);
            self.copied_upto = 0;
            shared.acks.forget(primary.node, self.slots.iter().copied());
        }
    }

    fn take(
        &mut self,
        id: JobId,
        event: Event,
        shared: &Shared,
        map: &ClusterMap,
        now_ns: u64,
        errands: &mut Vec<Errand>,
    ) {
        let mut commands = Vec::new();
        self.machine.on(event, now_ns, &mut commands);
        for command in commands {
            match command {
                Command::Freeze(attempt) => self.freeze(id, attempt, shared, map, now_ns, errands),
                Command::Thaw => self.thaw(&shared.engine),
                Command::Vote(attempt) => {
                    let commit = self.commit.as_ref().filter(|commit| commit.attempt == attempt);
                    errands.push(Errand::Vote(
                        commit.expect("a vote follows its own freeze and barrier").clone(),
                    ));
                }
                Command::EndAttempt(attempt, mut why) => {
                    why.truncate(why.floor_char_boundary(REASON_BYTES_MAX));
                    tracing::info!(job = id.0, attempt = attempt.0, %why, "attempt given up");
                    errands.push(Errand::Propose(EntryBody::EndAttempt { job: id, attempt, why }));
                }
                Command::Abort(mut why) => {
                    why.truncate(why.floor_char_boundary(REASON_BYTES_MAX));
                    tracing::warn!(job = id.0, %why, "job fails");
                    errands.push(Errand::Propose(EntryBody::AbortJob { job: id, why, cancelled: false }));
                }
            }
        }
    }

    /// Freezes every slot, gathers the finals, and starts the barrier at the target.
    fn freeze(
        &mut self,
        id: JobId,
        attempt: Attempt,
        shared: &Shared,
        map: &ClusterMap,
        now_ns: u64,
        errands: &mut Vec<Errand>,
    ) {
        tracing::debug!(job = id.0, attempt = attempt.0, slots = self.slots.len(), "freezing");
        self.frozen_ns = now_ns;
        shared.job_times.begin(id);
        shared.job_times.note(id, |times| &mut times.frozen_ns);
        self.commit = None;
        let Some(job) = map.jobs.get(&id) else { return };
        let (mut slots, mut finals) =
            (Vec::with_capacity(self.slots.len()), Vec::with_capacity(self.slots.len()));
        let mut clock_ms = 0;
        for &slot in &self.slots {
            let generation = shared.engine.slot_status(slot).generation;
            match shared.engine.freeze(slot, generation) {
                Ok(at) => {
                    let (term, digest) = (map.slots[slot].term, at.digest);
                    clock_ms = at.clock_ms.max(clock_ms);
                    finals.push(SlotFinal {
                        slot: slot.number(),
                        term: at.version.term.0,
                        counter: at.version.counter,
                        digest,
                    });
                    slots.push(SlotEvidence { slot, term, last: at.version, digest });
                }
                Err(error) => {
                    let why = format!("slot {slot} could not be frozen: {error}");
                    return self.take(id, Event::FreezeFailed(attempt, why), shared, map, now_ns, errands);
                }
            }
        }
        let epoch = |shard| map.shards[shard].epoch;
        self.commit = Some(Evidence {
            job: id,
            attempt,
            source_epoch: epoch(&job.source),
            target_epoch: epoch(&job.target),
            slots,
            clock_ms,
            synced: Vec::new(),
            target_in_sync_version: map.shards[&job.target].in_sync_version,
        });
        // All members at once; each reports to the target's primary.
        for member in map.shards[&job.target].members() {
            let finals = finals.clone();
            errands.push(Errand::Tell(member, ControlMessage::Barrier { job: id, attempt, finals }));
        }
        self.take(id, Event::Frozen(attempt), shared, map, now_ns, errands);
    }

    /// The first word that the target serves ends the pause, whichever way it came.
    fn note_serving(&mut self, now_ns: u64) {
        if self.activated_us == 0 && self.frozen_ns != 0 {
            self.activated_us = now_ns.saturating_sub(self.frozen_ns) / 1_000;
        }
    }

    fn thaw(&self, engine: &Engine) {
        for &slot in &self.slots {
            let status = engine.slot_status(slot);
            if status.gate == Gate::Frozen
                && let Err(error) = engine.thaw(slot, status.generation)
            {
                tracing::error!(%slot, %error, "a frozen slot could not be thawed");
            }
        }
    }

    /// How far the target is, from its acknowledgements.
    fn progress(&mut self, shared: &Shared, now_ns: u64) -> Progress {
        let open = shared.feeds.lock().is_open(self.target, self.target_boot);
        let received = shared.acks.received_by(self.target, self.target_boot);
        let Some(received) = received.filter(|_| open) else { return Progress::default() };
        while self.copied_upto < self.slots.len()
            && received(self.slots[self.copied_upto]) >= self.start_counters[self.copied_upto]
        {
            self.copied_upto += 1;
        }
        let copied = self.copied_upto == self.slots.len();
        if !copied {
            return Progress { connected: true, ..Progress::default() };
        }
        let (mut lag_records, mut acked, mut keys, mut bytes) = (0, 0, 0, 0);
        for &slot in &self.slots {
            let status = shared.engine.slot_status(slot);
            let has = received(slot);
            lag_records += status.version.counter.saturating_sub(has);
            acked += has;
            keys += status.keys;
            bytes += status.live_bytes;
        }
        let record_bytes = bytes / keys.max(1);
        self.bytes_total = bytes;
        self.lag_bytes = lag_records * record_bytes;
        let drain_bytes_per_s = self.drain.look(acked, record_bytes, now_ns);
        Progress { lag_records, lag_bytes: self.lag_bytes, drain_bytes_per_s, copied, connected: true }
    }

    fn report(&self) -> JobProgress {
        JobProgress {
            phase: self.machine.phase(),
            bytes_total: self.bytes_total,
            lag_bytes: self.lag_bytes,
            freeze_to_activate_us: self.activated_us,
            last_reason: self.machine.last_reason().to_owned(),
        }
    }
}
