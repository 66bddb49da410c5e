//! `lockgate-compare`: the same work on Lockgate's engine and on its rivals, in one run, in turns.
//!
//! `cli` is what can be asked for; `keys` what all subjects are given; `subjects` what is compared; `rounds` how turns are
//! taken and what is made of them; `work` what is measured; `report` what is said in the end. What this program does not
//! know: anything of the engine that an embedder could not ask. It has no tests: a run with `--smoke` goes through
//! everything, and what is read is checked in every run.

mod cli;
mod failure;
mod keys;
mod memory;
mod places;
mod progress;
mod report;
mod rounds;
mod subjects;
mod work;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Child, Cli, Run};
use failure::{During, Failure};
use places::Places;
use progress::Progress;
use report::Report;
use work::Context;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
    };
    let outcome = match &cli.child {
        Some(Child::MeasureMemory(order)) => work::resident::be_child(order),
        None => compare(cli.run.sized()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("lockgate-compare: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn compare(run: Run) -> Result<(), Failure> {
    let rows = work::rows().iter().filter(|row| run.wants(row)).count();
    if rows == 0 {
        let names = work::rows().join("\n  ");
        return Err(Failure::new(format!("no row has {:?} in its name; there are:\n  {names}", run.only)));
    }
    let places = Places::new(run.dir.as_deref())?;
    if memory::is_in_memory(places.root()) {
        eprintln!("{} lies in memory: synced writes mean nothing there (see --dir)", places.root().display());
    }
    let (judges, rounds, keys, json) = (run.judges(), run.rounds, run.keys, run.json);
    let mut report = Report::new(judges);
    let context = Context { run, places, progress: Progress::new(rows) };
    let measured = work::measure(&context, &mut report);
    // A signal that is being answered makes measurements fail, and has the last word.
    context.places.hold_end(|| {
        context.progress.end();
        measured?;
        print!("{}", report.text());
        if json {
            println!("{}", report.json(rounds, keys).during("writing JSON")?);
        }
        Ok(())
    })
}
