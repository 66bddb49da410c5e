//! What the engine's tests share.

use std::path::Path;
use std::time::Duration;

use lockgate_engine::{
    Engine, EngineBuilder, Gate, Generation, RangeHeader, Slot, SlotStream, StableWatermarks, Term, Version,
};
use lockgate_runtime::sync::Arc;

pub const FIRST: Generation = Generation::new(1);

pub fn builder(path: &Path, cores: usize) -> EngineBuilder {
    Engine::builder(path).cores(cores).pin(false).log_file_bytes(1 << 20)
}

pub fn standalone(path: &Path, cores: usize) -> Engine {
    builder(path, cores).open().unwrap()
}

pub fn clustered(path: &Path, cores: usize) -> Engine {
    builder(path, cores).clustered(true).open().unwrap()
}

/// What is on the disk now, as another process would find it after this one was killed.
pub fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Applies the next range that a stream has, with its floors, and returns its length in bytes; `None` where it has none.
pub fn apply_next(
    stream: &SlotStream,
    to: &Engine,
    generation: Generation,
    max_bytes: usize,
) -> Option<usize> {
    let range = stream.next_range(max_bytes)?;
    to.raise_floors(range.slot, generation, range.floors).unwrap();
    let header = RangeHeader { term: range.term, base: range.base };
    let applied = to.apply(range.slot, generation, &header, &range.bytes).unwrap();
    assert_eq!(applied.version, range.last);
    assert!(range.first <= range.last);
    Some(range.bytes.len())
}

/// Applies all that a stream has until it has none, and returns how many ranges and bytes that was. Beside writers
/// that are faster than this thread, it has no end.
pub fn drain(stream: &SlotStream, to: &Engine, generation: Generation, max_bytes: usize) -> (usize, usize) {
    std::iter::from_fn(|| apply_next(stream, to, generation, max_bytes))
        .fold((0, 0), |(ranges, bytes), range| (ranges + 1, bytes + range))
}

/// Makes `slot` of `engine` owned in a generation, under a term.
pub fn own(engine: &Engine, slot: Slot, generation: Generation, term: u64) {
    engine.own(slot, generation, Term(term)).unwrap();
}

pub fn import(engine: &Engine, slot: Slot, generation: Generation) {
    engine.open_slot(slot, generation, Gate::Importing).unwrap();
}

/// Copies a slot from its beginning, once.
pub fn copy_slot(from: &Engine, to: &Engine, slot: Slot, source: Generation, target: Generation) {
    let stream = from.stream();
    stream.subscribe(slot, source, to.slot_status(slot).version).unwrap();
    drain(&stream, to, target, 64 << 10);
    assert_same(from, to, slot);
}

pub fn assert_same(from: &Engine, to: &Engine, slot: Slot) {
    let (from, to) = (from.slot_status(slot), to.slot_status(slot));
    assert_eq!(
        (from.version, from.digest, from.keys, from.live_bytes),
        (to.version, to.digest, to.keys, to.live_bytes)
    );
}

/// A key of the slot of `{tag}`.
pub fn key(tag: &str, number: usize) -> Vec<u8> {
    format!("{{{tag}}}{number}").into_bytes()
}

pub fn slot_of(tag: &str) -> Slot {
    Slot::of_key(format!("{{{tag}}}").as_bytes())
}

pub const fn version(term: u64, counter: u64) -> Version {
    Version::new(Term(term), counter)
}

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the engine's cores have done what makes this true.
pub fn wait_until(engine: &Engine, what: &'static str, is_so: impl Fn(&Engine) -> bool + Send + 'static) {
    let engine_there = engine.clone();
    engine.runtime().block_on(0, move || async move {
        let waited = lockgate_runtime::timeout(PATIENCE, async {
            while !is_so(&engine_there) {
                lockgate_runtime::yield_now().await;
            }
        });
        assert!(waited.await.is_ok(), "never: {what}");
    });
}

/// Nothing is ever taken back.
pub struct AllStable;

impl StableWatermarks for AllStable {
    fn stable(&self, _: Slot, _: Generation) -> Option<Version> {
        Some(version(u64::MAX, u64::MAX))
    }
}

/// An engine that has discarded a tombstone of this slot: that of version 1:3. What the slot has are a key of version 1:1 and
/// one that was overwritten until 1:23.
pub fn with_a_floor(path: &Path) -> (Engine, Slot) {
    let engine = clustered(path, 1);
    let slot = slot_of("x");
    own(&engine, slot, FIRST, 1);
    let keys = engine.keyspace(0);
    let _ = keys.set(&key("x", 9), b"stays").unwrap();
    let _ = keys.set(&key("x", 0), b"v").unwrap();
    let _ = keys.delete(&key("x", 0)).unwrap();
    for _ in 0..20 {
        let _ = keys.set(&key("x", 1), &[1; 100]).unwrap();
    }
    compact(&engine);
    (engine, slot)
}

/// Lets everything be discarded that was superseded so far, and waits until some of it is.
pub fn compact(engine: &Engine) {
    engine.set_stable_watermarks(Arc::new(AllStable));
    wait_until(engine, "a compaction", |engine| engine.compaction_stats().steps > 0);
}
