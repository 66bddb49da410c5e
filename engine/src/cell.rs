//! A slot in the table of all slots: its lock and its state, laid out so that a lookup touches one cache line of it.
//!
//! The lock comes first, then the gate, the index, and what leads from an entry to a record and to its version. Whatever
//! else a slot has lies behind, in lines that only writes and slower calls touch.

use std::ops::Deref;

use lockgate_runtime::sync::Mutex;

use crate::arena::{LINE_BYTES, prefetch};
use crate::slot::SlotState;

/// The lock's own bytes, with the padding behind them.
const LOCK_BYTES: usize = 8;

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

    /// Has the processor fetch the line that a lookup touches.
    pub(crate) fn prefetch(&self) {
        prefetch(self);
    }
}

impl Deref for SlotCell {
    type Target = Mutex<SlotState>;

    #[inline]
    fn deref(&self) -> &Mutex<SlotState> {
        &self.0
    }
}
