//! Keys that end: in virtual time, on owners, frozen slots, followers, over streams and restarts.

use std::time::Duration;

use crate::common::{FIRST, assert_same, copy_slot, import, key, own, slot_of, version};
use lockgate_engine::{
    Condition, Engine, Expiry, Gate, Generation, Keyspace, OpError, Receipt, SetOptions, Slot, Term, Update,
};
use lockgate_runtime::sim::Sim;
use lockgate_runtime::{Runtime, sleep, unix_ms};

const SECOND_MS: u64 = 1_000;
/// More than the sweeper needs to delete all that is due.
const SWEPT: Duration = Duration::from_millis(50);

/// Runs `test` on core 0 of a simulated node with two cores.
fn simulated<F: Future<Output = ()> + 'static>(test: fn(Runtime) -> F) {
    for seed in 0..4 {
        let node = Sim::new(seed);
        let runtime = node.node("a", 2);
        let inside = runtime.clone();
        runtime.block_on(0, move || test(inside));
    }
}

async fn open(runtime: &Runtime, folder: &str, clustered: bool) -> Engine {
    let builder = Engine::builder(folder).cores(2).clustered(clustered).log_file_bytes(1 << 20);
    builder.open_on(runtime).await.unwrap()
}

fn until(deadline_ms: u64) -> SetOptions<'static> {
    SetOptions { expiry: Expiry::At(deadline_ms), ..SetOptions::default() }
}

fn set_until(keys: &Keyspace, key: &[u8], deadline_ms: u64) -> Receipt {
    keys.set_with(key, b"value", &until(deadline_ms)).unwrap().receipt
}

/// Owned, with a key that is due and not deleted: until the caller awaits something, no sweeper comes between.
fn due(engine: &Engine, tag: &str) -> (Slot, Vec<u8>) {
    let (slot, key) = (slot_of(tag), key(tag, 0));
    own(engine, slot, FIRST, 1);
    let deadline_ms = unix_ms() + 3_600 * SECOND_MS;
    let _ = set_until(&engine.keyspace(0), &key, deadline_ms);
    engine.own_from(slot, FIRST, Term(1), deadline_ms).unwrap();
    (slot, key)
}

#[test]
fn a_key_is_there_until_its_deadline_and_not_at_it() {
    simulated(|runtime| async move {
        let engine = open(&runtime, "/a", false).await;
        let keys = engine.keyspace(0);
        let deadline_ms = unix_ms() + 10 * SECOND_MS;
        let _ = set_until(&keys, b"k", deadline_ms);
        let seen = keys.deadline(b"k").unwrap();
        assert!(seen.exists && seen.at_ms == Some(deadline_ms) && seen.clock_ms <= unix_ms());
        while unix_ms() < deadline_ms {
            assert_eq!(keys.get(b"k").unwrap().unwrap(), b"value");
            assert!(keys.exists(b"k").unwrap());
            sleep(
                Duration::from_millis(deadline_ms - unix_ms()).div_f64(3.0).max(Duration::from_micros(100)),
            )
            .await;
        }
        assert!(keys.get(b"k").unwrap().is_none() && !keys.exists(b"k").unwrap());
        let seen = keys.deadline(b"k").unwrap();
        assert!(!seen.exists && seen.at_ms.is_none());
        assert_eq!((seen.version, keys.len()), (version(1, 2), 0));
    });
}

