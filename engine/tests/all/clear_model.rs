//! Random lives of a few slots with several keyspaces, with batches and clears, against a model. Restarts in between and a
//! replica that follows change nothing.

use std::collections::BTreeMap;

use crate::common::{FIRST, assert_same, clustered, import, key, slot_of, standalone};
use lockgate_engine::{
    Engine, Expiry, Gate, KeyspaceStats, RangeHeader, Slot, SlotStream, SubscribeError, Version,
};
use proptest::prelude::*;

const TAGS: [&str; 3] = ["a", "b", "c"];
const KEYS: usize = 6;
/// Far enough away that none comes.
const FAR_MS: u64 = 1 << 50;

/// One entry of a batch: keyspace, key, and what it is set to; `None` deletes.
type Entry = (u8, usize, Option<(usize, bool)>);

#[derive(Clone, Debug)]
enum Step {
    Write(usize, Vec<Entry>),
    ClearKeyspaceInSlot(u8, usize),
    ClearSlot(usize),
    ClearKeyspace(u8),
    Follow(usize),
    Reopen(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let set = (0usize..300, any::<bool>());
    let entry = (0u8..3, 0..KEYS, proptest::option::weighted(0.75, set));
    let (tag, keyspace) = (0..TAGS.len(), 0u8..3);
    let step = prop_oneof![
        8 => (tag.clone(), proptest::collection::vec(entry, 0..9)).prop_map(|(tag, entries)| Step::Write(tag, entries)),
        2 => (keyspace.clone(), tag.clone()).prop_map(|(keyspace, tag)| Step::ClearKeyspaceInSlot(keyspace, tag)),
        1 => tag.prop_map(Step::ClearSlot),
        1 => keyspace.prop_map(Step::ClearKeyspace),
        2 => (0usize..500).prop_map(Step::Follow),
        1 => (1usize..4).prop_map(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..80)
}

/// By tag, keyspace and key: the value and when it ends.
type Model = BTreeMap<(usize, u8, usize), (Vec<u8>, Option<u64>)>;

fn write(engine: &Engine, model: &mut Model, tag: usize, entries: &[Entry]) {
    let mut batch = engine.batch(slot_of(TAGS[tag]));
    for (at, (keyspace, number, set)) in entries.iter().enumerate() {
        let name = key(TAGS[tag], *number);
        match set {
            Some((bytes, ends)) => {
                let deadline_ms = ends.then_some(FAR_MS + at as u64);
                let expiry = deadline_ms.map_or(Expiry::Clear, Expiry::At);
                let value = vec![*bytes as u8; *bytes];
                batch.set_expiring(*keyspace, name, value.clone(), expiry);
                model.insert((tag, *keyspace, *number), (value, deadline_ms));
            }
            None => {
                batch.delete(*keyspace, name);
                model.remove(&(tag, *keyspace, *number));
            }
        }
    }
    let _ = batch.commit().unwrap();
}

/// Removes from the model, and says how many that were.
fn remove(model: &mut Model, goes: impl Fn(usize, u8) -> bool) -> u64 {
    let before = model.len();
    model.retain(|(tag, keyspace, _), _| !goes(*tag, *keyspace));
    (before - model.len()) as u64
}

fn check(engine: &Engine, model: &Model) {
    for (tag, name) in TAGS.iter().enumerate() {
        let mut keyspaces = Vec::new();
        for keyspace in 0..3 {
            let mut of = KeyspaceStats { keyspace, keys: 0, keys_with_deadline: 0 };
            for number in 0..KEYS {
                let expected = model.get(&(tag, keyspace, number));
                let keys = engine.keyspace(keyspace);
                let value = keys.get(&key(name, number)).unwrap();
                assert_eq!(
                    value.as_ref().map(|value| value.as_bytes()),
                    expected.map(|(value, _)| &value[..])
                );
                let at_ms = keys.deadline(&key(name, number)).unwrap().at_ms;
                assert_eq!(at_ms, expected.and_then(|(_, at_ms)| *at_ms));
                of.keys += u64::from(expected.is_some());
                of.keys_with_deadline += u64::from(at_ms.is_some());
            }
            keyspaces.extend((of.keys > 0).then_some(of));
        }
        let stats = engine.slot_stats(slot_of(name));
        assert_eq!(stats.data.keys, keyspaces.iter().map(|of| of.keys).sum::<u64>());
        assert_eq!(
            stats.data.keys_with_deadline,
            keyspaces.iter().map(|of| of.keys_with_deadline).sum::<u64>()
        );
        assert_eq!(
            (stats.keyspaces.is_empty(), stats.data.live_bytes == 0),
            (keyspaces.is_empty(), keyspaces.is_empty())
        );
        assert_eq!(stats.keyspaces, keyspaces);
    }
}

/// Follows a slot from what the target has of it. Where the source has discarded tombstones behind that, the target starts
/// anew.
fn follow(stream: &SlotStream, target: &Engine, slot: Slot) {
    let status = target.slot_status(slot);
    match stream.subscribe(slot, FIRST, status.version) {
        Ok(()) => {}
        Err(SubscribeError::BelowFloor { .. }) => {
            target.open_slot(slot, status.generation.next_minor(), Gate::Importing).unwrap();
            stream.subscribe(slot, FIRST, Version::ZERO).unwrap();
        }
        Err(error) => panic!("{error}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn batches_and_clears_do_what_a_map_does(steps in steps()) {
        let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut engine, target) = (standalone(folders.0.path(), 2), clustered(folders.1.path(), 1));
        let mut model = Model::new();
        TAGS.iter().for_each(|tag| import(&target, slot_of(tag), FIRST));
        for step in steps {
            match step {
                Step::Write(tag, entries) => write(&engine, &mut model, tag, &entries),
                Step::ClearKeyspaceInSlot(keyspace, tag) => {
                    let (keys, _) = engine.keyspace(keyspace).clear_slot(slot_of(TAGS[tag])).unwrap();
                    prop_assert_eq!(keys, remove(&mut model, |of, space| of == tag && space == keyspace));
                }
                Step::ClearSlot(tag) => {
                    let (keys, _) = engine.clear_slot(slot_of(TAGS[tag])).unwrap();
                    prop_assert_eq!(keys, remove(&mut model, |of, _| of == tag));
                }
                Step::ClearKeyspace(keyspace) => {
                    let slots: std::collections::BTreeSet<usize> =
                        model.keys().filter(|(_, space, _)| *space == keyspace).map(|(tag, ..)| *tag).collect();
                    let cleared = engine.keyspace(keyspace).clear().unwrap();
                    prop_assert_eq!(cleared.receipts.len(), slots.len());
                    prop_assert_eq!(cleared.keys, remove(&mut model, |_, space| space == keyspace));
                }
                Step::Follow(max_bytes) => {
                    let stream = engine.stream();
                    for tag in TAGS {
                        follow(&stream, &target, slot_of(tag));
                    }
                    while let Some(range) = stream.next_range(max_bytes) {
                        let generation = target.slot_status(range.slot).generation;
                        let header = RangeHeader { term: range.term, base: range.base };
                        target.apply(range.slot, generation, &header, &range.bytes).unwrap();
                    }
                    TAGS.iter().for_each(|tag| assert_same(&engine, &target, slot_of(tag)));
                }
                Step::Reopen(cores) => {
                    let before: Vec<_> = TAGS.iter().map(|tag| engine.slot_status(slot_of(tag))).collect();
                    drop(engine);
                    engine = standalone(folders.0.path(), cores);
                    for (tag, before) in TAGS.iter().zip(before) {
                        let after = engine.slot_status(slot_of(tag));
                        prop_assert_eq!((after.version, after.digest, after.keys, after.live_bytes),
                            (before.version, before.digest, before.keys, before.live_bytes));
                    }
                }
            }
            check(&engine, &model);
        }
    }
}
