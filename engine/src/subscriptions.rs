//! The streams that follow one slot, and what a compaction must keep for them.
//!
//! Invariants: a stream is here at most once; what it was sent only grows while it is.

use lockgate_runtime::mutation;
use lockgate_runtime::sync::Arc;

use crate::compaction::Limits;
use crate::dirty::DirtySlots;
use crate::types::Slot;

/// How far one stream is, by counters.
struct Subscribed {
    stream: Arc<DirtySlots>,
    /// It was sent everything up to here.
    sent: u64,
    /// From here on its receiver counts as having no gaps: the slot's last write when it began.
    whole_from: u64,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Subscriptions(Vec<Subscribed>);

impl Subscriptions {
    /// A stream begins, or begins anew, behind `sent`; the slot ends at `last`.
    pub(crate) fn add(&mut self, stream: &Arc<DirtySlots>, sent: u64, last: u64) {
        self.remove(stream);
        self.0.push(Subscribed { stream: stream.clone(), sent, whole_from: last });
    }

    /// A stream is sent everything up to this counter.
    pub(crate) fn sent_to(&mut self, stream: &Arc<DirtySlots>, counter: u64) {
        if let Some(known) = self.0.iter_mut().find(|known| Arc::ptr_eq(&known.stream, stream)) {
            known.sent = counter;
        }
    }

    /// A stream follows the slot no more.
    pub(crate) fn remove(&mut self, stream: &Arc<DirtySlots>) {
        self.0.retain(|known| !Arc::ptr_eq(&known.stream, stream));
    }

    /// The slot is followed by nobody.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Marks the slot for all, and adds those that slept to `slept`.
    pub(crate) fn mark(&self, slot: Slot, slept: &mut Vec<Arc<DirtySlots>>) {
        let streams = self.0.iter().map(|known| &known.stream);
        slept.extend(streams.filter(|stream| stream.mark(slot)).cloned());
    }

    /// What may be discarded, given up to where writes are never taken back. A value that was not sent yet may go if what
    /// superseded it comes before the receiver counts as whole; a tombstone must have been sent.
    pub(crate) fn limits(&self, stable: u64) -> Limits {
        let mut limits = Limits { values_to: stable, tombstones_to: stable };
        for Subscribed { sent, whole_from, .. } in &self.0 {
            if mutation!("discarded-before-it-is-sent") {
                break;
            }
            limits.values_to = limits.values_to.min(*sent.max(whole_from));
            limits.tombstones_to = limits.tombstones_to.min(*sent);
        }
        limits
    }
}
