//! Known bugs of what a compaction may discard: here one engine is asked, with the bug and without it. Every compaction of a
//! run keeps these rules, and what breaks them shows only when a failover or a new stream meets it.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use lockgate_engine::{
    Engine, Gate, Generation, RangeHeader, Slot, SlotError, StableWatermarks, SubscribeError, Term, Version,
};
use lockgate_runtime::sim::Sim;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::{current, sleep};
use lockgate_sim::mutations::with;

const GENERATION: Generation = Generation::new(1);

fn version(counter: u64) -> Version {
    Version { term: Term(1), counter }
}

/// Says the same of every slot.
struct Stable(u64);

impl StableWatermarks for Stable {
    fn stable(&self, _: Slot, _: Generation) -> Option<Version> {
        Some(version(self.0))
    }
}

/// A slot in which a key was written and deleted, and another one was then overwritten again and again, which left far more
/// garbage than a compaction needs. `before` is called behind the first write.
async fn overwritten(stable: u64, before: impl FnOnce(&Engine, Slot)) -> (Engine, Slot) {
    let builder = Engine::builder(Path::new("/data")).cores(1).clustered(true).log_file_bytes(1 << 20);
    let engine = builder.open_on(&current()).await.expect("it opens");
    engine.set_stable_watermarks(Arc::new(Stable(stable)));
    let slot = Slot::of_key(b"{x}");
    engine.own(slot, GENERATION, Term(1)).expect("nobody owns it");
    let keys = engine.keyspace(0);
    let _ = keys.set(b"{x}first", b"value").expect("it is owned");
    before(&engine, slot);
    let _ = keys.delete(b"{x}first").expect("it is owned");
    for round in 0..30 {
        let _ = keys.set(b"{x}second", &[round; 100]).expect("it is owned");
    }
    sleep(Duration::from_secs(1)).await;
    (engine, slot)
}

/// Runs on a machine of its own, with the bug on if there is one.
fn simulated<T: Send + 'static, F: Future<Output = T> + 'static>(
    bug: Option<&'static str>,
    run: fn() -> F,
) -> T {
    with(bug, || Sim::new(1).node("a", 1).block_on(0, run))
}

/// R5.
#[test]
fn a_receiver_below_the_floor_starts_anew() {
    let try_it = |bug| {
        simulated(bug, || async {
            let (engine, slot) = overwritten(u64::MAX, |_, _| {}).await;
            engine.stream().subscribe(slot, GENERATION, version(1))
        })
    };
    let refused = try_it(None);
    assert!(matches!(refused, Err(SubscribeError::BelowFloor { .. })), "{refused:?}");
    assert_eq!(try_it(Some("floor-not-raised")), Ok(()), "it would keep the key that was deleted");
}

/// R5. As [`a_receiver_below_the_floor_starts_anew`], of an engine that has the slot from the one which was compacted.
#[test]
fn a_copy_refuses_who_is_below_the_floor_of_its_source() {
    let try_it = |bug| {
        simulated(bug, || async {
            let (engine, slot) = overwritten(u64::MAX, |_, _| {}).await;
            let builder = Engine::builder(Path::new("/copy")).cores(1).clustered(true);
            let copy = builder.open_on(&current()).await.expect("it opens");
            copy.open_slot(slot, GENERATION, Gate::Importing).expect("it is nowhere");
            let stream = engine.stream();
            stream.subscribe(slot, GENERATION, Version::ZERO).expect("it is there");
            while let Some(range) = stream.next_range(1 << 20) {
                copy.raise_floors(slot, GENERATION, range.floors).expect("it is filled");
                let header = RangeHeader { term: range.term, base: range.base };
                copy.apply(slot, GENERATION, &header, &range.bytes).expect("it goes on");
            }
            copy.stream().subscribe(slot, GENERATION, version(1))
        })
    };
    let refused = try_it(None);
    assert!(matches!(refused, Err(SubscribeError::BelowFloor { .. })), "{refused:?}");
    assert_eq!(try_it(Some("floor-not-copied")), Ok(()), "it would keep the key that was deleted");
}

/// R4. A receiver lacks a value that was overwritten, and the source it comes back to has lost the overwriting.
#[test]
fn who_has_gaps_goes_on_only_where_they_are_filled() {
    let try_it = |bug| {
        simulated(bug, || async {
            let (engine, slot) = overwritten(u64::MAX, |_, _| {}).await;
            let stream = engine.stream();
            stream.subscribe(slot, GENERATION, Version::ZERO).expect("it is there");
            let told = stream.next_range(1).expect("it has records").floors.undo_floor;
            assert_eq!(told, engine.slot_status(slot).version);
            stream.resume(slot, GENERATION, version(told.counter - 1), told).expect("the last write is here");
            let lost = version(told.counter + 1);
            stream.resume(slot, GENERATION, version(told.counter - 1), lost)
        })
    };
    let refused = try_it(None);
    assert!(matches!(refused, Err(SubscribeError::Gaps { .. })), "{refused:?}");
    assert_eq!(try_it(Some("gaps-not-noticed")), Ok(()), "it would never get the value");
}

/// R4.
#[test]
fn what_may_be_taken_back_stays_with_what_it_superseded() {
    let try_it = |bug| {
        simulated(bug, || async {
            let (engine, slot) = overwritten(5, |_, _| {}).await;
            engine.follow(slot, GENERATION).expect("it was owned");
            engine.truncate(slot, GENERATION, version(5)).map(|truncated| truncated.version)
        })
    };
    assert_eq!(try_it(None).expect("it goes back"), version(5));
    let refused = try_it(Some("compacted-above-the-watermark"));
    assert!(matches!(refused, Err(SlotError::BelowFloor { .. })), "{refused:?}");
}

/// R4, R5.
#[test]
fn what_a_stream_has_yet_to_send_stays() {
    let try_it = |bug| {
        simulated(bug, || async {
            let stream = Rc::new(RefCell::new(None));
            let kept = Rc::clone(&stream);
            let (engine, _) = overwritten(u64::MAX, |engine, slot| {
                let stream = engine.stream();
                stream.subscribe(slot, GENERATION, version(1)).expect("it is there");
                *kept.borrow_mut() = Some(stream);
            })
            .await;
            engine.compaction_stats().steps
        })
    };
    assert_eq!(try_it(None), 0);
    assert!(try_it(Some("discarded-before-it-is-sent")) > 0, "the receiver would have gaps");
}
