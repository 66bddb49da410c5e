//! The stages of a job's end, put together from what source and target saw: both are on this machine, under one clock.
//!
//! A job is activated when its target opens the gates of its slots after the release: clients wait from the freeze until
//! then. The control log's entry that says so comes after it, and nobody waits for it; its stage is apart.

use lockgate_migrate::Node;
use lockgate_migrate::control::JobId;

use crate::groups::Timed;
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
    /// From then on until the source has applied the entry that says that the target serves.
    pub record_ns: u64,
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
            theirs.released_ns,
            theirs.serving_ns,
            ours.activated_ns,
        ];
        assert!(
            ends[0] > 0 && ends.is_sorted(),
            "job {job}: {ours:?} at its source, {theirs:?} at its target"
        );
        let stages_ns = std::array::from_fn(|stage| ends[stage + 1] - ends[stage]);
        Finalized { frozen_ns: ours.frozen_ns, stages_ns, record_ns: ours.activated_ns - theirs.serving_ns }
    }

    /// When the target began to serve.
    pub fn serving_ns(&self) -> u64 {
        self.frozen_ns + self.ns()
    }
}

impl Timed for Finalized {
    /// From freeze to activate.
    fn ns(&self) -> u64 {
        self.stages_ns.iter().sum()
    }
}

/// The stages of many jobs.
#[derive(Debug, Default)]
pub struct StageSamples {
    stages: [Samples; 5],
    record: Samples,
    /// From freeze to activate: clients of the slots wait for so long.
    pub pauses: Samples,
}

impl StageSamples {
    /// Adds one job.
    pub fn push(&mut self, job: &Finalized) {
        for (samples, ns) in self.stages.iter_mut().zip(job.stages_ns) {
            samples.push(ns);
        }
        self.record.push(job.record_ns);
        self.pauses.push(job.ns());
    }

    /// A row for each stage.
    pub fn rows(&self, of: &str, table: &mut Table) {
        for (name, samples) in STAGES.iter().zip(&self.stages) {
            table.figure(&format!("{of}: {name}"), samples);
        }
        table.figure(&format!("{of}: record (after the pause)"), &self.record);
    }

    /// The stages' medians as one bar; `None` if there was no job.
    pub fn bar(&self, name: &str) -> Option<Bar> {
        if self.pauses.is_empty() {
            return None;
        }
        let parts =
            STAGES.iter().zip(&self.stages).map(|(name, samples)| ((*name).to_owned(), samples.p50_us()));
        Some(Bar { name: name.to_owned(), parts: parts.collect() })
    }
}

impl<'a> FromIterator<&'a Finalized> for StageSamples {
    fn from_iter<I: IntoIterator<Item = &'a Finalized>>(jobs: I) -> StageSamples {
        let mut samples = StageSamples::default();
        jobs.into_iter().for_each(|job| samples.push(job));
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_ends_when_the_target_serves() {
        let job =
            Finalized { frozen_ns: 1_000, stages_ns: [1_000, 2_000, 3_000, 4_000, 5_000], record_ns: 70_000 };
        assert_eq!((job.ns(), job.serving_ns()), (15_000, 16_000));
        let samples: StageSamples = [job].iter().collect();
        assert_eq!(samples.pauses.p50_us(), 15.0);
        let parts: Vec<f64> =
            samples.bar("job").expect("there is a job").parts.iter().map(|part| part.1).collect();
        assert_eq!(parts, [1.0, 2.0, 3.0, 4.0, 5.0]);
        let mut table = Table::default();
        samples.rows("job", &mut table);
        assert!(
            table.text().contains("job: record (after the pause)        p50 70.0 us"),
            "{}",
            table.text()
        );
        assert!(StageSamples::default().bar("none").is_none());
    }
}
