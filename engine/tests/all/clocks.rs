//! Wall clocks that are set while keys have deadlines.

use std::time::Duration;

use crate::common::{FIRST, key, own, slot_of};
use lockgate_engine::{Engine, Expiry, Keyspace, SetOptions, Term};
use lockgate_runtime::sim::Sim;
use lockgate_runtime::{Runtime, sleep};

const SECOND_MS: u64 = 1_000;
const HOUR_MS: i64 = 3_600_000;

fn opened(sim: &Sim, clustered: bool) -> (Runtime, Engine) {
    let runtime = sim.node("a", 1);
    let inside = runtime.clone();
    let open = move || async move {
        Engine::builder("/a").clustered(clustered).log_file_bytes(1 << 20).open_on(&inside).await.unwrap()
    };
    let engine = runtime.block_on(0, open);
    (runtime, engine)
}

fn pass(runtime: &Runtime, time: Duration) {
    runtime.block_on(0, move || sleep(time));
}

fn set_for(keys: &Keyspace, key: &[u8], time_ms: u64) {
    let options = SetOptions { expiry: Expiry::After(time_ms), ..SetOptions::default() };
    assert!(keys.set_with(key, b"value", &options).unwrap().applied);
}

#[test]
fn a_clock_that_jumps_ahead_ends_keys_early() {
    let sim = Sim::new(1);
    let (runtime, engine) = opened(&sim, false);
    let keys = engine.keyspace(0);
    set_for(&keys, b"asked", 10 * SECOND_MS);
    set_for(&keys, b"not asked", HOUR_MS as u64);
    set_for(&keys, b"later", 2 * HOUR_MS as u64);
    // The sweeper sleeps by now.
    pass(&runtime, Duration::from_secs(1));
    sim.control().jump_wall_clock("a", HOUR_MS);
    assert_eq!(keys.len(), 3);
    assert!(keys.get(b"asked").unwrap().is_none());
    assert_eq!(keys.len(), 2);
    pass(&runtime, Duration::from_secs(61));
    assert_eq!(keys.len(), 1, "the sweeper looks at the clock now and then");
    assert!(keys.exists(b"later").unwrap());
}

#[test]
fn a_clock_that_jumps_back_ends_keys_late_and_a_slots_clock_never_goes_back() {
    let sim = Sim::new(2);
    let (runtime, engine) = opened(&sim, false);
    let keys = engine.keyspace(0);
    set_for(&keys, b"k", SECOND_MS);
    let before = keys.deadline(b"k").unwrap();
    sim.control().jump_wall_clock("a", -HOUR_MS);
    pass(&runtime, Duration::from_secs(120));
    let late = keys.deadline(b"k").unwrap();
    assert_eq!((late.at_ms, late.clock_ms), (before.at_ms, before.clock_ms));
    assert!(runtime.unix_ms() < before.clock_ms);
    assert_eq!(keys.get(b"k").unwrap().unwrap(), b"value");
    sim.control().jump_wall_clock("a", HOUR_MS);
    assert!(keys.get(b"k").unwrap().is_none());
}

#[test]
fn the_next_owner_begins_where_the_last_ones_clock_stood() {
    let sim = Sim::new(3);
    let (runtime, engine) = opened(&sim, true);
    let (keys, slot) = (engine.keyspace(0), slot_of("x"));
    let floor_ms = runtime.unix_ms() + HOUR_MS as u64;
    engine.own_from(slot, FIRST, Term(1), floor_ms).unwrap();
    set_for(&keys, &key("x", 1), SECOND_MS);
    let seen = keys.deadline(&key("x", 1)).unwrap();
    assert_eq!((seen.clock_ms, seen.at_ms), (floor_ms, Some(floor_ms + SECOND_MS)));
    // A lower floor changes nothing, whatever happens to the slot's gate.
    engine.own_from(slot, FIRST, Term(2), floor_ms - 1).unwrap();
    engine.follow(slot, FIRST).unwrap();
    pass(&runtime, Duration::from_secs(5));
    own(&engine, slot, FIRST, 3);
    assert_eq!(engine.freeze(slot, FIRST).unwrap().clock_ms, floor_ms);
    engine.thaw(slot, FIRST).unwrap();
    assert_eq!(keys.deadline(&key("x", 1)).unwrap().clock_ms, floor_ms);
    // When the wall clock has passed it, it goes on with that.
    sim.control().jump_wall_clock("a", HOUR_MS);
    let frozen = engine.freeze(slot, FIRST).unwrap();
    assert!(frozen.clock_ms > floor_ms && frozen.clock_ms == runtime.unix_ms());
}
