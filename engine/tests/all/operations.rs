//! What keyspaces do, against a model, over restarts, and from many threads.

use std::collections::BTreeMap;

use crate::common::{key, slot_of, standalone, version};
use lockgate_engine::{Gate, Generation, OpError, Slot, Term, Update, VALUE_BYTES_MAX};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Set(u8, u8, Vec<u8>),
    Delete(u8, u8),
    Append(u8, u8, u8),
    Get(u8, u8),
    GetMany(u8),
    Reopen(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..200),
        1 => (1000usize..9000, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
    ];
    let (space, name) = (0u8..3, 0u8..40);
    prop_oneof![
        12 => (space.clone(), name.clone(), value).prop_map(|(space, name, value)| Step::Set(space, name, value)),
        6 => (space.clone(), name.clone()).prop_map(|(space, name)| Step::Delete(space, name)),
        6 => (space.clone(), name.clone(), any::<u8>()).prop_map(|(space, name, byte)| Step::Append(space, name, byte)),
        6 => (space.clone(), name).prop_map(|(space, name)| Step::Get(space, name)),
        2 => space.prop_map(Step::GetMany),
        1 => (1usize..4).prop_map(Step::Reopen),
    ]
}

/// A few slots, with several keys in each.
fn name_of(name: u8) -> Vec<u8> {
    key(&format!("t{}", name % 5), usize::from(name))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_a_map_does_over_restarts_with_other_core_counts(steps in proptest::collection::vec(step(), 1..150)) {
        let folder = tempfile::tempdir().unwrap();
        let mut engine = standalone(folder.path(), 2);
        let mut model: BTreeMap<(u8, Vec<u8>), Vec<u8>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Set(space, name, value) => {
                    let _ = engine.keyspace(space).set(&name_of(name), &value).unwrap();
                    model.insert((space, name_of(name)), value);
                }
                Step::Delete(space, name) => {
                    let (was_there, _) = engine.keyspace(space).delete(&name_of(name)).unwrap();
                    prop_assert_eq!(was_there, model.remove(&(space, name_of(name))).is_some());
                }
                Step::Append(space, name, byte) => {
                    let _ = engine.keyspace(space).update(&name_of(name), |old| match old {
                        Some(old) if old.len() > 150 => Update::Delete,
                        Some(old) => Update::Put([old, &[byte]].concat()),
                        None if byte % 2 == 0 => Update::Put(vec![byte]),
                        None => Update::Keep,
                    }).unwrap();
                    let key = (space, name_of(name));
                    match model.get_mut(&key) {
                        Some(old) if old.len() > 150 => drop(model.remove(&key)),
                        Some(old) => old.push(byte),
                        None if byte % 2 == 0 => drop(model.insert(key, vec![byte])),
                        None => {}
                    }
                }
                Step::Get(space, name) => {
                    let value = engine.keyspace(space).get(&name_of(name)).unwrap();
                    let expected = model.get(&(space, name_of(name)));
                    prop_assert_eq!(value.as_ref().map(|value| value.as_bytes()), expected.map(Vec::as_slice));
                    let seen = engine.keyspace(space).get_with(&name_of(name), |seen, version| {
                        (seen.map(<[u8]>::to_vec), version)
                    }).unwrap();
                    let slot_version = engine.slot_status(Slot::of_key(&name_of(name))).version;
                    prop_assert_eq!(seen, (expected.cloned(), value.map_or(slot_version, |value| value.version())));
                    prop_assert_eq!(engine.keyspace(space).exists(&name_of(name)).unwrap(), expected.is_some());
                }
                Step::GetMany(space) => {
                    let names: Vec<Vec<u8>> = (0..40).map(name_of).collect();
                    let keys: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
                    let values = engine.keyspace(space).get_many(&keys).unwrap();
                    for (name, value) in names.iter().zip(values) {
                        let expected = model.get(&(space, name.clone()));
                        prop_assert_eq!(value.as_ref().map(|value| value.as_bytes()), expected.map(Vec::as_slice));
                    }
                }
                Step::Reopen(cores) => {
                    let before: Vec<_> = Slot::all().map(|slot| engine.slot_status(slot)).collect();
                    drop(engine);
                    engine = standalone(folder.path(), cores);
                    for (slot, before) in Slot::all().zip(before) {
                        let after = engine.slot_status(slot);
                        prop_assert_eq!((after.version, after.digest, after.keys, after.live_bytes, after.term, after.generation),
                            (before.version, before.digest, before.keys, before.live_bytes, before.term, before.generation));
                    }
                }
            }
        }
        for space in 0..3 {
            let expected = model.keys().filter(|(of, _)| *of == space).count();
            prop_assert_eq!(engine.keyspace(space).len(), expected as u64);
        }
        prop_assert_eq!(engine.stats().keys, model.len() as u64);
    }
}

#[test]
fn limits_are_errors_and_long_values_work() {
    let folder = tempfile::tempdir().unwrap();
    let engine = crate::common::builder(folder.path(), 1).memory_bytes_max(64 << 20).open().unwrap();
    let keys = engine.keyspace(0);
    assert!(matches!(keys.set(&[0; 65_536], b""), Err(OpError::KeyTooLong { bytes: 65_536 })));
    assert!(matches!(keys.get(&[0; 70_000]), Err(OpError::KeyTooLong { .. })));
    assert!(matches!(keys.set(b"k", &vec![0; VALUE_BYTES_MAX + 1]), Err(OpError::ValueTooLong { .. })));
    let _ = keys.set(&[7; 65_535], b"").unwrap();
    assert_eq!(keys.get(&[7; 65_535]).unwrap().unwrap().as_bytes(), b"");
    let long = vec![42; 20 << 20];
    keys.set(b"k", &long).unwrap().wait_written().unwrap();
    let pinned = keys.get(b"k").unwrap().unwrap();
    assert!(pinned.as_bytes() == long);
    let full = loop {
        match keys.set(format!("another {}", keys.len()).as_bytes(), &long) {
            Ok(receipt) => receipt.wait_written().unwrap(),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, OpError::OutOfMemory { .. }) && !full.is_retryable(), "{full}");
    assert!(full.to_string().contains("memory_bytes_max"));
    assert!(keys.get(b"k").unwrap().unwrap().as_bytes() == long, "what was refused changed nothing");
    drop(engine);
    drop(keys);
    let engine = standalone(folder.path(), 1);
    assert!(engine.keyspace(0).get(b"k").unwrap().unwrap().as_bytes() == long);
    assert!(pinned.as_bytes() == long, "a pin outlives its engine");
}

