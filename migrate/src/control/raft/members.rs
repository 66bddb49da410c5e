//! Who takes part: learners come and go, and voters change by joint consensus.
//!
//! A change of the voters is an entry like any other, and an entry of raft's own kind too. When it is committed, the owner
//! applies it to the map and says what came of it ([`RaftCore::finish_change`]); only then does raft's configuration
//! follow. If more than one vote changes, that is a joint one, in which both majorities count; the leader ends it by an
//! entry that raft proposes by itself.
//!
//! Invariants
//! - The configuration follows from the snapshot and the entries after it, in order: equal on all members at an index.
//! - One change at a time: a second is not proposed before the first is applied and the joint configuration is over.
//! - A change is proposed only by a leader that has applied an entry of its own term.
//! - Raft refuses to touch learners while a configuration is joint. What comes then waits for its end, and is part of the
//!   configuration ([`Members::later`]).
//! - Who loses its vote goes on as a learner: only the entry that removes the node takes it out.

use raft::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};
use serde::{Deserialize, Serialize};

use super::core::RaftCore;
use super::message::{MembersChange, RaftEntry};
use crate::control::types::NodeId;

/// A configuration of the control log: who takes part, at one index. All lists are in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Who learns.
    pub learners: Vec<NodeId>,
    /// While the configuration is joint: the voters before the change, whose majority counts too.
    pub outgoing: Vec<NodeId>,
    /// Those of them who learn once it is over.
    pub learners_next: Vec<NodeId>,
    /// Learners who come (true) or go once it is over.
    pub later: Vec<(NodeId, bool)>,
}

impl Members {
    /// A configuration that is not joint.
    pub fn new(voters: Vec<NodeId>, learners: Vec<NodeId>) -> Members {
        Members { voters, learners, ..Members::default() }
    }

    /// Whether both the majority of `voters` and that of `outgoing` count.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether a node is in it: raft lets only such a one take a snapshot of it.
    pub fn takes_part(&self, node: NodeId) -> bool {
        [&self.voters, &self.learners, &self.outgoing].iter().any(|list| list.binary_search(&node).is_ok())
    }

    /// What contradicts itself, if anything. Raft panics on such a configuration.
    pub(in crate::control) fn check(&self) -> Result<(), &'static str> {
        let lists = [&self.voters, &self.learners, &self.outgoing, &self.learners_next];
        let ordered = |nodes: &Vec<NodeId>| nodes.is_sorted_by(|a, b| a < b) && !nodes.contains(&NodeId(0));
        if self.voters.is_empty() || !lists.into_iter().all(ordered) {
            return Err("its lists of members are not in order");
        }
        let votes = |node: &NodeId| self.voters.contains(node) || self.outgoing.contains(node);
        if self.learners.iter().any(votes) {
            return Err("it has a learner that votes");
        }
        let leaves = |node: &NodeId| self.outgoing.contains(node) && !self.voters.contains(node);
        if !self.learners_next.iter().all(leaves) || (!self.is_joint() && !self.later.is_empty()) {
            return Err(
                "it has changes that wait for the end of a joint configuration, and none that is joint",
            );
        }
        Ok(())
    }

    pub(super) fn to_raft(&self) -> ConfState {
        let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.raft_id()).collect();
        ConfState {
            voters: ids(&self.voters),
            learners: ids(&self.learners),
            voters_outgoing: ids(&self.outgoing),
            learners_next: ids(&self.learners_next),
            auto_leave: self.is_joint(),
            ..ConfState::default()
        }
    }

    fn from_raft(state: &ConfState, later: Vec<(NodeId, bool)>) -> Members {
        let nodes = |ids: &[u64]| {
            let mut nodes: Vec<NodeId> = ids.iter().filter_map(|id| NodeId::from_raft_id(*id)).collect();
            nodes.sort_unstable();
            nodes
        };
        Members {
            voters: nodes(&state.voters),
            learners: nodes(&state.learners),
            outgoing: nodes(&state.voters_outgoing),
            learners_next: nodes(&state.learners_next),
            later,
        }
    }

    /// Raft's words for the way from here to `voters`.
    fn change_to(&self, voters: &[NodeId]) -> ConfChangeV2 {
        let single = |node: &NodeId, how| {
            let mut single = ConfChangeSingle::default();
            single.set_change_type(how);
            single.node_id = node.raft_id();
            single
        };
        let new = voters.iter().filter(|node| !self.voters.contains(node));
        let old = self.voters.iter().filter(|node| !voters.contains(node));
        let changes = new.map(|node| single(node, ConfChangeType::AddNode));
        let changes = changes.chain(old.map(|node| single(node, ConfChangeType::AddLearnerNode)));
        let mut change = ConfChangeV2::default();
        change.set_changes(changes.collect::<Vec<_>>().into());
        change
    }
}

