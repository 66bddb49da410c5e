//! What can go wrong with a log, while it is written and while it is recovered.
//!
//! [`LogFailed`] is final for its log: it is set once, every waiter and every later caller gets the same one, and the
//! file that it names is never written again. [`LogError::Behind`] passes by itself, [`LogError::DiskFull`] when somebody
//! makes space.

use std::io;
use std::path::PathBuf;

use lockgate_runtime::sync::Arc;

use super::format::LogPosition;

/// Why a log takes no more frames. Cheap to clone: all holders share one text.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct LogFailed(Arc<StopCause>);

/// What ended a log.
#[derive(Debug, thiserror::Error)]
pub enum StopCause {
    /// A read, write or sync failed. What was not synced before may be lost; the file is not tried again.
    #[error(
        "log {log}: {action} {} failed at byte offset {offset} (log position {position}): {source}. The log takes no \
         more writes, and what was not synced may be lost. Check the disk, then restart the node: it recovers what is \
         on the disk and copies the rest from its peers", file.display()
    )]
    Io {
        /// Name of the log.
        log: String,
        /// What was being done, for example "writing".
        action: &'static str,
        /// The file that it was done to.
        file: PathBuf,
        /// Byte offset in that file.
        offset: u64,
        /// The log's position: everything before it had been written.
        position: LogPosition,
        /// What the system said.
        source: io::Error,
    },
    /// The core that writes the log was shut down before the log was closed.
    #[error(
        "log {log}: its core was shut down before the log was closed (log position {position}). Open the directory again"
    )]
    CoreStopped {
        /// Name of the log.
        log: String,
        /// Everything before this position had been written.
        position: LogPosition,
    },
    /// The log was closed in order; everything appended is synced.
    #[error("log {log} is closed (log position {position})")]
    Closed {
        /// Name of the log.
        log: String,
        /// Where the log ends.
        position: LogPosition,
    },
}

impl LogFailed {
    pub(super) fn new(cause: StopCause) -> LogFailed {
        LogFailed(Arc::new(cause))
    }

    /// What happened, for those who want the parts.
    pub fn cause(&self) -> &StopCause {
        &self.0
    }

    /// True when the log was closed in order: nothing is lost.
    pub fn is_closed(&self) -> bool {
        matches!(*self.0, StopCause::Closed { .. })
    }
}

/// Why a log could not be created, or has no room for a frame.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// Too many bytes wait to be written. It passes when the disk catches up: wait until what is appended now is
    /// written, and try again.
    #[error(
        "log {log}: {unwritten_bytes} bytes wait to be written and {requested_bytes} more would exceed the bound of \
         {bound_bytes}. Wait for the log to be written and try again"
    )]
    Behind {
        /// Name of the log.
        log: Arc<str>,
        /// Bytes reserved or appended, not yet written.
        unwritten_bytes: u64,
        /// Bytes that were asked for.
        requested_bytes: u64,
        /// The configured bound.
        bound_bytes: u64,
    },
    /// The disk, or what this user may have of it, is full: the next file cannot be prepared, and what is left of this
    /// one is kept for changes of ownership. It passes when there is space again; the log finds out by itself.
    #[error(
        "log {log}: the disk is full. {requested_bytes} bytes are refused; {room_bytes} are left for data, and the rest is \
         kept for changes of ownership. Make space on the disk: the log goes on by itself then"
    )]
    DiskFull {
        /// Name of the log.
        log: Arc<str>,
        /// Bytes that were asked for.
        requested_bytes: u64,
        /// What is left of the log's file for data. All data is refused once some was.
        room_bytes: u64,
    },
    /// The payload does not fit a frame.
    #[error("log {log}: a payload of {payload_bytes} bytes exceeds the limit of {limit_bytes}. Split it")]
    FrameTooLong {
        /// Name of the log.
        log: Arc<str>,
        /// Bytes of the payload.
        payload_bytes: usize,
        /// [`super::format::FRAME_PAYLOAD_BYTES_MAX`].
        limit_bytes: usize,
    },
    /// The configuration cannot work.
    #[error("log {log:?}: {what}")]
    Config {
        /// Name of the log.
        log: String,
        /// What is wrong, and what is allowed.
        what: String,
    },
    /// The log failed or was closed; it stays so.
    #[error(transparent)]
    Failed(#[from] LogFailed),
}

impl LogError {
    /// True when the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, LogError::Behind { .. } | LogError::DiskFull { .. })
    }
}

/// Why a blocking wait ended without success.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogWaitError {
    /// The log ended before it reached the position.
    #[error(transparent)]
    Failed(#[from] LogFailed),
    /// A core thread must not block: it would wait for work that only it can do. Await instead.
    #[error("a blocking wait on a core thread would never end: await the position instead")]
    OnCoreThread,
}

/// What a visitor of frames may return: any error, which ends the recovery.
pub type VisitError = Box<dyn std::error::Error + Send + Sync>;

/// The advice that every report of damage ends with.
pub(super) const DAMAGE_ADVICE: &str = "Nothing was changed. Restore the node's directory from a backup, or start the \
     node with an empty directory and let it copy its data from its peers; do not delete or edit single log files";

/// Why a log could not be recovered. Nothing on the disk is changed by a failed recovery.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Bytes that had been safe on the disk are not there or not what they were.
    #[error(
        "log file {} is damaged at byte offset {offset} (log position {position}): {why}; it is not the torn end of a \
         crash: {evidence}. {}", file.display(), DAMAGE_ADVICE
    )]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Byte offset of the damaged batch in it.
        offset: u64,
        /// The log position that should be there.
        position: LogPosition,
        /// What is wrong with the bytes.
        why: String,
        /// How it is known that these bytes had been safe.
        evidence: String,
    },
    /// A file of a chain is not there.
    #[error("log file {} is missing: {evidence}. {}", file.display(), DAMAGE_ADVICE)]
    Missing {
        /// The file that should be there.
        file: PathBuf,
        /// How it is known that it existed.
        evidence: String,
    },
    /// A file was written by a version of the format that this program does not know.
    #[error("log file {} has format version {found}; this program reads version {supported}. Use the program version that wrote it", file.display())]
    UnknownVersion {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
        /// The version that is known.
        supported: u32,
    },
    /// The system could not read.
    #[error("reading log file {} failed at byte offset {offset}: {source}. Check the disk; nothing was changed", file.display())]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// Byte offset in it.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The visitor refused a frame.
    #[error("the content of log file {} could not be used, in the batch at byte offset {offset}: {source}", file.display())]
    Visit {
        /// The file.
        file: PathBuf,
        /// Byte offset of the batch that holds the frame.
        offset: u64,
        /// What the visitor said. Of an engine's own logs: a [`ReplayError`](crate::ReplayError).
        source: VisitError,
    },
    /// The log's name cannot be part of a file name.
    #[error("log name {name:?} is not allowed: use 1 to 64 of a-z, 0-9 and '-'")]
    BadName {
        /// The name.
        name: String,
    },
}
