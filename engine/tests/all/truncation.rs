//! Taking the last writes of a slot back.

use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::common::{
    FIRST, assert_same, clustered, copy_directory, drain, import, key, own, slot_of, version,
};
use lockgate_engine::{Engine, Expiry, Gate, SetOptions, SlotError, Term, Truncated};
use lockgate_runtime::block_on_foreign;
use lockgate_runtime::sim::Sim;
use lockgate_runtime::sleep;

/// Writes keys `numbers`, all with this byte as value.
fn write(engine: &Engine, numbers: std::ops::Range<usize>, byte: u8) {
    for number in numbers {
        let _ = engine.keyspace(0).set(&key("x", number), &[byte; 40]).unwrap();
    }
}

fn value(engine: &Engine, number: usize) -> Option<u8> {
    engine.keyspace(0).peek(&key("x", number)).unwrap().value.map(|value| value.as_bytes()[0])
}

/// A slot with keys 0 to 9 of term 3 (versions 1 to 10) and then, under term 5, another value of key 0, key 1 gone, and a
/// key 10 (versions 11 to 13). It follows.
fn with_a_tail(engine: &Engine) {
    let slot = slot_of("x");
    own(engine, slot, FIRST, 3);
    write(engine, 0..10, 1);
    own(engine, slot, FIRST, 5);
    write(engine, 0..1, 2);
    assert!(engine.keyspace(0).delete(&key("x", 1)).unwrap().0);
    write(engine, 10..11, 2);
    engine.follow(slot, FIRST).unwrap();
    assert_eq!(engine.slot_status(slot).version, version(5, 13));
}

#[test]
fn what_was_superseded_is_live_again_also_after_a_restart() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (engine, slot) = (clustered(folders.0.path(), 2), slot_of("x"));
    own(&engine, slot, FIRST, 3);
    write(&engine, 0..10, 1);
    let before = engine.slot_status(slot);
    engine.follow(slot, FIRST).unwrap();
    drop(engine);
    let engine = clustered(folders.0.path(), 3);
    own(&engine, slot, FIRST, 5);
    write(&engine, 0..1, 2);
    assert!(engine.keyspace(0).delete(&key("x", 1)).unwrap().0);
    write(&engine, 10..11, 2);
    assert_eq!((value(&engine, 0), value(&engine, 1), value(&engine, 10)), (Some(2), None, Some(2)));
    engine.follow(slot, FIRST).unwrap();
    // The version need not be one that the slot has.
    let truncated = engine.truncate(slot, FIRST, version(4, 99)).unwrap();
    assert_eq!(truncated, Truncated { version: version(3, 10), dropped_records: 3 });
    let check = |engine: &Engine| {
        let after = engine.slot_status(slot);
        assert_eq!(
            (after.version, after.digest, after.keys, after.live_bytes),
            (before.version, before.digest, before.keys, before.live_bytes)
        );
        assert_eq!((value(engine, 0), value(engine, 1), value(engine, 10)), (Some(1), Some(1), None));
        let stats = engine.stats();
        assert_eq!(stats.memory_used_bytes, stats.segment_bytes + stats.index_bytes);
    };
    check(&engine);
    assert_eq!(engine.slot_status(slot).gate, Gate::Follower);
    let again = engine.truncate(slot, FIRST, version(3, 10)).unwrap();
    assert_eq!(again, Truncated { version: version(3, 10), dropped_records: 0 });
    // It lasts: after a kill once it is synced, and with writes behind it.
    let status = engine.slot_status(slot);
    block_on_foreign(engine.wait_synced(engine.ticket_at(slot, status.position))).unwrap().unwrap();
    copy_directory(folders.0.path(), folders.1.path());
    check(&clustered(folders.1.path(), 2));
    own(&engine, slot, FIRST, 6);
    write(&engine, 3..5, 7);
    let later = engine.slot_status(slot);
    assert_eq!(later.version, version(6, 12));
    block_on_foreign(engine.wait_synced(engine.ticket_at(slot, later.position))).unwrap().unwrap();
    copy_directory(folders.0.path(), folders.2.path());
    let reopened = clustered(folders.2.path(), 1);
    assert_same(&engine, &reopened, slot);
    assert_eq!((value(&reopened, 3), value(&reopened, 4), value(&reopened, 5)), (Some(7), Some(7), Some(1)));
}

