//! Whom slots tell of their changes: a table of all gates, and who works on them in the background.

use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::compactor::Compactor;
use crate::sweeper::Sweeper;
use crate::types::{Gate, SLOTS, Slot};

/// Few in a model: it makes all of them anew for each interleaving.
const GATES: usize = if cfg!(loom) { 64 } else { SLOTS as usize };

/// The gates of all slots, to be read without their locks: once the engine is open each is stored under its
/// slot's lock, whenever it changes.
pub(crate) struct Gates {
    changes: AtomicU64,
    of_slots: Box<[AtomicU8]>,
}

impl Gates {
    /// All absent.
    pub(crate) fn new() -> Gates {
        let absent = || AtomicU8::new(Gate::Absent as u8);
        Gates { changes: AtomicU64::new(0), of_slots: (0..GATES).map(|_| absent()).collect() }
    }

    /// All slots are owned from now on. Before anybody else has them.
    pub(crate) fn own_all(&self) {
        self.of_slots.iter().for_each(|gate| gate.store(Gate::Owned as u8, Ordering::Release));
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// How many changes there were.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The slot's gate now, or a moment ago.
    pub(crate) fn of(&self, slot: Slot) -> Gate {
        let byte = self.of_slots[slot.index()].load(Ordering::Acquire);
        Gate::ALL[usize::from(byte)]
    }

    /// The caller holds the slot's lock.
    pub(crate) fn set(&self, slot: Slot, gate: Gate) {
        self.of_slots[slot.index()].store(gate as u8, Ordering::Release);
        self.changes.fetch_add(1, Ordering::Release);
    }
}

/// Whom the slots of one core tell of their changes.
pub(crate) struct Watchers {
    /// Of the whole engine.
    pub(crate) gates: Arc<Gates>,
    pub(crate) sweeper: Arc<Sweeper>,
    pub(crate) compactor: Arc<Compactor>,
}

impl Watchers {
    /// Those of one more core.
    pub(crate) fn new(gates: &Arc<Gates>, core: usize) -> Arc<Watchers> {
        let (sweeper, compactor) = (Arc::new(Sweeper::new()), Arc::new(Compactor::new(core)));
        Arc::new(Watchers { gates: gates.clone(), sweeper, compactor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gate_is_found_by_its_byte() {
        let gates = Gates::new();
        for (at, gate) in Gate::ALL.into_iter().enumerate() {
            let (slot, other) = (Slot::new(7).expect("a slot"), Slot::new(8).expect("a slot"));
            gates.set(slot, gate);
            assert_eq!(
                (gates.of(slot), gates.of(other), gates.changes()),
                (gate, Gate::Absent, at as u64 + 1)
            );
        }
    }
}
