//! The barrier at the target: who has synced the last frame of a freeze, decided purely.
//!
//! Invariant (R14): the barrier has passed only when every member of the *current* in-sync set, the target's primary
//! among them, has reported the final versions as synced with equal digests under this very attempt. A member is
//! named with its boot number, so that a report from before a restart never counts (R2).

use std::collections::BTreeSet;

use lockgate_runtime::mutation;
use serde::{Deserialize, Serialize};

use crate::control::NodeId;

/// The last state of one slot at the source, taken under the freeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotFinal {
    /// Slot number, 0..16,384.
    pub slot: u16,
    /// Term of the slot's last version.
    pub term: u64,
    /// Counter of the slot's last version.
    pub counter: u64,
    /// Order-independent digest over the slot's live records.
    pub digest: u64,
}

/// The members that have synced the finals of one attempt.
#[derive(Debug, Default)]
pub struct BarrierAcks {
    synced: BTreeSet<(NodeId, u64)>,
}

impl BarrierAcks {
    /// Notes that `node`, running under `boot`, has the finals on its disk with equal digests.
    pub fn synced(&mut self, node: NodeId, boot: u64) {
        self.synced.insert((node, boot));
    }

    /// The evidence, if every member of the in-sync set is within it. Extra members do no harm.
    #[must_use]
    pub fn evidence(&self, in_sync: impl IntoIterator<Item = (NodeId, u64)>) -> Option<Vec<(NodeId, u64)>> {
        let mut members = in_sync.into_iter().peekable();
        let somebody = members.peek().is_some();
        let has_synced = |member| self.synced.contains(&member) || mutation!("barrier-without-the-replicas");
        (somebody && members.all(has_synced)).then(|| self.synced.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_current_member_must_have_synced_under_its_current_boot() {
        let mut acks = BarrierAcks::default();
        let set = [(NodeId(1), 4), (NodeId(2), 1)];
        assert_eq!(acks.evidence(set), None);
        acks.synced(NodeId(1), 4);
        acks.synced(NodeId(2), 2);
        assert_eq!(acks.evidence(set), None, "a report of another boot");
        acks.synced(NodeId(2), 1);
        assert_eq!(acks.evidence(set).unwrap().len(), 3);
        assert_eq!(acks.evidence([]), None, "nobody is not a barrier");
    }
}
