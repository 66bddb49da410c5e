//! The control log's consensus: the `raft` crate, with its traps closed and its bytes replaced by our own.
//!
//! [`RaftCore`] is one member, without I/O; `core` says how it is run. [`message`] is what travels, `storage` the log as
//! raft reads it, `check` what is refused, `rounds` the quorum rounds that leases rest on, `members` how those who take part
//! change, `heirs` how the lead is handed over,
//! `snapshot` what takes the place of old entries.
//!
//! What this module does not know: what entries mean. It carries their bytes, and asks of them one thing only: whether they
//! set the voters.

mod check;
mod core;
mod heirs;
mod logger;
mod members;
pub mod message;
mod rounds;
mod snapshot;
mod storage;
mod types;

pub use self::core::RaftCore;
pub use members::Members;
pub use message::{
    APPEND_BYTES_MAX, ENTRY_BYTES_MAX, MembersChange, RaftEntry, RaftMessage, RaftMessageKind,
};
pub use snapshot::{MapSnapshot, SNAPSHOT_BYTES_MAX, TAIL_BYTES_MAX, TAIL_ENTRIES};
pub use types::{
    HardState, Persist, ProposeError, Proposed, RaftConfig, RaftError, RaftStatus, Ready, Restored, Role,
};
