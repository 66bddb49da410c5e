//! What a frame of a core's log does to its slot when it is replayed: what it did when it was written, by the same code.
//!
//! Invariants:
//! - Frames of a generation that is over, or older than the slot's, have no effect.
//! - A frame that cannot be what the slot's history allows is an error, and changes nothing.

use lockgate_runtime::mutation;
use thiserror::Error;

use super::window::Frame;
use crate::apply::verify_range;
use crate::arena::OutOfMemory;
use crate::chain::SEGMENT_BYTES_MAX;
use crate::error::{ApplyError, SlotError};
use crate::frames::{
    FRAME_DATA, FRAME_DROP, FRAME_FLOOR, FRAME_OPEN, FRAME_STABLE, FRAME_TERM, FRAME_TRUNCATE,
    FRAME_UNDO_FLOOR,
};
use crate::log::{FrameHeader, FrameKind};
use crate::slot::SlotState;
use crate::types::{Floors, Generation, RangeHeader, SLOTS, Slot, Term, Version};
use crate::wakes::Wakes;

/// Why a frame of the engine's log cannot be replayed. It is the source of a
/// [`RecoverError::Visit`](crate::log::RecoverError::Visit).
#[derive(Debug, Error)]
pub enum ReplayError {
    /// A kind that this version does not know.
    #[error("a frame of unknown kind {0}: the log was written by a newer version")]
    UnknownKind(u8),
    /// A slot's number that is none.
    #[error("a frame for slot {0}, and there are {SLOTS}")]
    NoSuchSlot(u16),
    /// Records that are none, or that do not continue the slot's.
    #[error(transparent)]
    Range(#[from] ApplyError),
    /// A term that does not begin where the one before it ended.
    #[error(
        "slot {slot}: a term frame of term {term} and base {base} after version {version} and term {have}"
    )]
    BadTerm {
        /// The slot.
        slot: Slot,
        /// The term that would begin.
        term: Term,
        /// Where it would.
        base: u64,
        /// The slot's last version.
        version: Version,
        /// The slot's term.
        have: Term,
    },
    /// A truncation to a write that was never there.
    #[error("slot {slot}: a truncation to version {to}, which the slot does not have; it ends at {version}")]
    BadTruncation {
        /// The slot.
        slot: Slot,
        /// What it would have been truncated to.
        to: Version,
        /// The slot's last version.
        version: Version,
    },
    /// A write that is never taken back, and was never there.
    #[error("slot {slot}: nothing up to version {to} is taken back, it says, and the slot ends at {version}")]
    BadStable {
        /// The slot.
        slot: Slot,
        /// Up to where nothing would be.
        to: Version,
        /// The slot's last version.
        version: Version,
    },
    /// A truncation that the slot cannot take.
    #[error(transparent)]
    Truncation(SlotError),
    /// A payload where none belongs.
    #[error("slot {slot}: a frame of kind {kind} carries {bytes} bytes")]
    NotEmpty {
        /// The slot.
        slot: Slot,
        /// The frame's kind.
        kind: u8,
        /// What it carries.
        bytes: usize,
    },
    /// The engine's memory bound is reached.
    #[error(
        "slot {slot}: {source}; the data needs more memory than the engine may use: raise memory_bytes_max"
    )]
    OutOfMemory {
        /// The slot.
        slot: Slot,
        /// How much is in use.
        source: OutOfMemory,
    },
}

/// Replays some frames of one slot, in their order. On failure says which one could not be. `scratch` is for its use.
pub(super) fn replay_all<'a>(
    held: &mut SlotState,
    frames: impl Iterator<Item = (&'a Frame, &'a [u8])> + Clone,
    scratch: &mut Vec<u8>,
) -> Result<(), (&'a Frame, ReplayError)> {
    let mut rest = frames;
    while let Some((frame, payload)) = rest.clone().next() {
        let joined = join_run(&frame.header, rest.clone(), scratch);
        if joined > 1 && replay_run(held, &frame.header, scratch, joined).is_ok() {
            rest.nth(joined - 1);
            continue;
        }
        // Also where a run was refused: one of its frames, and which one shows when each is replayed by itself.
        replay_frame(held, &frame.header, payload).map_err(|error| (frame, error))?;
        rest.next();
    }
    Ok(())
}

/// Joins frames with the same header, which are one range that was written in several steps. Returns how many those are.
fn join_run<'a>(
    header: &FrameHeader,
    frames: impl Iterator<Item = (&'a Frame, &'a [u8])>,
    joined: &mut Vec<u8>,
) -> usize {
    joined.clear();
    let mut count = 0;
    for (frame, payload) in frames.take(if header.kind == FRAME_DATA { usize::MAX } else { 1 }) {
        let is_full = joined.len() + payload.len() > SEGMENT_BYTES_MAX as usize;
        if frame.header != *header || is_full {
            break;
        }
        joined.extend_from_slice(payload);
        count += 1;
    }
    count
}

