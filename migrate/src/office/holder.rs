//! A primary's side of its shard's lease: what to ask for, and until when it may serve.
//!
//! Invariants
//! - A lease runs from the moment when its request was sent, so that nobody's clock is compared with another's (R6).
//! - A grant counts for the reign and the request that it names; one that was asked for before [`LeaseHolder::yield_now`]
//!   counts for nothing.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::control::{Epoch, ShardId};

/// Requests whose answers may still come; older ones would grant a lease that is over.
const ASKS_MAX: usize = 16;

/// The lease of the shard that this node leads.
#[derive(Debug, Default)]
pub struct LeaseHolder {
    reign: Option<(ShardId, Epoch)>,
    next_nonce: u64,
    /// Requests on their way, with when they were sent.
    asks: VecDeque<(u64, u64)>,
    /// The last request of this reign that was granted; 0 for none.
    granted: u64,
    serve_until_ns: u64,
    next_ask_ns: u64,
    yields: bool,
}

/// What a holder asks of the control leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseAsk {
    /// The shard.
    pub shard: ShardId,
    /// The reign that the holder has applied.
    pub epoch: Epoch,
    /// Names the request.
    pub nonce: u64,
    /// The last request of this reign that was granted; 0 for none.
    pub granted: u64,
    /// Whether the holder has a lease of this reign that is not over: then some leader has seen all earlier ones over.
    pub holding: bool,
}

impl LeaseHolder {
    /// The reign that the applied map gives this node; `None` if it leads nothing. A new one begins without a lease.
    pub fn reigns(&mut self, reign: Option<(ShardId, Epoch)>) {
        if self.reign != reign {
            let next_nonce = self.next_nonce;
            *self = LeaseHolder { reign, next_nonce, ..LeaseHolder::default() };
        }
    }

    /// The request to send now, if one is due.
    pub fn ask(&mut self, now_ns: u64, renewal_ns: u64) -> Option<LeaseAsk> {
        let (shard, epoch) = self.reign?;
        if now_ns < self.next_ask_ns || self.yields {
            return None;
        }
        // A lease that runs out for want of an answer is asked for more often.
        let is_late = self.asks.len() > 1;
        self.next_ask_ns = now_ns + if is_late { renewal_ns / 4 } else { renewal_ns };
        self.next_nonce += 1;
        self.asks.push_back((self.next_nonce, now_ns));
        if self.asks.len() > ASKS_MAX {
            self.asks.pop_front();
        }
        let holding = now_ns < self.serve_until_ns;
        Some(LeaseAsk { shard, epoch, nonce: self.next_nonce, granted: self.granted, holding })
    }

    /// The next request is due at once: what an earlier one was refused for, or lost by, has changed, or it has news.
    pub fn ask_soon(&mut self) {
        self.next_ask_ns = 0;
    }

    /// A grant. Returns until when this node may serve, if it counts.
    pub fn granted(&mut self, shard: ShardId, epoch: Epoch, nonce: u64, length_ns: u64) -> Option<u64> {
        if self.reign != Some((shard, epoch)) {
            return None;
        }
        let at = self.asks.iter().position(|(asked, _)| *asked == nonce)?;
        let (_, sent_ns) = self.asks[at];
        self.asks.drain(..=at);
        self.granted = nonce;
        // Who was silent so far is so to the control leader until a request says that a grant came.
        if self.serve_until_ns < sent_ns {
            self.ask_soon();
        }
        self.serve_until_ns = self.serve_until_ns.max(sent_ns + length_ns);
        Some(self.serve_until_ns)
    }

    /// Gives the lease up: nothing is served under it from now on, and what was asked for grants nothing. Returns the last
    /// request that this holds for: a lease that is asked for later is another one.
    pub fn yield_now(&mut self) -> u64 {
        self.asks.clear();
        self.serve_until_ns = 0;
        self.yields = true;
        self.next_nonce
    }

    /// The hand-over did not come about: the lease is asked for again.
    pub fn resume(&mut self) {
        self.yields = false;
        self.ask_soon();
    }

