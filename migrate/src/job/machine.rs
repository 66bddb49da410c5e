//! The job machine: what the source does for one migration job, decided purely.
//!
//! An event goes in, a new phase and exact commands come out. There is no I/O here and no clock: time arrives with
//! the events, so that every race can be written down as a short synchronous test. The driver in `node` executes.
//!
//! Invariants
//! - Slots are frozen exactly in [`Phase::Freezing`], [`Phase::Barrier`] and [`Phase::Voting`].
//! - No unfreeze on a timer: [`Phase::Voting`] is left only by [`Event::Map`], which is an applied entry that
//!   consumed the attempt (R15). Before the vote, giving up is safe and quick.
//! - No rebasing: evidence is used under the attempt that it was gathered under, and a repeated vote repeats the
//!   same bytes. A void attempt goes back to catching up, freezes again and passes the barrier again.

use lockgate_runtime::mutation;

use crate::control::{Attempt, JobState};

/// Bounds on a finalize. Times in nanoseconds of the runtime's clock.
#[derive(Clone, Copy, Debug)]
pub struct JobLimits {
    /// The freeze begins when the remaining tail is predicted to drain within this time.
    pub drain_budget_ns: u64,
    /// A freeze whose barrier has not passed by then is given up, and tried again under a new attempt.
    pub freeze_ns_max: u64,
    /// A vote whose outcome is unknown after this time is sent again, unchanged.
    pub vote_repeat_ns: u64,
    /// Attempts after which the job fails with the last reason.
    pub attempts_max: u32,
    /// A job whose target has been out of reach for this long fails with that reason.
    pub target_lost_ns_max: u64,
}

const MS: u64 = 1_000_000;

impl JobLimits {
    const DEFAULT: JobLimits = JobLimits {
        drain_budget_ns: 2 * MS,
        freeze_ns_max: 1_000 * MS,
        vote_repeat_ns: 300 * MS,
        attempts_max: 64,
        target_lost_ns_max: 10_000 * MS,
    };
}

impl Default for JobLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

// A vote must be repeated well within the time in which people give up on a freeze, and a lost target must outlast one freeze.
const _: () = {
    assert!(JobLimits::DEFAULT.vote_repeat_ns < JobLimits::DEFAULT.freeze_ns_max);
    assert!(JobLimits::DEFAULT.freeze_ns_max < JobLimits::DEFAULT.target_lost_ns_max);
};

/// How far the target is behind, as the source sees it from acknowledgements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Writes that the target has not acknowledged yet, over all slots of the job.
    pub lag_records: u64,
    /// The same in bytes, estimated from the slots' mean record.
    pub lag_bytes: u64,
    /// Rate at which the target acknowledged lately; 0 when not yet known.
    pub drain_bytes_per_s: u64,
    /// Whether every slot's content at the job's beginning has been acknowledged.
    pub copied: bool,
    /// Whether the target has a stream open for every slot of the job.
    pub connected: bool,
}

impl Progress {
    /// Predicted time to drain the tail. A tail that fits one packed range is taken as one round trip.
    fn drain_ns(&self) -> u64 {
        const ONE_RANGE_BYTES: u64 = 128 * 1024;
        const RATE_FLOOR_BYTES_PER_S: u64 = 100 * 1024 * 1024;
        if self.lag_bytes <= ONE_RANGE_BYTES {
            return 0;
        }
        let rate = self.drain_bytes_per_s.max(RATE_FLOOR_BYTES_PER_S);
        (u128::from(self.lag_bytes) * 1_000_000_000 / u128::from(rate)) as u64
    }
}

/// Where the job stands at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The target copies what was there when the job began.
    Streaming,
    /// The copy is whole; the tail shrinks until a freeze is cheap.
    CatchingUp,
    /// The slots are being frozen and the final versions gathered.
    Freezing,
    /// Frozen; the target and its in-sync replicas sync the last frame. No vote has been sent.
    Barrier,
    /// A vote was sent: only an applied entry ends this.
    Voting,
    /// The attempt was given up before its vote; the slots are thawed and the map's next attempt is awaited.
    Ending,
    /// The commit is applied; the slots are the target's, which pulls the release.
    Committed,
    /// Nothing is left to do at the source's side of the job.
    Over,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A look at how far the target is.
    Progress(Progress),
    /// The driver froze the slots under this attempt and sent their final versions to the target.
    Frozen(Attempt),
    /// The driver could not freeze (a slot was not served any more).
    FreezeFailed(Attempt, String),
    /// The target and its in-sync replicas have synced the last frame.
    BarrierPassed(Attempt),
    /// The target saw that the barrier cannot pass under this attempt.
    BarrierFailed(Attempt, String),
    /// Time passed.
    Clock,
    /// What the applied map says of the job now.
    Map(JobState, Attempt),
}

