//! What each follower has acknowledged, slot by slot, and whether an answer may be given.
//!
//! Invariants
//! - An answer depends on a version of one slot and on a position of one log; it is given only when every member of
//!   the in-sync set has acknowledged that version, and this node's log has passed that position (R8).
//! - While a change of the set is undecided, the old *and* the new set must have acknowledged (R11).
//! - A follower's table is emptied when its stream ends: what a new stream has not confirmed does not count.
//! - With no replica in sync, an answer waits for this node's own sync (R2).
//! - What was written in one reign is not acknowledged in another: a new primary may not have it. Nothing that followers
//!   said in one reign counts in the next.

use std::collections::BTreeMap;

use lockgate_engine::log::LogFailed;
use lockgate_engine::{Engine, LogTicket, Slot, Term, Version};
use lockgate_runtime::sync::atomic::{AtomicU64, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{Event, mutation};

use crate::control::NodeId;

const SLOTS: usize = lockgate_engine::SLOTS as usize;

/// What an answer of a primary waits for, beside its own log's `written`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AckPolicy {
    /// Nobody else: a failover may lose what was acknowledged, and reads are not linearizable across one.
    Primary,
    /// Every in-sync replica has received it. The default.
    #[default]
    InSync,
    /// Every in-sync replica has received it and synced it, and so has this node.
    InSyncSynced,
}

/// What one answer rests on: a slot's version, and where this node's log holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// The slot that was read or written.
    pub slot: Slot,
    /// The version that was answered, or the slot's last one where nothing was found.
    pub version: Version,
    /// End of that write in this node's log.
    pub ticket: LogTicket,
    /// The reign of this node that the operation was done in, see [`ReplicaAcks::reign`].
    pub reign: u64,
}

/// Why an answer can never be given.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AckFailed {
    /// This node's log failed.
    #[error(transparent)]
    Log(#[from] LogFailed),
    /// Another reign has begun: whether its primary has the write is not known here.
    #[error("this node does not lead its shard any more")]
    Deposed,
}

/// The counters that one follower has acknowledged, by slot.
struct FollowerTable {
    boot: u64,
    received: Box<[AtomicU64]>,
    synced: Box<[AtomicU64]>,
}

impl FollowerTable {
    fn new(boot: u64) -> Self {
        let zeros = || (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        Self { boot, received: zeros(), synced: zeros() }
    }
}

/// Those whose acknowledgement an answer needs: the map's in-sync set, and members about to join it.
#[derive(Default)]
struct Required {
    members: BTreeMap<NodeId, u64>,
    joining: BTreeMap<NodeId, u64>,
}

/// The last time that this node gave a slot away: under which term, and in which of its reigns. The reign is stored first and
/// loaded last: who sees a term sees its reign, or a later one, which covers less.
#[derive(Default)]
struct Released {
    term: AtomicU64,
    reign: AtomicU64,
}

/// All that followers have acknowledged to this node. `Send + Sync`; written by feeders, read by whoever answers.
pub struct ReplicaAcks {
    followers: Mutex<BTreeMap<NodeId, Arc<FollowerTable>>>,
    required: Mutex<Arc<Vec<Arc<FollowerTable>>>>,
    wanted: Mutex<Required>,
    /// How this node gave slots away: what it had written before, in that reign, is covered by that commit's barrier.
    released: Box<[Released]>,
    /// Which of its shard's reigns this node leads; 0 for none.
    reign: AtomicU64,
    changed: Event,
}

impl Default for ReplicaAcks {
    fn default() -> Self {
        Self {
            followers: Mutex::new(BTreeMap::new()),
            required: Mutex::new(Arc::new(Vec::new())),
            wanted: Mutex::new(Required::default()),
            released: (0..SLOTS).map(|_| Released::default()).collect(),
            reign: AtomicU64::new(0),
            changed: Event::new(),
        }
    }
}

impl ReplicaAcks {
    /// Notes what `node` has of a slot. Called by the feeder that serves it.
    pub fn acknowledged(&self, node: NodeId, boot: u64, slot: Slot, received: Version, synced: Version) {
        let table = self.table(node, boot);
        table.received[slot.index()].store(received.counter, Ordering::Release);
        table.synced[slot.index()].store(synced.counter, Ordering::Release);
    }

