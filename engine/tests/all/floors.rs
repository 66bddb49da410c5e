//! What of a slot was discarded goes with a copy of it, as a fact: whoever has it from there refuses the same receivers, and
//! goes back no further.

use crate::common::{
    FIRST, apply_next, assert_same, clustered, compact, copy_slot, drain, import, key, own, slot_of, version,
    with_a_floor,
};
use lockgate_engine::{
    ApplyError, Engine, Floors, Generation, RangeHeader, Slot, SlotError, SubscribeError, Version,
};

/// The deletion that [`with_a_floor`] has discarded, a receiver that has only what was written before it, and where it ends.
const FLOOR: Version = version(1, 3);
const BELOW: Version = version(1, 2);
const LAST: Version = version(1, 23);

const NONE: Floors = Floors { floor: Version::ZERO, undo_floor: Version::ZERO };

fn refuses_who_is_below(engine: &Engine, slot: Slot) {
    let refused = engine.stream().subscribe(slot, FIRST, BELOW);
    assert!(matches!(refused, Err(SubscribeError::BelowFloor { floor: FLOOR, .. })), "{refused:?}");
    engine.stream().subscribe(slot, FIRST, FLOOR).unwrap();
}

fn stays_at(engine: &Engine, slot: Slot, floor: Version, wanted: Version) {
    let version = engine.slot_status(slot).version;
    let refused = engine.truncate(slot, FIRST, wanted).unwrap_err();
    assert!(matches!(refused, SlotError::BelowFloor { floor: at, .. } if at == floor), "{refused}");
    assert_eq!(engine.slot_status(slot).version, version);
}

#[test]
fn they_go_on_from_copy_to_copy_and_outlive_restarts_and_checkpoints() {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (source, slot) = with_a_floor(folders[0].path());
    refuses_who_is_below(&source, slot);
    let mut copy = clustered(folders[1].path(), 2);
    import(&copy, slot, FIRST);
    copy_slot(&source, &copy, slot, FIRST, FIRST);
    for with_checkpoint in [false, true] {
        refuses_who_is_below(&copy, slot);
        // What its last write superseded is not here either.
        stays_at(&copy, slot, LAST, version(1, 22));
        if with_checkpoint {
            copy.checkpoint_blocking().unwrap();
        }
        drop(copy);
        copy = clustered(folders[1].path(), 1);
        import(&copy, slot, FIRST);
    }
    own(&copy, slot, FIRST, 2);
    let _ = copy.keyspace(0).set(&key("x", 2), b"of another term").unwrap();
    let last = clustered(folders[2].path(), 1);
    import(&last, slot, FIRST);
    copy_slot(&copy, &last, slot, FIRST, FIRST);
    refuses_who_is_below(&last, slot);
    stays_at(&last, slot, LAST, version(1, 22));
    assert_eq!(last.truncate(slot, FIRST, LAST).unwrap().dropped_records, 1);
    // They were that generation's.
    last.drop_slot(slot, FIRST).unwrap();
    let second = Generation::new(2);
    own(&last, slot, second, 1);
    (0..5).for_each(|number| drop(last.keyspace(0).set(&key("x", number), b"v").unwrap()));
    last.stream().subscribe(slot, second, BELOW).unwrap();
    last.follow(slot, second).unwrap();
    assert_eq!(last.truncate(slot, second, BELOW).unwrap().dropped_records, 3);
}

#[test]
fn they_reach_who_followed_the_copy_before_that_knew_them() {
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
    stays_at(&replica, slot, LAST, version(1, 22));
}

#[test]
fn a_slot_that_is_still_filled_has_them_in_its_log_before_its_records() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (source, slot) = with_a_floor(folders[0].path());
    let mut copy = clustered(folders[1].path(), 1);
    import(&copy, slot, FIRST);
    let stream = source.stream();
    stream.subscribe(slot, FIRST, Version::ZERO).unwrap();
    let first = stream.next_range(1).unwrap();
    assert_eq!((first.first, first.floors), (version(1, 1), Floors { floor: FLOOR, undo_floor: LAST }));
    assert_eq!(stream.next_range(1).unwrap().floors, NONE, "that was said");
    copy.raise_floors(slot, FIRST, first.floors).unwrap();
    // What is known already changes nothing.
    let known = copy.slot_status(slot);
    for version in [BELOW, FLOOR, Version::ZERO] {
        copy.raise_floors(slot, FIRST, Floors { floor: version, undo_floor: version }).unwrap();
    }
    assert_eq!(copy.slot_status(slot), known);
    let stream = source.stream();
    stream.subscribe(slot, FIRST, Version::ZERO).unwrap();
    assert_eq!(apply_next(&stream, &copy, FIRST, 1), Some(first.bytes.len()));
    for with_checkpoint in [false, true] {
        if with_checkpoint {
            copy.checkpoint_blocking().unwrap();
        }
        drop(copy);
        copy = clustered(folders[1].path(), 1);
        import(&copy, slot, FIRST);
        assert_eq!(copy.slot_status(slot).version, first.last);
        // Its only write lies below the floor.
        let refused = copy.stream().subscribe(slot, FIRST, first.last);
        assert!(matches!(refused, Err(SubscribeError::BelowFloor { floor: FLOOR, .. })), "{refused:?}");
        stays_at(&copy, slot, LAST, Version::ZERO);
        assert_eq!(
            copy.truncate(slot, FIRST, first.last).unwrap().dropped_records,
            0,
            "nothing to take back"
        );
    }
    drain(&stream, &copy, FIRST, 200);
    assert_same(&source, &copy, slot);
    refuses_who_is_below(&copy, slot);
    // Only who is filled takes them.
    let floors = Floors { floor: LAST, undo_floor: LAST };
    let foreign = copy.raise_floors(slot, Generation::new(2), floors).unwrap_err();
    own(&copy, slot, FIRST, 2);
    let served = copy.raise_floors(slot, FIRST, floors).unwrap_err();
    assert!([foreign, served].iter().all(|error| matches!(error, ApplyError::NotTaking { .. })));
}

