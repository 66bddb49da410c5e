//! The known bugs that the code keeps by name, the rule that each breaks, and the scenario in which it shows.
//!
//! Each is one condition at the place where its rule sits, behind [`lockgate_runtime::mutation!`]. A test holds this table
//! against the code.

use crate::plan::{Plan, Scenario};
use crate::run::{Report, run};

/// Every bug must be caught within so many seeds.
pub const SEEDS_MAX: u64 = 200;

/// One known bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutation {
    /// Its name in the code.
    pub name: &'static str,
    /// The rule or invariant that it breaks.
    pub rule: &'static str,
    /// What it does.
    pub what: &'static str,
    /// What catches it.
    pub caught: Caught,
}

/// What catches a known bug.
#[derive(Clone, Copy, Debug)]
pub enum Caught {
    /// The oracles, within [`SEEDS_MAX`] seeds of this scenario.
    In(Scenario),
    /// The test of this name in `sim/tests/all/rules.rs` or `compactions.rs`: runs do not show it, or too rarely: other rules
    /// stand in.
    ByTest(&'static str),
    /// A test beside the code, in this file of the workspace, which has the bug's name.
    Beside(&'static str),
}

const fn bug(name: &'static str, rule: &'static str, scenario: Scenario, what: &'static str) -> Mutation {
    Mutation { name, rule, what, caught: Caught::In(scenario) }
}

const fn checked(name: &'static str, rule: &'static str, test: &'static str, what: &'static str) -> Mutation {
    Mutation { name, rule, what, caught: Caught::ByTest(test) }
}

/// A sync that somebody does not wait for, or another breach of an order of writes: what that leaves on a disk is for a test
/// of that disk.
const fn unsynced(name: &'static str, test: &'static str, what: &'static str) -> Mutation {
    Mutation { name, rule: "invariant 9", what, caught: Caught::Beside(test) }
}

/// Where every operation of an engine's disk is its last one.
const DISK_IMAGES: &str = "engine/tests/all/disk_images/bugs.rs";
/// Where the files that a node keeps beside its engine lose their machine's power.
const CONTROL_STORE: &str = "migrate/src/node/control_store/tests.rs";
/// Where backups lose their machine's power, and damaged directories are repaired.
const BACKUP_POWER: &str = "engine/tests/all/backup_power.rs";
/// Where a life with checkpoints ends after each of its polls.
const CHECKPOINTS: &str = "engine/tests/all/checkpoints/bugs.rs";
/// Where lives of a log end whose space is used again.
const RECYCLING: &str = "engine/src/log/tests/recycle.rs";
/// Where threads write and sync for themselves.
const LEADING: &str = "engine/src/log/tests/lead.rs";
/// Where logs fail.
const LATCH: &str = "engine/tests/all/latch.rs";

/// All of them.
pub const MUTATIONS: &[Mutation] = &[
    bug(
        "failover-keeps-the-term",
        "R1",
        Scenario::SourceFailoverAtFinalize,
        "a failover gives its shard's slots no new term",
    ),
    bug(
        "cursor-off-the-history",
        "R4",
        Scenario::DiskFaults,
        "a follower goes on from its cursor, though the primary's history has no such version",
    ),
    bug(
        "flip-back-on-source-bump",
        "R1, R16",
        Scenario::SourceFailoverAtFinalize,
        "the source's failover takes back slots that a commit gave away",
    ),
    bug(
        "lost-ownership-on-target-bump",
        "R1, R16",
        Scenario::TargetFailoverAtFinalize,
        "the target's failover forgets slots that wait for their release",
    ),
    bug(
        "restarted-primary-serves-at-once",
        "R2",
        Scenario::SourceFailoverAtFinalize,
        "a primary that restarts serves without a new epoch",
    ),
    bug(
        "barrier-without-the-replicas",
        "R14",
        Scenario::ManyJobs,
        "the barrier passes, and the commit is valid, when the target's primary alone has synced",
    ),
    bug(
        "barrier-counts-received-for-synced",
        "R14",
        Scenario::ManyJobs,
        "the barrier passes with what is in memory",
    ),
    bug(
        "barrier-before-the-last-frame",
        "R14",
        Scenario::ManyJobs,
        "the barrier passes with whatever has arrived",
    ),
    bug(
        "replay-without-generations",
        "R3",
        Scenario::DiskFaults,
        "recovery takes a slot's later life for a part of the earlier one",
    ),
    bug("lease-not-checked", "R6, R7", Scenario::PauseSource, "operations are answered without a lease"),
    checked(
        "lease-to-who-lags",
        "R6",
        "who_has_not_applied_what_touched_its_shard_gets_no_lease",
        "a lease is granted to a primary that has not applied what touched its shard",
    ),
    bug(
        "lease-before-the-last-is-over",
        "R6",
        Scenario::SourceFailoverAtFinalize,
        "a new primary gets its lease while the last one's may run",
    ),
    checked(
        "replica-reads-above-the-watermark",
        "R9",
        "a_replica_shows_nothing_above_the_watermark",
        "a replica shows what its primary has not acknowledged",
    ),
    checked(
        "recovery-without-the-fence",
        "R18",
        "an_old_voter_is_not_let_into_the_next_generation",
        "voters of a generation that was given up take part in the next one",
    ),
    checked(
        "joining-not-waited-for",
        "R11",
        "answers_wait_for_who_is_about_to_join",
        "answers do not wait for a member whose joining is undecided",
    ),
    checked(
        "in-sync-set-not-compared",
        "R11",
        "a_change_of_another_in_sync_set_is_refused",
        "a change of an in-sync set applies to another one than it was proposed for",
    ),
    bug(
        "candidate-not-fenced",
        "R12",
        Scenario::PlannedFailover,
        "a candidate goes on to take and acknowledge what the old primary sends after it has reported",
    ),
    checked(
        "commit-of-another-reign-covers",
        "R8, R14",
        "the_commit_of_a_successor_covers_nothing_of_who_was_deposed",
        "what a deposed primary alone has is answered for, since its successor's commit took the slot away",
    ),
    bug(
        "candidate-not-synced",
        "R12",
        Scenario::SourceFailoverAtFinalize,
        "a candidate reports what is not on its disk",
    ),
    bug("promotes-who-is-not-in-sync", "R12", Scenario::Membership, "a replica that is not in sync may lead"),
    checked(
        "acknowledged-after-deposal",
        "R2, R8",
        "nothing_of_a_reign_that_is_over_is_answered_for",
        "what was written in a reign that is over is answered for in the next one",
    ),
    bug(
        "released-under-a-lease",
        "R16",
        Scenario::PauseSource,
        "the control leader releases slots whose source may still have a lease",
    ),
    bug(
        "released-before-a-lease",
        "R16",
        Scenario::SourceFailoverAtFinalize,
        "a new primary of the source releases slots that the last one may still serve",
    ),
    checked(
        "a-node-in-two-shards",
        "R13",
        "a_node_serves_one_shard",
        "a node of one shard becomes a replica of another one",
    ),
    bug(
        "unfreeze-on-a-timer",
        "R15, R18",
        Scenario::PartitionAtFinalize,
        "a frozen slot thaws after a while, though a vote is under way",
    ),
    bug(
        "commit-after-cancel",
        "R15",
        Scenario::CancelRacesCommit,
        "a vote moves the slots of a job that was cancelled before",
    ),
    bug(
        "cancel-after-commit",
        "R15",
        Scenario::CancelRacesCommit,
        "a cancel ends a job whose slots have moved",
    ),
    bug(
        "serve-before-the-release",
        "R16",
        Scenario::ManyJobs,
        "the target serves when it has applied the commit",
    ),
    bug(
        "reads-at-the-source-after-commit",
        "R16",
        Scenario::ManyJobs,
        "the source goes on to answer reads when it has applied the commit",
    ),
    bug(
        "early-clean-up",
        "invariant 8",
        Scenario::ManyJobs,
        "the source drops its data before the target serves",
    ),
    bug(
        "acknowledge-before-sync",
        "R2, R8",
        Scenario::DiskFaults,
        "answers that promise a synced write leave when it is written",
    ),
    bug(
        "reads-do-not-wait",
        "R8",
        Scenario::DiskFaults,
        "a read is answered before the write that it saw is acknowledged",
    ),
    bug(
        "retry-after-failed-sync",
        "R19",
        Scenario::DiskFaults,
        "a failed sync is tried again, and its success believed",
    ),
    bug(
        "recovery-believes-the-cache",
        "R19",
        Scenario::DiskFaults,
        "recovery reads what the system has in memory, and not what the disk has",
    ),
    bug(
        "silence-not-noticed",
        "R11",
        Scenario::Both,
        "a link whose peer has lost its power is taken for an idle one",
    ),
    bug(
        "control-log-sent-before-sync",
        "invariant 9",
        Scenario::Both,
        "a voter answers before its log is on the disk",
    ),
    bug(
        "parked-requests-not-woken",
        "R10",
        Scenario::ManyJobs,
        "requests that wait for a frozen slot are not told of its next gate",
    ),
    bug(
        "expiry-on-a-replica",
        "R17",
        Scenario::ManyJobs,
        "followers and importing slots expire by themselves",
    ),
    checked(
        "compacted-above-the-watermark",
        "R4",
        "what_may_be_taken_back_stays_with_what_it_superseded",
        "what an unacknowledged write superseded is discarded",
    ),
    checked(
        "discarded-before-it-is-sent",
        "R4, R5",
        "what_a_stream_has_yet_to_send_stays",
        "a compaction discards what a stream has not sent",
    ),
    checked(
        "floor-not-raised",
        "R5",
        "a_receiver_below_the_floor_starts_anew",
        "a tombstone is discarded, and the slot's floor stays",
    ),
    checked(
        "floor-not-copied",
        "R5",
        "a_copy_refuses_who_is_below_the_floor_of_its_source",
        "a copy of a slot does not know what its source has discarded",
    ),
    checked(
        "gaps-not-noticed",
        "R4",
        "who_has_gaps_goes_on_only_where_they_are_filled",
        "a receiver with gaps goes on at a source that lost what superseded the missing writes",
    ),
    bug(
        "expiry-not-logged",
        "R17",
        Scenario::ExpiryAndClocks,
        "keys expire by the clock alone, and no delete is logged",
    ),
    bug(
        "frozen-clock-goes-on",
        "R17",
        Scenario::ExpiryAndClocks,
        "a frozen slot expires by the running clock",
    ),
    bug(
        "tombstone-dropped",
        "invariant 3",
        Scenario::ManyJobs,
        "a delete does not reach who copies the slot",
    ),
    unsynced("unsynced-directory", DISK_IMAGES, "directories above the logs may go with a power cut"),
    unsynced("unsynced-log-file", DISK_IMAGES, "a log file is taken for prepared before it is on the disk"),
    unsynced("unsynced-log-name", DISK_IMAGES, "a log file is written before its name is on the disk"),
    unsynced("unsynced-log-batch", DISK_IMAGES, "batches are called synced when they are written"),
    unsynced(
        "unsynced-awaited-batch",
        DISK_IMAGES,
        "batches that are waited for are called synced when written",
    ),
    unsynced(
        "unsynced-led-batch",
        LEADING,
        "a thread that writes for itself calls synced what it has written",
    ),
    unsynced("unsynced-recovered-end", DISK_IMAGES, "what recovery read from the cache is called durable"),
    unsynced(
        "unsynced-recycled-header",
        DISK_IMAGES,
        "a recycled file has its new name before its new header",
    ),
    unsynced(
        "unsynced-recycled-name",
        RECYCLING,
        "a recycled file is written before its new name is on the disk",
    ),
    unsynced("unsynced-checkpoint-data", DISK_IMAGES, "a manifest names data that the disk may not have"),
    unsynced("unsynced-manifest", DISK_IMAGES, "a manifest has its name before its content"),
    unsynced("unsynced-manifest-name", DISK_IMAGES, "log space goes while the older manifest may come back"),
    unsynced("unsynced-found-manifest", CHECKPOINTS, "a manifest that was found may be the older one again"),
    unsynced(
        "manifest-before-log-sync",
        DISK_IMAGES,
        "logs may end before the start that a checkpoint notes",
    ),
    unsynced("log-given-back-before-manifest", DISK_IMAGES, "log space goes before the checkpoint counts"),
    unsynced(
        "checkpoint-position-not-skipped",
        CHECKPOINTS,
        "a checkpoint's frames are replayed on top of it",
    ),
    unsynced("latch-covers-one-log", LATCH, "a failed log refuses its own slots' writes only"),
    unsynced("unsynced-meta", DISK_IMAGES, "a boot begins before the disk has its number"),
    unsynced("unsynced-replacement", DISK_IMAGES, "a file's new name is there before its content"),
    unsynced("unsynced-replacement-name", CONTROL_STORE, "a replaced file may be the old one again"),
    unsynced("unsynced-backup", BACKUP_POWER, "a backup has its name before its content"),
    unsynced("unsynced-backup-name", BACKUP_POWER, "a backup that was said to be done may have no name"),
    unsynced(
        "repair-without-doubts",
        BACKUP_POWER,
        "a repair keeps what it cannot know to be the slot's latest",
    ),
    unsynced("unsynced-genesis", CONTROL_STORE, "a node begins before the disk has its genesis"),
    unsynced("unsynced-membership", CONTROL_STORE, "a node joins before the disk has its number"),
    unsynced("unsynced-leaving", CONTROL_STORE, "a node says that it has left, and may forget it"),
    unsynced(
        "unsynced-answers-marker",
        CONTROL_STORE,
        "that answers did not wait for disks may be forgotten",
    ),
];

/// Calls `f` with this bug turned on for its thread, if any.
pub fn with<T>(name: Option<&'static str>, f: impl FnOnce() -> T) -> T {
    lockgate_runtime::mutations::activate(name);
    let value = f();
    lockgate_runtime::mutations::activate(None);
    value
}

impl Mutation {
    /// The first plan in which the bug shows, with its report, among so many seeds. A violation that the plan has without
    /// the bug, too, proves nothing.
    pub fn first_caught(&self, scenario: Scenario, seeds: u64) -> Option<(Plan, Report)> {
        let plans = (0..seeds).map(|seed| Plan::draw(seed, scenario));
        let mut reports = plans.map(|plan| {
            let report = with(Some(self.name), || run(&plan));
            (plan, report)
        });
        reports.find(|(plan, report)| report.violation.is_some() && run(plan).violation.is_none())
    }
}
