//! Buffers that an operation may own until the kernel is done with them.
//!
//! Access rule (why the `unsafe` impls below are right): from the moment that a value is handed to an operation
//! until it is handed back, nobody calls `&mut` methods on it, and [`IoBuf::as_slice`] must give the same address,
//! length and content every time, also after the value itself has been moved. Owned heap memory (`Vec`, `Box`,
//! `Arc`) and statics have that property, because moving the handle does not move what it points to.

use rustix::mm::{Advice, madvise};

use crate::sync::Arc;

/// A multiple of every size that Linux has pages of, the huge ones apart.
const PAGES_BYTES: usize = 64 << 10;

/// Empties a buffer and gives its memory back to the system, except for what lies in its first `kept_bytes`. The buffer keeps
/// its capacity: what is written later takes memory again, page by page.
pub fn give_back_memory(buffer: &mut Vec<u8>, kept_bytes: usize) {
    buffer.clear();
    let Some(room) = buffer.spare_capacity_mut().get_mut(kept_bytes..) else { return };
    let start = room.as_ptr().align_offset(PAGES_BYTES);
    let bytes = room.len().saturating_sub(start) / PAGES_BYTES * PAGES_BYTES;
    if bytes == 0 {
        return;
    }
    let pages = room[start..].as_mut_ptr();
    // SAFETY: these bytes are borrowed here alone, and hold nothing that was initialised: they may become any others.
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

    #[test]
    fn a_buffer_whose_memory_was_given_back_is_one_like_others() {
        for (capacity, kept_bytes) in
            [(0, 0), (100, 200), (PAGES_BYTES, 0), (5 * PAGES_BYTES + 7, PAGES_BYTES)]
        {
            let mut buffer = vec![1u8; capacity];
            give_back_memory(&mut buffer, kept_bytes);
            assert!(buffer.is_empty() && buffer.capacity() >= capacity);
            buffer.resize(capacity, 2);
            assert!(buffer.iter().all(|byte| *byte == 2), "{capacity} bytes of room, {kept_bytes} kept");
        }
    }
}
