//! How far a recovery is, for whoever waits for it.

use lockgate_runtime::now_ns;
use lockgate_runtime::sync::atomic::{AtomicU64, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};

/// It is looked whether somebody is to be told whenever so much more was read.
const LOOK_BYTES: u64 = 1 << 20;
/// The embedder is told at most so often.
const TELL_NS: u64 = 50_000_000;
/// A line in the trace at most so often.
const TRACE_NS: u64 = 1_000_000_000;

/// How far a recovery is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryProgress {
    /// Bytes of the checkpoint and of the logs that are done.
    pub bytes_done: u64,
    /// All of them, at most: how much of the last log files is in use is known only in the end.
    pub bytes_total: u64,
    /// How long it has taken so far.
    pub elapsed_ms: u64,
}

/// Whom the embedder wants to be called.
#[derive(Clone)]
pub(crate) struct OnProgress(pub(crate) Arc<dyn Fn(RecoveryProgress) + Send + Sync>);

impl std::fmt::Debug for OnProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnProgress")
    }
}

/// What all cores of a recovery count.
pub(crate) struct Progress {
    started_ns: u64,
    bytes_total: u64,
    bytes_done: AtomicU64,
    frames: AtomicU64,
    on_progress: Option<OnProgress>,
    /// When the embedder was told last, and the trace.
    told: Mutex<(u64, u64)>,
}

impl Progress {
    pub(crate) fn new(bytes_total: u64, on_progress: Option<OnProgress>) -> Progress {
        let started_ns = now_ns();
        Progress {
            started_ns,
            bytes_total,
            bytes_done: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            on_progress,
            told: Mutex::new((started_ns, started_ns)),
        }
    }

    /// So much more is done.
    pub(crate) fn add(&self, bytes: u64) {
        let before = self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        if before / LOOK_BYTES == (before + bytes) / LOOK_BYTES {
            return;
        }
        let now_ns = now_ns();
        let (tells, traces) = {
            let mut told = self.told.lock();
            let due = (now_ns - told.0 >= TELL_NS, now_ns - told.1 >= TRACE_NS);
            *told = (if due.0 { now_ns } else { told.0 }, if due.1 { now_ns } else { told.1 });
            due
        };
        let done = (before + bytes).min(self.bytes_total);
        if traces {
            self.trace("recovering", done, now_ns);
        }
        if tells {
            self.tell(done, now_ns);
        }
    }

    /// So many more frames were replayed.
    pub(crate) fn count(&self, frames: u64) {
        self.frames.fetch_add(frames, Ordering::Relaxed);
    }

    /// All is done.
    pub(crate) fn end(&self) {
        let now_ns = now_ns();
        self.trace("recovered", self.bytes_done.load(Ordering::Relaxed), now_ns);
        self.tell(self.bytes_total, now_ns);
    }

    fn elapsed_ms(&self, now_ns: u64) -> u64 {
        (now_ns - self.started_ns) / 1_000_000
    }

    fn trace(&self, what: &str, bytes: u64, now_ns: u64) {
        let (frames, elapsed_ms) = (self.frames.load(Ordering::Relaxed), self.elapsed_ms(now_ns));
        tracing::info!(bytes, of_bytes_at_most = self.bytes_total, frames, elapsed_ms, "{what}");
    }

    fn tell(&self, bytes_done: u64, now_ns: u64) {
        if let Some(OnProgress(tell)) = &self.on_progress {
            let elapsed_ms = self.elapsed_ms(now_ns);
            tell(RecoveryProgress { bytes_done, bytes_total: self.bytes_total, elapsed_ms });
        }
    }
}
