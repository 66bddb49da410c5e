//! Keys with deadlines, and conditional writes, over the protocol: the replies that clients know, and what becomes of keys
//! whose slots move and whose nodes restart.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::{Cluster, NodeProcess, ask, key_of, text, until};
use lockgate::client::{Connection, Reply};

fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

fn ok() -> Reply {
    Reply::Simple("OK".into())
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.as_bytes().to_vec())
}

/// The answer to a line of words.
fn tell(connection: &mut Connection, line: &str) -> Reply {
    let words: Vec<&str> = line.split_whitespace().collect();
    ask(connection, &words).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn number(connection: &mut Connection, line: &str) -> i64 {
    match tell(connection, line) {
        Reply::Integer(number) => number,
        other => panic!("{line}: {other:?}"),
    }
}

/// How many keys a node has, and how many of them have a deadline, as it tells operators.
fn keys_and_expires(node: &NodeProcess) -> (u64, u64) {
    let info = text(&node.ask(&["INFO", "keyspace"]).expect("a text"));
    let Some(line) = info.lines().find_map(|line| line.strip_prefix("db0:keys=")) else { return (0, 0) };
    let (keys, rest) = line.split_once(",expires=").expect("both are told");
    let expires = rest.split(',').next().expect("there is a number");
    (keys.parse().expect("a number"), expires.parse().expect("a number"))
}

#[test]
fn conditional_writes_are_answered_as_clients_expect_it() {
    let cluster = Cluster::start(1, 0, &[]);
    let mut connection = cluster.nodes[0].connect();
    let dialogue = [
        ("SET k 1 XX", Reply::Null),
        ("SET k 1 XX GET", Reply::Null),
        ("SET k 1 IFEQ 1", Reply::Null),
        ("SET k 1 NX", ok()),
        ("SET k 2 nx", Reply::Null),
        ("SET k 2 NX GET", bulk("1")),
        ("GET k", bulk("1")),
        ("SET k 2 XX", ok()),
        ("SET k 3 IFEQ 1", Reply::Null),
        ("SET k 3 IFEQ 1 GET", bulk("2")),
        ("SET k 3 IFEQ 2 GET", bulk("2")),
        ("SET k 4 IFEQ 3", ok()),
        ("SET k 5 GET", bulk("4")),
        ("SET new 1 GET", Reply::Null),
        ("SET other 1 NX GET", Reply::Null),
        ("SETNX k 6", Reply::Integer(0)),
        ("SETNX fresh 6", Reply::Integer(1)),
        ("GETDEL k", bulk("5")),
        ("GETDEL k", Reply::Null),
        ("SET k 1 EX 100", ok()),
        ("SET k 2 KEEPTTL", ok()),
        ("TTL k", Reply::Integer(100)),
        ("SET k 3", ok()),
        ("TTL k", Reply::Integer(-1)),
        ("TTL none", Reply::Integer(-2)),
        ("PEXPIRETIME none", Reply::Integer(-2)),
        ("SET k 4 PXAT 99999999999999", ok()),
        ("PEXPIRETIME k", Reply::Integer(99_999_999_999_999)),
        ("EXPIRETIME k", Reply::Integer(100_000_000_000)),
        ("SET k 5 EXAT 1", ok()),
        ("GET k", Reply::Null),
    ];
    for (line, wanted) in dialogue {
        assert_eq!(tell(&mut connection, line), wanted, "{line}");
    }
    assert_eq!(keys_and_expires(&cluster.nodes[0]), (3, 0));
}

#[test]
fn deadlines_are_answered_as_clients_expect_it() {
    let cluster = Cluster::start(1, 0, &[]);
    let mut connection = cluster.nodes[0].connect();
    let (yes, no) = (Reply::Integer(1), Reply::Integer(0));
    let dialogue = [
        ("EXPIRE k 100", no.clone()),
        ("SET k v", ok()),
        ("PERSIST k", no.clone()),
        ("EXPIRE k 100 XX", no.clone()),
        ("EXPIRE k 100 GT", no.clone()),
        ("EXPIREAT k 99999999999 LT", yes.clone()),
        ("EXPIREAT k 99999999999 NX", no.clone()),
        ("PEXPIREAT k 99999999998000 GT", no.clone()),
        ("PEXPIREAT k 99999999998000 LT XX", yes.clone()),
        ("PEXPIRETIME k", Reply::Integer(99_999_999_998_000)),
        ("EXPIRETIME k", Reply::Integer(99_999_999_998)),
        ("EXPIRE k 1000", yes.clone()),
        ("TTL k", Reply::Integer(1_000)),
        ("GETEX k", bulk("v")),
        ("TTL k", Reply::Integer(1_000)),
        ("GETEX k EX 500", bulk("v")),
        ("TTL k", Reply::Integer(500)),
        ("PERSIST k", yes.clone()),
        ("TTL k", Reply::Integer(-1)),
        ("PEXPIRE k 70000", yes.clone()),
        ("GETEX k PERSIST", bulk("v")),
        ("PTTL k", Reply::Integer(-1)),
        ("GETEX none EX 5", Reply::Null),
        ("EXPIRE k -1", yes.clone()),
        ("EXISTS k", no.clone()),
        ("SET k v", ok()),
        ("EXPIREAT k 1", yes.clone()),
        ("GET k", Reply::Null),
        ("SET k v", ok()),
        ("GETEX k PXAT 1", bulk("v")),
        ("GET k", Reply::Null),
        ("PERSIST k", no),
    ];
    for (line, wanted) in dialogue {
        assert_eq!(tell(&mut connection, line), wanted, "{line}");
    }
    tell(&mut connection, "SET k v PX 100000");
    let (left, at) = (number(&mut connection, "PTTL k"), number(&mut connection, "PEXPIRETIME k"));
    assert!((1..=100_000).contains(&left), "{left}");
    assert!((1..=100_000).contains(&(at - unix_ms())), "{at}");
    assert_eq!(keys_and_expires(&cluster.nodes[0]), (1, 1));
}

#[test]
fn the_list_of_commands_is_true() {
    let cluster = Cluster::start(1, 0, &[]);
    let mut connection = cluster.nodes[0].connect();
    let Reply::Array(rows) = tell(&mut connection, "COMMAND") else { panic!("not a list") };
    assert_eq!(number(&mut connection, "COMMAND COUNT"), rows.len() as i64);
    for row in rows {
        let Reply::Array(parts) = row else { panic!("{row:?}") };
        let [name, Reply::Integer(arity), ..] = &parts[..] else { panic!("{parts:?}") };
        let name = text(name);
        let wrong = Err(format!("ERR wrong number of arguments for '{name}' command"));
        let words = |count: u64| -> Vec<&str> {
            std::iter::once(name.as_str()).chain(std::iter::repeat_n("x", count as usize - 1)).collect()
        };
        if arity.unsigned_abs() > 1 {
            assert_eq!(ask(&mut connection, &words(arity.unsigned_abs() - 1)), wrong, "one word too few");
        }
        if *arity > 1 {
            assert_eq!(ask(&mut connection, &words(arity.unsigned_abs() + 1)), wrong, "one word too many");
        }
        let known = ask(&mut connection, &words(1));
        assert!(!known.is_err_and(|error| error.contains("unknown command")), "{name}");
        if name == "quit" {
            connection = cluster.nodes[0].connect();
        }
    }
}

#[test]
fn keys_end_by_themselves_and_their_replicas_end_them_with_them() {
    let cluster = Cluster::start(1, 1, &[]);
    let mut connection = cluster.nodes[0].connect();
    for number in 0..500 {
        assert_eq!(tell(&mut connection, &format!("SET short-{number} v PX {}", 200 + number % 50)), ok());
    }
    tell(&mut connection, "SET long v EX 1000");
    tell(&mut connection, "SET endless v");
    // Nobody asks for any of them.
    until("the short ones have ended", || (keys_and_expires(&cluster.nodes[0]) == (2, 1)).then_some(()));
    // Answers wait for the replica: that a key has ended, too.
    assert_eq!(number(&mut connection, "EXISTS short-7"), 0);
    assert_eq!(number(&mut connection, "TTL long"), 1_000);
}

#[test]
fn deadlines_move_with_their_slots_and_survive_restarts() {
    let mut cluster = Cluster::start(2, 0, &[]);
    let keys: Vec<String> = (0..50).map(|number| key_of(number, number.into())).collect();
    let deadline_ms = unix_ms() + 500_000;
    let mut connection = cluster.nodes[0].connect();
    for key in &keys {
        assert_eq!(tell(&mut connection, &format!("SET {key} v PXAT {deadline_ms}")), ok());
        assert_eq!(tell(&mut connection, &format!("SET {key}-short v PX 300")), ok());
    }
    cluster.migrate(0, 1, 0, 99);
    let mut connection = cluster.nodes[1].connect();
    for key in &keys {
        assert_eq!(number(&mut connection, &format!("PEXPIRETIME {key}")), deadline_ms);
    }
    until("the target ends what came with it", || {
        (keys_and_expires(&cluster.nodes[1]) == (50, 50)).then_some(())
    });
    assert_eq!(keys_and_expires(&cluster.nodes[0]), (0, 0));
    // On the disk of the target, with what was answered before.
    tell(&mut connection, &format!("SET {} v PX 1", keys[0]));
    tell(&mut connection, "WAITAOF 1 0 10000");
    cluster.nodes[1].kill();
    cluster.nodes[1].restart();
    cluster.nodes[1].wait_until_it_serves(&keys[0]);
    let mut connection = cluster.nodes[1].connect();
    assert_eq!(number(&mut connection, &format!("PTTL {}", keys[0])), -2);
    for key in &keys[1..] {
        assert_eq!(number(&mut connection, &format!("PEXPIRETIME {key}")), deadline_ms);
        assert_eq!(number(&mut connection, &format!("EXISTS {key}-short")), 0);
    }
}
