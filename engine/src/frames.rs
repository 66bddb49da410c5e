//! The kinds of frames in a core's log: what each does to its slot. See `docs/formats.md`.

use crate::log::FrameKind;

/// A frame with records.
pub const FRAME_DATA: FrameKind = FrameKind(1);
/// A frame that begins a generation.
pub const FRAME_OPEN: FrameKind = FrameKind(2);
/// A frame that ends a generation for ever.
pub const FRAME_DROP: FrameKind = FrameKind(3);
/// A frame that begins a term of ownership.
pub const FRAME_TERM: FrameKind = FrameKind(4);

/// A frame that ends a slot's history at an earlier write: all behind it is gone.
pub const FRAME_TRUNCATE: FrameKind = FrameKind(5);

/// A frame that says up to where writes are never taken back, so that a replay may discard what they superseded.
pub const FRAME_STABLE: FrameKind = FrameKind(6);

/// A frame that raises the floor: the slot's source has discarded deletions up to there.
pub const FRAME_FLOOR: FrameKind = FrameKind(7);

/// A frame that raises the undo floor: the slot's source may have discarded what was superseded up to there.
pub const FRAME_UNDO_FLOOR: FrameKind = FrameKind(8);
