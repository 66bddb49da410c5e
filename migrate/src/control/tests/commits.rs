//! The vote: what it moves, what voids it, and the problem's two scenarios, a failover of either side around it.

use super::super::map::{JobState, Pending};
use super::*;

#[test]
fn a_vote_moves_exactly_the_jobs_slots() {
    let mut cluster = Cluster::new();
    let job = cluster.start(1, 2, 10, 19);
    let clock_ms = cluster.evidence(job).clock_ms;
    let term = cluster.committed(job);
    assert_eq!(term, Term(3));
    let pending = Pending { job, from: ShardId(1), from_primary: incarnation(1, 1), clock_ms };
    for slot in 0..100 {
        let owner = cluster.owner(slot);
        if (10..20).contains(&slot) {
            assert_eq!((owner.shard, owner.term, owner.version), (Some(ShardId(2)), term, 2));
            assert_eq!((owner.generation.major(), owner.pending), (job.0, Some(pending)));
        } else {
            assert_eq!((owner.shard, owner.term, owner.version), (Some(ShardId(1)), Term(1), 1));
        }
    }
    let (source, target) = (&cluster.map.shards[&ShardId(1)], &cluster.map.shards[&ShardId(2)]);
    assert_eq!((source.epoch, target.epoch), (Epoch(1), Epoch(1)), "a vote bumps no epoch");
    assert_eq!((source.in_sync_version, target.in_sync_version), (1, 2));
    assert_eq!(source.changed_index, cluster.map.applied);

    cluster.effect(EntryBody::Activated { job });
    assert_eq!((cluster.owner(10).pending, cluster.owner(10).version), (None, 3));
    assert_eq!(cluster.job(job).state, JobState::Activated { index: cluster.map.applied });
    let again = Refusal::JobState { job, state: "activated", needed: "committed" };
    assert_eq!(cluster.refused(EntryBody::Activated { job }), again);
}

#[test]
fn pending_slots_are_left_alone() {
    let mut cluster = Cluster::new();
    let job = cluster.start(1, 2, 10, 19);
    cluster.committed(job);
    let slot = Slot::new(10).unwrap();
    let onward = start_job(2, 3, &[(10, 10)], 9);
    assert_eq!(cluster.refused(onward.clone()), Refusal::SlotPending { slot, from: ShardId(1), job });
    let assign = EntryBody::AssignSlots { shard: ShardId(3), ranges: vec![SlotRange::new(10, 10)] };
    assert_eq!(cluster.refused(assign), Refusal::SlotOwned { slot, owner: ShardId(2) });
    let remove = EntryBody::RemoveNode { node: NodeId(1) };
    assert_eq!(cluster.refused(remove), Refusal::NodeInShard { node: NodeId(1), shard: ShardId(1) });
    let late = Refusal::TooLate { job };
    assert_eq!(cluster.refused(EntryBody::AbortJob { job, why: String::new(), cancelled: true }), late);
    assert_eq!(cluster.refused(EntryBody::EndAttempt { job, attempt: Attempt(2), why: String::new() }), late);
    cluster.effect(EntryBody::Activated { job });
    cluster.effect(onward);
}

