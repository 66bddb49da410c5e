//! Reading one log file: the judgement of the bytes at one offset.
//!
//! Invariants:
//! - Memory is bounded (see `ahead.rs`): a batch's length is compared with the format's limit and with the file's length
//!   before room for it is made.
//! - Nothing is given out of a batch whose checksum has not been verified.
//! - Reading changes nothing on the disk.

use std::ops::Range;
use std::path::PathBuf;

use lockgate_runtime::mutation;

use super::ahead::Ahead;
use super::error::RecoverError;
use super::format::{
    BATCH_HEADER_BYTES, BATCH_PAYLOAD_BYTES_MAX, BatchHeader, FILE_HEADER_BYTES, FORMAT_VERSION, FileHeader,
    FileHeaderFault, SECTOR_BYTES, batch_file_bytes,
};

/// What a file's header must say for the file to belong to a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) name_hash: u32,
    pub(super) boot: u64,
    pub(super) seq: u32,
}

/// What lies at an offset of a file.
pub(super) enum Found {
    /// A valid batch; its payload is at this range of [`LogFile::window`].
    Batch(BatchHeader, Range<usize>),
    /// Nothing was written here, or nothing is left of it.
    Nothing(&'static str),
    /// Something that is not a valid batch, and what is wrong with it.
    Invalid(&'static str),
}

/// An open log file of a chain.
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    /// `None` when the file's header is not valid (its preparation was cut short, or it is damaged).
    pub(super) header: Option<FileHeader>,
    boot: u64,
    bytes: Ahead,
}

impl LogFile {
    /// Opens a file and reads its header. A header of another log or of an unknown version is an error; one that is
    /// not valid at all is for the caller to judge.
    pub(super) async fn open(path: PathBuf, identity: Identity) -> Result<LogFile, RecoverError> {
        let bytes = match Ahead::open(&path).await {
            Ok(bytes) => bytes,
            Err(source) => return Err(RecoverError::Io { file: path, offset: 0, source }),
        };
        let boot = identity.boot;
        let mut log_file = LogFile { path, header: None, boot, bytes };
        let header = match log_file.bytes(0, FILE_HEADER_BYTES).await? {
            Some(range) => FileHeader::decode(&log_file.window()[range]),
            None => Err(FileHeaderFault::Invalid),
        };
        match header {
            Ok(header)
                if header.name_hash != identity.name_hash
                    || header.boot != boot
                    || header.seq != identity.seq =>
            {
                Err(RecoverError::Corrupt {
                    file: log_file.path,
                    offset: 0,
                    position: super::LogPosition(header.chain_start),
                    why: format!(
                        "its header belongs to another log or place (boot {:#x}, file {:#x})",
                        header.boot, header.seq
                    ),
                    evidence: "the header's checksum is right, so the file was renamed or copied here".into(),
                })
            }
            Ok(header) => {
                log_file.header = Some(header);
                Ok(log_file)
            }
            Err(FileHeaderFault::UnknownVersion(found)) => {
                Err(RecoverError::UnknownVersion { file: log_file.path, found, supported: FORMAT_VERSION })
            }
            Err(FileHeaderFault::Invalid) => Ok(log_file),
        }
    }

    /// The window's bytes, for ranges that were found.
    pub(super) fn window(&self) -> &[u8] {
        self.bytes.window()
    }

    /// Makes durable what was read, where it was in the system's cache only.
    pub(super) async fn sync(&self) -> Result<(), RecoverError> {
        if mutation!("unsynced-recovered-end") {
            return Ok(());
        }
        let (result, offset) = (self.bytes.file().sync_data().await, self.bytes.len());
        result.map_err(|source| RecoverError::Io { file: self.path.clone(), offset, source })
    }

    /// Judges the bytes at `offset`. The batch may be at any position; the caller knows which it expects.
    pub(super) async fn batch_at(&mut self, offset: u64) -> Result<Found, RecoverError> {
        let Some(at) = self.bytes(offset, BATCH_HEADER_BYTES).await? else {
            return Ok(Found::Nothing("the file ends here"));
        };
        let bytes = &self.window()[at];
        let Some(header) = BatchHeader::decode(bytes) else {
            return Ok(match bytes.iter().all(|byte| *byte == 0) {
                true => Found::Nothing("there is no batch here"),
                false => Found::Invalid("this is not the header of a batch"),
            });
        };
        if header.boot != self.boot {
            return Ok(Found::Invalid("the batch belongs to another boot"));
        }
        if self.header.is_some_and(|file| file.salt != header.salt) {
            return Ok(Found::Nothing("what is here was written when the file had another place"));
        }
        let payload_bytes = header.payload_bytes as usize;
        if payload_bytes > BATCH_PAYLOAD_BYTES_MAX
            || header.end().is_none()
            || header.synced > header.position
        {
            return Ok(Found::Invalid("the header of the batch is impossible"));
        }
        let Some(range) = self.bytes(offset, BATCH_HEADER_BYTES + payload_bytes).await? else {
            return Ok(Found::Invalid("the batch reaches beyond the end of the file"));
        };
        if !BatchHeader::verify(&self.window()[range.clone()]) {
            return Ok(Found::Invalid("the checksum of the batch does not match"));
        }
        Ok(Found::Batch(header, range.start + BATCH_HEADER_BYTES..range.end))
    }

    /// Looks from `offset` on for a valid batch after `position`, and returns it with its offset.
    pub(super) async fn find_batch_after(
        &mut self,
        mut offset: u64,
        position: u64,
    ) -> Result<Option<(u64, BatchHeader)>, RecoverError> {
        debug_assert!(offset.is_multiple_of(SECTOR_BYTES as u64));
        while offset < self.bytes.len() {
            if let Found::Batch(header, _) = self.batch_at(offset).await?
                && header.position >= position
            {
                return Ok(Some((offset, header)));
            }
            offset += SECTOR_BYTES as u64;
        }
        Ok(None)
    }

    /// The range of the window with `len` bytes from `offset`; `None` when the file is shorter.
    async fn bytes(&mut self, offset: u64, len: usize) -> Result<Option<Range<usize>>, RecoverError> {
        let found = self.bytes.bytes(offset, len).await;
        found.map_err(|source| RecoverError::Io { file: self.path.clone(), offset, source })
    }
}

/// Offset behind a batch that was found at `offset`.
pub(super) fn next_offset(offset: u64, header: &BatchHeader) -> u64 {
    offset + batch_file_bytes(header.payload_bytes as usize) as u64
}
