//! The memory of one engine core: one reserved range of addresses, backed by the system only where it is used.
//!
//! A record's place is a `u32` offset in units of 4 bytes into this range, so the range has 16 GiB. How much of it may be
//! used is bounded by a [`MemoryBudget`] that all arenas of an engine share. Freed blocks are merged with their
//! neighbours, and whole chunks of large ones go back to the system.
//!
//! # The access rule
//!
//! 1. The mapping lives as long as the [`Arena`], and every [`Block`] keeps its arena alive.
//! 2. A block's bytes belong to whoever holds the block, from [`Arena::allocate`] until the block (or the tail that
//!    [`Block::shrink`] cut off) is given back. Two blocks never overlap (the free list asserts it).
//! 3. The arena itself touches memory only by `madvise`, only within the free list's blocks, and only under the free
//!    list's lock, so no block can be handed out while its pages are being given back.
//! 4. The mapping is anonymous, so every byte of it is initialised at all times (zero, or what was last written).
//!
//! What may be read or written inside a block is `segment.rs`'s matter.

use std::ptr::NonNull;

use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use thiserror::Error;

use crate::free_list::FreeList;
use crate::record::RECORD_ALIGN_BYTES;

/// Blocks start at, and are sized in, multiples of this: a cache line.
pub(crate) const LINE_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;
/// Memory goes back to the system in whole huge pages: a part of one would leave the rest to be found by small pages, and
/// would soon be wanted again.
const CHUNK_BYTES: usize = 2 << 20;
pub(crate) const CHUNK_LINES: u32 = (CHUNK_BYTES / LINE_BYTES) as u32;
/// The addresses that one arena reserves.
pub(crate) const ARENA_BYTES: usize = 16 << 30;
const ARENA_LINES: u32 = (ARENA_BYTES / LINE_BYTES) as u32;
/// One chunk more, so that the arena can begin with a whole one.
const MAPPED_BYTES: usize = ARENA_BYTES + CHUNK_BYTES;

const _: () = assert!(
    ARENA_BYTES / RECORD_ALIGN_BYTES == 1 << 32,
    "every u32 offset lies in the range, and reaches all of it"
);
const _: () = assert!(LINE_BYTES.is_multiple_of(RECORD_ALIGN_BYTES) && PAGE_BYTES.is_multiple_of(LINE_BYTES));

/// No memory for a write: the engine's bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "out of memory: {needed_bytes} more bytes were needed, {used_bytes} of {max_bytes} are in use; \
     delete or move slots, or raise memory_bytes_max"
)]
pub struct OutOfMemory {
    /// What could not be had.
    pub needed_bytes: u64,
    /// What segments and indexes take.
    pub used_bytes: u64,
    /// The bound.
    pub max_bytes: u64,
}

/// How much memory all arenas of an engine may use together.
pub(crate) struct MemoryBudget {
    max_bytes: AtomicU64,
    used_bytes: AtomicU64,
    /// Writers of all cores look at it, and it hardly ever changes.
    is_tight: Apart<AtomicBool>,
}

/// On cache lines of its own.
#[repr(align(64))]
struct Apart<T>(T);

impl MemoryBudget {
    pub(crate) fn new(max_bytes: u64) -> MemoryBudget {
        let (max_bytes, used_bytes) = (AtomicU64::new(max_bytes), AtomicU64::new(0));
        MemoryBudget { max_bytes, used_bytes, is_tight: Apart(AtomicBool::new(false)) }
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn max_bytes(&self) -> u64 {
        self.max_bytes.load(Ordering::Relaxed)
    }

    /// What is in use stays, also if it is more than that.
    pub(crate) fn set_max_bytes(&self, max_bytes: u64) {
        self.max_bytes.store(max_bytes, Ordering::Relaxed);
        self.note(self.used_bytes());
    }

    /// Whether less than a sixteenth is left; while others charge and give back, nearly so.
    pub(crate) fn is_tight(&self) -> bool {
        self.is_tight.0.load(Ordering::Relaxed)
    }

    fn note(&self, used_bytes: u64) {
        let max_bytes = self.max_bytes();
        let is_tight = used_bytes > max_bytes - max_bytes / 16;
        if self.is_tight() != is_tight {
            self.is_tight.0.store(is_tight, Ordering::Relaxed);
        }
    }

    pub(crate) fn charge(&self, bytes: u64) -> Result<(), OutOfMemory> {
        let before = self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes <= self.max_bytes() {
            self.note(before + bytes);
            return Ok(());
        }
        self.credit(bytes);
        Err(self.refusal(bytes))
    }

    pub(crate) fn charge_beyond(&self, bytes: u64) {
        let before = self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.note(before + bytes);
    }

    pub(crate) fn credit(&self, bytes: u64) {
        let before = self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "more memory is given back than was taken");
        self.note(before - bytes);
    }

