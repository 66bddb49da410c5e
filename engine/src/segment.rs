//! Segments: pieces of arena memory that hold a slot's records in the order of their versions.
//!
//! Records are appended and never changed in place. A segment belongs to one range header (term and base), so any run of
//! whole records in it can be logged or sent as it is.
//!
//! Invariants: `published` only grows and always ends at a whole record; a segment has at most one [`Writer`], ever.
//!
//! # The access rule
//!
//! 0. What describes a segment lies at the beginning of its own block, before its records: there are many short ones, and a
//!    piece of the heap for each would take more. It is there as long as any [`SegmentRef`]; the last one takes it out, and
//!    so gives the block back.
//! 1. A segment owns its block's bytes (see `arena.rs`). Bytes below `published` are immutable until the segment is
//!    freed; whoever holds the segment (a [`SegmentRef`]: a pin, or the chain that it is part of) may read them.
//! 2. Bytes from `published` on belong to the segment's one [`Writer`], which is made with the segment and cannot be
//!    cloned, and through `&mut Writer` to one thread at a time. It writes them, then publishes with a `Release` store,
//!    which the `Acquire` load of every reader pairs with.
//! 3. No reference is formed to a whole segment: `&[u8]` only below `published`, `&mut [u8]` only to what is being
//!    appended. So the two never overlap.
//! 4. A segment is freed when the last [`SegmentRef`] goes. `shrink` gives back only bytes behind `published`, and only when the
//!    writer goes.
//! 5. A [`RecordOffset`] is made only for a published record's first byte, and is resolved only under the lock of the slot
//!    whose `Store` keeps it. A store lets go of a segment only in a compaction, which first moves every offset that the
//!    store keeps (index and deadlines) out of it; offsets that others had are used under the same lock as they were given.

use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::slice;

use lockgate_runtime::IoBuf;
use lockgate_runtime::sync::atomic::{AtomicU32, Ordering};

use crate::arena::{ArenaBase, Block, LINE_BYTES, prefetch};
use crate::record::{self, Head, RECORD_ALIGN_BYTES, RECORD_BYTES_MAX, Record};
use crate::types::{RangeHeader, Version};

/// The longest extent that one append may take: the longest record, or the longest log frame's worth of records.
pub(crate) const EXTENT_BYTES_MAX: usize = crate::log::format::FRAME_PAYLOAD_BYTES_MAX;
/// What a segment takes before its first record.
pub(crate) const DESCRIPTION_BYTES: usize = size_of::<Segment>().next_multiple_of(RECORD_ALIGN_BYTES);

const _: () = assert!(RECORD_BYTES_MAX <= EXTENT_BYTES_MAX);
const _: () = assert!(EXTENT_BYTES_MAX + DESCRIPTION_BYTES + LINE_BYTES < u32::MAX as usize);
const _: () = assert!(align_of::<Segment>() <= LINE_BYTES, "it is aligned where a block begins");

/// The place of a published record in its core's arena, in units of 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RecordOffset(u32);

impl RecordOffset {
    /// The place with this number, which is never 0.
    pub(crate) const fn from(number: u32) -> RecordOffset {
        RecordOffset(number)
    }

    /// The place's number.
    pub(crate) const fn get(self) -> u32 {
        self.0
    }

    /// The place of the record `bytes` further on in the same segment.
    pub(crate) fn after(self, bytes: usize) -> RecordOffset {
        debug_assert!(bytes.is_multiple_of(RECORD_ALIGN_BYTES));
        RecordOffset(self.0 + (bytes / RECORD_ALIGN_BYTES) as u32)
    }
}

/// The record at an offset that a store keeps, of the arena that begins here.
#[inline(always)]
pub(crate) fn record_at(base: &ArenaBase, offset: RecordOffset) -> Record<'_> {
    let start = base.address(offset.0).as_ptr();
    // SAFETY: rule 5: a published record begins here, in a segment that is held; it has a whole header.
    let head = Head::of(unsafe { &*start.cast() });
    // SAFETY: as above; where its parts are is in its header, which was written or verified here.
    let part = |at: Range<usize>| unsafe { slice::from_raw_parts(start.add(at.start), at.len()) };
    let deadline = head.deadline().map(|at| part(at).first_chunk().expect("the range of a deadline"));
    head.record(deadline, part(head.key()), part(head.value()))
}

