//! A cluster changes while it runs: nodes, replicas, voters and shards come and go, by the commands that people use.

use std::collections::BTreeMap;

use crate::common::writers::under_writes;
use crate::common::{Cluster, NodeProcess, key_of};
use futures_util::{StreamExt, stream};
use lockgate::client::Outcome;
use lockgate::operations;
use lockgate_migrate::control::{EntryBody, NodeId, ShardId};
use lockgate_migrate::node::NodeStatus;
use lockgate_runtime::Runtime;

/// Keys that must still be there in the end.
const KEYS: u16 = 200;

/// The number of the first of them; the writers' are lower.
const LOADED: u32 = 1_000;

/// Writes some keys of all slots. Returns what they hold.
fn load(cluster: &Cluster) -> BTreeMap<String, Vec<u8>> {
    let data: BTreeMap<String, Vec<u8>> = (0..KEYS)
        .map(|number| {
            (key_of(number * 81, LOADED + u32::from(number)), format!("value {number}").into_bytes())
        })
        .collect();
    let mut client = cluster.client();
    for (key, value) in &data {
        assert!(matches!(client.set(key.as_bytes(), value), Outcome::Acknowledged(())), "{key}");
    }
    data
}

fn check(cluster: &Cluster, data: &BTreeMap<String, Vec<u8>>) {
    let mut client = cluster.client();
    for (key, value) in data {
        let read = client.get(key.as_bytes());
        assert!(matches!(&read, Outcome::Acknowledged(Some(read)) if read == value), "{key}: {read:?}");
    }
}

fn voters(status: &NodeStatus) -> Vec<u32> {
    let voters = status.nodes.iter().filter(|known| known.voter);
    voters.map(|known| known.incarnation.node.0).collect()
}

/// Adds one more node, which must get this number.
fn add_node(cluster: &mut Cluster, number: u32) {
    cluster.start_another(&[]);
    let new = cluster.nodes.last().expect("it was started").link.to_string();
    // Twice: what was interrupted is finished by asking again.
    for _ in 0..2 {
        let added = cluster.operate(0, &["cluster", "add-node", &new]).expect("it joins");
        assert!(added.starts_with(&format!("node {number} has joined")), "{added}");
    }
}

#[test]
fn a_node_is_added_becomes_a_replica_and_leads() {
    let mut cluster = Cluster::start(1, 1, &[]);
    let data = load(&cluster);
    add_node(&mut cluster, 3);
    let identity = cluster.nodes[2].survey().expect("it knows the cluster").seen;
    assert_eq!((identity.node, identity.nodes.len()), (NodeId(3), 3));
    cluster.operate(1, &["cluster", "set-replicas", "1", "2", "3"]).expect("it follows");
    cluster.nodes[0].wait_until_whole(Some(1), 3);
    cluster.operate(1, &["cluster", "set-voters", "1", "2", "3"]).expect("it votes");
    // Who it is it knows from its own directory.
    assert!(cluster.nodes[2].terminate().success());
    cluster.nodes[2].restart();
    let whole = cluster.nodes[2].wait_until_whole(Some(1), 3);
    assert!(whole.members.iter().all(|member| member.voter));
    cluster.operate(2, &["failover", "1", "--to", "3"]).expect("it leads");
    cluster.nodes[2].wait_until_whole(Some(3), 3);
    check(&cluster, &data);
    // Both that were there first may go now.
    cluster.operate(2, &["cluster", "set-replicas", "1"]).expect("it is alone");
    cluster.operate(2, &["cluster", "set-voters", "3"]).expect("it votes alone");
    for node in ["1", "2"] {
        cluster.operate(2, &["cluster", "remove-node", node]).expect("it leaves");
    }
    cluster.nodes.drain(..2);
    let status = cluster.nodes[0].wait_for("it leads", |status| status.leader == Some(NodeId(3)));
    assert_eq!((status.nodes.len(), voters(&status)), (1, vec![3]));
    check(&cluster, &data);
}

#[test]
fn a_shard_is_added_gets_slots_gives_them_back_and_is_removed() {
    let mut cluster = Cluster::start(1, 0, &[]);
    let data = load(&cluster);
    add_node(&mut cluster, 2);
    add_node(&mut cluster, 3);
    let added = cluster.operate(1, &["cluster", "add-shard", "2", "3"]).expect("a shard");
    assert!(added.starts_with("shard 2 exists"), "{added}");
    cluster.nodes[1].wait_for("the new shard holds its lease, and its replica is in sync", |status| {
        status.lease_held && status.shards[1].members.iter().all(|member| member.in_sync)
    });
    cluster.migrate(0, 1, 0, 9_999);
    check(&cluster, &data);
    let refused = cluster.operate(0, &["cluster", "remove-shard", "2"]).expect_err("it owns slots");
    assert!(refused.contains("shard 2 owns 10000 slots: move them to another shard first"), "{refused}");
    cluster.migrate(1, 0, 0, 9_999);
    cluster.operate(0, &["cluster", "remove-shard", "2"]).expect("it is empty");
    check(&cluster, &data);
    let refused = cluster.operate(0, &["cluster", "remove-node", "1"]).expect_err("it has a role");
    assert!(refused.contains("node 1 serves shard 1"), "{refused}");
    for node in ["2", "3"] {
        cluster.operate(0, &["cluster", "remove-node", node]).expect("it leaves");
    }
    let status = cluster.nodes[0].survey().expect("it answers").seen;
    assert_eq!((status.shards.len(), status.nodes.len(), status.next_node), (1, 1, NodeId(4)));
    // Numbers are not used again, and a directory that was of a cluster is not taken.
    let old = cluster.nodes[1].link.to_string();
    let refused = cluster.operate(0, &["cluster", "add-node", &old]).expect_err("it was a member");
    assert!(refused.contains("start it with an empty data directory"), "{refused}");
    add_node(&mut cluster, 4);
    check(&cluster, &data);
}

