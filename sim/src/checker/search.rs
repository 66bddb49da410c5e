//! Is there an order? The search over configurations, stage by stage.
//!
//! A history is linearizable if all its must steps, and some of its may steps, can be given moments between their own two
//! times, so that taken in that order each finds the register in a state that it needs. A present register may turn absent
//! at one more moment in its deadline's window, and does so by the window's end.
//!
//! This is the search of Wing and Gong with the memory of Lowe, and with his lazy scheduling: a step is put into the order
//! only at a stage (see `timetable`). What it leaves out, and why nothing is missed: call a way from a configuration to the
//! end a *run*, and its *length* the steps and lapses in it, plus the stages passed. Suppose that some configuration that
//! was visited has a run; take a shortest one of all visited configurations. By the rules below its first move is one that
//! is tried, perhaps after a change that makes the run no longer. So the configuration after it was visited, or one that
//! covers it, and has a shorter run: a contradiction, unless the end was reached.
//!
//! 1. *Steps wait for stages.* Between stages nothing ends, so every moment can move, in the same order, to the next stage.
//!    For the same reason, steps after the one that ends at a stage can wait for the next stage.
//! 2. *Steps that only look are taken at once* wherever the register meets their need. They change nothing, so a run that
//!    takes one later can do without it there.
//! 3. *Covered steps are free.* A pending must step is blind if it writes whatever the register holds, and nothing to come
//!    tells its value apart. A step that overwrites the register, and needs at most that something is there, covers all
//!    pending blind steps: they may have come right before it, and nobody would know. A free step need not be taken any
//!    more, but still may be; that is no worse than done, and no worse than not done.
//! 4. *Silent steps come only right before a must step that they help.* These are may steps, lapses, and blind steps.
//!    Suppose that a must step follows a silent one, finds its need without it too, and overwrites the register. A may step
//!    or a lapse is dropped: the run is shorter. A blind step is dropped if the must step covers it. So a must step that
//!    needs nothing never comes right after a silent step; and if no pending must step is helped (see `is_helped`), no
//!    silent step is taken. This holds at a stage by which a must step has to be taken, since then one follows. At other
//!    stages it may be the last chance of a silent step, and a step that it helps may come much later; if it is no last
//!    chance, everything waits.
//! 5. *A value that a must step still needs is never lost*, if its only writer is done: nothing would bring it back, so
//!    there is no run. (A value is in the register only once a writer of it is done.)
//! 6. *Values that nothing to come tells apart are one value, may steps that nothing tells apart are one class, and an open
//!    window has no beginning.* Any run of one is a run of the other, with names exchanged.
//! 7. *A covered configuration is left out* (see `seen`): the one that covers it has a run of the same length. If a lapse
//!    is forced on one, the other, whose window is still open, takes it by itself.
//!
//! The limit counts the configurations visited; beyond it there is no verdict.

use std::collections::BTreeSet;

use super::agenda::{Agenda, Next, Node};
use super::register::{Change, Need, Register};
use super::seen::{Configuration, Holding, Seen};
use super::steps::Step;
use super::timetable::{Class, Event, Stage, Timetable};

/// Configurations for each stage that are visited newest first; then the agenda is broadened. Histories that have an order
/// need one to four.
const DEEP_PER_STAGE: usize = 16;

/// The end of a search.
#[derive(Debug)]
pub(super) enum Found {
    Order,
    NoOrder(Stuck),
    GaveUp { configurations: usize },
}

/// Where every order ends.
#[derive(Debug)]
pub(super) struct Stuck {
    /// The index of the stage. It is `None` if a step ended before it began.
    pub stage: Option<usize>,
    /// What the key can hold there: absent, or a value, which may be none that can be told apart.
    pub held: BTreeSet<Holding>,
    /// Values that would have been lost there although they are still needed.
    pub lost: BTreeSet<u64>,
}

/// One search in one history.
struct Search<'a> {
    table: &'a Timetable,
    seen: Vec<Seen>,
    /// What was seen after silent steps that a must step has to follow.
    links: Vec<Seen>,
    agenda: Agenda,
    configurations: usize,
    configurations_max: usize,
    deepest: usize,
    /// The last stage at which a value that is still needed would have been lost, and those values.
    lost: (usize, BTreeSet<u64>),
    arrived: bool,
}

