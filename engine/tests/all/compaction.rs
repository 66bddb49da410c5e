//! Memory comes back: from overwrites, deletes and dropped slots, also at the memory bound and while the log is replayed.

use std::sync::Arc;

use lockgate_engine::{Engine, Gate, Generation, OpError, Slot, StableWatermarks, Version};

use crate::common::{FIRST, builder, clustered, own, slot_of, version, wait_until};

fn key(number: usize) -> Vec<u8> {
    format!("key {number}").into_bytes()
}

fn put(engine: &Engine, key: &[u8], value: &[u8]) {
    loop {
        match engine.keyspace(0).set(key, value) {
            Ok(_receipt) => return,
            Err(OpError::LogBehind { slot, .. }) => {
                let waiting = engine.clone();
                engine
                    .runtime()
                    .block_on(0, move || async move { waiting.wait_log_room(slot).await.unwrap() });
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn overwriting_one_working_set_takes_little_more_than_a_fresh_load() {
    const KEYS: usize = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let engine = builder(folder.path(), 2).open().unwrap();
    (0..KEYS).for_each(|number| put(&engine, &key(number), &[1; 200]));
    let fresh = engine.stats();
    for round in 2..12u8 {
        (0..KEYS).for_each(|number| put(&engine, &key(number * 7_919 % KEYS), &[round; 200]));
    }
    let most = fresh.memory_used_bytes * 135 / 100;
    wait_until(&engine, "memory comes back", move |engine| engine.stats().memory_used_bytes <= most);
    let stats = engine.stats();
    assert_eq!((stats.keys, stats.live_bytes), (fresh.keys, fresh.live_bytes));
    assert!(stats.compaction.freed_bytes > 8 * fresh.live_bytes, "{stats:?}");
    assert!(fresh.live_ratio() == 1.0 && stats.live_ratio() > 0.4, "{}", stats.live_ratio());
    assert!(fresh.compaction.write_amplification() == 1.0 && stats.compaction.write_amplification() > 1.0);
    // The log has ten times as much as fits: what it superseded is discarded while it is replayed.
    let digests: Vec<u64> = Slot::all().map(|slot| engine.slot_status(slot).digest).collect();
    drop(engine);
    let engine = builder(folder.path(), 2).memory_bytes_max(2 * most).open().unwrap();
    assert_eq!(Slot::all().map(|slot| engine.slot_status(slot).digest).collect::<Vec<_>>(), digests);
    assert!((0..KEYS).all(|number| engine.keyspace(0).get(&key(number)).unwrap().unwrap() == [11; 200]));
}

#[test]
fn what_is_deleted_comes_back_and_so_does_what_a_lower_bound_asks_for() {
    const KEYS: usize = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let engine = builder(folder.path(), 1).open().unwrap();
    // A slot that was emptied keeps its last record: few slots.
    let key = |number: usize| format!("{{{}}}{number}", number % 50).into_bytes();
    (0..KEYS).for_each(|number| put(&engine, &key(number), &[1; 500]));
    let full = engine.stats().memory_used_bytes;
    for number in 0..KEYS * 9 / 10 {
        let _ = engine.keyspace(0).delete(&key(number)).unwrap();
    }
    wait_until(&engine, "nine tenths come back", move |engine| engine.stats().memory_used_bytes < full / 5);
    // Too little garbage for a compaction, until memory is short. What is left to do of the one before may take some along.
    let little = engine.stats().live_bytes / 16;
    let stays = (0..1_000).any(|_| {
        (KEYS * 9 / 10..KEYS).step_by(12).for_each(|number| put(&engine, &key(number), &[2; 500]));
        engine.stats().dead_bytes > little
    });
    assert!(stays, "garbage does not go at once");
    engine.set_memory_bytes_max(engine.stats().live_bytes / 2);
    assert!(matches!(engine.keyspace(0).set(b"more", &[3; 60_000]), Err(OpError::OutOfMemory { .. })));
    wait_until(&engine, "garbage goes when memory is short", move |engine| {
        engine.stats().dead_bytes < little
    });
    for number in KEYS * 9 / 10..KEYS {
        assert!(engine.keyspace(0).get(&key(number)).unwrap().is_some(), "reads go on");
    }
    engine.set_memory_bytes_max(1 << 30);
    put(&engine, b"more", &[3; 60_000]);
}

#[test]
fn a_lower_bound_has_each_core_compact_its_own_slots() {
    let folder = tempfile::tempdir().unwrap();
    let engine = builder(folder.path(), 2).open().unwrap();
    let tag = (0..).find(|tag| Slot::of_key(format!("{{{tag}}}").as_bytes()).index() == 0).unwrap();
    let key = |number: usize| format!("{{{tag}}}{number}").into_bytes();
    for round in 0..30 {
        (0..100).for_each(|number| put(&engine, &key(number), &[round; 500]));
        let little = engine.stats().live_bytes / 16;
        engine.set_memory_bytes_max(engine.stats().live_bytes / 2);
        wait_until(&engine, "garbage goes when memory is short", move |engine| {
            engine.stats().dead_bytes < little
        });
        engine.set_memory_bytes_max(1 << 30);
    }
    drop(engine);
    let engine = builder(folder.path(), 2).open().unwrap();
    assert!((0..100).all(|number| engine.keyspace(0).get(&key(number)).unwrap().unwrap() == [29; 500]));
}

#[test]
fn at_the_bound_deletes_make_room() {
    let folder = tempfile::tempdir().unwrap();
    let engine = builder(folder.path(), 1).memory_bytes_max(4 << 20).open().unwrap();
    let keys = engine.keyspace(0);
    let mut written = 0;
    while keys.set(&key(written), &[1; 1000]).is_ok() {
        written += 1;
    }
    assert!(written > 3000, "{written}");
    for number in 0..written {
        assert!(keys.delete(&key(number)).unwrap().0);
    }
    let keys_there = keys.clone();
    wait_until(&engine, "room for more", move |_| keys_there.set(b"another", &[2; 100_000]).is_ok());
}

#[test]
fn long_values_have_memory_of_their_own_that_comes_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let engine = builder(folder.path(), 1).memory_bytes_max(4 << 20).open().unwrap();
    let keys = engine.keyspace(0);
    for round in 0..60u8 {
        let set = |name: &[u8], bytes| keys.set(name, &vec![round; bytes]).is_ok();
        let keys_there = keys.clone();
        if !set(b"{t}long", 300_000) {
            wait_until(&engine, "room", move |_| keys_there.set(b"{t}long", &vec![round; 300_000]).is_ok());
        }
        assert!(set(b"{t}short", 10));
    }
    let status = engine.slot_status(slot_of("t"));
    wait_until(&engine, "the rest comes back", |engine| engine.stats().dead_bytes < 300_000);
    assert_eq!(engine.compaction_stats().moved_bytes / 300_000, 0, "no long value is copied");
    drop((engine, keys));
    let engine = builder(folder.path(), 1).memory_bytes_max(4 << 20).open().unwrap();
    assert_eq!(engine.slot_status(slot_of("t")).digest, status.digest);
    assert!(engine.keyspace(0).get(b"{t}long").unwrap().unwrap() == vec![59; 300_000]);
}

#[test]
fn pinned_values_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let engine = builder(folder.path(), 1).open().unwrap();
    let keys = engine.keyspace(0);
    put(&engine, b"{t}pinned", &[7; 10_000]);
    let pinned = keys.get(b"{t}pinned").unwrap().unwrap();
    for round in 0..200u8 {
        put(&engine, b"{t}pinned", &[round; 10_000]);
        put(&engine, b"{t}other", &[round; 10_000]);
    }
    wait_until(&engine, "the rest comes back", |engine| engine.stats().dead_bytes < 80_000);
    assert!(pinned == vec![7; 10_000]);
    assert!(keys.get(b"{t}pinned").unwrap().unwrap() == vec![199; 10_000]);
}

/// Says the same of every slot.
struct Everywhere(Version);

impl StableWatermarks for Everywhere {
    fn stable(&self, _: Slot, _: Generation) -> Option<Version> {
        Some(self.0)
    }
}

#[test]
fn a_clustered_slot_keeps_what_may_be_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let engine = clustered(folder.path(), 1);
    let (slot, key) = (slot_of("a"), crate::common::key("a", 0));
    own(&engine, slot, FIRST, 1);
    (0..100u8).for_each(|round| put(&engine, &key, &[round; 1000]));
    let all = engine.stats();
    assert!(all.dead_bytes > 99 * 1000 && all.compaction.steps == 0, "nothing is known to be stable");
    engine.set_stable_watermarks(Arc::new(Everywhere(version(1, 50))));
    wait_until(&engine, "the older half goes", |engine| engine.stats().dead_bytes < 60 * 1000);
    assert!(engine.stats().dead_bytes > 49 * 1000, "the newer half stays");
    engine.follow(slot, FIRST).unwrap();
    assert!(engine.truncate(slot, FIRST, version(1, 49)).is_err());
    let back = engine.truncate(slot, FIRST, version(1, 60)).unwrap();
    assert_eq!((back.version, back.dropped_records), (version(1, 60), 40));
    assert_eq!(engine.slot_status(slot).gate, Gate::Follower);
    assert!(engine.keyspace(0).peek(&key).unwrap().value.unwrap() == [59; 1000]);
}
