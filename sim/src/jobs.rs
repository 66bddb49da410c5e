//! Where jobs stand, as their sources and the maps show it: what faults wait for, and what counters count.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use lockgate_migrate::control::{Attempt, Epoch, Job, JobId, JobState, NodeId, ShardId};
use lockgate_migrate::job::Phase;
use lockgate_runtime::Event;

use crate::plan::Step;
use crate::watch::MapChange;

/// One job.
struct Known {
    source: ShardId,
    target: ShardId,
    source_primary: NodeId,
    attempt: Attempt,
    first_attempt: Attempt,
    /// The epochs of source and target when the attempt began.
    epochs: (Epoch, Epoch),
    phase: Phase,
    state: JobState,
    steps: BTreeSet<Step>,
}

impl Known {
    fn is_finalizing(&self) -> bool {
        match self.state {
            JobState::Active => matches!(self.phase, Phase::Freezing | Phase::Barrier | Phase::Voting),
            JobState::Committed { .. } => true,
            _ => false,
        }
    }
}

/// Which jobs have reached which step, in order, for who waits for that.
#[derive(Default)]
pub struct Reached {
    by_step: RefCell<BTreeMap<Step, Vec<JobId>>>,
    failovers: RefCell<Vec<ShardId>>,
    changed: Event,
}

impl Reached {
    /// Waits until the `nth` job has reached `step`, and says which that is.
    pub async fn nth(&self, step: Step, nth: usize) -> JobId {
        loop {
            let changed = self.changed.listen();
            if let Some(&job) = self.by_step.borrow().get(&step).and_then(|jobs| jobs.get(nth)) {
                return job;
            }
            changed.await;
        }
    }

    /// Waits until the `nth` failover to another node.
    pub async fn nth_failover(&self, nth: usize) {
        loop {
            let changed = self.changed.listen();
            if self.failovers.borrow().len() > nth {
                return;
            }
            changed.await;
        }
    }

    /// The shard that failed over to another node last.
    pub fn last_failover(&self) -> Option<ShardId> {
        self.failovers.borrow().last().copied()
    }

    /// How many jobs have reached `step`.
    pub fn count(&self, step: Step) -> u64 {
        self.by_step.borrow().get(&step).map_or(0, |jobs| jobs.len() as u64)
    }
}

/// All jobs of a run.
#[derive(Default)]
pub struct Jobs {
    known: BTreeMap<JobId, Known>,
    /// Attempts for which a vote was seen under way.
    voted: BTreeSet<(JobId, Attempt)>,
    /// The highest epoch that was seen of each shard, and who led it then.
    epochs: BTreeMap<ShardId, (Epoch, NodeId)>,
    /// Steps as they are reached.
    pub reached: Rc<Reached>,
    /// Epochs that went to another node, and those of them that came while a job of the shard was finalizing.
    pub failovers: (u64, u64),
    /// The same for epochs in which the node that led before leads again, after a restart.
    pub returns: (u64, u64),
    /// Attempts that were consumed without a commit.
    pub attempts_ended: u64,
    /// Those of them that a new epoch of the source or the target consumed.
    pub attempts_failed_over: u64,
    /// And those of these in which the vote was seen under way: it was void.
    pub votes_void: u64,
    /// Jobs that were committed under their first attempt.
    pub first_commits: u64,
    /// Jobs that ended without moving anything.
    pub failed: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
}

impl Jobs {
    /// A machine has applied a newer map.
    pub fn map_changed(&mut self, change: &MapChange) {
        let map = &change.after;
        for (&id, shard) in &map.shards {
            let now = (shard.epoch, shard.primary.node);
            let (epoch, leader) = std::mem::replace(self.epochs.entry(id).or_insert(now), now);
            if epoch > now.0 {
                self.epochs.insert(id, (epoch, leader));
            } else if epoch < now.0 {
                let concerned = |job: &Known| (job.source == id || job.target == id) && job.is_finalizing();
                let at_finalize = u64::from(self.known.values().any(concerned));
                // Of epochs that no map showed nobody knows who led; they are not counted.
                if leader != now.1 {
                    self.reached.failovers.borrow_mut().push(id);
                    self.reached.changed.notify_all();
                }
                let counted = if leader == now.1 { &mut self.returns } else { &mut self.failovers };
                *counted = (counted.0 + 1, counted.1 + at_finalize);
            }
        }
        for job in map.jobs.values() {
            let source_primary = map.shards.get(&job.source).map(|shard| shard.primary.node);
            let epoch = |shard| map.shards.get(&shard).map_or(Epoch(0), |shard| shard.epoch);
            let epochs = (epoch(job.source), epoch(job.target));
            self.seen(job, epochs, source_primary.unwrap_or(NodeId(0)));
        }
    }

