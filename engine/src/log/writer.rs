//! The writer: one task per log, on the core that created it. Takes batches, writes them, syncs.
//!
//! The task has the [`Desk`] while it works; while it rests, a thread that waits for a sync may take it and do the same
//! (see `lead`).
//!
//! Invariants:
//! - Batches are written in order, one at a time; `written` advances after each.
//! - A sync covers what was written before it began, and nothing else. It follows a group of batches when somebody asked
//!   for a position beyond `synced`, when the flush interval has passed, or after every group if so configured. All who
//!   appended while the previous sync ran share the next one: that is the group commit.
//! - Before the first batch goes to a new file, the old file is synced: a batch in a later file proves that all earlier
//!   files were on the disk.
//! - The first error ends the log, except that a full disk is waited for. So does the end of this task for whatever reason: nobody waits for a dead writer.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::{Reached, WriteThenSyncError, mutation};

use super::LogConfig;
use super::desk::Desk;
use super::error::{LogFailed, StopCause};
use super::files::{FileMaker, PreparedFile, Shelf, keep_one_ready};
use super::format::{FILE_HEADER_BYTES, LogPosition, batch_file_bytes};
use super::outside::{now_ns, timeout};
use super::recycle::ChainFiles;
use super::shared::{Batch, Rest, Shared};
use super::space::{Retry, Who, is_no_space};

/// Bytes written before it is looked whether a sync is due: those who wait for it do not wait for everything queued.
pub(super) const GROUP_BYTES: usize = 8 << 20;

/// How long after a batch that filled its buffer the memory of buffers is given back: who comes again within it pays for no
/// new pages.
const BURSTS_APART_NS: u64 = 1_000_000_000;

/// Spawns the writer and the maker of its files on the current core.
pub(super) fn spawn(cfg: &LogConfig, shared: Arc<Shared>, maker: FileMaker, first: PreparedFile) {
    let shelf = Rc::new(Shelf::new());
    let task = task(cfg, shared.clone(), shelf.clone(), maker.chain().clone(), first);
    drop(lockgate_runtime::spawn(keep_one_ready(maker, shelf, shared)));
    drop(lockgate_runtime::spawn(task));
}

/// The writer's task.
pub(super) fn task(
    cfg: &LogConfig,
    shared: Arc<Shared>,
    shelf: Rc<Shelf>,
    chain: Arc<ChainFiles>,
    first: PreparedFile,
) -> impl Future<Output = ()> + use<> {
    let writer = Writer {
        flush_interval_ns: u64::try_from(cfg.flush_interval.as_nanos()).unwrap_or(u64::MAX),
        sync_every_batch: cfg.sync_every_batch,
        shelf,
        chain,
        _end: EndGuard(shared.clone()),
        reached: Cell::new(None),
        give_back_at_ns: Cell::new(None),
        shared,
    };
    writer.run(Desk::new(cfg.boot, first))
}

