//! Drawing a plan: each seed gets its own sizes and its own mix of faults, within what its scenario is about.
//!
//! What would break a promise that nobody made is not drawn: power cuts only where answers wait for disks; rotten bits
//! only on replicas, of which the rest can do without, since no operation replaces a disk yet.

use super::{Load, Plan, PlannedFault, PlannedJob, Scenario, Shape, Step, Weights, What, When, Who};
use crate::random::Random;

/// The shortest and longest first phase, in milliseconds.
const FAULTS_MS: (u64, u64) = (1_500, 4_000);
/// What a failover to another node takes is added to it, where runs are about that.
const FAILOVERS_MS: u64 = 2_500;
/// The longest that a client thinks between two operations, in microseconds.
const THINK_US: [u64; 3] = [2_000, 10_000, 40_000];
/// The same where runs are about failovers: what an operation costs to simulate goes into more runs, and so more failovers.
const THINK_US_OF_FAILOVERS: [u64; 3] = [4_000, 15_000, 40_000];
/// Clocks that run apart faster than any bound that nodes may be given.
const WILD_PPM: [i32; 4] = [-400_000, -250_000, 250_000, 400_000];

pub(super) fn draw(seed: u64, scenario: Scenario) -> Plan {
    let mut random = Random::new(seed, "shape");
    let shape = draw_shape(&mut random, scenario);
    let load = draw_load(&mut Random::new(seed, "load"), scenario);
    let more_ms = if fails_over(scenario) { FAILOVERS_MS } else { 0 };
    let faults_ms = random.between(FAULTS_MS.0, FAULTS_MS.1) + more_ms;
    let jobs = draw_jobs(&mut Random::new(seed, "jobs"), scenario, &shape, faults_ms);
    let mut faults =
        Faults { random: Random::new(seed, "faults"), shape: &shape, faults_ms, drawn: Vec::new() };
    faults.draw(scenario, seed);
    Plan { seed, scenario, faults: faults.drawn, shape, load, jobs, faults_ms }
}

/// Whether runs of the scenario are about shards that change their primary.
fn fails_over(scenario: Scenario) -> bool {
    matches!(
        scenario,
        Scenario::SourceFailoverAtFinalize
            | Scenario::TargetFailoverAtFinalize
            | Scenario::Both
            | Scenario::PauseSource
            | Scenario::Membership
            | Scenario::PlannedFailover
            | Scenario::ClocksBeyondBound
    )
}

fn draw_shape(random: &mut Random, scenario: Scenario) -> Shape {
    let shards = random.weighted(&[(3, 2), (2, 3)]);
    let members = match scenario {
        Scenario::Membership | Scenario::DiskFaults | Scenario::PlannedFailover => {
            random.weighted(&[(2, 2), (2, 3)])
        }
        Scenario::ClocksBeyondBound => random.weighted(&[(3, 2), (2, 3)]),
        _ => random.weighted(&[(1, 1), (5, 2), (2, 3)]),
    };
    let voters = if shards * members >= 5 && random.one_in(3) { 5 } else { 3.min(shards * members) };
    let synced = match scenario {
        Scenario::DiskFaults | Scenario::ExpiryAndClocks => true,
        _ => random.one_in(2),
    };
    Shape {
        shards,
        members,
        voters,
        cores: random.weighted(&[(4, 1), (1, 2)]),
        hot_slots: random.pick(&[4, 16, 48]),
        // Slots that nobody uses show little, and cost five times as much as all else.
        all_slots: random.one_in(48),
        synced,
        log_file_bytes: random.pick(&[256 << 10, 1 << 20, 4 << 20]),
        node_timeout_ms: random.pick(if fails_over(scenario) { &[400, 800] } else { &[400, 800, 2_000] }),
        checkpoint_log_bytes: random.pick(&[16 << 10, 128 << 10, 64 << 20]),
    }
}

