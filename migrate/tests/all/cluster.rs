//! Slots move between shards of real nodes while they are written: the same scenario in simulated time and on io_uring.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;

use crate::common::{Machine, ended, form, get, keys_in, server_of, set, start};
use futures_util::future::{join_all, join3};
use lockgate_engine::Slot;
use lockgate_migrate::NodeRole;
use lockgate_migrate::control::{Epoch, JobState, NodeId, ShardId, SlotRange};
use lockgate_runtime::{Runtime, sim::Sim};

const MOVES: usize = 4;

/// Two shards of two nodes: slots go forth and back while a client overwrites keys in them; then every key has its last
/// acknowledged value, and every slot exactly one server.
async fn slots_move_while_written(runtimes: Vec<Runtime>, dirs: Vec<PathBuf>) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let started = runtimes.into_iter().zip(dirs).map(|(runtime, dir)| start(runtime, dir, any));
    let machines: Rc<Vec<Machine>> = Rc::new(join_all(started).await);
    form(&machines).await;
    let moving = SlotRange::new(100, 299);
    let keys = Rc::new(keys_in(moving, 60));

    let writer = {
        let (machines, keys) = (Rc::clone(&machines), Rc::clone(&keys));
        async move {
            let mut round = 0u64;
            for key in &*keys {
                set(&machines, key, &round.to_le_bytes()).await;
            }
            move |stop: Rc<std::cell::Cell<bool>>| async move {
                while !stop.get() {
                    round += 1;
                    for key in &*keys {
                        set(&machines, key, &round.to_le_bytes()).await;
                    }
                }
                round
            }
        }
        .await
    };
    let stop = Rc::new(std::cell::Cell::new(false));
    let mover = {
        let (machines, stop) = (Rc::clone(&machines), Rc::clone(&stop));
        async move {
            for turn in 0..MOVES {
                let (from, to) = if turn % 2 == 0 { (0, 2) } else { (2, 0) };
                let source = &machines[from].node;
                let job =
                    source.migrate(ShardId(to as u32 / 2 + 1), vec![moving]).await.expect("the job starts");
                let state = ended(source, job).await;
                assert!(matches!(state, JobState::Activated { .. }), "job {turn}: {state:?}");
            }
            stop.set(true);
        }
    };
    let (round, ()) = futures_util::join!(writer(stop), mover);
    for key in &*keys {
        assert_eq!(get(&machines, key).await.as_deref(), Some(&round.to_le_bytes()[..]), "{key:?}");
    }
    for slot in Slot::all() {
        assert_eq!(server_of(&machines, slot).len(), 1, "servers of slot {slot}");
    }
    assert!(round > 0, "the writer wrote while slots moved");
}

/// A server that is built on nodes learns what each of them is, and when that changes.
async fn roles_pass_on(runtimes: Vec<Runtime>) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let dirs = std::iter::repeat(PathBuf::from("/data"));
    let started = runtimes.into_iter().zip(dirs).map(|(runtime, dir)| start(runtime, dir, any));
    let machines: Vec<Machine> = join_all(started).await;
    assert_eq!(machines[0].node.role(), NodeRole::Outside);
    form(&machines).await;
    let (shard, first, second) = (ShardId(1), &machines[0].node, &machines[1].node);
    let led = NodeRole::Primary { shard, epoch: Epoch(1) };
    first.map_where(|_| true).await;
    assert_eq!(first.role(), led);
    let following = NodeRole::Replica { shard, primary: NodeId(1), in_sync: true };
    while second.role() != following {
        second.role_after(second.role()).await;
    }
    let (handed, deposed, promoted) =
        join3(first.hand_over(Some(NodeId(2))), first.role_after(led), second.role_after(following)).await;
    handed.expect("it is handed over");
    assert!(matches!(deposed, NodeRole::Replica { primary: NodeId(2), .. }), "{deposed:?}");
    assert_eq!(promoted, NodeRole::Primary { shard, epoch: Epoch(2) });
}

#[test]
fn who_links_nodes_in_is_told_of_their_roles() {
    let sim = Sim::new(1);
    sim.run_until(roles_pass_on((1..=4).map(|n| sim.node(&format!("node-{n}"), 1)).collect()));
}

#[test]
fn slots_move_in_simulated_time() {
    crate::common::log_to_stderr();
    for seed in 1..=3 {
        let sim = Sim::new(seed);
        let runtimes: Vec<Runtime> = (1..=4).map(|n| sim.node(&format!("node-{n}"), 1)).collect();
        let dirs = (0..4).map(|_| PathBuf::from("/data")).collect();
        sim.run_until(slots_move_while_written(runtimes, dirs));
    }
}

#[test]
fn slots_move_on_the_ring() {
    on_the_ring(1);
}

#[test]
fn slots_move_between_nodes_of_several_cores() {
    on_the_ring(3);
}

fn on_the_ring(cores: usize) {
    crate::common::log_to_stderr();
    let folder = tempfile::tempdir().expect("a folder");
    let runtimes: Vec<Runtime> = (0..4)
        .map(|_| Runtime::builder().cores(cores).pin(false).spin_us(0).build().expect("io_uring"))
        .collect();
    let dirs = (1..=4).map(|n| folder.path().join(n.to_string())).collect();
    let client = Runtime::builder().cores(1).pin(false).spin_us(0).build().expect("io_uring");
    client.block_on(0, move || slots_move_while_written(runtimes, dirs));
}
