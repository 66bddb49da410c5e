//! The keys of a clustered node: the engine's operations behind the gates that the cluster map decides (R7).
//!
//! Every operation returns what its answer rests on; the answer may be given once [`Node::acknowledged`] says so (R8). That
//! a key has ended rests on its delete, which the engine logs first (R17). Nothing here blocks or waits (R10).

use std::net::SocketAddr;

use lockgate_engine::{Deadline, Expiry, Receipt, SetOptions, SetOutcome, Slot, Value};
use lockgate_runtime::mutation;
use lockgate_runtime::sync::atomic::Ordering;

use super::Node;
use super::desired::Role;
use crate::control::{ClusterMap, NodeId, ShardId};
use crate::replica::Dependency;

/// Why an operation had no effect.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The slot is about to move: writes wait until it has moved or thawed, see [`Node::slot_changed`].
    #[error("slot {slot} is frozen for a handover; retry after the slot's next change")]
    Frozen {
        /// The slot.
        slot: Slot,
    },
    /// This node is about to serve the slot: wait for its next change.
    #[error("slot {slot} is about to be served here; retry after the slot's next change")]
    Arriving {
        /// The slot.
        slot: Slot,
    },
    /// This node leads the slot's shard, but may not serve it at this moment: it cannot reach the control leader, or hands
    /// over. The operation had no effect that anybody was told of.
    #[error("slot {slot} is not served at this moment: this node waits for its lease")]
    NoLease {
        /// The slot.
        slot: Slot,
    },
    /// Fewer members of the shard are in sync than writes need.
    #[error(
        "writes need {need} members of the shard in sync, and {have} are: wait for replicas, or lower min_in_sync"
    )]
    TooFewInSync {
        /// How many are, this node among them.
        have: usize,
        /// How many are needed.
        need: usize,
    },
    /// Another shard serves the slot.
    #[error("slot {slot} is served by node {node} at {addr} (slot version {version})")]
    Moved {
        /// The slot.
        slot: Slot,
        /// The primary of the shard that owns it.
        node: NodeId,
        /// Where clients reach that primary.
        addr: SocketAddr,
        /// The slot's version in this node's map: of two redirects the one with the higher version is right.
        version: u64,
    },
    /// Nobody owns the slot, two shards claim it after a recovery, or this node is not part of a cluster yet.
    #[error("slot {slot} is not served by any node")]
    Unserved {
        /// The slot.
        slot: Slot,
    },
    /// The engine refused: limits, memory, or a log that failed or is behind.
    #[error(transparent)]
    Engine(#[from] lockgate_engine::OpError),
}

impl OpError {
    /// Whether the same operation may succeed on this node after a wait.
    pub fn is_retryable(&self) -> bool {
        match self {
            OpError::Frozen { .. } | OpError::Arriving { .. } | OpError::NoLease { .. } => true,
            OpError::Moved { .. } | OpError::Unserved { .. } | OpError::TooFewInSync { .. } => false,
            OpError::Engine(error) => error.is_retryable(),
        }
    }
}

/// One keyspace of a clustered node.
pub struct NodeKeyspace<'a> {
    node: &'a Node,
    engine: lockgate_engine::Keyspace,
}

impl<'a> NodeKeyspace<'a> {
    pub(super) fn new(node: &'a Node, number: u8) -> Self {
        Self { node, engine: node.shared.engine.keyspace(number) }
    }

    /// The value of `key`, and what the answer rests on.
    pub fn get(&self, key: &[u8]) -> Result<(Option<Value>, Dependency), OpError> {
        let reign = self.node.shared.acks.reign();
        let read = self.engine.read(key).map_err(|error| self.explain(error))?;
        self.check_lease(key)?;
        let (slot, version, ticket) = (read.slot, read.version, read.position);
        let mut dependency = Dependency { slot, version, ticket, reign };
        if mutation!("reads-do-not-wait") {
            (dependency.version, dependency.ticket.position) = Default::default();
        }
        Ok((read.value, dependency))
    }

    /// Sets `key` to `value`, without a deadline.
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<Dependency, OpError> {
        self.write(key, || Ok(((), self.engine.set(key, value)?))).map(|((), dependency)| dependency)
    }

    /// Sets `key` to `value` if a condition holds, with or without a deadline. Also that it did not hold is an answer.
    pub fn set_with(
        &self,
        key: &[u8],
        value: &[u8],
        options: &SetOptions<'_>,
    ) -> Result<(SetOutcome, Dependency), OpError> {
        self.write(key, || {
            let outcome = self.engine.set_with(key, value, options)?;
            let receipt = outcome.receipt.clone();
            Ok((outcome, receipt))
        })
    }

    /// Deletes `key`; `true` if it was there.
    pub fn delete(&self, key: &[u8]) -> Result<(bool, Dependency), OpError> {
        self.write(key, || self.engine.delete(key))
    }

    /// Deletes `key`, and returns the value that it had.
    pub fn take(&self, key: &[u8]) -> Result<(Option<Value>, Dependency), OpError> {
        self.write(key, || self.engine.take(key))
    }