#[test]
fn all_of_it_may_go() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, slot) = (clustered(folder.path(), 1), slot_of("x"));
    with_a_tail(&engine);
    let truncated = engine.truncate(slot, FIRST, version(0, 0)).unwrap();
    assert_eq!(truncated, Truncated { version: version(0, 0), dropped_records: 13 });
    let status = engine.slot_status(slot);
    assert_eq!((status.keys, status.digest, status.live_bytes), (0, 0, 0));
    assert_eq!(engine.stats().memory_used_bytes, 0);
    let stream = engine.stream();
    assert!(stream.subscribe(slot, FIRST, version(3, 1)).is_err(), "no term is left");
    drop((stream, engine));
    let engine = clustered(folder.path(), 2);
    assert_eq!((engine.slot_status(slot).version, engine.keyspace(0).len()), (version(0, 0), 0));
    own(&engine, slot, FIRST, 7);
    write(&engine, 0..1, 1);
    assert_eq!(engine.slot_status(slot).version, version(7, 1));
}

#[test]
fn a_truncation_is_of_one_generation_and_only_where_nothing_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, slot) = (clustered(folder.path(), 1), slot_of("x"));
    with_a_tail(&engine);
    let truncate = |generation| engine.truncate(slot, generation, version(3, 10));
    assert!(matches!(truncate(FIRST.next_minor()), Err(SlotError::NotOpen { .. })));
    own(&engine, slot, FIRST, 6);
    assert!(matches!(truncate(FIRST), Err(SlotError::WrongGate { have: Gate::Owned, .. })));
    engine.freeze(slot, FIRST).unwrap();
    let refused = truncate(FIRST).unwrap_err();
    assert!(matches!(refused, SlotError::WrongGate { have: Gate::Frozen, .. }));
    assert_eq!(refused.to_string(), format!("slot {slot} cannot be truncated: its gate is frozen"));
    engine.follow(slot, FIRST).unwrap();
    engine.open_slot(slot, FIRST.next_minor(), Gate::Importing).unwrap();
    assert!(matches!(truncate(FIRST), Err(SlotError::Stale { .. })));
    assert_eq!(truncate(FIRST.next_minor()).unwrap().dropped_records, 0);
}

#[test]
fn a_term_whose_writes_were_taken_back_is_not_owned_again() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (engine, slot) = (clustered(folder.path(), 1), slot_of("x"));
    with_a_tail(&engine);
    // Some of term 5 stays, and yet its numbers must not be given out twice.
    engine.truncate(slot, FIRST, version(5, 12)).unwrap();
    let status = engine.slot_status(slot);
    block_on_foreign(engine.wait_synced(engine.ticket_at(slot, status.position))).unwrap().unwrap();
    copy_directory(folder.path(), copy.path());
    let reopened = clustered(copy.path(), 1);
    for engine in [engine, reopened] {
        assert!(matches!(engine.own(slot, FIRST, Term(5)), Err(SlotError::TermTooLow { .. })));
        own(&engine, slot, FIRST, 6);
        own(&engine, slot, FIRST, 6);
        write(&engine, 0..1, 9);
        assert_eq!(engine.slot_status(slot).version, version(6, 13));
    }
}

#[test]
fn a_term_that_wrote_nothing_goes_too() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, slot) = (clustered(folder.path(), 1), slot_of("x"));
    own(&engine, slot, FIRST, 3);
    write(&engine, 0..2, 1);
    own(&engine, slot, FIRST, 9);
    engine.follow(slot, FIRST).unwrap();
    let truncated = engine.truncate(slot, FIRST, version(3, 2)).unwrap();
    assert_eq!(truncated, Truncated { version: version(3, 2), dropped_records: 0 });
    // The term that a range brings begins where it says, not where the one that wrote nothing had begun.
    drop(engine);
    let engine = clustered(folder.path(), 1);
    own(&engine, slot, FIRST, 9);
    write(&engine, 0..1, 2);
    let stream = engine.stream();
    stream.subscribe(slot, FIRST, version(9, 3)).unwrap();
    stream.subscribe(slot, FIRST, version(3, 2)).unwrap();
    assert_eq!(stream.next_range(1000).unwrap().first, version(9, 3));
}

