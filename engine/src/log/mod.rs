//! The durable log of one engine core (or of one control log): appending in memory, writing in groups, recovering.
//!
//! Appending is synchronous, from any thread, and never touches a disk: a frame is copied into the batch that is being
//! collected, and gets its [`LogPosition`]. A writer task on the core that created the log takes the batches, writes
//! them to preallocated, zero-filled files, and syncs. Watermarks tell how far that came.
//!
//! Invariants:
//! - `synced <= written <= appended`, asserted at every step. `synced` advances only to what was written before the
//!   sync began.
//! - Only one file has unsynced batches at any time: a file is synced before its successor gets its first batch.
//! - The first failed write, sync or preparation of a file ends the log for good: waiters fail, nothing is retried. Only a
//!   full disk is waited for (see `space`).
//! - A file is complete (zero-filled or used before, synced, its name durable) before its first batch; the commit path
//!   never grows one, except for a batch that is larger than a file and gets one of its own.
//! - Each boot writes a chain of files of its own; files of older boots are only read.
//! - What lies before a [`LogStart`] is not needed any more: files are given back, and used again.
//!
//! Reading from the top: [`mod@format`] (the bytes), `error`, `shared` (what appenders and the writer share), `group`
//! (logs that fail together), `handle`
//! (the public [`Log`]), `files` (preparing files), `recycle` (using them again), `space` (a full disk), `desk` (what writing
//! takes), `writer` (the task), `lead` (a thread in its place), `outside` (what both use of the runtime), `reader` (one file),
//! `start` (from where on), `recover` (all chains).
//!
//! What this module does not know: what frames mean. A slot and its term are numbers that it carries.

mod ahead;
mod desk;
mod error;
pub(crate) mod files;
pub mod format;
mod group;
mod handle;
mod lead;
pub(crate) mod lenient;
#[cfg(all(test, loom))]
mod loom_tests;
mod outside;
mod reader;
mod recover;
mod recycle;
mod shared;
mod space;
mod start;
mod writer;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use error::{LogError, LogFailed, LogWaitError, RecoverError, StopCause, VisitError};
pub use format::{FrameHeader, FrameKind, LogPosition};
pub use group::LogGroup;
pub use handle::Log;
pub use recover::{RecoveredEnd, Visitor, recover, recover_with, remove_unused_files};
pub use recycle::{GivenBack, RECYCLED_FILES_MAX};
pub use shared::Reservation;
pub use space::CONTROL_RESERVE_BYTES;
pub use start::{LogStart, remove_obsolete_files};

/// Size of a log file, unless configured.
pub const FILE_BYTES_DEFAULT: u64 = 64 << 20;
/// Smallest size of a log file that is accepted.
pub const FILE_BYTES_MIN: u64 = 16 << 10;
/// Largest size of a log file that is accepted.
pub const FILE_BYTES_MAX: u64 = 4 << 30;
/// Bytes that may wait to be written, unless configured.
pub const UNWRITTEN_BYTES_MAX_DEFAULT: u64 = 64 << 20;
/// Longest time between a write and its sync, unless configured.
pub const FLUSH_INTERVAL_DEFAULT: Duration = Duration::from_millis(1000);

/// How a log is to be written.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Directory of the files; created if it does not exist.
    pub dir: PathBuf,
    /// Name of the log, for example `core-0`: 1 to 64 of a-z, 0-9 and '-'.
    pub name: String,
    /// Number of this boot: higher than that of every chain in the directory.
    pub boot: u64,
    /// Size of one file. The first files of a boot are smaller, so that short boots leave little behind.
    pub file_bytes: u64,
    /// Bytes that may be appended and not yet written, before [`LogError::Behind`].
    pub unwritten_bytes_max: u64,
    /// A written frame is synced at latest after this time.
    pub flush_interval: Duration,
    /// Sync after every group of batches, asked for or not.
    pub sync_every_batch: bool,
    /// The logs that it fails with; a group of its own unless configured.
    pub group: LogGroup,
}

impl LogConfig {
    /// A configuration with the defaults.
    pub fn new(dir: impl Into<PathBuf>, name: impl Into<String>, boot: u64) -> LogConfig {
        LogConfig {
            dir: dir.into(),
            name: name.into(),
            boot,
            file_bytes: FILE_BYTES_DEFAULT,
            unwritten_bytes_max: UNWRITTEN_BYTES_MAX_DEFAULT,
            flush_interval: FLUSH_INTERVAL_DEFAULT,
            sync_every_batch: false,
            group: LogGroup::new(),
        }
    }

    fn check(&self) -> Result<(), LogError> {
        let wrong = |what: String| Err(LogError::Config { log: self.name.clone(), what });
        if !files::name_is_allowed(&self.name) {
            return wrong("the name is not allowed: use 1 to 64 of a-z, 0-9 and '-'".into());
        }
        if !(FILE_BYTES_MIN..=FILE_BYTES_MAX).contains(&self.file_bytes) {
            return wrong(format!(
                "file_bytes is {}; it must be from {FILE_BYTES_MIN} to {FILE_BYTES_MAX}",
                self.file_bytes
            ));
        }
        if self.unwritten_bytes_max == 0 {
            return wrong("unwritten_bytes_max is 0; nothing could ever be appended".into());
        }
        Ok(())
    }
}
