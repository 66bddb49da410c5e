//! The timers of one core: wakers in the order of their deadlines, and of registration within one deadline.

use std::collections::BTreeMap;
use std::task::Waker;

/// Names one registered timer: its deadline and a number that makes it unique.
pub(crate) type TimerKey = (u64, u64);

/// The timers of one core.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    next_sequence: u64,
    wakers: BTreeMap<TimerKey, Waker>,
}

impl Timers {
    /// Registers `waker` for `deadline_ns`, or renews the waker of `key` if that is still registered.
    pub(crate) fn register(&mut self, deadline_ns: u64, key: Option<TimerKey>, waker: &Waker) -> TimerKey {
        if let Some(key) = key
            && let Some(registered) = self.wakers.get_mut(&key)
        {
            registered.clone_from(waker);
            return key;
        }
        self.next_sequence += 1;
        let key = (deadline_ns, self.next_sequence);
        self.wakers.insert(key, waker.clone());
        key
    }

    /// Forgets a timer. The waker is returned so that it is dropped outside of any borrow.
    pub(crate) fn remove(&mut self, key: TimerKey) -> Option<Waker> {
        self.wakers.remove(&key)
    }

    /// The earliest deadline.
    pub(crate) fn next_deadline_ns(&self) -> Option<u64> {
        self.wakers.first_key_value().map(|((deadline_ns, _), _)| *deadline_ns)
    }

    /// Takes the next waker whose deadline is not after `now_ns`.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<Waker> {
        if self.next_deadline_ns()? > now_ns {
            return None;
        }
        self.wakers.pop_first().map(|(_, waker)| waker)
    }
}
