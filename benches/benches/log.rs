//! Sets that are on the disk when they return: of one writer against the disk's own time, and of many against one.
//!
//! Goals: one writer at most 1.3 raw syncs; 64 writers at least 30 times as many sets a second as one. Raw syncs are measured
//! before each turn of the writers, and do not count. A set is 16 and 100 bytes.

use std::cell::LazyCell;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::future::join_all;
use lockgate_benches::filled::{Filled, Key, key};
use lockgate_benches::groups::Group;
use lockgate_benches::output::{self, data_folder};
use lockgate_benches::raw_sync::RawSync;
use lockgate_benches::samples::Samples;
use lockgate_benches::size;
use lockgate_benches::svg::{Bar, bars};
use lockgate_benches::table::Table;
use lockgate_engine::Keyspace;
use lockgate_runtime::now_ns;
use tempfile::TempDir;

const VALUE_BYTES: usize = 100;
const KEYS: usize = 100_000;
const WRITERS: usize = 64;
/// Sets of one writer, and raw syncs, that are measured in turns.
const PER_TURN: usize = 20;
/// Sets of each of many writers in one turn.
const PER_WRITER: usize = 20;
const ONE_WRITER_MAX: f64 = 1.3;
const MANY_WRITERS_MIN: f64 = 30.0;

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = log
}
criterion_main!(benches);

fn log(criterion: &mut Criterion) {
    lockgate_benches::log_to_stderr();
    let mut bench = LazyCell::new(Bench::new);
    let mut group = Group::new(criterion, "synced set", 50, Duration::from_secs(4));
    let mut measured = |name: &str, routine: fn(&mut Bench, usize) -> Vec<u64>| -> Samples {
        group.measure_on(name, &mut bench, routine).into_iter().collect()
    };
    measured("raw sync", |bench, count| bench.raw.measure(count).into_ns());
    let task = measured("one task on the core", |bench, count| bench.in_turns(count, Bench::task));
    let thread = measured("one thread", |bench, count| bench.in_turns(count, Bench::thread));
    let tasks = measured("64 tasks on the core", |bench, count| bench.many(count, Bench::tasks));
    let threads = measured("64 threads", |bench, count| bench.many(count, Bench::threads));
    drop(group);
    let raw = LazyCell::get(&bench).map_or(Samples::default(), |bench| bench.raw_syncs.clone());
    let mut table = Table::default();
    table.figure("raw sync: 4 KiB, fdatasync", &raw);
    table.budget("one task on the core", &task, ONE_WRITER_MAX, "raw sync", &raw);
    table.budget("one thread", &thread, ONE_WRITER_MAX, "raw sync", &raw);
    let a_thirtieth = 1.0 / MANY_WRITERS_MIN;
    table.budget("64 tasks: time by sets", &tasks, a_thirtieth, "one task", &task);
    table.budget("64 threads: time by sets", &threads, a_thirtieth, "one thread", &thread);
    let shown = [("raw sync", &raw), ("one task", &task), ("one thread", &thread)];
    let shown = shown.into_iter().chain([("64 tasks, by sets", &tasks), ("64 threads, by sets", &threads)]);
    let picture: Vec<Bar> = shown
        .filter(|(_, samples)| !samples.is_empty())
        .map(|(name, samples)| Bar::plain(name, samples.p50_us()))
        .collect();
    output::publish("log", &table, &bars("synced sets, medians", &picture));
}

