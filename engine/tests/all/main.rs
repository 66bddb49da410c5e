//! The engine's tests from outside, in one program.

mod clocks;
mod common;
mod compaction;
mod expiry;
mod expiry_model;
mod kept;
mod lives;
mod operations;
mod ownership;
mod recovery;
mod streams;
mod truncation;
mod truncation_model;
