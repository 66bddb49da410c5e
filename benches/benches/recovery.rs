//! Opening an engine that has a million keys, from its log alone and from a checkpoint; and what taking a checkpoint of a
//! gigabyte costs those who use the engine meanwhile.
//!
//! Goals, on two cores: from a checkpoint at most 0.3 s, from the log alone at most 0.5 s; while a checkpoint is taken the
//! 99th percentile of gets and sets at most 1.5 times that without one.

use std::cell::LazyCell;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use lockgate_benches::filled::{key, set_when_there_is_room};
use lockgate_benches::groups::Group;
use lockgate_benches::numbers::Numbers;
use lockgate_benches::output::{self, data_folder};
use lockgate_benches::samples::Samples;
use lockgate_benches::size;
use lockgate_benches::svg::{Bar, bars};
use lockgate_benches::table::Table;
use lockgate_engine::{Engine, EngineBuilder};
use lockgate_runtime::block_on_foreign;
use tempfile::TempDir;

const CORES: usize = 2;
const KEYS: usize = 1_000_000;
const VALUE_BYTES: usize = 100;
/// What a checkpoint is taken of: a gigabyte.
const LARGE_KEYS: usize = 256 << 10;
const LARGE_VALUE_BYTES: usize = 4_096;
const FROM_CHECKPOINT_US: f64 = 300_000.0;
const FROM_LOG_US: f64 = 500_000.0;
const P99_MAX: f64 = 1.5;
/// Gets and sets between two looks at whether the checkpoint has ended.
const PER_TURN: usize = 1_000;

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = recovery
}
criterion_main!(benches);

fn recovery(criterion: &mut Criterion) {
    lockgate_benches::log_to_stderr();
    let mut table = Table::default();
    let mut picture = Vec::new();
    openings(criterion, &mut table, &mut picture);
    beside_a_checkpoint(criterion, &mut table);
    output::publish("recovery", &table, &bars("opening a million keys, medians", &picture));
}

fn builder(folder: &Path) -> EngineBuilder {
    Engine::builder(folder.join("engine")).cores(CORES).automatic_checkpoints(false)
}

/// Fills an engine, and hands it back when all of it is on the disk.
fn fill(folder: &Path, keys: usize, value_bytes: usize) -> Engine {
    let engine = builder(folder).open().expect("the engine opens");
    let (keyspace, value) = (engine.keyspace(0), vec![0x5a; value_bytes]);
    (0..keys as u64).for_each(|number| set_when_there_is_room(&engine, &keyspace, &key(number), &value));
    block_on_foreign(engine.sync_all()).expect("not on a core").expect("the disk works");
    engine
}

fn checkpoint(engine: &Engine) {
    engine.checkpoint_blocking().expect("the checkpoint is taken");
}

/// A directory that is opened again and again.
struct Closed {
    folder: TempDir,
    keys: u64,
}

impl Closed {
    fn new(has_checkpoint: bool) -> Closed {
        let (folder, keys) = (data_folder(), size(KEYS, 2_000));
        let engine = fill(folder.path(), keys, VALUE_BYTES);
        if has_checkpoint {
            checkpoint(&engine);
        }
        Closed { folder, keys: keys as u64 }
    }

    /// Times of opening it, each up to the first get. Closing it does not count.
    fn open(&mut self, count: usize) -> Vec<u64> {
        let one = |_| {
            let began = Instant::now();
            let engine = builder(self.folder.path()).open().expect("the engine opens");
            let keyspace = engine.keyspace(0);
            assert!(keyspace.get(&key(0)).expect("a served slot can be read").is_some());
            let ns = began.elapsed().as_nanos() as u64;
            assert_eq!(keyspace.len(), self.keys, "nothing is lost");
            ns
        };
        (0..count).map(one).collect()
    }
}

fn openings(criterion: &mut Criterion, table: &mut Table, picture: &mut Vec<Bar>) {
    let mut group = Group::new(criterion, "open 1M keys", 10, Duration::from_secs(5));
    let kinds = [("from a checkpoint", true, FROM_CHECKPOINT_US), ("from the log alone", false, FROM_LOG_US)];
    for (name, has_checkpoint, goal_us) in kinds {
        let mut closed = LazyCell::new(move || Closed::new(has_checkpoint));
        let samples: Samples = group.measure_on(name, &mut closed, Closed::open).into_iter().collect();
        let goal = format!("{} s", goal_us / 1e6);
        table.at_most(&format!("open 1M keys {name}"), &samples, &goal, goal_us);
        if !samples.is_empty() {
            picture.push(Bar::plain(name, samples.p50_us()));
        }
    }
}

/// A thread that gets and sets, with and without a checkpoint being taken beside it.
struct Used {
    engine: Engine,
    value: Vec<u8>,
    keys: u64,
    numbers: Numbers,
    without: Samples,
    with: Samples,
    // The last one: the engine ends before its folder goes.
    _folder: TempDir,
}

impl Used {
    fn new() -> Used {
        let (folder, keys) = (data_folder(), size(LARGE_KEYS, 2_000));
        let engine = fill(folder.path(), keys, LARGE_VALUE_BYTES);
        let (without, with) = (Samples::default(), Samples::default());
        Used {
            engine,
            value: vec![0x5a; LARGE_VALUE_BYTES],
            keys: keys as u64,
            numbers: Numbers::new(1),
            without,
            with,
            _folder: folder,
        }
    }

    /// Takes checkpoints; each counts with its duration. Before each the same is done for as long without one.
    fn checkpoints(&mut self, count: usize) -> Vec<u64> {
        let mut all_ns: Vec<u64> = Vec::new();
        for _ in 0..count {
            let as_long = Duration::from_nanos(all_ns.last().copied().unwrap_or(100_000_000));
            let began = Instant::now();
            while began.elapsed() < as_long {
                let turn = self.turn();
                self.without.append(turn);
            }
            let (engine, (tell, told)) = (self.engine.clone(), mpsc::channel());
            let began = Instant::now();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    checkpoint(&engine);
                    tell.send(()).expect("somebody waits for it");
                });
                while told.try_recv().is_err() {
                    let turn = self.turn();
                    self.with.append(turn);
                }
            });
            all_ns.push(began.elapsed().as_nanos() as u64);
        }
        all_ns
    }

    /// As many gets as sets, of keys drawn at random.
    fn turn(&mut self) -> Samples {
        let keyspace = self.engine.keyspace(0);
        let mut samples = Samples::default();
        for at in 0..PER_TURN {
            let key = key(self.numbers.below(self.keys));
            let began = Instant::now();
            if at % 2 == 0 {
                assert!(keyspace.get(&key).expect("a served slot can be read").is_some());
            } else {
                set_when_there_is_room(&self.engine, &keyspace, &key, &self.value);
            }
            samples.push(began.elapsed().as_nanos() as u64);
        }
        samples
    }
}

fn beside_a_checkpoint(criterion: &mut Criterion, table: &mut Table) {
    let mut group = Group::new(criterion, "checkpoint of 1 GB", 10, Duration::from_secs(10));
    let mut used = LazyCell::new(Used::new);
    let taken: Samples = group.measure_on("taken", &mut used, Used::checkpoints).into_iter().collect();
    table.figure("checkpoint of 1 GB", &taken);
    if let Some(used) = LazyCell::get(&used) {
        let goal = "without a checkpoint";
        table.budget_p99("gets and sets beside it", &used.with, P99_MAX, goal, &used.without);
    }
}
