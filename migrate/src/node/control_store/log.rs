//! The control log's files: one log at a time, and the next one that begins with a snapshot.
//!
//! A log only grows, and control entries are needed until a snapshot covers them. So when enough has gathered, a log of its
//! own is begun: its first record is everything that this node must have (a snapshot, the hard state, the entries after
//! it). When that is on the disk, the files of the one before are removed. The logs are named `control`, `control-1`,
//! `control-2` and so on.
//!
//! Invariants
//! - The newest log whose first record is whole counts, and no other. A torn first record is a log that was never begun.
//! - What is synced in the new log covers what was appended to the old one before: its first record holds that too.
//! - The old log's files are removed only after the new one's first record is synced, and after it was recorded that there
//!   was a log: a directory that has lost all of its control log must not begin anew (it would vote twice in a term).
//! - The new log's first file is made ready in the background; the switch itself touches no disk.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use lockgate_engine::Engine;
use lockgate_engine::log::{FrameHeader, FrameKind, Log, LogConfig, LogError, LogFailed, LogPosition};
use lockgate_runtime::fs;

use crate::control::{ClusterMap, Persist, RaftCore, encode_map, encode_persist};
use crate::node::driver::DriverError;

/// Name of the first log; the later ones have their number behind it.
pub(super) const CONTROL_LOG: &str = "control";
/// Size of a file: entries are small and rare.
const FILE_BYTES: u64 = 4 << 20;
/// Frame kind of consensus' records; the engine's kinds lie below.
pub(super) const KIND_CONSENSUS: FrameKind = FrameKind(64);
/// What a record takes on the disk beside its bytes, about.
const RECORD_OVERHEAD_BYTES: u64 = 512;

/// When a log is begun anew.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompactLimits {
    /// Applied entries since the last snapshot.
    pub entries: u64,
    /// Bytes appended since the log's first record.
    pub bytes: u64,
}

impl Default for CompactLimits {
    fn default() -> Self {
        Self { entries: 4_096, bytes: 16 << 20 }
    }
}

/// Name of the log with this number.
pub(super) fn log_name(number: u64) -> String {
    if number == 0 { CONTROL_LOG.to_owned() } else { format!("{CONTROL_LOG}-{number}") }
}

/// The number of the control log that a file is part of.
pub(super) fn number_of_file(file: &str) -> Option<u64> {
    let (log, _) = file.strip_suffix(".log")?.split_once('.')?;
    let number = match log.strip_prefix(CONTROL_LOG)? {
        "" => 0,
        rest => rest.strip_prefix('-')?.parse().ok()?,
    };
    (log_name(number) == log).then_some(number)
}

/// Creates the log with this number, going on at `position`.
pub(super) async fn create(engine: &Engine, number: u64, position: LogPosition) -> Result<Log, LogError> {
    let mut config = LogConfig::new(engine.log_dir(), log_name(number), engine.boot().number);
    config.file_bytes = FILE_BYTES;
    Log::create(config, position.0).await
}

/// Records that a control log is over. Of the first one it stays known that it was there.
pub(super) async fn forget(engine: &Engine, number: u64) -> Result<(), lockgate_engine::meta::MetaError> {
    let ends = if number == 0 { vec![(engine.boot().number, 1)] } else { vec![] };
    engine.accept_ends(&log_name(number), ends).await
}

/// Removes a log's files. What cannot be removed only takes room: the next start tries again.
pub(super) async fn remove_files(dir: &Path, number: u64) {
    let mut files = fs::read_dir(dir).await.unwrap_or_default();
    files.retain(|file| number_of_file(file) == Some(number));
    // From the last one down, as everywhere.
    files.sort_unstable_by(|a, b| b.cmp(a));
    for file in files {
        let path = dir.join(file);
        if let Err(error) = fs::remove_file(&path).await {
            tracing::warn!(file = %path.display(), %error, "a file of an old control log could not be removed");
        }
    }
}

