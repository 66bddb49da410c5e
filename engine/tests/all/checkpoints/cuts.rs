//! A scripted life with checkpoints and log space that is used again, ended after any of its polls: by a kill, or by a power
//! cut that loses all or some of what was not synced. Two more lives follow; in each, all that was acknowledged is there.

use std::panic::AssertUnwindSafe;
use std::path::Path;

use lockgate_engine::Engine;
use lockgate_runtime::sim::{Control, PowerLoss, Sim};
use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{Event, Runtime, spawn};

use crate::common::key;

const KEYS: usize = 10;
const ROUNDS: u64 = 5;
const DIRECTORY: &str = "/srv/node/data";

/// How a life ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    Kill,
    CutAll,
    CutSome,
}

#[derive(Default)]
struct Known {
    acknowledged: [u64; KEYS],
    issued: u64,
    problem: Option<String>,
    checkpoints: u64,
    /// The present life has done all that it does, or was ended.
    is_over: bool,
}

#[derive(Clone, Default)]
struct Shared {
    known: Arc<Mutex<Known>>,
    over: Event,
}

impl Shared {
    fn end(&self, problem: Option<String>) {
        let mut known = self.known.lock();
        if let Some(problem) = problem {
            known.problem.get_or_insert(problem);
        }
        known.is_over = true;
        drop(known);
        self.over.notify_all();
    }

    async fn wait(&self) {
        loop {
            let over = self.over.listen();
            if self.known.lock().is_over {
                return;
            }
            over.await;
        }
    }
}

fn check(engine: &Engine, shared: &Shared) -> Result<(), String> {
    let known = shared.known.lock();
    for (number, acknowledged) in known.acknowledged.iter().enumerate() {
        let value = engine.keyspace(0).get(&key(&number.to_string(), 0)).expect("a read");
        let found =
            value.map_or(0, |value| u64::from_le_bytes(value.as_bytes()[..8].try_into().expect("eight")));
        if !(*acknowledged..=known.issued).contains(&found) {
            return Err(format!("key {number} has {found}, and {acknowledged} was acknowledged"));
        }
    }
    Ok(())
}

/// Writes every key, and waits until that is synced.
async fn write_round(engine: &Engine, shared: &Shared) -> Option<()> {
    let mut receipts = Vec::new();
    for number in 0..KEYS {
        let issued = {
            let mut known = shared.known.lock();
            known.issued += 1;
            known.issued
        };
        let mut value = issued.to_le_bytes().to_vec();
        value.resize(2_500, number as u8);
        receipts.push((number, issued, engine.keyspace(0).set(&key(&number.to_string(), 0), &value).ok()?));
    }
    for (number, issued, receipt) in receipts {
        receipt.synced().await.ok()?;
        shared.known.lock().acknowledged[number] = issued;
    }
    Some(())
}

async fn open(runtime: &Runtime) -> Result<Engine, String> {
    let builder = Engine::builder(Path::new(DIRECTORY)).cores(runtime.cores()).log_file_bytes(16 << 10);
    let builder = builder.automatic_checkpoints(false).flush_interval_ms(1 << 40);
    builder.open_on(runtime).await.map_err(|error| format!("it does not open: {error}"))
}

/// One life: checks what is there, and writes, with checkpoints beside if `checkpoints`.
async fn live(runtime: Runtime, shared: Shared, checkpoints: bool) {
    let engine = match open(&runtime).await {
        Ok(engine) => engine,
        Err(problem) => return shared.end(Some(problem)),
    };
    if let Err(problem) = check(&engine, &shared) {
        return shared.end(Some(problem));
    }
    for round in 0..if checkpoints { ROUNDS } else { 1 } {
        let taking = engine.clone();
        let taken = Event::new();
        let listening = taken.listen();
        if checkpoints {
            let shared = shared.clone();
            spawn(async move {
                if taking.checkpoint().await.is_ok() {
                    shared.known.lock().checkpoints += 1;
                }
                taken.notify_all();
            });
        }
        if write_round(&engine, &shared).await.is_none() {
            return shared.end(Some("a write failed without a fault".into()));
        }
        // Unsynced, for the checkpoint of the next round to pin.
        let _ = engine.keyspace(0).set(&key("unsynced", 0), &[round as u8; 100]);
        if checkpoints {
            listening.await;
        }
    }
    shared.end(None);
    // It goes on until it is ended.
    std::future::pending::<()>().await;
    drop(engine);
}

fn end(control: &Control, how: End) {
    match how {
        End::Kill => control.kill("a"),
        End::CutAll => control.cut_power("a", PowerLoss::All),
        End::CutSome => control.cut_power("a", PowerLoss::Seeded),
    }
}

async fn script(control: Control, shared: Shared, cut: Option<(u64, End)>, cores: [usize; 3]) {
    for (life, cores) in cores.into_iter().enumerate() {
        shared.known.lock().is_over = false;
        let runtime = control.start("a", cores);
        let (on, of) = (runtime.clone(), shared.clone());
        runtime.spawn_on(0, move || live(on, of, life == 0));
        if let Some((poll, how)) = cut.filter(|_| life == 0) {
            let (cutting, over) = (control.clone(), shared.clone());
            control.after_poll("a", poll, move || {
                end(&cutting, how);
                over.end(None);
            });
        }
        shared.wait().await;
        if shared.known.lock().problem.is_some() {
            return;
        }
        if control.is_running("a") {
            // What was acknowledged must outlive this, too.
            control.cut_power("a", PowerLoss::All);
        }
    }
}

/// What such a run came to.
pub struct Outcome {
    pub problem: Option<String>,
    pub polls: u64,
    pub checkpoints: u64,
}

pub fn run(seed: u64, cut: Option<(u64, End)>) -> Outcome {
    let sim = Sim::new(seed);
    let shared = Shared::default();
    let cores = [2, 1 + seed as usize % 3, 2];
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| {
        sim.run_until(script(sim.control(), shared.clone(), cut, cores));
    }));
    let polls = sim.control().polls("a");
    let known = shared.known.lock();
    let panicked = ran.err().map(|_| "it panicked".to_owned());
    Outcome { problem: known.problem.clone().or(panicked), polls, checkpoints: known.checkpoints }
}

#[test]
fn a_life_that_ends_at_any_moment_loses_nothing_that_was_acknowledged() {
    let whole = run(1, None);
    assert_eq!((whole.problem, whole.checkpoints), (None, ROUNDS));
    assert!(whole.polls > 300, "{} polls", whole.polls);
    let mut runs = 0;
    for (at, how) in [End::CutSome, End::Kill, End::CutAll].into_iter().enumerate() {
        // Not the same moments of each, and hundreds altogether.
        for poll in (1 + at as u64..whole.polls).step_by((whole.polls / 70) as usize | 1) {
            let outcome = run(1, Some((poll, how)));
            assert_eq!(outcome.problem, None, "{how:?} after poll {poll}");
            runs += 1;
        }
    }
    assert!(runs > 150, "{runs}");
}