#[test]
fn what_is_told_of_an_ended_key_rests_on_its_logged_delete() {
    simulated(|runtime| async move {
        let engine = open(&runtime, "/a", true).await;
        let keys = engine.keyspace(0);
        // Everything that can tell an end: each meets a key that nobody has deleted yet.
        type Tell = fn(&Keyspace, &[u8]) -> (bool, lockgate_engine::Version, lockgate_engine::LogTicket);
        let tells: [Tell; 9] = [
            |keys, key| {
                let read = keys.read(key).unwrap();
                (read.value.is_none(), read.version, read.position)
            },
            |keys, key| {
                let seen = keys.deadline(key).unwrap();
                (!seen.exists, seen.version, seen.position)
            },
            |keys, key| {
                let (was_there, receipt) = keys.delete(key).unwrap();
                (!was_there, receipt.version, receipt.ticket)
            },
            |keys, key| {
                let (taken, receipt) = keys.take(key).unwrap();
                (taken.is_none(), receipt.version, receipt.ticket)
            },
            |keys, key| {
                let (was_there, receipt) = keys.expire(key, Some(u64::MAX)).unwrap();
                (!was_there, receipt.version, receipt.ticket)
            },
            |keys, key| {
                let (was_there, receipt) = keys.expire(key, None).unwrap();
                (!was_there, receipt.version, receipt.ticket)
            },
            |keys, key| {
                let (value, receipt) = keys.get_and_expire(key, Expiry::Clear).unwrap();
                (value.is_none(), receipt.version, receipt.ticket)
            },
            |keys, key| {
                let options = SetOptions { condition: Condition::IfPresent, ..SetOptions::default() };
                let outcome = keys.set_with(key, b"new", &options).unwrap();
                (!outcome.applied, outcome.receipt.version, outcome.receipt.ticket)
            },
            |keys, key| {
                let mut gone = false;
                let receipt = keys.update(key, |old| {
                    gone = old.is_none();
                    Update::Keep
                });
                let receipt = receipt.unwrap();
                (gone, receipt.version, receipt.ticket)
            },
        ];
        for (number, tell) in tells.into_iter().enumerate() {
            let (slot, key) = due(&engine, &format!("t{number}"));
            let before = engine.slot_status(slot);
            assert_eq!((before.version, before.keys), (version(1, 1), 1));
            let (gone, rests_on, ticket) = tell(&keys, &key);
            let after = engine.slot_status(slot);
            assert!(gone, "number {number}");
            assert_eq!((after.version, after.keys, after.digest), (version(1, 2), 0, 0), "number {number}");
            assert_eq!((rests_on, ticket), (after.version, engine.ticket_at(slot, after.position)));
            assert!(after.position > before.position && !engine.synced(ticket), "number {number}");
            engine.wait_synced(ticket).await.unwrap();
            assert_eq!(engine.slot_status(slot).version, version(1, 2), "it ends once");
        }
        let (slot, key) = due(&engine, "many");
        assert_eq!(keys.get_many(&[key.as_slice(), b"{many}other"]).unwrap(), [None, None]);
        assert_eq!(engine.slot_status(slot).version, version(1, 2));
        engine.close().await.unwrap();
    });
}

#[test]
fn keys_end_without_anybody_asking() {
    simulated(|runtime| async move {
        let engine = open(&runtime, "/a", false).await;
        let keys = engine.keyspace(3);
        let start_ms = unix_ms();
        for number in 0..600usize {
            let key = key(&format!("s{}", number % 7), number);
            match number % 3 {
                0 => drop(set_until(&keys, &key, start_ms + SECOND_MS + number as u64 % 5)),
                1 => drop(set_until(&keys, &key, start_ms + 100 * SECOND_MS)),
                _ => drop(keys.set(&key, b"stays").unwrap()),
            }
        }
        assert_eq!((keys.len(), keys.len_with_deadline()), (600, 400));
        sleep(Duration::from_millis(SECOND_MS) + SWEPT).await;
        assert_eq!((keys.len(), keys.len_with_deadline()), (400, 200));
        assert_eq!(engine.stats().keys_with_deadline, 200);
        // The next deadline wakes the sweeper again, and an earlier one that comes later wakes it earlier.
        let _ = set_until(&keys, b"soon", unix_ms() + SECOND_MS);
        sleep(Duration::from_millis(SECOND_MS) + SWEPT).await;
        assert_eq!((keys.len(), keys.len_with_deadline()), (400, 200));
        sleep(Duration::from_millis(100 * SECOND_MS)).await;
        assert_eq!((keys.len(), keys.len_with_deadline()), (200, 0));
        let status = engine.slot_status(slot_of("s1"));
        assert_eq!(status.version.counter, 86 + 57, "a write each, and one delete for each that ended");
        engine.close().await.unwrap();
    });
}

