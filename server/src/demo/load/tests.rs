//! The clients against a store that can be told to misbehave: what it does wrong is found, and nothing else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lockgate_engine::Slot;
use lockgate_runtime::sync::Mutex;

use super::super::check;
use super::super::data::{DataEntry, DataSet};
use super::super::probe::{GapProbe, SlotTags};
use super::super::tally::Totals;
use super::*;
use crate::client::Timeouts;
use crate::client::test_server::{Action, TestServer};

const KEYS: u32 = 300;

#[derive(Default)]
struct Store {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    writes: u64,
    /// Every n-th SET is acknowledged, but not kept.
    lose_one_in: Option<u64>,
    /// Every n-th SET is kept, and the connection closed before its answer.
    close_one_in: Option<u64>,
    /// Every n-th DEL is acknowledged, but not done.
    keep_deleted_one_in: Option<u64>,
}

fn every(n: Option<u64>, count: u64) -> bool {
    n.is_some_and(|n| count.is_multiple_of(n))
}

impl Store {
    fn run(&mut self, args: &[Vec<u8>]) -> Action {
        match args[0].as_slice() {
            b"GET" => self.values.get(&args[1]).map_or(Action::reply("$-1"), |value| Action::bulk(value)),
            b"SET" => {
                self.writes += 1;
                if !every(self.lose_one_in, self.writes) {
                    self.values.insert(args[1].clone(), args[2].clone());
                }
                if every(self.close_one_in, self.writes) { Action::Close } else { Action::reply("+OK") }
            }
            b"DEL" => {
                self.writes += 1;
                let existed = self.values.contains_key(&args[1]);
                if !every(self.keep_deleted_one_in, self.writes) {
                    self.values.remove(&args[1]);
                }
                Action::reply(if existed { ":1" } else { ":0" })
            }
            _ => Action::reply("-ERR unknown command"),
        }
    }
}

struct Setup {
    server: TestServer,
    store: Arc<Mutex<Store>>,
    shared: Arc<Shared>,
    config: LoadConfig,
}

fn setup(store: Store) -> Setup {
    let listener = TestServer::bind();
    let addr = listener.local_addr().unwrap();
    let store = Arc::new(Mutex::new(store));
    let inner = store.clone();
    let server = TestServer::start_on(listener, move |args| match args[0].as_slice() {
        b"CLUSTER" => {
            let (host, port) = ("$9\r\n127.0.0.1", addr.port());
            Action::Reply(format!("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n{host}\r\n:{port}\r\n").into_bytes())
        }
        _ => inner.lock().run(args),
    });
    let entry = |n: u32| DataEntry::new(format!("key{n}").into_bytes(), vec![b'v'; n as usize]);
    let data = Arc::new(DataSet::from_entries((0..KEYS).map(entry).collect()).unwrap());
    let shared = Shared::new(Arc::new(Oracle::new(9, data)), Arc::new(Tally::new()));
    let timeouts = Timeouts { connect: Duration::from_secs(5), answer: Duration::from_secs(5) };
    let client = ClientConfig { timeouts, retry: Duration::from_secs(5) };
    let config = LoadConfig { seeds: vec![addr], writers: 2, readers: 2, keys_in_flight: 8, seed: 9, client };
    Setup { server, store, shared, config }
}

impl Setup {
    /// Fills, runs the clients until so many writes were answered, and compares.
    fn run(&self, writes: u64) -> (Counts, Totals) {
        let filled = AtomicU64::new(0);
        Load::fill(&self.config, &self.shared, |keys| {
            filled.fetch_add(keys, Ordering::SeqCst);
        });
        assert_eq!(filled.load(Ordering::SeqCst), u64::from(KEYS));
        self.shared.counting.store(true, Ordering::SeqCst);
        let load = Load::start(&self.config, &self.shared).unwrap();
        let give_up = Instant::now() + Duration::from_secs(60);
        while self.shared.counts().acked < writes {
            assert!(Instant::now() < give_up, "{:?}", self.shared.counts());
            std::thread::yield_now();
        }
        let counts = load.stop();
        let compared = check::compare_all(&self.config.seeds, self.config.client, &self.shared, 2, |_| ());
        assert_eq!((compared.keys, compared.unread.len()), (u64::from(KEYS), 0));
        (counts, self.shared.tally.totals())
    }
}

