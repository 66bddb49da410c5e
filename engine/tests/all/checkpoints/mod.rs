//! Checkpoints: what is recovered from one, when one is taken, what damage is called, and every moment of a power cut.

mod basics;
mod bugs;
mod cuts;
mod damage;
mod faults;

use std::path::Path;

use lockgate_engine::{Engine, EngineBuilder, Slot, SlotStatus, Version};

use crate::common::builder;

/// Without checkpoints but those that are asked for, and as fast as they can be.
pub fn quiet(path: &Path, cores: usize) -> EngineBuilder {
    builder(path, cores).automatic_checkpoints(false).checkpoint_bytes_per_second(0)
}

/// What of a slot must be the same after a restart.
#[derive(Debug, PartialEq)]
pub struct Lasting {
    slot: Slot,
    version: Version,
    generation: u64,
    keys: u64,
    live_bytes: u64,
    digest: u64,
}

/// Of every slot that has, or had, anything.
pub fn lasting(engine: &Engine) -> Vec<Lasting> {
    let of = |slot| {
        let SlotStatus { version, generation, keys, live_bytes, digest, .. } = engine.slot_status(slot);
        Lasting { slot, version, generation: generation.0, keys, live_bytes, digest }
    };
    Slot::all().map(of).collect()
}
