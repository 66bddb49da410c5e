//! One job's commit against a failover, everywhere: every participant fails after each of its polls between the freeze
//! and the activation, in a run of its own.
//!
//! Every completion of a send, a receive or a sync is a poll of its machine, so that these are all points before and after
//! each of them. Up to its point a run is the one without faults, by the same seed; what follows is judged as any run is.
//!
//! Invariant: a run whose fault did not happen is a violation of the enumeration, not a good run.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::str::FromStr;

use lockgate_engine::Gate;
use lockgate_migrate::control::{ClusterMap, JobState};

use crate::cluster::Cluster;
use crate::faults::resolve;
use crate::plan::{Load, Plan, PlannedFault, PlannedJob, Scenario, Shape, Weights, What, When, Who};
use crate::run::{Report, run, run_watched};
use crate::watch::{View, Violation, Watch};

/// Longer than the node timeout, the election of a leader, and what a failover takes: the failover comes first if it can.
const AWAY_MS: u64 = 1_200;
const NODE_TIMEOUT_MS: u64 = 400;
const FAULTS_MS: u64 = 2_200;

/// How a participant fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its process is killed, and started again later.
    Kill,
    /// It stands still for longer than the node timeout.
    Pause,
    /// It is cut off from everybody, and reachable again later.
    Cut,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Kill, Kind::Pause, Kind::Cut];

    fn word(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::Pause => "pause",
            Kind::Cut => "cut",
        }
    }

    fn what(self, machine: usize) -> What {
        match self {
            Kind::Kill => What::Kill(Who::Machine(machine)),
            Kind::Pause => What::Pause(Who::Machine(machine)),
            Kind::Cut => What::Isolate(Who::Machine(machine)),
        }
    }
}

/// One run: this participant fails this way, so many polls after the job froze.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its role, as in [`Participant::role`].
    pub role: String,
    /// How it fails.
    pub kind: Kind,
    /// After how many polls.
    pub polls: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.role, self.kind.word(), self.polls)
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Point, String> {
        let wrong =
            || format!("{text:?} is not of the form source-primary:kill:17 (kinds: kill, pause, cut)");
        let mut parts = text.split(':');
        let (Some(role), Some(kind), Some(polls), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let kind = Kind::ALL.into_iter().find(|known| known.word() == kind).ok_or_else(wrong)?;
        Ok(Point { role: role.to_owned(), kind, polls: polls.parse().map_err(|_| wrong())? })
    }
}

/// A machine that has a part in the job.
#[derive(Clone, Debug)]
pub struct Participant {
    /// What it was when the job froze: `source-primary`, `source-replica`, `target-primary` or `target-replica`.
    pub role: &'static str,
    /// Whether it led the control log as well.
    pub leads_control: bool,
    machine: usize,
    /// Its polls between the freeze and the activation everywhere.
    polls: Range<u64>,
}

impl Participant {
    /// How often it is polled between the freeze and the activation everywhere.
    pub fn polls(&self) -> u64 {
        self.polls.end - self.polls.start
    }
}

/// A commit, and all points at which its participants can fail.
pub struct Enumeration {
    seed: u64,
    /// The participants.
    pub participants: Vec<Participant>,
}

/// What the runs came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The slots moved under the job's first attempt, and no shard failed over.
    Committed,
    /// The slots moved under the first attempt, and a shard failed over then.
    CommitWon,
    /// A failover consumed the first attempt before its vote was sent.
    FailoverFirst,
    /// A failover consumed the first attempt while its vote was under way: the vote was void.
    VoteVoid,
    /// The first attempt ended for another reason, or the job was still frozen when all healed.
    EndedOtherwise,
}

/// The commit that is tried: two slots, light load, no faults but those that are added.
fn plan(seed: u64, faults: Vec<PlannedFault>) -> Plan {
    let shape = Shape {
        shards: 2,
        members: 2,
        voters: 3,
        cores: 1,
        hot_slots: 3,
        all_slots: false,
        synced: true,
        log_file_bytes: 1 << 20,
        checkpoint_log_bytes: 64 << 20,
        node_timeout_ms: NODE_TIMEOUT_MS,
    };
    let weights = Weights {
        get: 5,
        set: 5,
        delete: 1,
        set_if_absent: 1,
        compare_and_set: 2,
        set_expiring: 0,
        expire: 0,
    };
    let load = Load {
        clients: 3,
        keys: 5,
        think_us_max: 8_000,
        patience_ms: 2_000,
        value_bytes_max: 24,
        weights,
        large_one_in: 0,
    };
    let jobs = vec![PlannedJob { at_ms: 40, shard: 0, first: 0, count: 2, to: 1 }];
    Plan { seed, scenario: Scenario::Swarm, shape, load, jobs, faults, faults_ms: FAULTS_MS }
}

fn fault_after(machine: usize, number: u64, kind: Kind) -> PlannedFault {
    let when = When::AfterPoll { machine, number };
    PlannedFault { when, what: kind.what(machine), lasts_ms: AWAY_MS }
}

