//! A piece of a message's part, sent from where it lies.
//!
//! Access rule: the shared buffer is never mutated through this type, and the reference count keeps it alive, so
//! a piece has the stable address and content that [`IoBuf`] demands exactly because the whole has them.

use std::ops::Range;
use std::rc::Rc;

use lockgate_runtime::IoBuf;

/// `range` of `whole`.
pub(super) struct Piece {
    whole: Rc<dyn IoBuf>,
    range: Range<usize>,
}

impl Piece {
    /// Panics if the range is not within the buffer.
    pub(super) fn new(whole: Rc<dyn IoBuf>, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= whole.as_slice().len(),
            "a piece lies within its whole"
        );
        Self { whole, range }
    }
}

// SAFETY: the whole has a stable address and content while it is owned, and the Rc owns it (access rule above); a
// fixed range of it therefore has, too.
unsafe impl IoBuf for Piece {
    fn as_slice(&self) -> &[u8] {
        &self.whole.as_slice()[self.range.clone()]
    }
}
