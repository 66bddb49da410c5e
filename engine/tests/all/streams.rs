//! Streams: snapshot and tail in one, compared by digest with what they came from.

use std::pin::pin;
use std::task::{Context, Waker};

use crate::common::{
    FIRST, apply_next, assert_same, clustered, copy_slot, drain, import, key, own, slot_of, standalone,
    version,
};
use lockgate_engine::{ApplyError, Generation, RangeHeader, Slot, SubscribeError, Term};
use lockgate_runtime::block_on_foreign;
use lockgate_runtime::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn a_stream_from_zero_equals_the_state_while_threads_write() {
    const TAGS: usize = 6;
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (standalone(folders.0.path(), 2), clustered(folders.1.path(), 3));
    let tags: Vec<String> = (0..TAGS).map(|tag| format!("s{tag}")).collect();
    let stream = source.stream();
    for tag in &tags {
        let _ = source.keyspace(0).set(&key(tag, 0), b"before the stream").unwrap();
        import(&target, slot_of(tag), FIRST);
        stream.subscribe(slot_of(tag), FIRST, version(0, 0)).unwrap();
    }
    let followed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|thread| {
                let (keys, tags, followed) = (source.keyspace(thread as u8), &tags, &followed);
                scope.spawn(move || {
                    for round in 0.. {
                        // Long enough for both: the stream's reader may get a processor late.
                        if round >= 4_000 && followed.load(Ordering::Relaxed) > TAGS {
                            return;
                        }
                        let key = key(&tags[round % TAGS], round % 300);
                        if round % 5 == 0 {
                            let _ = keys.delete(&key).unwrap();
                        } else {
                            let _ = keys.set(&key, &vec![thread as u8; round % 90]).unwrap();
                        }
                    }
                })
            })
            .collect();
        while !writers.iter().all(|writer| writer.is_finished()) {
            if apply_next(&stream, &target, FIRST, 4096).is_some() {
                followed.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    drain(&stream, &target, FIRST, 4096);
    assert!(stream.next_range(4096).is_none());
    for tag in &tags {
        assert_same(&source, &target, slot_of(tag));
    }
}

#[test]
fn a_waiting_reader_is_woken_by_every_burst() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (standalone(folders.0.path(), 1), clustered(folders.1.path(), 1));
    let slot = slot_of("x");
    import(&target, slot, FIRST);
    let stream = source.stream();
    stream.subscribe(slot, FIRST, version(0, 0)).unwrap();
    std::thread::scope(|scope| {
        let keys = source.keyspace(0);
        scope.spawn(move || {
            for number in 0..3_000 {
                let _ = keys.set(&key("x", number % 50), &[number as u8]).unwrap();
                if number % 7 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        // The wait ends by wake-ups alone; a lost one would hang here.
        while target.slot_status(slot).version.counter < 3_000 {
            block_on_foreign(stream.ready()).unwrap();
            drain(&stream, &target, FIRST, 1 << 16);
        }
    });
    assert_same(&source, &target, slot);
}

#[test]
fn slots_take_turns_and_ranges_keep_their_bound() {
    let folder = tempfile::tempdir().unwrap();
    let source = standalone(folder.path(), 1);
    let stream = source.stream();
    for tag in ["a", "b", "c"] {
        for number in 0..200 {
            let _ = source.keyspace(0).set(&key(tag, number), &[1; 100]).unwrap();
        }
        stream.subscribe(slot_of(tag), FIRST, version(0, 0)).unwrap();
    }
    let _ = source.keyspace(0).set(&key("c", 1), &vec![9; 10_000]).unwrap();
    let mut order = Vec::new();
    let mut last = std::collections::BTreeMap::new();
    while let Some(range) = stream.next_range(1000) {
        assert!(range.bytes.len() <= 1000 || range.first == range.last, "only a single record may be longer");
        let before = last.insert(range.slot, range.last).unwrap_or(version(0, 0));
        assert_eq!(range.first.counter, before.counter + 1, "nothing is left out");
        order.push(range.slot);
    }
    assert!(order.windows(2).take(60).all(|pair| pair[0] != pair[1]), "no slot waits for another to be done");
    assert_eq!(last[&slot_of("c")], version(1, 201));
    stream.unsubscribe(slot_of("a"));
    let _ = source.keyspace(0).set(&key("a", 0), b"x").unwrap();
    assert!(stream.next_range(1000).is_none());
}

#[test]
fn a_receiver_resumes_from_its_cursor_and_repetitions_do_no_harm() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (standalone(folders.0.path(), 1), clustered(folders.1.path(), 2));
    let slot = slot_of("x");
    import(&target, slot, FIRST);
    let mut all = Vec::new();
    for round in 0..5 {
        for number in 0..100 {
            let _ = source.keyspace(0).set(&key("x", number), &[round; 60]).unwrap();
        }
        copy_slot(&source, &target, slot, FIRST, FIRST);
    }
    let stream = source.stream();
    stream.subscribe(slot, FIRST, version(0, 0)).unwrap();
    while let Some(range) = stream.next_range(3000) {
        all.push(range);
    }
    let before = target.slot_status(slot);
    for range in &all {
        let header = RangeHeader { term: range.term, base: range.base };
        let applied = target.apply(slot, FIRST, &header, &range.bytes).unwrap();
        assert_eq!(applied.version, before.version);
    }
    assert_eq!(target.slot_status(slot), before);
}

#[test]
fn damaged_and_foreign_ranges_are_refused_whole() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (standalone(folders.0.path(), 1), clustered(folders.1.path(), 1));
    let slot = slot_of("x");
    import(&target, slot, FIRST);
    for number in 0..4 {
        let _ = source.keyspace(0).set(&key("x", number), b"value").unwrap();
    }
    let stream = source.stream();
    stream.subscribe(slot, FIRST, version(0, 0)).unwrap();
    let range = stream.next_range(1 << 20).unwrap();
    let header = RangeHeader { term: range.term, base: range.base };
    let bytes = range.bytes.to_vec();
    let apply = |header: &RangeHeader, bytes: &[u8]| target.apply(slot, FIRST, header, bytes);
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = apply(&header, &damaged).unwrap_err();
        let record = bytes.len() / 4 * (bit / 8 / (bytes.len() / 4));
        assert!(matches!(error, ApplyError::Record { offset, .. } if offset == record), "{error}");
        assert!(error.to_string().contains(&format!("slot {slot}")));
    }
    for end in 1..bytes.len() {
        if end % (bytes.len() / 4) != 0 {
            assert!(matches!(apply(&header, &bytes[..end]), Err(ApplyError::Record { .. })));
        }
    }
    let record = bytes.len() / 4;
    let swapped = [&bytes[record..2 * record], &bytes[..record]].concat();
    assert!(
        matches!(apply(&header, &swapped), Err(ApplyError::OutOfOrder { offset, .. }) if offset == record)
    );
    assert!(matches!(apply(&header, &[]), Err(ApplyError::BadLength { .. })));
    let far = RangeHeader { term: Term(1), base: u64::MAX };
    assert!(matches!(apply(&far, &bytes), Err(ApplyError::BadBase { .. })));
    let other = Slot::new(slot.number() ^ 1).unwrap();
    import(&target, other, FIRST);
    assert!(matches!(
        target.apply(other, FIRST, &header, &bytes),
        Err(ApplyError::ForeignKey { offset: 0, .. })
    ));
    let next = Generation::new(2);
    assert!(matches!(target.apply(slot, next, &header, &bytes), Err(ApplyError::NotTaking { .. })));
    assert_eq!(target.slot_status(slot).version, version(0, 0), "nothing of all that had an effect");
    assert_eq!(apply(&header, &bytes).unwrap().version, version(1, 4));
}

