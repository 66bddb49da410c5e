//! A slot against the list of all its writes: whatever is discarded, what is live stays, receivers that count as whole have
//! no gaps, and the slot can go back to where it says that it can.

use std::collections::BTreeMap;
use std::panic::catch_unwind;

use lockgate_runtime::mutations::activate;
use lockgate_runtime::sync::Arc;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::apply::verify_range;
use crate::arena::{Arena, MemoryBudget};
use crate::compaction::Step;
use crate::dirty::DirtySlots;
use crate::index::KeyHasher;
use crate::record::{Kind, NewRecord, encode};
use crate::slot::SlotState;
use crate::store::Store;
use crate::types::{Generation, RangeHeader, Slot, Term, Version};
use crate::wakes::Wakes;
use crate::watchers::{Gates, Watchers};

/// Keys of the one slot that the test is about.
const KEYS: u32 = 12;
const KEYSPACE: u8 = 3;

fn key(number: u32) -> Vec<u8> {
    format!("{{tag}}{number}").into_bytes()
}

/// What is live, with its deadline.
type Content = BTreeMap<Vec<u8>, (Vec<u8>, Option<u64>)>;

#[derive(Clone, Debug)]
struct Write {
    version: Version,
    /// `None`: all of them.
    key: Option<Vec<u8>>,
    value: Option<(Vec<u8>, Option<u64>)>,
}

fn put_in(content: &mut Content, write: &Write) {
    match (&write.key, &write.value) {
        (Some(key), Some(value)) => drop(content.insert(key.clone(), value.clone())),
        (Some(key), None) => drop(content.remove(key)),
        (None, _) => content.clear(),
    }
}

fn new_slot(budget: &Arc<MemoryBudget>) -> SlotState {
    let arena = Arc::new(Arena::reserve(budget.clone()).unwrap());
    let store = Store::new(arena, KeyHasher::new(7));
    let slot = Slot::of_key(&key(0));
    let mut state = SlotState::new(slot, store, Watchers::new(&Arc::new(Gates::new())));
    state.begin_generation(Generation::new(1));
    state
}

/// One receiver: what it has, up to where, and whether that is without gaps.
struct Receiver {
    stream: Arc<DirtySlots>,
    content: Content,
    cursor: Version,
    whole_from: u64,
}

struct Test {
    slot: SlotState,
    writes: Vec<Write>,
    receivers: Vec<Receiver>,
    /// Those that are not connected.
    away: Vec<Receiver>,
    stable: u64,
    freed_bytes: u64,
    moved_records: u64,
}

impl Test {
    fn new() -> Test {
        Test {
            slot: new_slot(&Arc::new(MemoryBudget::new(1 << 30))),
            writes: Vec::new(),
            receivers: Vec::new(),
            away: Vec::new(),
            stable: 0,
            freed_bytes: 0,
            moved_records: 0,
        }
    }

    fn last(&self) -> Version {
        self.writes.last().map_or(Version::ZERO, |write| write.version)
    }

    fn content_at(&self, to: u64) -> Content {
        let mut content = Content::new();
        self.writes
            .iter()
            .filter(|write| write.version.counter <= to)
            .for_each(|write| put_in(&mut content, write));
        content
    }

    fn write(&mut self, range: RangeHeader, number: u32, value: Option<(Vec<u8>, Option<u64>)>) {
        let key = key(number);
        let new = match &value {
            Some((value, deadline_ms)) => NewRecord::put(KEYSPACE, &key, value, *deadline_ms),
            None => NewRecord::delete(KEYSPACE, &key),
        };
        let version = self.append(range, new);
        self.writes.push(Write { version, key: Some(key), value });
    }

    fn clear(&mut self, range: RangeHeader) {
        let version = self.append(range, NewRecord::clear(KEYSPACE));
        self.writes.push(Write { version, key: None, value: None });
    }

