//! Recovery: the slots as the checkpoint and the logs of all boots have them.
//!
//! The checkpoint's slots are loaded (see `checkpoint`); then every log is read from where the checkpoint noted it, or
//! from its beginning, and every frame that its slot does not have yet has the effect that it had when it was written.
//! All cores work: each reads some of the logs, and replays its own slots' frames (see `window.rs`).
//!
//! Invariants:
//! - A slot's frames are replayed in the order in which they were written. Within one boot a slot has one log; its log
//!   changes when the number of cores does. So boots are taken in *eras*, runs of boots with the same number of cores:
//!   all logs are replayed for one era before the next begins.
//! - What a checkpoint noted of a slot counts only in the log that was the slot's home then.
//! - The first problem stops it, and nothing is served. It names the file and the place.

mod progress;
mod replay;
mod window;

use std::collections::BTreeMap;
use std::path::PathBuf;

use lockgate_runtime::sync::Arc;
use lockgate_runtime::{File, OpenOptions, Runtime};

use crate::builder::{CORES_MAX, core_log_name};
use crate::checkpoint::{Base, LoadError};
use crate::cores::Job;
use crate::error::OpenError;
use crate::log::files::parse_file_name;
use crate::log::format::{FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader};
use crate::log::{self, FrameHeader, LogStart, RecoverError, RecoveredEnd, VisitError, Visitor};
use crate::meta::Directory;
use crate::slots::SlotTable;
use crate::types::Slot;
pub use progress::RecoveryProgress;
pub(crate) use progress::{OnProgress, Progress};
pub use replay::ReplayError;
pub(crate) use replay::replay_frame;
use window::{Failure, Lanes, Sent, Window};

/// What the recovery of one log found.
pub(crate) type Recovered = RecoveredEnd;

/// Boots with the same number of cores, one after the other.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Era {
    pub(crate) last_boot: u64,
    pub(crate) cores: usize,
}

/// Part of one log, to be replayed.
struct Stretch {
    dir: PathBuf,
    core: usize,
    start: Option<LogStart>,
    ends: Vec<(u64, u64)>,
    /// The positions at which its frames begin.
    from: u64,
    to: u64,
}

/// What is recovered from.
pub(crate) struct Sources<'a> {
    pub(crate) directory: &'a Directory,
    pub(crate) base: Option<Arc<Base>>,
    /// The names in the folder of the logs.
    pub(crate) files: Vec<String>,
}

/// Where the slots go.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) runtime: Runtime,
    /// That the slots are divided among.
    pub(crate) cores: usize,
    pub(crate) slots: SlotTable,
    pub(crate) progress: Arc<Progress>,
}

impl<'a> Sources<'a> {
    pub(crate) async fn list(directory: &'a Directory, base: Option<Arc<Base>>) -> Result<Self, OpenError> {
        let dir = directory.log_dir();
        let files = if lockgate_runtime::fs::exists(&dir).await {
            let files = lockgate_runtime::fs::read_dir(&dir).await;
            files.map_err(|source| OpenError::Io { path: dir.clone(), source })?
        } else {
            Vec::new()
        };
        let sources = Sources { directory, base, files };
        sources.check_beginnings().await?;
        Ok(sources)
    }

    fn start_of(&self, core: usize) -> Option<LogStart> {
        self.base.as_ref().and_then(|base| base.start_of(core))
    }

    /// The files that are read, with the number of their core, and boot and number in their chain.
    fn files(&self) -> impl Iterator<Item = (&str, usize, (u64, u32))> {
        self.files.iter().filter_map(|file| {
            let log = file.split('.').next().unwrap_or(file);
            let core = core_of(log)?;
            let place = parse_file_name(log, file)?;
            let is_kept = self.start_of(core).is_none_or(|start| place >= (start.boot, start.seq));
            is_kept.then_some((file.as_str(), core, place))
        })
    }

    /// How much there is to be read, at most.
    pub(crate) async fn bytes(&self) -> u64 {
        let of_base = |base: &Arc<Base>| base.manifest.head.files.iter().map(|file| file.bytes).sum();
        let mut bytes = self.base.as_ref().map_or(0, of_base);
        for (file, ..) in self.files() {
            let path = self.directory.log_dir().join(file);
            if let Ok(file) = File::open(&path, &OpenOptions::new().read(true)).await {
                bytes += file.len().await.unwrap_or(0);
            }
        }
        bytes
    }

