//! The writer: one task per log, on the core that created it. Takes batches, writes them, syncs.
//!
//! Invariants:
//! - Batches are written in order, one at a time; `written` advances after each.
//! - A sync covers what was written before it began, and nothing else. It follows a group of batches when somebody asked
//!   for a position beyond `synced`, when the flush interval has passed, or after every group if so configured. All who
//!   appended while the previous sync ran share the next one: that is the group commit.
//! - Before the first batch goes to a new file, the old file is synced: a batch in a later file proves that all earlier
//!   files were on the disk.
//! - The first error ends the log, except that a full disk is waited for. So does the end of this task for whatever reason: nobody waits for a dead writer.

use std::rc::Rc;
use std::time::Duration;

use lockgate_runtime::mutation;
use lockgate_runtime::sync::Arc;

use super::LogConfig;
use super::error::{LogFailed, StopCause};
use super::files::{FileFault, FileMaker, PreparedFile, Shelf, keep_one_ready};
use super::format::{BATCH_HEADER_BYTES, BatchHeader, FILE_HEADER_BYTES, LogPosition, batch_file_bytes};
use super::recycle::ChainFiles;
use super::shared::{Batch, Rest, Shared};
use super::space::{Retry, Who, is_no_space};

/// Bytes written before it is looked whether a sync is due: those who wait for it do not wait for everything queued.
const GROUP_BYTES: usize = 8 << 20;

/// Spawns the writer and the maker of its files on the current core.
pub(super) fn spawn(cfg: &LogConfig, shared: Arc<Shared>, maker: FileMaker, first: PreparedFile) {
    let shelf = Rc::new(Shelf::new());
    let writer = Writer {
        boot: cfg.boot,
        flush_interval_ns: u64::try_from(cfg.flush_interval.as_nanos()).unwrap_or(u64::MAX),
        sync_every_batch: cfg.sync_every_batch,
        shelf: shelf.clone(),
        chain: maker.chain().clone(),
        file: first,
        offset: FILE_HEADER_BYTES as u64,
        _end: EndGuard(shared.clone()),
        sync_due_at_ns: None,
        shared: shared.clone(),
    };
    drop(lockgate_runtime::spawn(keep_one_ready(maker, shelf, shared)));
    drop(lockgate_runtime::spawn(writer.run()));
}

struct Writer {
    shared: Arc<Shared>,
    shelf: Rc<Shelf>,
    chain: Arc<ChainFiles>,
    boot: u64,
    flush_interval_ns: u64,
    sync_every_batch: bool,
    file: PreparedFile,
    /// Where the next batch goes in `file`.
    offset: u64,
    /// Part of the writer, so that it also acts when the task is dropped before it was ever polled. Only the first
    /// cause of a log's end counts, so it changes nothing after an orderly end.
    _end: EndGuard,
    /// When the oldest unsynced batch must be synced; `None` when everything written is synced.
    sync_due_at_ns: Option<u64>,
}

/// Ends the log when the writer's task is dropped before its end: its core was shut down.
struct EndGuard(Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.0.stop(LogFailed::new(StopCause::CoreStopped {
            log: self.0.name.to_string(),
            position: LogPosition(self.0.written.get()),
        }));
    }
}

impl Writer {
    async fn run(mut self) {
        self.tell_room();
        let cause = match self.drive().await {
            Ok(()) => LogFailed::new(StopCause::Closed {
                log: self.shared.name.to_string(),
                position: self.shared.appended(),
            }),
            Err(failed) => {
                tracing::error!(error = %failed, "the log stopped");
                self.shelf.stop();
                failed
            }
        };
        self.shared.stop(cause);
    }

    async fn drive(&mut self) -> Result<(), LogFailed> {
        loop {
            self.write_group().await?;
            if self.sync_is_due() {
                self.sync().await?;
            }
            let work = self.shared.work.listen();
            match self.shared.rest() {
                Rest::Work => {
                    if let Some(cause) = self.shared.stopped() {
                        return Err(cause);
                    }
                }
                Rest::Idle => {
                    self.sleep(work).await;
                    self.shared.resume();
                }
                Rest::Close => return self.finish().await,
            }
        }
    }

    /// Waits for work, or until the flush interval has passed.
    async fn sleep(&self, work: lockgate_runtime::Listen) {
        match self.sync_due_at_ns {
            None => work.await,
            Some(due_at_ns) => {
                let left = Duration::from_nanos(due_at_ns.saturating_sub(lockgate_runtime::now_ns()));
                // Either way the loop looks again at what there is to do.
                let _ = lockgate_runtime::timeout(left, work).await;
            }
        }
    }

    async fn write_group(&mut self) -> Result<(), LogFailed> {
        let mut group_bytes = 0;
        while group_bytes < GROUP_BYTES
            && let Some(batch) = self.shared.take_batch()
        {
            group_bytes += batch.payload_bytes();
            self.write(batch).await?;
        }
        Ok(())
    }

