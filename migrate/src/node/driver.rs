//! The driver: one task on core 0 that owns the control log, the map and the jobs.
//!
//! It takes inputs (messages, proposals, disk completions, ticks), lets the pure parts decide, and executes. All that
//! changes gates or the map happens here, one input after the other.
//!
//! Invariants
//! - Nothing that consensus must have on disk first is sent before the control log's sync completed (invariant 9).
//! - A failed sync of the control log ends the driver: this node neither votes nor serves any more (R19).
//! - The map is published before gates close, and gates close before the source's word is given (R16).

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use lockgate_engine::Slot;
use lockgate_runtime::mutation;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::Ordering;

use super::apply::Reconciler;
use super::consensus::Unpersisted;
use super::control_store::{self, ControlLog};
use super::finals::sync_finals;
use super::hand_over::HandOver;
use super::messages::ControlMessage;
use super::office::Office;
use super::peers::Peers;
use super::proposals::Proposals;
use super::quorum::QuorumWatch;
use super::receivers::Receivers;
use super::replica_reads::Asker;
use super::replicas::Replicas;
use super::shared::{FinalsFault, Input, Shared};
use super::source::{Errand, SourceJobs};
use super::target::TargetJobs;
use crate::control::{
    Attempt, ClusterMap, EntryBody, Evidence, HardState, Incarnation, JobId, JobState, NodeId, Outcome,
    RaftCore, Shard, ShardId, decode_entry, decode_message, slots_of,
};
use crate::job::SlotFinal;

/// How often progress, releases and membership are looked at while jobs run.
const BUSY_TICK_NS: u64 = 2_000_000;
/// The same while nothing moves.
const IDLE_TICK_NS: u64 = 20_000_000;
/// Inputs taken before consensus is driven again.
const INPUTS_PER_TURN: usize = 256;

/// Barriers that may wait for the map; further ones are dropped, and their sources try again.
const EARLY_BARRIERS_MAX: usize = 64;

