//! From the freeze of a job to its activation at the target, stage by stage, beside the data syncs of the same disk in the
//! same run.
//!
//! Two shards with a replica each, three voters, answers synced. Jobs go forth and back; before each of them the disk is
//! measured, which does not count. Goals: freeze to activate at most four raw syncs, and 64 jobs that are ready at once at
//! most four times one.

use std::cell::LazyCell;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::future::{join, join_all};
use lockgate_benches::cluster::{Cluster, Machines, Shape, activated, keys_in, moved, set, start_job};
use lockgate_benches::groups::{Group, Timed};
use lockgate_benches::raw_sync::{RawSync, engine_log, engine_syncs, ring_syncs};
use lockgate_benches::samples::Samples;
use lockgate_benches::stages::{Finalized, StageSamples};
use lockgate_benches::svg::{Bar, bars};
use lockgate_benches::table::Table;
use lockgate_benches::{output, size};
use lockgate_engine::log::Log;
use lockgate_migrate::Times;
use lockgate_migrate::control::SlotRange;

/// Jobs that are ready at once.
const AT_ONCE: u16 = 64;
/// Syncs of each kind before every job.
const SYNCS_PER_JOB: usize = 2;
const VALUE: [u8; 100] = [0x42; 100];

/// Both primaries: jobs go from the first to the second and back.
const PRIMARIES: [usize; 2] = [0, 2];

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots();
    targets = finalize
}
criterion_main!(benches);

fn finalize(criterion: &mut Criterion) {
    lockgate_benches::log_to_stderr();
    let mut bench = LazyCell::new(Bench::start);
    let mut group = Group::new(criterion, "finalize", 100, Duration::from_secs(10));
    group.measure_on("raw sync", &mut bench, |bench, count| bench.disk.raw.measure(count).into_ns());
    let mut slots = Shuttle::of(0, 0);
    let one = group.measure_on("1 slot", &mut bench, |bench, count| bench.jobs(&mut slots, count));
    let mut slots = Shuttle::of(64, 127);
    let large = group.measure_on("64 slots", &mut bench, |bench, count| bench.jobs(&mut slots, count));
    let mut slots = Shuttle::of(128, 191);
    let written = group
        .measure_on("64 slots, written", &mut bench, |bench, count| bench.written_jobs(&mut slots, count));
    drop(group);
    // Each of its iterations is a whole round.
    let mut group = Group::new(criterion, "finalize at once", 20, Duration::from_secs(10));
    let jobs = size(usize::from(AT_ONCE), 16) as u16;
    let mut slots = Shuttle::of(192, 192 + jobs - 1);
    let rounds =
        group.measure_on(&format!("{jobs} jobs"), &mut bench, |bench, count| bench.rounds(&mut slots, count));
    drop(group);
    if let Some(bench) = LazyCell::get(&bench) {
        report(&bench.disk, &one, &large, &written, &rounds);
    }
}

/// Slots that go forth and back between the primaries. Each benchmark has its own: how often it moves them is for criterion
/// to say.
struct Shuttle {
    slots: SlotRange,
    trips: usize,
}

impl Shuttle {
    fn of(first: u16, last: u16) -> Shuttle {
        Shuttle { slots: SlotRange::new(first, last), trips: 0 }
    }

    /// What moves next: from which machine to which.
    fn next(&mut self) -> Trip {
        let [source, target] = [0, 1].map(|side| PRIMARIES[(self.trips + side) % 2]);
        self.trips += 1;
        Trip { slots: self.slots, source, target }
    }
}

#[derive(Clone, Copy)]
struct Trip {
    slots: SlotRange,
    source: usize,
    target: usize,
}

/// What the disk does without nodes.
struct Disk {
    raw: RawSync,
    log: Log,
    raw_syncs: Samples,
    ring: Samples,
    ring_of_three: Samples,
    engine: Samples,
}

impl Disk {
    fn new(cluster: &Cluster) -> Disk {
        let folder = cluster.folder().to_path_buf();
        let log = cluster.run(|_| async move { engine_log(&folder).await });
        let (raw, none) = (RawSync::new(cluster.folder()), Samples::default);
        Disk { raw, log, raw_syncs: none(), ring: none(), ring_of_three: none(), engine: none() }
    }

    fn measure(&mut self, cluster: &Cluster) {
        self.raw_syncs.append(self.raw.measure(SYNCS_PER_JOB));
        let (folder, log) = (cluster.folder().to_path_buf(), self.log.clone());
        let (ring, three, engine) = cluster.run(|_| async move {
            let ring = ring_syncs(&folder, 1, SYNCS_PER_JOB).await;
            (ring, ring_syncs(&folder, 3, SYNCS_PER_JOB).await, engine_syncs(&log, SYNCS_PER_JOB).await)
        });
        self.ring.append(ring);
        self.ring_of_three.append(three);
        self.engine.append(engine);
    }
}

/// The nodes and the disk below them.
struct Bench {
    cluster: Cluster,
    disk: Disk,
}

