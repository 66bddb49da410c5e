//! Driving the control log: what is proposed goes to its leader, what consensus has ready is sent, kept and applied.
//!
//! Invariant 9 rests on the order here: a message that says that something is kept leaves after the disk has it.

use std::time::Duration;

use lockgate_runtime::mutation;
use lockgate_runtime::sync::Arc;

use super::control_store::{self, Appended};
use super::driver::{Driver, DriverError};
use super::messages::ControlMessage;
use super::shared::Input;
use crate::control::{EntryBody, Persist, RaftMessage, encode_message, sets_voters};

/// A message has left after so many turns of its core: the peer's task, the link's writer, and the ring. Others wait for
/// what is committed while this node applies it.
const TURNS_TO_LEAVE: usize = 3;
/// So much later than voters a learner has its disk sync what it learned.
const LEARNER_SYNC_PAUSE: Duration = Duration::from_millis(1);

/// A ready of consensus that waits for the disk, or for earlier ones that do.
pub(super) struct Unpersisted {
    pub number: u64,
    /// Its record is synced, or it had none that must be.
    pub kept: bool,
    pub messages: Vec<RaftMessage>,
}

impl Driver {
    /// Hands what is to be proposed to the leader: all votes of this turn in one entry, all entries in one message.
    pub(super) fn flush(&mut self) {
        if !self.votes.is_empty() {
            let votes = std::mem::take(&mut self.votes);
            self.propose(EntryBody::CommitJobs(votes), None);
        }
        if !self.proposals.has_outgoing() && self.forwarded.is_empty() {
            return;
        }
        match self.raft.leader() {
            Some(leader) if leader == self.me.node => {
                let mut entries = self.proposals.take_outgoing();
                entries.append(&mut self.forwarded);
                // A change of voters goes apart from the others: it may have to wait while they need not.
                let (changes, entries): (Vec<_>, Vec<_>) =
                    entries.into_iter().partition(|entry| sets_voters(entry));
                for entries in std::iter::once(entries).chain(changes.into_iter().map(|change| vec![change]))
                {
                    // What is not taken now, its proposer repeats.
                    if let Err(error) = self.raft.propose(entries) {
                        tracing::info!(%error, "proposals not taken");
                    }
                }
            }
            Some(leader) => {
                // What others forwarded here by mistake they repeat themselves.
                self.forwarded.clear();
                let entries = self.proposals.take_outgoing();
                if !entries.is_empty() {
                    self.tell(leader, ControlMessage::Propose(entries));
                }
            }
            None => self.forwarded.clear(),
        }
    }

    /// Takes what consensus has ready: sends, keeps, applies. Records go to the disk while the next inputs are taken;
    /// the log syncs them in groups.
    pub(super) async fn drive_consensus(&mut self) -> Result<(), DriverError> {
        while let Some(ready) = self.raft.ready() {
            self.send_raft(ready.messages_now);
            let end = self.keep(ready.persist, ready.must_sync)?;
            let is_synced = ready.must_sync && !mutation!("control-log-sent-before-sync");
            // Nobody waits for a learner: its disk is left to those that somebody waits for.
            let pause = (!self.raft.votes(self.me.node)).then_some(LEARNER_SYNC_PAUSE);
            if let Some(end) = end.as_ref().filter(|_| is_synced && pause.is_none()) {
                self.log.request_sync(end);
            }
            if let Some(snapshot) = ready.snapshot {
                self.install(&snapshot)?;
            }
            if !ready.committed.is_empty() {
                for _ in 0..TURNS_TO_LEAVE {
                    lockgate_runtime::yield_now().await;
                }
                self.apply_committed(ready.committed);
            }
            self.rounds_confirmed(ready.rounds);
            let number = ready.number;
            let kept = match end {
                Some(end) if is_synced => {
                    self.syncing += 1;
                    let (log, shared) = (self.log.clone(), Arc::clone(&self.shared));
                    lockgate_runtime::spawn(async move {
                        if let Some(pause) = pause {
                            lockgate_runtime::sleep(pause).await;
                        }
                        let result = log.wait_synced(end).await;
                        shared.tell(Input::Persisted(number, result)).await;
                    });
                    false
                }
                _ => true,
            };
            self.unpersisted.push_back(Unpersisted { number, kept, messages: ready.messages_after });
            self.release_kept();
        }
        self.log.compact_if_due(&mut self.raft, &self.map)
    }

    /// Appends what consensus must keep. Where it is no more than how far the log is committed, that is noted with what is
    /// appended next, or with the next tick: it is a help at the next start, and promised to nobody.
    fn keep(&mut self, mut persist: Persist, must_sync: bool) -> Result<Option<Appended>, DriverError> {
        let noted = persist.hard_state.or(self.to_note.take());
        if !must_sync {
            self.to_note = noted;
            return Ok(None);
        }
        persist.hard_state = noted;
        control_store::append(&self.log, &persist)
    }

    /// Appends how far the log is committed, if that was not done yet.
    pub(super) fn note_commit(&mut self) -> Result<(), DriverError> {
        let hard_state = self.to_note.take();
        control_store::append(&self.log, &Persist { hard_state, ..Persist::default() })?;
        Ok(())
    }

    /// The log is synced in order: with one record all earlier ones are kept too.
    pub(super) fn on_persisted(&mut self, number: u64) {
        for unpersisted in self.unpersisted.iter_mut().take_while(|unpersisted| unpersisted.number <= number)
        {
            unpersisted.kept = true;
        }
        self.release_kept();
    }

    /// Sends what had to wait, as far as everything before it is kept.
    fn release_kept(&mut self) {
        while let Some(first) = self.unpersisted.pop_front_if(|first| first.kept) {
            self.send_raft(first.messages);
            self.raft.on_persisted(first.number);
        }
    }

    fn send_raft(&mut self, mut messages: Vec<RaftMessage>) {
        // Who asked waits for the outcome, a majority's acknowledgements decide it; nobody waits for a learner.
        messages.sort_by_key(|message| {
            let to = message.to;
            (self.asked_by != Some(to), !self.raft.votes(to))
        });
        for message in messages {
            match encode_message(&message) {
                Ok(bytes) => self.tell(message.to, ControlMessage::Raft(bytes)),
                Err(error) => {
                    tracing::error!(to = message.to.0, %error, "message of the control log cannot be sent")
                }
            }
        }
    }
}
