//! Tests of the control log, and what they share.

mod codec;
mod commits;
mod entries;
mod properties;
mod raft;
mod raft_faults;
mod raft_group;
mod raft_heirs;
mod raft_members;
mod raft_rounds;
mod raft_snapshots;

use lockgate_engine::{Slot, Term, Version};

use super::apply::{CommitOutcome, CommitResult, Effect, Outcome};
use super::entry::{Entry, EntryBody, Evidence, Origin, SlotEvidence};
use super::map::{ClusterMap, Genesis, GenesisShard, Job, NodeInfo};
use super::preconditions::{Refusal, VoidReason};
use super::types::*;

pub(crate) fn incarnation(node: u32, boot: u64) -> Incarnation {
    Incarnation { node: NodeId(node), directory: [node as u8; 16], boot }
}

pub(crate) fn node_info(node: u32, voter: bool) -> NodeInfo {
    NodeInfo {
        name: Name([node as u8; 20]),
        link: format!("127.0.0.1:{}", 7000 + node).parse().unwrap(),
        listen: format!("127.0.0.1:{}", 6000 + node).parse().unwrap(),
        incarnation: incarnation(node, 1),
        voter,
    }
}

/// Shard 1 is nodes 1 and 2, shard 2 nodes 3 and 4, shard 3 nodes 5 and 6; node 7 serves nothing. Nodes 1 to 5 vote. The
/// shards own 0-99, 100-199 and 200-299; nobody owns the rest.
pub(crate) fn genesis() -> Genesis {
    let shard = |id: u32| GenesisShard {
        shard: ShardId(id),
        primary: incarnation(2 * id - 1, 1),
        replicas: vec![incarnation(2 * id, 1)],
        slots: vec![SlotRange::new(id as u16 * 100 - 100, id as u16 * 100 - 1)],
    };
    Genesis {
        cluster: [7; 16],
        generation: 0,
        nodes: (1..=7).map(|node| node_info(node, node <= 5)).collect(),
        shards: (1..=3).map(shard).collect(),
    }
}

/// A map and the proposals made to it. Every entry is applied to two copies, and both must stay equal and valid.
pub(crate) struct Cluster {
    pub(crate) map: ClusterMap,
    twin: ClusterMap,
    seq: u64,
}

impl Cluster {
    pub(crate) fn new() -> Cluster {
        let map = ClusterMap::genesis(genesis()).unwrap();
        Cluster { twin: map.clone(), map, seq: 0 }
    }

    /// One that goes on from there.
    pub(crate) fn of(map: ClusterMap) -> Cluster {
        Cluster { twin: map.clone(), map, seq: 1_000 }
    }

    pub(crate) fn entry(&mut self, body: EntryBody) -> Entry {
        self.seq += 1;
        Entry { origin: Origin { node: NodeId(1), boot: 1, seq: self.seq }, at_ms: 1_000 + self.seq, body }
    }

    pub(crate) fn apply_entry(&mut self, entry: &Entry) -> Outcome {
        let before = self.map.clone();
        let index = self.map.applied + 1;
        let outcome = self.map.apply(index, entry);
        assert_eq!(outcome, self.twin.apply(index, entry));
        assert_eq!(self.map, self.twin);
        self.map.validate().unwrap();
        if let Outcome::Refused(_) = outcome {
            assert_eq!(self.without_trace(), ClusterMap { applied: index, ..before.clone() }.without_trace());
        }
        assert_only_forward(&before, &self.map);
        outcome
    }

    fn without_trace(&self) -> ClusterMap {
        self.map.clone().without_trace()
    }

    pub(crate) fn apply(&mut self, body: EntryBody) -> Outcome {
        let entry = self.entry(body);
        self.apply_entry(&entry)
    }

    pub(crate) fn effect(&mut self, body: EntryBody) -> Effect {
        self.apply(body).into_result().unwrap()
    }

    pub(crate) fn refused(&mut self, body: EntryBody) -> Refusal {
        self.apply(body).into_result().unwrap_err()
    }

