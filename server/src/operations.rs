//! Changing a cluster that runs: planned failovers, nodes and shards that come and go, replicas and voters.
//!
//! Any node may be asked: it proposes the change to the control log, which decides, and answers when it has applied it.
//! Invariants: every step that another one rests on is decided before that one begins, and each can be repeated, so that
//! an operation that was interrupted is finished by asking for it again. What an operation may not do is refused by the
//! control log's preconditions; what is checked here as well only makes for a better message.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockgate_migrate::control::{
    EntryBody, Genesis, Incarnation, JobId, Name, NodeId, NodeInfo, ShardId, SlotRange,
};
use lockgate_migrate::node::{AdminReply, AdminRequest, KnownNode, NodeStatus, ShardStatus};

use crate::formation::{
    self, ANSWER_LIMIT, FormationError, LOOK_PAUSE, ask_within, identify, random_bytes, refused,
};

/// How long a new node may take to learn the cluster's map.
const LEARN_LIMIT: Duration = Duration::from_secs(60);
/// How long a node may take to answer before it counts as dead.
const ALIVE_LIMIT: Duration = Duration::from_secs(2);

/// Why a cluster was not changed, or not as far as was asked for.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// A node could not be asked, or refused.
    #[error(transparent)]
    Node(#[from] FormationError),
    /// There is no such node.
    #[error("there is no node {node} in this cluster; it has {known}")]
    UnknownNode {
        /// What was asked for.
        node: NodeId,
        /// The nodes that there are.
        known: String,
    },
    /// There is no such shard.
    #[error("there is no shard {shard} in this cluster; it has {known}")]
    UnknownShard {
        /// What was asked for.
        shard: ShardId,
        /// The shards that there are.
        known: String,
    },
    /// The node leads already.
    #[error("node {node} leads shard {shard} already")]
    LeadsAlready {
        /// The node.
        node: NodeId,
        /// The shard.
        shard: ShardId,
    },
    /// The node is no replica of the shard.
    #[error("node {node} is not a replica of shard {shard}, which has {replicas}")]
    NotReplica {
        /// The node.
        node: NodeId,
        /// The shard.
        shard: ShardId,
        /// Its replicas.
        replicas: String,
    },
    /// The replica may lack writes.
    #[error(
        "node {node} is not in sync with shard {shard}: it is down, or still copying; wait until it is, or take another one"
    )]
    NotInSync {
        /// The node.
        node: NodeId,
        /// The shard.
        shard: ShardId,
    },
    /// The shard's primary does not answer.
    #[error(
        "the primary of shard {shard}, node {node}, cannot be asked: {error}. If it is dead, its shard fails over by itself \
         to a replica that is in sync"
    )]
    PrimaryGone {
        /// The shard.
        shard: ShardId,
        /// Its primary.
        node: NodeId,
        /// What happened.
        error: FormationError,
    },
    /// There is nothing to decide.
    #[error("no job over the slots {0} is disputed: slots move by CLUSTER MIGRATESLOTS")]
    NotDisputed(SlotRange),
    /// The new node has a cluster already, or had this one.
    #[error("{0} was part of a cluster already: start it with an empty data directory")]
    Taken(SocketAddr),
    /// The new node does not get to know the cluster.
    #[error(
        "node {node} is in the cluster, but did not learn the map from the other nodes within {LEARN_LIMIT:?}: can they \
         reach it at {addr}? Ask for the same again once they can"
    )]
    NotLearning {
        /// The node.
        node: NodeId,
        /// Its address.
        addr: SocketAddr,
    },
    /// The node that should be replaced is not dead.
    #[error("node {0} answers, so it is not dead: stop it first")]
    Alive(NodeId),
    /// Nobody took the dead primary's place.
    #[error(
        "node {node} is the primary of shard {shard}, and no replica has taken its place: without one in sync, what only it \
         has would be lost with it"
    )]
    NoHeir {
        /// The dead node.
        node: NodeId,
        /// Its shard.
        shard: ShardId,
    },
}

/// A planned failover that was done.
#[derive(Clone, Copy, Debug)]
pub struct FailedOver {
    /// Who led before.
    pub from: NodeId,
    /// From the request until the old primary had applied the decision.
    pub took: Duration,
}