#[test]
fn evidence_that_does_not_hold_is_void() {
    use VoidReason::*;
    type Case = (fn(&mut Evidence), fn(JobId) -> VoidReason);
    let cases: [Case; 10] = [
        (|evidence| evidence.slots.truncate(9), |job| OtherSlots { job }),
        (|evidence| evidence.slots.push(evidence.slots[0]), |job| OtherSlots { job }),
        (|evidence| evidence.slots[0].slot = Slot::new(50).unwrap(), |job| OtherSlots { job }),
        (|evidence| evidence.slots[1] = evidence.slots[0], |job| OtherSlots { job }),
        (|evidence| evidence.slots[3].term = Term(9), |_| SlotChanged { slot: Slot::new(13).unwrap() }),
        (|evidence| evidence.slots[3].last.term = Term(9), |_| SlotChanged { slot: Slot::new(13).unwrap() }),
        (
            |evidence| evidence.source_epoch = Epoch(9),
            |_| EpochChanged { shard: ShardId(1), named: Epoch(9), current: Epoch(1) },
        ),
        (
            |evidence| evidence.target_epoch = Epoch(9),
            |_| EpochChanged { shard: ShardId(2), named: Epoch(9), current: Epoch(1) },
        ),
        (|evidence| evidence.synced.clear(), |_| NotSynced { shard: ShardId(2), node: NodeId(3), boot: 1 }),
        (|evidence| evidence.synced[1].1 = 0, |_| NotSynced { shard: ShardId(2), node: NodeId(4), boot: 1 }),
    ];
    for (spoil, reason) in cases {
        let mut cluster = Cluster::new();
        let job = cluster.start(1, 2, 10, 19);
        let good = cluster.evidence(job);
        let mut spoilt = good.clone();
        spoil(&mut spoilt);
        let slots = cluster.map.slots.clone();
        let result = cluster.vote_one(spoilt);
        assert_eq!(result, CommitResult::Void { why: reason(job), next: Attempt(3) });
        assert_eq!(cluster.map.slots, slots);
        assert_eq!((&cluster.job(job).state, cluster.job(job).attempt), (&JobState::Active, Attempt(3)));
        assert_eq!(cluster.job(job).last_attempt, reason(job).to_string());
        // The void consumed the attempt: even good evidence for it comes too late, and consumes nothing more.
        let stale = AttemptConsumed { job, named: Attempt(2), current: Attempt(3) };
        assert_eq!(cluster.vote_one(good), CommitResult::Stale { why: stale });
        assert_eq!(cluster.job(job).attempt, Attempt(3));
        cluster.committed(job);
    }
}

#[test]
fn a_job_is_consumed_once() {
    let mut cluster = Cluster::new();
    let job = cluster.start(1, 2, 10, 19);
    let evidence = cluster.evidence(job);
    cluster.committed(job);
    let not_active = |state| CommitResult::Stale { why: VoidReason::NotActive { job, state } };
    assert_eq!(cluster.vote_one(evidence.clone()), not_active("committed"));
    cluster.effect(EntryBody::Activated { job });
    assert_eq!(cluster.vote_one(evidence.clone()), not_active("activated"));
    let unknown = Evidence { job: JobId(77), ..evidence };
    assert_eq!(
        cluster.vote_one(unknown),
        CommitResult::Stale { why: VoidReason::UnknownJob { job: JobId(77) } }
    );
}

#[test]
fn an_ended_attempt_voids_the_vote_that_was_under_way() {
    let mut cluster = Cluster::new();
    let job = cluster.start(1, 2, 10, 19);
    let evidence = cluster.evidence(job);
    cluster.effect(EntryBody::EndAttempt { job, attempt: evidence.attempt, why: "too slow".into() });
    let stale = VoidReason::AttemptConsumed { job, named: Attempt(2), current: Attempt(3) };
    assert_eq!(cluster.vote_one(evidence), CommitResult::Stale { why: stale });
    let evidence = cluster.evidence(job);
    cluster.effect(EntryBody::AbortJob { job, why: "asked".into(), cancelled: true });
    let ended = VoidReason::NotActive { job, state: "cancelled" };
    assert_eq!(cluster.vote_one(evidence), CommitResult::Stale { why: ended });
    assert_eq!(cluster.owner(10).shard, Some(ShardId(1)));
}

