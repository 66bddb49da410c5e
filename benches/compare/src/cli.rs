//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::subjects::MapKind;

/// Rounds below this tell nothing: no goal is said to be met or missed then.
pub const CLAIM_ROUNDS_MIN: usize = 5;
/// Sizes of `--smoke`.
const SMOKE_KEYS: u32 = 2_000;
const SMOKE_ROUNDS: usize = 2;

/// The same work on Lockgate's engine and on its rivals, in one run, in turns; prints one table of medians and ratios.
#[derive(Debug, Parser)]
#[command(name = "lockgate-compare", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What a child process is started for.
    #[command(subcommand)]
    pub child: Option<Child>,
    /// What to measure.
    #[command(flatten)]
    pub run: Run,
}

/// What to measure, and how.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// End stdout with one line of JSON: an object whose `rows` are the rows that have a goal
    #[arg(long)]
    pub json: bool,
    /// Rounds of each measurement; with fewer than 5 no goal is judged
    #[arg(long, default_value_t = CLAIM_ROUNDS_MIN, value_parser = rounds)]
    pub rounds: usize,
    /// Keys (100 to 100,000,000); two threads read ten times as many
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(100..=100_000_000))]
    pub keys: u32,
    /// Only the rows whose names contain this
    #[arg(long, value_name = "SUBSTRING", default_value = "", hide_default_value = true)]
    pub only: String,
    /// Tiny sizes: goes through everything in seconds, and judges nothing
    #[arg(long)]
    pub smoke: bool,
    /// The folder to make files in; it must be on a real disk [default: the system's for temporary files]
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,
    /// Cores of the engine: each has a log and a thread that writes it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cores: u8,
}

/// Child processes of this program.
#[derive(Debug, Subcommand)]
pub enum Child {
    /// Measures the memory of one map in a process of its own.
    #[command(hide = true)]
    MeasureMemory(MemoryOrder),
}

/// Which map's memory to measure, and on what.
#[derive(Clone, Debug, Args)]
pub struct MemoryOrder {
    /// The map.
    #[arg(long)]
    pub map: MapKind,
    /// How many keys are loaded.
    #[arg(long)]
    pub keys: u32,
    /// The length of their values.
    #[arg(long)]
    pub value_bytes: usize,
    /// How often all of it is overwritten afterwards.
    #[arg(long)]
    pub overwrites: u32,
    /// Cores of the engine.
    #[arg(long)]
    pub cores: u8,
    /// Where files go.
    #[arg(long)]
    pub dir: PathBuf,
}

impl Run {
    /// With the sizes of `--smoke`, if that was said.
    pub fn sized(mut self) -> Run {
        if self.smoke {
            (self.keys, self.rounds) = (SMOKE_KEYS, SMOKE_ROUNDS);
        }
        self
    }

    /// `full`, or `small` in a smoke run.
    pub fn size<T>(&self, full: T, small: T) -> T {
        if self.smoke { small } else { full }
    }

    /// Whether goals are judged.
    pub fn judges(&self) -> bool {
        !self.smoke && self.rounds >= CLAIM_ROUNDS_MIN
    }

    /// Whether a row of this name is wanted.
    pub fn wants(&self, row: &str) -> bool {
        row.contains(&self.only)
    }
}

fn rounds(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(rounds @ 1..=1_000) => Ok(rounds),
        _ => Err("it must be a number from 1 to 1000".into()),
    }
}