    /// Changes when `key` ends, see [`lockgate_engine::Keyspace::expire_if`]; `false` if it is not there, or if `condition`
    /// (given the deadline that it has and the one that it would get) does not hold.
    pub fn expire_if(
        &self,
        key: &[u8],
        expiry: Expiry,
        condition: impl FnOnce(Option<u64>, Option<u64>) -> bool,
    ) -> Result<(bool, Dependency), OpError> {
        self.write(key, || self.engine.expire_if(key, expiry, condition))
    }

    /// Gives `key` a deadline (milliseconds since 1970), or takes it away; `false` if there was nothing to change.
    pub fn expire(&self, key: &[u8], deadline_ms: Option<u64>) -> Result<(bool, Dependency), OpError> {
        self.write(key, || self.engine.expire(key, deadline_ms))
    }

    /// The value of `key`, which ends as `expiry` says from now on.
    pub fn get_and_expire(&self, key: &[u8], expiry: Expiry) -> Result<(Option<Value>, Dependency), OpError> {
        self.write(key, || self.engine.get_and_expire(key, expiry))
    }

    /// When `key` ends.
    pub fn deadline(&self, key: &[u8]) -> Result<(Deadline, Dependency), OpError> {
        let reign = self.node.shared.acks.reign();
        let seen = self.engine.deadline(key).map_err(|error| self.explain(error))?;
        self.check_lease(key)?;
        let (slot, version, ticket) = (seen.slot, seen.version, seen.position);
        Ok((seen, Dependency { slot, version, ticket, reign }))
    }

    /// Live keys of this keyspace in the slots that this node serves.
    pub fn len(&self) -> u64 {
        self.engine.len()
    }

    /// Those of them that have a deadline.
    pub fn len_with_deadline(&self) -> u64 {
        self.engine.len_with_deadline()
    }

    /// Whether there is no live key in the slots that this node serves.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A write, or what may be one. Without a lease it has no effect; whether there is still one before the answer is
    /// for [`Node::acknowledged`] to say.
    fn write<T>(
        &self,
        key: &[u8],
        operation: impl FnOnce() -> Result<(T, Receipt), lockgate_engine::OpError>,
    ) -> Result<(T, Dependency), OpError> {
        let shared = &self.node.shared;
        let reign = shared.acks.reign();
        self.check_lease(key)?;
        let (have, need) = (shared.in_sync.load(Ordering::Relaxed), shared.config.min_in_sync);
        if have < need {
            // Slots of others are theirs to answer for.
            return match self.node.redirect(Slot::of_key(key)) {
                OpError::Arriving { .. } => Err(OpError::TooFewInSync { have, need }),
                elsewhere => Err(elsewhere),
            };
        }
        let (answer, receipt) = operation().map_err(|error| self.explain(error))?;
        let Receipt { slot, version, ticket, .. } = receipt;
        Ok((answer, Dependency { slot, version, ticket, reign }))
    }

    /// Whether what was just seen may be shown: the lease was not over then if it is not over now.
    fn check_lease(&self, key: &[u8]) -> Result<(), OpError> {
        if self.node.shared.holds_lease() {
            return Ok(());
        }
        let slot = Slot::of_key(key);
        match self.node.redirect(slot) {
            OpError::Arriving { .. } => Err(OpError::NoLease { slot }),
            elsewhere => Err(elsewhere),
        }
    }

    fn explain(&self, error: lockgate_engine::OpError) -> OpError {
        match error {
            lockgate_engine::OpError::Frozen { slot } => OpError::Frozen { slot },
            lockgate_engine::OpError::NotOwned { slot, .. } => self.node.redirect(slot),
            other => OpError::Engine(other),
        }
    }
}

impl Node {
    /// Why this node does not serve `slot`, as its map has it.
    pub(super) fn redirect(&self, slot: Slot) -> OpError {
        let Some(map) = self.map() else { return OpError::Unserved { slot } };
        let owner = &map.slots[slot];
        if map.is_disputed(slot) {
            return OpError::Unserved { slot };
        }
        let Some((node, addr)) = owner.shard.and_then(|shard| primary_addr(&map, shard)) else {
            return OpError::Unserved { slot };
        };
        match self.shared.identity.get() {
            // The map says that it is ours: the release, or this node's return to office, is on its way.
            Some(identity) if identity.me.node == node => OpError::Arriving { slot },
            _ => OpError::Moved { slot, node, addr, version: owner.version },
        }
    }

    /// The primary that owns `slot`, and where clients reach it.
    pub fn owner(&self, slot: Slot) -> Option<(NodeId, SocketAddr)> {
        let map = self.map()?;
        map.slots[slot].shard.and_then(|shard| primary_addr(&map, shard))
    }

    /// The shard that this node belongs to, and whether it is its primary.
    pub fn shard(&self) -> Option<(ShardId, bool)> {
        let map = self.map()?;
        match Role::of(&map, &self.shared.identity.get()?.me) {
            Role::None => None,
            Role::Primary(shard) => Some((shard, true)),
            Role::Stale(shard) | Role::Replica(shard) => Some((shard, false)),
        }
    }
}

fn primary_addr(map: &ClusterMap, shard: ShardId) -> Option<(NodeId, SocketAddr)> {
    let node = map.shards.get(&shard)?.primary.node;
    Some((node, map.nodes.get(&node)?.listen))
}
