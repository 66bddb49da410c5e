//! The scenarios that can be pinned.

use std::fmt;
use std::str::FromStr;

/// What a run is about; everything else about it is drawn from the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Any mix of faults and sizes.
    Swarm,
    /// The source's primary fails while jobs finalize.
    SourceFailoverAtFinalize,
    /// The target's primary fails while jobs finalize.
    TargetFailoverAtFinalize,
    /// Both fail.
    Both,
    /// The source, which drives a job, and the control log's leader are killed at each step of jobs.
    CoordinatorCrashAtEveryStep,
    /// Links are cut while jobs finalize.
    PartitionAtFinalize,
    /// Processes stand still and go on, not knowing it.
    PauseSource,
    /// Jobs are cancelled around their commit.
    CancelRacesCommit,
    /// Slow, full, failing and rotten disks, and power cuts.
    DiskFaults,
    /// Many small jobs at once.
    ManyJobs,
    /// Replicas leave the in-sync sets and come back while jobs run.
    Membership,
    /// Keys with deadlines, clocks that jump, long freezes, and power cuts after clocks were set back.
    ExpiryAndClocks,
    /// Operators hand shards over at steps of jobs, while other things fail.
    PlannedFailover,
    /// Clocks run and jump beyond the bound that leases rest on, the control leader's too.
    ClocksBeyondBound,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Scenario; 14] = [
        Scenario::Swarm,
        Scenario::SourceFailoverAtFinalize,
        Scenario::TargetFailoverAtFinalize,
        Scenario::Both,
        Scenario::CoordinatorCrashAtEveryStep,
        Scenario::PartitionAtFinalize,
        Scenario::PauseSource,
        Scenario::CancelRacesCommit,
        Scenario::DiskFaults,
        Scenario::ManyJobs,
        Scenario::Membership,
        Scenario::ExpiryAndClocks,
        Scenario::PlannedFailover,
        Scenario::ClocksBeyondBound,
    ];

    /// Whether all clocks stay within the bound on drift that nodes go by. Beyond it two nodes may hold a lease of one
    /// shard, and reads may be stale: what rests on leases is not judged then.
    pub fn keeps_drift_bound(self) -> bool {
        self != Scenario::ClocksBeyondBound
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Swarm => "swarm",
            Scenario::SourceFailoverAtFinalize => "source-failover-at-finalize",
            Scenario::TargetFailoverAtFinalize => "target-failover-at-finalize",
            Scenario::Both => "both",
            Scenario::CoordinatorCrashAtEveryStep => "coordinator-crash-at-every-step",
            Scenario::PartitionAtFinalize => "partition-at-finalize",
            Scenario::PauseSource => "pause-source",
            Scenario::CancelRacesCommit => "cancel-races-commit",
            Scenario::DiskFaults => "disk-faults",
            Scenario::ManyJobs => "many-jobs",
            Scenario::Membership => "membership",
            Scenario::ExpiryAndClocks => "expiry-and-clocks",
            Scenario::PlannedFailover => "planned-failover",
            Scenario::ClocksBeyondBound => "clocks-beyond-bound",
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No scenario has this name.
#[derive(Debug)]
pub struct UnknownScenario(String);

impl std::error::Error for UnknownScenario {}

impl fmt::Display for UnknownScenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Scenario::ALL.iter().map(|scenario| scenario.name()).collect();
        write!(f, "there is no scenario {:?}; there are {}", self.0, names.join(", "))
    }
}

impl FromStr for Scenario {
    type Err = UnknownScenario;

    fn from_str(name: &str) -> Result<Scenario, UnknownScenario> {
        let found = Scenario::ALL.into_iter().find(|scenario| scenario.name() == name);
        found.ok_or_else(|| UnknownScenario(name.to_owned()))
    }
}