#[test]
fn streams_that_have_read_what_is_taken_back_end_and_others_go_on() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (clustered(folders.0.path(), 1), clustered(folders.1.path(), 1));
    let slot = slot_of("x");
    with_a_tail(&source);
    let (ahead, behind, at_the_cut) = (source.stream(), source.stream(), source.stream());
    ahead.subscribe(slot, FIRST, version(5, 11)).unwrap();
    behind.subscribe(slot, FIRST, version(0, 0)).unwrap();
    at_the_cut.subscribe(slot, FIRST, version(3, 10)).unwrap();
    import(&target, slot, FIRST);
    // It knows its place in the segment that is about to be replaced.
    let range = behind.next_range(1).unwrap();
    let header = lockgate_engine::RangeHeader { term: range.term, base: range.base };
    target.apply(slot, FIRST, &header, &range.bytes).unwrap();
    let pinned = ahead.next_range(1000).unwrap();
    let bytes = pinned.bytes.to_vec();
    assert!(ahead.next_range(1000).is_none());

    let mut context = Context::from_waker(Waker::noop());
    let mut waiting = pin!(ahead.ready());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    source.truncate(slot, FIRST, version(3, 10)).unwrap();
    assert!(
        waiting.as_mut().poll(&mut context).is_ready(),
        "it must hear that its slot is not followed any more"
    );
    assert!(ahead.next_range(1000).is_none());
    assert_eq!(ahead.take_ended(), [slot]);
    assert_eq!(&pinned.bytes[..], bytes, "a pin holds what is not there any more");

    assert!(at_the_cut.next_range(1000).is_none());
    assert_eq!(at_the_cut.take_ended(), []);
    drain(&behind, &target, FIRST, 1000);
    assert_same(&source, &target, slot);
    own(&source, slot, FIRST, 6);
    write(&source, 20..25, 3);
    drain(&behind, &target, FIRST, 100);
    assert_same(&source, &target, slot);
    let range = at_the_cut.next_range(1000).unwrap();
    assert_eq!((range.first, range.last), (version(6, 11), version(6, 15)));
    assert!(ahead.next_range(1000).is_none(), "an ended subscription stays ended");
    assert_eq!((behind.take_ended(), ahead.take_ended()), (vec![], vec![]));
    // The slot can be followed again on the stream that lost it.
    ahead.subscribe(slot, FIRST, version(3, 10)).unwrap();
    assert_eq!(ahead.next_range(1000).unwrap().first, version(6, 11));
}

#[test]
fn who_waits_for_the_slot_is_woken() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, slot) = (clustered(folder.path(), 1), slot_of("x"));
    with_a_tail(&engine);
    let event = engine.gate_event(slot);
    let changed = event.listen();
    engine.truncate(slot, FIRST, version(3, 1)).unwrap();
    assert!(changed.is_notified());
}

#[test]
fn a_deadline_that_was_superseded_counts_again() {
    let sim = Sim::new(3);
    let runtime = sim.node("a", 1);
    let inside = runtime.clone();
    runtime.block_on(0, move || async move {
        let builder = Engine::builder("/a").clustered(true).log_file_bytes(1 << 20);
        let engine = builder.open_on(&inside).await.unwrap();
        let (slot, keys) = (slot_of("x"), engine.keyspace(0));
        own(&engine, slot, FIRST, 1);
        let soon = SetOptions { expiry: Expiry::After(1_000), ..SetOptions::default() };
        assert!(keys.set_with(&key("x", 0), b"a", &soon).unwrap().applied);
        let deadline_ms = keys.deadline(&key("x", 0)).unwrap().at_ms;
        let _ = keys.set(&key("x", 0), b"b").unwrap();
        let _ = keys.set(&key("x", 1), b"c").unwrap();
        assert_eq!(keys.len_with_deadline(), 0);
        engine.follow(slot, FIRST).unwrap();
        engine.truncate(slot, FIRST, version(1, 1)).unwrap();
        assert_eq!((engine.stats().keys, engine.stats().keys_with_deadline), (1, 1));
        own(&engine, slot, FIRST, 2);
        assert_eq!(keys.deadline(&key("x", 0)).unwrap().at_ms, deadline_ms);
        // Nobody asks for it: the sweeper ends it.
        sleep(Duration::from_secs(2)).await;
        assert_eq!(keys.len(), 0);
        assert_eq!(engine.slot_status(slot).version, version(2, 2));
    });
}

#[test]
fn a_term_that_wrote_nothing_does_not_end_the_one_before_it() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (clustered(folders.0.path(), 1), clustered(folders.1.path(), 1));
    let slot = slot_of("x");
    own(&source, slot, FIRST, 3);
    write(&source, 0..2, 1);
    import(&target, slot, FIRST);
    crate::common::copy_slot(&source, &target, slot, FIRST, FIRST);
    own(&target, slot, FIRST, 5);
    target.follow(slot, FIRST).unwrap();
    write(&source, 2..4, 1);
    crate::common::copy_slot(&source, &target, slot, FIRST, FIRST);
    target.stream().subscribe(slot, FIRST, version(3, 4)).unwrap();
}
