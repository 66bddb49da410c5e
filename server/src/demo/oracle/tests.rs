//! Histories fed to the verifier: bad ones must be reported as what they are, good ones must not be reported.

use proptest::prelude::*;

use super::super::data::DataEntry;
use super::*;

const KEYS: u32 = 512;

fn oracle(seed: u64) -> Oracle {
    let entry = |n: u32| DataEntry::new(format!("key{n}").into_bytes(), format!("value:{n}").into_bytes());
    Oracle::new(seed, Arc::new(DataSet::from_entries((0..KEYS).map(entry).collect()).unwrap()))
}

/// A key whose first operations are of these kinds.
fn key_with(oracle: &Oracle, kinds: &[WriteKind]) -> KeyIndex {
    let fits = |key: &u32| (1..).zip(kinds).all(|(counter, kind)| oracle.kind_of(*key, counter) == *kind);
    (0..KEYS).find(fits).expect("some key has these kinds")
}

/// Issues and acknowledges the next operations of a key.
fn acked(oracle: &Oracle, key: KeyIndex, operations: usize) {
    for _ in 0..operations {
        oracle.write_acked(oracle.write_issued(key));
    }
}

fn read(oracle: &Oracle, key: KeyIndex, counter: Option<u64>) -> Verdict {
    let snapshot = oracle.read_began(key);
    oracle.read_ended(snapshot, counter.map(|c| oracle.value_of(key, c)).as_deref())
}

fn finally(oracle: &Oracle, key: KeyIndex, counter: Option<u64>) -> Verdict {
    oracle.finally(key, counter.map(|c| oracle.value_of(key, c)).as_deref())
}

const PUT: WriteKind = WriteKind::Put;
const DELETE: WriteKind = WriteKind::Delete;

#[test]
fn one_operation_in_ten_is_a_delete_and_the_first_never() {
    let oracle = oracle(7);
    let deletes = (0..KEYS)
        .flat_map(|key| (1..=100).map(move |c| (key, c)))
        .filter(|(k, c)| oracle.kind_of(*k, *c) == DELETE);
    let share = deletes.count() as f64 / f64::from(KEYS * 100);
    assert!((0.09..0.11).contains(&share), "{share}");
    assert!((0..KEYS).all(|key| oracle.kind_of(key, 1) == PUT));
}

#[test]
fn a_lost_write_is_reported() {
    let oracle = oracle(1);
    let key = key_with(&oracle, &[PUT, PUT, PUT]);
    acked(&oracle, key, 3);
    assert_eq!(read(&oracle, key, None), Verdict::Lost { acknowledged: 3, found: Found::Nothing });
    assert_eq!(finally(&oracle, key, None), Verdict::Lost { acknowledged: 3, found: Found::Nothing });
    let older = Verdict::Lost { acknowledged: 3, found: Found::Operation(2) };
    assert_eq!(finally(&oracle, key, Some(2)), older);
    assert_eq!(finally(&oracle, key, Some(3)), Verdict::Fine);
}

#[test]
fn a_resurrected_key_is_reported() {
    let oracle = oracle(1);
    let key = key_with(&oracle, &[PUT, DELETE, PUT]);
    acked(&oracle, key, 2);
    let back = Verdict::Resurrected { deleted: 2, found: Found::Operation(1) };
    assert_eq!(read(&oracle, key, Some(1)), back);
    assert_eq!(finally(&oracle, key, Some(1)), back);
    assert_eq!(finally(&oracle, key, None), Verdict::Fine);
    acked(&oracle, key, 1);
    assert_eq!(read(&oracle, key, Some(1)), back, "also when the key was written again");
}

#[test]
fn a_stale_read_is_reported() {
    let oracle = oracle(1);
    let key = key_with(&oracle, &[PUT, PUT, PUT]);
    acked(&oracle, key, 2);
    let began_before = oracle.read_began(key);
    acked(&oracle, key, 1);
    let began_after = oracle.read_began(key);
    let value = oracle.value_of(key, 2);
    assert_eq!(oracle.read_ended(began_before, Some(&value)), Verdict::Fine);
    let stale = Verdict::Stale { acknowledged: 3, read: 2 };
    assert_eq!(oracle.read_ended(began_after, Some(&value)), stale);
}

#[test]
fn reads_do_not_go_back_either() {
    let oracle = oracle(1);
    let key = key_with(&oracle, &[PUT, PUT]);
    acked(&oracle, key, 1);
    let outstanding = oracle.write_issued(key);
    assert_eq!(read(&oracle, key, Some(1)), Verdict::Fine);
    assert_eq!(read(&oracle, key, Some(2)), Verdict::Fine);
    assert_eq!(read(&oracle, key, Some(1)), Verdict::Stale { acknowledged: 2, read: 1 });
    oracle.write_acked(outstanding);
}