#[test]
fn terms_and_cursors_off_the_history_are_refused() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (clustered(folders.0.path(), 1), clustered(folders.1.path(), 1));
    let slot = slot_of("x");
    own(&source, slot, FIRST, 3);
    let _ = source.keyspace(0).set(&key("x", 1), b"1").unwrap();
    let _ = source.keyspace(0).set(&key("x", 2), b"2").unwrap();
    import(&target, slot, FIRST);
    copy_slot(&source, &target, slot, FIRST, FIRST);
    own(&source, slot, FIRST, 7);
    let _ = source.keyspace(0).set(&key("x", 3), b"3").unwrap();
    assert_eq!(source.slot_status(slot).version, version(7, 3));
    let stream = source.stream();
    for off in [version(3, 3), version(4, 1), version(7, 2), version(7, 4), version(8, 1)] {
        assert!(matches!(stream.subscribe(slot, FIRST, off), Err(SubscribeError::Diverged { .. })), "{off}");
    }
    assert!(matches!(
        stream.subscribe(slot, Generation::new(2), version(0, 0)),
        Err(SubscribeError::NotHere { .. })
    ));
    let other = Slot::new(slot.number() ^ 1).unwrap();
    assert!(matches!(stream.subscribe(other, FIRST, version(0, 0)), Err(SubscribeError::NotHere { .. })));
    // A receiver's minor number is its own matter.
    stream.subscribe(slot, FIRST.next_minor(), version(3, 2)).unwrap();
    let range = stream.next_range(1000).unwrap();
    assert_eq!((range.term, range.base, range.first), (Term(7), 2, version(7, 3)));
    // The target goes its own way under a term in between: then nothing of the source's continues it.
    own(&target, slot, FIRST, 5);
    let _ = target.keyspace(0).set(&key("x", 9), b"9").unwrap();
    target.follow(slot, FIRST).unwrap();
    let header = RangeHeader { term: range.term, base: range.base };
    let diverged = target.apply(slot, FIRST, &header, &range.bytes).unwrap_err();
    assert!(matches!(diverged, ApplyError::Diverged { .. }), "{diverged}");
    assert!(stream.subscribe(slot, FIRST, target.slot_status(slot).version).is_err());
    let old = RangeHeader { term: Term(4), base: 3 };
    assert!(matches!(target.apply(slot, FIRST, &old, &range.bytes), Err(ApplyError::TermTooLow { .. })));
}

