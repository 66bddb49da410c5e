//! The demo from beginning to end: start, form, load, move under load, compare, report, tear down.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

use super::check::{compare_all, unowned_slots};
use super::data::DataSet;
use super::disk;
use super::kills::Killer;
use super::load::{Load, LoadConfig, Shared};
use super::moves::{Movers, MovingShard};
use super::nodes::{Nodes, stop_all};
use super::oracle::{Oracle, mix64};
use super::report::{Report, mb_per_s};
use super::tally::{Tally, Totals};
use crate::cli::DemoArgs;
use crate::client::ClientConfig;
use crate::cluster::tool_runtime;
use crate::error::CommandError;
use crate::formation;

const SHARDS: usize = 3;
const VOTERS: usize = 5;
const WRITERS: usize = 3;
const READERS: usize = 1;
const KEYS_IN_FLIGHT: usize = 64;
/// Jobs that are kept running at the same time.
const MOVERS: u64 = 3;
/// Threads that compare every key at the end.
const COMPARERS: usize = 2;
/// Pause between two looks at the clock while slots move.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Runs the demo. Returns the exit code: 0, or 1 if anything that clients were told is not so.
pub fn run(args: &DemoArgs) -> Result<u8, CommandError> {
    let interrupted = watch_signals()?;
    let data = Arc::new(match &args.data {
        Some(path) => DataSet::read(path)?,
        None => DataSet::sample(),
    });
    let folder = folder()?;
    if disk::is_in_memory(folder.path())? {
        eprintln!("{}", disk::in_memory_warning(folder.path()));
    }
    let seed = args.seed.unwrap_or_else(|| mix64(std::process::id().into()) ^ mix64(unix_ns()));
    eprintln!("seed {seed}; {} keys, {:.1} MB", data.len(), data.bytes() as f64 / 1e6);
    let nodes = Arc::new(Nodes::new(folder.path()));
    let stage = Stage { args, data, seed, interrupted, nodes };
    let outcome = stage.play(folder.path());
    let late = stop_all(stage.nodes.take());
    for output in &late {
        eprintln!("warning: a node had to be killed; its output is {}", output.display());
    }
    // What went wrong can be looked into; a run that somebody stopped leaves nothing behind.
    let telling = match &outcome {
        Ok((report, _)) => !report.passed(),
        Err(error) => !matches!(error, CommandError::Interrupted),
    };
    finish_folder(folder, args.keep || telling);
    let (report, problems) = outcome?;
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    println!("{report}");
    if args.json {
        println!("{}", report.to_json());
    }
    Ok(report.exit_code())
}

struct Stage<'a> {
    args: &'a DemoArgs,
    data: Arc<DataSet>,
    seed: u64,
    interrupted: Arc<AtomicBool>,
    nodes: Arc<Nodes>,
}

/// A cluster as it was formed.
struct Formed {
    shards: Vec<MovingShard>,
    /// The nodes' names, in the order of their numbers.
    names: Vec<String>,
}

