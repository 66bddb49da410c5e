//! Leases and failovers against real maps: the rules, one by one.

use super::*;
use crate::control::tests::{Cluster, incarnation};
use crate::control::{EntryBody, Epoch, JobId, NodeId, ShardId};

const SHARD: ShardId = ShardId(1);
/// A moment at which nothing is over by the clock's start.
const NOW_NS: u64 = 100_000_000_000;

fn times() -> Times {
    Times::default()
}

fn lease_ask(epoch: u64, nonce: u64, holding: bool) -> LeaseAsk {
    LeaseAsk { shard: SHARD, epoch: Epoch(epoch), nonce, granted: 0, holding }
}

/// The request of a member that has applied all of the map.
fn ask(cluster: &Cluster, node: u32, boot: u64, ask: LeaseAsk) -> Ask {
    Ask { from: NodeId(node), boot, applied: cluster.map.applied, ask }
}

fn leading(now_ns: u64) -> Grantor {
    let mut grantor = Grantor::new(times());
    grantor.leads(Some(3), now_ns);
    grantor
}

/// What becomes of one request whose round is confirmed at once.
fn judged(grantor: &mut Grantor, cluster: &Cluster, ask: Ask, now_ns: u64) -> bool {
    grantor.ask(ask);
    let round = grantor.begin_round().expect("a request waits");
    !grantor.confirmed(round, &cluster.map, now_ns).is_empty()
}

#[test]
fn a_lease_needs_a_leader_and_a_round_that_began_after_the_request() {
    let cluster = Cluster::new();
    let mut grantor = Grantor::new(times());
    grantor.ask(ask(&cluster, 1, 1, lease_ask(1, 1, false)));
    assert_eq!(grantor.begin_round(), None, "it does not lead");
    grantor.leads(Some(3), NOW_NS);
    assert_eq!(grantor.begin_round(), None, "what came before it led is forgotten");
    grantor.ask(ask(&cluster, 1, 1, lease_ask(1, 1, false)));
    let first = grantor.begin_round().unwrap();
    grantor.ask(ask(&cluster, 1, 1, lease_ask(1, 2, false)));
    let granted = grantor.confirmed(first, &cluster.map, NOW_NS);
    assert_eq!(
        granted.iter().map(|grant| grant.nonce).collect::<Vec<_>>(),
        [1],
        "the second came too late for it"
    );
    assert_eq!(granted[0].length_ns, times().lease_ns);
    let second = grantor.begin_round().unwrap();
    grantor.leads(None, NOW_NS);
    grantor.leads(Some(5), NOW_NS);
    assert!(grantor.confirmed(second, &cluster.map, NOW_NS).is_empty(), "a round of another term");
}

#[test]
fn only_the_primary_of_the_reign_that_has_applied_all_of_its_shard_gets_a_lease() {
    let mut cluster = Cluster::new();
    let mut grantor = leading(NOW_NS);
    let good = lease_ask(1, 1, false);
    assert!(!judged(&mut grantor, &cluster, ask(&cluster, 2, 1, good), NOW_NS), "a replica");
    assert!(!judged(&mut grantor, &cluster, ask(&cluster, 1, 2, good), NOW_NS), "another boot");
    assert!(
        !judged(&mut grantor, &cluster, ask(&cluster, 1, 1, lease_ask(2, 1, true)), NOW_NS),
        "another reign"
    );
    let job = cluster.start(1, 2, 10, 19);
    let before = cluster.map.applied;
    cluster.committed(job);
    let lagging = Ask { applied: before, ..ask(&cluster, 1, 1, good) };
    assert!(!judged(&mut grantor, &cluster, lagging, NOW_NS), "it may serve what it has given away");
    assert!(judged(&mut grantor, &cluster, ask(&cluster, 1, 1, good), NOW_NS));
}