#[test]
fn a_corrupt_value_is_reported() {
    let oracle = oracle(1);
    let key = key_with(&oracle, &[PUT, DELETE, PUT]);
    acked(&oracle, key, 3);
    let good = String::from_utf8(oracle.value_of(key, 3)).unwrap();
    let (_, value) = good.split_once(':').unwrap();
    let bad = [
        String::new(),
        "no counter".into(),
        value.into(),
        format!("03:{value}"),
        format!("+3:{value}"),
        format!("0:{value}"),
        format!("4:{value}"),
        format!("2:{value}"),
        format!("99999999999999999999999:{value}"),
        format!("{good}x"),
        good[..good.len() - 1].into(),
        good.replace("value", "walue"),
    ];
    for value in bad {
        let verdict = oracle.read_ended(oracle.read_began(key), Some(value.as_bytes()));
        assert!(matches!(verdict, Verdict::Corrupt { .. }), "{value:?}: {verdict:?}");
    }
    assert_eq!(oracle.read_ended(oracle.read_began(key), Some(good.as_bytes())), Verdict::Fine);
}

#[test]
fn an_unknown_outcome_is_assumed_neither_way() {
    let oracle = oracle(1);
    let key = key_with(&oracle, &[PUT, PUT, PUT]);
    acked(&oracle, key, 1);
    oracle.write_unknown(oracle.write_issued(key));
    assert_eq!(read(&oracle, key, Some(1)), Verdict::Fine, "it did not take effect yet");
    acked(&oracle, key, 1);
    assert_eq!(read(&oracle, key, Some(3)), Verdict::Fine);
    assert_eq!(finally(&oracle, key, Some(2)), Verdict::Fine, "it took effect last");
    let lost = Verdict::Lost { acknowledged: 3, found: Found::Operation(1) };
    assert_eq!(finally(&oracle, key, Some(1)), lost, "but what was acknowledged is not excused");
    assert_eq!(finally(&oracle, key, None), Verdict::Lost { acknowledged: 3, found: Found::Nothing });
}

#[test]
fn an_unknown_outcome_that_a_read_settled_is_not_excused_any_more() {
    let oracle = oracle(1);
    let key = key_with(&oracle, &[PUT, PUT, PUT]);
    acked(&oracle, key, 1);
    oracle.write_unknown(oracle.write_issued(key));
    assert_eq!(read(&oracle, key, Some(2)), Verdict::Fine);
    assert_eq!(read(&oracle, key, Some(1)), Verdict::Stale { acknowledged: 2, read: 1 });
    acked(&oracle, key, 1);
    assert_eq!(read(&oracle, key, Some(2)), Verdict::Stale { acknowledged: 3, read: 2 });
}

#[test]
fn an_unknown_delete_excuses_absence_and_nothing_else() {
    let oracle = oracle(1);
    let key = key_with(&oracle, &[PUT, DELETE, PUT]);
    acked(&oracle, key, 1);
    oracle.write_unknown(oracle.write_issued(key));
    assert_eq!(read(&oracle, key, None), Verdict::Fine);
    assert_eq!(read(&oracle, key, Some(1)), Verdict::Fine);
    acked(&oracle, key, 1);
    assert_eq!(read(&oracle, key, None), Verdict::Fine, "it may have come last");
    assert_eq!(read(&oracle, key, Some(1)), Verdict::Stale { acknowledged: 3, read: 1 });
}

#[test]
fn a_refused_write_must_not_be_seen() {
    let oracle = oracle(1);
    let key = key_with(&oracle, &[PUT, PUT, DELETE, PUT]);
    acked(&oracle, key, 1);
    assert_eq!(oracle.write_refused(oracle.write_issued(key)), Verdict::Fine);
    assert!(matches!(read(&oracle, key, Some(2)), Verdict::Corrupt { .. }));
    assert_eq!(oracle.write_refused(oracle.write_issued(key)), Verdict::Fine);
    assert_eq!(read(&oracle, key, None), Verdict::Lost { acknowledged: 1, found: Found::Nothing });
    assert_eq!(finally(&oracle, key, Some(1)), Verdict::Fine);

    let seen_first = oracle.write_issued(key);
    assert_eq!(read(&oracle, key, Some(4)), Verdict::Fine);
    assert!(matches!(oracle.write_refused(seen_first), Verdict::Corrupt { .. }));
}

#[test]
fn the_answer_of_a_delete_is_judged() {
    let oracle = oracle(3);
    let key = key_with(&oracle, &[PUT, DELETE, DELETE]);
    acked(&oracle, key, 1);
    let lost = Verdict::Lost { acknowledged: 1, found: Found::Nothing };
    assert_eq!(oracle.delete_acked(oracle.write_issued(key), false), lost);
    let back = Verdict::Resurrected { deleted: 2, found: Found::Nothing };
    assert_eq!(oracle.delete_acked(oracle.write_issued(key), true), back);

    let good = (0..KEYS).rev().find(|k| oracle.kind_of(*k, 2) == DELETE && *k != key).unwrap();
    acked(&oracle, good, 1);
    assert_eq!(oracle.delete_acked(oracle.write_issued(good), true), Verdict::Fine);
}