fn draw_load(random: &mut Random, scenario: Scenario) -> Load {
    let mut weights = Weights {
        get: random.between(2, 10),
        set: random.between(2, 10),
        delete: random.between(0, 4),
        set_if_absent: random.between(0, 3),
        compare_and_set: random.between(0, 4),
        set_expiring: random.weighted(&[(2, 0), (1, 2)]),
        expire: random.weighted(&[(2, 0), (1, 1)]),
    };
    let expires = scenario == Scenario::ExpiryAndClocks;
    if expires {
        weights = Weights { get: 10, set_expiring: 8, expire: 4, ..weights };
    }
    // What expires does so by the clocks that go wrong here.
    if scenario == Scenario::ClocksBeyondBound {
        weights = Weights { set_expiring: 0, expire: 0, ..weights };
    }
    Load {
        clients: random.between(2, 6) as usize,
        keys: if expires { 8 } else { random.between(3, 24) as usize },
        think_us_max: random.pick(if fails_over(scenario) { &THINK_US_OF_FAILOVERS } else { &THINK_US }),
        patience_ms: random.pick(&[300, 2_000, 8_000]),
        value_bytes_max: random.pick(&[24, 200, 5_000]),
        weights,
        large_one_in: random.weighted(&[(5, 0), (1, 100)]),
    }
}

fn draw_jobs(random: &mut Random, scenario: Scenario, shape: &Shape, faults_ms: u64) -> Vec<PlannedJob> {
    let jobs = match scenario {
        Scenario::ManyJobs => random.between(12, 40),
        _ => random.between(2, 8),
    };
    let job = |random: &mut Random| {
        let first = random.between(0, u64::from(shape.hot_slots) - 1) as u16;
        PlannedJob {
            at_ms: random.between(0, faults_ms * 3 / 4),
            shard: random.index(shape.shards),
            first,
            count: random.between(1, u64::from(shape.hot_slots)) as u16,
            to: random.index(shape.shards),
        }
    };
    let mut jobs: Vec<_> = (0..jobs).map(|_| job(random)).collect();
    jobs.sort_by_key(|job| job.at_ms);
    jobs
}

struct Faults<'a> {
    random: Random,
    shape: &'a Shape,
    faults_ms: u64,
    drawn: Vec<PlannedFault>,
}

