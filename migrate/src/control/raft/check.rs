//! What a member believes before it acts: messages that raft would end the process over, and a log that contradicts itself.

use raft::eraftpb;

use super::core::RaftCore;
use super::message::{RaftMessage, RaftMessageKind};
use super::types::{HardState, RaftConfig, Restored};
use crate::control::types::NodeId;

impl RaftCore {
    pub(super) fn is_voter(&self, node: NodeId) -> bool {
        self.raw.raft.prs().conf().voters().contains(node.raft_id())
    }

    pub(super) fn check(&self, message: &RaftMessage) -> Result<(), &'static str> {
        message.check()?;
        let raft = &self.raw.raft;
        if message.to != self.id {
            return Err("it is addressed to another node");
        }
        if message.from == self.id {
            return Err("its sender is this node");
        }
        // Who asks may be a member that this one has yet to hear of: the entries that made it one, or gave it a vote, may
        // be what it sends. Answers come only from those who were asked.
        if message.kind.is_response() && raft.prs().get(message.from.raft_id()).is_none() {
            return Err("its sender is not a member");
        }
        if message.term < raft.term {
            return Ok(());
        }
        let last_index = raft.raft_log.last_index();
        if message.kind == RaftMessageKind::Heartbeat && message.commit > last_index {
            return Err("it commits what this node acknowledged but does not have: its log was lost");
        }
        let acknowledges = message.kind == RaftMessageKind::AppendResponse && !message.reject;
        if acknowledges && self.is_leader() && message.term == raft.term && message.index > last_index {
            return Err("it acknowledges what was never written");
        }
        Ok(())
    }
}

/// The hard state to start with after `start` (index, term), if the log and it go together: raft panics on what does not.
pub(super) fn check_restored(
    config: &RaftConfig,
    start: (u64, u64),
    restored: &Restored,
) -> Result<eraftpb::HardState, String> {
    if config.voters.is_empty() || config.id.0 == 0 || config.election_ticks < 2 {
        return Err("it needs a voter, a node number above 0, and at least 2 ticks to an election".to_owned());
    }
    let (mut index, mut term) = start;
    for entry in &restored.entries {
        if entry.index != index + 1 || entry.term < term {
            return Err(format!(
                "entry {} of term {} follows entry {index} of term {term}",
                entry.index, entry.term
            ));
        }
        entry.check().map_err(|what| format!("entry {}: {what}", entry.index))?;
        (index, term) = (entry.index, entry.term);
    }
    let first = HardState { term: start.1, vote: 0, commit: start.0 };
    let kept = restored.hard_state.unwrap_or(first);
    if kept.term < term {
        return Err(format!("its term is {}, but its last entry is of term {term}", kept.term));
    }
    if kept.commit > index {
        return Err(format!("entry {} is committed, but its last entry is {index}", kept.commit));
    }
    let commit = kept.commit.max(start.0);
    Ok(eraftpb::HardState { term: kept.term, vote: kept.vote, commit, ..Default::default() })
}
