//! Opening an engine: settings, recovery, and the start of a new boot.
//!
//! Invariant: the order. The directory is locked and its meta file read; the checkpoint is loaded, and all logs are
//! recovered; then the new boot's number and the ends that were accepted are written and synced; and only then is removed
//! what is not needed any more, are new logs made, and is anything served.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use lockgate_runtime::sync::Arc;
use lockgate_runtime::{Boxed, Runtime};

use crate::arena::{Arena, MemoryBudget, Pages};
use crate::checkpoint::files::remove_leftovers;
use crate::checkpoint::format::LogFrom;
use crate::checkpoint::{Base, CheckpointConfig, Checkpointer, Scope, load_all, read_manifest};
use crate::compactor::{Home, Stability};
use crate::cores::Job;
use crate::engine::{Engine, Inner, SharedDirectory};
use crate::error::OpenError;
use crate::index::KeyHasher;
use crate::kept::kept_written;
use crate::log::{self, Log, LogConfig, LogError, LogGroup, LogStart};
use crate::meta::{Directory, Meta};
use crate::options::Durability;
use crate::recovery::{
    OnProgress, Progress, Recovered, RecoveryProgress, Sources, Target, core_of, recover_all,
};
use crate::slots::{Begun, Parts, SlotTable, Slots};
use crate::types::Boot;
use crate::watchers::{Gates, Watchers};

/// The memory bound, unless one is set.
pub const MEMORY_BYTES_MAX_DEFAULT: u64 = 8 << 30;
/// The most cores that an engine runs on.
pub const CORES_MAX: usize = 64;

/// Settings of an [`Engine`]. Made by [`Engine::builder`].
#[derive(Clone, Debug)]
pub struct EngineBuilder {
    path: PathBuf,
    cores: usize,
    clustered: bool,
    pin: bool,
    log_file_bytes: u64,
    log_unwritten_bytes_max: u64,
    memory_bytes_max: u64,
    huge_pages: bool,
    flush_interval_ms: u64,
    durability: Durability,
    checkpoints: CheckpointConfig,
    on_progress: Option<OnProgress>,
}

impl EngineBuilder {
    pub(crate) fn new(path: PathBuf) -> EngineBuilder {
        EngineBuilder {
            path,
            cores: 1,
            clustered: false,
            pin: true,
            log_file_bytes: log::FILE_BYTES_DEFAULT,
            log_unwritten_bytes_max: log::UNWRITTEN_BYTES_MAX_DEFAULT,
            memory_bytes_max: MEMORY_BYTES_MAX_DEFAULT,
            huge_pages: true,
            flush_interval_ms: log::FLUSH_INTERVAL_DEFAULT.as_millis() as u64,
            durability: Durability::default(),
            checkpoints: CheckpointConfig::default(),
            on_progress: None,
        }
    }

    /// How many cores, so logs and memory ranges, it has (1 to 64; default 1). With [`open_on`](EngineBuilder::open_on)
    /// at most as many as the runtime. May differ from one start to the next.
    pub fn cores(mut self, cores: usize) -> Self {
        self.cores = cores;
        self
    }

    /// Whether the layer above sets every slot's gate (default: no; every slot is owned).
    pub fn clustered(mut self, clustered: bool) -> Self {
        self.clustered = clustered;
        self
    }

    /// How durable a write is that does not say ([`Keyspace::with_durability`](crate::Keyspace::with_durability),
    /// [`Batch::durability`](crate::Batch::durability)); default: written.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Whether [`open`](EngineBuilder::open) pins its cores' threads to processors (default: yes).
    pub fn pin(mut self, pin: bool) -> Self {
        self.pin = pin;
        self
    }

    /// The size of a log file.
    pub fn log_file_bytes(mut self, bytes: u64) -> Self {
        self.log_file_bytes = bytes;
        self
    }

    /// How much may wait to be written in each log before writes are refused with `LogBehind`.
    pub fn log_unwritten_bytes_max(mut self, bytes: u64) -> Self {
        self.log_unwritten_bytes_max = bytes;
        self
    }

    /// How much memory segments and indexes may take, over all cores, before writes are refused with `OutOfMemory`.
    pub fn memory_bytes_max(mut self, bytes: u64) -> Self {
        self.memory_bytes_max = bytes;
        self
    }

    /// Whether slots, segments and indexes lie on huge pages where the system has them (default: yes): lookups are faster then.
    /// Who opens many engines that hold little spares the system clearing such pages.
    pub fn huge_pages(mut self, huge: bool) -> Self {
        self.huge_pages = huge;
        self
    }

    /// How long a write stays unsynced at most, if nobody waits for it.
    pub fn flush_interval_ms(mut self, interval_ms: u64) -> Self {
        self.flush_interval_ms = interval_ms;
        self
    }