    fn seen(&mut self, job: &Job, epochs: (Epoch, Epoch), source_primary: NodeId) {
        let known = self.known.entry(job.id).or_insert_with(|| Known {
            source: job.source,
            target: job.target,
            source_primary,
            attempt: job.attempt,
            first_attempt: job.attempt,
            epochs,
            phase: Phase::Streaming,
            state: JobState::Active,
            steps: BTreeSet::new(),
        });
        if known.attempt < job.attempt {
            self.attempts_ended += 1;
            if known.epochs.0 < epochs.0 || known.epochs.1 < epochs.1 {
                self.attempts_failed_over += 1;
                self.votes_void += u64::from(self.voted.contains(&(job.id, known.attempt)));
            }
            (known.attempt, known.epochs, known.phase) = (job.attempt, epochs, Phase::CatchingUp);
        }
        if known.state == JobState::Active && job.state == JobState::Active {
            known.source_primary = source_primary;
        }
        let news = rank(&known.state) < rank(&job.state);
        if news {
            let was_active = known.state == JobState::Active;
            known.state = job.state.clone();
            let is_moved = matches!(job.state, JobState::Committed { .. } | JobState::Activated { .. });
            if was_active && is_moved && job.attempt == known.first_attempt {
                self.first_commits += 1;
            }
            match &job.state {
                JobState::Failed { .. } => self.failed += 1,
                JobState::Cancelled { .. } => self.cancelled += 1,
                _ => {}
            }
        }
        let step = match job.state {
            JobState::Active => Step::Streaming,
            JobState::Committed { .. } => Step::Committed,
            JobState::Activated { .. } => Step::Activated,
            JobState::Failed { .. } | JobState::Cancelled { .. } | JobState::Disputed => return,
        };
        self.reach(job.id, step);
    }

    /// A source says where its job stands.
    pub fn phase(&mut self, id: JobId, attempt: Attempt, phase: Phase) {
        let is_news = |known: &&mut Known| known.attempt == attempt && known.phase != phase;
        let Some(known) = self.known.get_mut(&id).filter(is_news) else { return };
        known.phase = phase;
        match phase {
            Phase::CatchingUp => self.reach(id, Step::CatchingUp),
            Phase::Barrier => self.reach(id, Step::Barrier),
            Phase::Voting => {
                self.voted.insert((id, known.attempt));
                self.reach(id, Step::Voting);
            }
            _ => {}
        }
    }

    fn reach(&mut self, id: JobId, step: Step) {
        let known = self.known.get_mut(&id).expect("it was seen before");
        if known.steps.insert(step) {
            tracing::info!(job = id.0, ?step, "job");
            self.reached.by_step.borrow_mut().entry(step).or_default().push(id);
            self.reached.changed.notify_all();
        }
    }

    /// Jobs that are not decided, with the node that drives them.
    pub fn undecided(&self) -> Vec<(JobId, NodeId)> {
        let active = self.known.iter().filter(|(_, job)| job.state == JobState::Active);
        active.map(|(&id, job)| (id, job.source_primary)).collect()
    }

    /// Whether a vote under this attempt was seen under way.
    pub fn has_voted(&self, job: JobId, attempt: Attempt) -> bool {
        self.voted.contains(&(job, attempt))
    }

    /// How many jobs are between freeze and activation.
    pub fn finalizing(&self) -> usize {
        self.known.values().filter(|job| job.is_finalizing()).count()
    }

    /// The shards of a job, or of the latest one.
    pub fn shards(&self, job: Option<JobId>) -> Option<(ShardId, ShardId)> {
        let known = match job {
            Some(job) => self.known.get(&job),
            None => self.known.values().next_back(),
        };
        known.map(|job| (job.source, job.target))
    }

    /// How many jobs there were.
    pub fn started(&self) -> u64 {
        self.known.len() as u64
    }
}

/// States in the order in which they follow each other.
fn rank(state: &JobState) -> u8 {
    match state {
        JobState::Active => 0,
        JobState::Committed { .. } => 1,
        _ => 2,
    }
}
