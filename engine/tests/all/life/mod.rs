//! Whole lives of an engine, with every operation on keys, against a plain map: in virtual time, with keys that end,
//! compactions, checkpoints, and reopenings with other numbers of cores in between.
//!
//! A life is decoded from bytes, so that random tests and fuzzing have the same one. It is deterministic: the same bytes
//! and the same seed lead to the same life.
//!
//! What it does not know: replicas, gates, and what a crash leaves (see `streams.rs`, `ownership.rs`, `recovery.rs`).

mod bulk;
mod model;
pub mod steps;
#[cfg(test)]
mod tests;
mod world;
mod writes;

use lockgate_engine::CompactionStats;
use lockgate_runtime::sim::Sim;

use steps::Step;
use world::World;

/// A life has at least one core, and at most so many.
const CORES_MAX: usize = 3;

/// What happened in a life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub steps: usize,
    pub reopened: u64,
    /// That were asked for.
    pub checkpoints: u64,
    /// Keys that were found to have ended.
    pub ended: u64,
    /// Over all openings.
    pub compaction: CompactionStats,
    /// Of all that the simulated machine did.
    pub trace_hash: u64,
}

/// The last steps, which are printed when one fails.
#[derive(Default)]
struct Trail(std::collections::VecDeque<Step>);

impl Trail {
    fn enter(&mut self, step: &Step) {
        self.0.push_back(step.clone());
        if self.0.len() > 12 {
            self.0.pop_front();
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the last steps:");
            self.0.iter().for_each(|step| eprintln!("    {step:?}"));
        }
    }
}

/// Lives through the steps that these bytes are, and panics where the engine is not what the model says.
pub fn live(seed: u64, bytes: &[u8]) -> Summary {
    let sim = Sim::new(seed);
    let node = sim.node("a", CORES_MAX);
    let (runtime, steps) = (node.clone(), steps::decode(bytes));
    let summary = node.block_on(0, move || async move {
        let mut world = World::open(runtime, 2).await;
        let mut trail = Trail::default();
        for step in &steps {
            trail.enter(step);
            world.take(step).await;
        }
        world.end().await
    });
    Summary { trace_hash: sim.control().trace_hash(), ..summary }
}
