//! How durable a write is: what its receipt waits for, and what is synced although nobody waits.

use lockgate_engine::{Durability, Engine, Slot};

use crate::common::{builder, slot_of, wait_until};

/// Longer than any test: nothing is synced unless it is asked for.
const NEVER_MS: u64 = 3_600_000;

fn engine(path: &std::path::Path, durability: Durability) -> Engine {
    builder(path, 1).flush_interval_ms(NEVER_MS).durability(durability).open().unwrap()
}

#[test]
fn a_write_is_as_durable_as_it_or_the_engine_says() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), Durability::Memory);
    let plain = engine.keyspace(0);
    assert_eq!((plain.durability(), engine.durability()), (Durability::Memory, Durability::Memory));
    plain.set(b"k", b"in memory").unwrap().wait_durable().unwrap();

    let receipt = plain.clone().with_durability(Durability::Written).set(b"k", b"written").unwrap();
    assert_eq!(receipt.durability, Durability::Written);
    receipt.wait_durable().unwrap();
    assert!(engine.written(receipt.ticket) && !engine.synced(receipt.ticket), "nobody asked for a sync");

    let receipt = plain.with_durability(Durability::Synced).set(b"k", b"synced").unwrap();
    receipt.wait_durable().unwrap();
    assert!(engine.synced(receipt.ticket));
}

#[test]
fn a_synced_write_is_synced_although_nobody_waits() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), Durability::Synced);
    let keys = engine.keyspace(0);
    let mut batch = engine.batch(slot_of("a"));
    batch.set(0, &b"{a}1"[..], &b"v"[..]);
    let deleted = |key: &[u8]| {
        let _ = keys.set(key, b"v").unwrap();
        keys.delete(key).unwrap().1
    };
    let written = [
        keys.set(b"k", b"v").unwrap(),
        keys.append(b"k", b"w").unwrap().1,
        deleted(b"l"),
        batch.commit().unwrap(),
        engine.clear_slot(slot_of("a")).unwrap().1,
    ];
    for receipt in written {
        let ticket = receipt.ticket;
        wait_until(&engine, "synced", move |engine| engine.synced(ticket));
    }
    let receipt = batch.durability(Durability::Memory).commit().unwrap();
    assert_eq!(receipt.durability, Durability::Memory);
    receipt.wait_written().unwrap();
    assert!(!engine.synced(receipt.ticket), "this one did not ask");
}

#[test]
fn reading_asks_for_no_sync() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), Durability::Written);
    let receipt = engine.keyspace(0).set(b"k", b"v").unwrap();
    receipt.wait_durable().unwrap();
    let reader = engine.keyspace(0).with_durability(Durability::Synced);
    assert!(reader.get(b"k").unwrap().is_some() && reader.exists(b"k").unwrap());
    reader.scan(Slot::of_key(b"k"), Default::default(), 10).unwrap();
    engine.keyspace(1).set(b"k", b"v").unwrap().wait_written().unwrap();
    assert!(!engine.synced(receipt.ticket));
}
