//! Making a cluster out of started nodes, over their admin links.

use std::net::SocketAddr;
use std::time::Duration;

use lockgate_engine::SLOTS;
use lockgate_migrate::control::{
    Genesis, GenesisShard, Incarnation, Name, NodeId, NodeInfo, ShardId, SlotRange,
};
use lockgate_migrate::node::{AdminReply, AdminRequest, NodeIdentity, NodeStatus, admin};
use lockgate_net::link::LinkError;

/// How long one node may take to answer.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the new cluster may take until every slot is served.
const SERVING_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks at whether it is.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Why a cluster was not made, or not seen.
#[derive(Debug, thiserror::Error)]
pub enum FormationError {
    /// A node was named twice.
    #[error("{0} leads to a node that was named before, under another address")]
    Twice(SocketAddr),
    /// A node is part of a cluster already.
    #[error(
        "{0} belongs to a cluster already: start it with an empty data directory to use it for a new one"
    )]
    Taken(SocketAddr),
    /// A node could not be asked.
    #[error("{addr}: {error}")]
    Link {
        /// The node.
        addr: SocketAddr,
        /// What happened.
        error: LinkError,
    },
    /// A node refused.
    #[error("{addr} refused: {why}")]
    Refused {
        /// The node.
        addr: SocketAddr,
        /// Why.
        why: String,
    },
    /// The cluster exists, but not every slot is served.
    #[error(
        "the cluster is formed, but only {served} of {SLOTS} slots are served after {SERVING_LIMIT:?}; see the nodes' output"
    )]
    NotServing {
        /// Slots that are served.
        served: u32,
    },
}

/// Makes a cluster of the nodes at these link addresses: shard by shard, the primary first; the first `voters` vote.
/// Returns when every slot is served. Must run on a core.
pub async fn create(shards: &[Vec<SocketAddr>], voters: usize) -> Result<Genesis, FormationError> {
    let addrs: Vec<SocketAddr> = shards.concat();
    let mut identities: Vec<NodeIdentity> = Vec::new();
    for &addr in &addrs {
        let identity = identify(addr).await?;
        if identities.iter().any(|known| known.directory == identity.directory) {
            return Err(FormationError::Twice(addr));
        }
        if identity.cluster.is_some() {
            return Err(FormationError::Taken(addr));
        }
        identities.push(identity);
    }
    let genesis = genesis(shards, &identities, voters);
    for &addr in &addrs {
        match ask(addr, &AdminRequest::Form(Box::new(genesis.clone()))).await? {
            AdminReply::Formed => {}
            other => return Err(refused(addr, other)),
        }
    }
    wait_until_served(&addrs).await?;
    Ok(genesis)
}

/// What the node at `addr` says of its cluster. Must run on a core.
pub async fn status(addr: SocketAddr) -> Result<NodeStatus, FormationError> {
    match ask(addr, &AdminRequest::Status).await? {
        AdminReply::Status(status) => Ok(*status),
        other => Err(refused(addr, other)),
    }
}

pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    std::array::from_fn(|_| lockgate_runtime::random_u64() as u8)
}

/// Nodes are numbered in the order in which they were named; voters are spread over the shards, primaries first.
fn genesis(shards: &[Vec<SocketAddr>], identities: &[NodeIdentity], voters: usize) -> Genesis {
    let width = shards[0].len();
    let votes = |index: usize| index % width * shards.len() + index / width < voters;
    let links = shards.iter().flatten();
    let nodes: Vec<NodeInfo> = links
        .zip(identities)
        .enumerate()
        .map(|(index, (&link, identity))| {
            let node = NodeId(index as u32 + 1);
            let incarnation = Incarnation { node, directory: identity.directory, boot: identity.boot };
            let name = Name(random_bytes());
            NodeInfo { name, link, listen: identity.listen, incarnation, voter: votes(index) }
        })
        .collect();
    let shard = |(index, members): (usize, &[NodeInfo])| {
        let first = |index: usize| (index * usize::from(SLOTS) / shards.len()) as u16;
        GenesisShard {
            shard: ShardId(index as u32 + 1),
            primary: members[0].incarnation,
            replicas: members[1..].iter().map(|info| info.incarnation).collect(),
            slots: vec![SlotRange::new(first(index), first(index + 1) - 1)],
        }
    };
    Genesis {
        cluster: random_bytes(),
        generation: 0,
        shards: nodes.chunks(width).enumerate().map(shard).collect(),
        nodes,
    }
}

async fn wait_until_served(addrs: &[SocketAddr]) -> Result<(), FormationError> {
    let all_serve = async {
        while served(addrs).await? != u32::from(SLOTS) {
            lockgate_runtime::sleep(LOOK_PAUSE).await;
        }
        Ok(())
    };
    match lockgate_runtime::timeout(SERVING_LIMIT, all_serve).await {
        Ok(result) => result,
        Err(_) => Err(FormationError::NotServing { served: served(addrs).await? }),
    }
}

async fn served(addrs: &[SocketAddr]) -> Result<u32, FormationError> {
    let mut served = 0;
    for &addr in addrs {
        served += identify(addr).await?.slots_served;
    }
    Ok(served)
}

pub(crate) async fn identify(addr: SocketAddr) -> Result<NodeIdentity, FormationError> {
    match ask(addr, &AdminRequest::Identify).await? {
        AdminReply::Identity(identity) => Ok(identity),
        other => Err(refused(addr, other)),
    }
}

async fn ask(addr: SocketAddr, request: &AdminRequest) -> Result<AdminReply, FormationError> {
    ask_within(addr, request, ANSWER_LIMIT).await
}

/// Asks a node one thing, which may take it as long as `limit`.
pub(crate) async fn ask_within(
    addr: SocketAddr,
    request: &AdminRequest,
    limit: Duration,
) -> Result<AdminReply, FormationError> {
    admin(addr, request, limit).await.map_err(|error| FormationError::Link { addr, error })
}

pub(crate) fn refused(addr: SocketAddr, reply: AdminReply) -> FormationError {
    let why = match reply {
        AdminReply::Refused(why) => why,
        other => format!("it answered something else than was asked: {other:?}"),
    };
    FormationError::Refused { addr, why }
}
