//! Whom a change of a slot concerns, until its lock is released: nobody is woken, and nothing large is freed, under it.

use lockgate_runtime::Event;
use lockgate_runtime::sync::Arc;

use crate::compactor::Compactor;
use crate::dirty::DirtySlots;
use crate::store::Cleared;
use crate::sweeper::Sweeper;

/// Who is to be told once the slot's lock is released.
#[must_use = "waiters are woken by `wake`, after the lock is released"]
#[derive(Default)]
pub(crate) struct Wakes {
    pub(crate) streams: Vec<Arc<DirtySlots>>,
    pub(crate) gate_event: Option<Arc<Event>>,
    pub(crate) sweeper: Option<Arc<Sweeper>>,
    pub(crate) compactor: Option<Arc<Compactor>>,
    /// Dropped without the lock, too.
    pub(crate) cleared: Vec<Cleared>,
}

impl Wakes {
    /// Those of `other` too.
    pub(crate) fn add(&mut self, other: Wakes) {
        self.cleared.extend(other.cleared);
        self.streams.extend(other.streams);
        self.gate_event = self.gate_event.take().or(other.gate_event);
        self.sweeper = self.sweeper.take().or(other.sweeper);
        self.compactor = self.compactor.take().or(other.compactor);
    }

    /// Wakes them. Call it without any lock.
    pub(crate) fn wake(self) {
        for stream in self.streams {
            stream.wake();
        }
        if let Some(event) = self.gate_event {
            event.notify_all();
        }
        if let Some(sweeper) = self.sweeper {
            sweeper.wake();
        }
        if let Some(compactor) = self.compactor {
            compactor.wake();
        }
    }
}
