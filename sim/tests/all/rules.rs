//! Known bugs that no run shows, or too rarely, because other rules stand in or nobody asks for what is forbidden: here the
//! rule itself is asked, with the bug and without it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lockgate_engine::log::LogPosition;
use lockgate_engine::{Followed, Generation, LogTicket, Slot, Term, Version};
use lockgate_migrate::control::recovery::link_id;
use lockgate_migrate::control::{
    ClusterMap, Entry, EntryBody, Epoch, Genesis, GenesisShard, Incarnation, Name, NodeId, NodeInfo, Origin,
    Outcome, Refusal, ShardId, SlotRange,
};
use lockgate_migrate::office::{Ask, Grantor, LeaseAsk};
use lockgate_migrate::replica::{ReplicaAcks, ReplicaMarks};
use lockgate_migrate::{AckPolicy, Dependency, Times};
use lockgate_net::link::{FORMAT, Hello, Purpose};
use lockgate_sim::mutations::with;

const SHARD: ShardId = ShardId(1);

fn incarnation(node: u32) -> Incarnation {
    Incarnation { node: NodeId(node), directory: [node as u8; 16], boot: 1 }
}

/// Shard 1 is nodes 1 and 2, shard 2 nodes 3 and 4.
fn map() -> ClusterMap {
    let node = |number: u32| NodeInfo {
        name: Name([number as u8; 20]),
        link: SocketAddr::from(([127, 0, 0, 1], 7_000 + number as u16)),
        listen: SocketAddr::from(([127, 0, 0, 1], 6_000 + number as u16)),
        incarnation: incarnation(number),
        voter: true,
    };
    let shard = |number: u32| GenesisShard {
        shard: ShardId(number),
        primary: incarnation(2 * number - 1),
        replicas: vec![incarnation(2 * number)],
        slots: vec![SlotRange::new(number as u16 * 10, number as u16 * 10 + 9)],
    };
    let (shards, nodes) = ((1..=2).map(shard).collect(), (1..=4).map(node).collect());
    ClusterMap::genesis(Genesis { cluster: [7; 16], generation: 0, shards, nodes }).expect("a sound genesis")
}

fn apply(map: &mut ClusterMap, seq: u64, body: EntryBody) -> Outcome {
    let origin = Origin { node: NodeId(1), boot: 1, seq };
    map.apply(map.applied + 1, &Entry { origin, at_ms: 1, body })
}

fn dependency(reign: u64) -> Dependency {
    let ticket = LogTicket { core: 0, position: LogPosition(0) };
    let version = Version { term: Term(1), counter: 10 };
    Dependency { slot: Slot::new(12).expect("a slot"), version, ticket, reign }
}

/// R13. No operation of a run makes a node the replica of another shard.
#[test]
fn a_node_serves_one_shard() {
    let try_it = |bug| {
        let mut map = map();
        let body = EntryBody::SetReplicas { shard: SHARD, replicas: vec![NodeId(2), NodeId(4)] };
        let outcome = with(bug, || apply(&mut map, 1, body));
        (outcome.into_result(), map.validate().is_ok())
    };
    let refusal = Refusal::NodeInShard { node: NodeId(4), shard: ShardId(2) };
    assert_eq!(try_it(None), (Err(refusal), true));
    let (result, is_valid) = try_it(Some("a-node-in-two-shards"));
    assert!(result.is_ok() && !is_valid, "the oracle that looks at maps would see it");
}

/// R9. No client of a run reads at replicas: that is exempt from what its oracles check.
#[test]
fn a_replica_shows_nothing_above_the_watermark() {
    let try_it = |bug, written: u64| {
        let (marks, slot, generation) =
            (ReplicaMarks::default(), Slot::new(12).expect("a slot"), Generation::new(1));
        let version = |counter| Version { term: Term(1), counter };
        marks.told(slot, generation, version(10));
        let before = marks.mark(slot).expect("it was just told");
        let seen = Followed {
            value: None,
            deadline_ms: None,
            slot,
            generation,
            version: version(written),
            slot_version: version(12),
        };
        assert!(marks.is_sound(&before, &seen));
        with(bug, || marks.covers(&before, &seen))
    };
    assert_eq!((try_it(None, 10), try_it(None, 11)), (Some(true), Some(false)));
    assert_eq!(try_it(Some("replica-reads-above-the-watermark"), 11), Some(true));
}

/// R18. No run loses its voters for good.
#[test]
fn an_old_voter_is_not_let_into_the_next_generation() {
    let try_it = |bug| {
        with(bug, || {
            let hello = |node, generation| Hello {
                cluster: link_id([7; 16], generation),
                node,
                directory: [node as u8; 16],
                boot: 1,
                purpose: Purpose::Control,
                format: FORMAT,
            };
            let (recovered, old) = (hello(1, 1), hello(2, 0));
            (recovered.check_cluster(&hello(3, 1)).is_ok(), recovered.check_cluster(&old).is_ok())
        })
    };
    assert_eq!(try_it(None), (true, false));
    assert_eq!(try_it(Some("recovery-without-the-fence")), (true, true));
}

