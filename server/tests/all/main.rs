//! The server's tests from outside, in one program: libraries, processes, and the shape of the workspace.

mod backup;
mod check;
mod clients;
mod common;
mod damage;
mod expiry;
mod failover;
mod nonsense;
mod operations;
mod recovery;
mod replica_reads;
mod restart;
mod structure;