#[test]
fn overwriting_clears_keeps_or_moves_a_deadline() {
    simulated(|runtime| async move {
        let engine = open(&runtime, "/a", false).await;
        let keys = engine.keyspace(0);
        let first_ms = unix_ms() + SECOND_MS;
        let at = |key: &[u8]| keys.deadline(key).unwrap().at_ms;
        for name in [b"plain", b"keep.", b"later", b"taken", b"updat", b"moved", b"gone."] {
            let _ = set_until(&keys, name, first_ms);
        }
        let _ = keys.set(b"plain", b"1").unwrap();
        let keep = SetOptions { expiry: Expiry::Keep, ..SetOptions::default() };
        assert!(keys.set_with(b"keep.", b"2", &keep).unwrap().applied);
        assert!(keys.set_with(b"fresh", b"2", &keep).unwrap().applied);
        assert!(keys.set_with(b"later", b"3", &until(first_ms + SECOND_MS)).unwrap().applied);
        assert!(keys.expire(b"taken", None).unwrap().0 && !keys.expire(b"taken", None).unwrap().0);
        let _ = keys.update(b"updat", |old| Update::Put([old.unwrap(), b"!"].concat())).unwrap();
        assert!(keys.expire(b"moved", Some(first_ms + SECOND_MS)).unwrap().0);
        assert!(
            keys.expire(b"gone.", Some(unix_ms())).unwrap().0,
            "a time that has come ends the key at once"
        );
        assert!(!keys.expire(b"gone.", Some(first_ms)).unwrap().0);
        let later = Some(first_ms + SECOND_MS);
        assert_eq!([b"plain", b"fresh", b"taken", b"gone."].map(|key| at(key)), [None; 4]);
        assert_eq!([b"keep.", b"updat"].map(|key| at(key)), [Some(first_ms); 2]);
        assert_eq!([b"later", b"moved"].map(|key| at(key)), [later; 2]);
        assert_eq!(keys.get(b"moved").unwrap().unwrap(), b"value");
        assert_eq!(keys.get(b"updat").unwrap().unwrap(), b"value!");
        sleep(Duration::from_millis(SECOND_MS)).await;
        let there = |names: &[&[u8]]| names.iter().all(|name| keys.exists(name).unwrap());
        assert!(there(&[b"plain", b"fresh", b"taken", b"later", b"moved"]));
        assert_eq!(keys.get_many(&[b"keep.", b"updat", b"gone."]).unwrap(), [None, None, None]);
        sleep(Duration::from_millis(SECOND_MS)).await;
        assert!(there(&[b"plain", b"fresh", b"taken"]));
        assert_eq!(keys.get_many(&[b"later", b"moved"]).unwrap(), [None, None]);
    });
}

#[test]
fn conditions_see_what_is_there_and_an_ended_key_is_not() {
    simulated(|runtime| async move {
        let engine = open(&runtime, "/a", false).await;
        let keys = engine.keyspace(0);
        let set = |key: &[u8], value: &[u8], condition: Condition<'_>| {
            let options = SetOptions { condition, return_previous: true, ..SetOptions::default() };
            let outcome = keys.set_with(key, value, &options).unwrap();
            (outcome.applied, outcome.previous.map(|value| value.as_bytes().to_vec()))
        };
        let was = |value: &[u8]| Some(value.to_vec());
        assert_eq!(set(b"k", b"1", Condition::IfPresent), (false, None));
        assert_eq!(set(b"k", b"1", Condition::IfEqual(b"")), (false, None));
        assert_eq!(set(b"k", b"1", Condition::IfAbsent), (true, None));
        assert_eq!(set(b"k", b"2", Condition::IfAbsent), (false, was(b"1")));
        assert_eq!(set(b"k", b"2", Condition::IfEqual(b"0")), (false, was(b"1")));
        assert_eq!(set(b"k", b"2", Condition::IfEqual(b"1")), (true, was(b"1")));
        assert_eq!(set(b"k", b"3", Condition::IfPresent), (true, was(b"2")));
        assert_eq!(set(b"k", b"4", Condition::Always), (true, was(b"3")));
        let failed = keys
            .set_with(b"k", b"5", &SetOptions { condition: Condition::IfAbsent, ..SetOptions::default() })
            .unwrap();
        let status = engine.slot_status(Slot::of_key(b"k"));
        assert!(!failed.applied && failed.previous.is_none());
        assert_eq!(
            (failed.receipt.version, failed.receipt.ticket.position),
            (status.version, status.position),
            "a failed condition rests on what was seen"
        );
        // A time that has come already: the key goes, and what was there is told.
        let past = SetOptions { return_previous: true, ..until(unix_ms()) };
        let outcome = keys.set_with(b"k", b"6", &past).unwrap();
        assert!(outcome.applied && outcome.previous.unwrap() == b"4" && !keys.exists(b"k").unwrap());
        let before = engine.slot_status(Slot::of_key(b"k"));
        assert!(keys.set_with(b"k", b"6", &past).unwrap().applied, "and nothing is written if it was absent");
        assert_eq!(engine.slot_status(Slot::of_key(b"k")), before);
        // A time from now on is by the slot's clock.
        let soon = SetOptions { expiry: Expiry::After(SECOND_MS), ..SetOptions::default() };
        assert!(keys.set_with(b"k", b"7", &soon).unwrap().applied);
        assert_eq!(keys.deadline(b"k").unwrap().at_ms, Some(unix_ms() + SECOND_MS));
        sleep(Duration::from_millis(SECOND_MS)).await;
        assert_eq!(set(b"k", b"8", Condition::IfPresent), (false, None));
        assert_eq!(set(b"k", b"8", Condition::IfEqual(b"7")), (false, None));
        assert_eq!(set(b"k", b"8", Condition::IfAbsent), (true, None));
        assert_eq!(keys.take(b"k").unwrap().0.unwrap(), b"8");
        assert!(keys.take(b"k").unwrap().0.is_none());
    });
}

