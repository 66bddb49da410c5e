//! The control log's consensus, without I/O: messages, ticks and proposals in; messages to send, records to keep and
//! decided entries out. A wrapper around the `raft` crate that closes its traps.
//!
//! How a driver runs it: after any `step`, `tick` or `propose` it calls [`RaftCore::ready`] until there is nothing. Of each
//! [`Ready`] it sends `messages_now` at once, applies `committed` at once and in order (and says what came of each entry that
//! sets the voters: [`RaftCore::finish_change`]), or installs `snapshot` before that, appends `persist` to its log, and
//! when that is on disk it sends `messages_after` and calls [`RaftCore::on_persisted`], in the order of the numbers; then it
//! calls `ready` again. It may go on stepping and ticking while a record is on its way to the disk.
//!
//! Invariants and traps:
//! - A promise leaves only after it is kept: `messages_after`. A leader's appends may overtake its own disk, because it
//!   counts itself only when its entries are persisted. But not while its own term and vote are not: a cluster's only voter
//!   elects itself in one step, and after a crash would elect itself again *under the same term* and give learners another
//!   entry of the same index and term. So its messages wait then.
//! - What a majority has is decided, whatever this member's own disk has: it is applied at once. After a crash the member may
//!   know less, as of every commit that it had not noted: it hears of it again, under a new boot, before it serves.
//! - Who is not a leader and has records on their way to the disk does not campaign: raft asserts that a new leader's log is
//!   persisted, and a node whose disk hangs should not lead.
//! - Election timeouts come from the driver's randomness, drawn anew whenever raft draws from its own.
//! - Raft panics on some messages that no correct member sends (a heartbeat that commits what this node does not have, an
//!   acknowledgement of what the leader never wrote). [`RaftCore::step`] refuses these with an error that names the sender.
//! - A quorum round's answers are told apart by term and number: see [`RaftCore::begin_round`].
//! - How members change is told in `members`, and what becomes of a leader that loses its vote in `heirs`.

use std::collections::{BTreeMap, VecDeque};

use raft::eraftpb::{self, MessageType};
use raft::{Config, RawNode, StateRole};

use super::check::check_restored;
use super::logger::logger;
use super::members::Members;
use super::message::{
    APPEND_BYTES_MAX, ENTRY_BYTES_MAX, MembersChange, RaftEntry, RaftMessage, RaftMessageKind,
};
use super::snapshot::{Installing, MapSnapshot};
use super::storage::MemoryLog;
use super::types::{
    HardState, Persist, ProposeError, Proposed, RaftConfig, RaftError, RaftStatus, Ready, Restored, Role,
};
use crate::control::codec::sets_voters;
use crate::control::types::NodeId;

/// Appends to one member that may be under way at once.
const INFLIGHT_MAX: usize = 16;
/// Proposals that are not decided yet hold at most this much together; beyond it they are refused.
const UNCOMMITTED_BYTES_MAX: usize = 16 << 20;

const _: () = assert!(UNCOMMITTED_BYTES_MAX >= ENTRY_BYTES_MAX && UNCOMMITTED_BYTES_MAX >= APPEND_BYTES_MAX);

