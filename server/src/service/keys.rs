//! Commands on keys: reading, deleting, counting, and waiting for what was answered.

use lockgate_engine::{KEY_BYTES_MAX, Slot};
use lockgate_migrate::{AckPolicy, Dependency};
use lockgate_net::resp::{Reply, Request};

use super::{Commands, Session, arity};

const CROSS_SLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot";

/// Checks that all keys may be served together, before any of them has an effect.
pub(super) fn check_keys(keys: &[&[u8]]) -> Result<(), String> {
    if let Some(key) = keys.iter().find(|key| key.len() > KEY_BYTES_MAX) {
        return Err(format!("ERR key of {} bytes is too long, the limit is {KEY_BYTES_MAX}", key.len()));
    }
    let first = Slot::of_key(keys[0]);
    if keys[1..].iter().any(|key| Slot::of_key(key) != first) {
        return Err(CROSS_SLOT.into());
    }
    Ok(())
}

impl Commands {
    pub(super) async fn get(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let [_, key] = request.args() else { return Err(arity("GET")) };
        check_keys(&[key])?;
        match self.value(session, request, key).await? {
            Some(value) => reply.bulk(value.as_bytes()),
            None => reply.null(),
        }
        Ok(())
    }

    /// `DEL|UNLINK key ...`; `name` is the command's, in upper case.
    pub(super) async fn del(
        &self,
        name: &str,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let keys = &request.args()[1..];
        if keys.is_empty() {
            return Err(arity(name));
        }
        check_keys(keys)?;
        let mut deleted = 0;
        for key in keys {
            let (existed, rests_on) = self.in_turn(request, || self.node.keyspace(0).delete(key)).await?;
            session.dependencies.push(rests_on);
            deleted += i64::from(existed);
        }
        reply.integer(deleted);
        Ok(())
    }

    pub(super) async fn exists(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let found = self.read_all("EXISTS", session, request).await?;
        reply.integer(found.iter().flatten().count() as i64);
        Ok(())
    }

    pub(super) async fn mget(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let values = self.read_all("MGET", session, request).await?;
        reply.array(values.len());
        for value in &values {
            match value {
                Some(value) => reply.bulk(value.as_bytes()),
                None => reply.null(),
            }
        }
        Ok(())
    }

    /// The values of all keys of the request, in order.
    async fn read_all(
        &self,
        name: &str,
        session: &mut Session,
        request: &Request<'_>,
    ) -> Result<Vec<Option<lockgate_engine::Value>>, String> {
        let keys = &request.args()[1..];
        if keys.is_empty() {
            return Err(arity(name));
        }
        check_keys(keys)?;
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            values.push(self.value(session, request, key).await?);
        }
        Ok(values)
    }

    /// The value of one key: the owner's, or this replica's where the client takes that.
    async fn value(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        key: &[u8],
    ) -> Result<Option<lockgate_engine::Value>, String> {
        if let Some(read) = self.at_replica(session, request, key).await? {
            return Ok(read.value);
        }
        let (value, rests_on) = self.in_turn(request, || self.node.keyspace(0).get(key)).await?;
        session.dependencies.push(rests_on);
        Ok(value)
    }

    pub(super) fn dbsize(&self, request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
        let [_] = request.args() else { return Err(arity("DBSIZE")) };
        reply.integer(self.node.keyspace(0).len() as i64);
        Ok(())
    }

    /// `WAITAOF numlocal numreplicas timeout`: waits until everything that this connection was answered is on this node's disk
    /// (and, with numreplicas, on every in-sync replica's). The reply counts who has it.
    pub(super) async fn waitaof(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let [_, local, replicas, timeout_ms] = request.args() else { return Err(arity("WAITAOF")) };
        let number = |arg: &[u8]| std::str::from_utf8(arg).ok().and_then(|text| text.parse::<u64>().ok());
        let (Some(local), Some(replicas), Some(timeout_ms)) =
            (number(local), number(replicas), number(timeout_ms))
        else {
            return Err("ERR value is not an integer or out of range".into());
        };
        if local > 1 {
            return Err("ERR WAITAOF numlocal must be 0 or 1".into());
        }
        let mut all: Vec<Dependency> = session.answered.values().copied().collect();
        all.extend_from_slice(&session.dependencies);
        let policy = if replicas > 0 { AckPolicy::InSyncSynced } else { AckPolicy::InSync };
        let synced =
            self.node.synced(&all, local > 0, policy, std::time::Duration::from_millis(timeout_ms)).await;
        let synced = synced.map_err(|error| format!("ERR {error}"))?;
        reply.array(2);
        reply.integer(i64::from(synced.local));
        reply.integer(synced.replicas as i64);
        Ok(())
    }
}