struct Writer {
    shared: Arc<Shared>,
    shelf: Rc<Shelf>,
    chain: Arc<ChainFiles>,
    flush_interval_ns: u64,
    sync_every_batch: bool,
    /// Part of the writer, so that it also acts when the task is dropped before it was ever polled. Only the first
    /// cause of a log's end counts, so it changes nothing after an orderly end.
    _end: EndGuard,
    /// Who waited for the last sync and is yet to be woken. To wake a sleeping thread takes long: it is done while the next
    /// batch is on its way to the disk, if there is one.
    reached: Cell<Option<Reached>>,
    /// When buffers give their memory back, if one was filled.
    give_back_at_ns: Cell<Option<u64>>,
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

/// The known bug of all syncs of batches but those that are one with the write.
fn leaves_syncs_out() -> bool {
    mutation!("unsynced-log-batch")
}

impl Writer {
    async fn run(self, desk: Desk) {
        desk.tell_room(&self.shared);
        let cause = match self.drive(desk).await {
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

    async fn drive(&self, mut desk: Desk) -> Result<(), LogFailed> {
        loop {
            self.write_group(&mut desk).await?;
            if self.sync_is_due(&desk) {
                self.sync(&mut desk).await?;
            }
            drop(self.reached.take());
            let work = self.shared.work.listen();
            let due_at_ns = desk.sync_due_at_ns;
            desk = match self.shared.rest(desk) {
                Rest::Work(desk) => {
                    if let Some(cause) = self.shared.stopped() {
                        return Err(cause);
                    }
                    desk
                }
                Rest::Idle { is_filled } => {
                    if is_filled {
                        self.give_back_at_ns.set(Some(now_ns() + BURSTS_APART_NS));
                    }
                    let at_ns = due_at_ns.into_iter().chain(self.give_back_at_ns.get()).min();
                    self.sleep(work, at_ns).await;
                    if self.give_back_at_ns.get().is_some_and(|at_ns| at_ns <= now_ns()) {
                        self.give_back_at_ns.set(None);
                        self.shared.give_back_spare();
                    }
                    self.resume().await?
                }
                Rest::Close(desk) => return self.finish(desk).await,
            };
        }
    }

    /// Waits for work, or until it is time for something.
    async fn sleep(&self, work: lockgate_runtime::Listen, due_at_ns: Option<u64>) {
        match due_at_ns {
            None => work.await,
            Some(due_at_ns) => {
                let left = Duration::from_nanos(due_at_ns.saturating_sub(now_ns()));
                // Either way the loop looks again at what there is to do.
                let _ = timeout(left, work).await;
            }
        }
    }

    /// Takes the desk again; waits for a thread that leads to leave it.
    async fn resume(&self) -> Result<Desk, LogFailed> {
        loop {
            let work = self.shared.work.listen();
            if let Some(desk) = self.shared.resume() {
                return Ok(desk);
            }
            if let Some(cause) = self.shared.stopped() {
                return Err(cause);
            }
            work.await;
        }
    }

    async fn write_group(&self, desk: &mut Desk) -> Result<(), LogFailed> {
        let mut group_bytes = 0;
        while group_bytes < GROUP_BYTES
            && let Some((batch, then_sync)) = self.shared.take_batch()
        {
            group_bytes += batch.payload_bytes();
            self.write(desk, batch, then_sync && !leaves_syncs_out()).await?;
        }
        Ok(())
    }

    async fn write(&self, desk: &mut Desk, batch: Batch, then_sync: bool) -> Result<(), LogFailed> {
        let payload_bytes = batch.payload_bytes();
        if !desk.has_room(payload_bytes) {
            self.next_file(desk, batch_file_bytes(payload_bytes) as u64).await?;
        }
        let is_left_out = then_sync && mutation!("unsynced-awaited-batch");
        self.write_batch(desk, batch, then_sync && !is_left_out).await?;
        if then_sync {
            self.synced(desk);
        } else if desk.sync_due_at_ns.is_none() {
            desk.sync_due_at_ns = Some(now_ns().saturating_add(self.flush_interval_ns));
        }
        Ok(())
    }

    async fn write_batch(&self, desk: &mut Desk, batch: Batch, then_sync: bool) -> Result<(), LogFailed> {
        let payload_bytes = batch.payload_bytes();
        let mut bytes = desk.seal(&self.shared, batch);
        let file_bytes = bytes.len() as u64;
        let mut retry = Retry::new();
        loop {
            let file = &desk.file.file;
            let (error, buffer) = if then_sync {
                let shared = self.shared.clone();
                let written = move |buffer| shared.batch_written(payload_bytes, buffer);
                let done = file.write_all_at_then_sync(bytes, desk.offset, written);
                match join(done, self.wake_reached()).await.0 {
                    Ok(()) => break,
                    Err(WriteThenSyncError::Write(error, buffer)) => (error, buffer),
                    Err(WriteThenSyncError::Sync(_)) if mutation!("retry-after-failed-sync") => {
                        self.sync(desk).await?;
                        break;
                    }
                    Err(WriteThenSyncError::Sync(error)) => {
                        return Err(desk.failed(&self.shared, "syncing", error));
                    }
                }
            } else {
                match join(file.write_all_at(bytes, desk.offset), self.wake_reached()).await.0 {
                    (Ok(()), buffer) => {
                        self.shared.batch_written(payload_bytes, buffer);
                        break;
                    }
                    (Err(error), buffer) => (error, buffer),
                }
            };
            // What is there of the batch is written anew. It was in no sync.
            if !is_no_space(&error) || !self.wait_for_space(desk, &mut retry, &error).await {
                return Err(desk.failed(&self.shared, "writing", error));
            }
            bytes = buffer;
        }
        desk.advance(&self.shared, file_bytes);
        if self.shared.space.got(Who::Writer) {
            tracing::info!(log = %self.shared.name, "the disk has space again, the log goes on");
        }
        Ok(())
    }

    /// The file could not be extended. Waits for the next try; false if the log is closed meanwhile.
    async fn wait_for_space(&self, desk: &Desk, retry: &mut Retry, error: &std::io::Error) -> bool {
        let space = &self.shared.space;
        let sooner = space.changed.listen();
        space.set_room(0, desk.file.capacity_bytes);
        if space.run_out(Who::Writer) {
            tracing::warn!(log = %self.shared.name, %error, "the disk is full: data is refused until there is space again");
        }
        if self.shared.is_refusing() {
            return false;
        }
        retry.wait(sooner).await;
        true
    }

    /// Goes on in the next file, which must hold a batch of `file_bytes`.
    async fn next_file(&self, desk: &mut Desk, file_bytes: u64) -> Result<(), LogFailed> {
        // It may take long to come, on a full disk for ever.
        drop(self.reached.take());
        if self.shared.written.get() > self.shared.synced.get() {
            self.sync(desk).await?;
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
        desk.enter(&self.shared, next);
        Ok(())
    }

    fn sync_is_due(&self, desk: &Desk) -> bool {
        match desk.sync_due_at_ns {
            None => false,
            Some(due_at_ns) => self.sync_every_batch || self.shared.sync_is_wanted() || now_ns() >= due_at_ns,
        }
    }

    async fn sync(&self, desk: &mut Desk) -> Result<(), LogFailed> {
        let mut result = match leaves_syncs_out() {
            true => Ok(()),
            false => desk.file.file.sync_data().await,
        };
        if result.is_err() && mutation!("retry-after-failed-sync") {
            result = desk.file.file.sync_data().await;
        }
        result.map_err(|error| desk.failed(&self.shared, "syncing", error))?;
        self.synced(desk);
        Ok(())
    }

    async fn wake_reached(&self) {
        drop(self.reached.take());
    }

    /// What is written was synced: nobody but this task has written since that began.
    fn synced(&self, desk: &mut Desk) {
        let covered = self.shared.written.get();
        let bytes = covered - self.shared.synced.get();
        tracing::trace!(log = %self.shared.name, bytes, "synced");
        desk.sync_due_at_ns = None;
        self.reached.set(Some(self.shared.raise_synced(covered)));
    }

    /// Everything is written: syncs it, and seals the chain, so that damage to its last batch is told from a torn end.
    async fn finish(&self, mut desk: Desk) -> Result<(), LogFailed> {
        if self.shared.written.get() > self.shared.synced.get() {
            self.sync(&mut desk).await?;
        }
        if desk.has_room(0) {
            self.write_batch(&mut desk, Batch::empty(self.shared.written.get()), false).await?;
            self.sync(&mut desk).await?;
        }
        self.shelf.clear().await;
        Ok(())
    }
}
