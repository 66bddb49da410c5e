//! Talks to a whole cluster: sends each command to the slot's owner, follows redirects, and tells what became of it.
//!
//! Invariants:
//! - A write is sent again only after a node said that it did not execute it, or when no byte of it was sent.
//! - `Refused` means that no node executed the command, ever; `Unknown` that one may have, or may still.
//! - Commands of one call are independent of each other and must be on different keys: they may be executed in any order.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockgate_engine::Slot;

use super::connection::{Connection, Pipeline, Timeouts};
use super::error::{ClientError, ErrorKind, ServerError};
use super::reply::Reply;
use super::slots::SlotMap;

/// The first pause before a command is sent again.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// The longest pause before a command is sent again.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// After so many redirects of one command, nodes disagree: give them a moment.
const REDIRECTS_AT_ONCE: u32 = 2;

/// How a cluster client behaves.
#[derive(Clone, Copy, Debug)]
pub struct ClientConfig {
    /// For each connection.
    pub timeouts: Timeouts,
    /// How long a command is sent again and again while it is refused for the moment.
    pub retry: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig { timeouts: Timeouts::default(), retry: Duration::from_secs(5) }
    }
}

/// A command on one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// GET.
    Get(&'a [u8]),
    /// SET key value.
    Set(&'a [u8], &'a [u8]),
    /// SET key value PXAT, with the milliseconds since 1970 as digits.
    SetUntil(&'a [u8], &'a [u8], &'a [u8]),
    /// DEL.
    Delete(&'a [u8]),
}

impl<'a> Command<'a> {
    /// The key.
    pub fn key(&self) -> &'a [u8] {
        match self {
            Command::Get(key) | Command::Delete(key) => key,
            Command::Set(key, _) | Command::SetUntil(key, ..) => key,
        }
    }

    fn only_reads(&self) -> bool {
        matches!(self, Command::Get(_))
    }

    fn push_to(&self, pipeline: &mut Pipeline) {
        match self {
            Command::Get(key) => pipeline.push(&[b"GET", key]),
            Command::Set(key, value) => pipeline.push(&[b"SET", key, value]),
            Command::SetUntil(key, value, at_ms) => pipeline.push(&[b"SET", key, value, b"PXAT", at_ms]),
            Command::Delete(key) => pipeline.push(&[b"DEL", key]),
        };
    }

    /// The answer that a reply gives to this command; `None` if it is no reply to it.
    fn answer(&self, reply: Reply) -> Option<Answer> {
        match (self, reply) {
            (Command::Get(_), Reply::Bulk(value)) => Some(Answer::Value(Some(value))),
            (Command::Get(_), Reply::Null) => Some(Answer::Value(None)),
            (Command::Set(..) | Command::SetUntil(..), Reply::Simple(word)) if word == "OK" => {
                Some(Answer::Stored)
            }
            (Command::Delete(_), Reply::Integer(count @ 0..=1)) => {
                Some(Answer::Deleted { existed: count == 1 })
            }
            _ => None,
        }
    }
}

/// What a node answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To GET.
    Value(Option<Vec<u8>>),
    /// To SET.
    Stored,
    /// To DEL.
    Deleted {
        /// Whether there was a value.
        existed: bool,
    },
}

/// What became of a command.
#[derive(Debug)]
pub enum Outcome<T = Answer> {
    /// It was executed, and this is the answer.
    Acknowledged(T),
    /// It was not executed, and will not be.
    Refused(ClientError),
    /// It may have been executed, or may be later. Commands that only read never end so.
    Unknown(ClientError),
}

impl<T> Outcome<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Outcome::Acknowledged(answer) => Outcome::Acknowledged(change(answer)),
            Outcome::Refused(error) => Outcome::Refused(error),
            Outcome::Unknown(error) => Outcome::Unknown(error),
        }
    }
}

/// A client of a cluster, with a connection to each node that it needs. For one thread.
pub struct ClusterClient {
    seeds: Vec<SocketAddr>,
    config: ClientConfig,
    slots: SlotMap,
    /// The map should be fetched before it is used next.
    slots_doubtful: bool,
    connections: BTreeMap<SocketAddr, Connection>,
    redirects: u64,
    refreshes: usize,
}

/// A command that is not answered yet.
struct Pending {
    index: usize,
    ask: Option<SocketAddr>,
    redirects: u32,
    /// Why it was not executed when it was sent last.
    last: Option<ClientError>,
}

/// One call of `execute` in progress.
struct Round<'a, 'b> {
    commands: &'a [Command<'b>],
    outcomes: Vec<Option<Outcome>>,
    /// To be sent in the next round.
    again: Vec<Pending>,
    /// Something asked for patience.
    pause: bool,
}

impl Round<'_, '_> {
    fn settle(&mut self, pending: &Pending, outcome: Outcome) {
        self.outcomes[pending.index] = Some(outcome);
    }

