//! Segments: pieces of arena memory that hold a slot's records in the order of their versions, and the chain of them.
//!
//! Records are appended and never changed in place. A segment belongs to one range header (term and base), so any run of
//! whole records in it can be logged or sent as it is.
//!
//! Invariants: along a chain counters strictly increase; `published` only grows and always ends at a whole record;
//! only a chain's last segment has a writer.
//!
//! # The access rule
//!
//! 1. A segment owns its block's bytes (see `arena.rs`). Bytes below `published` are immutable until the segment is
//!    freed; whoever holds the segment (an `Arc`: a pin, or the chain that it is part of) may read them.
//! 2. Bytes from `published` on belong to the segment's one writer, the [`Chain`], and through `&mut Chain` to one
//!    thread at a time (the chain lies under its slot's lock). It writes them, then publishes with a `Release` store,
//!    which the `Acquire` load of every reader pairs with.
//! 3. No reference is formed to a whole segment: `&[u8]` only below `published`, `&mut [u8]` only to what is being
//!    appended. So the two never overlap.
//! 4. A segment is freed when the last `Arc` goes. `shrink` gives back only bytes behind `published`, and only when the
//!    writer has moved on for good.
//! 5. A [`RecordOffset`] is made only for a published record's first byte, by the chain that holds its segment, and is
//!    resolved only by that chain. A chain never lets go of a segment; a slot keeps its index and its chain in one
//!    `Store`, which is replaced as a whole.
//! 6. Two chains may share segments ([`Chain::up_to`]). Then only the newer one is written from there on: the older one is
//!    dropped, or the newer one is.

use std::ops::{Deref, Range};
use std::slice;

use lockgate_runtime::IoBuf;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::{AtomicU32, Ordering};

use crate::arena::{Arena, Block, LINE_BYTES, OutOfMemory};
use crate::record::{self, RECORD_ALIGN_BYTES, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, Record};
use crate::types::{RangeHeader, Version};

/// A new segment has this part of what its chain already holds...
const GROWTH_DIVISOR: u64 = 16;
/// ... but at least so much...
const SEGMENT_BYTES_MIN: u64 = 1024;
/// ... and at most so much, unless one append needs more.
const SEGMENT_BYTES_MAX: u64 = 4 << 20;

const _: () = assert!(SEGMENT_BYTES_MIN.is_multiple_of(LINE_BYTES as u64));

/// The longest extent that one append may take: the longest record, or the longest log frame's worth of records.
pub(crate) const EXTENT_BYTES_MAX: usize = crate::log::format::FRAME_PAYLOAD_BYTES_MAX;
const _: () =
    assert!(RECORD_BYTES_MAX <= EXTENT_BYTES_MAX && EXTENT_BYTES_MAX + LINE_BYTES < u32::MAX as usize);

/// The place of a published record in its core's arena, in units of 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RecordOffset(u32);

impl RecordOffset {
    /// The place of the record `bytes` further on in the same append.
    fn after(self, bytes: usize) -> RecordOffset {
        debug_assert!(bytes.is_multiple_of(RECORD_ALIGN_BYTES));
        RecordOffset(self.0 + (bytes / RECORD_ALIGN_BYTES) as u32)
    }
}

/// One piece of memory with records of one range header.
pub(crate) struct Segment {
    block: Block,
    range: RangeHeader,
    published: AtomicU32,
}

impl Segment {
    /// What the records' versions count from.
    pub(crate) fn range(&self) -> RangeHeader {
        self.range
    }

    /// How many bytes of records are there.
    pub(crate) fn published(&self) -> usize {
        self.published.load(Ordering::Acquire) as usize
    }

    /// Published records. Panics beyond what is published.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(
            range.start <= range.end && range.end <= self.published(),
            "only published bytes may be read"
        );
        // SAFETY: rule 1: the bytes are below `published`, and `&self` keeps the segment.
        unsafe {
            slice::from_raw_parts(self.block.start().as_ptr().add(range.start), range.end - range.start)
        }
    }

    /// The record that starts at this byte.
    pub(crate) fn record_at(&self, at: usize) -> Record<'_> {
        parsed(self.bytes(at..self.published()))
    }

    /// The version of a record of this segment.
    pub(crate) fn version_of(&self, record: &Record<'_>) -> Version {
        Version::new(self.range.term, self.range.base + u64::from(record.delta))
    }

    /// Where the records up to `to` end. The last one's version goes to `last`, if there is one.
    fn end_of(&self, to: Version, last: &mut Version) -> usize {
        let (mut at, published) = (0, self.published());
        while at < published {
            let record = self.record_at(at);
            let version = self.version_of(&record);
            if version > to {
                break;
            }
            *last = version;
            at += record.encoded_bytes();
        }
        at
    }

    fn room(&self) -> usize {
        self.block.bytes() - self.published()
    }

    fn holds(&self, offset: RecordOffset) -> bool {
        let start = self.block.offset();
        (start..start + (self.published() / RECORD_ALIGN_BYTES) as u32).contains(&offset.0)
    }
}

