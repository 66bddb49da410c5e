//! The command line: verdicts, exit codes, and what wrong usage is told.

use std::process::{Command, Output};

use lockgate_sim::plan::Scenario;

fn lockgate_sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockgate-sim")).args(args).output().expect("the simulator runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn seeds_end_with_one_line_of_what_happened() {
    let output = lockgate_sim(&["--seeds", "1..3", "--jobs", "1", "--scenario", "each", "--json"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}");
    let summary: serde_json::Value =
        serde_json::from_str(text.lines().last().expect("a line")).expect("a JSON object");
    assert_eq!((&summary["seeds"], &summary["violations"]), (&2.into(), &0.into()));
    assert!(summary["simulated_hours"].as_f64().expect("hours") > 0.0);
    assert!(summary["counters"]["operations_answered"].as_u64().expect("a count") > 0);
}

#[test]
fn a_seed_tells_its_story() {
    let output = lockgate_sim(&["--seed", "2", "--trace", "--keep", "faults=;ms=300"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}");
    for part in ["healing begins after 300 ms", "process is up", "node-1/0", "formed"] {
        assert!(text.contains(part), "no {part:?} in the story");
    }
}

#[test]
fn a_commit_is_tried_at_some_points_and_at_one() {
    let output = lockgate_sim(&["--enumerate", "--stride", "60", "--jobs", "1", "--json"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}");
    let summary: serde_json::Value =
        serde_json::from_str(text.lines().last().expect("a line")).expect("a JSON object");
    assert!(summary["runs"].as_u64().expect("a count") >= 12, "{summary}");
    assert_eq!(summary["violations"], 0);
    let output = lockgate_sim(&["--enumerate", "--only", "target-primary:kill:5", "--trace"]);
    let text = stdout(&output);
    assert!(output.status.success() && text.contains("fault_kill: 1"), "{text}");
}

#[test]
fn wrong_usage_is_told_what_is_right() {
    for (args, words) in [
        (&["--seeds", "5..5"][..], "holds no seed"),
        (&["--seeds", "many"], "0..1000"),
        (&["--seed", "1", "--scenario", "unheard-of"], "cancel-races-commit"),
        (&["--seed", "1", "--keep", "jobs"], "jobs=0,3;faults=1"),
        (&["--enumerate", "--only", "source-primary:burn:3"], "source-primary:kill:17"),
        (&["--enumerate", "--only", "bystander:kill:3"], "target-replica"),
        (&["--enumerate", "--trace"], "one run has a story"),
        (&[], "--seeds 0..100"),
    ] {
        let output = lockgate_sim(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(words), "{args:?}: {error}");
    }
}

#[test]
fn the_checks_run_every_scenario() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/scenarios");
    let text = std::fs::read_to_string(path).expect("it is there");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let listed: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    for scenario in Scenario::ALL {
        let times = listed.iter().filter(|name| **name == scenario.name()).count();
        assert_eq!(times, 1, "{scenario} in .ci/scenarios");
    }
}