impl Faults<'_> {
    fn draw(&mut self, scenario: Scenario, seed: u64) {
        match scenario {
            Scenario::Swarm => self.swarm(),
            Scenario::SourceFailoverAtFinalize => self.failover_and_the_heir(Who::Source),
            Scenario::TargetFailoverAtFinalize => self.failover_and_the_heir(Who::Target),
            Scenario::Both => {
                self.failovers_at_finalize(Who::Source);
                self.failovers_at_finalize(Who::Target);
                if self.shape.synced {
                    let (step, nth) = (self.random.pick(&Step::FINALIZE), self.random.between(0, 3) as u32);
                    let when = self.at_step(step, nth);
                    self.blackout(when);
                }
            }
            Scenario::CoordinatorCrashAtEveryStep => {
                let step = Step::ALL[(seed % Step::ALL.len() as u64) as usize];
                let who =
                    if (seed / Step::ALL.len() as u64).is_multiple_of(2) { Who::Source } else { Who::Leader };
                for nth in 0..4 {
                    let when = self.at_step(step, nth);
                    let what = self.stop(who);
                    self.add(when, what, (20, 1_500));
                }
            }
            Scenario::PartitionAtFinalize => self.at_finalize(Self::cut),
            Scenario::PauseSource => {
                for nth in 0..3 {
                    let step = self.random.pick(&Step::ALL);
                    let when = self.at_step(step, nth);
                    let who = self.random.weighted(&[(4, Who::Source), (1, Who::Target), (1, Who::Leader)]);
                    self.add(when, What::Pause(who), (20, 6_000));
                }
            }
            Scenario::PlannedFailover => self.hand_overs(),
            Scenario::ClocksBeyondBound => self.wild_clocks(),
            Scenario::CancelRacesCommit => self.at_finalize(|_| What::CancelJobs),
            Scenario::DiskFaults => self.disks(),
            Scenario::ManyJobs => self.some(0, 3, Self::any),
            Scenario::ExpiryAndClocks => {
                self.at_finalize(Self::cut);
                for _ in 0..self.random.between(1, 3) {
                    self.clocks_set_back_and_power();
                }
                self.some(0, 2, Self::clock);
            }
            Scenario::Membership => {
                self.some(3, 8, |this| {
                    let who = this.random.pick(&[Who::SourceReplica, Who::TargetReplica]);
                    let stop = this.stop(who);
                    this.random.pick(&[
                        stop,
                        What::Isolate(who),
                        What::Pause(who),
                        What::Deafen(who),
                        What::Mute(who),
                    ])
                });
                if self.random.one_in(2) {
                    self.primary_leaves_a_lagging_replica();
                }
                // Who leaves and comes back may have to lead meanwhile, or find another one leading.
                for nth in 0..self.random.between(0, 2) as u32 {
                    let who = self.random.pick(&[Who::Source, Who::Target]);
                    self.failover(nth, who);
                }
            }
        }
    }

    /// A mix of its own: a few kinds of faults, each some times.
    fn swarm(&mut self) {
        let kinds: [fn(&mut Self) -> What; 5] =
            [Self::any, Self::cut, Self::process, Self::clock, Self::disk];
        for _ in 0..self.random.between(1, 4) {
            let kind = self.random.pick(&kinds);
            self.some(1, 3, kind);
        }
        if self.random.one_in(4) {
            self.at_finalize(Self::any);
        }
        if self.random.one_in(4) {
            let what = self.mangle();
            self.add(When::AtMs(0), what, (500, 4_000));
        }
    }

    fn some(&mut self, least: u64, most: u64, what: impl Fn(&mut Self) -> What) {
        for _ in 0..self.random.between(least, most) {
            let when = When::AtMs(self.random.between(0, self.faults_ms));
            let what = what(self);
            self.add(when, what, (10, 2_500));
        }
    }

    /// At a step of the finalize of several jobs.
    fn at_finalize(&mut self, what: impl Fn(&mut Self) -> What) {
        for nth in 0..self.random.between(1, 4) as u32 {
            let step = self.random.pick(&Step::FINALIZE);
            let when = self.at_step(step, nth);
            let what = what(self);
            self.add(when, what, (5, 2_500));
        }
    }

    /// At a step of the finalize of several jobs, this primary is away: shortly, or for so long that another node leads.
    fn failovers_at_finalize(&mut self, who: Who) {
        for nth in 0..self.random.between(1, 4) as u32 {
            self.failover(nth, who);
        }
    }

    /// A replica starts again, and lacks what was answered for without it; about then its primary goes.
    fn primary_leaves_a_lagging_replica(&mut self) {
        let primary = self.random.index(self.shape.shards) * self.shape.members;
        let timeout_ms = self.shape.node_timeout_ms;
        let at_ms = self.random.between(0, self.faults_ms / 3);
        let lasts_ms = self.random.between(timeout_ms, 2 * timeout_ms);
        self.add(When::AtMs(at_ms), What::Kill(Who::Machine(primary + 1)), (lasts_ms, lasts_ms));
        let what = self.away(Who::Machine(primary));
        let gone_ms = at_ms + lasts_ms + self.random.between(0, 40);
        self.add(When::AtMs(gone_ms), what, (3 * timeout_ms, 4 * timeout_ms));
    }

    /// A primary that is cut off loses its office, comes back as a replica, and is given its office again: what it could
    /// not answer for in its first reign it must not answer for in its second.
    fn there_and_back(&mut self) {
        let timeout_ms = self.shape.node_timeout_ms;
        let step = self.random.pick(&[Step::Streaming, Step::CatchingUp, Step::Barrier]);
        let when = self.at_step(step, 0);
        self.add(when, What::Isolate(Who::Source), (timeout_ms * 5 / 4, timeout_ms * 3 / 2));
        for part in [4, 6, 8, 12, 16] {
            let when = When::AtFailover { nth: 0, after_us: timeout_ms * 1_000 * part / 8 };
            self.add(when, What::HandOver(Who::Heir), (5, 500));
        }
    }

    /// Several failovers; or one, and who leads then loses its power at once. What was answered for is on the disk of who
    /// is named (R12), also where answers do not wait for disks: then that is all that happens in the run, since two that
    /// lose their memory before anything is synced may lose what was answered for.
    fn failover_and_the_heir(&mut self, who: Who) {
        if self.shape.members == 1 || self.random.one_in(2) {
            return self.failovers_at_finalize(who);
        }
        let step = self.random.pick(&Step::ALL);
        let (mut when, timeout_ms) = (self.at_step(step, 0), self.shape.node_timeout_ms);
        if self.random.one_in(2) {
            // What was answered for meanwhile is in the heir's memory only.
            let heir = if who == Who::Source { Who::SourceReplica } else { Who::TargetReplica };
            self.add(when, What::StuckDisk(heir), (timeout_ms * 4, timeout_ms * 5));
            when = When::AtStep { step, nth: 0, after_us: timeout_ms * 1_000 };
        }
        let what = self.random.pick(&[What::Kill(who), What::Pause(who), What::Isolate(who)]);
        self.add(when, what, (timeout_ms * 3 / 2, timeout_ms * 3));
        let after_us = self.random.pick(&[0, 0, 200, 2_000]);
        let what = What::PowerCut { who: Who::Heir, torn: self.random.one_in(2) };
        self.add(When::AtFailover { nth: 0, after_us }, what, (10, 2_000));
    }

    fn failover(&mut self, nth: u32, who: Who) {
        let step = self.random.pick(&Step::FINALIZE);
        let when = self.at_step(step, nth);
        let timeout_ms = self.shape.node_timeout_ms;
        let lasts_ms = self.random.pick(&[(5, timeout_ms / 2), (timeout_ms * 3 / 2, timeout_ms * 3)]);
        let what = self.away(who);
        self.add(when, what, lasts_ms);
        // The leader of the control log at the same moment.
        if self.random.one_in(4) {
            let what = self.away(Who::Leader);
            self.add(when, what, lasts_ms);
        }
    }

    /// A process or a machine is gone, stands still, or is cut off.
    fn away(&mut self, who: Who) -> What {
        let stop = self.stop(who);
        self.random.pick(&[
            stop,
            stop,
            What::Pause(who),
            What::Isolate(who),
            What::Mute(who),
            What::Deafen(who),
        ])
    }

    /// Shards are handed over at steps of jobs, and now and then something else happens just then.
    fn hand_overs(&mut self) {
        if self.random.one_in(3) {
            return self.there_and_back();
        }
        for nth in 0..self.random.between(2, 5) as u32 {
            let step = self.random.pick(&Step::ALL);
            let when = self.at_step(step, nth);
            let who = self.random.weighted(&[(3, Who::Source), (3, Who::Target), (1, Who::Leader)]);
            self.add(when, What::HandOver(who), (5, 500));
            if self.random.one_in(3) {
                let other = self.who();
                let other = self.random.pick(&[who, other]);
                let what = self.away(other);
                let when = self.at_step(step, nth);
                self.add(when, what, (20, 2_000));
            }
        }
        if self.random.one_in(4) {
            let what = self.mangle();
            self.add(When::AtMs(0), what, (500, 4_000));
        }
        for _ in 0..self.random.between(0, 3) {
            let (when, who) = (When::AtMs(self.random.between(0, self.faults_ms)), self.who());
            self.add(when, What::HandOver(who), (5, 500));
        }
    }

    /// Clocks that break every promise, and primaries that are away meanwhile.
    fn wild_clocks(&mut self) {
        self.some(2, 5, |this| {
            let who = this.random.weighted(&[
                (2, Who::Leader),
                (2, Who::Source),
                (2, Who::Target),
                (1, Who::SourceReplica),
            ]);
            match this.random.one_in(2) {
                true => What::Drift { who, ppm: this.random.pick(&WILD_PPM) },
                false => What::JumpClock { who, ms: this.random.pick(&[200, 1_500, 60_000]) },
            }
        });
        for nth in 0..self.random.between(1, 3) as u32 {
            let who = self.random.pick(&[Who::Source, Who::Target, Who::Leader]);
            self.failover(nth, who);
        }
    }

    fn at_step(&mut self, step: Step, nth: u32) -> When {
        When::AtStep {
            step,
            nth,
            after_us: self.random.weighted(&[(2, 0), (1, 300), (1, 1_500), (1, 5_000)]),
        }
    }

    fn add(&mut self, when: When, what: What, (least_ms, most_ms): (u64, u64)) {
        let lasts_ms = self.random.between(least_ms, most_ms);
        self.drawn.push(PlannedFault { when, what, lasts_ms });
    }

    fn who(&mut self) -> Who {
        let machine = Who::Machine(self.random.index(self.shape.machines()));
        let roles = [Who::Source, Who::Target, Who::SourceReplica, Who::TargetReplica, Who::Leader];
        if self.random.one_in(2) { machine } else { self.random.pick(&roles) }
    }

    /// A process dies, or its machine does.
    fn stop(&mut self, who: Who) -> What {
        if self.shape.synced && self.random.one_in(2) {
            What::PowerCut { who, torn: self.random.one_in(2) }
        } else {
            What::Kill(who)
        }
    }

    fn process(&mut self) -> What {
        let who = self.who();
        if self.random.one_in(3) { What::Pause(who) } else { self.stop(who) }
    }

    fn cut(&mut self) -> What {
        let (who, other) = (self.who(), self.who());
        let slow_or_lossy = if self.random.one_in(2) {
            What::SlowLinks(who)
        } else {
            What::LossyNetwork { one_in: self.random.pick(&[5, 50]) }
        };
        self.random.pick(&[
            What::Isolate(who),
            What::Mute(who),
            What::Deafen(who),
            What::Part(who, other),
            What::ResetLinks(who, other),
            slow_or_lossy,
        ])
    }

    fn mangle(&mut self) -> What {
        What::MangleMessages {
            drop_one_in: self.random.pick(&[0, 10, 50]),
            repeat_one_in: self.random.pick(&[3, 20]),
            delay_one_in: self.random.pick(&[3, 20]),
        }
    }

    fn clock(&mut self) -> What {
        let who = self.who();
        match self.random.between(0, 2) {
            0 => What::Drift { who, ppm: self.random.pick(&[-50_000, -500, 500, 50_000]) },
            1 => What::JumpClock { who, ms: self.random.pick(&[5, 400, 3_000, 60_000]) },
            _ => What::JumpWallClock { who, ms: self.random.pick(&[-60_000, -700, 700, 60_000]) },
        }
    }

    fn disk(&mut self) -> What {
        let who = self.who();
        let fails = if self.shape.synced { What::FailSync(who) } else { What::SlowDisk(who) };
        self.random.pick(&[What::SlowDisk(who), fails, What::FullDisk(who)])
    }

    /// A sync fails, and soon the power too: what the first took from the disk, the second takes from memory.
    fn fail_sync_and_power(&mut self) {
        let who = Who::Machine(self.random.index(self.shape.machines()));
        let at_ms = self.random.between(0, self.faults_ms);
        self.add(When::AtMs(at_ms), What::FailSync(who), (100, 600));
        let after_ms = at_ms + self.random.between(5, 400);
        self.add(When::AtMs(after_ms), What::PowerCut { who, torn: false }, (10, 400));
    }

    /// What a shard said of expired keys while its primary's disk was slow must still be so when its machines live in the
    /// past and its primary loses its power: for a moment, or for so long that another one leads.
    fn clocks_set_back_and_power(&mut self) {
        let members = self.shape.members;
        let primary = self.random.index(self.shape.shards) * members;
        let at_ms = self.random.between(0, self.faults_ms / 2);
        self.add(When::AtMs(at_ms), What::SlowDisk(Who::Machine(primary)), (900, 900));
        let back_ms = at_ms + self.random.between(300, 800);
        for member in 0..members {
            let who = Who::Machine(primary + member);
            self.add(When::AtMs(back_ms), What::JumpWallClock { who, ms: -60_000 }, (1, 1));
        }
        let timeout_ms = self.shape.node_timeout_ms;
        let lasts_ms = self.random.pick(&[(10, 200), (timeout_ms * 3 / 2, timeout_ms * 2)]);
        let what = What::PowerCut { who: Who::Machine(primary), torn: false };
        self.add(When::AtMs(back_ms + 1), what, lasts_ms);
    }

    fn blackout(&mut self, when: When) {
        let torn = self.random.one_in(2);
        self.add(when, What::Blackout { torn }, (10, 400));
    }

    fn disks(&mut self) {
        for _ in 0..self.random.between(0, 2) {
            self.fail_sync_and_power();
        }
        if self.random.one_in(2) {
            let when = When::AtMs(self.random.between(0, self.faults_ms));
            self.blackout(when);
        }
        self.some(2, 5, |this| {
            let who = this.who();
            let stop = this.stop(who);
            let disk = this.disk();
            this.random.pick(&[stop, disk, disk])
        });
        if self.shape.members > 1 && self.random.one_in(3) {
            // The last machine of all is no voter, or one that a majority can do without.
            let when = When::AtMs(self.random.between(0, self.faults_ms));
            self.add(when, What::RotBits(Who::Machine(self.shape.machines() - 1)), (10, 1_000));
        }
    }

    fn any(&mut self) -> What {
        match self.random.between(0, 5) {
            0 | 1 => self.process(),
            2 => self.cut(),
            3 => self.clock(),
            4 => self.disk(),
            _ => What::CancelJobs,
        }
    }
}
