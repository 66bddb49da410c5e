//! Which terms a slot's writes were made under: (term, first counter), oldest first.
//!
//! Invariants: terms strictly increase, first counters never decrease; a term's writes end where the next term begins.

use crate::types::{Term, Version};

/// A slot's terms. Few: one per owner that wrote.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    starts: Vec<(Term, u64)>,
}

impl History {
    /// From now on writes are under `term`, the first of them with a counter from `first` on. `last` is the last write:
    /// terms that began behind it wrote nothing, and give way to a lower term that did write.
    pub(crate) fn begin(&mut self, term: Term, first: u64, last: Version) {
        debug_assert!(first > last.counter, "a term begins behind the last write");
        while self.starts.last().is_some_and(|(later, _)| *later >= term) {
            let (later, start) = self.starts.pop().expect("just seen");
            assert!(later == term || start > last.counter, "a term with writes is not taken back");
            if later == term && start <= last.counter {
                self.starts.push((later, start));
                return;
            }
        }
        self.starts.push((term, first));
    }

    /// The latest term, whether it wrote yet or not.
    pub(crate) fn last(&self) -> Option<Term> {
        self.starts.last().map(|(term, _)| *term)
    }

    /// Whether a receiver that stands at `cursor` has only writes that are in this history, which ends at `last`.
    pub(crate) fn contains(&self, cursor: Version, last: Version) -> bool {
        if cursor == Version::ZERO {
            return true;
        }
        let Ok(at) = self.starts.binary_search_by_key(&cursor.term, |(term, _)| *term) else { return false };
        let end = self.starts.get(at + 1).map_or(last.counter, |(_, next)| (next - 1).min(last.counter));
        self.starts[at].1 <= cursor.counter && cursor.counter <= end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(term: u64, counter: u64) -> Version {
        Version::new(Term(term), counter)
    }

    #[test]
    fn cursors_on_and_off_the_history() {
        let mut history = History::default();
        history.begin(Term(3), 1, Version::ZERO);
        history.begin(Term(5), 11, version(3, 10));
        history.begin(Term(9), 21, version(5, 20));
        let last = version(9, 25);
        for on in [
            Version::ZERO,
            version(3, 1),
            version(3, 10),
            version(5, 11),
            version(5, 20),
            version(9, 21),
            last,
        ] {
            assert!(history.contains(on, last), "{on}");
        }
        for off in
            [version(3, 11), version(4, 5), version(5, 10), version(5, 21), version(9, 26), version(10, 3)]
        {
            assert!(!history.contains(off, last), "{off}");
        }
    }

    #[test]
    fn terms_that_wrote_nothing_give_way() {
        let mut history = History::default();
        history.begin(Term(3), 1, Version::ZERO);
        history.begin(Term(5), 11, version(3, 10));
        history.begin(Term(4), 11, version(3, 10));
        assert!(history.contains(version(4, 11), version(4, 11)));
        assert!(!history.contains(version(5, 11), version(4, 11)));
        history.begin(Term(4), 12, version(4, 11));
        assert!(history.contains(version(4, 11), version(4, 12)), "a term keeps its first counter");
    }
}
