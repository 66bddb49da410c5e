//! The target's side of jobs: barriers under way, and releases.
//!
//! Invariants
//! - A barrier passes only for the attempt that the applied map shows, and only with the whole current in-sync set (R14).
//! - A slot is served only after the release was pulled, from a source whose applied map has the commit (R16).

use std::collections::{BTreeMap, BTreeSet};

use super::messages::ControlMessage;
use crate::control::{Attempt, ClusterMap, Job, JobId, JobState, NodeId, ShardId};
use crate::job::BarrierAcks;

struct Barrier {
    attempt: Attempt,
    /// Whom to tell; unknown while only members' words have arrived.
    source: Option<NodeId>,
    acks: BarrierAcks,
    reported: bool,
}

impl Barrier {
    fn new(attempt: Attempt) -> Self {
        Self { attempt, source: None, acks: BarrierAcks::default(), reported: false }
    }
}

/// Barriers and releases of the jobs whose target is this node's shard while it is primary.
#[derive(Default)]
pub(crate) struct TargetJobs {
    barriers: BTreeMap<JobId, Barrier>,
    released: BTreeSet<JobId>,
}

impl TargetJobs {
    /// Jobs whose release this node has pulled.
    pub fn released(&self) -> &BTreeSet<JobId> {
        &self.released
    }

    /// The source began a barrier. Members' words may have come first.
    pub fn begin(&mut self, job: JobId, attempt: Attempt, source: NodeId) {
        self.barrier(job, attempt).source = Some(source);
    }

    /// A member has synced the finals. Returns the message to the source once the barrier has passed.
    #[must_use]
    pub fn synced(
        &mut self,
        map: &ClusterMap,
        id: JobId,
        attempt: Attempt,
        node: NodeId,
        boot: u64,
    ) -> Option<(NodeId, ControlMessage)> {
        let job = map.jobs.get(&id).filter(|job| job.attempt == attempt && job.state == JobState::Active)?;
        let barrier = self.barrier(id, attempt);
        barrier.acks.synced(node, boot);
        let source = barrier.source.filter(|_| !barrier.reported)?;
        let in_sync = map.shards[&job.target].in_sync.iter().map(|(&node, &boot)| (node, boot));
        let synced = barrier.acks.evidence(in_sync)?;
        barrier.reported = true;
        Some((source, ControlMessage::BarrierPassed { job: id, attempt, synced }))
    }

    /// A member will never sync the finals under this attempt. Returns the message to the source.
    #[must_use]
    pub fn failed(&mut self, id: JobId, attempt: Attempt, why: String) -> Option<(NodeId, ControlMessage)> {
        let barrier = self.barriers.get_mut(&id).filter(|b| b.attempt == attempt && !b.reported)?;
        let source = barrier.source?;
        barrier.reported = true;
        Some((source, ControlMessage::BarrierFailed { job: id, attempt, why }))
    }

    /// The barrier of this attempt; what was known of an earlier one is void.
    fn barrier(&mut self, job: JobId, attempt: Attempt) -> &mut Barrier {
        let barrier = self.barriers.entry(job).or_insert_with(|| Barrier::new(attempt));
        if barrier.attempt < attempt {
            *barrier = Barrier::new(attempt);
        }
        barrier
    }

    /// The source's word that it has stopped. Whether it names a commit is checked where it takes effect.
    pub fn release(&mut self, job: JobId) {
        self.released.insert(job);
    }

    /// Forgets what finished jobs leave behind.
    pub fn map_changed(&mut self, map: &ClusterMap) {
        let live = |id: &JobId| map.jobs.get(id).is_some_and(|job| !job.state.is_finished());
        self.barriers.retain(|id, barrier| live(id) && map.jobs[id].attempt == barrier.attempt);
        // A word may arrive before the commit is applied here; it is kept as long as the job may still use it.
        self.released.retain(live);
    }

    /// Releases to ask for: committed jobs of this shard without one, each with the node whose word it takes.
    /// The source says so by itself when it applies the commit; this is for when that word was lost, or never sent.
    pub fn outstanding(&self, map: &ClusterMap, mine: Option<ShardId>) -> Vec<(NodeId, JobId)> {
        let of = |job: &Job| Some((map.shards.get(&job.source)?.primary.node, job.id));
        self.unreleased(map, mine).filter_map(of).collect()
    }

    /// Whether a release is outstanding.
    pub fn is_busy(&self, map: &ClusterMap, mine: Option<ShardId>) -> bool {
        self.unreleased(map, mine).next().is_some()
    }

    fn unreleased<'a>(
        &'a self,
        map: &'a ClusterMap,
        mine: Option<ShardId>,
    ) -> impl Iterator<Item = &'a Job> + use<'a> {
        map.jobs.values().filter(move |job| {
            Some(job.target) == mine
                && matches!(job.state, JobState::Committed { .. })
                && !self.released.contains(&job.id)
        })
    }
}