    fn refusal(&self, needed_bytes: u64) -> OutOfMemory {
        OutOfMemory { needed_bytes, used_bytes: self.used_bytes(), max_bytes: self.max_bytes() }
    }
}

/// Which pages back an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Huge ones, if the system has them: for who looks up keys all over the range.
    Huge,
    /// Those that the system gives unasked: for who uses little of the range, and not for long.
    Unasked,
}

/// One core's range of memory.
pub(crate) struct Arena {
    mapping: NonNull<u8>,
    /// The first chunk of the mapping.
    base: NonNull<u8>,
    /// The range for indexes; `None`: this is one.
    tables: Option<Arc<Arena>>,
    budget: Arc<MemoryBudget>,
    /// Apart from what is only read: its lock goes from core to core.
    free: Apart<Mutex<FreeList>>,
}

// SAFETY: the arena is a range of addresses and a locked list; rules 1-3 say who touches which byte, whatever the thread.
unsafe impl Send for Arena {}
// SAFETY: as above: `&Arena` gives access to the list's lock and to addresses, never to bytes.
unsafe impl Sync for Arena {}

impl Arena {
    /// As [`Arena::reserve_on`], on huge pages.
    #[cfg(test)]
    pub(crate) fn reserve(budget: Arc<MemoryBudget>) -> std::io::Result<Arena> {
        Arena::reserve_on(Pages::Huge, budget)
    }

    /// Reserves the range, and one for indexes. No memory is used yet.
    pub(crate) fn reserve_on(pages: Pages, budget: Arc<MemoryBudget>) -> std::io::Result<Arena> {
        // What indexes take is charged by `charge.rs`, before they grow.
        let tables = Arena::map(pages, Arc::new(MemoryBudget::new(u64::MAX)), None)?;
        Arena::map(pages, budget, Some(Arc::new(tables)))
    }

