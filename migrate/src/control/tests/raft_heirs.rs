//! Handing the lead over.

use super::super::raft::ProposeError;
use super::raft_group::RaftGroup;
use super::*;

#[test]
fn the_lead_goes_to_whom_it_is_given() {
    let mut group = RaftGroup::new(3, 1);
    assert_eq!(group.core(1).best_heir(), None, "it does not lead");
    group.elect(1);
    for (node, why) in [(1, "itself"), (4, "a learner"), (9, "nobody")] {
        assert!(!group.core(1).transfer_to(NodeId(node)), "{why}");
    }
    assert!(!group.core(2).transfer_to(NodeId(3)), "it does not lead");
    assert!(group.core(1).transfer_to(NodeId(3)));
    group.settle();
    assert_eq!(group.leaders(), [3], "without waiting for a timeout");
    assert!(group.can_decide(3));
}

#[test]
fn an_heir_that_does_not_come_costs_nothing_but_time() {
    let mut group = RaftGroup::new(3, 0);
    group.elect(1);
    group.cut = [2].into();
    assert!(group.core(1).transfer_to(NodeId(2)));
    assert_eq!(
        group.core(1).propose(vec![vec![1]]),
        Err(ProposeError::Busy),
        "the heir must get the whole log"
    );
    group.tick(10);
    assert_eq!(group.leaders(), [1]);
    assert!(group.can_decide(1));
}

#[test]
fn who_has_most_of_the_log_is_the_best_heir() {
    let mut group = RaftGroup::new(5, 1);
    group.elect(1);
    group.propose(1, 1);
    assert_eq!(group.core(1).best_heir(), Some(NodeId(2)), "the first of equals");
    group.cut = [2, 3].into();
    group.propose(1, 2);
    assert_eq!(group.core(1).best_heir(), Some(NodeId(4)));
    group.cut.insert(4);
    group.propose(1, 3);
    assert_eq!(group.core(1).best_heir(), Some(NodeId(5)), "not the learner");
    let mut alone = RaftGroup::new(1, 1);
    alone.elect(1);
    assert_eq!(alone.core(1).best_heir(), None);
}