/// Where a record ends, and in which log.
pub(crate) struct Appended {
    log: Log,
    end: LogPosition,
}

/// The log that comes next.
enum Next {
    None,
    Preparing,
    Ready(Log),
}

struct Inner {
    engine: Engine,
    log: Log,
    number: u64,
    /// Appended since the log's first record.
    bytes: u64,
    /// The number of the next log, which nothing on the disk has.
    next_number: u64,
    next: Next,
    limits: CompactLimits,
    /// After a failure, the applied index at which it is tried again.
    not_before: u64,
    /// Whether a member needs a newer snapshot, as of this applied index.
    wanted: (u64, bool),
}

/// The control log on disk. All handles are one; they live on the driver's core.
#[derive(Clone)]
pub(crate) struct ControlLog {
    inner: Rc<RefCell<Inner>>,
}

impl ControlLog {
    pub(super) fn new(engine: Engine, log: Log, number: u64, next_number: u64) -> ControlLog {
        let inner = Inner {
            engine,
            log,
            number,
            bytes: 0,
            next_number,
            next: Next::None,
            limits: CompactLimits::default(),
            not_before: 0,
            wanted: (0, false),
        };
        ControlLog { inner: Rc::new(RefCell::new(inner)) }
    }

    /// Appends what consensus must keep. `None` if there was nothing.
    pub fn append(&self, persist: &Persist) -> Result<Option<Appended>, DriverError> {
        if persist.is_empty() {
            return Ok(None);
        }
        let mut inner = self.inner.borrow_mut();
        let record = encode_persist(persist)?;
        inner.bytes += record.len() as u64 + RECORD_OVERHEAD_BYTES;
        let end = append_record(&inner.log, &record)?;
        Ok(Some(Appended { log: inner.log.clone(), end }))
    }

    /// Asks for a record's sync at once: the log's writer, which appending has woken, then writes and syncs in one.
    pub fn request_sync(&self, appended: &Appended) {
        appended.log.request_sync(appended.end);
    }

    /// Waits until a record is synced, and asks for the sync.
    pub async fn wait_synced(&self, appended: Appended) -> Result<(), LogFailed> {
        appended.log.wait_synced(appended.end).await
    }

    /// Begins the log anew, with `map` as its snapshot, when enough has gathered. To be called after entries were applied
    /// and before consensus is asked for more; it costs little when there is nothing to do.
    pub fn compact_if_due(&self, raft: &mut RaftCore, map: &ClusterMap) -> Result<(), DriverError> {
        let mut inner = self.inner.borrow_mut();
        let entries = map.applied.saturating_sub(raft.snapshot_index());
        if inner.wanted.0 != map.applied {
            inner.wanted = (map.applied, raft.lacks_snapshot_for_member());
        }
        let due = entries >= inner.limits.entries || inner.bytes >= inner.limits.bytes || inner.wanted.1;
        // A log begins with what was applied and is on the disk: the map waits until it is no further.
        raft.stay_in_step(due);
        // A snapshot that came from the leader is kept, and the owner has yet to install it.
        let is_behind = map.applied != raft.applied();
        if !due || is_behind || map.applied < inner.not_before {
            return Ok(());
        }
        match std::mem::replace(&mut inner.next, Next::Preparing) {
            Next::None => {
                let (engine, number) = (inner.engine.clone(), inner.next_number);
                lockgate_runtime::spawn(self.clone().prepare(engine, number, map.applied));
                Ok(())
            }
            Next::Preparing => Ok(()),
            Next::Ready(next) => {
                if let Err(error) = raft.compact(map.applied, encode_map(map)?) {
                    tracing::error!(%error, "the control log cannot be compacted: it goes on growing");
                    inner.not_before = map.applied + inner.limits.entries;
                    inner.next = Next::Ready(next);
                    return Ok(());
                }
                inner.switch_to(next, &raft.kept())
            }
        }
    }

