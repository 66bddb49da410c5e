//! What can go wrong, one small enum per kind of call. Each says what happened, to what, and what to do.

use std::path::PathBuf;

use thiserror::Error;

use crate::arena::OutOfMemory;
use crate::batch::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use crate::checkpoint::LoadError;
use crate::clear::Cleared;
use crate::log::{LogError, LogFailed, LogWaitError, RecoverError};
use crate::meta::MetaError;
use crate::record::RecordError;
use crate::types::{Gate, Generation, KEY_BYTES_MAX, Slot, Term, VALUE_BYTES_MAX, Version};

/// Why an operation on a key was refused. Nothing was changed.
#[derive(Clone, Debug, Error)]
pub enum OpError {
    /// A handover of the slot is near: writes wait. It passes.
    #[error("slot {slot} is frozen for a handover: wait for its gate to change and try again")]
    Frozen {
        /// The key's slot.
        slot: Slot,
    },
    /// The slot is not served here.
    #[error("slot {slot} is not served here (its gate is: {gate}): ask its owner")]
    NotOwned {
        /// The key's slot.
        slot: Slot,
        /// What it is here.
        gate: Gate,
    },
    /// Too much waits to be written to the log. It passes.
    #[error("slot {slot}: {source}")]
    LogBehind {
        /// The key's slot.
        slot: Slot,
        /// Which log, and by how much.
        source: LogError,
    },
    /// The disk of the log is full. Reads go on; it passes when somebody makes space.
    #[error("slot {slot}: {source}")]
    DiskFull {
        /// The key's slot.
        slot: Slot,
        /// Which log, and what is left.
        source: LogError,
    },
    /// The engine's memory bound is reached.
    #[error("slot {slot}: {source}")]
    OutOfMemory {
        /// The key's slot.
        slot: Slot,
        /// How much is in use.
        source: OutOfMemory,
    },
    /// The key is over the limit.
    #[error("a key of {bytes} bytes is over the limit of {KEY_BYTES_MAX}")]
    KeyTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The value is over the limit.
    #[error("a value of {bytes} bytes is over the limit of {VALUE_BYTES_MAX}")]
    ValueTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The value is not the decimal text of a 64-bit integer, so that it cannot be incremented.
    #[error(
        "the value is not an integer of 64 bits in decimal, so it cannot be incremented: set the key anew"
    )]
    NotAnInteger,
    /// The sum does not fit 64 bits.
    #[error("{value} incremented by {by} does not fit 64 bits")]
    Overflow {
        /// What the key has.
        value: i64,
        /// What was to be added.
        by: i64,
    },
    /// A scan's cursor comes from another start of the engine: its order is gone.
    #[error(
        "slot {slot}: the scan's cursor is of another engine, or of an earlier start of it: begin the scan anew"
    )]
    ForeignCursor {
        /// The slot that was to be scanned.
        slot: Slot,
    },
    /// The log has failed for good, or is closed.
    #[error(transparent)]
    LogFailed(#[from] LogFailed),
}

impl OpError {
    /// Whether the same call may succeed here a little later. A full disk is not counted: it may last.
    pub fn is_retryable(&self) -> bool {
        matches!(self, OpError::Frozen { .. } | OpError::LogBehind { .. })
    }

    pub(crate) fn from_log(slot: Slot, error: LogError) -> OpError {
        match error {
            LogError::Failed(failed) => OpError::LogFailed(failed),
            source @ LogError::DiskFull { .. } => OpError::DiskFull { slot, source },
            source => OpError::LogBehind { slot, source },
        }
    }
}

/// Why a batch was refused. Nothing was written.
#[derive(Clone, Debug, Error)]
pub enum BatchError {
    /// A key of another slot.
    #[error(
        "entry {entry} of a batch for slot {slot} has a key of slot {of}: a batch is of one slot; give keys that belong together \
         the same {{hash tag}}"
    )]
    ForeignKey {
        /// The batch's slot.
        slot: Slot,
        /// Where the key belongs.
        of: Slot,
        /// Which entry, counted from 0 in the order in which they were added.
        entry: usize,
    },
    /// Too many entries.
    #[error("a batch of {records} records is over the limit of {BATCH_RECORDS_MAX}: split it")]
    TooManyRecords {
        /// How many, where of the entries with the same key only the last one counts.
        records: usize,
    },
    /// The records would be too long together.
    #[error(
        "a batch of {bytes} bytes is over the limit of {BATCH_BYTES_MAX}: split it, or set long values by themselves"
    )]
    TooLong {
        /// The length of the records, headers included.
        bytes: usize,
    },
    /// What every write may meet with.
    #[error(transparent)]
    Op(#[from] OpError),
}

