//! How many live keys a slot has in each keyspace.
//!
//! There are as many of these as slots, and most slots have keys of one keyspace only: that one needs no memory of its own.
//!
//! Invariant: sorted by keyspace; none that has no keys.

use crate::chain::grow_snugly;

/// Live keys of one keyspace. A slot's records lie in one arena, which has fewer places than 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    /// Its number.
    pub(crate) keyspace: u8,
    /// Its live keys.
    pub(crate) keys: u32,
    /// Those of them that have a deadline.
    pub(crate) with_deadline: u32,
}

/// The counts of all keyspaces.
pub(crate) struct Counts(Kept);

enum Kept {
    One(Count),
    List(Vec<Count>),
}

impl Default for Counts {
    fn default() -> Counts {
        Counts(Kept::List(Vec::new()))
    }
}

impl Counts {
    /// Each keyspace that has keys.
    pub(crate) fn all(&self) -> &[Count] {
        match &self.0 {
            Kept::One(count) => std::slice::from_ref(count),
            Kept::List(list) => list,
        }
    }

    fn all_mut(&mut self) -> &mut [Count] {
        match &mut self.0 {
            Kept::One(count) => std::slice::from_mut(count),
            Kept::List(list) => list,
        }
    }

    fn find(&self, keyspace: u8) -> Result<usize, usize> {
        self.all().binary_search_by_key(&keyspace, |count| count.keyspace)
    }

    /// That of one keyspace, if it has keys.
    pub(crate) fn of(&self, keyspace: u8) -> Option<Count> {
        self.find(keyspace).ok().map(|at| self.all()[at])
    }

    /// One more key.
    pub(crate) fn add(&mut self, keyspace: u8, has_deadline: bool) {
        let with_deadline = u32::from(has_deadline);
        match self.find(keyspace) {
            Ok(at) => {
                let count = &mut self.all_mut()[at];
                count.keys += 1;
                count.with_deadline += with_deadline;
            }
            Err(at) => self.insert(at, Count { keyspace, keys: 1, with_deadline }),
        }
    }

    fn insert(&mut self, at: usize, count: Count) {
        match &mut self.0 {
            Kept::List(list) if list.is_empty() => self.0 = Kept::One(count),
            Kept::List(list) => {
                grow_snugly(list);
                list.insert(at, count);
            }
            Kept::One(one) => {
                let one = *one;
                self.0 = Kept::List(if at == 0 { vec![count, one] } else { vec![one, count] });
            }
        }
    }

    /// One key less, of those that were added.
    pub(crate) fn subtract(&mut self, keyspace: u8, has_deadline: bool) {
        let at = self.find(keyspace).expect("a key that was counted is uncounted");
        let count = &mut self.all_mut()[at];
        count.keys -= 1;
        count.with_deadline -= u32::from(has_deadline);
        if count.keys == 0 {
            self.remove(keyspace);
        }
    }

    /// The keyspace has no keys any more. False: it had none.
    pub(crate) fn remove(&mut self, keyspace: u8) -> bool {
        let Ok(at) = self.find(keyspace) else { return false };
        match &mut self.0 {
            Kept::One(_) => *self = Counts::default(),
            Kept::List(list) => {
                list.remove(at);
                if let [one] = list.as_slice() {
                    self.0 = Kept::One(*one);
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_as_a_map_would(steps in proptest::collection::vec((0u8..5, any::<bool>(), 0u8..4), 1..200)) {
            let mut counts = Counts::default();
            let mut map: BTreeMap<u8, (u32, u32)> = BTreeMap::new();
            for (keyspace, has_deadline, step) in steps {
                let known = map.get(&keyspace).copied();
                let is_one = |(keys, dated): (u32, u32)| if has_deadline { dated > 0 } else { keys > dated };
                let has_one = known.is_some_and(is_one);
                match (step, known) {
                    (0, _) => prop_assert_eq!(counts.remove(keyspace), map.remove(&keyspace).is_some()),
                    (1, Some((keys, dated))) if has_one => {
                        counts.subtract(keyspace, has_deadline);
                        let left = (keys - 1, dated - u32::from(has_deadline));
                        if left.0 > 0 { map.insert(keyspace, left) } else { map.remove(&keyspace) };
                    }
                    _ => {
                        counts.add(keyspace, has_deadline);
                        let (keys, dated) = known.unwrap_or_default();
                        map.insert(keyspace, (keys + 1, dated + u32::from(has_deadline)));
                    }
                }
                let all = counts.all().iter().map(|count| (count.keyspace, (count.keys, count.with_deadline)));
                prop_assert!(all.eq(map.clone()));
            }
        }
    }
}