    async fn write(&mut self, batch: Batch) -> Result<(), LogFailed> {
        let payload_bytes = batch.payload_bytes();
        let file_bytes = batch_file_bytes(payload_bytes) as u64;
        assert_eq!(batch.start, self.shared.written.get(), "log {}: batches out of order", self.shared.name);
        if self.offset + file_bytes > self.file.capacity_bytes {
            self.next_file(file_bytes).await?;
        }
        let buffer = self.write_batch(batch.start, batch.frames, batch.bytes).await?;
        if self.sync_due_at_ns.is_none() {
            self.sync_due_at_ns = Some(lockgate_runtime::now_ns().saturating_add(self.flush_interval_ns));
        }
        self.shared.batch_written(payload_bytes, buffer);
        Ok(())
    }

    async fn write_batch(
        &mut self,
        position: u64,
        frames: u32,
        mut bytes: Vec<u8>,
    ) -> Result<Vec<u8>, LogFailed> {
        let payload_bytes = bytes.len() - BATCH_HEADER_BYTES;
        let header = BatchHeader {
            salt: self.file.salt,
            boot: self.boot,
            position,
            synced: self.shared.synced.get(),
            // Checked when room was reserved: a batch is within u32 by the format's constants.
            payload_bytes: payload_bytes as u32,
            frames,
        };
        header.seal(&mut bytes);
        let file_bytes = bytes.len() as u64;
        let mut retry = Retry::new();
        let buffer = loop {
            let (result, buffer) = self.file.file.write_all_at(bytes, self.offset).await;
            match result {
                Ok(()) => break buffer,
                // What is there of the batch is written anew. It was in no sync.
                Err(error) if is_no_space(&error) && self.wait_for_space(&mut retry, &error).await => {}
                Err(error) => return Err(self.failed("writing", error)),
            }
            bytes = buffer;
        };
        self.offset += file_bytes;
        self.tell_room();
        if self.shared.space.got(Who::Writer) {
            tracing::info!(log = %self.shared.name, "the disk has space again, the log goes on");
        }
        Ok(buffer)
    }

    /// The file could not be extended. Waits for the next try; false if the log is closed meanwhile.
    async fn wait_for_space(&self, retry: &mut Retry, error: &std::io::Error) -> bool {
        let space = &self.shared.space;
        let sooner = space.changed.listen();
        space.set_room(0, self.file.capacity_bytes);
        if space.run_out(Who::Writer) {
            tracing::warn!(log = %self.shared.name, %error, "the disk is full: data is refused until there is space again");
        }
        if self.shared.is_refusing() {
            return false;
        }
        retry.wait(sooner).await;
        true
    }

    fn tell_room(&self) {
        let room_bytes = self.file.capacity_bytes.saturating_sub(self.offset);
        self.shared.space.set_room(room_bytes, self.file.capacity_bytes);
    }

    /// Goes on in the next file, which must hold a batch of `file_bytes`.
    async fn next_file(&mut self, file_bytes: u64) -> Result<(), LogFailed> {
        if self.shared.written.get() > self.shared.synced.get() {
            self.sync().await?;
        }
        let Some(mut next) = self.shelf.take().await else {
            return Err(match self.shelf.no_space() {
                Some(fault) => fault.into_failed(&self.shared.name, self.shared.written.get()),
                None => self.shared.refusal(),
            });
        };
        // An oversized batch gets the file for itself. Written once and synced once, it gains nothing from zeros.
        next.capacity_bytes = next.capacity_bytes.max(FILE_HEADER_BYTES as u64 + file_bytes);
        self.chain.enter(next.seq, self.shared.written.get());
        self.file = next;
        self.offset = FILE_HEADER_BYTES as u64;
        self.tell_room();
        Ok(())
    }

    fn sync_is_due(&self) -> bool {
        match self.sync_due_at_ns {
            None => false,
            Some(due_at_ns) => {
                self.sync_every_batch
                    || self.shared.sync_is_wanted()
                    || lockgate_runtime::now_ns() >= due_at_ns
            }
        }
    }

    async fn sync(&mut self) -> Result<(), LogFailed> {
        let covered = self.shared.written.get();
        let began_ns = lockgate_runtime::now_ns();
        let mut result = match mutation!("unsynced-log-batch") {
            true => Ok(()),
            false => self.file.file.sync_data().await,
        };
        if result.is_err() && mutation!("retry-after-failed-sync") {
            result = self.file.file.sync_data().await;
        }
        result.map_err(|error| self.failed("syncing", error))?;
        let elapsed_us = (lockgate_runtime::now_ns() - began_ns) / 1_000;
        let bytes = covered - self.shared.synced.get();
        tracing::trace!(log = %self.shared.name, bytes, elapsed_us, "synced");
        self.sync_due_at_ns = None;
        self.shared.advance_synced(covered);
        Ok(())
    }

    /// Everything is written: syncs it, and seals the chain, so that damage to its last batch is told from a torn end.
    async fn finish(&mut self) -> Result<(), LogFailed> {
        if self.shared.written.get() > self.shared.synced.get() {
            self.sync().await?;
        }
        if self.offset + batch_file_bytes(0) as u64 <= self.file.capacity_bytes {
            let end = self.shared.written.get();
            self.write_batch(end, 0, vec![0; BATCH_HEADER_BYTES]).await?;
            self.sync().await?;
        }
        self.shelf.clear().await;
        Ok(())
    }

    fn failed(&self, action: &'static str, source: std::io::Error) -> LogFailed {
        let fault = FileFault { action, file: self.file.path.clone(), offset: self.offset, source };
        fault.into_failed(&self.shared.name, self.shared.written.get())
    }
}
