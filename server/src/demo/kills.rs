//! The demo's killer: ends nodes by SIGKILL in the middle of a finalize, sees the failover, and starts them again.
//!
//! Invariants: one strike at a time, and the next one only when the cluster is whole again, every node up and in sync; so a
//! strike never finds a shard that could not do without the node. A strike counts as *at finalize* if the job was seen
//! frozen before the kill and not activated after it, and if the cluster failed over.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockgate_migrate::control::{NodeId, ShardId, SlotRange};
use lockgate_migrate::node::{JobStatus, NodeStatus};
use lockgate_runtime::Runtime;
use lockgate_runtime::sync::atomic::{AtomicBool, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};

use super::nodes::Nodes;
use crate::cli::Kill;
use crate::formation;

/// Pause between two looks at the cluster.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// How long a cluster may take to fail over, and to be whole again, before the strike is reported as a problem.
const FAILOVER_LIMIT: Duration = Duration::from_secs(20);
/// How long a killed node stays away after the failover.
const AWAY: Duration = Duration::from_millis(300);

/// What a run's strikes came to.
#[derive(Clone, Debug, Default)]
pub struct Struck {
    /// Processes that were killed.
    pub kills: u64,
    /// Strikes at a finalize after which the cluster failed over.
    pub failovers_at_finalize: u64,
    /// What did not go as it should, in words.
    pub problems: Vec<String>,
}

/// Kills and restarts nodes.
pub struct Killer {
    kill: Kill,
    nodes: Arc<Nodes>,
    runtime: Runtime,
    busy: AtomicBool,
    /// The cluster when the killer was reserved.
    whole: Mutex<Option<NodeStatus>>,
    struck: Mutex<Struck>,
}

/// What the cluster was when a strike began.
struct Before {
    victims: Vec<NodeId>,
    epochs: Vec<(ShardId, u64)>,
    leader: Option<NodeId>,
    /// Whether the job had not ended when the nodes were gone.
    at_finalize: bool,
}

impl Killer {
    /// A killer of these nodes.
    pub fn new(kill: Kill, nodes: Arc<Nodes>, runtime: Runtime) -> Arc<Killer> {
        Arc::new(Killer {
            kill,
            nodes,
            runtime,
            busy: AtomicBool::new(false),
            whole: Mutex::default(),
            struck: Mutex::default(),
        })
    }

    /// Takes the killer for one job, if it is free and the cluster is whole. To be given back by [`Killer::strike`] or
    /// [`Killer::release`].
    pub fn reserve(&self) -> bool {
        if self.busy.swap(true, Ordering::AcqRel) {
            return false;
        }
        // Looked up now: a finalize is over before six nodes have been asked.
        let whole = self.status().filter(|status| self.is_whole(status));
        let is_whole = whole.is_some();
        *self.whole.lock() = whole;
        if !is_whole {
            self.release();
        }
        is_whole
    }

    /// The job ended before there was anything to strike at.
    pub fn release(&self) {
        self.busy.store(false, Ordering::Release);
    }

    /// Kills at once, in a job from `source` to `target` that is being finalized; sees to the rest by itself.
    pub fn strike(self: &Arc<Self>, source: ShardId, target: ShardId, slots: &[SlotRange]) {
        let Some(status) = self.whole.lock().take() else { return self.release() };
        let primary = |id| {
            let shard = status.shards.iter().find(|shard| shard.id == id);
            shard.and_then(|shard| shard.members.first()).map(|member| member.node)
        };
        let mut victims: Vec<NodeId> = match self.kill {
            Kill::Source => primary(source).into_iter().collect(),
            Kill::Target => primary(target).into_iter().collect(),
            Kill::Both => primary(source).into_iter().chain(primary(target)).collect(),
            Kill::Leader => status.leader.into_iter().collect(),
        };
        victims.dedup();
        let epochs = status.shards.iter().map(|shard| (shard.id, shard.epoch)).collect();
        self.nodes.kill(&victims);
        self.struck.lock().kills += victims.len() as u64;
        let is_open = |job: &JobStatus| job.slots == slots && matches!(&*job.state, "active" | "committed");
        let at_finalize = self.status().is_some_and(|after| after.jobs.iter().any(is_open));
        let (this, leader) = (Arc::clone(self), status.leader);
        let before = Before { victims, epochs, leader, at_finalize };
        std::thread::spawn(move || {
            this.see_through(&before);
            this.release();
        });
    }

    /// What the strikes came to.
    pub fn finish(&self) -> Struck {
        // The last strike ends by itself, or gives up.
        while self.busy.swap(true, Ordering::AcqRel) {
            std::thread::sleep(LOOK_PAUSE);
        }
        self.release();
        std::mem::take(&mut *self.struck.lock())
    }

    fn see_through(&self, before: &Before) {
        let failed_over = |status: &NodeStatus| match self.kill {
            Kill::Leader => status.leader.is_some() && status.leader != before.leader,
            _ => before.victims.iter().all(|victim| {
                let led = |shard: &&lockgate_migrate::node::ShardStatus| {
                    shard.members.first().is_some_and(|member| member.node == *victim)
                };
                !status
                    .shards
                    .iter()
                    .any(|shard| led(&shard) && before.epochs.contains(&(shard.id, shard.epoch)))
            }),
        };
        if self.wait_until(failed_over) {
            self.struck.lock().failovers_at_finalize += u64::from(before.at_finalize);
        } else {
            let problem = format!("nodes {:?} were killed, and nobody took their place", before.victims);
            self.struck.lock().problems.push(problem);
        }
        std::thread::sleep(AWAY);
        for victim in &before.victims {
            if let Err(error) = self.nodes.restart(*victim) {
                self.struck.lock().problems.push(format!("node {victim} did not come back: {error}"));
            }
        }
        if !self.wait_until(|status| self.is_whole(status)) {
            let problem = format!("nodes {:?} came back, and were not in sync in time", before.victims);
            self.struck.lock().problems.push(problem);
        }
    }

    fn wait_until(&self, condition: impl Fn(&NodeStatus) -> bool) -> bool {
        let give_up = Instant::now() + FAILOVER_LIMIT;
        while Instant::now() < give_up {
            if self.status().is_some_and(|status| condition(&status)) {
                return true;
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        false
    }

    fn is_whole(&self, status: &NodeStatus) -> bool {
        let mut members = status.shards.iter().flat_map(|shard| &shard.members);
        status.leader.is_some() && members.all(|member| member.in_sync) && self.nodes.all_up()
    }

    /// The cluster as the running node sees it that has applied the most.
    pub fn status(&self) -> Option<NodeStatus> {
        let links = self.nodes.running_links();
        self.runtime.block_on(0, move || async move {
            let mut newest: Option<NodeStatus> = None;
            for link in links {
                if let Ok(status) = formation::status(link).await
                    && newest.as_ref().is_none_or(|known| known.applied < status.applied)
                {
                    newest = Some(status);
                }
            }
            newest
        })
    }

    /// Where clients reach the primary of a shard, and who it is.
    pub fn primary(&self, shard: ShardId) -> Option<(NodeId, SocketAddr)> {
        let status = self.status()?;
        let shard = status.shards.into_iter().find(|known| known.id == shard)?;
        shard.members.first().map(|member| (member.node, member.listen))
    }
}
