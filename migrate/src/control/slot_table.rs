//! The owners of all slots, as a value that is cheap to clone.
//!
//! The map is published after every batch of entries, and an entry touches few slots: a clone shares all chunks, and a
//! change copies the chunk that it touches.

use std::fmt;
use std::ops::{Index, IndexMut, Range};

use lockgate_engine::Slot;
use lockgate_runtime::sync::Arc;
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::map::SlotOwner;
use super::types::SLOT_COUNT;

/// Slots of one chunk.
const CHUNK: usize = 128;

const _: () = assert!((SLOT_COUNT as usize).is_multiple_of(CHUNK));

type Chunk = [SlotOwner; CHUNK];

/// One [`SlotOwner`] for every slot.
#[derive(Clone, Eq)]
pub struct SlotTable {
    chunks: Vec<Arc<Chunk>>,
}

impl SlotTable {
    /// Every slot with this owner.
    pub fn filled(owner: SlotOwner) -> SlotTable {
        let chunk = Arc::new([owner; CHUNK]);
        SlotTable { chunks: vec![chunk; usize::from(SLOT_COUNT) / CHUNK] }
    }

    /// The owners, by slot.
    pub fn iter(&self) -> impl Iterator<Item = &SlotOwner> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The slots in runs, in order, and whether a run's owners are the very ones of the run before it.
    pub(super) fn runs(&self) -> impl Iterator<Item = (Range<u16>, bool)> {
        (0..self.chunks.len()).map(|at| {
            let is_repeated = at > 0 && Arc::ptr_eq(&self.chunks[at - 1], &self.chunks[at]);
            ((at * CHUNK) as u16..((at + 1) * CHUNK) as u16, is_repeated)
        })
    }

    /// Changes the owners that `wanted` names; only their chunks are copied.
    pub(super) fn change(
        &mut self,
        wanted: impl Fn(&SlotOwner) -> bool,
        mut change: impl FnMut(&mut SlotOwner),
    ) {
        for chunk in &mut self.chunks {
            if chunk.iter().any(&wanted) {
                Arc::make_mut(chunk).iter_mut().filter(|owner| wanted(owner)).for_each(&mut change);
            }
        }
    }
}

impl PartialEq for SlotTable {
    /// Two tables that came to the same by different ways share no chunk with each other. But each may have one chunk at
    /// many places, and then the same pair is met again and again.
    fn eq(&self, other: &SlotTable) -> bool {
        let mut equal = None;
        self.chunks.iter().zip(&other.chunks).all(|(mine, theirs)| {
            let pair = (Arc::as_ptr(mine), Arc::as_ptr(theirs));
            pair.0 == pair.1 || equal.replace(pair) == Some(pair) || mine == theirs
        })
    }
}

impl Index<Slot> for SlotTable {
    type Output = SlotOwner;

    fn index(&self, slot: Slot) -> &SlotOwner {
        &self.chunks[slot.index() / CHUNK][slot.index() % CHUNK]
    }
}

impl IndexMut<Slot> for SlotTable {
    fn index_mut(&mut self, slot: Slot) -> &mut SlotOwner {
        &mut Arc::make_mut(&mut self.chunks[slot.index() / CHUNK])[slot.index() % CHUNK]
    }
}

impl fmt::Debug for SlotTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for SlotTable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // With its length: a sequence of unknown length has no form in postcard.
        let mut owners = serializer.serialize_seq(Some(usize::from(SLOT_COUNT)))?;
        self.iter().try_for_each(|owner| owners.serialize_element(owner))?;
        owners.end()
    }
}

impl<'de> Deserialize<'de> for SlotTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SlotTable, D::Error> {
        let owners = Vec::<SlotOwner>::deserialize(deserializer)?;
        if owners.len() != usize::from(SLOT_COUNT) {
            return Err(serde::de::Error::invalid_length(owners.len(), &"one owner for each slot"));
        }
        let mut chunks: Vec<Arc<Chunk>> = Vec::with_capacity(owners.len() / CHUNK);
        for chunk in owners.as_chunks::<CHUNK>().0 {
            let repeated = chunks.last().filter(|last| ***last == *chunk).cloned();
            chunks.push(repeated.unwrap_or_else(|| Arc::new(*chunk)));
        }
        Ok(SlotTable { chunks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ShardId;

    #[test]
    fn a_change_copies_only_what_it_touches() {
        let before = SlotTable::filled(SlotOwner::UNOWNED);
        let mut after = before.clone();
        let slot = Slot::new(200).unwrap();
        after[slot].shard = Some(ShardId(3));
        assert_eq!((before[slot].shard, after[slot].shard), (None, Some(ShardId(3))));
        let shared = before.chunks.iter().zip(&after.chunks).filter(|(a, b)| Arc::ptr_eq(a, b)).count();
        assert_eq!(shared, before.chunks.len() - 1);
        after.change(|owner| owner.shard.is_some(), |owner| owner.version += 1);
        assert_eq!(after[slot].version, before[slot].version + 1);
        let bytes = postcard::to_stdvec(&after).unwrap();
        assert_eq!(postcard::from_bytes::<SlotTable>(&bytes).unwrap(), after);
    }

    #[test]
    fn a_table_of_another_length_is_refused() {
        let bytes = postcard::to_stdvec(&vec![SlotOwner::UNOWNED; 5]).unwrap();
        assert!(postcard::from_bytes::<SlotTable>(&bytes).is_err());
    }

    #[test]
    fn tables_are_equal_by_what_they_hold() {
        let mut first = SlotTable::filled(SlotOwner::UNOWNED);
        let mut second = SlotTable::filled(SlotOwner::UNOWNED);
        assert!(first == second);
        for number in [0, 127, 128, 5_000, SLOT_COUNT - 1] {
            let slot = Slot::new(number).unwrap();
            first[slot].shard = Some(ShardId(1));
            assert!(first != second, "slot {number}");
            second[slot].shard = Some(ShardId(1));
            assert!(first == second, "slot {number}");
        }
    }

    #[test]
    fn what_is_decoded_shares_chunks_as_what_was_encoded() {
        let mut table = SlotTable::filled(SlotOwner::UNOWNED);
        table[Slot::new(1_000).unwrap()].version = 4;
        let bytes = postcard::to_stdvec(&table).unwrap();
        let decoded: SlotTable = postcard::from_bytes(&bytes).unwrap();
        assert!(decoded == table);
        let repeated = |table: &SlotTable| table.runs().filter(|(_, is_repeated)| *is_repeated).count();
        assert_eq!((repeated(&table), repeated(&decoded)), (125, 125));
        let ends: Vec<_> = table.runs().map(|(run, _)| run.end).collect();
        assert_eq!((ends.len(), ends.last()), (usize::from(SLOT_COUNT) / CHUNK, Some(&SLOT_COUNT)));
    }
}
