//! Which parts of an arena are free: the bookkeeping alone, in lines of 64 bytes, without touching memory.
//!
//! Invariants: free blocks never overlap and never touch (neighbours are merged at once). Each has a bit at its first and
//! one at its last line. A bin has every free block of its size, and may have *stale* entries beside: what a block was once.
//! An entry counts if a block of that size begins there now.
//!
//! Best fit. Small blocks, of which there are many, cost a few words of bits; the few large ones are in trees, the lowest
//! address first, which keeps the high end of the range unused and so unbacked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::arena::CHUNK_LINES;

/// Blocks of fewer lines have a bin for each size.
const LARGE_LINES_MIN: u32 = 1024;
/// A bin may have so many stale entries beside as many as it has blocks.
const STALE_MAX: usize = 64;

/// The free blocks of a range of lines.
pub(crate) struct FreeList {
    first_lines: Bits,
    last_lines: Bits,
    /// By size.
    bins: Vec<Bin>,
    /// Which bins have blocks.
    filled: Bits,
    large_by_start: BTreeMap<u32, u32>,
    large_by_size: BTreeSet<(u32, u32)>,
}

/// Where blocks of one size begin.
#[derive(Clone, Default)]
struct Bin {
    starts: Vec<u32>,
    /// How many blocks there are.
    blocks: usize,
}

impl FreeList {
    /// All of `lines` is free.
    pub(crate) fn new(lines: Range<u32>) -> FreeList {
        let mut list = FreeList {
            first_lines: Bits::new(lines.end),
            last_lines: Bits::new(lines.end),
            bins: vec![Bin::default(); LARGE_LINES_MIN as usize],
            filled: Bits::new(LARGE_LINES_MIN),
            large_by_start: BTreeMap::new(),
            large_by_size: BTreeSet::new(),
        };
        list.insert(lines.start, lines.end - lines.start);
        list
    }

    /// Takes `lines` in one piece; `None` when no free block is large enough.
    pub(crate) fn take(&mut self, lines: u32) -> Option<u32> {
        assert!(lines > 0, "an empty block has no place");
        let small = (lines < LARGE_LINES_MIN).then(|| self.filled.next(lines, LARGE_LINES_MIN)).flatten();
        let (found, start) = match small {
            Some(size) => (size, self.first_of(size)),
            None => *self.large_by_size.range((lines, 0)..).next()?,
        };
        self.remove(start, found);
        if found > lines {
            self.insert(start + lines, found - lines);
        }
        Some(start)
    }

    /// Gives lines back, and says of which of the memory around them whole chunks should now go back to the system, if any.
    #[must_use]
    pub(crate) fn give(&mut self, start: u32, lines: u32) -> Option<Range<u32>> {
        assert!(lines > 0, "an empty block has no place");
        let (mut from, mut to) = (start, start + lines);
        let is_free = |bits: &Bits| bits.next(from, to).is_some();
        assert!(!is_free(&self.first_lines) && !is_free(&self.last_lines), "lines {start}.. are freed twice");
        let mut unbacked = from..to;
        if from > 0 && self.last_lines.has(from - 1) {
            let before = self.start_of(from - 1);
            let before_lines = from - before;
            self.remove(before, before_lines);
            from = before;
            if before_lines < CHUNK_LINES {
                unbacked.start = before;
            }
        }
        if self.first_lines.has(to) {
            let after_lines = self.lines_at(to);
            self.remove(to, after_lines);
            to += after_lines;
            if after_lines < CHUNK_LINES {
                unbacked.end = to;
            }
        }
        self.insert(from, to - from);
        (to - from >= CHUNK_LINES).then(|| {
            // A chunk that the block only now covers as a whole may begin before, or end after, what was freed.
            unbacked.start.saturating_sub(CHUNK_LINES).max(from)
                ..unbacked.end.saturating_add(CHUNK_LINES).min(to)
        })
    }

    fn insert(&mut self, start: u32, lines: u32) {
        self.first_lines.set(start, true);
        self.last_lines.set(start + lines - 1, true);
        if lines >= LARGE_LINES_MIN {
            self.large_by_start.insert(start, lines);
            self.large_by_size.insert((lines, start));
            return;
        }
        let bin = &mut self.bins[lines as usize];
        bin.blocks += 1;
        bin.starts.push(start);
        if bin.blocks == 1 {
            self.filled.set(lines, true);
        }
        if bin.starts.len() > 2 * bin.blocks + STALE_MAX {
            self.drop_stale(lines);
        }
    }

