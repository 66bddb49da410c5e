//! What this node is to its cluster, for servers that do more than answer clients: start a job as primary, stop it as replica.
//!
//! A role is what the applied map says. Whether a primary may serve at this moment its lease says, see
//! [`Node::holds_lease`]: between a failover elsewhere and its own news of it, a node still thinks that it leads.

use super::Node;
use super::desired::Role;
use crate::control::{Epoch, NodeId, ShardId};

/// A node's part in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRole {
    /// It belongs to no cluster yet.
    Outside,
    /// It belongs to a cluster, but to none of its shards.
    Spare,
    /// It leads a shard.
    Primary {
        /// The shard.
        shard: ShardId,
        /// Its epoch: another one for each failover.
        epoch: Epoch,
    },
    /// It led the shard before it was started again, and nobody has taken its place yet.
    Former {
        /// The shard.
        shard: ShardId,
    },
    /// It follows a shard's primary.
    Replica {
        /// The shard.
        shard: ShardId,
        /// Whom it follows.
        primary: NodeId,
        /// Whether it is in the in-sync set, so that it may lead next.
        in_sync: bool,
    },
}

impl Node {
    /// What this node is now.
    pub fn role(&self) -> NodeRole {
        let (Some(map), Some(identity)) = (self.map(), self.shared.identity.get()) else {
            return NodeRole::Outside;
        };
        let me = &identity.me;
        match Role::of(&map, me) {
            Role::None => NodeRole::Spare,
            Role::Primary(shard) => NodeRole::Primary { shard, epoch: map.shards[&shard].epoch },
            Role::Stale(shard) => NodeRole::Former { shard },
            Role::Replica(id) => {
                let shard = &map.shards[&id];
                let in_sync = shard.in_sync.get(&me.node) == Some(&me.boot);
                NodeRole::Replica { shard: id, primary: shard.primary.node, in_sync }
            }
        }
    }

    /// Waits until this node is something other than `known`, and returns what. Roles that came and went in between are not
    /// told. It has no deadline: the caller bounds it.
    pub async fn role_after(&self, known: NodeRole) -> NodeRole {
        loop {
            let changed = self.shared.map_changed.listen();
            let role = self.role();
            if role != known {
                return role;
            }
            changed.await;
        }
    }
}
