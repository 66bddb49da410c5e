//! Each entry but the vote: what it does, and every reason for which it is refused.

use super::super::map::{JOBS_KEPT, JobState, PROPOSALS_KEPT};
use super::*;

fn assign(shard: u32, start: u16, end: u16) -> EntryBody {
    EntryBody::AssignSlots { shard: ShardId(shard), ranges: vec![SlotRange::new(start, end)] }
}

fn in_sync(expected_version: u64, members: &[(u32, u64)]) -> EntryBody {
    let in_sync = members.iter().map(|(node, boot)| (NodeId(*node), *boot)).collect();
    EntryBody::SetInSync { shard: ShardId(1), expected_version, in_sync }
}

fn failover(epoch: u64, node: u32, boot: u64) -> EntryBody {
    let primary = incarnation(node, boot);
    EntryBody::Failover { shard: ShardId(1), expected_epoch: Epoch(epoch), primary, holds_all: false }
}

#[test]
fn genesis_starts_with_everyone_in_sync() {
    let cluster = Cluster::new();
    assert_eq!((cluster.map.applied, cluster.map.counter), (1, 1));
    assert_eq!(cluster.map.voters(), (1..=5).map(NodeId).collect::<Vec<_>>());
    assert_eq!(cluster.map.learners(), [NodeId(6), NodeId(7)]);
    let shard = &cluster.map.shards[&ShardId(1)];
    assert_eq!(shard.in_sync, [(NodeId(1), 1), (NodeId(2), 1)].into());
    assert_eq!(cluster.owner(99).term, Term(1));
    assert_eq!(cluster.owner(99).generation.major(), 1);
    assert_eq!(cluster.owner(300).shard, None);
    assert_eq!(cluster.map.shard_of_node(NodeId(4)).unwrap().0, ShardId(2));
    assert_eq!(cluster.map.slots_of_shard(ShardId(2)).count(), 100);
}