    /// Begins a log of another generation with this record: when it returns, that is on the disk, and the log before it
    /// is given up. Nothing may be on its way to the old log.
    pub async fn begin_anew(&self, kept: &Persist) -> Result<(), DriverError> {
        // A log that is being made ready would take the same number.
        while matches!(self.inner.borrow().next, Next::Preparing) {
            lockgate_runtime::yield_now().await;
        }
        let (engine, number, unused) = {
            let mut inner = self.inner.borrow_mut();
            let unused = std::mem::replace(&mut inner.next, Next::Preparing);
            (inner.engine.clone(), inner.next_number, unused)
        };
        if let Next::Ready(unused) = unused {
            unused.close().await?;
        }
        let record = encode_persist(kept)?;
        let next = create(&engine, number, LogPosition(0)).await?;
        let end = append_record(&next, &record)?;
        next.wait_synced(end).await?;
        let old = {
            let mut inner = self.inner.borrow_mut();
            inner.next_number = number + 1;
            (inner.bytes, inner.next, inner.wanted, inner.not_before) = (0, Next::None, (0, false), 0);
            let log = std::mem::replace(&mut inner.log, next.clone());
            (log, std::mem::replace(&mut inner.number, number))
        };
        lockgate_runtime::spawn(give_back(engine, old, (next, end)));
        Ok(())
    }

    async fn prepare(self, engine: Engine, number: u64, applied: u64) {
        let created = create(&engine, number, LogPosition(0)).await;
        let mut inner = self.inner.borrow_mut();
        // A number that failed may have left a file: it is not used again.
        inner.next_number = number + 1;
        inner.next = match created {
            Ok(log) => Next::Ready(log),
            Err(error) => {
                tracing::error!(%error, "the control log cannot be compacted now: it goes on growing");
                inner.not_before = applied + inner.limits.entries;
                Next::None
            }
        };
    }

    /// Writes and syncs what was appended, and ends the log.
    pub async fn close(&self) -> Result<(), LogFailed> {
        let (log, next) = {
            let mut inner = self.inner.borrow_mut();
            (inner.log.clone(), std::mem::replace(&mut inner.next, Next::Preparing))
        };
        if let Next::Ready(next) = next {
            // Nothing is in it. The next start removes it.
            next.close().await?;
        }
        log.close().await
    }

    #[cfg(test)]
    pub(super) fn set_limits(&self, limits: CompactLimits) {
        self.inner.borrow_mut().limits = limits;
    }

    #[cfg(test)]
    pub(super) fn number(&self) -> u64 {
        self.inner.borrow().number
    }
}

impl Inner {
    /// From here on `next` is the log.
    fn switch_to(&mut self, next: Log, kept: &Persist) -> Result<(), DriverError> {
        let record = encode_persist(kept)?;
        let end = append_record(&next, &record)?;
        let old = std::mem::replace(&mut self.log, next.clone());
        let old_number = std::mem::replace(&mut self.number, self.next_number - 1);
        (self.bytes, self.next, self.wanted) = (0, Next::None, (0, false));
        tracing::info!(log = self.number, bytes = record.len(), "the control log was compacted");
        lockgate_runtime::spawn(give_back(self.engine.clone(), (old, old_number), (next, end)));
        Ok(())
    }
}

fn append_record(log: &Log, record: &[u8]) -> Result<LogPosition, DriverError> {
    let header = FrameHeader { kind: KIND_CONSENSUS, slot: 0, generation: 0, term: 0, base: 0 };
    let reservation = log.reserve_control(record.len())?;
    Ok(log.append(reservation, header, &[record])?)
}

/// Removes the old log once the new one stands.
async fn give_back(engine: Engine, (old, number): (Log, u64), (new, end): (Log, LogPosition)) {
    // A log that fails ends the node: then the next start sees which of the two counts.
    if new.wait_synced(end).await.is_err() || old.close().await.is_err() {
        return;
    }
    if let Err(error) = forget(&engine, number).await {
        tracing::warn!(%error, "an old control log could not be given up: its files stay until the next start");
        return;
    }
    remove_files(&engine.log_dir(), number).await;
}
