//! Recovery: the slots as the logs of all boots have them.
//!
//! Every log is read from its beginning, and every frame has the effect that it had when it was written, by the same code.
//!
//! Invariants:
//! - A slot's frames are replayed in the order in which they were written. Within one boot a slot has one log; its log
//!   changes when the number of cores does. So boots are taken in *eras*, runs of boots with the same number of cores:
//!   all logs are replayed for one era before the next begins.
//! - Frames of a generation that is over, or older than the slot's, have no effect.
//! - A frame that cannot be what the slot's history allows is damage: recovery stops, and names it.

use std::collections::BTreeMap;

use lockgate_runtime::mutation;
use lockgate_runtime::now_ns;
use thiserror::Error;

use crate::apply::verify_range;
use crate::arena::OutOfMemory;
use crate::builder::{CORES_MAX, core_log_name};
use crate::cell::SlotCell;
use crate::error::{ApplyError, OpenError, SlotError};
use crate::frames::{FRAME_DATA, FRAME_DROP, FRAME_OPEN, FRAME_STABLE, FRAME_TERM, FRAME_TRUNCATE};
use crate::log::files::parse_file_name;
use crate::log::format::FRAME_HEADER_BYTES;
use crate::log::{self, FrameHeader, FrameKind, RecoveredEnd, VisitError};
use crate::meta::Directory;
use crate::slot::SlotState;
use crate::types::{Generation, RangeHeader, SLOTS, Slot, Term, Version};

/// What the recovery of one log found.
pub(crate) type Recovered = RecoveredEnd;

/// A line in the trace for every so much of log.
const PROGRESS_BYTES: u64 = 256 << 20;

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

/// Boots with the same number of cores, one after the other.
#[derive(Debug, PartialEq, Eq)]
struct Era {
    last_boot: u64,
    cores: usize,
}

/// Replays all core logs of a directory into empty slots, and returns where each log ends.
pub(crate) async fn recover_all(
    directory: &Directory,
    slots: &[SlotCell],
) -> Result<BTreeMap<String, Recovered>, OpenError> {
    let dir = directory.log_dir();
    let files = if lockgate_runtime::fs::exists(&dir).await {
        lockgate_runtime::fs::read_dir(&dir)
            .await
            .map_err(|source| OpenError::Io { path: dir.clone(), source })?
    } else {
        Vec::new()
    };
    let known_logs = directory.meta().ends.keys().filter_map(|name| core_of(name));
    let logs = cores_by_boot(&files).into_values().chain(known_logs.map(|core| core + 1)).max().unwrap_or(0);
    let eras = eras(&cores_by_boot(&files));
    let mut progress = Progress { started_ns: now_ns(), bytes: 0, reported_bytes: 0, frames: 0 };
    let mut recovered = BTreeMap::new();
    let mut before = None;
    for (number, era) in eras.iter().enumerate() {
        let is_last = number + 1 == eras.len();
        for core in 0..logs {
            let name = core_log_name(core);
            let ends = directory.known_ends(&name);
            let from = before.map_or(0, |boot| end_of(ends, boot));
            let to = if is_last { u64::MAX } else { end_of(ends, era.last_boot) };
            if from == to {
                continue;
            }
            let mut at = 0;
            let end = log::recover(&dir, &name, None, ends, |frame, payload| {
                let begin = at;
                at += (FRAME_HEADER_BYTES + payload.len()) as u64;
                if (from..to).contains(&begin) {
                    progress.count(&name, at - begin);
                    replay(slots, frame, payload)?;
                }
                Ok(())
            })
            .await?;
            recovered.insert(name, end);
        }
        before = Some(era.last_boot);
    }
    progress.report("recovered");
    Ok(recovered)
}

/// The end of what a log had after this boot.
fn end_of(ends: &[(u64, u64)], boot: u64) -> u64 {
    ends.iter().filter(|(of, _)| *of <= boot).map(|(_, end)| *end).max().unwrap_or(0)
}

pub(crate) fn core_of(log: &str) -> Option<usize> {
    let core = log.strip_prefix("core-")?.parse().ok()?;
    (core < CORES_MAX && core_log_name(core) == log).then_some(core)
}

