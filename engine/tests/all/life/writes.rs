//! The steps that write one key.

use lockgate_engine::{Condition, OpError, Receipt, SetOptions, SetOutcome, Update, Value, Version};
use lockgate_runtime::unix_ms;

use super::model::Entry;
use super::steps::{Change, Content, Ends, Place, Step, When};
use super::world::World;

/// So long values are not appended to.
const APPENDED_BYTES_MAX: usize = 150_000;

fn bytes(value: Option<Value>) -> Option<Vec<u8>> {
    value.map(|value| value.as_bytes().to_vec())
}

impl World {
    /// Takes a step that writes one key, at one instant.
    pub fn write(&mut self, step: &Step) {
        let now_ms = unix_ms();
        match *step {
            Step::Set(place, content) => {
                let value = self.value_of(content);
                let receipt = self.engine().keyspace(place.keyspace).set(&place.name(), &value).unwrap();
                self.wrote(place, value, None, &receipt, now_ms);
            }
            Step::SetWith(place, content, when, ends, return_previous) => {
                self.set_with(place, content, when, ends, return_previous, now_ms);
            }
            Step::CompareAndSet(place, is_right, content) => {
                self.compare_and_set(place, is_right, content, now_ms);
            }
            Step::Update(place, change) => self.update(place, change, now_ms),
            Step::Increment(place, by) => self.increment(place, by, now_ms),
            Step::Append(place, content) => self.append(place, content, now_ms),
            Step::Delete(place) => {
                let expected = self.model.live(place, now_ms).is_some();
                let (was_there, receipt) =
                    self.engine().keyspace(place.keyspace).delete(&place.name()).unwrap();
                assert_eq!(was_there, expected);
                self.removed(place, &receipt);
            }
            Step::Take(place) => {
                let expected = self.model.live(place, now_ms).map(|old| old.value);
                let (taken, receipt) = self.engine().keyspace(place.keyspace).take(&place.name()).unwrap();
                assert_eq!(bytes(taken), expected);
                self.removed(place, &receipt);
            }
            ref step => self.date(step, now_ms),
        }
    }

    /// A key has this value now.
    fn wrote(
        &mut self,
        place: Place,
        value: Vec<u8>,
        deadline_ms: Option<u64>,
        receipt: &Receipt,
        now_ms: u64,
    ) {
        self.check_receipt(place.tag, receipt);
        self.model.put(place, Entry { value, deadline_ms, version: receipt.version }, now_ms);
    }

    fn removed(&mut self, place: Place, receipt: &Receipt) {
        self.check_receipt(place.tag, receipt);
        self.model.remove(place);
    }

    fn set_with(
        &mut self,
        place: Place,
        content: Content,
        when: When,
        ends: Ends,
        return_previous: bool,
        now_ms: u64,
    ) {
        let (value, old) = (self.value_of(content), self.model.live(place, now_ms));
        let (expiry, deadline_ms) = ends.resolve(old.as_ref(), now_ms);
        let there = old.as_ref().map_or(&b"absent"[..], |old| &old.value);
        let version = old.as_ref().map_or(Version::ZERO, |old| old.version);
        let earlier = Version::new(version.term, version.counter.saturating_sub(1));
        let (condition, holds) = match when {
            When::Always => (Condition::Always, true),
            When::IfAbsent => (Condition::IfAbsent, old.is_none()),
            When::IfPresent => (Condition::IfPresent, old.is_some()),
            When::IfEqual(true) => (Condition::IfEqual(there), old.is_some()),
            When::IfEqual(false) => (Condition::IfEqual(b"what no step writes"), false),
            When::IfVersion(true) => (Condition::IfVersion(version), old.is_some()),
            When::IfVersion(false) => (Condition::IfVersion(earlier), false),
        };
        let options = SetOptions { condition, expiry, return_previous };
        let outcome =
            self.engine().keyspace(place.keyspace).set_with(&place.name(), &value, &options).unwrap();
        let expected = old.as_ref().filter(|_| return_previous).map(|old| old.value.clone());
        self.check_outcome(place, &outcome, holds, expected);
        if holds {
            self.wrote(place, value, deadline_ms, &outcome.receipt, now_ms);
        }
    }

    fn check_outcome(&self, place: Place, outcome: &SetOutcome, applied: bool, previous: Option<Vec<u8>>) {
        assert_eq!((outcome.applied, bytes(outcome.previous.clone())), (applied, previous));
        self.check_receipt(place.tag, &outcome.receipt);
    }

    fn compare_and_set(&mut self, place: Place, is_right: bool, content: Content, now_ms: u64) {
        let (value, old) = (self.value_of(content), self.model.live(place, now_ms));
        let there = old.as_ref().map(|old| old.value.clone());
        let expected = if is_right { there.as_deref() } else { Some(&b"what no step writes"[..]) };
        let keys = self.engine().keyspace(place.keyspace);
        let outcome = keys.compare_and_set(&place.name(), expected, &value).unwrap();
        self.check_outcome(place, &outcome, is_right, there.clone());
        if is_right {
            self.wrote(place, value, None, &outcome.receipt, now_ms);
        }
    }