    /// The reign that operations are done in now: different for each; 0 while this node leads nothing. To be read before
    /// the operation.
    pub fn reign(&self) -> u64 {
        self.reign.load(Ordering::Acquire)
    }

    /// Another reign begins, or none. What waits for acknowledgements of the last one waits in vain, and is told so.
    pub fn begin_reign(&self, reign: u64) {
        if self.reign.swap(reign, Ordering::AcqRel) == reign {
            return;
        }
        let mut followers = self.followers.lock();
        for table in followers.values_mut() {
            *table = Arc::new(FollowerTable::new(table.boot));
        }
        drop(followers);
        self.refresh();
    }

    /// Wakes those who wait for acknowledgements; once per message of a follower, not once per slot.
    pub fn wake(&self) {
        self.changed.notify_all();
    }

    /// The stream to `node` ended: nothing that it said before counts any more.
    pub fn disconnected(&self, node: NodeId, boot: u64) {
        let mut followers = self.followers.lock();
        if followers.get(&node).is_some_and(|table| table.boot == boot) {
            followers.insert(node, Arc::new(FollowerTable::new(boot)));
        }
        drop(followers);
        self.refresh();
    }

    /// What `node` said of these slots belongs to an earlier stream: a new one begins from nothing.
    pub fn forget(&self, node: NodeId, slots: impl IntoIterator<Item = Slot>) {
        if let Some(table) = self.followers.lock().get(&node).cloned() {
            for slot in slots {
                table.received[slot.index()].store(0, Ordering::Release);
                table.synced[slot.index()].store(0, Ordering::Release);
            }
        }
    }

    /// The counter of `slot` that `node` has received under `boot`; 0 if nothing.
    pub fn received(&self, node: NodeId, boot: u64, slot: Slot) -> u64 {
        let followers = self.followers.lock();
        let table = followers.get(&node).filter(|table| table.boot == boot);
        table.map_or(0, |table| table.received[slot.index()].load(Ordering::Acquire))
    }

    /// A view of all that `node` has received under `boot`, for scans over many slots.
    pub fn received_by(&self, node: NodeId, boot: u64) -> Option<impl Fn(Slot) -> u64 + use<>> {
        let table = self.followers.lock().get(&node).filter(|table| table.boot == boot).cloned()?;
        Some(move |slot: Slot| table.received[slot.index()].load(Ordering::Acquire))
    }

    /// Sets whose acknowledgement is needed: the map's in-sync set without this node.
    pub fn set_members(&self, members: BTreeMap<NodeId, u64>) {
        if std::mem::replace(&mut self.wanted.lock().members, members.clone()) != members {
            self.refresh();
        }
    }

    /// Sets who must acknowledge because a change that adds them is undecided (R11).
    pub fn set_joining(&self, joining: BTreeMap<NodeId, u64>) {
        self.wanted.lock().joining = joining;
        self.refresh();
    }

    /// A commit under `term` took this slot away, and its vote was this node's in this reign: its barrier covers every write
    /// that was made here in that reign. The commit of another primary covers nothing of this node's.
    pub fn released(&self, slot: Slot, term: Term, reign: u64) {
        let released = &self.released[slot.index()];
        released.reign.store(reign, Ordering::Release);
        released.term.fetch_max(term.0, Ordering::AcqRel);
    }

    /// How many followers' acknowledgement answers need now.
    pub fn members(&self) -> usize {
        self.required.lock().len()
    }

    /// The counter of `slot` that every required follower has received in this reign: whoever leads next has it, so it is
    /// never taken back. The greatest there is if no follower is required; `None` if this node leads nothing.
    pub fn received_by_all(&self, slot: Slot) -> Option<u64> {
        if self.reign() == 0 {
            return None;
        }
        let required = Arc::clone(&self.required.lock());
        let received = required.iter().map(|table| table.received[slot.index()].load(Ordering::Acquire));
        Some(received.min().unwrap_or(u64::MAX))
    }

