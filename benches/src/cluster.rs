//! A cluster of real nodes in this process: each with one core, its own ring and its own data directory on a real disk.
//!
//! Invariant: whoever holds a [`Cluster`] is on no core's thread; its end stops all cores first, and then removes the
//! directories. Answers wait until every member in sync has synced.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use lockgate_engine::{Engine, Slot};
use lockgate_migrate::control::{
    Genesis, GenesisShard, Incarnation, JobId, JobState, Name, NodeId, NodeInfo, SLOT_COUNT, ShardId,
    SlotRange,
};
use lockgate_migrate::node::{AdminReply, AdminRequest, admin};
use lockgate_migrate::{AckPolicy, Node, OpError, Times};
use lockgate_runtime::Runtime;
use lockgate_runtime::sync::Arc;
use tempfile::TempDir;

use crate::output;

const ADMIN_LIMIT: Duration = Duration::from_secs(10);

/// How many of what.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Shards, with about equally many slots.
    pub shards: usize,
    /// Replicas of each.
    pub replicas: usize,
    /// How many of the nodes vote: the first ones.
    pub voters: usize,
    /// The times that leases and failovers go by.
    pub times: Times,
}

/// One node.
pub struct Machine {
    /// Its core.
    pub runtime: Runtime,
    /// The node on it.
    pub node: Node,
}

/// The nodes, for tasks that run beside them.
pub type Machines = Arc<Vec<Machine>>;

/// The nodes, a core for those who ask them, and the disk below.
pub struct Cluster {
    /// The nodes: node n is at n - 1.
    pub machines: Machines,
    /// A core that belongs to no node.
    pub client: Runtime,
    folder: TempDir,
}

/// A runtime of one core that neither spins nor is pinned: there are more of them than processors.
pub fn one_core(name: &str) -> Runtime {
    Runtime::builder().name(name).cores(1).pin(false).spin_us(0).build().expect("io_uring is there")
}

impl Cluster {
    /// Starts nodes, forms a cluster of them, and waits until every primary serves.
    pub fn start(shape: Shape) -> Cluster {
        let folder = output::data_folder();
        let client = one_core("client");
        let count = shape.shards * (1 + shape.replicas);
        let machines = (1..=count).map(|n| start(folder.path(), &format!("node-{n}"), shape.times)).collect();
        let machines: Machines = Arc::new(machines);
        let asked = Arc::clone(&machines);
        client.block_on(0, move || async move { form(&asked, shape).await });
        Cluster { machines, client, folder }
    }

    /// The folder that the nodes' directories are in, for measurements on the same disk.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `make`'s future on the client's core and waits for it.
    pub fn run<M, F, T>(&self, make: M) -> T
    where
        M: FnOnce(Machines) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let machines = Arc::clone(&self.machines);
        self.client.block_on(0, move || make(machines))
    }

    /// Ends a node at once, as if it were killed: nothing is handed over or written any more.
    pub fn kill(&self, node: NodeId) {
        self.machines[node.0 as usize - 1].runtime.shutdown();
    }

    /// The node that leads the control log, by the word of `witness`, at this moment.
    pub fn leader(&self, witness: NodeId) -> Option<NodeId> {
        self.machines[witness.0 as usize - 1].node.leader()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.client.shutdown();
        for machine in &*self.machines {
            machine.runtime.shutdown();
        }
    }
}

fn start(folder: &Path, name: &str, times: Times) -> Machine {
    let runtime = one_core(name);
    let (opening, dir) = (runtime.clone(), folder.join(name));
    let node = runtime.block_on(0, move || async move {
        let engine = Engine::builder(&dir).clustered(true).open_on(&opening).await.expect("engine opens");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let builder = Node::builder(engine).link(any).listen(any).times(times).ack(AckPolicy::InSyncSynced);
        builder.start().await.expect("node starts")
    });
    Machine { runtime, node }
}

