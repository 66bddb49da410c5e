//! Which log positions a follower must see synced before it may say "synced". Pure.
//!
//! Invariants:
//! - One round is under way at a time; everything that arrives meanwhile belongs to the next one. So however many
//!   messages arrive, there is at most one wait per log, and syncs are shared.
//! - `synced <= received`; a message counts as synced only when every position that its ranges led to is.
//! - What is held is one position per log, and one entry per subscription.

use std::collections::BTreeMap;

use lockgate_engine::LogTicket;

use super::message::{Ack, Subscription};

/// See the top of the file. Lives as long as one link.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    ack: Ack,
    /// For the next round: the highest position per core.
    tickets: BTreeMap<u32, LogTicket>,
    /// For the next round: subscriptions whose cursors it covers.
    cursors: Vec<Subscription>,
}

/// What is to be awaited, and what holds then.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Round {
    pub(super) tickets: Vec<LogTicket>,
    received: u64,
    pub(super) cursors: Vec<Subscription>,
}

impl Syncs {
    /// How far the follower is.
    pub(super) fn ack(&self) -> Ack {
        self.ack
    }

    /// A range was applied and led to this position.
    pub(super) fn applied(&mut self, ticket: LogTicket) {
        let highest = self.tickets.entry(ticket.core).or_insert(ticket);
        if ticket.position > highest.position {
            *highest = ticket;
        }
    }

    /// All ranges of the messages up to this one were applied (or were not wanted).
    pub(super) fn received(&mut self, sequence: u64) {
        debug_assert!(sequence >= self.ack.received, "messages come in order");
        self.ack.received = sequence;
    }

    /// A subscription began with data whose last write is at this position.
    pub(super) fn cursor(&mut self, subscription: Subscription, ticket: LogTicket) {
        self.applied(ticket);
        self.cursors.push(subscription);
    }

    /// The next round, if there is something to wait for.
    pub(super) fn begin(&mut self) -> Option<Round> {
        if self.ack.synced == self.ack.received && self.cursors.is_empty() {
            return None;
        }
        Some(Round {
            tickets: std::mem::take(&mut self.tickets).into_values().collect(),
            received: self.ack.received,
            cursors: std::mem::take(&mut self.cursors),
        })
    }

    /// All positions of the round are synced.
    pub(super) fn done(&mut self, round: &Round) {
        assert!(round.received <= self.ack.received, "synced is never ahead of received");
        self.ack.synced = round.received;
    }
}

#[cfg(test)]
mod tests {
    use lockgate_engine::{Slot, log::LogPosition};

    use super::*;

    fn ticket(core: u32, position: u64) -> LogTicket {
        LogTicket { core, position: LogPosition(position) }
    }

    #[test]
    fn rounds_cover_what_was_received_before_them() {
        let mut syncs = Syncs::default();
        assert_eq!(syncs.begin(), None);
        for (core, position) in [(0, 10), (1, 5), (0, 30), (0, 20)] {
            syncs.applied(ticket(core, position));
        }
        syncs.received(2);
        let round = syncs.begin().unwrap();
        assert_eq!(round.tickets, [ticket(0, 30), ticket(1, 5)]);
        syncs.applied(ticket(0, 40));
        syncs.received(3);
        syncs.done(&round);
        assert_eq!(syncs.ack(), Ack { received: 3, synced: 2 });
        let round = syncs.begin().unwrap();
        assert_eq!(round.tickets, [ticket(0, 40)]);
        syncs.done(&round);
        assert_eq!(syncs.begin(), None);
    }

    #[test]
    fn a_round_begun_in_the_middle_of_a_message_does_not_cover_it() {
        let mut syncs = Syncs::default();
        syncs.received(1);
        syncs.applied(ticket(0, 10));
        let round = syncs.begin().unwrap();
        syncs.applied(ticket(0, 20));
        syncs.received(2);
        syncs.done(&round);
        assert_eq!(syncs.ack(), Ack { received: 2, synced: 1 });
        assert_eq!(syncs.begin().unwrap().tickets, [ticket(0, 20)]);
    }

    #[test]
    fn cursors_are_covered_without_a_message() {
        let mut syncs = Syncs::default();
        let subscription = Subscription { slot: Slot::new(3).unwrap(), subscription: 1 };
        syncs.cursor(subscription, ticket(1, 7));
        let round = syncs.begin().unwrap();
        assert_eq!((&round.tickets[..], &round.cursors[..]), (&[ticket(1, 7)][..], &[subscription][..]));
        syncs.done(&round);
        assert_eq!(syncs.begin(), None);
    }
}
