//! Clearing keyspaces and slots: one record however many keys, the same on replicas, after restarts and truncations.

use crate::common::{
    FIRST, assert_same, clustered, copy_slot, drain, import, key, own, slot_of, standalone, version,
};
use lockgate_engine::{Engine, Expiry, Gate, OpError, SetOptions, Slot, Term};
use lockgate_runtime::sim::Sim;
use lockgate_runtime::{sleep, unix_ms};

fn until(deadline_ms: u64) -> SetOptions<'static> {
    SetOptions { expiry: Expiry::At(deadline_ms), ..SetOptions::default() }
}

/// Keys in three keyspaces, every other one with a deadline that does not come.
fn fill(engine: &Engine, tag: &str, keys: usize) {
    for number in 0..keys {
        let keyspace = engine.keyspace([0, 1, 200][number % 3]);
        let expiry = if number % 2 == 0 { Expiry::At((1 << 50) + number as u64) } else { Expiry::Clear };
        let options = SetOptions { expiry, ..SetOptions::default() };
        assert!(keyspace.set_with(&key(tag, number), &vec![1; number % 60], &options).unwrap().applied);
    }
}

#[test]
fn one_keyspace_of_a_slot_goes_and_the_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 2);
    let slot = slot_of("x");
    fill(&engine, "x", 300);
    fill(&engine, "y", 3);
    let (keys, first) = engine.keyspace(1).clear_slot(slot).unwrap();
    assert_eq!((keys, first.version), (100, version(1, 301)), "one record");
    first.wait_synced().unwrap();
    for number in 0..300 {
        let keyspace = [0, 1, 200][number % 3];
        let value = engine.keyspace(keyspace).get(&key("x", number)).unwrap();
        assert_eq!(value.map(|value| value.len()), (keyspace != 1).then_some(number % 60), "{number}");
    }
    assert_eq!(
        (engine.keyspace(1).len(), engine.keyspace(1).len_with_deadline()),
        (1, 0),
        "the other slot's"
    );
    assert_eq!((engine.keyspace(0).len(), engine.keyspace(0).len_with_deadline()), (101, 51));
    let (keys, again) = engine.keyspace(1).clear_slot(slot).unwrap();
    assert_eq!((keys, again.version, again.ticket), (0, first.version, first.ticket), "nothing to write");
    let _ = engine.keyspace(1).set(&key("x", 1), b"new").unwrap();
    let (keys, receipt) = engine.clear_slot(slot).unwrap();
    assert_eq!((keys, receipt.version), (201, version(1, 305)), "one record a keyspace, as one write");
    let status = engine.slot_status(slot);
    assert_eq!((status.keys, status.digest, status.live_bytes), (0, 0, 0));
    assert_eq!(engine.clear_slot(slot).unwrap().0, 0);
    drop((engine, first, again, receipt));
    let engine = standalone(folder.path(), 1);
    let again = engine.slot_status(slot);
    assert_eq!((again.keys, again.digest, again.version), (0, 0, status.version));
    assert_eq!(engine.slot_status(slot_of("y")).keys, 3);
}

#[test]
fn a_keyspace_is_cleared_on_all_slots_that_are_served_here() {
    let folder = tempfile::tempdir().unwrap();
    let engine = clustered(folder.path(), 2);
    let tags: Vec<String> = (0..40).map(|tag| format!("s{tag}")).collect();
    for tag in &tags {
        own(&engine, slot_of(tag), FIRST, 1);
        fill(&engine, tag, 6);
    }
    engine.follow(slot_of("s0"), FIRST).unwrap();
    engine.hand_off(slot_of("s1"), FIRST).unwrap();
    engine.freeze(slot_of("s2"), FIRST).unwrap();
    let error = engine.keyspace(0).clear().unwrap_err();
    assert!(matches!(error.source, OpError::Frozen { slot } if slot == slot_of("s2")), "{error}");
    let before = error.cleared.receipts.len();
    assert!(error.cleared.receipts.iter().all(|receipt| receipt.slot < slot_of("s2")));
    engine.thaw(slot_of("s2"), FIRST).unwrap();
    let rest = engine.keyspace(0).clear().unwrap();
    assert_eq!((before + rest.receipts.len(), error.cleared.keys + rest.keys), (38, 76));
    assert!(engine.keyspace(0).is_empty() && engine.keyspace(1).len() == 76);
    assert_eq!(engine.slot_status(slot_of("s0")).keys, 6, "a follower has what its owner has");
    assert_eq!(engine.keyspace(0).clear().unwrap().receipts.len(), 0);
    for gate in [Gate::Follower, Gate::HandedOff] {
        let slot = if gate == Gate::Follower { slot_of("s0") } else { slot_of("s1") };
        assert!(matches!(engine.clear_slot(slot), Err(OpError::NotOwned { gate: at, .. }) if at == gate));
    }
}

