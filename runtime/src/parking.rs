//! The dirty flag of a core, and how the core parks without losing a wake-up.
//!
//! A notifier first publishes its work (pushes to the core's inject queue), then calls [`ParkFlag::notify`], and rings
//! the core's bell (an eventfd in the ring) only if that returns true. The core, in its loop:
//!
//! 1. [`ParkFlag::begin`], which starts a clean period, then drains its queue;
//! 2. when there is nothing to do, [`ParkFlag::try_park`]; if that returns true it sleeps until the bell rings.
//!
//! Invariants:
//! - Work published before a `notify` is seen by the drain after some later `begin`, and the core does not sleep
//!   through it: either `try_park` fails because the flag is dirty, or the notifier sees PARKED and rings.
//! - The bell is rung at most once from one `try_park` to the next: only the notifier that changes PARKED to
//!   DIRTY rings. Later ones find DIRTY.
//!
//! Why the fences: `notify` skips its write when the flag is dirty already. Then its load must not be older than the
//! core's next `begin`, or the core could drain before the work is visible and clean the flag after it was read. The
//! pair of SeqCst fences orders (publish, load flag) against (clean flag, drain): one of both sees the other.

use crate::sync::atomic::{AtomicU32, Ordering, fence};

/// The core runs, and nothing was published since its last `begin`.
const CLEAN: u32 = 0;
/// The core sleeps or is about to: who publishes must ring.
const PARKED: u32 = 1;
/// Something was published since the core's last `begin`.
const DIRTY: u32 = 2;

/// The state of one core's dirty period.
#[derive(Debug)]
pub(crate) struct ParkFlag(AtomicU32);

impl ParkFlag {
    /// A core that runs, with nothing published.
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(CLEAN))
    }

    /// Says that work was published. True when the caller must ring the bell.
    #[must_use]
    pub(crate) fn notify(&self) -> bool {
        fence(Ordering::SeqCst);
        if self.0.load(Ordering::Relaxed) == DIRTY {
            return false;
        }
        self.0.swap(DIRTY, Ordering::AcqRel) == PARKED
    }

    /// Starts a clean period. The core calls this before it drains its queue.
    pub(crate) fn begin(&self) {
        self.0.swap(CLEAN, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// Whether something was published since `begin` (for the core while it spins).
    #[must_use]
    pub(crate) fn is_dirty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == DIRTY
    }

    /// Announces that the core will sleep. False when something was published since `begin`: do not sleep.
    #[must_use]
    pub(crate) fn try_park(&self) -> bool {
        self.0.compare_exchange(CLEAN, PARKED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