/// One member of the control log.
pub struct RaftCore {
    pub(super) raw: RawNode<MemoryLog>,
    pub(super) id: NodeId,
    random: Box<dyn FnMut() -> u64>,
    pub(super) election_ticks: usize,
    /// The timeout in force, and what raft was when it was drawn.
    election_timeout: usize,
    drawn_for: (u64, StateRole, u64),
    /// Numbers of what was handed out and is not persisted yet.
    persisting: VecDeque<u64>,
    /// The term and vote that were last handed out, and the number of the `Ready` that did if it is not persisted yet.
    vote: (u64, u64),
    vote_persisting: Option<u64>,
    /// How many quorum rounds were begun, so that no two have the same name.
    pub(super) rounds_begun: u64,
    /// Changes of the configuration that were handed out to be applied and are not finished.
    pub(super) undecided: VecDeque<(u64, MembersChange)>,
    /// Where raft is applied to once they are.
    pub(super) apply_to: Option<u64>,
    /// The last index that was handed out to be applied. Raft's own is lower while entries are on their way to the disk.
    handed_out: u64,
    /// Nothing is handed out that the disk does not have.
    in_step: bool,
    /// Learners who come or go once the configuration is not joint any more.
    pub(super) learners_later: Vec<(NodeId, bool)>,
    /// What was last handed out to be kept.
    pub(super) hard_state: HardState,
    pub(super) tail_entries: usize,
    pub(super) installing: Installing,
    /// On a leader: who was sent a snapshot, and how many ticks ago.
    pub(super) snapshots_sent: BTreeMap<u64, usize>,
}

impl RaftCore {
    /// A member that goes on from what its disk kept.
    pub fn new(
        config: &RaftConfig,
        restored: Restored,
        random: Box<dyn FnMut() -> u64>,
    ) -> Result<RaftCore, RaftError> {
        let start = |why: String| RaftError::Start { why };
        let (begin, members) = match &restored.snapshot {
            Some(snapshot) => ((snapshot.index, snapshot.term), snapshot.members.clone()),
            None => (
                (config.start_index, config.start_term),
                Members::new(config.voters.clone(), config.learners.clone()),
            ),
        };
        members.check().map_err(|what| start(what.to_owned()))?;
        let hard_state = check_restored(config, begin, &restored).map_err(start)?;
        let vote = (hard_state.term, hard_state.vote);
        let kept = HardState { term: hard_state.term, vote: hard_state.vote, commit: hard_state.commit };
        let entries = restored.entries.iter().map(RaftEntry::to_raft).collect();
        let log = MemoryLog::new(begin, restored.snapshot, hard_state, members.to_raft(), entries);
        let raft_config = Config {
            id: config.id.raft_id(),
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: begin.0,
            max_size_per_msg: APPEND_BYTES_MAX as u64,
            max_inflight_msgs: INFLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX as u64,
            ..Config::default()
        };
        raft_config.validate().map_err(|error| start(error.to_string()))?;
        let raw = RawNode::new(&raft_config, log, &logger()).map_err(|error| start(error.to_string()))?;
        let mut core = RaftCore {
            raw,
            id: config.id,
            random,
            election_ticks: config.election_ticks,
            election_timeout: 0,
            drawn_for: (0, StateRole::Follower, 0),
            persisting: VecDeque::new(),
            vote,
            vote_persisting: None,
            rounds_begun: 0,
            undecided: VecDeque::new(),
            apply_to: None,
            handed_out: begin.0,
            in_step: false,
            learners_later: members.later,
            hard_state: kept,
            tail_entries: config.tail_entries,
            installing: Installing::default(),
            snapshots_sent: BTreeMap::new(),
        };
        core.draw_election_timeout();
        Ok(core)
    }

    /// Takes a message from another member.
    pub fn step(&mut self, message: RaftMessage) -> Result<(), RaftError> {
        let (from, kind) = (message.from, message.kind);
        let bad = |why| RaftError::BadMessage { from, kind, why };
        self.check(&message).map_err(bad)?;
        if kind == RaftMessageKind::TimeoutNow && !self.persisting.is_empty() {
            return Ok(());
        }
        let result = self.raw.step(message.to_raft());
        self.keep_election_timeout();
        // What is left are refusals of messages that came too late, or from who just left.
        result.map_err(|_| bad("it does not fit this member's state"))
    }

    /// Time has passed.
    pub fn tick(&mut self) {
        if !self.persisting.is_empty() && !self.is_leader() {
            return;
        }
        self.raw.tick();
        self.tick_snapshots();
        self.keep_election_timeout();
    }