    fn update(&mut self, place: Place, change: Change, now_ms: u64) {
        let old = self.model.live(place, now_ms);
        let update = match change {
            Change::Keep => Update::Keep,
            Change::Delete => Update::Delete,
            Change::Put(content) => Update::Put(self.value_of(content)),
        };
        let decide = |seen: Option<&[u8]>| {
            assert_eq!(seen, old.as_ref().map(|old| &old.value[..]));
            update.clone()
        };
        let receipt = self.engine().keyspace(place.keyspace).update(&place.name(), decide).unwrap();
        match update {
            Update::Keep => self.check_receipt(place.tag, &receipt),
            Update::Delete => self.removed(place, &receipt),
            Update::Put(value) => {
                self.wrote(place, value, old.and_then(|old| old.deadline_ms), &receipt, now_ms);
            }
        }
    }

    fn increment(&mut self, place: Place, by: i64, now_ms: u64) {
        let old = self.model.live(place, now_ms);
        // Every integer here was written by Rust, and Rust reads a few more texts than the engine.
        let number = old.as_ref().map_or(Some(0), |old| {
            let number: i64 = std::str::from_utf8(&old.value).ok()?.parse().ok()?;
            (number.to_string().as_bytes() == old.value).then_some(number)
        });
        let result = self.engine().keyspace(place.keyspace).increment(&place.name(), by);
        match (number, number.and_then(|number| number.checked_add(by))) {
            (_, Some(sum)) => {
                let (found, receipt) = result.unwrap();
                assert_eq!(found, sum);
                let deadline_ms = old.and_then(|old| old.deadline_ms);
                self.will_write(20);
                self.wrote(place, sum.to_string().into_bytes(), deadline_ms, &receipt, now_ms);
            }
            (None, _) => assert!(matches!(result, Err(OpError::NotAnInteger))),
            (Some(number), None) => assert!(
                matches!(result, Err(OpError::Overflow { value, by: added }) if (value, added) == (number, by))
            ),
        }
    }

    fn append(&mut self, place: Place, content: Content, now_ms: u64) {
        let (suffix, old) = (self.value_of(content), self.model.live(place, now_ms));
        let before = old.as_ref().map_or(0, |old| old.value.len());
        if before > APPENDED_BYTES_MAX {
            return;
        }
        let (length, receipt) =
            self.engine().keyspace(place.keyspace).append(&place.name(), &suffix).unwrap();
        assert_eq!(length, before + suffix.len());
        self.will_write(length);
        let (value, deadline_ms) = match old {
            Some(_) if suffix.is_empty() => return self.check_receipt(place.tag, &receipt),
            Some(old) => ([old.value, suffix].concat(), old.deadline_ms),
            None => (suffix, None),
        };
        self.wrote(place, value, deadline_ms, &receipt, now_ms);
    }

    /// The steps that change when a key ends.
    fn date(&mut self, step: &Step, now_ms: u64) {
        let (place, old, deadline_ms, done, receipt) = match *step {
            Step::Expire(place, in_ms) => {
                let old = self.model.live(place, now_ms);
                let at_ms = in_ms.map(|in_ms| now_ms.saturating_add_signed(in_ms));
                let keys = self.engine().keyspace(place.keyspace);
                let (done, receipt) = keys.expire(&place.name(), at_ms).unwrap();
                let expected = old.as_ref().is_some_and(|old| at_ms.is_some() || old.deadline_ms.is_some());
                assert_eq!(done, expected);
                (place, old, at_ms, done, receipt)
            }
            Step::ExpireIfLater(place, ends) => {
                let old = self.model.live(place, now_ms);
                let (expiry, at_ms) = ends.resolve(old.as_ref(), now_ms);
                let keys = self.engine().keyspace(place.keyspace);
                let (done, receipt) =
                    keys.expire_if(&place.name(), expiry, |have, wanted| wanted > have).unwrap();
                assert_eq!(done, old.as_ref().is_some_and(|old| at_ms > old.deadline_ms));
                (place, old, at_ms, done, receipt)
            }
            Step::GetAndExpire(place, ends) => {
                let old = self.model.live(place, now_ms);
                let (expiry, at_ms) = ends.resolve(old.as_ref(), now_ms);
                let keys = self.engine().keyspace(place.keyspace);
                let (value, receipt) = keys.get_and_expire(&place.name(), expiry).unwrap();
                assert_eq!(bytes(value), old.as_ref().map(|old| old.value.clone()));
                let done = old.as_ref().is_some_and(|old| at_ms != old.deadline_ms);
                (place, old, at_ms, done, receipt)
            }
            ref step => unreachable!("{step:?} is done elsewhere"),
        };
        match old {
            Some(old) if done => {
                self.will_write(old.value.len());
                self.wrote(place, old.value, deadline_ms, &receipt, now_ms);
            }
            _ => self.check_receipt(place.tag, &receipt),
        }
    }
}
