//! Quorum rounds: who may begin one, what confirms it, and what never does.

use super::super::raft::*;
use super::raft_group::RaftGroup;
use super::*;

/// The answers that `from` would give to the leader's heartbeats for the rounds begun since.
fn heartbeats(core: &mut RaftCore, to: u32) -> Vec<RaftMessage> {
    let mut heartbeats = Vec::new();
    while let Some(ready) = core.ready() {
        heartbeats.extend(ready.messages_now);
        assert_eq!(ready.rounds, [], "nobody has answered");
        core.on_persisted(ready.number);
    }
    heartbeats.retain(|message| message.kind == RaftMessageKind::Heartbeat && message.to == NodeId(to));
    heartbeats
}

fn answer(heartbeat: &RaftMessage) -> RaftMessage {
    let (from, to) = (heartbeat.to, heartbeat.from);
    RaftMessage { kind: RaftMessageKind::HeartbeatResponse, from, to, ..heartbeat.clone() }
}

fn rounds(core: &mut RaftCore) -> Vec<(u64, u64)> {
    let mut rounds = Vec::new();
    while let Some(ready) = core.ready() {
        rounds.extend(ready.rounds);
        core.on_persisted(ready.number);
    }
    rounds
}

#[test]
fn a_quorum_confirms_a_round() {
    let mut group = RaftGroup::new(3, 1);
    assert!(!group.core(1).begin_round(1), "it does not lead");
    group.elect(1);
    group.propose(1, 7);
    let committed = group.core(1).status().committed;
    for round in [5, 6] {
        assert!(group.core(1).begin_round(round));
    }
    group.settle();
    assert_eq!(group.members[&1].rounds, [(5, committed), (6, committed)]);
    assert!(!group.core(2).begin_round(7), "it follows");
    assert!(group.members[&2].rounds.is_empty());
    // One of the others is enough, a learner is not.
    group.cut = [2].into();
    assert!(group.core(1).begin_round(8));
    group.settle();
    assert_eq!(group.members[&1].rounds.last(), Some(&(8, committed)));
    group.cut = [2, 3].into();
    assert!(group.core(1).begin_round(9));
    group.tick(4);
    assert_eq!(group.members[&1].rounds.len(), 3, "a learner's answer counts for nothing");
    // What could not be asked at first is asked again with the heartbeats.
    group.cut.clear();
    group.tick(2);
    assert_eq!(group.members[&1].rounds.last(), Some(&(9, committed)));
}

#[test]
fn a_single_voter_confirms_its_own() {
    let mut group = RaftGroup::new(1, 1);
    let elected = loop {
        group.core(1).tick();
        if let Some(ready) = group.core(1).ready() {
            break ready;
        }
    };
    assert!(group.core(1).is_leader() && !group.core(1).begin_round(1), "nothing of its term is committed");
    group.core(1).on_persisted(elected.number);
    group.settle();
    assert!(group.core(1).begin_round(2));
    group.settle();
    assert_eq!(group.members[&1].rounds, [(2, 2)]);
}

#[test]
fn a_leader_without_its_quorum_gets_none_and_ends() {
    let mut group = RaftGroup::new(3, 0);
    group.elect(1);
    group.cut = [1].into();
    assert!(group.core(1).begin_round(5), "it does not know yet");
    group.elect(2);
    assert!(group.core(2).begin_round(6));
    group.settle();
    assert_eq!(group.members[&2].rounds.len(), 1);
    group.cut.clear();
    group.tick(20);
    assert_eq!(group.members[&1].rounds, [], "a deposed leader's rounds never complete");
    assert_eq!(group.leaders(), [2]);
    // Not when it leads again either.
    group.cut = [2].into();
    group.elect(1);
    group.cut.clear();
    group.tick(20);
    assert_eq!(group.members[&1].rounds, []);
    assert!(group.core(1).begin_round(5));
    group.settle();
    assert_eq!(group.members[&1].rounds.len(), 1);
}

#[test]
fn answers_to_other_rounds_do_not_count() {
    let mut group = RaftGroup::new(3, 0);
    group.elect(1);
    let core = group.core(1);
    assert!(core.begin_round(5));
    let first = heartbeats(core, 2).remove(0);
    core.step(answer(&first)).unwrap();
    assert_eq!(rounds(core).len(), 1);
    // A number that is used again is another round: the first one's late answers are not for it.
    assert!(core.begin_round(5));
    let second = heartbeats(core, 2).remove(0);
    assert_ne!(first.context, second.context);
    for context in [first.context.clone(), vec![], vec![0; 24], second.context[..23].to_vec()] {
        core.step(RaftMessage { context, ..answer(&second) }).unwrap();
    }
    core.step(RaftMessage { term: 1, ..answer(&second) }).unwrap();
    assert_eq!(rounds(core), []);
    core.step(answer(&second)).unwrap();
    assert_eq!(rounds(core).len(), 1);
    // A later round's answer confirms the earlier ones, which were asked before it.
    assert!(core.begin_round(7) && core.begin_round(8) && core.begin_round(9));
    let asked = heartbeats(core, 3);
    core.step(answer(&asked[1])).unwrap();
    let named: Vec<u64> = rounds(core).into_iter().map(|(round, _)| round).collect();
    assert_eq!(named, [7, 8]);
}

#[test]
fn what_was_confirmed_is_not_told_once_the_term_is_over() {
    let mut group = RaftGroup::new(3, 0);
    group.elect(1);
    let core = group.core(1);
    assert!(core.begin_round(5));
    let heartbeat = heartbeats(core, 2).remove(0);
    core.step(answer(&heartbeat)).unwrap();
    let later = RaftMessage { term: heartbeat.term + 1, from: NodeId(2), to: NodeId(1), ..heartbeat };
    core.step(later).unwrap();
    assert!(!core.is_leader());
    assert_eq!(rounds(core), []);
}
