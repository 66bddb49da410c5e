//! Buffers that an operation may own until the kernel is done with them.
//!
//! Access rule (why the `unsafe` impls below are right): from the moment that a value is handed to an operation
//! until it is handed back, nobody calls `&mut` methods on it, and [`IoBuf::as_slice`] must give the same address,
//! length and content every time, also after the value itself has been moved. Owned heap memory (`Vec`, `Box`,
//! `Arc`) and statics have that property, because moving the handle does not move what it points to.

use rustix::mm::{Advice, madvise};

use crate::sync::Arc;

/// The longest that a page of Linux is, huge ones apart.
const PAGE_BYTES_MAX: usize = 64 << 10;

/// Empties a buffer and gives its memory back to the system, except for its first `kept_bytes` and what does not fill a page at
/// either end. The buffer keeps its capacity: what is written later takes memory again, page by page.
pub fn give_back_memory(buffer: &mut Vec<u8>, kept_bytes: usize) {
    buffer.clear();
    let Some(room) = buffer.spare_capacity_mut().get_mut(kept_bytes..) else { return };
    let start = room.as_ptr().align_offset(PAGE_BYTES_MAX);
    let bytes = room.len().saturating_sub(start) / PAGE_BYTES_MAX * PAGE_BYTES_MAX;
    if bytes == 0 {
        return;
    }
    let pages = room[start..].as_mut_ptr();
    // SAFETY: whole pages, all of them in the buffer's room: borrowed here alone, and nothing there counts as initialised, so
    // that the bytes may become any others.
    if let Err(error) = unsafe { madvise(pages.cast(), bytes, Advice::LinuxDontNeed) } {
        tracing::debug!(%error, "a buffer's memory could not be given back to the system");
    }
}

/// Bytes with a stable address and content for as long as the value is owned, wherever the value is moved to.
///
/// # Safety
///
/// `as_slice` must return the same address, length and content on every call as long as the value is not accessed
/// through `&mut`, also after moves of the value, and the memory must stay valid until the value is dropped.
pub unsafe trait IoBuf: 'static {
    /// The bytes.
    fn as_slice(&self) -> &[u8];
}

// SAFETY: a Vec's bytes are on the heap; moving the Vec leaves them where they are (access rule above).
unsafe impl IoBuf for Vec<u8> {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

// SAFETY: statics neither move nor end (access rule above).
unsafe impl IoBuf for &'static [u8] {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

// SAFETY: shared bytes on the heap, immutable while shared (access rule above).
unsafe impl IoBuf for Arc<[u8]> {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

// SAFETY: the inner value has the property itself, and the Arc keeps it alive and unmoved.
unsafe impl<T: IoBuf + Send + Sync> IoBuf for Arc<T> {
    fn as_slice(&self) -> &[u8] {
        (**self).as_slice()
    }
}

// SAFETY: the inner value has the property itself, and the Box keeps it alive.
unsafe impl IoBuf for Box<dyn IoBuf> {
    fn as_slice(&self) -> &[u8] {
        (**self).as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_bytes() -> usize {
        // SAFETY: a question about a constant of the system.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap()
    }

    /// How many of the pages that lie in a buffer's memory the system has backed.
    fn resident_pages(buffer: &Vec<u8>) -> usize {
        let first = buffer.as_ptr().align_offset(page_bytes());
        let mut pages = vec![0u8; (buffer.capacity() - first) / page_bytes()];
        // SAFETY: a question about whole pages of the buffer's memory, with room for the answer about each.
        let asked = unsafe {
            let start = buffer.as_ptr().add(first).cast_mut().cast();
            libc::mincore(start, pages.len() * page_bytes(), pages.as_mut_ptr())
        };
        assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn memory_is_given_back_but_for_what_is_kept() {
        let (bytes, kept_bytes) = (4 << 20, 256 << 10);
        let mut buffer = vec![1u8; bytes];
        assert!(resident_pages(&buffer) >= bytes / page_bytes() - 1);
        give_back_memory(&mut buffer, kept_bytes);
        assert!(buffer.is_empty() && buffer.capacity() >= bytes);
        let kept = resident_pages(&buffer) * page_bytes();
        assert!(
            (kept_bytes - page_bytes()..kept_bytes + 2 * PAGE_BYTES_MAX).contains(&kept),
            "{kept} bytes stay"
        );
        buffer.resize(bytes, 2);
        assert!(buffer.iter().all(|byte| *byte == 2));
    }

    #[test]
    fn short_buffers_have_nothing_to_give() {
        for (capacity, kept_bytes) in [(0, 0), (100, 200), (PAGE_BYTES_MAX, 0), (PAGE_BYTES_MAX, usize::MAX)]
        {
            let mut buffer = vec![1u8; capacity];
            give_back_memory(&mut buffer, kept_bytes);
            buffer.resize(capacity, 2);
            assert!(buffer.iter().all(|byte| *byte == 2), "{capacity} bytes of room, {kept_bytes} kept");
        }
    }
}
