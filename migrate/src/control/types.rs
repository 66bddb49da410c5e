//! Numbers and names of the control log, each a type of its own so that they cannot be mixed.
//!
//! Invariants: a [`NodeId`] is never used twice in the life of a cluster, so (node, boot) names one run of one node on one
//! data directory. A [`SlotRange`] is only as good as its sender: [`super::preconditions`] checks it before it counts.

use std::fmt;
use std::str::FromStr;

use lockgate_engine::Slot;
use serde::{Deserialize, Serialize};

/// How many slots a cluster has.
pub const SLOT_COUNT: u16 = lockgate_engine::SLOTS;

/// Identity of a cluster, drawn at random when it is created.
pub type ClusterId = [u8; 16];

/// Identity of a data directory, drawn at random when it is created.
pub type DirectoryId = [u8; 16];

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A node of the cluster. Numbers start at 1 and are never used again; it is the node's raft id too.
    NodeId(u32)
}
number! {
    /// A shard: a primary and its replicas.
    ShardId(u32)
}
number! {
    /// A migration job: the counter's value at its start.
    JobId(u64)
}
number! {
    /// One try of a job to pass the barrier and the vote. Consumed at most once; numbers come from the map's counter.
    Attempt(u64)
}
number! {
    /// A shard's reign: bumped by every failover of that shard and by nothing else.
    Epoch(u64)
}

impl NodeId {
    /// The node's id in raft, where 0 means nobody.
    pub fn raft_id(self) -> u64 {
        u64::from(self.0)
    }

    /// The node with this raft id; `None` for 0 and for what cannot be a node.
    pub fn from_raft_id(id: u64) -> Option<NodeId> {
        u32::try_from(id).ok().filter(|&id| id != 0).map(NodeId)
    }
}

/// One run of one node on one data directory. Roles, in-sync membership and leases name it, so that a node that restarts
/// is never mistaken for the one that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// The node.
    pub node: NodeId,
    /// Its data directory.
    pub directory: DirectoryId,
    /// How many times the node was started on that directory.
    pub boot: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} boot {}", self.node, self.boot)
    }
}

/// Twenty bytes shown as forty hexadecimal digits: what clients of the cluster protocol call a node's or a job's name.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name(pub [u8; 20]);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A name must be exactly forty hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name is 40 hexadecimal digits")]
pub struct NameError;

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        let digits = text.as_bytes();
        let mut name = [0; 20];
        if digits.len() != 2 * name.len() {
            return Err(NameError);
        }
        let value = |digit: u8| (digit as char).to_digit(16).ok_or(NameError);
        for (byte, pair) in name.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (value(pair[0])? * 16 + value(pair[1])?) as u8;
        }
        Ok(Name(name))
    }
}

/// Slots `start..=end`. Both ends are as their sender gave them, and may be nonsense until the preconditions have passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotRange {
    /// The first slot.
    pub start: u16,
    /// The last slot, which belongs to the range.
    pub end: u16,
}

impl SlotRange {
    /// The range `start..=end`.
    pub fn new(start: u16, end: u16) -> SlotRange {
        SlotRange { start, end }
    }

    /// Whether both ends are slots and in order.
    pub fn is_valid(self) -> bool {
        self.start <= self.end && self.end < SLOT_COUNT
    }

    /// How many slots it holds; 0 if its ends are not in order.
    pub fn len(self) -> usize {
        (usize::from(self.end) + 1).saturating_sub(usize::from(self.start))
    }

    /// Whether it holds no slot, which only an invalid range does.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether both ranges hold a slot in common.
    pub fn overlaps(self, other: SlotRange) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// Whether it holds `slot`.
    pub fn contains(self, slot: u16) -> bool {
        (self.start..=self.end).contains(&slot)
    }

    /// Its slots in order; numbers that are not slots are left out.
    pub fn slots(self) -> impl Iterator<Item = Slot> {
        (self.start..=self.end).filter_map(Slot::new)
    }
}

impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.start == self.end {
            write!(f, "{}", self.start)
        } else {
            write!(f, "{}-{}", self.start, self.end)
        }
    }
}

/// The slots of several ranges, in the ranges' order.
pub fn slots_of(ranges: &[SlotRange]) -> impl Iterator<Item = Slot> {
    ranges.iter().flat_map(|range| range.slots())
}

/// The fewest ranges that hold exactly these slots. `slots` must be in ascending order.
pub fn ranges_of(slots: impl IntoIterator<Item = Slot>) -> Vec<SlotRange> {
    let mut ranges: Vec<SlotRange> = Vec::new();
    for slot in slots {
        let slot = slot.number();
        match ranges.last_mut() {
            Some(range) if range.end + 1 == slot => range.end = slot,
            _ => ranges.push(SlotRange::new(slot, slot)),
        }
    }
    ranges
}
