//! What a conditional write asks for, and what it leads to.
//!
//! All times are milliseconds since 1970, by the clock of the key's slot (see `expiry.rs`).

use crate::types::{LogTicket, Slot, Version};
use crate::value::{Receipt, Value};

/// How far a write must have come to count as done: what [`Receipt::durable`](crate::Receipt::durable) waits for.
///
/// The write itself never waits. Every write goes to the log, whatever its durability; and what nobody waits for is synced
/// within the flush interval ([`EngineBuilder::flush_interval_ms`](crate::EngineBuilder::flush_interval_ms)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// It is in this process's memory: the end of the process may lose it.
    Memory,
    /// The operating system has it: it survives the end of the process, and a power cut may lose it.
    #[default]
    Written,
    /// The disk has it: it survives a power cut. The sync is asked for with the write, not first by who waits.
    Synced,
}

/// What must be so for a [`set_with`](crate::Keyspace::set_with) to have its effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition<'a> {
    /// Nothing.
    #[default]
    Always,
    /// The key is not there.
    IfAbsent,
    /// The key is there.
    IfPresent,
    /// The key is there and has exactly this value.
    IfEqual(&'a [u8]),
    /// The key is there, and its last write has this version: nobody has written it since, not even the same value.
    IfVersion(Version),
}

impl Condition<'_> {
    /// `version` is asked for only where it counts.
    pub(crate) fn holds(self, value: Option<&[u8]>, version: impl FnOnce() -> Option<Version>) -> bool {
        match self {
            Condition::Always => true,
            Condition::IfAbsent => value.is_none(),
            Condition::IfPresent => value.is_some(),
            Condition::IfEqual(wanted) => value == Some(wanted),
            Condition::IfVersion(wanted) => version() == Some(wanted),
        }
    }
}

/// When a key shall end. A time that has come already ends it at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// Never.
    #[default]
    Clear,
    /// As it is: at the key's deadline if it has one; never if the key was absent.
    Keep,
    /// At this time.
    At(u64),
    /// This long after the slot's clock says that it is now, in milliseconds.
    After(u64),
}

/// What a [`set_with`](crate::Keyspace::set_with) asks for. The default is what a plain set does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetOptions<'a> {
    /// What must be so.
    pub condition: Condition<'a>,
    /// When the key shall end.
    pub expiry: Expiry,
    /// Whether the outcome has the value that was there before.
    pub return_previous: bool,
}

/// What a conditional write led to.
#[must_use = "the condition may not have held; and a write is in memory, see its receipt"]
#[derive(Clone, Debug)]
pub struct SetOutcome {
    /// Whether the condition held, so that the write was done.
    pub applied: bool,
    /// What was there before, if it was asked for.
    pub previous: Option<Value>,
    /// The write; or, if nothing was written, what that answer rests on: the slot's last write.
    pub receipt: Receipt,
}

/// When a key ends, as [`Keyspace::deadline`](crate::Keyspace::deadline) saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Whether the key is there.
    pub exists: bool,
    /// When it ends. `None`: never, or it is not there.
    pub at_ms: Option<u64>,
    /// What the slot's clock said, so that the time left is the difference: a live key's deadline is always after it.
    pub clock_ms: u64,
    /// The key's slot.
    pub slot: Slot,
    /// The version of the key's last write; the slot's last one when the key is absent.
    pub version: Version,
    /// The slot's last write in the log.
    pub position: LogTicket,
}
