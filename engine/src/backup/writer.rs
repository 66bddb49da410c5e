//! Writing a backup file: beside its name, in large pieces, synced as it grows, and renamed when it is whole.
//!
//! Invariants: a file with the backup's own name has been synced whole, its footer last; what was begun and not finished
//! keeps the name with `.partial` and is written over by the next try; one writer per file, by a lock. Memory: one buffer of
//! [`BUFFER_BYTES`]; longer records are written from where they are.

use std::io;
use std::path::{Path, PathBuf};

use lockgate_runtime::{File, OpenOptions, fs, mutation};

use super::error::BackupError;
use super::format::{BackupFooter, BackupHeader, CHUNK_HEADER_BYTES, ChunkHeader, ChunkKind, SlotSection};
use crate::beside::{beside, folder_of};
use crate::segment::PinnedRange;
use crate::types::{RangeHeader, Slot, Version};

/// So much is gathered before it is written.
const BUFFER_BYTES: usize = 1 << 20;
/// The file is synced at latest after this many bytes: a larger heap of dirty pages would hold up the logs' syncs.
const SYNC_BYTES: u64 = 8 << 20;
/// What is behind the name of a file that is not whole yet.
pub const PARTIAL_SUFFIX: &str = ".partial";

/// A backup file that is being written.
pub(super) struct BackupWriter {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    buffer: Vec<u8>,
    /// Bytes of the file that were written.
    written: u64,
    synced: u64,
}

impl BackupWriter {
    pub(super) async fn create(path: &Path, header: &BackupHeader) -> Result<BackupWriter, BackupError> {
        if fs::exists(path).await {
            return Err(BackupError::Exists { file: path.to_path_buf() });
        }
        let partial = beside(path, PARTIAL_SUFFIX);
        let options = OpenOptions::new().write(true).create(true).exclusive_lock(true);
        let file = match File::open(&partial, &options).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(BackupError::Busy { file: partial });
            }
            Err(error) => return Err(BackupError::io("creating", &partial)(error)),
        };
        // Only with the lock: what another one writes must not be cut.
        let cut = OpenOptions::new().write(true).truncate(true);
        File::open(&partial, &cut).await.map_err(BackupError::io("emptying", &partial))?;
        let buffer = header.encode();
        Ok(BackupWriter { path: path.to_path_buf(), partial, file, buffer, written: 0, synced: 0 })
    }

    /// How long the file is so far.
    pub(super) fn len(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    pub(super) async fn begin_slot(&mut self, section: &SlotSection) -> Result<(), BackupError> {
        let payload = section.encode();
        let header =
            ChunkHeader::of_slot(ChunkKind::Slot, section.slot, section.version, payload.len(), self.len());
        self.push(header.encode(&payload), &payload).await
    }

    pub(super) async fn records(
        &mut self,
        slot: Slot,
        range: RangeHeader,
        records: PinnedRange,
    ) -> Result<(), BackupError> {
        let header = ChunkHeader::range(slot, range, records.len(), self.len()).encode(&records);
        if records.len() < BUFFER_BYTES {
            return self.push(header, &records).await;
        }
        self.buffer.extend_from_slice(&header);
        self.flush().await?;
        let bytes = records.len() as u64;
        let (result, _) = self.file.write_all_at(records, self.written).await;
        result.map_err(BackupError::io("writing", &self.partial))?;
        self.written += bytes;
        self.sync_some().await
    }

    pub(super) async fn end_slot(
        &mut self,
        slot: Slot,
        version: Version,
        is_whole: bool,
    ) -> Result<(), BackupError> {
        let kind = if is_whole { ChunkKind::Whole } else { ChunkKind::Left };
        let header = ChunkHeader::of_slot(kind, slot, version, 0, self.len());
        self.push(header.encode(&[]), &[]).await
    }

    /// Ends the file, makes it durable and gives it its name. Returns its length.
    pub(super) async fn finish(mut self, footer: &BackupFooter) -> Result<u64, BackupError> {
        let payload = footer.encode();
        let header = ChunkHeader::footer(payload.len(), self.len());
        self.push(header.encode(&payload), &payload).await?;
        self.flush().await?;
        sync(&self.file, &self.partial).await?;
        if fs::exists(&self.path).await {
            return Err(BackupError::Exists { file: self.path.clone() });
        }
        rename_durably(&self.partial, &self.path).await?;
        Ok(self.written)
    }

    /// Removes what was begun. What cannot be removed only takes room.
    pub(super) async fn abandon(self) {
        if let Err(error) = fs::remove_file(&self.partial).await {
            tracing::warn!(file = %self.partial.display(), %error, "a backup that was not finished could not be removed");
        }
    }

    async fn push(&mut self, header: [u8; CHUNK_HEADER_BYTES], payload: &[u8]) -> Result<(), BackupError> {
        self.buffer.extend_from_slice(&header);
        self.buffer.extend_from_slice(payload);
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush().await?;
            self.sync_some().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), BackupError> {
        let bytes = self.buffer.len() as u64;
        let buffer = std::mem::take(&mut self.buffer);
        let (result, mut buffer) = self.file.write_all_at(buffer, self.written).await;
        result.map_err(BackupError::io("writing", &self.partial))?;
        self.written += bytes;
        buffer.clear();
        self.buffer = buffer;
        Ok(())
    }

    async fn sync_some(&mut self) -> Result<(), BackupError> {
        if self.written - self.synced >= SYNC_BYTES {
            sync(&self.file, &self.partial).await?;
            self.synced = self.written;
        }
        Ok(())
    }
}

async fn sync(file: &File, path: &Path) -> Result<(), BackupError> {
    if mutation!("unsynced-backup") {
        return Ok(());
    }
    file.sync_data().await.map_err(BackupError::io("syncing", path))
}

/// Renames a file or a directory, and makes the new name durable.
pub(crate) async fn rename_durably(from: &Path, to: &Path) -> Result<(), BackupError> {
    fs::rename(from, to).await.map_err(BackupError::io("renaming", from))?;
    if mutation!("unsynced-backup-name") {
        return Ok(());
    }
    let folder = folder_of(to);
    fs::sync_dir(&folder).await.map_err(BackupError::io("syncing the directory", &folder))
}