    fn append(&mut self, range: RangeHeader, new: NewRecord<'_>) -> Version {
        let counter = self.last().counter + 1;
        let new = NewRecord { delta: (counter - range.base) as u32, ..new };
        let mut bytes = vec![0; new.encoded_bytes()];
        encode(&mut bytes, &new);
        let counters = verify_range(self.slot.slot(), range, &bytes).unwrap();
        let fresh = self.slot.fresh(range, &bytes, counters).unwrap().expect("it is new");
        self.slot.reserve(range, &fresh).unwrap();
        self.slot.take_in(range, &fresh, &mut Wakes::default());
        Version::new(range.term, counter)
    }

    fn check_content(&self) {
        let content = self.content_at(u64::MAX);
        let store = &self.slot.store;
        assert_eq!(store.keys(), content.len() as u64);
        for (key, (value, deadline_ms)) in &content {
            let record = store.record_at(store.find(KEYSPACE, key).expect("it is live"));
            assert_eq!((record.value, record.deadline_ms), (&value[..], *deadline_ms));
        }
        let with_deadline = content.values().filter(|(_, deadline_ms)| deadline_ms.is_some()).count();
        assert_eq!(store.keys_with_deadline(), with_deadline as u64);
        let earliest = content.values().filter_map(|(_, deadline_ms)| *deadline_ms).min();
        assert_eq!(store.first_deadline().map(|(at_ms, _)| at_ms), earliest);
        let chain = store.chain();
        assert_eq!(chain.record_bytes(), store.live_bytes() + store.garbage_bytes());
        let links = chain.links();
        assert!(links.iter().all(|link| link.bytes as usize == link.segment.published()));
        assert_eq!(links.iter().map(|link| u64::from(link.bytes)).sum::<u64>(), chain.record_bytes());
        assert_eq!(links.iter().map(|link| u64::from(link.dead_bytes)).sum::<u64>(), chain.dead_bytes());
        assert!(chain.segment_bytes() <= chain.arena().budget().used_bytes());
    }

    fn compact(&mut self, stable: u64) {
        self.stable = self.stable.max(stable);
        loop {
            let segments = self.segments();
            let Step::Compacted(compacted) = self.slot.compact(self.stable, None).unwrap() else { break };
            assert!(compacted.freed_bytes > 0 || self.segments() < segments, "no step is in vain");
            self.freed_bytes += compacted.freed_bytes;
            self.moved_records += compacted.moved_records;
        }
    }

    /// Goes on with a copy of the slot that was filled from its beginning, as after a failover. Nobody follows that yet.
    fn go_on_with_a_copy(&mut self) {
        let mut copy = new_slot(&Arc::new(MemoryBudget::new(1 << 30)));
        copy.raise_floors(self.slot.floors());
        for link in self.slot.store.chain().links().iter().filter(|link| link.bytes > 0) {
            let (range, records) = (link.segment.range(), link.segment.bytes(0..link.segment.published()));
            let counters = verify_range(copy.slot(), range, records).unwrap();
            let fresh = copy.fresh(range, records, counters).unwrap().expect("it is new");
            copy.reserve(range, &fresh).unwrap();
            copy.take_in(range, &fresh, &mut Wakes::default());
        }
        assert_eq!(copy.version(), self.last());
        self.slot = copy;
        self.away.append(&mut self.receivers);
    }

    fn segments(&self) -> usize {
        self.slot.store.chain().links().len()
    }

    fn subscribe(&mut self, mut receiver: Receiver) {
        if receiver.cursor != Version::ZERO && receiver.cursor < self.slot.floors().floor {
            (receiver.content, receiver.cursor) = (Content::new(), Version::ZERO);
        }
        self.slot.add_stream(&receiver.stream, receiver.cursor);
        receiver.whole_from = self.last().counter;
        self.receivers.push(receiver);
    }

