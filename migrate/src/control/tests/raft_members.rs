//! Who votes, changed while the log goes on.

use super::super::raft::*;
use super::raft_group::RaftGroup;
use super::*;

fn nodes(ids: &[u32]) -> Vec<NodeId> {
    ids.iter().map(|id| NodeId(*id)).collect()
}

fn set(voters: &[u32], learners: &[u32]) -> Members {
    Members::new(nodes(voters), nodes(learners))
}

#[test]
fn three_voters_become_five() {
    let mut group = RaftGroup::new(3, 2);
    group.elect(1);
    group.set_voters(1, &[1, 2, 3, 4, 5]).unwrap();
    assert_eq!(group.agreed(&[1, 2, 3, 4, 5]), set(&[1, 2, 3, 4, 5], &[]));
    assert_eq!(group.members[&5].map.voters(), nodes(&[1, 2, 3, 4, 5]));
    group.cut = [2, 3].into();
    assert!(group.can_decide(1), "three of five");
    group.cut = [2, 3, 4].into();
    assert!(!group.can_decide(1), "two of five");
    group.cut = [1, 2].into();
    group.elect(5);
    assert!(group.can_decide(5), "a new voter can lead");
}

#[test]
fn five_voters_become_three() {
    let mut group = RaftGroup::new(5, 0);
    group.elect(1);
    group.set_voters(1, &[1, 2, 3]).unwrap();
    assert_eq!(group.agreed(&[1, 2, 3, 4, 5]), set(&[1, 2, 3], &[4, 5]));
    group.cut = [3, 4, 5].into();
    assert!(group.can_decide(1), "two of three");
    group.cut = [2, 3].into();
    assert!(!group.can_decide(1), "who learns does not count");
    // Who lost its vote does not ask for others' either.
    group.cut = [1].into();
    group.tick(100);
    assert!(group.leaders().iter().all(|leader| *leader <= 3), "{:?}", group.leaders());
}

#[test]
fn a_dead_voter_is_replaced_and_comes_back_as_a_learner() {
    let mut group = RaftGroup::new(3, 1);
    group.elect(1);
    group.cut = [3].into();
    group.set_voters(1, &[1, 2, 4]).unwrap();
    assert_eq!(group.agreed(&[1, 2, 4]), set(&[1, 2, 4], &[3]));
    group.cut = [3, 2].into();
    assert!(group.can_decide(1));
    group.cut = [1].into();
    group.elect(4);
    group.cut.clear();
    group.tick(40);
    // It takes the log from a leader that was a learner when it last heard of anybody.
    assert_eq!(group.agreed(&[1, 2, 3, 4]), set(&[1, 2, 4], &[3]));
    group.propose_body(4, EntryBody::RemoveNode { node: NodeId(3) }).unwrap();
    assert_eq!(group.agreed(&[1, 2, 4]), set(&[1, 2, 4], &[]));
}

#[test]
fn a_leader_that_loses_its_vote_hands_over() {
    for voters in [&[2, 3][..], &[2, 3, 4], &[4]] {
        let mut group = RaftGroup::new(3, 1);
        group.elect(1);
        group.propose(1, 1);
        group.set_voters(1, voters).unwrap();
        // Not a tick has passed: the heir was told.
        let leaders = group.leaders();
        assert!(leaders.len() == 1 && voters.contains(&leaders[0]), "{voters:?}: {leaders:?}");
        assert!(group.can_decide(leaders[0]));
        group.tick(40);
        assert_eq!(group.leaders(), leaders);
        let learners: Vec<u32> = (1..=4).filter(|id| !voters.contains(id)).collect();
        assert_eq!(group.agreed(&[1, 2, 3, 4]), set(voters, &learners));
        // It can leave altogether.
        group.propose_body(leaders[0], EntryBody::RemoveNode { node: NodeId(1) }).unwrap();
        group.tick(10);
        assert_eq!(group.leaders(), leaders);
    }
}

#[test]
fn the_heir_need_not_hear_of_it() {
    let mut group = RaftGroup::new(3, 1);
    group.elect(1);
    let entry = group.entry(EntryBody::SetVoters { voters: nodes(&[2, 3, 4]) });
    group.core(1).propose(vec![entry]).unwrap();
    group.lost = Some(RaftMessageKind::TimeoutNow);
    group.settle();
    assert_eq!(group.leaders(), [], "it has stepped down all the same");
    group.tick(60);
    assert!(matches!(group.leaders()[..], [2..=4]), "{:?}", group.leaders());
}

#[test]
fn what_the_map_refuses_changes_nothing() {
    let mut group = RaftGroup::new(3, 1);
    group.elect(1);
    for wrong in [&[1, 2, 9][..], &[], &[1, 1, 2]] {
        let index = group.set_voters(1, wrong).unwrap().first_index;
        assert_eq!(group.agreed(&[1, 2, 3, 4]), set(&[1, 2, 3], &[4]));
        assert!(group.core(1).status().applied >= index && group.core(1).can_change_voters());
    }
    group.set_voters(1, &[1, 2, 4]).unwrap();
    assert_eq!(group.agreed(&[1, 2, 3, 4]), set(&[1, 2, 4], &[3]));
}

