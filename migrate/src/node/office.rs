//! Holding office: this node's lease as a primary, its grants and failovers as the control leader, its fence as a replica.
//!
//! What is decided is decided in [`crate::office`]; here it is carried out. Invariants:
//! - Nothing is served under a lease after it was yielded, and nothing is granted before its round was confirmed and all
//!   that the round rests on is applied here (R6).
//! - A fenced member takes nothing more from the old reign before the next one begins or the control leader has been silent
//!   about it for a node timeout (R12). What it takes after that it has, whoever is named.

use std::collections::BTreeMap;

use lockgate_engine::{Engine, Gate, Slot};
use lockgate_runtime::mutation;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::Ordering;

use super::desired::Role;
use super::driver::Driver;
use super::messages::ControlMessage;
use super::shared::{Input, Shared};
use crate::control::{ClusterMap, EntryBody, Epoch, JobId, NodeId, ShardId};
use crate::office::{
    Ask, Failovers, FenceReport, Grant, Grantor, LeaseAsk, LeaseHolder, Move, SlotPosition, Times,
};

/// A fence that this member is behind.
struct Fence {
    shard: ShardId,
    epoch: Epoch,
    until_ns: u64,
    /// A sync is under way, whose end is reported.
    reporting: bool,
}

/// Everything about office that one driver keeps.
pub(super) struct Office {
    times: Times,
    /// Whether every answer of this directory's node waited for its disk.
    always_synced: bool,
    pub holder: LeaseHolder,
    grantor: Grantor,
    failovers: Failovers,
    /// Confirmed rounds, with the index that must be applied before they count.
    confirmed: Vec<(u64, u64)>,
    fence: Option<Fence>,
    known_leader: Option<NodeId>,
    next_look_ns: u64,
}

impl Office {
    pub fn new(times: Times, always_synced: bool) -> Office {
        Office {
            times,
            always_synced,
            holder: LeaseHolder::default(),
            grantor: Grantor::new(times),
            failovers: Failovers::new(times),
            confirmed: Vec::new(),
            fence: None,
            known_leader: None,
            next_look_ns: 0,
        }
    }
}

impl Office {
    /// Whether every answer of this directory's node waited for its disk.
    pub fn always_synced(&self) -> bool {
        self.always_synced
    }
}

impl Driver {
    /// The map has changed: a reign may have ended, or begun. Runs before the map is published and any gate follows.
    pub(super) fn reign_follows_map(&mut self) {
        let mine = self.my_primary_shard().map(|shard| (shard, self.map.shards[&shard].epoch));
        self.office.holder.reigns(mine);
        let reign = mine.map_or(0, |(shard, epoch)| reign_of(shard, epoch));
        if self.shared.acks.reign() != reign {
            self.shared.lease_until_ns.store(0, Ordering::SeqCst);
            self.shared.acks.begin_reign(reign);
            self.shared.lease_changed.notify_all();
        }
        let fenced = self.office.fence.as_ref();
        let is_over =
            |fence: &Fence| self.map.shards.get(&fence.shard).is_none_or(|s| s.epoch != fence.epoch);
        if fenced.is_some_and(is_over) {
            self.unfence();
        }
    }

    /// Asks, grants and looks, as far as it is time.
    pub(super) fn hold_office(&mut self, now_ns: u64) {
        let term = self.raft.has_applied_own_term().then(|| self.raft.term());
        self.office.grantor.leads(term, now_ns);
        self.office.failovers.leads_since(self.office.grantor.leads_since_ns());
        let leader = self.raft.leader();
        if std::mem::replace(&mut self.office.known_leader, leader) != leader {
            self.office.holder.ask_soon();
        }
        if let Some(leader) = leader
            && let Some(ask) = self.office.holder.ask(now_ns, self.office.times.renewal_ns)
        {
            let (boot, applied) = (self.me.boot, self.map.applied);
            self.tell(leader, ControlMessage::LeaseAsk { boot, applied, ask });
        }
        if self.office.fence.as_ref().is_some_and(|fence| fence.until_ns <= now_ns) {
            tracing::info!("the fence has stood without a failover: following on");
            self.unfence();
        }
        if now_ns >= self.office.next_look_ns {
            self.office.next_look_ns = now_ns + self.office.times.renewal_ns / 8;
            self.look_for_failovers(now_ns);
        }
        self.look_after_hand_over(now_ns);
    }

