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
    /// Wakes them. Call it without any lock.
    #[inline]
    pub(crate) fn wake(self) {
        // Most operations concern nobody.
        if !self.is_empty() {
            self.wake_each();
        }
    }

    fn is_empty(&self) -> bool {
        let Wakes { streams, gate_event, sweeper, compactor, cleared } = self;
        streams.is_empty()
            && gate_event.is_none()
            && sweeper.is_none()
            && compactor.is_none()
            && cleared.is_empty()
    }

    #[inline(never)]
    fn wake_each(self) {
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
