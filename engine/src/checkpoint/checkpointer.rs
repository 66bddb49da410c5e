//! Takes an engine's checkpoints: when somebody asks for one, and in the background when enough was logged.
//!
//! Invariants:
//! - One at a time. Who asks while one is being taken gets the next one, which all who asked meanwhile share.
//! - The order of `take`: note the logs, write the slots, sync the logs up to what the slots have, swap the manifest, and
//!   only then give back what the checkpoint before needed.
//! - A checkpoint that fails is abandoned; nothing that the one before needs was touched. Background ones are tried again.
//! - It keeps no engine alive, and ends with it. Nothing here waits for a clock but the retries and the writers' pace: the
//!   logs' watermarks tell when enough was logged.

use std::path::PathBuf;

use futures_util::future::{Either, select, select_all};
use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{Event, Runtime, mutation, now_ns};

use super::files::{SwapFailed, data_file_name, io_error, remove_attempt, remove_leftovers, swap_manifest};
use super::format::{CheckpointId, DataHeader, EncodedSlots, LogFrom, MANIFEST_BYTES_MAX, ManifestHead};
use super::writer::{CorePart, CoreTask, Stop, write_core};
use super::{
    CHECKPOINT_LOG_PER_DATA, CheckpointConfig, CheckpointError, CheckpointStats, CheckpointsStats, RETRY_MAX,
    RETRY_MIN,
};
use crate::arena::MemoryBudget;
use crate::cores::Job;
use crate::log::files::create_dir_durably;
use crate::log::{Log, LogPosition};
use crate::slots::SlotTable;

/// How much more must be logged at least before it is looked at again whether a checkpoint is due.
const LOOK_BYTES_MIN: u64 = 64 << 10;

/// What a checkpoint is taken of.
pub(crate) struct Scope {
    pub(crate) slots: SlotTable,
    /// One per core.
    pub(crate) logs: Vec<Log>,
    /// Logs of cores that this boot does not have: where they ended.
    pub(crate) other_logs: Vec<LogFrom>,
    pub(crate) clustered: bool,
    pub(crate) directory_id: [u8; 16],
    pub(crate) boot: u64,
    pub(crate) dir: PathBuf,
    pub(crate) budget: Arc<MemoryBudget>,
    pub(crate) config: CheckpointConfig,
    /// The number of the directory's last checkpoint, or 0.
    pub(crate) number: u64,
    /// Where the logs are replayed from if there is no other checkpoint: the sum of their positions.
    pub(crate) replayed_from: u64,
}

#[derive(Default)]
struct State {
    is_running: bool,
    begun: u64,
    ended: u64,
    /// Of the last one that ended.
    result: Option<Result<CheckpointStats, CheckpointError>>,
    number: u64,
    replayed_from: u64,
    last: Option<CheckpointStats>,
    failures: u64,
    last_error: Option<String>,
}

/// See the module.
pub(crate) struct Checkpointer {
    scope: Scope,
    state: Mutex<State>,
    changed: Event,
    stop: Arc<Stop>,
}

/// One that is being taken. Dropped, it has ended.
struct Running {
    of: Arc<Checkpointer>,
    result: Result<CheckpointStats, CheckpointError>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.of.note_end(std::mem::replace(&mut self.result, Err(CheckpointError::Ended)));
    }
}

impl Checkpointer {
    /// Of an engine that is being opened. Takes checkpoints in the background, if it is to.
    pub(crate) fn start(scope: Scope, runtime: &Runtime) -> Arc<Checkpointer> {
        let is_automatic = scope.config.automatic;
        let checkpointer = Arc::new(Checkpointer::new(scope));
        if is_automatic {
            let checkpointer = checkpointer.clone();
            runtime.spawn_on(0, move || checkpointer.run());
        }
        checkpointer
    }

    fn new(scope: Scope) -> Checkpointer {
        let state = State { number: scope.number, replayed_from: scope.replayed_from, ..State::default() };
        Checkpointer { scope, state: Mutex::new(state), changed: Event::new(), stop: Arc::default() }
    }

    /// Takes one that begins after this call, and waits for its end. From any thread, but what is awaited here must be
    /// polled.
    pub(crate) async fn take(
        self: &Arc<Self>,
        runtime: &Runtime,
    ) -> Result<CheckpointStats, CheckpointError> {
        let wanted = self.state.lock().begun + 1;
        loop {
            let changed = self.changed.listen();
            let begins = {
                let mut state = self.state.lock();
                if state.ended >= wanted {
                    return state.result.clone().unwrap_or(Err(CheckpointError::Ended));
                }
                let begins = !state.is_running && state.begun < wanted;
                if begins {
                    (state.is_running, state.begun) = (true, state.begun + 1);
                }
                begins
            };
            if begins {
                let running = Running { of: self.clone(), result: Err(CheckpointError::Ended) };
                // A task of its own, so that it goes on when who asked for it does not wait any more.
                runtime.spawn_on(0, move || running.run());
            }
            changed.await;
        }
    }

