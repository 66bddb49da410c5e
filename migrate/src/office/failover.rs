//! The control leader's failovers: who is silent, who could lead instead, who shall (R12).
//!
//! A shard fails over when its primary has been silent for the node timeout, when it was started again, or when it hands
//! over. Members that could lead are *fenced* first: they take nothing more from the old reign, sync all that they hold,
//! and report how far each slot is. Of those the most complete one is named, slot by slot.
//!
//! Invariants
//! - Only who is in sync under its present boot is named; the last primary's own node, started again, only if it is known
//!   to hold all that it acknowledged, or if nobody else is in sync.
//! - Nothing here decides: the entry does, and its preconditions check the map's half of the above again.

use std::collections::BTreeMap;

use lockgate_runtime::mutation;
use serde::{Deserialize, Serialize};

use super::times::Times;
use crate::control::{ClusterMap, Epoch, Incarnation, NodeId, Shard, ShardId};

/// How far a member is with one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlotPosition {
    /// Slot number.
    pub slot: u16,
    /// Term of its last version there.
    pub term: u64,
    /// Counter of its last version there.
    pub counter: u64,
}

/// What a fenced member says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceReport {
    /// The shard.
    pub shard: ShardId,
    /// The reign that it refuses from now on.
    pub epoch: Epoch,
    /// The boot that it speaks for.
    pub boot: u64,
    /// Whether everything that this node ever acknowledged is certainly here: nothing that it had written was lost since.
    pub holds_all: bool,
    /// Its slots that hold anything, in order; all of it is synced.
    pub positions: Vec<SlotPosition>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Ask this member to refuse that reign, and to report.
    Fence {
        /// The member.
        to: NodeId,
        /// Its shard.
        shard: ShardId,
        /// The reign that may end.
        epoch: Epoch,
    },
    /// Propose this failover.
    Promote {
        /// The shard.
        shard: ShardId,
        /// The reign that ends.
        expected_epoch: Epoch,
        /// Who leads from now on.
        primary: Incarnation,
        /// Whether it is known to hold all that it acknowledged as the last primary.
        holds_all: bool,
    },
}

#[derive(Clone, Copy)]
struct Heard {
    epoch: Epoch,
    granted: u64,
    at_ns: u64,
}

/// A hand-over that a primary asked for.
#[derive(Clone, Copy)]
struct Planned {
    epoch: Epoch,
    to: NodeId,
    since_ns: u64,
}

struct Running {
    epoch: Epoch,
    since_ns: u64,
    fenced_ns: u64,
    reports: BTreeMap<NodeId, FenceReport>,
}

/// The failovers that a control leader has under way.
pub struct Failovers {
    times: Times,
    since_ns: Option<u64>,
    has_looked: bool,
    heard: BTreeMap<ShardId, Heard>,
    planned: BTreeMap<ShardId, Planned>,
    running: BTreeMap<ShardId, Running>,
}

impl Failovers {
    /// None, of a node that does not lead.
    pub fn new(times: Times) -> Failovers {
        Failovers {
            times,
            since_ns: None,
            has_looked: false,
            heard: BTreeMap::new(),
            planned: BTreeMap::new(),
            running: BTreeMap::new(),
        }
    }

    /// Since when this node leads; `None` if it does not. A new leader has heard of everybody just now.
    pub fn leads_since(&mut self, since_ns: Option<u64>) {
        if self.since_ns != since_ns {
            *self = Failovers { since_ns, ..Failovers::new(self.times) };
        }
    }

    /// A primary asked for its lease, and got the last one under request `granted`. Only progress shows that both ways are
    /// open: one that is heard but hears nothing cannot serve.
    pub fn heard(&mut self, shard: ShardId, epoch: Epoch, granted: u64, now_ns: u64) {
        let heard = self.heard.entry(shard).or_insert(Heard { epoch, granted, at_ns: now_ns });
        if heard.epoch < epoch || (heard.epoch == epoch && heard.granted < granted) {
            *heard = Heard { epoch, granted, at_ns: now_ns };
        }
    }

    /// A primary serves no more and wants `to` to lead.
    pub fn hand_over(&mut self, shard: ShardId, epoch: Epoch, to: NodeId, now_ns: u64) {
        self.planned.insert(shard, Planned { epoch, to, since_ns: now_ns });
    }

    /// A member's word.
    pub fn report(&mut self, from: NodeId, report: FenceReport) {
        if let Some(running) = self.running.get_mut(&report.shard)
            && running.epoch == report.epoch
        {
            running.reports.insert(from, report);
        }
    }

