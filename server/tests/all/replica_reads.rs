//! Reads at replicas: what was acknowledged, nothing above, nothing too old, nothing that is on its way between shards.

use std::time::Duration;

use crate::common::{Cluster, NodeProcess, ask, key_of, until};
use lockgate::client::{Connection, Reply};

/// How old a replica's answers may be here.
const STALENESS: Duration = Duration::from_millis(1_000);

/// Nodes that are not taken for dead while a test halts them.
fn start(shards: usize) -> Cluster {
    let staleness = STALENESS.as_millis().to_string();
    Cluster::start(shards, 2, &["--node-timeout-ms", "16000", "--replica-staleness-ms", &staleness])
}

/// A connection that takes what a replica has.
fn read_only(node: &NodeProcess) -> Connection {
    let mut connection = node.connect();
    assert_eq!(ask(&mut connection, &["READONLY"]), Ok(Reply::Simple("OK".into())));
    connection
}

fn bulk(text: &str) -> Result<Reply, String> {
    Ok(Reply::Bulk(text.as_bytes().to_vec()))
}

#[test]
fn a_replica_answers_readers_that_asked_for_it() {
    let cluster = start(1);
    let (primary, replica) = (&cluster.nodes[0], &cluster.nodes[1]);
    let (key, other) = (key_of(100, 0), key_of(100, 1));
    assert!(primary.ask(&["SET", &key, "value", "EX", "1000"]).is_ok());
    let mut reader = read_only(replica);
    assert_eq!(ask(&mut reader, &["GET", &key]), bulk("value"));
    // What is answered is acknowledged and here: nothing needs to be waited for.
    for round in 0..20 {
        let round = round.to_string();
        assert!(primary.ask(&["SET", &other, &round]).is_ok());
        assert_eq!(ask(&mut reader, &["GET", &other]), bulk(&round));
    }
    assert_eq!(ask(&mut reader, &["EXISTS", &key, &other, &key_of(100, 2)]), Ok(Reply::Integer(2)));
    let both = Reply::Array(vec![Reply::Bulk(b"value".to_vec()), Reply::Bulk(b"19".to_vec())]);
    assert_eq!(ask(&mut reader, &["MGET", &key, &other]), Ok(both));
    assert!(matches!(ask(&mut reader, &["TTL", &key]), Ok(Reply::Integer(990..=1_000))));
    assert_eq!(ask(&mut reader, &["TTL", &other]), Ok(Reply::Integer(-1)));
    assert_eq!(ask(&mut reader, &["GET", &key_of(200, 0)]), Ok(Reply::Null), "of an empty slot");
    assert!(primary.ask(&["DEL", &key]).is_ok());
    assert_eq!(ask(&mut reader, &["GET", &key]), Ok(Reply::Null));
    // Writes go to the owner, and so do reads of who did not ask for more.
    let moved = format!("MOVED 100 {}", primary.listen);
    assert_eq!(ask(&mut reader, &["SET", &key, "mine"]), Err(moved.clone()));
    assert_eq!(ask(&mut reader, &["READWRITE"]), Ok(Reply::Simple("OK".into())));
    assert_eq!(ask(&mut reader, &["GET", &key]), Err(moved.clone()));
    assert_eq!(replica.ask(&["GET", &key]), Err(moved));
}

#[test]
fn what_nobody_was_told_of_is_not_shown_and_what_is_old_is_refused() {
    let cluster = start(1);
    let key = key_of(100, 0);
    assert!(cluster.nodes[0].ask(&["SET", &key, "old"]).is_ok());
    let mut reader = read_only(&cluster.nodes[1]);
    assert_eq!(ask(&mut reader, &["GET", &key]), bulk("old"));
    // The answer to this write waits for the other replica.
    cluster.nodes[2].pause();
    let listen = cluster.nodes[0].connect();
    let written = std::thread::spawn({
        let (mut writer, key) = (listen, key.clone());
        move || ask(&mut writer, &["SET", &key, "new"])
    });
    until("the replica has the write, and does not show it", || match ask(&mut reader, &["GET", &key]) {
        Ok(Reply::Bulk(value)) => {
            assert_eq!(value, b"old", "nobody was told of the new one");
            None
        }
        Err(refused) => {
            assert!(refused.starts_with("TRYAGAIN"), "{refused}");
            Some(())
        }
        other => panic!("{other:?}"),
    });
    assert!(!written.is_finished(), "the write is not acknowledged");
    cluster.nodes[2].resume();
    assert_eq!(written.join().expect("it ends"), Ok(Reply::Simple("OK".into())));
    assert_eq!(ask(&mut reader, &["GET", &key]), bulk("new"));
    // The primary says nothing any more: what is here grows old.
    cluster.nodes[0].pause();
    let refused = until("the replica refuses", || ask(&mut reader, &["GET", &key]).err());
    assert!(refused.starts_with("MASTERDOWN") && refused.contains("may be older than 1s"), "{refused}");
    cluster.nodes[0].resume();
    until("it answers again", || (ask(&mut reader, &["GET", &key]) == bulk("new")).then_some(()));
}

#[test]
fn a_slot_on_its_way_is_read_where_it_is_owned() {
    let cluster = start(2);
    let key = key_of(100, 0);
    assert!(cluster.nodes[0].ask(&["SET", &key, "value"]).is_ok());
    let (mut at_source, mut at_target) = (read_only(&cluster.nodes[1]), read_only(&cluster.nodes[4]));
    let owner = |at: usize| Err(format!("MOVED 100 {}", cluster.nodes[at].listen));
    assert_eq!(ask(&mut at_source, &["GET", &key]), bulk("value"));
    assert_eq!(ask(&mut at_target, &["GET", &key]), owner(0));
    // The barrier waits for the other replica of the target: the slot goes on being imported.
    cluster.nodes[5].pause();
    cluster.start_job(0, 3, 100, 100);
    until("the barrier is reached, in vain", || cluster.nodes[0].output().contains("attempt").then_some(()));
    assert_eq!(ask(&mut at_target, &["GET", &key]), owner(0));
    cluster.nodes[5].resume();
    let job = cluster.wait_for_job(0, 100, 100);
    assert_eq!(job.state, "success", "{}", job.message);
    until("the target's replica answers", || {
        (ask(&mut at_target, &["GET", &key]) == bulk("value")).then_some(())
    });
    until("the source's replica does not", || {
        (ask(&mut at_source, &["GET", &key]) == owner(3)).then_some(())
    });
}