/// Makes `to` the primary of `shard`; `any` is any node's link address. Must run on a core.
pub async fn fail_over(any: SocketAddr, shard: ShardId, to: NodeId) -> Result<FailedOver, OperationError> {
    let status = formation::status(any).await?;
    let found = shard_in(&status, shard)?;
    known_in(&status, to)?;
    if found.primary == to {
        return Err(OperationError::LeadsAlready { node: to, shard });
    }
    match found.replicas().find(|member| member.node == to) {
        None => {
            let replicas = list(found.replicas().map(|member| member.node));
            return Err(OperationError::NotReplica { node: to, shard, replicas });
        }
        Some(member) if !member.in_sync => return Err(OperationError::NotInSync { node: to, shard }),
        Some(_) => {}
    }
    let primary = known_in(&status, found.primary)?;
    let (from, addr) = (found.primary, primary.link);
    let limit = ANSWER_LIMIT.max(2 * Duration::from_millis(status.node_timeout_ms));
    let began = Instant::now();
    let reply = ask_within(addr, &AdminRequest::HandOver { to }, limit).await;
    let took = began.elapsed();
    match reply.map_err(|error| OperationError::PrimaryGone { shard, node: from, error })? {
        AdminReply::Done => Ok(FailedOver { from, took }),
        other => Err(refused(addr, other).into()),
    }
}

/// Has the cluster make one change; returns when the node at `any` has applied it. Must run on a core.
pub async fn change(any: SocketAddr, body: EntryBody) -> Result<(), OperationError> {
    match ask_within(any, &AdminRequest::Change(Box::new(body)), ANSWER_LIMIT).await? {
        AdminReply::Done => Ok(()),
        other => Err(refused(any, other).into()),
    }
}

/// Takes the node at `new` into the cluster, as one that learns and has no role; returns its number when it has learnt the
/// map. Must run on a core.
pub async fn add_node(any: SocketAddr, new: SocketAddr) -> Result<NodeId, OperationError> {
    let (genesis, identity, status) =
        (genesis(any).await?, identify(new).await?, formation::status(any).await?);
    if identity.cluster.is_some_and(|cluster| cluster != genesis.cluster) {
        return Err(OperationError::Taken(new));
    }
    // It may have been added before, by a call that was interrupted.
    let known = status.nodes.iter().find(|known| known.incarnation.directory == identity.directory);
    let node = match known {
        Some(known) => known.incarnation.node,
        None if identity.cluster.is_some() => return Err(OperationError::Taken(new)),
        None => {
            let node = status.next_node;
            let incarnation = Incarnation { node, directory: identity.directory, boot: identity.boot };
            let (name, listen) = (Name(random_bytes()), identity.listen);
            let info = NodeInfo { name, link: new, listen, incarnation, voter: false };
            change(any, EntryBody::AddNode(info)).await?;
            node
        }
    };
    let request = AdminRequest::Join { genesis: Box::new(genesis), node };
    match ask_within(new, &request, ANSWER_LIMIT).await? {
        AdminReply::Formed => {}
        other => return Err(refused(new, other).into()),
    }
    let goal = formation::status(any).await?.applied;
    let learnt = async {
        while identify(new).await?.applied < goal {
            lockgate_runtime::sleep(LOOK_PAUSE).await;
        }
        Ok(node)
    };
    let learnt = lockgate_runtime::timeout(LEARN_LIMIT, learnt).await;
    learnt.unwrap_or(Err(OperationError::NotLearning { node, addr: new }))
}

/// Makes a shard without slots of nodes without a role, the primary first. Must run on a core.
pub async fn add_shard(any: SocketAddr, members: &[NodeId]) -> Result<ShardId, OperationError> {
    let status = formation::status(any).await?;
    let Some((&primary, replicas)) = members.split_first() else {
        let known = list(status.nodes.iter().map(|known| known.incarnation.node));
        return Err(OperationError::UnknownNode { node: NodeId(0), known });
    };
    let primary = known_in(&status, primary)?.incarnation;
    // Jobs that are over are still told by the numbers of their shards.
    let jobs = status.jobs.iter().flat_map(|job| [job.source, job.target]);
    let last = status.shards.iter().map(|shard| shard.id).chain(jobs).max();
    let shard = ShardId(last.map_or(0, |last| last.0) + 1);
    change(any, EntryBody::CreateShard { shard, primary, replicas: replicas.to_vec() }).await?;
    Ok(shard)
}

/// What was done to put a new node into a dead one's place.
#[derive(Clone, Copy, Debug)]
pub struct Replaced {
    /// The new node's number.
    pub node: NodeId,
    /// The shard that it copies now; `None` if the dead one had no role.
    pub shard: Option<ShardId>,
    /// Whether it votes now, because the dead one did.
    pub votes: bool,
}

