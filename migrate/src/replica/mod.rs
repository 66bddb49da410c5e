//! Following and being followed: what the in-sync replicas have acknowledged, who counts as in sync, and what a replica
//! may show.

mod acks;
mod feeds;
mod in_sync;
mod marks;

pub use acks::{AckFailed, AckPolicy, Dependency, ReplicaAcks};
pub use feeds::Feeds;
pub use in_sync::{InSyncChange, InSyncTracker, ReplicaView};
pub use marks::{Mark, ReplicaMarks};
