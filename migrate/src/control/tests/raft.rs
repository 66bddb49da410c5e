//! The consensus core, run by hand: one member, two, and what it refuses.

use super::super::codec::{Replay, encode_persist};
use super::super::raft::*;
use super::*;

fn config(id: u32, voters: &[u32], learners: &[u32]) -> RaftConfig {
    let nodes = |ids: &[u32]| ids.iter().map(|id| NodeId(*id)).collect();
    RaftConfig {
        id: NodeId(id),
        voters: nodes(voters),
        learners: nodes(learners),
        start_index: 1,
        start_term: 1,
        election_ticks: 10,
        heartbeat_ticks: 2,
        tail_entries: TAIL_ENTRIES,
    }
}

fn core(config: &RaftConfig, restored: Restored) -> RaftCore {
    RaftCore::new(config, restored, Box::new(|| 3)).unwrap()
}

/// Ticks until there is something to do.
fn tick_until_ready(core: &mut RaftCore) -> Ready {
    for _ in 0..100 {
        core.tick();
        if let Some(ready) = core.ready() {
            return ready;
        }
    }
    panic!("nothing happened");
}

/// Does everything that there is to do, with a disk that is always done. Returns what was committed.
fn settle(core: &mut RaftCore) -> Vec<RaftEntry> {
    let mut committed = Vec::new();
    while let Some(ready) = core.ready() {
        committed.extend(ready.committed);
        core.on_persisted(ready.number);
    }
    committed
}

#[test]
fn a_single_voter_decides_alone() {
    let mut core = core(&config(1, &[1], &[]), Restored::default());
    assert_eq!(core.propose(vec![vec![1]]), Err(ProposeError::NoLeader));
    let elected = tick_until_ready(&mut core);
    assert!(core.is_leader() && elected.must_sync && !core.has_applied_own_term());
    assert_eq!(elected.persist.hard_state.map(|state| (state.term, state.vote)), Some((2, 1)));
    core.on_persisted(elected.number);
    assert_eq!(
        settle(&mut core),
        [RaftEntry { term: 2, index: 2, data: vec![], change: MembersChange::None }]
    );
    assert!(core.has_applied_own_term());

    let proposed = core.propose(vec![vec![1], vec![2]]).unwrap();
    assert_eq!(proposed, Proposed { term: 2, first_index: 3 });
    let ready = core.ready().unwrap();
    assert_eq!(ready.persist.entries.len(), 2, "one proposal, one record");
    assert!(ready.committed.is_empty() && core.ready().is_none(), "nothing is decided before it is on disk");
    core.on_persisted(ready.number);
    let committed = settle(&mut core);
    assert_eq!(committed.iter().map(|entry| entry.data[0]).collect::<Vec<_>>(), [1, 2]);
    let status = core.status();
    assert_eq!((status.role, status.committed, status.applied, status.persisted), (Role::Leader, 4, 4, 4));
}

#[test]
fn a_single_voter_keeps_its_word_before_it_gives_it() {
    let config = config(1, &[1], &[2]);
    let mut leader = core(&config, Restored::default());
    let elected = tick_until_ready(&mut leader);
    assert!(leader.is_leader());
    // Were this append sent now and the leader to crash, it would lead the same term again and send another entry 2.
    assert!(elected.messages_now.is_empty());
    assert!(elected.messages_after.iter().any(|message| message.kind == RaftMessageKind::Append));
    leader.propose(vec![vec![1]]).unwrap();
    let more = leader.ready().unwrap();
    assert!(more.messages_now.is_empty(), "nor anything that follows it");
    leader.on_persisted(elected.number);
    leader.on_persisted(more.number);
    // From here on its appends overtake its disk.
    let mut learner = core(&RaftConfig { id: NodeId(2), ..config }, Restored::default());
    for message in elected.messages_after.into_iter().chain(more.messages_after) {
        learner.step(message).unwrap();
    }
    let learnt = learner.ready().unwrap();
    assert!(learnt.messages_now.is_empty(), "an acknowledgement waits for the disk");
    learner.on_persisted(learnt.number);
    for message in learnt.messages_after {
        leader.step(message).unwrap();
    }
    settle(&mut leader);
    leader.propose(vec![vec![2]]).unwrap();
    assert!(leader.ready().unwrap().messages_now.iter().any(|message| !message.entries.is_empty()));
}

