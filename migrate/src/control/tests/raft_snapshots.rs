//! Snapshots: who needs one gets one, nothing of it counts before it is kept, and the largest fits.

use super::super::codec::{decode_map, decode_message, encode_map, encode_message};
use super::super::entry::REASON_BYTES_MAX;
use super::super::map::{JOBS_KEPT, JobState, Pending};
use super::super::raft::*;
use super::raft_group::RaftGroup;
use super::*;

/// Decides `entries` entries.
fn fill(group: &mut RaftGroup, leader: u32, entries: usize) {
    group.core(leader).propose(vec![vec![9]; entries]).unwrap();
    group.settle();
}

#[test]
fn a_member_that_is_far_behind_gets_a_snapshot() {
    let mut group = RaftGroup::new(3, 1);
    group.elect(1);
    group.cut = [3].into();
    fill(&mut group, 1, 900);
    group.set_voters(1, &[1, 2, 4]).unwrap();
    fill(&mut group, 1, 10);
    group.member(1).compact();
    group.cut.clear();
    group.tick(4);
    assert_eq!(group.members[&3].installed, 0, "the tail is enough for it");
    assert_eq!(group.members[&3].committed.len(), group.members[&1].committed.len());
    group.cut = [3].into();
    fill(&mut group, 1, 2 * TAIL_ENTRIES);
    group.propose_body(1, EntryBody::AddNode(node_info(5, false))).unwrap();
    group.member(1).compact();
    fill(&mut group, 1, 5);
    group.cut.clear();
    group.tick(4);
    assert_eq!(group.members[&3].installed, 1);
    let members = group.agreed(&[1, 2, 3, 4]);
    assert_eq!(members.learners, [NodeId(3), NodeId(5)]);
    // What it got lasts, and it can give it on.
    group.restart(3);
    group.settle();
    assert_eq!(group.agreed(&[1, 3]), members);
    group.set_voters(1, &[1, 2, 3]).unwrap();
    group.cut = [2].into();
    fill(&mut group, 1, 2 * TAIL_ENTRIES);
    group.member(3).compact();
    group.cut = [1].into();
    group.tick(60);
    assert_eq!(group.leaders(), [3]);
    assert_eq!((group.members[&2].installed, group.agreed(&[2, 3, 4])), (1, group.core(3).members()));
}

#[test]
fn who_joined_after_the_snapshot_is_brought_up_by_a_newer_one() {
    let mut group = RaftGroup::new(3, 0);
    group.elect(1);
    fill(&mut group, 1, 2 * TAIL_ENTRIES);
    group.member(1).compact();
    assert!(!group.core(1).lacks_snapshot_for_member());
    group.join(4);
    group.propose_body(1, EntryBody::AddNode(node_info(4, false))).unwrap();
    group.settle();
    group.tick(30);
    assert_eq!(group.members[&4].installed, 0, "it would refuse what does not name it");
    assert!(group.core(1).lacks_snapshot_for_member());
    assert!(!group.core(2).lacks_snapshot_for_member(), "only a leader brings others up");
    group.member(1).compact();
    assert!(!group.core(1).lacks_snapshot_for_member());
    group.tick(30);
    assert_eq!(group.members[&4].installed, 1);
    assert_eq!(group.agreed(&[1, 2, 3, 4]).learners, [NodeId(4)]);
}

#[test]
fn a_restart_begins_with_the_snapshot() {
    let mut group = RaftGroup::new(3, 2);
    group.elect(1);
    group.cut = [4, 5].into();
    group.set_voters(1, &[1, 4, 5]).unwrap();
    let entry = group.entry(EntryBody::AddNode(node_info(6, false)));
    group.core(1).propose(vec![entry]).unwrap();
    group.settle();
    // In the middle of a change, with something undecided behind it.
    let joint = group.agreed(&[1, 2, 3]);
    (1..=3).for_each(|id| group.member(id).compact());
    (1..=5).for_each(|id| group.restart(id));
    group.settle();
    assert!(joint.is_joint());
    assert_eq!(group.agreed(&[1, 2, 3]), joint);
    assert_eq!(group.members[&1].committed, [], "nothing is applied twice");
    group.cut.clear();
    group.tick(100);
    let voters = [1, 4, 5].map(NodeId).to_vec();
    let members = group.agreed(&[1, 2, 3, 4, 5]);
    assert_eq!(members, Members::new(voters, [2, 3, 6].map(NodeId).to_vec()));
}

#[test]
fn a_snapshot_carries_what_waits_for_the_end_of_a_change() {
    let later = vec![(NodeId(6), true)];
    let members = Members {
        outgoing: [1, 2, 3].map(NodeId).to_vec(),
        later: later.clone(),
        ..Members::new([1, 4, 5].map(NodeId).to_vec(), vec![])
    };
    let snapshot = MapSnapshot { index: 9, term: 2, members: members.clone(), map: vec![] };
    let genesis = super::raft_group::genesis_map(3, 2);
    let hard_state = Some(HardState { term: 2, vote: 0, commit: 9 });
    let restored = Restored { snapshot: Some(snapshot), hard_state, entries: vec![] };
    let core = RaftCore::new(&RaftConfig::of_genesis(NodeId(2), &genesis), restored, Box::new(|| 1)).unwrap();
    assert_eq!(core.members(), members);
}

