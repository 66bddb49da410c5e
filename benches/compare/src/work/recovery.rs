//! Opening an engine of two cores, to the first get: from a checkpoint, and from its log alone. What rivals take to open is
//! among the stores' rows.

use std::path::PathBuf;
use std::time::Instant;

use super::{Context, shown_ns};
use crate::failure::{During, Failure};
use crate::keys::{Key, WorkingSet};
use crate::report::{DURABILITY_ISSUE, Goal, Report};
use crate::rounds::Rounds;
use crate::subjects::{EngineSubject, Map, Settings, Store};

const CORES: usize = 2;
const VALUE_BYTES: usize = 100;
/// What the goals are about.
const KEYS: u32 = 1_000_000;

struct Kind {
    row: &'static str,
    has_checkpoint: bool,
    /// How long it may take.
    most_ns: f64,
    goal: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        row: "recovery from a checkpoint",
        has_checkpoint: true,
        most_ns: 0.3e9,
        goal: "of 0.3 s for a million keys on two cores",
    },
    Kind {
        row: "recovery from the log alone",
        has_checkpoint: false,
        most_ns: 0.5e9,
        goal: "of 0.5 s for a million keys on two cores",
    },
];

pub fn rows() -> Vec<String> {
    KINDS.iter().map(|kind| kind.row.to_owned()).collect()
}

/// A directory that was closed in order.
struct Closed {
    folder: PathBuf,
    settings: Settings,
}

impl Closed {
    fn new(folder: PathBuf, kind: &Kind, set: &WorkingSet) -> Result<Closed, Failure> {
        std::fs::create_dir(&folder).during("making a folder for an engine")?;
        let settings = Settings { cores: CORES, log_unwritten_bytes_max: None, checkpoints: false };
        let engine = EngineSubject::open(&folder, &settings)?;
        engine.load(set)?;
        if kind.has_checkpoint {
            engine.checkpoint()?;
        }
        Ok(Closed { folder, settings })
    }

    /// Nanoseconds from the opening to the first value.
    fn open(&self, key: &Key) -> Result<f64, Failure> {
        let began = Instant::now();
        let engine = EngineSubject::open(&self.folder, &self.settings)?;
        match engine.look_at(key, |_| ())? {
            Some(()) => Ok(began.elapsed().as_nanos() as f64),
            None => Err(Failure::new("an engine lost a key")),
        }
    }
}

pub fn measure(context: &Context, report: &mut Report) -> Result<(), Failure> {
    let run = &context.run;
    let (folder, set) = (context.places.folder("recovery")?, WorkingSet::new(run.keys, VALUE_BYTES));
    let mut all = Vec::new();
    for (number, kind) in KINDS.iter().enumerate().filter(|(_, kind)| run.wants(kind.row)) {
        context.progress.doing(format!("filling an engine: {}", kind.row));
        let closed = Closed::new(folder.path().join(number.to_string()), kind, &set)?;
        all.push((kind.row, Box::new(closed)));
    }
    context.progress.doing("recovery");
    let key = &set.chain()[0];
    let rounds = Rounds::in_turns(run.rounds, &mut all, |closed, _| closed.open(key).map(Some))?;
    for kind in &KINDS {
        let Some(ns) = rounds.median(kind.row) else { continue };
        let (name, measured) = (format!("{}: engine", kind.row), shown_ns(ns));
        if run.keys == KEYS {
            let goal = (Goal::AtMost(1.0), kind.goal);
            report.judged((DURABILITY_ISSUE, name), goal, measured, ns / kind.most_ns, run.rounds);
        } else {
            report.shown(DURABILITY_ISSUE, name, measured, None, run.rounds);
        }
        context.progress.row();
    }
    Ok(())
}
