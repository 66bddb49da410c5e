//! Messages between the control log's members, in a form of our own.
//!
//! The `raft` crate's own encoding is protobuf, whose decoder is not trusted with bytes from a network. Here each message
//! that may travel is a plain structure; what must not travel (proposals, ticks) has no form at all, so it cannot arrive.
//! Raft keeps changes of its configuration as protobuf inside of entries; those bytes are made here from our own form, and
//! never taken from anybody.

use protobuf::Message as _;
use raft::eraftpb::{self, ConfChangeSingle, ConfChangeV2, EntryType, MessageType};
use serde::{Deserialize, Serialize};

use super::snapshot::MapSnapshot;
use crate::control::types::NodeId;
use crate::control::wire;

/// The longest entry of the control log. A vote that moves every slot needs about half a mebibyte.
pub const ENTRY_BYTES_MAX: usize = 2 << 20;
/// The most that a message's entries hold together, except that one entry always fits.
pub const APPEND_BYTES_MAX: usize = 1 << 20;
/// The longest context of a message.
pub const CONTEXT_BYTES_MAX: usize = 64;
/// The highest raft term that is believed: far above what elections reach, far below overflow.
pub const RAFT_TERM_MAX: u64 = 1 << 56;

/// The kinds of message that travel. The order is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are those of the raft literature")]
pub enum RaftMessageKind {
    Append,
    AppendResponse,
    RequestVote,
    RequestVoteResponse,
    RequestPreVote,
    RequestPreVoteResponse,
    Heartbeat,
    HeartbeatResponse,
    TimeoutNow,
    Snapshot,
}

/// What an entry does to who takes part in the log. The order is part of the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembersChange {
    /// Nothing.
    #[default]
    None,
    /// Its data sets the voters. Which, and whether, is decided when it is applied.
    Voters,
    /// It ends a joint configuration. It has no data: raft proposes it by itself.
    Leave,
}

/// An entry of the raft log. Empty data is what a new leader writes to begin its term.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftEntry {
    /// The leader's term when it was proposed.
    pub term: u64,
    /// Its place in the log.
    pub index: u64,
    /// An encoded [`crate::control::Entry`], or nothing.
    #[serde(with = "wire::bytes")]
    pub data: Vec<u8>,
    /// What it does to who takes part.
    pub change: MembersChange,
}

/// A message from one member to another. The fields mean what they mean in the `raft` crate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are those of the raft literature")]
pub struct RaftMessage {
    pub kind: RaftMessageKind,
    pub from: NodeId,
    pub to: NodeId,
    pub term: u64,
    pub log_term: u64,
    pub index: u64,
    pub commit: u64,
    pub commit_term: u64,
    pub reject: bool,
    pub reject_hint: u64,
    #[serde(with = "wire::bytes")]
    pub context: Vec<u8>,
    pub entries: Vec<RaftEntry>,
    pub snapshot: Option<MapSnapshot>,
}

impl RaftMessageKind {
    fn from_raft(kind: MessageType) -> Option<RaftMessageKind> {
        Some(match kind {
            MessageType::MsgAppend => RaftMessageKind::Append,
            MessageType::MsgAppendResponse => RaftMessageKind::AppendResponse,
            MessageType::MsgRequestVote => RaftMessageKind::RequestVote,
            MessageType::MsgRequestVoteResponse => RaftMessageKind::RequestVoteResponse,
            MessageType::MsgRequestPreVote => RaftMessageKind::RequestPreVote,
            MessageType::MsgRequestPreVoteResponse => RaftMessageKind::RequestPreVoteResponse,
            MessageType::MsgHeartbeat => RaftMessageKind::Heartbeat,
            MessageType::MsgHeartbeatResponse => RaftMessageKind::HeartbeatResponse,
            MessageType::MsgTimeoutNow => RaftMessageKind::TimeoutNow,
            MessageType::MsgSnapshot => RaftMessageKind::Snapshot,
            _ => return None,
        })
    }

    fn to_raft(self) -> MessageType {
        match self {
            RaftMessageKind::Append => MessageType::MsgAppend,
            RaftMessageKind::AppendResponse => MessageType::MsgAppendResponse,
            RaftMessageKind::RequestVote => MessageType::MsgRequestVote,
            RaftMessageKind::RequestVoteResponse => MessageType::MsgRequestVoteResponse,
            RaftMessageKind::RequestPreVote => MessageType::MsgRequestPreVote,
            RaftMessageKind::RequestPreVoteResponse => MessageType::MsgRequestPreVoteResponse,
            RaftMessageKind::Heartbeat => MessageType::MsgHeartbeat,
            RaftMessageKind::HeartbeatResponse => MessageType::MsgHeartbeatResponse,
            RaftMessageKind::TimeoutNow => MessageType::MsgTimeoutNow,
            RaftMessageKind::Snapshot => MessageType::MsgSnapshot,
        }
    }

