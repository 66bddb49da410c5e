//! A map as large as a cluster is meant to be, and entries that take effect on it.

use std::net::SocketAddr;

use lockgate_engine::Version;
use lockgate_migrate::control::{
    ClusterMap, Effect, Entry, EntryBody, Evidence, Genesis, GenesisShard, Incarnation, JobId, Name, NodeId,
    NodeInfo, Origin, SLOT_COUNT, ShardId, SlotEvidence, SlotRange, slots_of,
};

/// Nodes of the map: half of them lead a shard each, the others follow one each.
pub const NODES: u32 = 1_000;
const SHARDS: u32 = NODES / 2;
const VOTERS: u32 = 7;

/// The map, and what was proposed to it.
#[derive(Clone)]
pub struct BigMap {
    /// The map.
    pub map: ClusterMap,
    proposed: u64,
}

fn incarnation(node: u32) -> Incarnation {
    Incarnation { node: NodeId(node), directory: [3; 16], boot: 1 }
}

fn info(node: u32) -> NodeInfo {
    let mut name = [0; 20];
    name[..4].copy_from_slice(&node.to_be_bytes());
    let ports = |first: u16| SocketAddr::from(([10, 0, (node >> 8) as u8, node as u8], first));
    NodeInfo {
        name: Name(name),
        link: ports(17_000),
        listen: ports(7_000),
        incarnation: incarnation(node),
        voter: node <= VOTERS,
    }
}

impl BigMap {
    /// The map at its beginning: every slot is owned, and every shard's slots lie together.
    pub fn new() -> BigMap {
        let first = |shard: u32| (u32::from(SLOT_COUNT) * (shard - 1) / SHARDS) as u16;
        let shards = (1..=SHARDS).map(|shard| GenesisShard {
            shard: ShardId(shard),
            primary: incarnation(shard),
            replicas: vec![incarnation(shard + SHARDS)],
            slots: vec![SlotRange::new(first(shard), first(shard + 1) - 1)],
        });
        let genesis = Genesis {
            cluster: [9; 16],
            generation: 0,
            nodes: (1..=NODES).map(info).collect(),
            shards: shards.collect(),
        };
        BigMap { map: ClusterMap::genesis(genesis).expect("the genesis is sound"), proposed: 0 }
    }

    /// An entry that has yet to be applied.
    pub fn entry(&mut self, body: EntryBody) -> Entry {
        self.proposed += 1;
        let origin = Origin { node: NodeId(1), boot: 1, seq: self.proposed };
        Entry { origin, at_ms: self.proposed, body }
    }

    /// Applies an entry. Panics if it is refused.
    pub fn apply(&mut self, entry: &Entry) -> Effect {
        self.map.apply(self.map.applied + 1, entry).into_result().expect("the entry takes effect")
    }

    /// Starts a job that moves all of `source`'s slots to `target`.
    pub fn start_job(&self, source: u32, target: u32) -> EntryBody {
        let slots = self.map.slots_of_shard(ShardId(source)).map(|(slot, _)| slot);
        let ranges = lockgate_migrate::control::ranges_of(slots);
        let mut name = [0; 20];
        name[..4].copy_from_slice(&source.to_be_bytes());
        EntryBody::StartJob { source: ShardId(source), target: ShardId(target), ranges, name: Name(name) }
    }

    /// The vote on jobs whose barriers passed.
    pub fn vote(&self, jobs: &[JobId]) -> EntryBody {
        EntryBody::CommitJobs(jobs.iter().map(|job| self.evidence(*job)).collect())
    }

    fn evidence(&self, job: JobId) -> Evidence {
        let job = &self.map.jobs[&job];
        let (source, target) = (&self.map.shards[&job.source], &self.map.shards[&job.target]);
        let slots = slots_of(&job.slots).map(|slot| {
            let term = self.map.owner(slot).term;
            SlotEvidence { slot, term, last: Version::new(term, 5), digest: u64::from(slot.number()) }
        });
        Evidence {
            job: job.id,
            attempt: job.attempt,
            source_epoch: source.epoch,
            target_epoch: target.epoch,
            slots: slots.collect(),
            clock_ms: 1_700_000_000_000,
            synced: target.in_sync.iter().map(|(node, boot)| (*node, *boot)).collect(),
            target_in_sync_version: target.in_sync_version,
        }
    }

    /// The replica of a shard takes over.
    pub fn failover(&self, shard: u32) -> EntryBody {
        let known = &self.map.shards[&ShardId(shard)];
        let primary = self.map.nodes[&known.replicas[0]].incarnation;
        let expected_epoch = known.epoch;
        EntryBody::Failover { shard: ShardId(shard), expected_epoch, primary, holds_all: false }
    }

    /// A shard's replica leaves its in-sync set.
    pub fn set_in_sync(&self, shard: u32) -> EntryBody {
        let known = &self.map.shards[&ShardId(shard)];
        let in_sync = vec![(known.primary.node, known.primary.boot)];
        EntryBody::SetInSync { shard: ShardId(shard), expected_version: known.in_sync_version, in_sync }
    }
}

impl Default for BigMap {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use lockgate_migrate::control::{CommitResult, SlotOwner};

    use super::*;

    #[test]
    fn every_entry_takes_effect() {
        let mut big = BigMap::new();
        assert_eq!((big.map.nodes.len(), big.map.shards.len()), (1_000, 500));
        assert!(big.map.slots.iter().all(|slot: &SlotOwner| slot.shard.is_some()));
        let start = big.start_job(1, 2);
        let start = big.entry(start);
        let Effect::JobStarted { job, .. } = big.apply(&start) else { panic!("it starts a job") };
        let vote = big.vote(&[job]);
        let vote = big.entry(vote);
        let Effect::Voted(outcomes) = big.apply(&vote) else { panic!("it is a vote") };
        assert!(matches!(outcomes[0].result, CommitResult::Committed { .. }), "{outcomes:?}");
        let bodies = [big.set_in_sync(3), big.failover(4)];
        for body in bodies {
            let entry = big.entry(body);
            big.apply(&entry);
        }
        big.map.validate().expect("the map is sound");
    }
}
