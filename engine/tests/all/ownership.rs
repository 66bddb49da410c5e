//! Gates, generations and terms.

use crate::common::{
    FIRST, assert_same, clustered, copy_directory, copy_slot, import, key, own, slot_of, version,
};
use lockgate_engine::{
    Action, ApplyError, Engine, Gate, Generation, OpError, RangeHeader, Slot, SlotError, Term,
};
use lockgate_runtime::block_on_foreign;

const GATES: [Gate; 6] =
    [Gate::Absent, Gate::Importing, Gate::Follower, Gate::Owned, Gate::Frozen, Gate::HandedOff];

/// Brings a fresh slot to a gate by allowed steps.
fn bring(engine: &Engine, slot: Slot, gate: Gate) {
    match gate {
        Gate::Absent => {}
        Gate::Importing | Gate::Follower => engine.open_slot(slot, FIRST, gate).unwrap(),
        _ => own(engine, slot, FIRST, 1),
    }
    match gate {
        Gate::Frozen => drop(engine.freeze(slot, FIRST).unwrap()),
        Gate::HandedOff => engine.hand_off(slot, FIRST).unwrap(),
        _ => {}
    }
    assert_eq!(engine.slot_status(slot).gate, gate);
}

fn act(engine: &Engine, slot: Slot, action: Action) -> Result<(), SlotError> {
    match action {
        Action::Import => engine.open_slot(slot, FIRST, Gate::Importing),
        Action::OpenAsFollower => engine.open_slot(slot, FIRST, Gate::Follower),
        Action::Own => engine.own(slot, FIRST, Term(1)),
        Action::Follow => engine.follow(slot, FIRST),
        Action::Freeze => engine.freeze(slot, FIRST).map(drop),
        Action::Thaw => engine.thaw(slot, FIRST),
        Action::HandOff => engine.hand_off(slot, FIRST),
        Action::Drop => engine.drop_slot(slot, FIRST),
        Action::Truncate => engine.truncate(slot, FIRST, version(0, 0)).map(drop),
    }
}

#[test]
fn every_action_at_every_gate() {
    use Gate::{Absent, Follower, Frozen, HandedOff, Importing, Owned};
    let folder = tempfile::tempdir().unwrap();
    let engine = clustered(folder.path(), 2);
    let mut slots = Slot::all();
    // In the order of GATES: the gate that follows; none where it is refused.
    let table: [(Action, [Option<Gate>; 6]); 9] = [
        (Action::Import, [Some(Importing), Some(Importing), Some(Importing), None, None, Some(Importing)]),
        (
            Action::OpenAsFollower,
            [Some(Follower), Some(Follower), Some(Follower), None, None, Some(Follower)],
        ),
        (Action::Own, [Some(Owned), Some(Owned), Some(Owned), Some(Owned), Some(Owned), None]),
        (
            Action::Follow,
            [None, Some(Follower), Some(Follower), Some(Follower), Some(Follower), Some(Follower)],
        ),
        (Action::Freeze, [None, None, None, Some(Frozen), Some(Frozen), None]),
        (Action::Thaw, [None, None, None, Some(Owned), Some(Owned), None]),
        (Action::HandOff, [None, None, None, Some(HandedOff), Some(HandedOff), Some(HandedOff)]),
        (Action::Drop, [Some(Absent), Some(Absent), Some(Absent), None, None, Some(Absent)]),
        (Action::Truncate, [None, Some(Importing), Some(Follower), None, None, None]),
    ];
    for (action, expected) in table {
        for (gate, expected) in GATES.into_iter().zip(expected) {
            let slot = slots.next().unwrap();
            bring(&engine, slot, gate);
            let event = engine.gate_event(slot);
            let changed = event.listen();
            let result = act(&engine, slot, action);
            assert_eq!(result.is_ok(), expected.is_some(), "{action:?} at {gate:?}: {result:?}");
            assert_eq!(engine.slot_status(slot).gate, expected.unwrap_or(gate));
            // Nothing was written, so nothing is taken back.
            assert_eq!(changed.is_notified(), expected.is_some() && action != Action::Truncate);
            match result {
                Err(SlotError::WrongGate { have, action: of, .. }) => assert_eq!((have, of), (gate, action)),
                Err(SlotError::NotOpen { .. }) => assert_eq!(gate, Absent),
                Err(other) => panic!("{action:?} at {gate:?}: {other}"),
                Ok(()) => {}
            }
        }
    }
}

