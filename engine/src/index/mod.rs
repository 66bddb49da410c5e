//! Where each live key's record is: a table of lines of one cache line each, 4 bytes of place and 1 of tag a key. Keys are
//! compared in the records themselves.
//!
//! An entry's *home* is the line that its hash names. A line that is full lets further entries pass on to the next one (the
//! first follows the last), and counts them; so a lookup stops at the first line that nothing of it can have passed. The
//! home rises with the hash, whatever the number of lines is: so a table may have any number of lines, and its entries can
//! be visited in the order of their hashes, which growth does not change.
//!
//! Invariants:
//! - at most one entry per (keyspace, key), and none for the same place twice;
//! - every line between an entry's home and its own line is counted up for it exactly once, so removal counts down, and a
//!   table never wears out;
//! - there is room for at least one more entry in a table that has lines.
//!
//! The table does not know records; its user tells it how to compare and to hash what is at a place. What it does depends
//! on the calls and the hashes alone.

mod line;
mod table;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hasher};
use std::ops::ControlFlow;

use foldhash::fast::FixedState;

use self::line::{LINE_ENTRIES, Line};
use self::table::Table;
use crate::arena::{Arena, prefetch};
use crate::segment::RecordOffset;

/// How full a table becomes before it grows, in eighths of its room.
const LOAD_EIGHTHS_MAX: usize = 7;
/// How empty a table becomes before it shrinks, in eighths of its room.
const LOAD_EIGHTHS_MIN: usize = 2;
/// How full it is after it shrank, in eighths.
const LOAD_EIGHTHS_SHRUNK: usize = 5;
/// A table grows by this part of itself, and at least by one line.
const GROWTH_DIVISOR: usize = 4;

/// Hashes (keyspace, key), seeded once per engine so that outsiders cannot make keys collide.
#[derive(Clone)]
pub(crate) struct KeyHasher(FixedState);

impl KeyHasher {
    /// A hasher with this seed.
    pub(crate) fn new(seed: u64) -> KeyHasher {
        KeyHasher(FixedState::with_seed(seed))
    }

    /// The hash of a key.
    #[inline]
    pub(crate) fn hash(&self, keyspace: u8, key: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write_u8(keyspace);
        hasher.write(key);
        hasher.finish()
    }
}

/// The table.
#[derive(Default)]
pub(crate) struct Index {
    table: Table,
    entries: usize,
}

/// Where an entry is.
#[derive(Clone, Copy)]
struct Found {
    home: usize,
    line: usize,
    position: usize,
    place: RecordOffset,
}

/// The most entries in so many lines.
const fn entries_max(lines: usize) -> usize {
    lines * LINE_ENTRIES * LOAD_EIGHTHS_MAX / 8
}

fn grown(lines: usize) -> usize {
    lines + (lines / GROWTH_DIVISOR).max(1)
}

/// Other bits than those that name the home, and never zero.
#[inline]
fn tag_of(hash: u64) -> u8 {
    1 + ((u64::from(hash as u32) * 255) >> 32) as u8
}

impl Index {
    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Memory that the table takes.
    pub(crate) fn bytes(&self) -> usize {
        Index::bytes_of(self.lines().len())
    }

    /// How much more memory the table takes after the next new key: zero while there is room. While it grows the old lines
    /// are there as well.
    pub(crate) fn growth_bytes(&self) -> usize {
        let lines = self.lines().len();
        if self.has_room() { 0 } else { Index::bytes_of(grown(lines) - lines) }
    }

    /// How many lines have room for so many keys.
    pub(crate) fn lines_for(keys: usize) -> usize {
        (keys * 8).div_ceil(LINE_ENTRIES * LOAD_EIGHTHS_MAX)
    }

    /// Memory that so many lines take.
    pub(crate) fn bytes_of(lines: usize) -> usize {
        lines * size_of::<Line>()
    }

    /// Whether so many more keys do not make it grow.
    pub(crate) fn has_room_for(&self, keys: usize) -> bool {
        self.entries + keys <= entries_max(self.lines().len())
    }

    /// Gives the table at least so many lines.
    pub(crate) fn grow_to(&mut self, lines: usize, arena: &Arena, hash_of: impl Fn(RecordOffset) -> u64) {
        if lines > self.lines().len() {
            self.resize(lines, arena, hash_of);
        }
    }

    /// The entry with this hash that `is_key` accepts.
    #[inline]
    pub(crate) fn find(&self, hash: u64, is_key: impl Fn(RecordOffset) -> bool) -> Option<RecordOffset> {
        self.locate(hash, is_key).map(|found| found.place)
    }

    /// Has the processor fetch the line where a lookup of this hash begins.
    pub(crate) fn prefetch(&self, hash: u64) {
        if let Some(line) = self.lines().get(self.home(hash)) {
            prefetch(line);
        }
    }

    /// The first entry that a lookup of this hash would look at, if there is one in its home.
    pub(crate) fn first_guess(&self, hash: u64) -> Option<RecordOffset> {
        let line = self.lines().get(self.home(hash))?;
        line.with_tag(tag_of(hash)).next().map(|position| line.place(position))
    }

    /// Points a key's entry to `place`, and returns where it pointed to before, if it was there.
    pub(crate) fn set(
        &mut self,
        hash: u64,
        place: RecordOffset,
        is_key: impl Fn(RecordOffset) -> bool,
        arena: &Arena,
        hash_of: impl Fn(RecordOffset) -> u64,
    ) -> Option<RecordOffset> {
        if let Some(found) = self.locate(hash, is_key) {
            self.table.lines_mut()[found.line].put(found.position, tag_of(hash), place);
            return Some(found.place);
        }
        if !self.has_room() {
            self.resize(grown(self.lines().len()), arena, hash_of);
        }
        self.insert(hash, place);
        self.entries += 1;
        None
    }