#[test]
fn deadlines_are_compared_and_replaced_in_one_step() {
    simulated(|runtime| async move {
        let engine = open(&runtime, "/a", false).await;
        let keys = engine.keyspace(0);
        let _ = keys.set(b"k", &[9; 10_000]).unwrap();
        let at_ms = unix_ms() + 50 * SECOND_MS;
        let later = |have: Option<u64>, wanted: Option<u64>| have.is_some_and(|have| wanted > Some(have));
        assert!(!keys.expire_if(b"k", Expiry::At(at_ms), later).unwrap().0);
        assert!(keys.expire_if(b"k", Expiry::At(at_ms), |have, _| have.is_none()).unwrap().0);
        assert!(!keys.expire_if(b"k", Expiry::At(at_ms), later).unwrap().0);
        assert!(!keys.expire_if(b"none", Expiry::At(at_ms), |_, _| true).unwrap().0);
        assert!(keys.expire_if(b"k", Expiry::After(60 * SECOND_MS), later).unwrap().0);
        let moved = keys.deadline(b"k").unwrap();
        assert_eq!(moved.at_ms, Some(moved.clock_ms + 60 * SECOND_MS));
        let before = engine.slot_status(Slot::of_key(b"k"));
        assert!(keys.get_and_expire(b"k", Expiry::Keep).unwrap().0.unwrap() == [9; 10_000]);
        assert_eq!(engine.slot_status(Slot::of_key(b"k")), before, "what changes nothing writes nothing");
        assert!(keys.get_and_expire(b"k", Expiry::Clear).unwrap().0.unwrap() == [9; 10_000]);
        assert_eq!(keys.deadline(b"k").unwrap().at_ms, None);
        assert!(keys.get_and_expire(b"k", Expiry::At(1)).unwrap().0.unwrap() == [9; 10_000]);
        assert!(!keys.exists(b"k").unwrap());
    });
}

#[test]
fn a_frozen_slot_keeps_its_keys_and_its_clock() {
    simulated(|runtime| async move {
        let engine = open(&runtime, "/a", true).await;
        let (keys, slot) = (engine.keyspace(0), slot_of("x"));
        own(&engine, slot, FIRST, 1);
        let _ = set_until(&keys, &key("x", 0), unix_ms() + SECOND_MS);
        let frozen = engine.freeze(slot, FIRST).unwrap();
        assert_eq!(frozen.clock_ms, unix_ms());
        let before = engine.slot_status(slot);
        sleep(Duration::from_millis(10 * SECOND_MS)).await;
        assert_eq!(engine.freeze(slot, FIRST).unwrap(), frozen);
        assert_eq!(keys.get(&key("x", 0)).unwrap().unwrap(), b"value");
        let seen = keys.deadline(&key("x", 0)).unwrap();
        assert_eq!((seen.at_ms, seen.clock_ms), (Some(frozen.clock_ms + SECOND_MS), frozen.clock_ms));
        assert_eq!(engine.slot_status(slot), before, "nothing is written while it is frozen");
        engine.thaw(slot, FIRST).unwrap();
        assert!(keys.get(&key("x", 0)).unwrap().is_none());
        assert_eq!(
            keys.deadline(&key("x", 0)).unwrap().clock_ms,
            unix_ms(),
            "the clock goes on with the wall's"
        );
    });
}

