//! A slot's segments in the order of their versions.
//!
//! Invariants: along a chain counters strictly increase; only its last segment has a writer; the sums over its segments
//! (memory, records, what of them is superseded, tombstones) are exact.

use std::mem::offset_of;
use std::ops::Range;

use lockgate_runtime::sync::Arc;

use crate::arena::{Arena, ArenaBase, Block, LINE_BYTES, OutOfMemory, prefetch};
use crate::record::{Kind, Record};
use crate::segment::{
    DESCRIPTION_BYTES, EXTENT_BYTES_MAX, Extent, PinnedRange, RecordOffset, SegmentRef, Writer, record_at,
};
use crate::types::{RangeHeader, Term, Version};

/// A new segment has this part of what its chain already holds, within these bounds...
const GROWTH_DIVISOR: u64 = 16;
const SEGMENT_BYTES_MIN: u64 = 384;
/// ... unless one append needs more, which then has a segment of its own. The upper bound is also that of what one step of a
/// compaction copies.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 64 << 10;

/// So many segments of less than so many bytes are a crowd.
const CROWD_MIN: usize = 5;
const CROWDED_BYTES_MAX: u64 = 2 << 10;
/// A crowd is merged into one segment of at most this part of what its chain holds...
const MERGED_DIVISOR: u64 = 8;
/// ... but in a small chain one may have so much: see [`Chain::merged_bytes_max`].
const SMALL_MERGED_BYTES_MAX: u64 = 3 << 10;
/// A record of at most so many bytes is fetched whole.
const PREFETCHED_BYTES: usize = 3 * LINE_BYTES;
/// In a chain of at most so many segments each is looked at to find a record's.
const SCANNED_MAX: usize = 64;

/// A segment's place in its chain.
pub(crate) struct Link {
    /// The counter of its first record.
    pub(crate) first: u64,
    /// Its name in this chain: never given twice.
    pub(crate) id: u32,
    /// The segment itself.
    pub(crate) segment: SegmentRef,
    /// Bytes of its records: what is published. Here too, so that nobody has to look into each segment of a chain.
    pub(crate) bytes: u32,
    /// Bytes of its superseded values.
    pub(crate) dead_bytes: u32,
    /// Bytes of its records that are no values.
    pub(crate) tombstone_bytes: u32,
}

impl Link {
    fn new(first: u64, id: u32, segment: SegmentRef, bytes: usize) -> Link {
        debug_assert_eq!(segment.published(), bytes);
        Link { first, id, segment, bytes: bytes as u32, dead_bytes: 0, tombstone_bytes: 0 }
    }
}

/// Where in a chain a reader goes on, as long as the segment is part of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    first: u64,
    id: u32,
    byte: usize,
}

impl Place {
    /// Another byte of the same segment.
    pub(crate) fn at_byte(self, byte: usize) -> Place {
        Place { byte, ..self }
    }
}

/// No segment's range header.
const MIXED: RangeHeader = RangeHeader { term: Term(u64::MAX), base: u64::MAX };

/// A slot's segments, and their only writer.
///
/// What a lookup needs comes first: see `cell.rs`.
#[repr(C)]
pub(crate) struct Chain {
    base: ArenaBase,
    /// The range header of every segment, if they have the same one; [`MIXED`] otherwise, and when there is none.
    common: RangeHeader,
    arena: Arc<Arena>,
    links: Vec<Link>,
    /// Where each link's memory begins: of a short chain they lie in one or two cache lines.
    starts: Vec<u32>,
    /// Where in `links` each range header begins, if there are several.
    ranges: Vec<(RangeHeader, usize)>,
    /// Of the last segment; or of the next one, if nothing was written to it yet.
    tail: Option<Writer>,
    next_id: u32,
    segment_bytes: u64,
    record_bytes: u64,
    dead_bytes: u64,
    tombstone_bytes: u64,
}

impl Chain {
    /// What a lookup needs: the first bytes of a chain.
    pub(crate) const LOOKUP_BYTES: usize = offset_of!(Chain, arena);

    /// An empty chain that takes its memory from `arena`.
    pub(crate) fn new(arena: Arc<Arena>) -> Chain {
        Chain {
            base: arena.base(),
            common: MIXED,
            arena,
            links: Vec::new(),
            starts: Vec::new(),
            ranges: Vec::new(),
            tail: None,
            next_id: 0,
            segment_bytes: 0,
            record_bytes: 0,
            dead_bytes: 0,
            tombstone_bytes: 0,
        }
    }