/// How many cores each boot had, by the files that it made.
fn cores_by_boot(files: &[String]) -> BTreeMap<u64, usize> {
    let mut cores = BTreeMap::new();
    for file in files {
        let log = file.split('.').next().unwrap_or(file);
        if let Some(core) = core_of(log)
            && let Some((boot, _)) = parse_file_name(log, file)
        {
            let most = cores.entry(boot).or_insert(0);
            *most = (core + 1).max(*most);
        }
    }
    cores
}

fn eras(cores_by_boot: &BTreeMap<u64, usize>) -> Vec<Era> {
    let mut eras: Vec<Era> = Vec::new();
    for (&boot, &cores) in cores_by_boot {
        match eras.last_mut() {
            Some(era) if era.cores == cores => era.last_boot = boot,
            _ => eras.push(Era { last_boot: boot, cores }),
        }
    }
    eras
}

fn replay(slots: &[SlotCell], frame: &FrameHeader, payload: &[u8]) -> Result<(), VisitError> {
    let slot = Slot::new(frame.slot).ok_or(ReplayError::NoSuchSlot(frame.slot))?;
    let mut held = slots[slot.index()].lock();
    Ok(replay_frame(&mut held, frame, payload)?)
}

fn replay_frame(held: &mut SlotState, frame: &FrameHeader, payload: &[u8]) -> Result<(), ReplayError> {
    let (slot, generation) = (held.slot(), Generation(frame.generation));
    let range = RangeHeader { term: Term(frame.term), base: frame.base };
    if frame.kind != FRAME_DATA && !payload.is_empty() {
        return Err(ReplayError::NotEmpty { slot, kind: frame.kind.0, bytes: payload.len() });
    }
    if !matches!(
        frame.kind,
        FRAME_DATA | FRAME_OPEN | FRAME_DROP | FRAME_TERM | FRAME_TRUNCATE | FRAME_STABLE
    ) {
        let FrameKind(kind) = frame.kind;
        return Err(ReplayError::UnknownKind(kind));
    }
    if generation < held.generation() || (generation == held.generation() && !held.is_open()) {
        return Ok(());
    }
    if frame.kind == FRAME_DROP {
        let _ = held.end_generation(generation);
        return Ok(());
    }
    // A slot that nobody ever moved has no frame that opens it: its first frame does.
    if generation > held.generation() && !mutation!("replay-without-generations") {
        if held.is_open() {
            let _ = held.end_generation(held.generation());
        }
        held.begin_generation(generation);
    }
    match frame.kind {
        FRAME_DATA => replay_data(held, range, payload),
        FRAME_TERM => replay_term(held, range),
        FRAME_TRUNCATE => replay_truncation(held, Version::new(range.term, range.base)),
        FRAME_STABLE => replay_stable(held, Version::new(range.term, range.base)),
        _ => Ok(()),
    }
}

fn replay_data(held: &mut SlotState, range: RangeHeader, records: &[u8]) -> Result<(), ReplayError> {
    let slot = held.slot();
    let counters = verify_range(slot, range, records)?;
    if let Some(fresh) = held.fresh(range, records, counters)? {
        held.reserve(range, &fresh).map_err(|source| ReplayError::OutOfMemory { slot, source })?;
        let _nobody_waits_yet = held.take_in(range, &fresh);
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
        let _nobody_waits_yet = held.take_back(cut);
    }
    Ok(())
}

struct Progress {
    started_ns: u64,
    bytes: u64,
    reported_bytes: u64,
    frames: u64,
}

impl Progress {
    fn count(&mut self, log: &str, bytes: u64) {
        self.bytes += bytes;
        self.frames += 1;
        if self.bytes - self.reported_bytes >= PROGRESS_BYTES {
            self.reported_bytes = self.bytes;
            self.report(log);
        }
    }

    fn report(&self, what: &str) {
        let elapsed_ms = (now_ns() - self.started_ns) / 1_000_000;
        tracing::info!(log = what, bytes = self.bytes, frames = self.frames, elapsed_ms, "recovery");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eras_are_runs_of_boots_with_the_same_cores() {
        let cores = BTreeMap::from([(1, 2), (2, 2), (4, 3), (5, 2), (6, 2)]);
        let found: Vec<_> = eras(&cores).iter().map(|era| (era.last_boot, era.cores)).collect();
        assert_eq!(found, [(2, 2), (4, 3), (6, 2)]);
    }
}