    /// A log of which no checkpoint says from where on it is kept must be there from its beginning.
    async fn check_beginnings(&self) -> Result<(), OpenError> {
        let mut first = BTreeMap::new();
        for (file, core, place) in self.files().filter(|(_, core, _)| self.start_of(*core).is_none()) {
            let known = first.entry(core).or_insert((place, file));
            if place < known.0 {
                *known = (place, file);
            }
        }
        for (core, ((boot, _), file)) in first {
            // What is known of an earlier boot is the better evidence: the recovery finds it.
            let ends = self.directory.known_ends(&core_log_name(core));
            if ends.iter().any(|(known, _)| *known < boot) {
                continue;
            }
            let path = self.directory.log_dir().join(file);
            let failed = |source| OpenError::Io { path: path.clone(), source };
            let opened = File::open(&path, &OpenOptions::new().read(true)).await.map_err(failed)?;
            let (result, mut bytes) = opened.read_at(vec![0; FILE_HEADER_BYTES], 0).await;
            bytes.truncate(result.map_err(failed)?);
            // A header that is none is for the recovery to judge.
            if let Ok(header) = FileHeader::decode(&bytes)
                && header.chain_start > 0
            {
                let why = format!(
                    "the log file {} begins at position {}, and what lies before it is not there",
                    path.display(),
                    header.chain_start
                );
                let manifest = self.directory.checkpoint_dir().join(crate::checkpoint::files::MANIFEST_FILE);
                return Err(LoadError::Missing { file: manifest, why }.into());
            }
        }
        Ok(())
    }

    /// How many cores each boot had, by the files that it made; the checkpoint's boot, as it says.
    fn cores_by_boot(&self) -> BTreeMap<u64, usize> {
        let mut cores = BTreeMap::new();
        let first = self.base.as_ref().map_or(0, |base| base.manifest.head.boot);
        for (_, core, (boot, _)) in self.files().filter(|(_, _, (boot, _))| *boot >= first) {
            let most = cores.entry(boot).or_insert(0);
            *most = (core + 1).max(*most);
        }
        if let Some(base) = &self.base {
            cores.insert(first, base.manifest.head.cores as usize);
        }
        cores
    }

    /// How many logs there are, and were.
    fn logs(&self, cores_by_boot: &BTreeMap<u64, usize>) -> usize {
        let known = self.directory.meta().ends.keys().filter_map(|name| core_of(name));
        let noted =
            self.base.iter().flat_map(|base| base.manifest.head.logs.iter().map(|log| log.core as usize));
        let known = known.chain(noted).map(|core| core + 1);
        cores_by_boot.values().copied().chain(known).max().unwrap_or(0)
    }

    fn stretch(&self, core: usize, after: Option<u64>, last_boot: Option<u64>) -> Stretch {
        let (name, start) = (core_log_name(core), self.start_of(core));
        let ends = self.directory.known_ends(&name);
        let begin = start.map_or(0, |start| start.position);
        let from = after.map_or(begin, |boot| end_of(ends, boot).max(begin));
        let to = last_boot.map_or(u64::MAX, |boot| end_of(ends, boot).max(from));
        Stretch { dir: self.directory.log_dir(), core, start, ends: ends.to_vec(), from, to }
    }
}

/// Replays all core logs of a directory into slots that are what the checkpoint has, or empty. Returns where each log ends.
pub(crate) async fn recover_all(
    sources: &Sources<'_>,
    target: &Target,
) -> Result<BTreeMap<String, Recovered>, OpenError> {
    let cores_by_boot = sources.cores_by_boot();
    let (logs, eras) = (sources.logs(&cores_by_boot), eras(&cores_by_boot));
    let mut recovered = BTreeMap::new();
    let mut before = None;
    for (number, era) in eras.iter().enumerate() {
        let is_last = number + 1 == eras.len();
        let last_boot = (!is_last).then_some(era.last_boot);
        let stretches = (0..logs).map(|core| sources.stretch(core, before, last_boot));
        let stretches = stretches.filter(|stretch| stretch.from < stretch.to).collect();
        recovered.extend(replay_era(stretches, &sources.base, target).await?);
        before = Some(era.last_boot);
    }
    Ok(recovered)
}

/// The end of what a log had after this boot.
fn end_of(ends: &[(u64, u64)], boot: u64) -> u64 {
    ends.iter().filter(|(of, _)| *of <= boot).map(|(_, end)| *end).max().unwrap_or(0)
}

pub(crate) fn core_of(log: &str) -> Option<usize> {
    let core = log.strip_prefix("core-")?.parse().ok()?;
    (core < CORES_MAX && core_log_name(core) == log).then_some(core)
}

pub(crate) fn eras(cores_by_boot: &BTreeMap<u64, usize>) -> Vec<Era> {
    let mut eras: Vec<Era> = Vec::new();
    for (&boot, &cores) in cores_by_boot {
        match eras.last_mut() {
            Some(era) if era.cores == cores => era.last_boot = boot,
            _ => eras.push(Era { last_boot: boot, cores }),
        }
    }
    eras
}