    /// The arena that it takes its memory from.
    pub(crate) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The segments.
    pub(crate) fn links(&self) -> &[Link] {
        &self.links
    }

    /// What the latest segment's records count from.
    pub(crate) fn last_range(&self) -> Option<RangeHeader> {
        if self.common != MIXED { Some(self.common) } else { self.ranges.last().map(|(range, _)| *range) }
    }

    /// Memory that the chain's segments take.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Bytes of all records.
    pub(crate) fn record_bytes(&self) -> u64 {
        self.record_bytes
    }

    /// Whether there are so many short segments that what each takes beside its records counts; `barren` of them are known
    /// to stay.
    pub(crate) fn is_crowded(&self, barren: usize) -> bool {
        let links = self.links.len();
        links >= CROWD_MIN.max(barren + CROWD_MIN / 2) && self.record_bytes < links as u64 * CROWDED_BYTES_MAX
    }

    /// How much may be in one segment that replaces a crowd. The memory of a long one, when it is replaced in turn, waits for
    /// somebody who needs as much; that of short ones is what new segments are made of.
    pub(crate) fn merged_bytes_max(&self) -> u64 {
        (self.record_bytes / MERGED_DIVISOR).clamp(SMALL_MERGED_BYTES_MAX, SEGMENT_BYTES_MAX)
    }

    /// Bytes of superseded values.
    pub(crate) fn dead_bytes(&self) -> u64 {
        self.dead_bytes
    }

    /// Bytes of records that are no values.
    pub(crate) fn tombstone_bytes(&self) -> u64 {
        self.tombstone_bytes
    }

    /// Makes room for one [`append`](Chain::append) of `bytes` under this range header. Changes nothing on failure.
    pub(crate) fn reserve(&mut self, range: RangeHeader, bytes: usize) -> Result<(), OutOfMemory> {
        self.reserve_by(range, bytes, Arena::allocate)
    }

    /// As [`Chain::reserve`], also beyond the bound: for what ends keys, without which nobody could make room.
    pub(crate) fn reserve_beyond(&mut self, range: RangeHeader, bytes: usize) -> Result<(), OutOfMemory> {
        self.reserve_by(range, bytes, Arena::allocate_beyond)
    }

