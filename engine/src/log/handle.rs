//! [`Log`]: the handle that appends, asks and waits.
//!
//! Invariants: all handles are one log; dropping the last one closes it in the background (what was appended is still
//! written and synced, if the core lives). A wait that ends well means that the position was reached; a position that
//! was reached stays reached, also after a failure.

use lockgate_runtime::sync::Arc;
use lockgate_runtime::{Boxed, Watermark};

use super::error::{LogError, LogFailed, LogWaitError};
use super::files::{FileMaker, PreparedFile};
use super::format::{FrameHeader, LogPosition};
use super::outside::block_on_foreign;
use super::recycle::{ChainFiles, GivenBack};
use super::shared::{Reservation, Shared};
use super::start::LogStart;
use super::{LogConfig, writer};

/// An open log. Cheap to clone, usable from every thread; writing is done on the core that created it.
#[derive(Clone)]
pub struct Log {
    owner: Arc<Owner>,
}

/// Shared by the handles, not by the writer: its drop says that no handle is left.
struct Owner {
    shared: Arc<Shared>,
    chain: Arc<ChainFiles>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.begin_close();
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("name", &self.owner.shared.name)
            .field("appended", &self.appended().0)
            .field("written", &self.written().0)
            .field("synced", &self.synced().0)
            .finish_non_exhaustive()
    }
}

