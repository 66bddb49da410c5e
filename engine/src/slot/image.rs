//! What of a slot outlives a restart, apart from its records: written into a checkpoint, and read from there.
//!
//! What is not in it: the gate, the streams and the clock, which nobody has after a restart.

use crate::arena::OutOfMemory;
use crate::cell::SlotCell;
use crate::chain::Link;
use crate::history::History;
use crate::log::LogPosition;
use crate::segment::SegmentRef;
use crate::slot::SlotState;
use crate::types::{Floors, Gate, Generation, RangeHeader, Slot, Term, Version};
use crate::wakes::Wakes;

/// A slot's state, without its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotImage {
    /// Whose.
    pub slot: Slot,
    /// Of its data; the last one when it has ended.
    pub generation: Generation,
    /// Generations up to this one are over.
    pub ended: Generation,
    /// The highest term that the slot was owned under, or has data of.
    pub term: Term,
    /// What new writes count their versions from.
    pub base: u64,
    /// The last write.
    pub version: Version,
    /// What was discarded.
    pub floors: Floors,
    /// The highest term whose writes were taken back.
    pub truncated_term: Option<Term>,
    /// The terms, each with the first counter of its writes, the oldest first.
    pub history: Vec<(Term, u64)>,
    /// The end, in the slot's home log, of the last frame whose effect is in this.
    pub position: LogPosition,
    /// Live keys.
    pub keys: u64,
    /// The sum over the live records.
    pub digest: u64,
}

/// A slot at one instant: its state, and its records, which stay as they are while this is held.
pub(crate) struct PinnedSlot {
    pub(crate) image: SlotImage,
    /// Each segment with the bytes that were published then.
    pub(crate) segments: Vec<(SegmentRef, usize)>,
}

impl SlotImage {
    /// Why this cannot be a slot's state, whatever its records are.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        /// Counters stay far from their type's end, so that what is computed from them fits.
        const COUNTER_MAX: u64 = u64::MAX >> 1;
        let is_open = self.generation > self.ended;
        let is_empty = self.version == Version::ZERO;
        let rising = |pair: &[(Term, u64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
        let last_term = self.history.last().map_or(Term(0), |(term, _)| *term);
        if self.ended > self.generation {
            Some("a generation ended that is later than the slot's")
        } else if !is_open && (!is_empty || !self.history.is_empty() || self.keys > 0) {
            Some("a generation that has ended has data")
        } else if self.floors.floor > self.floors.undo_floor {
            Some("its floors are out of order")
        } else if self.version.counter > COUNTER_MAX || self.base > self.version.counter {
            Some("its version or its base is impossible")
        } else if self.version.term > self.term || last_term > self.term {
            Some("it has writes or a history of a later term than its own")
        } else if !self.history.windows(2).all(rising) {
            Some("its history is out of order")
        } else if is_empty != (self.version.counter == 0) {
            Some("its last write has a term without a counter, or a counter without a term")
        } else {
            None
        }
    }
}

impl SlotState {
    pub(crate) fn image(&self) -> SlotImage {
        SlotImage {
            slot: self.slot,
            generation: self.generation,
            ended: self.ended,
            term: self.term,
            base: self.base,
            version: self.version,
            floors: self.floors,
            truncated_term: self.truncated_term,
            history: self.history.starts().to_vec(),
            position: self.position,
            keys: self.store.keys(),
            digest: self.store.digest(),
        }
    }

    /// Whether it is what every slot of a standalone engine is from the start. Nothing of that was ever logged.
    fn is_as_begun(&self) -> bool {
        self.generation <= Generation::new(1)
            && self.term <= Term(1)
            && (self.ended, self.version) == (Generation::ZERO, Version::ZERO)
            && self.truncated_term.is_none()
    }

    /// Makes an empty slot what the image says. Its records are there already.
    pub(crate) fn restore(&mut self, image: &SlotImage) {
        self.generation = image.generation;
        self.ended = image.ended;
        self.term = image.term;
        self.base = image.base;
        self.version = image.version;
        self.floors = image.floors;
        self.truncated_term = image.truncated_term;
        self.history = History::from_starts(image.history.clone());
        self.mark(&mut Wakes::default());
    }

    /// Makes room in the index of an empty slot for so many keys.
    pub(crate) fn expect_keys(&mut self, keys: u64) -> Result<(), OutOfMemory> {
        self.store.expect_keys(keys)
    }

    /// Takes in verified records of an image that is being restored. `first` is the counter of the first of them.
    pub(crate) fn load(&mut self, range: RangeHeader, first: u64, records: &[u8]) -> Result<(), OutOfMemory> {
        self.store.reserve(range, records.len())?;
        self.store.copy_in(first, records);
        drop(self.store.take_cleared());
        Ok(())
    }

    /// After recovery: everything that was read is on the disk, before this position of this boot's log.
    pub(crate) fn set_recovered_position(&mut self, position: LogPosition) {
        self.position = position;
    }

    /// A slot of an engine that owns all slots begins: so the table of gates says already.
    pub(crate) fn begin_owned(&mut self) {
        self.gate = Gate::Owned;
        self.schedule(&mut Wakes::default());
    }
}

impl SlotCell {
    /// Pins all that a slot holds now. `None`: it is as if there had never been anything. The lock is held for a copy of
    /// the list of its segments.
    pub(crate) fn pin(&self, clustered: bool) -> Option<PinnedSlot> {
        let held = self.lock();
        if held.generation == Generation::ZERO || (!clustered && held.is_as_begun()) {
            return None;
        }
        let pinned = |link: &Link| (link.segment.clone(), link.segment.published());
        let segments = held.store.chain().links().iter().map(pinned).collect();
        Some(PinnedSlot { image: held.image(), segments })
    }
}
