//! Operations of one engine: points, batches and mixes, by one thread and by two, and its memory.
//!
//! Sets and deletes are logged, and not waited for; one that finds the log behind waits for room in it, which counts. Which
//! sizes are measured is said by two environment variables: see the README. Goals are not judged here, but by
//! `lockgate-compare`, beside rivals.

use std::cell::LazyCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use lockgate_benches::filled::{Filled, Key, key};
use lockgate_benches::numbers::Numbers;
use lockgate_benches::table::Table;
use lockgate_benches::zipf::Zipf;
use lockgate_benches::{is_measurement, size};

/// The numbers of keys, with commas between; by default one million.
const KEYS_VARIABLE: &str = "LOCKGATE_BENCH_KEYS";
/// The lengths of values, likewise; by default 8, 100 and 4096.
const VALUES_VARIABLE: &str = "LOCKGATE_BENCH_VALUES";
/// Fewer keys where they would have more than this: a log of all writes is on the disk, too.
const RECORDS_BYTES_MAX: u64 = 2 << 30;
/// What a record has beside its value, about.
const RECORD_BYTES: u64 = 32;
/// Keys that are drawn before the clock starts, and used again and again.
const DRAWS: usize = 1 << 20;
/// Keys of one call for many.
const MANY: usize = 16;
/// Keys that are added before they are removed again, and the other way round.
const ADDED: u64 = 1 << 16;
/// YCSB's: the most frequent of a million keys has a share of 6.6%.
const ZIPF_EXPONENT: f64 = 0.99;

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = engine
}
criterion_main!(benches);

fn engine(criterion: &mut Criterion) {
    lockgate_benches::log_to_stderr();
    let mut table = Table::default();
    for keys in numbers(KEYS_VARIABLE, &[1_000_000], 1_000) {
        for value_bytes in numbers(VALUES_VARIABLE, &[8, 100, 4_096], 0) {
            measure(criterion, &mut table, keys, value_bytes);
        }
    }
    if !table.is_empty() {
        println!("\nengine\n{}", table.text());
    }
}

/// What an environment variable asks for; in a short round `small` at most, if that is not 0.
fn numbers(variable: &str, default: &[u64], small: u64) -> Vec<u64> {
    let parse = |one: &str| one.trim().replace('_', "").parse::<u64>().ok().filter(|one| *one > 0);
    let asked = std::env::var(variable).ok().map(|text| {
        let parsed: Option<Vec<u64>> = text.split(',').map(parse).collect();
        parsed.unwrap_or_else(|| panic!("{variable}={text}: it must be numbers with commas between"))
    });
    let numbers = asked.unwrap_or_else(|| default.to_vec());
    if is_measurement() || small == 0 { numbers } else { vec![small] }
}

/// All benchmarks on one size. The engine is filled by the first one that runs.
fn measure(criterion: &mut Criterion, table: &mut Table, keys: u64, value_bytes: u64) {
    let keys = keys.min(RECORDS_BYTES_MAX / (value_bytes + RECORD_BYTES));
    let name = format!("engine, {keys} keys, values of {value_bytes} B");
    let mut memory = (0, 0);
    let mut bench = LazyCell::new(|| {
        let bench = Bench::new(keys, value_bytes as usize);
        memory = bench.filled.memory_bytes();
        bench
    });
    let mut group = criterion.benchmark_group(&name);
    group.sampling_mode(SamplingMode::Flat).sample_size(20);
    group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(400));
    let points: [(&str, Routine); 7] = [
        ("get hit", Bench::get_hit),
        ("get_with hit", Bench::get_with_hit),
        ("get miss", Bench::get_miss),
        ("exists", Bench::exists),
        ("overwrite", Bench::overwrite),
        ("set new", Bench::set_new),
        ("delete", Bench::delete),
    ];
    for (name, routine) in points {
        run(&mut group, name, 1, &mut bench, routine);
    }
    run(&mut group, "get_many of 16", MANY as u64, &mut bench, Bench::get_many);
    run(&mut group, "get_many_with of 16", MANY as u64, &mut bench, Bench::get_many_with);
    let mixes = [
        ("95 to 5 by Zipf, 1 thread", 5, 1),
        ("95 to 5 by Zipf, 2 threads", 5, 2),
        ("50 to 50 by Zipf, 1 thread", 50, 1),
        ("50 to 50 by Zipf, 2 threads", 50, 2),
    ];
    for (name, writes, threads) in mixes {
        run(&mut group, name, 1, &mut bench, |bench, count| bench.mixed(count, writes, threads));
    }
    group.finish();
    drop(bench);
    let (segments, indexes) = memory;
    if segments > 0 {
        table.bytes_a_key(&format!("{name}: segments"), segments, keys);
        table.bytes_a_key(&format!("{name}: indexes"), indexes, keys);
    }
}

type Routine = fn(&mut Bench, u64) -> Duration;

fn run<F: FnOnce() -> Bench>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    elements: u64,
    bench: &mut LazyCell<Bench, F>,
    mut routine: impl FnMut(&mut Bench, u64) -> Duration,
) {
    group.throughput(Throughput::Elements(elements));
    group.bench_function(name, |bencher| {
        let bench = LazyCell::force_mut(bench);
        bencher.iter_custom(|iterations| routine(bench, iterations));
        // The disk's share of what was written belongs to nobody else.
        bench.filled.settle();
    });
}

