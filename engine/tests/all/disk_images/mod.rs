//! The power is cut, or the process killed, at every operation of a disk in scripted runs, and what may be left then is
//! recovered: with nothing that was not synced, with all of it, and with many parts of it, torn by sectors.
//!
//! Each run is recorded once, with an image of its disk at each operation that is asked for or done. A trial takes an
//! image, draws what is left of it, starts a new machine with that disk, and demands: the engine opens (also when an
//! opening before was interrupted, in some trials); every slot is as it was after one of its writes, none of those lost whose receipt said
//! `synced` (or `written`, if only the process died); no write is there in part, and none is missing before one that is
//! there; and, in some trials, new writes have later versions, and are there after another outage or close.
//!
//! `LOCKGATE_DISK_IMAGES=n` asks for n trials at each moment. `LOCKGATE_DISK_IMAGE=script:moment:trial` repeats one.

mod bugs;
mod history;
mod recording;
mod script;
mod trial;

use std::time::Instant;

use lockgate_runtime::sync::Mutex;
use lockgate_runtime::sync::atomic::{AtomicUsize, Ordering};

use recording::Span;
pub use script::Dice;
use script::Script;
use trial::{Tally, Trial};

const SCRIPTS: [Script; 3] = [
    Script { name: "one-core", seed: 1, cores: 1, clustered: false, steps: 40 },
    Script { name: "two-cores", seed: 2, cores: 2, clustered: false, steps: 40 },
    Script { name: "clustered", seed: 3, cores: 2, clustered: true, steps: 40 },
];

/// Trials at each moment, unless asked for otherwise.
const TRIALS: u64 = 2;
/// Threads that try.
const THREADS: usize = 2;

/// All trials of some recorded runs, in an order that has early and late moments of all runs soon.
fn trials(runs: &[(Script, Vec<Span>)], per_moment: u64) -> Vec<Trial<'_>> {
    let mut trials = Vec::new();
    for number in 0..per_moment {
        for (script, spans) in runs {
            let moments = spans.iter().flat_map(|span| span.moments.iter().map(move |moment| (span, moment)));
            trials.extend(moments.map(|(span, moment)| Trial { script: *script, span, moment, number }));
        }
    }
    let mut dice = script::Dice(7);
    for at in (1..trials.len()).rev() {
        trials.swap(at, dice.below(at + 1));
    }
    trials
}

/// Runs trials on some threads, until one finds something wrong.
fn run_all(trials: &[Trial<'_>], bug: Option<&'static str>) -> Result<Tally, String> {
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new((Tally::default(), None));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                lockgate_runtime::mutations::activate(bug);
                while let Some(trial) = trials.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = trial.run();
                    let mut outcome = outcome.lock();
                    match result {
                        Ok(tally) => outcome.0.add(tally),
                        Err(what) => {
                            outcome.1.get_or_insert(what);
                            next.store(trials.len(), Ordering::Relaxed);
                        }
                    }
                }
                lockgate_runtime::mutations::activate(None);
            });
        }
    });
    let (tally, problem) = outcome.into_inner();
    problem.map_or(Ok(tally), Err)
}

fn asked_for<T: std::str::FromStr>(variable: &str) -> Option<T> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not understood")))
}

#[test]
fn every_moment_of_a_run_may_be_its_last_one() {
    let began = Instant::now();
    let runs: Vec<_> = SCRIPTS.iter().map(|script| (*script, script.record())).collect();
    let moments: usize = runs.iter().flat_map(|(_, spans)| spans).map(|span| span.moments.len()).sum();
    let recorded = began.elapsed();
    if let Some(one) = asked_for::<String>("LOCKGATE_DISK_IMAGE") {
        let parts: Vec<&str> = one.split(':').collect();
        let (moment, number): (u64, u64) = (parts[1].parse().expect("it"), parts[2].parse().expect("it"));
        let all = trials(&runs, number + 1);
        let is_it = |trial: &&Trial<'_>| {
            (trial.script.name, trial.moment.image.number(), trial.number) == (parts[0], moment, number)
        };
        let trial = all.iter().find(is_it).expect("there is no such trial");
        trial.run().unwrap_or_else(|what| panic!("{what}"));
        return;
    }
    let per_moment = asked_for("LOCKGATE_DISK_IMAGES").unwrap_or(TRIALS);
    let tally = run_all(&trials(&runs, per_moment), None).unwrap_or_else(|what| panic!("{what}"));
    println!("{moments} moments recorded in {recorded:?}; after {:?}: {tally:?}", began.elapsed());
    assert!(moments > 1_000 && tally.trials == moments as u64 * per_moment);
    assert!(tally.interrupted > tally.trials / 6 && tally.kills > tally.trials / 20);
    assert!(tally.opened_again > tally.trials / 6);
    assert!(tally.found_more > 0 && tally.lost > 0, "nothing was at stake");
}
