//! The control leader's side of leases: who may have one, and which may still be running (R6, R16).
//!
//! A lease is granted as the answer to a request, only
//! (a) by a leader that has applied an entry of its own term: the driver says so by [`Grantor::leads`];
//! (b) after a quorum round that began after the request came: [`Grantor::begin_round`], [`Grantor::confirmed`];
//! (c) if the holder has applied the last committed entry that touches the shard;
//! (d) if every lease that any leader may have granted for earlier reigns of that shard is over.
//!
//! For (d) a new leader knows nothing of its forerunners' grants but this: such a grant had its quorum round before this
//! leader was elected, so its request was sent before, and it is over one lease after the election. A holder that has a
//! lease of the present reign already proves that some leader has seen the earlier ones over.

use std::collections::BTreeMap;

use lockgate_runtime::mutation;

use super::holder::LeaseAsk;
use super::times::Times;
use crate::control::{ClusterMap, Epoch, Incarnation, JobId, NodeId, ShardId};

/// A holder's request as it reached the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Who asks.
    pub from: NodeId,
    /// Under which boot.
    pub boot: u64,
    /// The last index of the control log that it has applied.
    pub applied: u64,
    /// What it asks.
    pub ask: LeaseAsk,
}

/// A lease that is granted: to be sent to its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who holds it.
    pub to: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// The reign.
    pub epoch: Epoch,
    /// The request that it answers.
    pub nonce: u64,
    /// How long it runs from when the request was sent. In nanoseconds.
    pub length_ns: u64,
}

/// What was granted for one shard by this leader.
#[derive(Clone, Copy, Debug)]
struct Leased {
    epoch: Epoch,
    holder: Incarnation,
    /// The last request that was granted.
    nonce: u64,
    /// By this node's clock the lease is over then, at any allowed drift.
    over_ns: u64,
}

/// One term of leadership.
struct Leading {
    term: u64,
    since_ns: u64,
    waiting: Vec<Ask>,
    rounds: BTreeMap<u64, Vec<Ask>>,
    leased: BTreeMap<ShardId, Leased>,
    /// Committed jobs: when no lease is left whose holder may not have applied the commit.
    releases: BTreeMap<JobId, u64>,
}

/// Grants leases while this node leads the control log.
pub struct Grantor {
    times: Times,
    leading: Option<Leading>,
    last_round: u64,
}

impl Grantor {
    /// A grantor of a node that does not lead.
    pub fn new(times: Times) -> Grantor {
        Grantor { times, leading: None, last_round: 0 }
    }

    /// Whether this node leads and has applied an entry of its own term (a), and under which term.
    pub fn leads(&mut self, term: Option<u64>, now_ns: u64) {
        if self.leading.as_ref().map(|leading| leading.term) != term {
            self.leading = term.map(|term| Leading {
                term,
                since_ns: now_ns,
                waiting: Vec::new(),
                rounds: BTreeMap::new(),
                leased: BTreeMap::new(),
                releases: BTreeMap::new(),
            });
        }
    }

    /// Since when this node has led; `None` if it does not.
    pub fn leads_since_ns(&self) -> Option<u64> {
        self.leading.as_ref().map(|leading| leading.since_ns)
    }

    /// A request came. The last one of each shard counts.
    pub fn ask(&mut self, ask: Ask) {
        if let Some(leading) = &mut self.leading {
            leading.waiting.retain(|other| other.ask.shard != ask.ask.shard || other.from != ask.from);
            leading.waiting.push(ask);
        }
    }

    /// The number of a quorum round to begin now, if requests wait for one.
    pub fn begin_round(&mut self) -> Option<u64> {
        let leading = self.leading.as_mut().filter(|leading| !leading.waiting.is_empty())?;
        self.last_round += 1;
        leading.rounds.insert(self.last_round, std::mem::take(&mut leading.waiting));
        Some(self.last_round)
    }