    fn look_for_failovers(&mut self, now_ns: u64) {
        let proposals = &self.proposals;
        let undecided = |wanted| {
            proposals.any(|body| matches!(body, EntryBody::Failover { shard, .. } if *shard == wanted))
        };
        for step in self.office.failovers.look(&self.map, now_ns, undecided) {
            match step {
                Move::Fence { to, shard, epoch } => self.tell(to, ControlMessage::Fence { shard, epoch }),
                Move::Promote { shard, expected_epoch, primary, holds_all } => {
                    tracing::info!(%shard, epoch = %expected_epoch, %primary, "failing over");
                    self.propose(EntryBody::Failover { shard, expected_epoch, primary, holds_all }, None);
                }
            }
        }
    }

    /// Begins a quorum round if requests wait for one. A leader that has lost its quorum begins none that ends.
    pub(super) fn begin_round(&mut self) {
        if let Some(round) = self.office.grantor.begin_round()
            && !self.raft.begin_round(round)
        {
            tracing::debug!(round, "no round: this node does not lead yet, or no more");
        }
    }

    /// Rounds that a quorum has confirmed; they count once everything that they rest on is applied.
    pub(super) fn rounds_confirmed(&mut self, rounds: Vec<(u64, u64)>) {
        self.office.confirmed.extend(rounds);
        let applied = self.map.applied;
        let ready = self.office.confirmed.extract_if(.., |(_, index)| *index <= applied);
        let Some(last) = ready.map(|(round, _)| round).max() else { return };
        for grant in self.office.grantor.confirmed(last, &self.map, lockgate_runtime::now_ns()) {
            let Grant { to, shard, epoch, nonce, length_ns } = grant;
            self.tell(to, ControlMessage::LeaseGrant { shard, epoch, nonce, length_ns });
        }
    }

    pub(super) fn on_lease_ask(&mut self, from: NodeId, boot: u64, applied: u64, ask: LeaseAsk) {
        let LeaseAsk { shard, epoch, granted, .. } = ask;
        let primary = self.map.shards.get(&shard).map(|shard| (shard.primary.node, shard.primary.boot));
        if primary == Some((from, boot)) {
            self.office.failovers.heard(shard, epoch, granted, lockgate_runtime::now_ns());
        }
        self.office.grantor.ask(Ask { from, boot, applied, ask });
    }

    pub(super) fn on_lease_grant(&mut self, shard: ShardId, epoch: Epoch, nonce: u64, length_ns: u64) {
        // A length is believed up to what all nodes of the cluster agree on.
        let length_ns = length_ns.min(self.office.times.lease_ns);
        let Some(until_ns) = self.office.holder.granted(shard, epoch, nonce, length_ns) else { return };
        let before_ns = self.shared.lease_until_ns.swap(until_ns, Ordering::SeqCst);
        if before_ns <= lockgate_runtime::now_ns() {
            tracing::debug!(%shard, %epoch, "lease held");
            self.shared.lease_changed.notify_all();
            self.announce_activations();
        }
    }

    /// The control leader wants to end a reign: take nothing more from it, sync what is here, and say how far that is.
    pub(super) fn on_fence(&mut self, from: NodeId, shard: ShardId, epoch: Epoch) {
        let known = self.map.shards.get(&shard);
        let is_mine = Role::of(&self.map, &self.me).shard() == Some(shard);
        if !is_mine || known.is_none_or(|known| known.epoch != epoch || known.primary == self.me) {
            return;
        }
        let until_ns = lockgate_runtime::now_ns() + self.office.times.node_timeout_ns;
        let reporting = match &mut self.office.fence {
            Some(fence) if fence.epoch == epoch => {
                fence.until_ns = until_ns;
                std::mem::replace(&mut fence.reporting, true)
            }
            _ => {
                self.office.fence = Some(Fence { shard, epoch, until_ns, reporting: true });
                self.shared.fences.fetch_add(1, Ordering::Relaxed);
                self.shared.is_fenced.store(true, Ordering::Relaxed);
                if !mutation!("candidate-not-fenced") {
                    self.receivers.fence();
                }
                false
            }
        };
        if !reporting {
            // A primary answered for what its log had written, or synced.
            let last = self.map.shards[&shard].primary.boot;
            let holds_all = self.office.always_synced || self.shared.engine.boot().keeps_writes_of(last);
            // Behind the fence none of it grows any more.
            let positions = positions(&self.shared.engine, &self.map, shard);
            let report = FenceReport { shard, epoch, boot: self.me.boot, holds_all, positions };
            lockgate_runtime::spawn(sync_and_report(Arc::clone(&self.shared), from, report));
        }
    }