/// An engine with keys that are overwritten, and a file of its own for raw syncs on the same disk.
struct Bench {
    filled: Filled,
    keys: Vec<Key>,
    next: usize,
    raw: RawSync,
    raw_syncs: Samples,
    // The last one: the file is closed before its folder goes.
    _folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let keys = size(KEYS, 1_000) as u64;
        let (filled, folder) = (Filled::new(keys, VALUE_BYTES), data_folder());
        let raw = RawSync::new(folder.path());
        let keys = (0..keys).map(key).collect();
        Bench { filled, keys, next: 0, raw, raw_syncs: Samples::default(), _folder: folder }
    }

    /// The keys of the next `count` sets.
    fn draw(&mut self, count: usize) -> Vec<Key> {
        let drawn = self.keys.iter().cycle().skip(self.next).take(count).copied().collect();
        self.next = (self.next + count) % self.keys.len();
        drawn
    }

    /// `count` sets of one writer; before every few of them the disk's own time is measured.
    fn in_turns(&mut self, count: usize, sets: fn(&mut Bench, Vec<Key>) -> Vec<u64>) -> Vec<u64> {
        let mut all_ns = Vec::with_capacity(count);
        while all_ns.len() < count {
            let syncs = self.raw.measure(PER_TURN);
            self.raw_syncs.append(syncs);
            let keys = self.draw(PER_TURN.min(count - all_ns.len()));
            all_ns.extend(sets(self, keys));
        }
        all_ns
    }

    /// `count` turns of many writers. Each counts as the time that it took, by the sets that there were in it.
    fn many(&mut self, count: usize, sets: fn(&mut Bench, Vec<Key>) -> u64) -> Vec<u64> {
        let one = |_| {
            let keys = self.draw(WRITERS * PER_WRITER);
            sets(self, keys) / (WRITERS * PER_WRITER) as u64
        };
        (0..count).map(one).collect()
    }

    /// One writer on the core that writes the log.
    fn task(&mut self, keys: Vec<Key>) -> Vec<u64> {
        let (keyspace, value) = (self.filled.keyspace.clone(), self.filled.value.clone());
        self.filled.engine().runtime().block_on(0, move || async move {
            let mut all_ns = Vec::with_capacity(keys.len());
            for key in keys {
                let began_ns = now_ns();
                set_synced(&keyspace, &key, &value).await;
                all_ns.push(now_ns() - began_ns);
            }
            all_ns
        })
    }

    /// One writer on a thread of its own.
    fn thread(&mut self, keys: Vec<Key>) -> Vec<u64> {
        let set = |key: Key| {
            let began = Instant::now();
            set_synced_blocking(&self.filled, &key);
            began.elapsed().as_nanos() as u64
        };
        keys.into_iter().map(set).collect()
    }

    /// Many writers on the core that writes the log.
    fn tasks(&mut self, keys: Vec<Key>) -> u64 {
        let (keyspace, value) = (self.filled.keyspace.clone(), self.filled.value.clone());
        self.filled.engine().runtime().block_on(0, move || async move {
            let began_ns = now_ns();
            join_all(keys.chunks(PER_WRITER).map(async |keys| {
                for key in keys {
                    set_synced(&keyspace, key, &value).await;
                }
            }))
            .await;
            now_ns() - began_ns
        })
    }

    /// Many writers on threads of their own, which are there before the clock starts.
    fn threads(&mut self, keys: Vec<Key>) -> u64 {
        let (filled, starts) = (&self.filled, Barrier::new(WRITERS + 1));
        let mut began = Instant::now();
        std::thread::scope(|scope| {
            for keys in keys.chunks(PER_WRITER) {
                let starts = &starts;
                scope.spawn(move || {
                    starts.wait();
                    keys.iter().for_each(|key| set_synced_blocking(filled, key));
                });
            }
            began = Instant::now();
            starts.wait();
        });
        began.elapsed().as_nanos() as u64
    }
}

async fn set_synced(keyspace: &Keyspace, key: &Key, value: &[u8]) {
    let receipt = keyspace.set(key, value).expect("so few writes are never too many for the log");
    receipt.synced().await.expect("the disk works");
}

fn set_synced_blocking(filled: &Filled, key: &Key) {
    let receipt =
        filled.keyspace.set(key, &filled.value).expect("so few writes are never too many for the log");
    receipt.wait_synced().expect("the disk works");
}
