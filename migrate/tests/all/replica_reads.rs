//! Reads at replicas while slots move and shards change hands: never older than is stated.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::{Machine, ended, form, keys_in, start};
use futures_util::future::join_all;
use lockgate_engine::Slot;
use lockgate_migrate::control::{JobState, NodeId, ShardId, SlotRange};
use lockgate_runtime::{Runtime, now_ns, sim::Sim, sleep};

/// What one writer of one key was told, and when: values go up.
#[derive(Default)]
struct Told(RefCell<Vec<(u64, u64)>>);

impl Told {
    /// The last value that was acknowledged before that time.
    fn by(&self, at_ns: u64) -> u64 {
        self.0.borrow().iter().rev().find(|(told_ns, _)| *told_ns < at_ns).map_or(0, |(_, value)| *value)
    }
}

/// Sets `key` wherever it is served; whether the write was acknowledged. A primary that hands over may not know.
async fn was_told(machines: &[Machine], key: &[u8], value: &[u8]) -> bool {
    let owner = machines.iter().find_map(|machine| machine.node.owner(Slot::of_key(key)));
    let Some((owner, _)) = owner else { return false };
    let node = &machines[owner.0 as usize - 1].node;
    match node.keyspace(0).set(key, value) {
        Ok(dependency) => node.acknowledged(&[dependency]).await.is_ok(),
        Err(_) => {
            sleep(Duration::from_millis(1)).await;
            false
        }
    }
}

/// Reads at one node for as long as it goes on, and checks what it is told. Returns how often it was.
async fn read_on(machine: &Machine, key: &[u8], told: &Told, stop: &Cell<bool>) -> u64 {
    let (mut answers, mut last) = (0, 0);
    while !stop.get() {
        // This node leads its shard for a while: then it is not read as a replica.
        if let Ok(read) = machine.node.replica_keyspace(0).get(key).await {
            let value =
                read.value.map_or(0, |value| u64::from_le_bytes(value.as_bytes().try_into().expect("8")));
            let as_of_ns = now_ns() - read.age.as_nanos() as u64;
            let acknowledged = told.by(as_of_ns);
            assert!(
                value >= acknowledged,
                "{value} as of {as_of_ns}, but {acknowledged} was acknowledged before"
            );
            assert!(value >= last, "{value} was read after {last} at one replica");
            (answers, last) = (answers + 1, value);
        }
        sleep(Duration::from_millis(1)).await;
    }
    answers
}

/// The key's slot moves to the other shard and back, and its shard is led by one member after the other.
async fn replicas_are_read(runtimes: Vec<Runtime>) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let started = runtimes.into_iter().map(|runtime| start(runtime, PathBuf::from("/data"), any));
    let machines: Vec<Machine> = join_all(started).await;
    form(&machines).await;
    let moving = SlotRange::new(100, 119);
    let key = keys_in(moving, 1).remove(0);
    let (told, stop) = (Told::default(), Cell::new(false));
    let write = async {
        for value in 1u64.. {
            if stop.get() {
                return;
            }
            while !was_told(&machines, &key, &value.to_le_bytes()).await {}
            told.0.borrow_mut().push((now_ns(), value));
        }
    };
    let change = async {
        for round in 0..2 {
            for (from, to) in [(0, 2), (2, 0)] {
                let source = &machines[from].node;
                let job = source.migrate(ShardId(to as u32 / 2 + 1), vec![moving]).await.expect("it starts");
                let state = ended(source, job).await;
                assert!(matches!(state, JobState::Activated { .. }), "round {round}: {state:?}");
                sleep(Duration::from_millis(300)).await;
            }
        }
        for (at, heir) in [(0, 2), (1, 1)] {
            let in_sync =
                |map: &lockgate_migrate::control::ClusterMap| map.shards[&ShardId(1)].in_sync.len() == 2;
            machines[at].node.map_where(in_sync).await;
            sleep(Duration::from_millis(500)).await;
            machines[at].node.hand_over(Some(NodeId(heir))).await.expect("it is handed over");
            sleep(Duration::from_millis(500)).await;
        }
        stop.set(true);
    };
    let read = |at: usize| read_on(&machines[at], &key, &told, &stop);
    let ((), (), first, second, other) = futures_util::join!(write, change, read(0), read(1), read(3));
    assert!(first > 0 && second > 0 && other > 0, "{first}, {second} and {other} answers of replicas");
}

#[test]
fn replicas_answer_no_older_than_they_say() {
    crate::common::log_to_stderr();
    for seed in 1..=5 {
        let sim = Sim::new(seed);
        let runtimes: Vec<Runtime> = (1..=4).map(|n| sim.node(&format!("node-{n}"), 1)).collect();
        sim.run_until(replicas_are_read(runtimes));
    }
}