    fn reserve_by(
        &mut self,
        range: RangeHeader,
        bytes: usize,
        at_least: fn(&Arc<Arena>, usize) -> Result<Block, OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        assert!(bytes <= EXTENT_BYTES_MAX, "the caller checks lengths");
        let is_extent = bytes as u64 > SEGMENT_BYTES_MAX;
        if let Some(tail) = &self.tail
            && tail.range() == range
            && tail.room() >= bytes
            && (!is_extent || tail.is_empty())
        {
            return Ok(());
        }
        let target =
            (self.segment_bytes / GROWTH_DIVISOR).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX) as usize;
        // Records of a slot are often of one size: then less than one is left over.
        let target = (target / bytes).max(1) * bytes;
        let block = match self.arena.allocate(DESCRIPTION_BYTES + target) {
            Ok(block) => block,
            // Close to the bound a snug segment may still fit.
            Err(_) => at_least(&self.arena, DESCRIPTION_BYTES + bytes)?,
        };
        self.seal();
        self.segment_bytes += block.bytes() as u64;
        self.tail = Some(Writer::new(block, range));
        Ok(())
    }

    /// As [`Chain::reserve`]: the next append is about what is in this extent already.
    pub(crate) fn adopt(&mut self, range: RangeHeader, extent: Extent) {
        self.seal();
        let tail = Writer::over(extent, range);
        self.segment_bytes += tail.segment().block_bytes() as u64;
        self.tail = Some(tail);
    }

    /// Ends the last segment: its unused tail goes back to the arena, or all of it when nothing was written.
    pub(crate) fn seal(&mut self) {
        let Some(tail) = self.tail.take() else { return };
        self.segment_bytes -= tail.segment().block_bytes() as u64;
        if tail.segment().published() > 0 {
            self.segment_bytes += tail.seal().block_bytes() as u64;
        }
    }

    /// Appends `bytes` of whole records, written by `fill`, the first of which has this counter, and publishes them.
    ///
    /// There must be room ([`reserve`](Chain::reserve)). If `fill` fails or panics nothing is published.
    pub(crate) fn append<T, E>(
        &mut self,
        counter: u64,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<T, E>,
    ) -> Result<(RecordOffset, T), E> {
        let tail = self.tail.as_mut().expect("room was reserved");
        let is_new = tail.is_empty();
        let appended = tail.append(bytes, fill)?;
        if is_new {
            let segment = tail.segment().clone();
            self.push(counter, segment, bytes);
        } else {
            self.links.last_mut().expect("what was published has a link").bytes += bytes as u32;
        }
        self.record_bytes += bytes as u64;
        Ok(appended)
    }

    fn push(&mut self, first: u64, segment: SegmentRef, bytes: usize) {
        if self.last_range() != Some(segment.range()) {
            self.begin_range(segment.range());
        }
        let id = self.name();
        grow_snugly(&mut self.starts);
        self.starts.push(segment.first_place().get());
        grow_snugly(&mut self.links);
        self.links.push(Link::new(first, id, segment, bytes));
    }

    /// The next link has another range header than the last one, or is the first.
    fn begin_range(&mut self, range: RangeHeader) {
        if self.links.is_empty() {
            self.common = range;
            return;
        }
        if self.common != MIXED {
            self.ranges = vec![(self.common, 0)];
            self.common = MIXED;
        }
        grow_snugly(&mut self.ranges);
        self.ranges.push((range, self.links.len()));
    }

    fn name(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// The records up to `to`, as a chain of its own, with the last one's version. Segments are shared; one that ends above
    /// `to` is copied as far as it counts. If one of the chains is written the other must be dropped. What is superseded
    /// is for the caller to note anew.
    pub(crate) fn up_to(&self, to: Version) -> Result<(Chain, Version), OutOfMemory> {
        let mut chain = Chain::new(self.arena.clone());
        let mut last = Version::ZERO;
        for Link { first, segment, bytes: length, .. } in &self.links {
            let (end, found) = segment.end_of(to);
            let Some(found) = found else { break };
            last = found;
            let segment = if end == *length as usize {
                segment.clone()
            } else {
                snug(&self.arena, segment.range(), end, &[segment.bytes(0..end)], Arena::allocate)?
            };
            chain.segment_bytes += segment.block_bytes() as u64;
            chain.record_bytes += end as u64;
            chain.push(*first, segment, end);
        }
        Ok((chain, last))
    }

    /// Puts a copy of those `parts` of the links in `run` that count in their place; without parts, nothing. The first
    /// record of the copy has the counter `first`. Returns the copy, and what it replaced, to be dropped without a lock:
    /// until then the old records can be read, and every offset that is kept must be moved.
    ///
    /// All links of the run have one range header; none is being written.
    pub(crate) fn replace(
        &mut self,
        run: Range<usize>,
        first: u64,
        parts: &[(usize, Range<usize>)],
        (dead_bytes, tombstone_bytes): (u32, u32),
    ) -> Result<(Option<SegmentRef>, Vec<Link>), OutOfMemory> {
        debug_assert!(
            run.clone().all(|link| self.is_unpinned(link)),
            "what anybody else holds is not replaced"
        );
        let range = self.links[run.start].segment.range();
        let bytes = parts.iter().map(|(_, part)| part.len()).sum();
        let mut copy = None;
        if bytes > 0 {
            let parts: Vec<&[u8]> =
                parts.iter().map(|(link, part)| self.links[*link].segment.bytes(part.clone())).collect();
            copy = Some(snug(&self.arena, range, bytes, &parts, Arena::allocate_beyond)?);
        }
        let id = self.name();
        let link = copy.iter().map(|segment| Link {
            dead_bytes,
            tombstone_bytes,
            ..Link::new(first, id, segment.clone(), bytes)
        });
        for link in &self.links[run.clone()] {
            self.segment_bytes -= link.segment.block_bytes() as u64;
            self.record_bytes -= u64::from(link.bytes);
            self.dead_bytes -= u64::from(link.dead_bytes);
            self.tombstone_bytes -= u64::from(link.tombstone_bytes);
        }
        let start = copy.iter().map(|segment| segment.first_place().get());
        self.starts.splice(run.clone(), start);
        let old = self.links.splice(run, link).collect();
        shrink_snugly(&mut self.starts);
        shrink_snugly(&mut self.links);
        self.segment_bytes += copy.as_ref().map_or(0, |segment| segment.block_bytes() as u64);
        self.record_bytes += bytes as u64;
        self.dead_bytes += u64::from(dead_bytes);
        self.tombstone_bytes += u64::from(tombstone_bytes);
        self.find_ranges();
        Ok((copy, old))
    }

    /// Notes the range headers anew: links are gone.
    fn find_ranges(&mut self) {
        if self.links.is_empty() {
            self.common = MIXED;
        }
        if self.ranges.is_empty() {
            return;
        }
        let mut ranges: Vec<(RangeHeader, usize)> = Vec::new();
        for (at, link) in self.links.iter().enumerate() {
            let range = link.segment.range();
            if ranges.last().is_none_or(|(last, _)| *last != range) {
                ranges.push((range, at));
            }
        }
        if let [(range, _)] = ranges.as_slice() {
            self.common = *range;
            ranges = Vec::new();
        }
        self.ranges = ranges;
    }

    /// Whether only this chain holds a segment, so that dropping it frees it.
    pub(crate) fn is_unpinned(&self, link: usize) -> bool {
        let segment = &self.links[link].segment;
        let is_written = self.tail.as_ref().is_some_and(|tail| segment.is_same(tail.segment()));
        segment.holders() == 1 + usize::from(is_written)
    }

    /// Notes that the value at this place is superseded.
    pub(crate) fn supersede(&mut self, offset: RecordOffset) {
        let link = self.link_of(offset);
        let bytes = self.record_at(offset).encoded_bytes() as u32;
        self.links[link].dead_bytes += bytes;
        self.dead_bytes += u64::from(bytes);
    }

    /// Notes that every value before this place is superseded. Records behind it, which came with it or are taken in once
    /// more, are not noted yet.
    pub(crate) fn supersede_all(&mut self, before: RecordOffset) {
        for link in &mut self.links {
            let at = link.segment.byte_of(before);
            link.dead_bytes = at.map_or(link.bytes, |at| at as u32) - link.tombstone_bytes;
            if at.is_some() {
                break;
            }
        }
        self.dead_bytes = self.links.iter().map(|link| u64::from(link.dead_bytes)).sum();
    }

    /// Notes that the last segment got a record that is no value.
    pub(crate) fn note_tombstone(&mut self, offset: RecordOffset) {
        let link = self.link_of(offset);
        let record = self.record_at(offset);
        debug_assert!(record.kind != Kind::Put);
        let bytes = record.encoded_bytes() as u32;
        self.links[link].tombstone_bytes += bytes;
        self.tombstone_bytes += u64::from(bytes);
    }

    /// Each record of one of the segments, with its place.
    pub(crate) fn places_in(&self, link: usize) -> Vec<RecordOffset> {
        let segment = &self.links[link].segment;
        self.places(segment.first_place(), self.links[link].bytes as usize)
    }

    /// How many records the segments hold.
    pub(crate) fn records(&self) -> u64 {
        (0..self.links.len()).map(|link| self.places_in(link).len() as u64).sum()
    }

    /// Has the processor fetch the first lines of the record at an offset that this chain gave out.
    #[inline]
    pub(crate) fn prefetch(&self, offset: RecordOffset) {
        self.base.prefetch(offset.get(), PREFETCHED_BYTES);
    }

    /// Has the processor fetch what an append of so many bytes writes to.
    pub(crate) fn prefetch_tail(&self, bytes: usize) {
        if let Some(tail) = &self.tail {
            tail.prefetch(bytes.min(PREFETCHED_BYTES));
        }
        if let Some(last) = self.links.last() {
            prefetch(last);
        }
    }

    /// The record at an offset that this chain gave out, and has not moved since.
    #[inline(always)]
    pub(crate) fn record_at(&self, offset: RecordOffset) -> Record<'_> {
        record_at(&self.base, offset)
    }

    /// Each record of published `bytes`, the first of which is at `first`, with its place.
    pub(crate) fn places(&self, first: RecordOffset, bytes: usize) -> Vec<RecordOffset> {
        let mut places = Vec::with_capacity(bytes / 64);
        let mut at = 0;
        while at < bytes {
            let place = first.after(at);
            places.push(place);
            at += self.record_at(place).encoded_bytes();
        }
        assert_eq!(at, bytes, "what is published is whole records");
        places
    }

    /// What the record at this offset counts its version from.
    #[inline]
    pub(crate) fn range_of(&self, offset: RecordOffset) -> RangeHeader {
        if self.common != MIXED { self.common } else { self.links[self.link_of(offset)].segment.range() }
    }

    /// The version of the record at this offset.
    #[inline]
    pub(crate) fn version_at(&self, offset: RecordOffset) -> Version {
        self.version_of(offset, &self.record_at(offset))
    }

    /// The version of this record, which is at this offset.
    #[inline]
    pub(crate) fn version_of(&self, offset: RecordOffset, record: &Record<'_>) -> Version {
        let range = self.range_of(offset);
        Version::new(range.term, range.base + u64::from(record.delta))
    }

    /// A pin on part of the record at this offset.
    pub(crate) fn pin(&self, offset: RecordOffset, part: Range<usize>) -> PinnedRange {
        let segment = &self.links[self.link_of(offset)].segment;
        let at = segment.byte_of(offset).expect("the link that holds it was found");
        PinnedRange::new(segment.clone(), at + part.start..at + part.end)
    }

    /// The segment that holds an offset: as segments do not overlap, the one that begins last at or before it.
    fn link_of(&self, offset: RecordOffset) -> usize {
        if self.starts.len() > SCANNED_MAX {
            return self.link_by_counter(offset);
        }
        let before = self.starts.iter().copied().filter(|start| *start <= offset.get());
        let start = before.max().expect("the offset is in its chain");
        let link = self.starts.iter().position(|other| *other == start).expect("it was found there");
        debug_assert!(self.links[link].segment.byte_of(offset).is_some(), "it is in this one");
        link
    }

    /// The same in a long chain. Within one range header segments are sorted by counter; which header it is cannot be told
    /// from the record, so each is tried, the latest first.
    fn link_by_counter(&self, offset: RecordOffset) -> usize {
        let delta = u64::from(self.record_at(offset).delta);
        let mut end = self.links.len();
        let common = [(self.common, 0)];
        let ranges = if self.common != MIXED { &common[..] } else { &self.ranges };
        for (range, begin) in ranges.iter().rev() {
            let links = &self.links[*begin..end];
            let counter = range.base + delta;
            let found = links.partition_point(|link| link.first <= counter).checked_sub(1);
            if let Some(at) = found
                && links[at].segment.byte_of(offset).is_some()
            {
                return begin + at;
            }
            end = *begin;
        }
        unreachable!("offset {offset:?} is not in its chain")
    }

    /// Where the first record after `counter` is: link and byte. One past the last record when there is none.
    pub(crate) fn find_after(&self, counter: u64) -> (usize, usize) {
        let after = self.links.partition_point(|link| link.first <= counter);
        let Some(link) = after.checked_sub(1) else { return (0, 0) };
        let segment = &self.links[link].segment;
        let found = segment.records().find(|(_, record)| segment.version_of(record).counter > counter);
        match found {
            Some((at, _)) => (link, at),
            None if after < self.links.len() => (after, 0),
            None => (link, self.links[link].bytes as usize),
        }
    }

    /// What to keep of a link and a byte in it, until it is asked for again.
    pub(crate) fn keep(&self, link: usize, byte: usize) -> Place {
        Place { first: self.links[link].first, id: self.links[link].id, byte }
    }

    /// Where that is now; `None` if the segment is not part of the chain any more.
    pub(crate) fn find_kept(&self, place: Place) -> Option<(usize, usize)> {
        let link = self.links.partition_point(|link| link.first < place.first);
        let found = self.links.get(link).filter(|link| link.id == place.id)?;
        debug_assert!(place.byte <= found.bytes as usize);
        Some((link, place.byte))
    }
}

/// Room for one more. A slot's lists are many, short and hardly ever grow: half empty ones would take more than they save.
pub(crate) fn grow_snugly<T>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(1 + list.len() / 4);
    }
}

/// The other way round, for a list that has become shorter, and may soon grow again.
fn shrink_snugly<T>(list: &mut Vec<T>) {
    let kept = list.len() + 1 + list.len() / 4;
    if list.capacity() > kept {
        list.shrink_to(kept);
    }
}

/// A segment of exactly these parts.
fn snug(
    arena: &Arc<Arena>,
    range: RangeHeader,
    bytes: usize,
    parts: &[&[u8]],
    allocate: fn(&Arc<Arena>, usize) -> Result<Block, OutOfMemory>,
) -> Result<SegmentRef, OutOfMemory> {
    let mut writer = Writer::new(allocate(arena, DESCRIPTION_BYTES + bytes)?, range);
    let filled = writer.append(bytes, |out| {
        let mut at = 0;
        for part in parts {
            out[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        assert_eq!(at, bytes, "the parts fill it");
        Ok::<_, std::convert::Infallible>(())
    });
    let Ok(_) = filled;
    Ok(writer.seal())
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
