//! A shard's lead passes on: as planned, when its primary is told to stop, and when it dies. Under writes nothing that was
//! acknowledged is lost, and who led before follows.

use std::time::{Duration, Instant};

use crate::common::writers::under_writes;
use crate::common::{Cluster, NodeProcess, key_of, until};
use lockgate::client::Reply;
use lockgate_migrate::control::NodeId;
use rustix::process::Signal;

/// How long a primary may be silent.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);
/// What a busy machine may take beside what is promised, which is twice the node timeout.
const SLACK: Duration = Duration::from_secs(16);

/// One shard of three nodes, all of which vote. The first leads.
fn trio() -> Cluster {
    Cluster::start(1, 2, &["--node-timeout-ms", &NODE_TIMEOUT.as_millis().to_string()])
}

#[test]
fn planned_failovers_under_writes_lose_nothing_and_the_old_primary_follows() {
    under_writes(&mut trio(), |cluster, written| {
        for (round, to) in [2, 3, 1].into_iter().enumerate() {
            // Any node may be asked.
            let done =
                cluster.operate(round, &["failover", "1", "--to", &to.to_string()]).expect("it is done");
            assert!(done.starts_with(&format!("node {to} leads shard 1 now")), "{done}");
            let shard = cluster.nodes[0].wait_until_whole(Some(to), 3);
            assert_eq!(shard.epoch, 2 + round as u64);
            written.wait_for_more();
        }
    });
}

#[test]
fn what_cannot_be_failed_over_is_refused_with_the_reason() {
    let mut cluster = Cluster::start(2, 1, &[]);
    let failover = |cluster: &Cluster, shard: &str, to: &str| {
        cluster.operate(0, &["failover", shard, "--to", to]).expect_err("it is refused")
    };
    for (shard, to, why) in [
        ("7", "2", "there is no shard 7 in this cluster; it has 1, 2"),
        ("1", "9", "there is no node 9 in this cluster; it has 1, 2, 3, 4"),
        ("1", "3", "node 3 is not a replica of shard 1, which has 2"),
        ("1", "1", "node 1 leads shard 1 already"),
    ] {
        assert!(failover(&cluster, shard, to).contains(why), "{shard} to {to}");
    }
    cluster.nodes[1].kill();
    cluster.nodes[0].wait_for("the dead replica leaves the in-sync set", |status| {
        status.shards[0].replicas().all(|member| !member.in_sync)
    });
    assert!(failover(&cluster, "1", "2").contains("node 2 is not in sync with shard 1"));
    // Its replica, the only one that could lead, does not take part: nobody takes its place.
    cluster.nodes[3].pause();
    cluster.nodes[2].kill();
    let gone = failover(&cluster, "2", "4");
    assert!(gone.contains("the primary of shard 2, node 3, cannot be asked"), "{gone}");
}

#[test]
fn a_primary_that_is_told_to_stop_hands_over_first() {
    under_writes(&mut trio(), |cluster, written| {
        for _ in 0..2 {
            let status = cluster.nodes[1].wait_for("the shard is led", |status| !status.shards[0].is_vacant);
            let (old, epoch) = (status.shards[0].primary, status.shards[0].epoch);
            let at = old.0 as usize - 1;
            assert!(cluster.nodes[at].terminate().success());
            // Not because it fell silent: it saw the end of its reign.
            let output = cluster.nodes[at].output();
            assert!(output.contains("hand-over ended") && output.contains("result=Ok(())"));
            let other = &cluster.nodes[(at + 1) % 3];
            other.wait_for("another node leads, under the next epoch", |status| {
                let shard = &status.shards[0];
                shard.primary != old
                    && shard.epoch == epoch + 1
                    && status.leader.is_some_and(|leader| leader != old)
            });
            written.wait_for_more();
            cluster.nodes[at].restart();
            cluster.nodes[at].wait_until_whole(None, 3);
        }
    });
}

