//! A backup of a directory that no process uses.

use std::path::Path;

use lockgate_runtime::Boxed;

use super::error::BackupError;
use super::writer::BackupWriter;
use super::{BackupFooter, BackupHeader, BackupOptions, BackupSummary, Work, section_of};
use crate::check::load::{Loaded, records_of};
use crate::types::{Slot, Version};

/// Writes a backup of all slots that the directory `dir` holds, or of those that are asked for, to `path`, which must not
/// exist. The directory is only read, and is refused while a process uses it. To be awaited on a core.
///
/// All of its data is held in memory meanwhile. Which of a cluster member's slots it served cannot be told: what it followed
/// or imported is in it, too.
pub fn back_up_directory<'a>(
    dir: &'a Path,
    path: &'a Path,
    memory_bytes_max: u64,
    options: &'a BackupOptions,
) -> Boxed<'a, Result<BackupSummary, BackupError>> {
    Box::pin(async move {
        let failed = |source| BackupError::Open { dir: dir.to_path_buf(), source };
        let loaded = Loaded::recover(dir, memory_bytes_max).await.map_err(failed)?;
        let meta = loaded.directory.meta();
        let began_ms = lockgate_runtime::unix_ms();
        let header = BackupHeader { directory_id: meta.directory_id, boot: meta.boot, began_ms };
        let mut wanted: Vec<Slot> = options.slots.clone().unwrap_or_else(|| Slot::all().collect());
        wanted.sort_unstable();
        wanted.dedup();
        let mut writer = BackupWriter::create(path, &header).await?;
        let mut work = Work::new(wanted.len(), options);
        for slot in wanted {
            if let Err(error) = copy_slot(&loaded, slot, &mut writer, &mut work).await {
                writer.abandon().await;
                return Err(error);
            }
            work.progress.slots_done += 1;
            work.tell(&writer);
        }
        let footer = BackupFooter { ended_ms: lockgate_runtime::unix_ms(), ..work.footer };
        let bytes = writer.finish(&footer).await?;
        Ok(BackupSummary { file: path.to_path_buf(), bytes, header, footer })
    })
}

async fn copy_slot(
    loaded: &Loaded,
    slot: Slot,
    writer: &mut BackupWriter,
    work: &mut Work<'_>,
) -> Result<(), BackupError> {
    let Some(cell) = loaded.slots.known(slot) else { return Ok(()) };
    let (status, records) = {
        let held = cell.lock();
        (held.status(), records_of(&held))
    };
    if status.version == Version::ZERO {
        return Ok(());
    }
    writer.begin_slot(&section_of(slot, &status)).await?;
    for (range, records) in records {
        work.footer.record_bytes += records.len() as u64;
        writer.records(slot, range, records).await?;
        work.throttle(writer.len()).await;
    }
    writer.end_slot(slot, status.version, true).await?;
    work.footer.slots += 1;
    work.footer.keys += status.keys;
    Ok(())
}
