//! Clients that know nothing of Lockgate find their keys while slots move: the `redis` crate's cluster client, and
//! `redis-cli -c`.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use crate::common::{Cluster, key_of, text};
use lockgate::client::{Outcome, Reply};
use lockgate_runtime::sync::atomic::{AtomicBool, Ordering};
use redis::{ExistenceCheck, IntegerReplyOrNoOp, SetExpiry, SetOptions, TypedCommands, ValueComparison};

/// Jobs that move slots forth, and as many that move them back.
const ROUND_TRIPS: usize = 4;
/// Keys of each client.
const KEYS: u32 = 300;
/// Clients that work at the same time.
const CLIENTS: u32 = 2;

/// Longer than the test takes, in seconds.
const LONG_S: u64 = 100_000;

/// Writes under conditions and with deadlines, and ends what was there: each answer is the only right one. Returns what the
/// key must hold, and how many commands were answered.
fn change_if(
    connection: &mut redis::cluster::ClusterConnection,
    key: &str,
    before: Option<String>,
    round: u32,
) -> (Option<String>, u64) {
    let value = format!("{key} if it was so in round {round}");
    let long = SetOptions::default().with_expiration(SetExpiry::EX(LONG_S));
    let Some(before) = before else {
        let if_there = SetOptions::default().conditional_set(ExistenceCheck::XX);
        assert_eq!(connection.set_options(key, "lost", if_there).expect("SET XX"), None);
        let if_absent = long.conditional_set(ExistenceCheck::NX);
        let set = connection.set_options(key, &value, if_absent).expect("SET NX EX");
        assert_eq!(set.as_deref(), Some("OK"), "{key} in round {round}");
        assert!(!connection.set_nx(key, "lost").expect("SETNX"));
        let left = connection.ttl(key).expect("TTL");
        assert!(matches!(left, IntegerReplyOrNoOp::IntegerReply(left) if left > LONG_S as usize / 2));
        return (Some(value), 4);
    };
    let if_other = SetOptions::default().value_comparison(ValueComparison::ifeq("something else"));
    assert_eq!(connection.set_options(key, "lost", if_other).expect("SET IFEQ"), None, "{key}");
    let if_same = long.value_comparison(ValueComparison::ifeq(&before)).get(true);
    let was = connection.set_options(key, &value, if_same).expect("SET IFEQ GET EX");
    assert_eq!(was, Some(before), "{key} in round {round}");
    if round.is_multiple_of(2) {
        assert!(connection.expire(key, 0).expect("EXPIRE"), "{key} in round {round}");
        assert_eq!(connection.ttl(key).expect("TTL"), IntegerReplyOrNoOp::NotExists);
        return (None, 4);
    }
    assert!(connection.persist(key).expect("PERSIST"), "{key} in round {round}");
    assert_eq!(connection.ttl(key).expect("TTL"), IntegerReplyOrNoOp::ExistsButNotRelevant);
    (Some(value), 4)
}

/// Writes, reads and deletes keys of its own until `stop`. Returns what each key must hold, and how many commands were
/// answered; every read must give what was written last.
fn work(addrs: &[String], client: u32, stop: &AtomicBool) -> (BTreeMap<String, Option<String>>, u64) {
    let builder = redis::cluster::ClusterClient::builder(addrs.to_vec()).retries(1_000).max_retry_wait(20);
    let mut connection = builder.build().expect("a client").get_connection().expect("a connection");
    let (mut expected, mut commands) = (BTreeMap::new(), 0);
    for round in 0.. {
        for number in 0..KEYS {
            let key = format!("client-{client}-key-{number}");
            let before = expected.get(&key).cloned().flatten();
            assert_eq!(connection.get(&key).expect("GET"), before, "{key} before round {round}");
            let after = if (round + number) % 7 == 6 {
                let existed = connection.del(&key).expect("DEL");
                assert_eq!(existed, usize::from(before.is_some()), "{key} in round {round}");
                None
            } else if (round + number) % 3 == 1 {
                let (after, answered) = change_if(&mut connection, &key, before, round);
                commands += answered;
                after
            } else {
                let value = format!("{key} in round {round}");
                connection.set(&key, &value).expect("SET");
                Some(value)
            };
            assert_eq!(connection.get(&key).expect("GET"), after, "{key} in round {round}");
            expected.insert(key, after);
            commands += 3;
            if stop.load(Ordering::Relaxed) && round > 0 {
                return (expected, commands);
            }
        }
    }
    unreachable!("it works until it is stopped")
}