    /// A quorum has confirmed this round, and so all that began before it; everything that was committed when it began is
    /// applied to `map`.
    pub fn confirmed(&mut self, round: u64, map: &ClusterMap, now_ns: u64) -> Vec<Grant> {
        let Some(leading) = &mut self.leading else { return Vec::new() };
        let later = leading.rounds.split_off(&(round + 1));
        let asks: Vec<Ask> = std::mem::replace(&mut leading.rounds, later).into_values().flatten().collect();
        asks.into_iter().filter_map(|ask| self.judge(&ask, map, now_ns)).collect()
    }

    fn judge(&mut self, ask: &Ask, map: &ClusterMap, now_ns: u64) -> Option<Grant> {
        let leading = self.leading.as_mut()?;
        let LeaseAsk { shard: id, epoch, nonce, holding, .. } = ask.ask;
        let shard = map.shards.get(&id)?;
        let holder = shard.primary;
        let is_boot = holder.boot == ask.boot || mutation!("restarted-primary-serves-at-once");
        let is_primary = holder.node == ask.from && is_boot && shard.epoch == epoch;
        let has_applied = ask.applied >= shard.changed_index || mutation!("lease-to-who-lags");
        if !is_primary || !has_applied {
            return None;
        }
        let earlier_over_ns = match leading.leased.get(&id) {
            Some(leased) if leased.epoch == epoch => 0,
            // A data directory has one process: the holder's next boot proves that the last one has ended.
            Some(leased) if map.known_boot(leased.holder.node) > Some(leased.holder.boot) => 0,
            Some(leased) => leased.over_ns,
            None if holding || epoch == Epoch(1) => 0,
            None => leading.since_ns.saturating_add(self.times.lease_over_ns()),
        };
        if now_ns < earlier_over_ns && !mutation!("lease-before-the-last-is-over") {
            return None;
        }
        let before_ns = leading.leased.get(&id).filter(|leased| leased.epoch == epoch);
        let over_ns = now_ns + self.times.lease_over_ns();
        let over_ns = before_ns.map_or(over_ns, |leased| leased.over_ns.max(over_ns));
        let nonce_max = before_ns.map_or(nonce, |leased| leased.nonce.max(nonce));
        leading.leased.insert(id, Leased { epoch, holder, nonce: nonce_max, over_ns });
        Some(Grant { to: ask.from, shard: id, epoch, nonce, length_ns: self.times.lease_ns })
    }

    /// A holder has given up what it had asked for up to request `nonce`, and serves nothing under it any more. A word that
    /// comes so late that a later request was granted speaks of another lease.
    pub fn yielded(&mut self, from: NodeId, shard: ShardId, epoch: Epoch, nonce: u64) {
        let Some(leading) = &mut self.leading else { return };
        let is_over = |ask: &Ask| ask.ask.shard == shard && ask.from == from && ask.ask.nonce <= nonce;
        leading.waiting.retain(|ask| !is_over(ask));
        leading.rounds.values_mut().for_each(|asks| asks.retain(|ask| !is_over(ask)));
        if let Some(leased) = leading.leased.get_mut(&shard)
            && (leased.epoch, leased.holder.node) == (epoch, from)
            && leased.nonce <= nonce
        {
            leased.over_ns = 0;
        }
    }

    /// This commit was just applied here. Later leases go only to who has applied it, too: `touched` is its source shard.
    pub fn committed(&mut self, job: JobId, source: ShardId) {
        if let Some(leading) = &mut self.leading {
            let bound_ns = leading.since_ns.saturating_add(self.times.lease_over_ns());
            let over_ns = leading.leased.get(&source).map_or(bound_ns, |leased| leased.over_ns);
            leading.releases.insert(job, over_ns);
        }
    }

    /// Whether no lease of the source can be running whose holder might not have applied this commit: then the leader's
    /// word releases the slots as well as the source's (R16).
    pub fn may_release(&mut self, map: &ClusterMap, job: JobId, now_ns: u64) -> bool {
        let Some(leading) = &mut self.leading else { return false };
        leading.releases.retain(|job, _| map.jobs.get(job).is_some_and(|job| !job.state.is_finished()));
        let bound_ns = leading.since_ns.saturating_add(self.times.lease_over_ns());
        // A lease of a later term of this node's is no earlier than its election, as for (d).
        leading.releases.get(&job).copied().unwrap_or(bound_ns) <= now_ns
            || mutation!("released-under-a-lease")
    }
}
