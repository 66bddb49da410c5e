//! Many seeds, side by side, and one line at the end.

use std::ops::Range;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use lockgate_runtime::sync::Mutex;
use lockgate_runtime::sync::atomic::{AtomicU64, Ordering};
use serde::Serialize;

use super::{About, replay_line, verdict};
use crate::counters::Counters;
use crate::mutations::with;
use crate::plan::{Keep, Plan};
use crate::run::{Report, run as run_plan};

/// What the last line says.
#[derive(Debug, Default, Serialize)]
struct Summary {
    seeds: u64,
    violations: u64,
    simulated_hours: f64,
    failed: Vec<Failed>,
    counters: Counters,
}

/// A seed that was violated.
#[derive(Debug, Serialize)]
struct Failed {
    seed: u64,
    scenario: &'static str,
    oracle: &'static str,
    what: String,
    replay: String,
}

impl Summary {
    fn add(&mut self, plan: &Plan, report: Report, mutation: Option<&str>) {
        self.seeds += 1;
        self.simulated_hours += report.simulated_ns as f64 / 3_600e9;
        self.counters.merge(&report.counters);
        if let Some(violation) = report.violation {
            self.violations += 1;
            self.failed.push(Failed {
                seed: plan.seed,
                scenario: plan.scenario.name(),
                oracle: violation.oracle,
                what: violation.what,
                replay: replay_line(plan, &Keep::default(), mutation),
            });
        }
    }

    /// Seeds, violations, simulated time, and how often what matters happened.
    fn line(&self) -> String {
        let count = |name: &str| self.counters.get(name);
        let sum = |prefix: &str, suffix: &str| -> u64 {
            let named = |name: &str| {
                name.starts_with(prefix) && name.ends_with("_at_finalize") == (suffix == "_at_finalize")
            };
            self.counters.0.iter().filter(|(name, _)| named(name)).map(|(_, count)| count).sum()
        };
        format!(
            "seeds {}, violations {}, simulated {:.2} h, operations {} ({} of unknown outcome), jobs {} ({} activated), \
             attempts ended {}, failovers to another node {} ({} at finalize), returns to office {}, hand-overs {}, \
             leases that ran out {}, fences {}, steps of compactions {}, checkpoints {}, faults {} ({} at finalize)",
            self.seeds,
            self.violations,
            self.simulated_hours,
            count("operations_answered"),
            count("operations_unknown"),
            count("jobs_streaming"),
            count("jobs_activated"),
            count("attempts_ended"),
            count("failovers"),
            count("failovers_at_finalize"),
            count("returns_to_office"),
            count("hand_overs"),
            count("leases_ran_out"),
            count("fences"),
            count("compactions"),
            count("checkpoints"),
            sum("fault_", ""),
            count("faults_at_finalize"),
        )
    }
}

/// Runs all seeds of `range` on so many threads.
pub(super) fn run(
    range: Range<u64>,
    about: About,
    threads: usize,
    mutation: Option<&'static str>,
    json: bool,
) -> ExitCode {
    // A failing assertion is reported as a violation, with its words.
    std::panic::set_hook(Box::new(|_| {}));
    let bar = ProgressBar::new(range.end - range.start);
    bar.set_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {eta} left").expect("a fixed template"),
    );
    let (next, summary) = (AtomicU64::new(range.start), Mutex::new(Summary::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= range.end {
                        return;
                    }
                    let plan = Plan::draw(seed, about.scenario(seed));
                    let report = with(mutation, || run_plan(&plan));
                    if report.violation.is_some() {
                        let again = replay_line(&plan, &Keep::default(), mutation);
                        bar.suspend(|| println!("{}\nagain: {again}", verdict(&report)));
                    }
                    summary.lock().add(&plan, report, mutation);
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let summary = summary.into_inner();
    report(&summary, json);
    if summary.violations == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn report(summary: &Summary, json: bool) {
    for (name, count) in &summary.counters.0 {
        println!("  {name}: {count}");
    }
    if summary.counters.get("failovers_at_finalize") == 0 {
        println!("note: no failover met a finalize in this run");
    }
    if json {
        println!("{}", serde_json::to_string(summary).expect("counts and words are JSON"));
    } else {
        println!("{}", summary.line());
    }
}
