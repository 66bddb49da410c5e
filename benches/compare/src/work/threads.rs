//! Reads by two threads against those by one, on ten times as many keys: far more than caches hold.

use std::time::Instant;

use super::Context;
use super::lanes::{Lane, get_each};
use crate::failure::{During, Failure};
use crate::keys::{Key, Numbers, WorkingSet, key};
use crate::memory::available_bytes;
use crate::report::{ENGINE_ISSUE, Goal, Report};
use crate::rounds::Rounds;
use crate::subjects::{DASH_MAP, DashMapSubject, ENGINE, EngineSubject, Map};

const NAME: &str = "get, two threads";
const TIMES_KEYS: u32 = 10;
const VALUE_BYTES: usize = 100;
/// What a key takes in both subjects and in the working set, with room for what grows by doubling.
const BYTES_PER_KEY: u64 = 600;
/// Reads of each thread in a round.
const READS: usize = 1_000_000;
const SPEED_UP: f64 = 1.7;

pub fn rows() -> Vec<String> {
    vec![NAME.to_owned()]
}

/// A subject that several threads read.
trait Shared {
    /// Reads by one thread, then the same by two with twice as many; how many times as many a second that were.
    fn speed_up(&self, keys: &[Vec<Key>; 2]) -> Result<f64, Failure>;
}

impl<M: Map + Sync> Shared for M {
    fn speed_up(&self, keys: &[Vec<Key>; 2]) -> Result<f64, Failure> {
        let began = Instant::now();
        get_each(self, &keys[0])?;
        let one = keys[0].len() as f64 / began.elapsed().as_secs_f64();
        let began = Instant::now();
        std::thread::scope(|scope| {
            let readers = keys.each_ref().map(|keys| scope.spawn(|| get_each(self, keys)));
            readers.into_iter().try_for_each(|reader| {
                let read = reader.join().map_err(|_| Failure::new("a reader panicked"))?;
                read.map(|_sum| ())
            })
        })?;
        let two = keys.iter().map(Vec::len).sum::<usize>() as f64 / began.elapsed().as_secs_f64();
        Ok(two / one)
    }
}

pub fn measure(context: &Context, report: &mut Report) -> Result<(), Failure> {
    let run = &context.run;
    let keys = run.keys.saturating_mul(TIMES_KEYS);
    let (need, have) = (u64::from(keys) * BYTES_PER_KEY, available_bytes()?);
    if need > have {
        report.skip(NAME, format!("{keys} keys need {} MiB of memory, {} are free", need >> 20, have >> 20));
        return Ok(());
    }
    if std::thread::available_parallelism().during("asking for the processors")?.get() < 2 {
        report.skip(NAME, "there is one processor only");
        return Ok(());
    }
    context.progress.doing(format!("loading {keys} keys into maps"));
    let folder = context.places.folder("threads")?;
    let mut engine = EngineSubject::open(folder.path(), &context.settings())?;
    let mut dash_map = DashMapSubject::default();
    {
        let set = WorkingSet::new(keys, VALUE_BYTES);
        engine.load(&set)?;
        dash_map.load(&set)?;
    }
    let mut subjects: Vec<(&'static str, Box<dyn Shared>)> =
        vec![(ENGINE, Box::new(engine)), (DASH_MAP, Box::new(dash_map))];
    context.progress.doing(NAME);
    let mut seed = 0;
    let mut reads = || {
        seed += 1;
        let mut numbers = Numbers::new(seed);
        std::array::from_fn(|_| {
            (0..READS.min(keys as usize)).map(|_| key(numbers.below(keys.into()))).collect()
        })
    };
    Rounds::in_turns(1, &mut subjects, |subject, _| subject.speed_up(&reads()).map(Some))?;
    let rounds =
        Rounds::in_turns(run.rounds, &mut subjects, |subject, _| subject.speed_up(&reads()).map(Some))?;
    for subject in rounds.names() {
        let Some(times) = rounds.median(subject) else { continue };
        let (row, measured) = (format!("{NAME}, {keys} keys: {subject}"), format!("{times:.2} x one thread"));
        if subject == ENGINE {
            let goal = (Goal::AtLeast(SPEED_UP), "of one thread's reads a second");
            report.judged((ENGINE_ISSUE, row), goal, measured, times, run.rounds);
        } else {
            report.shown(ENGINE_ISSUE, row, measured, Some(times), run.rounds);
        }
    }
    context.progress.row();
    Ok(())
}
