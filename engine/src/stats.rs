//! Numbers about an engine.

use std::ops::AddAssign;

use crate::checkpoint::CheckpointsStats;
use crate::log::{Log, LogPosition};
use crate::store::Store;
use crate::types::{Gate, Version};

/// What the data of a slot, or of many, takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataStats {
    /// Live keys, those that are due and not deleted yet among them.
    pub keys: u64,
    /// Those of them that have a deadline.
    pub keys_with_deadline: u64,
    /// Bytes of the live records.
    pub live_bytes: u64,
    /// Bytes of the other records: what was superseded, and what says that something is gone.
    pub dead_bytes: u64,
    /// Memory of the segments, their unused rest included.
    pub segment_bytes: u64,
    /// Memory of the index.
    pub index_bytes: u64,
}

impl DataStats {
    pub(crate) fn of(store: &Store) -> DataStats {
        DataStats {
            keys: store.keys(),
            keys_with_deadline: store.keys_with_deadline(),
            live_bytes: store.live_bytes(),
            dead_bytes: store.garbage_bytes(),
            segment_bytes: store.chain().segment_bytes(),
            index_bytes: store.index_bytes(),
        }
    }
}

impl AddAssign for DataStats {
    fn add_assign(&mut self, other: DataStats) {
        self.keys += other.keys;
        self.keys_with_deadline += other.keys_with_deadline;
        self.live_bytes += other.live_bytes;
        self.dead_bytes += other.dead_bytes;
        self.segment_bytes += other.segment_bytes;
        self.index_bytes += other.index_bytes;
    }
}

/// What one slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotStats {
    /// What may be done with it.
    pub gate: Gate,
    /// The last write's version.
    pub version: Version,
    /// Over all keyspaces.
    pub data: DataStats,
    /// One entry per keyspace that has live keys here, in the order of their numbers.
    pub keyspaces: Vec<KeyspaceStats>,
}

impl SlotStats {
    /// Of a slot that holds nothing.
    pub(crate) fn of_nothing(gate: Gate) -> SlotStats {
        SlotStats { gate, version: Version::ZERO, data: DataStats::default(), keyspaces: Vec::new() }
    }
}

/// What one keyspace has in one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyspaceStats {
    /// Its number.
    pub keyspace: u8,
    /// Live keys.
    pub keys: u64,
    /// Those of them that have a deadline.
    pub keys_with_deadline: u64,
}

impl KeyspaceStats {
    pub(crate) fn all_of(store: &Store) -> Vec<KeyspaceStats> {
        let all = store.keyspaces();
        all.map(|(keyspace, keys, keys_with_deadline)| KeyspaceStats { keyspace, keys, keys_with_deadline })
            .collect()
    }
}

/// What an engine holds and how far its logs are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Live keys of all slots, served or not.
    pub keys: u64,
    /// Those of them that have a deadline.
    pub keys_with_deadline: u64,
    /// Bytes of the live records.
    pub live_bytes: u64,
    /// Bytes of the other records: what was superseded, and what says that something is gone.
    pub dead_bytes: u64,
    /// What compactions did since the engine was opened.
    pub compaction: CompactionStats,
    /// Its checkpoints.
    pub checkpoints: CheckpointsStats,
    /// Memory of the segments that slots hold.
    pub segment_bytes: u64,
    /// Memory of the indexes.
    pub index_bytes: u64,
    /// Memory of all segments, those that only a pin holds included, and of the indexes.
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

impl CompactionStats {
    /// How often a byte is written to memory altogether, in a steady state, in which as much is freed as is written anew:
    /// once, and each time that it is moved. 1 before anything was freed.
    pub fn write_amplification(&self) -> f64 {
        if self.freed_bytes == 0 { 1.0 } else { 1.0 + self.moved_bytes as f64 / self.freed_bytes as f64 }
    }
}

impl EngineStats {
    /// Which part of the records' bytes is live: 1 where there is no garbage.
    pub fn live_ratio(&self) -> f64 {
        let all_bytes = self.live_bytes + self.dead_bytes;
        if all_bytes == 0 { 1.0 } else { self.live_bytes as f64 / all_bytes as f64 }
    }

    /// Counts a slot of this core. The cores are there already.
    pub(crate) fn add(&mut self, core: usize, slot: &SlotStats) {
        let data = slot.data;
        self.keys += data.keys;
        self.keys_with_deadline += data.keys_with_deadline;
        self.live_bytes += data.live_bytes;
        self.dead_bytes += data.dead_bytes;
        self.segment_bytes += data.segment_bytes;
        self.index_bytes += data.index_bytes;
        self.slots_present += u64::from(slot.gate != Gate::Absent);
        self.slots_served += u64::from(slot.gate.serves_reads());
        self.cores[core].data += data;
        self.cores[core].slots_served += u64::from(slot.gate.serves_reads());
    }
}

/// How far one core's log is, and what its slots hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreStats {
    /// The end of what was appended.
    pub log_appended: LogPosition,
    /// The end of what the operating system has.
    pub log_written: LogPosition,
    /// The end of what the disk has.
    pub log_synced: LogPosition,
    /// Whether the disk has no space for the log's next file: data will be refused, or is.
    pub log_disk_full: bool,
    /// Its slots that serve reads.
    pub slots_served: u64,
    /// Over all of its slots, served or not.
    pub data: DataStats,
}

impl CoreStats {
    pub(crate) fn of(log: &Log) -> CoreStats {
        // Read in this order, so that synced <= written <= appended also while the log goes on.
        let log_synced = log.synced();
        let log_written = log.written();
        CoreStats {
            log_appended: log.appended(),
            log_written,
            log_synced,
            log_disk_full: log.is_disk_full(),
            ..CoreStats::default()
        }
    }
}
