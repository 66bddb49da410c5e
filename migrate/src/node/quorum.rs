//! Telling operators that the control log has nobody to lead it (R18).

use std::collections::BTreeSet;

use lockgate_engine::{Engine, Gate, Slot};

use crate::control::{SlotRange, ranges_of};

/// Watches for how long there has been no leader.
#[derive(Default)]
pub(super) struct QuorumWatch {
    since_ns: Option<u64>,
    is_told: bool,
}

impl QuorumWatch {
    /// Looks. After `limit_ns` without a leader it is told once, and once more when there is one again.
    pub fn look(&mut self, has_leader: bool, engine: &Engine, now_ns: u64, limit_ns: u64) {
        if has_leader {
            if std::mem::take(&mut self.is_told) {
                tracing::warn!("the control log has a leader again");
            }
            self.since_ns = None;
            return;
        }
        let since_ns = *self.since_ns.get_or_insert(now_ns);
        if self.is_told || now_ns.saturating_sub(since_ns) < limit_ns {
            return;
        }
        self.is_told = true;
        let frozen: Vec<String> = frozen_slots(engine).iter().map(SlotRange::to_string).collect();
        tracing::warn!(
            frozen_slots = frozen.join(" "),
            "the control log has no leader: if a majority of its voters is lost, leases run out, nothing moves, and frozen \
             slots stay frozen until it is back, or until `lockgate cluster recover`"
        );
    }
}

/// The slots that are frozen here.
pub(super) fn frozen_slots(engine: &Engine) -> Vec<SlotRange> {
    let frozen: BTreeSet<Slot> = Slot::all().filter(|&slot| engine.gate(slot) == Gate::Frozen).collect();
    ranges_of(frozen)
}
