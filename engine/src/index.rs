//! Where each live key's record is: a table of offsets, 4 bytes a key. Keys are compared in the records themselves.
//!
//! Invariant: at most one entry per (keyspace, key). The table does not know records; its user tells it how to compare
//! and to hash what is at an offset. Its order is never looked at.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::segment::RecordOffset;

/// Hashes (keyspace, key), seeded once per engine so that outsiders cannot make keys collide.
#[derive(Clone)]
pub(crate) struct KeyHasher(FixedState);

impl KeyHasher {
    /// A hasher with this seed.
    pub(crate) fn new(seed: u64) -> KeyHasher {
        KeyHasher(FixedState::with_seed(seed))
    }

    /// The hash of a key.
    pub(crate) fn hash(&self, keyspace: u8, key: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write_u8(keyspace);
        hasher.write(key);
        hasher.finish()
    }
}

/// The table.
#[derive(Default)]
pub(crate) struct Index {
    table: HashTable<RecordOffset>,
}

impl Index {
    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Memory that the table takes.
    pub(crate) fn bytes(&self) -> usize {
        self.table.allocation_size()
    }

    /// The entry with this hash that `is_key` accepts.
    pub(crate) fn find(&self, hash: u64, is_key: impl Fn(RecordOffset) -> bool) -> Option<RecordOffset> {
        self.table.find(hash, |place| is_key(*place)).copied()
    }

    /// Points a key's entry to `place`, and returns where it pointed to before, if it was there.
    pub(crate) fn set(
        &mut self,
        hash: u64,
        place: RecordOffset,
        is_key: impl Fn(RecordOffset) -> bool,
        hash_of: impl Fn(RecordOffset) -> u64,
    ) -> Option<RecordOffset> {
        match self.table.entry(hash, |place| is_key(*place), |place| hash_of(*place)) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), place)),
            Entry::Vacant(entry) => {
                entry.insert(place);
                None
            }
        }
    }

    /// Removes a key's entry, and returns where it pointed to.
    pub(crate) fn remove(
        &mut self,
        hash: u64,
        is_key: impl Fn(RecordOffset) -> bool,
    ) -> Option<RecordOffset> {
        self.table.find_entry(hash, |place| is_key(*place)).ok().map(|entry| entry.remove().0)
    }

    /// Whether a key with this hash has exactly this place.
    pub(crate) fn holds(&self, hash: u64, place: RecordOffset) -> bool {
        self.table.find(hash, |other| *other == place).is_some()
    }

    /// The entry that is `from` becomes `to`. False: there is none.
    pub(crate) fn relocate(&mut self, hash: u64, from: RecordOffset, to: RecordOffset) -> bool {
        self.table.find_mut(hash, |place| *place == from).map(|place| *place = to).is_some()
    }

    /// Removes all entries that are not to be kept, in a walk over all of them.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(RecordOffset) -> bool) {
        self.table.retain(|place| keep(*place));
    }
}
