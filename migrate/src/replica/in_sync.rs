//! Who counts as in sync, decided purely at the shard's primary.
//!
//! Invariants
//! - Membership changes only by an applied SetInSync; this file merely proposes (R11).
//! - A replica joins only after it has acknowledged all that was written before answers began to wait for it.
//! - A replica leaves when it has had no stream for the time that its tracker was given; until the entry is applied, answers wait.

use std::collections::BTreeMap;

use crate::control::NodeId;

/// What the primary sees of one replica now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaView {
    /// The replica.
    pub node: NodeId,
    /// The boot that the map knows for it.
    pub boot: u64,
    /// Whether it has a stream open under that boot.
    pub connected: bool,
    /// Whether the map's in-sync set has it under that boot.
    pub in_sync: bool,
    /// Whether it has acknowledged everything up to the snapshot taken when it began to join.
    pub caught_up: bool,
}

/// What to do about the in-sync set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InSyncChange {
    /// Let answers wait for this replica from now on, and take the snapshot that it must reach.
    BeginJoin(NodeId, u64),
    /// Answers need not wait for it any longer: it went away before it had joined.
    EndJoin(NodeId),
    /// Propose the set with it.
    Add(NodeId, u64),
    /// Propose the set without it.
    Remove(NodeId),
}

/// State between two looks.
#[derive(Debug)]
pub struct InSyncTracker {
    /// How long a member may be without a stream before the set goes on without it. In nanoseconds.
    lost_ns_max: u64,
    lost_since_ns: BTreeMap<NodeId, u64>,
    joining: BTreeMap<NodeId, u64>,
}

impl InSyncTracker {
    /// Nothing seen yet.
    pub fn new(lost_ns_max: u64) -> Self {
        Self { lost_ns_max, lost_since_ns: BTreeMap::new(), joining: BTreeMap::new() }
    }

    /// The replicas that answers wait for although the map does not have them in sync yet, with their boots.
    pub fn joining(&self) -> &BTreeMap<NodeId, u64> {
        &self.joining
    }

    /// Looks at all replicas and says what to do. `proposed`: a change of the set is undecided.
    pub fn look(&mut self, replicas: &[ReplicaView], proposed: bool, now_ns: u64) -> Vec<InSyncChange> {
        let mut changes = Vec::new();
        self.joining.retain(|node, boot| {
            let keep =
                replicas.iter().any(|r| r.node == *node && r.boot == *boot && r.connected && !r.in_sync);
            // An undecided entry may still take it in: answers wait until it is decided.
            let keep = keep || (proposed && !replicas.iter().any(|r| r.node == *node && r.in_sync));
            if !keep {
                changes.push(InSyncChange::EndJoin(*node));
            }
            keep
        });
        for replica in replicas {
            self.look_at(replica, proposed, now_ns, &mut changes);
        }
        changes
    }

    fn look_at(
        &mut self,
        replica: &ReplicaView,
        proposed: bool,
        now_ns: u64,
        changes: &mut Vec<InSyncChange>,
    ) {
        let ReplicaView { node, boot, connected, in_sync, caught_up } = *replica;
        if connected {
            self.lost_since_ns.remove(&node);
        }
        match (in_sync, connected) {
            (true, false) => {
                let since_ns = *self.lost_since_ns.entry(node).or_insert(now_ns);
                if now_ns.saturating_sub(since_ns) > self.lost_ns_max && !proposed {
                    changes.push(InSyncChange::Remove(node));
                }
            }
            (false, true) if !self.joining.contains_key(&node) => {
                self.joining.insert(node, boot);
                changes.push(InSyncChange::BeginJoin(node, boot));
            }
            (false, true) if caught_up && !proposed => changes.push(InSyncChange::Add(node, boot)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn view(connected: bool, in_sync: bool, caught_up: bool) -> [ReplicaView; 1] {
        [ReplicaView { node: NodeId(2), boot: 3, connected, in_sync, caught_up }]
    }

    #[test]
    fn a_replica_joins_after_answers_began_to_wait_for_it() {
        let mut tracker = InSyncTracker::new(S);
        let begin = [InSyncChange::BeginJoin(NodeId(2), 3)];
        assert_eq!(
            tracker.look(&view(true, false, true), false, 0),
            begin,
            "caught up, but nobody waited yet"
        );
        assert_eq!(tracker.look(&view(true, false, false), false, 1), []);
        assert_eq!(tracker.look(&view(true, false, true), false, 2), [InSyncChange::Add(NodeId(2), 3)]);
        assert_eq!(tracker.look(&view(true, false, true), true, 3), [], "already proposed");
        assert_eq!(tracker.look(&view(true, true, true), false, 4), [InSyncChange::EndJoin(NodeId(2))]);
    }

    #[test]
    fn a_joining_replica_that_goes_away_is_waited_for_while_its_entry_is_undecided() {
        let mut tracker = InSyncTracker::new(S);
        tracker.look(&view(true, false, true), false, 0);
        assert_eq!(tracker.look(&view(false, false, false), true, 1), []);
        assert!(tracker.joining().contains_key(&NodeId(2)));
        assert_eq!(tracker.look(&view(false, false, false), false, 2), [InSyncChange::EndJoin(NodeId(2))]);
    }

    #[test]
    fn a_member_without_a_stream_leaves_after_a_while() {
        let mut tracker = InSyncTracker::new(S);
        assert_eq!(tracker.look(&view(false, true, false), false, 0), []);
        assert_eq!(tracker.look(&view(true, true, true), false, S / 2), []);
        assert_eq!(tracker.look(&view(false, true, false), false, S), []);
        assert_eq!(tracker.look(&view(false, true, false), false, 2 * S), []);
        assert_eq!(
            tracker.look(&view(false, true, false), false, 2 * S + 1),
            [InSyncChange::Remove(NodeId(2))]
        );
    }
}