/// What the driver must do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Freeze every slot of the job and send the final versions and digests to the target.
    Freeze(Attempt),
    /// Let the slots serve writes again.
    Thaw,
    /// Propose the commit with the evidence that was gathered under this attempt.
    Vote(Attempt),
    /// Consume the attempt by an entry, without a vote.
    EndAttempt(Attempt, String),
    /// Fail the job by an entry, with a reason for people.
    Abort(String),
}

/// One job at its source.
#[derive(Debug)]
pub struct JobMachine {
    phase: Phase,
    attempt: Attempt,
    attempts: u32,
    limits: JobLimits,
    phase_since_ns: u64,
    vote_sent_ns: u64,
    connected_ns: u64,
    last_reason: String,
    aborting: bool,
}

impl JobMachine {
    /// A job that the map shows as active under `attempt`.
    pub fn new(attempt: Attempt, limits: JobLimits, now_ns: u64) -> Self {
        Self {
            phase: Phase::Streaming,
            attempt,
            attempts: 1,
            limits,
            phase_since_ns: now_ns,
            vote_sent_ns: 0,
            connected_ns: now_ns,
            last_reason: String::new(),
            aborting: false,
        }
    }

    /// Where the job stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The attempt that the job is in.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Why the last attempt was given up or void; empty if none was.
    pub fn last_reason(&self) -> &str {
        &self.last_reason
    }

    /// Takes one event at `now_ns` and appends to `commands` what must be done.
    pub fn on(&mut self, event: Event, now_ns: u64, commands: &mut Vec<Command>) {
        match event {
            Event::Progress(progress) => self.on_progress(progress, now_ns, commands),
            Event::Frozen(attempt) => {
                if self.phase == Phase::Freezing && attempt == self.attempt {
                    self.enter(Phase::Barrier, now_ns);
                }
            }
            Event::FreezeFailed(attempt, why) | Event::BarrierFailed(attempt, why) => {
                if matches!(self.phase, Phase::Freezing | Phase::Barrier) && attempt == self.attempt {
                    self.give_up(why, now_ns, commands);
                }
            }
            Event::BarrierPassed(attempt) => {
                if self.phase == Phase::Barrier && attempt == self.attempt {
                    self.enter(Phase::Voting, now_ns);
                    self.vote_sent_ns = now_ns;
                    commands.push(Command::Vote(attempt));
                }
            }
            Event::Clock => self.on_clock(now_ns, commands),
            Event::Map(state, attempt) => self.on_map(state, attempt, now_ns, commands),
        }
    }

    fn on_progress(&mut self, progress: Progress, now_ns: u64, commands: &mut Vec<Command>) {
        if progress.connected {
            self.connected_ns = now_ns;
        }
        if self.phase == Phase::Streaming && progress.copied {
            self.enter(Phase::CatchingUp, now_ns);
        }
        let ready =
            progress.connected && progress.copied && progress.drain_ns() <= self.limits.drain_budget_ns;
        if self.phase == Phase::CatchingUp && ready && !self.aborting {
            self.enter(Phase::Freezing, now_ns);
            commands.push(Command::Freeze(self.attempt));
        }
    }