    /// Proposes encoded entries, all in one step, so that they share messages and syncs. At most one of them may set the
    /// voters, and only while [`RaftCore::can_change_voters`]: otherwise none is taken.
    pub fn propose(&mut self, entries: Vec<Vec<u8>>) -> Result<Proposed, ProposeError> {
        if !self.is_leader() {
            return Err(self
                .leader()
                .map_or(ProposeError::NoLeader, |leader| ProposeError::NotLeader { leader }));
        }
        if let Some(wrong) = entries.iter().find(|data| data.is_empty() || data.len() > ENTRY_BYTES_MAX) {
            return Err(ProposeError::EntryLength { len: wrong.len() });
        }
        let changes = entries.iter().filter(|data| sets_voters(data)).count();
        if changes > 1 || (changes == 1 && !self.can_change_voters()) {
            // Raft would put an empty entry into its place, without a word.
            return Err(ProposeError::VotersChange);
        }
        let proposed = Proposed { term: self.term(), first_index: self.raw.raft.raft_log.last_index() + 1 };
        if entries.is_empty() {
            return Ok(proposed);
        }
        let mut message = eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.id.raft_id();
        let entries = entries.into_iter().map(|data| {
            let change = if sets_voters(&data) { MembersChange::Voters } else { MembersChange::None };
            RaftEntry { data, change, ..RaftEntry::default() }.to_raft()
        });
        message.set_entries(entries.collect::<Vec<_>>().into());
        self.raw.step(message).map_err(|_| ProposeError::Busy)?;
        Ok(proposed)
    }

    /// What is to be done next, if anything.
    pub fn ready(&mut self) -> Option<Ready> {
        assert!(self.undecided.is_empty(), "a change of voters was applied and not finished");
        if !self.raw.has_ready() && self.installing.kept.is_none() {
            return None;
        }
        let mut ready = self.raw.ready();
        let number = ready.number();
        let states = ready.take_read_states();
        let rounds = states.iter().filter_map(|state| self.confirmed(state)).collect();
        let hard_state =
            ready.hs().map(|state| HardState { term: state.term, vote: state.vote, commit: state.commit });
        if let Some(state) = hard_state.filter(|state| (state.term, state.vote) != self.vote) {
            self.vote = (state.term, state.vote);
            self.vote_persisting = Some(number);
        }
        let mut messages_now = to_send(ready.take_messages());
        let mut messages_after = to_send(ready.take_persisted_messages());
        if self.vote_persisting.is_some() {
            messages_after.splice(0..0, messages_now.drain(..));
        }
        self.hard_state = hard_state.unwrap_or(self.hard_state);
        let received = (!ready.snapshot().is_empty()).then(|| MapSnapshot::from_raft(ready.snapshot()));
        if let Some(snapshot) = &received {
            self.receive_snapshot(number, snapshot);
        }
        let entries = ready.take_entries();
        self.raw.mut_store().append(&entries);
        let entries = entries.into_iter().map(RaftEntry::from_raft).collect();
        let persist = Persist { snapshot: received, hard_state, entries };
        let mut committed: Vec<RaftEntry> =
            ready.take_committed_entries().into_iter().map(RaftEntry::from_raft).collect();
        let must_sync = ready.must_sync();
        self.raw.advance_append_async(ready);
        self.await_changes(&committed);
        self.persisting.push_back(number);
        let snapshot = self.installing.kept.take();
        self.hand_out(snapshot.as_ref(), &mut committed);
        Some(Ready { number, messages_now, persist, must_sync, messages_after, snapshot, committed, rounds })
    }

    /// Leaves out of what raft has to be applied what was handed out before, and adds what a majority has but this disk.
    fn hand_out(&mut self, snapshot: Option<&MapSnapshot>, committed: &mut Vec<RaftEntry>) {
        let from = snapshot.map_or(self.handed_out, |snapshot| snapshot.index.max(self.handed_out));
        committed.retain(|entry| entry.index > from);
        let mut handed_out = committed.last().map_or(from, |last| last.index);
        // A change of the members is applied when raft says so, and so is what follows it.
        if !self.in_step && self.undecided.is_empty() && !self.installing.is_keeping() {
            let early = self.raw.store().range(handed_out, self.raw.raft.raft_log.committed);
            let early = early.iter().cloned().map(RaftEntry::from_raft);
            committed.extend(early.take_while(|entry| entry.change == MembersChange::None));
            handed_out = committed.last().map_or(handed_out, |last| last.index);
        }
        self.handed_out = handed_out;
    }

