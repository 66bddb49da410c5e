//! What a checkpoint holds, with everything that may happen before, beside and behind it.

use std::path::Path;

use super::{lasting, quiet};
use crate::common::{FIRST, clustered, copy_directory, import, key, own, slot_of, version};
use lockgate_engine::{Engine, Expiry, Generation, SetOptions, Slot};
use lockgate_runtime::sync::{Arc, Mutex};

fn files(folder: &Path, of: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join(of)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Looks until the engine's cores have done what makes this true, and keeps no engine behind.
fn watch(engine: &Engine, is_so: impl Fn(&Engine) -> bool) {
    while !is_so(engine) {
        std::thread::yield_now();
    }
}

/// Sets, deletes, batches, deadlines and clears, over many slots and three keyspaces.
fn write_all_sorts(engine: &Engine, round: usize) {
    for number in 0..600 {
        let (name, keys) = (key(&(number % 200).to_string(), number), engine.keyspace((number % 3) as u8));
        match (number + round) % 7 {
            0 => drop(keys.delete(&name).unwrap()),
            1 => {
                let options =
                    SetOptions { expiry: Expiry::At(1 << (45 + number % 3)), ..SetOptions::default() };
                assert!(keys.set_with(&name, &vec![round as u8; number % 90], &options).unwrap().applied);
            }
            2 => {
                let tag = (number % 200).to_string();
                let mut batch = engine.batch(slot_of(&tag));
                for more in 0..5 {
                    batch.set(1, key(&tag, more), vec![round as u8; number % 50]);
                }
                batch.delete(2, key(&tag, 3));
                drop(batch.commit().unwrap());
            }
            3 if number % 50 == 3 => drop(engine.clear_slot(slot_of(&(number % 200).to_string())).unwrap()),
            _ => drop(keys.set(&name, &vec![round as u8; number % 300]).unwrap()),
        }
    }
    // Longer than a segment, and longer than what is read at once.
    drop(engine.keyspace(0).set(&key("long", round % 2), &vec![round as u8; 70_000]).unwrap());
    drop(engine.keyspace(0).set(&key("longer", 0), &vec![round as u8; 3 << 20]).unwrap());
    let mut batch = engine.batch(slot_of("batch"));
    for number in 0..3_000 {
        batch.set(0, key("batch", number), vec![round as u8; 100]);
    }
    drop(batch.commit().unwrap());
}

#[test]
fn every_slot_is_what_it_was_with_any_number_of_cores() {
    let folder = tempfile::tempdir().unwrap();
    for (round, cores) in [2, 2, 3, 1, 4, 2].into_iter().enumerate() {
        let engine = quiet(folder.path(), cores).open().unwrap();
        write_all_sorts(&engine, 3 * round);
        let first = engine.checkpoint_blocking().unwrap();
        write_all_sorts(&engine, 3 * round + 1);
        if round % 2 == 0 {
            let second = engine.checkpoint_blocking().unwrap();
            assert_eq!((second.number, engine.stats().checkpoints.last), (first.number + 1, Some(second)));
            assert!(first.slots > 150 && first.bytes > 3 << 20, "{first:?}");
            // Without a write in between, and with one.
            assert_eq!(engine.checkpoint_blocking().unwrap().bytes, second.bytes);
        }
        let _ = engine.keyspace(0).set(b"behind", b"the checkpoint").unwrap();
        let before = lasting(&engine);
        drop(engine);
        let engine = quiet(folder.path(), cores).open().unwrap();
        assert!(lasting(&engine) == before, "round {round}, {cores} cores");
        let values = (0..3_000).map(|number| engine.keyspace(0).get(&key("batch", number)).unwrap());
        assert_eq!(values.flatten().count(), 3_000);
    }
}

#[test]
fn a_checkpoint_gives_log_space_back_and_the_one_before_goes() {
    let folder = tempfile::tempdir().unwrap();
    let engine = quiet(folder.path(), 1).open().unwrap();
    for round in 0..4 {
        for number in 0..200 {
            let value = vec![round; 10_000];
            engine.keyspace(0).set(&key("x", number), &value).unwrap().wait_written().unwrap();
        }
        assert!(engine.stats().checkpoints.log_bytes_since > 2_000_000);
        let stats = engine.checkpoint_blocking().unwrap();
        assert_eq!(stats.number, u64::from(round) + 1);
        assert!(engine.stats().checkpoints.log_bytes_since < 100, "{:?}", engine.stats().checkpoints);
        let data = files(folder.path(), "checkpoint");
        assert_eq!(data, [format!("{:016x}.0.data", stats.number), "manifest".to_owned()]);
        // What is in use, what is prepared, and what waits to be used again.
        assert!(files(folder.path(), "log").len() <= 7, "{:?}", files(folder.path(), "log"));
    }
    let before = lasting(&engine);
    drop(engine);
    assert!(lasting(&quiet(folder.path(), 2).open().unwrap()) == before);
    // The logs of the boots before are not needed.
    let engine = quiet(folder.path(), 1).open().unwrap();
    engine.checkpoint_blocking().unwrap();
    drop(engine);
    drop(quiet(folder.path(), 1).open().unwrap());
    let first_boots =
        |name: &&String| name.contains(".0000000000000001.") || name.contains(".0000000000000002.");
    assert_eq!(files(folder.path(), "log").iter().filter(first_boots).count(), 0);
}

#[test]
fn a_kill_beside_a_checkpoint_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let engine = quiet(folder.path(), 2).open().unwrap();
    for round in 0..6 {
        let taking = engine.clone();
        let checkpoint = std::thread::spawn(move || taking.checkpoint_blocking());
        for number in 0..500 {
            let _ = engine.keyspace(0).set(&key(&number.to_string(), 0), &[round; 2_000]).unwrap();
        }
        checkpoint.join().unwrap().unwrap();
        lockgate_runtime::block_on_foreign(engine.sync_all()).unwrap().unwrap();
        let copy = tempfile::tempdir().unwrap();
        copy_directory(folder.path(), copy.path());
        let again = quiet(copy.path(), 1 + usize::from(round) % 3).open().unwrap();
        assert!(lasting(&again) == lasting(&engine), "round {round}");
    }
}