#[test]
fn a_good_store_passes() {
    let setup = setup(Store::default());
    let (counts, totals) = setup.run(5_000);
    assert_eq!(totals, Totals::default());
    assert_eq!((counts.refused, counts.unknown, counts.failed_reads, counts.redirects), (0, 0, 0, 0));
    assert!(counts.reads > 0);
    assert_eq!(counts.acked, counts.acked_while_counting + u64::from(KEYS));
    let share = counts.deletes as f64 / counts.acked_while_counting as f64;
    assert!((0.07..0.13).contains(&share), "{share} of the writes are deletes");
}

#[test]
fn lost_writes_are_found() {
    let setup = setup(Store { lose_one_in: Some(500), ..Store::default() });
    let (_, totals) = setup.run(5_000);
    assert!(totals.lost + totals.stale_reads > 0, "{totals:?}");
    assert!(!totals.findings.is_empty());
}

#[test]
fn deleted_keys_that_stay_are_found() {
    let setup = setup(Store { keep_deleted_one_in: Some(5), ..Store::default() });
    let (_, totals) = setup.run(5_000);
    assert!(totals.resurrected > 0, "{totals:?}");
    assert_eq!(totals.corrupt, 0);
}

#[test]
fn corruption_is_found_in_the_final_comparison() {
    let setup = setup(Store::default());
    Load::fill(&setup.config, &setup.shared, |_| ());
    let mut store = setup.store.lock();
    store.values.get_mut(b"key7".as_slice()).unwrap().push(b'!');
    store.values.remove(b"key8".as_slice());
    drop(store);
    check::compare_all(&setup.config.seeds, setup.config.client, &setup.shared, 2, |_| ());
    let totals = setup.shared.tally.totals();
    assert_eq!((totals.corrupt, totals.lost, totals.resurrected, totals.stale_reads), (1, 1, 0, 0));
}

#[test]
fn connections_that_break_are_not_reported_as_violations() {
    let setup = setup(Store { close_one_in: Some(100), ..Store::default() });
    let (counts, totals) = setup.run(5_000);
    assert!(counts.unknown > 0);
    assert_eq!(totals, Totals::default());
}

#[test]
fn a_probe_measures_the_gap_and_every_slot_is_checked() {
    let setup = setup(Store::default());
    let (seeds, client, tally) = (&setup.config.seeds, setup.config.client, &setup.shared.tally);
    let tags = SlotTags::find();
    let slots: Vec<_> = Slot::all().skip(100).take(500).collect();
    let probe = GapProbe::start("1", seeds, client, &slots, &tags, tally).unwrap();
    let wait = |more: u64| {
        let from = probe.acked();
        while probe.acked() < from + more {
            std::thread::yield_now();
        }
    };
    wait(20);
    let frozen = setup.store.lock();
    let pause = Duration::from_millis(50);
    std::thread::sleep(pause);
    drop(frozen);
    wait(20);
    let gap = probe.finish();
    assert!(gap.longest >= pause && gap.acked >= 40 && gap.failed == 0, "{gap:?}");
    assert_eq!(check::unowned_slots(seeds, client, &tags), []);
    assert_eq!(tally.totals(), Totals::default());
    let left = setup.store.lock().values.keys().filter(|key| key.starts_with(b"owned?")).count();
    assert_eq!(left, 0);
    drop(setup.server);
}

#[test]
fn slots_that_nobody_serves_are_counted() {
    let server = TestServer::start(|args| match args[0].as_slice() {
        b"CLUSTER" => Action::reply("*0"),
        _ if Slot::of_key(&args[1]).number() < 3 => Action::reply("-CLUSTERDOWN Hash slot not served"),
        b"SET" => Action::reply("+OK"),
        _ => Action::reply(":1"),
    });
    let unowned = check::unowned_slots(&[server.addr()], ClientConfig::default(), &SlotTags::find());
    assert_eq!(unowned.iter().map(|slot| slot.number()).collect::<Vec<_>>(), [0, 1, 2]);
}