/// One piece of memory with records of one range header.
pub(crate) struct Segment {
    block: Block,
    range: RangeHeader,
    published: AtomicU32,
    /// How many [`SegmentRef`]s there are.
    holders: AtomicU32,
}

/// A share of a segment: the last one frees it.
pub(crate) struct SegmentRef(NonNull<Segment>);

// SAFETY: a segment can be used, and freed, by every thread: its fields can be, and the access rule says who touches which of
// its records' bytes, whatever the thread.
unsafe impl Send for SegmentRef {}
// SAFETY: as above.
unsafe impl Sync for SegmentRef {}

impl SegmentRef {
    /// A segment without records in this block, which nobody else has.
    fn new(block: Block, range: RangeHeader) -> SegmentRef {
        assert!(block.bytes() > DESCRIPTION_BYTES, "the block was taken for it");
        let place = block.start().cast::<Segment>();
        let (published, holders) = (AtomicU32::new(0), AtomicU32::new(1));
        // SAFETY: rule 0: the block's first bytes are this function's, as it holds the block; they are enough, and aligned.
        unsafe { place.write(Segment { block, range, published, holders }) };
        SegmentRef(place)
    }

    /// Whether both are shares of the same segment.
    pub(crate) fn is_same(&self, other: &SegmentRef) -> bool {
        self.0 == other.0
    }

    /// How many shares there are. Who holds the lock of the slot that a segment belongs to knows that it is not pinned
    /// meanwhile if it is not now.
    pub(crate) fn holders(&self) -> usize {
        self.holders.load(Ordering::Relaxed) as usize
    }
}

impl Deref for SegmentRef {
    type Target = Segment;

    #[inline]
    fn deref(&self) -> &Segment {
        // SAFETY: rule 0: it is there as long as this share, and only the last one's end changes it other than by atomics.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for SegmentRef {
    fn clone(&self) -> SegmentRef {
        let before = self.holders.fetch_add(1, Ordering::Relaxed);
        assert!(before < u32::MAX / 2, "nobody has so many pins");
        SegmentRef(self.0)
    }
}

impl Drop for SegmentRef {
    fn drop(&mut self) {
        // Release: what this holder has read it read before. Acquire: the last one frees it after all of them.
        if self.holders.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: rule 0: this was the last share, so nobody else can see it; it is taken out once.
            drop(unsafe { self.0.read() });
        }
    }
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

    /// Memory that it takes.
    pub(crate) fn block_bytes(&self) -> usize {
        self.block.bytes()
    }

    /// Published records. Panics beyond what is published.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(
            range.start <= range.end && range.end <= self.published(),
            "only published bytes may be read"
        );
        // SAFETY: rule 1: the bytes are below `published`, and `&self` keeps the segment.
        unsafe {
            let first = self.block.start().as_ptr().add(DESCRIPTION_BYTES);
            slice::from_raw_parts(first.add(range.start), range.end - range.start)
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

    /// Where its first record is.
    pub(crate) fn first_place(&self) -> RecordOffset {
        first_in(&self.block)
    }

    /// The byte at which a record of this segment starts. `None`: it is of another segment.
    pub(crate) fn byte_of(&self, offset: RecordOffset) -> Option<usize> {
        let at = offset.0.checked_sub(self.first_place().0)? as usize * RECORD_ALIGN_BYTES;
        (at < self.published()).then_some(at)
    }

    /// Where the records up to `to` end, and the last one's version, if there is one.
    pub(crate) fn end_of(&self, to: Version) -> (usize, Option<Version>) {
        let (mut at, published, mut last) = (0, self.published(), None);
        while at < published {
            let record = self.record_at(at);
            let version = self.version_of(&record);
            if version > to {
                break;
            }
            last = Some(version);
            at += record.encoded_bytes();
        }
        (at, last)
    }

    /// Each record, with the byte at which it starts.
    pub(crate) fn records(&self) -> impl Iterator<Item = (usize, Record<'_>)> {
        let (mut at, published) = (0, self.published());
        std::iter::from_fn(move || {
            if at == published {
                return None;
            }
            let (found, record) = (at, self.record_at(at));
            at += record.encoded_bytes();
            Some((found, record))
        })
    }
}

/// Where the first record of a segment in this block is.
fn first_in(block: &Block) -> RecordOffset {
    RecordOffset(block.offset()).after(DESCRIPTION_BYTES)
}

#[inline]
fn parsed(bytes: &[u8]) -> Record<'_> {
    record::parse(bytes).expect("published bytes are whole records that were encoded here or verified")
}

