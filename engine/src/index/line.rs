//! One line of the index: room for twelve entries in exactly one cache line.
//!
//! Invariants: an entry's tag is never zero and its place is never zero, and where one is zero the other is: then there is
//! room. `overflows` counts the entries that passed this line because it was full, and lie in a later one.

use zerocopy::{Immutable, IntoBytes};

use crate::bytes;
use crate::segment::RecordOffset;

/// Entries in a line.
pub(super) const LINE_ENTRIES: usize = 12;
/// The tag where there is no entry.
const NO_TAG: u8 = 0;
/// One bit for each entry.
const ALL: u32 = (1 << LINE_ENTRIES) - 1;

/// The home of twelve entries.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C, align(64))]
pub(super) struct Line {
    places: [u32; LINE_ENTRIES],
    tags: [u8; LINE_ENTRIES],
    pub(super) overflows: u32,
}

const _: () = assert!(size_of::<Line>() == 64);

impl Line {
    pub(super) const EMPTY: Line =
        Line { places: [0; LINE_ENTRIES], tags: [NO_TAG; LINE_ENTRIES], overflows: 0 };

    /// Where entries with this tag are.
    #[inline]
    pub(super) fn with_tag(&self, tag: u8) -> Positions {
        let tail = self.as_bytes().last_chunk().expect("a line is longer");
        Positions(bytes::equal(tail, tag) & ALL)
    }

    /// The first entry with this tag whose place `is_it` accepts: where it is, and its place.
    #[inline]
    pub(super) fn find(
        &self,
        tag: u8,
        is_it: impl Fn(RecordOffset) -> bool,
    ) -> Option<(usize, RecordOffset)> {
        self.with_tag(tag).map(|position| (position, self.place(position))).find(|(_, place)| is_it(*place))
    }

    /// Where entries are.
    pub(super) fn entries(&self) -> Positions {
        Positions(!self.with_tag(NO_TAG).0 & ALL)
    }

    /// Where there is room.
    pub(super) fn room(&self) -> Option<usize> {
        self.with_tag(NO_TAG).next()
    }

    /// The entry's place.
    #[inline]
    pub(super) fn place(&self, position: usize) -> RecordOffset {
        RecordOffset::from(self.places[position])
    }

    /// Makes an entry, or changes its place.
    pub(super) fn put(&mut self, position: usize, tag: u8, place: RecordOffset) {
        debug_assert!(tag != NO_TAG && place.get() != 0, "zero means room");
        self.tags[position] = tag;
        self.places[position] = place.get();
    }

    /// Removes an entry.
    pub(super) fn clear(&mut self, position: usize) {
        self.tags[position] = NO_TAG;
        self.places[position] = 0;
    }
}

/// Positions in a line, in rising order.
#[derive(Clone, Copy)]
pub(super) struct Positions(u32);

impl Iterator for Positions {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let position = self.0.trailing_zeros() as usize;
        if self.0 == 0 {
            return None;
        }
        self.0 &= self.0 - 1;
        Some(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tags_are_compared_as_one_by_one(tags in any::<[u8; LINE_ENTRIES]>(), wanted in any::<u8>(), few in any::<bool>()) {
            // Neighbouring values are what carries would confuse.
            let tags = if few { tags.map(|tag| wanted.wrapping_add(tag % 3).wrapping_sub(1)) } else { tags };
            let line = Line { tags, ..Line::EMPTY };
            let expected: Vec<usize> = (0..LINE_ENTRIES).filter(|&at| tags[at] == wanted).collect();
            prop_assert_eq!(line.with_tag(wanted).collect::<Vec<_>>(), expected);
            let held: Vec<usize> = (0..LINE_ENTRIES).filter(|&at| tags[at] != 0).collect();
            prop_assert_eq!(line.entries().collect::<Vec<_>>(), held);
            prop_assert_eq!(line.room(), (0..LINE_ENTRIES).find(|&at| tags[at] == 0));
        }
    }
}
