//! Backups: what slots hold, in one file, made while they are written, and a new directory made of such a file.
//!
//! A backup is a receiver like any other: it follows one slot after the other by a [`SlotStream`](crate::SlotStream), from
//! nothing on, up to the version that the slot had when its turn came. So it costs its source what a follower costs: a cursor,
//! and what is superseded before it was read. Writers and compaction go on.
//!
//! What it holds of a slot is all writes up to that version and none behind it: the slot as it was at one moment. Two slots
//! were backed up at two moments. `docs/backup.md` says what that means for those who use it.
//!
//! From the bottom: [`format`](mod@format) (the bytes), `tally` (a slot's sum, from its records), `decode` (chunk by chunk,
//! pure), `error`, `writer`, `reader` (files), `target` (a new directory), `restore`, and the engine's calls in here.

mod decode;
mod directory;
mod error;
pub mod format;
mod reader;
mod restore;
mod tally;
pub(crate) mod target;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;

use lockgate_runtime::Boxed;
use lockgate_runtime::sync::Arc;

pub use decode::{BackupDecoder, BackupPart, VERIFY_BYTES_MORE, VERIFY_BYTES_PER_BYTE, verify_bytes};
pub use directory::back_up_directory;
pub use error::BackupError;
pub use format::{BackupFault, BackupFooter, BackupHeader, SlotSection};
pub use reader::{BackupReader, verify};
pub use restore::{RestoreOptions, restore};
pub(crate) use tally::tally_of;
pub use writer::PARTIAL_SUFFIX;

use crate::engine::Engine;
use crate::stream::{SlotStream, StreamRange};
use crate::types::{Gate, RangeHeader, Slot, SlotStatus, Version};
use crate::{record, segment::PinnedRange};
use writer::BackupWriter;

/// Records are read in pieces of about this size.
const PIECE_BYTES: usize = 256 << 10;
/// After so many slots in a row the core's other tasks have their turn, if nothing was written in between.
const SLOTS_PER_TURN: usize = 16;

/// How far a backup is, or a restoration, or a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupProgress {
    /// Slots that are done.
    pub slots_done: u64,
    /// Slots that there are to do; 0: not known.
    pub slots: u64,
    /// Bytes of the file that are done.
    pub bytes: u64,
}

/// Who is told of progress: a short closure that may be called from any core.
pub type ProgressFn = Arc<dyn Fn(BackupProgress) + Send + Sync>;

/// What to back up, and how.
#[derive(Clone, Default)]
pub struct BackupOptions {
    /// Which slots; `None`: all that this engine serves when their turn comes. A slot that is named and not served here is an
    /// error.
    pub slots: Option<Vec<Slot>>,
    /// At most so many bytes are written in a second; `None`: no bound.
    pub bytes_per_second: Option<u64>,
    /// Told after each slot, and after each piece of a large one.
    pub progress: Option<ProgressFn>,
}

/// A backup that is there, durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSummary {
    /// The file.
    pub file: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// What it says of itself.
    pub header: BackupHeader,
    /// What it came to.
    pub footer: BackupFooter,
}

impl Engine {
    /// Writes a backup to `path`, which must not exist. To be awaited on a core. The file has its name when it is whole and
    /// durable, and not before.
    ///
    /// For each slot it holds everything up to the version that the slot had when its turn came. That includes writes that
    /// were not acknowledged yet then. Superseded values are in it as far as they are still in memory.
    pub fn backup<'a>(
        &'a self,
        path: &'a Path,
        options: &'a BackupOptions,
    ) -> Boxed<'a, Result<BackupSummary, BackupError>> {
        Box::pin(async move {
            let boot = self.boot();
            let began_ms = self.unix_ms();
            let header = BackupHeader { directory_id: boot.directory_id, boot: boot.number, began_ms };
            let mut wanted: Vec<Slot> = match &options.slots {
                Some(slots) => slots.clone(),
                None => Slot::all().filter(|slot| is_served(self.gate(*slot))).collect(),
            };
            wanted.sort_unstable();
            wanted.dedup();
            let mut writer = BackupWriter::create(path, &header).await?;
            let (stream, mut work) = (self.stream(), Work::new(wanted.len(), options));
            for slot in wanted {
                if let Err(error) = self.back_up_slot(slot, &stream, &mut writer, &mut work).await {
                    writer.abandon().await;
                    return Err(error);
                }
                work.progress.slots_done += 1;
                work.tell(&writer);
                if work.progress.slots_done.is_multiple_of(SLOTS_PER_TURN as u64) {
                    lockgate_runtime::yield_now().await;
                }
            }
            let footer = BackupFooter { ended_ms: self.unix_ms(), ..work.footer };
            let bytes = writer.finish(&footer).await?;
            Ok(BackupSummary { file: path.to_path_buf(), bytes, header, footer })
        })
    }

    /// As [`Engine::backup`], for a thread that is not a core's. Panics on a core's.
    pub fn backup_blocking(
        &self,
        path: &Path,
        options: &BackupOptions,
    ) -> Result<BackupSummary, BackupError> {
        let (engine, path, options) = (self.clone(), path.to_path_buf(), options.clone());
        self.runtime().block_on(0, move || async move { engine.backup(&path, &options).await })
    }

    async fn back_up_slot(
        &self,
        slot: Slot,
        stream: &SlotStream,
        writer: &mut BackupWriter,
        work: &mut Work<'_>,
    ) -> Result<(), BackupError> {
        // It holds nothing.
        if self.known_slot(slot).is_none() && is_served(self.gate(slot)) {
            return Ok(());
        }
        let generation = self.slot_status(slot).generation;
        let subscribed = stream.subscribe(slot, generation, Version::ZERO);
        // Behind the subscription: of what is there now it keeps all that is needed to tell what was live.
        let status = self.slot_status(slot);
        if subscribed.is_err() || !is_served(status.gate) || status.generation != generation {
            stream.unsubscribe(slot);
            stream.take_ended();
            return match work.options.slots {
                Some(_) => Err(BackupError::NotHere { slot, gate: status.gate }),
                None => Ok(()),
            };
        }
        if status.version == Version::ZERO {
            stream.unsubscribe(slot);
            return Ok(());
        }
        writer.begin_slot(&section_of(slot, &status)).await?;
        let is_whole = copy(stream, (slot, status.version), writer, work).await?;
        stream.unsubscribe(slot);
        stream.take_ended();
        writer.end_slot(slot, status.version, is_whole).await?;
        if !is_whole && work.options.slots.is_some() {
            return Err(BackupError::NotHere { slot, gate: self.slot_status(slot).gate });
        }
        if is_whole {
            work.footer.slots += 1;
            work.footer.keys += status.keys;
        } else {
            work.footer.slots_left += 1;
        }
        Ok(())
    }
}

