//! `SET` with its options, and its relatives that read and change a value in one step.
//!
//! A condition that did not hold, and a value that was not there, are answers too: they wait for what they rest on.

use lockgate_engine::{Condition, SetOptions, Value};
use lockgate_net::resp::{Reply, Request};

use super::keys::check_keys;
use super::options::{getex_options, set_options};
use super::{Commands, Session, arity};

impl Commands {
    /// `SET key value [NX|XX|IFEQ value] [GET] [EX s|PX ms|EXAT s|PXAT ms|KEEPTTL]`.
    pub(super) async fn set(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let [_, key, value, options @ ..] = request.args() else { return Err(arity("SET")) };
        check_keys(&[key])?;
        if options.is_empty() {
            let rests_on = self.in_turn(request, || self.node.keyspace(0).set(key, value)).await?;
            session.dependencies.push(rests_on);
            reply.ok();
            return Ok(());
        }
        let options = set_options(options)?;
        let set = || self.node.keyspace(0).set_with(key, value, &options);
        let (outcome, rests_on) = self.in_turn(request, set).await?;
        session.dependencies.push(rests_on);
        match outcome {
            outcome if options.return_previous => value_or_null(outcome.previous, reply),
            outcome if outcome.applied => reply.ok(),
            _ => reply.null(),
        }
        Ok(())
    }

    /// `SETNX key value`.
    pub(super) async fn setnx(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let [_, key, value] = request.args() else { return Err(arity("SETNX")) };
        check_keys(&[key])?;
        let options = SetOptions { condition: Condition::IfAbsent, ..SetOptions::default() };
        let set = || self.node.keyspace(0).set_with(key, value, &options);
        let (outcome, rests_on) = self.in_turn(request, set).await?;
        session.dependencies.push(rests_on);
        reply.integer(i64::from(outcome.applied));
        Ok(())
    }

    /// `GETDEL key`.
    pub(super) async fn getdel(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let [_, key] = request.args() else { return Err(arity("GETDEL")) };
        check_keys(&[key])?;
        let (value, rests_on) = self.in_turn(request, || self.node.keyspace(0).take(key)).await?;
        session.dependencies.push(rests_on);
        value_or_null(value, reply);
        Ok(())
    }

    /// `GETEX key [EX s|PX ms|EXAT s|PXAT ms|PERSIST]`.
    pub(super) async fn getex(
        &self,
        session: &mut Session,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), String> {
        let [_, key, options @ ..] = request.args() else { return Err(arity("GETEX")) };
        check_keys(&[key])?;
        let expiry = getex_options(options)?;
        let get = || match expiry {
            None => self.node.keyspace(0).get(key),
            Some(expiry) => self.node.keyspace(0).get_and_expire(key, expiry),
        };
        let (value, rests_on) = self.in_turn(request, get).await?;
        session.dependencies.push(rests_on);
        value_or_null(value, reply);
        Ok(())
    }
}

fn value_or_null(value: Option<Value>, reply: &mut Reply) {
    match value {
        Some(value) => reply.bulk(value.as_bytes()),
        None => reply.null(),
    }
}