    /// Whether every required follower has acknowledged this dependency.
    pub fn covers(&self, dependency: &Dependency, policy: AckPolicy) -> bool {
        let index = dependency.slot.index();
        if self.is_released(dependency) || policy == AckPolicy::Primary {
            return true;
        }
        let required = Arc::clone(&self.required.lock());
        required.iter().all(|table| {
            let counters = match policy {
                AckPolicy::Primary | AckPolicy::InSync => &table.received,
                AckPolicy::InSyncSynced => &table.synced,
            };
            counters[index].load(Ordering::Acquire) >= dependency.version.counter
        })
    }

    /// Waits until every dependency may be answered. It has no deadline of its own: the caller bounds it.
    pub async fn wait(
        &self,
        engine: &Engine,
        dependencies: &[Dependency],
        policy: AckPolicy,
    ) -> Result<(), AckFailed> {
        // A member that is only about to join does not stand in for this node's own disk (R2, R11).
        let alone = self.wanted.lock().members.is_empty();
        for dependency in dependencies {
            let is_synced = alone || policy == AckPolicy::InSyncSynced;
            if is_synced && !mutation!("acknowledge-before-sync") {
                engine.wait_synced(dependency.ticket).await?;
            } else {
                engine.wait_written(dependency.ticket).await?;
            }
        }
        for dependency in dependencies {
            loop {
                let changed = self.changed.listen();
                if self.is_lost(dependency) {
                    return Err(AckFailed::Deposed);
                }
                if self.covers(dependency, policy) {
                    break;
                }
                changed.await;
            }
        }
        // The set may have emptied while this waited; then this node's own disk is all there is.
        if !alone && self.wanted.lock().members.is_empty() {
            for dependency in dependencies {
                engine.wait_synced(dependency.ticket).await?;
            }
        }
        Ok(())
    }

    /// Whether a commit took the slot away after the operation and in its reign: its barrier covers it, whoever leads what
    /// since then.
    pub fn is_released(&self, dependency: &Dependency) -> bool {
        let released = &self.released[dependency.slot.index()];
        released.term.load(Ordering::Acquire) > dependency.version.term.0
            && (released.reign.load(Ordering::Acquire) == dependency.reign
                || mutation!("commit-of-another-reign-covers"))
    }

    /// Whether the operation belongs to a reign that is over, and no commit covers it.
    pub fn is_lost(&self, dependency: &Dependency) -> bool {
        dependency.reign != self.reign()
            && !self.is_released(dependency)
            && !mutation!("acknowledged-after-deposal")
    }

    fn table(&self, node: NodeId, boot: u64) -> Arc<FollowerTable> {
        let mut followers = self.followers.lock();
        match followers.get(&node) {
            Some(table) if table.boot == boot => Arc::clone(table),
            // The late word of an earlier boot: noted where nobody looks.
            Some(table) if table.boot > boot => Arc::new(FollowerTable::new(boot)),
            _ => {
                let table = Arc::new(FollowerTable::new(boot));
                followers.insert(node, Arc::clone(&table));
                drop(followers);
                self.refresh();
                table
            }
        }
    }