#[test]
fn there_and_back_and_a_late_duplicate_of_the_first_leg() {
    let mut cluster = Cluster::new();
    let there = cluster.start(1, 2, 10, 19);
    let late = cluster.evidence(there);
    let entry = cluster.entry(EntryBody::CommitJobs(vec![late.clone()]));
    cluster.apply_entry(&entry);
    cluster.effect(EntryBody::Activated { job: there });
    let back = cluster.start(2, 1, 10, 19);
    cluster.committed(back);
    cluster.effect(EntryBody::Activated { job: back });
    assert_eq!(cluster.owner(10).shard, Some(ShardId(1)));
    // Owner and epochs are as the duplicate's evidence says. The job is not.
    let (slots, shards) = (cluster.map.slots.clone(), cluster.map.shards.clone());
    cluster.apply_entry(&entry);
    assert_eq!((&cluster.map.slots, &cluster.map.shards), (&slots, &shards));
    // Not even under a new job and attempt: the slots' terms differ.
    let third = cluster.start(1, 2, 10, 19);
    let rebased = Evidence { job: third, attempt: cluster.job(third).attempt, ..late };
    assert_eq!(void(cluster.vote_one(rebased)), VoidReason::SlotChanged { slot: Slot::new(10).unwrap() });
    assert_eq!(cluster.map.slots, slots);
}

#[test]
fn jobs_of_one_vote_are_decided_each_by_itself() {
    let mut cluster = Cluster::new();
    let good = cluster.start(1, 2, 10, 19);
    let bad = cluster.start(1, 2, 20, 29);
    let other = cluster.start(1, 3, 30, 39);
    let mut votes: Vec<Evidence> = [good, bad, other].map(|job| cluster.evidence(job)).into();
    votes[1].synced.clear();
    votes.push(votes[0].clone());
    let outcomes = cluster.vote(votes);
    let results: Vec<&CommitResult> = outcomes.iter().map(|outcome| &outcome.result).collect();
    let term = Term(5);
    assert_eq!(results[0], &CommitResult::Committed { term });
    assert!(matches!(results[1], CommitResult::Void { why: VoidReason::NotSynced { .. }, next: Attempt(6) }));
    assert_eq!(results[2], &CommitResult::Committed { term }, "one vote gives one term");
    assert!(matches!(results[3], CommitResult::Stale { .. }));
    assert_eq!((cluster.owner(10).shard, cluster.owner(20).shard), (Some(ShardId(2)), Some(ShardId(1))));
    assert_eq!(cluster.map.shards[&ShardId(2)].in_sync_version, 2, "bumped by what was committed");
}

#[test]
fn two_jobs_of_one_shard_do_not_void_each_other() {
    let mut cluster = Cluster::new();
    let (first, second) = (cluster.start(1, 2, 10, 19), cluster.start(1, 2, 20, 29));
    let (early, late) = (cluster.evidence(first), cluster.evidence(second));
    assert!(matches!(cluster.vote_one(early), CommitResult::Committed { .. }));
    // The target's in-sync set has another version now, but the same members.
    assert!(matches!(cluster.vote_one(late), CommitResult::Committed { .. }));
}

#[test]
fn the_set_at_the_vote_counts_not_the_one_at_the_barrier() {
    let mut cluster = Cluster::new();
    let set = |expected_version, members: &[(u32, u64)]| EntryBody::SetInSync {
        shard: ShardId(2),
        expected_version,
        in_sync: members.iter().map(|(node, boot)| (NodeId(*node), *boot)).collect(),
    };
    // The barrier was passed by the primary alone; then a replica that has not synced anything of it joined.
    cluster.effect(set(1, &[]));
    let job = cluster.start(1, 2, 10, 19);
    let alone = cluster.evidence(job);
    cluster.effect(set(2, &[(4, 1)]));
    let missing = VoidReason::NotSynced { shard: ShardId(2), node: NodeId(4), boot: 1 };
    assert_eq!(void(cluster.vote_one(alone)), missing);
    // The barrier was passed by both; then one of them left.
    let both = cluster.evidence(job);
    cluster.effect(set(3, &[]));
    assert!(matches!(cluster.vote_one(both), CommitResult::Committed { .. }));
    // A replica that synced, restarted and was taken back is another incarnation.
    let mut cluster = Cluster::new();
    let job = cluster.start(1, 2, 10, 19);
    let both = cluster.evidence(job);
    cluster.restart(4);
    cluster.effect(set(2, &[(4, 2)]));
    let missing = VoidReason::NotSynced { shard: ShardId(2), node: NodeId(4), boot: 2 };
    assert_eq!(void(cluster.vote_one(both)), missing);
}

