//! The engine: 16,384 slots, each under one lock, and one log per core.
//!
//! Invariants: a slot's home core is its number modulo the number of cores, and its frames are in that core's log; all
//! memory operations are done in place, by whichever thread asks. What the engine does not know: other nodes, shards,
//! jobs. It knows a gate, an opaque term and a generation per slot.

use std::path::{Path, PathBuf};

use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{Event, Runtime};

use crate::arena::{Arena, MemoryBudget};
use crate::builder::EngineBuilder;
use crate::cell::SlotCell;
use crate::checkpoint::{CheckpointError, CheckpointStats, Checkpointer, CheckpointsStats};
use crate::compactor::{Stability, StableWatermarks};
use crate::error::OpError;
use crate::index::KeyHasher;
use crate::keyspace::Keyspace;
use crate::log::{Log, LogFailed, LogPosition};
use crate::meta::{Directory, MetaError};
use crate::options::Durability;
use crate::slot::SlotState;
use crate::slots::SlotTable;
use crate::stats::{CompactionStats, CoreStats, EngineStats, KeyspaceStats, SlotStats};
use crate::stream::SlotStream;
use crate::types::{Boot, Gate, LogTicket, Slot, Version};
use crate::value::Receipt;
use crate::wakes::Wakes;
use crate::watchers::{Gates, Watchers};