    fn map(pages: Pages, budget: Arc<MemoryBudget>, tables: Option<Arc<Arena>>) -> std::io::Result<Arena> {
        let (protection, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice; it replaces nothing.
        let mapping =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), MAPPED_BYTES, protection, flags) }?;
        let mapping = NonNull::new(mapping.cast::<u8>()).expect("mmap never returns null on success");
        let skipped = mapping.as_ptr().align_offset(CHUNK_BYTES);
        // SAFETY: the mapping is longer than the arena by a chunk, and less than one is skipped.
        let base = unsafe { mapping.add(skipped) };
        if pages == Pages::Huge {
            want_huge_pages(base.as_ptr().expose_provenance(), ARENA_BYTES);
        }
        // Line 0 stays unused, so that offset 0 is never a record's.
        Ok(Arena { mapping, base, tables, budget, free: Apart(Mutex::new(FreeList::new(1..ARENA_LINES))) })
    }

    /// A block of at least `bytes`, rounded up to whole lines.
    pub(crate) fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Block, OutOfMemory> {
        self.budget.charge(rounded(bytes) as u64)?;
        self.take(rounded(bytes))
    }

    /// As [`Arena::allocate`], also beyond the bound: for a compaction, which frees more than that right afterwards (each core
    /// has at most one such block at a time), and for tombstones.
    pub(crate) fn allocate_beyond(self: &Arc<Self>, bytes: usize) -> Result<Block, OutOfMemory> {
        self.budget.charge_beyond(rounded(bytes) as u64);
        self.take(rounded(bytes))
    }

    /// A block of so many lines for an index's table, from a range of its own: tables lie close together there, so that few
    /// translations of addresses find all of them.
    ///
    /// The range is as long as that of the records, and a table that grows takes, with the one before, less for an entry (14
    /// bytes) than the shortest record. Only tables that are left nearly empty, on nearly all of 16 GiB, could exhaust it.
    pub(crate) fn allocate_table(&self, lines: usize) -> Block {
        let tables = self.tables.as_ref().expect("an arena of records has one of tables");
        tables
            .allocate_beyond(lines * LINE_BYTES)
            .expect("tables take less room than the records that they are of")
    }

    /// What all arenas of the engine share.
    pub(crate) fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }

    /// A block of so many bytes, which were charged.
    fn take(self: &Arc<Self>, rounded: usize) -> Result<Block, OutOfMemory> {
        let lines = rounded / LINE_BYTES;
        let Some(line) = self.free.0.lock().take(lines as u32) else {
            self.budget.credit(rounded as u64);
            return Err(self.budget.refusal(rounded as u64));
        };
        Ok(Block { arena: self.clone(), line, lines: AtomicU32::new(lines as u32) })
    }

    /// Where it begins, for whoever keeps the arena too.
    pub(crate) fn base(&self) -> ArenaBase {
        ArenaBase(self.base)
    }

    /// The address of an offset in units of 4 bytes. Computing it is safe; using it follows the access rule.
    pub(crate) fn address(&self, offset: u32) -> NonNull<u8> {
        self.base().address(offset)
    }

    fn give(&self, line: u32, lines: u32) {
        let mut free = self.free.0.lock();
        if let Some(range) = free.give(line, lines) {
            let first = (range.start as usize * LINE_BYTES).next_multiple_of(CHUNK_BYTES);
            let end = range.end as usize * LINE_BYTES / CHUNK_BYTES * CHUNK_BYTES;
            if first < end {
                // SAFETY: rule 3: these chunks lie in a free block, and the lock is held.
                let given = unsafe {
                    let start = self.base.add(first).as_ptr().cast();
                    rustix::mm::madvise(start, end - first, Advice::LinuxDontNeed)
                };
                if let Err(error) = given {
                    tracing::warn!(%error, "freed memory could not be given back to the system");
                }
            }
        }
        drop(free);
        self.budget.credit(u64::from(lines) * LINE_BYTES as u64);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: every block keeps its arena alive, so none is left (rule 1), and this is the mapping's whole range.
        let unmapped = unsafe { rustix::mm::munmap(self.mapping.as_ptr().cast(), MAPPED_BYTES) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "an arena could not be unmapped");
        }
    }
}

fn rounded(bytes: usize) -> usize {
    assert!(bytes > 0 && bytes <= ARENA_BYTES, "block sizes are the caller's to bound");
    bytes.next_multiple_of(LINE_BYTES)
}

/// The first address of an arena, to be kept together with the arena itself: it saves a look into it.
#[derive(Clone, Copy)]
pub(crate) struct ArenaBase(NonNull<u8>);

// SAFETY: it is a number. What it may be used for is the arena's and `segment.rs`'s rule, whatever the thread.
unsafe impl Send for ArenaBase {}
// SAFETY: as above.
unsafe impl Sync for ArenaBase {}

impl ArenaBase {
    /// As [`Arena::address`].
    #[inline]
    pub(crate) fn address(self, offset: u32) -> NonNull<u8> {
        // SAFETY: whoever has it keeps the arena; every u32 offset lies within the mapping (asserted at the top), and the
        // mapping is one allocation.
        unsafe { self.0.add(offset as usize * RECORD_ALIGN_BYTES) }
    }

    /// Has the processor fetch the lines of so many bytes.
    #[inline]
    pub(crate) fn prefetch(self, offset: u32, bytes: usize) {
        let first = self.address(offset).as_ptr();
        for at in (0..bytes).step_by(LINE_BYTES) {
            prefetch_address(first.wrapping_add(at));
        }
    }
}

