//! The raft log in memory, as the `raft` crate reads it.
//!
//! Invariants: `entries[i]` has index `start_index + 1 + i`, and `start_term` is the term of the entry at `start_index`. The
//! snapshot, if there is one, is at `start_index` or later, and never beyond the last entry, unless that is `start_index`.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::message::RaftEntry;
use super::snapshot::{MapSnapshot, TAIL_BYTES_MAX};
use crate::control::map::GENESIS_INDEX;
use crate::control::types::NodeId;

/// The raft log in memory.
pub(super) struct MemoryLog {
    start_index: u64,
    start_term: u64,
    initial: RaftState,
    snapshot: Option<MapSnapshot>,
    entries: Vec<Entry>,
}

impl MemoryLog {
    /// A log that goes on after (`start_index`, `start_term`), where `snapshot` is of if it is there. `entries` must follow
    /// it without a gap.
    pub(super) fn new(
        (start_index, start_term): (u64, u64),
        snapshot: Option<MapSnapshot>,
        hard_state: HardState,
        members: ConfState,
        entries: Vec<Entry>,
    ) -> MemoryLog {
        let initial = RaftState::new(hard_state, members);
        MemoryLog { start_index, start_term, initial, snapshot, entries }
    }

    /// Adds entries, which take the place of what was there from the first one's index on.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let keep =
            first.index.checked_sub(self.start_index + 1).expect("a snapshot is not overwritten") as usize;
        assert!(keep <= self.entries.len(), "entry {} would leave a gap in the raft log", first.index);
        self.entries.truncate(keep);
        self.entries.extend_from_slice(entries);
    }

    /// Puts `snapshot` into the place of everything.
    pub(super) fn restore(&mut self, snapshot: MapSnapshot) {
        (self.start_index, self.start_term) = (snapshot.index, snapshot.term);
        self.entries.clear();
        self.snapshot = Some(snapshot);
    }

    /// Drops what the snapshot covers, except for the last `tail` entries of it and at most [`TAIL_BYTES_MAX`].
    pub(super) fn compact(&mut self, snapshot: MapSnapshot, tail: usize) {
        let covered = (snapshot.index - self.start_index) as usize;
        let mut bytes = 0;
        let kept = self.entries[..covered].iter().rev().take(tail).take_while(|entry| {
            bytes += entry.data.len() + entry.context.len();
            bytes <= TAIL_BYTES_MAX
        });
        let dropped = covered - kept.count();
        if let Some(last) = self.entries.drain(..dropped).next_back() {
            (self.start_index, self.start_term) = (last.index, last.term);
        }
        self.snapshot = Some(snapshot);
    }

    /// The index of the newest snapshot.
    pub(super) fn snapshot_index(&self) -> u64 {
        self.snapshot.as_ref().map_or(self.start_index, |snapshot| snapshot.index)
    }

    /// Whether one of these nodes could neither be sent all entries nor the newest snapshot.
    pub(super) fn cannot_bring_up(&self, nodes: impl IntoIterator<Item = NodeId>) -> bool {
        let Some(snapshot) = &self.snapshot else { return false };
        // With every entry after the genesis there, nobody needs a snapshot.
        self.start_index > GENESIS_INDEX && nodes.into_iter().any(|node| !snapshot.members.takes_part(node))
    }

    /// The newest snapshot, and the entries after it.
    pub(super) fn kept(&self) -> (Option<MapSnapshot>, Vec<RaftEntry>) {
        let after = (self.snapshot_index() - self.start_index) as usize;
        let entries = self.entries[after..].iter().cloned().map(RaftEntry::from_raft).collect();
        (self.snapshot.clone(), entries)
    }

    /// The entries after `after` and up to `to`. Panics if some of them are not in the log any more, or not yet.
    pub(super) fn range(&self, after: u64, to: u64) -> &[Entry] {
        if after >= to { &[] } else { &self.entries[self.offset(after + 1)..=self.offset(to)] }
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
            size += (entry.data.len() + entry.context.len()) as u64 + 16;
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

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // Who joined after a snapshot would refuse it, without a word: its leader is to take a new one.
        let is_for = |snapshot: &MapSnapshot| {
            NodeId::from_raft_id(to).is_some_and(|node| snapshot.members.takes_part(node))
        };
        match &self.snapshot {
            Some(snapshot) if snapshot.index >= request_index && is_for(snapshot) => Ok(snapshot.to_raft()),
            _ => Err(StorageError::SnapshotTemporarilyUnavailable.into()),
        }
    }
}
