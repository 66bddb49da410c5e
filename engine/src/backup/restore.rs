//! A new data directory made of a backup file.
//!
//! Invariants: the whole file is verified before anything is made; each slot's digest is compared again with what the new
//! directory has; the directory has its name when it is whole and durable, and not before.

use std::path::Path;

use lockgate_runtime::Boxed;

use super::decode::BackupPart;
use super::error::BackupError;
use super::reader::{BackupReader, verify};
use super::target::{Target, TargetOptions, check_is_free, name_durably};
use super::{BackupFooter, BackupProgress, ProgressFn};
use crate::builder::MEMORY_BYTES_MAX_DEFAULT;
use crate::log::FILE_BYTES_DEFAULT;

/// How a backup becomes a directory.
#[derive(Clone)]
pub struct RestoreOptions {
    /// The cores that the new directory's logs are made for. It may be opened with another number.
    pub cores: usize,
    /// The memory that the data may take on the way: all of it is held once.
    pub memory_bytes_max: u64,
    /// The size of a log file of the new directory.
    pub log_file_bytes: u64,
    /// Told after each piece, and behind the verification from the beginning again.
    pub progress: Option<ProgressFn>,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        RestoreOptions {
            cores: 1,
            memory_bytes_max: MEMORY_BYTES_MAX_DEFAULT,
            log_file_bytes: FILE_BYTES_DEFAULT,
            progress: None,
        }
    }
}

/// Makes the directory `dir`, which must not exist or be empty, of the backup `file`. To be awaited on a core of a runtime
/// with at least one core; more of the directory's logs than it has cores are not made.
pub fn restore<'a>(
    file: &'a Path,
    dir: &'a Path,
    options: &'a RestoreOptions,
) -> Boxed<'a, Result<BackupFooter, BackupError>> {
    Box::pin(async move {
        check_is_free(dir).await?;
        verify(file, options.progress.as_ref()).await?;
        let RestoreOptions { cores, memory_bytes_max, log_file_bytes, .. } = *options;
        let target = Target::create(dir, &TargetOptions { cores, memory_bytes_max, log_file_bytes }).await?;
        let footer = match fill(file, &target, options.progress.as_ref()).await {
            Ok(footer) => footer,
            Err(error) => {
                target.abandon().await;
                return Err(error);
            }
        };
        let building = target.finish().await?;
        name_durably(&building, dir).await?;
        Ok(footer)
    })
}

async fn fill(
    file: &Path,
    target: &Target,
    progress: Option<&ProgressFn>,
) -> Result<BackupFooter, BackupError> {
    let mut reader = BackupReader::open(file).await?;
    let (mut slots_done, mut footer) = (0, None);
    while let Some(part) = reader.next_part().await? {
        match part {
            BackupPart::SlotBegins(section) => target.begin_slot(section.slot)?,
            BackupPart::Records { slot, range } => {
                target.records(slot, range.base, reader.records()).await?;
            }
            BackupPart::SlotEnds(section) => {
                target.end_slot(section.slot, section.version.counter, section.digest)?;
                slots_done += 1;
            }
            BackupPart::SlotLeft(section) => {
                target.leave_out(section.slot)?;
                slots_done += 1;
            }
            BackupPart::End(found) => footer = Some(found),
        }
        if let Some(tell) = progress {
            tell(BackupProgress { slots_done, slots: 0, bytes: reader.offset() });
        }
    }
    Ok(footer.expect("nothing is behind the end but the end"))
}
