//! Quorum rounds: whether this member still leads, asked of a majority from now on.
//!
//! Raft's ReadIndex: the round's context travels in heartbeats and comes back in their answers. Who answers had not seen a
//! later term when it answered, so a majority's answers to a question that was asked after T prove that nobody else was
//! elected before T. A lease may be granted on that (R6b).
//!
//! Invariants
//! - A context names the term, a number that is never used twice, and the round: an answer to one round never counts for
//!   another, also if the caller uses a number again.
//! - Only who votes may begin one. Raft confirms a round at once where there is one voter, without asking whether that is
//!   the leader itself.

use raft::ReadState;

use super::core::RaftCore;

const CONTEXT_BYTES: usize = 24;

/// What a round's heartbeats carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context {
    term: u64,
    sequence: u64,
    round: u64,
}

impl Context {
    fn to_bytes(self) -> Vec<u8> {
        [self.term, self.sequence, self.round].iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Context> {
        let bytes: &[u8; CONTEXT_BYTES] = bytes.try_into().ok()?;
        let mut numbers = bytes.as_chunks::<8>().0.iter().map(|number| u64::from_le_bytes(*number));
        Some(Context { term: numbers.next()?, sequence: numbers.next()?, round: numbers.next()? })
    }
}

impl RaftCore {
    /// Begins a quorum round now: a later [`super::Ready::rounds`] names `round` when a majority has answered. False, and
    /// nothing begins, if this member does not lead, does not vote, or has not committed an entry of its term.
    ///
    /// A round that was begun under a term that is over is never named: who waits for one gives it up when
    /// [`RaftCore::term`] or [`RaftCore::is_leader`] changes.
    pub fn begin_round(&mut self, round: u64) -> bool {
        if !self.is_leader() || !self.is_voter(self.id) || !self.raw.raft.commit_to_current_term() {
            return false;
        }
        self.rounds_begun += 1;
        let context = Context { term: self.term(), sequence: self.rounds_begun, round };
        self.raw.read_index(context.to_bytes());
        true
    }

    /// The round that was confirmed and the index that was committed when it began, if this member still leads under the
    /// term that it was begun under.
    pub(super) fn confirmed(&self, state: &ReadState) -> Option<(u64, u64)> {
        let context = Context::from_bytes(&state.request_ctx)?;
        (self.is_leader() && context.term == self.term()).then_some((context.round, state.index))
    }
}
