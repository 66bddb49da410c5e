//! The slots of an engine, by their numbers. Those that nobody has asked for yet are not there: an engine that holds little
//! is opened sooner, and takes less memory.
//!
//! Invariant: a slot that is not there is as one that was just begun: it holds nothing, and has the gate that all such slots
//! have.

use lockgate_runtime::sync::{Arc, OnceLock};

use crate::arena::{Arena, want_huge_pages};
use crate::cell::SlotCell;
use crate::index::KeyHasher;
use crate::lazy_table::LazyTable;
use crate::log::LogPosition;
use crate::slot::SlotState;
use crate::store::Store;
use crate::types::{Gate, Generation, RangeHeader, Slot, Term};
use crate::wakes::Wakes;
use crate::watchers::Watchers;

/// The term and the generation of a slot that nobody ever moved.
const STANDALONE_TERM: Term = Term(1);
const STANDALONE_GENERATION: Generation = Generation::new(1);

/// Shared by all who work on slots.
pub(crate) type SlotTable = Arc<Slots>;

/// See the module.
pub(crate) struct Slots {
    cells: LazyTable<SlotCell>,
    parts: Parts,
    begun: OnceLock<Begun>,
}

/// What slots are made of: core by core where it is a list.
pub(crate) struct Parts {
    pub(crate) arenas: Vec<Arc<Arena>>,
    pub(crate) watchers: Vec<Arc<Watchers>>,
    pub(crate) hasher: KeyHasher,
}

/// How an open engine's slots begin.
pub(crate) struct Begun {
    /// Otherwise all slots are owned.
    pub(crate) clustered: bool,
    /// Where each core's log began.
    pub(crate) starts: Vec<LogPosition>,
}

impl Slots {
    /// Slots that hold nothing. None has begun.
    pub(crate) fn new(parts: Parts) -> Slots {
        Slots { cells: LazyTable::new(), parts, begun: OnceLock::new() }
    }

    /// Before the first slot is made: all are to lie in huge pages.
    pub(crate) fn want_huge_pages(&self) {
        let memory = self.cells.memory();
        want_huge_pages(memory.start, memory.len());
    }

    /// A slot.
    #[inline]
    pub(crate) fn of(&self, slot: Slot) -> &SlotCell {
        self.cells.get_or_make(slot.index(), |at| self.make(at))
    }

    /// A slot, unless nobody has asked for it yet: then it holds nothing.
    #[inline]
    pub(crate) fn known(&self, slot: Slot) -> Option<&SlotCell> {
        self.cells.get(slot.index())
    }

    /// Has the processor fetch the line that a lookup touches.
    #[inline]
    pub(crate) fn prefetch(&self, slot: Slot) {
        self.cells.prefetch(slot.index());
    }

    /// All that are known.
    pub(crate) fn all_known(&self) -> impl Iterator<Item = (Slot, &SlotCell)> {
        Slot::all().filter_map(|slot| Some((slot, self.known(slot)?)))
    }

    /// The logs were opened: whatever was recovered goes on from there. Once, and before anybody else has the slots.
    pub(crate) fn begin(&self, begun: Begun) {
        assert!(self.begun.set(begun).is_ok(), "slots begin once");
        let begun = self.begun.get().expect("just set");
        if !begun.clustered {
            self.parts.watchers[0].gates.own_all();
        }
        for (slot, cell) in self.all_known() {
            begun.begin(slot, &mut cell.lock());
        }
    }

    fn make(&self, at: usize) -> SlotCell {
        let slot = Slot::new(at as u16).expect("the table has as many");
        let core = at % self.parts.arenas.len();
        let store = Store::new(self.parts.arenas[core].clone(), self.parts.hasher.clone());
        let mut state = SlotState::new(slot, store, self.parts.watchers[core].clone());
        if let Some(begun) = self.begun.get() {
            begun.begin(slot, &mut state);
        }
        SlotCell::new(state)
    }
}

impl Begun {
    /// Sets a new or recovered slot's gate for this boot.
    fn begin(&self, at: Slot, slot: &mut SlotState) {
        slot.set_recovered_position(self.starts[at.index() % self.starts.len()]);
        if self.clustered {
            // The others are absent already.
            if slot.holds_data() {
                slot.set_gate(Gate::Follower, &mut Wakes::default());
            }
            return;
        }
        if !slot.is_open() {
            let next = Generation::new(slot.generation().major() + 1).max(STANDALONE_GENERATION);
            slot.begin_generation(next);
        }
        if slot.begins_term(STANDALONE_TERM) {
            slot.begin_term(RangeHeader { term: STANDALONE_TERM, base: slot.next_base() });
        }
        slot.begin_owned();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::arena::MemoryBudget;
    use crate::slot::image::SlotImage;
    use crate::watchers::Gates;

    fn slots(cores: usize) -> (Slots, Arc<Gates>) {
        let gates = Arc::new(Gates::new());
        let budget = Arc::new(MemoryBudget::new(0));
        let arena = |_| Arc::new(Arena::reserve(budget.clone()).unwrap());
        let arenas = (0..cores).map(arena).collect();
        let watchers = (0..cores).map(|core| Watchers::new(&gates, core)).collect();
        (Slots::new(Parts { arenas, watchers, hasher: KeyHasher::new(0) }), gates)
    }

    #[test]
    fn a_slot_that_is_made_late_is_as_one_that_was_there_from_the_beginning() {
        for clustered in [false, true] {
            let (slots, gates) = slots(2);
            let [early, late] = [3, 103].map(|number| Slot::new(number).unwrap());
            let _ = slots.of(early);
            slots.begin(Begun { clustered, starts: vec![LogPosition(100), LogPosition(200)] });
            let changes = gates.changes();
            assert!(slots.known(late).is_none());
            let [early, late] = [early, late].map(|slot| {
                let held = slots.of(slot).lock();
                assert_eq!(held.gate(), gates.of(slot));
                (SlotImage { slot: early, ..held.image() }, held.gate())
            });
            assert_eq!(early, late);
            assert_eq!((early.0.position, gates.changes()), (LogPosition(200), changes));
            assert_eq!(early.1, if clustered { Gate::Absent } else { Gate::Owned });
        }
    }
}
