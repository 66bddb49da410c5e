//! Random sequences of entries, sensible and not: the map stays valid, two copies stay equal, nothing goes back.

use proptest::prelude::*;

use super::super::codec;
use super::super::map::JobState;
use super::*;

/// An entry as choices, made concrete against the map that it is applied to. `spoil` makes some of it wrong.
#[derive(Clone, Debug)]
struct Step {
    kind: u8,
    a: u8,
    b: u8,
    start: u16,
    len: u16,
    spoil: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let choices = (0u8..16, any::<u8>(), any::<u8>(), 0u16..400, 1u16..40, 0u8..6);
    choices.prop_map(|(kind, a, b, start, len, spoil)| Step { kind, a, b, start, len, spoil })
}

fn pick<T: Copy>(from: impl Iterator<Item = T>, number: u8) -> Option<T> {
    let all: Vec<T> = from.collect();
    (!all.is_empty()).then(|| all[usize::from(number) % all.len()])
}

impl Step {
    fn node(&self) -> u32 {
        u32::from(self.a % 10) + 1
    }

    fn shard(&self, choice: u8) -> u32 {
        u32::from(choice % 4) + 1
    }

    fn job(&self, map: &ClusterMap, wanted: fn(&JobState) -> bool) -> JobId {
        let jobs = map.jobs.values().filter(|job| self.spoil == 0 || wanted(&job.state)).map(|job| job.id);
        pick(jobs, self.b).unwrap_or(JobId(u64::from(self.b)))
    }

    fn body(&self, map: &ClusterMap, past: &[Evidence]) -> EntryBody {
        let shard = ShardId(self.shard(self.a));
        let boot = map.known_boot(NodeId(self.node())).unwrap_or(1);
        let ranges = vec![SlotRange::new(self.start, self.start + self.len)];
        match self.kind {
            0 => EntryBody::AddNode(node_info(self.node(), self.spoil == 0)),
            1 => EntryBody::RemoveNode { node: NodeId(self.node()) },
            2 => {
                let replicas =
                    if self.b.is_multiple_of(2) { vec![] } else { vec![NodeId(u32::from(self.b % 10))] };
                EntryBody::CreateShard { shard, primary: incarnation(self.node(), boot), replicas }
            }
            3 => EntryBody::AssignSlots { shard, ranges },
            4 => {
                let of = map.shards.get(&shard);
                let in_sync = of.map_or(vec![], |of| {
                    of.replicas.iter().map(|node| (*node, map.known_boot(*node).unwrap())).collect()
                });
                let expected_version = of.map_or(0, |of| of.in_sync_version) + u64::from(self.spoil == 0);
                EntryBody::SetInSync { shard, expected_version, in_sync }
            }
            5 => EntryBody::Restarted {
                incarnation: incarnation(self.node(), boot + u64::from(self.spoil > 0)),
            },
            6 | 7 => {
                let of = map.shards.get(&shard);
                let node = of.and_then(|of| pick(of.members(), self.b)).unwrap_or(NodeId(1));
                let expected_epoch = Epoch(of.map_or(0, |of| of.epoch.0) + u64::from(self.spoil == 0));
                let (primary, holds_all) = (map.nodes[&node].incarnation, self.spoil > 1);
                EntryBody::Failover { shard, expected_epoch, primary, holds_all }
            }
            8 | 9 => {
                let mut body = start_job(0, self.shard(self.b), &[(self.start, self.start + self.len)], 0);
                if let EntryBody::StartJob { source, name, .. } = &mut body {
                    let owner = Slot::new(self.start).and_then(|slot| map.slots[slot].shard);
                    *source = owner.filter(|_| self.spoil > 0).unwrap_or(shard);
                    name.0[..8].copy_from_slice(&map.applied.to_be_bytes());
                }
                body
            }
            10 | 11 => EntryBody::CommitJobs(self.votes(map, past)),
            12 => match self.job(map, |state| *state == JobState::Active) {
                job if self.b.is_multiple_of(2) => {
                    EntryBody::AbortJob { job, why: String::new(), cancelled: self.a.is_multiple_of(2) }
                }
                job => {
                    let attempt = map.jobs.get(&job).map_or(Attempt(1), |job| job.attempt);
                    EntryBody::EndAttempt { job, attempt, why: String::new() }
                }
            },
            13 => EntryBody::SetVoters {
                voters: (0..=self.b % 8).map(|more| NodeId(1 + u32::from((self.a % 9 + more) % 9))).collect(),
            },
            14 => {
                EntryBody::Decide { job: self.job(map, |state| *state == JobState::Disputed), owner: shard }
            }
            _ => EntryBody::Activated {
                job: self.job(map, |state| matches!(state, JobState::Committed { .. })),
            },
        }
    }

