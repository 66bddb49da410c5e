//! Bytes out and in: round trips, and everything that is not taken.

use super::super::codec::*;
use super::super::entry::TooLong;
use super::super::raft::*;
use super::*;

fn raft_entry(term: u64, index: u64) -> RaftEntry {
    RaftEntry { term, index, data: vec![index as u8; 3], change: MembersChange::None }
}

fn append() -> RaftMessage {
    RaftMessage {
        kind: RaftMessageKind::Append,
        from: NodeId(1),
        to: NodeId(2),
        term: 3,
        log_term: 1,
        index: 5,
        commit: 4,
        commit_term: 0,
        reject: false,
        reject_hint: 0,
        context: vec![],
        entries: vec![raft_entry(2, 6), raft_entry(3, 7)],
        snapshot: None,
    }
}

#[test]
fn what_goes_out_comes_back() {
    let mut cluster = Cluster::new();
    let job = cluster.start(1, 2, 10, 19);
    let evidence = cluster.evidence(job);
    let bodies = [
        EntryBody::AddNode(node_info(8, false)),
        EntryBody::Restarted { incarnation: incarnation(1, 2) },
        EntryBody::CommitJobs(vec![evidence]),
        start_job(1, 2, &[(0, 9)], 1),
    ];
    for body in bodies {
        let entry = cluster.entry(body);
        assert_eq!(decode_entry(&encode_entry(&entry).unwrap()), Ok(entry));
    }
    cluster.committed(job);
    assert_eq!(decode_map(&encode_map(&cluster.map).unwrap()), Ok(cluster.map));
    assert_eq!(decode_genesis(&encode_genesis(&genesis()).unwrap()), Ok(genesis()));
    assert_eq!(decode_message(&encode_message(&append()).unwrap()), Ok(append()));
}

#[test]
fn the_largest_vote_fits_into_an_entry() {
    let mut genesis = genesis();
    genesis.shards.truncate(2);
    genesis.shards[0].slots = vec![SlotRange::new(0, SLOT_COUNT - 1)];
    genesis.shards[1].slots.clear();
    let mut cluster = Cluster::new();
    let mut map = ClusterMap::genesis(genesis).unwrap();
    let start = cluster.entry(start_job(1, 2, &[(0, SLOT_COUNT - 1)], 1));
    let Ok(Effect::JobStarted { job, .. }) = map.apply(2, &start).into_result() else { panic!() };
    let mut evidence = evidence(&map, job);
    for slot in &mut evidence.slots {
        slot.last.counter = u64::MAX;
        slot.digest = u64::MAX;
    }
    let bytes = encode_entry(&cluster.entry(EntryBody::CommitJobs(vec![evidence]))).unwrap();
    assert!(bytes.len() < ENTRY_BYTES_MAX / 2, "{}", bytes.len());
}

#[test]
fn what_is_not_taken() {
    let mut cluster = Cluster::new();
    let entry = cluster.entry(EntryBody::Activated { job: JobId(1) });
    let bytes = encode_entry(&entry).unwrap();
    let changed = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        decode_entry(&bytes).unwrap_err().to_string()
    };
    assert_eq!(changed(0, b'M'), "a control entry begins with byte 0x45, this begins with 0x4d");
    let version = changed(1, 2);
    assert_eq!(
        version,
        "this control entry has format version 2, version 1 is the latest that is known here: upgrade this node"
    );
    for len in 0..bytes.len() {
        assert!(decode_entry(&bytes[..len]).is_err());
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(
        decode_entry(&longer).unwrap_err().to_string(),
        "this control entry is malformed: 1 bytes are left over"
    );
    let huge = vec![0; ENTRY_BYTES_MAX + 1];
    assert!(matches!(decode_entry(&huge), Err(CodecError::TooManyBytes { .. })));

    let why = "x".repeat(1_025);
    let long = cluster.entry(EntryBody::AbortJob { job: JobId(1), why, cancelled: false });
    let too_long = TooLong { what: "the reason", len: 1_025, max: 1_024 };
    assert_eq!(encode_entry(&long), Err(CodecError::TooLong(too_long)));

    let mut map = cluster.map.clone();
    map.shards.get_mut(&ShardId(1)).unwrap().in_sync.clear();
    assert!(matches!(decode_map(&encode_map(&map).unwrap()), Err(CodecError::Invalid(_))));
}

#[test]
fn messages_that_make_no_sense_are_refused() {
    type Case = (fn(&mut RaftMessage), &'static str);
    let spoils: [Case; 7] = [
        (|message| message.term = 0, "its term is out of range"),
        (|message| message.term = u64::MAX, "its term is out of range"),
        (|message| message.context = vec![0; 65], "its context is too long"),
        (
            |message| message.kind = RaftMessageKind::Heartbeat,
            "it carries entries, which only an append does",
        ),
        (|message| message.entries[1].index = 9, "its entries are not in sequence"),
        (|message| message.entries[0].term = 0, "its entries' terms are not in order"),
        (|message| message.entries[1].term = 4, "its entries' terms are not in order"),
    ];
    let genesis = ClusterMap::genesis(genesis()).unwrap();
    let config = RaftConfig::of_genesis(NodeId(2), &genesis);
    let mut core = RaftCore::new(&config, Restored::default(), Box::new(|| 0)).unwrap();
    for (spoil, why) in spoils {
        let mut message = append();
        spoil(&mut message);
        let error = decode_message(&encode_message(&message).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), format!("this raft message is malformed: {why}"));
        let refused = core.step(message.clone()).unwrap_err().to_string();
        assert_eq!(refused, format!("refused a {:?} message from node 1: {why}", message.kind));
    }
}

#[test]
fn later_records_overwrite_the_tail() {
    let record = |term: Option<u64>, entries: &[(u64, u64)]| {
        let hard_state = term.map(|term| HardState { term, vote: 1, commit: 1 });
        let entries = entries.iter().map(|(term, index)| raft_entry(*term, *index)).collect();
        encode_persist(&Persist { snapshot: None, hard_state, entries }).unwrap()
    };
    let mut replay = Replay::new(1);
    replay.push(&record(Some(2), &[(2, 2), (2, 3), (2, 4)])).unwrap();
    replay.push(&record(Some(3), &[(3, 3)])).unwrap();
    replay.push(&record(None, &[(3, 4), (3, 5)])).unwrap();
    let gap = replay.push(&record(None, &[(3, 7)])).unwrap_err();
    assert_eq!(gap.to_string(), "this raft log record is malformed: it has entry 7, but 6 would be the next");
    assert!(replay.push(&record(None, &[(3, 1)])).is_err(), "the genesis is not overwritten");
    assert!(replay.push(&record(None, &[(2, 6)])).is_err(), "terms do not go back");
    assert!(replay.push(&record(Some(2), &[])).is_err(), "the hard state's neither");
    let restored = replay.finish();
    assert_eq!(restored.hard_state, Some(HardState { term: 3, vote: 1, commit: 1 }));
    let kept: Vec<(u64, u64)> = restored.entries.iter().map(|entry| (entry.term, entry.index)).collect();
    assert_eq!(kept, [(2, 2), (3, 3), (3, 4), (3, 5)]);
}