fn parsed(bytes: &[u8]) -> Record<'_> {
    record::parse(bytes).expect("published bytes are whole records that were encoded here or verified")
}

/// Some whole records of one segment. As long as it lives the memory stays, whatever happens to the slot.
#[derive(Clone)]
pub struct PinnedRange {
    segment: Arc<Segment>,
    start: u32,
    end: u32,
}

impl PinnedRange {
    /// A pin on published bytes. Panics beyond what is published.
    pub(crate) fn new(segment: Arc<Segment>, range: Range<usize>) -> PinnedRange {
        let _ = segment.bytes(range.clone());
        PinnedRange { segment, start: range.start as u32, end: range.end as u32 }
    }
}

impl Deref for PinnedRange {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.segment.bytes(self.start as usize..self.end as usize)
    }
}

impl std::fmt::Debug for PinnedRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PinnedRange({} bytes)", self.end - self.start)
    }
}

// SAFETY: published bytes are immutable and do not move, and the pin keeps them (rule 1), wherever the pin is moved to.
unsafe impl IoBuf for PinnedRange {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

/// A segment's place in its chain.
pub(crate) struct Link {
    /// The counter of its first record.
    pub(crate) first: u64,
    /// The segment itself.
    pub(crate) segment: Arc<Segment>,
}

/// A slot's segments in the order of their versions, and their only writer.
pub(crate) struct Chain {
    arena: Arc<Arena>,
    links: Vec<Link>,
    /// Where in `links` each range header begins; usually one entry.
    ranges: Vec<(RangeHeader, usize)>,
    segment_bytes: u64,
}

impl Chain {
    /// An empty chain that takes its memory from `arena`.
    pub(crate) fn new(arena: Arc<Arena>) -> Chain {
        Chain { arena, links: Vec::new(), ranges: Vec::new(), segment_bytes: 0 }
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
        self.ranges.last().map(|(range, _)| *range)
    }

    /// Memory that the chain's segments take.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Makes room for one [`append`](Chain::append) of `bytes` under this range header. Changes nothing on failure.
    pub(crate) fn reserve(&mut self, range: RangeHeader, bytes: usize) -> Result<(), OutOfMemory> {
        assert!(bytes <= EXTENT_BYTES_MAX, "the caller checks lengths");
        if let Some(Link { segment, .. }) = self.links.last()
            && segment.range == range
            && segment.room() >= bytes
        {
            return Ok(());
        }
        let target =
            (self.segment_bytes / GROWTH_DIVISOR).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX) as usize;
        let block = match self.arena.allocate(target.max(bytes)) {
            Ok(block) => block,
            // Close to the bound a snug segment may still fit.
            Err(_) if target > bytes => self.arena.allocate(bytes)?,
            Err(error) => return Err(error),
        };
        self.seal();
        if self.ranges.last().is_none_or(|(last, _)| *last != range) {
            self.ranges.push((range, self.links.len()));
        }
        self.segment_bytes += block.bytes() as u64;
        let segment = Arc::new(Segment { block, range, published: AtomicU32::new(0) });
        self.links.push(Link { first: u64::MAX, segment });
        Ok(())
    }

