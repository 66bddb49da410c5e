//! A whole cluster of real nodes, on either backend of the runtime: the same code, the same scenario.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_channel::oneshot;
use lockgate_engine::{Engine, Slot};
use lockgate_migrate::control::{
    ClusterMap, Genesis, GenesisShard, Incarnation, JobId, JobState, Name, NodeId, NodeInfo, ShardId,
    SlotRange,
};
use lockgate_migrate::node::{AdminReply, AdminRequest, admin};
use lockgate_migrate::{Node, OpError};
use lockgate_runtime::Runtime;

const ADMIN_LIMIT: Duration = Duration::from_secs(10);

/// One machine of the cluster.
pub struct Machine {
    pub link: SocketAddr,
    pub node: Node,
}

/// Opens the engine in `dir` on `runtime` and starts a node there.
pub async fn start(runtime: Runtime, dir: PathBuf, link: SocketAddr) -> Machine {
    let (tell, started) = oneshot::channel();
    let (rt, path) = (runtime.clone(), dir);
    runtime.spawn_on(0, move || async move {
        let engine = Engine::builder(&path)
            .clustered(true)
            .cores(rt.cores())
            .log_file_bytes(1 << 20)
            .open_on(&rt)
            .await
            .expect("engine opens");
        let node = Node::builder(engine).link(link).listen(link).start().await.expect("node starts");
        tell.send(node).ok().expect("somebody waits");
    });
    let node = started.await.expect("the node started");
    Machine { link: node.link_addr(), node }
}

/// Forms a cluster of shards of two machines each: the first of a pair is primary. The first five machines vote.
pub async fn form(machines: &[Machine]) {
    let mut nodes = Vec::new();
    for (index, machine) in machines.iter().enumerate() {
        let AdminReply::Identity(identity) = ask(machine, AdminRequest::Identify).await else {
            panic!("not an identity")
        };
        let id = NodeId(index as u32 + 1);
        nodes.push(NodeInfo {
            name: Name([index as u8 + 1; 20]),
            link: identity.link,
            listen: identity.listen,
            incarnation: Incarnation { node: id, directory: identity.directory, boot: identity.boot },
            voter: index < 5,
        });
    }
    let shards = nodes.chunks(2).count();
    let per_shard = 16_384 / shards;
    let shards = nodes.chunks(2).enumerate().map(|(index, pair)| {
        let end = if index + 1 == shards { 16_383 } else { (index + 1) * per_shard - 1 };
        GenesisShard {
            shard: ShardId(index as u32 + 1),
            primary: pair[0].incarnation,
            replicas: pair[1..].iter().map(|info| info.incarnation).collect(),
            slots: vec![SlotRange::new((index * per_shard) as u16, end as u16)],
        }
    });
    let genesis = Genesis { cluster: [7; 16], generation: 0, shards: shards.collect(), nodes };
    for machine in machines {
        let reply = ask(machine, AdminRequest::Form(Box::new(genesis.clone()))).await;
        assert!(matches!(reply, AdminReply::Formed), "{reply:?}");
    }
}

async fn ask(machine: &Machine, request: AdminRequest) -> AdminReply {
    admin(machine.link, &request, ADMIN_LIMIT).await.expect("the node answers")
}

/// The machine that serves `slot`, as its own map and gate have it.
pub fn server_of(machines: &[Machine], slot: Slot) -> Vec<usize> {
    use lockgate_engine::Gate;
    let open = |m: &Machine| matches!(m.node.engine().slot_status(slot).gate, Gate::Owned | Gate::Frozen);
    machines.iter().enumerate().filter(|(_, machine)| open(machine)).map(|(index, _)| index).collect()
}

/// Waits until `node`'s map says that the job has ended; returns how.
pub async fn ended(node: &Node, job: JobId) -> JobState {
    let over = |map: &ClusterMap| map.jobs.get(&job).is_some_and(|job| job.state.is_finished());
    node.map_where(over).await.jobs[&job].state.clone()
}

/// A client that knows every node: sets `key` wherever it is served, waiting where the slot is frozen, and returns when
/// the write is acknowledged.
pub async fn set(machines: &[Machine], key: &[u8], value: &[u8]) {
    let mut at = 0;
    loop {
        let node = &machines[at].node;
        match node.keyspace(0).set(key, value) {
            Ok(dependency) => return node.acknowledged(&[dependency]).await.expect("acknowledged"),
            Err(refusal) => at = after(machines, at, refusal).await,
        }
    }
}

/// As [`set`]: reads `key` wherever it is served.
pub async fn get(machines: &[Machine], key: &[u8]) -> Option<Vec<u8>> {
    let mut at = 0;
    loop {
        let node = &machines[at].node;
        match node.keyspace(0).get(key) {
            Ok((value, dependency)) => {
                node.acknowledged(&[dependency]).await.expect("acknowledged");
                return value.map(|value| value.as_bytes().to_vec());
            }
            Err(refusal) => at = after(machines, at, refusal).await,
        }
    }
}

async fn after(machines: &[Machine], at: usize, refusal: OpError) -> usize {
    match refusal {
        OpError::Moved { node, .. } => {
            let next = node.0 as usize - 1;
            // Two nodes whose maps differ for a moment may point at each other.
            lockgate_runtime::yield_now().await;
            next
        }
        refusal if refusal.is_retryable() => {
            machines[at].node.passable(&refusal).await;
            at
        }
        refusal => panic!("refused: {refusal}"),
    }
}

/// `count` keys in the slots `range`, found by counting.
pub fn keys_in(range: SlotRange, count: usize) -> Vec<Vec<u8>> {
    let candidates = (0u64..).map(|n| format!("key:{n}").into_bytes());
    candidates.filter(|key| range.contains(Slot::of_key(key).number())).take(count).collect()
}

/// Shows what nodes log, filtered by `RUST_LOG`, when a test fails or is run with `--nocapture`.
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    // Only the first test of a process can set it.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}