    /// Takes checkpoints when they are due, until the engine or its logs end. To be run on a core.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut retry = RETRY_MIN;
        while self.wait_until_due().await {
            match self.take(&lockgate_runtime::current()).await {
                Ok(_) => retry = RETRY_MIN,
                Err(CheckpointError::Log(_) | CheckpointError::Ended) => return,
                Err(_) => {
                    self.stop.wait_at_most(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Ends what is being taken, and takes no more.
    pub(crate) fn end(&self) {
        self.stop.set();
    }

    pub(crate) fn stats(&self) -> CheckpointsStats {
        let log_bytes_since = self.log_bytes_since();
        let state = self.state.lock();
        CheckpointsStats {
            last: state.last,
            is_running: state.is_running,
            log_bytes_since,
            failures: state.failures,
            last_error: state.last_error.clone(),
        }
    }

    /// The sum of all logs' ends.
    fn logged(&self) -> u64 {
        let own: u64 = self.scope.logs.iter().map(|log| log.appended().0).sum();
        own + self.scope.other_logs.iter().map(|log| log.start.position).sum::<u64>()
    }

    fn log_bytes_since(&self) -> u64 {
        let logged = self.logged();
        logged.saturating_sub(self.state.lock().replayed_from)
    }

    /// False: there will be no more.
    async fn wait_until_due(&self) -> bool {
        loop {
            if self.stop.is_set() {
                return false;
            }
            let data_bytes = self.scope.budget.used_bytes().saturating_mul(CHECKPOINT_LOG_PER_DATA);
            let wanted = self.scope.config.log_bytes.max(data_bytes).max(1);
            let Some(missing) = wanted.checked_sub(self.log_bytes_since()).filter(|bytes| *bytes > 0) else {
                return true;
            };
            // When no log has advanced by its part, the sum of them has not advanced by what is missing.
            let step = (missing / self.scope.logs.len() as u64).max(LOOK_BYTES_MIN);
            let advanced = self.scope.logs.iter().map(|log| {
                let to = LogPosition(log.appended().0.saturating_add(step));
                Box::pin(log.wait_written(to))
            });
            let stopped = std::pin::pin!(self.stop.wait());
            if let Either::Left(((Err(_), ..), _)) = select(select_all(advanced), stopped).await {
                return false;
            }
        }
    }

    fn note_end(&self, result: Result<CheckpointStats, CheckpointError>) {
        let mut state = self.state.lock();
        match &result {
            Ok(stats) => {
                tracing::info!(?stats, "checkpoint");
                (state.last, state.last_error) = (Some(*stats), None);
            }
            Err(error) => {
                if !matches!(error, CheckpointError::Ended) {
                    tracing::warn!(%error, "checkpoint");
                }
                state.failures += 1;
                state.last_error = Some(error.to_string());
            }
        }
        (state.is_running, state.ended, state.result) = (false, state.begun, Some(result));
        drop(state);
        self.changed.notify_all();
    }
}

impl Running {
    async fn run(mut self) {
        self.result = self.of.attempt().await;
    }
}

impl Checkpointer {
    async fn attempt(&self) -> Result<CheckpointStats, CheckpointError> {
        let started_ns = now_ns();
        let dir = &self.scope.dir;
        let number = {
            let mut state = self.state.lock();
            state.number += 1;
            state.number
        };
        create_dir_durably(dir).await.map_err(io_error("creating the folder", dir))?;
        let (logs, noted) = self.note_logs();
        let mut head = ManifestHead {
            id: CheckpointId {
                directory_id: self.scope.directory_id,
                number,
                salt: lockgate_runtime::random_u64(),
            },
            boot: self.scope.boot,
            cores: self.scope.logs.len() as u32,
            taken_at_ms: lockgate_runtime::unix_ms(),
            logs,
            files: Vec::new(),
        };
        let (slots, bytes) = match self.complete(&mut head).await {
            Ok(written) => written,
            Err(SwapFailed::Before(error)) => {
                remove_attempt(dir, number).await;
                return Err(error);
            }
            Err(SwapFailed::Unsure(error)) => return Err(error),
        };
        self.state.lock().replayed_from = noted;
        self.give_back(&head.logs).await;
        remove_leftovers(dir, number).await;
        let duration_us = (now_ns() - started_ns) / 1_000;
        Ok(CheckpointStats { number, slots, bytes, duration_us })
    }

    /// Where every log is to be replayed from, and the sum of the positions.
    fn note_logs(&self) -> (Vec<LogFrom>, u64) {
        let own = self.scope.logs.iter().enumerate();
        let own = own.map(|(core, log)| LogFrom { core: core as u32, start: log.mark() });
        let logs: Vec<LogFrom> = own.chain(self.scope.other_logs.iter().copied()).collect();
        let noted = logs.iter().map(|log| log.start.position).sum();
        (logs, noted)
    }

    /// Writes the slots, and makes the manifest the directory's. Returns how many slots there are, and the length of all files.
    async fn complete(&self, head: &mut ManifestHead) -> Result<(u64, u64), SwapFailed> {
        let parts = self.write_parts(head.id).await.map_err(SwapFailed::Before)?;
        // What the slots have must be in the logs, too: a log that ended before would give their positions anew.
        for ((log, part), from) in self.scope.logs.iter().zip(&parts).zip(&head.logs) {
            if mutation!("manifest-before-log-sync") {
                break;
            }
            let synced = log.wait_synced(part.end.max(LogPosition(from.start.position))).await;
            synced.map_err(|failed| SwapFailed::Before(failed.into()))?;
        }
        if mutation!("log-given-back-before-manifest") {
            self.give_back(&head.logs).await;
        }
        let lists: Vec<EncodedSlots>;
        (head.files, lists) = parts.into_iter().map(|part| (part.file, part.slots)).unzip();
        debug_assert!((0..).zip(&head.files).all(|(number, file)| file.core == number), "as slots name them");
        let bytes = head.bytes_with(&lists);
        if bytes > MANIFEST_BYTES_MAX {
            return Err(SwapFailed::Before(CheckpointError::TooLarge { bytes }));
        }
        swap_manifest(&self.scope.dir, head.pieces_with(&lists)).await?;
        let slots = lists.iter().map(EncodedSlots::len).sum::<usize>() as u64;
        Ok((slots, bytes as u64 + head.files.iter().map(|file| file.bytes).sum::<u64>()))
    }

    /// Has every core write its slots.
    async fn write_parts(&self, id: CheckpointId) -> Result<Vec<CorePart>, CheckpointError> {
        let (runtime, cores) = (lockgate_runtime::current(), self.scope.logs.len());
        let failed = Arc::new(Stop::default());
        let jobs: Vec<_> = (0..cores)
            .map(|core| {
                let task = CoreTask {
                    slots: self.scope.slots.clone(),
                    clustered: self.scope.clustered,
                    core,
                    cores,
                    path: self.scope.dir.join(data_file_name(id.number, core as u32)),
                    header: DataHeader { id, core: core as u32 },
                    bytes_per_second: self.scope.config.bytes_per_second.div_ceil(cores as u64),
                    stop: failed.clone(),
                };
                Job::start_on(&runtime, core, move || write_core(task))
            })
            .collect();
        let all = async {
            let mut parts = Vec::with_capacity(cores);
            let mut error = None;
            // All of them, also when one has failed: until then files may still be made.
            for job in jobs {
                match job.done().await {
                    Ok(part) => parts.push(part),
                    // What the first failure did to the others says nothing.
                    Err(CheckpointError::Ended) if error.is_some() => {}
                    Err(other) if matches!(error, None | Some(CheckpointError::Ended)) => error = Some(other),
                    Err(_) => {}
                }
            }
            error.map_or(Ok(parts), Err)
        };
        let (all, stopped) = (std::pin::pin!(all), std::pin::pin!(self.stop.wait()));
        match select(all, stopped).await {
            Either::Left((parts, _)) => parts,
            Either::Right(((), all)) => {
                failed.set();
                all.await
            }
        }
    }

    /// Gives back what of the logs lies before the checkpoint.
    async fn give_back(&self, logs: &[LogFrom]) {
        let runtime = lockgate_runtime::current();
        let jobs: Vec<_> = self
            .scope
            .logs
            .iter()
            .zip(logs)
            .enumerate()
            .map(|(core, (log, from))| {
                let (log, start) = (log.clone(), from.start);
                Job::start_on(&runtime, core, move || async move { log.give_back(start).await })
            })
            .collect();
        for job in jobs {
            let _what_stays_only_takes_room = job.done().await;
        }
    }
}
