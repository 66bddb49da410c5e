//! When the search must decide what: the stages of a history in the order of time, and what is open at each.
//!
//! A *stage* is a moment at which something ends: a must step, the time of a may step, or the time of a deadline. Nothing
//! has to be put into the order between stages, since whatever is can wait for the next one (see `search`). A stage holds
//! for every moment after the stage before it, up to and with its own.
//!
//! Invariants:
//! - Stages are in the order of time; at one time, deadlines come after the steps, since a value may still be seen in the
//!   last nanosecond of its deadline.
//! - A step is pending from the first stage that is not before its invocation to the stage that ends it. Its slot, a bit in
//!   a search's state, is its own as long as it is pending.
//! - May steps that nothing can tell apart from a stage on are in one class there, and stay together. Only how many of a
//!   class were used matters.

use std::collections::BTreeMap;

use super::history::Operation;
use super::register::{Change, Deadline, Need, Register};
use super::steps::{Step, steps};

/// Must steps that can be pending at one time: the bits in the search's state.
pub(super) const PENDING_MAX: usize = u128::BITS as usize;

/// What ends at a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// This must step.
    Return(usize),
    /// This may step's time.
    Close(usize),
    /// The time of some value's deadline.
    Lapse,
}

/// A moment at which something ends, with what is open until then.
#[derive(Debug)]
pub(super) struct Stage {
    pub at_ns: u64,
    pub event: Event,
    /// The must steps that may be put into the order now, the first to end first.
    pub pending: Vec<usize>,
    /// Those of them that write whatever the register holds, one bit each, if nothing to come tells the value apart. Not
    /// one whose value is gone at once, since it is more of a delete; nor one that a pending step has to come after.
    pub blind: u128,
    /// Index of the may steps' classes.
    pub row: usize,
}

/// May steps that nothing can tell apart.
#[derive(Debug)]
pub(super) struct Class {
    pub need: Need,
    pub change: Change,
    /// The stage that ends them; `usize::MAX` if none does.
    pub closes: usize,
    /// How many there are.
    pub members: usize,
}

/// The classes at a stage, and at those after it as long as they stay the same.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub classes: Vec<Class>,
    /// For each class of the row before: which one it is now, `None` if it can do nothing any more.
    pub from_previous: Vec<Option<u16>>,
}

/// What is to come of a value.
#[derive(Clone, Copy, Debug)]
struct Prospect {
    /// The last stage at which a step may need to tell whether it is there.
    last_told_apart: usize,
    /// The last invocation of a must step that needs it to be there.
    last_wanted_ns: Option<u64>,
    writers: usize,
}

/// The stages of one history.
#[derive(Debug)]
pub(super) struct Timetable {
    pub steps: Vec<Step>,
    pub stages: Vec<Stage>,
    pub rows: Vec<Row>,
    /// A must step that ended before it began, because what it wrote was seen too early.
    pub impossible: Option<usize>,
    /// Whether more than `PENDING_MAX` must steps are pending at one time, or there are more than 65,535 may steps. Then
    /// there is no search.
    pub too_wide: bool,
    slots: Vec<u8>,
    prospects: BTreeMap<u64, Prospect>,
}

impl Timetable {
    pub fn new(operations: &[Operation], core: Option<&[bool]>) -> Timetable {
        let steps = steps(operations, core);
        let mut stages = stages(&steps);
        let ends = ends(&steps, &stages);
        let impossible = steps.iter().position(|step| step.must && step.until_ns < step.invoked_ns);
        let slots = impossible.map_or_else(|| give_slots(&steps, &mut stages), |_| Some(Vec::new()));
        let prospects = prospects(&steps, &ends);
        // More classes than that cannot be numbered, and there are never more than may steps.
        let may = steps.iter().filter(|step| !step.must).count();
        let too_wide = slots.is_none() || may > usize::from(u16::MAX);
        let slots = slots.unwrap_or_default();
        let mut table =
            Timetable { steps, stages, rows: vec![Row::default()], impossible, too_wide, slots, prospects };
        if table.impossible.is_none() && !table.too_wide {
            table.find_blind();
            table.classify(&ends);
        }
        table
    }

    /// The bit of a must step, as long as it is pending.
    pub fn bit(&self, step: usize) -> u128 {
        1 << self.slots[step]
    }

