//! Which terms a slot's writes were made under: (term, first counter), oldest first.
//!
//! Invariants: terms strictly increase, first counters never decrease; a term's writes end where the next term begins.

use crate::chain::grow_snugly;
use crate::types::{Term, Version};

/// A slot's terms. Few: one per owner that wrote.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    starts: Vec<(Term, u64)>,
}

impl History {
    /// A history with these terms, which are in order.
    pub(crate) fn from_starts(starts: Vec<(Term, u64)>) -> History {
        History { starts }
    }

    /// The terms, each with the first counter of its writes.
    pub(crate) fn starts(&self) -> &[(Term, u64)] {
        &self.starts
    }

    /// From now on writes are under `term`, the first of them with a counter from `first` on. `last` is the last write:
    /// terms that began behind it wrote nothing, and give way to a lower term that did write.
    pub(crate) fn begin(&mut self, term: Term, first: u64, last: Version) {
        debug_assert!(first > last.counter, "a term begins behind the last write");
        while self.starts.last().is_some_and(|(later, _)| *later >= term) {
            let (later, start) = self.starts.pop().expect("just seen");
            assert!(later == term || start > last.counter, "a term with writes is not taken back");
            if later == term && start <= last.counter {
                grow_snugly(&mut self.starts);
                self.starts.push((later, start));
                return;
            }
        }
        grow_snugly(&mut self.starts);
        self.starts.push((term, first));
    }

    /// The latest term, whether it wrote yet or not.
    pub(crate) fn last(&self) -> Option<Term> {
        self.starts.last().map(|(term, _)| *term)
    }

    /// Whether terms began behind `last`, whether they wrote or not.
    pub(crate) fn goes_beyond(&self, last: Version) -> bool {
        self.starts.last().is_some_and(|(_, first)| *first > last.counter)
    }

    /// Forgets the terms that began behind `last`, which is the last write from now on.
    pub(crate) fn truncate(&mut self, last: Version) {
        self.starts.retain(|(_, first)| *first <= last.counter);
        debug_assert!(
            self.last().unwrap_or_default() <= last.term,
            "a term that began has not written before"
        );
    }

    /// Whether a receiver that stands at `cursor` has only writes that are in this history, which ends at `last`.
    pub(crate) fn contains(&self, cursor: Version, last: Version) -> bool {
        if cursor == Version::ZERO {
            return true;
        }
        let Ok(at) = self.starts.binary_search_by_key(&cursor.term, |(term, _)| *term) else { return false };
        self.starts[at].1 <= cursor.counter && cursor.counter <= self.end_of(at, last)
    }

    /// The greatest version of this history, which ends at `last`, that a receiver that stands at `cursor` may have: all
    /// that both have lies at or below it. It is the cursor itself if that is on the history, and below it otherwise.
    pub(crate) fn common(&self, cursor: Version, last: Version) -> Version {
        for (at, (term, first)) in self.starts.iter().enumerate().rev() {
            // A term that is not the cursor's ended at the receiver somewhere before the cursor.
            let end = self.end_of(at, last).min(cursor.counter);
            if *term <= cursor.term && *first <= end {
                return Version::new(*term, end);
            }
        }
        Version::ZERO
    }

