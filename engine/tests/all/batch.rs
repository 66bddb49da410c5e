//! Batches: whole or not at all, for readers, on streams, on replicas, after a kill.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::common::{
    FIRST, assert_same, builder, clustered, copy_directory, import, key, own, slot_of, standalone, version,
};
use lockgate_engine::record::{Record, parse};
use lockgate_engine::{
    BATCH_BYTES_MAX, BATCH_RECORDS_MAX, BatchError, Engine, Expiry, Gate, OpError, RangeHeader, StreamRange,
};
use lockgate_runtime::block_on_foreign;

fn records(range: &StreamRange) -> Vec<Record<'_>> {
    let (mut records, mut at) = (Vec::new(), 0);
    while at < range.bytes.len() {
        let record = parse(&range.bytes[at..]).unwrap();
        at += record.encoded_bytes();
        records.push(record);
    }
    records
}

/// Commits `keys` keys with the same value.
fn write(engine: &Engine, keys: usize, value: &[u8]) {
    let mut batch = engine.batch(slot_of("x"));
    for number in 0..keys {
        batch.set(0, key("x", number), value);
    }
    let _ = batch.commit().unwrap();
}

#[test]
fn a_batch_has_its_effect_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 2);
    let (a, b) = (engine.keyspace(0), engine.keyspace(1));
    let _ = a.set(&key("x", 9), b"goes").unwrap();
    let mut batch = engine.batch(slot_of("x"));
    batch
        .set(0, key("x", 1), b"lost")
        .delete(0, key("x", 9))
        .delete(0, key("x", 8))
        .set_expiring(1, key("x", 1), b"other keyspace", Expiry::At(1 << 50))
        .delete(0, key("x", 1))
        .set(0, key("x", 1), b"wins")
        .set(0, key("x", 2), b"lost")
        .delete(0, key("x", 2));
    assert_eq!((batch.len(), batch.is_empty()), (8, false));
    let receipt = batch.commit().unwrap();
    assert_eq!(receipt.version, version(1, 4), "deletes of absent keys write nothing");
    assert_eq!(a.get(&key("x", 1)).unwrap().unwrap(), b"wins");
    assert_eq!(b.get(&key("x", 1)).unwrap().unwrap(), b"other keyspace");
    assert_eq!(b.deadline(&key("x", 1)).unwrap().at_ms, Some(1 << 50));
    assert!(!a.exists(&key("x", 2)).unwrap() && !a.exists(&key("x", 9)).unwrap());
    receipt.wait_synced().unwrap();
    assert!(engine.synced(receipt.ticket));
    let mut keep = engine.batch(slot_of("x"));
    keep.set_expiring(1, key("x", 1), b"new", Expiry::Keep).set_expiring(
        0,
        key("x", 1),
        b"new",
        Expiry::Keep,
    );
    let _ = keep.commit().unwrap();
    assert_eq!(b.deadline(&key("x", 1)).unwrap().at_ms, Some(1 << 50));
    assert_eq!(a.deadline(&key("x", 1)).unwrap().at_ms, None);
    let last = engine.slot_status(slot_of("x"));
    let mut nothing = engine.batch(slot_of("x"));
    assert_eq!(nothing.commit().unwrap().version, last.version);
    let empty = nothing.delete(0, key("x", 70)).commit().unwrap();
    assert_eq!((empty.version, empty.ticket.position), (last.version, last.position));
    assert_eq!(engine.slot_status(slot_of("x")), last);
}

#[test]
fn what_is_due_ends_and_what_would_be_due_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let engine = clustered(folder.path(), 1);
    own(&engine, slot_of("x"), FIRST, 1);
    let keys = engine.keyspace(0);
    let far = 1 << 50;
    let mut batch = engine.batch(slot_of("x"));
    for number in 0..3 {
        batch.set_expiring(0, key("x", number), b"v", Expiry::At(far));
    }
    let _ = batch.commit().unwrap();
    // The slot's clock jumps to the deadline. A real sweeper may come first: then there is nothing to look up.
    engine.own_from(slot_of("x"), FIRST, lockgate_engine::Term(1), far).unwrap();
    let mut batch = engine.batch(slot_of("x"));
    batch
        .delete(0, key("x", 0))
        .set_expiring(0, key("x", 1), b"w", Expiry::Keep)
        .set_expiring(0, key("x", 2), b"w", Expiry::At(far))
        .set_expiring(0, key("x", 3), b"w", Expiry::After(0))
        .set_expiring(0, key("x", 4), b"w", Expiry::After(10));
    let _ = batch.commit().unwrap();
    let found: Vec<_> = (0..5).map(|number| keys.deadline(&key("x", number)).unwrap()).collect();
    assert_eq!(found.iter().map(|seen| seen.exists).collect::<Vec<_>>(), [false, true, false, false, true]);
    assert_eq!((found[1].at_ms, found[4].at_ms), (None, Some(far + 10)), "what had ended has no deadline");
    let _ = keys.set(&key("x", 3), b"there").unwrap();
    let mut batch = engine.batch(slot_of("x"));
    let _ = batch.set_expiring(0, key("x", 3), b"w", Expiry::After(0)).commit().unwrap();
    assert!(!keys.exists(&key("x", 3)).unwrap());
}