    fn retry(&mut self, mut pending: Pending, error: ClientError) {
        pending.last = Some(error);
        self.again.push(pending);
    }

    /// The command was sent, but not answered.
    fn unanswered(&mut self, pending: Pending, error: ClientError) {
        if self.commands[pending.index].only_reads() {
            self.pause = true;
            self.retry(pending, error);
        } else {
            self.settle(&pending, Outcome::Unknown(error));
        }
    }
}

impl ClusterClient {
    /// A client that learns of the cluster from any of `seeds`. Connects when it is first used.
    pub fn new(seeds: &[SocketAddr], config: ClientConfig) -> ClusterClient {
        ClusterClient {
            seeds: seeds.to_vec(),
            config,
            slots: SlotMap::new(),
            slots_doubtful: true,
            connections: BTreeMap::new(),
            redirects: 0,
            refreshes: 0,
        }
    }

    /// GET.
    pub fn get(&mut self, key: &[u8]) -> Outcome<Option<Vec<u8>>> {
        self.execute_one(Command::Get(key)).map(|answer| match answer {
            Answer::Value(value) => value,
            _ => unreachable!("GET is answered by a value"),
        })
    }

    /// SET.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Outcome<()> {
        self.execute_one(Command::Set(key, value)).map(|_| ())
    }

    /// DEL; the answer is whether there was a value.
    pub fn delete(&mut self, key: &[u8]) -> Outcome<bool> {
        self.execute_one(Command::Delete(key)).map(|answer| answer == Answer::Deleted { existed: true })
    }

    /// How many redirects were followed.
    pub fn redirects(&self) -> u64 {
        self.redirects
    }

    /// Who owns what, as far as this client knows.
    pub fn slots(&self) -> &SlotMap {
        &self.slots
    }

    /// Executes commands on different keys, in pipelines to all owners at once, with the answers in their order.
    pub fn execute(&mut self, commands: &[Command<'_>]) -> Vec<Outcome> {
        let give_up = Instant::now() + self.config.retry;
        let mut pause = PAUSE_MIN;
        let outcomes = commands.iter().map(|_| None).collect();
        let again =
            (0..commands.len()).map(|index| Pending { index, ask: None, redirects: 0, last: None }).collect();
        let mut round = Round { commands, outcomes, again, pause: false };
        loop {
            let pending = std::mem::take(&mut round.again);
            round.pause = false;
            self.send_round(&mut round, pending);
            if round.again.is_empty() {
                break;
            }
            if Instant::now() >= give_up {
                for pending in std::mem::take(&mut round.again) {
                    round.outcomes[pending.index] =
                        Some(Outcome::Refused(pending.last.unwrap_or(ClientError::NoNodes)));
                }
                break;
            }
            if round.pause {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        let settled = round.outcomes.into_iter();
        settled.map(|outcome| outcome.expect("a command without an outcome is pending")).collect()
    }

    /// Fetches the slot map from any node that answers.
    pub fn refresh(&mut self) -> Result<(), ClientError> {
        let nodes = self.known_nodes();
        let mut last = ClientError::NoNodes;
        for step in 0..nodes.len() {
            // Not always the same node first: it may be the one that knows least.
            match self.fetch_slots(nodes[(self.refreshes + step) % nodes.len()]) {
                Ok(slots) => {
                    self.slots = slots;
                    self.slots_doubtful = false;
                    self.refreshes = self.refreshes.wrapping_add(1);
                    return Ok(());
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn known_nodes(&self) -> Vec<SocketAddr> {
        let mut nodes = self.slots.nodes();
        nodes.extend(&self.seeds);
        nodes.into_iter().collect()
    }

    fn execute_one(&mut self, command: Command<'_>) -> Outcome {
        self.execute(&[command]).pop().expect("one outcome for one command")
    }

    fn fetch_slots(&mut self, addr: SocketAddr) -> Result<SlotMap, ClientError> {
        let reply = self.connection(addr)?.call(&[b"CLUSTER", b"SLOTS"])?;
        SlotMap::parse(&reply, addr).map_err(|problem| ClientError::Protocol { addr, problem })
    }

    /// The connection to a node; a new one if there is none or it broke.
    fn connection(&mut self, addr: SocketAddr) -> Result<&mut Connection, ClientError> {
        if self.connections.get(&addr).is_none_or(Connection::is_broken) {
            self.connections.remove(&addr);
            let connection = Connection::connect(addr, self.config.timeouts)?;
            self.connections.insert(addr, connection);
        }
        Ok(self.connections.get_mut(&addr).expect("it was there or was inserted"))
    }

    /// Sends every pending command to where it belongs, then takes all replies.
    fn send_round(&mut self, round: &mut Round<'_, '_>, pending: Vec<Pending>) {
        if self.slots_doubtful
            && let Err(error) = self.refresh()
            && self.slots.owned() == 0
        {
            // Without any node, there is nobody to be redirected by.
            round.pause = true;
            for pending in pending {
                round.retry(pending, error.clone());
            }
            return;
        }
        // For slots that the map has no owner of: any node redirects, or says that nobody serves them.
        let anyone = LazyCell::new(|| {
            let nodes = self.known_nodes();
            nodes.get(self.refreshes % nodes.len().max(1)).copied()
        });
        let mut groups: BTreeMap<(SocketAddr, bool), Vec<Pending>> = BTreeMap::new();
        for mut pending in pending {
            let asking = pending.ask.take();
            let slot = Slot::of_key(round.commands[pending.index].key());
            let Some(addr) = asking.or(self.slots.owner(slot)).or_else(|| *anyone) else {
                round.settle(&pending, Outcome::Refused(ClientError::NoNodes));
                continue;
            };
            groups.entry((addr, asking.is_some())).or_default().push(pending);
        }
        let mut sent = Vec::with_capacity(groups.len());
        for ((addr, asking), group) in groups {
            if let Some(group) = self.send_group(round, addr, asking, group) {
                sent.push((addr, asking, group));
            }
        }
        for (addr, asking, group) in sent {
            self.receive_group(round, addr, asking, group);
        }
    }

    /// Sends a group to its node. `None` if that failed; the commands are then taken care of.
    fn send_group(
        &mut self,
        round: &mut Round<'_, '_>,
        addr: SocketAddr,
        asking: bool,
        group: Vec<Pending>,
    ) -> Option<Vec<Pending>> {
        let mut pipeline = Pipeline::new();
        for pending in &group {
            if asking {
                pipeline.push(&[b"ASKING"]);
            }
            round.commands[pending.index].push_to(&mut pipeline);
        }
        let (error, may_have_arrived) = match self.connection(addr) {
            Ok(connection) => match connection.send(&pipeline) {
                Ok(()) => return Some(group),
                Err(failed) => (failed.error, failed.may_have_arrived),
            },
            Err(error) => (error, false),
        };
        self.slots_doubtful = true;
        for pending in group {
            if may_have_arrived {
                round.unanswered(pending, error.clone());
            } else {
                round.pause = true;
                round.retry(pending, error.clone());
            }
        }
        None
    }

    /// Takes the replies to a group that was sent to `addr`.
    fn receive_group(
        &mut self,
        round: &mut Round<'_, '_>,
        addr: SocketAddr,
        asking: bool,
        group: Vec<Pending>,
    ) {
        let connection = self.connections.get_mut(&addr).expect("the group was sent on it");
        let mut errors = Vec::new();
        for pending in group {
            let asked = if asking { connection.receive().map(|_| ()) } else { Ok(()) };
            let reply = match asked.and_then(|()| connection.receive()) {
                Ok(Reply::Error(error)) => {
                    errors.push((pending, error));
                    continue;
                }
                Ok(reply) => reply,
                Err(error) => {
                    self.slots_doubtful = true;
                    round.unanswered(pending, error);
                    continue;
                }
            };
            let type_name = reply.type_name();
            match round.commands[pending.index].answer(reply) {
                Some(answer) => round.settle(&pending, Outcome::Acknowledged(answer)),
                None => {
                    connection.poison();
                    let problem = format!("{type_name}, which is no reply to the command that was sent");
                    round.unanswered(pending, ClientError::Protocol { addr, problem });
                }
            }
        }
        for (pending, error) in errors {
            self.handle_error(round, pending, addr, error);
        }
    }

    /// Does what an error reply asks for.
    fn handle_error(
        &mut self,
        round: &mut Round<'_, '_>,
        mut pending: Pending,
        addr: SocketAddr,
        error: ServerError,
    ) {
        let kind = error.kind(addr);
        let error = ClientError::Server { addr, error };
        match kind {
            ErrorKind::Moved { slot, owner } => {
                self.slots.set(slot, owner);
                self.note_redirect(round, &mut pending);
                round.retry(pending, error);
            }
            ErrorKind::Ask { at, .. } => {
                pending.ask = Some(at);
                self.note_redirect(round, &mut pending);
                round.retry(pending, error);
            }
            ErrorKind::TryAgain => {
                round.pause = true;
                round.retry(pending, error);
            }
            ErrorKind::ClusterDown => {
                self.slots_doubtful = true;
                round.pause = true;
                round.retry(pending, error);
            }
            ErrorKind::Refused => round.settle(&pending, Outcome::Refused(error)),
            ErrorKind::Other if round.commands[pending.index].only_reads() => {
                round.settle(&pending, Outcome::Refused(error));
            }
            ErrorKind::Other => round.settle(&pending, Outcome::Unknown(error)),
        }
    }

    fn note_redirect(&mut self, round: &mut Round<'_, '_>, pending: &mut Pending) {
        self.redirects += 1;
        pending.redirects += 1;
        round.pause |= pending.redirects > REDIRECTS_AT_ONCE;
    }
}

#[cfg(test)]
mod tests;