#[test]
fn what_was_kept_is_there_after_a_restart() {
    let config = config(1, &[1], &[]);
    let mut before = core(&config, Restored::default());
    let mut replay = Replay::new(1);
    for round in 0..3u8 {
        if round > 0 {
            before.propose(vec![vec![round]]).unwrap();
        }
        for _ in 0..40 {
            before.tick();
            while let Some(ready) = before.ready() {
                replay.push(&encode_persist(&ready.persist).unwrap()).unwrap();
                before.on_persisted(ready.number);
            }
        }
    }
    let mut after = core(&config, replay.finish());
    let known: Vec<u64> = settle(&mut after).iter().map(|entry| entry.index).collect();
    assert_eq!(known, [2, 3, 4], "what it knew to be committed, it knows again");
    while !after.is_leader() {
        after.tick();
    }
    assert_eq!(after.term(), 3);
}

#[test]
fn what_a_majority_has_does_not_wait_for_this_disk() {
    let mut follower = core(&config(2, &[1, 2, 3], &[]), Restored::default());
    let entry =
        |index: u64| RaftEntry { term: 5, index, data: vec![index as u8], change: MembersChange::None };
    let commits = |commit| RaftMessage { index: 3, log_term: 5, commit, ..append(1, 5, vec![]) };
    follower.step(append(1, 5, vec![entry(2), entry(3)])).unwrap();
    let learnt = follower.ready().unwrap();
    follower.step(commits(2)).unwrap();
    let early = follower.ready().unwrap();
    assert_eq!((&learnt.committed[..], &early.committed[..]), (&[][..], &[entry(2)][..]));
    assert!(learnt.messages_now.is_empty() && early.messages_now.is_empty(), "its word waits all the same");
    assert_eq!(follower.applied(), 1, "no snapshot is of what the disk lacks");
    // A log that is about to begin anew waits until both are at one place.
    follower.stay_in_step(true);
    follower.step(commits(3)).unwrap();
    let held = follower.ready().unwrap();
    assert!(held.committed.is_empty());
    [learnt, early, held].iter().for_each(|ready| follower.on_persisted(ready.number));
    assert_eq!(settle(&mut follower), [entry(3)], "each once");
    assert_eq!(follower.applied(), 3);
}

#[test]
fn who_waits_for_its_disk_does_not_campaign() {
    let config = config(2, &[1, 2, 3], &[]);
    let mut follower = core(&config, Restored::default());
    follower
        .step(append(1, 5, vec![RaftEntry { term: 5, index: 2, data: vec![1], change: MembersChange::None }]))
        .unwrap();
    let ready = follower.ready().unwrap();
    for _ in 0..100 {
        follower.tick();
    }
    assert!(follower.ready().is_none());
    follower.step(RaftMessage { kind: RaftMessageKind::TimeoutNow, ..append(1, 5, vec![]) }).unwrap();
    assert_eq!(follower.status().role, Role::Follower);
    follower.on_persisted(ready.number);
    assert!(
        tick_until_ready(&mut follower)
            .messages_after
            .iter()
            .all(|m| m.kind == RaftMessageKind::RequestPreVote)
    );
}

fn append(from: u32, term: u64, entries: Vec<RaftEntry>) -> RaftMessage {
    RaftMessage {
        kind: RaftMessageKind::Append,
        from: NodeId(from),
        to: NodeId(2),
        term,
        log_term: 1,
        index: 1,
        commit: 1,
        commit_term: 0,
        reject: false,
        reject_hint: 0,
        context: vec![],
        entries,
        snapshot: None,
    }
}