    /// Ends the last segment: its unused tail goes back to the arena, or all of it when nothing was written.
    fn seal(&mut self) {
        let Some(Link { segment, .. }) = self.links.last() else { return };
        self.segment_bytes -= segment.block.bytes() as u64;
        if segment.published() == 0 {
            self.links.pop();
            while self.ranges.last().is_some_and(|(_, first)| *first >= self.links.len()) {
                self.ranges.pop();
            }
        } else {
            segment.block.shrink(segment.published());
            self.segment_bytes += segment.block.bytes() as u64;
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
        let link = self.links.last_mut().expect("room was reserved");
        let (segment, at) = (&link.segment, link.segment.published());
        assert!(
            bytes > 0 && segment.room() >= bytes && bytes.is_multiple_of(RECORD_ALIGN_BYTES),
            "room was reserved"
        );
        // SAFETY: rules 2 and 3: these bytes lie in the block behind `published`, and `&mut self` is the only writer.
        let out = unsafe { slice::from_raw_parts_mut(segment.block.start().as_ptr().add(at), bytes) };
        let filled = fill(out)?;
        segment.published.store((at + bytes) as u32, Ordering::Release);
        if at == 0 {
            link.first = counter;
        }
        Ok((RecordOffset(link.segment.block.offset()).after(at), filled))
    }

    /// The records up to `to`, as a chain of its own, with the last one's version. Segments are shared; one that ends above
    /// `to` is copied as far as it counts. If the new chain is written this one must not be any more (rule 6).
    pub(crate) fn up_to(&self, to: Version) -> Result<(Chain, Version), OutOfMemory> {
        let mut chain = Chain::new(self.arena.clone());
        let mut last = Version::ZERO;
        for Link { first, segment } in &self.links {
            let end = segment.end_of(to, &mut last);
            if end == 0 {
                break;
            }
            let segment = if end == segment.published() { segment.clone() } else { self.copy(segment, end)? };
            if chain.last_range() != Some(segment.range) {
                chain.ranges.push((segment.range, chain.links.len()));
            }
            chain.segment_bytes += segment.block.bytes() as u64;
            chain.links.push(Link { first: *first, segment });
        }
        Ok((chain, last))
    }

    fn copy(&self, of: &Segment, end: usize) -> Result<Arc<Segment>, OutOfMemory> {
        let block = self.arena.allocate(end)?;
        // SAFETY: rules 2 and 3: the block is new, so nobody else knows these bytes, and it is at least so long.
        let out = unsafe { slice::from_raw_parts_mut(block.start().as_ptr(), end) };
        out.copy_from_slice(of.bytes(0..end));
        Ok(Arc::new(Segment { block, range: of.range, published: AtomicU32::new(end as u32) }))
    }

    /// Each record of one of the segments, with its place.
    pub(crate) fn places_in(&self, link: usize) -> Vec<RecordOffset> {
        let segment = &self.links[link].segment;
        self.places(RecordOffset(segment.block.offset()), segment.published())
    }

    /// How many records the segments hold.
    pub(crate) fn records(&self) -> u64 {
        (0..self.links.len()).map(|link| self.places_in(link).len() as u64).sum()
    }

    /// The record at an offset that this chain gave out.
    pub(crate) fn record_at(&self, offset: RecordOffset) -> Record<'_> {
        let start = self.arena.address(offset.0).as_ptr();
        // SAFETY: rule 5: a published record begins here, in a segment that this chain holds; it has a whole header.
        let header = unsafe { slice::from_raw_parts(start, RECORD_HEADER_BYTES) };
        let bytes = record::encoded_bytes_of(header);
        // SAFETY: as above; the record's length is in its header, which was written or verified here.
        parsed(unsafe { slice::from_raw_parts(start, bytes) })
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
    pub(crate) fn range_of(&self, offset: RecordOffset) -> RangeHeader {
        match self.ranges.as_slice() {
            [(range, _)] => *range,
            _ => self.segment_of(offset).range,
        }
    }

    /// The version of the record at this offset.
    pub(crate) fn version_at(&self, offset: RecordOffset) -> Version {
        let range = self.range_of(offset);
        Version::new(range.term, range.base + u64::from(self.record_at(offset).delta))
    }

    /// A pin on part of the record at this offset.
    pub(crate) fn pin(&self, offset: RecordOffset, part: Range<usize>) -> PinnedRange {
        let segment = self.segment_of(offset);
        let at = (offset.0 - segment.block.offset()) as usize * RECORD_ALIGN_BYTES;
        PinnedRange::new(segment.clone(), at + part.start..at + part.end)
    }

    /// The segment that holds an offset. Within one range header segments are sorted by counter; which header it is
    /// cannot be told from the record, so each is tried, the latest first.
    fn segment_of(&self, offset: RecordOffset) -> &Arc<Segment> {
        let delta = u64::from(self.record_at(offset).delta);
        let mut end = self.links.len();
        for (range, begin) in self.ranges.iter().rev() {
            let links = &self.links[*begin..end];
            let counter = range.base + delta;
            let found = links
                .partition_point(|link| link.first <= counter)
                .checked_sub(1)
                .map(|at| &links[at].segment);
            if let Some(segment) = found.filter(|segment| segment.holds(offset)) {
                return segment;
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
        let (mut at, end) = (0, segment.published());
        while at < end {
            let record = segment.record_at(at);
            if segment.version_of(&record).counter > counter {
                return (link, at);
            }
            at += record.encoded_bytes();
        }
        if after < self.links.len() { (after, 0) } else { (link, end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::MemoryBudget;
    use crate::record::{NewRecord, encode};
    use crate::types::Term;

    fn chain(max_bytes: u64) -> (Chain, Arc<MemoryBudget>) {
        let budget = Arc::new(MemoryBudget::new(max_bytes));
        (Chain::new(Arc::new(Arena::reserve(budget.clone()).unwrap())), budget)
    }

    fn put(
        chain: &mut Chain,
        range: RangeHeader,
        delta: u32,
        value: &[u8],
    ) -> Result<RecordOffset, OutOfMemory> {
        let new = NewRecord { delta, ..NewRecord::put(0, b"k", value, None) };
        let bytes = new.encoded_bytes();
        chain.reserve(range, bytes)?;
        let appended = chain.append(range.base + u64::from(delta), bytes, |out| {
            encode(out, &new);
            Ok::<_, OutOfMemory>(())
        })?;
        Ok(appended.0)
    }

    const FIRST: RangeHeader = RangeHeader { term: Term(1), base: 0 };

    #[test]
    fn records_are_found_by_place_and_by_version_over_segments_and_ranges() {
        let (mut chain, budget) = chain(1 << 24);
        let mut places = Vec::new();
        for delta in 1..=500 {
            places.push((
                Version::new(Term(1), u64::from(delta)),
                put(&mut chain, FIRST, delta, &[delta as u8; 50]).unwrap(),
            ));
        }
        let second = RangeHeader { term: Term(7), base: 500 };
        for delta in (1..=500).step_by(2) {
            let version = Version::new(Term(7), 500 + u64::from(delta));
            places.push((version, put(&mut chain, second, delta, &[delta as u8; 70]).unwrap()));
        }
        assert!(chain.links().len() > 10, "segments are sized to their slot");
        assert!(chain.segment_bytes() < (500 * 68 + 250 * 88) * 5 / 4);
        assert_eq!(chain.segment_bytes(), budget.used_bytes());
        for (version, place) in &places {
            assert_eq!(chain.version_at(*place), *version);
            let record = chain.record_at(*place);
            assert_eq!(&chain.pin(*place, 17..18)[..], &record.value[..1]);
            let (link, at) = chain.find_after(version.counter - 1);
            assert_eq!(chain.links()[link].segment.record_at(at), record);
        }
        let (link, at) = chain.find_after(501);
        assert_eq!(
            chain.links()[link].segment.version_of(&chain.links()[link].segment.record_at(at)).counter,
            503
        );
        let (link, at) = chain.find_after(10_000);
        assert_eq!((link + 1, at), (chain.links().len(), chain.links()[link].segment.published()));
    }

    #[test]
    fn a_pin_outlives_its_chain_and_then_frees() {
        let (mut chain, budget) = chain(1 << 20);
        let place = put(&mut chain, FIRST, 1, b"value").unwrap();
        let pin = chain.pin(place, 17..22);
        drop(chain);
        assert_eq!(&pin[..], b"value");
        assert!(budget.used_bytes() > 0);
        drop(pin);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn close_to_the_bound_segments_become_snug_and_then_writes_are_refused() {
        let (mut chain, budget) = chain(2048);
        let mut written = 0;
        let refused = loop {
            match put(&mut chain, FIRST, written + 1, &[1; 150]) {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.max_bytes, 2048);
        assert!((9..=12).contains(&written), "{written} records of 168 bytes fitted into 2,048 bytes");
        assert!(budget.used_bytes() <= 2048);
        assert_eq!(chain.find_after(u64::from(written) - 1).0 + 1, chain.links().len());
    }

    #[test]
    fn a_segment_that_was_never_written_leaves_no_trace() {
        let (mut chain, budget) = chain(1 << 20);
        chain.reserve(FIRST, 100).unwrap();
        chain.reserve(RangeHeader { term: Term(2), base: 5 }, 100).unwrap();
        assert_eq!((chain.links().len(), chain.ranges.len()), (1, 1));
        chain.reserve(FIRST, 100).unwrap();
        put(&mut chain, FIRST, 3, b"x").unwrap();
        assert_eq!((chain.links().len(), chain.links()[0].first), (1, 3));
        assert_eq!(chain.segment_bytes(), budget.used_bytes());
    }
}