#[test]
fn the_next_reign_waits_for_every_lease_of_the_last() {
    let mut cluster = Cluster::new();
    let mut grantor = leading(NOW_NS);
    assert!(judged(&mut grantor, &cluster, ask(&cluster, 1, 1, lease_ask(1, 1, false)), NOW_NS));
    cluster.fail_over(1, incarnation(2, 1));
    let over_ns = NOW_NS + times().lease_over_ns();
    let next = ask(&cluster, 2, 1, lease_ask(2, 1, false));
    assert!(!judged(&mut grantor, &cluster, next, over_ns - 1));
    assert!(judged(&mut grantor, &cluster, next, over_ns));
    // Renewals of one reign do not wait.
    assert!(judged(&mut grantor, &cluster, next, over_ns + 1));
}

#[test]
fn a_new_leader_waits_for_the_leases_that_its_forerunners_may_have_granted() {
    let mut cluster = Cluster::new();
    cluster.fail_over(1, incarnation(2, 1));
    let mut grantor = leading(NOW_NS);
    let over_ns = NOW_NS + times().lease_over_ns();
    let fresh = ask(&cluster, 2, 1, lease_ask(2, 1, false));
    assert!(!judged(&mut grantor, &cluster, fresh, over_ns - 1));
    assert!(judged(&mut grantor, &cluster, fresh, over_ns));
    // Who holds a lease of this reign shows that some leader has seen the earlier ones over: leases outlive leaders.
    let mut grantor = leading(NOW_NS);
    assert!(judged(&mut grantor, &cluster, ask(&cluster, 2, 1, lease_ask(2, 7, true)), NOW_NS));
}

#[test]
fn a_lease_that_was_yielded_or_whose_process_has_ended_is_over() {
    let mut cluster = Cluster::new();
    let mut grantor = leading(NOW_NS);
    assert!(judged(&mut grantor, &cluster, ask(&cluster, 1, 1, lease_ask(1, 1, false)), NOW_NS));
    grantor.ask(ask(&cluster, 1, 1, lease_ask(1, 2, true)));
    let round = grantor.begin_round().unwrap();
    grantor.yielded(NodeId(1), SHARD, Epoch(1), 2);
    assert!(grantor.confirmed(round, &cluster.map, NOW_NS).is_empty(), "it was asked for before");
    cluster.fail_over(1, incarnation(2, 1));
    assert!(judged(&mut grantor, &cluster, ask(&cluster, 2, 1, lease_ask(2, 1, false)), NOW_NS));
    // The next boot of the holder proves that the last one is gone.
    let again = cluster.restart(2);
    cluster.fail_over(1, again);
    assert!(judged(&mut grantor, &cluster, ask(&cluster, 2, 2, lease_ask(3, 1, false)), NOW_NS));
}

#[test]
fn a_late_word_of_yielding_does_not_end_a_later_lease() {
    let mut cluster = Cluster::new();
    let mut grantor = leading(NOW_NS);
    assert!(judged(&mut grantor, &cluster, ask(&cluster, 1, 1, lease_ask(1, 1, false)), NOW_NS));
    // The hand-over was given up, and the lease asked for anew, when the word of it arrives.
    assert!(judged(&mut grantor, &cluster, ask(&cluster, 1, 1, lease_ask(1, 2, false)), NOW_NS));
    grantor.yielded(NodeId(1), SHARD, Epoch(1), 1);
    cluster.fail_over(1, incarnation(2, 1));
    let next = ask(&cluster, 2, 1, lease_ask(2, 1, false));
    assert!(!judged(&mut grantor, &cluster, next, NOW_NS + times().lease_over_ns() - 1));
    assert!(judged(&mut grantor, &cluster, next, NOW_NS + times().lease_over_ns()));
}

#[test]
fn the_leader_releases_slots_when_no_lease_below_the_commit_is_left() {
    let mut cluster = Cluster::new();
    let mut grantor = leading(0);
    assert!(judged(&mut grantor, &cluster, ask(&cluster, 1, 1, lease_ask(1, 1, false)), NOW_NS));
    let job = cluster.start(1, 2, 10, 19);
    cluster.committed(job);
    grantor.committed(job, SHARD);
    // A later lease goes only to who has applied the commit, and does not count.
    assert!(judged(&mut grantor, &cluster, ask(&cluster, 1, 1, lease_ask(1, 2, true)), NOW_NS + 50));
    let over_ns = NOW_NS + times().lease_over_ns();
    assert!(!grantor.may_release(&cluster.map, job, over_ns - 1));
    assert!(grantor.may_release(&cluster.map, job, over_ns));
    let mut later = leading(NOW_NS);
    assert!(
        !later.may_release(&cluster.map, job, over_ns - 1),
        "of earlier leaders' grants it knows only the bound"
    );
    assert!(later.may_release(&cluster.map, job, over_ns));
    assert!(!Grantor::new(times()).may_release(&cluster.map, JobId(1), u64::MAX), "it does not lead");
}