    /// Whether checkpoints are taken in the background (default: yes). [`Engine::checkpoint`] takes one in any case.
    pub fn automatic_checkpoints(mut self, automatic: bool) -> Self {
        self.checkpoints.automatic = automatic;
        self
    }

    /// How much is logged at least, over all cores, before a checkpoint is taken in the background; more, if the data
    /// takes more memory than that.
    pub fn checkpoint_log_bytes(mut self, bytes: u64) -> Self {
        self.checkpoints.log_bytes = bytes;
        self
    }

    /// How much of a checkpoint is written in a second, over all cores. 0: as much as the disk takes.
    pub fn checkpoint_bytes_per_second(mut self, bytes: u64) -> Self {
        self.checkpoints.bytes_per_second = bytes;
        self
    }

    /// Whom to tell how far the recovery is: now and then while it lasts, and when it is done. Called on the cores' threads,
    /// so it should be short.
    pub fn on_recovery_progress(mut self, tell: impl Fn(RecoveryProgress) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(OnProgress(Arc::new(tell)));
        self
    }

    /// Opens the engine on cores of its own, which end with the last clone of it. Blocks until it has recovered.
    pub fn open(self) -> Result<Engine, OpenError> {
        self.check(self.cores)?;
        let runtime = Runtime::builder().cores(self.cores).pin(self.pin).name("lockgate").build()?;
        let opening = runtime.clone();
        let opened = runtime.block_on(0, move || async move { self.open_with(&opening, true).await });
        if opened.is_err() {
            runtime.shutdown();
        }
        opened
    }

    /// Opens the engine on a runtime that goes on without it. To be awaited on one of its cores.
    pub async fn open_on(self, runtime: &Runtime) -> Result<Engine, OpenError> {
        self.check(runtime.cores())?;
        self.open_with(runtime, false).await
    }

    fn check(&self, cores: usize) -> Result<(), OpenError> {
        let most = cores.min(CORES_MAX);
        if self.cores == 0 || self.cores > most {
            let what = format!("cores is {}: it must be from 1 to {most}", self.cores);
            return Err(OpenError::Config { what });
        }
        Ok(())
    }

