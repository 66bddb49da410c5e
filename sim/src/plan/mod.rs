//! What a run does: drawn from its seed before anything begins, so that it can be shown, and parts of it left out.
//!
//! A plan is pure data. What it does not say (latencies, schedules, which bytes a power cut takes) the simulated machines
//! draw from the same seed.

mod draw;
mod keep;
mod scenario;

use std::fmt;

pub use keep::{Keep, KeepError};
pub use scenario::{Scenario, UnknownScenario};

/// A run's shape, load, jobs and faults.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What everything was drawn from.
    pub seed: u64,
    /// What was pinned.
    pub scenario: Scenario,
    /// The cluster.
    pub shape: Shape,
    /// What clients do.
    pub load: Load,
    /// Slots that are to move.
    pub jobs: Vec<PlannedJob>,
    /// What goes wrong.
    pub faults: Vec<PlannedFault>,
    /// How long the first phase lasts; then everything heals.
    pub faults_ms: u64,
}

/// A cluster's shape.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Shards.
    pub shards: usize,
    /// Machines of each shard: a primary and its replicas.
    pub members: usize,
    /// Machines that vote in the control log.
    pub voters: usize,
    /// Cores of each machine.
    pub cores: usize,
    /// Slots of each shard that have keys and move.
    pub hot_slots: u16,
    /// Whether the shards own all slots, and not just the hot ones.
    pub all_slots: bool,
    /// Whether answers wait for disks, not only for replicas. Otherwise no power is cut: what that may take is no fault.
    pub synced: bool,
    /// Bytes of a log file.
    pub log_file_bytes: u64,
    /// After how many logged bytes a machine takes a checkpoint.
    pub checkpoint_log_bytes: u64,
    /// After how much silence a primary is failed over.
    pub node_timeout_ms: u64,
}

impl Shape {
    /// How many machines there are.
    pub fn machines(&self) -> usize {
        self.shards * self.members
    }

    /// The first slot of a shard.
    pub fn first_slot(&self, shard: usize) -> u16 {
        (shard * usize::from(lockgate_engine::SLOTS) / self.shards) as u16
    }

    /// The slots of a shard that have keys and move.
    pub fn hot(&self, shard: usize) -> std::ops::Range<u16> {
        let first = self.first_slot(shard);
        first..first + self.hot_slots
    }
}

/// What clients do.
#[derive(Clone, Debug)]
pub struct Load {
    /// Clients, each with one operation at a time.
    pub clients: usize,
    /// Keys, spread over the hot slots.
    pub keys: usize,
    /// The longest pause of a client between two operations.
    pub think_us_max: u64,
    /// After this time a client gives an operation up, and does not know what became of it.
    pub patience_ms: u64,
    /// The longest value.
    pub value_bytes_max: usize,
    /// How often each kind of operation is chosen.
    pub weights: Weights,
    /// One operation in so many has a value of over 64 KiB; 0 for none.
    pub large_one_in: u64,
}

/// How often each kind of operation is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Weights {
    /// Reads.
    pub get: u64,
    /// Writes.
    pub set: u64,
    /// Deletes.
    pub delete: u64,
    /// Writes on condition that nothing is there.
    pub set_if_absent: u64,
    /// Writes on condition of the present value.
    pub compare_and_set: u64,
    /// Writes that expire.
    pub set_expiring: u64,
    /// Deadlines for what is there.
    pub expire: u64,
}

/// Slots that are to move at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedJob {
    /// When it is asked for, after the cluster has been formed.
    pub at_ms: u64,
    /// In whose hot slots it begins.
    pub shard: usize,
    /// The first slot, counted from the shard's first.
    pub first: u16,
    /// At most so many slots: those that the owner of the first one has.
    pub count: u16,
    /// Where to; the next shard if the slots are there already.
    pub to: usize,
}

/// A step of a job, as its source or the map shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The copy begins.
    Streaming,
    /// The tail shrinks.
    CatchingUp,
    /// Frozen: the target syncs the last frame.
    Barrier,
    /// The vote was sent.
    Voting,
    /// A map has the commit.
    Committed,
    /// A map has the activation.
    Activated,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Step; 6] =
        [Step::Streaming, Step::CatchingUp, Step::Barrier, Step::Voting, Step::Committed, Step::Activated];

    /// Those of a finalize.
    pub const FINALIZE: [Step; 3] = [Step::Barrier, Step::Voting, Step::Committed];
}

/// When a fault begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So long after the cluster was formed.
    AtMs(u64),
    /// When the `nth` job (from 0) reaches this step, and a little later.
    AtStep {
        /// The step.
        step: Step,
        /// Which job, in the order in which jobs reach the step.
        nth: u32,
        /// How much later.
        after_us: u64,
    },
    /// When a shard fails over to another node for the `nth` time (from 0) in the run, and a little later.
    AtFailover {
        /// Which failover.
        nth: u32,
        /// How much later.
        after_us: u64,
    },
    /// Right after this poll of a machine, counted from the beginning of the run: before anything else happens. Only for
    /// faults that happen to a process or its links.
    AfterPoll {
        /// The machine.
        machine: usize,
        /// The number of the poll.
        number: u64,
    },
}

