//! A commit against a failover at every point, side by side, and one line at the end.

use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use lockgate_runtime::sync::Mutex;
use lockgate_runtime::sync::atomic::{AtomicUsize, Ordering};
use serde::Serialize;

use super::{REPLAY, story, usage, verdict};
use crate::enumerate::{Enumeration, Outcome, Point};
use crate::mutations::with;
use crate::run::Report;

/// How it is to be done.
pub(super) struct Options {
    /// Of the commit that is tried.
    pub seed: u64,
    /// Every so many-th point.
    pub stride: u64,
    /// This point only.
    pub only: Option<Point>,
    /// Tells the story of that.
    pub trace: bool,
    /// Ends with a line of JSON.
    pub json: bool,
    /// So many runs side by side.
    pub threads: usize,
    /// A known bug to turn on.
    pub mutation: Option<&'static str>,
}

/// What the last line says.
#[derive(Debug, Default, Serialize)]
struct Summary {
    seed: u64,
    stride: u64,
    runs: u64,
    violations: u64,
    /// Runs whose commit came first, and those of them after which a shard failed over.
    commit_won: u64,
    then_failed_over: u64,
    /// Runs whose failover came first, and those of them in which that made a vote void that was under way.
    failover_first: u64,
    votes_void: u64,
    ended_otherwise: u64,
    failed: Vec<Failed>,
}

#[derive(Debug, Serialize)]
struct Failed {
    point: String,
    oracle: &'static str,
    what: String,
    replay: String,
}

impl Summary {
    fn add(&mut self, report: &Report, point: &Point, replay: String) {
        self.runs += 1;
        if let Some(violation) = &report.violation {
            self.violations += 1;
            let (oracle, what) = (violation.oracle, violation.what.clone());
            self.failed.push(Failed { point: point.to_string(), oracle, what, replay });
            return;
        }
        match Outcome::of(report) {
            Outcome::Committed => self.commit_won += 1,
            Outcome::CommitWon => {
                self.commit_won += 1;
                self.then_failed_over += 1;
            }
            Outcome::FailoverFirst => self.failover_first += 1,
            Outcome::VoteVoid => {
                self.failover_first += 1;
                self.votes_void += 1;
            }
            Outcome::EndedOtherwise => self.ended_otherwise += 1,
        }
    }

    fn line(&self) -> String {
        format!(
            "runs {} (seed {}, stride {}), violations {}; the commit came first in {} (a shard failed over then in {}), \
             a failover in {} (the vote was under way, and void, in {}), the attempt ended otherwise in {}",
            self.runs,
            self.seed,
            self.stride,
            self.violations,
            self.commit_won,
            self.then_failed_over,
            self.failover_first,
            self.votes_void,
            self.ended_otherwise
        )
    }
}

pub(super) fn enumerate(options: &Options) -> ExitCode {
    let enumeration = match with(options.mutation, || Enumeration::new(options.seed)) {
        Ok(enumeration) => enumeration,
        Err(why) => {
            println!("seed {}: {why}", options.seed);
            return ExitCode::from(1);
        }
    };
    match &options.only {
        Some(point) => one(&enumeration, point, options),
        None => all(&enumeration, options),
    }
}

fn replay(options: &Options, point: &Point) -> String {
    let seed = options.seed;
    let line = format!("{REPLAY} --enumerate --seed {seed} --only {point} --trace");
    match options.mutation {
        None => line,
        Some(name) => line.replace(" -- ", " --features mutations -- ") + &format!(" --mutation {name}"),
    }
}

fn one(enumeration: &Enumeration, point: &Point, options: &Options) -> ExitCode {
    if options.trace {
        story::tell();
        if let Ok(plan) = enumeration.plan(point) {
            println!("{plan}");
        }
    }
    let report = match with(options.mutation, || enumeration.run(point)) {
        Ok(report) => report,
        Err(why) => return usage(&why),
    };
    for (name, count) in &report.counters.0 {
        println!("  {name}: {count}");
    }
    println!("{point}, {}", verdict(&report));
    match report.violation {
        None => {
            println!("came to: {:?}", Outcome::of(&report));
            ExitCode::SUCCESS
        }
        Some(_) => {
            println!("again: {}", replay(options, point));
            ExitCode::from(1)
        }
    }
}

fn all(enumeration: &Enumeration, options: &Options) -> ExitCode {
    let points = enumeration.points(options.stride);
    for participant in &enumeration.participants {
        let leads = if participant.leads_control { ", leads the control log" } else { "" };
        println!("  {}: {} polls{leads}", participant.role, participant.polls());
    }
    // A failing assertion is reported as a violation, with its words.
    std::panic::set_hook(Box::new(|_| {}));
    let bar = ProgressBar::new(points.len() as u64);
    bar.set_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} runs, {eta} left").expect("a fixed template"),
    );
    let summary = Summary { seed: options.seed, stride: options.stride, ..Summary::default() };
    let (next, summary) = (AtomicUsize::new(0), Mutex::new(summary));
    std::thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| {
                while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let report = with(options.mutation, || enumeration.run(point));
                    let report = report.expect("the point is one of this enumeration");
                    let again = replay(options, point);
                    if report.violation.is_some() {
                        bar.suspend(|| println!("{point}, {}\nagain: {again}", verdict(&report)));
                    }
                    summary.lock().add(&report, point, again);
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let summary = summary.into_inner();
    if options.json {
        println!("{}", serde_json::to_string(&summary).expect("counts and words are JSON"));
    } else {
        println!("{}", summary.line());
    }
    if summary.violations == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
