//! The times of a cluster, all of which follow from how long a node may be silent, checked against each other.

use std::time::Duration;

/// Raft ticks of the shortest election timeout; the longest is twice that.
const ELECTION_TICKS: u32 = 10;
/// The node timeout in raft ticks.
const TIMEOUT_TICKS: u32 = 40;

/// The times that leases, elections and failovers go by. They must be the same on all nodes of a cluster.
///
/// With T the node timeout: elections begin after T/4 to T/2 without a leader, leases run for 3T/4 and are renewed every
/// T/8. A primary is failed over when it has been silent for T, by which time its lease is over at any allowed drift. When
/// the control leader dies with it, a new one is elected within T/2 and counts T from then on: together less than 2T.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A primary that the control leader has not heard of for this long is failed over. In nanoseconds.
    pub node_timeout_ns: u64,
    /// The period of consensus' clock. In nanoseconds.
    pub raft_tick_ns: u64,
    /// Ticks without a leader before an election; the real timeout is drawn from this up to twice of it.
    pub election_ticks: u32,
    /// How long a lease runs from its holder's request. In nanoseconds.
    pub lease_ns: u64,
    /// Between two requests of a holder. In nanoseconds.
    pub renewal_ns: u64,
    /// A replica without a stream leaves the in-sync set after this time. In nanoseconds.
    pub replica_lost_ns: u64,
    /// How much faster or slower than the control leader's clock (CLOCK_BOOTTIME) a node's may run, in parts per million.
    /// Beyond it two nodes might serve one slot. A virtual machine that is suspended while its boot-time clock stands still
    /// is beyond any bound.
    pub drift_ppm: u64,
}

/// Times that do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadTimes(&'static str);

impl Times {
    /// The default node timeout.
    pub const NODE_TIMEOUT: Duration = Duration::from_secs(2);
    /// The shortest node timeout: below it, elections would begin within what a busy disk takes to sync.
    pub const NODE_TIMEOUT_MIN: Duration = Duration::from_millis(100);
    /// The default bound on drift: a hundred times what a quartz does.
    pub const DRIFT_PPM: u64 = 10_000;

    /// The times for a node timeout and a bound on drift.
    pub fn new(node_timeout: Duration, drift_ppm: u64) -> Result<Times, BadTimes> {
        if node_timeout < Self::NODE_TIMEOUT_MIN {
            return Err(BadTimes("the node timeout must be at least 100 ms"));
        }
        let timeout_ns = u64::try_from(node_timeout.as_nanos())
            .ok()
            .filter(|ns| *ns <= 3_600_000_000_000)
            .ok_or(BadTimes("the node timeout must be at most an hour"))?;
        let times = Times {
            node_timeout_ns: timeout_ns,
            raft_tick_ns: timeout_ns / u64::from(TIMEOUT_TICKS),
            election_ticks: ELECTION_TICKS,
            lease_ns: timeout_ns / 4 * 3,
            renewal_ns: timeout_ns / 8,
            replica_lost_ns: timeout_ns / 2,
            drift_ppm,
        };
        times.check().map(|()| times)
    }

    /// The longest election timeout, in nanoseconds.
    pub fn election_ns_max(&self) -> u64 {
        2 * u64::from(self.election_ticks) * self.raft_tick_ns
    }

    /// After how long, by the grantor's clock, a lease that it grants now is over by its holder's. In nanoseconds.
    pub fn lease_over_ns(&self) -> u64 {
        let drift_ns = u128::from(self.lease_ns) * u128::from(self.drift_ppm) / 1_000_000;
        self.lease_ns.saturating_add(u64::try_from(drift_ns).unwrap_or(u64::MAX))
    }

    /// Whether failovers are as quick, and leases as long, as is promised.
    fn check(&self) -> Result<(), BadTimes> {
        if self.election_ns_max() + self.renewal_ns >= self.lease_ns {
            return Err(BadTimes("a lease must outlast an election of the control leader and a renewal"));
        }
        if self.lease_over_ns() > self.node_timeout_ns {
            return Err(BadTimes(
                "with this bound on drift a lease may run for longer than the node timeout: allow less drift",
            ));
        }
        // A new leader counts the timeout from its election on; a quarter is left for fence, commit and first renewal.
        if self.election_ns_max() + self.node_timeout_ns / 4 > self.node_timeout_ns {
            return Err(BadTimes(
                "a primary and the control leader that die together take more than two node timeouts",
            ));
        }
        Ok(())
    }
}

impl Default for Times {
    fn default() -> Self {
        Times::new(Self::NODE_TIMEOUT, Self::DRIFT_PPM).expect("the defaults go together")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_every_timeout_go_together() {
        for ms in [100, 499, 500, 2_000, 60_000] {
            let times = Times::new(Duration::from_millis(ms), Times::DRIFT_PPM).unwrap();
            assert!(times.lease_over_ns() <= times.node_timeout_ns, "{ms}");
            assert!(times.lease_ns > times.election_ns_max() + times.renewal_ns, "{ms}");
        }
        assert_eq!(Times::default().raft_tick_ns, 50_000_000);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        assert!(Times::new(Duration::from_millis(99), 0).is_err());
        assert!(Times::new(Duration::from_secs(7_200), 0).is_err());
        let drifting = Times::new(Duration::from_secs(2), 400_000).unwrap_err();
        assert!(drifting.to_string().contains("drift"), "{drifting}");
    }
}
