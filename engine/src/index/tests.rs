//! The index against a map, with good hashes and with the worst.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use lockgate_runtime::sync::Arc;
use proptest::prelude::*;

use super::*;
use crate::arena::MemoryBudget;

/// Of all tables of these tests.
static ARENA: LazyLock<Arena> =
    LazyLock::new(|| Arena::reserve(Arc::new(MemoryBudget::new(0))).expect("addresses are free"));

/// Stands for the records: what is at a place is (key, hash).
#[derive(Default)]
struct Records(BTreeMap<u32, (u32, u64)>);

impl Records {
    fn new_place(&mut self, key: u32, hash: u64) -> RecordOffset {
        let number = self.0.last_key_value().map_or(1, |(last, _)| last + 1);
        self.0.insert(number, (key, hash));
        RecordOffset::from(number)
    }

    fn hash_of(&self, place: RecordOffset) -> u64 {
        self.0[&place.get()].1
    }

    fn is(&self, place: RecordOffset, key: u32) -> bool {
        self.0[&place.get()].0 == key
    }
}

/// The index beside what it must be like: each key's place.
struct Checked {
    index: Index,
    records: Records,
    model: BTreeMap<u32, RecordOffset>,
    hash: fn(u32) -> u64,
}

fn spread(key: u32) -> u64 {
    KeyHasher::new(7).hash(0, &key.to_le_bytes())
}

impl Checked {
    fn new(hash: fn(u32) -> u64) -> Checked {
        Checked { index: Index::default(), records: Records::default(), model: BTreeMap::new(), hash }
    }

    fn set(&mut self, key: u32) {
        let hash = (self.hash)(key);
        let place = self.records.new_place(key, hash);
        let (records, bytes, growth) = (&self.records, self.index.bytes(), self.index.growth_bytes());
        let before = self.index.set(
            hash,
            place,
            |other| records.is(other, key),
            &ARENA,
            |other| records.hash_of(other),
        );
        assert_eq!(before, self.model.insert(key, place));
        let expected = if before.is_none() { bytes + growth } else { bytes };
        assert_eq!(self.index.bytes(), expected, "growth is foretold");
    }

    fn remove(&mut self, key: u32) {
        let (records, hash) = (&self.records, (self.hash)(key));
        let removed = self.index.remove(hash, |other| records.is(other, key));
        assert_eq!(removed, self.model.remove(&key));
        self.index.shrink(&ARENA, |other| records.hash_of(other));
    }

    fn remove_place(&mut self, key: u32) {
        let hash = (self.hash)(key);
        let Some(place) = self.model.remove(&key) else { return };
        assert!(self.index.holds(hash, place));
        assert!(self.index.remove_place(hash, place) && !self.index.remove_place(hash, place));
        assert!(!self.index.holds(hash, place));
    }

    fn relocate(&mut self, key: u32) {
        let hash = (self.hash)(key);
        let to = self.records.new_place(key, hash);
        match self.model.get_mut(&key) {
            Some(place) => {
                assert!(self.index.relocate(hash, *place, to));
                assert!(!self.index.relocate(hash, *place, to), "nothing points there any more");
                *place = to;
            }
            None => assert!(!self.index.relocate(hash, to, to)),
        }
    }

    fn find(&self, key: u32) {
        let found = self.index.find((self.hash)(key), |other| self.records.is(other, key));
        assert_eq!(found, self.model.get(&key).copied());
    }

    /// Everything about the table.
    fn check(&self, keys: u32) {
        (0..keys).for_each(|key| self.find(key));
        assert_eq!(self.index.len(), self.model.len());
        let mut scanned = Vec::new();
        self.index.scan(
            0,
            |place| self.records.hash_of(place),
            |hash, place| {
                scanned.push((hash, place));
                ControlFlow::Continue(())
            },
        );
        let mut expected: Vec<_> =
            self.model.iter().map(|(key, place)| ((self.hash)(*key), *place)).collect();
        expected.sort_unstable();
        assert_eq!(scanned, expected);
        if self.index.entries == 0 {
            return;
        }
        let overflows: u64 = self.index.lines().iter().map(|line| u64::from(line.overflows)).sum();
        let lines = self.index.lines().len();
        let distance = |at: usize, home: usize| (at + lines - home) % lines;
        let passed: usize = self
            .index
            .lines()
            .iter()
            .enumerate()
            .flat_map(|(at, line)| line.entries().map(move |position| (at, line.place(position))))
            .map(|(at, place)| distance(at, self.index.home(self.records.hash_of(place))))
            .sum();
        assert_eq!(overflows, passed as u64, "each line that an entry passed was counted up once");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(u32),
    Remove(u32),
    RemovePlace(u32),
    Relocate(u32),
    Find(u32),
    Shrink,
}

const KEYS: u32 = 120;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || 0..KEYS;
    let step = prop_oneof![
        6 => key().prop_map(Step::Set),
        3 => key().prop_map(Step::Remove),
        1 => key().prop_map(Step::RemovePlace),
        2 => key().prop_map(Step::Relocate),
        2 => key().prop_map(Step::Find),
        1 => Just(Step::Shrink),
    ];
    proptest::collection::vec(step, 1..400)
}