    fn on_clock(&mut self, now_ns: u64, commands: &mut Vec<Command>) {
        let waited_ns = now_ns.saturating_sub(self.phase_since_ns);
        match self.phase {
            Phase::Freezing | Phase::Barrier if waited_ns > self.limits.freeze_ns_max => {
                let why =
                    format!("the barrier did not pass within {} ms", self.limits.freeze_ns_max / 1_000_000);
                self.give_up(why, now_ns, commands);
            }
            Phase::Voting if mutation!("unfreeze-on-a-timer") && waited_ns > self.limits.freeze_ns_max => {
                self.enter(Phase::CatchingUp, now_ns);
                commands.push(Command::Thaw);
            }
            Phase::Voting if now_ns.saturating_sub(self.vote_sent_ns) > self.limits.vote_repeat_ns => {
                self.vote_sent_ns = now_ns;
                commands.push(Command::Vote(self.attempt));
            }
            Phase::Streaming | Phase::CatchingUp => {
                let lost_ns = now_ns.saturating_sub(self.connected_ns);
                if lost_ns > self.limits.target_lost_ns_max && !self.aborting {
                    self.aborting = true;
                    let lost_s = lost_ns / 1_000_000_000;
                    commands
                        .push(Command::Abort(format!("the target has had no stream open for {lost_s} s")));
                }
            }
            _ => {}
        }
    }

    fn on_map(&mut self, state: JobState, attempt: Attempt, now_ns: u64, commands: &mut Vec<Command>) {
        let frozen = matches!(self.phase, Phase::Freezing | Phase::Barrier | Phase::Voting);
        match state {
            JobState::Active if attempt == self.attempt => {}
            JobState::Active => {
                // The attempt was consumed. A freeze that is under way belongs to it and is void with it.
                if self.phase == Phase::Voting {
                    self.last_reason = "the commit's evidence went stale before it was applied".into();
                }
                if frozen {
                    commands.push(Command::Thaw);
                }
                self.attempt = attempt;
                self.attempts += 1;
                self.enter(Phase::CatchingUp, now_ns);
                if self.attempts > self.limits.attempts_max && !self.aborting {
                    self.aborting = true;
                    let (tries, why) = (self.attempts - 1, &self.last_reason);
                    commands
                        .push(Command::Abort(format!("{tries} attempts failed, the last one because {why}")));
                }
            }
            JobState::Committed { .. } => self.enter(Phase::Committed, now_ns),
            // What is disputed stays as it is: its gates are closed whatever they were.
            JobState::Activated { .. } | JobState::Disputed => self.enter(Phase::Over, now_ns),
            JobState::Failed { .. } | JobState::Cancelled { .. } => {
                if frozen {
                    commands.push(Command::Thaw);
                }
                self.enter(Phase::Over, now_ns);
            }
        }
    }

    /// Gives up an attempt for which no vote was sent: thaw at once, and consume the number by an entry.
    fn give_up(&mut self, why: String, now_ns: u64, commands: &mut Vec<Command>) {
        assert_ne!(self.phase, Phase::Voting, "an attempt that was voted on ends by an applied entry only");
        self.last_reason.clone_from(&why);
        self.enter(Phase::Ending, now_ns);
        commands.push(Command::Thaw);
        commands.push(Command::EndAttempt(self.attempt, why));
    }

    fn enter(&mut self, phase: Phase, now_ns: u64) {
        self.phase = phase;
        self.phase_since_ns = now_ns;
    }
}

#[cfg(test)]
mod tests {
    use lockgate_engine::Term;

    use super::*;

    fn ready() -> Event {
        Event::Progress(Progress { copied: true, connected: true, ..Progress::default() })
    }

    fn step(machine: &mut JobMachine, event: Event, now_ms: u64) -> Vec<Command> {
        let mut commands = Vec::new();
        machine.on(event, now_ms * MS, &mut commands);
        commands
    }

    fn voting() -> JobMachine {
        let mut machine = JobMachine::new(Attempt(1), JobLimits::default(), 0);
        assert_eq!(step(&mut machine, ready(), 1), [Command::Freeze(Attempt(1))]);
        assert_eq!(step(&mut machine, Event::Frozen(Attempt(1)), 2), []);
        assert_eq!(step(&mut machine, Event::BarrierPassed(Attempt(1)), 3), [Command::Vote(Attempt(1))]);
        machine
    }

    #[test]
    fn a_straight_run_freezes_votes_and_ends() {
        let mut machine = voting();
        assert_eq!(
            step(&mut machine, Event::Map(JobState::Committed { index: 9, term: Term(5) }, Attempt(1)), 4),
            []
        );
        assert_eq!(machine.phase(), Phase::Committed);
        assert_eq!(step(&mut machine, Event::Map(JobState::Activated { index: 10 }, Attempt(1)), 5), []);
        assert_eq!(machine.phase(), Phase::Over);
    }