#[test]
fn refused_batches_write_nothing_and_can_be_committed_again() {
    let folder = tempfile::tempdir().unwrap();
    let engine = clustered(folder.path(), 1);
    let slot = slot_of("x");
    let mut batch = engine.batch(slot);
    batch.set(0, key("x", 0), b"v").set(0, key("x", 1), b"v");
    assert!(matches!(batch.commit(), Err(BatchError::Op(OpError::NotOwned { gate: Gate::Absent, .. }))));
    own(&engine, slot, FIRST, 1);
    engine.freeze(slot, FIRST).unwrap();
    let frozen = batch.commit().unwrap_err();
    assert!(matches!(frozen, BatchError::Op(OpError::Frozen { .. })) && frozen.is_retryable());
    engine.thaw(slot, FIRST).unwrap();
    let mut foreign = batch.clone();
    foreign.set(0, key("y", 0), b"v");
    let error = foreign.commit().unwrap_err();
    let BatchError::ForeignKey { slot: of_batch, of, entry } = error else { panic!("{error}") };
    assert_eq!((of_batch, of, entry), (slot, slot_of("y"), 2));
    assert_eq!(engine.slot_status(slot).version, version(0, 0));
    assert_eq!(batch.commit().unwrap().version, version(1, 2));
}

#[test]
fn the_limits_of_a_batch_are_as_stated() {
    let folder = tempfile::tempdir().unwrap();
    let engine = builder(folder.path(), 1).log_file_bytes(256 << 20).open().unwrap();
    let slot = slot_of("x");
    let names: Vec<Vec<u8>> = (0..=BATCH_RECORDS_MAX).map(|number| key("x", number)).collect();
    let mut batch = engine.batch(slot);
    for name in &names[1..] {
        batch.set(0, name, b"");
    }
    assert_eq!(batch.commit().unwrap().version, version(1, BATCH_RECORDS_MAX as u64));
    batch.set(0, &names[1], b"again");
    let _ = batch.commit().expect("of the same keys only the last one counts");
    batch.set(0, &names[0], b"");
    let error = batch.commit().unwrap_err();
    assert!(matches!(error, BatchError::TooManyRecords { records } if records == BATCH_RECORDS_MAX + 1));
    let half = vec![7; BATCH_BYTES_MAX / 2 - 20];
    let mut long = engine.batch(slot);
    long.set(0, b"{x}", &half).set(0, b"{x}2", &half);
    assert_eq!(long.commit().unwrap().version.counter, 2 * BATCH_RECORDS_MAX as u64 + 2, "exactly the limit");
    long.delete(0, b"{x}3");
    let error = long.commit().unwrap_err();
    assert!(matches!(error, BatchError::TooLong { bytes } if bytes == BATCH_BYTES_MAX + 20), "{error}");
    assert!(!error.is_retryable());
    let before = engine.slot_status(slot);
    drop((batch, long, engine));
    let after = standalone(folder.path(), 1).slot_status(slot);
    assert_eq!((after.version, after.digest, after.keys), (before.version, before.digest, before.keys));
}

#[test]
fn readers_see_all_of_a_batch_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 2);
    write(&engine, 5, &0u64.to_le_bytes());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..4_000u64).for_each(|round| write(&engine, 5, &round.to_le_bytes())));
        let names: Vec<Vec<u8>> = (0..5).map(|number| key("x", number)).collect();
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        while !writer.is_finished() {
            let values = engine.keyspace(0).get_many(&names).unwrap();
            let rounds: Vec<&[u8]> = values.iter().map(|value| value.as_ref().unwrap().as_bytes()).collect();
            assert!(rounds.iter().all(|round| *round == rounds[0]), "{rounds:?}");
        }
    });
}

/// Batches of many lengths, with single writes between.
fn write_mixed(engine: &Engine) {
    let keys = engine.keyspace(0);
    for round in 0..120usize {
        match round % 5 {
            0 => drop(keys.set(&key("x", 100 + round), &[1; 30]).unwrap()),
            1 => drop(keys.delete(&key("x", 99 + round)).unwrap()),
            _ => write(engine, 1 + round % 13, &vec![round as u8; round * 7 % 300]),
        }
    }
}