#[test]
fn generations_terms_and_truncations_are_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let open = |cores| clustered(folder.path(), cores);
    let engine = open(2);
    let slots: Vec<Slot> = ["a", "b", "c", "d", "e"].map(slot_of).into();
    for (number, tag) in ["a", "b", "c", "d"].into_iter().enumerate() {
        own(&engine, slots[number], FIRST, 3);
        for number in 0..30 {
            let _ = engine.keyspace(0).set(&key(tag, number), &[1; 40]).unwrap();
        }
    }
    // One is empty again, one is truncated, one is of a later generation, and one ends.
    import(&engine, slots[4], FIRST);
    engine.follow(slots[1], FIRST).unwrap();
    engine.truncate(slots[1], FIRST, version(3, 20)).unwrap();
    for slot in [slots[2], slots[3]] {
        engine.follow(slot, FIRST).unwrap();
        engine.drop_slot(slot, FIRST).unwrap();
    }
    own(&engine, slots[2], Generation::new(7), 9);
    let _ = engine.keyspace(0).set(&key("c", 1), b"new").unwrap();
    engine.checkpoint_blocking().unwrap();
    own(&engine, slots[1], FIRST, 5);
    let _ = engine.keyspace(0).set(&key("b", 7), b"after").unwrap();
    let before = lasting(&engine);
    drop(engine);
    for cores in [2, 3] {
        let engine = open(cores);
        assert!(lasting(&engine) == before, "{cores} cores");
        // What was taken back is not owned again under its term, and what ended does not begin again.
        assert!(engine.open_slot(slots[3], FIRST, lockgate_engine::Gate::Importing).is_err());
        assert!(engine.own(slots[1], FIRST, lockgate_engine::Term(4)).is_err());
        let stream = engine.stream();
        stream.subscribe(slots[1], FIRST, version(3, 20)).unwrap();
        assert!(stream.subscribe(slots[1], FIRST, version(3, 25)).is_err(), "off the history");
        drop(stream);
        engine.checkpoint_blocking().unwrap();
    }
}

#[test]
fn what_was_garbage_and_a_floor_stay_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let engine = quiet(folder.path(), 1).open().unwrap();
    let slot = slot_of("x");
    for round in 0..40 {
        for number in 0..50 {
            let _ = engine.keyspace(0).set(&key("x", number), &[round; 100]).unwrap();
        }
        for number in 0..25 {
            let _ = engine.keyspace(0).delete(&key("x", number)).unwrap();
        }
    }
    watch(&engine, |engine| {
        let data = engine.slot_stats(slot).data;
        data.dead_bytes * 3 < data.live_bytes
    });
    let before = lasting(&engine);
    engine.checkpoint_blocking().unwrap();
    drop(engine);
    let engine = quiet(folder.path(), 1).open().unwrap();
    assert!(lasting(&engine) == before);
    // The deleted keys' tombstones are gone: who stands below has to start anew.
    let stream = engine.stream();
    assert!(stream.subscribe(slot, FIRST, version(1, 60)).is_err(), "below the floor");
    drop(stream);
    for number in 0..50 {
        let _ = engine.keyspace(0).set(&key("x", number), &[41; 100]).unwrap();
    }
    let before = lasting(&engine);
    drop(engine);
    assert!(lasting(&quiet(folder.path(), 1).open().unwrap()) == before);
}

#[test]
fn one_is_taken_when_enough_was_logged_and_compactions_go_on_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let engine = quiet(folder.path(), 2).automatic_checkpoints(true).checkpoint_log_bytes(300_000).open();
    let engine = engine.unwrap();
    for round in 0..30u8 {
        for number in 0..100 {
            let written = engine.keyspace(0).set(&key("x", number), &[round; 1_000]).unwrap();
            written.wait_written().unwrap();
        }
    }
    watch(&engine, |engine| {
        let stats = engine.stats();
        stats.checkpoints.last.is_some_and(|last| last.number > 1) && stats.compaction.freed_bytes > 1_000_000
    });
    let before = lasting(&engine);
    drop(engine);
    let sink = told.clone();
    let reopened = quiet(folder.path(), 2).on_recovery_progress(move |progress| sink.lock().push(progress));
    let engine = reopened.open().unwrap();
    assert!(lasting(&engine) == before);
    let told = told.lock();
    let last = told.last().expect("the end is told");
    assert!(last.bytes_done == last.bytes_total && last.bytes_total > 100_000, "{last:?}");
    assert!(told.iter().all(|progress| progress.bytes_done <= progress.bytes_total));
}

#[test]
fn many_who_ask_at_once_share_one() {
    let folder = tempfile::tempdir().unwrap();
    let engine = quiet(folder.path(), 2).open().unwrap();
    let _ = engine.keyspace(0).set(b"k", b"v").unwrap();
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let engine = engine.clone();
            std::thread::spawn(move || engine.checkpoint_blocking().unwrap().number)
        })
        .collect();
    let numbers: Vec<u64> = asking.into_iter().map(|asking| asking.join().unwrap()).collect();
    assert!(numbers.iter().all(|number| (1..=8).contains(number)), "{numbers:?}");
    assert_eq!(engine.stats().checkpoints.failures, 0);
}