/// From well spread hashes to none at all.
const HASHES: [fn(u32) -> u64; 5] = [
    spread,
    |_| 0x1234_5678_9abc_def0,
    |_| u64::MAX,
    // The same home, and tags of their own.
    |key| 0xffff_ffff_0000_0000 | spread(key) >> 32,
    // The same tag, few homes.
    |key| u64::from(key % 3) << 62,
];

proptest! {
    #[test]
    fn behaves_as_a_map_does_whatever_the_hashes(steps in steps(), hash in 0..HASHES.len()) {
        let mut checked = Checked::new(HASHES[hash]);
        for step in steps {
            match step {
                Step::Set(key) => checked.set(key),
                Step::Remove(key) => checked.remove(key),
                Step::RemovePlace(key) => checked.remove_place(key),
                Step::Relocate(key) => checked.relocate(key),
                Step::Find(key) => checked.find(key),
                Step::Shrink => {
                    let Checked { index, records, .. } = &mut checked;
                    index.shrink(&ARENA, |place| records.hash_of(place));
                }
            }
        }
        checked.check(KEYS);
    }

    #[test]
    fn a_scan_begins_at_its_hash_and_ends_where_it_is_told(from in any::<u64>(), most in 0usize..300, hash in 0..HASHES.len()) {
        let mut checked = Checked::new(HASHES[hash]);
        (0..KEYS).for_each(|key| checked.set(key));
        let mut scanned = Vec::new();
        checked.index.scan(from, |place| checked.records.hash_of(place), |hash, _| {
            scanned.push(hash);
            if scanned.len() > most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let mut expected: Vec<u64> = (0..KEYS).map(checked.hash).filter(|hash| *hash >= from).collect();
        expected.sort_unstable();
        expected.truncate(most + 1);
        prop_assert_eq!(scanned, expected);
    }
}

#[test]
fn a_table_does_not_wear_out() {
    for hash in HASHES {
        let mut checked = Checked::new(hash);
        (0..100).for_each(|key| checked.set(key));
        let bytes = checked.index.bytes();
        for round in 0..3_000u32 {
            checked.remove(round);
            checked.set(round + 100);
        }
        assert_eq!(checked.index.bytes(), bytes, "as many keys take as much memory");
        checked.check(3_200);
        (3_000..3_100).for_each(|key| checked.remove_place(key));
        assert!(checked.index.lines().iter().all(|line| line.overflows == 0 && line.entries().count() == 0));
        checked.index.shrink(&ARENA, |_| unreachable!("nothing is left to hash"));
        assert_eq!(checked.index.bytes(), 0);
    }
}

#[test]
fn memory_follows_the_number_of_keys() {
    let mut checked = Checked::new(spread);
    let mut bytes_a_key = Vec::new();
    for key in 0..6_100u32 {
        checked.set(key);
        let keys = key as usize + 1;
        if keys >= 40 {
            bytes_a_key.push(checked.index.bytes() as f64 / keys as f64);
        }
    }
    let most = bytes_a_key.iter().copied().fold(0.0, f64::max);
    let mean = bytes_a_key.iter().sum::<f64>() / bytes_a_key.len() as f64;
    assert!(mean < 7.0 && most < 8.0, "{mean} bytes a key, at most {most}");
    let homes: BTreeSet<_> = (0..6_100).map(|key| checked.index.home(spread(key))).collect();
    assert_eq!(homes.len(), checked.index.lines().len(), "every line is somebody's home");
    for key in 0..6_050 {
        checked.remove(key);
        let room = checked.index.lines().len() * LINE_ENTRIES;
        assert!(checked.index.len() * 4 >= room || room <= 2 * LINE_ENTRIES, "memory is given back");
    }
    checked.check(6_100);
}
