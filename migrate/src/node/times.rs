//! When a job came to each of its stages, as this node saw it: for figures only, nothing follows from it.
//!
//! Invariants: each time is that of the job's last attempt, and is taken once. What is kept lives as long as the map's
//! memory of the job.

use std::collections::BTreeMap;

use lockgate_runtime::sync::Mutex;

use super::Node;
use crate::control::{ClusterMap, JobId};

/// When a job's last attempt came to its stages on one node, in nanoseconds of that node's clock; 0 for what this node has
/// not seen. Nodes of one machine have one clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobTimes {
    /// The source began to freeze the slots.
    pub frozen_ns: u64,
    /// A member of the target has received the last frame of every slot.
    pub held_ns: u64,
    /// That member's disk has it.
    pub synced_ns: u64,
    /// The source has the target's word that the barrier has passed: the vote goes out.
    pub passed_ns: u64,
    /// The commit is applied here.
    pub committed_ns: u64,
    /// The target has the release.
    pub released_ns: u64,
    /// The target serves.
    pub serving_ns: u64,
    /// The entry that says so is applied here.
    pub activated_ns: u64,
}

/// The times of all jobs that this node has part in.
#[derive(Default)]
pub(crate) struct TimesOfJobs {
    jobs: Mutex<BTreeMap<JobId, JobTimes>>,
}

impl TimesOfJobs {
    /// An attempt begins its finalize: what is known of earlier ones is void.
    pub fn begin(&self, job: JobId) {
        self.jobs.lock().insert(job, JobTimes::default());
    }

    /// Notes that the job has come to a stage, unless that is noted already.
    pub fn note(&self, job: JobId, stage: impl FnOnce(&mut JobTimes) -> &mut u64) {
        let now_ns = lockgate_runtime::now_ns();
        let mut jobs = self.jobs.lock();
        let at_ns = stage(jobs.entry(job).or_default());
        if *at_ns == 0 {
            *at_ns = now_ns;
        }
    }

    /// Forgets what the map has forgotten.
    pub fn retain(&self, map: &ClusterMap) {
        self.jobs.lock().retain(|job, _| map.jobs.contains_key(job));
    }
}

impl Node {
    /// When the job came to its stages, as far as this node has part in it and its map remembers it.
    pub fn job_times(&self, job: JobId) -> Option<JobTimes> {
        self.shared.job_times.jobs.lock().get(&job).copied()
    }
}
