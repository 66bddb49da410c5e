//! Bytes of the control log, out and in.
//!
//! Everything begins with two bytes, what it is and in which version of its format, then postcard. What comes in may come
//! from anywhere: the length is checked first, then kind and version, then the content, and nothing may be left over. No
//! length inside is believed before the bytes are there. Protobuf is not involved.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::entry::{Entry, EntryBody, TooLong};
use super::map::{ClusterMap, Genesis};
use super::raft::{
    APPEND_BYTES_MAX, ENTRY_BYTES_MAX, HardState, MapSnapshot, Persist, RaftEntry, RaftMessage, Restored,
    SNAPSHOT_BYTES_MAX,
};
use super::types::{ClusterId, NodeId};
use super::validate::Invalid;

/// The longest raft message: entries up to their bound, or one long one, or a snapshot, and what surrounds them.
pub const RAFT_MESSAGE_BYTES_MAX: usize = SNAPSHOT_BYTES_MAX + (1 << 20);
/// The longest cluster map or genesis.
pub const MAP_BYTES_MAX: usize = 64 << 20;
/// The longest record of the persisted raft log.
pub const PERSIST_BYTES_MAX: usize = 128 << 20;

const _: () = assert!(RAFT_MESSAGE_BYTES_MAX >= APPEND_BYTES_MAX + ENTRY_BYTES_MAX + (1 << 20));

const ENTRY: Format = Format { what: "control entry", kind: b'E', version: 1, bytes_max: ENTRY_BYTES_MAX };
const MAP: Format = Format { what: "cluster map", kind: b'M', version: 1, bytes_max: MAP_BYTES_MAX };
const GENESIS: Format = Format { what: "genesis", kind: b'G', version: 1, bytes_max: MAP_BYTES_MAX };
const MEMBERSHIP: Format = Format { what: "membership", kind: b'J', version: 1, bytes_max: 64 };
const LEAVING: Format = Format { what: "leaving", kind: b'L', version: 1, bytes_max: MAP_BYTES_MAX };
const MESSAGE: Format =
    Format { what: "raft message", kind: b'R', version: 1, bytes_max: RAFT_MESSAGE_BYTES_MAX };
const PERSIST: Format =
    Format { what: "raft log record", kind: b'P', version: 1, bytes_max: PERSIST_BYTES_MAX };

struct Format {
    what: &'static str,
    kind: u8,
    version: u8,
    bytes_max: usize,
}

/// Bytes that are not what they should be, or something that does not fit into its format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Longer than the format allows.
    #[error("a {what} of {len} bytes is longer than the {max} that are allowed")]
    TooManyBytes {
        /// What it should be.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// It is something else.
    #[error("a {what} begins with byte {expected:#04x}, this begins with {found:#04x}")]
    WrongKind {
        /// What it should be.
        what: &'static str,
        /// The first byte of that.
        expected: u8,
        /// The first byte here.
        found: u8,
    },
    /// Written by a later version.
    #[error(
        "this {what} has format version {found}, version {known} is the latest that is known here: upgrade this node"
    )]
    UnknownVersion {
        /// What it is.
        what: &'static str,
        /// The latest known version.
        known: u8,
        /// Its version.
        found: u8,
    },
    /// Not decodable.
    #[error("this {what} is malformed: {why}")]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// Where decoding stopped.
        why: String,
    },
    /// A list or text inside is too long.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// A map that breaks an invariant.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

fn encode<T: Serialize>(format: &Format, value: &T) -> Result<Vec<u8>, CodecError> {
    let malformed = |why: postcard::Error| CodecError::Malformed { what: format.what, why: why.to_string() };
    let bytes = postcard::to_extend(value, vec![format.kind, format.version]).map_err(malformed)?;
    check_len(format, bytes.len())?;
    Ok(bytes)
}

fn check_len(format: &Format, len: usize) -> Result<(), CodecError> {
    let (what, max) = (format.what, format.bytes_max);
    if len > max { Err(CodecError::TooManyBytes { what, len, max }) } else { Ok(()) }
}

fn decode<T: DeserializeOwned>(format: &Format, bytes: &[u8]) -> Result<T, CodecError> {
    let what = format.what;
    let malformed = |why: &str| CodecError::Malformed { what, why: why.to_owned() };
    check_len(format, bytes.len())?;
    let [kind, version, content @ ..] = bytes else {
        return Err(malformed("it is cut off"));
    };
    if *kind != format.kind {
        return Err(CodecError::WrongKind { what, expected: format.kind, found: *kind });
    }
    if *version != format.version {
        return Err(CodecError::UnknownVersion { what, known: format.version, found: *version });
    }
    let (value, rest) = postcard::take_from_bytes(content).map_err(|why| malformed(&why.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(malformed(&format!("{} bytes are left over", rest.len()))) }
}

/// A control entry as bytes. Fails if one of its lists is too long.
pub fn encode_entry(entry: &Entry) -> Result<Vec<u8>, CodecError> {
    entry.body.check_sizes()?;
    encode(&ENTRY, entry)
}

/// A control entry from bytes.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, CodecError> {
    let entry: Entry = decode(&ENTRY, bytes)?;
    entry.body.check_sizes()?;
    Ok(entry)
}

/// No entry that sets the voters is longer: its origin, its time, and up to seven nodes.
const SET_VOTERS_BYTES_MAX: usize = 128;

/// Whether this is an encoded entry that sets the voters of the control log.
pub fn sets_voters(bytes: &[u8]) -> bool {
    bytes.len() <= SET_VOTERS_BYTES_MAX
        && decode_entry(bytes).is_ok_and(|entry| matches!(entry.body, EntryBody::SetVoters { .. }))
}