    /// The register as what is still to come at the stage can tell it apart from others.
    pub fn at_stage(&self, register: Register, stage: usize) -> Register {
        let Register::Present { value, deadline } = register else { return Register::Absent };
        let at_ns = self.stages[stage].at_ns;
        if deadline.closes_ns < at_ns {
            return Register::Absent;
        }
        let value = value.filter(|value| self.is_told_apart(*value, stage));
        Register::Present { value, deadline: opened(deadline, at_ns) }
    }

    /// Whether a register may turn absent by itself at the stage.
    pub fn may_lapse(&self, register: Register, stage: usize) -> bool {
        matches!(register, Register::Present { deadline, .. } if deadline.opens_ns <= self.stages[stage].at_ns)
    }

    /// Whether a must step that is not done still needs this value, and nothing will write it again: its only writer is
    /// done, since it is, or was, there. Then it must not be lost.
    pub fn is_owed(&self, value: u64, done: u128, stage: usize) -> bool {
        let Some(prospect) = self.prospects.get(&value).filter(|prospect| prospect.writers == 1) else {
            return false;
        };
        let stage = &self.stages[stage];
        let waits =
            |step: &usize| self.steps[*step].need == Need::Equal(value) && done & self.bit(*step) == 0;
        prospect.last_wanted_ns.is_some_and(|wanted_ns| wanted_ns > stage.at_ns)
            || stage.pending.iter().any(waits)
    }

    fn is_told_apart(&self, value: u64, stage: usize) -> bool {
        self.prospects.get(&value).is_some_and(|prospect| prospect.last_told_apart >= stage)
    }

    fn find_blind(&mut self) {
        for stage in 0..self.stages.len() {
            let Stage { at_ns, ref pending, .. } = self.stages[stage];
            let is_blind = |step: &&usize| {
                let Step { need, change, .. } = self.steps[**step];
                let unseen = |value| !self.is_told_apart(value, stage);
                let writes = matches!(change, Change::Write(value, deadline)
                    if deadline.closes_ns >= at_ns && value.is_none_or(unseen));
                let awaited = || pending.iter().any(|&other| self.steps[other].after == Some(**step));
                need == Need::Anything && writes && !awaited()
            };
            let blind = pending.iter().filter(is_blind).fold(0, |bits, step| bits | self.bit(*step));
            self.stages[stage].blind = blind;
        }
    }

    /// Finds the classes of the may steps at every stage.
    fn classify(&mut self, ends: &[usize]) {
        let mut order: Vec<usize> = (0..self.steps.len()).filter(|&step| !self.steps[step].must).collect();
        order.sort_by_key(|&step| self.steps[step].invoked_ns);
        let mut to_come = order.into_iter().peekable();
        let mut open: Vec<Open> = Vec::new();
        for stage in 0..self.stages.len() {
            let before = open.len();
            open.retain(|open| ends[open.step] >= stage);
            let mut changed = open.len() != before;
            while let Some(step) =
                to_come.next_if(|&step| self.steps[step].invoked_ns <= self.stages[stage].at_ns)
            {
                open.push(Open { step, kind: None, class: None });
            }
            for open in &mut open {
                let kind = self.kind(open.step, stage).map(|(need, change)| (need, change, ends[open.step]));
                changed |= open.kind != kind;
                open.kind = kind;
            }
            open.retain(|open| open.kind.is_some());
            if changed {
                let last = self.rows.last().map_or(0, |row| row.classes.len());
                self.rows.push(row_of(&mut open, last));
            }
            self.stages[stage].row = self.rows.len() - 1;
        }
    }

    /// What a may step comes down to at a stage; `None` if it comes down to nothing from then on.
    fn kind(&self, step: usize, stage: usize) -> Option<(Need, Change)> {
        let at_ns = self.stages[stage].at_ns;
        let Step { need, change, .. } = self.steps[step];
        if change.deadline().is_some_and(|deadline| deadline.closes_ns < at_ns) || change == Change::Remove {
            // What it writes is gone at once.
            return match need {
                Need::Absent => None,
                Need::Anything => Some((Need::Present, Change::Remove)),
                need => Some((need, Change::Remove)),
            };
        }
        Some(match change {
            Change::Write(value, deadline) => {
                let value = value.filter(|value| self.is_told_apart(*value, stage));
                (need, Change::Write(value, opened(deadline, at_ns)))
            }
            Change::Retime(deadline) => (need, Change::Retime(opened(deadline, at_ns))),
            change => (need, change),
        })
    }
}

/// A may step that is open: what it comes down to, with the stage that ends it, and its class in the last row.
struct Open {
    step: usize,
    kind: Option<(Need, Change, usize)>,
    class: Option<u16>,
}