#[test]
fn the_redis_crate_reads_what_it_wrote_while_slots_move() {
    let cluster = Cluster::start(2, 1, &[]);
    let addrs: Vec<String> = cluster.addrs().iter().map(|addr| format!("redis://{addr}")).collect();
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        // Also when a move fails: else the clients would never end.
        let _stop = StopOnDrop(&stop);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (addrs, stop) = (&addrs, &stop);
                scope.spawn(move || work(addrs, client, stop))
            })
            .collect();
        // Shard 1 owns the first half of the slots, shard 2 (node 2 is its primary) the other.
        for _ in 0..ROUND_TRIPS {
            cluster.migrate(0, 2, 0, 3_999);
            cluster.migrate(2, 0, 12_000, 16_383);
            cluster.migrate(2, 0, 0, 3_999);
            cluster.migrate(0, 2, 12_000, 16_383);
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("a client")).collect::<Vec<_>>()
    });
    // And once more with another client, when nothing moves.
    let mut ours = cluster.client();
    for (expected, commands) in written {
        assert!(commands > u64::from(KEYS), "only {commands} commands");
        for (key, value) in expected {
            let read = ours.get(key.as_bytes());
            let Outcome::Acknowledged(read) = read else { panic!("{key}: {read:?}") };
            assert_eq!(read, value.map(String::into_bytes), "{key}");
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What `redis-cli -c` prints, without the redirections that it followed.
fn redis_cli(port: u16, args: &[&str]) -> String {
    let mut command = Command::new("redis-cli");
    command.args(["-c", "-h", "127.0.0.1", "-p", &port.to_string()]).args(args).stdin(Stdio::null());
    let output = command.output().expect("redis-cli runs");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

#[test]
fn redis_cli_follows_moved_slots() {
    if Command::new("redis-cli").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: redis-cli is not installed, so nothing was tested with it");
        return;
    }
    let cluster = Cluster::start(2, 1, &[]);
    let slots = [0_u16, 100, 8_191, 8_192, 16_383];
    let ports: Vec<u16> = cluster.addrs().iter().map(|addr| addr.port()).collect();
    for slot in slots {
        assert_eq!(redis_cli(ports[0], &["SET", &key_of(slot, 0), &format!("first {slot}")]), "OK");
    }
    cluster.migrate(0, 2, 0, 99);
    cluster.migrate(0, 2, 100, 4_000);
    cluster.migrate(2, 0, 16_000, 16_383);
    // Whichever node is asked, replicas too.
    for &port in &ports {
        for slot in slots {
            let key = key_of(slot, 0);
            assert_eq!(redis_cli(port, &["GET", &key]), format!("first {slot}"), "at {port}");
            let value = format!("from {port}");
            assert_eq!(redis_cli(port, &["SET", &key_of(slot, 1), &value]), "OK");
            assert_eq!(redis_cli(ports[3], &["GET", &key_of(slot, 1)]), value);
        }
    }
    let (key, other) = (key_of(0, 7), key_of(16_383, 7));
    assert_eq!(redis_cli(ports[0], &["SET", &key, "1", "NX", "PX", "50"]), "OK");
    assert_eq!(redis_cli(ports[3], &["SET", &other, "1", "EXAT", "99999999999", "GET"]), "");
    assert_eq!(redis_cli(ports[1], &["EXPIRETIME", &other]), "99999999999");
    assert_eq!(redis_cli(ports[0], &["SET", &other, "2", "IFEQ", "0"]), "");
    assert_eq!(redis_cli(ports[0], &["GETEX", &other, "PERSIST"]), "1");
    assert_eq!(redis_cli(ports[2], &["GETDEL", &other]), "1");
    assert_eq!(redis_cli(ports[2], &["TTL", &other]), "-2");
    crate::common::until("a key ends by itself", || {
        (redis_cli(ports[1], &["GET", &key]).is_empty()).then_some(())
    });
    assert_eq!(redis_cli(ports[1], &["DEL", &key_of(100, 0)]), "1");
    assert_eq!(redis_cli(ports[0], &["EXISTS", &key_of(100, 0)]), "0");
    assert_eq!(redis_cli(ports[0], &["CLUSTER", "KEYSLOT", "foo"]), "12182");
    let info = redis_cli(ports[0], &["CLUSTER", "INFO"]);
    assert!(info.contains("cluster_state:ok") && info.contains("cluster_slots_assigned:16384"), "{info}");
    let map = redis_cli(ports[3], &["CLUSTER", "SLOTS"]);
    assert!(map.lines().any(|line| line.ends_with(&ports[2].to_string())), "{map}");
}

/// First slot, last slot, and the members' ports, of each row.
fn rows(slots: &Reply) -> Vec<(i64, i64, Vec<u16>)> {
    let Reply::Array(rows) = slots else { panic!("{slots:?}") };
    let row = |row: &Reply| {
        let Reply::Array(parts) = row else { panic!("{row:?}") };
        let [Reply::Integer(first), Reply::Integer(last), members @ ..] = &parts[..] else {
            panic!("{row:?}")
        };
        let port = |member: &Reply| {
            let Reply::Array(parts) = member else { panic!("{member:?}") };
            let [host, Reply::Integer(port), name] = &parts[..] else { panic!("{member:?}") };
            assert_eq!((text(host).as_str(), text(name).len()), ("127.0.0.1", 40));
            *port as u16
        };
        (*first, *last, members.iter().map(port).collect())
    };
    rows.iter().map(row).collect()
}

#[test]
fn the_map_is_told_as_clients_expect_it() {
    let cluster = Cluster::start(2, 1, &[]);
    cluster.migrate(0, 2, 100, 199);
    let ports: Vec<u16> = cluster.addrs().iter().map(|addr| addr.port()).collect();
    let (one, two) = (ports[..2].to_vec(), ports[2..].to_vec());
    let expected = [(0, 99, one.clone()), (100, 199, two.clone()), (200, 8_191, one), (8_192, 16_383, two)];
    for node in &cluster.nodes {
        crate::common::until("every node has learnt of the move", || {
            (rows(&node.ask(&["CLUSTER", "SLOTS"]).expect("a map")) == expected).then_some(())
        });
        let info = text(&node.ask(&["CLUSTER", "INFO"]).expect("a text"));
        for line in [
            "cluster_enabled:1",
            "cluster_state:ok",
            "cluster_slots_assigned:16384",
            "cluster_slots_ok:16384",
            "cluster_known_nodes:4",
            "cluster_size:2",
        ] {
            assert!(info.lines().any(|have| have == line), "{line} is not in {info}");
        }
        for (key, slot) in [("foo", 12_182), ("{user1000}.following", 3_443), ("{user1000}.followers", 3_443)]
        {
            assert_eq!(node.ask(&["CLUSTER", "KEYSLOT", key]), Ok(Reply::Integer(slot)));
        }
    }
    let moved = cluster.nodes[0].ask(&["GET", &key_of(150, 0)]);
    assert_eq!(moved, Err(format!("MOVED 150 127.0.0.1:{}", ports[2])));
}

/// A node's line in `CLUSTER NODES`, by the words that cluster clients read of it.
struct NodeLine {
    id: String,
    port: u16,
    flags: Vec<String>,
    primary: String,
    slots: Vec<String>,
}

fn node_lines(text: &str) -> Vec<NodeLine> {
    let line = |line: &str| {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let [id, addr, flags, primary, ping, pong, epoch, link, slots @ ..] = &words[..] else {
            panic!("too few words: {line}")
        };
        assert!(id.len() == 40 && link == "connected", "{line}");
        assert!([ping, pong, epoch].iter().all(|number| number.parse::<u64>().is_ok()), "{line}");
        let (addr, bus) = addr.split_once('@').expect("the port of its links");
        let (ip, port) = addr.rsplit_once(':').expect("a port");
        assert!(ip == "127.0.0.1" && bus.parse::<u16>().is_ok(), "{line}");
        NodeLine {
            id: id.clone(),
            port: port.parse().expect("a port"),
            flags: flags.split(',').map(str::to_owned).collect(),
            primary: primary.clone(),
            slots: slots.to_vec(),
        }
    };
    text.lines().map(line).collect()
}

/// The value after a key in a flat list of keys and values.
fn value<'a>(list: &'a Reply, key: &str) -> &'a Reply {
    let Reply::Array(parts) = list else { panic!("{list:?}") };
    let found = parts.chunks_exact(2).find(|pair| text(&pair[0]) == key);
    &found.unwrap_or_else(|| panic!("no {key} in {list:?}"))[1]
}