impl Stage<'_> {
    fn play(&self, folder: &Path) -> Result<(Report, Vec<String>), CommandError> {
        let formed = self.form()?;
        yield_to_nodes();
        let seeds: Vec<SocketAddr> = self.nodes.listens();
        let tally = Arc::new(Tally::new());
        let shared = Shared::new(Arc::new(Oracle::new(self.seed, self.data.clone())), tally.clone());
        let config = LoadConfig {
            seeds: seeds.clone(),
            writers: WRITERS,
            readers: READERS,
            keys_in_flight: KEYS_IN_FLIGHT,
            seed: self.seed,
            client: ClientConfig::default(),
        };
        let loading = bar(self.data.len() as u64, "loading    {bar:30} {pos}/{len} keys");
        self.stop_on_interrupt(&shared, || Load::fill(&config, &shared, |keys| loading.inc(keys)));
        loading.finish_and_clear();
        self.check_on()?;

        let killer = match self.args.kill {
            Some(kill) => Some(Killer::new(kill, self.nodes.clone(), tool_runtime()?)),
            None => None,
        };
        let Formed { shards, names } = formed;
        let (client, at) = (config.client, seeds.clone());
        let movers = Movers::new(shards, names, at, killer.clone(), client, shared.clone(), tally.clone());
        let raw_sync_us = self.move_under_load(&config, &shared, &movers, folder)?;
        let struck = killer.map(|killer| killer.finish()).unwrap_or_default();
        let comparing = bar(self.data.len() as u64, "comparing  {bar:30} {pos}/{len} keys");
        let compared = compare_all(&seeds, config.client, &shared, COMPARERS, |keys| comparing.inc(keys));
        comparing.finish_and_clear();
        let unowned = unowned_slots(&seeds, config.client, movers.tags());
        self.check_on()?;

        let (moved, totals, counts) = (movers.finish(), tally.totals(), shared.counts());
        let mut problems = problems(&totals, &moved.failures);
        problems.extend(struck.problems.iter().map(|problem| format!("after a kill: {problem}")));
        if !compared.unread.is_empty() {
            problems.push(format!(
                "{} keys could not be read at the end; they count as lost",
                compared.unread.len()
            ));
        }
        let report = Report {
            keys: self.data.len() as u64,
            acked_writes: counts.acked_while_counting,
            lost: totals.lost + totals.corrupt + compared.unread.len() as u64,
            resurrected: totals.resurrected,
            stale_reads: totals.stale_reads,
            unowned_slots: unowned.len() as u64,
            jobs: moved.jobs,
            concurrent_jobs_max: moved.concurrent_max,
            migrated_bytes: moved.bytes,
            mb_per_s: mb_per_s(moved.bytes, moved.active),
            write_gap_ms: moved.gaps.percentiles_ms(),
            freeze_to_activate_us: moved.pauses.percentiles_us(),
            raw_data_sync_us_p50: raw_sync_us,
            kills: struck.kills,
            failovers_at_finalize: struck.failovers_at_finalize,
        };
        Ok((report, problems))
    }

    /// Starts the nodes and makes a cluster of them; returns its shards.
    fn form(&self) -> Result<Formed, CommandError> {
        let starting = bar(2 * SHARDS as u64, "starting   {bar:30} {pos}/{len} nodes");
        for _ in 0..2 * SHARDS {
            self.nodes.start_next()?;
            starting.inc(1);
            self.check_on()?;
        }
        let links: Vec<Vec<SocketAddr>> = self.nodes.links().chunks(2).map(<[_]>::to_vec).collect();
        let runtime = tool_runtime()?;
        let formed = runtime.block_on(0, move || async move { formation::create(&links, VOTERS).await });
        starting.finish_and_clear();
        let genesis = formed.map_err(CommandError::cluster)?;
        let shards = genesis.shards.iter().map(|shard| {
            let info = genesis.nodes.iter().find(|info| info.incarnation == shard.primary);
            let info = info.expect("a genesis names its primaries");
            MovingShard { id: shard.shard, primary: info.listen, name: info.name.to_string() }
        });
        let names = genesis.nodes.iter().map(|info| info.name.to_string()).collect();
        Ok(Formed { shards: shards.collect(), names })
    }

    /// Lets clients work and slots move for as long as was asked for. Returns what a raw sync takes meanwhile, in microseconds.
    fn move_under_load(
        &self,
        config: &LoadConfig,
        shared: &Arc<Shared>,
        movers: &Arc<Movers>,
        folder: &Path,
    ) -> Result<u64, CommandError> {
        let load = Load::start(config, shared).map_err(CommandError::io("starting clients"))?;
        let threads: Vec<JoinHandle<()>> = (0..MOVERS)
            .map(|number| {
                let (movers, seed) = (movers.clone(), self.seed);
                std::thread::spawn(move || movers.run(number, seed))
            })
            .collect();
        let moving = bar(self.args.seconds(), "moving     {bar:30} {pos}/{len} s, {msg}");
        let (began, mut raw_sync_us) = (Instant::now(), Ok(0));
        let mut measured = false;
        let watched = loop {
            let elapsed = began.elapsed();
            if elapsed >= Duration::from_secs(self.args.seconds()) {
                break Ok(());
            }
            if let Err(error) = self.check_on() {
                break Err(error);
            }
            if !measured && elapsed >= Duration::from_secs(self.args.seconds()) / 2 {
                raw_sync_us = disk::raw_data_sync(folder).map(|durations| durations.quantile_us(0.5));
                measured = true;
            }
            moving.set_position(elapsed.as_secs());
            moving.set_message(format!("{} jobs, {} writes", movers.jobs(), shared.counts().acked));
            std::thread::sleep(LOOK_PAUSE);
        };
        moving.finish_and_clear();
        movers.stop.store(true, Ordering::Relaxed);
        if watched.is_err() {
            // Nothing will be verified any more: let no client wait for an answer that nobody needs.
            drop(self.nodes.take());
        }
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        load.stop();
        watched?;
        Ok(raw_sync_us?)
    }

    /// Whether the demo may go on: nobody interrupted it, and every node is there.
    fn check_on(&self) -> Result<(), CommandError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(CommandError::Interrupted);
        }
        match self.nodes.ended() {
            Some((status, output)) => {
                Err(CommandError::Demo(format!("a node has ended with {status}: {}", output.trim())))
            }
            None => Ok(()),
        }
    }

    /// Runs `work` on this thread, and sets the clients' stop flag if somebody interrupts meanwhile.
    fn stop_on_interrupt(&self, shared: &Arc<Shared>, work: impl FnOnce()) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if self.interrupted.load(Ordering::Relaxed) {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                    std::thread::sleep(LOOK_PAUSE);
                }
            });
            work();
            done.store(true, Ordering::Relaxed);
        });
    }
}

/// A temporary folder on a real disk if there is one: where the system wants it, or else here.
fn folder() -> Result<TempDir, CommandError> {
    let named = || tempfile::Builder::new().prefix("lockgate-demo-").to_owned();
    let usual = named().tempdir().map_err(CommandError::io("making a temporary folder"))?;
    if disk::is_in_memory(usual.path())?
        && let Ok(here) = named().tempdir_in(".")
        && !disk::is_in_memory(here.path())?
    {
        return Ok(here);
    }
    Ok(usual)
}

fn finish_folder(folder: TempDir, keep: bool) {
    if keep {
        eprintln!("data directories and output of the nodes: {}", folder.keep().display());
    }
}

fn problems(totals: &Totals, failures: &[String]) -> Vec<String> {
    let findings = totals.findings.iter().map(|finding| format!("found: {finding}"));
    findings.chain(failures.iter().map(|failure| format!("not moved: {failure}"))).collect()
}

fn bar(len: u64, template: &str) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template(template).expect("the templates here are sound");
    ProgressBar::with_draw_target(Some(len), target).with_style(style)
}

/// The clients work as fast as they are answered. On a small machine that must not take the processors from the nodes,
/// which on machines of their own would have them.
fn yield_to_nodes() {
    // Where it is not allowed the figures are somewhat worse, nothing else.
    let _ = rustix::process::nice(10);
}

fn watch_signals() -> Result<Arc<AtomicBool>, CommandError> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let flag = Arc::new(AtomicBool::new(false));
    let mut signals =
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(CommandError::io("taking signals"))?;
    let seen = flag.clone();
    std::thread::spawn(move || signals.forever().for_each(|_| seen.store(true, Ordering::Relaxed)));
    Ok(flag)
}

fn unix_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}