    fn open_with<'a>(self, runtime: &'a Runtime, owns_runtime: bool) -> Boxed<'a, Result<Engine, OpenError>> {
        Box::pin(async move {
            let mut directory = Directory::open(&self.path).await?;
            let budget = Arc::new(MemoryBudget::new(self.memory_bytes_max));
            let gates = Arc::new(Gates::new());
            let watchers: Vec<_> = (0..self.cores).map(|core| Watchers::new(&gates, core)).collect();
            let hasher = KeyHasher::new(runtime.random_u64());
            let slots = self.empty_slots(&budget, &hasher, &watchers)?;
            // Before the recovery, which may have the system forget what it remembers of the files.
            let kept = kept_written(&mut directory, runtime, self.cores).await?;
            let (recovered, base) = self.recover(runtime, &directory, &slots).await?;
            let ends = recovered.iter().map(|(name, end)| (name.clone(), end.ends.clone())).collect();
            let number = directory.begin_boot(ends, kept).await?;
            let Meta { directory_id, kept_since, .. } = *directory.meta();
            let boot = Boot { directory_id, number, kept_since };
            let checkpoint = base.as_ref().map_or(0, |base| base.manifest.head.id.number);
            remove_what_is_not_needed(&directory, &recovered, checkpoint).await;
            let logs = self.create_logs(runtime, &directory, boot, &recovered).await?;
            slots
                .begin(Begun { clustered: self.clustered, starts: logs.iter().map(Log::appended).collect() });
            for (core, of_core) in watchers.iter().enumerate() {
                let (sweeper, slots, log) = (of_core.sweeper.clone(), slots.clone(), logs[core].clone());
                runtime.spawn_on(core, move || sweeper.run(slots, log));
            }
            let stability = Arc::new(Stability::new(self.clustered));
            for (core, of_core) in watchers.iter().enumerate() {
                let (compactor, slots, log) = (of_core.compactor.clone(), slots.clone(), logs[core].clone());
                let (budget, stability) = (budget.clone(), stability.clone());
                let home = Home { slots, core, cores: self.cores, log, budget, stability };
                runtime.spawn_on(core, move || compactor.run(home));
            }
            let config = self.checkpoints;
            let scope = Scope {
                slots: slots.clone(),
                logs: logs.clone(),
                other_logs: self.other_logs(boot, &recovered),
                clustered: self.clustered,
                directory_id,
                boot: number,
                dir: directory.checkpoint_dir(),
                budget: budget.clone(),
                config,
                number: checkpoint,
                replayed_from: base.as_ref().map_or(0, |base| base.replayed_from()),
            };
            let checkpointer = Checkpointer::start(scope, runtime);
            tracing::info!(path = %self.path.display(), boot = boot.number, kept_since, cores = self.cores, "the engine is open");
            Ok(Engine::from_inner(Inner {
                runtime: runtime.clone(),
                owns_runtime,
                boot,
                path: self.path,
                clustered: self.clustered,
                durability: self.durability,
                hasher,
                slots,
                gates,
                watchers,
                stability,
                logs,
                checkpointer,
                budget,
                directory: SharedDirectory::new(directory),
            }))
        })
    }

    /// The slots as checkpoint and logs have them. Changes nothing on the disk.
    pub(crate) async fn recover(
        &self,
        runtime: &Runtime,
        directory: &Directory,
        slots: &SlotTable,
    ) -> Result<(BTreeMap<String, Recovered>, Option<Arc<Base>>), OpenError> {
        let dir = directory.checkpoint_dir();
        let manifest = read_manifest(&dir).await?;
        let base = match manifest {
            Some(manifest) => Some(Arc::new(Base::of_directory(manifest, directory)?)),
            None => None,
        };
        let sources = Sources::list(directory, base.clone()).await?;
        let progress = Arc::new(Progress::new(sources.bytes().await, self.on_progress.clone()));
        let target = Target {
            runtime: runtime.clone(),
            cores: self.cores,
            slots: slots.clone(),
            progress: progress.clone(),
        };
        if let Some(base) = &base {
            load_all(&target, &dir, base).await?;
        }
        let recovered = recover_all(&sources, &target).await?;
        progress.end();
        Ok((recovered, base))
    }

    /// Where the logs ended that this boot does not write.
    fn other_logs(&self, boot: Boot, recovered: &BTreeMap<String, Recovered>) -> Vec<LogFrom> {
        let other = |(name, end): (&String, &Recovered)| {
            let core = core_of(name).filter(|core| *core >= self.cores)?;
            Some(LogFrom { core: core as u32, start: LogStart::unused(boot.number, end.position.0) })
        };
        let mut logs: Vec<LogFrom> = recovered.iter().filter_map(other).collect();
        logs.sort_unstable_by_key(|log| log.core);
        logs
    }

    /// Slots that hold nothing, with memory of their own.
    pub(crate) fn empty_slots(
        &self,
        budget: &Arc<MemoryBudget>,
        hasher: &KeyHasher,
        watchers: &[Arc<Watchers>],
    ) -> Result<SlotTable, OpenError> {
        let mut arenas = Vec::with_capacity(self.cores);
        for core in 0..self.cores {
            let pages = if self.huge_pages { Pages::Huge } else { Pages::Unasked };
            let arena = Arena::reserve_on(pages, budget.clone());
            let arena = arena.map_err(|source| OpenError::Reserve { core, source })?;
            arenas.push(Arc::new(arena));
        }
        let slots = Slots::new(Parts { arenas, watchers: watchers.to_vec(), hasher: hasher.clone() });
        if self.huge_pages {
            slots.want_huge_pages();
        }
        Ok(Arc::new(slots))
    }

    async fn create_logs(
        &self,
        runtime: &Runtime,
        directory: &Directory,
        boot: Boot,
        recovered: &BTreeMap<String, Recovered>,
    ) -> Result<Vec<Log>, LogError> {
        let group = LogGroup::new();
        // All at the same time: each prepares a file.
        let jobs: Vec<_> = (0..self.cores)
            .map(|core| {
                let name = core_log_name(core);
                let start = recovered.get(&name).map_or(0, |end| end.position.0);
                let config = LogConfig {
                    file_bytes: self.log_file_bytes,
                    unwritten_bytes_max: self.log_unwritten_bytes_max,
                    flush_interval: Duration::from_millis(self.flush_interval_ms),
                    group: group.clone(),
                    ..LogConfig::new(directory.log_dir(), name, boot.number)
                };
                Job::start_on(runtime, core, move || Log::create(config, start))
            })
            .collect();
        let mut logs = Vec::with_capacity(self.cores);
        let mut result = Ok(());
        for job in jobs {
            match job.done().await {
                Ok(log) => logs.push(log),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result?;
        Ok(logs)
    }
}

/// Removes files of logs and of checkpoints that no later start will need either. The number of the checkpoint that is in use;
/// 0: there is none.
async fn remove_what_is_not_needed(
    directory: &Directory,
    recovered: &BTreeMap<String, Recovered>,
    checkpoint: u64,
) {
    for end in recovered.values() {
        log::remove_unused_files(end).await;
        log::remove_obsolete_files(&end.obsolete_files).await;
    }
    remove_leftovers(&directory.checkpoint_dir(), checkpoint).await;
}

/// The name of a core's log.
pub(crate) fn core_log_name(core: usize) -> String {
    format!("core-{core}")
}
