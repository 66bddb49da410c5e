//! One core's part of a checkpoint: its slots, one after the other, in a data file.
//!
//! Invariants: a slot is pinned under its lock, and written without it; a segment is let go of when it is written; at most
//! the configured bytes are written in a second, in pieces, and what is not synced is bounded.

use std::path::PathBuf;
use std::time::Duration;

use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::{AtomicBool, Ordering};
use lockgate_runtime::{Event, File, now_ns};

use super::CheckpointError;
use super::files::{create, io_error, sync_data};
use super::format::{DataFile, DataHeader, EncodedSlots, RangeBytes, SlotEntry};
use crate::log::LogPosition;
use crate::segment::SegmentRef;
use crate::slots::SlotTable;
use crate::types::Slot;

/// Written at once: a larger piece would hold up the core's other tasks.
const PIECE_BYTES: usize = 256 << 10;
/// Synced at latest after this many bytes: a larger heap of dirty pages would hold up the logs' syncs.
const SYNC_BYTES: u64 = 4 << 20;
/// Slots that are looked at before other tasks have their turn.
const SLOTS_PER_TURN: usize = 32;

/// What one core has to write. The number of its file in the manifest is the core's.
pub(super) struct CoreTask {
    pub(super) slots: SlotTable,
    pub(super) clustered: bool,
    pub(super) core: usize,
    pub(super) cores: usize,
    pub(super) path: PathBuf,
    pub(super) header: DataHeader,
    /// Of this core. 0: no bound.
    pub(super) bytes_per_second: u64,
    /// Set when the engine ends, or when another core has failed.
    pub(super) stop: Arc<Stop>,
}

/// Says that there is nothing left to do.
#[derive(Default)]
pub(super) struct Stop {
    is_set: AtomicBool,
    changed: Event,
}

impl Stop {
    pub(super) fn set(&self) {
        self.is_set.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Waits until it is set, but not longer than this.
    pub(super) async fn wait_at_most(&self, time: Duration) {
        let changed = self.changed.listen();
        if !self.is_set() {
            let _ = lockgate_runtime::timeout(time, changed).await;
        }
    }

    /// Waits until it is set.
    pub(super) async fn wait(&self) {
        while !self.is_set() {
            let changed = self.changed.listen();
            if !self.is_set() {
                changed.await;
            }
        }
    }
}

/// What one core has written, all of it synced.
pub(super) struct CorePart {
    pub(super) file: DataFile,
    pub(super) slots: EncodedSlots,
    /// The end, in the core's log, of the last frame that any of the slots has.
    pub(super) end: LogPosition,
}

/// Writes the slots of one core. To be run there.
pub(super) async fn write_core(task: CoreTask) -> Result<CorePart, CheckpointError> {
    let stop = task.stop.clone();
    let result = write_slots(task).await;
    if result.is_err() {
        stop.set();
    }
    result
}

async fn write_slots(task: CoreTask) -> Result<CorePart, CheckpointError> {
    let file = create(&task.path).await?;
    let mut out = Output {
        file,
        path: task.path,
        buffer: Vec::with_capacity(PIECE_BYTES),
        written: 0,
        synced: 0,
        pace: Pace { started_ns: now_ns(), bytes_per_second: task.bytes_per_second },
        stop: task.stop,
    };
    out.append(&task.header.encode()).await?;
    let (mut slots, mut end) = (EncodedSlots::default(), LogPosition::default());
    let own = Slot::all().filter(|slot| slot.index() % task.cores == task.core);
    for (turn, slot) in own.enumerate() {
        if turn % SLOTS_PER_TURN == 0 {
            lockgate_runtime::yield_now().await;
        }
        let known = task.slots.known(slot);
        let Some(pinned) = known.and_then(|cell| cell.pin(task.clustered)) else { continue };
        let (image, offset) = (pinned.image, out.end());
        let ranges = out.append_segments(pinned.segments).await?;
        end = end.max(image.position);
        slots.push(&SlotEntry { image, file: task.core as u16, offset, ranges });
    }
    out.flush().await?;
    out.sync().await?;
    let file = DataFile { core: task.core as u32, bytes: out.written };
    Ok(CorePart { file, slots, end })
}

/// A data file that is being written.
struct Output {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Without what is in the buffer.
    written: u64,
    synced: u64,
    pace: Pace,
    stop: Arc<Stop>,
}

impl Output {
    fn end(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    async fn append_segments(
        &mut self,
        segments: Vec<(SegmentRef, usize)>,
    ) -> Result<Vec<RangeBytes>, CheckpointError> {
        let mut ranges: Vec<RangeBytes> = Vec::new();
        for (segment, bytes) in segments {
            let header = segment.range();
            match ranges.last_mut().filter(|last| last.header == header) {
                Some(last) => last.bytes += bytes as u64,
                None => ranges.push(RangeBytes { header, bytes: bytes as u64 }),
            }
            self.append(segment.bytes(0..bytes)).await?;
        }
        Ok(ranges)
    }

    async fn append(&mut self, mut bytes: &[u8]) -> Result<(), CheckpointError> {
        while !bytes.is_empty() {
            let room = PIECE_BYTES - self.buffer.len();
            let (piece, rest) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(piece);
            bytes = rest;
            if self.buffer.len() == PIECE_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), CheckpointError> {
        if self.stop.is_set() {
            return Err(CheckpointError::Ended);
        }
        let buffer = std::mem::take(&mut self.buffer);
        let bytes = buffer.len() as u64;
        let (result, mut buffer) = self.file.write_all_at(buffer, self.written).await;
        result.map_err(io_error("writing", &self.path))?;
        buffer.clear();
        self.buffer = buffer;
        self.written += bytes;
        if self.written - self.synced >= SYNC_BYTES {
            self.sync().await?;
        }
        if let Some(time) = self.pace.ahead_by(self.written) {
            self.stop.wait_at_most(time).await;
        }
        Ok(())
    }

    async fn sync(&mut self) -> Result<(), CheckpointError> {
        sync_data(&self.file, &self.path).await?;
        self.synced = self.written;
        Ok(())
    }
}

/// Keeps a mean speed.
struct Pace {
    started_ns: u64,
    bytes_per_second: u64,
}

impl Pace {
    /// How long it takes until so much may have been written. `None`: it may.
    fn ahead_by(&self, bytes: u64) -> Option<Duration> {
        let due_ns = (u128::from(bytes) * 1_000_000_000).checked_div(u128::from(self.bytes_per_second))?;
        let left_ns = due_ns.checked_sub(u128::from(now_ns() - self.started_ns))?;
        Some(Duration::from_nanos(u64::try_from(left_ns).unwrap_or(u64::MAX)))
    }
}
