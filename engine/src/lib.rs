//! Slots, records, log, recovery and streams: a sharded in-memory store with a durable log.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("data");
//! let engine = lockgate_engine::Engine::builder(path).cores(2).open()?;
//! let users = engine.keyspace(0);
//! users.set(b"ada", b"countess")?;                    // in memory, and appended to the log
//! users.set(b"ada", b"programmer")?.wait_synced()?;   // ... and on the disk (`.synced().await` in async code)
//! let value = users.get(b"ada")?.expect("just set");  // bytes and version; it holds no lock
//! assert_eq!(value.as_bytes(), b"programmer");
//! users.update(b"n", |old| lockgate_engine::Update::Put(vec![old.map_or(1, |n| n[0] + 1)]))?;
//! let (was_there, _receipt) = users.delete(b"ada")?;
//! assert!(was_there && users.len() == 1);
//! let (visits, _receipt) = users.increment(b"visits", 1)?;
//! let slot = lockgate_engine::Slot::of_key(b"{ada}");
//! let _all_or_nothing = engine.batch(slot).set(0, b"{ada}name", b"Ada").set(0, b"{ada}born", b"1815").commit()?;
//! let lock = lockgate_engine::SetOptions {
//!     condition: lockgate_engine::Condition::IfAbsent,
//!     expiry: lockgate_engine::Expiry::After(30_000), // milliseconds
//!     ..Default::default()
//! };
//! assert!(users.set_with(b"lock", b"me", &lock)?.applied && !users.set_with(b"lock", b"you", &lock)?.applied);
//! # Ok(())
//! # }
//! ```
//!
//! Memory operations are done in place, by the calling thread, under the lock of the key's slot, and never wait for a
//! disk. Durability is a receipt. Lock order: stream, slot, then log or schedule; never two slots.
//!
//! From the bottom: `types` and `crc16` (numbers and slots); `record` (the one format); `free_list`, `arena`, `segment`,
//! `chain`, `charge`, `extent` (memory); `index` and `store` (what a slot holds); `gate`, `history`, `subscriptions`, `wakes`, `watchers`, `slot` (all that a slot's lock guards),
//! `cell` (the lock); `compaction` and `compactor` (how memory comes back); [`log`] and [`meta`] (the disk); `expiry` and
//! `sweeper` (how keys end); `dirty` and `stream` (reading slots while they are written); `options`, `keyspace`, `many`,
//! `scan`, `modify`, `batch`, `clear`, `apply`, `ownership` (what can be done with slots); `cores` (work on a certain core);
//! [`checkpoint`], `kept`, `recovery`, `builder`, `engine`.
//!
//! [`backup`] writes what slots hold to one file and makes new directories of it; [`check`] looks at directories that nobody uses,
//! and makes new ones of what is left of damaged ones.
//!
//! What this crate does not know: that other nodes exist. A slot has a gate, an opaque term and a generation, and the
//! layer above gives them a meaning.

mod apply;
mod arena;
pub mod backup;
mod batch;
mod beside;
mod builder;
mod bytes;
mod cell;
mod chain;
mod charge;
pub mod check;
pub mod checkpoint;
mod clear;
mod compaction;
#[cfg(test)]
mod compaction_tests;
mod compactor;
mod cores;
mod counts;
mod crc16;
mod dirty;
mod engine;
mod error;
mod expiry;
mod extent;
mod frames;
mod free_list;
mod gate;
mod history;
mod index;
mod kept;
mod keyspace;
mod lazy_table;
pub mod log;
#[cfg(all(test, loom))]
mod loom_tests;
mod many;
pub mod meta;
mod modify;
mod options;
mod ownership;
pub mod record;
mod recovery;
mod scan;
mod segment;
mod slot;
mod slots;
mod stats;
mod store;
mod stream;
mod subscriptions;
mod sweeper;
mod types;
mod value;
mod wakes;
mod watchers;

pub use arena::OutOfMemory;
pub use batch::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Batch};
pub use builder::{CORES_MAX, EngineBuilder, MEMORY_BYTES_MAX_DEFAULT};
pub use checkpoint::{CheckpointError, CheckpointStats, CheckpointsStats};
pub use clear::Cleared;
pub use compactor::StableWatermarks;
pub use crc16::{crc16, hash_tag};
pub use engine::Engine;
pub use error::{
    ApplyError, BatchError, ClearError, OpError, OpenError, SlotError, SubscribeError, WaitError,
};
pub use frames::{
    FRAME_DATA, FRAME_DROP, FRAME_FLOOR, FRAME_OPEN, FRAME_STABLE, FRAME_TERM, FRAME_TRUNCATE,
    FRAME_UNDO_FLOOR,
};
pub use gate::Action;
pub use keyspace::Keyspace;
pub use log::{LogFailed, LogPosition};
pub use options::{Condition, Deadline, Durability, Expiry, SetOptions, SetOutcome};
pub use recovery::{RecoveryProgress, ReplayError};
pub use scan::{ScanCursor, ScanEntry, ScanPage};
pub use segment::PinnedRange;
pub use stats::{CompactionStats, CoreStats, DataStats, EngineStats, KeyspaceStats, SlotStats};
pub use stream::{SlotStream, StreamRange};
pub use types::{
    Applied, Boot, Floors, FrozenAt, Gate, Generation, KEY_BYTES_MAX, LogTicket, RangeHeader, SLOTS, Slot,
    SlotStatus, Term, Truncated, VALUE_BYTES_MAX, Version,
};
pub use value::{Followed, Read, Receipt, Update, Value};

/// Everything may be used from any thread, and waited for by tasks that move between threads, such as tokio's.
const _: () = {
    const fn for_any_thread<T: Send + Sync>() {}
    const fn movable<T: Send>(_: &T) {}
    for_any_thread::<(Engine, Keyspace, Batch<'static>, SlotStream, StreamRange)>();
    for_any_thread::<(Value, Receipt, SetOutcome, Read, ScanPage, PinnedRange)>();
    for_any_thread::<(OpError, OpenError, BatchError, ClearError, LogFailed)>();
    _ = |engine: &Engine, receipt: &Receipt, slot| {
        movable(&receipt.durable());
        movable(&engine.sync_all());
        movable(&engine.wait_log_room(slot));
        movable(&engine.close());
    };
};
