//! The known bugs, turned on one by one.

use std::process::ExitCode;

use super::{replay_line, usage};
use crate::mutations::{Caught, MUTATIONS, Mutation, SEEDS_MAX};
use crate::plan::Keep;

/// The known bug of this name.
pub(super) fn find(name: &str) -> Result<&'static str, String> {
    compiled_in()?;
    let found = MUTATIONS.iter().find(|mutation| mutation.name == name);
    found.map(|mutation| mutation.name).ok_or_else(|| {
        let names: Vec<&str> = MUTATIONS.iter().map(|mutation| mutation.name).collect();
        format!("there is no known bug {name:?}; there are {}", names.join(", "))
    })
}

/// Turns on every bug whose name contains `name`, and shows how it is caught.
pub(super) fn run_all(name: Option<&str>, json: bool) -> ExitCode {
    if let Err(error) = compiled_in() {
        return usage(&error);
    }
    std::panic::set_hook(Box::new(|_| {}));
    let chosen: Vec<&Mutation> =
        MUTATIONS.iter().filter(|mutation| name.is_none_or(|name| mutation.name.contains(name))).collect();
    let mut missed = Vec::new();
    let mut rows = Vec::new();
    for mutation in &chosen {
        let scenario = match mutation.caught {
            Caught::In(scenario) => scenario,
            Caught::ByTest(test) | Caught::Beside(test) => {
                println!("{:<42} {:<8} caught by the test {test}", mutation.name, mutation.rule);
                rows.push(serde_json::json!({ "name": mutation.name, "rule": mutation.rule, "test": test }));
                continue;
            }
        };
        let row = match mutation.first_caught(scenario, SEEDS_MAX) {
            Some((plan, report)) => {
                let oracle = report.violation.as_ref().map_or("", |violation| violation.oracle);
                let seeds = plan.seed + 1;
                println!(
                    "{:<42} {:<8} caught by \"{oracle}\" with seed {seeds} of {}",
                    mutation.name, mutation.rule, scenario
                );
                let replay = replay_line(&plan, &Keep::default(), Some(mutation.name));
                serde_json::json!({ "name": mutation.name, "rule": mutation.rule, "oracle": oracle, "seeds": seeds, "replay": replay })
            }
            None => {
                println!(
                    "{:<42} {:<8} NOT CAUGHT within {SEEDS_MAX} seeds of {}",
                    mutation.name, mutation.rule, scenario
                );
                missed.push(mutation.name);
                serde_json::json!({ "name": mutation.name, "rule": mutation.rule, "oracle": null })
            }
        };
        rows.push(row);
    }
    let (count, caught) = (chosen.len(), chosen.len() - missed.len());
    if json {
        println!("{}", serde_json::json!({ "mutations": count, "caught": caught, "rows": rows }));
    } else {
        println!("known bugs {count}, caught {caught}, missed {missed:?}");
    }
    if missed.is_empty() && count > 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn compiled_in() -> Result<(), String> {
    if lockgate_runtime::mutations::COMPILED_IN {
        return Ok(());
    }
    Err("this build has no known bugs in it; run: cargo run --release -p lockgate-sim --features mutations -- --mutations".into())
}
