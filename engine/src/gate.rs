//! Every change that a slot's gate can make, in one table.
//!
//! Invariants: what is served (Owned, Frozen) is never dropped or turned into an import without stopping to serve first;
//! reads and writes that stopped (HandedOff) start again only by ownership under a new generation or by following.

use std::fmt;

use crate::types::Gate;

/// What can be asked of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Be filled from another shard.
    Import,
    /// Be filled from this shard's primary.
    OpenAsFollower,
    /// Serve.
    Own,
    /// Stop to serve, and follow this shard's primary.
    Follow,
    /// Stop to write.
    Freeze,
    /// Write again.
    Thaw,
    /// Stop to read and write: another shard owns it.
    HandOff,
    /// End the generation and free its data.
    Drop,
    /// Lose its last writes.
    Truncate,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Import => "import",
            Action::OpenAsFollower => "be opened as a follower",
            Action::Own => "be owned",
            Action::Follow => "follow",
            Action::Freeze => "freeze",
            Action::Thaw => "thaw",
            Action::HandOff => "be handed off",
            Action::Drop => "be dropped",
            Action::Truncate => "be truncated",
        })
    }
}

/// The gate after `action`, if it may start at gate `from`. The gate itself: repeating an action does no harm.
pub(crate) const fn after(action: Action, from: Gate) -> Option<Gate> {
    use Gate::{Absent, Follower, Frozen, HandedOff, Importing, Owned};
    match (action, from) {
        (Action::Import, Absent | Importing | Follower | HandedOff) => Some(Importing),
        (Action::OpenAsFollower, Absent | Importing | Follower | HandedOff) => Some(Follower),
        (Action::Own, Absent | Importing | Follower | Frozen | Owned) => Some(Owned),
        (Action::Follow, Importing | Follower | Owned | Frozen | HandedOff) => Some(Follower),
        (Action::Freeze, Owned | Frozen) => Some(Frozen),
        (Action::Thaw, Frozen | Owned) => Some(Owned),
        (Action::HandOff, Owned | Frozen | HandedOff) => Some(HandedOff),
        (Action::Drop, Absent | Importing | Follower | HandedOff) => Some(Absent),
        (Action::Truncate, Importing | Follower) => Some(from),
        _ => None,
    }
}
