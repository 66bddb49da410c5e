//! Why a history is none of a linearizable key, in words.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::history::{Millis, Operation};
use super::register::Need;
use super::search::Stuck;
use super::timetable::{Event, Timetable};

/// What was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A value was seen that nobody wrote, or that nobody had begun to write.
    Invention,
    /// A value was seen although its write was refused, or was told that it did not write.
    RefusedTookEffect,
    /// An older state was seen after a newer one.
    StaleRead,
    /// A value is gone for good, and nothing can have taken it away.
    LostWrite,
    /// A value was seen after the key had been found, or made, absent.
    Resurrection,
    /// A value was seen after its deadline, or was gone before.
    Expired,
    /// No order of the operations explains the replies, and it is none of the above.
    NotLinearizable,
}

/// A violation: its kind, the operations that show it, and the story. `Display` gives all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What was broken.
    pub kind: Kind,
    /// Indices in the history, in the order of invocation.
    pub operations: Vec<usize>,
    story: String,
}

impl Explanation {
    /// Those operations, out of the history that was explained.
    pub fn excerpt(&self, history: &[Operation]) -> Vec<Operation> {
        let mut indices = self.operations.clone();
        indices.sort_unstable();
        indices.into_iter().map(|index| history[index]).collect()
    }

    /// The explanation that these operations of the history show it, as the conclusion says.
    pub(super) fn new(
        kind: Kind,
        history: &[Operation],
        mut operations: Vec<usize>,
        conclusion: &str,
    ) -> Explanation {
        operations.sort_by_key(|&index| (history[index].invoked_ns, index));
        operations.dedup();
        let lines: Vec<String> =
            operations.iter().map(|&index| format!("  #{index}  {}", history[index])).collect();
        let story = format!("{}\n  {conclusion}", lines.join("\n"));
        Explanation { kind, operations, story }
    }
}

/// The explanation for a search that came to no end: where it was stuck, with what is known there.
pub(super) fn no_order(history: &[Operation], table: &Timetable, stuck: &Stuck) -> Explanation {
    let operation = |step: usize| table.steps[step].operation;
    let Some(stage) = stuck.stage.map(|stage| &table.stages[stage]) else {
        let seen = table.impossible.map_or_else(Vec::new, |step| vec![operation(step)]);
        let conclusion = "what it writes was seen before it was invoked";
        return Explanation::new(Kind::NotLinearizable, history, seen, conclusion);
    };
    let mut shown: Vec<usize> = stage.pending.iter().map(|step| operation(*step)).collect();
    let mut told = format!("until {} ms there are orders of what ended; then the key ", Millis(stage.at_ns));
    let mut held = Vec::new();
    for holding in &stuck.held {
        held.push(match holding {
            None => "is absent".to_owned(),
            Some(None) => "has a value that is not seen any more".to_owned(),
            Some(Some(value)) => format!("has {value}"),
        });
        let written = |step: &&super::steps::Step| Some(step.change.written()) == *holding;
        shown.extend(table.steps.iter().filter(written).map(|step| step.operation));
    }
    told += &held.join(" or ");
    if let Event::Return(step) = stage.event {
        told += &format!(", and nothing lets #{} take effect by then", operation(step));
    }
    for value in &stuck.lost {
        told += &format!("; {value} would be lost, which is seen later");
        let still = |step: &&super::steps::Step| {
            step.must && step.need == Need::Equal(*value) && step.until_ns >= stage.at_ns
        };
        shown.extend(table.steps.iter().filter(still).map(|step| step.operation).take(1));
    }
    Explanation::new(Kind::NotLinearizable, history, shown, &told)
}

impl Kind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Invention => "invention",
            Kind::RefusedTookEffect => "refused write took effect",
            Kind::StaleRead => "stale read",
            Kind::LostWrite => "lost write",
            Kind::Resurrection => "resurrection",
            Kind::Expired => "wrong expiry",
            Kind::NotLinearizable => "not linearizable",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:\n{}", self.kind, self.story)
    }
}