impl Bench {
    /// Starts the nodes, sets some keys in every slot that will move, and moves a slot a few times: the first jobs open links
    /// and warm caches.
    fn start() -> Bench {
        let shape = Shape { shards: 2, replicas: 1, voters: 3, times: Times::default() };
        let cluster = Cluster::start(shape);
        cluster.run(|machines| async move {
            let slots = SlotRange::new(0, 4 * AT_ONCE - 1);
            let keys = keys_in(slots, size(8, 1) * slots.len());
            join_all(keys.iter().map(|key| set(&machines, key, &VALUE))).await;
        });
        let mut bench = Bench { disk: Disk::new(&cluster), cluster };
        let mut warming_up = Shuttle::of(1, 1);
        for _ in 0..size(10, 2) {
            bench.job(warming_up.next());
        }
        bench
    }

    fn job(&mut self, trip: Trip) -> Finalized {
        self.cluster.run(move |machines| async move { one_job(&machines, trip).await })
    }

    /// Jobs one after the other, with nothing else going on.
    fn jobs(&mut self, slots: &mut Shuttle, count: usize) -> Vec<Finalized> {
        let job = |_| {
            self.disk.measure(&self.cluster);
            self.job(slots.next())
        };
        (0..count).map(job).collect()
    }

    /// The same while a client sets keys in the moving slots, one after the other.
    fn written_jobs(&mut self, slots: &mut Shuttle, count: usize) -> Vec<Finalized> {
        let job = |_| {
            self.disk.measure(&self.cluster);
            let trip = slots.next();
            self.cluster.run(move |machines| async move { written_job(&machines, trip).await })
        };
        (0..count).map(job).collect()
    }

    /// As many jobs of one slot each as there are slots, started together, round after round.
    fn rounds(&mut self, slots: &mut Shuttle, count: usize) -> Vec<Round> {
        let round = |_| {
            self.disk.measure(&self.cluster);
            let trip = slots.next();
            self.cluster.run(move |machines| async move { one_round(&machines, trip).await })
        };
        (0..count).map(round).collect()
    }
}

async fn one_job(machines: &Machines, trip: Trip) -> Finalized {
    let [source, target] = [trip.source, trip.target].map(|at| &machines[at].node);
    let job = moved(source, target, trip.slots).await;
    Finalized::of(source, target, job)
}

async fn written_job(machines: &Machines, trip: Trip) -> Finalized {
    let over = std::cell::Cell::new(false);
    let writer = async {
        let keys = keys_in(trip.slots, 64);
        let mut writes = 0;
        while !over.get() {
            set(machines, &keys[writes % keys.len()], &VALUE).await;
            writes += 1;
        }
        writes
    };
    let mover = async {
        let finalized = one_job(machines, trip).await;
        over.set(true);
        finalized
    };
    let (writes, finalized) = join(writer, mover).await;
    assert!(writes > 0, "the client wrote while the slots moved");
    finalized
}

/// Jobs that were started together.
struct Round(Vec<Finalized>);

impl Timed for Round {
    /// From the first freeze to the last activation.
    fn ns(&self) -> u64 {
        let first_ns = self.0.iter().map(|job| job.frozen_ns).min().expect("there are jobs");
        self.0.iter().map(Finalized::serving_ns).max().expect("there are jobs") - first_ns
    }
}

async fn one_round(machines: &Machines, trip: Trip) -> Round {
    let [source, target] = [trip.source, trip.target].map(|at| &machines[at].node);
    let slots = (trip.slots.start..=trip.slots.end).map(|slot| SlotRange::new(slot, slot));
    let started = join_all(slots.map(|slots| start_job(source, target, slots))).await;
    for job in &started {
        join(activated(source, *job), activated(target, *job)).await;
    }
    Round(started.into_iter().map(|job| Finalized::of(source, target, job)).collect())
}

fn report(disk: &Disk, one: &[Finalized], large: &[Finalized], written: &[Finalized], rounds: &[Round]) {
    let mut table = Table::default();
    table.figure("raw sync: 4 KiB, fdatasync", &disk.raw_syncs);
    table.figure("the same through the ring", &disk.ring);
    table.figure("three files at once", &disk.ring_of_three);
    table.figure("the engine's log", &disk.engine);
    let many_name = format!("{} jobs of 1 slot at once", rounds.first().map_or(0, |round| round.0.len()));
    let series: [(&str, StageSamples); 4] = [
        ("1 slot", one.iter().collect()),
        ("64 slots", large.iter().collect()),
        ("64 slots, written", written.iter().collect()),
        (&many_name, rounds.iter().flat_map(|round| &round.0).collect()),
    ];
    for (name, stages) in &series {
        stages.rows(name, &mut table);
    }
    for (name, stages) in &series[..3] {
        let name = format!("{name}: freeze to activate");
        table.budget(&name, &stages.pauses, 4.0, "raw sync", &disk.raw_syncs);
    }
    let (one, many) = (&series[0].1.pauses, &series[3].1.pauses);
    table.budget(&format!("{many_name}: freeze to activate"), many, 4.0, "one job", one);
    let spans = rounds.iter().map(Timed::ns).collect();
    table.budget(&format!("{many_name}: first freeze to last"), &spans, 4.0, "one job", one);
    let mut picture: Vec<Bar> = series.iter().filter_map(|(name, stages)| stages.bar(name)).collect();
    if !disk.raw_syncs.is_empty() {
        let raw_us = disk.raw_syncs.p50_us();
        picture.push(Bar::plain("4 raw syncs", 4.0 * raw_us));
        picture.push(Bar::plain("raw sync", raw_us));
    }
    output::publish("finalize", &table, &bars("freeze to activate, medians by stage", &picture));
}
