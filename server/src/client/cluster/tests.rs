//! The cluster client against small servers that redirect, refuse, break off, and come back.

use lockgate_runtime::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};

use super::super::test_server::{Action, TestServer};
use super::*;

type Store = Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>;

fn config(retry_ms: u64) -> ClientConfig {
    let timeouts = Timeouts { connect: Duration::from_secs(2), answer: Duration::from_millis(200) };
    ClientConfig { timeouts, retry: Duration::from_millis(retry_ms) }
}

/// The reply to CLUSTER SLOTS when the slots below `split` belong to `low`, the others to `high`.
fn slots_reply(split: u16, low: SocketAddr, high: SocketAddr) -> Action {
    let range = |first, last, owner: SocketAddr| {
        format!("*3\r\n:{first}\r\n:{last}\r\n*3\r\n$9\r\n127.0.0.1\r\n:{}\r\n$2\r\nid\r\n", owner.port())
    };
    Action::Reply(format!("*2\r\n{}{}", range(0, split - 1, low), range(split, 16383, high)).into_bytes())
}

fn run(store: &Store, args: &[Vec<u8>]) -> Action {
    let mut store = store.lock();
    match args[0].as_slice() {
        b"GET" => store.get(&args[1]).map_or(Action::reply("$-1"), |value| Action::bulk(value)),
        b"SET" => {
            store.insert(args[1].clone(), args[2].clone());
            Action::reply("+OK")
        }
        b"DEL" => Action::reply(if store.remove(&args[1]).is_some() { ":1" } else { ":0" }),
        _ => Action::reply("-ERR unknown command"),
    }
}

/// Two servers over one store; slots below `split` (which can change) are served by the first.
struct Pair {
    servers: [TestServer; 2],
    split: Arc<AtomicU64>,
    store: Store,
}

impl Pair {
    fn start(split: u16) -> Pair {
        let listeners = [TestServer::bind(), TestServer::bind()];
        let addrs = [0, 1].map(|n: usize| listeners[n].local_addr().unwrap());
        let split = Arc::new(AtomicU64::new(split.into()));
        let store = Store::default();
        let mut number = 0;
        let servers = listeners.map(|listener| {
            let (split, store, me) = (split.clone(), store.clone(), number);
            number += 1;
            TestServer::start_on(listener, move |args| {
                let split = split.load(Ordering::SeqCst) as u16;
                if args[0] == b"CLUSTER" {
                    return slots_reply(split, addrs[0], addrs[1]);
                }
                let slot = Slot::of_key(&args[1]).number();
                let owner = usize::from(slot >= split);
                if owner != me {
                    return Action::reply(&format!("-MOVED {slot} {}", addrs[owner]));
                }
                run(&store, args)
            })
        });
        Pair { servers, split, store }
    }

    fn client(&self) -> ClusterClient {
        ClusterClient::new(&[self.servers[0].addr()], config(2_000))
    }
}

/// A node that owns all slots and answers commands as `handler` says.
fn single(handler: impl Fn(&[Vec<u8>]) -> Action + Send + Sync + 'static) -> TestServer {
    let listener = TestServer::bind();
    let addr = listener.local_addr().unwrap();
    TestServer::start_on(listener, move |args| match args[0].as_slice() {
        b"CLUSTER" => slots_reply(8192, addr, addr),
        _ => handler(args),
    })
}

#[test]
fn each_command_goes_to_its_owner() {
    let pair = Pair::start(8192);
    let mut client = pair.client();
    let keys: Vec<_> = (0..200).map(|n| format!("key{n}").into_bytes()).collect();
    let sets: Vec<_> = keys.iter().map(|key| Command::Set(key, key)).collect();
    for outcome in client.execute(&sets) {
        assert!(matches!(outcome, Outcome::Acknowledged(Answer::Stored)), "{outcome:?}");
    }
    assert_eq!(client.redirects(), 0);
    assert_eq!(pair.store.lock().len(), 200);
    let gets: Vec<_> = keys.iter().map(|key| Command::Get(key)).collect();
    for (key, outcome) in keys.iter().zip(client.execute(&gets)) {
        assert!(matches!(&outcome, Outcome::Acknowledged(Answer::Value(Some(v))) if v == key), "{outcome:?}");
    }
    assert!(matches!(client.delete(&keys[0]), Outcome::Acknowledged(true)));
    assert!(matches!(client.delete(&keys[0]), Outcome::Acknowledged(false)));
    assert!(matches!(client.get(&keys[0]), Outcome::Acknowledged(None)));
}

#[test]
fn moved_slots_are_followed_and_remembered() {
    let pair = Pair::start(16383);
    let mut client = pair.client();
    assert!(matches!(client.set(b"key", b"1"), Outcome::Acknowledged(())));
    pair.split.store(1, Ordering::SeqCst);
    assert!(matches!(client.set(b"key", b"2"), Outcome::Acknowledged(())));
    assert_eq!(client.redirects(), 1);
    assert!(matches!(client.get(b"key"), Outcome::Acknowledged(Some(v)) if v == b"2"));
    assert_eq!(client.redirects(), 1);
    assert_eq!(client.slots().owner(Slot::of_key(b"key")), Some(pair.servers[1].addr()));
}