impl BatchError {
    /// Whether the same commit may succeed here a little later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, BatchError::Op(error) if error.is_retryable())
    }
}

/// Why a keyspace could not be cleared on all slots. The same call goes on where this one ended.
#[derive(Clone, Debug, Error)]
#[error("{source}; {} keys were cleared before", cleared.keys)]
pub struct ClearError {
    /// What was cleared before.
    pub cleared: Cleared,
    /// Why the next slot was not.
    pub source: OpError,
}

/// Why a slot's gate could not be changed. Nothing was changed.
#[derive(Clone, Debug, Error)]
pub enum SlotError {
    /// The call is about a generation that is over here.
    #[error("slot {slot}: generation {wanted} is over, {have} is the one that counts now")]
    Stale {
        /// The slot.
        slot: Slot,
        /// The newest generation that is known here.
        have: Generation,
        /// The one that the call named.
        wanted: Generation,
    },
    /// The call is about a generation that was never opened here.
    #[error("slot {slot}: generation {wanted} is not open here, {have} is: open it first")]
    NotOpen {
        /// The slot.
        slot: Slot,
        /// The newest generation that is known here.
        have: Generation,
        /// The one that the call named.
        wanted: Generation,
    },
    /// The transition does not start at the slot's gate.
    #[error("slot {slot} cannot {action}: its gate is {have}")]
    WrongGate {
        /// The slot.
        slot: Slot,
        /// The gate that it has.
        have: Gate,
        /// What was wanted of it.
        action: crate::gate::Action,
    },
    /// Ownership with a term below what the slot has seen, or with one whose writes were taken back here.
    #[error("slot {slot}: term {wanted} is too low: the slot's term is {have}")]
    TermTooLow {
        /// The slot.
        slot: Slot,
        /// The slot's term.
        have: Term,
        /// The one that the call named.
        wanted: Term,
    },
    /// What the slot would have to be truncated to is not all here any more.
    #[error("slot {slot}: it cannot go back to {wanted}, below its floor {floor}: start the slot anew")]
    BelowFloor {
        /// The slot.
        slot: Slot,
        /// The highest tombstone that was discarded.
        floor: Version,
        /// What was wanted.
        wanted: Version,
    },
    /// The engine's memory bound is reached.
    #[error("slot {slot}: {source}")]
    OutOfMemory {
        /// The slot.
        slot: Slot,
        /// How much is in use.
        source: OutOfMemory,
    },
    /// The log takes nothing now. `Behind` and `DiskFull` pass, failure does not.
    #[error("slot {slot}: {source}")]
    Log {
        /// The slot.
        slot: Slot,
        /// What the log said.
        source: LogError,
    },
}

impl SlotError {
    /// Whether the same call may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, SlotError::Log { source, .. } if source.is_retryable())
    }
}

/// Why a range of another node's records was not taken. Nothing was changed.
#[derive(Clone, Debug, Error)]
pub enum ApplyError {
    /// The slot does not take ranges, or not of this generation.
    #[error(
        "slot {slot} does not take ranges of generation {wanted}: its gate is {gate}, its generation {have}"
    )]
    NotTaking {
        /// The slot.
        slot: Slot,
        /// What it is here.
        gate: Gate,
        /// The generation that is open here.
        have: Generation,
        /// The one that the range belongs to.
        wanted: Generation,
    },
    /// Something that is not a record.
    #[error("slot {slot}: the range is damaged at byte {offset}: {source}")]
    Record {
        /// The slot.
        slot: Slot,
        /// Where the record begins in the range.
        offset: usize,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A key of another slot.
    #[error("slot {slot}: the record at byte {offset} is of a key of slot {of}")]
    ForeignKey {
        /// The slot.
        slot: Slot,
        /// Where the record begins in the range.
        offset: usize,
        /// Where its key belongs.
        of: Slot,
    },
    /// Versions within a range must increase.
    #[error("slot {slot}: the record at byte {offset} is not newer than the one before it")]
    OutOfOrder {
        /// The slot.
        slot: Slot,
        /// Where the record begins in the range.
        offset: usize,
    },
    /// Versions beyond what a counter holds.
    #[error("slot {slot}: the counters of a range with base {base} do not fit 64 bits")]
    BadBase {
        /// The slot.
        slot: Slot,
        /// The range's base.
        base: u64,
    },
    /// No records, or more than one log frame holds.
    #[error(
        "slot {slot}: a range of {bytes} bytes; it must hold at least one record and at most {max_bytes} bytes"
    )]
    BadLength {
        /// The slot.
        slot: Slot,
        /// The range's length.
        bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The range comes from an owner that a later one has replaced.
    #[error("slot {slot}: a range of term {term} after data of term {have}")]
    TermTooLow {
        /// The slot.
        slot: Slot,
        /// The term of the slot's last record.
        have: Term,
        /// The range's term.
        term: Term,
    },
    /// The range does not continue what is here: the slot has writes that its sender never had.
    #[error(
        "slot {slot}: a range of term {term} that begins after counter {base} does not continue {version}: start the slot anew"
    )]
    Diverged {
        /// The slot.
        slot: Slot,
        /// The slot's last version.
        version: Version,
        /// The range's term.
        term: Term,
        /// The range's base.
        base: u64,
    },
    /// The engine's memory bound is reached.
    #[error("slot {slot}: {source}")]
    OutOfMemory {
        /// The slot.
        slot: Slot,
        /// How much is in use.
        source: OutOfMemory,
    },
    /// The log takes nothing now. `Behind` and `DiskFull` pass, failure does not.
    #[error("slot {slot}: {source}")]
    Log {
        /// The slot.
        slot: Slot,
        /// What the log said.
        source: LogError,
    },
}