/// A cluster map as bytes.
pub fn encode_map(map: &ClusterMap) -> Result<Vec<u8>, CodecError> {
    encode(&MAP, map)
}

/// A cluster map from bytes: only a valid one.
pub fn decode_map(bytes: &[u8]) -> Result<ClusterMap, CodecError> {
    let map: ClusterMap = decode(&MAP, bytes)?;
    map.validate()?;
    Ok(map)
}

/// A genesis as bytes: the same on every node.
pub fn encode_genesis(genesis: &Genesis) -> Result<Vec<u8>, CodecError> {
    encode(&GENESIS, genesis)
}

/// A genesis from bytes. Whether it makes a valid map shows in [`ClusterMap::genesis`].
pub fn decode_genesis(bytes: &[u8]) -> Result<Genesis, CodecError> {
    decode(&GENESIS, bytes)
}

/// A node's place in a cluster that it joined after the beginning, as bytes.
pub fn encode_membership(cluster: ClusterId, node: NodeId) -> Result<Vec<u8>, CodecError> {
    encode(&MEMBERSHIP, &(cluster, node))
}

/// A node's place in a cluster that it joined after the beginning, from bytes.
pub fn decode_membership(bytes: &[u8]) -> Result<(ClusterId, NodeId), CodecError> {
    decode(&MEMBERSHIP, bytes)
}

/// The generation that a node has left, and what the next one begins with if it knows, as bytes.
pub fn encode_leaving(generation: u64, next: Option<&MapSnapshot>) -> Result<Vec<u8>, CodecError> {
    encode(&LEAVING, &(generation, next))
}

/// The generation that a node has left, and what the next one begins with if it knows, from bytes.
pub fn decode_leaving(bytes: &[u8]) -> Result<(u64, Option<MapSnapshot>), CodecError> {
    decode(&LEAVING, bytes)
}

/// A raft message as bytes.
pub fn encode_message(message: &RaftMessage) -> Result<Vec<u8>, CodecError> {
    encode(&MESSAGE, message)
}

/// A raft message from bytes. Whether it makes sense to its receiver shows in [`super::RaftCore::step`].
pub fn decode_message(bytes: &[u8]) -> Result<RaftMessage, CodecError> {
    let message: RaftMessage = decode(&MESSAGE, bytes)?;
    let malformed = |why: &str| CodecError::Malformed { what: MESSAGE.what, why: why.to_owned() };
    message.check().map_err(malformed)?;
    if let Some(snapshot) = &message.snapshot {
        // Raft would keep it, and only then would its owner see what it is.
        let map = decode_map(&snapshot.map)?;
        if map.applied != snapshot.index {
            return Err(malformed("its snapshot's map is of another index"));
        }
    }
    Ok(message)
}

/// What must be kept of a [`super::Ready`], as one record of the node's own log.
pub fn encode_persist(persist: &Persist) -> Result<Vec<u8>, CodecError> {
    encode(&PERSIST, persist)
}

/// Puts the raft log together again from the records that were kept, in their order.
///
/// Entries of a later record take the place of what an earlier one had from their index on: a new leader overwrote it. A
/// snapshot takes the place of everything before it.
#[derive(Debug)]
pub struct Replay {
    start_index: u64,
    snapshot: Option<MapSnapshot>,
    hard_state: Option<HardState>,
    entries: Vec<RaftEntry>,
}

impl Replay {
    /// For a log that goes on from `start_index`, unless it has a snapshot: see [`super::RaftConfig`].
    pub fn new(start_index: u64) -> Replay {
        Replay { start_index, snapshot: None, hard_state: None, entries: Vec::new() }
    }

    /// Whether the records have a snapshot.
    pub fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Takes the next record.
    pub fn push(&mut self, record: &[u8]) -> Result<(), CodecError> {
        let malformed = |why: String| CodecError::Malformed { what: PERSIST.what, why };
        let persist: Persist = decode(&PERSIST, record)?;
        if let Some(snapshot) = persist.snapshot {
            snapshot.check().map_err(|what| malformed(what.to_owned()))?;
            if snapshot.index < self.start_index {
                return Err(malformed(format!("it goes back to a snapshot at {}", snapshot.index)));
            }
            self.start_index = snapshot.index;
            self.entries.clear();
            self.snapshot = Some(snapshot);
        }
        for entry in persist.entries {
            entry.check().map_err(|what| malformed(format!("entry {}: {what}", entry.index)))?;
            let next = self.start_index + 1 + self.entries.len() as u64;
            if entry.index <= self.start_index || entry.index > next {
                return Err(malformed(format!("it has entry {}, but {next} would be the next", entry.index)));
            }
            let keep = (entry.index - self.start_index - 1) as usize;
            self.entries.truncate(keep);
            if self.entries.last().is_some_and(|last| last.term > entry.term) {
                return Err(malformed(format!(
                    "entry {} is of an earlier term than the one before it",
                    entry.index
                )));
            }
            self.entries.push(entry);
        }
        if let Some(state) = persist.hard_state {
            if self.hard_state.is_some_and(|before| before.term > state.term) {
                return Err(malformed(format!("it goes back to term {}", state.term)));
            }
            self.hard_state = Some(state);
        }
        Ok(())
    }

    /// What the records amount to.
    pub fn finish(self) -> Restored {
        Restored { snapshot: self.snapshot, hard_state: self.hard_state, entries: self.entries }
    }
}
