//! The node: what embedders start, and the driver that executes what the pure parts decide.
//!
//! A [`Node`] owns the engine's gates. Clustered access goes through [`Node::keyspace`], which checks them; a reply is
//! held back until [`Node::acknowledged`] (R7, R8). The parts, from the top:
//!
//! - [`Node`], its builder and keyspaces: callable from any thread;
//! - `driver`: the one task that owns consensus, map and jobs; `apply`: what an applied entry means for this node;
//! - `source`, `target`: the two sides of jobs; `finals`: the barrier's local half;
//! - `recovery`, `quorum`: what happens when a majority of the control log's voters is lost;
//! - `replica_reads`, `watermarks`: reads at replicas, and the primary's part in them;
//! - `receivers`, `links`, `peers`: streams in, connections in, messages out.
//!
//! What a node does not know: commands, clients, and sockets of clients.

mod apply;
mod consensus;
mod control_store;
mod desired;
mod driver;
mod finals;
mod hand_over;
mod keyspace;
mod links;
mod messages;
mod office;
mod peers;
mod pledges;
mod proposals;
mod quorum;
mod receivers;
mod recovery;
mod replica_reads;
mod replicas;
mod roles;
mod shared;
mod source;
mod stable;
mod start;
mod status;
mod target;
mod times;
mod watermarks;

use std::net::SocketAddr;
use std::time::Duration;

use futures_channel::oneshot;
use lockgate_engine::{Engine, Gate, Slot};
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::Ordering;

pub use driver::DriverError;
pub use hand_over::HandOverError;
pub use keyspace::{NodeKeyspace, OpError};
pub use messages::{AdminReply, AdminRequest, NodeIdentity};
pub use replica_reads::{ReplicaKeyspace, ReplicaRead, ReplicaReadError};
pub use roles::NodeRole;
pub use shared::JobProgress;
pub use start::{NodeBuilder, StartError, admin};
pub use status::{JobStatus, KnownNode, MemberStatus, NodeStatus, ShardStatus};
pub use times::JobTimes;

use crate::control::{ClusterMap, Effect, EntryBody, JobId, Name, NodeId, Outcome, ShardId, SlotRange};
use crate::job::JobLimits;
use crate::office::Times;
use crate::replica::{AckFailed, AckPolicy, Dependency};
use shared::{Input, Shared};

/// How a node behaves; the builder sets it.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where clients reach this node.
    pub listen: SocketAddr,
    /// What answers wait for.
    pub ack: AckPolicy,
    /// The longest wait for acknowledgements; then the outcome is reported as unknown.
    pub ack_timeout: Duration,
    /// How few members of the shard may be in sync, this node among them, for it to take writes.
    pub min_in_sync: usize,
    /// The times that leases and failovers go by: the same on all nodes of the cluster.
    pub times: Times,
    /// Bounds on finalizing a job.
    pub limits: JobLimits,
    /// How old answers of this node as a replica may be; `None`: the node timeout.
    pub replica_staleness: Option<Duration>,
}

impl NodeConfig {
    fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            ack: AckPolicy::default(),
            ack_timeout: Duration::from_secs(5),
            min_in_sync: 1,
            times: Times::default(),
            limits: JobLimits::default(),
            replica_staleness: None,
        }
    }

    /// How old answers of this node as a replica may be.
    pub fn replica_staleness(&self) -> Duration {
        self.replica_staleness.unwrap_or(Duration::from_nanos(self.times.node_timeout_ns))
    }
}

/// A member of a cluster. Cheap to clone, `Send + Sync`.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

/// What [`Node::synced`] has reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// This node's disk has it.
    pub local: bool,
    /// So many replicas' disks have it.
    pub replicas: usize,
}

