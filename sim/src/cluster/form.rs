//! Making a cluster out of started nodes, over their admin links, with the plan's shards and slots.

use std::time::Duration;

use lockgate_migrate::control::{
    Genesis, GenesisShard, Incarnation, Name, NodeId, NodeInfo, ShardId, SlotRange,
};
use lockgate_migrate::node::{AdminReply, AdminRequest, NodeIdentity, admin};

use super::{Cluster, Machine};

const ADMIN_LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn form(cluster: &Cluster) -> Result<(), String> {
    let mut identities = Vec::new();
    for machine in &cluster.machines {
        match ask(machine, &AdminRequest::Identify).await? {
            AdminReply::Identity(identity) => identities.push(identity),
            other => return Err(format!("{} answered {other:?} when asked who it is", machine.name)),
        }
    }
    let genesis = genesis(cluster, &identities);
    for machine in &cluster.machines {
        match ask(machine, &AdminRequest::Form(Box::new(genesis.clone()))).await? {
            AdminReply::Formed => {}
            other => return Err(format!("{} answered {other:?} when it was formed", machine.name)),
        }
    }
    Ok(())
}

async fn ask(machine: &Machine, request: &AdminRequest) -> Result<AdminReply, String> {
    let answer = admin(machine.link, request, ADMIN_LIMIT).await;
    answer.map_err(|error| format!("{} cannot be asked: {error}", machine.name))
}

/// Voters are spread over the shards, primaries first.
fn genesis(cluster: &Cluster, identities: &[NodeIdentity]) -> Genesis {
    let shape = &cluster.shape;
    let votes = |index: usize| index % shape.members * shape.shards + index / shape.members < shape.voters;
    let node = |(index, identity): (usize, &NodeIdentity)| NodeInfo {
        name: Name([index as u8 + 1; 20]),
        link: identity.link,
        listen: identity.listen,
        incarnation: Incarnation {
            node: NodeId(index as u32 + 1),
            directory: identity.directory,
            boot: identity.boot,
        },
        voter: votes(index),
    };
    let nodes: Vec<NodeInfo> = identities.iter().enumerate().map(node).collect();
    let shard = |(index, members): (usize, &[NodeInfo])| {
        let first = shape.first_slot(index);
        let last =
            if shape.all_slots { shape.first_slot(index + 1) - 1 } else { first + shape.hot_slots - 1 };
        GenesisShard {
            shard: ShardId(index as u32 + 1),
            primary: members[0].incarnation,
            replicas: members[1..].iter().map(|info| info.incarnation).collect(),
            slots: vec![SlotRange::new(first, last)],
        }
    };
    let shards = nodes.chunks(shape.members).enumerate().map(shard).collect();
    Genesis { cluster: [7; 16], generation: 0, shards, nodes }
}