// Failovers.

fn failovers(now_ns: u64) -> Failovers {
    let mut failovers = Failovers::new(times());
    failovers.leads_since(Some(now_ns));
    failovers
}

fn look(failovers: &mut Failovers, cluster: &Cluster, now_ns: u64) -> Vec<Move> {
    // The other shards' primaries are well.
    for shard in [2, 3] {
        failovers.heard(ShardId(shard), Epoch(1), now_ns, now_ns);
    }
    failovers.look(&cluster.map, now_ns, |_| false)
}

fn report(boot: u64, holds_all: bool, positions: &[(u16, u64, u64)]) -> FenceReport {
    let position = |&(slot, term, counter): &(u16, u64, u64)| SlotPosition { slot, term, counter };
    let positions = positions.iter().map(position).collect();
    FenceReport { shard: SHARD, epoch: Epoch(1), boot, holds_all, positions }
}

fn fence(to: u32) -> Move {
    Move::Fence { to: NodeId(to), shard: SHARD, epoch: Epoch(1) }
}

fn promote(node: u32, boot: u64, holds_all: bool) -> Move {
    let primary = incarnation(node, boot);
    Move::Promote { shard: SHARD, expected_epoch: Epoch(1), primary, holds_all }
}

#[test]
fn a_silent_primary_is_replaced_by_a_fenced_replica_that_is_in_sync() {
    let cluster = Cluster::new();
    let mut failovers = failovers(NOW_NS);
    let silent_ns = NOW_NS + times().node_timeout_ns;
    assert_eq!(look(&mut failovers, &cluster, silent_ns - 1), []);
    assert_eq!(look(&mut failovers, &cluster, silent_ns), [fence(2)], "nobody is named unfenced");
    failovers.report(NodeId(2), report(0, false, &[]));
    assert_eq!(look(&mut failovers, &cluster, silent_ns + 1), [], "the word of another boot");
    failovers.report(NodeId(2), report(1, false, &[(5, 1, 9)]));
    assert_eq!(look(&mut failovers, &cluster, silent_ns + 2), [promote(2, 1, false)]);
    assert_eq!(failovers.look(&cluster.map, silent_ns + 3, |shard| shard == SHARD), [], "it is on its way");
}

#[test]
fn a_primary_is_heard_when_its_leases_reach_it_and_not_when_it_only_asks() {
    let cluster = Cluster::new();
    let mut failovers = failovers(NOW_NS);
    let silent_ns = NOW_NS + times().node_timeout_ns;
    failovers.heard(SHARD, Epoch(1), 1, NOW_NS + 1);
    failovers.heard(SHARD, Epoch(1), 1, silent_ns);
    assert_eq!(look(&mut failovers, &cluster, silent_ns), []);
    assert_eq!(look(&mut failovers, &cluster, silent_ns + 1), [fence(2)], "it has not got a lease since");
    failovers.heard(SHARD, Epoch(1), 2, silent_ns + 2);
    assert_eq!(look(&mut failovers, &cluster, silent_ns + 3), [], "it came back in time");
}

#[test]
fn without_a_replica_in_sync_a_shard_waits_for_its_primary() {
    let mut cluster = Cluster::new();
    cluster.effect(EntryBody::SetInSync { shard: SHARD, expected_version: 1, in_sync: vec![] });
    let mut failovers = failovers(NOW_NS);
    assert_eq!(look(&mut failovers, &cluster, NOW_NS + 2 * times().node_timeout_ns), []);
    cluster.restart(1);
    let now_ns = NOW_NS + 3 * times().node_timeout_ns;
    assert_eq!(look(&mut failovers, &cluster, now_ns), [fence(1)]);
    failovers.report(NodeId(1), report(2, false, &[]));
    assert_eq!(
        look(&mut failovers, &cluster, now_ns + 1),
        [promote(1, 2, false)],
        "all that there is, is there"
    );
}