    fn remove(&mut self, start: u32, lines: u32) {
        self.first_lines.set(start, false);
        self.last_lines.set(start + lines - 1, false);
        if lines >= LARGE_LINES_MIN {
            let by_start = self.large_by_start.remove(&start);
            let by_size = self.large_by_size.remove(&(lines, start));
            assert!(by_start == Some(lines) && by_size, "both trees hold the same blocks");
            return;
        }
        let bin = &mut self.bins[lines as usize];
        bin.blocks -= 1;
        if bin.blocks == 0 {
            bin.starts.clear();
            self.filled.set(lines, false);
        }
    }

    /// Where a block of this small size begins, of which there is one.
    fn first_of(&mut self, lines: u32) -> u32 {
        loop {
            let start =
                self.bins[lines as usize].starts.pop().expect("a filled bin has an entry of each block");
            if self.is_block(start, lines) {
                return start;
            }
        }
    }

    fn is_block(&self, start: u32, lines: u32) -> bool {
        self.first_lines.has(start) && self.last_lines.next(start, start + lines) == Some(start + lines - 1)
    }

    fn drop_stale(&mut self, lines: u32) {
        let mut starts = std::mem::take(&mut self.bins[lines as usize].starts);
        starts.sort_unstable();
        starts.dedup();
        starts.retain(|start| self.is_block(*start, lines));
        debug_assert_eq!(starts.len(), self.bins[lines as usize].blocks);
        self.bins[lines as usize].starts = starts;
    }

    /// How long the block is that begins here.
    fn lines_at(&self, start: u32) -> u32 {
        match self.last_lines.next(start, start.saturating_add(LARGE_LINES_MIN - 1)) {
            Some(last) => last + 1 - start,
            None => self.large_by_start[&start],
        }
    }

    /// Where the block begins whose last line this is.
    fn start_of(&self, last: u32) -> u32 {
        match self.first_lines.previous(last, LARGE_LINES_MIN - 1) {
            Some(start) => start,
            None => *self.large_by_start.range(..last).next_back().expect("a block ends here").0,
        }
    }

    #[cfg(test)]
    fn blocks(&self) -> Vec<(u32, u32)> {
        let end = (self.first_lines.pieces.len() * PIECE_WORDS * 64) as u32;
        let mut starts: Vec<u32> = Vec::new();
        while let Some(start) = self.first_lines.next(starts.last().map_or(0, |start| start + 1), end) {
            starts.push(start);
        }
        let blocks: Vec<(u32, u32)> = starts.iter().map(|start| (*start, self.lines_at(*start))).collect();
        let small = blocks.iter().filter(|(_, lines)| *lines < LARGE_LINES_MIN).count();
        assert_eq!(small, self.bins.iter().map(|bin| bin.blocks).sum::<usize>());
        assert_eq!(blocks.len() - small, self.large_by_start.len());
        for (at, bin) in self.bins.iter().enumerate() {
            assert_eq!(bin.blocks > 0, self.filled.has(at as u32));
            assert!(bin.starts.len() <= 2 * bin.blocks + STALE_MAX);
        }
        blocks
    }
}

/// Words of a piece: bits for 16 MiB of memory.
const PIECE_WORDS: usize = 4096;

/// A bit for each line, in pieces: those of which no bit was ever set are not there. An arena uses the low end of its range
/// and the last line; all bits in one allocation would be 32 MiB of zeros, which an allocator that has such a piece at hand
/// has to write.
struct Bits {
    pieces: Vec<Option<Box<[u64; PIECE_WORDS]>>>,
}

impl Bits {
    fn new(bits: u32) -> Bits {
        // One more, so that one behind the end may be looked at.
        let words = bits as usize / 64 + 1;
        Bits { pieces: vec![None; words.div_ceil(PIECE_WORDS)] }
    }

    /// 64 bits; `None` behind the end.
    fn word(&self, at: usize) -> Option<u64> {
        let piece = self.pieces.get(at / PIECE_WORDS)?;
        Some(piece.as_ref().map_or(0, |words| words[at % PIECE_WORDS]))
    }