    /// What is to be done now. `undecided`: a failover of that shard is on its way through the log.
    pub fn look(&mut self, map: &ClusterMap, now_ns: u64, undecided: impl Fn(ShardId) -> bool) -> Vec<Move> {
        let mut moves = Vec::new();
        let Some(since_ns) = self.since_ns else { return moves };
        // Shards that come later are heard of when they are first seen.
        let first_ns = if std::mem::replace(&mut self.has_looked, true) { now_ns } else { since_ns };
        self.heard.retain(|shard, _| map.shards.contains_key(shard));
        self.running.retain(|shard, _| map.shards.contains_key(shard));
        // Leases are safe whenever a failover comes: these bugs have it come before the timeout has waited for them.
        let is_early = mutation!("lease-before-the-last-is-over") || mutation!("released-before-a-lease");
        let timeout_ns = self.times.node_timeout_ns / if is_early { 4 } else { 1 };
        self.planned.retain(|shard, planned| {
            let same = map.shards.get(shard).is_some_and(|shard| shard.epoch == planned.epoch);
            same && now_ns.saturating_sub(planned.since_ns) < timeout_ns
        });
        for (&id, shard) in &map.shards {
            let first = Heard { epoch: shard.epoch, granted: 0, at_ns: first_ns };
            let heard = self.heard.entry(id).or_insert(first);
            if heard.epoch < shard.epoch {
                *heard = Heard { epoch: shard.epoch, granted: 0, at_ns: now_ns };
            }
            let is_silent = now_ns.saturating_sub(heard.at_ns) >= timeout_ns;
            let planned = self.planned.get(&id).map(|planned| planned.to);
            if !(is_silent || planned.is_some() || was_restarted(map, shard)) {
                self.running.remove(&id);
                continue;
            }
            let running = self.running.entry(id).or_insert(Running {
                epoch: shard.epoch,
                since_ns: now_ns,
                fenced_ns: 0,
                reports: BTreeMap::new(),
            });
            if running.epoch != shard.epoch {
                *running =
                    Running { epoch: shard.epoch, since_ns: now_ns, fenced_ns: 0, reports: BTreeMap::new() };
            }
            running.look(&self.times, map, id, planned, now_ns, undecided(id), &mut moves);
        }
        moves
    }
}

/// Whether the primary's node is known by a later boot than the one that leads.
fn was_restarted(map: &ClusterMap, shard: &Shard) -> bool {
    map.known_boot(shard.primary.node).is_some_and(|boot| boot > shard.primary.boot)
}

impl Running {
    #[allow(clippy::too_many_arguments, reason = "one look at one shard, split off for its length")]
    fn look(
        &mut self,
        times: &Times,
        map: &ClusterMap,
        id: ShardId,
        planned: Option<NodeId>,
        now_ns: u64,
        undecided: bool,
        moves: &mut Vec<Move>,
    ) {
        let shard = &map.shards[&id];
        let candidates = candidates(map, shard);
        let reported: Vec<(Incarnation, &FenceReport)> = candidates
            .iter()
            .filter_map(|candidate| Some((*candidate, self.reports.get(&candidate.node)?)))
            .filter(|(candidate, report)| report.boot == candidate.boot)
            .collect();
        let able: Vec<(Incarnation, &FenceReport)> = reported
            .iter()
            .copied()
            .filter(|(candidate, report)| may_lead(shard, candidate, report))
            .collect();
        let chosen = match planned {
            Some(to) => able.iter().find(|(candidate, _)| candidate.node == to).copied(),
            None => {
                let all = reported.len() == candidates.len();
                // Others may be more complete, but all that was acknowledged is with each of them.
                let waited = now_ns.saturating_sub(self.since_ns) >= times.renewal_ns / 2;
                (all || waited).then(|| most_complete(&able)).flatten()
            }
        };
        if let Some((primary, report)) = chosen {
            if !undecided {
                let holds_all = report.holds_all;
                moves.push(Move::Promote { shard: id, expected_epoch: shard.epoch, primary, holds_all });
            }
            return;
        }
        if now_ns.saturating_sub(self.fenced_ns) >= times.renewal_ns / 4 {
            self.fenced_ns = now_ns;
            let silent = candidates.iter().filter(|candidate| !self.reports.contains_key(&candidate.node));
            moves.extend(silent.map(|to| Move::Fence { to: to.node, shard: id, epoch: shard.epoch }));
        }
    }
}

/// Who could lead the shard next: its in-sync replicas, and its primary's node if that was started again.
fn candidates(map: &ClusterMap, shard: &Shard) -> Vec<Incarnation> {
    let known = |node: &NodeId| map.nodes.get(node).map(|info| info.incarnation);
    let is_in_sync = |candidate: &Incarnation| {
        shard.in_sync.get(&candidate.node) == Some(&candidate.boot)
            || mutation!("promotes-who-is-not-in-sync")
    };
    let replicas = shard.replicas.iter().filter_map(known).filter(is_in_sync);
    let primary = was_restarted(map, shard).then(|| known(&shard.primary.node)).flatten();
    replicas.chain(primary).collect()
}

/// Whether a fenced candidate has all that was acknowledged.
fn may_lead(shard: &Shard, candidate: &Incarnation, report: &FenceReport) -> bool {
    let is_last_primary = candidate.node == shard.primary.node;
    let alone = shard.in_sync.keys().all(|node| *node == candidate.node);
    !is_last_primary || alone || report.holds_all
}

/// The candidate that is behind nobody in the most slots; the first of equals.
fn most_complete<'a>(able: &[(Incarnation, &'a FenceReport)]) -> Option<(Incarnation, &'a FenceReport)> {
    let mut best: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
    for position in able.iter().flat_map(|(_, report)| &report.positions) {
        let here = (position.term, position.counter);
        let last = best.entry(position.slot).or_insert(here);
        *last = here.max(*last);
    }
    let leads_in = |report: &FenceReport| {
        let is_best = |at: &&SlotPosition| best.get(&at.slot) == Some(&(at.term, at.counter));
        report.positions.iter().filter(is_best).count()
    };
    let mut chosen: Option<(usize, (Incarnation, &FenceReport))> = None;
    for &(candidate, report) in able {
        let slots = leads_in(report);
        if chosen.is_none_or(|(most, _)| slots > most) {
            chosen = Some((slots, (candidate, report)));
        }
    }
    chosen.map(|(_, chosen)| chosen)
}
