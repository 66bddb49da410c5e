//! Lockgate's commands over the Redis protocol: what a client may ask, executed on a [`Node`].
//!
//! One [`Commands`] serves all connections of a core. Operations are done in place; a write to a frozen slot parks its
//! connection, in order, until the slot has thawed or moved (R10), and so does a read of a key that must end there first
//! (R17). Replies leave when what they rest on is acknowledged (R8): [`Service::settle`].

mod backup;
mod cluster;
mod expire;
mod info;
mod keys;
mod migrations;
mod options;
mod replica;
mod strings;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

pub use backup::Backups;
use lockgate_engine::Slot;
use lockgate_migrate::{Dependency, Node, OpError};
use lockgate_net::resp::{self, Flow, Limits, Reply, Request, Service};
use lockgate_runtime::sync::Arc;
use lockgate_runtime::{Boxed, TcpListener};

/// The longest that a request waits for its slot before the client is told to try again.
pub const PARK_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of requests that may wait on one core; beyond, clients are told to try again at once.
pub const PARKED_BYTES_MAX: usize = 64 << 20;

/// Slots that a connection may have been answered about before those that are on all disks are forgotten.
const ANSWERED_MAX: usize = 1_024;

/// The commands, for the connections of one core.
pub struct Commands {
    node: Node,
    parked_bytes: Rc<Cell<usize>>,
    backups: Arc<Backups>,
    started_ms: u64,
}

/// What one connection has been answered but not yet told.
#[derive(Default)]
pub struct Session {
    dependencies: Vec<Dependency>,
    /// The client takes what a replica has, however old it is within its bound: after READONLY.
    takes_replica_reads: bool,
    /// The newest dependency of each slot that this connection was answered about, for WAITAOF.
    answered: BTreeMap<Slot, Dependency>,
}

impl Commands {
    /// Commands on `node`. Call it on the core that will serve the connections.
    pub fn new(node: Node) -> Self {
        let backups = Arc::new(Backups::new(None));
        Self { node, parked_bytes: Rc::default(), backups, started_ms: lockgate_runtime::unix_ms() }
    }

    /// Has these commands write backups where, and beside which, others of the same node do.
    pub fn with_backups(self, backups: Arc<Backups>) -> Self {
        Self { backups, ..self }
    }

    /// Serves the connections of `listener` until the node stops and its clients are gone, or were cut off, see [`resp::serve`].
    /// On the core on which these commands were made.
    pub fn serve(self, listener: TcpListener, limits: Limits) -> Boxed<'static, ()> {
        Box::pin(async move {
            let stop = self.node.stopping();
            resp::serve(listener, Rc::new(self), stop, limits).await;
        })
    }

    /// Runs `operation` until it is no longer refused for a reason that passes: a frozen slot, a slot about to be served,
    /// a log that is behind. Gives up with TRYAGAIN.
    async fn in_turn<T>(
        &self,
        request: &Request<'_>,
        operation: impl Fn() -> Result<T, OpError>,
    ) -> Result<T, String> {
        let first = match operation() {
            Ok(value) => return Ok(value),
            Err(error) if error.is_retryable() => error,
            Err(error) => return Err(error_text(&error)),
        };
        let bytes: usize = request.args().iter().map(|arg| arg.len()).sum();
        let Some(_parked) = Parked::new(&self.parked_bytes, bytes) else {
            return Err(format!("TRYAGAIN {first}; too many requests wait already"));
        };
        let mut refusal = first;
        let wait = async {
            loop {
                self.node.passable(&refusal).await;
                match operation() {
                    Ok(value) => return Ok(value),
                    Err(error) if error.is_retryable() => refusal = error,
                    Err(error) => return Err(error_text(&error)),
                }
            }
        };
        match lockgate_runtime::timeout(PARK_TIMEOUT, wait).await {
            Ok(result) => result,
            Err(_) if matches!(refusal, OpError::NoLease { .. }) => Err(error_text(&refusal)),
            Err(_) => {
                Err(format!("TRYAGAIN the slot has been waiting for its handover for {PARK_TIMEOUT:?}"))
            }
        }
    }
}

/// Bytes of one parked request, counted while it waits.
struct Parked {
    total: Rc<Cell<usize>>,
    bytes: usize,
}

impl Parked {
    fn new(total: &Rc<Cell<usize>>, bytes: usize) -> Option<Self> {
        let sum = total.get() + bytes;
        (sum <= PARKED_BYTES_MAX).then(|| {
            total.set(sum);
            Self { total: Rc::clone(total), bytes }
        })
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes);
    }
}

/// The error line that clients of the cluster protocol expect.
fn error_text(error: &OpError) -> String {
    match error {
        OpError::Moved { slot, addr, .. } => format!("MOVED {slot} {addr}"),
        OpError::Unserved { .. } => "CLUSTERDOWN Hash slot not served".to_owned(),
        OpError::Frozen { .. } | OpError::Arriving { .. } => format!("TRYAGAIN {error}"),
        OpError::NoLease { .. } => format!("CLUSTERDOWN {error}"),
        OpError::TooFewInSync { .. } => format!("NOREPLICAS {error}"),
        OpError::Engine(lockgate_engine::OpError::OutOfMemory { .. }) => format!("OOM {error}"),
        OpError::Engine(lockgate_engine::OpError::DiskFull { .. }) => {
            format!("MISCONF Errors writing to the log: {error}")
        }
        OpError::Engine(_) => format!("ERR {error}"),
    }
}