/// Reads the logs and replays their frames, on all cores at the same time.
async fn replay_era(
    stretches: Vec<Stretch>,
    base: &Option<Arc<Base>>,
    target: &Target,
) -> Result<BTreeMap<String, Recovered>, OpenError> {
    let Target { runtime, cores, slots, progress } = target;
    let lanes = Arc::new(Lanes::new(*cores));
    let replaying: Vec<_> = (0..*cores)
        .map(|core| {
            let (lanes, slots, progress) = (lanes.clone(), slots.clone(), progress.clone());
            Job::start_on(runtime, core, move || async move { lanes.replay(core, &slots, &progress).await })
        })
        .collect();
    let reading: Vec<_> = stretches
        .into_iter()
        .map(|stretch| {
            let core = stretch.core;
            let (lanes, base, progress) = (lanes.clone(), base.clone(), progress.clone());
            let read = move || async move {
                read(&stretch, base, lanes, &progress).await.map_err(|error| (error, stretch))
            };
            (core, Job::start_on(runtime, core % cores, read))
        })
        .collect();
    let mut recovered = BTreeMap::new();
    let mut problems = Vec::new();
    // All of them, also when one has failed: they use the slots.
    for (core, job) in reading {
        match job.done().await {
            Ok(end) => drop(recovered.insert(core_log_name(core), end)),
            Err(problem) => problems.push(problem),
        }
    }
    lanes.close();
    for job in replaying {
        job.done().await;
    }
    match lanes.take_failure() {
        Some(failure) => Err(locate(failure, problems).await.into()),
        None => problems.into_iter().next().map_or(Ok(recovered), |(error, _)| Err(error.into())),
    }
}

/// Another reading of a log, up to the frame that could not be replayed: it finds the file and the place.
async fn locate(failure: Failure, problems: Vec<(RecoverError, Stretch)>) -> RecoverError {
    let Failure { log, position, error } = failure;
    let stretch = problems.iter().find(|(_, stretch)| stretch.core == log);
    let mut error = Some(error);
    if let Some((_, Stretch { dir, start, ends, .. })) = stretch {
        let mut at = start.map_or(0, |start| start.position);
        let name = core_log_name(log);
        let found = log::recover(dir, &name, *start, ends, |_, payload| {
            let begin = at;
            at += (FRAME_HEADER_BYTES + payload.len()) as u64;
            let error = if begin == position { error.take() } else { None };
            error.map_or(Ok(()), |error| Err(error.into()))
        });
        if let Err(found) = found.await {
            return found;
        }
    }
    let name = core_log_name(log);
    let source = error.take().map_or_else(|| "a frame could not be replayed".into(), VisitError::from);
    RecoverError::Visit { file: PathBuf::from(name), offset: position, source }
}

/// Reads one log, and hands its frames over.
async fn read(
    stretch: &Stretch,
    base: Option<Arc<Base>>,
    lanes: Arc<Lanes>,
    progress: &Progress,
) -> Result<RecoveredEnd, RecoverError> {
    let mut reader = Reader {
        core: stretch.core,
        span: stretch.from..stretch.to,
        at: stretch.start.map_or(0, |start| start.position),
        base,
        window: Window::of_log(stretch.core),
        sent: Sent::default(),
        lanes,
        progress,
        uncounted_bytes: 0,
    };
    let name = core_log_name(stretch.core);
    let end = log::recover_with(&stretch.dir, &name, stretch.start, &stretch.ends, &mut reader).await?;
    if !reader.window.is_empty() {
        let last = std::mem::take(&mut reader.window);
        reader.sent.send(last, &reader.lanes).await;
    }
    reader.sent.drain(&reader.lanes).await;
    // Its last frames may have failed.
    reader.stopped().map_err(|source| RecoverError::Visit {
        file: PathBuf::from(name),
        offset: 0,
        source,
    })?;
    Ok(end)
}

/// Gathers the frames of one log.
struct Reader<'a> {
    core: usize,
    span: std::ops::Range<u64>,
    /// Where the next frame begins.
    at: u64,
    base: Option<Arc<Base>>,
    window: Window,
    sent: Sent,
    lanes: Arc<Lanes>,
    progress: &'a Progress,
    /// Read, and not counted yet.
    uncounted_bytes: u64,
}

impl Reader<'_> {
    fn stopped(&self) -> Result<(), VisitError> {
        if self.lanes.has_failed() { Err("a frame could not be replayed".into()) } else { Ok(()) }
    }
}

impl Visitor for Reader<'_> {
    fn frame(&mut self, frame: &FrameHeader, payload: &[u8]) -> Result<(), VisitError> {
        let begin = self.at;
        self.at += (FRAME_HEADER_BYTES + payload.len()) as u64;
        if !self.span.contains(&begin) {
            return Ok(());
        }
        self.uncounted_bytes += self.at - begin;
        let slot = Slot::new(frame.slot).ok_or(ReplayError::NoSuchSlot(frame.slot))?;
        if self.base.as_ref().is_some_and(|base| base.has(slot, self.core, self.at)) {
            return Ok(());
        }
        self.window.push(slot, slot.index() % self.lanes.cores(), *frame, begin, payload);
        Ok(())
    }

    async fn batch_end(&mut self) -> Result<(), VisitError> {
        self.stopped()?;
        self.progress.add(std::mem::take(&mut self.uncounted_bytes));
        if self.window.is_full() {
            let full = std::mem::take(&mut self.window);
            self.window = self.sent.send(full, &self.lanes).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eras_are_runs_of_boots_with_the_same_cores() {
        let cores = BTreeMap::from([(1, 2), (2, 2), (4, 3), (5, 2), (6, 2)]);
        let found: Vec<_> = eras(&cores).iter().map(|era| (era.last_boot, era.cores)).collect();
        assert_eq!(found, [(2, 2), (4, 3), (6, 2)]);
    }
}