    /// Whether it was given up for a hand-over.
    pub fn yields(&self) -> bool {
        self.yields
    }

    /// Whether any lease was granted for this reign: then all leases of earlier ones are over.
    pub fn was_granted(&self) -> bool {
        self.granted != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(1);

    fn reigning(epoch: u64) -> LeaseHolder {
        let mut holder = LeaseHolder::default();
        holder.reigns(Some((SHARD, Epoch(epoch))));
        holder
    }

    #[test]
    fn a_lease_runs_from_its_request() {
        let mut holder = reigning(1);
        let first = holder.ask(100, 50).unwrap();
        assert_eq!((first.granted, first.holding), (0, false));
        assert_eq!(holder.ask(120, 50), None, "not due yet");
        assert_eq!(holder.granted(SHARD, Epoch(1), first.nonce, 400), Some(500));
        let second = holder.ask(150, 50).unwrap();
        assert_eq!((second.granted, second.holding), (first.nonce, true));
        assert!(!holder.ask(501, 50).unwrap().holding, "it is over");
    }

    #[test]
    fn the_first_grant_after_a_gap_is_answered_at_once() {
        let mut holder = reigning(1);
        for sent_ns in [100, 1_000] {
            let first = holder.ask(sent_ns, 50).unwrap();
            holder.granted(SHARD, Epoch(1), first.nonce, 400);
            let second = holder.ask(sent_ns + 1, 50).unwrap();
            assert_eq!((second.granted, second.holding), (first.nonce, true));
            holder.granted(SHARD, Epoch(1), second.nonce, 400);
            assert_eq!(holder.ask(sent_ns + 2, 50), None, "there was no gap any more");
        }
    }

    #[test]
    fn grants_of_other_reigns_and_repeated_ones_count_for_nothing() {
        let mut holder = reigning(1);
        let old = holder.ask(100, 50).unwrap();
        holder.reigns(Some((SHARD, Epoch(2))));
        assert_eq!(holder.granted(SHARD, Epoch(1), old.nonce, 400), None);
        assert_eq!(holder.granted(SHARD, Epoch(2), old.nonce, 400), None, "asked for under another reign");
        let new = holder.ask(200, 50).unwrap();
        assert!(new.nonce > old.nonce && !holder.was_granted());
        assert_eq!(holder.granted(SHARD, Epoch(2), new.nonce, 400), Some(600));
        assert_eq!(holder.granted(SHARD, Epoch(2), new.nonce, 900), None, "each request once");
        holder.reigns(None);
        assert_eq!(holder.ask(1_000, 50), None);
    }

    #[test]
    fn an_older_answer_does_not_shorten_the_lease() {
        let mut holder = reigning(1);
        let first = holder.ask(100, 50).unwrap();
        let second = holder.ask(150, 50).unwrap();
        assert_eq!(holder.granted(SHARD, Epoch(1), second.nonce, 400), Some(550));
        assert_eq!(holder.granted(SHARD, Epoch(1), first.nonce, 400), None, "a later one was granted");
    }

    #[test]
    fn what_was_yielded_stays_yielded_until_it_is_asked_for_again() {
        let mut holder = reigning(1);
        let asked = holder.ask(100, 50).unwrap();
        holder.yield_now();
        assert_eq!(holder.granted(SHARD, Epoch(1), asked.nonce, 400), None);
        assert_eq!(holder.ask(1_000, 50), None);
        holder.resume();
        let again = holder.ask(1_000, 50).unwrap();
        assert!(!again.holding);
        assert_eq!(holder.granted(SHARD, Epoch(1), again.nonce, 400), Some(1_400));
    }

    #[test]
    fn without_answers_it_is_asked_for_more_often() {
        let mut holder = reigning(1);
        let asks = (0..1_000).filter(|now| holder.ask(*now, 80).is_some()).count();
        assert!(asks > 1_000 / 80 + 5, "{asks}");
        assert!(holder.asks.len() <= ASKS_MAX);
    }
}