/// Why an answer may not be given.
#[derive(Debug, thiserror::Error)]
pub enum AckError {
    /// The replicas have not answered in time: the write may or may not survive.
    #[error(
        "the write is applied here, but the in-sync replicas did not acknowledge it within {0:?}; its outcome is unknown"
    )]
    Timeout(Duration),
    /// This node's log failed.
    #[error(transparent)]
    Log(#[from] lockgate_engine::log::LogFailed),
    /// This node does not lead its shard any more: who leads it now may or may not have the write.
    #[error("the shard has failed over since; the outcome is unknown")]
    Deposed,
}

impl From<AckFailed> for AckError {
    fn from(failed: AckFailed) -> Self {
        match failed {
            AckFailed::Log(failed) => AckError::Log(failed),
            AckFailed::Deposed => AckError::Deposed,
        }
    }
}

/// Why an entry was not applied as asked.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The map refused it.
    #[error("{0}")]
    Refused(crate::control::Refusal),
    /// The outcome is not known yet: the control log has no majority or no leader.
    #[error("the control log did not decide within {0:?}; the request may still take effect")]
    Undecided(Duration),
    /// It has more parts than an entry may have.
    #[error(transparent)]
    TooLong(#[from] crate::control::TooLong),
    /// The node has stopped.
    #[error("this node has stopped")]
    Stopped,
    /// The node has no cluster.
    #[error("this node does not belong to a cluster yet")]
    NoCluster,
}

/// How long a request waits for the control log's decision.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);

impl Node {
    /// A builder for a node on this engine, which must have been opened as clustered.
    pub fn builder(engine: Engine) -> NodeBuilder {
        NodeBuilder::new(engine)
    }

    /// The engine below. Writing to it directly bypasses the cluster's fences.
    pub fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// This node's number; `None` before it belongs to a cluster.
    pub fn id(&self) -> Option<NodeId> {
        self.shared.identity.get().map(|identity| identity.me.node)
    }

    /// The cluster map as this node has applied it; `None` before it belongs to a cluster.
    pub fn map(&self) -> Option<Arc<ClusterMap>> {
        self.shared.map.load_full()
    }

