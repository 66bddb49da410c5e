//! Starting a node: bind its links, find its cluster on disk (or wait to be given one), run the driver.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_channel::{mpsc, oneshot};
use lockgate_engine::{Engine, Gate, Slot, Version};
use lockgate_net::link::{FORMAT, Hello, Link, LinkError, Purpose};
use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{Boxed, Event, TcpListener};

use super::control_store;
use super::driver::Driver;
use super::links::serve_links;
use super::messages::{AdminReply, AdminRequest, KIND_MESSAGE, decode, parts};
use super::replica_reads::Freshness;
use super::shared::{INBOX_MESSAGES_MAX, Identity, Shared};
use super::stable::Stable;
use super::times::TimesOfJobs;
use super::watermarks::Watermarks;
use super::{Node, NodeConfig};
use crate::control::{Genesis, NodeId};
use crate::job::JobLimits;
use crate::office::Times;
use crate::replica::{AckPolicy, ReplicaAcks, ReplicaMarks};

/// Why a node could not start, or could not join a cluster.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The link address is taken or not this machine's.
    #[error("cannot listen for other nodes on {addr}: {error}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The genesis does not name this node, or is not sound.
    #[error("{0}")]
    Genesis(String),
    /// The directory has keys that no cluster knows of.
    #[error(
        "this node's data directory has keys in {0} slots already, as that of an engine of its own, or one made by \
         `lockgate restore` or `lockgate check --repair`: a cluster would begin by dropping them. Give the node an empty \
         data directory, and bring the keys by `lockgate backup --dir` and `lockgate restore --node`"
    )]
    Data(usize),
    /// The control log or the cluster file could not be opened.
    #[error(transparent)]
    Store(#[from] control_store::StoreError),
    /// The node's cores have stopped.
    #[error("this node has stopped")]
    Stopped,
    /// The node was given a cluster twice at the same moment.
    #[error("this node is being taken into a cluster already")]
    Busy,
}

/// Sets up a [`Node`].
pub struct NodeBuilder {
    engine: Engine,
    link: SocketAddr,
    config: NodeConfig,
}

impl NodeBuilder {
    pub(super) fn new(engine: Engine) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { engine, link: any, config: NodeConfig::new(any) }
    }

    /// Where other nodes reach this one. Port 0 takes a free one.
    pub fn link(mut self, addr: SocketAddr) -> Self {
        self.link = addr;
        self
    }

    /// Where clients reach this node: told to them in redirects.
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.config.listen = addr;
        self
    }

    /// What answers wait for.
    pub fn ack(mut self, policy: AckPolicy) -> Self {
        self.config.ack = policy;
        self
    }

    /// The longest wait for acknowledgements.
    pub fn ack_timeout(mut self, limit: Duration) -> Self {
        self.config.ack_timeout = limit;
        self
    }

    /// How few members of this node's shard may be in sync, itself among them, for it to take writes.
    pub fn min_in_sync(mut self, members: usize) -> Self {
        self.config.min_in_sync = members;
        self
    }

    /// The times that leases and failovers go by: the same on all nodes of the cluster.
    pub fn times(mut self, times: Times) -> Self {
        self.config.times = times;
        self
    }

    /// Bounds on finalizing a job.
    pub fn limits(mut self, limits: JobLimits) -> Self {
        self.config.limits = limits;
        self
    }

    /// How old this node's answers as a replica may be. Without this: the node timeout. It asks its primary four times
    /// within this time: with less than a few round trips, readers are refused now and then.
    pub fn replica_staleness(mut self, bound: Duration) -> Self {
        self.config.replica_staleness = Some(bound);
        self
    }

    /// Starts the node. Must be awaited on core 0 of the engine's runtime. A node without a cluster serves nothing and
    /// waits for an administrator's [`AdminRequest::Form`] or [`AdminRequest::Join`].
    pub fn start(self) -> Boxed<'static, Result<Node, StartError>> {
        Box::pin(async move {
            let bind_error = |error| StartError::Bind { addr: self.link, error };
            let listener = TcpListener::bind(self.link).await.map_err(bind_error)?;
            let link_addr = listener.local_addr();
            let (inbox, driver_inbox) = mpsc::channel(INBOX_MESSAGES_MAX);
            let shared = Arc::new(Shared {
                engine: self.engine,
                config: self.config,
                link_addr,
                identity: OnceLock::new(),
                map: ArcSwapOption::empty(),
                map_changed: Event::new(),
                leader: AtomicU32::new(0),
                reach: Mutex::default(),
                acks: ReplicaAcks::default(),
                has_left: AtomicBool::new(false),
                is_prepared: AtomicBool::new(false),
                watermarks: Watermarks::default(),
                marks: ReplicaMarks::default(),
                freshness: Freshness::default(),
                lease_until_ns: AtomicU64::new(0),
                fences: AtomicU64::new(0),
                is_fenced: AtomicBool::new(false),
                in_sync: AtomicUsize::new(0),
                lease_changed: Event::new(),
                feeds: Mutex::default(),
                progress: Mutex::default(),
                job_times: TimesOfJobs::default(),
                inbox,
                driver_inbox: Mutex::new(Some(driver_inbox)),
                stop: lockgate_net::Stop::new(),
                stopped: lockgate_net::Stop::new(),
                failure: OnceLock::new(),
            });
            shared.engine.set_stable_watermarks(Arc::new(Stable(Arc::downgrade(&shared))));
            if let Some(genesis) = control_store::load_genesis(&shared.engine).await? {
                run(&shared, genesis).await?;
            }
            for core in 1..shared.engine.runtime().cores() {
                let shared = Arc::clone(&shared);
                let runtime = shared.engine.runtime().clone();
                runtime.spawn_on(core, move || async move {
                    match TcpListener::bind(link_addr).await {
                        Ok(listener) => serve_links(shared, listener).await,
                        Err(error) => tracing::error!(core, %link_addr, %error, "this core takes no links"),
                    }
                });
            }
            lockgate_runtime::spawn(serve_links(Arc::clone(&shared), listener));
            Ok(Node { shared })
        })
    }
}

