//! Checkpoints: all slots' records in files of their own, so that a recovery needs only the end of the logs, and the
//! logs' space can be given back.
//!
//! A checkpoint is *fuzzy*: it is taken while everybody writes. It notes where each log stands; then it pins the slots one
//! after the other, each under its lock, with the position of the slot's last frame; then it waits until the logs are
//! synced up to those positions. A recovery begins with the pinned records, and replays each log from where it stood,
//! without the frames that a slot had already.
//!
//! Invariants:
//! - The manifest is replaced atomically, and only when all that it names is on the disk: the data files and
//!   the logs up to every noted position. So at any moment there is one whole checkpoint, or none.
//! - What an older checkpoint needs (its files, the logs behind it) goes only when the newer one's manifest is durable.
//! - A file whose write or sync failed is never used: its checkpoint is abandoned, and the next one has another number.
//! - A slot's lock is held for a copy of the list of its segments, and one segment after the other is let go of as soon as
//!   it is written. So a compaction never waits for a whole checkpoint.
//!
//! From the bottom: [`format`](mod@format) (the bytes), `files` (names, the swap, what may go), `writer` (one core's data
//! file), `checkpointer` (when one is taken, and in which order), `source` and `load` (reading one).

mod checkpointer;
pub mod files;
pub mod format;
mod load;
mod source;
mod writer;

use std::path::PathBuf;
use std::time::Duration;

use lockgate_runtime::sync::Arc;
use thiserror::Error;

pub(crate) use checkpointer::{Checkpointer, Scope};
pub(crate) use load::{Base, load_all, load_leniently, read_manifest};
pub use load::{Piece, PieceFault, verify_piece};

use crate::log::LogFailed;

/// Folder of the checkpoint in an engine's directory.
pub const CHECKPOINT_FOLDER: &str = "checkpoint";
/// A checkpoint is taken when so much was logged since the last one, unless another bound is set...
pub const CHECKPOINT_LOG_BYTES_DEFAULT: u64 = 64 << 20;
/// ... and when that is also this many times what all slots take in memory: a checkpoint costs by what it holds.
pub const CHECKPOINT_LOG_PER_DATA: u64 = 1;
/// How much of a checkpoint is written in a second, over all cores, unless another bound is set.
pub const CHECKPOINT_BYTES_PER_SECOND_DEFAULT: u64 = 128 << 20;
/// An automatic checkpoint that failed is tried again after this time...
const RETRY_MIN: Duration = Duration::from_secs(1);
/// ... which doubles up to this one while it goes on failing.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// When checkpoints are taken, and how fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CheckpointConfig {
    pub(crate) automatic: bool,
    pub(crate) log_bytes: u64,
    /// 0: as fast as the disk takes it.
    pub(crate) bytes_per_second: u64,
}

impl Default for CheckpointConfig {
    fn default() -> CheckpointConfig {
        CheckpointConfig {
            automatic: true,
            log_bytes: CHECKPOINT_LOG_BYTES_DEFAULT,
            bytes_per_second: CHECKPOINT_BYTES_PER_SECOND_DEFAULT,
        }
    }
}

/// What one checkpoint came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckpointStats {
    /// Counts the directory's checkpoints, those that were abandoned included.
    pub number: u64,
    /// Slots that are in it.
    pub slots: u64,
    /// Length of its files, in bytes.
    pub bytes: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
}

/// An engine's checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointsStats {
    /// The last one since the engine was opened, if there was one.
    pub last: Option<CheckpointStats>,
    /// Whether one is being taken.
    pub is_running: bool,
    /// Bytes that were logged since the last one began: so much a recovery would replay.
    pub log_bytes_since: u64,
    /// How many were abandoned since the engine was opened.
    pub failures: u64,
    /// Why the latest one was abandoned, if it was.
    pub last_error: Option<String>,
}

/// Why a checkpoint was abandoned. The one before it stays in use, and nothing is lost.
#[derive(Clone, Debug, Error)]
pub enum CheckpointError {
    /// A file could not be written, synced, renamed or removed.
    #[error(
        "the checkpoint was abandoned: {action} {} failed: {source}. Nothing is lost, and the logs stay as long as they \
         are needed. Check the disk and the space on it", file.display()
    )]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        file: PathBuf,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// The state of the slots has outgrown the format.
    #[error(
        "the checkpoint was abandoned: its manifest would have {bytes} bytes, over the limit of {}",
        format::MANIFEST_BYTES_MAX
    )]
    TooLarge {
        /// What it would have.
        bytes: usize,
    },
    /// A log has failed, or was closed meanwhile.
    #[error("the checkpoint was abandoned: {0}")]
    Log(#[from] LogFailed),
    /// The engine ended meanwhile.
    #[error("the checkpoint was abandoned: the engine was dropped")]
    Ended,
}

/// What every report of a damaged checkpoint ends with.
const ADVICE: &str = "Nothing was changed. Restore the directory from a backup, or start with an empty directory and \
     let the node copy its data from its peers; the files of a checkpoint cannot be replaced one by one";

/// Why a directory's checkpoint cannot be used. Nothing on the disk is changed by that.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The bytes are not what was written.
    #[error("the checkpoint file {} is damaged at byte offset {offset}: {why}. {}", file.display(), ADVICE)]
    Corrupt {
        /// Which file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// A file is not there.
    #[error("the checkpoint file {} is missing: {why}. {}", file.display(), ADVICE)]
    Missing {
        /// Which file.
        file: PathBuf,
        /// How it is known that it existed.
        why: String,
    },
    /// A file was written by a version of the format that this program does not know.
    #[error(
        "the checkpoint file {} has format version {found}; this program reads version {}. Use the program version that \
         wrote it", file.display(), format::CHECKPOINT_VERSION
    )]
    UnknownVersion {
        /// Which file.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The system could not read.
    #[error("reading the checkpoint file {} failed at byte offset {offset}: {source}. Check the disk; nothing was changed", file.display())]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// The engine's memory bound is reached.
    #[error(
        "slot {slot}: {source}; the data needs more memory than the engine may use: raise memory_bytes_max"
    )]
    OutOfMemory {
        /// The slot.
        slot: crate::types::Slot,
        /// How much is in use.
        source: crate::arena::OutOfMemory,
    },
}
