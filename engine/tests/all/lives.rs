//! One engine on one simulated machine, many lives: killed at any moment, power cut, disks that fail, fill up and are slow.
//! After each, what was acknowledged as synced is there, nothing is there that was not written, and the engine opens. Where
//! it says that it kept what was written, that is there, too.

use std::path::Path;
use std::time::Duration;

use lockgate_engine::Engine;
use lockgate_runtime::sim::{Control, DiskFaults, PowerLoss, Sim};
use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{Event, Runtime, random_u64, sleep, spawn};

const KEYS: usize = 12;
const LIVES: usize = 8;
/// Several directories deep, so that none of their names is durable by chance.
const DIRECTORY: &str = "/srv/node/data";

/// What is known of the keys across lives, and how the present life goes.
#[derive(Default)]
struct Known {
    acknowledged: [u64; KEYS],
    /// Written, and perhaps never synced, by the boot of that number or before.
    written: [u64; KEYS],
    boot: u64,
    /// Lives that found all that was written, and lives that could not be sure of it.
    kept: u64,
    not_kept: u64,
    issued: [u64; KEYS],
    problem: Option<String>,
    is_open: bool,
    opens: u64,
    acknowledgements: u64,
    checkpoints: u64,
}

#[derive(Clone, Default)]
struct Shared {
    known: Arc<Mutex<Known>>,
    changed: Event,
}

impl Shared {
    fn complain(&self, what: String) {
        self.known.lock().problem.get_or_insert(what);
        self.changed.notify_all();
    }
}

fn key(number: usize) -> Vec<u8> {
    format!("key{number}").into_bytes()
}

async fn write(engine: Engine, number: usize, shared: Shared) {
    loop {
        let operation = {
            let mut known = shared.known.lock();
            known.issued[number] += 1;
            known.issued[number]
        };
        let value = format!("{operation:08}{}", "x".repeat(random_u64() as usize % 3_000));
        let Ok(receipt) = engine.keyspace(0).set(&key(number), value.as_bytes()) else { return };
        if receipt.written().await.is_err() {
            return;
        }
        shared.known.lock().written[number] = operation;
        if receipt.synced().await.is_err() {
            return;
        }
        let mut known = shared.known.lock();
        known.acknowledged[number] = operation;
        known.acknowledgements += 1;
    }
}

/// One life: opens, checks what is there, and writes until it ends.
async fn live(runtime: Runtime, shared: Shared) {
    let builder = Engine::builder(Path::new(DIRECTORY)).cores(runtime.cores()).log_file_bytes(128 << 10);
    let builder = builder.checkpoint_log_bytes(100_000);
    let engine = match builder.open_on(&runtime).await {
        Ok(engine) => engine,
        Err(error) => return shared.complain(format!("it does not open: {error}")),
    };
    let keeps = engine.boot().keeps_writes_of(shared.known.lock().boot);
    for number in 0..KEYS {
        let value = engine.keyspace(0).get(&key(number)).expect("a read");
        let found = value.map_or(0, |value| {
            let digits = std::str::from_utf8(&value.as_bytes()[..8]).expect("digits");
            digits.parse().expect("a number")
        });
        let mut known = shared.known.lock();
        let (acknowledged, issued) = (known.acknowledged[number], known.issued[number]);
        let written = if keeps { known.written[number] } else { 0 };
        if !(acknowledged.max(written)..=issued).contains(&found) {
            let what = format!(
                "key {number} has {found}, {acknowledged} was acknowledged, {written} written, {issued} issued"
            );
            drop(known);
            return shared.complain(what);
        }
        known.written[number] = found;
    }
    {
        let mut known = shared.known.lock();
        known.boot = engine.boot().number;
        let count = if keeps { &mut known.kept } else { &mut known.not_kept };
        *count += 1;
        (known.is_open, known.opens) = (true, known.opens + 1);
    }
    shared.changed.notify_all();
    for number in 0..KEYS {
        spawn(write(engine.clone(), number, shared.clone()));
    }
    loop {
        let taken = engine.checkpoint().await;
        shared.known.lock().checkpoints += u64::from(taken.is_ok());
        sleep(Duration::from_micros(random_u64() % 20_000)).await;
    }
}

fn failing_disk(control: &Control) -> DiskFaults {
    let one_in = 1 + (random_u64() % 60) as u32;
    let sometimes = || (random_u64() % 2) as u32;
    DiskFaults {
        sync_fails_one_in: one_in * sometimes(),
        write_fails_one_in: one_in * sometimes(),
        slow_one_in: 10,
        slow_ns: (1_000_000, 30_000_000),
        capacity_bytes: random_u64()
            .is_multiple_of(4)
            .then(|| control.disk_bytes("a") + random_u64() % 2_000_000),
        ..DiskFaults::default()
    }
}

/// Waits until the present life has opened the engine, or has found something wrong.
async fn opened(shared: &Shared) {
    loop {
        let changed = shared.changed.listen();
        {
            let known = shared.known.lock();
            if known.is_open || known.problem.is_some() {
                return;
            }
        }
        changed.await;
    }
}

async fn lives(control: Control, shared: Shared) {
    for _ in 0..LIVES {
        let runtime = control.start("a", 1 + random_u64() as usize % 3);
        shared.known.lock().is_open = false;
        let (on, of) = (runtime.clone(), shared.clone());
        runtime.spawn_on(0, move || live(on, of));
        // Some lives end before they have begun well.
        if random_u64().is_multiple_of(3) {
            let longest_us = if random_u64().is_multiple_of(2) { 800 } else { 4_000 };
            sleep(Duration::from_micros(random_u64() % longest_us)).await;
        } else {
            opened(&shared).await;
            if random_u64().is_multiple_of(2) {
                control.set_disk_faults("a", failing_disk(&control));
            }
            sleep(Duration::from_micros(random_u64() % 60_000)).await;
        }
        if shared.known.lock().problem.is_some() {
            return;
        }
        control.set_disk_faults("a", DiskFaults::default());
        match random_u64() % 4 {
            0 | 1 => control.kill("a"),
            2 => control.cut_power("a", PowerLoss::All),
            _ => control.cut_power("a", PowerLoss::Seeded),
        }
    }
}

#[test]
fn what_was_acknowledged_survives_every_life() {
    let (mut opens, mut acknowledgements, mut kept, mut not_kept, mut checkpoints) = (0, 0, 0, 0, 0);
    for seed in 0..100 {
        let sim = Sim::new(seed);
        let shared = Shared::default();
        sim.run_until(lives(sim.control(), shared.clone()));
        let known = shared.known.lock();
        assert_eq!(known.problem, None, "seed {seed}");
        opens += known.opens;
        checkpoints += known.checkpoints;
        acknowledgements += known.acknowledgements;
        (kept, not_kept) = (kept + known.kept, not_kept + known.not_kept);
    }
    assert!(kept > 50 && not_kept > 50, "{kept} lives kept what was written, {not_kept} could not tell");
    assert!(checkpoints > 150, "{checkpoints} checkpoints");
    assert!(opens > 150 && acknowledgements > 1_500, "{opens} lives, {acknowledgements} acknowledgements");
}