impl Service for Commands {
    type Session = Session;

    fn open(&self, _peer: SocketAddr) -> Session {
        Session::default()
    }

    async fn call(&self, session: &mut Session, request: &Request<'_>, reply: &mut Reply) -> Flow {
        let mut name = [0; 16];
        let Some(name) = upper(request.name(), &mut name) else {
            unknown(request, reply);
            return Flow::Continue;
        };
        let outcome = match name {
            "GET" => self.get(session, request, reply).await,
            "SET" => self.set(session, request, reply).await,
            "SETNX" => self.setnx(session, request, reply).await,
            "GETDEL" => self.getdel(session, request, reply).await,
            "GETEX" => self.getex(session, request, reply).await,
            "EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT" => {
                self.expire(name, session, request, reply).await
            }
            "TTL" | "PTTL" | "EXPIRETIME" | "PEXPIRETIME" => self.ttl(name, session, request, reply).await,
            "PERSIST" => self.persist(session, request, reply).await,
            "DEL" | "UNLINK" => self.del(name, session, request, reply).await,
            "EXISTS" => self.exists(session, request, reply).await,
            "MGET" => self.mget(session, request, reply).await,
            "DBSIZE" => self.dbsize(request, reply),
            "WAITAOF" => self.waitaof(session, request, reply).await,
            "PING" => ping(request, reply),
            "ECHO" => echo(request, reply),
            "HELLO" => self.hello(request, reply),
            "SELECT" => select(request, reply),
            "CLIENT" => client(request, reply),
            "READONLY" | "READWRITE" => replica::mode(name, session, request, reply),
            "INFO" => self.info(request, reply),
            "COMMAND" => info::command(request, reply),
            "CONFIG" => info::config(request, reply),
            "CLUSTER" => self.cluster(request, reply).await,
            "LOCKGATE" => self.lockgate(request, reply).await,
            "QUIT" => {
                reply.ok();
                return Flow::Close;
            }
            _ => {
                unknown(request, reply);
                Ok(())
            }
        };
        if let Err(text) = outcome {
            reply.error(&text);
        }
        Flow::Continue
    }

    async fn settle(&self, session: &mut Session) -> Result<(), String> {
        let dependencies = std::mem::take(&mut session.dependencies);
        let settled = self.node.acknowledged(&dependencies).await;
        session.answered.extend(dependencies.into_iter().map(|dependency| (dependency.slot, dependency)));
        if session.answered.len() > ANSWERED_MAX {
            session.answered.retain(|_, dependency| !self.node.is_synced(dependency));
        }
        settled.map_err(|error| format!("UNKNOWNOUTCOME {error}"))
    }
}

/// `bytes` in upper case, if it may be a command's name at all.
fn upper<'a>(bytes: &[u8], buffer: &'a mut [u8; 16]) -> Option<&'a str> {
    let target = buffer.get_mut(..bytes.len())?;
    target.copy_from_slice(bytes);
    target.make_ascii_uppercase();
    std::str::from_utf8(target).ok()
}

fn unknown(request: &Request<'_>, reply: &mut Reply) {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(128)]).into_owned();
    let args: String = request.args()[1..].iter().take(8).map(|arg| format!("'{}' ", shown(arg))).collect();
    reply
        .error(&format!("ERR unknown command '{}', with args beginning with: {args}", shown(request.name())));
}

/// The answer to a wrong number of arguments.
fn arity(name: &str) -> String {
    format!("ERR wrong number of arguments for '{}' command", name.to_ascii_lowercase())
}

fn ping(request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
    match request.args() {
        [_] => reply.simple("PONG"),
        [_, message] => reply.bulk(message),
        _ => return Err(arity("PING")),
    }
    Ok(())
}

fn echo(request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
    let [_, message] = request.args() else { return Err(arity("ECHO")) };
    reply.bulk(message);
    Ok(())
}

fn select(request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
    match request.args() {
        [_, b"0"] => reply.ok(),
        [_, _] => return Err("ERR SELECT is not allowed in cluster mode".into()),
        _ => return Err(arity("SELECT")),
    }
    Ok(())
}

/// What client libraries send of themselves on connecting; nothing of it is kept.
fn client(request: &Request<'_>, reply: &mut Reply) -> Result<(), String> {
    let Some(sub) = request.args().get(1) else { return Err(arity("CLIENT")) };
    if sub.eq_ignore_ascii_case(b"SETINFO") || sub.eq_ignore_ascii_case(b"SETNAME") {
        reply.ok();
    } else if sub.eq_ignore_ascii_case(b"GETNAME") {
        reply.bulk(b"");
    } else if sub.eq_ignore_ascii_case(b"ID") {
        reply.integer(1);
    } else {
        return Err(format!(
            "ERR unknown subcommand '{}'. Try CLIENT SETNAME.",
            String::from_utf8_lossy(sub)
        ));
    }
    Ok(())
}