/// Has the processor fetch what begins here, and does not wait for it.
#[inline]
pub(crate) fn prefetch<T>(of: &T) {
    prefetch_address(std::ptr::from_ref(of).cast());
}

/// As [`prefetch`], of an address.
#[inline]
pub(crate) fn prefetch_address(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint: it reads nothing that the program can see, and is ignored for an address that is not mapped.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks the system for huge pages under a large allocation: lookups then wait less for translations of addresses. What is
/// backed already is replaced some time later.
pub(crate) fn want_huge_pages(start: usize, bytes: usize) {
    let (first, end) = (start.next_multiple_of(PAGE_BYTES), (start + bytes) / PAGE_BYTES * PAGE_BYTES);
    if first >= end {
        return;
    }
    let pages = std::ptr::with_exposed_provenance_mut(first);
    // SAFETY: a hint about how pages are backed: it changes no byte, whoever's they are.
    if let Err(error) = unsafe { rustix::mm::madvise(pages, end - first, Advice::LinuxHugepage) } {
        tracing::debug!(%error, "this system has no huge pages");
    }
}

/// A piece of an arena, given back when dropped.
pub(crate) struct Block {
    arena: Arc<Arena>,
    line: u32,
    lines: AtomicU32,
}

impl Block {
    /// Where it begins, in units of 4 bytes.
    pub(crate) fn offset(&self) -> u32 {
        self.line * (LINE_BYTES / RECORD_ALIGN_BYTES) as u32
    }

    /// How long it is now.
    pub(crate) fn bytes(&self) -> usize {
        self.lines() * LINE_BYTES
    }

    /// The same in lines.
    #[inline]
    pub(crate) fn lines(&self) -> usize {
        self.lines.load(Ordering::Relaxed) as usize
    }

    /// Its first byte's address.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.arena.address(self.offset())
    }

    /// Where its arena begins.
    pub(crate) fn base(&self) -> ArenaBase {
        self.arena.base()
    }

    /// Gives back what lies beyond the first `bytes`, rounded up to a line. At least one line is kept.
    ///
    /// Only the block's one writer calls this, and it never touches the tail again.
    pub(crate) fn shrink(&self, bytes: usize) {
        let lines = self.lines.load(Ordering::Relaxed);
        let kept = (bytes.div_ceil(LINE_BYTES) as u32).max(1);
        assert!(kept <= lines, "a block cannot grow");
        if kept < lines {
            self.lines.store(kept, Ordering::Relaxed);
            self.arena.give(self.line + kept, lines - kept);
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.arena.give(self.line, self.lines.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(max_bytes: u64) -> Arc<Arena> {
        Arc::new(Arena::reserve(Arc::new(MemoryBudget::new(max_bytes))).unwrap())
    }

    #[test]
    fn the_bound_is_kept_and_freed_memory_can_be_used_again() {
        let arena = arena(1 << 20);
        let first = arena.allocate(1 << 19).unwrap();
        let second = arena.allocate(1 << 19).unwrap();
        let refused = arena.allocate(1).err().unwrap();
        assert_eq!(refused, OutOfMemory { needed_bytes: 64, used_bytes: 1 << 20, max_bytes: 1 << 20 });
        let place = first.offset();
        drop(first);
        let third = arena.allocate(1 << 19).unwrap();
        assert_eq!(third.offset(), place);
        drop((second, third));
        assert_eq!(arena.budget.used_bytes(), 0);
    }

    #[test]
    fn a_cut_tail_can_be_used_by_others() {
        let arena = arena(1 << 20);
        let block = arena.allocate(1024).unwrap();
        block.shrink(100);
        assert_eq!(block.bytes(), 128);
        let next = arena.allocate(512).unwrap();
        assert_eq!(next.offset(), block.offset() + 32);
        block.shrink(0);
        assert_eq!(block.bytes(), 64);
        assert_eq!(arena.budget.used_bytes(), 64 + 512);
    }
}