/// Why the driver ended.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The control log or a core's log failed; the node has stepped down.
    #[error("a log failed, this node no longer votes or serves; restart it once the disk is sound: {0}")]
    Log(#[from] lockgate_engine::log::LogFailed),
    /// The control log is full of entries that were not written yet.
    #[error("the control log cannot take more: {0}")]
    Behind(#[from] lockgate_engine::log::LogError),
    /// A record is longer than its format allows.
    #[error("the control log cannot take a record: {0}")]
    Record(#[from] crate::control::CodecError),
    /// The next control log could not be begun.
    #[error("the control log of the next generation cannot be begun: {0}")]
    Generation(#[from] crate::control::RaftError),
    /// This node's generation of the cluster is over.
    #[error("this node's generation of the cluster is over: {0}")]
    Superseded(String),
}

/// Owns everything that decides. Lives on core 0.
pub(crate) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) me: Incarnation,
    pub(super) map: ClusterMap,
    pub(super) inbox: mpsc::Receiver<Input>,
    pub(super) raft: RaftCore,
    pub(super) log: ControlLog,
    /// In the order of their numbers.
    pub(super) unpersisted: VecDeque<Unpersisted>,
    /// How far the log is committed, where the log does not have that yet.
    pub(super) to_note: Option<HardState>,
    /// Records of which it is not known yet whether they reached the disk.
    pub(super) syncing: usize,
    pub(super) proposals: Proposals,
    /// Encoded entries of other nodes, for the next proposal of this leader.
    pub(super) forwarded: Vec<Vec<u8>>,
    /// Whose entries were forwarded last.
    pub(super) asked_by: Option<NodeId>,
    pub(super) peers: Peers,
    pub(super) source: SourceJobs,
    pub(super) target: TargetJobs,
    pub(super) reconciler: Reconciler,
    pub(super) receivers: Receivers,
    pub(super) office: Office,
    pub(super) hand_over: Option<HandOver>,
    /// Told as soon as this node does not lead the control log.
    pub(super) retiring: Option<oneshot::Sender<()>>,
    quorum: QuorumWatch,
    replicas: Replicas,
    pub(super) asker: Asker,
    /// What this node says to itself, taken in with the next turn.
    pub(super) loopback: VecDeque<ControlMessage>,
    /// Barriers for attempts that this node's map has not reached yet.
    pub(super) early: Vec<(NodeId, JobId, Attempt, Vec<SlotFinal>)>,
    pub(super) votes: Vec<Evidence>,
    pub(super) next_raft_tick_ns: u64,
    pub(super) next_tick_ns: u64,
}

impl Driver {
    pub fn new(
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<Input>,
        store: control_store::Opened,
        always_synced: bool,
    ) -> Self {
        let me = store.me;
        let now_ns = lockgate_runtime::now_ns();
        Self {
            me,
            map: store.map,
            inbox,
            raft: store.raft,
            log: store.log,
            unpersisted: VecDeque::new(),
            to_note: None,
            syncing: 0,
            proposals: Proposals::new(me),
            forwarded: Vec::new(),
            asked_by: None,
            peers: Peers::new(Arc::clone(&shared)),
            source: SourceJobs::default(),
            target: TargetJobs::default(),
            reconciler: Reconciler::new(Arc::clone(&shared), me),
            receivers: Receivers::new(Arc::clone(&shared)),
            office: Office::new(shared.config.times, always_synced),
            hand_over: None,
            retiring: None,
            quorum: QuorumWatch::default(),
            replicas: Replicas::new(shared.config.times.replica_lost_ns),
            asker: Asker::default(),
            loopback: VecDeque::new(),
            early: Vec::new(),
            votes: Vec::new(),
            next_raft_tick_ns: now_ns + shared.config.times.raft_tick_ns,
            next_tick_ns: now_ns,
            shared,
        }
    }

    /// Runs until the node stops or can go on no longer.
    pub async fn run(mut self) -> Result<(), DriverError> {
        // What a new cluster begins with came by no entry; and after a restart, what the log knows to be committed is
        // applied first.
        self.drive_consensus().await?;
        self.follow_map(&Slot::all().collect::<Vec<_>>());
        if self.shared.has_left.load(Ordering::SeqCst) {
            self.leave();
        }
        while !self.shared.stop.is_stopped() {
            if self.shared.has_left.load(Ordering::SeqCst) {
                self.wait_outside().await?;
                continue;
            }
            // What this node said to itself does not wait.
            let deadline_ns = match self.loopback.is_empty() {
                true => self.next_raft_tick_ns.min(self.next_tick_ns).min(self.receivers.due_ns()),
                false => 0,
            };
            if let Some(input) = self.next_input(deadline_ns).await {
                self.take(input)?;
                for _ in 1..INPUTS_PER_TURN {
                    let Some(input) = self.input_at_once() else { break };
                    self.take(input)?;
                }
                if self.shared.has_left.load(Ordering::SeqCst) {
                    continue;
                }
            }
            self.tick()?;
            self.hold_office(lockgate_runtime::now_ns());
            while let Some(message) = self.loopback.pop_front() {
                self.on_message(self.me.node, message);
            }
            self.begin_round();
            self.flush();
            self.drive_consensus().await?;
            self.rounds_confirmed(Vec::new());
            let leader = self.raft.leader().map_or(0, |leader| leader.0);
            self.shared.leader.store(leader, Ordering::Relaxed);
            if let Some(reply) = self.retiring.take_if(|_| !self.raft.is_leader()) {
                // Who asked may have gone.
                let _ = reply.send(());
            }
        }
        self.note_commit()?;
        Ok(self.log.close().await?)
    }

    async fn next_input(&mut self, deadline_ns: u64) -> Option<Input> {
        let wait = Duration::from_nanos(deadline_ns.saturating_sub(lockgate_runtime::now_ns()));
        let (stop, refused) = (self.shared.stop.clone(), self.receivers.refused());
        let interrupted = pin!(async {
            let woken = async {
                select(pin!(refused), pin!(stop.stopped())).await;
            };
            select(pin!(lockgate_runtime::sleep(wait)), pin!(woken)).await;
        });
        match select(self.inbox.next(), interrupted).await {
            Either::Left((input, _)) => input,
            Either::Right(_) => None,
        }
    }

    fn take(&mut self, input: Input) -> Result<(), DriverError> {
        match input {
            Input::Message(from, message) => self.on_message(from, message),
            Input::Propose(body, reply) => self.propose(body, Some(reply)),
            Input::Persisted(number, result) => {
                self.syncing -= 1;
                result?;
                self.on_persisted(number);
            }
            Input::FinalsSynced { job, attempt, result } => self.on_finals(job, attempt, result),
            Input::Fenced(to, report) => self.on_fenced(to, report),
            Input::HandOver(to, reply) => self.begin_hand_over(to, reply),
            Input::Leave(reply) => {
                self.note_commit()?;
                self.leave();
                // Who asked may have gone.
                let _ = reply.send(self.claim());
            }
            // Only who has left may enter: dropped, and asked for again.
            Input::Enter(..) => {}
            Input::Superseded(why) => return Err(DriverError::Superseded(why)),
            Input::Retire(reply) => {
                // Without an heir there is nothing to wait for.
                if let Some(heir) = self.raft.best_heir() {
                    self.raft.transfer_to(heir);
                    self.retiring = Some(reply);
                }
            }
        }
        Ok(())
    }

    fn on_message(&mut self, from: NodeId, message: ControlMessage) {
        let now_ns = lockgate_runtime::now_ns();
        match message {
            ControlMessage::Raft(bytes) => {
                let stepped = decode_message(&bytes).map_err(|error| error.to_string());
                if let Err(error) =
                    stepped.and_then(|message| self.raft.step(message).map_err(|error| error.to_string()))
                {
                    tracing::warn!(peer = from.0, %error, "message of the control log refused");
                }
            }
            // Entries are read again, and checked, when they are applied; here only what could not be proposed is left out.
            ControlMessage::Propose(entries) => {
                self.asked_by = Some(from);
                self.forwarded.extend(entries.into_iter().filter(|entry| decode_entry(entry).is_ok()));
            }
            ControlMessage::Barrier { job, attempt, finals } => self.on_barrier(from, job, attempt, finals),
            ControlMessage::BarrierSynced { job, attempt, boot, result } => {
                let report = match result {
                    Ok(()) => self.target.synced(&self.map, job, attempt, from, boot),
                    Err(why) => self.target.failed(job, attempt, format!("replica {from}: {why}")),
                };
                self.tell_opt(report);
            }
            ControlMessage::BarrierPassed { job, attempt, synced } => {
                tracing::debug!(job = job.0, attempt = attempt.0, "barrier passed");
                let errands =
                    self.source.barrier(&self.shared, &self.map, from, (job, attempt), Ok(synced), now_ns);
                self.run_errands(errands);
            }
            ControlMessage::BarrierFailed { job, attempt, why } => {
                let errands =
                    self.source.barrier(&self.shared, &self.map, from, (job, attempt), Err(why), now_ns);
                self.run_errands(errands);
            }
            ControlMessage::ReleaseAsk { job } => {
                if let Some(word) = self.has_let_go(job) {
                    self.tell(from, word);
                }
            }
            ControlMessage::LeasesOver { job } => {
                tracing::debug!(job = job.0, %from, "released for want of leases");
                self.on_release(job);
            }
            ControlMessage::LeaseAsk { boot, applied, ask } => self.on_lease_ask(from, boot, applied, ask),
            ControlMessage::LeaseGrant { shard, epoch, nonce, length_ns } => {
                self.on_lease_grant(shard, epoch, nonce, length_ns);
            }
            ControlMessage::Fence { shard, epoch } => self.on_fence(from, shard, epoch),
            ControlMessage::FenceReport(report) => self.on_fence_report(from, report),
            ControlMessage::Yield { shard, epoch, nonce, to } => {
                self.on_yield(from, (shard, epoch), nonce, to);
            }
            // Noted where it arrived.
            ControlMessage::Reach { .. } => {}
            ControlMessage::FreshAsk { shard, epoch, boot, asked_ns } => {
                self.on_fresh_ask(from, (shard, epoch), boot, asked_ns);
            }
            ControlMessage::Fresh { shard, epoch, boot, asked_ns, applied } => {
                self.on_fresh(from, (shard, epoch), boot, (asked_ns, applied));
            }
            ControlMessage::Serving { job } => self.source.target_serves(job, from, now_ns),
            ControlMessage::Released { job } => {
                tracing::debug!(job = job.0, "released");
                let source = self.map.jobs.get(&job).and_then(|job| self.map.shards.get(&job.source));
                if source.is_some_and(|shard| shard.primary.node == from) {
                    self.on_release(job);
                }
            }
        }
    }

    /// The finals of a freeze: sync them here, and if this node leads the target, gather who else has.
    fn on_barrier(&mut self, from: NodeId, id: JobId, attempt: Attempt, finals: Vec<SlotFinal>) {
        let job = self.map.jobs.get(&id);
        let Some(job) = job.filter(|job| job.attempt == attempt && job.state == JobState::Active) else {
            // Attempts come from the map's counter: one above it is of a future that this node has yet to apply.
            if attempt.0 > self.map.counter && self.early.len() < EARLY_BARRIERS_MAX {
                self.early.push((from, id, attempt, finals));
            }
            return;
        };
        if finals.iter().any(|last| last.slot >= lockgate_engine::SLOTS) {
            tracing::warn!(job = id.0, %from, "barrier names a slot that does not exist");
            return;
        }
        let (generation, target) = (job.generation, job.target);
        tracing::debug!(job = id.0, attempt = attempt.0, "barrier begins here");
        self.shared.job_times.begin(id);
        if self.my_primary_shard() == Some(target) {
            self.target.begin(id, attempt, from);
        }
        lockgate_runtime::spawn(sync_finals(Arc::clone(&self.shared), (id, attempt), generation, finals));
    }

    /// The map has moved on: barriers that came before their attempt begin now.
    pub(super) fn begin_early_barriers(&mut self) {
        for (from, job, attempt, finals) in std::mem::take(&mut self.early) {
            self.on_barrier(from, job, attempt, finals);
        }
    }

    fn on_finals(&mut self, id: JobId, attempt: Attempt, result: Result<(), FinalsFault>) {
        tracing::debug!(job = id.0, attempt = attempt.0, ?result, "finals synced here");
        // The word of an attempt that is over says nothing of what the slots hold for the present one.
        let job = self.map.jobs.get(&id);
        let Some(job) = job.filter(|job| job.attempt == attempt && job.state == JobState::Active) else {
            return;
        };
        let primary = self.map.shards[&job.target].primary;
        if result.is_ok() {
            self.receivers.pledge(id, attempt, slots_of(&job.slots));
        }
        let result = result.map_err(|fault| match fault {
            FinalsFault::Mismatch { slot, why } => {
                self.receivers.restart(slot, lockgate_runtime::now_ns());
                why
            }
            FinalsFault::Other(why) => why,
        });
        if primary == self.me {
            let report = match result {
                Ok(()) => self.target.synced(&self.map, id, attempt, self.me.node, self.me.boot),
                Err(why) => self.target.failed(id, attempt, why),
            };
            self.tell_opt(report);
        } else {
            let boot = self.me.boot;
            self.tell(primary.node, ControlMessage::BarrierSynced { job: id, attempt, boot, result });
        }
    }

    pub(super) fn my_primary_shard(&self) -> Option<ShardId> {
        let leads = |shard: &Shard| {
            let is_older =
                shard.primary.node == self.me.node && mutation!("restarted-primary-serves-at-once");
            shard.primary == self.me || is_older
        };
        self.map.shards.iter().find(|(_, shard)| leads(shard)).map(|(&id, _)| id)
    }

    pub(super) fn propose(&mut self, body: EntryBody, reply: Option<oneshot::Sender<Outcome>>) {
        self.proposals.add(body, lockgate_runtime::unix_ms(), lockgate_runtime::now_ns(), reply);
    }

    pub(super) fn tell(&mut self, node: NodeId, message: ControlMessage) {
        if node == self.me.node {
            return self.loopback.push_back(message);
        }
        let link = match self.map.nodes.get(&node) {
            Some(info) => Some(info.link),
            // A leader that joined after what is applied here.
            None => self.shared.reach.lock().get(&node).copied(),
        };
        if let Some(link) = link {
            self.peers.send(node, link, message);
        }
    }

    fn tell_opt(&mut self, report: Option<(NodeId, ControlMessage)>) {
        if let Some((node, message)) = report {
            self.tell(node, message);
        }
    }

    pub(super) fn run_errands(&mut self, errands: Vec<Errand>) {
        for errand in errands {
            match errand {
                Errand::Tell(node, message) => self.tell(node, message),
                // A vote that is undecided repeats itself, as every entry does.
                Errand::Vote(evidence) => {
                    let undecided = |body: &EntryBody| matches!(body, EntryBody::CommitJobs(votes) if votes.contains(&evidence));
                    if !self.proposals.any(undecided) {
                        self.votes.push(evidence);
                    }
                }
                Errand::Propose(body) => self.propose(body, None),
            }
        }
    }

    fn tick(&mut self) -> Result<(), DriverError> {
        let now_ns = lockgate_runtime::now_ns();
        while self.next_raft_tick_ns <= now_ns {
            self.next_raft_tick_ns += self.shared.config.times.raft_tick_ns;
            self.raft.tick();
        }
        self.receivers.look(now_ns);
        if self.next_tick_ns > now_ns {
            return Ok(());
        }
        // A core's log that failed takes the node's vote with it (R19).
        for core in 0..self.shared.engine.cores() {
            if let Some(failed) = self.shared.engine.log(core).failure() {
                return Err(DriverError::Log(failed));
            }
        }
        self.note_commit()?;
        let mine = self.my_primary_shard();
        let errands = self.source.tick(&self.shared, &self.map, now_ns);
        self.run_errands(errands);
        for (node, job) in self.target.outstanding(&self.map, mine) {
            self.ask_for_release(node, job);
        }
        self.announce_activations();
        self.receivers.tick(now_ns);
        self.reconcile_unsettled();
        let undecided = self.proposals.any(|body| matches!(body, EntryBody::SetInSync { .. }));
        if let Some(body) = self.replicas.look(&self.shared, &self.map, mine, undecided, now_ns) {
            self.propose(body, None);
        }
        self.announce_restart();
        self.ask_how_fresh(now_ns);
        let limit_ns = self.shared.config.times.node_timeout_ns;
        self.quorum.look(self.raft.leader().is_some(), &self.shared.engine, now_ns, limit_ns);
        self.proposals.repeat_overdue(now_ns);
        self.next_tick_ns = now_ns + IDLE_TICK_NS.min(self.shared.config.times.renewal_ns / 4);
        self.look_soon(mine, now_ns);
        Ok(())
    }

    /// The next look comes soon if there is something to look after.
    pub(super) fn look_soon(&mut self, mine: Option<ShardId>, now_ns: u64) {
        if self.source.is_busy() || self.target.is_busy(&self.map, mine) || self.hand_over.is_some() {
            self.next_tick_ns = self.next_tick_ns.min(now_ns + BUSY_TICK_NS);
        }
    }

    /// The source's word, or the control leader's: whichever comes first.
    pub(super) fn ask_for_release(&mut self, source: NodeId, job: JobId) {
        self.tell(source, ControlMessage::ReleaseAsk { job });
        if let Some(leader) = self.raft.leader().filter(|leader| *leader != source) {
            self.tell(leader, ControlMessage::ReleaseAsk { job });
        }
    }

    /// After a restart: tell the cluster the new boot. Whether this node leads again what it led is the control leader's
    /// to find out (R2, R12).
    fn announce_restart(&mut self) {
        if self.raft.leader().is_none() {
            return;
        }
        let known = self.map.nodes.get(&self.me.node).map(|info| info.incarnation);
        if known.is_some_and(|known| known != self.me)
            && !self.proposals.any(|body| matches!(body, EntryBody::Restarted { .. }))
        {
            self.propose(EntryBody::Restarted { incarnation: self.me }, None);
        }
    }
}
