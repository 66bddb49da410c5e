//! Which parts of an arena are free: the bookkeeping alone, in lines of 64 bytes, without touching memory.
//!
//! Invariants: free blocks never overlap and never touch (neighbours are merged at once); both maps hold the same blocks.
//! Best fit, lowest address first, which keeps the high end of the range unused and so unbacked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Freed memory is given back to the system from merged blocks of at least this many lines (64 KiB).
pub(crate) const GIVE_BACK_LINES_MIN: u32 = 1024;

/// The free blocks of a range of lines.
pub(crate) struct FreeList {
    by_start: BTreeMap<u32, u32>,
    by_size: BTreeSet<(u32, u32)>,
}

impl FreeList {
    /// All of `lines` is free.
    pub(crate) fn new(lines: Range<u32>) -> FreeList {
        let mut list = FreeList { by_start: BTreeMap::new(), by_size: BTreeSet::new() };
        list.insert(lines.start, lines.end - lines.start);
        list
    }

    /// Takes `lines` in one piece; `None` when no free block is large enough.
    pub(crate) fn take(&mut self, lines: u32) -> Option<u32> {
        assert!(lines > 0, "an empty block has no place");
        let &(found, start) = self.by_size.range((lines, 0)..).next()?;
        self.remove(start, found);
        if found > lines {
            self.insert(start + lines, found - lines);
        }
        Some(start)
    }

    /// Gives lines back, and says which of the memory around them should now go back to the system, if any.
    #[must_use]
    pub(crate) fn give(&mut self, start: u32, lines: u32) -> Option<Range<u32>> {
        assert!(lines > 0, "an empty block has no place");
        let (mut from, mut to) = (start, start + lines);
        let mut unbacked = from..to;
        if let Some((&before, &before_lines)) = self.by_start.range(..start).next_back() {
            assert!(before + before_lines <= start, "lines {start}.. are freed twice");
            if before + before_lines == start {
                self.remove(before, before_lines);
                from = before;
                if before_lines < GIVE_BACK_LINES_MIN {
                    unbacked.start = before;
                }
            }
        }
        if let Some((&after, &after_lines)) = self.by_start.range(start..).next() {
            assert!(to <= after, "lines {start}.. are freed twice");
            if after == to {
                self.remove(after, after_lines);
                to = after + after_lines;
                if after_lines < GIVE_BACK_LINES_MIN {
                    unbacked.end = to;
                }
            }
        }
        self.insert(from, to - from);
        (to - from >= GIVE_BACK_LINES_MIN).then(|| {
            // A page that the block only now covers as a whole may begin before, or end after, what was freed.
            let page = crate::arena::PAGE_LINES;
            unbacked.start.saturating_sub(page).max(from)..unbacked.end.saturating_add(page).min(to)
        })
    }

    fn insert(&mut self, start: u32, lines: u32) {
        self.by_start.insert(start, lines);
        self.by_size.insert((lines, start));
    }

    fn remove(&mut self, start: u32, lines: u32) {
        let by_start = self.by_start.remove(&start);
        let by_size = self.by_size.remove(&(lines, start));
        assert!(by_start == Some(lines) && by_size, "both maps hold the same blocks");
    }

    #[cfg(test)]
    fn blocks(&self) -> Vec<(u32, u32)> {
        assert_eq!(self.by_start.len(), self.by_size.len());
        self.by_start.iter().map(|(&start, &lines)| (start, lines)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn large_blocks_are_given_back_with_what_merged() {
        let mut list = FreeList::new(0..100_000);
        let blocks: Vec<u32> = (0..100).map(|_| list.take(100).unwrap()).collect();
        assert!(list.give(blocks[0], 100).is_none());
        for block in &blocks[1..10] {
            assert!(list.give(*block, 100).is_none(), "1,000 lines are not enough yet");
        }
        let given = list.give(blocks[10], 100).unwrap();
        assert_eq!(given, 0..1100, "the small blocks that merged were never given back before");
        let given = list.give(blocks[11], 100).unwrap();
        assert_eq!(given, 1100 - crate::arena::PAGE_LINES..1200, "what was given back before is left alone");
    }

    proptest! {
        #[test]
        fn never_overlaps_and_always_merges(steps in proptest::collection::vec((any::<bool>(), 1u32..300, any::<u16>()), 1..200)) {
            let mut list = FreeList::new(1..20_000);
            let mut held: BTreeMap<u32, u32> = BTreeMap::new();
            for (take, lines, pick) in steps {
                if take || held.is_empty() {
                    let Some(start) = list.take(lines) else { continue };
                    let before = held.range(..=start).next_back().map_or(1, |(s, l)| s + l);
                    let after = held.range(start..).next().map_or(20_000, |(s, _)| *s);
                    prop_assert!(before <= start && start + lines <= after);
                    held.insert(start, lines);
                } else {
                    let (&start, &lines) = held.iter().nth(usize::from(pick) % held.len()).unwrap();
                    held.remove(&start);
                    if let Some(range) = list.give(start, lines) {
                        prop_assert!(held.iter().all(|(s, l)| s + l <= range.start || range.end <= *s));
                    }
                }
                let blocks = list.blocks();
                prop_assert!(blocks.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0), "neighbours are merged");
                let free: u32 = blocks.iter().map(|block| block.1).sum();
                prop_assert_eq!(free + held.values().sum::<u32>(), 19_999);
            }
            for (start, lines) in held {
                let _ = list.give(start, lines);
            }
            prop_assert_eq!(list.blocks(), vec![(1, 19_999)]);
        }
    }
}
