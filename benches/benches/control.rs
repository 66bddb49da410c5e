//! The control log: what deciding one entry takes, how long a shard is without a primary after a kill, and what applying an
//! entry costs on a large map.
//!
//! Goals: an entry on three voters at most two raw syncs and two round trips; a failover at most twice the node timeout; one
//! entry applied in at most a millisecond on a map of 1,000 nodes, whose snapshot has at most 4 MB.

use std::hint::black_box;
use std::time::{Duration, Instant};

use lockgate_benches::big_map::{BigMap, NODES};
use lockgate_benches::cluster::{Cluster, Shape, keys_in, one_core, slots_of_shard};
use lockgate_benches::raw_sync::RawSync;
use lockgate_benches::round_trip::round_trips;
use lockgate_benches::samples::Samples;
use lockgate_benches::svg::{Bar, bars};
use lockgate_benches::table::Table;
use lockgate_benches::{output, size};
use lockgate_migrate::control::{Effect, EntryBody, JobId, NodeId, encode_map};
use lockgate_migrate::node::ProposeError;
use lockgate_migrate::{Node, Times};
use lockgate_runtime::now_ns;

const NODE_TIMEOUT: Duration = Duration::from_millis(500);
/// Entries, syncs and round trips that are measured in turns.
const PER_TURN: usize = 10;
const SNAPSHOT_BYTES_MAX: usize = 4 << 20;

fn main() {
    lockgate_benches::log_to_stderr();
    let mut table = Table::default();
    let mut picture = Vec::new();
    commits(size(40, 1), &mut table, &mut picture);
    failovers(size(8, 1), &mut table);
    applies(size(200, 3), &mut table);
    output::publish("control", &table.text(), &bars("deciding one entry, medians", &picture));
}

/// One shard of three nodes, all of which vote.
fn trio(node_timeout: Duration) -> Cluster {
    let times = Times::new(node_timeout, Times::DRIFT_PPM).expect("the times go together");
    Cluster::start(Shape { shards: 1, replicas: 2, voters: 3, times })
}

/// From proposing to its outcome, on one node's own core. The entry aborts a job that does not exist: it is decided and
/// applied like any other, and is refused.
async fn decided(node: &Node, count: usize) -> Samples {
    let mut samples = Samples::default();
    for _ in 0..count {
        let began_ns = now_ns();
        let outcome = node.cancel(JobId(u64::MAX)).await;
        samples.push(now_ns() - began_ns);
        assert!(matches!(outcome, Err(ProposeError::Refused(_))), "{outcome:?}");
    }
    samples
}

fn commits(turns: usize, table: &mut Table, picture: &mut Vec<Bar>) {
    let cluster = trio(Times::NODE_TIMEOUT);
    let other = one_core("peer");
    let mut raw = RawSync::new(cluster.folder());
    let (mut at_leader, mut elsewhere, mut trips) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..turns {
        // It may change, however rarely.
        let leader = cluster.leader(NodeId(1)).expect("somebody leads");
        for machine in &*cluster.machines {
            let node = machine.node.clone();
            let leads = node.id() == Some(leader);
            let measured = machine.runtime.block_on(0, move || async move { decided(&node, PER_TURN).await });
            if leads { at_leader.append(measured) } else { elsewhere.append(measured) }
        }
        raw.measure(PER_TURN);
        let peer = other.clone();
        trips.append(cluster.run(move |_| async move { round_trips(&peer, PER_TURN).await }));
    }
    other.shutdown();
    let (sync_us, trip_us) = (raw.samples.p50_us(), trips.p50_us());
    table.figure("raw sync: 4 KiB, fdatasync", &raw.samples);
    table.figure("loopback round trip", &trips);
    let goal_us = 2.0 * (sync_us + trip_us);
    table.at_most("entry decided, at the leader", &at_leader, "2 raw syncs, 2 round trips", goal_us);
    table.figure("entry decided, elsewhere", &elsewhere);
    picture.push(Bar::plain("at the leader", at_leader.p50_us()));
    picture.push(Bar::plain("elsewhere", elsewhere.p50_us()));
    let parts = vec![("2 raw syncs".to_owned(), 2.0 * sync_us), ("2 round trips".to_owned(), 2.0 * trip_us)];
    picture.push(Bar { name: "goal".into(), parts });
}

/// Kills the primary of a shard, and writes to it as soon as anybody serves it.
fn failovers(count: usize, table: &mut Table) {
    let (mut followed, mut led) = (Samples::default(), Samples::default());
    for _ in 0..count {
        let cluster = trio(NODE_TIMEOUT);
        let leads_log = cluster.leader(NodeId(2)) == Some(NodeId(1));
        let began_ns = now_ns();
        cluster.kill(NodeId(1));
        let served_ns = cluster.run(|machines| async move {
            let heirs = machines[1..].iter().map(|machine| Box::pin(first_write(&machine.node)));
            futures_util::future::select_all(heirs).await.0
        });
        let samples = if leads_log { &mut led } else { &mut followed };
        samples.push(served_ns - began_ns);
    }
    let goal_us = 2.0 * NODE_TIMEOUT.as_micros() as f64;
    for (name, samples) in [("a primary", followed), ("a primary that leads the control log", led)] {
        if samples.count() > 0 {
            let name = format!("killed {name}: first write");
            table.at_most(&name, &samples, "2 node timeouts of 0.5 s", goal_us);
        }
    }
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

/// Applying one entry; each sample begins with the same map, and its copy is not part of it.
fn applies(count: usize, table: &mut Table) {
    let before = BigMap::new();
    let start = before.start_job(1, 2);
    let mut started = before.clone();
    let entry = started.entry(start.clone());
    let Effect::JobStarted { job, .. } = started.apply(&entry) else { panic!("it starts a job") };
    let vote = started.vote(&[job]);
    let entries: [(&str, &BigMap, EntryBody); 4] = [
        ("CommitJobs", &started, vote),
        ("Failover", &before, before.failover(3)),
        ("SetInSync", &before, before.set_in_sync(3)),
        ("StartJob", &before, start),
    ];
    for (kind, map, body) in entries {
        let mut samples = Samples::default();
        for _ in 0..count {
            let mut map = map.clone();
            let entry = map.entry(body.clone());
            let began = Instant::now();
            black_box(map.apply(&entry));
            samples.push(began.elapsed().as_nanos() as u64);
        }
        table.at_most(&format!("{kind} applied, {NODES} nodes"), &samples, "1 ms", 1_000.0);
    }
    let mut copies = Samples::default();
    for _ in 0..count {
        let began = Instant::now();
        let copy = black_box(started.map.clone());
        copies.push(began.elapsed().as_nanos() as u64);
        drop(copy);
    }
    table.figure(&format!("map copied, {NODES} nodes"), &copies);
    let bytes = encode_map(&started.map).expect("the map is within its format").len();
    table.bytes(&format!("snapshot, {NODES} nodes"), bytes, SNAPSHOT_BYTES_MAX);
    before.map.validate().expect("the map is sound");
}
