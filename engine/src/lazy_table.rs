//! A table with an entry for each slot. Entries are made in blocks, when one of them is first asked for: what nobody asks for
//! takes neither memory nor time.
//!
//! # The access rule
//!
//! 1. An entry is written only by whoever holds the table's lock, and only before its block counts as made. What was written
//!    when a block could not be made is forgotten.
//! 2. It is read only once its block was seen to count as made, and stays where it is until the table is dropped.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use lockgate_runtime::sync::Mutex;
use lockgate_runtime::sync::atomic::{AtomicBool, Ordering};

use crate::arena::prefetch;
use crate::types::SLOTS;

/// Few in a model: it makes a table anew for each interleaving.
const ENTRIES: usize = if cfg!(loom) { 32 } else { SLOTS as usize };
/// Few, as keys are spread over all slots, and some, so that the flags of all blocks lie in few cache lines.
pub(crate) const BLOCK_ENTRIES: usize = 16;
const BLOCKS: usize = ENTRIES / BLOCK_ENTRIES;
const _: () = assert!(BLOCKS * BLOCK_ENTRIES == ENTRIES);

/// See the module.
pub(crate) struct LazyTable<T> {
    // Lengths that the compiler knows spare lookups loading them: gets overlap as far as the processor looks ahead.
    is_made: [AtomicBool; BLOCKS],
    entries: Box<[Entry<T>; ENTRIES]>,
    making: Mutex<()>,
}

type Entry<T> = UnsafeCell<MaybeUninit<T>>;

// SAFETY: by rule 1 nobody else is at an entry while it is written, and whoever reads it by rule 2 sees it written: the flag
// is stored with Release and loaded with Acquire. Entries are made by one thread, shared by all, and dropped by another.
unsafe impl<T: Send + Sync> Sync for LazyTable<T> {}

impl<T> LazyTable<T> {
    /// A table of which nothing is made.
    pub(crate) fn new() -> LazyTable<T> {
        // SAFETY: nothing of an entry needs to be initialised.
        let entries = unsafe { Box::new_uninit().assume_init() };
        let is_made = std::array::from_fn(|_| AtomicBool::new(false));
        LazyTable { is_made, entries, making: Mutex::new(()) }
    }

    /// The memory that its entries take when all are made, by addresses.
    pub(crate) fn memory(&self) -> Range<usize> {
        let entries = self.entries.as_ptr_range();
        entries.start.expose_provenance()..entries.end.addr()
    }

    /// Has the processor fetch an entry's first line, whether the entry was made or not. Panics if there is no such place.
    #[inline]
    pub(crate) fn prefetch(&self, at: usize) {
        prefetch(&self.entries[at]);
    }

    /// The entry at this place, if it was made. Panics if there is no such place.
    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<&T> {
        let entry = &self.entries[at];
        let is_made = self.is_made[at / BLOCK_ENTRIES].load(Ordering::Acquire);
        // SAFETY: rule 2.
        is_made.then(|| unsafe { (*entry.get()).assume_init_ref() })
    }

    /// The entry at this place, made by `make` if it was not there: with its whole block, place by place. `make` must not come
    /// back to this table. Panics if there is no such place.
    #[inline]
    pub(crate) fn get_or_make(&self, at: usize, make: impl Fn(usize) -> T) -> &T {
        match self.get(at) {
            Some(entry) => entry,
            None => self.make_block(at, make),
        }
    }

    #[cold]
    #[inline(never)]
    fn make_block(&self, at: usize, make: impl Fn(usize) -> T) -> &T {
        let block = at / BLOCK_ENTRIES;
        let _making = self.making.lock();
        if !self.is_made[block].load(Ordering::Acquire) {
            for at in places(block) {
                let made = make(at);
                // SAFETY: rule 1: the lock is held, and the block does not count as made.
                unsafe { (*self.entries[at].get()).write(made) };
            }
            self.is_made[block].store(true, Ordering::Release);
        }
        self.get(at).expect("its block was just made")
    }
}

fn places(block: usize) -> Range<usize> {
    block * BLOCK_ENTRIES..(block + 1) * BLOCK_ENTRIES
}

impl<T> Drop for LazyTable<T> {
    fn drop(&mut self) {
        for block in 0..BLOCKS {
            if self.is_made[block].load(Ordering::Acquire) {
                for entry in &mut self.entries[places(block)] {
                    // SAFETY: it was made, and `&mut self` says that nobody reads it any more.
                    unsafe { entry.get_mut().assume_init_drop() };
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use lockgate_runtime::sync::Arc;

    use super::*;

    #[test]
    fn only_blocks_that_are_asked_for_are_made_and_dropped() {
        let witness = Arc::new(());
        let table = LazyTable::new();
        let make = |at| (at, witness.clone());
        assert!((0..ENTRIES).all(|at| table.get(at).is_none()));
        for at in [BLOCK_ENTRIES, BLOCK_ENTRIES + 3, ENTRIES - 1] {
            assert_eq!(table.get_or_make(at, make).0, at);
        }
        let made: Vec<usize> = (0..ENTRIES).filter_map(|at| table.get(at)).map(|(at, _)| *at).collect();
        let wanted: Vec<usize> = places(1).chain(places(BLOCKS - 1)).collect();
        assert_eq!(made, wanted);
        assert_eq!(Arc::strong_count(&witness), 1 + made.len());
        drop(table);
        assert_eq!(Arc::strong_count(&witness), 1);
    }

    #[test]
    fn a_block_that_could_not_be_made_can_be_made_later() {
        let witness = Arc::new(());
        let table = LazyTable::new();
        let fails = |at| if at == 2 { panic!("no entry 2") } else { (at, witness.clone()) };
        assert!(catch_unwind(AssertUnwindSafe(|| table.get_or_make(0, fails))).is_err());
        assert_eq!(table.get(0), None);
        assert_eq!(table.get_or_make(0, |at| (at, witness.clone())).0, 0);
        drop(table);
        // Two were forgotten, and none is dropped twice.
        assert_eq!(Arc::strong_count(&witness), 1 + 2);
    }
}
