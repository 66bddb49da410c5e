//! Entries that this node wants in the control log: numbered, repeated until they are applied, answered once.
//!
//! A repeat carries the same origin and the same bytes, so that it can be refused as a duplicate where it matters.

use std::collections::{BTreeMap, BTreeSet};

use futures_channel::oneshot;

use crate::control::{Entry, EntryBody, Incarnation, Origin, Outcome, encode_entry};

/// After this time without an outcome an entry is sent again.
const REPEAT_NS: u64 = 300_000_000;

struct Pending {
    body: EntryBody,
    bytes: Vec<u8>,
    sent_ns: u64,
    reply: Option<oneshot::Sender<Outcome>>,
}

/// This node's undecided entries.
pub(crate) struct Proposals {
    me: Incarnation,
    next_seq: u64,
    pending: BTreeMap<u64, Pending>,
    /// Undecided entries that must reach the leader with the next flush: each once, however long there is none.
    outgoing: BTreeSet<u64>,
}

impl Proposals {
    pub fn new(me: Incarnation) -> Self {
        Self { me, next_seq: 1, pending: BTreeMap::new(), outgoing: BTreeSet::new() }
    }

    /// Adds an entry; `reply` hears its outcome when it has been applied here.
    pub fn add(&mut self, body: EntryBody, at_ms: u64, now_ns: u64, reply: Option<oneshot::Sender<Outcome>>) {
        let origin = Origin { node: self.me.node, boot: self.me.boot, seq: self.next_seq };
        self.next_seq += 1;
        let entry = Entry { origin, at_ms, body };
        let bytes = match encode_entry(&entry) {
            Ok(bytes) => bytes,
            // Bodies are checked where they are made: this one would be refused by every node. Its waiter sees it dropped.
            Err(error) => {
                tracing::error!(kind = entry.body.kind(), %error, "entry not proposed");
                return;
            }
        };
        self.outgoing.insert(origin.seq);
        self.pending.insert(origin.seq, Pending { body: entry.body, bytes, sent_ns: now_ns, reply });
    }

    /// Whether an undecided entry matches.
    pub fn any(&self, matches: impl Fn(&EntryBody) -> bool) -> bool {
        self.pending.values().any(|pending| matches(&pending.body))
    }

    /// An entry was applied: if it is one of ours, its waiter hears the outcome.
    pub fn applied(&mut self, origin: &Origin, outcome: &Outcome) {
        if (origin.node, origin.boot) != (self.me.node, self.me.boot) {
            return;
        }
        if let Some(pending) = self.pending.remove(&origin.seq)
            && let Some(reply) = pending.reply
        {
            // A waiter that has gone away is no fault.
            let _ = reply.send(outcome.clone());
        }
    }

    /// Puts entries that have waited too long for their outcome back on the way.
    pub fn repeat_overdue(&mut self, now_ns: u64) {
        for (&seq, pending) in &mut self.pending {
            if now_ns.saturating_sub(pending.sent_ns) > REPEAT_NS {
                pending.sent_ns = now_ns;
                self.outgoing.insert(seq);
            }
        }
    }

    /// The entries to send now.
    pub fn take_outgoing(&mut self) -> Vec<Vec<u8>> {
        let outgoing = std::mem::take(&mut self.outgoing);
        outgoing.iter().filter_map(|seq| self.pending.get(seq)).map(|pending| pending.bytes.clone()).collect()
    }

    /// Entries that could not be sent (no leader is known) wait for their repeat; none is lost.
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }
}
