//! Whole Lockgate clusters in one thread under one seed: workload, faults and oracles.
//!
//! The real node runs here (engine, links, migration, and the server's commands) on simulated machines, in virtual time.
//! From the top: `run` carries out one [`plan`]; `watch` shows every change to the [`oracles`]; `workload` records
//! what clients saw for the [`checker`]; `faults` does the damage.

pub mod checker;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod counters;
pub mod enumerate;
pub mod faults;
pub mod jobs;
pub mod mutations;
pub mod operator;
pub mod oracles;
pub mod plan;
pub mod random;
pub mod run;
mod settled;
pub mod watch;
pub mod workload;
