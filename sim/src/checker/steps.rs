//! From operations to the steps of the search: what must be put into the order, and what may be.
//!
//! A *must* step is put into the order once, between its two times. A *may* step is put there once or never: an operation
//! of unknown outcome, or one whose reply `minimise` tries to do without. Refused operations are no steps, and neither are
//! may steps that change nothing.
//!
//! Two things are known about a value that only one step writes, once a must step needs it to be there:
//! - **the write took effect**, so a may step becomes a must step;
//! - **it took effect no later than the reader ended**, so it ends then, if it did not end before.
//!
//! Both only spell out what every order has: the write is before the reader in it, and no step is after its own end. They
//! carry on from one compare-and-set to the one whose value it expected.

use std::collections::BTreeMap;

use super::history::{Operation, Outcome};
use super::register::{Change, Deadline, Need, meaning};

/// An operation that is, or may be, part of the order.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// Its index in the history.
    pub operation: usize,
    pub need: Need,
    pub change: Change,
    /// From when on it may take effect.
    pub invoked_ns: u64,
    /// Until when it may take effect; `u64::MAX` if for ever.
    pub until_ns: u64,
    pub must: bool,
    /// The must step of the same client that ended in the very nanosecond in which this one was invoked. It goes first,
    /// which their times alone do not tell.
    pub after: Option<usize>,
}

impl Step {
    /// Whether it must find the register in some state, and leaves it so.
    pub fn only_looks(&self) -> bool {
        self.change == Change::Nothing
    }
}

/// The steps of a history. With `core`, only the operations in it are must steps; the others may have happened as they
/// were told, or not at all.
pub(super) fn steps(operations: &[Operation], core: Option<&[bool]>) -> Vec<Step> {
    let mut steps = Vec::with_capacity(operations.len());
    let mut last_of_client: BTreeMap<u32, (usize, Option<usize>)> = BTreeMap::new();
    for (index, operation) in operations.iter().enumerate() {
        let mut of_this = None;
        if let Some((need, change)) = meaning(operation) {
            let returned = matches!(operation.outcome, Outcome::Returned { .. });
            let after = last_of_client.get(&operation.client).and_then(|&(before, step)| {
                let together = operations[before].ended_ns() == Some(operation.invoked_ns);
                step.filter(|_| returned && together)
            });
            let must = returned && core.is_none_or(|core| core[index]);
            let until_ns = operation.ended_ns().unwrap_or(u64::MAX);
            let invoked_ns = operation.invoked_ns;
            of_this = Some(steps.len());
            steps.push(Step { operation: index, need, change, invoked_ns, until_ns, must, after });
        }
        last_of_client.insert(operation.client, (index, of_this));
    }
    confirm_what_was_seen(&mut steps);
    if core.is_some() {
        loosen_deadlines(operations, &mut steps);
    }
    without_idle(steps)
}

/// Makes must steps of writes that were seen, and ends them when they were seen.
fn confirm_what_was_seen(steps: &mut [Step]) {
    let mut writers: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, step) in steps.iter().enumerate() {
        if let Some(value) = step.change.written() {
            writers.entry(value).or_default().push(index);
        }
    }
    let mut readers: Vec<usize> = (0..steps.len()).filter(|&index| steps[index].must).collect();
    while let Some(reader) = readers.pop() {
        let until_ns = steps[reader].until_ns;
        let Need::Equal(value) = steps[reader].need else { continue };
        let Some([writer]) = writers.get(&value).map(Vec::as_slice) else { continue };
        let write = &mut steps[*writer];
        if !write.must || write.until_ns > until_ns {
            write.must = true;
            write.until_ns = write.until_ns.min(until_ns);
            readers.push(*writer);
        }
    }
}

/// Lets what the operations outside the core write expire at any time. That allows more orders than before, so a history
/// without an order has none before either; and it leaves the search fewer states to tell apart.
fn loosen_deadlines(operations: &[Operation], steps: &mut [Step]) {
    for step in steps.iter_mut().filter(|step| !step.must) {
        if let Change::Write(_, deadline) | Change::Retime(deadline) = &mut step.change
            && *deadline != Deadline::NEVER
            && operations[step.operation].ended_ns().is_some()
        {
            *deadline = Deadline::ANY_TIME;
        }
    }
}

/// Drops may steps that change nothing, and renumbers what refers to steps.
fn without_idle(mut steps: Vec<Step>) -> Vec<Step> {
    let mut place = Vec::with_capacity(steps.len());
    let mut kept = 0;
    for step in &steps {
        let stays = step.must || !step.only_looks();
        place.push(stays.then_some(kept));
        kept += usize::from(stays);
    }
    let must: Vec<bool> = steps.iter().map(|step| step.must).collect();
    for step in &mut steps {
        step.after = step.after.filter(|&before| must[before]).and_then(|before| place[before]);
    }
    steps.retain(|step| step.must || !step.only_looks());
    steps
}
