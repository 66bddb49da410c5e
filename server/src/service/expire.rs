//! When keys end: setting it, taking it away, and asking for it.
//!
//! All of it is by the clock of the key's slot, which stands still while the slot is frozen: what is left of a key's time
//! is then left when its next owner serves it.

use lockgate_net::resp::{Reply, Request};

use super::keys::check_keys;
use super::options::{ExpireOnly, TimeForm};
use super::{Commands, Session, arity};

/// What `TTL` and its like answer for a key that is not there...
const ABSENT: i64 = -2;
/// ... and for one that does not end.
const ENDLESS: i64 = -1;

impl Commands {
    /// `EXPIRE|PEXPIRE|EXPIREAT|PEXPIREAT key time [NX|XX|GT|LT]`; `name` is the command's, in upper case.
    pub(super) async fn expire(
        &self,
        name: &str,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let [_, key, time, options @ ..] = request.args() else { return Err(arity(name)) };
        check_keys(&[key])?;
        let only = ExpireOnly::parse(options)?;
        let expiry = TimeForm::of_command(name).any(time, &name.to_ascii_lowercase())?;
        let expire = || self.node.keyspace(0).expire_if(key, expiry, |have, wanted| only.holds(have, wanted));
        let (done, rests_on) = self.in_turn(request, expire).await?;
        session.dependencies.push(rests_on);
        reply.integer(i64::from(done));
        Ok(())
    }

    /// `PERSIST key`.
    pub(super) async fn persist(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let [_, key] = request.args() else { return Err(arity("PERSIST")) };
        check_keys(&[key])?;
        let (done, rests_on) = self.in_turn(request, || self.node.keyspace(0).expire(key, None)).await?;
        session.dependencies.push(rests_on);
        reply.integer(i64::from(done));
        Ok(())
    }

    /// `TTL|PTTL|EXPIRETIME|PEXPIRETIME key`; `name` is the command's, in upper case.
    pub(super) async fn ttl(
        &self,
        name: &str,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let [_, key] = request.args() else { return Err(arity(name)) };
        check_keys(&[key])?;
        let (exists, at_ms, clock_ms) = match self.at_replica(session, request, key).await? {
            Some(read) => (read.value.is_some(), read.deadline_ms, lockgate_runtime::unix_ms()),
            None => {
                let deadline = || self.node.keyspace(0).deadline(key);
                let (seen, rests_on) = self.in_turn(request, deadline).await?;
                session.dependencies.push(rests_on);
                (seen.exists, seen.at_ms, seen.clock_ms)
            }
        };
        let time_ms = at_ms.map(|at_ms| match name {
            // At a replica a key that is due is there until its delete has come.
            "TTL" | "PTTL" => at_ms.saturating_sub(clock_ms),
            _ => at_ms,
        });
        let in_ms = name.starts_with('P');
        reply.integer(match time_ms.map(|time_ms| i64::try_from(time_ms).unwrap_or(i64::MAX)) {
            Some(time_ms) if in_ms => time_ms,
            // Rounded, so that a key just set to end in 10 seconds is said to have 10 left.
            Some(time_ms) => time_ms.saturating_add(500) / 1_000,
            None if exists => ENDLESS,
            None => ABSENT,
        });
        Ok(())
    }
}