    fn votes(&self, map: &ClusterMap, past: &[Evidence]) -> Vec<Evidence> {
        let mut votes: Vec<Evidence> =
            map.active_jobs().take(1 + usize::from(self.b % 4)).map(|job| evidence(map, job.id)).collect();
        match (self.spoil, votes.first_mut()) {
            (0, Some(vote)) => vote.synced.truncate(1),
            (1, Some(vote)) => vote.source_epoch.0 += u64::from(self.b % 2),
            _ => {}
        }
        // What was gathered earlier, and comes late or again.
        votes.extend(pick(past.iter(), self.a).cloned());
        votes
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_entries_keep_the_map_valid_and_equal(steps in proptest::collection::vec(step(), 1..120)) {
        let mut cluster = Cluster::new();
        let (mut past, mut sent): (Vec<Evidence>, Vec<Entry>) = Default::default();
        let mut moved = std::collections::BTreeSet::new();
        for step in steps {
            let entry = match pick(sent.iter(), step.a) {
                Some(entry) if step.spoil == 5 && step.b.is_multiple_of(4) => entry.clone(),
                _ => cluster.entry(step.body(&cluster.map, &past)),
            };
            // `apply_entry` compares two copies, validates, and asserts that nothing goes back.
            let outcome = cluster.apply_entry(&entry);
            if let Outcome::Applied(Effect::Voted(outcomes)) = outcome {
                for outcome in outcomes.iter().filter(|o| matches!(o.result, CommitResult::Committed { .. })) {
                    prop_assert!(moved.insert(outcome.job), "job {} was committed twice", outcome.job);
                }
            }
            past.extend(cluster.map.active_jobs().map(|job| evidence(&cluster.map, job.id)));
            past.dedup();
            sent.push(entry);
        }
        let bytes = codec::encode_map(&cluster.map).unwrap();
        prop_assert_eq!(codec::decode_map(&bytes).unwrap(), cluster.map);
    }

    #[test]
    fn a_job_moves_at_most_once(order in proptest::collection::vec(0usize..6, 1..40)) {
        // Evidence of six attempts, sent in any order and as often as it likes.
        let mut cluster = Cluster::new();
        let job = cluster.start(1, 2, 10, 19);
        let mut attempts = Vec::new();
        for _ in 0..6 {
            attempts.push(cluster.evidence(job));
            let attempt = attempts.last().unwrap().attempt;
            if attempts.len() < 6 {
                cluster.effect(EntryBody::EndAttempt { job, attempt, why: String::new() });
            }
        }
        let mut moved = 0;
        for number in order {
            match cluster.vote_one(attempts[number].clone()) {
                CommitResult::Committed { .. } => {
                    prop_assert_eq!(number, 5);
                    moved += 1;
                }
                result => prop_assert!(matches!(result, CommitResult::Stale { .. }), "{:?}", result),
            }
        }
        prop_assert!(moved <= 1);
    }

    #[test]
    fn bytes_from_anywhere_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0usize..5) {
        let mut bytes = bytes;
        if bytes.len() >= 2 {
            bytes[0] = b"EMGRP"[kind];
            bytes[1] = 1;
        }
        let _ = codec::decode_entry(&bytes);
        let _ = codec::decode_map(&bytes);
        let _ = codec::decode_genesis(&bytes);
        let _ = codec::decode_message(&bytes);
        let _ = codec::Replay::new(1).push(&bytes);
    }
}