/// R11. A primary has one change under way at a time, and a failover bumps the epoch as well.
#[test]
fn a_change_of_another_in_sync_set_is_refused() {
    let try_it = |bug| {
        let mut map = map();
        let expected_version = map.shards[&SHARD].in_sync_version;
        let set = |members: &[u32]| EntryBody::SetInSync {
            shard: SHARD,
            expected_version,
            in_sync: members.iter().map(|&node| (NodeId(node), 1)).collect(),
        };
        assert!(apply(&mut map, 1, set(&[1])).into_result().is_ok(), "the replica leaves");
        with(bug, || apply(&mut map, 2, set(&[1, 2]))).into_result().is_ok()
    };
    assert!(!try_it(None), "it was proposed for the set before");
    assert!(try_it(Some("in-sync-set-not-compared")));
}

/// R11. To show it, a replica would have to be named and to lead between an answer and its record's arrival.
#[test]
fn answers_wait_for_who_is_about_to_join() {
    let try_it = |bug| {
        let (acks, wanted) = (ReplicaAcks::default(), dependency(0));
        with(bug, || {
            acks.set_members(BTreeMap::from([(NodeId(2), 1)]));
            acks.set_joining(BTreeMap::from([(NodeId(3), 1)]));
            acks.acknowledged(NodeId(2), 1, wanted.slot, wanted.version, wanted.version);
            acks.covers(&wanted, AckPolicy::InSync)
        })
    };
    assert!(!try_it(None), "node 3 has not acknowledged it");
    assert!(try_it(Some("joining-not-waited-for")));
}

/// R8. To show it, a primary would have to lose its office and get it back within one answer's patience.
#[test]
fn nothing_of_a_reign_that_is_over_is_answered_for() {
    let try_it = |bug| {
        let acks = ReplicaAcks::default();
        acks.begin_reign(1);
        let before = acks.is_lost(&dependency(1));
        acks.begin_reign(2);
        (before, with(bug, || acks.is_lost(&dependency(1))))
    };
    assert_eq!(try_it(None), (false, true));
    assert_eq!(try_it(Some("acknowledged-after-deposal")), (false, false));
}

/// R8, R14. A primary that was cut off applies in one batch the failover that deposed it and its successor's commit of the same
/// slots, while an answer still waits there. One seed in several hundred has that.
#[test]
fn the_commit_of_a_successor_covers_nothing_of_who_was_deposed() {
    let (mine, successors) = (1, 2);
    let try_it = |bug, voted_in: u64| {
        let (acks, waits) = (ReplicaAcks::default(), dependency(mine));
        acks.begin_reign(mine);
        acks.set_members(BTreeMap::from([(NodeId(2), 1)]));
        assert!(!acks.covers(&waits, AckPolicy::InSync), "only the primary has it");
        // In the order of a batch: the reign follows the map first, and then the gates do.
        acks.begin_reign(0);
        acks.set_members(BTreeMap::new());
        acks.released(waits.slot, Term(2), voted_in);
        with(bug, || (acks.is_lost(&waits), acks.is_released(&waits)))
    };
    assert_eq!(try_it(None, successors), (true, false), "the barrier was passed without that write");
    assert_eq!(try_it(None, mine), (false, true), "its own vote's barrier had it");
    assert_eq!(try_it(Some("commit-of-another-reign-covers"), successors), (false, true));
}

/// R6 (c). A holder that can be granted a lease hears of entries as soon, so that a run would have to lose just these.
#[test]
fn who_has_not_applied_what_touched_its_shard_gets_no_lease() {
    let try_it = |bug, applied_of: fn(u64) -> u64| {
        let mut map = map();
        let set = EntryBody::SetInSync {
            shard: SHARD,
            expected_version: map.shards[&SHARD].in_sync_version,
            in_sync: vec![(NodeId(1), 1)],
        };
        assert!(apply(&mut map, 1, set).into_result().is_ok());
        let mut grantor = Grantor::new(Times::default());
        grantor.leads(Some(1), 0);
        let ask = LeaseAsk { shard: SHARD, epoch: Epoch(1), nonce: 1, granted: 0, holding: false };
        grantor.ask(Ask { from: NodeId(1), boot: 1, applied: applied_of(map.applied), ask });
        let round = grantor.begin_round().expect("a request waits");
        with(bug, || grantor.confirmed(round, &map, 1)).len()
    };
    assert_eq!(try_it(None, |index| index), 1, "it has applied everything");
    assert_eq!(try_it(None, |index| index - 1), 0);
    assert_eq!(try_it(Some("lease-to-who-lags"), |index| index - 1), 1);
}
