//! What keyspaces do at their limits, over restarts, and from many threads. Their everyday life is in `life`.

use crate::common::{key, slot_of, standalone, version};
use lockgate_engine::{Gate, Generation, OpError, Slot, Term, Update, VALUE_BYTES_MAX};

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
