//! A slot against the list of all its writes: whatever is discarded, what is live stays, receivers that count as whole have
//! no gaps, and the slot and its receivers can go back to where they say that they can. Also where the slot's place is taken
//! by a copy of it, and where it loses its last writes.

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
use crate::record::{NewRecord, encode};
use crate::slot::{Cut, SlotState};
use crate::store::Store;
use crate::types::{Floors, Generation, RangeHeader, Slot, Term, Version};
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
    /// What its counter counted from.
    base: u64,
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
    let mut state = SlotState::new(slot, store, Watchers::new(&Arc::new(Gates::new()), 0));
    state.begin_generation(Generation::new(1));
    state
}

/// One receiver: a slot that is filled, and from where on it counts as having no gaps.
struct Receiver {
    stream: Arc<DirtySlots>,
    copy: SlotState,
    whole_from: u64,
}

impl Receiver {
    fn new() -> Receiver {
        let stream = Arc::new(DirtySlots::new());
        Receiver { stream, copy: new_slot(&Arc::new(MemoryBudget::new(1 << 30))), whole_from: 0 }
    }

    /// Whether the receiver's slot lacks what later writes will make up for.
    fn has_gaps(&self) -> bool {
        self.copy.version() < self.copy.floors().undo_floor
    }
}

/// Takes some verified records in.
fn take_in(slot: &mut SlotState, range: RangeHeader, records: &[u8]) {
    let counters = verify_range(slot.slot(), range, records).unwrap();
    let fresh = slot.fresh(range, records, counters).unwrap().expect("it is new");
    slot.reserve(range, &fresh).unwrap();
    slot.take_in(range, &fresh, &mut Wakes::default());
}