/// Puts the node at `new` into the place of `dead`, which leaves for good. It begins to copy its shard; when it is in sync
/// the map says. Must run on a core.
pub async fn replace_node(
    any: SocketAddr,
    dead: NodeId,
    new: SocketAddr,
) -> Result<Replaced, OperationError> {
    let status = formation::status(any).await?;
    check_dead(known_in(&status, dead)?).await?;
    let node = add_node(any, new).await?;
    let status = wait_for_heir(any, dead).await?;
    let shard = status.shard_of(dead).map(|shard| shard.id);
    if let Some(shard) = status.shard_of(dead) {
        let put = |member: NodeId| if member == dead { node } else { member };
        let mut replicas: Vec<NodeId> = shard.replicas().map(|member| put(member.node)).collect();
        replicas.sort_unstable();
        replicas.dedup();
        change(any, EntryBody::SetReplicas { shard: shard.id, replicas }).await?;
    }
    let votes = known_in(&status, dead)?.voter;
    if votes {
        let voters = status.nodes.iter().filter(|known| known.voter).map(|known| known.incarnation.node);
        let others = voters.filter(|voter| *voter != dead && *voter != node);
        let voters = others.chain([node]).collect();
        change(any, EntryBody::SetVoters { voters }).await?;
    }
    change(any, EntryBody::RemoveNode { node: dead }).await?;
    Ok(Replaced { node, shard, votes })
}

/// Gives the slots of every disputed job that has some of `slots` to `owner`; returns the jobs, and how many slots each
/// has. Must run on a core.
pub async fn decide(
    any: SocketAddr,
    slots: SlotRange,
    owner: ShardId,
) -> Result<Vec<(JobId, usize)>, OperationError> {
    let status = formation::status(any).await?;
    shard_in(&status, owner)?;
    let disputed = status.jobs.iter().filter(|job| job.state == "disputed");
    let concerned = disputed.filter(|job| job.slots.iter().any(|range| range.overlaps(slots)));
    let count = |ranges: &[SlotRange]| ranges.iter().map(|range| range.len()).sum();
    let jobs: Vec<(JobId, usize)> = concerned.map(|job| (job.id, count(&job.slots))).collect();
    if jobs.is_empty() {
        return Err(OperationError::NotDisputed(slots));
    }
    for &(job, _) in &jobs {
        change(any, EntryBody::Decide { job, owner }).await?;
    }
    Ok(jobs)
}

/// A node that answers under its own directory is not dead, whatever the network was a moment ago.
async fn check_dead(known: &KnownNode) -> Result<(), OperationError> {
    let answer = ask_within(known.link, &AdminRequest::Identify, ALIVE_LIMIT).await;
    match answer {
        Ok(AdminReply::Identity(identity)) if identity.directory == known.incarnation.directory => {
            Err(OperationError::Alive(known.incarnation.node))
        }
        _ => Ok(()),
    }
}

/// A dead primary's shard fails over by itself, if anybody can lead it.
async fn wait_for_heir(any: SocketAddr, dead: NodeId) -> Result<NodeStatus, OperationError> {
    let mut status = formation::status(any).await?;
    // A failover takes two node timeouts at most; the rest is for a machine that has other things to do.
    let give_up = Instant::now() + 4 * Duration::from_millis(status.node_timeout_ms) + ANSWER_LIMIT;
    while let Some(shard) = status.shard_of(dead).filter(|shard| shard.primary == dead) {
        let heirs = shard.replicas().filter(|member| member.in_sync).count();
        if heirs == 0 || Instant::now() > give_up {
            return Err(OperationError::NoHeir { node: dead, shard: shard.id });
        }
        lockgate_runtime::sleep(LOOK_PAUSE).await;
        status = formation::status(any).await?;
    }
    Ok(status)
}

async fn genesis(any: SocketAddr) -> Result<Genesis, OperationError> {
    match ask_within(any, &AdminRequest::Genesis, ANSWER_LIMIT).await? {
        AdminReply::Genesis(genesis) => Ok(*genesis),
        other => Err(refused(any, other).into()),
    }
}

fn shard_in(status: &NodeStatus, shard: ShardId) -> Result<&ShardStatus, OperationError> {
    let found = status.shards.iter().find(|known| known.id == shard);
    found.ok_or_else(|| OperationError::UnknownShard {
        shard,
        known: list(status.shards.iter().map(|known| known.id)),
    })
}

fn known_in(status: &NodeStatus, node: NodeId) -> Result<&KnownNode, OperationError> {
    status.known(node).ok_or_else(|| OperationError::UnknownNode {
        node,
        known: list(status.nodes.iter().map(|known| known.incarnation.node)),
    })
}

fn list<T: std::fmt::Display>(items: impl Iterator<Item = T>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}