    /// What a fenced member holds is on its disk.
    pub(super) fn on_fenced(&mut self, to: NodeId, report: FenceReport) {
        if let Some(fence) = &mut self.office.fence
            && fence.epoch == report.epoch
        {
            fence.reporting = false;
            self.tell(to, ControlMessage::FenceReport(report));
        }
    }

    pub(super) fn on_fence_report(&mut self, from: NodeId, report: FenceReport) {
        self.office.failovers.report(from, report);
        self.office.next_look_ns = 0;
    }

    /// A primary hands over: its lease is over by its own word.
    pub(super) fn on_yield(
        &mut self,
        from: NodeId,
        (shard, epoch): (ShardId, Epoch),
        nonce: u64,
        to: NodeId,
    ) {
        let leads = self.map.shards.get(&shard).is_some_and(|s| s.primary.node == from && s.epoch == epoch);
        if leads && self.office.grantor.leads_since_ns().is_some() {
            self.office.grantor.yielded(from, shard, epoch, nonce);
            self.office.failovers.hand_over(shard, epoch, to, lockgate_runtime::now_ns());
            self.office.next_look_ns = 0;
        }
    }

    pub(super) fn unfence(&mut self) {
        self.office.fence = None;
        self.shared.is_fenced.store(false, Ordering::Relaxed);
        self.receivers.unfence();
        self.stay_linked();
    }

    /// Commits that were just applied: until when leases below them may run.
    pub(super) fn note_commits(&mut self, committed: &[JobId]) {
        for id in committed {
            if let Some(job) = self.map.jobs.get(id) {
                self.office.grantor.committed(*id, job.source);
            }
        }
    }

    /// Whether the slots of a committed job may be served by its target: nobody of the source serves them any more (R16).
    pub(super) fn has_let_go(&mut self, id: JobId) -> Option<ControlMessage> {
        use crate::control::JobState::{Activated, Committed};
        let job =
            self.map.jobs.get(&id).filter(|job| matches!(job.state, Committed { .. } | Activated { .. }))?;
        let source = self.map.shards.get(&job.source)?;
        // This node's gates closed with the commit. Of earlier reigns it knows only that their leases were over when it got
        // its own; a new primary may have frozen and voted before that.
        let alone = self.office.holder.was_granted() || mutation!("released-before-a-lease");
        if source.primary == self.me && alone {
            return Some(ControlMessage::Released { job: id });
        }
        let now_ns = lockgate_runtime::now_ns();
        let over = self.office.grantor.may_release(&self.map, id, now_ns);
        over.then_some(ControlMessage::LeasesOver { job: id })
    }
}

/// The number of a reign, for [`crate::replica::ReplicaAcks`]: different for each.
pub(super) fn reign_of(shard: ShardId, epoch: Epoch) -> u64 {
    epoch.0 << 32 | u64::from(shard.0)
}

/// Syncs everything that is here, and hands the report on.
async fn sync_and_report(shared: Arc<Shared>, to: NodeId, report: FenceReport) {
    if mutation!("candidate-not-synced") || shared.engine.sync_all().await.is_ok() {
        shared.tell(Input::Fenced(to, report)).await;
    }
}

/// How far each slot of the shard is, those that it imports too.
fn positions(engine: &Engine, map: &ClusterMap, shard: ShardId) -> Vec<SlotPosition> {
    let imports: BTreeMap<Slot, _> = map
        .active_jobs()
        .filter(|job| job.target == shard)
        .flat_map(|job| crate::control::slots_of(&job.slots).map(|slot| (slot, job.generation)))
        .collect();
    let mut positions = Vec::new();
    for slot in Slot::all() {
        let owner = map.owner(slot);
        let generation = match imports.get(&slot) {
            Some(generation) => *generation,
            None if owner.shard == Some(shard) => owner.generation,
            None => continue,
        };
        let status = engine.slot_status(slot);
        if status.gate == Gate::Absent || !status.generation.same_major(generation) {
            continue;
        }
        let (term, counter) = (status.version.term.0, status.version.counter);
        positions.push(SlotPosition { slot: slot.number(), term, counter });
    }
    positions
}