#[test]
fn ask_is_followed_once_and_not_remembered() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let target = TestServer::start(move |args| match args[0].as_slice() {
        b"ASKING" => {
            count.fetch_add(1, Ordering::SeqCst);
            Action::reply("+OK")
        }
        _ => Action::reply("+OK"),
    });
    let addr = target.addr();
    let source =
        single(move |args| Action::reply(&format!("-ASK {} {addr}", Slot::of_key(&args[1]).number())));
    let mut client = ClusterClient::new(&[source.addr()], config(2_000));
    assert!(matches!(client.set(b"key", b"1"), Outcome::Acknowledged(())));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(client.slots().owner(Slot::of_key(b"key")), Some(source.addr()));
}

#[test]
fn patience_is_bounded_and_ends_in_a_refusal() {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = tries.clone();
    let node = single(move |args| match args[1].as_slice() {
        b"soon" if count.fetch_add(1, Ordering::SeqCst) >= 3 => Action::reply("+OK"),
        b"soon" => Action::reply("-TRYAGAIN the slot is frozen"),
        _ => Action::reply("-CLUSTERDOWN Hash slot not served"),
    });
    let mut client = ClusterClient::new(&[node.addr()], config(2_000));
    assert!(matches!(client.set(b"soon", b"1"), Outcome::Acknowledged(())));
    assert_eq!(tries.load(Ordering::SeqCst), 4);
    let mut client = ClusterClient::new(&[node.addr()], config(50));
    let Outcome::Refused(error) = client.set(b"never", b"1") else { panic!("not refused") };
    assert_eq!(error.to_string(), format!("{}: CLUSTERDOWN Hash slot not served", node.addr()));
}

#[test]
fn a_write_that_was_not_answered_is_unknown_and_not_repeated() {
    let writes = Arc::new(AtomicUsize::new(0));
    let count = writes.clone();
    let node = single(move |args| {
        count.fetch_add(1, Ordering::SeqCst);
        match args[1].as_slice() {
            b"close" => Action::Close,
            b"silence" => Action::Silence,
            b"wrong" => Action::reply(":7"),
            b"error" => Action::reply("-IOERR the write was applied, but not written"),
            _ => Action::reply("+OK"),
        }
    });
    for key in ["close", "silence", "wrong", "error"] {
        let mut client = ClusterClient::new(&[node.addr()], config(2_000));
        let before = writes.load(Ordering::SeqCst);
        assert!(matches!(client.set(key.as_bytes(), b"1"), Outcome::Unknown(_)), "{key}");
        assert_eq!(writes.load(Ordering::SeqCst), before + 1, "{key} was sent once");
        assert!(matches!(client.set(b"fine", b"1"), Outcome::Acknowledged(())), "after {key}");
    }
}

#[test]
fn in_a_batch_each_command_has_its_own_outcome() {
    let node = single(move |args| match args[1].as_slice() {
        b"refused" => Action::reply("-OOM command not allowed"),
        b"close" => Action::Close,
        _ => Action::reply("+OK"),
    });
    let mut client = ClusterClient::new(&[node.addr()], config(100));
    let keys: [&[u8]; 4] = [b"fine", b"refused", b"close", b"behind"];
    let outcomes = client.execute(&keys.map(|key| Command::Set(key, b"1")));
    assert!(matches!(outcomes[0], Outcome::Acknowledged(Answer::Stored)));
    assert!(matches!(outcomes[1], Outcome::Refused(ClientError::Server { .. })));
    assert!(matches!(outcomes[2], Outcome::Unknown(_)));
    assert!(matches!(outcomes[3], Outcome::Unknown(_)));
}

#[test]
fn reads_are_repeated_over_a_new_connection() {
    let reads = Arc::new(AtomicUsize::new(0));
    let count = reads.clone();
    let node = single(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Action::Close,
        _ => Action::bulk(b"value"),
    });
    let mut client = ClusterClient::new(&[node.addr()], config(2_000));
    assert!(matches!(client.get(b"key"), Outcome::Acknowledged(Some(v)) if v == b"value"));
    node.disconnect_all();
    assert!(matches!(client.get(b"key"), Outcome::Acknowledged(Some(v)) if v == b"value"));
}

#[test]
fn nobody_there_is_a_refusal() {
    let mut client = ClusterClient::new(&[TestServer::unused_addr()], config(30));
    assert!(matches!(client.set(b"k", b"v"), Outcome::Refused(ClientError::Connect { .. })));
    let mut client = ClusterClient::new(&[], config(30));
    assert!(matches!(client.set(b"k", b"v"), Outcome::Refused(ClientError::NoNodes)));
}
