//! The desk: what it takes to write batches, as long as they fit the file that is being written.
//!
//! Invariants:
//! - There is one, and whoever has it is the writer: nobody else writes to the file or syncs it. It is handed over whole.
//! - Batches are written in order: [`Desk::seal`] asserts it.

use std::io;

use super::error::LogFailed;
use super::files::{FileFault, PreparedFile};
use super::format::{BATCH_HEADER_BYTES, BatchHeader, FILE_HEADER_BYTES, batch_file_bytes};
use super::shared::{Batch, Shared};

/// The file that is being written, and where in it.
pub(super) struct Desk {
    pub(super) file: PreparedFile,
    /// Where the next batch goes in `file`.
    pub(super) offset: u64,
    /// When the oldest unsynced batch must be synced; `None` when everything written is synced.
    pub(super) sync_due_at_ns: Option<u64>,
    boot: u64,
}

impl Desk {
    pub(super) fn new(boot: u64, file: PreparedFile) -> Desk {
        Desk { file, offset: FILE_HEADER_BYTES as u64, sync_due_at_ns: None, boot }
    }

    /// Whether a batch with so much in it fits the file.
    pub(super) fn has_room(&self, payload_bytes: usize) -> bool {
        self.offset + batch_file_bytes(payload_bytes) as u64 <= self.file.capacity_bytes
    }

    /// The next batch as it is to be written at `offset`.
    pub(super) fn seal(&self, shared: &Shared, batch: Batch) -> Vec<u8> {
        assert_eq!(batch.start, shared.written.get(), "log {}: batches out of order", shared.name);
        let mut bytes = batch.bytes;
        let header = BatchHeader {
            salt: self.file.salt,
            boot: self.boot,
            position: batch.start,
            synced: shared.synced.get(),
            // Checked when room was reserved: a batch is within u32 by the format's constants.
            payload_bytes: (bytes.len() - BATCH_HEADER_BYTES) as u32,
            frames: batch.frames,
        };
        header.seal(&mut bytes);
        bytes
    }

    /// So much was written at `offset`.
    pub(super) fn advance(&mut self, shared: &Shared, file_bytes: u64) {
        self.offset += file_bytes;
        self.tell_room(shared);
    }

    /// Goes on in the next file.
    pub(super) fn enter(&mut self, shared: &Shared, file: PreparedFile) {
        self.file = file;
        self.offset = FILE_HEADER_BYTES as u64;
        self.tell_room(shared);
    }

    pub(super) fn tell_room(&self, shared: &Shared) {
        let room_bytes = self.file.capacity_bytes.saturating_sub(self.offset);
        shared.space.set_room(room_bytes, self.file.capacity_bytes);
    }

    pub(super) fn failed(&self, shared: &Shared, action: &'static str, source: io::Error) -> LogFailed {
        let fault = FileFault { action, file: self.file.path.clone(), offset: self.offset, source };
        fault.into_failed(&shared.name, shared.written.get())
    }
}