#[test]
fn a_dropped_slot_ends_its_subscription_and_pins_stay_readable() {
    let folder = tempfile::tempdir().unwrap();
    let source = clustered(folder.path(), 1);
    let slot = slot_of("x");
    own(&source, slot, FIRST, 1);
    for number in 0..1000 {
        let _ = source.keyspace(0).set(&key("x", number), &[5; 200]).unwrap();
    }
    let stream = source.stream();
    stream.subscribe(slot, FIRST, version(0, 0)).unwrap();
    let range = stream.next_range(50_000).unwrap();
    let bytes = range.bytes.to_vec();
    source.hand_off(slot, FIRST).unwrap();
    let second = stream.next_range(50_000).expect("what was handed off can still be streamed");
    source.drop_slot(slot, FIRST).unwrap();
    assert!(stream.next_range(50_000).is_none());
    assert_eq!(stream.take_ended(), [slot]);
    let stats = source.stats();
    assert_eq!(stats.segment_bytes, 0);
    assert!(stats.memory_used_bytes > 0, "pinned");
    own(&source, slot, Generation::new(2), 2);
    for number in 0..1000 {
        let _ = source.keyspace(0).set(&key("x", number), &[6; 300]).unwrap();
    }
    assert_eq!(&range.bytes[..], bytes);
    drop((range, second));
    let stats = source.stats();
    assert_eq!(stats.memory_used_bytes, stats.segment_bytes + stats.index_bytes);
}

#[test]
fn a_slot_that_starts_anew_wakes_who_follows_it_and_who_follows_others_on_that_stream() {
    let folder = tempfile::tempdir().unwrap();
    let source = clustered(folder.path(), 1);
    let (anew, other) = (slot_of("x"), slot_of("y"));
    import(&source, anew, FIRST);
    own(&source, other, FIRST, 1);
    let stream = source.stream();
    for slot in [anew, other] {
        stream.subscribe(slot, FIRST, version(0, 0)).unwrap();
    }
    assert!(stream.next_range(50_000).is_none());

    let mut context = Context::from_waker(Waker::noop());
    let mut waiting = pin!(stream.ready());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    import(&source, anew, FIRST.next_minor());
    assert!(waiting.as_mut().poll(&mut context).is_ready(), "the end of what is followed is news");
    assert!(stream.next_range(50_000).is_none());
    assert_eq!(stream.take_ended(), [anew]);

    let mut waiting = pin!(stream.ready());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    let _ = source.keyspace(0).set(&key("y", 0), b"more").unwrap();
    assert!(waiting.as_mut().poll(&mut context).is_ready(), "a wake-up that was lost once is lost for all");
}