#[test]
fn a_dead_node_is_replaced_and_its_place_is_worth_as_much() {
    let mut cluster = Cluster::start(1, 2, &[]);
    let data = load(&cluster);
    under_writes(&mut cluster, |cluster, written| {
        cluster.start_another(&[]);
        let new = cluster.nodes[3].link.to_string();
        let replace = ["cluster", "replace-node", "1", "--with", &new];
        let refused = cluster.operate(1, &replace).expect_err("it is alive");
        assert!(refused.contains("node 1 answers, so it is not dead"), "{refused}");
        cluster.nodes[0].kill();
        let done = cluster.operate(1, &replace).expect("it is replaced");
        assert!(done.contains("node 4 is in its place") && done.ends_with("and votes"), "{done}");
        written.wait_for_more();
        cluster.nodes[1].wait_until_whole(None, 3);
        let status = cluster.nodes[3]
            .wait_for("the new node knows that it votes", |status| voters(status) == [2, 3, 4]);
        assert!(status.known(NodeId(1)).is_none());
        // One more may die: the new node's vote and its copy count.
        cluster.nodes[1].kill();
        cluster.nodes[3].wait_for("the shard goes on", |status| status.shards[0].primary != NodeId(2));
    });
    check(&cluster, &data);
}

#[test]
fn a_node_that_was_away_hears_from_a_leader_that_it_has_never_heard_of() {
    let mut cluster = Cluster::start(1, 2, &[]);
    let data = load(&cluster);
    cluster.nodes[2].kill();
    add_node(&mut cluster, 4);
    cluster.operate(0, &["cluster", "set-voters", "4"]).expect("it votes alone");
    cluster.nodes[0]
        .wait_for("the new node leads the control log", |status| status.leader == Some(NodeId(4)));
    cluster.nodes[2].restart();
    let status = cluster.nodes[2].wait_for("the returned node has learnt of it", |status| {
        status.leader == Some(NodeId(4)) && voters(status) == [4]
    });
    assert_eq!(status.known(NodeId(3)).map(|known| known.incarnation.boot), Some(2));
    // And so does one that knows nothing but how the cluster began.
    add_node(&mut cluster, 5);
    cluster.nodes[0].wait_until_whole(Some(1), 3);
    check(&cluster, &data);
}

/// More entries than a control log keeps before it is begun anew with a snapshot.
const ENTRIES: u32 = 4_400;

#[test]
fn a_node_joins_when_the_beginning_of_the_control_log_is_gone() {
    let mut cluster = Cluster::start(1, 1, &[]);
    let data = load(&cluster);
    let any = cluster.nodes[0].link;
    let runtime = Runtime::builder().cores(1).pin(false).spin_us(0).build().expect("a core");
    runtime.block_on(0, move || async move {
        // Each changes nothing, and is an entry all the same.
        let same = || EntryBody::SetReplicas { shard: ShardId(1), replicas: vec![NodeId(2)] };
        let mut left = stream::iter(0..ENTRIES).map(|_| operations::change(any, same())).buffer_unordered(50);
        while let Some(changed) = left.next().await {
            changed.expect("it is decided");
        }
    });
    runtime.shutdown();
    assert!(cluster.nodes[0].output().contains("the control log was compacted"));
    add_node(&mut cluster, 3);
    cluster.operate(2, &["cluster", "set-replicas", "1", "2", "3"]).expect("it follows");
    cluster.nodes[2].wait_until_whole(Some(1), 3);
    // From its own directory it goes on with that snapshot.
    cluster.nodes[2].kill();
    cluster.nodes[2].restart();
    cluster.nodes[2].wait_until_whole(Some(1), 3);
    check(&cluster, &data);
}

#[test]
fn status_is_told_to_people_too() {
    let mut cluster = Cluster::start(2, 1, &[]);
    cluster.nodes[3].kill();
    let link = cluster.nodes[0].link.to_string();
    let status = crate::common::lockgate(&["cluster", "status", &link]).expect("a table");
    let row = |node: &NodeProcess| {
        let listen = node.listen.to_string();
        let row = status.lines().find(|line| line.contains(&listen)).expect("every node has a line");
        row.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let first = row(&cluster.nodes[0]);
    assert_eq!(
        (first[0].as_str(), first[4].as_str(), first[5].as_str(), first[6].as_str()),
        ("1", "1", "primary", "yes")
    );
    assert!(status.contains("0-8191") && status.contains("8192-16383"), "{status}");
    assert_eq!(row(&cluster.nodes[3]).last().map(String::as_str), Some("no"), "{status}");
}