    /// Who leads the control log, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        Some(NodeId(self.shared.leader.load(Ordering::Relaxed))).filter(|leader| leader.0 != 0)
    }

    /// Waits until the applied map satisfies `condition`. It has no deadline: the caller bounds it.
    pub async fn map_where(&self, condition: impl Fn(&ClusterMap) -> bool) -> Arc<ClusterMap> {
        loop {
            let changed = self.shared.map_changed.listen();
            if let Some(map) = self.map().filter(|map| condition(map)) {
                return map;
            }
            changed.await;
        }
    }

    /// Resolves when the operation that got `refusal` may be tried again: its slot's gate is another one by now, or its
    /// log has caught up.
    pub async fn passable(&self, refusal: &OpError) {
        let (slot, refused): (Slot, fn(Gate) -> bool) = match *refusal {
            OpError::Frozen { slot } => (slot, |gate| gate == Gate::Frozen),
            OpError::Arriving { slot } => (slot, |gate| !matches!(gate, Gate::Owned | Gate::Frozen)),
            OpError::NoLease { slot } => return self.lease_or_move(slot).await,
            OpError::Engine(lockgate_engine::OpError::LogBehind { slot, .. }) => {
                // A log that failed is not behind: the next try says so.
                let _ = self.shared.engine.wait_log_room(slot).await;
                return;
            }
            _ => return,
        };
        let event = self.shared.engine.gate_event(slot);
        loop {
            let changed = event.listen();
            if !refused(self.shared.engine.gate(slot)) {
                return;
            }
            changed.await;
        }
    }

    /// Resolves when this node has its lease, or when the map gives the slot to another one.
    async fn lease_or_move(&self, slot: Slot) {
        loop {
            let (held, moved) = (self.shared.lease_changed.listen(), self.shared.map_changed.listen());
            let mine = self.owner(slot).map(|(node, _)| node) == self.id();
            if self.shared.holds_lease() || !mine {
                return;
            }
            futures_util::future::select(held, moved).await;
        }
    }

    /// Whether this node's disk and every in-sync replica's have it.
    pub fn is_synced(&self, dependency: &Dependency) -> bool {
        self.shared.engine.synced(dependency.ticket)
            && self.shared.acks.covers(dependency, AckPolicy::InSyncSynced)
    }

    /// Waits until `dependencies` are synced: here if `local`, and at every in-sync replica if `policy` says so. Past
    /// `limit` it tells what has been reached.
    pub async fn synced(
        &self,
        dependencies: &[Dependency],
        local: bool,
        policy: AckPolicy,
        limit: Duration,
    ) -> Result<Synced, AckError> {
        let (shared, mut reached) = (&self.shared, Synced::default());
        let wait = async {
            if local {
                for dependency in dependencies {
                    shared.engine.wait_synced(dependency.ticket).await?;
                }
                reached.local = true;
            }
            if policy == AckPolicy::InSyncSynced {
                shared.acks.wait(&shared.engine, dependencies, policy).await?;
                reached.replicas = shared.acks.members();
            }
            Ok::<(), AckError>(())
        };
        if let Ok(ended) = lockgate_runtime::timeout(limit, wait).await {
            ended?;
        }
        Ok(reached)
    }

    /// One keyspace, behind the cluster's gates.
    pub fn keyspace(&self, number: u8) -> NodeKeyspace<'_> {
        NodeKeyspace::new(self, number)
    }

    /// Waits until everything in `dependencies` may be answered under this node's policy.
    pub async fn acknowledged(&self, dependencies: &[Dependency]) -> Result<(), AckError> {
        let limit = self.shared.config.ack_timeout;
        let wait = async {
            self.shared.acks.wait(&self.shared.engine, dependencies, self.shared.config.ack).await?;
            self.answerable(dependencies).await
        };
        lockgate_runtime::timeout(limit, wait).await.map_err(|_| AckError::Timeout(limit))?
    }

    /// Waits until this node has its lease, in the reign that these operations were done in: then no other has begun.
    async fn answerable(&self, dependencies: &[Dependency]) -> Result<(), AckError> {
        let shared = &self.shared;
        loop {
            let changed = shared.lease_changed.listen();
            if dependencies.iter().any(|dependency| shared.acks.is_lost(dependency)) {
                return Err(AckError::Deposed);
            }
            if shared.holds_lease()
                || dependencies.iter().all(|dependency| shared.acks.is_released(dependency))
            {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Whether this node serves reads of that slot at this moment: its gate is open, and its lease is not over.
    pub fn serves(&self, slot: Slot) -> bool {
        let gate = self.shared.engine.gate(slot);
        matches!(gate, Gate::Owned | Gate::Frozen) && self.shared.holds_lease()
    }

    /// Whether this node has the lease of the shard that it leads at this moment.
    pub fn holds_lease(&self) -> bool {
        self.shared.holds_lease()
    }

    /// Until when this node may serve the shard that it leads, in nanoseconds of its runtime's clock; 0 if it may not.
    pub fn lease_until_ns(&self) -> u64 {
        self.shared.lease_until_ns.load(Ordering::SeqCst)
    }

    /// How often this node was fenced as a candidate for its shard's lead since its start.
    pub fn fences(&self) -> u64 {
        self.shared.fences.load(Ordering::Relaxed)
    }

    /// Whether this node is fenced at present: it takes nothing from its primary.
    pub fn is_fenced(&self) -> bool {
        self.shared.is_fenced.load(Ordering::Relaxed)
    }

    /// Hands the shard that this node leads over to `to`, or to any replica that is in sync: writes wait for some
    /// milliseconds, and nothing is lost. Returns when another node leads.
    pub async fn hand_over(&self, to: Option<NodeId>) -> Result<(), HandOverError> {
        if self.shared.identity.get().is_none() {
            return Err(HandOverError::NotPrimary);
        }
        let (reply, ended) = oneshot::channel();
        if !self.shared.tell(Input::HandOver(to, reply)).await {
            return Err(HandOverError::Stopped);
        }
        ended.await.unwrap_or(Err(HandOverError::Stopped))
    }

    /// Leaves office before a planned stop: hands over the shard that this node leads, if a replica is in sync, and the
    /// lead of the control log. Takes at most about twice the node timeout.
    pub async fn retire(&self) {
        match self.hand_over(None).await {
            Ok(()) | Err(HandOverError::NotPrimary | HandOverError::Stopped) => {}
            Err(error) => tracing::info!(%error, "the shard is not handed over before the stop"),
        }
        let (reply, told) = oneshot::channel();
        if self.shared.identity.get().is_some() && self.shared.tell(Input::Retire(reply)).await {
            // Whoever is told to lead is elected within this time, or this node leads until it stops.
            let limit = Duration::from_nanos(self.shared.config.times.election_ns_max());
            let _ = lockgate_runtime::timeout(limit, told).await;
        }
    }

    /// Starts moving slots from this node's shard to the shard that `target` leads. Returns when the job is in the
    /// control log; the job goes on by itself.
    pub async fn migrate(&self, target: ShardId, slots: Vec<SlotRange>) -> Result<JobId, ProposeError> {
        let (source, _) = self.shard().ok_or(ProposeError::NoCluster)?;
        let name = Name(std::array::from_fn(|_| lockgate_runtime::random_u64() as u8));
        match self.propose(EntryBody::StartJob { source, target, ranges: slots, name }).await? {
            Effect::JobStarted { job, .. } => Ok(job),
            other => unreachable!("StartJob had the effect {other:?}"),
        }
    }

    /// Cancels one job; the first applied of cancel and commit wins.
    pub async fn cancel(&self, job: JobId) -> Result<(), ProposeError> {
        let why = "cancelled by an operator".to_owned();
        self.propose(EntryBody::AbortJob { job, why, cancelled: true }).await.map(drop)
    }

    /// What this node, as a job's source, knows of it.
    pub fn job_progress(&self, job: JobId) -> Option<JobProgress> {
        self.shared.progress.lock().get(&job).cloned()
    }

    /// Asks the node to stop: connections of clients end first, then streams, then the driver.
    pub fn stop(&self) {
        self.shared.stop.stop();
    }

    /// The signal that [`Node::stop`] gives; also given when the node had to step down.
    pub fn stopping(&self) -> lockgate_net::Stop {
        self.shared.stop.clone()
    }

    /// Why this node had to step down, if it had to.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
    }

    /// Waits until the driver has ended. A node without a cluster has none: then this returns when the node stops.
    pub async fn stopped(&self) {
        if self.shared.identity.get().is_some() {
            self.shared.stopped.stopped().await;
        } else {
            self.shared.stop.stopped().await;
        }
    }

    /// Where other nodes reach this one.
    pub fn link_addr(&self) -> SocketAddr {
        self.shared.link_addr
    }

    async fn propose(&self, body: EntryBody) -> Result<Effect, ProposeError> {
        body.check_sizes()?;
        let (reply, outcome) = oneshot::channel();
        if self.shared.identity.get().is_none() {
            return Err(ProposeError::NoCluster);
        }
        if !self.shared.tell(Input::Propose(body, reply)).await {
            return Err(ProposeError::Stopped);
        }
        match lockgate_runtime::timeout(DECISION_TIMEOUT, outcome).await {
            Ok(Ok(Outcome::Applied(effect))) => Ok(effect),
            Ok(Ok(Outcome::Refused(refusal))) => Err(ProposeError::Refused(refusal)),
            Ok(Err(_)) => Err(ProposeError::Stopped),
            Err(_) => Err(ProposeError::Undecided(DECISION_TIMEOUT)),
        }
    }
}