#[test]
fn no_stream_divides_a_batch() {
    for max_bytes in [0, 1, 50, 200, 1_000, 3_000, 1 << 20] {
        let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (source, target) = (standalone(folders.0.path(), 1), clustered(folders.1.path(), 2));
        let slot = slot_of("x");
        import(&target, slot, FIRST);
        let stream = source.stream();
        stream.subscribe(slot, FIRST, version(0, 0)).unwrap();
        write_mixed(&source);
        let (mut batched, mut longer) = (0, 0);
        while let Some(range) = stream.next_range(max_bytes) {
            let records = records(&range);
            assert!(!records.last().unwrap().goes_on, "a range ends within a write, at {}", range.last);
            batched += records.iter().filter(|record| record.goes_on).count();
            if range.bytes.len() > max_bytes {
                let writes = records.iter().filter(|record| !record.goes_on).count();
                assert_eq!(writes, 1, "only a single write is longer than what was asked for");
                longer += 1;
            }
            let header = RangeHeader { term: range.term, base: range.base };
            target.apply(slot, FIRST, &header, &range.bytes).unwrap();
        }
        assert!(batched > 200 && (longer > 0) == (max_bytes < 1 << 20));
        assert_same(&source, &target, slot);
    }
}

#[test]
fn batches_survive_a_reopen_a_stream_and_a_further_reopen() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let slot = slot_of("x");
    let source = standalone(folders.0.path(), 2);
    write_mixed(&source);
    let before = source.slot_status(slot);
    drop(source);
    let source = standalone(folders.0.path(), 3);
    let after = source.slot_status(slot);
    assert_eq!((after.version, after.digest, after.keys), (before.version, before.digest, before.keys));
    write_mixed(&source);
    let target = clustered(folders.1.path(), 1);
    import(&target, slot, FIRST);
    crate::common::copy_slot(&source, &target, slot, FIRST, FIRST);
    drop(target);
    assert_same(&source, &clustered(folders.1.path(), 2), slot);
}

#[test]
fn a_batch_that_was_torn_by_a_crash_is_gone_as_a_whole() {
    let (folder, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = builder(folder.path(), 1).flush_interval_ms(3_600_000).open().unwrap();
    write(&engine, 6, b"synced");
    block_on_foreign(engine.sync_all()).unwrap().unwrap();
    write(&engine, 6, b"not synced");
    let status = engine.slot_status(slot_of("x"));
    block_on_foreign(engine.wait_written(engine.ticket_at(slot_of("x"), status.position))).unwrap().unwrap();
    copy_directory(folder.path(), killed.path());
    let written =
        |file: &PathBuf| std::fs::read(file).unwrap().iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let files = std::fs::read_dir(killed.path().join("log")).unwrap().map(|entry| entry.unwrap().path());
    let file = files.max_by_key(written).unwrap();
    let end = written(&file) + 1;
    let values_after = |cut: usize| {
        let copy = tempfile::tempdir().unwrap();
        copy_directory(killed.path(), copy.path());
        let torn = copy.path().join("log").join(file.file_name().unwrap());
        let mut bytes = std::fs::read(&torn).unwrap();
        bytes[end - cut..].fill(0);
        std::fs::write(&torn, bytes).unwrap();
        let engine = standalone(copy.path(), 1);
        let mut values: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for number in 0..6 {
            let value = engine.keyspace(0).get(&key("x", number)).unwrap().unwrap();
            *values.entry(value.as_bytes().to_vec()).or_default() += 1;
        }
        values
    };
    assert_eq!(values_after(0), BTreeMap::from([(b"not synced".to_vec(), 6)]));
    for cut in [1, 30, 40, 75, 120, 190] {
        assert_eq!(values_after(cut), BTreeMap::from([(b"synced".to_vec(), 6)]), "{cut} bytes are missing");
    }
}

#[test]
fn a_batch_waits_for_room_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let engine = builder(folder.path(), 1).log_unwritten_bytes_max(64 << 10).open().unwrap();
    let mut refused = 0;
    for round in 0..1_500u32 {
        let mut batch = engine.batch(slot_of("x"));
        for number in 0..4 {
            batch.set(0, key("x", number), vec![round as u8; 2_000]);
        }
        while let Err(error) = batch.commit() {
            assert!(matches!(error, BatchError::Op(OpError::LogBehind { .. })) && error.is_retryable());
            refused += 1;
            block_on_foreign(engine.wait_log_room(slot_of("x"))).unwrap().unwrap();
        }
    }
    assert!(refused > 0);
    assert_eq!(engine.slot_status(slot_of("x")).version, version(1, 6_000));
}