    pub(crate) fn start(&mut self, source: u32, target: u32, start: u16, end: u16) -> JobId {
        let mut body = start_job(source, target, &[(start, end)], 0);
        if let EntryBody::StartJob { name, .. } = &mut body {
            name.0[12..].copy_from_slice(&self.seq.to_be_bytes());
        }
        match self.effect(body) {
            Effect::JobStarted { job, .. } => job,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn job(&self, job: JobId) -> &Job {
        &self.map.jobs[&job]
    }

    pub(crate) fn evidence(&self, job: JobId) -> Evidence {
        evidence(&self.map, job)
    }

    pub(crate) fn vote(&mut self, jobs: Vec<Evidence>) -> Vec<CommitOutcome> {
        match self.effect(EntryBody::CommitJobs(jobs)) {
            Effect::Voted(outcomes) => outcomes,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn vote_one(&mut self, evidence: Evidence) -> CommitResult {
        self.vote(vec![evidence]).pop().unwrap().result
    }

    pub(crate) fn committed(&mut self, job: JobId) -> Term {
        match self.vote_one(self.evidence(job)) {
            CommitResult::Committed { term } => term,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn restart(&mut self, node: u32) -> Incarnation {
        let boot = self.map.known_boot(NodeId(node)).unwrap() + 1;
        let incarnation = incarnation(node, boot);
        self.effect(EntryBody::Restarted { incarnation });
        incarnation
    }

    pub(crate) fn fail_over(&mut self, shard: u32, primary: Incarnation) -> Effect {
        let expected_epoch = self.map.shards[&ShardId(shard)].epoch;
        let body = EntryBody::Failover { shard: ShardId(shard), expected_epoch, primary, holds_all: true };
        self.effect(body)
    }

    pub(crate) fn owner(&self, slot: u16) -> &super::map::SlotOwner {
        self.map.owner(Slot::new(slot).unwrap())
    }
}

impl ClusterMap {
    /// What a refused entry must not change.
    fn without_trace(mut self) -> ClusterMap {
        self.proposals.clear();
        self
    }
}

/// What never goes back, whatever is applied.
pub(crate) fn assert_only_forward(before: &ClusterMap, after: &ClusterMap) {
    assert!(after.counter >= before.counter);
    for (old, new) in before.slots.iter().zip(after.slots.iter()) {
        assert!(new.term >= old.term && new.generation >= old.generation && new.version >= old.version);
        assert_eq!(new.version == old.version, new == old, "a slot changes exactly with its version");
        // A new owner always comes with a new term.
        assert!(new.shard == old.shard || new.term > old.term);
    }
    for (id, shard) in &before.shards {
        let now = &after.shards[id];
        assert!(now.epoch >= shard.epoch && now.in_sync_version >= shard.in_sync_version);
        assert!(now.in_sync == shard.in_sync || now.in_sync_version > shard.in_sync_version);
        assert_eq!(now.primary != shard.primary, now.epoch != shard.epoch);
    }
    for (id, job) in &before.jobs {
        let Some(now) = after.jobs.get(id) else { continue };
        assert!(now.attempt >= job.attempt);
        if job.state.is_finished() {
            assert_eq!(now, job, "a finished job never changes");
        }
    }
}

pub(crate) fn start_job(source: u32, target: u32, ranges: &[(u16, u16)], name: u8) -> EntryBody {
    let mut bytes = [0xa0; 20];
    bytes[0] = name;
    EntryBody::StartJob {
        source: ShardId(source),
        target: ShardId(target),
        ranges: ranges.iter().map(|(start, end)| SlotRange::new(*start, *end)).collect(),
        name: Name(bytes),
    }
}

/// What a source would gather for the job's current attempt, if everything went well.
pub(crate) fn evidence(map: &ClusterMap, job: JobId) -> Evidence {
    let job = &map.jobs[&job];
    let (source, target) = (&map.shards[&job.source], &map.shards[&job.target]);
    let slot = |slot: Slot| {
        let term = map.owner(slot).term;
        SlotEvidence { slot, term, last: Version { term, counter: 5 }, digest: u64::from(slot.number()) }
    };
    Evidence {
        job: job.id,
        attempt: job.attempt,
        source_epoch: source.epoch,
        target_epoch: target.epoch,
        slots: slots_of(&job.slots).map(slot).collect(),
        clock_ms: 1_700_000_000_000 + job.id.0,
        synced: target.in_sync.iter().map(|(node, boot)| (*node, *boot)).collect(),
        target_in_sync_version: target.in_sync_version,
    }
}

pub(crate) fn void(result: CommitResult) -> VoidReason {
    match result {
        CommitResult::Void { why, .. } | CommitResult::Stale { why } => why,
        CommitResult::Committed { .. } => panic!("it was committed"),
    }
}
