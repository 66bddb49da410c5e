//! The numbers that the engine passes around, each a type of its own so that they cannot be mixed up.
//!
//! Invariants: a slot's counter strictly increases, across terms too; a later term's versions are all greater than an
//! earlier term's; generations never go back.

use std::fmt;

use crate::log::LogPosition;

/// How many slots there are, as in Redis Cluster.
pub const SLOTS: u16 = 16_384;
/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 65_535;
/// The longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 512 * 1024 * 1024;

/// One of the 16,384 parts of the key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot with this number; `None` from [`SLOTS`] on.
    pub const fn new(number: u16) -> Option<Slot> {
        if number < SLOTS { Some(Slot(number)) } else { None }
    }

    /// The slot of a key: CRC16 of the key, or of its `{hash tag}` when it has one.
    #[inline]
    pub fn of_key(key: &[u8]) -> Slot {
        Slot(crate::crc16::key_hash_slot(key))
    }

    /// Every slot, in order.
    pub fn all() -> impl DoubleEndedIterator<Item = Slot> + ExactSizeIterator {
        (0..SLOTS).map(Slot)
    }

    /// The slot's number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The slot's number as an index into a table of all slots.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of one period of ownership of a slot. Opaque to the engine, except that a later owner's is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of one life of a slot's data in one directory: an import opens one, a drop ends it for ever.
///
/// The high 48 bits (the major number) are agreed between nodes; the low 16 (the minor) count a receiver's own restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// Before any data.
    pub const ZERO: Generation = Generation(0);
    const MINOR_BITS: u32 = 16;

    /// The first generation with this major number. Panics when the number does not fit into 48 bits.
    pub const fn new(major: u64) -> Generation {
        assert!(major < 1 << (64 - Self::MINOR_BITS), "a generation's major number has 48 bits");
        Generation(major << Self::MINOR_BITS)
    }

    /// The number that the nodes agree on.
    pub const fn major(self) -> u64 {
        self.0 >> Self::MINOR_BITS
    }

    /// How often the receiver started this slot anew.
    pub const fn minor(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// The receiver's next start with the same major number. Panics after 65,535 of them.
    pub const fn next_minor(self) -> Generation {
        assert!(self.minor() < u16::MAX, "a receiver may start a slot 65,535 times in one generation");
        Generation(self.0 + 1)
    }

    /// Whether both belong to the same agreed generation.
    pub const fn same_major(self, other: Generation) -> bool {
        self.major() == other.major()
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

/// The place of one write in a slot's history: by term first, then by the slot's counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The term that the write was made under.
    pub term: Term,
    /// The slot's counter: strictly increasing, across terms too.
    pub counter: u64,
}

impl Version {
    /// Before the first write.
    pub const ZERO: Version = Version { term: Term(0), counter: 0 };

    /// A version of its parts.
    pub const fn new(term: Term, counter: u64) -> Version {
        Version { term, counter }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.term, self.counter)
    }
}

/// What may be done with a slot here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gate {
    /// No data here.
    Absent,
    /// Filled from another shard; invisible to clients.
    Importing,
    /// Filled from this shard's primary; not served.
    Follower,
    /// Reads and writes.
    Owned,
    /// Reads only: a handover is near.
    Frozen,
    /// Neither reads nor writes: another shard owns it, the data is still here to be streamed.
    HandedOff,
}

impl Gate {
    /// Every one, in the order of their numbers.
    pub(crate) const ALL: [Gate; 6] =
        [Gate::Absent, Gate::Importing, Gate::Follower, Gate::Owned, Gate::Frozen, Gate::HandedOff];

    /// Whether clients may read.
    pub const fn serves_reads(self) -> bool {
        matches!(self, Gate::Owned | Gate::Frozen)
    }

    /// Whether ranges of another node's records are taken.
    pub const fn takes_ranges(self) -> bool {
        matches!(self, Gate::Importing | Gate::Follower)
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gate::Absent => "absent",
            Gate::Importing => "importing",
            Gate::Follower => "follower",
            Gate::Owned => "owned",
            Gate::Frozen => "frozen",
            Gate::HandedOff => "handed off",
        })
    }
}

/// Which directory, and which start of it, an engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Drawn when the directory was made.
    pub directory_id: [u8; 16],
    /// Counts the opens of the directory, from 1.
    pub number: u64,
    /// What this boot and those from this one on wrote to the engine's logs is still here, synced or not.
    pub kept_since: u64,
}

impl Boot {
    /// Whether all that the directory's boot of this number had *written*, when its process ended, is here now, if it was
    /// never synced, too. So it is after the end of a process, and not after that of its operating system. Where that cannot
    /// be told the answer is no. It speaks of the engine's own logs, not of those of the layer above.
    pub fn keeps_writes_of(&self, boot: u64) -> bool {
        (self.kept_since..=self.number).contains(&boot)
    }
}

/// A point in one core's log, to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogTicket {
    /// Whose log.
    pub core: u32,
    /// The end of the frame in question.
    pub position: LogPosition,
}

/// What a range of records (a log frame, a wire range, a segment) counts its versions from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RangeHeader {
    /// The term of every record in the range.
    pub term: Term,
    /// A record's counter is this plus its delta.
    pub base: u64,
}

/// What is missing of a slot's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floors {
    /// The highest tombstone that was discarded: who has less, but something, must start anew (R5).
    pub floor: Version,
    /// What was superseded up to here may have been discarded: nobody can go back behind it. Not below `floor`. A slot whose
    /// last write is below has gaps: what will fill them comes with the writes up to here.
    pub undo_floor: Version,
}

/// What a slot is and holds, at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotStatus {
    /// What may be done with it.
    pub gate: Gate,
    /// The highest term that it was owned under here, or has or had data of.
    pub term: Term,
    /// The generation of its data; the last one when it is absent.
    pub generation: Generation,
    /// The last write's version.
    pub version: Version,
    /// Live keys, over all keyspaces.
    pub keys: u64,
    /// Bytes of the live records.
    pub live_bytes: u64,
    /// Order-independent sum over the live records.
    pub digest: u64,
    /// The log's end of the slot's last write.
    pub position: LogPosition,
}

/// The state of a slot when its writes stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrozenAt {
    /// The last write's version.
    pub version: Version,
    /// The digest over what is live.
    pub digest: u64,
    /// The slot's clock, which stands still as long as the slot is frozen: milliseconds since 1970. The next owner's clock
    /// begins at this or later.
    pub clock_ms: u64,
}

/// What is left of a slot that was truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated {
    /// The slot's last version now.
    pub version: Version,
    /// How many records are gone.
    pub dropped_records: u64,
}

/// What applying a range led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The slot's last version now.
    pub version: Version,
    /// When this is synced, all of the slot up to `version` is.
    pub log: LogTicket,
}
