//! Operations that read a key and write it in one step: conditions, integers, suffixes.

use crate::common::{key, slot_of, standalone, version};
use lockgate_engine::{Condition, Expiry, OpError, SetOptions, VALUE_BYTES_MAX, Version};

/// Far enough away that it does not come.
const FAR_MS: u64 = 1 << 50;

fn until_far() -> SetOptions<'static> {
    SetOptions { expiry: Expiry::At(FAR_MS), ..SetOptions::default() }
}

fn if_version(version: Version) -> SetOptions<'static> {
    SetOptions { condition: Condition::IfVersion(version), return_previous: true, ..SetOptions::default() }
}

#[test]
fn a_set_that_depends_on_a_version_sees_every_write_between() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    let keys = engine.keyspace(0);
    let none = keys.set_with(b"k", b"v", &if_version(Version::ZERO)).unwrap();
    assert!(!none.applied && none.previous.is_none(), "an absent key has no version");
    let first = keys.set(b"k", b"v").unwrap();
    let _ = keys.set(b"{k}other", b"v").unwrap();
    let second = keys.set_with(b"k", b"w", &if_version(first.version)).unwrap();
    assert!(second.applied && second.previous.as_ref().unwrap().version() == first.version);
    let same_value = keys.set(b"k", b"w").unwrap();
    let late = keys.set_with(b"k", b"x", &if_version(second.receipt.version)).unwrap();
    assert!(!late.applied, "the same value is another write");
    let read = keys.get(b"k").unwrap().unwrap();
    assert_eq!((read.as_bytes(), read.version()), (&b"w"[..], version(1, 4)));
    assert!(keys.set_with(b"k", b"x", &if_version(read.version())).unwrap().applied);
    drop((engine, keys, none, first, second, late, same_value));
    let engine = standalone(folder.path(), 2);
    let keys = engine.keyspace(0);
    assert!(keys.set_with(b"k", b"y", &if_version(version(1, 5))).unwrap().applied, "versions are kept");
    assert!(keys.delete(b"k").unwrap().0);
    assert!(!keys.set_with(b"k", b"y", &if_version(version(1, 6))).unwrap().applied);
}

#[test]
fn compare_and_set_sets_what_was_expected_and_tells_what_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    let keys = engine.keyspace(0);
    assert!(!keys.compare_and_set(b"k", Some(b""), b"v").unwrap().applied, "absent is not empty");
    assert!(keys.compare_and_set(b"k", None, b"v").unwrap().applied);
    let refused = keys.compare_and_set(b"k", None, b"w").unwrap();
    assert!(!refused.applied && refused.previous.unwrap() == b"v");
    assert_eq!(refused.receipt.version, version(1, 1), "what was seen rests on the slot's last write");
    assert!(keys.set_with(b"k", b"v", &until_far()).unwrap().applied);
    let set = keys.compare_and_set(b"k", Some(b"v"), b"w").unwrap();
    assert!(set.applied && set.previous.unwrap() == b"v");
    assert_eq!(keys.deadline(b"k").unwrap().at_ms, None, "a set leaves no deadline");
    assert_eq!(keys.get(b"k").unwrap().unwrap(), b"w");
}

#[test]
fn integers_are_incremented_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    let keys = engine.keyspace(3);
    for (by, sum) in [(1, 1), (0, 1), (41, 42), (-50, -8), (8, 0), (i64::MIN, i64::MIN)] {
        let (found, receipt) = keys.increment(b"n", by).unwrap();
        let value = keys.get(b"n").unwrap().unwrap();
        assert_eq!((found, value.version()), (sum, receipt.version));
        assert_eq!(value, sum.to_string().as_bytes());
    }
    let before = engine.slot_status(lockgate_engine::Slot::of_key(b"n"));
    let error = keys.increment(b"n", -1).unwrap_err();
    assert!(matches!(error, OpError::Overflow { value: i64::MIN, by: -1 }) && !error.is_retryable());
    assert_eq!(engine.slot_status(lockgate_engine::Slot::of_key(b"n")), before, "nothing is written");
    assert!(keys.set_with(b"n", b"9223372036854775807", &until_far()).unwrap().applied);
    assert!(matches!(keys.increment(b"n", 1), Err(OpError::Overflow { value: i64::MAX, by: 1 })));
    assert_eq!(keys.increment(b"n", -7).unwrap().0, i64::MAX - 7);
    assert_eq!(keys.deadline(b"n").unwrap().at_ms, Some(FAR_MS), "a deadline stays");
    for text in [&b""[..], b"1.5", b"01", b" 1", b"99999999999999999999", &[b'1'; 9000]] {
        let _ = keys.set(b"t", text).unwrap();
        assert!(matches!(keys.increment(b"t", 1), Err(OpError::NotAnInteger)));
        assert_eq!(keys.get(b"t").unwrap().unwrap(), text);
    }
}