#[test]
fn a_late_write_that_is_seen_after_a_delete_does_not_convict_the_delete() {
    let oracle = oracle(1);
    let key = key_with(&oracle, &[PUT, DELETE]);
    oracle.write_unknown(oracle.write_issued(key));
    let delete = oracle.write_issued(key);
    // The delete found nothing; then the first write took effect, and was read before the delete was answered.
    assert_eq!(read(&oracle, key, Some(1)), Verdict::Fine);
    assert_eq!(oracle.delete_acked(delete, false), Verdict::Fine);
}

#[test]
#[should_panic(expected = "has an outstanding operation")]
fn a_key_has_one_outstanding_operation() {
    let oracle = oracle(1);
    let _first = oracle.write_issued(0);
    let _second = oracle.write_issued(0);
}

/// A linearizable register with one writer and three readers; what happens next is drawn by proptest.
struct Model<'a> {
    oracle: &'a Oracle,
    key: KeyIndex,
    value: Option<u64>,
    /// The outstanding operation, and what it found if it took effect.
    outstanding: Option<(IssuedWrite, Option<bool>)>,
    /// Operations of unknown outcome that may still take effect.
    late: Vec<(u64, WriteKind)>,
    readers: [Option<(ReadSnapshot, Option<Option<u64>>)>; 3],
    verdicts: Vec<Verdict>,
}

impl<'a> Model<'a> {
    fn new(oracle: &'a Oracle, key: KeyIndex) -> Self {
        let readers = [None; 3];
        Model { oracle, key, value: None, outstanding: None, late: Vec::new(), readers, verdicts: Vec::new() }
    }

    fn take_effect(&mut self, counter: u64, kind: WriteKind) -> bool {
        let was = self.value.is_some();
        self.value = (kind == PUT).then_some(counter);
        was
    }

    fn step(&mut self, action: u8, choice: u8, unknowns: bool) {
        match action {
            0 if self.outstanding.is_none() => {
                self.outstanding = Some((self.oracle.write_issued(self.key), None));
            }
            1 => {
                if let Some((write, None)) = self.outstanding.take_if(|(_, effect)| effect.is_none()) {
                    let was = self.take_effect(write.counter, write.kind);
                    self.outstanding = Some((write, Some(was)));
                }
            }
            2 => self.finish(choice, unknowns),
            3 if !self.late.is_empty() => {
                let (counter, kind) = self.late.remove(usize::from(choice) % self.late.len());
                self.take_effect(counter, kind);
            }
            _ => self.read(usize::from(action) % 3),
        }
    }

    fn finish(&mut self, choice: u8, unknowns: bool) {
        let unknown = unknowns && choice.is_multiple_of(4);
        match self.outstanding.take() {
            Some((write, None)) if unknown => {
                self.late.push((write.counter, write.kind));
                self.oracle.write_unknown(write);
            }
            Some((write, Some(_))) if unknown => self.oracle.write_unknown(write),
            Some((write, None)) => self.verdicts.push(self.oracle.write_refused(write)),
            Some((write, Some(was))) if write.kind == DELETE => {
                self.verdicts.push(self.oracle.delete_acked(write, was));
            }
            Some((write, Some(_))) => self.oracle.write_acked(write),
            None => {}
        }
    }

    fn read(&mut self, reader: usize) {
        self.readers[reader] = match self.readers[reader] {
            None => Some((self.oracle.read_began(self.key), None)),
            Some((snapshot, None)) => Some((snapshot, Some(self.value))),
            Some((snapshot, Some(seen))) => {
                let bytes = seen.map(|counter| self.oracle.value_of(self.key, counter));
                self.verdicts.push(self.oracle.read_ended(snapshot, bytes.as_deref()));
                None
            }
        };
    }

    fn run(&mut self, steps: &[(u8, u8)], unknowns: bool) {
        for (action, choice) in steps {
            self.step(*action, *choice, unknowns);
        }
        if self.outstanding.is_some() {
            self.finish(1, unknowns);
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((0u8..8, any::<u8>()), 0..300)
}

proptest! {
    #[test]
    fn good_histories_report_nothing(seed: u64, key in 0..KEYS, steps in steps()) {
        let oracle = oracle(seed);
        let mut model = Model::new(&oracle, key);
        model.run(&steps, true);
        for verdict in &model.verdicts {
            prop_assert_eq!(verdict, &Verdict::Fine);
        }
        prop_assert_eq!(finally(&oracle, key, model.value), Verdict::Fine);
    }

    #[test]
    fn without_unknown_outcomes_every_other_answer_is_reported(seed: u64, key in 0..KEYS, steps in steps()) {
        let oracle = oracle(seed);
        let mut model = Model::new(&oracle, key);
        model.run(&steps, false);
        let newest = oracle.keys[key as usize].issued.load(Ordering::SeqCst);
        let answers = std::iter::once(None).chain((1..=newest + 1).map(Some));
        for answer in answers.filter(|answer| *answer != model.value) {
            prop_assert!(!finally(&oracle, key, answer).is_fine(), "{:?} instead of {:?}", answer, model.value);
            prop_assert!(!read(&oracle, key, answer).is_fine(), "{:?} instead of {:?}", answer, model.value);
        }
        prop_assert_eq!(finally(&oracle, key, model.value), Verdict::Fine);
    }
}