#[test]
fn what_is_due_when_a_slot_freezes_is_answered_by_nobody() {
    simulated(|runtime| async move {
        let engine = open(&runtime, "/a", true).await;
        let keys = engine.keyspace(0);
        let (slot, due_key) = due(&engine, "x");
        let _ = keys.set(&key("x", 1), b"stays").unwrap();
        let frozen = engine.freeze(slot, FIRST).unwrap();
        let before = engine.slot_status(slot);
        for round in 0..2 {
            let answers: [Result<(), OpError>; 8] = [
                keys.get(&due_key).map(drop),
                keys.get_with(&due_key, |_, _| ()),
                keys.exists(&due_key).map(drop),
                keys.read(&due_key).map(drop),
                keys.deadline(&due_key).map(drop),
                keys.get_many(&[&key("x", 1), &due_key]).map(drop),
                keys.set_with(&due_key, b"v", &SetOptions::default()).map(drop),
                keys.delete(&due_key).map(drop),
            ];
            for answer in answers {
                assert!(
                    matches!(&answer, Err(error @ OpError::Frozen { slot: of }) if *of == slot && error.is_retryable())
                );
            }
            assert_eq!(keys.get(&key("x", 1)).unwrap().unwrap(), b"stays");
            assert_eq!(engine.slot_status(slot), before, "nor is it deleted, in round {round}");
            sleep(SWEPT).await;
        }
        assert!(frozen.clock_ms > unix_ms(), "its clock is ahead, and stays so");
        engine.thaw(slot, FIRST).unwrap();
        assert_eq!(keys.deadline(&key("x", 1)).unwrap().clock_ms, frozen.clock_ms);
        sleep(SWEPT).await;
        assert_eq!(engine.slot_status(slot).keys, 1, "the sweeper goes on when the slot does");
        assert!(keys.get(&due_key).unwrap().is_none());
    });
}

#[test]
fn followers_keep_what_is_due_until_they_own_it() {
    simulated(|runtime| async move {
        let (source, target) = (open(&runtime, "/a", true).await, open(&runtime, "/b", true).await);
        for (tag, gate) in [("i", Gate::Importing), ("f", Gate::Follower)] {
            let slot = slot_of(tag);
            own(&source, slot, FIRST, 1);
            let deadline_ms = unix_ms() + SECOND_MS;
            for number in 0..50 {
                let _ = set_until(&source.keyspace(0), &key(tag, number), deadline_ms);
            }
            target.open_slot(slot, FIRST, gate).unwrap();
            copy_slot(&source, &target, slot, FIRST, FIRST);
            let before = target.slot_status(slot);
            sleep(Duration::from_millis(2 * SECOND_MS)).await;
            assert_eq!(source.slot_status(slot).keys, 0);
            assert_eq!(target.slot_status(slot), before, "{gate}: it has what it was sent");
            assert_eq!(target.keyspace(0).peek(&key(tag, 7)).unwrap().value.unwrap(), b"value");
            // It lacks the source's deletes. As an owner it makes its own.
            own(&target, slot, FIRST, 2);
            assert!(target.keyspace(0).get(&key(tag, 7)).unwrap().is_none());
            sleep(SWEPT).await;
            assert_eq!(
                (target.slot_status(slot).keys, target.slot_status(slot).version),
                (0, version(2, 100))
            );
        }
    });
}

