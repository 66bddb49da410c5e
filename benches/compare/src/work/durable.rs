//! Stores on a disk: opening what is there, its room, reads, and sets that are on the disk when they return.
//!
//! All stores hold the same keys, and are opened anew before anything is measured. What is not synced is never measured.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{Context, shown_ns};
use crate::failure::{During, Failure};
use crate::keys::{Key, Numbers, WorkingSet, first_word};
use crate::report::{DURABILITY_ISSUE, Goal, Report};
use crate::rounds::{Rounds, median};
use crate::subjects::{APPEND, ENGINE, Open, Settings, Store, Writers, stores};

const REOPEN: &str = "reopen, to the first get";
const DISK: &str = "disk bytes a key";
const GET: &str = "get from a store";
const ONE_WRITER: &str = "synced set, one writer";
const MANY_THREADS: &str = "synced set, 64 threads";
const MANY_TASKS: &str = "synced set, 64 tasks";
const VALUE_BYTES: usize = 100;
/// Reads, and synced sets of one writer, in a round.
const READS: usize = 100_000;
const SETS: usize = 500;
const WRITERS: usize = 64;
/// How long writers write in a round.
const WRITERS_TIME_MS: u64 = 250;
/// What a synced set may take, against a bare synced append.
const SYNCED_MAX: f64 = 1.3;
/// How many times as much 64 writers should do as one.
const GROUPED_MIN: f64 = 30.0;

pub fn rows() -> Vec<String> {
    [REOPEN, DISK, GET, ONE_WRITER, MANY_THREADS, MANY_TASKS].map(str::to_owned).into()
}

/// A store, and what it takes to open it again.
struct Kept {
    open: Open,
    folder: PathBuf,
    settings: Settings,
    /// Closed for a moment while it is opened anew.
    store: Option<Box<dyn Store>>,
}

impl Kept {
    fn store(&self) -> Result<&dyn Store, Failure> {
        self.store.as_deref().ok_or_else(|| Failure::new("a store could not be opened again"))
    }

    /// Closes it in order, and opens it. Nanoseconds from the opening to the first value.
    fn reopen(&mut self, key: &Key) -> Result<Option<f64>, Failure> {
        drop(self.store.take());
        let began = Instant::now();
        self.store = Some((self.open)(&self.folder, &self.settings)?);
        match self.store()?.get(key, &mut |_| ())? {
            Some(true) => Ok(Some(began.elapsed().as_nanos() as f64)),
            Some(false) => Err(lost()),
            None => Ok(None),
        }
    }

    /// Reads keys drawn at random. Nanoseconds for each.
    fn gets(&self, keys: &[Key]) -> Result<Option<f64>, Failure> {
        let (store, mut sum, began) = (self.store()?, 0_u64, Instant::now());
        for key in keys {
            match store.get(key, &mut |value| sum = sum.wrapping_add(first_word(value)))? {
                Some(true) => {}
                Some(false) => return Err(lost()),
                None => return Ok(None),
            }
        }
        std::hint::black_box(sum);
        Ok(Some(began.elapsed().as_nanos() as f64 / keys.len() as f64))
    }

    /// The median of synced sets, one after the other, in nanoseconds.
    fn sets(&self, keys: &[Key], value: &[u8]) -> Result<Option<f64>, Failure> {
        let (store, mut all_ns) = (self.store()?, Vec::with_capacity(keys.len()));
        for key in keys {
            let began = Instant::now();
            store.set_synced(key, value)?;
            all_ns.push(began.elapsed().as_nanos() as f64);
        }
        Ok(median(all_ns))
    }

