//! From a long history that is a violation to the few operations that show it.
//!
//! Leaving out operations one by one would tell false stories: without the delete that explains it, a good read of an absent
//! key is a violation too. So nothing is left out at first. An operation outside the *core* stays as one that may have
//! happened as it was told, or not at all. The core is shrunk as long as there is still no order. What remains cannot be
//! explained whatever the others did; then, since they were free not to happen, the others can go.

use super::explain::{Explanation, Kind};
use super::history::{Operation, Outcome};
use super::register::{Need, meaning};
use super::search::{Found, Stuck, search};
use super::timetable::Timetable;
use super::{Limits, quick};

/// Explains a violation with few operations: those that no order explains whatever the other operations of the history did,
/// and the writers of the values that they found, and so on. They are a violation by themselves too. They are few, not
/// always the fewest, and their kind often has a name where `check` found none.
///
/// `None` if the history is no violation, or if `limits` leave it undecided. The limits hold for each of the searches, some
/// hundred for a long history.
pub fn minimise(operations: &[Operation], limits: Limits) -> Option<Explanation> {
    if let Some(explanation) = quick::violation(operations) {
        return Some(explanation);
    }
    let table = Timetable::new(operations, None);
    let Found::NoOrder(stuck) = search(&table, limits.configurations_max) else { return None };
    let core = core(operations, &table, &stuck, limits);
    let kept = with_writers(operations, &core);
    if let Some(named) = named(operations, &core, &kept) {
        return Some(named);
    }
    let shown = |kept: &[bool]| (0..kept.len()).filter(|&index| kept[index]).collect::<Vec<_>>();
    let names: Vec<String> = shown(&core).iter().map(|index| format!("#{index}")).collect();
    let conclusion = format!("whatever the others did, no order explains {}", names.join(", "));
    Some(Explanation::new(Kind::NotLinearizable, operations, shown(&kept), &conclusion))
}

/// The explanation by a direct check, if one needs the whole core.
fn named(operations: &[Operation], core: &[bool], kept: &[bool]) -> Option<Explanation> {
    // What the core does without is made to have no effect.
    let alone = |(operation, kept): (&Operation, &bool)| match kept {
        true => *operation,
        false => Operation { outcome: Outcome::Refused { at_ns: operation.invoked_ns }, ..*operation },
    };
    let alone: Vec<_> = operations.iter().zip(kept).map(alone).collect();
    let explanation = quick::violation(&alone)?;
    let is_whole = (0..core.len()).all(|index| !core[index] || explanation.operations.contains(&index));
    is_whole.then_some(explanation)
}

/// Shrinks the core: halves first, then smaller and smaller parts, until no single operation can leave it.
fn core(operations: &[Operation], table: &Timetable, stuck: &Stuck, limits: Limits) -> Vec<bool> {
    let mut core: Vec<bool> = operations.iter().map(|operation| operation.ended_ns().is_some()).collect();
    let without = |core: &mut Vec<bool>, part: &[usize]| {
        let mut smaller = core.clone();
        part.iter().for_each(|&index| smaller[index] = false);
        let found = search(&Timetable::new(operations, Some(&smaller)), limits.configurations_max);
        let still = matches!(found, Found::NoOrder(_));
        if still {
            *core = smaller;
        }
        still
    };
    let members = |core: &[bool]| (0..core.len()).filter(|&index| core[index]).collect::<Vec<_>>();
    if let Some(stage) = stuck.stage {
        // What came later had no part in it, as long as nothing that it found was missed.
        let at_ns = table.stages[stage].at_ns;
        let mut later = members(&core);
        later.retain(|&index| operations[index].invoked_ns > at_ns);
        without(&mut core, &later);
    }
    let mut size = members(&core).len() / 2;
    while size > 0 {
        let mut left = false;
        for part in members(&core).chunks(size) {
            left |= without(&mut core, part);
        }
        if size > 1 || !left {
            size /= 2;
        }
    }
    core
}

/// The core, with whoever may have written a value that one of its operations found, and so on.
fn with_writers(operations: &[Operation], core: &[bool]) -> Vec<bool> {
    let mut kept = core.to_vec();
    let mut found: Vec<usize> = (0..kept.len()).filter(|&index| kept[index]).collect();
    while let Some(index) = found.pop() {
        let Some((Need::Equal(value), _)) = meaning(&operations[index]) else { continue };
        for writer in 0..operations.len() {
            let writes = meaning(&operations[writer]).and_then(|(_, change)| change.written()) == Some(value);
            if writes && !kept[writer] {
                kept[writer] = true;
                found.push(writer);
            }
        }
    }
    kept
}
