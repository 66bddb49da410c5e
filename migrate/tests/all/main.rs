//! Tests over whole clusters, in one program.

mod cluster;
mod common;
mod expiry;
mod verified;