    /// Synced sets a second, by so many threads at the same time.
    fn threads(&self, writers: &Writers) -> Result<Option<f64>, Failure> {
        let store = self.store()?;
        if !store.takes_many_writers() {
            return Ok(None);
        }
        let began = Instant::now();
        let done = std::thread::scope(|scope| {
            let write = |writer| move || thread(store, writers, writer);
            let threads: Vec<_> = (0..writers.count).map(|writer| scope.spawn(write(writer))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<u64, Failure>>| {
                thread.join().map_err(|_| Failure::new("a writer panicked"))?
            };
            threads.into_iter().map(join).sum::<Result<u64, Failure>>()
        })?;
        Ok(Some(done as f64 / began.elapsed().as_secs_f64()))
    }

    /// The same by tasks on cores of the store's own.
    fn tasks(&self, writers: &Writers) -> Result<Option<f64>, Failure> {
        Ok(self.store()?.tasks_set_synced(writers)?.map(|(done, seconds)| done as f64 / seconds))
    }
}

/// One of the writers: how many sets it did in the time.
fn thread(store: &dyn Store, writers: &Writers, writer: usize) -> Result<u64, Failure> {
    let (began, mut done) = (Instant::now(), 0);
    for key in writers.keys.iter().skip(writer).step_by(writers.count).cycle() {
        store.set_synced(key, &writers.value)?;
        done += 1;
        if began.elapsed().as_millis() as u64 >= writers.time_ms {
            break;
        }
    }
    Ok(done)
}

fn lost() -> Failure {
    Failure::new("a store lost a key")
}

type Stores = [(&'static str, Box<Kept>)];

pub fn measure(context: &Context, report: &mut Report) -> Result<(), Failure> {
    let run = &context.run;
    let folder = context.places.folder("stores")?;
    let set = WorkingSet::new(run.keys, VALUE_BYTES);
    let mut kept = open_all(context, folder.path(), &set)?;
    if run.wants(REOPEN) {
        context.progress.doing(REOPEN);
        let rounds = Rounds::in_turns(run.rounds, &mut kept, |kept, _| kept.reopen(&set.chain()[0]))?;
        tell(report, REOPEN, &rounds, run.rounds, shown_ns);
        context.progress.row();
    }
    if run.wants(DISK) {
        disk(report, &mut kept, &set)?;
        context.progress.row();
    }
    let drawn = |round: usize, count: usize| -> Vec<Key> {
        let mut numbers = Numbers::new(round as u64);
        (0..count).map(|_| set.chain()[numbers.below(set.len() as u64) as usize]).collect()
    };
    if run.wants(GET) {
        context.progress.doing(GET);
        let reads = run.size(READS, 1_000);
        Rounds::in_turns(1, &mut kept, |kept, _| kept.gets(&drawn(run.rounds, reads)))?;
        let rounds = Rounds::in_turns(run.rounds, &mut kept, |kept, round| kept.gets(&drawn(round, reads)))?;
        tell(report, GET, &rounds, run.rounds, shown_ns);
        context.progress.row();
    }
    if run.wants(ONE_WRITER) {
        context.progress.doing(ONE_WRITER);
        let (sets, value) = (run.size(SETS, 20), set.blank());
        let rounds =
            Rounds::in_turns(run.rounds, &mut kept, |kept, round| kept.sets(&drawn(round, sets), &value))?;
        one_writer(report, &rounds, run.rounds);
        context.progress.row();
    }
    let time_ms = run.size(WRITERS_TIME_MS, 20);
    let write =
        |count: usize| Writers { count, time_ms, keys: drawn(count, 64 * WRITERS), value: set.blank() };
    let (one, many) = (write(1), write(WRITERS));
    type Write = fn(&Kept, &Writers) -> Result<Option<f64>, Failure>;
    let kinds: [(&str, Write); 2] = [(MANY_THREADS, Kept::threads), (MANY_TASKS, Kept::tasks)];
    for (name, many_write) in kinds.into_iter().filter(|(name, _)| run.wants(name)) {
        context.progress.doing(name);
        many_writers(report, name, &mut kept, run.rounds, |kept| {
            Ok(match kept.threads(&one)? {
                Some(one) => many_write(kept, &many)?.map(|many| (one, many)),
                None => None,
            })
        })?;
        context.progress.row();
    }
    Ok(())
}

/// All stores, loaded and opened anew.
fn open_all(
    context: &Context,
    folder: &Path,
    set: &WorkingSet,
) -> Result<Vec<(&'static str, Box<Kept>)>, Failure> {
    let mut all = Vec::new();
    for (name, open) in stores() {
        context.progress.doing(format!("loading {} keys into stores: {name}", set.len()));
        let folder = folder.join(name.replace(' ', "-"));
        fs::create_dir(&folder).during("making a folder for a store")?;
        let settings = context.settings();
        let mut kept = Kept { open, store: Some(open(&folder, &settings)?), folder, settings };
        kept.store()?.load(set)?;
        kept.reopen(&set.chain()[0])?;
        all.push((name, Box::new(kept)));
    }
    Ok(all)
}

/// A row for each store, without a goal.
fn tell(report: &mut Report, name: &str, rounds: &Rounds, count: usize, shown: fn(f64) -> String) {
    for store in rounds.names() {
        let measured = rounds.median(store).map_or(String::new(), shown);
        report.shown(DURABILITY_ISSUE, format!("{name}: {store}"), measured, None, count);
    }
}

/// What each store has on the disk, after it was opened anew and closed.
fn disk(report: &mut Report, stores: &mut Stores, set: &WorkingSet) -> Result<(), Failure> {
    for (name, kept) in stores.iter_mut().filter(|(name, _)| *name != APPEND) {
        drop(kept.store.take());
        let per_key = used_bytes(&kept.folder).during("counting a store's files")? as f64 / set.len() as f64;
        report.shown(DURABILITY_ISSUE, format!("{DISK}: {name}"), format!("{per_key:.1} B"), None, 1);
        kept.reopen(&set.chain()[0])?;
    }
    Ok(())
}

/// The blocks of all files below a folder, in bytes.
fn used_bytes(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        bytes += if about.is_dir() { used_bytes(&entry.path())? } else { about.blocks() * 512 };
    }
    Ok(bytes)
}

fn one_writer(report: &mut Report, rounds: &Rounds, count: usize) {
    for store in rounds.names() {
        let measured = rounds.median(store).map_or(String::new(), |ns| format!("p50 {:.1} us", ns / 1e3));
        let (row, ratio) = (format!("{ONE_WRITER}: {store}"), rounds.ratio(store, APPEND));
        match ratio {
            Some(ratio) if store == ENGINE => {
                let goal = (Goal::AtMost(SYNCED_MAX), "of a bare synced 4 KiB append");
                report.judged((DURABILITY_ISSUE, row), goal, measured, ratio, count);
            }
            _ => report.shown(DURABILITY_ISSUE, row, measured, ratio, count),
        }
    }
}

/// One writer and many in each store's part of each round: `both` measures the two, in sets a second.
fn many_writers(
    report: &mut Report,
    name: &str,
    stores: &mut Stores,
    count: usize,
    both: impl Fn(&Kept) -> Result<Option<(f64, f64)>, Failure>,
) -> Result<(), Failure> {
    let mut times: Vec<(&str, Vec<f64>)> = stores.iter().map(|(name, _)| (*name, Vec::new())).collect();
    let rounds = Rounds::in_turns(count, stores, |kept, _| {
        let Some((one, many)) = both(kept)? else { return Ok(None) };
        let of_store = times.iter_mut().find(|(name, _)| kept.folder.ends_with(name.replace(' ', "-")));
        of_store.into_iter().for_each(|(_, times)| times.push(many / one));
        Ok(Some(many))
    })?;
    for (store, times) in times {
        let (Some(a_second), Some(times)) = (rounds.median(store), median(times)) else { continue };
        let (row, measured) = (format!("{name}: {store}"), format!("{a_second:.0} a second"));
        if store == ENGINE {
            let goal = (Goal::AtLeast(GROUPED_MIN), "of one thread's sets a second");
            report.judged((DURABILITY_ISSUE, row), goal, measured, times, count);
        } else {
            report.shown(DURABILITY_ISSUE, row, measured, Some(times), count);
        }
    }
    Ok(())
}
