//! Clients that write, read and delete a few keys, and remember what they asked, when, and what they were told.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lockgate::client::{ClientConfig, ClusterClient, Outcome as Told, Timeouts};
use lockgate_engine::Slot;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use lockgate_sim::checker::{Call, Condition, Limits, Operation, Outcome, Reply, Verdict, check};
use lockgate_sim::random::Random;

const CLIENTS: u32 = 8;
const KEYS: usize = 10;
/// The longest pause between two operations of a client.
const THINK_US_MAX: u64 = 8_000;
const TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_millis(300), answer: Duration::from_millis(250) };

/// What all clients share.
struct Shared {
    nodes: Vec<SocketAddr>,
    keys: Vec<String>,
    began: Instant,
    next_value: AtomicU64,
    stop: AtomicBool,
}

/// What one client saw: of which key, and what.
type Seen = Vec<(usize, Operation)>;

/// Clients at work.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Seen>>,
}

impl Clients {
    /// Clients that know these nodes. Half of their keys are in the slots that move.
    pub fn start(nodes: Vec<SocketAddr>, (first, last): (u16, u16)) -> Clients {
        let key = |moves: bool| {
            let names = (0u32..).map(|number| format!("key:{number}"));
            names
                .filter(move |name| (first..=last).contains(&Slot::of_key(name.as_bytes()).number()) == moves)
        };
        let shared = Arc::new(Shared {
            nodes,
            keys: key(true).take(KEYS / 2).chain(key(false).take(KEYS / 2)).collect(),
            began: Instant::now(),
            next_value: AtomicU64::new(1),
            stop: AtomicBool::new(false),
        });
        let start = |number| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.client(number))
        };
        Clients { threads: (0..CLIENTS).map(start).collect(), shared }
    }

    /// Ends them, reads every key once more, and judges what they saw.
    pub fn check(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut seen: Seen =
            self.threads.into_iter().flat_map(|thread| thread.join().expect("a client ends")).collect();
        let mut last = self.shared.connect(Duration::from_secs(60));
        seen.extend((0..KEYS).map(|key| {
            let operation = self.shared.operate(&mut last, CLIENTS, key, Kind::Get);
            assert!(operation.ended_ns().is_some(), "{} could not be read", self.shared.keys[key]);
            (key, operation)
        }));
        let unknown = seen.iter().filter(|(_, operation)| operation.outcome == Outcome::Unknown).count();
        eprintln!("{} operations, {unknown} of unknown outcome", seen.len());
        for key in 0..KEYS {
            let of_key = |&(at, operation): &(usize, Operation)| (at == key).then_some(operation);
            let history: Vec<Operation> = seen.iter().filter_map(of_key).collect();
            let verdict = check(&history, Limits { configurations_max: 5_000_000 });
            let name = &self.shared.keys[key];
            assert_eq!(verdict, Verdict::Linearizable, "{name}, {} operations", history.len());
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Get,
    Set,
    Delete,
}

impl Shared {
    fn connect(&self, retry: Duration) -> ClusterClient {
        ClusterClient::new(&self.nodes, ClientConfig { timeouts: TIMEOUTS, retry })
    }

    fn client(&self, number: u32) -> Seen {
        let mut random = Random::new(u64::from(number), "partitions");
        let (mut client, mut seen) = (self.connect(Duration::from_secs(3)), Seen::new());
        while !self.stop.load(Ordering::Relaxed) {
            let key = random.index(KEYS);
            let kind = random.weighted(&[(4, Kind::Get), (4, Kind::Set), (1, Kind::Delete)]);
            seen.push((key, self.operate(&mut client, number, key, kind)));
            std::thread::sleep(Duration::from_micros(random.between(0, THINK_US_MAX)));
        }
        seen
    }

    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn operate(&self, client: &mut ClusterClient, number: u32, key: usize, kind: Kind) -> Operation {
        let name = self.keys[key].as_bytes();
        let value = self.next_value.fetch_add(1, Ordering::Relaxed);
        let invoked_ns = self.now_ns();
        let (call, told) = match kind {
            Kind::Get => (
                Call::Get,
                reply(client.get(name), |found| Reply::Value(found.map(|bytes| number_of(&bytes)))),
            ),
            Kind::Set => {
                let call = Call::Set { value, expiry: None, condition: Condition::Always };
                (call, reply(client.set(name, value.to_string().as_bytes()), |()| Reply::Set(true)))
            }
            Kind::Delete => (Call::Delete, reply(client.delete(name), Reply::Deleted)),
        };
        let at_ns = self.now_ns();
        let outcome = match told {
            Told::Acknowledged(reply) => Outcome::Returned { at_ns, reply },
            Told::Refused(_) => Outcome::Refused { at_ns },
            Told::Unknown(_) => Outcome::Unknown,
        };
        Operation { client: number, call, invoked_ns, outcome }
    }
}

fn reply<T>(told: Told<T>, change: impl FnOnce(T) -> Reply) -> Told<Reply> {
    match told {
        Told::Acknowledged(answer) => Told::Acknowledged(change(answer)),
        Told::Refused(error) => Told::Refused(error),
        Told::Unknown(error) => Told::Unknown(error),
    }
}

/// Values are the numbers of their writes.
fn number_of(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).expect("somebody wrote it")
}