/// A store of keys and values in memory, with a durable log. Cheap to clone: all clones are one engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) runtime: Runtime,
    /// Whether the runtime was started for this engine alone, and ends with it.
    pub(crate) owns_runtime: bool,
    pub(crate) boot: Boot,
    pub(crate) path: PathBuf,
    pub(crate) clustered: bool,
    /// Of writes that do not say.
    pub(crate) durability: Durability,
    /// Every slot's index has its hashes.
    pub(crate) hasher: KeyHasher,
    pub(crate) slots: SlotTable,
    /// One per core.
    pub(crate) watchers: Vec<Arc<Watchers>>,
    pub(crate) stability: Arc<Stability>,
    pub(crate) gates: Arc<Gates>,
    pub(crate) logs: Vec<Log>,
    pub(crate) checkpointer: Arc<Checkpointer>,
    pub(crate) budget: Arc<MemoryBudget>,
    pub(crate) directory: SharedDirectory,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("path", &self.inner.path)
            .field("boot", &self.inner.boot)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Settings for an engine in this directory, which is made if it does not exist.
    pub fn builder(path: impl AsRef<Path>) -> EngineBuilder {
        EngineBuilder::new(path.as_ref().to_path_buf())
    }

    pub(crate) fn from_inner(inner: Inner) -> Engine {
        Engine { inner: Arc::new(inner) }
    }

    /// The cores that it runs on.
    pub fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    /// Which directory, and which start of it, this is.
    pub fn boot(&self) -> Boot {
        self.inner.boot
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Whether the layer above sets the gates. Otherwise every slot is owned.
    pub fn is_clustered(&self) -> bool {
        self.inner.clustered
    }

    /// The keys of one name space.
    pub fn keyspace(&self, number: u8) -> Keyspace {
        Keyspace::new(self.clone(), self.inner.hasher.clone(), number, self.durability())
    }

    /// How durable writes are that do not say: see [`EngineBuilder::durability`].
    pub fn durability(&self) -> Durability {
        self.inner.durability
    }

    /// How many cores it uses: each has a log. The runtime may have more.
    pub fn cores(&self) -> usize {
        self.inner.logs.len()
    }

    /// A core's log. Panics if there is no such core.
    pub fn log(&self, core: usize) -> &Log {
        &self.inner.logs[core]
    }

    /// The core that does a slot's background work, and whose log has its writes.
    pub fn home_core(&self, slot: Slot) -> usize {
        slot.index() % self.inner.logs.len()
    }

    /// What may be done with a slot now. Takes no lock: for who looks at many slots, of most of which nothing else is of
    /// interest.
    pub fn gate(&self, slot: Slot) -> Gate {
        self.inner.gates.of(slot)
    }

    /// How many changes of gates there were, over all slots: who watches many slots looks again when it has moved.
    pub fn gate_changes(&self) -> u64 {
        self.inner.gates.changes()
    }

    /// A new stream, which follows nothing yet.
    pub fn stream(&self) -> SlotStream {
        SlotStream::new(self.clone())
    }

    pub(crate) fn slot(&self, slot: Slot) -> &SlotCell {
        self.inner.slots.of(slot)
    }

    /// Has the processor fetch what a lookup in a slot touches first.
    #[inline]
    pub(crate) fn prefetch_slot(&self, slot: Slot) {
        self.inner.slots.prefetch(slot);
    }

    /// A slot, unless it holds nothing because nobody has asked for it yet.
    pub(crate) fn known_slot(&self, slot: Slot) -> Option<&SlotCell> {
        self.inner.slots.known(slot)
    }

    /// All slots but those that hold nothing because nobody has asked for them yet.
    pub(crate) fn known_slots(&self) -> impl Iterator<Item = (Slot, &SlotCell)> {
        self.inner.slots.all_known()
    }

    /// The runtime's wall clock, in milliseconds since 1970.
    pub(crate) fn unix_ms(&self) -> u64 {
        self.inner.runtime.unix_ms()
    }

    /// Where a slot's memory comes from.
    pub(crate) fn arena_of(&self, slot: Slot) -> Arc<Arena> {
        self.slot(slot).lock().store.chain().arena().clone()
    }

    pub(crate) fn home_log(&self, slot: Slot) -> &Log {
        &self.inner.logs[self.home_core(slot)]
    }

    /// Sets the bound on the memory of segments and indexes, in bytes. What is in use stays: when it is more, writes are refused until
    /// enough was deleted, and garbage is given back sooner.
    pub fn set_memory_bytes_max(&self, bytes: u64) {
        self.inner.budget.set_max_bytes(bytes);
        self.inner.watchers.iter().for_each(|of_core| of_core.compactor.rouse());
    }

    /// Who says up to where writes are never taken back. Until then nothing is discarded in a clustered engine.
    pub fn set_stable_watermarks(&self, watermarks: Arc<dyn StableWatermarks>) {
        self.inner.stability.set(watermarks);
    }

    /// Does something under a slot's lock, and wakes whom it concerns once the lock is released, also if it failed.
    pub(crate) fn locked<T>(
        &self,
        slot: Slot,
        act: impl FnOnce(&mut SlotState, &mut Wakes) -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        let mut wakes = Wakes::default();
        let result = act(&mut self.slot(slot).lock(), &mut wakes);
        wakes.wake();
        result
    }

    /// As [`Engine::locked`], of a write of this durability: its sync begins now, if it asks for one.
    pub(crate) fn write_locked<T>(
        &self,
        slot: Slot,
        durability: Durability,
        act: impl FnOnce(&mut SlotState, &mut Wakes) -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        let result = self.locked(slot, act);
        if durability == Durability::Synced && result.is_ok() {
            let log = self.home_log(slot);
            log.request_sync(log.appended());
        }
        result
    }

    /// The receipt of a slot's last write.
    pub(crate) fn receipt(&self, held: &SlotState, durability: Durability) -> Receipt {
        self.receipt_of(held.slot(), held.version(), held.position(), durability)
    }

    pub(crate) fn receipt_of(
        &self,
        slot: Slot,
        version: Version,
        position: LogPosition,
        durability: Durability,
    ) -> Receipt {
        Receipt { engine: self.clone(), slot, version, ticket: self.ticket_at(slot, position), durability }
    }

    // Waiting.

    /// The ticket for a position of a slot's home log, such as [`SlotStatus::position`](crate::SlotStatus::position).
    pub fn ticket_at(&self, slot: Slot, position: LogPosition) -> LogTicket {
        LogTicket { core: self.home_core(slot) as u32, position }
    }

    pub(crate) fn log_of(&self, ticket: LogTicket) -> &Log {
        &self.inner.logs[ticket.core as usize]
    }

    /// Whether the operating system has what the ticket stands for.
    pub fn written(&self, ticket: LogTicket) -> bool {
        self.log_of(ticket).written() >= ticket.position
    }

    /// Whether the disk has what the ticket stands for.
    pub fn synced(&self, ticket: LogTicket) -> bool {
        self.log_of(ticket).synced() >= ticket.position
    }

    /// Waits until [`written`](Engine::written).
    pub async fn wait_written(&self, ticket: LogTicket) -> Result<(), LogFailed> {
        self.log_of(ticket).wait_written(ticket.position).await
    }

    /// Waits until [`synced`](Engine::synced), and has it done soon.
    pub async fn wait_synced(&self, ticket: LogTicket) -> Result<(), LogFailed> {
        self.log_of(ticket).wait_synced(ticket.position).await
    }

    /// Waits until all that any core's log has now is synced: the logs sync at the same time.
    pub async fn sync_all(&self) -> Result<(), LogFailed> {
        let asked: Vec<(&Log, LogPosition)> =
            self.inner.logs.iter().map(|log| (log, log.appended())).collect();
        for (log, position) in &asked {
            log.request_sync(*position);
        }
        for (log, position) in asked {
            log.wait_synced(position).await?;
        }
        Ok(())
    }

    /// Waits until a slot's log has written what it has now, and the disk has space: after `LogBehind` and `DiskFull`,
    /// there is room then.
    pub async fn wait_log_room(&self, slot: Slot) -> Result<(), LogFailed> {
        self.home_log(slot).wait_room().await
    }

    /// The first failure of any core's log. From then on every write is refused with it, whichever core's; reads go on.
    pub fn failure(&self) -> Option<LogFailed> {
        self.inner.logs.iter().find_map(Log::failure)
    }

    /// Writes and syncs everything, and ends the logs: later writes are refused, reads go on, except of keys whose time
    /// has come: their end could not be logged.
    pub async fn close(&self) -> Result<(), LogFailed> {
        close_logs(&self.inner.logs).await
    }

    /// Takes a checkpoint that has all that was written before this call, and waits for it: a recovery needs then only
    /// what is logged from here on, and the logs' space before is given back. Nobody is stopped meanwhile. On a core's
    /// thread; it goes on when this is not awaited to the end.
    pub async fn checkpoint(&self) -> Result<CheckpointStats, CheckpointError> {
        self.inner.checkpointer.take(&self.inner.runtime).await
    }

    /// As [`checkpoint`](Engine::checkpoint), blocking the calling thread, which must not be a core's: panics there.
    pub fn checkpoint_blocking(&self) -> Result<CheckpointStats, CheckpointError> {
        lockgate_runtime::block_on_foreign(self.checkpoint())
            .expect("a blocking wait on a core's thread would never end: await `checkpoint` there")
    }

    // The directory, for a log of the layer above.

    /// Where logs belong.
    pub fn log_dir(&self) -> PathBuf {
        self.inner.path.join(crate::meta::LOG_FOLDER)
    }

    /// The ends that earlier starts accepted for a log, for its recovery.
    pub async fn known_ends(&self, log: &str) -> Vec<(u64, u64)> {
        self.inner.directory.borrow().await.known_ends(log).to_vec()
    }

    /// Records the ends that the recovery of a log accepted. Only then may it be created for this boot.
    /// To be awaited on a core.
    pub async fn accept_ends(&self, log: &str, ends: Vec<(u64, u64)>) -> Result<(), MetaError> {
        self.inner.directory.borrow().await.accept_ends(log, ends).await
    }

    /// What compactions did since the engine was opened.
    pub fn compaction_stats(&self) -> CompactionStats {
        let mut stats = CompactionStats::default();
        self.inner.watchers.iter().for_each(|of_core| of_core.compactor.add_to(&mut stats));
        stats
    }

    /// How checkpoints went since the engine was opened.
    pub fn checkpoint_stats(&self) -> CheckpointsStats {
        self.inner.checkpointer.stats()
    }

    /// Sums over all slots, counted one after the other, and the state of the logs.
    pub fn stats(&self) -> EngineStats {
        let mut stats = EngineStats {
            memory_used_bytes: self.inner.budget.used_bytes(),
            memory_max_bytes: self.inner.budget.max_bytes(),
            ..EngineStats::default()
        };
        stats.compaction = self.compaction_stats();
        stats.checkpoints = self.checkpoint_stats();
        stats.cores = self.inner.logs.iter().map(CoreStats::of).collect();
        for slot in Slot::all() {
            let seen = match self.inner.slots.known(slot) {
                Some(cell) => cell.lock().stats(),
                None => SlotStats::of_nothing(self.gate(slot)),
            };
            stats.add(self.home_core(slot), &seen);
        }
        stats
    }

    /// What a slot holds now, and what that takes.
    pub fn slot_stats(&self, slot: Slot) -> SlotStats {
        let held = self.slot(slot).lock();
        SlotStats { keyspaces: KeyspaceStats::all_of(&held.store), ..held.stats() }
    }
}

