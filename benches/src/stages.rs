//! The stages of a job's end, put together from what source and target saw: both are on this machine, under one clock.

use lockgate_migrate::Node;
use lockgate_migrate::control::JobId;

use crate::samples::Samples;
use crate::svg::Bar;
use crate::table::Table;

/// What each stage is called; in this order they follow on each other and cover all of freeze to activate.
pub const STAGES: [&str; 5] = ["drain", "barrier", "vote", "release", "activate"];

/// One job's times, all of which are there, in order. In nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Finalized {
    /// When the source began to freeze.
    pub frozen_ns: u64,
    /// The lengths of [`STAGES`].
    pub stages_ns: [u64; 5],
}

impl Finalized {
    /// Looks a job up that both nodes have seen activated. Panics if a stage is missing or out of order: then what the nodes
    /// say of it is wrong.
    pub fn of(source: &Node, target: &Node, job: JobId) -> Finalized {
        let (Some(ours), Some(theirs)) = (source.job_times(job), target.job_times(job)) else {
            panic!("job {job}: its nodes do not know its times")
        };
        let ends = [
            ours.frozen_ns,
            theirs.held_ns,
            ours.passed_ns,
            ours.committed_ns,
            theirs.serving_ns,
            ours.activated_ns,
        ];
        assert!(
            ends[0] > 0 && ends.is_sorted(),
            "job {job}: {ours:?} at its source, {theirs:?} at its target"
        );
        let stages_ns = std::array::from_fn(|stage| ends[stage + 1] - ends[stage]);
        Finalized { frozen_ns: ours.frozen_ns, stages_ns }
    }

    /// From freeze to the entry that says that the target serves, as the source applied it.
    pub fn total_ns(&self) -> u64 {
        self.stages_ns.iter().sum()
    }

    /// When that was.
    pub fn activated_ns(&self) -> u64 {
        self.frozen_ns + self.total_ns()
    }
}

/// The stages of many jobs.
#[derive(Debug, Default)]
pub struct StageSamples {
    stages: [Samples; 5],
    /// From freeze to the target's serving: writes wait for so long.
    pub to_serving: Samples,
    /// From freeze to the entry.
    pub total: Samples,
}

impl StageSamples {
    /// Adds one job.
    pub fn push(&mut self, job: &Finalized) {
        for (samples, ns) in self.stages.iter_mut().zip(job.stages_ns) {
            samples.push(ns);
        }
        self.to_serving.push(job.stages_ns[..4].iter().sum());
        self.total.push(job.total_ns());
    }

    /// A row for each stage.
    pub fn rows(&self, of: &str, table: &mut Table) {
        for (name, samples) in STAGES.iter().zip(&self.stages) {
            table.figure(&format!("{of}: {name}"), samples);
        }
        table.figure(&format!("{of}: freeze to served"), &self.to_serving);
    }

    /// The stages' medians as one bar.
    pub fn bar(&self, name: &str) -> Bar {
        let parts =
            STAGES.iter().zip(&self.stages).map(|(name, samples)| ((*name).to_owned(), samples.p50_us()));
        Bar { name: name.to_owned(), parts: parts.collect() }
    }
}
