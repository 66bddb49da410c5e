//! The control log: who owns what, decided once, the same on every node.
//!
//! A replicated log of typed entries ([`entry`]) is applied in order to the cluster map ([`map`]). Each entry carries what
//! its proposer believed; [`preconditions`] holds every rule under which it takes effect, and [`apply`] what the effect is.
//! Both are pure: no clock, no I/O, no randomness, so that every node that applied the same entries holds the same map.
//! [`self::raft`] orders the entries, also without I/O: it is given messages and ticks, and returns what to send and to keep.
//! [`codec`] turns all of it into bytes and back, and is the only place that reads bytes that came from elsewhere.
//!
//! What this module does not know: slots' data, links, files, leases, and how a job gets from one state to the next.

pub mod apply;
pub mod codec;
pub mod entry;
pub mod map;
pub mod preconditions;
pub mod raft;
pub mod recovery;
mod slot_table;
pub mod types;
mod validate;
mod wire;

#[cfg(test)]
pub(crate) mod tests;

pub use self::raft::{
    HardState, MapSnapshot, Members, MembersChange, Persist, ProposeError, Proposed, RaftConfig, RaftCore,
    RaftEntry, RaftError, RaftMessage, RaftMessageKind, RaftStatus, Ready, Restored, Role,
};
pub use apply::{CommitOutcome, CommitResult, Effect, Outcome};
pub use codec::{
    CodecError, Replay, decode_entry, decode_genesis, decode_leaving, decode_map, decode_membership,
    decode_message, encode_entry, encode_genesis, encode_leaving, encode_map, encode_membership,
    encode_message, encode_persist, sets_voters,
};
pub use entry::{Entry, EntryBody, Evidence, Origin, REASON_BYTES_MAX, SlotEvidence, TooLong};
pub use map::{
    ClusterMap, Genesis, GenesisShard, JOBS_KEPT, Job, JobState, NodeInfo, Pending, Shard, SlotOwner,
};
pub use preconditions::{Refusal, VoidReason};
pub use recovery::{Claim, Recovery, RecoveryError};
pub use slot_table::SlotTable;
pub use types::{
    Attempt, ClusterId, Epoch, Incarnation, JobId, Name, NodeId, SLOT_COUNT, ShardId, SlotRange, ranges_of,
    slots_of,
};
pub use validate::Invalid;
