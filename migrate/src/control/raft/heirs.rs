//! Handing the lead over, and giving it up.
//!
//! Raft 0.7 lets a leader that is no voter any more lead on: it stays the leader of a group that it does not count in, and
//! if it dies nobody has heard from a leader that could be elected. Here such a leader tells the best heir to campaign and
//! follows, as soon as the change that took its vote is applied. Until then it leads: the old majority still counts.

use std::cmp::Reverse;

use raft::INVALID_ID;

use super::core::RaftCore;
use crate::control::types::NodeId;

impl RaftCore {
    /// Hands the lead to `node` as soon as that has the whole log. Until then, at most for the time of an election,
    /// proposals are refused as busy; if it does not come to it, this member leads on. False if this member does not lead,
    /// or `node` is itself or no voter.
    pub fn transfer_to(&mut self, node: NodeId) -> bool {
        if !self.is_leader() || node == self.id || !self.members().voters.contains(&node) {
            return false;
        }
        self.raw.transfer_leader(node.raft_id());
        true
    }

    /// Who is best to lead next: of the other voters the one that has most of the log. `None` on who does not lead, and
    /// where there is no other voter.
    pub fn best_heir(&self) -> Option<NodeId> {
        if !self.is_leader() {
            return None;
        }
        let progress = self.raw.raft.prs();
        let voters = self.members().voters;
        let others = voters.into_iter().filter(|node| *node != self.id);
        others.max_by_key(|node| {
            let (matched, active) =
                progress.get(node.raft_id()).map_or((0, false), |heir| (heir.matched, heir.recent_active));
            (matched, active, Reverse(*node))
        })
    }

    /// To be called when a change of the voters took effect.
    pub(super) fn step_down_if_no_voter(&mut self) {
        if !self.is_leader() || self.is_voter(self.id) {
            return;
        }
        if let Some(heir) = self.best_heir() {
            self.raw.raft.send_timeout_now(heir.raft_id());
        }
        let term = self.term();
        self.raw.raft.become_follower(term, INVALID_ID);
        self.keep_election_timeout();
    }
}