impl RaftCore {
    /// The configuration at the last applied index.
    pub fn members(&self) -> Members {
        Members::from_raft(&self.raw.raft.prs().conf().to_conf_state(), self.learners_later.clone())
    }

    /// Whether an entry that changes the voters may be proposed now.
    pub fn can_change_voters(&self) -> bool {
        self.has_applied_own_term()
            && self.undecided.is_empty()
            && !self.raw.raft.has_pending_conf()
            && !self.members().is_joint()
    }

    /// What the map made of the committed entry at `index` whose `change` is [`MembersChange::Voters`]: the voters that it
    /// has now, or `None` if it refused. To be called for each such entry when it is applied, in order with the others,
    /// before the next [`RaftCore::ready`]. Panics otherwise: a member that loses count votes by another configuration
    /// than the others.
    pub fn finish_change(&mut self, index: u64, voters: Option<&[NodeId]>) {
        let first = self.undecided.pop_front();
        assert_eq!(first, Some((index, MembersChange::Voters)), "changes of voters are finished in order");
        if let Some(voters) = voters {
            let change = self.members().change_to(voters);
            if !change.get_changes().is_empty() {
                self.apply_change(&change);
            }
        }
        self.settle_changes();
    }

    /// Notes what was handed out to be applied. Raft hears that it is applied when all of its changes are finished.
    pub(super) fn await_changes(&mut self, committed: &[RaftEntry]) {
        let changes = committed.iter().filter(|entry| entry.change != MembersChange::None);
        self.undecided.extend(changes.map(|entry| (entry.index, entry.change)));
        if let Some(last) = committed.last() {
            self.apply_to = Some(last.index);
        }
        self.settle_changes();
    }

    fn settle_changes(&mut self) {
        while self.undecided.pop_front_if(|(_, change)| *change == MembersChange::Leave).is_some() {
            self.leave_joint();
        }
        if !self.undecided.is_empty() {
            return;
        }
        if let Some(index) = self.apply_to.take() {
            let last = self.raw.raft.raft_log.last_index();
            self.raw.advance_apply_to(index);
            if self.raw.raft.raft_log.last_index() > last {
                // Raft proposed the end of a joint configuration, and would let it wait for the next heartbeat.
                self.raw.raft.bcast_append();
            }
        }
    }

    fn leave_joint(&mut self) {
        // Two leaders may each have proposed the end.
        if !self.members().is_joint() {
            return;
        }
        self.apply_change(&ConfChangeV2::default());
        for (node, comes) in std::mem::take(&mut self.learners_later) {
            self.change_learner(node, comes);
        }
    }

    fn apply_change(&mut self, change: &ConfChangeV2) {
        if let Err(error) = self.raw.apply_conf_change(change) {
            panic!("raft refused a change of voters that follows from its configuration: {error}");
        }
        self.step_down_if_no_voter();
        self.keep_election_timeout();
    }

    /// A node joined: it learns the log from now on. To be called when its entry is applied, on every member. Nothing
    /// happens if it takes part already.
    pub fn add_learner(&mut self, node: NodeId) {
        self.change_learner(node, true);
    }

    /// A node left. To be called when its entry is applied, on every member. The map removes no voter; who votes here
    /// still stays until it does not.
    pub fn remove_learner(&mut self, node: NodeId) {
        self.change_learner(node, false);
    }

    fn change_learner(&mut self, node: NodeId, comes: bool) {
        let members = self.members();
        if members.is_joint() {
            self.learners_later.push((node, comes));
            return;
        }
        if members.voters.contains(&node) {
            return;
        }
        let mut change = ConfChange::default();
        change.set_change_type(if comes {
            ConfChangeType::AddLearnerNode
        } else {
            ConfChangeType::RemoveNode
        });
        change.node_id = node.raft_id();
        if let Err(error) = self.raw.apply_conf_change(&change) {
            panic!("raft refused a change of learners: {error}");
        }
    }
}