/// Whom a fault concerns. Roles are resolved when it begins: of the job that triggered it, or of the latest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// This machine.
    Machine(usize),
    /// The primary that a job leaves.
    Source,
    /// The primary that a job goes to.
    Target,
    /// A replica of the source.
    SourceReplica,
    /// A replica of the target.
    TargetReplica,
    /// The leader of the control log.
    Leader,
    /// The primary of the shard that failed over last.
    Heir,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The process is killed, and started again at the end.
    Kill(Who),
    /// The machine loses its power, and what was not synced: all of it, or by the seed.
    PowerCut {
        /// The machine.
        who: Who,
        /// Whether parts of what was not synced survive, pages torn among them.
        torn: bool,
    },
    /// All machines lose their power at the same moment.
    Blackout {
        /// Whether parts of what was not synced survive, pages torn among them.
        torn: bool,
    },
    /// The process stands still, and goes on at the end.
    Pause(Who),
    /// Nobody reaches the machine, and it reaches nobody.
    Isolate(Who),
    /// What the machine sends reaches nobody.
    Mute(Who),
    /// What is sent to the machine does not reach it.
    Deafen(Who),
    /// Two machines do not reach each other.
    Part(Who, Who),
    /// Links to and from the machine are slow and narrow.
    SlowLinks(Who),
    /// One in so many packets is lost, everywhere, and sent again.
    LossyNetwork {
        /// One in so many.
        one_in: u32,
    },
    /// Connections between two machines break.
    ResetLinks(Who, Who),
    /// Messages of the control links are dropped, repeated, and overtake each other.
    MangleMessages {
        /// One in so many is dropped.
        drop_one_in: u64,
        /// One in so many comes twice, the second time later.
        repeat_one_in: u64,
        /// One in so many is late.
        delay_one_in: u64,
    },
    /// The machine's clocks run at another rate.
    Drift {
        /// The machine.
        who: Who,
        /// Parts per million.
        ppm: i32,
    },
    /// The machine's monotonic clock jumps ahead.
    JumpClock {
        /// The machine.
        who: Who,
        /// How far.
        ms: u64,
    },
    /// The machine's wall clock jumps.
    JumpWallClock {
        /// The machine.
        who: Who,
        /// How far.
        ms: i64,
    },
    /// Writes and syncs take long, now and then.
    SlowDisk(Who),
    /// Each write and sync takes longer than a failover.
    StuckDisk(Who),
    /// The next sync fails; the process is started again at the end.
    FailSync(Who),
    /// The disk has no room left.
    FullDisk(Who),
    /// Bits of the machine's files flip while it is down: it is killed, and started again at the end.
    RotBits(Who),
    /// All jobs that are not decided are cancelled.
    CancelJobs,
    /// An operator has a primary hand its shard over to a replica that is in sync.
    HandOver(Who),
}

/// A fault at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedFault {
    /// When it begins.
    pub when: When,
    /// What it is.
    pub what: What,
    /// How long it lasts.
    pub lasts_ms: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(seed: u64, scenario: Scenario) -> Plan {
        draw::draw(seed, scenario)
    }

    /// How far apart two machines' wall clocks may be, in milliseconds.
    pub fn wall_skew_ms(&self) -> u64 {
        let drift = |ppm: i32| u64::from(ppm.unsigned_abs()) * (self.faults_ms + 120_000) / 1_000_000 + 1;
        let one = |fault: &PlannedFault| match fault.what {
            What::Drift { ppm, .. } => drift(ppm),
            What::JumpWallClock { ms, .. } => ms.unsigned_abs(),
            // A wall clock is read from the same oscillator, and jumps with it.
            What::JumpClock { ms, .. } => ms,
            _ => 0,
        };
        self.faults.iter().map(one).sum()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape {
            shards,
            members,
            voters,
            cores,
            hot_slots,
            all_slots,
            synced,
            node_timeout_ms,
            checkpoint_log_bytes,
            ..
        } = &self.shape;
        let owned = if *all_slots { "all slots" } else { "the hot slots only" };
        let acks = if *synced { "synced" } else { "received" };
        writeln!(
            f,
            "{shards} shards of {members} machines with {cores} cores, {voters} voters; {hot_slots} hot slots each, \
             {owned} owned; answers wait for {acks}; the node timeout is {node_timeout_ms} ms; \
             a checkpoint after {checkpoint_log_bytes} logged bytes"
        )?;
        writeln!(f, "{:?}", self.load)?;
        for (number, job) in self.jobs.iter().enumerate() {
            writeln!(f, "job {number}: {job:?}")?;
        }
        for (number, fault) in self.faults.iter().enumerate() {
            writeln!(f, "fault {number}: {fault:?}")?;
        }
        write!(f, "healing begins after {} ms", self.faults_ms)
    }
}