#[test]
fn nothing_goes_back_to_a_floor_whose_write_is_not_here() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (source, slot) = with_a_floor(folders[0].path());
    let copy = clustered(folders[1].path(), 1);
    import(&copy, slot, FIRST);
    copy.raise_floors(slot, FIRST, Floors { floor: FLOOR, ..NONE }).unwrap();
    let stream = source.stream();
    stream.subscribe(slot, FIRST, Version::ZERO).unwrap();
    while let Some(range) = stream.next_range(1) {
        let header = RangeHeader { term: range.term, base: range.base };
        copy.apply(slot, FIRST, &header, &range.bytes).unwrap();
    }
    // The write before it is 1:1, and behind that nothing may be taken back.
    stays_at(&copy, slot, FLOOR, FLOOR);
    let status = copy.slot_status(slot);
    drop(copy);
    let again = clustered(folders[1].path(), 1).slot_status(slot);
    assert_eq!((again.version, again.digest), (status.version, status.digest));
}

#[test]
fn what_is_discarded_while_a_stream_goes_on_is_said_with_its_next_range() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [source, copy] = [0, 1].map(|at| clustered(folders[at].path(), 1));
    let slot = slot_of("x");
    own(&source, slot, FIRST, 1);
    let keys = source.keyspace(0);
    let _ = keys.set(&key("x", 9), b"stays").unwrap();
    (0..20).for_each(|_| drop(keys.set(&key("x", 1), &[1; 100]).unwrap()));
    import(&copy, slot, FIRST);
    let stream = source.stream();
    stream.subscribe(slot, FIRST, Version::ZERO).unwrap();
    let first = stream.next_range(1).unwrap();
    assert_eq!((first.last, first.floors), (version(1, 1), NONE));
    let header = RangeHeader { term: first.term, base: first.base };
    copy.apply(slot, FIRST, &header, &first.bytes).unwrap();
    drop(first);
    assert_eq!(copy.slot_floors(slot), NONE);
    compact(&source);
    let _ = keys.set(&key("x", 2), b"later").unwrap();
    let second = stream.next_range(1).unwrap();
    let undo_floor = version(1, 21);
    assert!(second.first > version(1, 2), "some of what was overwritten is not sent");
    assert_eq!(second.floors, Floors { undo_floor, ..NONE });
    // A copy that was told as much itself will have what fills such gaps, and none that go further.
    copy.raise_floors(slot, FIRST, second.floors).unwrap();
    let replicas = copy.stream();
    replicas.resume(slot, FIRST, version(1, 1), undo_floor).unwrap();
    for elsewhere in [version(1, 22), version(2, 21)] {
        let refused = replicas.resume(slot, FIRST, version(1, 1), elsewhere);
        assert!(matches!(refused, Err(SubscribeError::Gaps { .. })), "{refused:?}");
    }
    stream.subscribe(slot, FIRST, version(1, 1)).unwrap();
    drain(&stream, &copy, FIRST, 1 << 10);
    assert_same(&source, &copy, slot);
    // No tombstone is missing; the values that were overwritten are.
    copy.stream().subscribe(slot, FIRST, version(1, 1)).unwrap();
    stays_at(&copy, slot, undo_floor, version(1, 20));
    assert_eq!(copy.truncate(slot, FIRST, undo_floor).unwrap().dropped_records, 1);
}

#[test]
fn a_stream_ends_where_its_slot_is_refilled_with_a_floor_above_it() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (source, slot) = with_a_floor(folders[0].path());
    let copy = clustered(folders[1].path(), 1);
    import(&copy, slot, FIRST);
    // Of another source, which had discarded nothing yet.
    let from_source = source.stream();
    from_source.subscribe(slot, FIRST, Version::ZERO).unwrap();
    let first = from_source.next_range(1).unwrap();
    let header = RangeHeader { term: first.term, base: first.base };
    copy.apply(slot, FIRST, &header, &first.bytes).unwrap();
    let stream = copy.stream();
    stream.subscribe(slot, FIRST, Version::ZERO).unwrap();
    assert_eq!(stream.next_range(1).unwrap().last, first.last);
    copy.truncate(slot, FIRST, Version::ZERO).unwrap();
    copy_slot(&source, &copy, slot, FIRST, FIRST);
    // What was sent is here again, but its receiver may have a key whose deletion will not come.
    assert!(stream.next_range(1 << 10).is_none());
    assert_eq!(stream.take_ended(), [slot]);
}
