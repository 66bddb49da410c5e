//! Numbers about an engine.

use crate::log::{Log, LogPosition};

/// What an engine holds and how far its logs are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Live keys of all slots, served or not.
    pub keys: u64,
    /// Those of them that have a deadline.
    pub keys_with_deadline: u64,
    /// Bytes of the live records.
    pub live_bytes: u64,
    /// Bytes of all records that slots hold, live or not.
    pub record_bytes: u64,
    /// Bytes of the records that hold no live value: what a compaction may free.
    pub garbage_bytes: u64,
    /// What compactions did since the engine was opened.
    pub compaction: CompactionStats,
    /// Memory of the segments that slots hold.
    pub segment_bytes: u64,
    /// Memory of the indexes.
    pub index_bytes: u64,
    /// Memory of all segments, those that only a pin holds included.
    pub memory_used_bytes: u64,
    /// The bound on `memory_used_bytes`.
    pub memory_max_bytes: u64,
    /// Slots whose gate is not Absent.
    pub slots_present: u64,
    /// Slots that serve reads.
    pub slots_served: u64,
    /// One entry per core.
    pub cores: Vec<CoreStats>,
}

/// What compactions did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionStats {
    /// Steps that freed something.
    pub steps: u64,
    /// Live records that were copied.
    pub moved_records: u64,
    /// Bytes of all records that were copied.
    pub moved_bytes: u64,
    /// Bytes of records that are gone.
    pub freed_bytes: u64,
}

/// How far one core's log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreStats {
    /// The end of what was appended.
    pub log_appended: LogPosition,
    /// The end of what the operating system has.
    pub log_written: LogPosition,
    /// The end of what the disk has.
    pub log_synced: LogPosition,
}

impl CoreStats {
    pub(crate) fn of(log: &Log) -> CoreStats {
        // Read in this order, so that synced <= written <= appended also while the log goes on.
        let log_synced = log.synced();
        let log_written = log.written();
        CoreStats { log_appended: log.appended(), log_written, log_synced }
    }
}
