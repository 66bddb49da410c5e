//! What a member of the control log is given and gives back, as plain data.

use serde::{Deserialize, Serialize};

use super::message::{ENTRY_BYTES_MAX, RaftEntry, RaftMessage, RaftMessageKind};
use super::snapshot::{MapSnapshot, SNAPSHOT_BYTES_MAX, TAIL_ENTRIES};
use crate::control::map::{ClusterMap, GENESIS_INDEX, GENESIS_TERM};
use crate::control::types::NodeId;

/// Who takes part, and from where the log goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftConfig {
    /// This node.
    pub id: NodeId,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Who learns.
    pub learners: Vec<NodeId>,
    /// The index of the snapshot that the log goes on from.
    pub start_index: u64,
    /// The term of that snapshot.
    pub start_term: u64,
    /// Ticks without a leader until an election; the real timeout is drawn from this up to twice of it.
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Entries that a snapshot covers and that are kept all the same, for members that are a little behind.
    pub tail_entries: usize,
}

impl RaftConfig {
    /// The members of a cluster's genesis, with the default of 10 and 2 ticks. Nodes that came later are added by
    /// [`RaftCore::add_learner`] when their entries are applied, after every start again.
    pub fn of_genesis(id: NodeId, genesis: &ClusterMap) -> RaftConfig {
        RaftConfig {
            id,
            voters: genesis.voters(),
            learners: genesis.learners(),
            start_index: GENESIS_INDEX,
            start_term: GENESIS_TERM,
            election_ticks: 10,
            heartbeat_ticks: 2,
            tail_entries: TAIL_ENTRIES,
        }
    }
}

/// What raft must remember beside its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardState {
    /// The highest term that was seen.
    pub term: u64,
    /// The raft id of who got this node's vote in that term; 0 for nobody.
    pub vote: u64,
    /// The last index known to be committed: a help at the next start, not a promise.
    pub commit: u64,
}

/// What survived on disk: see [`crate::control::Replay`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The newest snapshot, which takes the place of what the configuration begins with. Without it, and before it is
    /// compacted, this member has none for others either.
    pub snapshot: Option<MapSnapshot>,
    /// The last hard state.
    pub hard_state: Option<HardState>,
    /// Every entry after it.
    pub entries: Vec<RaftEntry>,
}

/// What a [`Ready`] asks to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persist {
    /// A snapshot, which takes the place of everything that the log had before.
    pub snapshot: Option<MapSnapshot>,
    /// The new hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// New entries. They take the place of what the log had from the first one's index on.
    pub entries: Vec<RaftEntry>,
}

impl Persist {
    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.snapshot.is_none() && self.hard_state.is_none() && self.entries.is_empty()
    }
}

/// What is to be done. The module's top says in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ready {
    /// For [`RaftCore::on_persisted`].
    pub number: u64,
    /// Send at once.
    pub messages_now: Vec<RaftMessage>,
    /// Keep.
    pub persist: Persist,
    /// Whether `messages_after` wait for a sync. If not, being appended is enough; the order of numbers holds all the same.
    pub must_sync: bool,
    /// Send when `persist`, and that of every earlier `Ready`, is kept.
    pub messages_after: Vec<RaftMessage>,
    /// Install at once, before `committed`: it takes the map's place. It is kept by now, since an earlier `Ready` asked for it.
    pub snapshot: Option<MapSnapshot>,
    /// Apply at once. Empty data passes over its index.
    pub committed: Vec<RaftEntry>,
    /// Rounds of [`super::RaftCore::begin_round`] that a quorum has confirmed: their numbers, and the index that was
    /// committed when each began.
    pub rounds: Vec<(u64, u64)>,
}

/// What this member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It follows, or learns.
    Follower,
    /// It asks for votes, or whether it would get them.
    Candidate,
    /// It leads.
    Leader,
}

/// Figures for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// What this member is.
    pub role: Role,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: u64,
    /// The last committed index that it knows of.
    pub committed: u64,
    /// The last index that it handed out to be applied.
    pub applied: u64,
    /// The last index of its log.
    pub last_index: u64,
    /// The last index that its disk has.
    pub persisted: u64,
    /// On a leader: each other member, and the last index that it acknowledged, in ascending order.
    pub matched: Vec<(NodeId, u64)>,
}

/// Where a proposal went into the log: it is decided when something of this index is committed, and taken only if that is
/// of this term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The leader's term.
    pub term: u64,
    /// The index of the first entry; the others follow it.
    pub first_index: u64,
}

/// Why a proposal was not taken. None of its entries was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads: it takes proposals.
    #[error("node {leader} leads the control log")]
    NotLeader {
        /// Who leads.
        leader: NodeId,
    },
    /// Nobody leads.
    #[error(
        "the control log has no leader at present: a majority of its voters must be up and reach each other"
    )]
    NoLeader,
    /// The voters are being changed already, or this leader is too new to change them, or it was asked twice at once.
    #[error("the voters of the control log cannot be changed at this moment: ask again")]
    VotersChange,
    /// Too much is undecided.
    #[error("the control log has too much that is not decided yet: ask again")]
    Busy,
    /// An entry is empty or too long.
    #[error("an entry of {len} bytes cannot be proposed, it must have 1 to {ENTRY_BYTES_MAX}")]
    EntryLength {
        /// Its length.
        len: usize,
    },
}

/// A member that cannot start, or a message that it does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RaftError {
    /// The log or the configuration contradicts itself.
    #[error("the control log cannot start: {why}")]
    Start {
        /// What contradicts.
        why: String,
    },
    /// A message that no correct member sends.
    #[error("refused a {kind:?} message from node {from}: {why}")]
    BadMessage {
        /// Who sent it.
        from: NodeId,
        /// What it was.
        kind: RaftMessageKind,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A map that is too long for a snapshot: the log cannot be compacted.
    #[error("a map of {len} bytes is longer than the {SNAPSHOT_BYTES_MAX} that a snapshot may hold")]
    SnapshotLength {
        /// Its length.
        len: usize,
    },
}