#[test]
fn deletes_and_deadlines_go_through_streams() {
    simulated(|runtime| async move {
        let (source, target) = (open(&runtime, "/a", true).await, open(&runtime, "/b", true).await);
        let (slot, second) = (slot_of("x"), Generation::new(2));
        own(&source, slot, FIRST, 1);
        let start_ms = unix_ms();
        for number in 0..200 {
            let _ = set_until(
                &source.keyspace(0),
                &key("x", number),
                start_ms + (number as u64 % 4 + 1) * SECOND_MS,
            );
        }
        import(&target, slot, second);
        for _ in 0..3 {
            sleep(Duration::from_millis(SECOND_MS) + SWEPT / 4).await;
            copy_slot(&source, &target, slot, FIRST, second);
        }
        assert_eq!(target.slot_status(slot).keys, 50);
        let frozen = source.freeze(slot, FIRST).unwrap();
        copy_slot(&source, &target, slot, FIRST, second);
        source.hand_off(slot, FIRST).unwrap();
        target.own_from(slot, second, Term(2), frozen.clock_ms + 500).unwrap();
        let seen = target.keyspace(0).deadline(&key("x", 3)).unwrap();
        assert_eq!((seen.at_ms, seen.clock_ms), (Some(start_ms + 4 * SECOND_MS), frozen.clock_ms + 500));
        sleep(Duration::from_millis(SECOND_MS) + SWEPT).await;
        assert_eq!(target.slot_status(slot).keys, 0);
        assert_eq!(source.slot_status(slot).keys, 50, "a slot that was handed off ends nothing");
    });
}

#[test]
fn deadlines_and_ends_survive_restarts() {
    simulated(|runtime| async move {
        let engine = open(&runtime, "/a", false).await;
        let start_ms = unix_ms();
        for number in 0..30 {
            let _ = set_until(
                &engine.keyspace(0),
                &key("x", number),
                start_ms + (number as u64 % 3 + 1) * 10 * SECOND_MS,
            );
        }
        let _ = engine.keyspace(0).set(b"stays", b"v").unwrap();
        let before = engine.slot_status(slot_of("x"));
        engine.close().await.unwrap();
        drop(engine);
        let engine = open(&runtime, "/a", false).await;
        let after = engine.slot_status(slot_of("x"));
        assert_eq!((after.version, after.digest, after.keys), (before.version, before.digest, 30));
        assert_eq!(engine.keyspace(0).len_with_deadline(), 30);
        assert_eq!(engine.keyspace(0).deadline(&key("x", 1)).unwrap().at_ms, Some(start_ms + 20 * SECOND_MS));
        sleep(Duration::from_millis(11 * SECOND_MS)).await;
        assert_eq!(engine.keyspace(0).len(), 21, "the sweeper knows what was recovered");
        engine.close().await.unwrap();
        drop(engine);
        // What ended stays ended; what became due meanwhile ends now.
        sleep(Duration::from_millis(10 * SECOND_MS)).await;
        let engine = open(&runtime, "/a", false).await;
        assert!(engine.keyspace(0).len() >= 11);
        for number in 0..30 {
            let there = engine.keyspace(0).exists(&key("x", number)).unwrap();
            assert_eq!(there, number % 3 == 2, "{number}");
        }
        assert_eq!(engine.keyspace(0).len(), 11);
        engine.close().await.unwrap();
    });
}

#[test]
fn a_log_that_is_behind_or_closed_ends_nothing_and_says_so() {
    simulated(|runtime| async move {
        let builder = Engine::builder("/a").cores(1).log_file_bytes(1 << 20).log_unwritten_bytes_max(1 << 10);
        let engine = builder.open_on(&runtime).await.unwrap();
        let (keys, slot) = (engine.keyspace(0), slot_of("x"));
        let deadline_ms = unix_ms() + 60 * SECOND_MS;
        for number in 0..200 {
            while let Err(error) = keys.set_with(&key("x", number), b"value", &until(deadline_ms)) {
                assert!(matches!(error, OpError::LogBehind { .. }), "{error}");
                engine.wait_log_room(slot).await.unwrap();
            }
        }
        sleep(Duration::from_millis(60 * SECOND_MS)).await;
        // All at once would be too much: reads are refused and pass when the log has room.
        let mut refused = 0;
        for number in 0..200 {
            loop {
                match keys.get(&key("x", number)) {
                    Ok(value) => break assert!(value.is_none()),
                    Err(error) => {
                        assert!(
                            matches!(error, OpError::LogBehind { .. }) && error.is_retryable(),
                            "{error}"
                        );
                        refused += 1;
                        engine.wait_log_room(slot).await.unwrap();
                    }
                }
            }
        }
        assert!(refused > 0);
        for number in 0..50 {
            while keys.set_with(&key("x", number), b"value", &until(unix_ms() + SECOND_MS)).is_err() {
                engine.wait_log_room(slot).await.unwrap();
            }
        }
        sleep(Duration::from_millis(3 * SECOND_MS)).await;
        assert_eq!(keys.len(), 0, "the sweeper tries again, too");
        let _ = set_until(&keys, b"last", unix_ms() + SECOND_MS);
        engine.close().await.unwrap();
        assert_eq!(keys.get(b"last").unwrap().unwrap(), b"value");
        sleep(Duration::from_millis(SECOND_MS)).await;
        assert!(matches!(keys.get(b"last"), Err(OpError::LogFailed(_))), "its end cannot be logged any more");
    });
}

