//! Which of a stream's slots have news: a two-level bitmap that writers set and one reader empties, and its wake-up.
//!
//! Invariants:
//! - a slot that was marked is seen by the reader's next [`DirtySlots::take`] or the one after;
//! - a reader that found nothing and then waits on the event is woken by every mark since it looked: it takes its
//!   listener, then lowers `awake`, then looks; a writer marks, then raises `awake`, and wakes if it was low. Both the look
//!   and the mark change the summary, so one comes after the other, and sees all that was before it.
//!
//! A writer that finds its bit set already does nothing: whoever set it sets the summary and wakes. The reader takes the
//! bits before it locks the slot, so what was written before the bit was found set is seen under that lock.

use lockgate_runtime::Event;
use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crate::types::{SLOTS, Slot};

/// Few in a model: it makes all of them anew for each interleaving.
const WORDS: usize = if cfg!(loom) { 2 } else { SLOTS as usize / 64 };
const SUMMARY_WORDS: usize = WORDS.div_ceil(64);

/// The slots of one stream that have news.
pub(crate) struct DirtySlots {
    /// A bit for each word of `words` that may be non-zero.
    summary: [AtomicU64; SUMMARY_WORDS],
    words: Box<[AtomicU64]>,
    awake: AtomicBool,
    event: Event,
}

impl DirtySlots {
    pub(crate) fn new() -> DirtySlots {
        DirtySlots {
            summary: std::array::from_fn(|_| AtomicU64::new(0)),
            words: (0..WORDS).map(|_| AtomicU64::new(0)).collect(),
            awake: AtomicBool::new(true),
            event: Event::new(),
        }
    }

    /// Marks a slot. True: the reader may be asleep, and [`wake`](DirtySlots::wake) must follow.
    pub(crate) fn mark(&self, slot: Slot) -> bool {
        let (word, bit) = (slot.index() / 64, slot.index() % 64);
        if self.words[word].fetch_or(1 << bit, SeqCst) & (1 << bit) != 0 {
            return false;
        }
        self.summary[word / 64].fetch_or(1 << (word % 64), SeqCst);
        !self.awake.swap(true, SeqCst)
    }

    /// Wakes the reader.
    pub(crate) fn wake(&self) {
        self.event.notify_all();
    }

    /// Moves all marks into `pending`.
    pub(crate) fn take(&self, pending: &mut SlotSet) {
        for (group, summary) in self.summary.iter().enumerate() {
            // The summary goes first: a mark behind it sets it again.
            let mut words = if summary.load(SeqCst) == 0 { 0 } else { summary.swap(0, SeqCst) };
            while words != 0 {
                let word = group * 64 + words.trailing_zeros() as usize;
                words &= words - 1;
                pending.words[word] |= self.words[word].swap(0, SeqCst);
            }
        }
    }

    /// Whether no mark came before. Not a load: that it cannot miss a mark whose writer saw `awake`
    /// high would hang on the one order of all sequentially consistent accesses, which loom has no model of.
    fn is_empty(&self) -> bool {
        self.summary.iter().all(|word| word.fetch_or(0, SeqCst) == 0)
    }

    /// Waits until there is a mark.
    pub(crate) async fn wait(&self) {
        loop {
            let woken = self.event.listen();
            // Swaps, not stores: the values of `awake` are one chain then, in which every writer's comes before or behind.
            self.awake.swap(false, SeqCst);
            if !self.is_empty() {
                self.awake.swap(true, SeqCst);
                return;
            }
            woken.await;
        }
    }
}

/// A set of slots, emptied in rotation.
pub(crate) struct SlotSet {
    words: Box<[u64]>,
}

impl SlotSet {
    pub(crate) fn new() -> SlotSet {
        SlotSet { words: vec![0; WORDS].into_boxed_slice() }
    }

    pub(crate) fn insert(&mut self, slot: Slot) {
        self.words[slot.index() / 64] |= 1 << (slot.index() % 64);
    }

    pub(crate) fn remove(&mut self, slot: Slot) {
        self.words[slot.index() / 64] &= !(1 << (slot.index() % 64));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The first member from number `from` on, or from 0 again.
    pub(crate) fn next_from(&self, from: u16) -> Option<Slot> {
        let (start, bit) = (usize::from(from) / 64 % WORDS, from % 64);
        let first = self.words[start] & (u64::MAX << bit);
        let found = |word: usize, bits: u64| Slot::new((word * 64) as u16 + bits.trailing_zeros() as u16);
        if first != 0 {
            return found(start, first);
        }
        (1..=WORDS)
            .map(|step| (start + step) % WORDS)
            .find(|word| self.words[*word] != 0)
            .and_then(|word| found(word, self.words[word]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u16) -> Slot {
        Slot::new(number).unwrap()
    }

    #[test]
    fn marks_are_taken_once_and_rotate() {
        let dirty = DirtySlots::new();
        for number in [0, 63, 64, 5000, 16_383] {
            assert!(!dirty.mark(slot(number)), "nobody sleeps");
        }
        let mut set = SlotSet::new();
        dirty.take(&mut set);
        assert!(dirty.is_empty());
        let order: Vec<u16> =
            [0, 1, 64, 65, 5001, 16_383].map(|from| set.next_from(from).unwrap().number()).into();
        assert_eq!(order, [0, 63, 64, 5000, 16_383, 16_383]);
        set.remove(slot(16_383));
        assert_eq!(set.next_from(5001), Some(slot(0)), "it begins again");
        for number in [0, 63, 64, 5000] {
            set.remove(slot(number));
        }
        assert_eq!((set.next_from(7), set.is_empty()), (None, true));
    }

    #[test]
    fn a_sleeping_reader_is_woken_once() {
        use std::future::Future;
        let dirty = DirtySlots::new();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        {
            let mut wait = std::pin::pin!(dirty.wait());
            assert!(wait.as_mut().poll(&mut context).is_pending());
            assert!(dirty.mark(slot(7)));
            assert!(!dirty.mark(slot(7)) && !dirty.mark(slot(9)), "once per period");
            dirty.wake();
            assert!(wait.as_mut().poll(&mut context).is_ready());
        }
        let mut wait = std::pin::pin!(dirty.wait());
        assert!(wait.as_mut().poll(&mut context).is_ready(), "the marks were not taken yet");
    }
}