#[test]
fn nodes_and_shards_say_the_same_as_the_slots() {
    let mut cluster = Cluster::start(2, 1, &[]);
    cluster.migrate(0, 2, 100, 199);
    cluster.operate(0, &["failover", "1", "--to", "2"]).expect("the second node leads");
    cluster.nodes[3].kill();
    cluster.nodes[0].wait_for("the dead replica is out of sync, the old primary in sync", |status| {
        let members = status.shards.iter().flat_map(|shard| &shard.members);
        let in_sync = members.filter(|member| member.in_sync).map(|member| member.node.0);
        in_sync.collect::<Vec<_>>() == [2, 1, 3]
    });
    let node = &cluster.nodes[0];
    let ports: Vec<u16> = cluster.addrs().iter().map(|addr| addr.port()).collect();
    let lines = node_lines(&text(&node.ask(&["CLUSTER", "NODES"]).expect("a text")));
    let line = |at: usize| lines.iter().find(|line| line.port == ports[at]).expect("every node has a line");
    assert_eq!(lines.len(), 4);
    assert_eq!(
        (line(0).id.as_str(), &line(0).flags[..]),
        (&*node.name(), &["myself".into(), "slave".into()][..])
    );
    assert_eq!((line(0).primary.as_str(), line(0).slots.len()), (line(1).id.as_str(), 0));
    assert_eq!((&line(1).flags[..], line(1).primary.as_str()), (&["master".to_owned()][..], "-"));
    assert_eq!(line(1).slots, ["0-99", "200-8191"]);
    assert_eq!(line(2).slots, ["100-199", "8192-16383"]);
    assert_eq!(line(3).primary, line(2).id);

    let Ok(Reply::Array(shards)) = node.ask(&["CLUSTER", "SHARDS"]) else { panic!("no shards") };
    let members = |shard: &Reply| {
        let Reply::Array(nodes) = value(shard, "nodes") else { panic!("{shard:?}") };
        let word = |node: &Reply, key: &str| text(value(node, key));
        let member = |node: &Reply| {
            let Reply::Integer(port) = value(node, "port") else { panic!("{node:?}") };
            assert_eq!(
                (word(node, "ip").as_str(), word(node, "endpoint").as_str()),
                ("127.0.0.1", "127.0.0.1")
            );
            (word(node, "id"), *port as u16, word(node, "role"), word(node, "health"))
        };
        nodes.iter().map(member).collect::<Vec<_>>()
    };
    let told = |at: usize, role: &str, health: &str| {
        (line(at).id.clone(), ports[at], role.to_owned(), health.to_owned())
    };
    let slots = |ends: [i64; 4]| Reply::Array(ends.into_iter().map(Reply::Integer).collect());
    assert_eq!(value(&shards[0], "slots"), &slots([0, 99, 200, 8_191]));
    assert_eq!(members(&shards[0]), [told(1, "master", "online"), told(0, "replica", "online")]);
    assert_eq!(value(&shards[1], "slots"), &slots([100, 199, 8_192, 16_383]));
    assert_eq!(members(&shards[1]), [told(2, "master", "online"), told(3, "replica", "loading")]);
}

#[test]
fn redis_cli_finds_the_cluster_consistent() {
    if Command::new("redis-cli").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: redis-cli is not installed");
        return;
    }
    let cluster = Cluster::start(2, 1, &[]);
    cluster.migrate(0, 2, 100, 199);
    let addr = cluster.nodes[1].listen.to_string();
    crate::common::until("every node has learnt of the move", || {
        let mut command = Command::new("redis-cli");
        let output = command.args(["--cluster", "check", &addr]).stdin(Stdio::null()).output();
        let output = output.expect("redis-cli runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let agreed = said.contains("[OK] All nodes agree about slots configuration.")
            && said.contains("[OK] All 16384 slots covered.");
        let counted = said.contains("8092 slots") && said.contains("8292 slots");
        if !(agreed && counted) {
            eprintln!("{said}{}", String::from_utf8_lossy(&output.stderr));
        }
        (agreed && counted && output.status.success()).then_some(())
    });
}
