//! The control log: what deciding one entry takes, how long a shard is without a primary after a kill, and what applying an
//! entry costs on a large map.
//!
//! Goals: an entry on three voters at most two raw syncs and two round trips; a failover at most twice the node timeout; one
//! entry applied in at most a millisecond on a map of 1,000 nodes, whose snapshot has at most 4 MB.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use lockgate_benches::big_map::{BigMap, NODES};
use lockgate_benches::cluster::{Cluster, Shape, keys_in, one_core, slots_of_shard};
use lockgate_benches::groups::{Group, Timed};
use lockgate_benches::output;
use lockgate_benches::raw_sync::RawSync;
use lockgate_benches::round_trip::round_trips;
use lockgate_benches::samples::Samples;
use lockgate_benches::svg::{Bar, bars};
use lockgate_benches::table::Table;
use lockgate_migrate::control::{Effect, EntryBody, JobId, NodeId, encode_map};
use lockgate_migrate::node::ProposeError;
use lockgate_migrate::{Node, Times};
use lockgate_runtime::{Runtime, now_ns};

const NODE_TIMEOUT: Duration = Duration::from_millis(500);
/// Entries, syncs and round trips that are measured in turns.
const PER_TURN: usize = 10;
const SNAPSHOT_BYTES_MAX: usize = 4 << 20;

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = control
}
criterion_main!(benches);

fn control(criterion: &mut Criterion) {
    lockgate_benches::log_to_stderr();
    let mut table = Table::default();
    let mut picture = Vec::new();
    entries(criterion, &mut table, &mut picture);
    failovers(criterion, &mut table);
    applies(criterion, &mut table);
    output::publish("control", &table, &bars("deciding one entry, medians", &picture));
}

/// One shard of three nodes, all of which vote.
fn trio(node_timeout: Duration) -> Cluster {
    let times = Times::new(node_timeout, Times::DRIFT_PPM).expect("the times go together");
    Cluster::start(Shape { shards: 1, replicas: 2, voters: 3, times })
}

/// Three voters, and what an entry is compared with: the disk below them, and another core on the same machine.
struct Voters {
    cluster: Cluster,
    peer: Runtime,
    raw: RawSync,
    raw_syncs: Samples,
    trips: Samples,
    turns: usize,
}

impl Voters {
    fn start() -> Voters {
        let cluster = trio(Times::NODE_TIMEOUT);
        let (peer, raw) = (one_core("peer"), RawSync::new(cluster.folder()));
        Voters { cluster, peer, raw, raw_syncs: Samples::default(), trips: Samples::default(), turns: 0 }
    }

    fn round_trips(&self, count: usize) -> Samples {
        let peer = self.peer.clone();
        self.cluster.run(move |_| async move { round_trips(&peer, count).await })
    }

    /// Decides `count` entries in turns; each turn begins with syncs and round trips, which do not count.
    fn entries(&mut self, at_leader: bool, count: usize) -> Vec<u64> {
        let mut all_ns = Vec::with_capacity(count);
        while all_ns.len() < count {
            let syncs = self.raw.measure(PER_TURN);
            self.raw_syncs.append(syncs);
            self.trips.append(self.round_trips(PER_TURN));
            let machine = &self.cluster.machines[self.proposer(at_leader)];
            let (node, now) = (machine.node.clone(), PER_TURN.min(count - all_ns.len()));
            all_ns.extend(machine.runtime.block_on(0, move || async move { decided(&node, now).await }));
            self.turns += 1;
        }
        all_ns
    }

    /// The machine of the leader, or one of the others in turns.
    fn proposer(&self, at_leader: bool) -> usize {
        // It may change, however rarely.
        let leader = self.cluster.leader(NodeId(1)).expect("somebody leads").0 as usize - 1;
        if at_leader { leader } else { (leader + 1 + self.turns % 2) % self.cluster.machines.len() }
    }
}

impl Drop for Voters {
    fn drop(&mut self) {
        self.peer.shutdown();
    }
}

/// From proposing to its outcome, on one node's own core. The entry aborts a job that does not exist: it is decided and
/// applied like any other, and is refused.
async fn decided(node: &Node, count: usize) -> Vec<u64> {
    let mut all_ns = Vec::with_capacity(count);
    for _ in 0..count {
        let began_ns = now_ns();
        let outcome = node.cancel(JobId(u64::MAX)).await;
        all_ns.push(now_ns() - began_ns);
        assert!(matches!(outcome, Err(ProposeError::Refused(_))), "{outcome:?}");
    }
    all_ns
}

fn entries(criterion: &mut Criterion, table: &mut Table, picture: &mut Vec<Bar>) {
    let mut voters = LazyCell::new(Voters::start);
    let mut group = Group::new(criterion, "entry decided", 50, Duration::from_secs(6));
    group.measure_on("raw sync", &mut voters, |voters, count| voters.raw.measure(count).into_ns());
    group.measure_on("round trip", &mut voters, |voters, count| voters.round_trips(count).into_ns());
    let at_leader: Samples = group
        .measure_on("at the leader", &mut voters, |voters, count| voters.entries(true, count))
        .into_iter()
        .collect();
    let elsewhere: Samples = group
        .measure_on("elsewhere", &mut voters, |voters, count| voters.entries(false, count))
        .into_iter()
        .collect();
    drop(group);
    let (syncs, trips) = match LazyCell::get(&voters) {
        Some(voters) => (voters.raw_syncs.clone(), voters.trips.clone()),
        None => Default::default(),
    };
    table.figure("raw sync: 4 KiB, fdatasync", &syncs);
    table.figure("loopback round trip", &trips);
    let mut goal_us = 0.0;
    if !syncs.is_empty() {
        let parts = [("2 raw syncs", 2.0 * syncs.p50_us()), ("2 round trips", 2.0 * trips.p50_us())];
        goal_us = parts.iter().map(|(_, us)| us).sum();
        let parts = parts.map(|(name, us)| (name.to_owned(), us)).into();
        picture.push(Bar { name: "goal".into(), parts });
    }
    table.at_most("entry decided, at the leader", &at_leader, "2 raw syncs, 2 round trips", goal_us);
    table.figure("entry decided, elsewhere", &elsewhere);
    let bars = [("at the leader", &at_leader), ("elsewhere", &elsewhere)];
    let measured = bars.iter().filter(|(_, samples)| !samples.is_empty());
    picture.extend(measured.map(|(name, samples)| Bar::plain(name, samples.p50_us())));
}

