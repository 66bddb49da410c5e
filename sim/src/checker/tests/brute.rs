//! A checker by brute force: walks through time in half nanoseconds and tries everything that may happen at each moment. It
//! shares no code with the checker that it judges, and is of use for histories of a few operations only.

use std::collections::BTreeSet;

use super::super::{Call, Condition, Expiry, Operation, Outcome, Reply};

type Value = Option<(u64, Option<Expiry>)>;

/// A moment in half nanoseconds, the operations that happened before, and what the key holds.
type State = (u64, Vec<bool>, Option<(u64, Option<(u64, u64)>)>);

struct Walk<'a> {
    history: &'a [Operation],
    must: &'a dyn Fn(usize) -> bool,
    end: u64,
    seen: BTreeSet<State>,
}

pub(super) fn is_linearizable(history: &[Operation]) -> bool {
    is_linearizable_if(history, &|_| true)
}

/// Whether it is if, of the operations that returned, only those that `must` have happened; the others may have, as told.
pub(super) fn is_linearizable_if(history: &[Operation], must: &dyn Fn(usize) -> bool) -> bool {
    let ended_ns = history.iter().filter_map(Operation::ended_ns).max().unwrap_or(0);
    let mut walk = Walk { history, must, end: ended_ns * 2 + 1, seen: BTreeSet::new() };
    walk.from(0, &vec![false; history.len()], None)
}

impl Walk<'_> {
    fn from(&mut self, now: u64, happened: &[bool], value: Value) -> bool {
        // At a moment past its window, a value is gone.
        let value =
            value.filter(|(_, expiry)| expiry.is_none_or(|expiry| !is_past(expiry.not_after_ns, now)));
        if now == self.end {
            return true;
        }
        let deadline = |expiry: Expiry| (expiry.not_before_ns, expiry.not_after_ns);
        let state = (now, happened.to_vec(), value.map(|(value, expiry)| (value, expiry.map(deadline))));
        if !self.seen.insert(state) {
            return false;
        }
        let lapses = value
            .is_some_and(|(_, expiry)| expiry.is_some_and(|expiry| !is_future(expiry.not_before_ns, now)));
        if lapses && self.from(now, happened, None) {
            return true;
        }
        for index in 0..happened.len() {
            if let Some(next) = self.happens(index, now, happened, value) {
                let mut with = happened.to_vec();
                with[index] = true;
                if self.from(now, &with, next) {
                    return true;
                }
            }
        }
        self.may_wait(now, happened) && self.from(now + 1, happened, value)
    }

    /// What the key holds if the operation happens now; `None` if it cannot.
    fn happens(&self, index: usize, now: u64, happened: &[bool], value: Value) -> Option<Value> {
        let operation = &self.history[index];
        let (ended_ns, wanted) = match operation.outcome {
            Outcome::Refused { .. } => return None,
            Outcome::Unknown => (None, None),
            Outcome::Returned { at_ns, reply } => (Some(at_ns), Some(reply)),
        };
        let too_late = ended_ns.is_some_and(|ended_ns| is_past(ended_ns, now));
        if happened[index] || is_future(operation.invoked_ns, now) || too_late {
            return None;
        }
        // Its client's operation before it goes first, also if all it did was to end in the same nanosecond.
        let before = (0..index).rev().find(|&other| self.history[other].client == operation.client);
        let waits = before.is_some_and(|before| {
            let returned = matches!(self.history[before].outcome, Outcome::Returned { .. });
            returned
                && (self.must)(before)
                && wanted.is_some()
                && self.history[before].ended_ns() == Some(operation.invoked_ns)
                && !happened[before]
        });
        if waits {
            return None;
        }
        let (reply, next) = perform(operation.call, value);
        wanted.is_none_or(|wanted| wanted == reply).then_some(next)
    }

    /// Whether everything that must have happened by now has.
    fn may_wait(&self, now: u64, happened: &[bool]) -> bool {
        self.history.iter().enumerate().all(|(index, operation)| match operation.outcome {
            Outcome::Returned { at_ns, .. } => {
                happened[index] || !is_past(at_ns, now + 1) || !(self.must)(index)
            }
            _ => true,
        })
    }
}

fn is_past(ns: u64, now: u64) -> bool {
    u128::from(ns) * 2 < u128::from(now)
}

fn is_future(ns: u64, now: u64) -> bool {
    u128::from(ns) * 2 > u128::from(now)
}

/// What a key does when asked.
pub(super) fn perform(call: Call, value: Value) -> (Reply, Value) {
    match call {
        Call::Get => (Reply::Value(value.map(|(value, _)| value)), value),
        Call::Delete => (Reply::Deleted(value.is_some()), None),
        Call::Expire { expiry } => {
            (Reply::Expiring(value.is_some()), value.map(|(value, _)| (value, Some(expiry))))
        }
        Call::Set { value: new, expiry, condition } => {
            let writes = match condition {
                Condition::Always => true,
                Condition::IfAbsent => value.is_none(),
                Condition::IfPresent => value.is_some(),
                Condition::IfEqual(expected) => value.is_some_and(|(value, _)| value == expected),
            };
            (Reply::Set(writes), if writes { Some((new, expiry)) } else { value })
        }
    }
}