    /// Sends a receiver the records up to `count` behind its cursor.
    fn send(&mut self, at: usize, count: usize) {
        let receiver = &mut self.receivers[at];
        let chain = self.slot.store.chain();
        let (first, mut from) = chain.find_after(receiver.cursor.counter);
        let mut left = count;
        for link in chain.links().iter().skip(first) {
            for (_, record) in link.segment.records().filter(|(byte, _)| *byte >= from) {
                if left == 0 {
                    break;
                }
                left -= 1;
                let version = link.segment.version_of(&record);
                assert!(version > receiver.cursor);
                let key = (record.kind != Kind::Clear).then(|| record.key.to_vec());
                let value = (record.kind == Kind::Put).then(|| (record.value.to_vec(), record.deadline_ms));
                put_in(&mut receiver.content, &Write { version, key, value });
                receiver.cursor = version;
            }
            from = 0;
        }
        let (stream, sent) = (receiver.stream.clone(), receiver.cursor.counter);
        self.slot.sent_to(&stream, sent);
        self.check_receiver(at);
    }

    fn check_receiver(&self, at: usize) {
        let receiver = &self.receivers[at];
        if receiver.cursor.counter >= receiver.whole_from {
            assert_eq!(
                receiver.content,
                self.content_at(receiver.cursor.counter),
                "a whole receiver has no gaps"
            );
        }
    }

    fn check_going_back(&self) {
        let status = self.slot.status();
        for to in (0..=self.last().counter).map(|at| self.version_at(at)) {
            match self.slot.cut(to) {
                Err(_) => assert!(to.counter < self.stable, "{to} is above the watermark"),
                Ok(None) => assert_eq!(to, status.version),
                Ok(Some(cut)) => {
                    assert_eq!(cut.version, to);
                    let expected = self.content_at(to.counter);
                    let store = cut.store.as_ref().expect("something is taken back");
                    assert_eq!(store.keys(), expected.len() as u64);
                    for (key, (value, _)) in &expected {
                        assert_eq!(store.record_at(store.find(KEYSPACE, key).unwrap()).value, &value[..]);
                    }
                }
            }
        }
    }

    fn version_at(&self, counter: u64) -> Version {
        let found = self.writes.iter().find(|write| write.version.counter == counter);
        found.map_or(Version::ZERO, |write| write.version)
    }
}

#[derive(Clone, Debug)]
enum Action {
    Put(u32, usize, Option<u64>),
    Delete(u32),
    Clear,
    NewTerm,
    Compact(u64),
    Subscribe,
    Send(usize, usize),
    Leave(usize),
    Return,
    Copy,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        12 => (0..KEYS, 0usize..150, proptest::option::weighted(0.2, 1u64..50)).prop_map(|(k, v, d)| Action::Put(k, v, d)),
        4 => (0..KEYS).prop_map(Action::Delete),
        1 => proptest::option::weighted(0.3, Just(())).prop_map(|clear| clear.map_or(Action::NewTerm, |()| Action::Clear)),
        3 => (0u64..12).prop_map(Action::Compact),
        1 => Just(Action::Subscribe),
        4 => (0usize..4, 1usize..20).prop_map(|(at, count)| Action::Send(at, count)),
        1 => (0usize..4).prop_map(Action::Leave),
        1 => Just(Action::Return),
        1 => proptest::option::weighted(0.3, Just(())).prop_map(|copy| copy.map_or(Action::Return, |()| Action::Copy)),
    ];
    proptest::collection::vec(action, 1..250)
}