#[test]
fn replicas_have_a_clear_before_during_and_after_it() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (standalone(folders.0.path(), 1), clustered(folders.1.path(), 2));
    let slot = slot_of("x");
    import(&target, slot, FIRST);
    let stream = source.stream();
    stream.subscribe(slot, FIRST, version(0, 0)).unwrap();
    for round in 0..6 {
        fill(&source, "x", 90);
        drain(&stream, &target, FIRST, 700);
        assert_same(&source, &target, slot);
        let _ = match round % 3 {
            0 => source.keyspace(200).clear_slot(slot).unwrap(),
            1 => source.clear_slot(slot).unwrap(),
            _ => source.keyspace(9).clear_slot(slot).unwrap(),
        };
        fill(&source, "x", round);
        drain(&stream, &target, FIRST, 1);
        assert_same(&source, &target, slot);
        assert_eq!(source.slot_stats(slot).keyspaces, target.slot_stats(slot).keyspaces);
        assert_eq!(
            source.slot_stats(slot).data.keys_with_deadline,
            target.slot_stats(slot).data.keys_with_deadline
        );
    }
    let later = tempfile::tempdir().unwrap();
    let late = clustered(later.path(), 1);
    import(&late, slot, FIRST);
    copy_slot(&source, &late, slot, FIRST, FIRST);
}

#[test]
fn a_clear_that_is_taken_back_was_never_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut engine = clustered(folder.path(), 1);
    let slot = slot_of("x");
    own(&engine, slot, FIRST, 1);
    fill(&engine, "x", 90);
    let partly = engine.slot_stats(slot);
    let digest = engine.slot_status(slot).digest;
    let _ = engine.keyspace(0).clear_slot(slot).unwrap();
    let between = engine.slot_status(slot);
    let _ = engine.clear_slot(slot).unwrap();
    fill(&engine, "x", 7);
    engine.follow(slot, FIRST).unwrap();
    for reopen in [false, true] {
        if reopen {
            drop(engine);
            engine = clustered(folder.path(), 2);
        } else {
            assert_eq!(engine.truncate(slot, FIRST, between.version).unwrap().dropped_records, 9);
        }
        let found = engine.slot_status(slot);
        assert_eq!((found.version, found.digest, found.keys), (between.version, between.digest, 60));
    }
    engine.truncate(slot, FIRST, partly.version).unwrap();
    assert_eq!(
        (engine.slot_stats(slot).keyspaces, engine.slot_status(slot).digest),
        (partly.keyspaces, digest)
    );
}

#[test]
fn keys_that_were_cleared_do_not_end_again() {
    let sim = Sim::new(3);
    let node = sim.node("a", 1);
    let runtime = node.clone();
    node.block_on(0, move || async move {
        let engine = Engine::builder("/a").log_file_bytes(1 << 20).open_on(&runtime).await.unwrap();
        let (keys, slot) = (engine.keyspace(0), slot_of("x"));
        let deadline_ms = unix_ms() + 1_000;
        for number in 0..50 {
            let _ = keys.set_with(&key("x", number), b"v", &until(deadline_ms)).unwrap();
        }
        assert_eq!(engine.clear_slot(slot).unwrap().0, 50);
        let _ = keys.set_with(&key("x", 7), b"new", &until(deadline_ms + 5_000)).unwrap();
        sleep(std::time::Duration::from_millis(2_000)).await;
        assert_eq!(engine.slot_status(slot).version, version(1, 52), "the sweeper finds nothing");
        assert_eq!(keys.get(&key("x", 7)).unwrap().unwrap(), b"new");
        sleep(std::time::Duration::from_millis(5_000)).await;
        assert_eq!((keys.len(), engine.slot_status(slot).version), (0, version(1, 53)), "the new one ends");
        engine.close().await.unwrap();
    });
}

#[test]
fn a_clear_of_another_term_and_slot_is_applied_where_it_comes() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (clustered(folders.0.path(), 1), clustered(folders.1.path(), 1));
    let slot = slot_of("x");
    // The slot that an empty key would be of is another one.
    assert_ne!(slot, Slot::of_key(b""));
    own(&source, slot, FIRST, 1);
    fill(&source, "x", 20);
    source.own(slot, FIRST, Term(4)).unwrap();
    let _ = source.clear_slot(slot).unwrap();
    fill(&source, "x", 4);
    import(&target, slot, FIRST);
    copy_slot(&source, &target, slot, FIRST, FIRST);
    assert_eq!(target.slot_status(slot).version, version(4, 27));
}

#[test]
fn what_is_taken_in_together_with_a_clear_is_counted_as_where_it_was_written() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (clustered(from.path(), 1), clustered(to.path(), 1));
    let slot = slot_of("x");
    own(&from, slot, FIRST, 1);
    import(&to, slot, FIRST);
    for round in 0..3 {
        for number in 0..5 {
            let _ = from.keyspace(0).set(&key("x", number), &[round; 100]).unwrap();
            let _ = from.keyspace(1).set(&key("x", number / 2), &[round; 70]).unwrap();
        }
        let _ = from.clear_slot(slot).unwrap();
    }
    for number in 0..9 {
        let _ = from.keyspace(0).set(&key("x", number / 3), &[7; 50]).unwrap();
    }
    // All of it in one range.
    copy_slot(&from, &to, slot, FIRST, FIRST);
    let (there, here) = (from.slot_stats(slot).data, to.slot_stats(slot).data);
    assert_eq!((there.live_bytes, there.dead_bytes), (here.live_bytes, here.dead_bytes));
    assert!(here.keys == 3 && here.dead_bytes > 3_000);
}
