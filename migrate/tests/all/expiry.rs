//! Keys with deadlines whose slots move between nodes that do not agree on the time.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::{Machine, ended, form, get, keys_in, set, start};
use futures_util::future::join_all;
use lockgate_engine::{Expiry, SetOptions, Slot};
use lockgate_migrate::control::{JobState, ShardId, SlotRange};
use lockgate_runtime::sim::{Control, Sim};
use lockgate_runtime::{Runtime, sleep};

const HOUR_MS: u64 = 3_600_000;
const MOVING: SlotRange = SlotRange { start: 0, end: 49 };

async fn set_for(machine: &Machine, key: &[u8], time_ms: u64) {
    let options = SetOptions { expiry: Expiry::After(time_ms), ..SetOptions::default() };
    let (outcome, rests_on) = machine.node.keyspace(0).set_with(key, b"value", &options).expect("set");
    assert!(outcome.applied);
    machine.node.acknowledged(&[rests_on]).await.expect("acknowledged");
}

/// How many keys a machine has, as owner, follower or otherwise.
fn keys_of(machine: &Machine) -> u64 {
    machine.node.engine().stats().keys
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waited = async {
        while !is_so() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    lockgate_runtime::timeout(Duration::from_secs(60), waited).await.unwrap_or_else(|_| panic!("{what}"));
}

/// The clock of the first shard is an hour ahead of the second's.
async fn a_slots_clock_moves_with_it(runtimes: Vec<Runtime>, control: Control) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let clocks = [runtimes[0].clone(), runtimes[2].clone()];
    let machines: Vec<Machine> =
        join_all(runtimes.into_iter().map(|runtime| start(runtime, PathBuf::from("/data"), any))).await;
    control.jump_wall_clock("node-1", HOUR_MS as i64);
    form(&machines).await;
    let keys = keys_in(MOVING, 40);
    let slot = Slot::of_key(&keys[0]);
    until("the source serves", || machines[0].node.keyspace(0).get(&keys[0]).is_ok()).await;
    set(&machines, &keys[39], b"stays").await;
    for key in &keys[..39] {
        set_for(&machines[0], key, 10_000).await;
    }
    let (seen, _) = machines[0].node.keyspace(0).deadline(&keys[0]).expect("it is served");
    assert!(seen.clock_ms > clocks[1].unix_ms() + HOUR_MS / 2);
    let job = machines[0].node.migrate(ShardId(2), vec![MOVING]).await.expect("the job starts");
    let state = ended(&machines[0].node, job).await;
    assert!(matches!(state, JobState::Activated { .. }), "{state:?}");
    until("the target serves", || machines[2].node.keyspace(0).get(&keys[0]).is_ok()).await;
    // By the target's own clock the keys would have an hour left.
    let (moved, _) = machines[2].node.keyspace(0).deadline(&keys[0]).expect("it is served");
    assert_eq!(moved.at_ms, seen.at_ms);
    assert!(moved.clock_ms >= seen.clock_ms, "the slot's clock went back by moving");
    // Its own clock catches up: the keys end, at its replica too, and that is what clients are told.
    control.jump_wall_clock("node-3", HOUR_MS as i64 + 10_000);
    assert!(clocks[1].unix_ms() >= seen.at_ms.expect("it has one"));
    let version = machines[2].node.engine().slot_status(slot).version;
    assert_eq!(get(&machines, &keys[0]).await, None);
    assert!(
        machines[3].node.engine().slot_status(slot).version > version,
        "the delete came before the answer"
    );
    until("the rest ends without being asked for", || keys_of(&machines[2]) + keys_of(&machines[3]) == 2)
        .await;
    assert_eq!(get(&machines, &keys[39]).await.as_deref(), Some(&b"stays"[..]));
}

#[test]
fn a_slots_clock_moves_with_it_between_clocks_that_differ() {
    crate::common::log_to_stderr();
    for seed in 1..=3 {
        let sim = Sim::new(seed);
        let runtimes: Vec<Runtime> = (1..=4).map(|n| sim.node(&format!("node-{n}"), 1)).collect();
        sim.run_until(a_slots_clock_moves_with_it(runtimes, sim.control()));
    }
}
