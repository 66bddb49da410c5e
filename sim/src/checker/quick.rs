//! Direct checks for the violations that have a name. Each needs only a few operations of the history to be sure, whatever
//! the others did; so those few are a violation by themselves. None of them is complete: the search is.
//!
//! Most of them argue about a value that only one operation can have written. Once such a value is *known*, because its
//! write returned or somebody saw it, it is there until something takes it away, and is never there again after that.
//! "After" always means: invoked later than the other ended. At the same nanosecond there is no such order.

use std::collections::BTreeMap;

use super::explain::{Explanation, Kind};
use super::history::{Call, Operation, Outcome};
use super::register::{Change, Need, meaning};

/// What the history says about one value.
#[derive(Debug, Default)]
struct Traces {
    /// Operations that wrote it, or may have.
    writers: Vec<usize>,
    /// Operations that were to write it and surely did not.
    vain: Vec<usize>,
    /// Returned operations that found it.
    readers: Vec<usize>,
}

/// An operation that returned.
#[derive(Clone, Copy)]
struct Returned {
    index: usize,
    need: Need,
    change: Change,
    invoked_ns: u64,
    ended_ns: u64,
}

/// A value with one writer, from when on it is known, and by whom.
struct Known {
    value: u64,
    writer: usize,
    from_ns: u64,
    by: usize,
}

struct Facts<'a> {
    history: &'a [Operation],
    values: BTreeMap<u64, Traces>,
    /// In the order of invocation.
    returned: Vec<Returned>,
    /// Operations that changed the key or may have: when invoked, when ended if they have, index. In the order of invocation.
    changing: Vec<(u64, u64, usize)>,
    /// For each number of the changing operations, when the last of that many first ones ended.
    changed_by_ns: Vec<u64>,
}

/// The first violation that has a name, if there is one.
pub(super) fn violation(history: &[Operation]) -> Option<Explanation> {
    let facts = Facts::new(history);
    let checks = [unfit_reply, invention, late_expiry, lost_write, seen_again];
    checks.iter().find_map(|check| check(&facts))
}

impl<'a> Facts<'a> {
    fn new(history: &'a [Operation]) -> Facts<'a> {
        let mut values: BTreeMap<u64, Traces> = BTreeMap::new();
        let mut returned = Vec::new();
        let mut changing = Vec::new();
        for (index, operation) in history.iter().enumerate() {
            let (need, change) = meaning(operation).unwrap_or((Need::Anything, Change::Nothing));
            match (operation.call, change) {
                (_, Change::Write(Some(value), _)) => values.entry(value).or_default().writers.push(index),
                (Call::Set { value, .. }, _) => values.entry(value).or_default().vain.push(index),
                _ => {}
            }
            let invoked_ns = operation.invoked_ns;
            if change != Change::Nothing {
                changing.push((invoked_ns, operation.ended_ns().unwrap_or(u64::MAX), index));
            }
            if let Outcome::Returned { at_ns, .. } = operation.outcome {
                if let Need::Equal(value) = need {
                    values.entry(value).or_default().readers.push(index);
                }
                returned.push(Returned { index, need, change, invoked_ns, ended_ns: at_ns });
            }
        }
        returned.sort_by_key(|returned| returned.invoked_ns);
        changing.sort_unstable();
        let mut changed_by_ns = vec![0];
        for (_, ended_ns, _) in &changing {
            changed_by_ns.push(changed_by_ns.last().copied().max(Some(*ended_ns)).unwrap_or(*ended_ns));
        }
        Facts { history, values, returned, changing, changed_by_ns }
    }

    fn ended_ns(&self, index: usize) -> u64 {
        self.history[index].ended_ns().unwrap_or(u64::MAX)
    }

    /// The values with one writer that are known at some time.
    fn known(&self) -> impl Iterator<Item = (Known, &Traces)> {
        self.values.iter().filter_map(|(&value, traces)| {
            let &[writer] = traces.writers.as_slice() else { return None };
            let wrote = matches!(self.history[writer].outcome, Outcome::Returned { .. }).then_some(writer);
            let by = wrote.into_iter().chain(traces.readers.iter().copied());
            let by = by.min_by_key(|&index| self.ended_ns(index))?;
            Some((Known { value, writer, from_ns: self.ended_ns(by), by }, traces))
        })
    }

    /// Returned operations that were invoked later than this.
    fn invoked_after(&self, ns: u64) -> &[Returned] {
        &self.returned[self.returned.partition_point(|returned| returned.invoked_ns <= ns)..]
    }

    fn explain(&self, kind: Kind, operations: &[usize], conclusion: &str) -> Option<Explanation> {
        Some(Explanation::new(kind, self.history, operations.to_vec(), conclusion))
    }
}

impl Returned {
    /// Whether it found the value not to be there.
    fn misses(&self, value: u64) -> bool {
        match self.need {
            Need::Absent => true,
            Need::Equal(other) => other != value,
            Need::Unequal(other) => other == value,
            Need::Anything | Need::Present | Need::Never => false,
        }
    }