    fn has(&self, at: u32) -> bool {
        self.word(at as usize / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    fn set(&mut self, at: u32, to: bool) {
        let (place, bit) = (at as usize / 64, 1 << (at % 64));
        let piece = self.pieces[place / PIECE_WORDS].get_or_insert_with(|| Box::new([0; PIECE_WORDS]));
        let word = &mut piece[place % PIECE_WORDS];
        if to { *word |= bit } else { *word &= !bit }
    }

    /// The first bit that is set in `from..to`.
    fn next(&self, from: u32, to: u32) -> Option<u32> {
        let mut at = from as usize / 64;
        let mut bits = self.word(at)? & (u64::MAX << (from % 64));
        while bits == 0 {
            at += 1;
            if at * 64 >= to as usize {
                return None;
            }
            bits = self.word(at)?;
        }
        let found = at as u32 * 64 + bits.trailing_zeros();
        (found < to).then_some(found)
    }

    /// The last bit that is set among the `count` that end with `last`.
    fn previous(&self, last: u32, count: u32) -> Option<u32> {
        let first = (last + 1).saturating_sub(count);
        let mut at = last as usize / 64;
        let mut bits = self.word(at)? & (u64::MAX >> (63 - last % 64));
        while bits == 0 {
            if at as u32 * 64 <= first {
                return None;
            }
            at -= 1;
            bits = self.word(at)?;
        }
        let found = at as u32 * 64 + 63 - bits.leading_zeros();
        (found >= first).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn large_blocks_are_given_back_with_what_merged() {
        let tenth = CHUNK_LINES.div_ceil(10);
        let mut list = FreeList::new(0..100 * tenth);
        let blocks: Vec<u32> = (0..100).map(|_| list.take(tenth).unwrap()).collect();
        for block in &blocks[..9] {
            assert!(list.give(*block, tenth).is_none(), "that is not a chunk yet");
        }
        let given = list.give(blocks[9], tenth).unwrap();
        assert_eq!(given, 0..10 * tenth, "the small blocks that merged were never given back before");
        for block in &blocks[10..25] {
            let _ = list.give(*block, tenth);
        }
        let given = list.give(blocks[25], tenth).unwrap();
        assert_eq!(given, 25 * tenth - CHUNK_LINES..26 * tenth, "what was given back before is left alone");
    }

    #[test]
    fn bits_are_found_in_both_directions() {
        for set in [0_u32, 1, 63, 64, 65, 127, 128, 700] {
            let mut bits = Bits::new(1_000);
            bits.set(set, true);
            for at in 0..1_000 {
                assert_eq!(bits.has(at), at == set);
                assert_eq!(bits.next(at, 1_000), (at <= set).then_some(set));
                assert_eq!(bits.next(0, at), (set < at).then_some(set));
                assert_eq!(bits.previous(at, 1_000), (set <= at).then_some(set));
                assert_eq!(bits.previous(900, at), (set <= 900 && set + at > 900).then_some(set));
            }
        }
    }

    #[test]
    fn bits_are_found_across_pieces() {
        let piece = PIECE_WORDS as u32 * 64;
        let mut bits = Bits::new(4 * piece);
        assert!(bits.pieces.iter().all(Option::is_none));
        bits.set(3 * piece, true);
        assert_eq!(bits.pieces.iter().flatten().count(), 1, "what is not set takes no memory");
        assert_eq!((bits.next(5, 4 * piece), bits.next(5, 3 * piece)), (Some(3 * piece), None));
        assert_eq!(bits.previous(3 * piece + 9, 10), Some(3 * piece));
        assert_eq!(bits.previous(3 * piece - 1, 2 * piece), None);
        bits.set(7, true);
        assert_eq!(bits.previous(3 * piece - 1, 3 * piece), Some(7));
        assert!(bits.has(7) && !bits.has(piece + 7));
    }

    #[test]
    fn entries_of_blocks_that_are_no_more_do_not_pile_up() {
        let mut list = FreeList::new(1..100_000);
        let (first, _second, third) = (list.take(2).unwrap(), list.take(3).unwrap(), list.take(2).unwrap());
        for _ in 0..1_000 {
            assert!(list.give(first, 2).is_none());
            assert_eq!(list.take(2), Some(first), "best fit");
            let _merged_with_the_rest = list.give(third, 2);
            assert_eq!(list.take(2), Some(third));
            let _checks = list.blocks();
        }
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
