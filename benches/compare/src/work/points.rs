//! Reads and sets of one thread in memory.

use super::lanes::{Lane, MANY, PointWork};
use super::{Context, shown_ns};
use crate::failure::Failure;
use crate::keys::WorkingSet;
use crate::report::{ENGINE_ISSUE, Goal, Report};
use crate::rounds::Rounds;
use crate::subjects::{
    CLONING_DASH_MAP, CloningDashMapSubject, DASH_MAP, DashMapSubject, ENGINE, EngineSubject,
    HashBrownSubject, MapKind, PapayaSubject,
};

const VALUE_BYTES: usize = 100;

/// The rows: their names, what is done, and what it may take against DashMap.
const ROWS: [(&str, PointWork, f64); 7] = [
    ("get, dependent", PointWork::GetDependent, 0.8),
    ("get, independent", PointWork::GetIndependent, 1.2),
    ("get_many of 16, per key", PointWork::GetMany, 0.6),
    ("get_with, dependent", PointWork::LookDependent, 0.8),
    ("get_with, independent", PointWork::LookIndependent, 1.2),
    ("get_many_with of 16, per key", PointWork::LookMany, 0.6),
    ("set, logged, not waited for", PointWork::Set, 1.4),
];

pub fn rows() -> Vec<String> {
    ROWS.iter().map(|(name, ..)| (*name).to_owned()).collect()
}

pub fn measure(context: &Context, report: &mut Report) -> Result<(), Failure> {
    let run = &context.run;
    context.progress.doing(format!("loading {} keys into maps", run.keys));
    let set = WorkingSet::new(run.keys, VALUE_BYTES);
    let folder = context.places.folder("points")?;
    let mut lanes: Vec<(&'static str, Box<dyn Lane>)> = vec![
        (ENGINE, Box::new(EngineSubject::open(folder.path(), &context.settings())?)),
        (DASH_MAP, Box::new(DashMapSubject::default())),
        (CLONING_DASH_MAP, Box::new(CloningDashMapSubject::default())),
        (MapKind::Hashbrown.name(), Box::new(HashBrownSubject::default())),
        (MapKind::Papaya.name(), Box::new(PapayaSubject::default())),
    ];
    for (_, lane) in &mut lanes {
        lane.load(&set)?;
    }
    for (name, work, most) in ROWS.into_iter().filter(|(name, ..)| run.wants(name)) {
        context.progress.doing(name);
        // Caches and page tables of the first round are those of the work before.
        Rounds::in_turns(1, &mut lanes, |lane, _| lane.round(work, &set, run.rounds))?;
        let rounds = Rounds::in_turns(run.rounds, &mut lanes, |lane, round| lane.round(work, &set, round))?;
        tell(report, name, &rounds, most, run.rounds);
        context.progress.row();
    }
    Ok(())
}

/// The engine's row with its goal, and all others beside.
fn tell(report: &mut Report, name: &str, rounds: &Rounds, most: f64, count: usize) {
    for subject in rounds.names() {
        let measured = rounds.median(subject).map_or(String::new(), shown_ns);
        let ratio = rounds.ratio(subject, DASH_MAP);
        let row = format!("{name}: {subject}");
        match ratio {
            Some(ratio) if subject == ENGINE => {
                let words = if name.contains("of 16") {
                    format!("of {MANY} gets from DashMap")
                } else {
                    "of DashMap's time".to_owned()
                };
                report.judged((ENGINE_ISSUE, row), (Goal::AtMost(most), &words), measured, ratio, count);
            }
            _ => report.shown(ENGINE_ISSUE, row, measured, ratio, count),
        }
    }
}