fn assert_content(store: &Store, content: &Content) {
    assert_eq!(store.keys(), content.len() as u64);
    for (key, (value, deadline_ms)) in content {
        let record = store.record_at(store.find(KEYSPACE, key).expect("it is live"));
        assert_eq!((record.value, record.deadline_ms), (&value[..], *deadline_ms));
    }
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
        self.write_key(range, key(number), value);
    }

    fn write_key(&mut self, range: RangeHeader, key: Vec<u8>, value: Option<(Vec<u8>, Option<u64>)>) {
        let new = match &value {
            Some((value, deadline_ms)) => NewRecord::put(KEYSPACE, &key, value, *deadline_ms),
            None => NewRecord::delete(KEYSPACE, &key),
        };
        let version = self.append(range, new);
        self.writes.push(Write { version, base: range.base, key: Some(key), value });
    }

    fn clear(&mut self, range: RangeHeader) {
        let version = self.append(range, NewRecord::clear(KEYSPACE));
        self.writes.push(Write { version, base: range.base, key: None, value: None });
    }

    fn append(&mut self, range: RangeHeader, new: NewRecord<'_>) -> Version {
        let counter = self.last().counter + 1;
        let new = NewRecord { delta: (counter - range.base) as u32, ..new };
        let mut bytes = vec![0; new.encoded_bytes()];
        encode(&mut bytes, &new);
        take_in(&mut self.slot, range, &bytes);
        Version::new(range.term, counter)
    }

    fn check_content(&self) {
        let content = self.content_at(u64::MAX);
        let store = &self.slot.store;
        assert_content(store, &content);
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

    /// Goes on with what a receiver has, or with a new copy, as after a failover. Nobody follows that yet.
    fn go_on_with_a_copy(&mut self) {
        if self.receivers.is_empty() {
            self.subscribe(Receiver::new());
        }
        self.send(0, usize::MAX);
        self.slot = self.receivers.swap_remove(0).copy;
        assert_eq!(self.slot.version(), self.last());
        self.away.append(&mut self.receivers);
    }

    /// The slot loses so many of its last writes, which it had discarded others for, and recovers from a log of all before.
    fn lose(&mut self, count: usize) {
        self.writes.truncate(self.writes.len().saturating_sub(count));
        self.slot = new_slot(&Arc::new(MemoryBudget::new(1 << 30)));
        for Write { version, base, key, value } in std::mem::take(&mut self.writes) {
            let range = RangeHeader { term: version.term, base };
            match (key, value) {
                (Some(key), value) => self.write_key(range, key, value),
                (None, _) => self.clear(range),
            }
        }
        self.stable = self.stable.min(self.last().counter);
        self.away.append(&mut self.receivers);
    }

    fn segments(&self) -> usize {
        self.slot.store.chain().links().len()
    }

    fn subscribe(&mut self, mut receiver: Receiver) {
        if !self.can_go_on(&mut receiver.copy) {
            receiver = Receiver::new();
        }
        self.slot.add_stream(&receiver.stream, receiver.copy.version());
        receiver.whole_from = self.last().counter;
        self.receivers.push(receiver);
    }

    /// Whether a copy can go on from where it is, or from where it can go back to.
    fn can_go_on(&self, copy: &mut SlotState) -> bool {
        if !self.slot.on_history(copy.version()) {
            match copy.cut(self.slot.common(copy.version())) {
                Ok(Some(cut)) => drop(copy.take_back(cut, &mut Wakes::default())),
                Ok(None) => {}
                Err(_) => return false,
            }
        }
        let (cursor, undo_floor) = (copy.version(), copy.floors().undo_floor);
        cursor == Version::ZERO
            || self.slot.on_history(cursor)
                && cursor >= self.slot.floors().floor
                && (cursor >= undo_floor || self.slot.fills_up_to(undo_floor))
    }

    /// Sends a receiver the records up to `count` behind its cursor.
    fn send(&mut self, at: usize, count: usize) {
        let copy = &mut self.receivers[at].copy;
        let (chain, have, after) = (self.slot.store.chain(), self.slot.floors(), copy.version());
        // What a stream says with a range.
        copy.raise_floors(Floors {
            floor: if after == Version::ZERO { have.floor } else { Version::ZERO },
            undo_floor: if have.undo_floor > after { have.undo_floor } else { Version::ZERO },
        });
        let (first, mut from) = chain.find_after(after.counter);
        let mut left = count;
        for link in chain.links().iter().skip(first) {
            for (byte, record) in link.segment.records().filter(|(byte, _)| *byte >= from) {
                if left == 0 {
                    break;
                }
                left -= 1;
                let bytes = link.segment.bytes(byte..byte + record.encoded_bytes());
                take_in(copy, link.segment.range(), bytes);
            }
            from = 0;
        }
        let sent = copy.version().counter;
        let stream = self.receivers[at].stream.clone();
        self.slot.sent_to(&stream, sent);
        self.check_receiver(at);
    }

    /// A receiver that counts as whole has no gaps, and neither has one that was not told of any.
    fn check_receiver(&self, at: usize) {
        let receiver = &self.receivers[at];
        let version = receiver.copy.version();
        if !receiver.has_gaps() {
            assert_content(&receiver.copy.store, &self.content_at(version.counter));
        }
        assert!(
            version.counter < receiver.whole_from || !receiver.has_gaps(),
            "a whole receiver has no gaps"
        );
    }

    fn check_going_back(&self) {
        let status = self.slot.status();
        for to in (0..=self.last().counter).map(|at| self.version_at(at)) {
            match self.slot.cut(to) {
                Err(_) => assert!(to.counter < self.stable, "{to} is above the watermark"),
                Ok(None) => assert_eq!(to, status.version),
                Ok(Some(cut)) => {
                    assert_eq!(cut.version, to);
                    self.check_cut(&cut);
                }
            }
        }
        for copy in self.receivers.iter().map(|receiver| &receiver.copy) {
            for to in (0..copy.version().counter).map(|at| self.version_at(at)) {
                match copy.cut(to) {
                    Err(_) => assert!(to < copy.floors().undo_floor, "{to} is above the undo floor"),
                    Ok(cut) => self.check_cut(&cut.expect("something is taken back")),
                }
            }
        }
    }

    fn check_cut(&self, cut: &Cut) {
        let store = cut.store.as_ref().expect("something is taken back");
        assert_content(store, &self.content_at(cut.version.counter));
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
    Lose(usize),
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
        1 => Just(Action::Return),
        1 => (0usize..40).prop_map(|at| match at {
            0..6 => Action::Copy,
            6..14 => Action::Lose(at - 6),
            _ => Action::Return,
        }),
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
                test.subscribe(Receiver::new());
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
            Action::Lose(count) => {
                test.lose(count);
                // What was lost was of a term that is over.
                range = RangeHeader { term: Term(range.term.0 + 1), base: test.last().counter };
            }
            Action::Send(..) | Action::Leave(_) | Action::Return => {}
        }
        test.check_content();
    }
    test.check_going_back();
    for at in 0..test.receivers.len() {
        test.send(at, usize::MAX);
        assert_eq!(test.receivers[at].copy.version(), test.last(), "everybody ends at the last version");
    }
    test.check_going_back();
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
    // A receiver was sent a part of what overwriting had left, and comes back when the last of that is lost.
    let mut actions = vec![put(1), put(2), put(0)];
    actions.extend((0..20).map(|_| put(1)));
    actions.extend([put(2), Action::Compact(0), Action::Subscribe, Action::Send(0, 1), Action::Lose(1)]);
    actions.extend([Action::Return, put(3)]);
    run(actions.clone());
    assert!(is_found("gaps-not-noticed", std::iter::once(actions)));
}

#[test]
fn what_is_taken_back_behind_a_clear_leaves_the_rest_counted_right() {
    let put = |key| Action::Put(key, 100, None);
    let mut actions = vec![Action::Subscribe, put(0), Action::Clear, Action::NewTerm];
    actions.extend((0..8).map(|_| put(0)));
    actions.extend([Action::Send(0, 4), Action::Lose(7), Action::Return, Action::Copy]);
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
