//! Watching this shard's replicas, and proposing who is in sync.

use std::collections::BTreeMap;

use lockgate_engine::{Gate, Slot};

use super::shared::Shared;
use crate::control::{ClusterMap, EntryBody, NodeId, ShardId};
use crate::replica::{InSyncChange, InSyncTracker, ReplicaView};

/// Pause between two looks.
const LOOK_NS: u64 = 20_000_000;

/// The watch of one primary over its replicas.
pub(crate) struct Replicas {
    lost_ns_max: u64,
    tracker: InSyncTracker,
    /// What a joining replica must reach: each slot's counter when answers began to wait for it. Taken again whenever the
    /// set's version has moved, since a commit may have brought slots meanwhile; the change that takes the replica in is
    /// void if it moves once more.
    goals: BTreeMap<NodeId, (u64, Vec<(Slot, u64)>)>,
    next_look_ns: u64,
}

impl Replicas {
    /// A watch that has seen nothing yet; a replica without a stream for this long is taken out of the set.
    pub fn new(lost_ns_max: u64) -> Self {
        let tracker = InSyncTracker::new(lost_ns_max);
        Self { lost_ns_max, tracker, goals: BTreeMap::new(), next_look_ns: 0 }
    }

    /// Looks at the replicas if it is time, and returns the change of the set to propose.
    pub fn look(
        &mut self,
        shared: &Shared,
        map: &ClusterMap,
        mine: Option<ShardId>,
        undecided: bool,
        now_ns: u64,
    ) -> Option<EntryBody> {
        let Some(id) = mine else {
            *self = Self::new(self.lost_ns_max);
            return None;
        };
        if now_ns < self.next_look_ns {
            return None;
        }
        self.next_look_ns = now_ns + LOOK_NS;
        let shard = &map.shards[&id];
        let views: Vec<ReplicaView> =
            shard.replicas.iter().filter_map(|&node| self.view(shared, map, id, node)).collect();
        let mut in_sync: BTreeMap<NodeId, u64> = shard.in_sync.clone();
        let mut changed = false;
        for change in self.tracker.look(&views, undecided, now_ns) {
            match change {
                InSyncChange::BeginJoin(node, _) => {
                    // Answers wait for it first; only then is the goal taken, so that nothing falls between.
                    shared.acks.set_joining(self.tracker.joining().clone());
                    self.goals.insert(node, (shard.in_sync_version, goal(shared)));
                }
                InSyncChange::EndJoin(node) => {
                    self.goals.remove(&node);
                    shared.acks.set_joining(self.tracker.joining().clone());
                }
                InSyncChange::Add(node, boot) => changed |= in_sync.insert(node, boot) != Some(boot),
                InSyncChange::Remove(node) => changed |= in_sync.remove(&node).is_some(),
            }
        }
        changed.then(|| EntryBody::SetInSync {
            shard: id,
            expected_version: shard.in_sync_version,
            in_sync: in_sync.into_iter().collect(),
        })
    }

    fn view(&mut self, shared: &Shared, map: &ClusterMap, id: ShardId, node: NodeId) -> Option<ReplicaView> {
        let boot = map.nodes.get(&node)?.incarnation.boot;
        let connected = shared.feeds.lock().is_open(node, boot);
        let in_sync = map.shards[&id].in_sync.get(&node) == Some(&boot);
        let mut caught_up = false;
        let (known, received) = (self.goals.get_mut(&node), shared.acks.received_by(node, boot));
        if let (Some((version, goal)), Some(received)) = (known, received) {
            let current = map.shards[&id].in_sync_version;
            if std::mem::replace(version, current) != current {
                *goal = self::goal(shared);
            }
            // Slots that left meanwhile are no longer this replica's to reach.
            goal.retain(|&(slot, counter)| received(slot) < counter && is_fed(shared.engine.gate(slot)));
            caught_up = goal.is_empty();
        }
        Some(ReplicaView { node, boot, connected, in_sync, caught_up })
    }
}

/// Every slot that replicas of this shard follow, with the counter that it has now.
pub(super) fn goal(shared: &Shared) -> Vec<(Slot, u64)> {
    let fed = Slot::all().filter(|&slot| is_fed(shared.engine.gate(slot)));
    let statuses = fed.map(|slot| (slot, shared.engine.slot_status(slot)));
    statuses
        .filter(|(_, status)| is_fed(status.gate))
        .map(|(slot, status)| (slot, status.version.counter))
        .collect()
}

/// In-sync covers the shard's importing slots too (R11).
fn is_fed(gate: Gate) -> bool {
    matches!(gate, Gate::Owned | Gate::Frozen | Gate::Importing)
}