    /// Whether it answers another message.
    pub fn is_response(self) -> bool {
        matches!(
            self,
            RaftMessageKind::AppendResponse
                | RaftMessageKind::RequestVoteResponse
                | RaftMessageKind::RequestPreVoteResponse
                | RaftMessageKind::HeartbeatResponse
        )
    }
}

impl RaftEntry {
    pub(super) fn from_raft(entry: eraftpb::Entry) -> RaftEntry {
        let (change, data) = match entry.get_entry_type() {
            EntryType::EntryNormal => (MembersChange::None, entry.data),
            _ if entry.data.is_empty() => (MembersChange::Leave, entry.data),
            _ => (MembersChange::Voters, entry.context),
        };
        RaftEntry { term: entry.term, index: entry.index, data: data.to_vec(), change }
    }

    pub(super) fn to_raft(&self) -> eraftpb::Entry {
        let mut entry = eraftpb::Entry { term: self.term, index: self.index, ..Default::default() };
        match self.change {
            MembersChange::None => entry.data = self.data.clone().into(),
            MembersChange::Voters => {
                entry.set_entry_type(EntryType::EntryConfChangeV2);
                entry.data = some_change().into();
                entry.context = self.data.clone().into();
            }
            MembersChange::Leave => entry.set_entry_type(EntryType::EntryConfChangeV2),
        }
        entry
    }

    /// What is wrong with the entry by itself.
    pub(in crate::control) fn check(&self) -> Result<(), &'static str> {
        if self.data.len() > ENTRY_BYTES_MAX {
            return Err("it carries an entry that is too long");
        }
        match self.change {
            MembersChange::Voters if self.data.is_empty() => {
                Err("it carries a change of voters that names none")
            }
            MembersChange::Leave if !self.data.is_empty() => Err("it carries the end of a change with data"),
            _ => Ok(()),
        }
    }
}

/// What raft reads of an entry that changes the voters, when one is proposed: that it does not end a joint configuration.
/// The change itself is made when the entry is applied. The bytes are made here and read by nobody else.
fn some_change() -> Vec<u8> {
    let mut change = ConfChangeV2::default();
    change.set_changes(vec![ConfChangeSingle::default()].into());
    change.write_to_bytes().expect("a message of two bytes is written to memory")
}

impl RaftMessage {
    /// `None` for what does not travel.
    pub(super) fn from_raft(mut message: eraftpb::Message) -> Option<RaftMessage> {
        Some(RaftMessage {
            kind: RaftMessageKind::from_raft(message.get_msg_type())?,
            from: NodeId::from_raft_id(message.from)?,
            to: NodeId::from_raft_id(message.to)?,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            commit: message.commit,
            commit_term: message.commit_term,
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.context.to_vec(),
            entries: message.take_entries().into_iter().map(RaftEntry::from_raft).collect(),
            snapshot: (message.get_msg_type() == MessageType::MsgSnapshot)
                .then(|| MapSnapshot::from_raft(message.get_snapshot())),
        })
    }

    pub(super) fn to_raft(&self) -> eraftpb::Message {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(self.kind.to_raft());
        message.from = self.from.raft_id();
        message.to = self.to.raft_id();
        message.term = self.term;
        message.log_term = self.log_term;
        message.index = self.index;
        message.commit = self.commit;
        message.commit_term = self.commit_term;
        message.reject = self.reject;
        message.reject_hint = self.reject_hint;
        message.context = self.context.clone().into();
        message.set_entries(self.entries.iter().map(RaftEntry::to_raft).collect::<Vec<_>>().into());
        if let Some(snapshot) = &self.snapshot {
            message.set_snapshot(snapshot.to_raft());
        }
        message
    }

    /// What is wrong with the message by itself, whoever receives it.
    pub(in crate::control) fn check(&self) -> Result<(), &'static str> {
        if self.term == 0 || self.term > RAFT_TERM_MAX {
            // Term 0 would pass for a local message.
            return Err("its term is out of range");
        }
        if self.context.len() > CONTEXT_BYTES_MAX {
            return Err("its context is too long");
        }
        if self.kind != RaftMessageKind::Append && !self.entries.is_empty() {
            return Err("it carries entries, which only an append does");
        }
        if (self.kind == RaftMessageKind::Snapshot) != self.snapshot.is_some() {
            return Err("it is a snapshot or has one, and not both");
        }
        if let Some(snapshot) = &self.snapshot {
            snapshot.check()?;
            if snapshot.term > self.term {
                return Err("its snapshot is of a later term");
            }
        }
        let (mut index, mut term) = (self.index, self.log_term);
        for entry in &self.entries {
            if index.checked_add(1) != Some(entry.index) {
                return Err("its entries are not in sequence");
            }
            if entry.term < term || entry.term > self.term {
                return Err("its entries' terms are not in order");
            }
            entry.check()?;
            (index, term) = (entry.index, entry.term);
        }
        Ok(())
    }
}
