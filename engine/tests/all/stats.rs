//! Statistics by slot and by core, against what was written.

use std::path::Path;

use crate::common::{FIRST, builder, clustered, key, own, slot_of, version};
use lockgate_engine::{DataStats, Engine, Expiry, Gate, KeyspaceStats, SetOptions, Slot};

/// An engine that owns every slot and is told of no write that it cannot be taken back: nothing is compacted.
fn all_owned(path: &Path, cores: usize) -> Engine {
    let engine = clustered(path, cores);
    Slot::all().for_each(|slot| own(&engine, slot, FIRST, 1));
    engine
}

#[test]
fn a_slot_tells_what_it_holds_and_what_that_takes() {
    let folder = tempfile::tempdir().unwrap();
    let engine = clustered(folder.path(), 1);
    let slot = slot_of("x");
    let absent = engine.slot_stats(slot);
    assert_eq!(
        (absent.gate, absent.version, absent.data),
        (Gate::Absent, version(0, 0), DataStats::default())
    );
    own(&engine, slot, FIRST, 1);
    let until = SetOptions { expiry: Expiry::At(1 << 50), ..SetOptions::default() };
    for number in 0..30 {
        let _ = engine.keyspace(7).set(&key("x", number), &[1; 40]).unwrap();
        if number % 3 == 0 {
            let _ = engine.keyspace(2).set_with(&key("x", number), b"v", &until).unwrap();
        }
    }
    let before = engine.slot_stats(slot);
    let of = |keyspace, keys, keys_with_deadline| KeyspaceStats { keyspace, keys, keys_with_deadline };
    assert_eq!(before.keyspaces, [of(2, 10, 10), of(7, 30, 0)]);
    assert_eq!((before.gate, before.version), (Gate::Owned, version(1, 40)));
    assert_eq!((before.data.keys, before.data.keys_with_deadline, before.data.dead_bytes), (40, 10, 0));
    assert_eq!(before.data.live_bytes, engine.slot_status(slot).live_bytes);
    assert!(before.data.segment_bytes >= before.data.live_bytes && before.data.index_bytes >= 40 * 4);
    // A key of 4 bytes and a value of 40 take 60; a tombstone takes 20.
    let _ = engine.keyspace(7).set(&key("x", 0), &[2; 40]).unwrap();
    assert!(engine.keyspace(7).delete(&key("x", 1)).unwrap().0);
    let after = engine.slot_stats(slot);
    assert_eq!(after.data.dead_bytes, 60 + 60 + 20);
    assert_eq!(after.data.live_bytes, before.data.live_bytes - 60);
    assert_eq!(engine.clear_slot(slot).unwrap().0, 39);
    let cleared = engine.slot_stats(slot);
    assert!(cleared.keyspaces.is_empty());
    assert_eq!((cleared.data.keys, cleared.data.live_bytes, cleared.data.index_bytes), (0, 0, 0));
    assert_eq!(cleared.data.dead_bytes, after.data.live_bytes + after.data.dead_bytes + 2 * 16);
}

#[test]
fn cores_and_slots_add_up_to_the_engine() {
    let folder = tempfile::tempdir().unwrap();
    let engine = all_owned(folder.path(), 3);
    for number in 0..500usize {
        let _ =
            engine.keyspace((number % 3) as u8).set(&key(&number.to_string(), 0), &vec![1; number]).unwrap();
        let _ = engine.keyspace(0).delete(&key(&(number / 2).to_string(), 0)).unwrap();
    }
    let stats = engine.stats();
    let mut cores = vec![DataStats::default(); 3];
    for slot in Slot::all() {
        cores[engine.home_core(slot)] += engine.slot_stats(slot).data;
    }
    assert_eq!(stats.cores.iter().map(|core| core.data).collect::<Vec<_>>(), cores);
    let mut all = DataStats::default();
    cores.into_iter().for_each(|core| all += core);
    let told = DataStats {
        keys: stats.keys,
        keys_with_deadline: stats.keys_with_deadline,
        live_bytes: stats.live_bytes,
        dead_bytes: stats.dead_bytes,
        segment_bytes: stats.segment_bytes,
        index_bytes: stats.index_bytes,
    };
    assert!(told == all && all.keys > 300 && all.dead_bytes > 0, "{told:?}");
    assert_eq!(stats.memory_used_bytes, stats.segment_bytes + stats.index_bytes, "nothing is pinned");
    let served: u64 = stats.cores.iter().map(|core| core.slots_served).sum();
    assert_eq!((served, stats.slots_served), (16_384, 16_384));
}

#[test]
fn slots_that_nobody_asked_for_count_as_those_that_hold_nothing() {
    for is_clustered in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let engine = builder(folder.path(), 2).clustered(is_clustered).open().unwrap();
        if is_clustered {
            own(&engine, slot_of("x"), FIRST, 1);
        }
        let _ = engine.keyspace(0).set(b"{x}", b"value").unwrap();
        let (before, changes) = (engine.stats(), engine.gate_changes());
        Slot::all().for_each(|slot| assert_eq!(engine.slot_status(slot).gate, engine.gate(slot)));
        let after = engine.stats();
        let owned = if is_clustered { 1 } else { 16_384 };
        assert_eq!((after.slots_served, after.slots_present, after.keys), (owned, owned, 1));
        assert_eq!((before.slots_served, before.slots_present, before.keys), (owned, owned, 1));
        assert_eq!(engine.gate_changes(), changes);
    }
}
