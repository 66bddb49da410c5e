//! Runs of every scenario hold, and one seed is one history, byte for byte, in this process and in another one.

use std::process::Command;

use lockgate_sim::plan::{Plan, Scenario};
use lockgate_sim::run::{Report, run};

fn run_seed(seed: u64, scenario: Scenario) -> Report {
    let report = run(&Plan::draw(seed, scenario));
    let violation =
        report.violation.as_ref().map(|violation| format!("{}: {}", violation.oracle, violation.what));
    assert_eq!(violation, None, "seed {seed} of {scenario}");
    report
}

#[test]
fn every_scenario_holds_and_does_what_it_is_about() {
    for scenario in Scenario::ALL {
        let report = run_seed(3, scenario);
        let count = |name: &str| report.counters.get(name);
        assert!(count("operations_answered") > 0, "{scenario}: clients were answered");
        assert!(count("jobs_accepted") > 0, "{scenario}: jobs ran");
    }
}

#[test]
fn equal_seeds_have_equal_histories() {
    let again = |seed| (run_seed(seed, Scenario::Swarm), run_seed(seed, Scenario::Swarm));
    let mut traces = Vec::new();
    for seed in [5, 6] {
        let (first, second) = again(seed);
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed}");
        assert_eq!(first.counters, second.counters, "seed {seed}");
        assert_eq!(first.simulated_ns, second.simulated_ns, "seed {seed}");
        traces.push(first.trace_hash);
    }
    assert_ne!(traces[0], traces[1], "different seeds have different histories");
}

#[test]
fn processes_agree_on_a_seed() {
    let line = || {
        let output = Command::new(env!("CARGO_BIN_EXE_lockgate-sim"))
            .args(["--seed", "7", "--scenario", "disk-faults"])
            .output()
            .expect("the simulator runs");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success(), "{text}");
        text.lines().last().expect("a verdict").to_owned()
    };
    let here = run_seed(7, Scenario::DiskFaults);
    let trace = format!("trace {:016x}", here.trace_hash);
    for _ in 0..2 {
        let line = line();
        assert!(line.ends_with(&trace), "{line:?} does not end with {trace:?}");
    }
}
