//! `lockgate-sim`: many seeds, a commit against a failover at every point, one seed with its story, a failing seed made shorter, and the known bugs.
//!
//! Exit codes: 0 when all is well, 1 when an oracle was violated (or a known bug was not caught), 2 for wrong usage.

mod enumerate;
mod mutations;
mod seeds;
mod shrink;
pub(crate) mod story;

use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::Range;
use std::process::ExitCode;

use clap::Parser;

use crate::enumerate::Point;
use crate::mutations::with;
use crate::plan::{Keep, Plan, Scenario};
use crate::run::Report;

/// How one run is asked for again.
pub(crate) const REPLAY: &str = "cargo run --release -p lockgate-sim --";

/// Which commit is tried at every point unless --seed says.
const COMMIT_SEED: u64 = 1;

/// Simulates whole Lockgate clusters, each in one thread, under seeds.
#[derive(Debug, Parser)]
#[command(name = "lockgate-sim", version)]
pub struct Args {
    /// Runs seeds A to B, the last one left out.
    #[arg(long, value_name = "A..B", value_parser = parse_range, conflicts_with = "seed")]
    seeds: Option<Range<u64>>,
    /// Runs one seed.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// What runs are about; `each` takes all scenarios in turn.
    #[arg(long, value_name = "NAME", default_value = "swarm")]
    scenario: String,
    /// Threads that run seeds side by side; as many as there are processors by default.
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Prints one line of JSON at the end.
    #[arg(long)]
    json: bool,
    /// Fails every participant of one job's commit after each of its polls, a run for each (--seed: of the commit).
    #[arg(long, conflicts_with_all = ["seeds", "shrink", "keep", "mutations"])]
    enumerate: bool,
    /// Takes every N-th point only.
    #[arg(long, value_name = "N", requires = "enumerate", default_value = "1")]
    stride: NonZeroU64,
    /// Runs one point only, as violations print it.
    #[arg(long, value_name = "WHO:KIND:POLLS", requires = "enumerate")]
    only: Option<Point>,
    /// Tells the story of the seed, or of the point (RUST_LOG filters it).
    #[arg(long)]
    trace: bool,
    /// Finds a shorter run of the seed that is violated the same way.
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// Keeps only these parts of the seed's plan, as --shrink prints them.
    #[arg(long, value_name = "PARTS", requires = "seed", default_value = "")]
    keep: Keep,
    /// Turns on each known bug and shows which oracle catches it, and after how many seeds.
    #[arg(long, conflicts_with_all = ["seeds", "seed"])]
    mutations: bool,
    /// Only known bugs whose names contain this; with --seed or --seeds, the bug to turn on.
    #[arg(long, value_name = "NAME")]
    mutation: Option<String>,
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is not of the form 0..1000");
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let range = from.parse().map_err(|_| wrong())?..to.parse().map_err(|_| wrong())?;
    if range.is_empty() { Err(format!("{text} holds no seed")) } else { Ok(range) }
}

/// What a seed is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// This.
    Only(Scenario),
    /// All of them in turn.
    Each,
}

impl About {
    fn parse(name: &str) -> Result<About, String> {
        if name == "each" {
            return Ok(About::Each);
        }
        name.parse()
            .map(About::Only)
            .map_err(|unknown: crate::plan::UnknownScenario| format!("{unknown}, each"))
    }

    pub(crate) fn scenario(self, seed: u64) -> Scenario {
        match self {
            About::Only(scenario) => scenario,
            About::Each => Scenario::ALL[(seed % Scenario::ALL.len() as u64) as usize],
        }
    }
}

/// One line that runs a seed again.
pub(crate) fn replay_line(plan: &Plan, keep: &Keep, mutation: Option<&str>) -> String {
    let mut line = format!("{REPLAY} --seed {} --scenario {}", plan.seed, plan.scenario);
    if !keep.is_all() {
        line += &format!(" --keep '{keep}'");
    }
    if let Some(name) = mutation {
        line = line.replace(" -- ", " --features mutations -- ");
        line += &format!(" --mutation {name}");
    }
    line + " --trace"
}

/// A report's verdict in one line.
pub(crate) fn verdict(report: &Report) -> String {
    let simulated_s = report.simulated_ns as f64 / 1e9;
    match &report.violation {
        None => {
            format!("seed {}: ok after {simulated_s:.3} s, trace {:016x}", report.seed, report.trace_hash)
        }
        Some(violation) => format!(
            "seed {}: VIOLATION of \"{}\" at {:.3} s: {}",
            report.seed,
            violation.oracle,
            violation.at_ns as f64 / 1e9,
            violation.what
        ),
    }
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let about = match About::parse(&args.scenario) {
        Ok(about) => about,
        Err(error) => return usage(&error),
    };
    if args.mutations {
        return mutations::run_all(args.mutation.as_deref(), args.json);
    }
    let mutation = match args.mutation.as_deref().map(mutations::find).transpose() {
        Ok(mutation) => mutation,
        Err(error) => return usage(&error),
    };
    let threads = args.jobs.map_or_else(available_threads, NonZeroUsize::get);
    let is_one = if args.enumerate { args.only.is_some() } else { args.seed.is_some() };
    if args.trace && !is_one {
        return usage(
            "one run has a story: say which, by --seed 7, or by --enumerate --only source-primary:kill:17",
        );
    }
    if args.enumerate {
        let (seed, stride) = (args.seed.unwrap_or(COMMIT_SEED), args.stride.get());
        let Args { only, trace, json, .. } = args;
        let options = enumerate::Options { seed, stride, only, trace, json, threads, mutation };
        return enumerate::enumerate(&options);
    }
    match (args.seed, args.seeds) {
        (Some(seed), _) => {
            let plan = args.keep.apply(Plan::draw(seed, about.scenario(seed)));
            if args.shrink {
                return shrink::shrink(seed, about.scenario(seed), &args.keep, mutation);
            }
            if args.trace {
                story::tell();
                println!("{plan}");
            }
            one(&plan, &args.keep, mutation)
        }
        (None, Some(range)) => seeds::run(range, about, threads, mutation, args.json),
        (None, None) => usage("say which seeds to run: --seeds 0..100, or --seed 7"),
    }
}

fn one(plan: &Plan, keep: &Keep, mutation: Option<&'static str>) -> ExitCode {
    let report = with(mutation, || crate::run::run(plan));
    for (name, count) in &report.counters.0 {
        println!("  {name}: {count}");
    }
    println!("{}", verdict(&report));
    if report.violation.is_some() {
        println!("again: {}", replay_line(plan, keep, mutation));
        return ExitCode::from(1);
    }
    ExitCode::SUCCESS
}

fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn usage(error: &str) -> ExitCode {
    eprintln!("lockgate-sim: {error}");
    ExitCode::from(2)
}