#[test]
fn suffixes_are_appended_up_to_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    let keys = engine.keyspace(0);
    let (length, first) = keys.append(b"k", b"").unwrap();
    assert_eq!((length, first.version), (0, version(1, 1)), "an empty value is one");
    assert!(keys.exists(b"k").unwrap());
    assert!(keys.expire(b"k", Some(FAR_MS)).unwrap().0);
    let mut expected = Vec::new();
    for round in 0..60 {
        let suffix = vec![round as u8; round * 5];
        expected.extend_from_slice(&suffix);
        assert_eq!(keys.append(b"k", &suffix).unwrap().0, expected.len());
        assert_eq!(keys.get(b"k").unwrap().unwrap(), expected);
    }
    assert_eq!(keys.deadline(b"k").unwrap().at_ms, Some(FAR_MS), "a deadline stays");
    let before = engine.slot_status(lockgate_engine::Slot::of_key(b"k"));
    assert_eq!(keys.append(b"k", b"").unwrap().0, expected.len());
    let longest = vec![0; VALUE_BYTES_MAX];
    let too_long = VALUE_BYTES_MAX + expected.len();
    assert!(matches!(keys.append(b"k", &longest), Err(OpError::ValueTooLong { bytes }) if bytes == too_long));
    drop(longest);
    assert!(matches!(keys.append(b"n", &vec![0; VALUE_BYTES_MAX + 1]), Err(OpError::ValueTooLong { .. })));
    assert_eq!(engine.slot_status(lockgate_engine::Slot::of_key(b"k")), before, "nothing is written");
}

#[test]
fn threads_lose_no_step() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 1_500;
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 2);
    let _ = engine.keyspace(0).set(&key("m", 1), b"0").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let keys = engine.keyspace(0);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let _ = keys.increment(&key("m", 0), 3).unwrap();
                    let _ = keys.append(&key("m", 2), b"x").unwrap();
                    let mut seen = b"0".to_vec();
                    loop {
                        let next =
                            (std::str::from_utf8(&seen).unwrap().parse::<u64>().unwrap() + 1).to_string();
                        let set = keys.compare_and_set(&key("m", 1), Some(&seen), next.as_bytes()).unwrap();
                        match set.applied {
                            true => break,
                            false => seen = set.previous.unwrap().as_bytes().to_vec(),
                        }
                    }
                }
            });
        }
    });
    let keys = engine.keyspace(0);
    let count = THREADS * ROUNDS;
    assert_eq!(keys.increment(&key("m", 0), 0).unwrap().0, 3 * count as i64);
    assert_eq!(keys.get(&key("m", 1)).unwrap().unwrap(), count.to_string().as_bytes());
    assert_eq!(keys.get(&key("m", 2)).unwrap().unwrap().len(), count);
    assert_eq!(engine.slot_status(slot_of("m")).version, version(1, 3 * count as u64 + 2));
}

#[test]
fn long_values_are_set_conditionally_with_and_without_a_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    let keys = engine.keyspace(0);
    let long = |byte| vec![byte; 300_000];
    let set = |key: &[u8], byte, expiry| {
        let options = SetOptions { expiry, return_previous: true, ..SetOptions::default() };
        let outcome = keys.set_with(key, &long(byte), &options).unwrap();
        assert!(outcome.applied);
        outcome.previous
    };
    let at_ms = |key| keys.deadline(key).unwrap().at_ms;
    assert!(set(b"never", 1, Expiry::Clear).is_none() && at_ms(b"never").is_none());
    assert!(set(b"at", 2, Expiry::At(FAR_MS)).is_none() && at_ms(b"at") == Some(FAR_MS));
    assert!(set(b"after", 3, Expiry::After(1 << 40)).is_none());
    assert!(at_ms(b"after").is_some_and(|at_ms| at_ms > 1 << 40));
    assert!(set(b"kept none", 4, Expiry::Keep).is_none() && at_ms(b"kept none").is_none());
    let kept = set(b"at", 5, Expiry::Keep);
    assert!(kept.unwrap() == long(2) && at_ms(b"at") == Some(FAR_MS));
    let gone = set(b"never", 6, Expiry::After(0));
    assert!(gone.unwrap() == long(1), "a time that has come already ends it at once");
    let if_absent = SetOptions { condition: Condition::IfAbsent, ..until_far() };
    assert!(!keys.set_with(b"at", &long(7), &if_absent).unwrap().applied);
    assert!(keys.set_with(b"never", &long(8), &if_absent).unwrap().applied);
    let digests = |engine: &lockgate_engine::Engine| -> Vec<u64> {
        lockgate_engine::Slot::all().map(|slot| engine.slot_status(slot).digest).collect()
    };
    let before = digests(&engine);
    drop((engine, keys));
    let engine = standalone(folder.path(), 1);
    assert_eq!(digests(&engine), before);
    for (key, byte) in [(&b"at"[..], 5), (b"after", 3), (b"kept none", 4), (b"never", 8)] {
        assert!(engine.keyspace(0).get(key).unwrap().unwrap() == long(byte));
    }
}