#[test]
fn a_restarted_primary_that_may_lack_writes_gives_way_to_its_replica() {
    let mut cluster = Cluster::new();
    cluster.restart(1);
    let mut failovers = failovers(NOW_NS);
    assert_eq!(look(&mut failovers, &cluster, NOW_NS), [fence(2), fence(1)], "no timeout is waited for");
    failovers.report(NodeId(1), report(2, false, &[(5, 1, 99)]));
    let waited_ns = NOW_NS + times().node_timeout_ns;
    assert_eq!(look(&mut failovers, &cluster, waited_ns), [fence(2)], "its own word is not enough");
    failovers.report(NodeId(2), report(1, false, &[(5, 1, 9)]));
    assert_eq!(look(&mut failovers, &cluster, waited_ns + 1), [promote(2, 1, false)]);
    failovers.report(NodeId(1), report(2, true, &[(5, 1, 99)]));
    assert_eq!(
        look(&mut failovers, &cluster, waited_ns + 2),
        [promote(1, 2, true)],
        "now it is the most complete"
    );
}

#[test]
fn the_most_complete_candidate_is_named_slot_by_slot() {
    let mut cluster = Cluster::new();
    cluster.effect(EntryBody::SetReplicas { shard: SHARD, replicas: vec![NodeId(2), NodeId(7)] });
    let in_sync = vec![(NodeId(2), 1), (NodeId(7), 1)];
    cluster.effect(EntryBody::SetInSync { shard: SHARD, expected_version: 1, in_sync });
    let mut failovers = failovers(NOW_NS);
    let silent_ns = NOW_NS + times().node_timeout_ns;
    assert_eq!(look(&mut failovers, &cluster, silent_ns), [fence(2), fence(7)]);
    // One has a higher number in one slot, the other in two: a sum would mislead.
    failovers.report(NodeId(2), report(1, false, &[(1, 1, 1_000), (2, 1, 5), (3, 1, 5)]));
    assert_eq!(look(&mut failovers, &cluster, silent_ns + 1), [], "the other one is waited for");
    failovers.report(NodeId(7), report(1, false, &[(1, 1, 10), (2, 1, 6), (3, 1, 6)]));
    assert_eq!(look(&mut failovers, &cluster, silent_ns + 2), [promote(7, 1, false)]);
}

#[test]
fn a_planned_failover_names_the_heir_and_nobody_else() {
    let mut cluster = Cluster::new();
    cluster.effect(EntryBody::SetReplicas { shard: SHARD, replicas: vec![NodeId(2), NodeId(7)] });
    let in_sync = vec![(NodeId(2), 1), (NodeId(7), 1)];
    cluster.effect(EntryBody::SetInSync { shard: SHARD, expected_version: 1, in_sync });
    let mut failovers = failovers(NOW_NS);
    failovers.hand_over(SHARD, Epoch(1), NodeId(7), NOW_NS);
    assert_eq!(look(&mut failovers, &cluster, NOW_NS), [fence(2), fence(7)]);
    failovers.report(NodeId(2), report(1, false, &[(1, 1, 10)]));
    assert!(
        !look(&mut failovers, &cluster, NOW_NS + 1).iter().any(|step| matches!(step, Move::Promote { .. }))
    );
    failovers.report(NodeId(7), report(1, false, &[(1, 1, 10)]));
    assert_eq!(look(&mut failovers, &cluster, NOW_NS + 2), [promote(7, 1, false)]);
    // It is given up when it does not come about.
    let mut given_up = self::failovers(NOW_NS);
    given_up.hand_over(SHARD, Epoch(1), NodeId(7), NOW_NS);
    let later_ns = NOW_NS + times().node_timeout_ns;
    given_up.heard(SHARD, Epoch(1), 5, later_ns);
    assert_eq!(look(&mut given_up, &cluster, later_ns), []);
}
