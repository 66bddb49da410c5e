//! A majority of the voters is lost for good: a new generation begins with what is left, and the lost ones stay out.

use crate::common::{Cluster, key_of, lockgate, until};
use lockgate::client::Reply;
use lockgate_migrate::control::NodeId;

fn bulk(text: &str) -> Result<Reply, String> {
    Ok(Reply::Bulk(text.as_bytes().to_vec()))
}

/// Begins a new generation by way of one node.
fn recover(cluster: &Cluster, at: usize) -> Result<String, String> {
    cluster.operate(at, &["cluster", "recover", "--force-new-generation", "--yes"])
}

#[test]
fn the_last_voter_goes_on_with_what_was_acknowledged_and_the_others_are_locked_out() {
    let mut cluster = Cluster::start(1, 2, &[]);
    let keys: Vec<String> = (0..20).map(|slot| key_of(slot * 800, 0)).collect();
    for key in &keys {
        assert!(cluster.nodes[0].ask(&["SET", key, "value"]).is_ok());
    }
    let refused = recover(&cluster, 1).expect_err("nothing is lost");
    assert!(refused.contains("3 of 3 voters answer, which is a majority"), "{refused}");
    cluster.nodes[0].kill();
    cluster.nodes[2].kill();
    let told = lockgate(&["cluster", "status", &cluster.nodes[1].link.to_string()]).expect("it answers");
    assert!(told.contains("HAS LOST ITS MAJORITY: 1 of 3 voters take part, nodes 1, 3 do not"), "{told}");
    until("the node says so itself", || {
        cluster.nodes[1].output().contains("the control log has no leader").then_some(())
    });
    let refused = cluster.operate(1, &["cluster", "recover"]).expect_err("that takes force");
    assert!(refused.contains("nothing was done"), "{refused}");

    let done = recover(&cluster, 1).expect("it is done");
    assert!(done.contains("shard 1 fails over to one of its in-sync replicas: 2"), "{done}");
    assert!(done.contains("generation 1 has begun; nodes 2 vote"), "{done}");
    assert!(done.contains("node 1 is locked out") && done.contains("node 3 is locked out"), "{done}");
    for key in &keys {
        until("the key is served", || (cluster.nodes[1].ask(&["GET", key]) == bulk("value")).then_some(()));
    }
    assert_eq!(cluster.nodes[1].ask(&["SET", &keys[0], "newer"]), Ok(Reply::Simple("OK".into())));

    // Together they were a majority.
    for at in [0, 2] {
        cluster.nodes[at].restart();
    }
    for at in [0, 2] {
        let ended = until("the old voter steps down", || cluster.nodes[at].ended());
        assert!(!ended.success());
        let output = cluster.nodes[at].output();
        let why = "speaks for generation 0 of this cluster, which was given up";
        assert!(output.contains(why) && output.contains("replace-node"), "{output}");
    }
    assert_eq!(cluster.nodes[1].ask(&["GET", &keys[0]]), bulk("newer"));

    // The one that is left is started again, and finds its generation.
    assert!(cluster.nodes[1].terminate().success());
    cluster.nodes[1].restart();
    until("it leads again", || (cluster.nodes[1].ask(&["GET", &keys[0]]) == bulk("newer")).then_some(()));
    cluster.start_another(&[]);
    let new = cluster.nodes[3].link.to_string();
    let replaced = cluster.operate(1, &["cluster", "replace-node", "3", "--with", &new]);
    assert!(replaced.as_ref().is_ok_and(|done| done.contains("node 4 is in its place")), "{replaced:?}");
    cluster.nodes[1].wait_for("the new replica is in sync", |status| {
        status.shards[0].replicas().any(|member| member.node == NodeId(4) && member.in_sync)
    });
}

#[test]
fn slots_that_two_lost_nodes_may_both_have_served_wait_for_an_operator() {
    let mut cluster = Cluster::start(2, 1, &[]);
    let (disputed, other) = (key_of(100, 0), key_of(101, 0));
    for key in [&disputed, &other] {
        assert!(cluster.nodes[0].ask(&["SET", key, "value"]).is_ok());
    }
    // The target's replica does not take part, so that the job goes on.
    cluster.nodes[3].pause();
    cluster.start_job(0, 2, 100, 100);
    cluster.nodes[1].wait_for("the job is known to who is left", |status| !status.jobs.is_empty());
    cluster.nodes[0].kill();
    cluster.nodes[2].kill();
    cluster.nodes[3].resume();
    let done = recover(&cluster, 1).expect("it is done");
    assert!(done.contains("is disputed, nobody serves its slots"), "{done}");
    until("its shard is served", || (cluster.nodes[1].ask(&["GET", &other]) == bulk("value")).then_some(()));
    let refused = cluster.nodes[1].ask(&["GET", &disputed]).expect_err("nobody serves it");
    assert!(refused.starts_with("CLUSTERDOWN"), "{refused}");
    let why =
        cluster.operate(1, &["cluster", "assign", "--slots", "101", "--to", "1"]).expect_err("it is not");
    assert!(why.contains("no job over the slots 101 is disputed"), "{why}");
    let decided = cluster.operate(1, &["cluster", "assign", "--slots", "100", "--to", "1"]).expect("decided");
    assert!(decided.contains("shard 1 owns its 1 slots"), "{decided}");
    until("it is served", || (cluster.nodes[1].ask(&["GET", &disputed]) == bulk("value")).then_some(()));
}