    /// Whether the value is not there any more when it is done.
    fn ends(&self, value: u64) -> bool {
        match self.change {
            Change::Nothing => self.misses(value),
            Change::Remove => true,
            Change::Write(written, _) => written != Some(value),
            Change::Retime(_) => false,
        }
    }
}

/// A reply of another kind than the call's, or that an unconditional write did not write.
fn unfit_reply(facts: &Facts) -> Option<Explanation> {
    let unfit = facts.returned.iter().find(|returned| returned.need == Need::Never)?.index;
    facts.explain(Kind::NotLinearizable, &[unfit], &format!("#{unfit} cannot be answered so"))
}

/// A value that nobody wrote, nobody had begun to write, or only operations that surely had no effect.
fn invention(facts: &Facts) -> Option<Explanation> {
    facts.values.iter().find_map(|(value, traces)| {
        let begun_ns = traces.writers.iter().map(|&writer| facts.history[writer].invoked_ns).min();
        let too_early = |reader: &&usize| begun_ns.is_none_or(|begun_ns| begun_ns > facts.ended_ns(**reader));
        let &reader = traces.readers.iter().find(too_early)?;
        let mut shown = vec![reader];
        if begun_ns.is_some() {
            shown.extend(&traces.writers);
            let conclusion = format!("#{reader} found {value} before its write was invoked");
            return facts.explain(Kind::Invention, &shown, &conclusion);
        }
        if traces.vain.is_empty() {
            return facts.explain(Kind::Invention, &shown, &format!("nobody wrote {value}"));
        }
        shown.extend(&traces.vain);
        let conclusion =
            format!("#{reader} found {value}, but whoever was to write it was told that it did not");
        facts.explain(Kind::RefusedTookEffect, &shown, &conclusion)
    })
}

/// A value that was seen after its deadline, which nobody can have changed in time.
fn late_expiry(facts: &Facts) -> Option<Explanation> {
    facts.known().find_map(|(Known { value, writer, .. }, traces)| {
        let not_after_ns = facts.history[writer].expiry()?.not_after_ns;
        let &reader =
            traces.readers.iter().find(|&&reader| facts.history[reader].invoked_ns > not_after_ns)?;
        let changed = facts.changing.iter().any(|&(invoked_ns, ended_ns, index)| {
            matches!(facts.history[index].call, Call::Expire { .. })
                && invoked_ns <= not_after_ns
                && ended_ns >= facts.history[writer].invoked_ns
        });
        let conclusion = format!("#{reader} found {value}, which had to expire before #{reader} was invoked");
        if changed { None } else { facts.explain(Kind::Expired, &[writer, reader], &conclusion) }
    })
}

/// A known value that was not found, although nothing can have taken it away: every other change had ended before it was
/// written, or was invoked after the one that missed it ended, and its deadline was to come.
fn lost_write(facts: &Facts) -> Option<Explanation> {
    facts.known().find_map(|(known, traces)| {
        let Known { value, writer, from_ns, by } = known;
        let written_ns = facts.history[writer].invoked_ns;
        let earlier = facts.changing.partition_point(|&(invoked_ns, ..)| invoked_ns < written_ns);
        if facts.changed_by_ns[earlier] >= written_ns && earlier > 0 {
            return None;
        }
        let expiry = facts.history[writer].expiry();
        let stays_until_ns = expiry.map_or(u64::MAX, |expiry| expiry.not_before_ns);
        // Two are enough: one of them may be the one that misses the value.
        let next: Vec<_> =
            facts.changing[earlier..].iter().filter(|(.., index)| *index != writer).take(2).collect();
        let untouched_until_ns =
            |but: usize| next.iter().find(|(.., index)| *index != but).map_or(u64::MAX, |next| next.0);
        let end_ns = next.get(1).map_or(u64::MAX, |next| next.0).min(stays_until_ns);
        let missed =
            facts.invoked_after(from_ns).iter().take_while(|read| read.invoked_ns < end_ns).find(|read| {
                read.misses(value) && read.ended_ns < stays_until_ns.min(untouched_until_ns(read.index))
            })?;
        let mut shown = vec![writer, by, missed.index];
        let again = traces.readers.iter().find(|&&reader| facts.history[reader].invoked_ns > missed.ended_ns);
        shown.extend(again);
        let kind = match (missed.need, again) {
            (Need::Absent, _) if expiry.is_some() => Kind::Expired,
            (_, Some(_)) => Kind::StaleRead,
            (_, None) => Kind::LostWrite,
        };
        let found = match missed.need {
            Need::Equal(other) => format!("found {other} instead of {value}"),
            _ => format!("did not find {value}"),
        };
        let conclusion = format!("#{} {found}, and nothing can have taken that away", missed.index);
        facts.explain(kind, &shown, &conclusion)
    })
}

/// A value that was found after it had been found, or made, to be gone.
fn seen_again(facts: &Facts) -> Option<Explanation> {
    facts.known().find_map(|(Known { value, writer, from_ns, by }, traces)| {
        let last = *traces.readers.iter().max_by_key(|&&reader| facts.history[reader].invoked_ns)?;
        let last_ns = facts.history[last].invoked_ns;
        let later = facts.invoked_after(from_ns).iter().take_while(|end| end.invoked_ns < last_ns);
        // Who found the value itself comes after its write, whenever invoked.
        let swaps = facts.returned.iter().filter(|end| end.need == Need::Equal(value));
        let end = later
            .chain(swaps)
            .filter(|end| end.index != writer && end.ends(value))
            .min_by_key(|end| end.ended_ns)
            .filter(|end| end.ended_ns < last_ns)?;
        let removed = matches!((end.need, end.change), (Need::Absent, Change::Nothing) | (_, Change::Remove));
        let kind = if removed { Kind::Resurrection } else { Kind::StaleRead };
        let conclusion = format!("after #{} {value} was gone, but #{last} found it again", end.index);
        facts.explain(kind, &[writer, by, end.index, last], &conclusion)
    })
}