impl ApplyError {
    /// Whether the same call may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, ApplyError::Log { source, .. } if source.is_retryable())
    }
}

/// Why a stream cannot follow a slot from where its receiver stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubscribeError {
    /// No data of that generation here.
    #[error("slot {slot} has no data of generation {wanted} here: its gate is {gate}, its generation {have}")]
    NotHere {
        /// The slot.
        slot: Slot,
        /// What it is here.
        gate: Gate,
        /// The generation here.
        have: Generation,
        /// The one that was asked for.
        wanted: Generation,
    },
    /// The receiver has writes that are not in this slot's history.
    #[error(
        "slot {slot}: the cursor {cursor} is not on its history, which ends at {version}: truncate the slot to {common}"
    )]
    Diverged {
        /// The slot.
        slot: Slot,
        /// Where the receiver stands.
        cursor: Version,
        /// The slot's last version.
        version: Version,
        /// The last version of this slot's history that the receiver may have, too: what it has above that is not here.
        common: Version,
    },
    /// What the receiver would have to be told about deletions is not here any more.
    #[error("slot {slot}: the cursor {cursor} is below the floor {floor}: start the slot anew")]
    BelowFloor {
        /// The slot.
        slot: Slot,
        /// Where the receiver stands.
        cursor: Version,
        /// The highest tombstone that was discarded.
        floor: Version,
    },
    /// The receiver lacks writes whose successors are not here either.
    #[error(
        "slot {slot}: at the cursor {cursor} what was superseded up to {undo_floor} is missing, and this history, up to {version}, does not supersede it: start the slot anew"
    )]
    Gaps {
        /// The slot.
        slot: Slot,
        /// What the receiver has.
        cursor: Version,
        /// Up to where what it lacks was superseded.
        undo_floor: Version,
        /// The last write here.
        version: Version,
    },
}

/// Why a receipt's wait ended without the promise.
#[derive(Clone, Debug, Error)]
pub enum WaitError {
    /// The log has failed: the write may or may not be on the disk.
    #[error(transparent)]
    LogFailed(#[from] LogFailed),
    /// A core's thread must not block.
    #[error("a blocking wait on a core's thread would stall it: await the receipt there")]
    OnCoreThread,
}

impl From<LogWaitError> for WaitError {
    fn from(error: LogWaitError) -> WaitError {
        match error {
            LogWaitError::Failed(failed) => WaitError::LogFailed(failed),
            LogWaitError::OnCoreThread => WaitError::OnCoreThread,
        }
    }
}

/// Why an engine could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A setting that makes no sense.
    #[error("{what}")]
    Config {
        /// Which, and what to do.
        what: String,
    },
    /// The cores could not be started.
    #[error("the engine's cores could not be started: {0}")]
    Runtime(#[from] lockgate_runtime::RuntimeError),
    /// A file or directory could not be used.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The memory range could not be reserved.
    #[error(
        "16 GiB of addresses could not be reserved for core {core}: {source}; check the process's address space limit \
         (ulimit -v) and vm.overcommit_memory (2 forbids such reservations)"
    )]
    Reserve {
        /// Whose.
        core: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The directory is in use, of another version, or damaged.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] LoadError),
    /// A log could not be read.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// A new log could not be started.
    #[error(transparent)]
    Log(#[from] LogError),
}