/// Makes this node a member of the genesis' cluster: durable first, then the driver starts, on core 0. `joins_as` is its
/// number if the genesis does not name it.
pub(super) async fn join(
    shared: &Arc<Shared>,
    genesis: Genesis,
    joins_as: Option<NodeId>,
) -> Result<(), StartError> {
    let (tell, joined) = oneshot::channel();
    let runtime = shared.engine.runtime().clone();
    let shared = Arc::clone(shared);
    runtime.spawn_on(0, move || async move {
        // Whoever asked may have gone; what was done stays done.
        let _ = tell.send(join_here(&shared, genesis, joins_as).await);
    });
    joined.await.unwrap_or(Err(StartError::Stopped))
}

async fn join_here(
    shared: &Arc<Shared>,
    genesis: Genesis,
    joins_as: Option<NodeId>,
) -> Result<(), StartError> {
    // Checked before anything is written: a genesis that cannot start must not be what the next start finds.
    control_store::check_genesis(&shared.engine, &genesis, joins_as).map_err(StartError::Genesis)?;
    if let Some(slots) = slots_with_data(&shared.engine) {
        return Err(StartError::Data(slots));
    }
    if shared.driver_inbox.lock().is_none() {
        return Err(StartError::Busy);
    }
    // The genesis comes last: with it this node is a member.
    if let Some(node) = joins_as {
        control_store::save_membership(&shared.engine, genesis.cluster, node).await?;
    }
    control_store::save_genesis(&shared.engine, &genesis).await?;
    run(shared, genesis).await
}

/// How many slots hold data, if any does. A cluster's slots begin empty: what was there before would be dropped.
fn slots_with_data(engine: &Engine) -> Option<usize> {
    let here = Slot::all().filter(|slot| engine.gate(*slot) != Gate::Absent);
    let slots = here.filter(|slot| engine.slot_status(*slot).version > Version::ZERO).count();
    (slots > 0).then_some(slots)
}

/// Opens the control log and starts the driver.
async fn run(shared: &Arc<Shared>, genesis: Genesis) -> Result<(), StartError> {
    let cluster = genesis.cluster;
    let Some(inbox) = shared.driver_inbox.lock().take() else { return Err(StartError::Busy) };
    let synced = shared.config.ack == AckPolicy::InSyncSynced;
    let always_synced = control_store::always_synced(&shared.engine, synced).await?;
    let store = control_store::open(&shared.engine, genesis).await?;
    // Set once: the inbox, which only one caller can take, stands guard.
    let _ = shared.identity.set(Identity { cluster, me: store.me });
    shared.map.store(Some(Arc::new(store.map.clone())));
    if let Some(left) = control_store::load_left(&shared.engine, store.map.generation).await? {
        shared.is_prepared.store(left.next.is_some(), Ordering::SeqCst);
        shared.has_left.store(true, Ordering::SeqCst);
    }
    let driver = Driver::new(Arc::clone(shared), inbox, store, always_synced);
    let shared = Arc::clone(shared);
    lockgate_runtime::spawn(async move {
        if let Err(error) = driver.run().await {
            tracing::error!(%error, "this node has stepped down");
            // Set once: there is one driver.
            let _ = shared.failure.set(error.to_string());
            shared.step_down();
        }
        shared.stopped.stop();
    });
    Ok(())
}

/// Asks the node at `addr` one thing. For tools: the caller is no node.
pub fn admin<'a>(
    addr: SocketAddr,
    request: &'a AdminRequest,
    limit: Duration,
) -> Boxed<'a, Result<AdminReply, LinkError>> {
    Box::pin(async move {
        let mine = Hello {
            cluster: [0; 16],
            node: 0,
            directory: [0; 16],
            boot: 0,
            purpose: Purpose::Admin,
            format: FORMAT,
        };
        let (sender, mut receiver, peer) = Link::connect(addr, mine, limit).await?;
        sender.send(KIND_MESSAGE, parts(request)).await?;
        let answer = lockgate_runtime::timeout(limit, receiver.recv()).await;
        let message =
            answer.unwrap_or_else(|_| Err(sender.failure().unwrap_or_else(|| timed_out(&sender, limit))))?;
        decode(&message.payload)
            .or_else(|error| Ok(AdminReply::Refused(format!("node {}: {error}", peer.node))))
    })
}

fn timed_out(sender: &lockgate_net::link::LinkSender, limit: Duration) -> LinkError {
    LinkError::HandshakeTimeout { peer: sender.peer_name(), timeout_ms: limit.as_millis() as u64 }
}
