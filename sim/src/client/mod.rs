//! Clients of the simulated cluster: RESP over its sockets, redirects followed, outcomes told apart.
//!
//! Invariant: [`Answer::NotSent`] is said only if no byte of the request left; what was sent and not answered is
//! [`Answer::Lost`], and nobody knows what became of it.

mod connection;
mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use lockgate::client::{ErrorKind, Reply};
use lockgate_engine::Slot;

pub use connection::Answer;
use connection::Connection;
pub use values::{decode, encode};

use crate::cluster::Cluster;
use crate::random::Random;

/// Pause before an operation that was refused is tried again.
const RETRY_US: (u64, u64) = (500, 20_000);

/// What became of an operation.
#[derive(Debug)]
pub enum Ended {
    /// It was answered.
    Replied(Reply),
    /// It surely had no effect, and the client tries no more.
    Refused,
    /// It may have had an effect, or have one later.
    Unknown,
}

/// One client.
pub struct Client {
    cluster: Rc<Cluster>,
    random: Random,
    connections: BTreeMap<usize, Connection>,
    /// The machine that served a slot last.
    routes: BTreeMap<Slot, usize>,
    /// How often it was sent elsewhere.
    pub redirects: u64,
    /// Replies that told of an error other than a redirect, by their first word.
    pub errors: BTreeMap<String, u64>,
}

impl Client {
    /// A client that knows the machines' addresses.
    pub fn new(cluster: Rc<Cluster>, random: Random) -> Self {
        let (connections, routes) = (BTreeMap::new(), BTreeMap::new());
        Self { cluster, random, connections, routes, redirects: 0, errors: BTreeMap::new() }
    }

    /// Has `command` executed wherever `slot` is served, for as long as its patience lasts.
    pub async fn execute(&mut self, slot: Slot, command: &[&[u8]], patience: Duration) -> Ended {
        let give_up_ns = lockgate_runtime::now_ns() + patience.as_nanos() as u64;
        let mut at = self.routes.get(&slot).copied().unwrap_or_else(|| self.any_machine());
        loop {
            let left_ns = give_up_ns.saturating_sub(lockgate_runtime::now_ns());
            if left_ns == 0 {
                return Ended::Refused;
            }
            match self.ask(at, command, Duration::from_nanos(left_ns)).await {
                Answer::Reply(Reply::Error(error)) => {
                    let from = self.cluster.machines[at].listen;
                    match error.kind(from) {
                        ErrorKind::Moved { owner, .. } => {
                            self.redirects += 1;
                            at = self.machine_at(owner).unwrap_or_else(|| self.any_machine());
                            self.routes.insert(slot, at);
                            // Two nodes whose maps differ for a moment point at each other.
                            if self.random.one_in(4) {
                                self.pause().await;
                            }
                            continue;
                        }
                        kind => {
                            *self.errors.entry(error.code().to_owned()).or_default() += 1;
                            match kind {
                                ErrorKind::ClusterDown => at = self.any_machine(),
                                ErrorKind::TryAgain => {
                                    self.cluster.told_to_try_again.borrow_mut().push((at, slot));
                                }
                                ErrorKind::Refused => return Ended::Refused,
                                _ => return Ended::Unknown,
                            }
                        }
                    }
                    self.pause().await;
                }
                Answer::Reply(reply) => {
                    self.routes.insert(slot, at);
                    return Ended::Replied(reply);
                }
                Answer::NotSent => {
                    at = self.any_machine();
                    self.pause().await;
                }
                Answer::Lost => return Ended::Unknown,
            }
        }
    }

    /// Sends one command to one machine and waits for its reply.
    pub async fn ask(&mut self, machine: usize, command: &[&[u8]], limit: Duration) -> Answer {
        let addr = self.cluster.machines[machine].listen;
        let mut connection = match self.connections.remove(&machine) {
            Some(connection) => connection,
            None => match lockgate_runtime::timeout(limit, Connection::open(addr)).await {
                Ok(Ok(connection)) => connection,
                _ => return Answer::NotSent,
            },
        };
        let answer = lockgate_runtime::timeout(limit, connection.ask(command)).await;
        // A late reply would be taken for the next one's: a connection that was given up is closed.
        let answer = answer.unwrap_or(Answer::Lost);
        if matches!(answer, Answer::Reply(_)) {
            self.connections.insert(machine, connection);
        }
        answer
    }

    fn any_machine(&mut self) -> usize {
        self.random.index(self.cluster.machines.len())
    }

    async fn pause(&mut self) {
        let us = self.random.between(RETRY_US.0, RETRY_US.1);
        lockgate_runtime::sleep(Duration::from_micros(us)).await;
    }

    fn machine_at(&self, listen: SocketAddr) -> Option<usize> {
        self.cluster.machines.iter().position(|machine| machine.listen == listen)
    }
}