/// The time without a primary.
struct Failover {
    ns: u64,
    /// The killed primary led the control log too.
    led: bool,
}

impl Timed for Failover {
    fn ns(&self) -> u64 {
        self.ns
    }
}

fn failovers(criterion: &mut Criterion, table: &mut Table) {
    // Each has its own cluster, whose start and end take most of the time.
    let mut group = Group::new(criterion, "failover", 10, Duration::from_secs(20));
    let all = group.measure("first write", |count| (0..count).map(|_| failover()).collect());
    drop(group);
    let goal_us = 2.0 * NODE_TIMEOUT.as_micros() as f64;
    let all_ns: Samples = all.iter().map(Timed::ns).collect();
    table.at_most("killed primary: first write", &all_ns, "2 node timeouts of 0.5 s", goal_us);
    // Who leads the log is not up to us: there may be none of one kind.
    for (name, led) in [("that only leads its shard", false), ("that leads the control log", true)] {
        let samples: Samples = all.iter().filter(|one| one.led == led).map(Timed::ns).collect();
        if !samples.is_empty() {
            table.figure(&format!("of these: {name}"), &samples);
        }
    }
}

/// Kills the primary of a shard, and writes to it as soon as anybody serves it.
fn failover() -> Failover {
    let cluster = trio(NODE_TIMEOUT);
    let led = cluster.leader(NodeId(2)) == Some(NodeId(1));
    let began_ns = now_ns();
    cluster.kill(NodeId(1));
    let served_ns = cluster.run(|machines| async move {
        let heirs = machines[1..].iter().map(|machine| Box::pin(first_write(&machine.node)));
        futures_util::future::select_all(heirs).await.0
    });
    Failover { ns: served_ns - began_ns, led }
}

/// When the first write was acknowledged after this node came to lead the shard.
async fn first_write(node: &Node) -> u64 {
    let key = keys_in(slots_of_shard(0, 1), 1).remove(0);
    loop {
        let mine = node.id();
        node.map_where(|map| map.shards.values().any(|shard| Some(shard.primary.node) == mine)).await;
        match node.keyspace(0).set(&key, b"value") {
            Ok(dependency) => match node.acknowledged(&[dependency]).await {
                Ok(()) => return now_ns(),
                Err(error) => panic!("the new primary does not acknowledge: {error}"),
            },
            Err(refusal) if refusal.is_retryable() => node.passable(&refusal).await,
            Err(refusal) => panic!("the new primary refuses: {refusal}"),
        }
    }
}

/// Applying one entry; each iteration begins with the same map, and its copy is not part of it.
fn applies(criterion: &mut Criterion, table: &mut Table) {
    let before = BigMap::new();
    let start = before.start_job(1, 2);
    let mut running = before.clone();
    let entry = running.entry(start.clone());
    let Effect::JobStarted { job, .. } = running.apply(&entry) else { panic!("it starts a job") };
    let vote = running.vote(&[job]);
    let entries: [(&str, &BigMap, EntryBody); 4] = [
        ("CommitJobs", &running, vote),
        ("Failover", &before, before.failover(3)),
        ("SetInSync", &before, before.set_in_sync(3)),
        ("StartJob", &before, start),
    ];
    let mut group = Group::new(criterion, &format!("map of {NODES} nodes"), 50, Duration::from_secs(2));
    for (kind, map, body) in entries {
        let all_ns = group.measure(&format!("{kind} applied"), |count| {
            let applied = |_| {
                let mut map = map.clone();
                let entry = map.entry(body.clone());
                timed(|| map.apply(&entry))
            };
            (0..count).map(applied).collect()
        });
        let samples = all_ns.into_iter().collect();
        table.at_most(&format!("{kind} applied, {NODES} nodes"), &samples, "1 ms", 1_000.0);
    }
    let map = &running.map;
    let copies = group.measure("copied", |count| (0..count).map(|_| timed(|| map.clone())).collect());
    table.figure(&format!("map copied, {NODES} nodes"), &copies.into_iter().collect());
    let encode = || encode_map(map).expect("the map is within its format");
    let snapshots = group.measure("snapshot", |count| (0..count).map(|_| timed(encode)).collect());
    if !snapshots.is_empty() {
        table.bytes(&format!("snapshot, {NODES} nodes"), encode().len(), SNAPSHOT_BYTES_MAX);
    }
    table.figure(&format!("snapshot encoded, {NODES} nodes"), &snapshots.into_iter().collect());
    before.map.validate().expect("the map is sound");
}

/// How long `work` takes, in nanoseconds, without the end of what it hands back.
fn timed<T>(work: impl FnOnce() -> T) -> u64 {
    let began = Instant::now();
    let result = black_box(work());
    let ns = began.elapsed().as_nanos() as u64;
    drop(result);
    ns
}
