//! Up to where the writes of this node's slots are never taken back (R4), for the engine's compactions.
//!
//! Invariants
//! - At a primary: what every in-sync replica has received, those that are about to join among them. Whoever leads next is
//!   one of them, and nobody truncates below what its leader has.
//! - At a replica, and in a slot that is imported: what the source said in this subscription to have acknowledged.
//! - Where nothing is known nothing is discarded.
//!
//! Under the policy `Primary`, and after a recovery from a lost majority, a node may have to go back further than that, or
//! than where its source had discarded. It cannot, and starts its slots anew.

use lockgate_engine::{Gate, Generation, Slot, StableWatermarks, Version};
use lockgate_runtime::sync::Weak;

use super::shared::Shared;

/// Asked by the engine; it keeps the node, which has the engine, no longer than anybody else does.
pub(crate) struct Stable(pub Weak<Shared>);

impl StableWatermarks for Stable {
    fn stable(&self, slot: Slot, generation: Generation) -> Option<Version> {
        let shared = self.0.upgrade()?;
        let status = shared.engine.slot_status(slot);
        if status.generation != generation {
            return None;
        }
        match status.gate {
            Gate::Owned | Gate::Frozen => {
                let counter = shared.acks.received_by_all(slot)?.min(status.version.counter);
                Some(Version::new(status.version.term, counter))
            }
            Gate::Follower | Gate::Importing => {
                let mark = shared.marks.mark(slot).filter(|mark| mark.generation == generation)?;
                Some(mark.version)
            }
            Gate::Absent | Gate::HandedOff => None,
        }
    }
}