/// As a frame with all of the run's records.
fn replay_run(
    held: &mut SlotState,
    header: &FrameHeader,
    records: &[u8],
    frames: usize,
) -> Result<(), ReplayError> {
    // An error changes nothing, but that of a generation that begins.
    if held.generation() == Generation(header.generation) && held.is_open() {
        held.store.grow_index(frames);
    }
    replay_frame(held, header, records)
}

pub(crate) fn replay_frame(
    held: &mut SlotState,
    frame: &FrameHeader,
    payload: &[u8],
) -> Result<(), ReplayError> {
    let (slot, generation) = (held.slot(), Generation(frame.generation));
    let range = RangeHeader { term: Term(frame.term), base: frame.base };
    if frame.kind != FRAME_DATA && !payload.is_empty() {
        return Err(ReplayError::NotEmpty { slot, kind: frame.kind.0, bytes: payload.len() });
    }
    if !matches!(
        frame.kind,
        FRAME_DATA
            | FRAME_OPEN
            | FRAME_DROP
            | FRAME_TERM
            | FRAME_TRUNCATE
            | FRAME_STABLE
            | FRAME_FLOOR
            | FRAME_UNDO_FLOOR
    ) {
        let FrameKind(kind) = frame.kind;
        return Err(ReplayError::UnknownKind(kind));
    }
    if generation < held.generation() || (generation == held.generation() && !held.is_open()) {
        return Ok(());
    }
    if frame.kind == FRAME_DROP {
        held.end_generation(generation, &mut Wakes::default());
        return Ok(());
    }
    // A slot that nobody ever moved has no frame that opens it: its first frame does.
    if generation > held.generation() && !mutation!("replay-without-generations") {
        if held.is_open() {
            held.end_generation(held.generation(), &mut Wakes::default());
        }
        held.begin_generation(generation);
    }
    let version = Version::new(range.term, range.base);
    match frame.kind {
        FRAME_DATA => replay_data(held, range, payload),
        FRAME_TERM => replay_term(held, range),
        FRAME_TRUNCATE => replay_truncation(held, version),
        FRAME_STABLE => replay_stable(held, version),
        FRAME_FLOOR => {
            held.raise_floors(Floors { floor: version, ..Floors::default() });
            Ok(())
        }
        FRAME_UNDO_FLOOR => {
            held.raise_floors(Floors { undo_floor: version, ..Floors::default() });
            Ok(())
        }
        _ => Ok(()),
    }
}

fn replay_data(held: &mut SlotState, range: RangeHeader, records: &[u8]) -> Result<(), ReplayError> {
    let slot = held.slot();
    let counters = verify_range(slot, range, records)?;
    if let Some(fresh) = held.fresh(range, records, counters)? {
        held.reserve(range, &fresh).map_err(|source| ReplayError::OutOfMemory { slot, source })?;
        held.take_in(range, &fresh, &mut Wakes::default());
    }
    Ok(())
}

/// From here on it is known that nothing up to that write was taken back later. What it superseded need not be kept.
fn replay_stable(held: &mut SlotState, to: Version) -> Result<(), ReplayError> {
    let (slot, version) = (held.slot(), held.version());
    if to > version || !held.on_history(to) {
        return Err(ReplayError::BadStable { slot, to, version });
    }
    held.compaction.replayed_stable = to.counter;
    held.compact_replayed().map_err(|source| ReplayError::OutOfMemory { slot, source })
}

fn replay_term(held: &mut SlotState, range: RangeHeader) -> Result<(), ReplayError> {
    let (slot, have) = (held.slot(), held.status());
    if range.term < have.term || range.base != have.version.counter {
        let (term, base) = (range.term, range.base);
        return Err(ReplayError::BadTerm { slot, term, base, version: have.version, have: have.term });
    }
    held.begin_term(range);
    Ok(())
}

fn replay_truncation(held: &mut SlotState, to: Version) -> Result<(), ReplayError> {
    let (slot, version) = (held.slot(), held.version());
    let cut = held.cut(to).map_err(|error| match error {
        SlotError::OutOfMemory { slot, source } => ReplayError::OutOfMemory { slot, source },
        other => ReplayError::Truncation(other),
    })?;
    // It names the very write that was the last one then.
    if cut.as_ref().map_or(version, |cut| cut.version) != to {
        return Err(ReplayError::BadTruncation { slot, to, version });
    }
    if let Some(cut) = cut {
        held.take_back(cut, &mut Wakes::default());
    }
    Ok(())
}
