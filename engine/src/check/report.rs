//! What a check found.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::backup::BackupError;
use crate::checkpoint::LoadError;
use crate::error::OpenError;
use crate::log::RecoverError;
use crate::meta::{META_FILE, Meta, MetaError};
use crate::recovery::ReplayError;

/// Why a directory could not be checked or repaired. Says nothing of whether it is damaged.
#[derive(Debug, Error)]
pub enum CheckError {
    /// It is in use, not there, of another version, cannot be read, or needs more memory.
    #[error(transparent)]
    Open(OpenError),
    /// The new directory could not be made.
    #[error(transparent)]
    New(#[from] BackupError),
    /// Where a log's chains end cannot be told, and they are in different orders.
    #[error(
        "{} cannot be repaired: its meta file is lost, it was used with different numbers of cores, and {log} is damaged. In \
         which order its slots were written cannot be told any more", dir.display()
    )]
    Unordered {
        /// The directory.
        dir: PathBuf,
        /// The damaged log.
        log: String,
    },
}

/// One damaged place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// The file, or the directory where it is about all of it.
    pub file: PathBuf,
    /// Where in the file, in bytes.
    pub offset: Option<u64>,
    /// The position of the log that should be there.
    pub position: Option<u64>,
    /// What is wrong, in a sentence that names all of that.
    pub text: String,
}

/// What the meta file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaReport {
    /// The directory's id.
    pub directory_id: [u8; 16],
    /// The latest boot.
    pub boot: u64,
    /// What was written since this boot was still there when the latest one began.
    pub kept_since: u64,
}

impl MetaReport {
    pub(super) fn of(meta: &Meta) -> MetaReport {
        let &Meta { directory_id, boot, kept_since, .. } = meta;
        MetaReport { directory_id, boot, kept_since }
    }
}

/// The checkpoint that a start would begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointReport {
    /// Its number.
    pub number: u64,
    /// The boot that took it.
    pub boot: u64,
    /// When: milliseconds since 1970.
    pub taken_at_ms: u64,
    /// Slots in it.
    pub slots: u64,
    /// Data files.
    pub files: u64,
    /// Bytes of all data files.
    pub bytes: u64,
}

/// How a log ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// It was closed in order.
    Closed,
    /// Where an earlier start has accepted that it ends.
    Accepted,
    /// It was not closed: a crash, or a kill. All that was promised to anybody is there; what is said to lie at its end is not
    /// part of it.
    Open {
        /// The file in which it ends.
        file: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What lies there.
        why: String,
    },
    /// No batch was ever written to it.
    #[default]
    Empty,
    /// A later log has replaced it.
    LeftOver,
    /// Something is missing or changed that had been safe.
    Damaged,
}

/// One log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogReport {
    /// Its name.
    pub name: String,
    /// Its files.
    pub files: u64,
    /// Boots that have files of it.
    pub boots: u64,
    /// Frames that were read, up to the damage if there is any.
    pub frames: u64,
    /// Their payloads.
    pub payload_bytes: u64,
    /// The position at which it ends; 0 if it is damaged.
    pub end: u64,
    /// How it ends.
    pub verdict: Verdict,
    /// What is wrong with it.
    pub damage: Option<Damage>,
}

/// All slots together, recomputed from their records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSums {
    /// Slots that hold, or held, anything.
    pub slots: u64,
    /// Live keys.
    pub keys: u64,
    /// Bytes of their records.
    pub live_bytes: u64,
    /// Bytes of all records that a start would hold in memory.
    pub record_bytes: u64,
    /// The slots' digests, added up modulo 2^64.
    pub digest: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The directory.
    pub dir: PathBuf,
    /// `None`: it cannot be read.
    pub meta: Option<MetaReport>,
    /// `None`: there is none, or it cannot be read.
    pub checkpoint: Option<CheckpointReport>,
    /// In the order of their names. Without those of the cores where the checkpoint cannot be read: it says from where on they
    /// are kept.
    pub logs: Vec<LogReport>,
    /// `None`: the replay was not tried, or failed.
    pub slots: Option<SlotSums>,
    /// Files in the logs' folder that are no logs.
    pub other_files: Vec<String>,
    /// All that is wrong. Empty: the directory is fine.
    pub damage: Vec<Damage>,
}

impl CheckReport {
    /// Whether anything is wrong.
    pub fn is_damaged(&self) -> bool {
        !self.damage.is_empty()
    }
}

/// Tells damage from what says nothing of the directory.
pub(super) fn damage_of(error: OpenError, dir: &Path) -> Result<Damage, CheckError> {
    let text = error.to_string();
    let damage = |file: &Path, offset, position| {
        Ok(Damage { file: file.to_path_buf(), offset, position, text: text.clone() })
    };
    match &error {
        OpenError::Meta(MetaError::Corrupt { file, .. }) => damage(file, None, None),
        OpenError::Meta(MetaError::BetweenNames { .. }) => damage(dir, None, None),
        OpenError::Meta(MetaError::Missing { .. }) => damage(&dir.join(META_FILE), None, None),
        OpenError::Recover(RecoverError::Corrupt { file, offset, position, .. }) => {
            damage(file, Some(*offset), Some(position.0))
        }
        OpenError::Recover(RecoverError::Missing { file, .. })
        | OpenError::Checkpoint(LoadError::Missing { file, .. }) => damage(file, None, None),
        OpenError::Checkpoint(LoadError::Corrupt { file, offset, .. }) => damage(file, Some(*offset), None),
        OpenError::Recover(RecoverError::Visit { file, offset, source }) => {
            match source.downcast_ref::<ReplayError>() {
                Some(ReplayError::OutOfMemory { .. } | ReplayError::UnknownKind(_)) => {
                    Err(CheckError::Open(error))
                }
                _ => damage(file, Some(*offset), None),
            }
        }
        _ => Err(CheckError::Open(error)),
    }
}