/// The row of what is open, after a row of `previous` classes.
fn row_of(open: &mut [Open], previous: usize) -> Row {
    let mut members: BTreeMap<(Need, Change, usize), usize> = BTreeMap::new();
    for kind in open.iter().filter_map(|open| open.kind) {
        *members.entry(kind).or_default() += 1;
    }
    let mut from_previous = vec![None; previous];
    for open in open {
        let place = members.keys().position(|kind| open.kind == Some(*kind));
        let class = place.and_then(|place| u16::try_from(place).ok());
        if let Some(before) = open.class {
            from_previous[usize::from(before)] = class;
        }
        open.class = class;
    }
    let class = |((need, change, closes), members)| Class { need, change, closes, members };
    Row { classes: members.into_iter().map(class).collect(), from_previous }
}

/// From a moment within its window on, it does not matter when a deadline's window opened.
fn opened(deadline: Deadline, at_ns: u64) -> Deadline {
    let opens_ns = if deadline.opens_ns <= at_ns { 0 } else { deadline.opens_ns };
    Deadline { opens_ns, ..deadline }
}

/// All stages up to the last end of a must step, without what is open at them.
fn stages(steps: &[Step]) -> Vec<Stage> {
    let mut events = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        if step.must {
            events.push((step.until_ns, Event::Return(index)));
        } else if step.until_ns < u64::MAX {
            events.push((step.until_ns, Event::Close(index)));
        }
        if let Some(deadline) = step.change.deadline().filter(|deadline| deadline.closes_ns < u64::MAX) {
            events.push((deadline.closes_ns, Event::Lapse));
        }
    }
    // The order of the variants puts deadlines last at one time.
    events.sort_unstable();
    events.dedup();
    let last = events.iter().rposition(|(_, event)| matches!(event, Event::Return(_)));
    events.truncate(last.map_or(0, |last| last + 1));
    let stage = |(at_ns, event)| Stage { at_ns, event, pending: Vec::new(), blind: 0, row: 0 };
    events.into_iter().map(stage).collect()
}

/// The stage that ends each step; `usize::MAX` if none does.
fn ends(steps: &[Step], stages: &[Stage]) -> Vec<usize> {
    let mut ends = vec![usize::MAX; steps.len()];
    for (at, stage) in stages.iter().enumerate() {
        if let Event::Return(step) | Event::Close(step) = stage.event {
            ends[step] = at;
        }
    }
    ends
}

/// Fills in what is pending at each stage, and finds the slots. `None` if there are too few.
fn give_slots(steps: &[Step], stages: &mut [Stage]) -> Option<Vec<u8>> {
    let mut order: Vec<usize> = (0..steps.len()).filter(|&step| steps[step].must).collect();
    order.sort_by_key(|&step| steps[step].invoked_ns);
    let mut to_come = order.into_iter().peekable();
    let mut slots = vec![0; steps.len()];
    let mut taken = 0_u128;
    let mut pending: Vec<usize> = Vec::new();
    for stage in stages {
        while let Some(step) = to_come.next_if(|&step| steps[step].invoked_ns <= stage.at_ns) {
            let slot =
                u8::try_from(taken.trailing_ones()).ok().filter(|&slot| usize::from(slot) < PENDING_MAX)?;
            taken |= 1 << slot;
            slots[step] = slot;
            let at = pending.partition_point(|&other| steps[other].until_ns <= steps[step].until_ns);
            pending.insert(at, step);
        }
        stage.pending.clone_from(&pending);
        if let Event::Return(step) = stage.event {
            pending.retain(|&other| other != step);
            taken &= !(1 << slots[step]);
        }
    }
    Some(slots)
}

fn prospects(steps: &[Step], ends: &[usize]) -> BTreeMap<u64, Prospect> {
    let mut prospects = BTreeMap::new();
    let none = Prospect { last_told_apart: 0, last_wanted_ns: None, writers: 0 };
    for (index, step) in steps.iter().enumerate() {
        if let Need::Equal(value) | Need::Unequal(value) = step.need {
            let prospect = prospects.entry(value).or_insert(none);
            prospect.last_told_apart = prospect.last_told_apart.max(ends[index]);
            if step.must && step.need == Need::Equal(value) {
                prospect.last_wanted_ns = prospect.last_wanted_ns.max(Some(step.invoked_ns));
            }
        }
    }
    for value in steps.iter().filter_map(|step| step.change.written()) {
        if let Some(prospect) = prospects.get_mut(&value) {
            prospect.writers += 1;
        }
    }
    prospects
}