#[test]
fn a_late_duplicate_does_not_bring_old_voters_back() {
    let mut group = RaftGroup::new(3, 2);
    group.elect(1);
    let first = group.entry(EntryBody::SetVoters { voters: nodes(&[1, 2, 4]) });
    for entry in [first.clone(), first.clone()] {
        group.core(1).propose(vec![entry]).unwrap();
        group.settle();
    }
    group.set_voters(1, &[1, 4, 5]).unwrap();
    group.core(1).propose(vec![first]).unwrap();
    group.settle();
    assert_eq!(group.agreed(&[1, 2, 3, 4, 5]), set(&[1, 4, 5], &[2, 3]));
}

/// A change from 1, 2, 3 to 1, 4, 5 that is decided, but cannot end: 4 and 5 are not there.
fn joint() -> RaftGroup {
    let mut group = RaftGroup::new(3, 2);
    group.elect(1);
    group.cut = [4, 5].into();
    group.set_voters(1, &[1, 4, 5]).unwrap();
    let joint = group.agreed(&[1, 2, 3]);
    assert!(joint.is_joint());
    assert_eq!((&joint.voters, &joint.outgoing), (&nodes(&[1, 4, 5]), &nodes(&[1, 2, 3])));
    assert!(!group.can_decide(1), "the new majority counts too");
    group
}

#[test]
fn one_change_at_a_time() {
    let mut group = joint();
    let other = group.set_voters(1, &[1, 2]);
    assert_eq!(other, Err(ProposeError::VotersChange));
    let two =
        [&[1, 2][..], &[1, 3]].map(|voters| group.entry(EntryBody::SetVoters { voters: nodes(voters) }));
    group.cut.clear();
    group.tick(4);
    assert_eq!(group.agreed(&[1, 2, 3, 4, 5]), set(&[1, 4, 5], &[2, 3]));
    assert_eq!(group.core(1).propose(two.to_vec()), Err(ProposeError::VotersChange), "two at once");
    group.core(1).propose(two[..1].to_vec()).unwrap();
    group.settle();
    assert_eq!(group.agreed(&[1, 2, 3, 4, 5]), set(&[1, 2], &[3, 4, 5]));
}

#[test]
fn everybody_restarts_in_the_middle() {
    let mut group = joint();
    (1..=5).for_each(|id| group.restart(id));
    group.settle();
    assert!(group.members[&1].core.members().is_joint(), "what was decided is known again");
    // Without the new majority nobody is elected.
    group.tick(100);
    assert_eq!(group.leaders(), []);
    group.cut.clear();
    group.tick(100);
    assert_eq!(group.leaders().len(), 1);
    assert_eq!(group.agreed(&[1, 2, 3, 4, 5]), set(&[1, 4, 5], &[2, 3]));
}

#[test]
fn another_leader_ends_what_was_begun() {
    for dead in [1, 2, 3] {
        let mut group = joint();
        group.cut = [dead].into();
        group.tick(100);
        let alive: Vec<u32> = (1..=5).filter(|id| *id != dead).collect();
        assert_eq!(group.leaders().len(), 1, "without {dead}");
        assert_eq!(group.agreed(&alive), set(&[1, 4, 5], &[2, 3]));
    }
}

#[test]
fn nodes_come_and_go_in_the_middle() {
    let mut group = joint();
    group.cut = [5].into();
    // Decided together with the end of the change, and before it.
    for body in [EntryBody::AddNode(node_info(6, false)), EntryBody::RemoveNode { node: NodeId(3) }] {
        let entry = group.entry(body);
        group.core(1).propose(vec![entry]).unwrap();
    }
    group.settle();
    group.tick(10);
    group.cut.clear();
    group.tick(10);
    assert_eq!(group.agreed(&[1, 2, 4, 5]), set(&[1, 4, 5], &[2, 6]));
}

#[test]
fn a_new_leader_does_not_change_voters_before_it_knows_all_that_was_decided() {
    let mut group = RaftGroup::new(1, 1);
    while !group.core(1).is_leader() {
        group.core(1).tick();
    }
    let entry = group.entry(EntryBody::SetVoters { voters: nodes(&[1, 2]) });
    assert_eq!(group.core(1).propose(vec![entry.clone()]), Err(ProposeError::VotersChange));
    group.settle();
    group.core(1).propose(vec![entry]).unwrap();
    group.settle();
    assert_eq!(group.agreed(&[1, 2]), set(&[1, 2], &[]));
}

#[test]
fn configurations_that_contradict_themselves_are_refused() {
    let joint = Members { outgoing: nodes(&[1, 2, 3]), learners_next: nodes(&[2]), ..set(&[1, 4, 5], &[]) };
    assert_eq!((joint.check(), set(&[1], &[2]).check()), (Ok(()), Ok(())));
    let wrong = [
        set(&[], &[1]),
        set(&[2, 1], &[]),
        set(&[0, 1], &[]),
        set(&[1, 1], &[]),
        set(&[1], &[1]),
        Members { learners: nodes(&[3]), ..joint.clone() },
        Members { learners_next: nodes(&[1]), ..joint.clone() },
        Members { later: vec![(NodeId(2), true)], ..set(&[1], &[]) },
    ];
    for members in wrong {
        assert!(members.check().is_err(), "{members:?}");
    }
}
