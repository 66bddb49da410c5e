//! Conditional writes and deadlines against a model, in virtual time, over restarts.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::key;
use lockgate_engine::{Condition, Engine, Expiry, SetOptions, Slot, Update};
use lockgate_runtime::sim::Sim;
use lockgate_runtime::{Runtime, sleep, unix_ms};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum When {
    Always,
    IfAbsent,
    IfPresent,
    IfEqual(u8),
}

#[derive(Clone, Copy, Debug)]
enum Ends {
    Clear,
    Keep,
    /// Milliseconds from now on; negative: it has been.
    At(i64),
    After(u64),
}

#[derive(Clone, Debug)]
enum Step {
    Set(u8, u8),
    SetWith(u8, u8, When, Ends, bool),
    Expire(u8, Option<i64>),
    ExpireIfLater(u8, Ends),
    GetAndExpire(u8, Ends),
    Get(u8),
    GetMany,
    Deadline(u8),
    Delete(u8),
    Take(u8),
    Update(u8, Option<u8>),
    Sleep(u64),
    Reopen(usize),
}

fn ends() -> impl Strategy<Value = Ends> {
    prop_oneof![
        Just(Ends::Clear),
        Just(Ends::Keep),
        (-2i64..80).prop_map(Ends::At),
        (0u64..80).prop_map(Ends::After),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0u8..12;
    let when = prop_oneof![
        Just(When::Always),
        Just(When::IfAbsent),
        Just(When::IfPresent),
        (0u8..4).prop_map(When::IfEqual),
    ];
    let expire = proptest::option::of(-2i64..80);
    prop_oneof![
        3 => (name(), 0u8..4).prop_map(|(name, value)| Step::Set(name, value)),
        12 => (name(), 0u8..4, when, ends(), any::<bool>())
            .prop_map(|(name, value, when, ends, previous)| Step::SetWith(name, value, when, ends, previous)),
        4 => (name(), expire).prop_map(|(name, to)| Step::Expire(name, to)),
        3 => (name(), ends()).prop_map(|(name, ends)| Step::ExpireIfLater(name, ends)),
        3 => (name(), ends()).prop_map(|(name, ends)| Step::GetAndExpire(name, ends)),
        6 => name().prop_map(Step::Get),
        2 => Just(Step::GetMany),
        3 => name().prop_map(Step::Deadline),
        2 => name().prop_map(Step::Delete),
        2 => name().prop_map(Step::Take),
        3 => (name(), proptest::option::of(0u8..4)).prop_map(|(name, value)| Step::Update(name, value)),
        6 => (0u64..40).prop_map(Step::Sleep),
        1 => (1usize..3).prop_map(Step::Reopen),
    ]
}

/// A few slots, with several keys in each.
fn name_of(name: u8) -> Vec<u8> {
    key(&format!("t{}", name % 3), usize::from(name))
}

/// Values short and long, so that some are inline, some copied, some pinned.
fn value_of(value: u8) -> Vec<u8> {
    vec![value; [0, 5, 200, 5_000][usize::from(value % 4)]]
}

type Entry = (Vec<u8>, Option<u64>);

/// What the engine must be like.
#[derive(Default)]
struct Model(BTreeMap<u8, Entry>);

impl Model {
    fn live(&mut self, name: u8, now_ms: u64) -> Option<Entry> {
        if self.0.get(&name).and_then(|entry| entry.1).is_some_and(|deadline_ms| deadline_ms <= now_ms) {
            self.0.remove(&name);
        }
        self.0.get(&name).cloned()
    }

    fn put(&mut self, name: u8, value: Vec<u8>, deadline_ms: Option<u64>, now_ms: u64) {
        self.0.insert(name, (value, deadline_ms));
        self.live(name, now_ms);
    }
}

fn absolute(ends: Ends, old: Option<&Entry>, now_ms: u64) -> (Expiry, Option<u64>) {
    match ends {
        Ends::Clear => (Expiry::Clear, None),
        Ends::Keep => (Expiry::Keep, old.and_then(|old| old.1)),
        Ends::At(from_now_ms) => {
            let at_ms = now_ms.saturating_add_signed(from_now_ms);
            (Expiry::At(at_ms), Some(at_ms))
        }
        Ends::After(time_ms) => (Expiry::After(time_ms), Some(now_ms + time_ms)),
    }
}

async fn open(runtime: &Runtime, cores: usize) -> Engine {
    Engine::builder("/data").cores(cores).log_file_bytes(1 << 20).open_on(runtime).await.unwrap()
}

/// Takes one step that needs no waiting, at one instant.
fn take(engine: &Engine, model: &mut Model, step: &Step) {
    let (keys, now_ms) = (engine.keyspace(0), unix_ms());
    match step.clone() {
        Step::Set(name, value) => {
            let _ = keys.set(&name_of(name), &value_of(value)).unwrap();
            model.put(name, value_of(value), None, now_ms);
        }
        Step::SetWith(name, value, when, ends, return_previous) => {
            let old = model.live(name, now_ms);
            let (expiry, deadline_ms) = absolute(ends, old.as_ref(), now_ms);
            let wanted;
            let (condition, holds) = match when {
                When::Always => (Condition::Always, true),
                When::IfAbsent => (Condition::IfAbsent, old.is_none()),
                When::IfPresent => (Condition::IfPresent, old.is_some()),
                When::IfEqual(value) => {
                    wanted = value_of(value);
                    (Condition::IfEqual(&wanted), old.as_ref().is_some_and(|old| old.0 == wanted))
                }
            };
            let options = SetOptions { condition, expiry, return_previous };
            let outcome = keys.set_with(&name_of(name), &value_of(value), &options).unwrap();
            assert_eq!(outcome.applied, holds);
            let previous = outcome.previous.map(|value| value.as_bytes().to_vec());
            assert_eq!(previous, old.map(|old| old.0).filter(|_| return_previous));
            if holds {
                model.put(name, value_of(value), deadline_ms, now_ms);
            }
        }
        Step::Expire(name, to) => {
            let old = model.live(name, now_ms);
            let deadline_ms = to.map(|from_now_ms| now_ms.saturating_add_signed(from_now_ms));
            let (done, _) = keys.expire(&name_of(name), deadline_ms).unwrap();
            assert_eq!(done, old.as_ref().is_some_and(|old| to.is_some() || old.1.is_some()));
            if let (true, Some((value, _))) = (done, old) {
                model.put(name, value, deadline_ms, now_ms);
            }
        }
        Step::ExpireIfLater(name, ends) => {
            let old = model.live(name, now_ms);
            let (expiry, deadline_ms) = absolute(ends, old.as_ref(), now_ms);
            let (done, _) = keys.expire_if(&name_of(name), expiry, |have, wanted| wanted > have).unwrap();
            assert_eq!(done, old.as_ref().is_some_and(|old| deadline_ms > old.1));
            if let (true, Some((value, _))) = (done, old) {
                model.put(name, value, deadline_ms, now_ms);
            }
        }
        Step::GetAndExpire(name, ends) => {
            let old = model.live(name, now_ms);
            let (expiry, deadline_ms) = absolute(ends, old.as_ref(), now_ms);
            let (value, _) = keys.get_and_expire(&name_of(name), expiry).unwrap();
            assert_eq!(value.map(|value| value.as_bytes().to_vec()), old.as_ref().map(|old| old.0.clone()));
            if let Some((value, _)) = old {
                model.put(name, value, deadline_ms, now_ms);
            }
        }
        Step::Delete(name) => {
            let (was_there, _) = keys.delete(&name_of(name)).unwrap();
            assert_eq!(was_there, model.live(name, now_ms).is_some());
            model.0.remove(&name);
        }
        Step::Take(name) => {
            let (taken, _) = keys.take(&name_of(name)).unwrap();
            let old = model.live(name, now_ms).map(|old| old.0);
            assert_eq!(taken.map(|value| value.as_bytes().to_vec()), old);
            model.0.remove(&name);
        }
        Step::Update(name, to) => {
            let (old, to) = (model.live(name, now_ms), to.map(value_of));
            let change = |seen: Option<&[u8]>| {
                assert_eq!(seen, old.as_ref().map(|old| old.0.as_slice()));
                to.clone().map_or(Update::Delete, Update::Put)
            };
            let _ = keys.update(&name_of(name), change).unwrap();
            match to {
                Some(value) => model.put(name, value, old.and_then(|old| old.1), now_ms),
                None => drop(model.0.remove(&name)),
            }
        }
        look => see(engine, model, &look, now_ms),
    }
}

/// The steps that change nothing.
fn see(engine: &Engine, model: &mut Model, step: &Step, now_ms: u64) {
    let keys = engine.keyspace(0);
    match *step {
        Step::Get(name) => {
            let expected = model.live(name, now_ms).map(|entry| entry.0);
            assert_eq!(keys.exists(&name_of(name)).unwrap(), expected.is_some());
            let read = keys.read(&name_of(name)).unwrap();
            assert_eq!(read.value.map(|value| value.as_bytes().to_vec()), expected);
        }
        Step::GetMany => {
            let names: Vec<_> = (0..12).map(name_of).collect();
            let names: Vec<_> = names.iter().map(Vec::as_slice).collect();
            for (name, value) in (0..12).zip(keys.get_many(&names).unwrap()) {
                let expected = model.live(name, now_ms).map(|entry| entry.0);
                assert_eq!(value.map(|value| value.as_bytes().to_vec()), expected);
            }
        }
        Step::Deadline(name) => {
            let (seen, expected) = (keys.deadline(&name_of(name)).unwrap(), model.live(name, now_ms));
            assert_eq!((seen.exists, seen.clock_ms), (expected.is_some(), now_ms));
            assert_eq!(seen.at_ms, expected.and_then(|entry| entry.1));
        }
        _ => unreachable!("{step:?} is done elsewhere"),
    }
}

async fn run(runtime: Runtime, steps: Vec<Step>) {
    let (mut engine, mut model) = (open(&runtime, 2).await, Model::default());
    for step in steps {
        match step {
            Step::Sleep(time_ms) => sleep(Duration::from_millis(time_ms)).await,
            Step::Reopen(cores) => {
                engine.close().await.unwrap();
                let before: Vec<_> = Slot::all().map(|slot| engine.slot_status(slot)).collect();
                drop(engine);
                engine = open(&runtime, cores).await;
                for (slot, before) in Slot::all().zip(before) {
                    let after = engine.slot_status(slot);
                    // What became due meanwhile may be deleted by now.
                    if after.version == before.version {
                        assert_eq!((after.digest, after.keys), (before.digest, before.keys));
                    }
                }
            }
            step => take(&engine, &mut model, &step),
        }
    }
    // All that is due goes without being asked for; all else stays.
    sleep(Duration::from_millis(50)).await;
    let now_ms = unix_ms();
    let live: Vec<Entry> = (0..12).filter_map(|name| model.live(name, now_ms)).collect();
    let with_deadline = live.iter().filter(|entry| entry.1.is_some()).count();
    let keys = engine.keyspace(0);
    // A key may be due at this very moment.
    assert!(keys.len() >= live.len() as u64);
    (0..12).for_each(|name| see(&engine, &mut model, &Step::Get(name), now_ms));
    assert_eq!((keys.len(), keys.len_with_deadline()), (live.len() as u64, with_deadline as u64));
    engine.close().await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_a_map_with_deadlines_does(
        seed in any::<u64>(),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let sim = Sim::new(seed);
        let node = sim.node("a", 2);
        let runtime = node.clone();
        node.block_on(0, move || run(runtime, steps));
    }
}
