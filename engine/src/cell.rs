//! A slot in the table of all slots: its lock and its state, laid out so that a lookup touches one cache line of it.
//!
//! The lock comes first, then the gate, the index, and what leads from an entry to a record and to its version. Whatever
//! else a slot has lies behind, in lines that only writes and slower calls touch.

use std::ops::Deref;

use lockgate_runtime::sync::Mutex;

use crate::arena::{LINE_BYTES, prefetch_address};
use crate::slot::SlotState;

/// The lock's own bytes, with the padding behind them.
const LOCK_BYTES: usize = 8;

// Loom's atomics are larger.
#[cfg(not(loom))]
const _: () = assert!(
    LOCK_BYTES + SlotState::LOOKUP_BYTES <= LINE_BYTES && align_of::<SlotState>() <= LOCK_BYTES,
    "a lookup touches one line of its slot"
);

/// One slot's lock and state.
#[repr(align(64))]
pub(crate) struct SlotCell(Mutex<SlotState>);

impl SlotCell {
    pub(crate) fn new(state: SlotState) -> SlotCell {
        SlotCell(Mutex::new(state))
    }

    /// Has the processor fetch all lines, as a write touches most of them.
    pub(crate) fn prefetch_all(&self) {
        let first = std::ptr::from_ref(self).cast::<u8>();
        for at in (0..size_of::<SlotCell>()).step_by(LINE_BYTES) {
            prefetch_address(first.wrapping_add(at));
        }
    }
}

impl Deref for SlotCell {
    type Target = Mutex<SlotState>;

    #[inline]
    fn deref(&self) -> &Mutex<SlotState> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use lockgate_runtime::sync::Arc;

    use super::*;
    use crate::arena::{Arena, MemoryBudget};
    use crate::index::KeyHasher;
    use crate::store::Store;
    use crate::types::Slot;
    use crate::watchers::{Gates, Watchers};

    #[test]
    fn the_state_lies_right_behind_its_lock() {
        let arena = Arc::new(Arena::reserve(Arc::new(MemoryBudget::new(0))).unwrap());
        let store = Store::new(arena, KeyHasher::new(0));
        let slot = Slot::new(0).unwrap();
        let cell = SlotCell::new(SlotState::new(slot, store, Watchers::new(&Arc::new(Gates::new()), 0)));
        let state = std::ptr::from_ref::<SlotState>(&cell.lock()).addr();
        let start = std::ptr::from_ref(&cell).addr();
        assert_eq!((start % LINE_BYTES, state - start), (0, LOCK_BYTES));
    }
}
