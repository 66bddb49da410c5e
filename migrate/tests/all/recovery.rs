//! A new generation of the control log, step by step, with an administrator that is interrupted on the way.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::{Machine, form, get, keys_in, set, start};
use futures_util::future::join_all;
use lockgate_migrate::control::recovery::recover;
use lockgate_migrate::control::{Claim, SlotRange};
use lockgate_migrate::node::{AdminReply, AdminRequest, admin};
use lockgate_runtime::sim::{Control, Sim};
use lockgate_runtime::{Runtime, sleep};

const RECOVERY: [u8; 16] = [5; 16];

async fn ask(machine: &Machine, request: AdminRequest) -> AdminReply {
    let limit = Duration::from_secs(10);
    admin(machine.link, &request, limit).await.expect("the node answers")
}

async fn leave(machine: &Machine) -> Claim {
    match ask(machine, AdminRequest::Leave).await {
        AdminReply::Claim(claim) => *claim,
        other => panic!("{other:?}"),
    }
}

fn is_refused(reply: &AdminReply, why: &str) -> bool {
    matches!(reply, AdminReply::Refused(words) if words.contains(why))
}

/// Two shards of two nodes, all of which vote: the second shard is lost. With `kill` the node that enters last is
/// killed and started again before it does.
async fn a_generation_ends_and_the_next_begins(runtimes: Vec<Runtime>, kill: Option<Control>) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let started = runtimes.into_iter().map(|runtime| start(runtime, PathBuf::from("/data"), any));
    let mut machines: Vec<Machine> = join_all(started).await;
    form(&machines).await;
    let keys = keys_in(SlotRange::new(0, 99), 20);
    for key in &keys {
        set(&machines, key, b"value").await;
    }
    for lost in machines.drain(2..) {
        lost.node.stop();
        lost.node.stopped().await;
    }
    let [first, second] = &machines[..] else { panic!("two are left") };

    let early = ask(first, AdminRequest::Enter { recovery: RECOVERY }).await;
    assert!(is_refused(&early, "not prepared"), "{early:?}");
    let claims = [leave(first).await, leave(second).await];
    assert!(!first.node.holds_lease() && first.node.lease_until_ns() == 0, "it serves nothing");
    assert_eq!(leave(first).await, claims[0], "nothing of it changes any more");
    let made = recover(&claims, RECOVERY).expect("two nodes answer");
    let snapshot = Box::new(made.snapshot.clone());
    for machine in [first, second] {
        let prepared = ask(machine, AdminRequest::Prepare(snapshot.clone())).await;
        assert!(matches!(prepared, AdminReply::Done), "{prepared:?}");
    }
    let other = ask(first, AdminRequest::Enter { recovery: [6; 16] }).await;
    assert!(is_refused(&other, "not prepared"), "{other:?}");
    for _ in 0..2 {
        let entered = ask(first, AdminRequest::Enter { recovery: RECOVERY }).await;
        assert!(matches!(entered, AdminReply::Done), "{entered:?}");
    }
    // The administrator is gone. Alone the first one is no majority; the second waits.
    let status = |machine: &Machine| machine.node.status().expect("it has a map");
    assert_eq!((status(first).generation, status(first).has_left), (1, false));
    assert_eq!((status(second).generation, status(second).has_left), (0, true));
    let again = ask(first, AdminRequest::Prepare(snapshot)).await;
    assert!(is_refused(&again, "generation 1"), "{again:?}");
    if let Some(control) = kill {
        control.kill("node-2");
        let link = machines.pop().expect("two are left").link;
        machines.push(start(control.start("node-2", 1), PathBuf::from("/data"), link).await);
        // It follows the first one, which tells it that its generation is over. It has a next one.
        sleep(Duration::from_millis(500)).await;
        assert_eq!((status(&machines[1]).has_left, machines[1].node.failure()), (true, None));
    }
    // Another one lets it in.
    let entered = ask(&machines[1], AdminRequest::Enter { recovery: RECOVERY }).await;
    assert!(matches!(entered, AdminReply::Done), "{entered:?}");
    for key in &keys {
        assert_eq!(get(&machines, key).await.as_deref(), Some(&b"value"[..]));
        set(&machines, key, b"newer").await;
        assert_eq!(get(&machines, key).await.as_deref(), Some(&b"newer"[..]));
    }
    let applied = machines[0].node.map().expect("it has a map").applied;
    machines[1].node.map_where(|map| map.applied >= applied && map.generation == 1).await;
}

#[test]
fn an_interrupted_recovery_is_finished_by_another_one() {
    crate::common::log_to_stderr();
    for seed in 1..=4 {
        let sim = Sim::new(seed);
        let runtimes: Vec<Runtime> = (1..=4).map(|n| sim.node(&format!("node-{n}"), 1)).collect();
        let kill = (seed % 2 == 0).then(|| sim.control());
        sim.run_until(a_generation_ends_and_the_next_begins(runtimes, kill));
    }
}
