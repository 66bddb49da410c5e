//! Tests over whole clusters, in one program.

mod cluster;
mod common;
mod expiry;
mod recovery;
mod replica_reads;
mod verified;