async fn close_logs(logs: &[Log]) -> Result<(), LogFailed> {
    let mut first_failure = Ok(());
    for log in logs {
        let closed = log.close().await;
        first_failure = first_failure.and(closed);
    }
    first_failure
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watchers.iter().for_each(|of_core| of_core.sweeper.end());
        self.watchers.iter().for_each(|of_core| of_core.compactor.end());
        self.checkpointer.end();
        if !self.owns_runtime {
            return;
        }
        let (logs, runtime) = (std::mem::take(&mut self.logs), self.runtime.clone());
        let close = move || async move {
            if let Err(error) = close_logs(&logs).await {
                tracing::error!(%error, "the engine was dropped, and not all of its log could be written");
            }
        };
        if lockgate_runtime::core_index().is_none() {
            runtime.block_on(0, close);
            runtime.shutdown();
        } else {
            let stopping = runtime.clone();
            runtime.spawn_on(0, move || async move {
                close().await;
                stopping.shutdown();
            });
        }
    }
}

/// The locked directory, lent to one task at a time.
pub(crate) struct SharedDirectory {
    directory: Mutex<Option<Directory>>,
    returned: Event,
}

impl SharedDirectory {
    pub(crate) fn new(directory: Directory) -> SharedDirectory {
        SharedDirectory { directory: Mutex::new(Some(directory)), returned: Event::new() }
    }

    async fn borrow(&self) -> Borrowed<'_> {
        loop {
            let returned = self.returned.listen();
            let directory = self.directory.lock().take();
            match directory {
                Some(directory) => return Borrowed { from: self, directory: Some(directory) },
                None => returned.await,
            }
        }
    }
}

struct Borrowed<'a> {
    from: &'a SharedDirectory,
    directory: Option<Directory>,
}

impl std::ops::Deref for Borrowed<'_> {
    type Target = Directory;

    fn deref(&self) -> &Directory {
        self.directory.as_ref().expect("given back only by drop")
    }
}

impl std::ops::DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut Directory {
        self.directory.as_mut().expect("given back only by drop")
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        *self.from.directory.lock() = self.directory.take();
        self.from.returned.notify_all();
    }
}