/// One backup in progress.
struct Work<'a> {
    footer: BackupFooter,
    progress: BackupProgress,
    began_ns: u64,
    options: &'a BackupOptions,
}

impl<'a> Work<'a> {
    fn new(slots: usize, options: &'a BackupOptions) -> Work<'a> {
        let progress = BackupProgress { slots: slots as u64, ..BackupProgress::default() };
        Work { footer: BackupFooter::default(), progress, began_ns: lockgate_runtime::now_ns(), options }
    }

    fn tell(&mut self, writer: &BackupWriter) {
        self.progress.bytes = writer.len();
        if let Some(tell) = &self.options.progress {
            tell(self.progress);
        }
    }

    /// Waits until so many bytes may have been written.
    async fn throttle(&self, bytes: u64) {
        let Some(bound) = self.options.bytes_per_second else { return };
        let due_ns = u128::from(bytes) * 1_000_000_000 / u128::from(bound.max(1));
        let due_ns = self.began_ns.saturating_add(u64::try_from(due_ns).unwrap_or(u64::MAX));
        let wait_ns = due_ns.saturating_sub(lockgate_runtime::now_ns());
        if wait_ns > 0 {
            lockgate_runtime::sleep(Duration::from_nanos(wait_ns)).await;
        }
    }
}

fn is_served(gate: Gate) -> bool {
    matches!(gate, Gate::Owned | Gate::Frozen)
}

fn section_of(slot: Slot, status: &SlotStatus) -> SlotSection {
    let &SlotStatus { generation, term, version, keys, live_bytes, digest, .. } = status;
    SlotSection { slot, generation, term, version, keys, live_bytes, digest }
}

/// Copies what the stream has of the slot up to a version that the slot has. False: the slot has left meanwhile.
async fn copy(
    stream: &SlotStream,
    (slot, to): (Slot, Version),
    writer: &mut BackupWriter,
    work: &mut Work<'_>,
) -> Result<bool, BackupError> {
    loop {
        // There is something as long as the slot is there: its last write is behind the cursor.
        let Some(range) = stream.next_range(PIECE_BYTES) else { return Ok(false) };
        assert!(range.slot == slot, "one slot is followed at a time");
        let reaches_end = range.last.counter >= to.counter;
        if let Some(records) = up_to(&range, to) {
            work.footer.record_bytes += records.len() as u64;
            let header = RangeHeader { term: range.term, base: range.base };
            drop(range);
            writer.records(slot, header, records).await?;
        }
        work.throttle(writer.len()).await;
        if reaches_end {
            return Ok(true);
        }
        work.tell(writer);
    }
}

/// The records of a range up to a version, which no write of several records straddles.
fn up_to(range: &StreamRange, to: Version) -> Option<PinnedRange> {
    if range.last.counter <= to.counter {
        return Some(range.bytes.clone());
    }
    let mut end = 0;
    while end < range.bytes.len() {
        let record = record::parse(&range.bytes[end..]).expect("what is in memory was verified");
        if range.base + u64::from(record.delta) > to.counter {
            break;
        }
        end += record.encoded_bytes();
    }
    (end > 0).then(|| range.bytes.first_bytes(end))
}
