//! Who owns a slot, and how that changes: without two servers at once, without loss, and never back by accident.
//!
//! From the bottom: [`control`] is the replicated log and the map that it decides; [`replica`] knows what followers have
//! acknowledged and who is in sync; [`job`] is the migration job as a pure machine; [`office`] says who may serve a shard,
//! and how that passes on; [`node`] drives all of it and is what embedders start. What this crate does not know: commands, and the protocol that clients speak.

pub mod control;
pub mod job;
pub mod node;
pub mod office;
pub mod replica;

pub use job::{JobLimits, Phase};
pub use node::{HandOverError, JobProgress, Node, NodeBuilder, NodeConfig, NodeKeyspace, NodeRole, OpError};
pub use office::Times;
pub use replica::{AckPolicy, Dependency};
