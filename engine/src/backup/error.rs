//! What can go wrong with a backup and with bringing one back. Each says what happened, to what, and what to do.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::format::{BACKUP_VERSION, BackupFault};
use crate::error::{ApplyError, OpenError, SlotError};
use crate::log::LogFailed;
use crate::types::{Gate, Slot};

/// Why there is no backup, or why one cannot be used.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The system refused.
    #[error("{action} {} failed: {source}", file.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is a file of that name.
    #[error("{} is there already: choose another name, or move that file away", file.display())]
    Exists {
        /// The file.
        file: PathBuf,
    },
    /// Another backup is being written to the same file.
    #[error("{} is being written by another backup", file.display())]
    Busy {
        /// The file.
        file: PathBuf,
    },
    /// A slot that was asked for is not served here.
    #[error("slot {slot} is not served here (its gate is: {gate}): make the backup at its owner")]
    NotHere {
        /// The slot.
        slot: Slot,
        /// What it is here.
        gate: Gate,
    },
    /// The file was written by a version that this program does not know.
    #[error(
        "the backup {} has format version {found}; this program reads version {BACKUP_VERSION}. Use the program version \
         that wrote it", file.display()
    )]
    UnknownVersion {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The file is not what was written.
    #[error("the backup {} cannot be used, from byte offset {offset}: {why}. Take another backup", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// What should become the new directory is in use.
    #[error("{} is there already and is not empty: name a directory that does not exist", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// The new directory could not be opened.
    #[error("the new directory {}: {source}", dir.display())]
    Open {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// A slot could not be begun in the new directory.
    #[error("the new directory: {0}")]
    Slot(#[from] SlotError),
    /// Records were not taken by the new directory.
    #[error("the new directory: {0}")]
    Apply(#[from] ApplyError),
    /// The new directory's log failed.
    #[error("the new directory: {0}")]
    Log(#[from] LogFailed),
    /// What a slot became is not what it was.
    #[error(
        "slot {slot} has digest {have:#018x} in the new directory and had {wanted:#018x}: this is a bug of this program; \
         nothing was left behind"
    )]
    Mismatch {
        /// The slot.
        slot: Slot,
        /// Its digest in the new directory.
        have: u64,
        /// Its digest before.
        wanted: u64,
    },
}

impl BackupError {
    pub(crate) fn io<'a>(action: &'static str, file: &'a Path) -> impl FnOnce(io::Error) -> BackupError + 'a {
        move |source| BackupError::Io { action, file: file.to_path_buf(), source }
    }

    pub(super) fn fault(file: &Path, fault: BackupFault) -> BackupError {
        let file = file.to_path_buf();
        match fault {
            BackupFault::UnknownVersion(found) => BackupError::UnknownVersion { file, found },
            BackupFault::Invalid { offset, why } => BackupError::Damaged { file, offset, why },
        }
    }
}
