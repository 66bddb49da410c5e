//! Reads at replicas, for connections that asked for them with `READONLY` (R9).
//!
//! Only keys whose slot this node's shard owns are read here; for all others, and for every write, the client is sent to
//! the owner as ever.

use lockgate_engine::Slot;
use lockgate_migrate::node::{ReplicaRead, ReplicaReadError};
use lockgate_net::resp::{Reply, Request};

use super::{Commands, Parked, Session, arity, error_text};

/// `READONLY`, `READWRITE`.
pub(super) fn mode(
    name: &str,
    session: &mut Session,
    request: &Request<'_>,
    reply: &mut Reply,
) -> Result<(), String> {
    let [_] = request.args() else { return Err(arity(name)) };
    session.takes_replica_reads = name == "READONLY";
    reply.ok();
    Ok(())
}

impl Commands {
    /// What this node has of the key as a replica; `None`: it is not to be read as one.
    pub(super) async fn at_replica(
        &self,
        session: &Session,
        request: &Request<'_>,
        key: &[u8],
    ) -> Result<Option<ReplicaRead>, String> {
        if !session.takes_replica_reads || !self.node.follows(Slot::of_key(key)) {
            return Ok(None);
        }
        let bytes: usize = request.args().iter().map(|arg| arg.len()).sum();
        let Some(_parked) = Parked::new(&self.parked_bytes, bytes) else {
            return Err("TRYAGAIN too many requests wait already".into());
        };
        let read = self.node.replica_keyspace(0).get(key).await;
        read.map(Some).map_err(|error| refusal_text(&error))
    }
}

fn refusal_text(error: &ReplicaReadError) -> String {
    match error {
        ReplicaReadError::Elsewhere(error) => error_text(error),
        ReplicaReadError::NotInSync { .. } | ReplicaReadError::Stale { .. } => {
            format!("MASTERDOWN Link with MASTER is down: {error}")
        }
        ReplicaReadError::Unacknowledged { .. } => format!("TRYAGAIN {error}"),
    }
}
