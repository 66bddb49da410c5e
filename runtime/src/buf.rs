//! Buffers that an operation may own until the kernel is done with them.
//!
//! Access rule (why the `unsafe` impls below are right): from the moment that a value is handed to an operation
//! until it is handed back, nobody calls `&mut` methods on it, and [`IoBuf::as_slice`] must give the same address,
//! length and content every time, also after the value itself has been moved. Owned heap memory (`Vec`, `Box`,
//! `Arc`) and statics have that property, because moving the handle does not move what it points to.

use crate::sync::Arc;

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