    /// Whether entries are handed out only when this member's disk has them. Otherwise what a majority has is enough.
    pub fn stay_in_step(&mut self, in_step: bool) {
        self.in_step = in_step;
    }

    /// The record of this `Ready` is kept. Panics unless it is the oldest that was not: the log has an order.
    pub fn on_persisted(&mut self, number: u64) {
        assert_eq!(
            self.persisting.pop_front(),
            Some(number),
            "records of the raft log are persisted in order"
        );
        if self.vote_persisting.is_some_and(|vote| vote <= number) {
            self.vote_persisting = None;
        }
        self.raw.on_persist_ready(number);
        self.snapshot_persisted(number);
        self.keep_election_timeout();
    }

    /// Who leads, as far as this member knows.
    pub fn leader(&self) -> Option<NodeId> {
        NodeId::from_raft_id(self.raw.raft.leader_id)
    }

    /// Whether this member leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The highest raft term that this member has seen.
    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// Whether this member leads and has handed out an entry of its own term: only then does its map hold everything that
    /// was decided before it led (R6).
    pub fn has_applied_own_term(&self) -> bool {
        self.is_leader() && self.raw.raft.apply_to_current_term()
    }

    /// The last index that was handed out to be applied and is on this member's disk, or that of a snapshot which is kept.
    pub fn applied(&self) -> u64 {
        self.raw.raft.raft_log.applied
    }

    /// Whether this node votes, by the configuration at the last applied index.
    pub fn votes(&self, node: NodeId) -> bool {
        self.is_voter(node)
    }

    /// Whether a `Ready` was handed out that is not persisted yet.
    pub fn is_persisting(&self) -> bool {
        !self.persisting.is_empty()
    }

    /// Figures for operators.
    pub fn status(&self) -> RaftStatus {
        let raft = &self.raw.raft;
        let role = match raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate | StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        };
        let mut matched = Vec::new();
        if role == Role::Leader {
            let others = raft.prs().iter().filter(|(id, _)| **id != raft.id);
            matched.extend(
                others.filter_map(|(id, progress)| Some((NodeId::from_raft_id(*id)?, progress.matched))),
            );
            matched.sort_unstable();
        }
        RaftStatus {
            role,
            leader: self.leader(),
            term: raft.term,
            committed: raft.raft_log.committed,
            applied: raft.raft_log.applied,
            last_index: raft.raft_log.last_index(),
            persisted: raft.raft_log.persisted,
            matched,
        }
    }

    /// Puts this node's own timeout back in place, with a new one whenever raft drew one: that is when the term, the role
    /// or the leader changed.
    pub(super) fn keep_election_timeout(&mut self) {
        let raft = &self.raw.raft;
        if self.drawn_for != (raft.term, raft.state, raft.leader_id) {
            self.draw_election_timeout();
        } else {
            self.raw.raft.set_randomized_election_timeout(self.election_timeout);
        }
    }

    fn draw_election_timeout(&mut self) {
        let spread = (self.random)() % self.election_ticks as u64;
        self.election_timeout = self.election_ticks + spread as usize;
        let raft = &mut self.raw.raft;
        raft.set_randomized_election_timeout(self.election_timeout);
        self.drawn_for = (raft.term, raft.state, raft.leader_id);
    }
}

fn to_send(messages: Vec<eraftpb::Message>) -> Vec<RaftMessage> {
    messages.into_iter().filter_map(RaftMessage::from_raft).collect()
}
