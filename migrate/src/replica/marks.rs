//! What a replica may show of the slots that it follows: what its primary has acknowledged, as far as it has said so (R9).
//!
//! Invariants
//! - Shown is only what lies at or below the watermark that the primary stated in the subscription that the reading was
//!   made in. A reading of an earlier subscription may have been taken back since.
//! - A slot is read only when it has all that lies at or below the watermark. While it is filled anew it has gaps.
//! - Nothing is said about how old the watermark is: that is the node's to know.
//!
//! Written by the followers on core 0, read by whoever reads.

use std::collections::BTreeMap;

use lockgate_engine::{Followed, Generation, Slot, Version};
use lockgate_runtime::sync::Mutex;
use lockgate_runtime::{Event, mutation};

/// Tables that slots are spread over, so that readers of different slots seldom meet.
const TABLES: usize = 64;

/// Up to where a slot's writes are acknowledged, as far as its primary has said in one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Different for each subscription.
    pub stream: u64,
    /// What the slot is followed under.
    pub generation: Generation,
    /// The watermark.
    pub version: Version,
}

#[derive(Default)]
struct Table {
    streams: u64,
    marks: BTreeMap<Slot, Mark>,
}

/// The watermarks of all slots that one node follows. `Send + Sync`.
pub struct ReplicaMarks {
    tables: Box<[Mutex<Table>]>,
    changed: Event,
}

impl Default for ReplicaMarks {
    fn default() -> Self {
        Self { tables: (0..TABLES).map(|_| Mutex::default()).collect(), changed: Event::new() }
    }
}

impl ReplicaMarks {
    /// The primary has acknowledged the slot's writes up to `version`.
    pub fn told(&self, slot: Slot, generation: Generation, version: Version) {
        let mut table = self.table(slot).lock();
        table.streams += 1;
        let stream = table.streams;
        let mark = table.marks.entry(slot).or_insert(Mark { stream, generation, version });
        mark.version = mark.version.max(version);
        drop(table);
        self.changed.notify_all();
    }

    /// The subscription is over: what was said in it counts no more.
    pub fn forget(&self, slot: Slot) {
        self.table(slot).lock().marks.remove(&slot);
    }

    /// All subscriptions are over.
    pub fn forget_all(&self) {
        for table in &self.tables {
            table.lock().marks.clear();
        }
    }

    /// What is known of the slot.
    pub fn mark(&self, slot: Slot) -> Option<Mark> {
        self.table(slot).lock().marks.get(&slot).copied()
    }

    /// Whether a reading can be shown now or later: it was made in the subscription of `before`, the mark that was looked up
    /// before it, when the slot had all that was acknowledged.
    pub fn is_sound(&self, before: &Mark, seen: &Followed) -> bool {
        let now = self.mark(seen.slot);
        now.is_some_and(|now| now.stream == before.stream)
            && before.generation == seen.generation
            && before.version <= seen.slot_version
    }

    /// Whether a sound reading is acknowledged; `None`: it never will be, because its subscription is over.
    pub fn covers(&self, before: &Mark, seen: &Followed) -> Option<bool> {
        let now = self.mark(seen.slot).filter(|now| now.stream == before.stream)?;
        Some(seen.version <= now.version || mutation!("replica-reads-above-the-watermark"))
    }

    /// Notified when a watermark has advanced.
    pub fn changed(&self) -> &Event {
        &self.changed
    }

    fn table(&self, slot: Slot) -> &Mutex<Table> {
        &self.tables[slot.index() % TABLES]
    }
}

#[cfg(test)]
mod tests {
    use lockgate_engine::Term;

    use super::*;

    const GENERATION: Generation = Generation::new(3);

    fn slot() -> Slot {
        Slot::new(70).expect("a slot")
    }

    fn version(counter: u64) -> Version {
        Version::new(Term(2), counter)
    }

    /// A key that was last written at `at`, when the slot had versions up to `up_to`.
    fn seen(at: u64, up_to: u64) -> Followed {
        Followed {
            value: None,
            deadline_ms: None,
            slot: slot(),
            generation: GENERATION,
            version: version(at),
            slot_version: version(up_to),
        }
    }

    #[test]
    fn what_lies_above_the_watermark_waits_for_it() {
        let marks = ReplicaMarks::default();
        assert_eq!(marks.mark(slot()), None, "nothing was said");
        marks.told(slot(), GENERATION, version(5));
        let before = marks.mark(slot()).expect("it was said");
        let reading = seen(7, 9);
        assert!(marks.is_sound(&before, &reading));
        assert_eq!(marks.covers(&before, &reading), Some(false));
        assert_eq!(marks.covers(&before, &seen(5, 9)), Some(true));
        marks.told(slot(), GENERATION, version(7));
        assert_eq!(marks.covers(&before, &reading), Some(true), "it is the same subscription");
        marks.told(slot(), GENERATION, version(6));
        assert_eq!(marks.mark(slot()).map(|mark| mark.version), Some(version(7)));
    }

    #[test]
    fn a_slot_that_lacks_what_was_acknowledged_has_gaps() {
        let marks = ReplicaMarks::default();
        marks.told(slot(), GENERATION, version(5));
        let before = marks.mark(slot()).expect("it was said");
        assert!(!marks.is_sound(&before, &seen(3, 4)));
        let other = Followed { generation: Generation::new(4), ..seen(3, 9) };
        assert!(!marks.is_sound(&before, &other), "it was emptied and is filled anew");
    }

    #[test]
    fn what_was_read_in_an_earlier_subscription_is_never_shown() {
        let marks = ReplicaMarks::default();
        marks.told(slot(), GENERATION, version(5));
        let (before, reading) = (marks.mark(slot()).expect("it was said"), seen(7, 7));
        marks.forget(slot());
        assert_eq!(marks.covers(&before, &reading), None);
        marks.told(slot(), GENERATION, version(9));
        assert!(!marks.is_sound(&before, &reading));
        assert_eq!(marks.covers(&before, &reading), None, "it may have been taken back");
        marks.forget_all();
        assert_eq!(marks.mark(slot()), None);
    }
}