/// A failover of `shard` before the vote on a job from shard 1 to shard 2: the vote moves nothing.
fn failover_before_the_vote(shard: u32, side: &str) {
    let replica = incarnation(2 * shard, 1);
    let mut cluster = Cluster::new();
    let (job, bystander) = (cluster.start(1, 2, 10, 19), cluster.start(3, 3 - shard, 210, 219));
    let evidence = cluster.evidence(job);
    let (named, others) = (evidence.attempt, cluster.job(bystander).attempt);
    let Effect::FailedOver { jobs, .. } = cluster.fail_over(shard, replica) else { panic!() };
    let current = cluster.job(job).attempt;
    assert_eq!(jobs, [(job, current)]);
    assert!(current > named);
    assert_eq!(cluster.job(job).state, JobState::Active, "it goes on with the new primary");
    let why = format!("{side} shard {shard} failed over to node {} boot 1", 2 * shard);
    assert_eq!(cluster.job(job).last_attempt, why);
    assert_eq!(cluster.job(bystander).attempt, others);
    let void = VoidReason::AttemptConsumed { job, named, current };
    assert_eq!(cluster.vote_one(evidence.clone()), CommitResult::Stale { why: void });
    // The same evidence under the new attempt was gathered before the failover: void, never rebased.
    let rebased = Evidence { attempt: current, ..evidence };
    let CommitResult::Void { next, .. } = cluster.vote_one(rebased) else { panic!() };
    assert_eq!((cluster.owner(10).shard, cluster.owner(10).pending), (Some(ShardId(1)), None));
    assert_eq!(cluster.job(job).attempt, next);
    cluster.committed(job);
}

#[test]
fn the_source_fails_over_before_the_vote() {
    failover_before_the_vote(1, "source");
}

#[test]
fn the_target_fails_over_before_the_vote() {
    failover_before_the_vote(2, "target");
}

#[test]
fn the_source_fails_over_after_the_vote() {
    let mut cluster = Cluster::new();
    let job = cluster.start(1, 2, 10, 19);
    let term = cluster.committed(job);
    let moved = *cluster.owner(10);
    cluster.fail_over(1, incarnation(2, 1));
    // The new primary got the shard's other slots, and has no claim on those that were moved.
    assert_eq!(*cluster.owner(10), moved);
    assert!(cluster.owner(0).term > term && cluster.owner(0).shard == Some(ShardId(1)));
    assert_eq!(
        cluster.owner(10).pending.unwrap().from_primary,
        incarnation(1, 1),
        "whose word releases them"
    );
    cluster.effect(EntryBody::Activated { job });
    assert_eq!((cluster.owner(10).shard, cluster.owner(10).pending), (Some(ShardId(2)), None));
}

#[test]
fn the_target_fails_over_after_the_vote() {
    let mut cluster = Cluster::new();
    let job = cluster.start(1, 2, 10, 19);
    let term = cluster.committed(job);
    cluster.fail_over(2, incarnation(4, 1));
    // The new primary owns what was moved, under its own term, and must still wait for the release.
    let owner = cluster.owner(10);
    assert_eq!(owner.shard, Some(ShardId(2)));
    assert!(owner.term > term);
    assert_eq!((owner.pending.unwrap().job, owner.generation.major()), (job, job.0));
    assert!(matches!(cluster.job(job).state, JobState::Committed { .. }));
    cluster.effect(EntryBody::Activated { job });
}

#[test]
fn both_fail_over_around_the_vote() {
    let mut cluster = Cluster::new();
    let job = cluster.start(1, 2, 10, 19);
    cluster.committed(job);
    cluster.fail_over(1, incarnation(2, 1));
    cluster.fail_over(2, incarnation(4, 1));
    cluster.effect(EntryBody::Activated { job });
    assert_eq!(cluster.map.slots_of_shard(ShardId(2)).count(), 110);
    assert_eq!(cluster.map.slots_of_shard(ShardId(1)).count(), 90);
}
