//! The work: groups of rows that share what they are measured on.
//!
//! A group measures those of its rows that are wanted, and does nothing if none is. What is not known here: how rows are
//! printed.

mod durable;
mod lanes;
mod points;
mod recovery;
pub mod resident;
mod threads;

use crate::cli::Run;
use crate::failure::Failure;
use crate::places::Places;
use crate::progress::Progress;
use crate::report::Report;
use crate::subjects::Settings;

/// What every group is given.
pub struct Context {
    /// What was asked for.
    pub run: Run,
    /// Where files go.
    pub places: Places,
    /// Where to say how far it is.
    pub progress: Progress,
}

impl Context {
    /// How engines are opened.
    pub fn settings(&self) -> Settings {
        Settings { cores: usize::from(self.run.cores), log_unwritten_bytes_max: None, checkpoints: true }
    }
}

/// A group: the names of its rows, and what measures those that are wanted.
struct Group {
    rows: fn() -> Vec<String>,
    measure: fn(&Context, &mut Report) -> Result<(), Failure>,
}

const GROUPS: [Group; 5] = [
    Group { rows: points::rows, measure: points::measure },
    Group { rows: threads::rows, measure: threads::measure },
    Group { rows: resident::rows, measure: resident::measure },
    Group { rows: durable::rows, measure: durable::measure },
    Group { rows: recovery::rows, measure: recovery::measure },
];

/// The names of all rows, in their order.
pub fn rows() -> Vec<String> {
    GROUPS.iter().flat_map(|group| (group.rows)()).collect()
}

/// Measures all that is wanted.
pub fn measure(context: &Context, report: &mut Report) -> Result<(), Failure> {
    for group in &GROUPS {
        if (group.rows)().iter().any(|row| context.run.wants(row)) {
            (group.measure)(context, report)?;
        }
    }
    Ok(())
}

/// A time per operation, as people read it.
pub fn shown_ns(ns: f64) -> String {
    match ns {
        _ if ns < 10_000.0 => format!("{ns:.1} ns"),
        _ if ns < 10_000_000.0 => format!("{:.1} us", ns / 1e3),
        _ => format!("{:.1} ms", ns / 1e6),
    }
}