#[test]
fn keys_end_also_where_no_memory_is_left() {
    simulated(|runtime| async move {
        let builder = Engine::builder("/a").cores(1).clustered(true).log_file_bytes(1 << 20);
        let engine = builder.memory_bytes_max(4 << 10).open_on(&runtime).await.unwrap();
        let (keys, slot) = (engine.keyspace(0), slot_of("x"));
        own(&engine, slot, FIRST, 1);
        for number in 0..2 {
            let _ = set_until(&keys, &key("x", number), unix_ms() + SECOND_MS * (number as u64 + 1));
        }
        while keys.set(b"{x}", b"").is_ok() {}
        assert!(matches!(keys.set(b"{x}", b""), Err(OpError::OutOfMemory { .. })));
        let keys_before = engine.slot_status(slot).keys;
        sleep(Duration::from_millis(SECOND_MS * 3 / 2)).await;
        assert!(keys.get(&key("x", 0)).unwrap().is_none(), "ended by the sweeper");
        sleep(Duration::from_millis(SECOND_MS)).await;
        assert!(keys.get(&key("x", 1)).unwrap().is_none());
        assert_eq!(engine.slot_status(slot).keys, keys_before - 2);
        engine.close().await.unwrap();
    });
}

#[test]
fn a_sweeper_with_something_to_do_keeps_no_engine_alive() {
    simulated(|runtime| async move {
        for round in 0..5 {
            let engine = open(&runtime, "/a", false).await;
            assert_eq!(engine.boot().number, round + 1);
            for number in 0..300 {
                let _ = set_until(&engine.keyspace(0), &key("x", number), unix_ms() + number as u64);
            }
            sleep(Duration::from_millis(round * 40)).await;
            let second = Engine::builder("/a").cores(2).open_on(&runtime).await;
            assert!(second.is_err(), "as long as there is an engine, there is no other");
            engine.close().await.unwrap();
        }
    });
}

#[test]
fn the_same_seed_sweeps_the_same_way() {
    let run = |seed| {
        let sim = Sim::new(seed);
        let node = sim.node("a", 2);
        let runtime = node.clone();
        node.block_on(0, move || async move {
            let engine = open(&runtime, "/a", false).await;
            for number in 0..300 {
                let key = key(&format!("s{}", number % 40), number);
                let _ = set_until(&engine.keyspace(0), &key, unix_ms() + number as u64 % 9 * 100);
            }
            sleep(Duration::from_millis(SECOND_MS)).await;
            assert_eq!(engine.keyspace(0).len(), 0);
            engine.close().await.unwrap();
        });
        sim.trace_hash()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn an_engine_of_its_own_cores_sweeps_too() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = crate::common::standalone(folders.0.path(), 2);
    let keys = engine.keyspace(0);
    for number in 0..100 {
        let _ = set_until(&keys, &key(&format!("s{number}"), number), unix_ms() + 20);
    }
    // Nobody asks for the keys: only the sweeper can move the versions.
    let changed = |number: usize| engine.slot_status(slot_of(&format!("s{number}"))).version > version(1, 1);
    while !(0..100).all(changed) {
        std::thread::yield_now();
    }
    assert_eq!(keys.len(), 0);
    let other = crate::common::clustered(folders.1.path(), 1);
    import(&other, slot_of("s1"), FIRST);
    copy_slot(&engine, &other, slot_of("s1"), FIRST, FIRST);
    assert_same(&engine, &other, slot_of("s1"));
}