    #[test]
    fn a_vote_in_flight_never_thaws_on_a_timer() {
        let mut machine = voting();
        for now_ms in (10..600_000).step_by(10) {
            let commands = step(&mut machine, Event::Clock, now_ms);
            assert!(commands.iter().all(|c| *c == Command::Vote(Attempt(1))), "{commands:?}");
        }
        assert_eq!(step(&mut machine, Event::BarrierFailed(Attempt(1), "late".into()), 600_001), []);
        assert_eq!(machine.phase(), Phase::Voting);
    }

    #[test]
    fn a_void_vote_thaws_and_starts_over_under_the_maps_attempt() {
        let mut machine = voting();
        assert_eq!(step(&mut machine, Event::Map(JobState::Active, Attempt(7)), 4), [Command::Thaw]);
        assert_eq!((machine.phase(), machine.attempt()), (Phase::CatchingUp, Attempt(7)));
        assert_eq!(
            step(&mut machine, Event::BarrierPassed(Attempt(1)), 5),
            [],
            "evidence of a consumed attempt"
        );
        assert_eq!(step(&mut machine, ready(), 6), [Command::Freeze(Attempt(7))]);
        assert_eq!(
            step(&mut machine, Event::BarrierPassed(Attempt(7)), 7),
            [],
            "before the freeze was confirmed"
        );
        assert_eq!(step(&mut machine, Event::Frozen(Attempt(7)), 8), []);
        assert_eq!(step(&mut machine, Event::BarrierPassed(Attempt(1)), 9), []);
        assert_eq!(step(&mut machine, Event::BarrierPassed(Attempt(7)), 10), [Command::Vote(Attempt(7))]);
    }

    #[test]
    fn a_barrier_that_does_not_pass_is_given_up_at_once_and_needs_a_new_attempt() {
        let mut machine = JobMachine::new(Attempt(1), JobLimits::default(), 0);
        step(&mut machine, ready(), 1);
        step(&mut machine, Event::Frozen(Attempt(1)), 2);
        assert_eq!(step(&mut machine, Event::Clock, 900), []);
        let commands = step(&mut machine, Event::Clock, 1_100);
        assert!(matches!(&commands[..], [Command::Thaw, Command::EndAttempt(Attempt(1), _)]), "{commands:?}");
        assert_eq!(step(&mut machine, Event::BarrierPassed(Attempt(1)), 1_101), [], "too late");
        assert_eq!(step(&mut machine, ready(), 1_102), [], "the number is not consumed yet");
        assert_eq!(step(&mut machine, Event::Map(JobState::Active, Attempt(2)), 1_103), []);
        assert_eq!(step(&mut machine, ready(), 1_104), [Command::Freeze(Attempt(2))]);
    }

    #[test]
    fn a_cancel_or_a_failure_that_is_applied_thaws() {
        for state in [
            JobState::Cancelled { why: "asked for".into() },
            JobState::Failed { why: "source shard 1 failed over".into() },
        ] {
            let mut machine = voting();
            assert_eq!(step(&mut machine, Event::Map(state, Attempt(1)), 4), [Command::Thaw]);
            assert_eq!(machine.phase(), Phase::Over);
            assert_eq!(step(&mut machine, ready(), 5), []);
        }
    }

    #[test]
    fn a_long_tail_does_not_freeze() {
        let mut machine = JobMachine::new(Attempt(1), JobLimits::default(), 0);
        let long = Progress {
            copied: true,
            connected: true,
            lag_bytes: 64 << 20,
            lag_records: 1,
            drain_bytes_per_s: 1,
        };
        assert_eq!(step(&mut machine, Event::Progress(long), 1), []);
        assert_eq!(machine.phase(), Phase::CatchingUp);
        let fast = Progress { drain_bytes_per_s: 64 << 30, ..long };
        assert_eq!(step(&mut machine, Event::Progress(fast), 2), [Command::Freeze(Attempt(1))]);
    }

    #[test]
    fn a_lost_target_fails_the_job_once() {
        let mut machine = JobMachine::new(Attempt(1), JobLimits::default(), 0);
        assert_eq!(step(&mut machine, Event::Clock, 9_000), []);
        assert!(matches!(&step(&mut machine, Event::Clock, 11_000)[..], [Command::Abort(_)]));
        assert_eq!(step(&mut machine, Event::Clock, 12_000), []);
    }
}