#[test]
fn the_longest_value_works() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    let longest = vec![3; VALUE_BYTES_MAX];
    engine.keyspace(0).set(b"k", &longest).unwrap().wait_synced().unwrap();
    assert!(engine.keyspace(0).get(b"k").unwrap().unwrap().as_bytes() == longest);
    drop(engine);
    let engine = standalone(folder.path(), 1);
    assert!(engine.keyspace(0).get(b"k").unwrap().unwrap().as_bytes() == longest);
}

#[test]
fn a_log_that_is_behind_refuses_and_then_takes_again() {
    let folder = tempfile::tempdir().unwrap();
    let engine = crate::common::builder(folder.path(), 1).log_unwritten_bytes_max(64 << 10).open().unwrap();
    let (keys, slot) = (engine.keyspace(0), Slot::of_key(b"k"));
    let mut refused = 0;
    for number in 0u32..5_000 {
        while let Err(error) = keys.set(b"k", &[number as u8; 2000]) {
            assert!(matches!(error, OpError::LogBehind { .. }) && error.is_retryable(), "{error}");
            refused += 1;
            lockgate_runtime::block_on_foreign(engine.wait_log_room(slot)).unwrap().unwrap();
        }
    }
    assert!(refused > 0);
    assert_eq!(engine.slot_status(slot).version, version(1, 5_000));
}

#[test]
fn a_closed_engine_reads_and_refuses_writes() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 2);
    let receipt = engine.keyspace(0).set(b"k", b"v").unwrap();
    lockgate_runtime::block_on_foreign(engine.close()).unwrap().unwrap();
    assert!(engine.synced(receipt.ticket));
    assert!(matches!(engine.keyspace(0).set(b"k", b"w"), Err(OpError::LogFailed(_))));
    assert_eq!(engine.keyspace(0).get(b"k").unwrap().unwrap(), b"v");
}

#[test]
fn versions_and_positions_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 2);
    let keys = engine.keyspace(9);
    let slot = Slot::of_key(b"k");
    let status = engine.slot_status(slot);
    assert_eq!((status.gate, status.term, status.generation), (Gate::Owned, Term(1), Generation::new(1)));
    let first = keys.set(b"k", b"v").unwrap();
    assert_eq!(first.version, version(1, 1));
    let (gone, second) = keys.delete(b"k").unwrap();
    assert!(gone && second.version == version(1, 2) && second.ticket.position > first.ticket.position);
    let (gone, third) = keys.delete(b"k").unwrap();
    assert!(!gone && third.ticket == second.ticket, "an absence depends on the slot's last write");
    let read = keys.read(b"k").unwrap();
    assert!(read.value.is_none());
    assert_eq!((read.version, read.position), (second.version, second.ticket));
    assert_eq!(engine.slot_status(slot).digest, 0);
}

#[test]
fn threads_hammer_one_slot() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 3_000;
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 2);
    let slot = slot_of("hot");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let keys = engine.keyspace(0);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let own = key("hot", thread * 1000 + round % 100);
                    let _ = keys.set(&own, format!("{thread}.{round}").as_bytes()).unwrap();
                    assert_eq!(keys.get(&own).unwrap().unwrap(), format!("{thread}.{round}").as_bytes());
                    if round % 3 == 0 {
                        assert!(keys.delete(&own).unwrap().0);
                    }
                    let _ = keys
                        .update(&key("hot", 9_999), |old| {
                            let count = old.map_or(0, |old| u64::from_le_bytes(old.try_into().unwrap()));
                            Update::Put((count + 1).to_le_bytes().to_vec())
                        })
                        .unwrap();
                }
            });
        }
    });
    let count = engine.keyspace(0).get(&key("hot", 9_999)).unwrap().unwrap();
    assert_eq!(count.as_bytes(), ((THREADS * ROUNDS) as u64).to_le_bytes());
    let status = engine.slot_status(slot);
    assert_eq!(status.version.counter as usize, THREADS * (2 * ROUNDS + ROUNDS / 3));
    assert_eq!(status.keys, engine.keyspace(0).len());
    drop((engine, count));
    let again = standalone(folder.path(), 1).slot_status(slot);
    assert_eq!((again.digest, again.keys, again.version), (status.digest, status.keys, status.version));
}

#[test]
fn emptied_slots_have_a_digest_of_zero() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    for number in 0..100 {
        let _ = engine.keyspace((number % 4) as u8).set(&key("a", number), &vec![1; number]).unwrap();
    }
    assert_ne!(engine.slot_status(slot_of("a")).digest, 0);
    for number in 0..100 {
        assert!(engine.keyspace((number % 4) as u8).delete(&key("a", number)).unwrap().0);
    }
    let status = engine.slot_status(slot_of("a"));
    assert_eq!((status.digest, status.keys, status.live_bytes), (0, 0, 0));
}