impl Log {
    /// Starts the log's chain for `cfg.boot`: prepares its first file and spawns its writer on the current core.
    ///
    /// `position_start` must be the end that the recovery of this log found (0 for a log that is new).
    pub fn create(cfg: LogConfig, position_start: u64) -> Boxed<'static, Result<Log, LogError>> {
        Box::pin(async move {
            cfg.check()?;
            let mut maker = FileMaker::new(&cfg, position_start);
            match maker.prepare_directory_and_first().await {
                Ok(first) => Ok(Log::start(&cfg, position_start, maker, first)),
                Err(fault) => Err(fault.into_failed(&cfg.name, position_start).into()),
            }
        })
    }

    /// Starts writing to `first`, on the current core.
    pub(super) fn start(cfg: &LogConfig, position_start: u64, maker: FileMaker, first: PreparedFile) -> Log {
        let log = Log::without_writer(cfg, position_start, maker.chain().clone());
        writer::spawn(cfg, log.owner.shared.clone(), maker, first);
        log
    }

    /// A log whose writer is yet to begin.
    pub(super) fn without_writer(cfg: &LogConfig, position_start: u64, chain: Arc<ChainFiles>) -> Log {
        let (bound, group) = (cfg.unwritten_bytes_max, cfg.group.clone());
        let shared = Arc::new(Shared::new(&cfg.name, position_start, bound, group));
        cfg.group.join(&shared);
        Log { owner: Arc::new(Owner { shared, chain }) }
    }

    /// Asks for room for a frame with `payload_bytes`. Call it before taking any lock that the append is done under.
    ///
    /// [`LogError::Behind`] when more than the configured bound would wait to be written; a frame that is larger than
    /// the bound is let in when nothing else waits. [`LogError::DiskFull`] when there is no space for it, see
    /// [`Log::reserve_control`]. To wait for room, await [`Log::wait_room`].
    pub fn reserve(&self, payload_bytes: usize) -> Result<Reservation<'_>, LogError> {
        self.owner.shared.reserve(payload_bytes)
    }

    /// As [`Log::reserve`], for what must not be refused because a disk is full: small frames that say who owns what. The
    /// last [`CONTROL_RESERVE_BYTES`](super::CONTROL_RESERVE_BYTES) of a file are kept for them; when these are used up,
    /// they wait in memory until there is space.
    pub fn reserve_control(&self, payload_bytes: usize) -> Result<Reservation<'_>, LogError> {
        self.owner.shared.reserve_control(payload_bytes)
    }

    /// Appends one frame whose payload is `parts` joined, and returns the position of its end. Never blocks on a disk.
    ///
    /// The reservation must be this log's and for at least as many bytes; it is a mistake of the program otherwise, and
    /// panics. After a failure nothing is appended.
    pub fn append(
        &self,
        reservation: Reservation<'_>,
        frame: FrameHeader,
        parts: &[&[u8]],
    ) -> Result<LogPosition, LogFailed> {
        self.owner.shared.append(reservation, frame, parts)
    }

    /// End of the last frame that was appended.
    pub fn appended(&self) -> LogPosition {
        self.owner.shared.appended()
    }

    /// Everything before this was handed to the system: it survives the process, not the machine.
    pub fn written(&self) -> LogPosition {
        LogPosition(self.owner.shared.written.get())
    }

    /// Everything before this is on the disk.
    pub fn synced(&self) -> LogPosition {
        LogPosition(self.owner.shared.synced.get())
    }

    /// Asks for a sync as soon as everything before `position` is written. Returns at once.
    pub fn request_sync(&self, position: LogPosition) {
        self.owner.shared.request_sync(position);
    }

    /// Waits until everything before `position` is written.
    pub async fn wait_written(&self, position: LogPosition) -> Result<(), LogFailed> {
        self.wait(&self.owner.shared.written, position).await
    }

    /// Waits until everything before `position` is synced, and asks for the sync.
    pub async fn wait_synced(&self, position: LogPosition) -> Result<(), LogFailed> {
        self.request_sync(position);
        self.wait(&self.owner.shared.synced, position).await
    }

    /// Waits until a frame that was refused now may find room: what is appended is written, and the disk is not full.
    pub async fn wait_room(&self) -> Result<(), LogFailed> {
        let shared = &self.owner.shared;
        loop {
            let changed = shared.space.changed.listen();
            if shared.is_refusing() || !shared.space.refuses() {
                return self.wait_written(self.appended()).await;
            }
            changed.await;
        }
    }

    /// Whether the disk is full: the log has no space for its next file. See [`LogError::DiskFull`].
    pub fn is_disk_full(&self) -> bool {
        self.owner.shared.space.is_short()
    }

    /// As [`Log::wait_written`], blocking the calling thread, which must not be a core's.
    pub fn wait_written_blocking(&self, position: LogPosition) -> Result<(), LogWaitError> {
        blocking(self.wait_written(position))
    }

    /// As [`Log::wait_synced`], blocking the calling thread, which must not be a core's. If nobody writes at the moment, it
    /// does so itself.
    pub fn wait_synced_blocking(&self, position: LogPosition) -> Result<(), LogWaitError> {
        if lockgate_runtime::core_index().is_none() && self.synced() < position {
            self.owner.shared.lead();
        }
        blocking(self.wait_synced(position))
    }

    /// Where the log stands: everything that is appended from now on begins at or behind the position, and lies in the
    /// file or a later one.
    ///
    /// Before it is used as a start, everything before its position must be synced: a log that ends below its start is
    /// taken for damaged.
    pub fn mark(&self) -> LogStart {
        self.owner.chain.mark(|| self.appended().0)
    }

    /// Gives back the files before `start`: some of this boot's are used again, the others and those of older boots are
    /// removed. What cannot be removed stays; it only takes room. To be awaited on a core, of whatever number.
    ///
    /// Only to be called when it is durably known, where the log's recovery will be told, that nothing before `start` is
    /// needed. Panics if `start` lies behind what the log is writing.
    pub fn give_back<'a>(&'a self, start: LogStart) -> Boxed<'a, GivenBack> {
        Box::pin(async move {
            let given_back = self.owner.chain.give_back(start).await;
            if self.is_disk_full() {
                self.owner.shared.space.changed.notify_all();
            }
            given_back
        })
    }

    /// What ended the log, or another one of its [`LogGroup`](super::LogGroup), if it did not end by [`Log::close`].
    pub fn failure(&self) -> Option<LogFailed> {
        self.owner.shared.failure()
    }

    /// Refuses further frames, writes and syncs what was appended, and ends the writer. Fails if the log has failed.
    /// A second call waits for the same end.
    pub async fn close(&self) -> Result<(), LogFailed> {
        let shared = &self.owner.shared;
        shared.begin_close();
        loop {
            let changed = shared.work.listen();
            match shared.stopped() {
                Some(cause) if cause.is_closed() => return Ok(()),
                Some(cause) => return Err(cause),
                None => changed.await,
            }
        }
    }

    async fn wait(&self, watermark: &Watermark, position: LogPosition) -> Result<(), LogFailed> {
        watermark.wait_for(position.0).await.map_err(|_| self.owner.shared.refusal())
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.owner.shared
    }
}

fn blocking(wait: impl Future<Output = Result<(), LogFailed>>) -> Result<(), LogWaitError> {
    match block_on_foreign(wait) {
        Ok(result) => Ok(result?),
        Err(_) => Err(LogWaitError::OnCoreThread),
    }
}
