//! The sweeper: one task per core that deletes keys in the background when they are due.
//!
//! Invariants:
//! - A slot has at most one entry in the schedule: the time at which its first key is due, or earlier. Only slots that are
//!   owned and have keys with deadlines are entered; nothing is ever scanned.
//! - No wake-up is lost: the sweeper makes its listener, then looks and says under the schedule's lock until when it sleeps;
//!   whoever then enters an earlier time is told to wake it, once.
//! - It deletes a bounded number of keys of one slot, then lets other tasks run. It sleeps while nothing is due.
//! - It keeps no engine alive: it has the slots and the log, never the engine, and ends with it.
//!
//! Lock order: slot, then schedule.

use std::collections::BTreeSet;
use std::time::Duration;

use lockgate_runtime::Event;
use lockgate_runtime::sync::{Arc, Mutex};

use crate::log::Log;
use crate::slots::SlotTable;
use crate::types::Slot;
use crate::wakes::Wakes;

/// Keys that are deleted before other tasks run.
const STEP_KEYS_MAX: usize = 32;
/// It looks at the wall clock at least so often while anything is entered, because somebody may set it.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// What the slots of one core tell their sweeper.
pub(crate) struct Sweeper {
    schedule: Mutex<Schedule>,
    changed: Event,
}

#[derive(Default)]
struct Schedule {
    /// When the slots' first keys are due, in milliseconds since 1970.
    entries: BTreeSet<(u64, Slot)>,
    /// Set while the sweeper sleeps, to the time at which it wakes by itself.
    asleep_until_ms: Option<u64>,
    has_ended: bool,
}

/// What the sweeper finds to do.
enum Next {
    /// Something of this slot is due, since then.
    Due(u64, Slot),
    /// Nothing for this time.
    Sleep(Duration),
    /// Nothing until something is entered.
    Wait,
    /// The engine is gone.
    End,
}

impl Sweeper {
    pub(crate) fn new() -> Sweeper {
        Sweeper { schedule: Mutex::new(Schedule::default()), changed: Event::new() }
    }

    /// Enters a slot anew, in the place of its entry of `before_ms`. True: the sweeper sleeps too long, and
    /// [`wake`](Sweeper::wake) must follow.
    pub(crate) fn enter(&self, slot: Slot, before_ms: Option<u64>, due_ms: u64) -> bool {
        let mut schedule = self.schedule.lock();
        if let Some(before_ms) = before_ms {
            schedule.entries.remove(&(before_ms, slot));
        }
        schedule.entries.insert((due_ms, slot));
        let oversleeps = schedule.asleep_until_ms.is_some_and(|until_ms| due_ms < until_ms);
        if oversleeps {
            schedule.asleep_until_ms = None;
        }
        oversleeps
    }

    /// Wakes the sweeper.
    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Ends the sweeper.
    pub(crate) fn end(&self) {
        self.schedule.lock().has_ended = true;
        self.wake();
    }

    fn next(&self, wall_ms: u64) -> Next {
        let mut schedule = self.schedule.lock();
        schedule.asleep_until_ms = None;
        if schedule.has_ended {
            return Next::End;
        }
        match schedule.entries.first().copied() {
            Some((due_ms, slot)) if due_ms <= wall_ms => {
                schedule.entries.pop_first();
                Next::Due(due_ms, slot)
            }
            Some((due_ms, _)) => {
                schedule.asleep_until_ms = Some(due_ms);
                Next::Sleep(Duration::from_millis(due_ms - wall_ms).min(SLEEP_MAX))
            }
            None => {
                schedule.asleep_until_ms = Some(u64::MAX);
                Next::Wait
            }
        }
    }

    /// Runs on the core whose slots these are, with that core's log, until the engine or the log ends.
    pub(crate) async fn run(self: Arc<Self>, slots: SlotTable, log: Log) {
        loop {
            let changed = self.changed.listen();
            let wall_ms = lockgate_runtime::unix_ms();
            match self.next(wall_ms) {
                Next::Due(due_ms, slot) => {
                    let mut wakes = Wakes::default();
                    let slot = slots.of(slot);
                    let swept = slot.lock().sweep(due_ms, wall_ms, STEP_KEYS_MAX, &log, &mut wakes);
                    wakes.wake();
                    if let Err(error) = swept {
                        tracing::debug!(%error, "keys that are due are not deleted any more");
                        return;
                    }
                    lockgate_runtime::yield_now().await;
                }
                Next::Sleep(time) => {
                    // Either way it looks again at what is due.
                    let _ = lockgate_runtime::timeout(time, changed).await;
                }
                Next::Wait => changed.await,
                Next::End => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u16) -> Slot {
        Slot::new(number).unwrap()
    }

    #[test]
    fn entries_are_taken_when_they_are_due_and_an_early_one_wakes() {
        let sweeper = Sweeper::new();
        assert!(matches!(sweeper.next(5), Next::Wait));
        assert!(sweeper.enter(slot(1), None, 100), "it sleeps for ever");
        assert!(!sweeper.enter(slot(2), None, 50), "it was told to wake already");
        assert!(matches!(sweeper.next(10), Next::Sleep(time) if time == Duration::from_millis(40)));
        assert!(!sweeper.enter(slot(3), None, 50), "it wakes early enough by itself");
        assert!(!sweeper.enter(slot(2), Some(50), 70));
        assert!(matches!(sweeper.next(60), Next::Due(50, found) if found == slot(3)));
        assert!(matches!(sweeper.next(70), Next::Due(70, found) if found == slot(2)));
        assert!(matches!(sweeper.next(70), Next::Sleep(time) if time == Duration::from_millis(30)));
        assert!(sweeper.enter(slot(1), Some(100), 0), "earlier than it wakes by itself");
        assert!(matches!(sweeper.next(70), Next::Due(0, found) if found == slot(1)));
        assert!(matches!(sweeper.next(70), Next::Wait), "the entry of 100 was replaced");
        sweeper.enter(slot(1), None, u64::MAX - 1);
        assert!(matches!(sweeper.next(70), Next::Sleep(time) if time == SLEEP_MAX));
        sweeper.end();
        assert!(matches!(sweeper.next(70), Next::End));
    }
}