    /// Rebuilds the list of tables that answers are checked against. A required member without a stream has a table of zeros.
    fn refresh(&self) {
        let wanted = self.wanted.lock();
        let mut followers = self.followers.lock();
        let mut tables = Vec::new();
        let joining = if mutation!("joining-not-waited-for") { None } else { Some(&wanted.joining) };
        for (&node, &boot) in wanted.members.iter().chain(joining.into_iter().flatten()) {
            match followers.get(&node) {
                Some(table) if table.boot == boot => tables.push(Arc::clone(table)),
                // A stream of a newer boot does not stand in for the member that the set names.
                Some(table) if table.boot > boot => tables.push(Arc::new(FollowerTable::new(boot))),
                _ => {
                    let table = Arc::new(FollowerTable::new(boot));
                    followers.insert(node, Arc::clone(&table));
                    tables.push(table);
                }
            }
        }
        *self.required.lock() = Arc::new(tables);
        drop(followers);
        drop(wanted);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use lockgate_engine::log::LogPosition;

    use super::*;

    fn dependency(slot: u16, term: u64, counter: u64) -> Dependency {
        let version = Version { term: Term(term), counter };
        Dependency {
            slot: Slot::new(slot).unwrap(),
            version,
            ticket: LogTicket { core: 0, position: LogPosition(0) },
            reign: 0,
        }
    }

    fn ack(acks: &ReplicaAcks, node: u32, boot: u64, received: u64, synced: u64) {
        let version = |counter| Version { term: Term(1), counter };
        acks.acknowledged(NodeId(node), boot, Slot::new(5).unwrap(), version(received), version(synced));
    }

    #[test]
    fn an_answer_waits_for_every_member_under_its_boot() {
        let acks = ReplicaAcks::default();
        acks.set_members(BTreeMap::from([(NodeId(2), 1), (NodeId(3), 1)]));
        ack(&acks, 2, 1, 10, 4);
        assert!(!acks.covers(&dependency(5, 1, 10), AckPolicy::InSync), "3 said nothing");
        ack(&acks, 3, 2, 10, 10);
        assert!(!acks.covers(&dependency(5, 1, 10), AckPolicy::InSync), "another boot of 3");
        acks.set_members(BTreeMap::from([(NodeId(2), 1), (NodeId(3), 2)]));
        assert!(acks.covers(&dependency(5, 1, 10), AckPolicy::InSync));
        assert!(!acks.covers(&dependency(5, 1, 11), AckPolicy::InSync));
        assert!(acks.covers(&dependency(5, 1, 4), AckPolicy::InSyncSynced));
        assert!(!acks.covers(&dependency(5, 1, 5), AckPolicy::InSyncSynced));
    }

    #[test]
    fn a_joining_member_counts_before_its_entry_is_decided() {
        let acks = ReplicaAcks::default();
        assert!(acks.covers(&dependency(5, 1, 10), AckPolicy::InSync));
        acks.set_joining(BTreeMap::from([(NodeId(2), 1)]));
        assert!(!acks.covers(&dependency(5, 1, 10), AckPolicy::InSync));
        ack(&acks, 2, 1, 10, 10);
        assert!(acks.covers(&dependency(5, 1, 10), AckPolicy::InSync));
    }

    #[test]
    fn a_stream_that_ended_takes_its_word_back() {
        let acks = ReplicaAcks::default();
        acks.set_members(BTreeMap::from([(NodeId(2), 1)]));
        ack(&acks, 2, 1, 10, 10);
        acks.disconnected(NodeId(2), 1);
        assert!(!acks.covers(&dependency(5, 1, 10), AckPolicy::InSync));
        ack(&acks, 2, 1, 12, 12);
        assert!(acks.covers(&dependency(5, 1, 10), AckPolicy::InSync));
    }

    #[test]
    fn a_new_reign_counts_on_nobody_and_owes_nothing_to_the_last() {
        let acks = ReplicaAcks::default();
        acks.begin_reign(7);
        acks.set_members(BTreeMap::from([(NodeId(2), 1)]));
        ack(&acks, 2, 1, 10, 10);
        let written = Dependency { reign: acks.reign(), ..dependency(5, 1, 10) };
        assert!(acks.covers(&written, AckPolicy::InSync) && !acks.is_lost(&written));
        acks.begin_reign(0);
        assert!(acks.is_lost(&written));
        acks.begin_reign(8);
        assert!(acks.is_lost(&written));
        let again = Dependency { reign: 8, ..written };
        assert!(!acks.covers(&again, AckPolicy::InSync), "the follower may have lost it meanwhile");
        acks.released(Slot::new(5).unwrap(), Term(9), 8);
        assert!(acks.is_lost(&written), "the barrier was that of another reign, which may not have had it");
        acks.released(Slot::new(5).unwrap(), Term(9), 7);
        assert!(!acks.is_lost(&written), "the target has it");
    }

    #[test]
    fn what_was_written_before_a_release_is_covered_by_its_barrier() {
        let acks = ReplicaAcks::default();
        acks.set_members(BTreeMap::from([(NodeId(2), 1)]));
        acks.released(Slot::new(5).unwrap(), Term(9), 0);
        assert!(acks.covers(&dependency(5, 8, 1_000), AckPolicy::InSync));
        assert!(!acks.covers(&dependency(5, 9, 1_001), AckPolicy::InSync));
    }
}
