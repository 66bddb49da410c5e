//! Whole Lockgate clusters in one thread under one seed: workload, faults and oracles.

pub mod checker;