#[test]
fn a_lost_snapshot_is_sent_again() {
    let mut group = RaftGroup::new(3, 0);
    group.elect(1);
    group.cut = [3].into();
    fill(&mut group, 1, 2 * TAIL_ENTRIES);
    group.member(1).compact();
    group.lost = Some(RaftMessageKind::Snapshot);
    group.cut.clear();
    group.tick(20);
    group.lost = None;
    group.tick(20);
    assert_eq!(group.members[&3].installed, 0, "raft would wait for ever");
    group.tick(100);
    assert_eq!(group.members[&3].installed, 1);
    group.agreed(&[1, 2, 3]);
    // Who knows that it was lost need not wait.
    group.cut = [3].into();
    fill(&mut group, 1, 2 * TAIL_ENTRIES);
    group.member(1).compact();
    group.lost = Some(RaftMessageKind::Snapshot);
    group.cut.clear();
    group.tick(20);
    group.lost = None;
    group.core(1).report_unreachable(NodeId(3));
    group.tick(6);
    assert_eq!(group.members[&3].installed, 2);
}

/// A snapshot for node 3, as a leader sends it.
fn snapshot_message() -> RaftMessage {
    let mut group = RaftGroup::new(3, 0);
    group.elect(1);
    group.cut = [3].into();
    fill(&mut group, 1, 2 * TAIL_ENTRIES);
    group.member(1).compact();
    let asks = RaftMessage {
        kind: RaftMessageKind::AppendResponse,
        from: NodeId(3),
        to: NodeId(1),
        term: group.core(1).term(),
        log_term: 1,
        index: 2,
        commit: 1,
        commit_term: 0,
        reject: true,
        reject_hint: 1,
        context: vec![],
        entries: vec![],
        snapshot: None,
    };
    group.core(1).report_unreachable(NodeId(3));
    for rejected in 1..=2 * TAIL_ENTRIES as u64 + 9 {
        group.core(1).step(RaftMessage { index: rejected, ..asks.clone() }).unwrap();
        let Some(ready) = group.core(1).ready() else { continue };
        group.core(1).on_persisted(ready.number);
        if let Some(message) = ready.messages_now.into_iter().find(|message| message.snapshot.is_some()) {
            return message;
        }
    }
    panic!("no snapshot was sent");
}

#[test]
fn nothing_of_a_snapshot_counts_before_it_is_kept() {
    let message = snapshot_message();
    let index = message.snapshot.as_ref().unwrap().index;
    let genesis = super::raft_group::genesis_map(3, 0);
    let config = RaftConfig::of_genesis(NodeId(3), &genesis);
    let mut core = RaftCore::new(&config, Restored::default(), Box::new(|| 1)).unwrap();
    core.step(message.clone()).unwrap();
    let ready = core.ready().unwrap();
    assert_eq!((&ready.persist.snapshot, ready.must_sync), (&message.snapshot, true));
    assert_eq!((&ready.snapshot, &ready.messages_now[..], &ready.committed[..]), (&None, &[][..], &[][..]));
    let answered = ready.messages_after.iter().any(|answer| answer.index == index && !answer.reject);
    assert!(answered, "the acknowledgement waits for the disk");
    // It waits with it: nothing is applied, and who has it under way does not campaign.
    for _ in 0..100 {
        core.tick();
    }
    assert_eq!((core.ready(), core.status().applied, core.status().role), (None, 1, Role::Follower));
    core.on_persisted(ready.number);
    assert_eq!(core.status().applied, index);
    let installed = core.ready().unwrap();
    assert_eq!(installed.snapshot, message.snapshot);
    core.on_persisted(installed.number);
    assert_eq!(core.ready(), None, "it is installed once");
    for _ in 0..100 {
        core.tick();
    }
    assert_eq!(core.status().role, Role::Candidate);
}

