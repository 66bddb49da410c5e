//! From the freeze of a job to its activation, stage by stage, beside the data syncs of the same disk in the same run.
//!
//! Two shards with a replica each, three voters, answers synced. Single jobs go forth and back; between them the disk is
//! measured. Goals: freeze to activate at most four raw syncs, and 64 jobs that are ready at once at most four times one.

use futures_util::future::{join, join_all};
use lockgate_benches::cluster::{Cluster, Machines, Shape, activated, keys_in, moved, set, start_job};
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
const AT_ONCE: usize = 64;
/// Syncs of each kind after every job.
const SYNCS_PER_JOB: usize = 4;
const VALUE: [u8; 100] = [0x42; 100];

/// Both primaries: jobs go from the first to the second and back.
const PRIMARIES: [usize; 2] = [0, 2];

/// What the disk does without nodes.
struct Disk {
    log: Log,
    ring: Samples,
    ring_of_three: Samples,
    engine: Samples,
}

fn main() {
    lockgate_benches::log_to_stderr();
    let shape = Shape { shards: 2, replicas: 1, voters: 3, times: Times::default() };
    let cluster = Cluster::start(shape);
    let mut raw = RawSync::new(cluster.folder());
    let mut disk = Disk::new(&cluster);
    load(&cluster);
    // The first ones open links and warm caches.
    let warm_up = single_jobs(&cluster, size(10, 2), SlotRange::new(0, 0), &mut |_| {});
    drop(warm_up);
    let mut between = |cluster: &Cluster| {
        raw.measure(SYNCS_PER_JOB);
        disk.measure(cluster);
    };
    let one = single_jobs(&cluster, size(200, 2), SlotRange::new(0, 0), &mut between);
    let large = single_jobs(&cluster, size(100, 2), SlotRange::new(0, 63), &mut between);
    let written = written_jobs(&cluster, size(100, 2), SlotRange::new(0, 63), &mut between);
    let many = jobs_at_once(&cluster, size(20, 1), size(AT_ONCE, 16), &mut between);
    report(&raw.samples, &disk, &one, &large, &written, &many);
}

/// Some keys in every slot that will move.
fn load(cluster: &Cluster) {
    cluster.run(|machines| async move {
        let keys = keys_in(SlotRange::new(0, AT_ONCE as u16 - 1), size(8, 1) * AT_ONCE);
        join_all(keys.iter().map(|key| set(&machines, key, &VALUE))).await;
    });
}

impl Disk {
    fn new(cluster: &Cluster) -> Disk {
        let folder = cluster.folder().to_path_buf();
        let log = cluster.run(|_| async move { engine_log(&folder).await });
        let none = Samples::default;
        Disk { log, ring: none(), ring_of_three: none(), engine: none() }
    }

    fn measure(&mut self, cluster: &Cluster) {
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

async fn one_job(machines: &Machines, turn: usize, slots: SlotRange) -> Finalized {
    let [source, target] = [0, 1].map(|side| &machines[PRIMARIES[(turn + side) % 2]].node);
    let job = moved(source, target, slots).await;
    Finalized::of(source, target, job)
}

/// Jobs one after the other, with nothing else going on. `count` is even: the slots end where they began.
fn single_jobs(
    cluster: &Cluster,
    count: usize,
    slots: SlotRange,
    between: &mut dyn FnMut(&Cluster),
) -> StageSamples {
    let mut samples = StageSamples::default();
    for turn in 0..count {
        samples.push(&cluster.run(move |machines| async move { one_job(&machines, turn, slots).await }));
        between(cluster);
    }
    samples
}

/// The same while a client sets keys in the moving slots, one after the other.
fn written_jobs(
    cluster: &Cluster,
    count: usize,
    slots: SlotRange,
    between: &mut dyn FnMut(&Cluster),
) -> StageSamples {
    let mut samples = StageSamples::default();
    for turn in 0..count {
        let finalized = cluster.run(move |machines| async move {
            let over = std::cell::Cell::new(false);
            let writer = async {
                let keys = keys_in(slots, 64);
                let mut writes = 0;
                while !over.get() {
                    set(&machines, &keys[writes % keys.len()], &VALUE).await;
                    writes += 1;
                }
                writes
            };
            let mover = async {
                let finalized = one_job(&machines, turn, slots).await;
                over.set(true);
                finalized
            };
            let (writes, finalized) = join(writer, mover).await;
            assert!(writes > 0, "the client wrote while the slots moved");
            finalized
        });
        samples.push(&finalized);
        between(cluster);
    }
    samples
}

/// What jobs of one slot each do that are started together.
#[derive(Default)]
struct Together {
    jobs: StageSamples,
    /// From the first freeze of a round to its last activation.
    spans: Samples,
    count: usize,
}

fn jobs_at_once(
    cluster: &Cluster,
    rounds: usize,
    jobs: usize,
    between: &mut dyn FnMut(&Cluster),
) -> Together {
    let mut together = Together { count: jobs, ..Together::default() };
    for turn in 0..rounds {
        let finalized = cluster.run(move |machines| async move { one_round(&machines, turn, jobs).await });
        let first_ns = finalized.iter().map(|job| job.frozen_ns).min().expect("there are jobs");
        let last_ns = finalized.iter().map(Finalized::activated_ns).max().expect("there are jobs");
        together.spans.push(last_ns - first_ns);
        finalized.iter().for_each(|job| together.jobs.push(job));
        between(cluster);
    }
    together
}

async fn one_round(machines: &Machines, turn: usize, jobs: usize) -> Vec<Finalized> {
    let [source, target] = [0, 1].map(|side| &machines[PRIMARIES[(turn + side) % 2]].node);
    let slots = (0..jobs as u16).map(|slot| SlotRange::new(slot, slot));
    let started = join_all(slots.map(|slots| start_job(source, target, slots))).await;
    for job in &started {
        join(activated(source, *job), activated(target, *job)).await;
    }
    started.into_iter().map(|job| Finalized::of(source, target, job)).collect()
}

fn report(
    raw: &Samples,
    disk: &Disk,
    one: &StageSamples,
    large: &StageSamples,
    written: &StageSamples,
    many: &Together,
) {
    let mut table = Table::default();
    let (raw_us, one_us) = (raw.p50_us(), one.total.p50_us());
    table.figure("raw sync: 4 KiB, fdatasync", raw);
    table.figure("the same through the ring", &disk.ring);
    table.figure("three files at once", &disk.ring_of_three);
    table.figure("the engine's log", &disk.engine);
    let many_name = format!("{} jobs of 1 slot at once", many.count);
    let series = [
        ("1 slot", one),
        ("64 slots", large),
        ("64 slots, written", written),
        (many_name.as_str(), &many.jobs),
    ];
    for (name, stages) in series {
        stages.rows(name, &mut table);
    }
    for (name, stages) in &series[..3] {
        table.budget(&format!("{name}: freeze to activate"), &stages.total, 4.0, "raw sync", raw_us);
    }
    table.budget(&format!("{many_name}: freeze to activate"), &many.jobs.total, 4.0, "one job", one_us);
    table.budget(&format!("{many_name}: first freeze to last"), &many.spans, 4.0, "one job", one_us);
    let mut picture: Vec<Bar> = series.iter().map(|(name, stages)| stages.bar(name)).collect();
    picture.push(Bar::plain("4 raw syncs", 4.0 * raw_us));
    picture.push(Bar::plain("raw sync", raw_us));
    output::publish("finalize", &table.text(), &bars("freeze to activate, medians by stage", &picture));
}