fn run(actions: Vec<Action>) -> u64 {
    let mut test = Test::new();
    let mut range = RangeHeader { term: Term(1), base: 0 };
    for (number, action) in actions.into_iter().enumerate() {
        match action {
            Action::Put(key, length, deadline_ms) => {
                test.write(range, key, Some((vec![number as u8; length], deadline_ms)));
            }
            Action::Clear => test.clear(range),
            Action::Delete(key) => test.write(range, key, None),
            Action::NewTerm => {
                range = RangeHeader { term: Term(range.term.0 + 1), base: test.last().counter };
            }
            // So far behind the last write.
            Action::Compact(behind) => test.compact(test.last().counter.saturating_sub(behind)),
            Action::Subscribe => {
                let stream = Arc::new(DirtySlots::new());
                let content = Content::new();
                test.subscribe(Receiver { stream, content, cursor: Version::ZERO, whole_from: 0 });
            }
            Action::Send(at, count) if at < test.receivers.len() => test.send(at, count),
            Action::Leave(at) if at < test.receivers.len() => {
                let receiver = test.receivers.swap_remove(at);
                test.slot.remove_stream(&receiver.stream);
                test.away.push(receiver);
            }
            Action::Return if !test.away.is_empty() => {
                let receiver = test.away.swap_remove(0);
                test.subscribe(receiver);
            }
            Action::Copy => test.go_on_with_a_copy(),
            Action::Send(..) | Action::Leave(_) | Action::Return => {}
        }
        test.check_content();
    }
    test.check_going_back();
    for at in 0..test.receivers.len() {
        test.send(at, usize::MAX);
        assert_eq!(test.receivers[at].cursor, test.last(), "everybody ends at the last version");
    }
    test.freed_bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_is_live_stays_and_receivers_have_no_gaps(actions in actions()) {
        run(actions);
    }
}

fn is_found(bug: &'static str, mut samples: impl Iterator<Item = Vec<Action>>) -> bool {
    samples.any(|actions| {
        activate(Some(bug));
        let outcome = catch_unwind(|| run(actions));
        activate(None);
        outcome.is_err()
    })
}

/// Each rule has a bug that breaks it, and the test above finds it.
#[test]
fn the_rules_of_what_may_go_are_all_needed() {
    for bug in ["compacted-above-the-watermark", "discarded-before-it-is-sent"] {
        let mut runner = TestRunner::deterministic();
        let samples =
            (0..400).map(|_| actions().new_tree(&mut runner).expect("nothing is filtered").current());
        assert!(is_found(bug, samples), "{bug}");
    }
    // A receiver was away while a key that it has was deleted, and the tombstone discarded.
    let put = |key| Action::Put(key, 100, None);
    let mut actions = vec![put(0), put(1), Action::Subscribe, Action::Send(0, 2), Action::Leave(0)];
    actions.push(Action::Delete(0));
    actions.extend((0..20).map(|_| put(1)));
    actions.extend([Action::Compact(0), Action::Return]);
    run(actions.clone());
    assert!(is_found("floor-not-raised", std::iter::once(actions.clone())));
    // And it comes back to a copy of that slot.
    actions.insert(actions.len() - 1, Action::Copy);
    run(actions);
}

#[test]
fn overwriting_for_ever_needs_little_more_than_once() {
    let puts = |rounds: u32| (0..rounds * KEYS).map(|at| Action::Put(at * 7 % KEYS, 100, None));
    let compacted = puts(200).flat_map(|put| [put, Action::Compact(0)]).collect();
    let freed_bytes = run(compacted);
    assert!(freed_bytes > 190 * u64::from(KEYS) * 100, "{freed_bytes}");
}

#[test]
fn short_segments_are_merged_and_no_record_often() {
    let mut test = Test::new();
    let range = RangeHeader { term: Term(1), base: 0 };
    for number in 1..=3_000u32 {
        test.write(range, number, Some((vec![7; 100], None)));
        test.compact(u64::from(number));
        let most = 12 + test.slot.store.chain().record_bytes() / (2 << 10);
        assert!(test.segments() as u64 <= most, "{} segments of {number} records", test.segments());
    }
    assert_eq!(test.freed_bytes, 0);
    assert!(test.moved_records <= 4 * 3_000, "{} records were moved", test.moved_records);
    test.check_content();
}