/// Looks for an order, and gives up after `configurations_max` configurations.
pub(super) fn search(table: &Timetable, configurations_max: usize) -> Found {
    if table.too_wide {
        return Found::GaveUp { configurations: 0 };
    }
    if table.impossible.is_some() {
        return Found::NoOrder(Stuck { stage: None, held: BTreeSet::new(), lost: BTreeSet::new() });
    }
    let search = Search {
        table,
        seen: table.stages.iter().map(|stage| Seen::new(stage.blind)).collect(),
        links: table.stages.iter().map(|stage| Seen::new(stage.blind)).collect(),
        agenda: Agenda::default(),
        configurations: 0,
        configurations_max,
        deepest: 0,
        lost: (0, BTreeSet::new()),
        arrived: false,
    };
    search.run()
}

impl Search<'_> {
    fn run(mut self) -> Found {
        let start = Configuration { register: Register::Absent, done: 0, free: 0, used: Vec::new() };
        self.enter(0, start);
        while !self.arrived && !self.is_over_limit() {
            if !self.agenda.is_broad() && self.configurations > DEEP_PER_STAGE * self.table.stages.len() {
                self.agenda.broaden();
            }
            let Some(Node { stage, configuration, next }) = self.agenda.pop() else { break };
            match next {
                Next::Direct => self.expand(stage, configuration),
                Next::Silent => self.take_silent(stage, &configuration),
                Next::Link => {
                    self.take_silent(stage, &configuration);
                    self.take_must(stage, &configuration, |need| need != Need::Anything);
                }
            }
        }
        if self.arrived {
            return Found::Order;
        }
        // Before anything else: over the limit, moves were left out, and an empty agenda says nothing.
        if self.is_over_limit() {
            return Found::GaveUp { configurations: self.configurations };
        }
        let held = self.seen[self.deepest].held();
        let (lost_at, lost) = self.lost;
        let lost = if lost_at < self.deepest { BTreeSet::new() } else { lost };
        Found::NoOrder(Stuck { stage: Some(self.deepest.max(lost_at)), held, lost })
    }

    fn is_over_limit(&self) -> bool {
        self.configurations > self.configurations_max
    }

    /// Visits a configuration whose register is as the stage sees it. Past the last stage, the search has arrived.
    fn enter(&mut self, stage: usize, mut configuration: Configuration) {
        if stage == self.table.stages.len() {
            self.arrived = true;
            return;
        }
        self.look(stage, &mut configuration);
        self.deepest = self.deepest.max(stage);
        if self.seen[stage].add(&configuration) {
            self.configurations += 1;
            self.agenda.push(Node { stage, configuration, next: Next::Direct });
        }
    }

    /// Takes all pending steps that only look and find what they need.
    fn look(&self, stage: usize, configuration: &mut Configuration) {
        loop {
            let before = configuration.done;
            for &step in &self.table.stages[stage].pending {
                if self.table.steps[step].only_looks()
                    && self.is_ready(stage, step, before)
                    && configuration.register.meets(self.table.steps[step].need)
                {
                    configuration.done |= self.table.bit(step);
                }
            }
            if configuration.done == before {
                return;
            }
        }
    }

    /// Whether a pending step is not in the order, and what must go before it is.
    fn is_ready(&self, stage: usize, step: usize, done: u128) -> bool {
        let pending = &self.table.stages[stage].pending;
        let is_done = |step: usize| done & self.table.bit(step) != 0;
        !is_done(step)
            && self.table.steps[step].after.is_none_or(|before| is_done(before) || !pending.contains(&before))
    }

    /// Tries what is possible without silent steps. The best comes last, and is the next to be tried.
    fn expand(&mut self, stage: usize, configuration: Configuration) {
        let (passes, moves) = match self.table.stages[stage].event {
            Event::Return(step) if configuration.done & self.table.bit(step) != 0 => (true, false),
            Event::Return(step) => (configuration.free & self.table.bit(step) != 0, true),
            Event::Close(_) | Event::Lapse => (true, self.is_last_chance(stage, &configuration)),
        };
        if moves {
            let copy = configuration.clone();
            if self.must_follow(stage, &copy).is_none() || self.is_helped(stage, &copy) {
                self.agenda.push(Node { stage, configuration: copy, next: Next::Silent });
            }
            self.take_must(stage, &configuration, |_| true);
        }
        if passes {
            self.pass(stage, configuration);
        }
    }

    /// Whether what ends at the stage, a deadline or a may step, is there to be used or seen.
    fn is_last_chance(&self, stage: usize, configuration: &Configuration) -> bool {
        let Stage { event, row, ref pending, at_ns, .. } = self.table.stages[stage];
        let classes = self.table.rows[row].classes.iter().zip(0..);
        let mut open = classes.filter(|(class, number)| left(class, *number, &configuration.used) > 0);
        if event != Event::Lapse {
            return open.any(|(class, _)| class.closes == stage);
        }
        let ends = |change: Change| change.deadline().is_some_and(|deadline| deadline.closes_ns == at_ns);
        matches!(configuration.register, Register::Present { deadline, .. } if deadline.closes_ns == at_ns)
            || open.any(|(class, _)| ends(class.change))
            || pending.iter().any(|&step| {
                ends(self.table.steps[step].change) && configuration.done & self.table.bit(step) == 0
            })
    }

    /// Goes on to the next stage.
    fn pass(&mut self, stage: usize, mut configuration: Configuration) {
        let next = stage + 1;
        if let Event::Return(step) = self.table.stages[stage].event {
            configuration.done &= !self.table.bit(step);
            configuration.free &= !self.table.bit(step);
        }
        if next < self.table.stages.len() {
            let register = self.table.at_stage(configuration.register, next);
            if !self.keeps(next, &configuration, register, configuration.done) {
                return;
            }
            configuration.register = register;
            let row = self.table.stages[next].row;
            if row != self.table.stages[stage].row {
                let now = &self.table.rows[row].from_previous;
                configuration.used =
                    configuration.used.iter().filter_map(|class| now[usize::from(*class)]).collect();
                configuration.used.sort_unstable();
            }
        }
        self.enter_decided(next, configuration);
    }

    /// Visits a configuration in which no free step is one that a pending step has to come after: such a one was covered,
    /// or is still to be taken.
    fn enter_decided(&mut self, stage: usize, mut configuration: Configuration) {
        let table = self.table;
        let pending = table.stages.get(stage).map_or(&[][..], |stage| stage.pending.as_slice());
        let before = pending.iter().filter_map(|&step| table.steps[step].after);
        let awaited = before.filter(|before| pending.contains(before)).map(|before| table.bit(before));
        let Some(bit) = awaited.into_iter().find(|bit| configuration.free & bit != 0) else {
            return self.enter(stage, configuration);
        };
        configuration.free &= !bit;
        self.enter_decided(stage, configuration.clone());
        configuration.done |= bit;
        self.enter_decided(stage, configuration);
    }

    /// Takes every pending must step that changes the register, finds what it needs, and is `wanted`.
    fn take_must(&mut self, stage: usize, from: &Configuration, wanted: impl Fn(Need) -> bool) {
        let table = self.table;
        let ends = self.must_follow(stage, from);
        // The first to end comes last, and is tried first.
        for &step in table.stages[stage].pending.iter().rev() {
            let Step { need, change, .. } = table.steps[step];
            let takes = !table.steps[step].only_looks()
                && (table.stages[stage].blind & table.bit(step) == 0 || ends == Some(step))
                && self.is_ready(stage, step, from.done)
                && from.register.meets(need)
                && wanted(need);
            if takes && let Some(to) = self.taken(stage, from, (need, change), table.bit(step)) {
                self.enter(stage, to);
            }
        }
    }

    /// After a step that finds what it needs, unless that loses a value that is still needed. `bit` is that of a pending
    /// step, or none.
    fn taken(
        &mut self,
        stage: usize,
        from: &Configuration,
        (need, change): (Need, Change),
        bit: u128,
    ) -> Option<Configuration> {
        let register = self.table.at_stage(from.register.after(change), stage);
        let done = from.done | bit;
        if !self.keeps(stage, from, register, done) {
            return None;
        }
        let mut free = from.free & !bit;
        let overwrites = matches!(change, Change::Write(..) | Change::Remove);
        if overwrites && matches!(need, Need::Anything | Need::Present) {
            let Stage { ref pending, blind, .. } = self.table.stages[stage];
            let covered = |other: &&usize| {
                blind & !done & self.table.bit(**other) != 0 && self.is_ready(stage, **other, from.done)
            };
            free = pending.iter().filter(covered).fold(free, |free, other| free | self.table.bit(*other));
        }
        Some(Configuration { register, done, free, used: from.used.clone() })
    }

    /// Whether the stage ends a step that must be taken by then, and is not.
    fn must_follow(&self, stage: usize, configuration: &Configuration) -> Option<usize> {
        match self.table.stages[stage].event {
            Event::Return(step) if (configuration.done | configuration.free) & self.table.bit(step) == 0 => {
                Some(step)
            }
            _ => None,
        }
    }

    /// Whether silent steps could be of use to a pending must step: because it does not find now what it needs, or leaves
    /// what it found; or because a blind step might go before it that cannot go after it.
    fn is_helped(&self, stage: usize, from: &Configuration) -> bool {
        let Stage { row, blind, ref pending, .. } = self.table.stages[stage];
        let classes = &self.table.rows[row].classes;
        let blind = blind & !from.done;
        if classes.is_empty() && blind == 0 && !self.table.may_lapse(from.register, stage) {
            return false;
        }
        pending.iter().filter(|&&step| from.done & self.table.bit(step) == 0).any(|&step| {
            let step = &self.table.steps[step];
            match step.need {
                Need::Never | Need::Anything => false,
                Need::Equal(value) => classes.iter().any(|class| class.change.written() == Some(value)),
                need => {
                    blind & !from.free != 0
                        || !from.register.meets(need)
                        || matches!(step.change, Change::Retime(_))
                }
            }
        })
    }

    /// Takes one silent step: a may step, a blind step, or a lapse.
    fn take_silent(&mut self, stage: usize, from: &Configuration) {
        let table = self.table;
        let Stage { row, blind, ref pending, .. } = table.stages[stage];
        for (class, number) in table.rows[row].classes.iter().zip(0..) {
            if left(class, number, &from.used) > 0
                && from.register.meets(class.need)
                && let Some(mut to) = self.taken(stage, from, (class.need, class.change), 0)
            {
                to.used.insert(to.used.partition_point(|other| *other < number), number);
                self.enter_silent(stage, to);
            }
        }
        for &step in pending.iter().rev() {
            let Step { need, change, .. } = table.steps[step];
            if blind & table.bit(step) != 0
                && self.is_ready(stage, step, from.done)
                && let Some(to) = self.taken(stage, from, (need, change), table.bit(step))
            {
                self.enter_silent(stage, to);
            }
        }
        if table.may_lapse(from.register, stage) && self.keeps(stage, from, Register::Absent, from.done) {
            self.enter_silent(stage, Configuration { register: Register::Absent, ..from.clone() });
        }
    }

    /// Visits a configuration after a silent step. Where a must step has to follow that needs the silent one, it is a
    /// link only, unless it let a step look.
    fn enter_silent(&mut self, stage: usize, mut configuration: Configuration) {
        let before = configuration.done;
        self.look(stage, &mut configuration);
        if configuration.done != before || self.must_follow(stage, &configuration).is_none() {
            self.enter(stage, configuration);
        } else if !self.seen[stage].cover(&configuration) && self.links[stage].add(&configuration) {
            self.configurations += 1;
            self.agenda.push(Node { stage, configuration, next: Next::Link });
        }
    }

    /// Whether no value is lost that is still needed.
    fn keeps(&mut self, stage: usize, from: &Configuration, to: Register, done: u128) -> bool {
        let Some(value) = from.register.value().filter(|value| to.value() != Some(*value)) else {
            return true;
        };
        if !self.table.is_owed(value, done, stage) {
            return true;
        }
        if self.lost.0 < stage {
            self.lost = (stage, BTreeSet::new());
        }
        if self.lost.0 == stage {
            self.lost.1.insert(value);
        }
        false
    }
}

/// How many members of a class, the one with this number, are not in the order.
fn left(class: &Class, number: u16, used: &[u16]) -> usize {
    class.members - used.iter().filter(|other| **other == number).count()
}
