//! The raft log in memory, as the `raft` crate reads it.
//!
//! Invariants: `entries[i]` has index `start_index + 1 + i`; the snapshot at `start_index` is the genesis, which every
//! member has from the start, so that it is never sent. The log is not truncated yet: it holds everything after the genesis.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

/// The raft log in memory.
pub(super) struct MemoryLog {
    start_index: u64,
    start_term: u64,
    initial: RaftState,
    entries: Vec<Entry>,
}

impl MemoryLog {
    /// A log that goes on after (`start_index`, `start_term`). `entries` must follow it without a gap.
    pub(super) fn new(
        start_index: u64,
        start_term: u64,
        hard_state: HardState,
        members: ConfState,
        entries: Vec<Entry>,
    ) -> MemoryLog {
        MemoryLog { start_index, start_term, initial: RaftState::new(hard_state, members), entries }
    }

    /// Adds entries, which take the place of what was there from the first one's index on.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let keep =
            first.index.checked_sub(self.start_index + 1).expect("the genesis is not overwritten") as usize;
        assert!(keep <= self.entries.len(), "entry {} would leave a gap in the raft log", first.index);
        self.entries.truncate(keep);
        self.entries.extend_from_slice(entries);
    }

    pub(super) fn last(&self) -> u64 {
        self.start_index + self.entries.len() as u64
    }

    fn offset(&self, index: u64) -> usize {
        (index - self.start_index - 1) as usize
    }
}

impl Storage for MemoryLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.start_index {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let fits = |entry: &&Entry| {
            let first = size == 0;
            // Data is all that has a length worth counting; the constant stands for the rest of an entry.
            size += entry.data.len() as u64 + 16;
            first || size <= max_size
        };
        let range = &self.entries[self.offset(low)..self.offset(high)];
        Ok(range.iter().take_while(fits).cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.start_index {
            return Ok(self.start_term);
        }
        if index < self.start_index {
            return Err(StorageError::Compacted.into());
        }
        let entry = self.entries.get(self.offset(index)).ok_or(StorageError::Unavailable)?;
        Ok(entry.term)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.start_index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // Nothing is truncated, so nobody needs one; asked again later, the answer stays the same.
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}