#[test]
fn snapshots_that_make_no_sense_are_refused() {
    let good = snapshot_message();
    assert_eq!(decode_message(&encode_message(&good).unwrap()), Ok(good.clone()));
    type Spoil = fn(&mut RaftMessage, &mut MapSnapshot);
    let spoils: [(Spoil, &str); 7] = [
        (|message, _| message.kind = RaftMessageKind::Append, "it is a snapshot or has one, and not both"),
        (|_, snapshot| snapshot.index = 0, "its snapshot is of no entry"),
        (|_, snapshot| snapshot.term = 1 << 40, "its snapshot is of a later term"),
        (|_, snapshot| snapshot.members.voters.clear(), "its lists of members are not in order"),
        (|_, snapshot| snapshot.index += 1, "its snapshot's map is of another index"),
        (|_, snapshot| snapshot.map.truncate(99), "malformed"),
        (|_, snapshot| snapshot.map = vec![0; SNAPSHOT_BYTES_MAX + 1], "its snapshot is too long"),
    ];
    for (spoil, why) in spoils {
        let (mut message, mut snapshot) = (good.clone(), good.snapshot.clone().unwrap());
        spoil(&mut message, &mut snapshot);
        message.snapshot = Some(snapshot);
        let error = decode_message(&encode_message(&message).unwrap()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let none = RaftMessage { snapshot: None, ..good };
    assert!(decode_message(&encode_message(&none).unwrap()).is_err());
}

/// 1,000 nodes in 500 shards, no two neighbouring slots of one shard.
fn scattered_map() -> ClusterMap {
    let infos = (1..=1_000u32).map(|node| NodeInfo {
        name: Name(std::array::from_fn(|at| (node >> (8 * (at % 4))) as u8)),
        link: format!("[2001:db8::{node:x}]:7000").parse().unwrap(),
        listen: format!("[2001:db8::{node:x}]:6000").parse().unwrap(),
        ..node_info(node, node <= 7)
    });
    let nodes: Vec<NodeInfo> = infos.collect();
    let shards = (0..500u32).map(|shard| GenesisShard {
        shard: ShardId(shard + 1),
        primary: nodes[2 * shard as usize].incarnation,
        replicas: vec![nodes[2 * shard as usize + 1].incarnation],
        slots: (shard as u16..SLOT_COUNT).step_by(500).map(|slot| SlotRange::new(slot, slot)).collect(),
    });
    let shards = shards.collect();
    let mut map = ClusterMap::genesis(Genesis { cluster: [7; 16], generation: 0, nodes, shards }).unwrap();
    (map.counter, map.applied) = (1 << 40, 1 << 40);
    map
}

/// As many finished jobs as are kept, each of half of all slots by themselves; as many proposals as are remembered.
fn add_history(map: &mut ClusterMap) {
    let scattered: Vec<SlotRange> =
        (0..SLOT_COUNT).step_by(2).map(|slot| SlotRange::new(slot, slot)).collect();
    for job in 1..=JOBS_KEPT as u64 {
        let why = "x".repeat(REASON_BYTES_MAX);
        let origin = Origin { node: NodeId(1), boot: 1, seq: job };
        let job = Job {
            id: JobId(job),
            name: Name::default(),
            source: ShardId(1),
            target: ShardId(2),
            slots: scattered.clone(),
            attempt: Attempt(job + (1 << 30)),
            generation: lockgate_engine::Generation::new(job),
            state: JobState::Failed { why: why.clone() },
            last_attempt: why,
            created_ms: u64::MAX,
            updated_ms: u64::MAX,
            changed_index: 1,
            origin,
        };
        map.jobs.insert(job.id, job);
    }
    for node in 1..=1_000 {
        for seq in 0..64 {
            map.remember(Origin { node: NodeId(node), boot: 1 << 20, seq: (1 << 40) + seq });
        }
    }
}

/// Each slot on its way to the next shard, in one job for each shard.
fn add_pending(map: &mut ClusterMap) {
    for shard in 1..=500u32 {
        let target = ShardId(shard % 500 + 1);
        let id = JobId(u64::from(shard) + (1 << 39));
        let generation = lockgate_engine::Generation::new(id.0);
        let slots: Vec<Slot> =
            (shard as u16 - 1..SLOT_COUNT).step_by(500).map(|slot| Slot::new(slot).unwrap()).collect();
        let job = Job {
            id,
            source: ShardId(shard),
            target,
            slots: ranges_of(slots.iter().copied()),
            attempt: Attempt(id.0),
            generation,
            state: JobState::Committed { index: 1, term: Term(1 << 39) },
            last_attempt: String::new(),
            ..map.jobs[&JobId(1)].clone()
        };
        let from_primary = map.shards[&ShardId(shard)].primary;
        for slot in slots {
            let pending = Pending { job: id, from: ShardId(shard), from_primary, clock_ms: 1 << 41 };
            let owner = &mut map.slots[slot];
            (owner.shard, owner.term, owner.version) = (Some(target), Term(1 << 39), 1 << 30);
            (owner.generation, owner.pending) = (generation, Some(pending));
        }
        map.jobs.insert(id, job);
    }
}

#[test]
fn the_largest_map_fits_into_a_snapshot() {
    let mut map = scattered_map();
    add_history(&mut map);
    add_pending(&mut map);
    let bytes = encode_map(&map).unwrap();
    assert!(bytes.len() <= SNAPSHOT_BYTES_MAX, "{} bytes", bytes.len());
    assert!(bytes.len() > SNAPSHOT_BYTES_MAX / 2, "{} bytes: the bound could be lower", bytes.len());
    assert_eq!(decode_map(&bytes), Ok(map));
}