    /// The last counter of a term of a history that ends at `last`. Below the first one if the term wrote nothing.
    fn end_of(&self, at: usize, last: Version) -> u64 {
        self.starts.get(at + 1).map_or(last.counter, |(_, next)| (next - 1).min(last.counter))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    #[test]
    fn what_a_receiver_may_have_in_common() {
        let mut history = History::default();
        history.begin(Term(3), 1, Version::ZERO);
        history.begin(Term(5), 11, version(3, 10));
        history.begin(Term(9), 21, version(5, 20));
        let last = version(9, 25);
        for (cursor, common) in [
            (version(9, 25), version(9, 25)),
            (version(9, 40), version(9, 25)),
            (version(12, 40), version(9, 25)),
            (version(12, 22), version(9, 22)),
            (version(8, 30), version(5, 20)),
            (version(8, 15), version(5, 15)),
            (version(12, 15), version(5, 15)),
            (version(5, 9), version(3, 9)),
            (version(4, 11), version(3, 10)),
            (version(2, 5), Version::ZERO),
            (Version::ZERO, Version::ZERO),
        ] {
            assert_eq!(history.common(cursor, last), common, "{cursor}");
        }
        history.truncate(version(5, 15));
        assert_eq!(history.common(last, version(5, 15)), version(5, 15));
        history.begin(Term(11), 16, version(5, 15));
        assert!(history.goes_beyond(version(5, 15)));
        assert_eq!(history.common(version(12, 30), version(5, 15)), version(5, 15), "term 11 wrote nothing");
    }

    /// A node's writes, and its history of them.
    #[derive(Clone, Debug, Default)]
    struct Node {
        versions: Vec<Version>,
        history: History,
    }

    impl Node {
        fn last(&self) -> Version {
            self.versions.last().copied().unwrap_or_default()
        }

        /// Writes under a term that nobody had before.
        fn reign(&mut self, term: u64, writes: u64) {
            let last = self.last();
            self.history.begin(Term(term), last.counter + 1, last);
            self.versions.extend((1..=writes).map(|more| version(term, last.counter + more)));
        }

        fn truncate(&mut self, to: Version) {
            self.versions.retain(|version| *version <= to);
            self.history.truncate(self.last());
        }

        /// Takes the next `count` writes of a source on whose history it is.
        fn copy(&mut self, source: &Node, count: usize) {
            let last = self.last();
            let behind = source.versions.iter().filter(|version| **version > last);
            for next in behind.take(count).copied().collect::<Vec<_>>() {
                self.history.truncate(self.last());
                if next.term > self.last().term {
                    self.history.begin(next.term, next.counter, self.last());
                }
                self.versions.push(next);
            }
        }

        fn common(&self, cursor: Version) -> Version {
            self.history.common(cursor, self.last())
        }
    }

    /// Who writes or copies next, how much, and from whom.
    fn reigns() -> impl Strategy<Value = Vec<(usize, usize, u64, bool)>> {
        proptest::collection::vec((0usize..4, 0usize..4, 0u64..6, any::<bool>()), 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

        /// Nodes that own in turns, each from what it happens to have, and that copy from each other: from the common
        /// version they always find what they really have in common, and lose nothing of it.
        #[test]
        fn truncating_to_what_is_common_ends_at_the_true_common_prefix(reigns in reigns()) {
            let mut nodes = vec![Node::default(); 4];
            for (term, (node, source, count, owns)) in reigns.into_iter().enumerate() {
                if owns {
                    nodes[node].reign(1 + term as u64, count);
                    continue;
                }
                let from = nodes[source].clone();
                let prefix = from.versions.iter().zip(&nodes[node].versions).take_while(|(a, b)| a == b).count();
                let mut rounds = 0;
                while !from.history.contains(nodes[node].last(), from.last()) {
                    let before = nodes[node].last();
                    let common = from.common(before);
                    let on_it = |version: &&Version| version.term <= before.term && version.counter <= before.counter;
                    let greatest = from.versions.iter().filter(on_it).max().copied().unwrap_or_default();
                    prop_assert_eq!(common, greatest, "by brute force, for {}", before);
                    nodes[node].truncate(common);
                    prop_assert!(nodes[node].last() < before, "each round goes on");
                    rounds += 1;
                }
                let terms: std::collections::BTreeSet<_> =
                    from.versions.iter().chain(&nodes[node].versions).map(|version| version.term).collect();
                prop_assert!(rounds <= 2 * terms.len() + 2, "{} rounds for {} terms", rounds, terms.len());
                prop_assert_eq!(nodes[node].versions.len(), prefix);
                nodes[node].copy(&from, count as usize);
            }
        }

        #[test]
        fn cursors_on_the_history_are_the_versions_that_were_written(reigns in reigns(), term in 0u64..42, counter in 0u64..60) {
            let mut node = Node::default();
            for (number, (_, back, count, owns)) in reigns.into_iter().enumerate() {
                if owns {
                    node.reign(1 + number as u64, count);
                } else if let Some(to) = node.versions.iter().rev().nth(back).copied() {
                    node.truncate(to);
                }
            }
            let cursor = version(term, counter);
            let is_written = cursor == Version::ZERO || node.versions.contains(&cursor);
            prop_assert_eq!(node.history.contains(cursor, node.last()), is_written);
            if is_written {
                prop_assert_eq!(node.common(cursor), cursor);
            }
        }
    }
}
