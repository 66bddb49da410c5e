//! Following and being followed: what the in-sync replicas have acknowledged, and who counts as in sync.

mod acks;
mod feeds;
mod in_sync;

pub use acks::{AckFailed, AckPolicy, Dependency, ReplicaAcks};
pub use feeds::Feeds;
pub use in_sync::{InSyncChange, InSyncTracker, ReplicaView};
