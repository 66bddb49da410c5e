//! The links of the simulated network: for each ordered pair of machines how long bytes take, and whether they pass.

use std::collections::BTreeMap;

use super::faults::LinkFaults;
use super::random::Random;

/// When what was lost comes by its retransmission, in nanoseconds, from and to.
const RETRANSMISSION_NS: (u64, u64) = (200_000_000, 1_000_000_000);
/// The first retransmission after a blocked link is free again comes after this at least, and this at most.
const UNBLOCKED_NS: (u64, u64) = (1_000_000, 2_000_000_000);

/// From and to.
pub(super) type Pair = (usize, usize);

/// All links.
#[derive(Debug)]
pub(super) struct Links {
    /// Since when.
    blocked: BTreeMap<Pair, u64>,
    faults: BTreeMap<Pair, LinkFaults>,
    default: LinkFaults,
    /// Until when a link with limited bandwidth is occupied.
    busy_until_ns: BTreeMap<Pair, u64>,
}

impl Links {
    pub(super) fn new() -> Self {
        Self {
            blocked: BTreeMap::new(),
            faults: BTreeMap::new(),
            default: LinkFaults::default(),
            busy_until_ns: BTreeMap::new(),
        }
    }

    pub(super) fn block(&mut self, pair: Pair, now_ns: u64) {
        self.blocked.entry(pair).or_insert(now_ns);
    }

    /// Frees a link. Returns since when it was blocked.
    pub(super) fn unblock(&mut self, pair: Pair) -> Option<u64> {
        self.blocked.remove(&pair)
    }

    pub(super) fn is_blocked(&self, pair: Pair) -> bool {
        self.blocked.contains_key(&pair)
    }

    pub(super) fn blocked_pairs(&self) -> Vec<Pair> {
        self.blocked.keys().copied().collect()
    }

    pub(super) fn set(&mut self, pair: Pair, faults: LinkFaults) {
        self.faults.insert(pair, faults);
    }

    pub(super) fn set_default(&mut self, faults: LinkFaults) {
        self.default = faults;
    }

    pub(super) fn clear_faults(&mut self) {
        self.faults.clear();
        self.busy_until_ns.clear();
        self.default = LinkFaults::default();
    }

    /// The link of a pair. The default is not for what a machine sends to itself.
    pub(super) fn of(&self, pair: Pair) -> LinkFaults {
        match self.faults.get(&pair) {
            Some(faults) => *faults,
            None if pair.0 == pair.1 => LinkFaults::default(),
            None => self.default,
        }
    }

    /// When `bytes` that are sent now arrive.
    pub(super) fn arrival_ns(&mut self, pair: Pair, bytes: usize, now_ns: u64, random: &mut Random) -> u64 {
        let link = self.of(pair);
        let mut sent_ns = now_ns;
        if let Some(bytes_per_s) = link.bytes_per_s {
            let busy_until_ns = self.busy_until_ns.entry(pair).or_insert(0);
            let took_ns = (bytes as u64).saturating_mul(1_000_000_000) / bytes_per_s.max(1);
            *busy_until_ns = now_ns.max(*busy_until_ns).saturating_add(took_ns);
            sent_ns = *busy_until_ns;
        }
        let mut at_ns = sent_ns.saturating_add(random.between(link.latency_ns.0, link.latency_ns.1));
        if random.one_in(link.loss_one_in) {
            at_ns = at_ns.saturating_add(random.between(RETRANSMISSION_NS.0, RETRANSMISSION_NS.1));
        }
        at_ns
    }
}

/// Draws when a sender tries again that was held up for `held_ns`.
pub(super) fn next_try_ns(held_ns: u64, random: &mut Random) -> u64 {
    random.between(UNBLOCKED_NS.0, held_ns.clamp(UNBLOCKED_NS.0, UNBLOCKED_NS.1))
}