    /// Removes a key's entry, and returns where it pointed to. The table keeps its lines: see [`Index::shrink`].
    pub(crate) fn remove(
        &mut self,
        hash: u64,
        is_key: impl Fn(RecordOffset) -> bool,
    ) -> Option<RecordOffset> {
        let found = self.locate(hash, is_key)?;
        self.clear(found);
        Some(found.place)
    }

    /// Whether there is an entry for exactly this place.
    pub(crate) fn holds(&self, hash: u64, place: RecordOffset) -> bool {
        self.locate_place(hash, place).is_some()
    }

    /// Points the entry for exactly `from` to `to`. False: there is none.
    pub(crate) fn relocate(&mut self, hash: u64, from: RecordOffset, to: RecordOffset) -> bool {
        let Some(found) = self.locate_place(hash, from) else { return false };
        self.table.lines_mut()[found.line].put(found.position, tag_of(hash), to);
        true
    }

    /// Removes the entry for exactly this place. False: there is none. As for [`Index::remove`].
    pub(crate) fn remove_place(&mut self, hash: u64, place: RecordOffset) -> bool {
        let Some(found) = self.locate_place(hash, place) else { return false };
        self.clear(found);
        true
    }

    /// Gives memory back if the table has become much too large, and says whether it was. To be called after removals.
    pub(crate) fn shrink(&mut self, arena: &Arena, hash_of: impl Fn(RecordOffset) -> u64) -> bool {
        let (before, room) = (self.lines().len(), self.lines().len() * LINE_ENTRIES);
        if self.entries == 0 {
            self.table = Table::default();
        } else if self.entries * 8 < room * LOAD_EIGHTHS_MIN {
            let lines = (self.entries * 8).div_ceil(LINE_ENTRIES * LOAD_EIGHTHS_SHRUNK);
            if lines < before {
                self.resize(lines, arena, hash_of);
            }
        }
        self.lines().len() < before
    }

    /// Visits the entries with hashes from `from` on in the order of their hashes, and of their places where those are
    /// equal, until `visit` breaks. Costs by the lines and entries that are passed.
    pub(crate) fn scan(
        &self,
        from: u64,
        hash_of: impl Fn(RecordOffset) -> u64,
        mut visit: impl FnMut(u64, RecordOffset) -> ControlFlow<()>,
    ) {
        let mut of_home = Vec::with_capacity(LINE_ENTRIES);
        for home in self.home(from)..self.lines().len() {
            for (_, line) in self.probe(home) {
                let places = line.entries().map(|position| line.place(position));
                let hashed = places.map(|place| (hash_of(place), place));
                of_home.extend(hashed.filter(|(hash, _)| *hash >= from && self.home(*hash) == home));
            }
            of_home.sort_unstable();
            for (hash, place) in of_home.drain(..) {
                if visit(hash, place).is_break() {
                    return;
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.entries < entries_max(self.lines().len())
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        (((hash >> 32) * self.lines().len() as u64) >> 32) as usize
    }

    #[inline]
    fn lines(&self) -> &[Line] {
        self.table.lines()
    }

    /// The lines where an entry with this home can be.
    fn probe(&self, home: usize) -> impl Iterator<Item = (usize, &Line)> {
        let lines = self.lines();
        let numbers = (home..lines.len()).chain(0..home);
        let lines = lines[home..].iter().chain(&lines[..home]);
        let mut goes_on = true;
        numbers.zip(lines).take_while(move |(_, line)| std::mem::replace(&mut goes_on, line.overflows > 0))
    }

    #[inline]
    fn locate(&self, hash: u64, is_key: impl Fn(RecordOffset) -> bool) -> Option<Found> {
        let (home, tag) = (self.home(hash), tag_of(hash));
        let line = self.lines().get(home)?;
        if let Some((position, place)) = line.find(tag, &is_key) {
            return Some(Found { home, line: home, position, place });
        }
        if line.overflows == 0 { None } else { self.locate_beyond(home, tag, is_key) }
    }

    /// In the lines behind an entry's home.
    #[inline(never)]
    fn locate_beyond(&self, home: usize, tag: u8, is_key: impl Fn(RecordOffset) -> bool) -> Option<Found> {
        self.probe(home).skip(1).find_map(|(at, line)| {
            let (position, place) = line.find(tag, &is_key)?;
            Some(Found { home, line: at, position, place })
        })
    }

    fn locate_place(&self, hash: u64, place: RecordOffset) -> Option<Found> {
        self.locate(hash, |other| other == place)
    }

    fn after(&self, line: usize) -> usize {
        if line + 1 == self.lines().len() { 0 } else { line + 1 }
    }

    /// There must be room, and no entry for the key.
    fn insert(&mut self, hash: u64, place: RecordOffset) {
        let mut at = self.home(hash);
        loop {
            let line = &mut self.table.lines_mut()[at];
            if let Some(position) = line.room() {
                line.put(position, tag_of(hash), place);
                return;
            }
            line.overflows += 1;
            at = self.after(at);
        }
    }

    fn clear(&mut self, found: Found) {
        let mut passed = found.home;
        while passed != found.line {
            self.table.lines_mut()[passed].overflows -= 1;
            passed = self.after(passed);
        }
        self.table.lines_mut()[found.line].clear(found.position);
        self.entries -= 1;
    }

    fn resize(&mut self, lines: usize, arena: &Arena, hash_of: impl Fn(RecordOffset) -> u64) {
        debug_assert!(self.entries <= entries_max(lines), "all entries have room");
        let old = std::mem::replace(&mut self.table, Table::new(arena, lines));
        for line in old.lines() {
            for position in line.entries() {
                let place = line.place(position);
                self.insert(hash_of(place), place);
            }
        }
    }
}