#[test]
fn a_second_signal_stops_a_node_that_cannot_hand_over() {
    let mut cluster = Cluster::start(1, 1, &["--node-timeout-ms", "10000"]);
    cluster.nodes[1].pause();
    cluster.nodes[0].signal(Signal::TERM);
    until("the node tries to hand over", || cluster.nodes[0].output().contains("handing over").then_some(()));
    assert!(cluster.nodes[0].terminate().success());
    assert!(!cluster.nodes[0].output().contains("hand-over ended"), "it waited for the hand-over");
}

#[test]
fn a_killed_primary_is_replaced_in_time_and_comes_back_as_a_replica() {
    under_writes(&mut trio(), |cluster, written| {
        cluster.nodes[0].kill();
        let died = Instant::now();
        let key = key_of(100, 0);
        until("another node serves its slots", || {
            cluster.nodes[1..].iter().any(|node| node.ask(&["GET", &key]).is_ok()).then_some(())
        });
        let took = died.elapsed();
        eprintln!("served again after {took:?}");
        assert!(took < 2 * NODE_TIMEOUT + SLACK, "{took:?}");
        written.wait_for_more();
        cluster.nodes[0].restart();
        let shard = cluster.nodes[0].wait_until_whole(None, 3);
        assert_ne!(shard.primary, NodeId(1));
        let refused = cluster.nodes[0].ask(&["GET", &key]).expect_err("a replica redirects");
        assert!(refused.starts_with("MOVED 100 "), "{refused}");
    });
}

#[test]
fn a_whole_cluster_is_restarted_node_by_node_under_writes() {
    under_writes(&mut Cluster::start(2, 1, &[]), |cluster, written| {
        for at in 0..cluster.nodes.len() {
            assert!(cluster.nodes[at].terminate().success());
            written.wait_for_more();
            cluster.nodes[at].restart();
            for seen_by in [at, (at + 1) % cluster.nodes.len()] {
                cluster.nodes[seen_by].wait_for("both shards are whole again", |status| {
                    status
                        .shards
                        .iter()
                        .all(|shard| !shard.is_vacant && shard.members.iter().all(|member| member.in_sync))
                        && status.nodes[at].incarnation.boot == 2
                });
            }
        }
    });
}

#[test]
fn a_write_waits_for_no_replica_where_that_was_asked_for() {
    let cluster = Cluster::start(1, 1, &["--ack", "primary", "--node-timeout-ms", "10000"]);
    cluster.nodes[1].pause();
    let answer = cluster.nodes[0].ask(&["SET", "key", "value"]);
    assert_eq!(answer, Ok(Reply::Simple("OK".into())));
    let status = cluster.nodes[0].survey().expect("it answers").seen;
    assert!(status.shards[0].replicas().all(|member| member.in_sync), "nobody counts it as lost yet");
}

#[test]
fn too_few_members_in_sync_take_no_writes() {
    let mut cluster = Cluster::start(1, 1, &["--min-in-sync", "2"]);
    assert!(cluster.nodes[0].ask(&["SET", "key", "one"]).is_ok());
    cluster.nodes[1].kill();
    cluster.nodes[0].wait_for("the dead replica leaves the in-sync set", |status| {
        status.shards[0].replicas().all(|member| !member.in_sync)
    });
    let refused = cluster.nodes[0].ask(&["SET", "key", "two"]).expect_err("it is refused");
    assert!(refused.starts_with("NOREPLICAS"), "{refused}");
    assert_eq!(cluster.nodes[0].ask(&["GET", "key"]), Ok(Reply::Bulk(b"one".to_vec())));
    cluster.nodes[1].restart();
    cluster.nodes[0].wait_until_whole(Some(1), 2);
    assert!(cluster.nodes[0].ask(&["SET", "key", "two"]).is_ok());
}

#[test]
fn times_that_do_not_go_together_are_refused_at_the_start() {
    let folder = crate::common::folder();
    for (options, why) in [
        (["--node-timeout-ms", "50"], "the node timeout must be at least 100 ms"),
        (["--drift-ppm", "400000"], "allow less drift"),
    ] {
        let refused =
            NodeProcess::try_start(&folder.path().join("node"), &options).err().expect("it is refused");
        assert_eq!(refused.status.code(), Some(2));
        assert!(refused.errors.contains(why), "{}", refused.errors);
    }
}