/// A filled engine, and the keys to use, drawn before.
struct Bench {
    filled: Filled,
    hits: Vec<Key>,
    misses: Vec<Key>,
    /// Numbers by Zipf's law, the most frequent one first, and a number below 100 that says what to do.
    mixed: Vec<(Key, u64)>,
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

impl Bench {
    fn new(keys: u64, value_bytes: usize) -> Bench {
        let (mut numbers, law) = (Numbers::new(keys), Zipf::new(keys, ZIPF_EXPONENT));
        let draws = size(DRAWS, 1_000);
        Bench {
            filled: Filled::new(keys, value_bytes),
            hits: (0..draws).map(|_| key(numbers.below(keys))).collect(),
            misses: (0..draws).map(|_| key(keys + ADDED + numbers.below(keys))).collect(),
            mixed: (0..draws).map(|_| (key(law.rank(&mut numbers) - 1), numbers.below(100))).collect(),
        }
    }

    fn get_hit(&mut self, count: u64) -> Duration {
        let keys = self.hits.iter().cycle().take(count as usize);
        timed(|| keys.for_each(|key| _ = black_box(self.filled.get(key))))
    }

    fn get_with_hit(&mut self, count: u64) -> Duration {
        let (keys, keyspace) = (self.hits.iter().cycle().take(count as usize), &self.filled.keyspace);
        timed(|| {
            for key in keys {
                let see = |value: Option<&[u8]>, _| assert!(black_box(value).is_some());
                keyspace.get_with(key, see).expect("a served slot can be read");
            }
        })
    }

    fn get_miss(&mut self, count: u64) -> Duration {
        let (keys, keyspace) = (self.misses.iter().cycle().take(count as usize), &self.filled.keyspace);
        timed(|| {
            for key in keys {
                let value = keyspace.get(key).expect("a served slot can be read");
                assert!(value.is_none(), "a key that was never set is not there");
            }
        })
    }

    fn exists(&mut self, count: u64) -> Duration {
        let (keys, keyspace) = (self.hits.iter().cycle().take(count as usize), &self.filled.keyspace);
        timed(|| {
            for key in keys {
                assert!(keyspace.exists(key).expect("a served slot can be read"));
            }
        })
    }

    fn overwrite(&mut self, count: u64) -> Duration {
        let keys = self.hits.iter().cycle().take(count as usize);
        timed(|| keys.for_each(|key| self.filled.set(key)))
    }

    /// Adds keys; their removal is not part of it.
    fn set_new(&mut self, count: u64) -> Duration {
        self.added_and_removed(count).0
    }

    /// Removes keys; that they were added is not part of it.
    fn delete(&mut self, count: u64) -> Duration {
        self.added_and_removed(count).1
    }

    fn added_and_removed(&self, count: u64) -> (Duration, Duration) {
        let (mut adding, mut removing, mut left) = (Duration::ZERO, Duration::ZERO, count);
        while left > 0 {
            let now = left.min(ADDED);
            let keys: Vec<Key> = (0..now).map(|at| key(self.filled.keys + at)).collect();
            adding += timed(|| keys.iter().for_each(|key| self.filled.set(key)));
            removing += timed(|| keys.iter().for_each(|key| self.filled.delete(key)));
            left -= now;
        }
        (adding, removing)
    }

    /// Batches of [`MANY`].
    fn get_many(&mut self, count: u64) -> Duration {
        let keys: Vec<&[u8]> = self.hits.iter().map(|key| &key[..]).collect();
        let batches = keys.chunks_exact(MANY).cycle().take(count as usize);
        timed(|| {
            for batch in batches {
                let values = self.filled.keyspace.get_many(batch).expect("served slots can be read");
                assert!(black_box(&values).iter().all(Option::is_some));
            }
        })
    }

    /// The same, with values looked at where they lie.
    fn get_many_with(&mut self, count: u64) -> Duration {
        let keys: Vec<&[u8]> = self.hits.iter().map(|key| &key[..]).collect();
        let batches = keys.chunks_exact(MANY).cycle().take(count as usize);
        timed(|| {
            for batch in batches {
                let see = |_, value: Option<&[u8]>, _| assert!(black_box(value).is_some());
                self.filled.keyspace.get_many_with(batch, see).expect("served slots can be read");
            }
        })
    }

    /// Reads, and `writes` of a hundred sets, by so many threads together.
    fn mixed(&mut self, count: u64, writes: u64, threads: usize) -> Duration {
        let share = count.div_ceil(threads as u64) as usize;
        let (filled, mixed) = (&self.filled, &self.mixed);
        let one = |thread: usize| {
            // Each thread begins elsewhere in the same draws.
            let draws = mixed.iter().cycle().skip(mixed.len() / threads * thread).take(share);
            for (key, what) in draws {
                if *what < writes {
                    filled.set(key);
                } else {
                    black_box(filled.get(key));
                }
            }
        };
        timed(|| {
            std::thread::scope(|scope| {
                (1..threads).for_each(|thread| {
                    scope.spawn(move || one(thread));
                });
                one(0);
            });
        })
    }
}