#[test]
fn genesis_that_contradicts_itself_is_refused() {
    let refused = |change: fn(&mut Genesis)| {
        let mut genesis = genesis();
        change(&mut genesis);
        ClusterMap::genesis(genesis).unwrap_err().what
    };
    type Case = (fn(&mut Genesis), &'static str);
    let cases: [Case; 9] = [
        (|genesis| genesis.nodes.push(node_info(1, false)), "node 1 is named twice"),
        (
            |genesis| genesis.nodes.iter_mut().for_each(|node| node.voter = false),
            "a cluster has 1 to 7 voters, not 0",
        ),
        (
            |genesis| genesis.nodes.extend((10..14).map(|node| node_info(node, true))),
            "a cluster has 1 to 7 voters, not 9",
        ),
        (|genesis| genesis.shards[1].slots[0].start = 50, "slot 50 is given to two shards"),
        (
            |genesis| genesis.shards[1].slots[0].end = 20_000,
            "shard 2 names the slots 100-20000, which do not exist",
        ),
        (
            |genesis| genesis.shards[1].replicas.push(incarnation(1, 1)),
            "shard 2 has node 1, which serves a shard already",
        ),
        (|genesis| genesis.shards[1].shard = ShardId(1), "shard 1 is named twice"),
        (
            |genesis| genesis.shards[0].primary.boot = 2,
            "shard 1 is led by node 1 boot 2, but the node is known as node 1 boot 1",
        ),
        (|genesis| genesis.nodes[1].name = genesis.nodes[0].name, "node 2 shares its name with another node"),
    ];
    for (change, what) in cases {
        assert_eq!(refused(change), what);
    }
}

#[test]
fn refusals() {
    use Refusal::*;
    let s = |shard: u32| ShardId(shard);
    let n = |node: u32| NodeId(node);
    let r = SlotRange::new;
    let create = |shard: u32, primary: Incarnation, replicas: &[u32]| EntryBody::CreateShard {
        shard: ShardId(shard),
        primary,
        replicas: replicas.iter().map(|node| NodeId(*node)).collect(),
    };
    let strange = Incarnation { directory: [9; 16], ..incarnation(7, 1) };
    let restarted = |incarnation| EntryBody::Restarted { incarnation };
    let mut renamed = node_info(8, false);
    renamed.name = node_info(2, false).name;
    let cases = [
        (EntryBody::AddNode(node_info(0, false)), NodeZero),
        (EntryBody::AddNode(node_info(7, false)), NodeExists { node: n(7) }),
        (EntryBody::AddNode(node_info(8, true)), VotersFixed { node: n(8) }),
        (EntryBody::AddNode(renamed.clone()), NameTaken { name: renamed.name, node: n(2) }),
        (EntryBody::RemoveNode { node: n(8) }, UnknownNode { node: n(8) }),
        (EntryBody::RemoveNode { node: n(6) }, NodeInShard { node: n(6), shard: s(3) }),
        (create(1, incarnation(7, 1), &[]), ShardExists { shard: s(1) }),
        (create(4, incarnation(8, 1), &[]), UnknownNode { node: n(8) }),
        (
            create(4, incarnation(7, 2), &[]),
            NotKnownAs { named: incarnation(7, 2), known: incarnation(7, 1) },
        ),
        (create(4, strange, &[]), NotKnownAs { named: strange, known: incarnation(7, 1) }),
        (create(4, incarnation(7, 1), &[1]), NodeInShard { node: n(1), shard: s(1) }),
        (create(4, incarnation(7, 1), &[7]), NamedTwice { node: n(7) }),
        (create(4, incarnation(7, 1), &[9; 64]), TooManyMembers { shard: s(4), members: 65 }),
        (assign(9, 300, 300), UnknownShard { shard: s(9) }),
        (assign(1, 199, 300), SlotOwned { slot: Slot::new(199).unwrap(), owner: s(2) }),
        (assign(1, 16_384, 16_384), SlotOutOfRange),
        (in_sync(2, &[]), InSyncChanged { shard: s(1), expected: 2, current: 1 }),
        (in_sync(1, &[(3, 1)]), NotMember { node: n(3), shard: s(1) }),
        (in_sync(1, &[(2, 2)]), BootNotKnown { node: n(2), named: 2, known: 1 }),
        (in_sync(1, &[(1, 2)]), BootNotKnown { node: n(1), named: 2, known: 1 }),
        (restarted(incarnation(9, 2)), UnknownNode { node: n(9) }),
        (restarted(incarnation(1, 1)), BootNotNewer { node: n(1), known: 1, named: 1 }),
        (
            restarted(Incarnation { directory: [9; 16], ..incarnation(5, 2) }),
            VoterDirectoryChanged { node: n(5) },
        ),
        (restarted(Incarnation { boot: 2, ..strange }), DirectoryChanged { node: n(7) }),
        (failover(2, 2, 1), EpochChanged { shard: s(1), expected: Epoch(2), current: Epoch(1) }),
        (failover(1, 1, 1), AlreadyPrimary { shard: s(1), primary: incarnation(1, 1) }),
        (failover(1, 1, 2), NotKnownAs { named: incarnation(1, 2), known: incarnation(1, 1) }),
        (failover(1, 3, 1), NotMember { node: n(3), shard: s(1) }),
        (start_job(9, 2, &[(0, 1)], 0), UnknownShard { shard: s(9) }),
        (start_job(1, 9, &[(0, 1)], 0), UnknownShard { shard: s(9) }),
        (start_job(1, 1, &[(0, 1)], 0), TargetIsSource),
        (start_job(1, 2, &[], 0), NoSlots),
        (start_job(1, 2, &[(0, 16_384)], 0), SlotOutOfRange),
        (start_job(1, 2, &[(5, 4)], 0), RangeReversed { start: 5, end: 4 }),
        (start_job(1, 2, &[(5, 9), (1, 5)], 0), RangesOverlap { range: r(5, 9), previous: r(1, 5) }),
        (start_job(1, 2, &[(300, 301)], 0), SlotNotServed { slot: Slot::new(300).unwrap() }),
        (start_job(1, 2, &[(99, 100)], 0), SlotsSpanShards),
        (start_job(1, 2, &[(200, 200)], 0), SlotsElsewhere { slot: Slot::new(200).unwrap(), owner: s(3) }),
        (EntryBody::CommitJobs(vec![]), NoJobs),
        (EntryBody::Activated { job: JobId(9) }, UnknownJob { job: JobId(9) }),
        (
            EntryBody::EndAttempt { job: JobId(9), attempt: Attempt(9), why: String::new() },
            UnknownJob { job: JobId(9) },
        ),
        (
            EntryBody::AbortJob { job: JobId(9), why: String::new(), cancelled: true },
            UnknownJob { job: JobId(9) },
        ),
    ];
    let mut cluster = Cluster::new();
    for (body, refusal) in cases {
        assert_eq!(cluster.refused(body.clone()), refusal, "{body:?}");
    }
    assert_eq!(cluster.map.counter, 1, "what is refused takes no number");
}

#[test]
fn texts_that_clients_know() {
    let mut cluster = Cluster::new();
    cluster.start(1, 2, 10, 19);
    let cases = [
        (start_job(1, 2, &[], 9), "No slot ranges specified"),
        (start_job(1, 2, &[(0, 16_384)], 9), "Invalid or out of range slot"),
        (start_job(1, 2, &[(5, 4)], 9), "Start slot number 5 is greater than end slot number 4."),
        (start_job(1, 2, &[(5, 9), (1, 5)], 9), "Slot range 5-9 overlaps with previous range 1-5."),
        (start_job(1, 2, &[(5, 5), (5, 5)], 9), "Slot range 5-5 overlaps with previous range 5-5."),
        (start_job(1, 2, &[(99, 100)], 9), "Requested slots span multiple shards"),
        (start_job(1, 2, &[(300, 300)], 9), "Slot 300 has no node served."),
        (start_job(1, 2, &[(200, 200)], 9), "Slots are not served by this node."),
        (start_job(1, 2, &[(0, 30)], 9), "I am already migrating slot 10."),
        (start_job(1, 1, &[(0, 1)], 9), "Target node can not be this node."),
    ];
    for (body, text) in cases {
        assert_eq!(cluster.refused(body).to_string(), text);
    }
}

#[test]
fn nodes_come_and_go_and_numbers_do_not_return() {
    let mut cluster = Cluster::new();
    assert_eq!(
        cluster.effect(EntryBody::AddNode(node_info(8, false))),
        Effect::NodeAdded { node: NodeId(8) }
    );
    assert_eq!(
        cluster.effect(EntryBody::RemoveNode { node: NodeId(8) }),
        Effect::NodeRemoved { node: NodeId(8) }
    );
    assert_eq!(
        cluster.refused(EntryBody::AddNode(node_info(8, false))),
        Refusal::NodeRetired { node: NodeId(8) }
    );
    let mut genesis = genesis();
    genesis.shards.remove(0);
    let mut map = ClusterMap::genesis(genesis).unwrap();
    let entry = cluster.entry(EntryBody::RemoveNode { node: NodeId(1) });
    assert_eq!(map.apply(2, &entry).into_result(), Err(Refusal::IsVoter { node: NodeId(1) }));
}

#[test]
fn a_shard_is_made_and_given_slots() {
    let mut cluster = Cluster::new();
    cluster.effect(EntryBody::AddNode(node_info(8, false)));
    let create =
        EntryBody::CreateShard { shard: ShardId(4), primary: incarnation(8, 1), replicas: vec![NodeId(7)] };
    assert_eq!(cluster.effect(create), Effect::ShardCreated { shard: ShardId(4) });
    assert_eq!(cluster.map.shards[&ShardId(4)].in_sync, [(NodeId(7), 1), (NodeId(8), 1)].into());
    let assigned = cluster.effect(assign(4, 300, 16_383));
    assert_eq!(assigned, Effect::SlotsAssigned { shard: ShardId(4), term: Term(2) });
    let owner = cluster.owner(16_383);
    assert_eq!((owner.shard, owner.term, owner.generation.major()), (Some(ShardId(4)), Term(2), 2));
}

#[test]
fn in_sync_sets_are_compared_and_swapped() {
    let mut cluster = Cluster::new();
    cluster.effect(in_sync(1, &[]));
    assert_eq!(cluster.map.shards[&ShardId(1)].in_sync, [(NodeId(1), 1)].into(), "the primary is always in");
    assert_eq!(
        cluster.refused(in_sync(1, &[(2, 1)])),
        Refusal::InSyncChanged { shard: ShardId(1), expected: 1, current: 2 }
    );
    let set = cluster.effect(in_sync(2, &[(2, 1), (1, 1)]));
    assert_eq!(set, Effect::InSyncSet { shard: ShardId(1), version: 3 });
}

#[test]
fn a_restarted_replica_is_not_in_sync_and_cannot_lead() {
    let mut cluster = Cluster::new();
    let again = cluster.restart(2);
    let shard = &cluster.map.shards[&ShardId(1)];
    assert_eq!((shard.in_sync.get(&NodeId(2)), shard.in_sync_version), (None, 2));
    assert_eq!(
        cluster.refused(failover(1, 2, 2)),
        Refusal::NotInSync { candidate: again, shard: ShardId(1) }
    );
    // A second restart changes a set that it is not in no more.
    cluster.restart(2);
    assert_eq!(cluster.map.shards[&ShardId(1)].in_sync_version, 2);
    cluster.effect(in_sync(2, &[(2, 3)]));
    cluster.effect(failover(1, 2, 3));
}

#[test]
fn a_restarted_primary_leads_again_by_a_failover() {
    let mut cluster = Cluster::new();
    let again = cluster.restart(1);
    assert_eq!(cluster.map.shards[&ShardId(1)].primary, incarnation(1, 1), "not yet");
    let lacking = Refusal::MayLackWrites { candidate: again, shard: ShardId(1) };
    assert_eq!(cluster.refused(failover(1, 1, 2)), lacking, "its replica may have more");
    let effect = cluster.fail_over(1, again);
    let expected = Effect::FailedOver { shard: ShardId(1), epoch: Epoch(2), term: Term(2), jobs: vec![] };
    assert_eq!(effect, expected);
    let shard = &cluster.map.shards[&ShardId(1)];
    assert_eq!((shard.primary, shard.in_sync_version), (again, 2));
    assert_eq!(shard.in_sync, [(NodeId(1), 2), (NodeId(2), 1)].into());
    assert_eq!((cluster.owner(0).term, cluster.owner(100).term), (Term(2), Term(1)));
}

#[test]
fn a_failover_to_a_replica_swaps_the_roles() {
    let mut cluster = Cluster::new();
    cluster.fail_over(1, incarnation(2, 1));
    let shard = &cluster.map.shards[&ShardId(1)];
    assert_eq!((shard.primary, &shard.replicas[..]), (incarnation(2, 1), &[NodeId(1)][..]));
    assert_eq!(shard.in_sync, [(NodeId(2), 1)].into(), "the old primary must show what it has first");
}

#[test]
fn jobs_are_started_ended_and_aborted() {
    let mut cluster = Cluster::new();
    let started = cluster.effect(start_job(1, 2, &[(50, 59), (10, 19)], 1));
    let (job, attempt) = (JobId(2), Attempt(2));
    let generation = lockgate_engine::Generation::new(2);
    assert_eq!(started, Effect::JobStarted { job, attempt, generation });
    assert_eq!(cluster.job(job).slots, [SlotRange::new(10, 19), SlotRange::new(50, 59)]);
    assert_eq!(cluster.job(job).slot_count(), 20);
    let busy = Refusal::SlotInJob { slot: 10, job };
    assert_eq!(cluster.refused(start_job(1, 3, &[(0, 10)], 2)), busy);
    assert_eq!(
        cluster.refused(start_job(1, 3, &[(0, 9)], 1)),
        Refusal::JobNameTaken { name: cluster.job(job).name, job }
    );

    let end = |attempt| EntryBody::EndAttempt { job, attempt, why: "target gone".into() };
    assert_eq!(cluster.effect(end(attempt)), Effect::AttemptEnded { job, next: Attempt(3) });
    let again = cluster.refused(end(attempt));
    assert_eq!(again, Refusal::AttemptConsumed { job, named: attempt, current: Attempt(3) });
    assert_eq!(
        (cluster.job(job).generation, cluster.job(job).last_attempt.as_str()),
        (generation, "target gone")
    );

    let abort = |job, cancelled| EntryBody::AbortJob { job, why: "asked".into(), cancelled };
    cluster.effect(abort(job, true));
    assert_eq!(cluster.job(job).state, JobState::Cancelled { why: "asked".into() });
    let ended = Refusal::JobState { job, state: "cancelled", needed: "active" };
    assert_eq!(cluster.refused(abort(job, false)), ended);
    assert_eq!(cluster.refused(end(Attempt(3))), ended);
    let not_committed = Refusal::JobState { job, state: "cancelled", needed: "committed" };
    assert_eq!(cluster.refused(EntryBody::Activated { job }), not_committed);

    let other = cluster.start(1, 3, 0, 9);
    cluster.effect(abort(other, false));
    assert_eq!(cluster.job(other).state, JobState::Failed { why: "asked".into() });
}

#[test]
fn a_repeated_start_starts_nothing() {
    let mut cluster = Cluster::new();
    let mut entry = cluster.entry(start_job(1, 2, &[(0, 9)], 1));
    let seen = Outcome::Refused(Refusal::Duplicate { node: NodeId(1) });
    entry.origin.seq = 1_000;
    assert!(cluster.apply_entry(&entry).into_result().is_ok());
    assert_eq!(cluster.apply_entry(&entry), seen);
    // Numbers may arrive in any order, as long as few of them overtake one.
    let mut earlier = cluster.entry(start_job(1, 2, &[(10, 19)], 2));
    earlier.origin.seq = 999;
    assert!(cluster.apply_entry(&earlier).into_result().is_ok());
    // A refused one is seen as well: its proposer was told so, and does not expect it to start later.
    let mut refused = cluster.entry(start_job(1, 2, &[(0, 9)], 3));
    refused.origin.seq = 998;
    assert_eq!(
        cluster.apply_entry(&refused).into_result(),
        Err(Refusal::SlotInJob { slot: 0, job: JobId(2) })
    );
    cluster.effect(EntryBody::AbortJob { job: JobId(2), why: String::new(), cancelled: true });
    assert_eq!(cluster.apply_entry(&refused), seen);
    // Too old to tell.
    for seq in 0..PROPOSALS_KEPT as u64 {
        let mut entry = cluster.entry(start_job(1, 2, &[], 0));
        entry.origin.seq = 2_000 + seq;
        assert_eq!(cluster.apply_entry(&entry).into_result(), Err(Refusal::NoSlots));
    }
    entry.origin.seq = 1;
    assert_eq!(cluster.apply_entry(&entry), seen);
    // A new boot counts anew, and what an earlier boot asked for is too late.
    entry.origin = Origin { boot: 2, seq: 1, ..entry.origin };
    entry.body = start_job(1, 2, &[(0, 9)], 4);
    assert!(cluster.apply_entry(&entry).into_result().is_ok());
    entry.origin = Origin { boot: 1, seq: 9_999, ..entry.origin };
    assert_eq!(cluster.apply_entry(&entry), seen);
    entry.origin.node = NodeId(99);
    assert_eq!(cluster.apply_entry(&entry).into_result(), Err(Refusal::UnknownNode { node: NodeId(99) }));
}

#[test]
fn the_longest_finished_jobs_are_forgotten() {
    let mut cluster = Cluster::new();
    let running = cluster.start(1, 2, 90, 99);
    let abort = |job| EntryBody::AbortJob { job, why: String::new(), cancelled: true };
    let mut jobs = Vec::new();
    for number in 0..JOBS_KEPT as u16 + 2 {
        let mut entry = cluster.entry(start_job(1, 2, &[(0, 0)], 0));
        let EntryBody::StartJob { name, .. } = &mut entry.body else { unreachable!() };
        name.0[..2].copy_from_slice(&number.to_be_bytes());
        let Ok(Effect::JobStarted { job, .. }) = cluster.apply_entry(&entry).into_result() else { panic!() };
        cluster.effect(abort(job));
        jobs.push(job);
    }
    assert_eq!(cluster.map.jobs.len(), JOBS_KEPT + 1);
    assert!(cluster.map.jobs.contains_key(&running), "an old job that runs stays");
    assert!(!cluster.map.jobs.contains_key(&jobs[1]) && cluster.map.jobs.contains_key(&jobs[2]));
    cluster.effect(abort(running));
    assert!(cluster.map.jobs.contains_key(&running), "it ended last, whenever it began");
}

#[test]
#[should_panic(expected = "control entries are applied in order, each once")]
fn an_index_is_applied_once() {
    let mut cluster = Cluster::new();
    cluster.map.skip(1);
}

#[test]
fn voters_are_replaced_once_and_only_by_nodes() {
    let mut cluster = Cluster::new();
    let voters = |ids: &[u32]| ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
    let set = |ids: &[u32]| EntryBody::SetVoters { voters: voters(ids) };
    assert_eq!(cluster.refused(set(&[])), Refusal::VoterCount { voters: 0 });
    let eight: Vec<u32> = (1..=8).collect();
    assert_eq!(cluster.refused(set(&eight)), Refusal::VoterCount { voters: 8 });
    assert_eq!(cluster.refused(set(&[1, 9])), Refusal::UnknownNode { node: NodeId(9) });
    assert_eq!(cluster.refused(set(&[1, 2, 1])), Refusal::NamedTwice { node: NodeId(1) });
    assert_eq!(cluster.map.voters(), voters(&[1, 2, 3, 4, 5]));
    let entry = cluster.entry(set(&[7, 6]));
    let effect = Effect::VotersSet { voters: voters(&[6, 7]) };
    assert_eq!(cluster.apply_entry(&entry), Outcome::Applied(effect));
    assert_eq!((cluster.map.voters(), cluster.map.learners()), (voters(&[6, 7]), voters(&[1, 2, 3, 4, 5])));
    cluster.effect(set(&[1]));
    let late = Outcome::Refused(Refusal::Duplicate { node: NodeId(1) });
    assert_eq!(cluster.apply_entry(&entry), late);
    assert_eq!(cluster.map.voters(), voters(&[1]));
    cluster.effect(EntryBody::RemoveNode { node: NodeId(7) });
}