impl Enumeration {
    /// Runs the commit once without faults, to see who has a part in it, and how often each is polled.
    pub fn new(seed: u64) -> Result<Enumeration, String> {
        let found = Rc::new(RefCell::new(Finalize::default()));
        let seen = Rc::clone(&found);
        // It waits for a poll that never comes, so that this history is that of the other runs.
        let report =
            run_watched(&plan(seed, vec![fault_after(0, u64::MAX, Kind::Kill)]), |cluster, watch| {
                let (cluster, watch) = (Rc::clone(cluster), Rc::clone(watch));
                Box::new(move || seen.borrow_mut().look(&cluster, &watch.borrow()))
            });
        if let Some(Violation { oracle, what, .. }) = report.violation {
            return Err(format!("the run without faults is violated: {oracle}: {what}"));
        }
        let found = found.borrow();
        match found.is_over && !found.participants.is_empty() {
            true => Ok(Enumeration { seed, participants: found.participants.clone() }),
            false => Err("the job of the run without faults did not freeze, or was not activated".to_owned()),
        }
    }

    /// Every `stride`-th point of every participant, for every kind of failure.
    pub fn points(&self, stride: u64) -> Vec<Point> {
        let kinds = |participant: &Participant| {
            let (role, polls) = (participant.role, participant.polls());
            let points = move |kind| {
                (0..=polls).step_by(stride.max(1) as usize).map(move |polls| Point {
                    role: role.to_owned(),
                    kind,
                    polls,
                })
            };
            Kind::ALL.into_iter().flat_map(points).collect::<Vec<_>>()
        };
        self.participants.iter().flat_map(kinds).collect()
    }

    /// The run of a point.
    pub fn plan(&self, point: &Point) -> Result<Plan, String> {
        let known = self.participants.iter().find(|known| known.role == point.role);
        let Participant { machine, polls, .. } = known.ok_or_else(|| {
            let roles: Vec<&str> = self.participants.iter().map(|known| known.role).collect();
            format!("nobody is {:?}; there are {}", point.role, roles.join(", "))
        })?;
        Ok(plan(self.seed, vec![fault_after(*machine, polls.start + point.polls, point.kind)]))
    }

    /// Carries out the run of a point.
    pub fn run(&self, point: &Point) -> Result<Report, String> {
        let mut report = run(&self.plan(point)?);
        let faults = report.counters.0.keys().any(|name| name.starts_with("fault_"));
        if report.violation.is_none() && !faults {
            let what = format!("{point}: that poll did not come, or there was nothing to fail");
            let violation = Violation { oracle: "every point is reached", at_ns: report.simulated_ns, what };
            report.violation = Some(violation);
        }
        Ok(report)
    }
}

impl Outcome {
    /// What a run came to.
    pub fn of(report: &Report) -> Outcome {
        let happened = |name: &str| report.counters.get(name) > 0;
        if happened("commits_at_the_first_attempt") {
            let fails_over = happened("failovers") || happened("returns_to_office");
            return if fails_over { Outcome::CommitWon } else { Outcome::Committed };
        }
        if happened("votes_void_by_a_failover") {
            return Outcome::VoteVoid;
        }
        match happened("attempts_ended_by_a_failover") {
            true => Outcome::FailoverFirst,
            false => Outcome::EndedOtherwise,
        }
    }
}

/// From the freeze to the activation, as the run without faults shows it.
#[derive(Default)]
struct Finalize {
    /// Polls of each machine at the last look.
    before: Vec<u64>,
    participants: Vec<Participant>,
    is_over: bool,
}

impl Finalize {
    fn look(&mut self, cluster: &Cluster, watch: &Watch) {
        if self.is_over {
            return;
        }
        let view = &watch.view;
        let polls = || {
            let names = cluster.machines.iter().map(|machine| &machine.name);
            names.map(|name| cluster.control.polls(name)).collect::<Vec<u64>>()
        };
        if !self.participants.is_empty() {
            if is_activated_everywhere(view) {
                self.is_over = true;
                let now = polls();
                self.participants.iter_mut().for_each(|known| known.polls.end = now[known.machine]);
            }
            return;
        }
        // A simulated machine is known from the start of its first process on.
        if (0..view.seen.len()).any(|machine| view.seen[machine].start == 0) {
            return;
        }
        let is_frozen = |seen: &crate::watch::Seen| seen.slots.iter().any(|slot| slot.gate == Gate::Frozen);
        if view.seen.iter().any(is_frozen) {
            self.participants = participants(view, &self.before);
        } else {
            self.before = polls();
        }
    }
}

fn is_activated_everywhere(view: &View) -> bool {
    let activated = |map: &ClusterMap| {
        !map.jobs.is_empty() && map.jobs.values().all(|job| matches!(job.state, JobState::Activated { .. }))
    };
    view.seen.iter().all(|seen| seen.map.as_ref().is_some_and(|map| activated(map)))
}

fn participants(view: &View, before: &[u64]) -> Vec<Participant> {
    let leader = resolve(view, Who::Leader, None);
    let roles = [
        ("source-primary", Who::Source),
        ("source-replica", Who::SourceReplica),
        ("target-primary", Who::Target),
        ("target-replica", Who::TargetReplica),
    ];
    let participant = |(role, who)| {
        let machine = resolve(view, who, None)?;
        let polls = before[machine]..before[machine];
        Some(Participant { role, leads_control: leader == Some(machine), machine, polls })
    };
    roles.into_iter().filter_map(participant).collect()
}
