//! The engine's tests from outside, in one program.

mod backup;
mod batch;
mod clear;
mod clear_model;
mod clocks;
mod common;
mod compaction;
mod durability;
mod errors;
mod expiry;
mod expiry_model;
mod full_disk;
mod kept;
mod latch;
mod life;
mod lives;
mod modify;
mod operations;
mod ownership;
mod races;
mod recovery;
mod scan;
mod stats;
mod streams;
mod truncation;
mod truncation_model;
