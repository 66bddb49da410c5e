//! How much memory a piece of work takes at once: an allocator that counts, for fuzz targets that state a bound.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn more(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed) + bytes;
    MOST.fetch_max(now, Relaxed);
}

// SAFETY: everything is handed to the system's allocator as it came; only numbers are noted beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Both are there while it is moved.
        more(bytes);
        // SAFETY: as the caller promised.
        let moved = unsafe { System.realloc(at, layout, bytes) };
        NOW.fetch_sub(if moved.is_null() { bytes } else { layout.size() }, Relaxed);
        moved
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` on an input of `bytes` bytes, and panics if it took more memory at once than `factor` times that, and `more`.
pub fn within<T>(bytes: usize, factor: usize, more: usize, work: impl FnOnce() -> T) -> T {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let result = work();
    let took = MOST.load(Relaxed).saturating_sub(before);
    let bound = bytes * factor + more;
    assert!(took <= bound, "{took} bytes for an input of {bytes}: more than {bound}");
    result
}

/// Writes the checksum of `bytes[from..at]` to `at`, if that is there.
pub fn mend(bytes: &mut [u8], from: usize, at: usize) {
    let crc = bytes.get(from..at).map(crc32c::crc32c);
    if let (Some(crc), Some(place)) = (crc, bytes.get_mut(at..at + 4)) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}