/// Memory that was filled before anybody knows of it.
pub(crate) struct Extent {
    block: Block,
}

impl Extent {
    /// Has `fill` write the first `bytes` of records in a block that nobody else has.
    pub(crate) fn fill<T>(block: Block, bytes: usize, fill: impl FnOnce(&mut [u8]) -> T) -> (Extent, T) {
        assert!(DESCRIPTION_BYTES + bytes <= block.bytes(), "the block was taken for it");
        // SAFETY: the block's bytes belong to whoever holds it (see `arena.rs`), which is this function; they are initialised.
        let out = unsafe { slice::from_raw_parts_mut(block.start().as_ptr().add(DESCRIPTION_BYTES), bytes) };
        let filled = fill(out);
        (Extent { block }, filled)
    }
}

/// The only one that appends to a segment.
///
/// It knows what it needs for that without a look into what describes the segment, which lies elsewhere.
pub(crate) struct Writer {
    segment: SegmentRef,
    base: ArenaBase,
    /// Where the segment begins.
    first: RecordOffset,
    /// What is published, and what there is room for, in bytes.
    at: u32,
    capacity: u32,
    range: RangeHeader,
}

impl Writer {
    /// A new segment in this block.
    pub(crate) fn new(block: Block, range: RangeHeader) -> Writer {
        let (base, first) = (block.base(), first_in(&block));
        let capacity = (block.bytes() - DESCRIPTION_BYTES) as u32;
        let segment = SegmentRef::new(block, range);
        Writer { segment, base, first, at: 0, capacity, range }
    }

    /// A new segment where an extent is. Nothing of it is published yet: it is appended like anything else, by somebody who
    /// finds the bytes there.
    pub(crate) fn over(extent: Extent, range: RangeHeader) -> Writer {
        Writer::new(extent.block, range)
    }

    /// What it writes to.
    pub(crate) fn segment(&self) -> &SegmentRef {
        &self.segment
    }

    /// What the records' versions count from.
    pub(crate) fn range(&self) -> RangeHeader {
        self.range
    }

    /// Whether nothing is published yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// How many bytes still fit.
    pub(crate) fn room(&self) -> usize {
        (self.capacity - self.at) as usize
    }

    /// Has the processor fetch what the next append of so many bytes writes to.
    pub(crate) fn prefetch(&self, bytes: usize) {
        prefetch(&*self.segment);
        self.base.prefetch(self.first.after(self.at as usize).0, bytes);
    }

    /// Appends `bytes` of whole records, written by `fill`, and publishes them. If `fill` fails or panics nothing is
    /// published. Panics if there is no room.
    pub(crate) fn append<T, E>(
        &mut self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<T, E>,
    ) -> Result<(RecordOffset, T), E> {
        assert!(
            bytes > 0 && self.room() >= bytes && bytes.is_multiple_of(RECORD_ALIGN_BYTES),
            "room was reserved"
        );
        let place = self.first.after(self.at as usize);
        // SAFETY: rules 2 and 3: these bytes lie in the block behind `published`, and `&mut self` is the only writer.
        let out = unsafe { slice::from_raw_parts_mut(self.base.address(place.0).as_ptr(), bytes) };
        let filled = fill(out)?;
        self.at += bytes as u32;
        self.segment.published.store(self.at, Ordering::Release);
        Ok((place, filled))
    }

    /// Ends the writing: what was not used goes back to the arena.
    pub(crate) fn seal(self) -> SegmentRef {
        self.segment.block.shrink(DESCRIPTION_BYTES + self.at as usize);
        self.segment
    }
}

/// Some whole records of one segment. As long as it lives the memory stays, whatever happens to the slot.
#[derive(Clone)]
pub struct PinnedRange {
    segment: SegmentRef,
    start: u32,
    end: u32,
}

impl PinnedRange {
    /// A pin on published bytes. Panics beyond what is published.
    pub(crate) fn new(segment: SegmentRef, range: Range<usize>) -> PinnedRange {
        let _ = segment.bytes(range.clone());
        PinnedRange { segment, start: range.start as u32, end: range.end as u32 }
    }

    /// A pin on the first `bytes` of these. Panics if there are fewer.
    pub(crate) fn first_bytes(&self, bytes: usize) -> PinnedRange {
        assert!(bytes <= self.len(), "no more than there is");
        PinnedRange { end: self.start + bytes as u32, ..self.clone() }
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
