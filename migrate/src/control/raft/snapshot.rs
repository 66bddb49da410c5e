//! The map at an index, in place of the entries up to there.
//!
//! Invariants
//! - A snapshot holds the map after the entry at its index, and the configuration then: nothing before it is needed.
//! - It counts only when it is on the disk. Until then nothing of it is acknowledged, and the owner does not have it.
//! - A leader keeps a tail of what a snapshot covers, so that a member that is a little behind needs entries only.
//! - A member is sent only a snapshot whose configuration it is part of. Where it joined later, a new one is taken first.
//! - Raft waits for ever for the answer to a snapshot that it sent. What gets lost is sent again after a while.

use raft::{ProgressState, SnapshotStatus, Storage, eraftpb};
use serde::{Deserialize, Serialize};

use super::core::RaftCore;
use super::members::Members;
use super::types::{Persist, RaftError};
use crate::control::types::NodeId;
use crate::control::wire;

/// The longest map that a snapshot holds. The largest cluster's (1,000 nodes, every slot by itself) takes less.
pub const SNAPSHOT_BYTES_MAX: usize = 4 << 20;
/// Entries that a snapshot covers and that are kept all the same, unless configured.
pub const TAIL_ENTRIES: usize = 1_000;
/// The most that these hold together.
pub const TAIL_BYTES_MAX: usize = 8 << 20;
/// A snapshot that nobody answered is sent again after so many times the ticks of an election.
const RESEND_ELECTIONS: usize = 10;

/// The state at an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapSnapshot {
    /// The index of the last entry in it.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// The configuration then.
    pub members: Members,
    /// The encoded cluster map then.
    #[serde(with = "wire::bytes")]
    pub map: Vec<u8>,
}

impl MapSnapshot {
    /// What is wrong with it by itself. The map is looked at by who decodes it.
    pub(in crate::control) fn check(&self) -> Result<(), &'static str> {
        if self.index == 0 || self.term == 0 {
            return Err("its snapshot is of no entry");
        }
        if self.map.len() > SNAPSHOT_BYTES_MAX {
            return Err("its snapshot is too long");
        }
        self.members.check()
    }

    /// For raft, which reads index, term and configuration, and carries the rest. The bytes stay in this process.
    pub(super) fn to_raft(&self) -> eraftpb::Snapshot {
        let mut metadata = eraftpb::SnapshotMetadata::default();
        metadata.set_conf_state(self.members.to_raft());
        (metadata.index, metadata.term) = (self.index, self.term);
        let mut snapshot = eraftpb::Snapshot::default();
        snapshot.set_metadata(metadata);
        snapshot.data = postcard::to_allocvec(self).expect("a snapshot is encoded to memory").into();
        snapshot
    }

    /// What [`MapSnapshot::to_raft`] made.
    pub(super) fn from_raft(snapshot: &eraftpb::Snapshot) -> MapSnapshot {
        postcard::from_bytes(&snapshot.data).expect("raft carries a snapshot as it was given")
    }
}

/// A snapshot on its way from the leader to the owner.
#[derive(Default)]
pub(super) struct Installing {
    /// Handed out to be kept, with the number of that `Ready`.
    keeping: Option<(u64, MapSnapshot)>,
    /// Kept: the next `Ready` hands it to the owner.
    pub(super) kept: Option<MapSnapshot>,
}

impl Installing {
    /// Whether a snapshot is on its way to the disk or the owner.
    pub(super) fn is_keeping(&self) -> bool {
        self.keeping.is_some() || self.kept.is_some()
    }
}

impl RaftCore {
    /// Puts `map`, the encoded map at the last applied `index`, into the place of the entries up to there, except for a
    /// tail that is kept for members that are behind. Nothing is written: see [`RaftCore::kept`].
    ///
    /// Fails if the map is longer than [`SNAPSHOT_BYTES_MAX`]. Panics if `index` is not the last applied one.
    pub fn compact(&mut self, index: u64, map: Vec<u8>) -> Result<(), RaftError> {
        assert_eq!(index, self.raw.raft.raft_log.applied, "a snapshot is of the last applied entry");
        if map.len() > SNAPSHOT_BYTES_MAX {
            return Err(RaftError::SnapshotLength { len: map.len() });
        }
        if self.snapshot_index() >= index {
            return Ok(());
        }
        let term =
            self.raw.store().term(index).expect("what was applied after the last snapshot is in the log");
        let members = self.members();
        let tail = self.tail_entries;
        self.raw.mut_store().compact(MapSnapshot { index, term, members, map }, tail);
        Ok(())
    }

    /// The index of the newest snapshot: what was applied after it could be compacted.
    pub fn snapshot_index(&self) -> u64 {
        self.raw.store().snapshot_index()
    }

    /// Whether this member leads one that joined after the newest snapshot, and that needs one: then a new one is due.
    pub fn lacks_snapshot_for_member(&self) -> bool {
        let ids = self.raw.raft.prs().iter().filter_map(|(id, _)| NodeId::from_raft_id(*id));
        self.is_leader() && self.raw.store().cannot_bring_up(ids)
    }

    /// Everything that this member's disk must have, as one record: a log that begins with it needs no other.
    pub fn kept(&self) -> Persist {
        let (snapshot, entries) = self.raw.store().kept();
        Persist { snapshot, hard_state: Some(self.hard_state), entries }
    }

    /// A snapshot came from the leader: raft's log and configuration are as it says already.
    pub(super) fn receive_snapshot(&mut self, number: u64, snapshot: &MapSnapshot) {
        self.learners_later = snapshot.members.later.clone();
        self.raw.mut_store().restore(snapshot.clone());
        self.installing.keeping = Some((number, snapshot.clone()));
    }

    /// Everything up to this `Ready` is kept. A snapshot among it counts from now on.
    pub(super) fn snapshot_persisted(&mut self, number: u64) {
        if let Some((_, snapshot)) = self.installing.keeping.take_if(|(of, _)| *of <= number) {
            self.raw.advance_apply_to(snapshot.index);
            self.installing.kept = Some(snapshot);
        }
    }

    /// Time has passed: what was sent long ago and not answered is given up, so that raft sends it again.
    pub(super) fn tick_snapshots(&mut self) {
        if !self.is_leader() {
            self.snapshots_sent.clear();
            return;
        }
        let waiting = |id: &u64, raft: &raft::Raft<_>| {
            raft.prs().get(*id).is_some_and(|progress| progress.state == ProgressState::Snapshot)
        };
        let raft = &self.raw.raft;
        self.snapshots_sent.retain(|id, _| waiting(id, raft));
        let sent = raft.prs().iter().map(|(id, _)| *id).filter(|id| waiting(id, raft));
        for id in sent.collect::<Vec<_>>() {
            let ticks = self.snapshots_sent.entry(id).or_insert(0);
            *ticks += 1;
            if *ticks >= RESEND_ELECTIONS * self.election_ticks {
                *ticks = 0;
                self.raw.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    /// A member's messages could not be sent: a leader stops sending it more than one at a time, and gives up a snapshot
    /// that was on its way.
    pub fn report_unreachable(&mut self, node: NodeId) {
        self.raw.report_unreachable(node.raft_id());
        self.raw.report_snapshot(node.raft_id(), SnapshotStatus::Failure);
    }
}