async fn form(machines: &[Machine], shape: Shape) {
    let mut nodes = Vec::new();
    for (index, machine) in machines.iter().enumerate() {
        let AdminReply::Identity(identity) = ask(machine, AdminRequest::Identify).await else {
            panic!("not an identity")
        };
        let node = NodeId(index as u32 + 1);
        nodes.push(NodeInfo {
            name: Name([index as u8 + 1; 20]),
            link: identity.link,
            listen: identity.listen,
            incarnation: Incarnation { node, directory: identity.directory, boot: identity.boot },
            voter: index < shape.voters,
        });
    }
    let members = nodes.chunks(1 + shape.replicas).enumerate();
    let shards = members.map(|(index, members)| GenesisShard {
        shard: ShardId(index as u32 + 1),
        primary: members[0].incarnation,
        replicas: members[1..].iter().map(|info| info.incarnation).collect(),
        slots: vec![slots_of_shard(index, shape.shards)],
    });
    let genesis = Genesis { cluster: [7; 16], generation: 0, shards: shards.collect(), nodes };
    for machine in machines {
        let reply = ask(machine, AdminRequest::Form(Box::new(genesis.clone()))).await;
        assert!(matches!(reply, AdminReply::Formed), "{reply:?}");
    }
    for index in 0..shape.shards {
        let primary = &machines[index * (1 + shape.replicas)];
        let slot = Slot::new(slots_of_shard(index, shape.shards).start).expect("shards have slots");
        primary.node.passable(&OpError::NoLease { slot }).await;
    }
    // A replica that was late with its first stream may have been taken out of the set.
    let whole = |map: &lockgate_migrate::control::ClusterMap| {
        map.shards.values().all(|shard| shard.in_sync.len() == 1 + shape.replicas)
    };
    machines[0].node.map_where(whole).await;
}

/// The slots that the shard at `index` of `shards` begins with.
pub fn slots_of_shard(index: usize, shards: usize) -> SlotRange {
    let each = usize::from(SLOT_COUNT) / shards;
    let end = if index + 1 == shards { usize::from(SLOT_COUNT) } else { (index + 1) * each };
    SlotRange::new((index * each) as u16, (end - 1) as u16)
}

async fn ask(machine: &Machine, request: AdminRequest) -> AdminReply {
    admin(machine.node.link_addr(), &request, ADMIN_LIMIT).await.expect("the node answers")
}

/// Moves `slots` from one node's shard to another's, and waits until both nodes have applied the end. Panics if the job
/// does not end activated.
pub async fn moved(source: &Node, target: &Node, slots: SlotRange) -> JobId {
    let job = start_job(source, target, slots).await;
    activated(source, job).await;
    activated(target, job).await;
    job
}

/// Starts to move `slots` from one node's shard to another's.
pub async fn start_job(source: &Node, target: &Node, slots: SlotRange) -> JobId {
    let (to, _) = target.shard().expect("the target leads a shard");
    source.migrate(to, vec![slots]).await.expect("the job starts")
}

/// Waits until this node has applied the job's end, which its map must still remember.
pub async fn activated(node: &Node, job: JobId) {
    let finished = |map: &lockgate_migrate::control::ClusterMap| {
        map.jobs.get(&job).is_some_and(|job| job.state.is_finished())
    };
    let map = node.map_where(finished).await;
    let state = &map.jobs[&job].state;
    assert!(matches!(state, JobState::Activated { .. }), "job {job} ended as {state:?}");
}

/// A client that knows every node: sets `key` wherever it is served, waiting where the slot is frozen, and returns when the
/// write is acknowledged.
pub async fn set(machines: &[Machine], key: &[u8], value: &[u8]) {
    let mut at = 0;
    loop {
        let node = &machines[at].node;
        match node.keyspace(0).set(key, value) {
            Ok(dependency) => return node.acknowledged(&[dependency]).await.expect("acknowledged"),
            Err(OpError::Moved { node, .. }) => {
                at = node.0 as usize - 1;
                // Two nodes whose maps differ for a moment may point at each other.
                lockgate_runtime::yield_now().await;
            }
            Err(refusal) if refusal.is_retryable() => node.passable(&refusal).await,
            Err(refusal) => panic!("refused: {refusal}"),
        }
    }
}

/// `count` keys in the slots `range`, found by counting.
pub fn keys_in(range: SlotRange, count: usize) -> Vec<Vec<u8>> {
    let candidates = (0u64..).map(|n| format!("key:{n}").into_bytes());
    candidates.filter(|key| range.contains(Slot::of_key(key).number())).take(count).collect()
}
