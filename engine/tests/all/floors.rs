//! A slot's floor goes with a copy of it: whoever has it from one that discarded deletions refuses the same receivers.

use crate::common::{
    FIRST, apply_next, assert_same, clustered, copy_slot, drain, import, key, own, slot_of, version,
    with_a_floor,
};
use lockgate_engine::{ApplyError, Engine, Generation, Slot, SlotError, SubscribeError, Version};

/// Where the deletion is that [`with_a_floor`] has discarded, and a receiver that has only the write before it.
const FLOOR: Version = version(1, 2);
const BELOW: Version = version(1, 1);

fn refuses_who_is_below(engine: &Engine, slot: Slot) {
    let refused = engine.stream().subscribe(slot, FIRST, BELOW);
    assert!(matches!(refused, Err(SubscribeError::BelowFloor { floor: FLOOR, .. })), "{refused:?}");
    engine.stream().subscribe(slot, FIRST, FLOOR).unwrap();
}

#[test]
fn it_goes_on_from_copy_to_copy_and_outlives_restarts_and_checkpoints() {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (source, slot) = with_a_floor(folders[0].path());
    refuses_who_is_below(&source, slot);
    let mut copy = clustered(folders[1].path(), 2);
    import(&copy, slot, FIRST);
    copy_slot(&source, &copy, slot, FIRST, FIRST);
    refuses_who_is_below(&copy, slot);
    drop(copy);
    copy = clustered(folders[1].path(), 1);
    refuses_who_is_below(&copy, slot);
    copy.checkpoint_blocking().unwrap();
    drop(copy);
    copy = clustered(folders[1].path(), 2);
    refuses_who_is_below(&copy, slot);
    // What the deletion had superseded is not here either.
    import(&copy, slot, FIRST);
    let refused = copy.truncate(slot, FIRST, BELOW).unwrap_err();
    assert!(matches!(refused, SlotError::BelowFloor { floor: FLOOR, .. }), "{refused}");
    own(&copy, slot, FIRST, 2);
    let _ = copy.keyspace(0).set(&key("x", 2), b"of another term").unwrap();
    let last = clustered(folders[2].path(), 1);
    import(&last, slot, FIRST);
    copy_slot(&copy, &last, slot, FIRST, FIRST);
    refuses_who_is_below(&last, slot);
    // It was that generation's.
    last.drop_slot(slot, FIRST).unwrap();
    let second = Generation::new(2);
    own(&last, slot, second, 1);
    (0..3).for_each(|number| drop(last.keyspace(0).set(&key("x", number), b"v").unwrap()));
    last.stream().subscribe(slot, second, BELOW).unwrap();
}

#[test]
fn it_reaches_who_followed_the_copy_before_that_knew_it() {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (source, slot) = with_a_floor(folders[0].path());
    let [copy, replica] = [1, 2].map(|at| clustered(folders[at].path(), 1));
    [&copy, &replica].iter().for_each(|engine| import(engine, slot, FIRST));
    let (stream, on) = (source.stream(), copy.stream());
    stream.subscribe(slot, FIRST, Version::ZERO).unwrap();
    on.subscribe(slot, FIRST, Version::ZERO).unwrap();
    drain(&stream, &copy, FIRST, 200);
    drain(&on, &replica, FIRST, 300);
    assert_same(&source, &replica, slot);
    refuses_who_is_below(&replica, slot);
}

#[test]
fn a_slot_that_is_still_filled_has_it_before_its_first_record() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (source, slot) = with_a_floor(folders[0].path());
    let mut copy = clustered(folders[1].path(), 1);
    import(&copy, slot, FIRST);
    let stream = source.stream();
    stream.subscribe(slot, FIRST, Version::ZERO).unwrap();
    let first = stream.next_range(1).unwrap();
    assert_eq!((first.floor, stream.next_range(1).unwrap().floor), (FLOOR, Version::ZERO));
    copy.raise_floor(slot, FIRST, first.floor).unwrap();
    // What is known already changes nothing.
    let known = copy.slot_status(slot);
    for floor in [BELOW, FLOOR, Version::ZERO] {
        copy.raise_floor(slot, FIRST, floor).unwrap();
    }
    assert_eq!(copy.slot_status(slot), known);
    for with_checkpoint in [false, true] {
        if with_checkpoint {
            copy.checkpoint_blocking().unwrap();
        }
        drop(copy);
        copy = clustered(folders[1].path(), 1);
        import(&copy, slot, FIRST);
        let status = copy.slot_status(slot);
        assert_eq!(status.version, Version::ZERO);
        assert_eq!(copy.truncate(slot, FIRST, Version::ZERO).unwrap().dropped_records, 0);
        assert!(matches!(copy.stream().subscribe(slot, FIRST, BELOW), Err(SubscribeError::Diverged { .. })));
    }
    copy_slot(&source, &copy, slot, FIRST, FIRST);
    refuses_who_is_below(&copy, slot);
    // Only who is filled takes it.
    let foreign = copy.raise_floor(slot, Generation::new(2), FLOOR).unwrap_err();
    own(&copy, slot, FIRST, 2);
    let served = copy.raise_floor(slot, FIRST, version(1, 9)).unwrap_err();
    assert!([foreign, served].iter().all(|error| matches!(error, ApplyError::NotTaking { .. })));
}

#[test]
fn a_stream_from_the_middle_tells_none() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (source, slot) = with_a_floor(folders[0].path());
    let copy = clustered(folders[1].path(), 1);
    import(&copy, slot, FIRST);
    copy_slot(&source, &copy, slot, FIRST, FIRST);
    let stream = source.stream();
    stream.subscribe(slot, FIRST, copy.slot_status(slot).version).unwrap();
    let _ = source.keyspace(0).set(&key("x", 5), b"v").unwrap();
    let range = stream.next_range(1 << 10).unwrap();
    assert_eq!((range.slot, range.floor), (slot_of("x"), Version::ZERO));
    assert!(apply_next(&stream, &copy, FIRST, 1 << 10).is_none());
}
