//! The memory of an index: a block of an arena, seen as lines.
//!
//! # The access rule
//!
//! 1. A block's bytes belong to whoever holds it (see `arena.rs`): the table, which gives out references to them only for as
//!    long as it is borrowed itself.
//! 2. Every byte is initialised, and a line has no padding and no value that would be wrong, so any bytes are lines.

use std::slice;

use super::line::Line;
use crate::arena::{Arena, Block, LINE_BYTES};

const _: () = assert!(size_of::<Line>() == LINE_BYTES && align_of::<Line>() == LINE_BYTES);

/// Some lines, or none.
#[derive(Default)]
pub(super) struct Table(Option<Block>);

impl Table {
    /// So many lines without entries.
    pub(super) fn new(arena: &Arena, lines: usize) -> Table {
        let mut table = Table((lines > 0).then(|| arena.allocate_table(lines)));
        table.lines_mut().fill(Line::EMPTY);
        table
    }

    #[inline]
    pub(super) fn lines(&self) -> &[Line] {
        let Some(block) = &self.0 else { return &[] };
        // SAFETY: rules 1 and 2; blocks begin at multiples of a line and are as long as whole lines.
        unsafe { slice::from_raw_parts(block.start().cast().as_ptr(), block.lines()) }
    }

    #[inline]
    pub(super) fn lines_mut(&mut self) -> &mut [Line] {
        let Some(block) = &self.0 else { return &mut [] };
        // SAFETY: as above; `&mut self` is the only borrow.
        unsafe { slice::from_raw_parts_mut(block.start().cast().as_ptr(), block.lines()) }
    }
}