#[test]
fn a_follower_names_the_leader() {
    let mut follower = core(&config(2, &[1, 2, 3], &[]), Restored::default());
    follower.step(append(1, 5, vec![])).unwrap();
    settle(&mut follower);
    assert_eq!(follower.propose(vec![vec![1]]), Err(ProposeError::NotLeader { leader: NodeId(1) }));
}

#[test]
fn messages_that_would_end_the_process_are_refused() {
    let mut follower = core(&config(2, &[1, 2, 3], &[4]), Restored::default());
    let plain = append(1, 5, vec![]);
    let cases = [
        (RaftMessage { to: NodeId(3), ..plain.clone() }, "it is addressed to another node"),
        (RaftMessage { from: NodeId(2), ..plain.clone() }, "its sender is this node"),
        (
            RaftMessage { kind: RaftMessageKind::AppendResponse, from: NodeId(9), ..plain.clone() },
            "its sender is not a member",
        ),
        (
            RaftMessage { kind: RaftMessageKind::Heartbeat, commit: 2, ..plain.clone() },
            "it commits what this node acknowledged but does not have: its log was lost",
        ),
    ];
    for (message, why) in cases {
        let kind = message.kind;
        let from = message.from;
        assert_eq!(follower.step(message), Err(RaftError::BadMessage { from, kind, why }));
    }
    let mut leader = core(&config(2, &[2], &[1]), Restored::default());
    let elected = tick_until_ready(&mut leader);
    leader.on_persisted(elected.number);
    settle(&mut leader);
    let acknowledged = RaftMessage { kind: RaftMessageKind::AppendResponse, index: 3, term: 2, ..plain };
    assert!(
        leader
            .step(acknowledged)
            .unwrap_err()
            .to_string()
            .ends_with("it acknowledges what was never written")
    );
    for data in [vec![], vec![0; ENTRY_BYTES_MAX + 1]] {
        let len = data.len();
        assert_eq!(leader.propose(vec![vec![1], data]), Err(ProposeError::EntryLength { len }));
    }
    let mut taken = 0;
    while leader.propose(vec![vec![0; ENTRY_BYTES_MAX]]).is_ok() {
        taken += 1;
    }
    assert_eq!(taken, 8, "what is undecided is bounded");
}

#[test]
fn a_log_that_contradicts_itself_does_not_start() {
    let config = config(1, &[1], &[]);
    let entry = |term, index| RaftEntry { term, index, data: vec![], change: MembersChange::None };
    let state = |term, commit| Some(HardState { term, vote: 0, commit });
    let cases = [
        (state(2, 1), vec![entry(2, 3)], "entry 3 of term 2 follows entry 1 of term 1"),
        (state(2, 1), vec![entry(2, 2), entry(1, 3)], "entry 3 of term 1 follows entry 2 of term 2"),
        (state(1, 1), vec![entry(2, 2)], "its term is 1, but its last entry is of term 2"),
        (state(2, 4), vec![entry(2, 2)], "entry 4 is committed, but its last entry is 2"),
    ];
    for (hard_state, entries, why) in cases {
        let error = RaftCore::new(&config, Restored { snapshot: None, hard_state, entries }, Box::new(|| 0))
            .err()
            .unwrap();
        assert_eq!(error.to_string(), format!("the control log cannot start: {why}"));
    }
}

#[test]
fn learners_come_and_go() {
    let mut leader = core(&config(1, &[1], &[]), Restored::default());
    let elected = tick_until_ready(&mut leader);
    leader.on_persisted(elected.number);
    settle(&mut leader);
    leader.add_learner(NodeId(2));
    leader.add_learner(NodeId(2));
    leader.add_learner(NodeId(1));
    leader.remove_learner(NodeId(1));
    assert_eq!(leader.members(), Members::new(vec![NodeId(1)], vec![NodeId(2)]), "a voter stays one");
    let sent = leader.ready().unwrap();
    assert!(sent.messages_now.iter().any(|message| message.to == NodeId(2)));
    leader.on_persisted(sent.number);
    leader.remove_learner(NodeId(2));
    leader.remove_learner(NodeId(2));
    assert_eq!(leader.status().matched, []);
}