#[test]
fn gates_decide_what_keys_may_do() {
    let folder = tempfile::tempdir().unwrap();
    let engine = clustered(folder.path(), 1);
    for (number, gate) in GATES.into_iter().enumerate() {
        let tag = format!("g{number}");
        let (slot, key, keys) = (slot_of(&tag), key(&tag, 0), engine.keyspace(0));
        bring(&engine, slot, gate);
        let reads = keys.get(&key);
        assert_eq!(reads.is_ok(), matches!(gate, Gate::Owned | Gate::Frozen), "{gate:?}");
        if let Err(error) = reads {
            assert!(matches!(error, OpError::NotOwned { slot: of, gate: at } if of == slot && at == gate));
            assert!(!error.is_retryable());
        }
        assert_eq!(keys.peek(&key).is_ok(), gate != Gate::Absent);
        for result in [
            keys.set(&key, b"v").map(drop),
            keys.delete(&key).map(drop),
            keys.update(&key, |_| lockgate_engine::Update::Delete).map(drop),
        ] {
            match (gate, result) {
                (Gate::Owned, result) => result.unwrap(),
                (Gate::Frozen, Err(error)) => {
                    assert!(
                        matches!(error, OpError::Frozen { slot: of } if of == slot) && error.is_retryable()
                    );
                }
                (_, Err(OpError::NotOwned { .. })) => {}
                (gate, result) => panic!("{gate:?}: {result:?}"),
            }
        }
        let takes = engine.apply(slot, FIRST, &RangeHeader { term: Term(1), base: 0 }, &record_for(&key));
        assert_eq!(takes.is_ok(), matches!(gate, Gate::Importing | Gate::Follower), "{gate:?}: {takes:?}");
        assert!(takes.is_ok() || matches!(takes, Err(ApplyError::NotTaking { .. })));
    }
    assert_eq!(engine.keyspace(0).len(), 0, "what is not served does not count");
}

fn record_for(key: &[u8]) -> Vec<u8> {
    use lockgate_engine::record::{NewRecord, encode};
    let new = NewRecord { delta: 1, ..NewRecord::put(0, key, b"v", None) };
    let mut bytes = vec![0; new.encoded_bytes()];
    encode(&mut bytes, &new);
    bytes
}

#[test]
fn a_frozen_slot_says_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let engine = clustered(folder.path(), 1);
    let slot = slot_of("x");
    own(&engine, slot, FIRST, 4);
    let receipt = engine.keyspace(0).set(&key("x", 1), b"1").unwrap();
    let frozen = engine.freeze(slot, FIRST).unwrap();
    assert_eq!((frozen.version, frozen.digest), (receipt.version, engine.slot_status(slot).digest));
    assert_eq!(engine.freeze(slot, FIRST).unwrap(), frozen);
    engine.thaw(slot, FIRST).unwrap();
    assert_eq!(engine.keyspace(0).set(&key("x", 1), b"2").unwrap().version, version(4, 2));
    let low = engine.own(slot, FIRST, Term(3)).unwrap_err();
    assert!(matches!(low, SlotError::TermTooLow { have: Term(4), wanted: Term(3), .. }));
}

#[test]
fn there_and_back_again_under_generations() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (clustered(folders.0.path(), 1), clustered(folders.1.path(), 2));
    let (slot, first, second, third) = (slot_of("x"), FIRST, Generation::new(2), Generation::new(3));
    let (ours, theirs) = (a.keyspace(0), b.keyspace(0));
    own(&a, slot, first, 1);
    for number in 0..100 {
        let _ = ours.set(&key("x", number), b"from a").unwrap();
    }
    import(&b, slot, second);
    copy_slot(&a, &b, slot, first, second);
    let stale = a.stream();
    stale.subscribe(slot, first, version(0, 0)).unwrap();
    let delayed = stale.next_range(1 << 20).unwrap();
    a.freeze(slot, first).unwrap();
    a.hand_off(slot, first).unwrap();
    own(&b, slot, second, 2);
    for number in 0..50 {
        assert!(theirs.delete(&key("x", number)).unwrap().0);
    }
    a.drop_slot(slot, first).unwrap();
    assert!(matches!(ours.get(&key("x", 1)), Err(OpError::NotOwned { gate: Gate::Absent, .. })));
    import(&a, slot, third);
    copy_slot(&b, &a, slot, second, third);
    b.freeze(slot, second).unwrap();
    b.hand_off(slot, second).unwrap();
    own(&a, slot, third, 3);
    // What is late, of generations that are over, has no effect.
    let header = RangeHeader { term: delayed.term, base: delayed.base };
    assert!(matches!(a.apply(slot, first, &header, &delayed.bytes), Err(ApplyError::NotTaking { .. })));
    for over in [first, second] {
        assert!(matches!(a.freeze(slot, over), Err(SlotError::Stale { .. })));
        assert!(matches!(a.open_slot(slot, over, Gate::Importing), Err(SlotError::Stale { .. })));
        assert!(matches!(a.own(slot, over, Term(9)), Err(SlotError::Stale { .. })));
        a.drop_slot(slot, over).unwrap();
    }
    assert_eq!((a.slot_status(slot).gate, ours.len()), (Gate::Owned, 50));
    assert!(ours.get(&key("x", 1)).unwrap().is_none(), "what was deleted at b stays deleted at a");
    // The same after a restart.
    let before = a.slot_status(slot);
    block_on_foreign(a.close()).unwrap().unwrap();
    drop((stale, delayed, ours));
    drop(a);
    let a = clustered(folders.0.path(), 1);
    let after = a.slot_status(slot);
    assert_eq!(after.gate, Gate::Follower, "nothing is served until the layer above says so");
    assert_eq!(
        (after.version, after.digest, after.keys, after.generation, after.term),
        (before.version, before.digest, before.keys, third, Term(3))
    );
    own(&a, slot, third, 4);
    assert!(a.keyspace(0).get(&key("x", 1)).unwrap().is_none());
    assert_eq!(a.keyspace(0).set(&key("x", 1), b"new").unwrap().version, version(4, 151));
}

#[test]
fn dropped_slots_stay_dropped_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let engine = clustered(folder.path(), 2);
    let slots: Vec<(String, Slot)> = (0..20).map(|n| (format!("d{n}"), slot_of(&format!("d{n}")))).collect();
    for (tag, slot) in &slots {
        own(&engine, *slot, FIRST, 1);
        for number in 0..30 {
            let _ = engine.keyspace(0).set(&key(tag, number), b"v").unwrap();
        }
        engine.hand_off(*slot, FIRST).unwrap();
        engine.drop_slot(*slot, FIRST).unwrap();
        assert_eq!(engine.slot_status(*slot).digest, 0);
        // Dropping again, and dropping what never came, are fine.
        engine.drop_slot(*slot, FIRST).unwrap();
    }
    let never = slot_of("never");
    engine.drop_slot(never, Generation::new(5)).unwrap();
    assert_eq!(engine.stats().memory_used_bytes, 0);
    drop(engine);
    let engine = clustered(folder.path(), 3);
    for (_, slot) in &slots {
        let status = engine.slot_status(*slot);
        assert_eq!((status.gate, status.keys, status.digest), (Gate::Absent, 0, 0));
        assert!(matches!(engine.own(*slot, FIRST, Term(9)), Err(SlotError::Stale { .. })));
        own(&engine, *slot, Generation::new(2), 2);
    }
    let late = engine.open_slot(never, Generation::new(5), Gate::Importing);
    assert!(matches!(late, Err(SlotError::Stale { .. })), "an end that came before the beginning holds");
}

#[test]
fn a_receiver_starts_anew_under_a_minor_generation() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (clustered(folders.0.path(), 1), clustered(folders.1.path(), 1));
    let slot = slot_of("x");
    own(&source, slot, FIRST, 1);
    let _ = source.keyspace(0).set(&key("x", 1), b"1").unwrap();
    own(&target, slot, FIRST, 9);
    let _ = target.keyspace(0).set(&key("x", 2), b"stray").unwrap();
    let anew = FIRST.next_minor();
    let served = target.open_slot(slot, anew, Gate::Follower);
    assert!(
        matches!(served, Err(SlotError::WrongGate { have: Gate::Owned, .. })),
        "it must stop to serve first"
    );
    target.follow(slot, FIRST).unwrap();
    target.open_slot(slot, anew, Gate::Follower).unwrap();
    assert_eq!(target.slot_status(slot).keys, 0);
    copy_slot(&source, &target, slot, FIRST, anew);
    let copy = tempfile::tempdir().unwrap();
    block_on_foreign(target.close()).unwrap().unwrap();
    copy_directory(folders.1.path(), copy.path());
    let again = clustered(copy.path(), 1);
    assert_same(&target, &again, slot);
    assert_eq!(again.slot_status(slot).generation, anew);
}

#[test]
fn an_owner_without_writes_can_follow_an_earlier_term() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (clustered(folders.0.path(), 1), clustered(folders.1.path(), 1));
    let slot = slot_of("x");
    own(&source, slot, FIRST, 3);
    for number in 0..10 {
        let _ = source.keyspace(0).set(&key("x", number), b"1").unwrap();
    }
    import(&target, slot, FIRST);
    copy_slot(&source, &target, slot, FIRST, FIRST);
    own(&target, slot, FIRST, 5);
    target.follow(slot, FIRST).unwrap();
    let _ = source.keyspace(0).set(&key("x", 11), b"1").unwrap();
    own(&source, slot, FIRST, 7);
    let _ = source.keyspace(0).set(&key("x", 12), b"1").unwrap();
    copy_slot(&source, &target, slot, FIRST, FIRST);
    own(&target, slot, FIRST, 7);
    assert_eq!(target.keyspace(0).set(&key("x", 13), b"1").unwrap().version, version(7, 13));
    block_on_foreign(target.close()).unwrap().unwrap();
    let before = target.slot_status(slot);
    drop(target);
    let after = clustered(folders.1.path(), 2).slot_status(slot);
    assert_eq!((after.version, after.digest, after.term), (before.version, before.digest, before.term));
}
