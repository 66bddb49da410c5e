//! Long histories of a simulated register: all of them are decided, and right; and with one read made stale, wrong.

use proptest::prelude::*;

use super::super::{Call, Condition, Limits, Operation, Outcome, Reply, Verdict, check};
use super::simulated::{Mix, Random, history};
use super::{Found, Timetable, by, search};

fn any_mix() -> impl Strategy<Value = Mix> {
    let usual = Mix::USUAL;
    prop_oneof![
        Just(usual),
        Just(Mix { reads: 10, deletes: 25, ..usual }),
        Just(Mix { unknown: 8, ..usual }),
        Just(Mix { expiring: 70, retimed: 20, ..usual }),
        Just(Mix { reads: 30, conditional: 50, ..usual }),
        Just(Mix { clients: 16, ..usual }),
    ]
}

/// The value that an operation surely wrote, and when the client was told.
fn written(operation: &Operation) -> Option<(u64, u64)> {
    match (operation.call, operation.outcome) {
        (Call::Set { value, .. }, Outcome::Returned { at_ns, reply: Reply::Set(true) }) => {
            Some((value, at_ns))
        }
        _ => None,
    }
}

/// Lets one read find a value that was surely replaced before the read was invoked: its write had ended before another
/// began that ended before the read began. Values are written once.
fn with_stale_read(mut history: Vec<Operation>, seed: u64) -> Vec<Operation> {
    let mut random = Random(seed);
    let ended_before = |ns: u64, history: &[Operation]| {
        let writes = history.iter().copied().filter_map(|write| Some((written(&write)?, write.invoked_ns)));
        writes.filter(|((_, ended_ns), _)| *ended_ns < ns).collect::<Vec<_>>()
    };
    loop {
        let read = random.below(history.len() as u64) as usize;
        let Operation { invoked_ns, outcome: Outcome::Returned { at_ns, .. }, call: Call::Get, .. } =
            history[read]
        else {
            continue;
        };
        let Some(&(_, replaced_ns)) =
            ended_before(invoked_ns, &history).iter().max_by_key(|(_, began_ns)| *began_ns)
        else {
            continue;
        };
        let old = ended_before(replaced_ns, &history);
        if old.is_empty() {
            continue;
        }
        let recent = old.len().saturating_sub(20) as u64;
        let ((value, _), _) = old[(recent + random.below(old.len() as u64 - recent)) as usize];
        history[read].outcome = Outcome::Returned { at_ns, reply: Reply::Value(Some(value)) };
        return history;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn good_histories_pass(mix in any_mix(), seed in any::<u64>()) {
        let history = history(mix, seed);
        prop_assert_eq!(history.len(), mix.operations);
        prop_assert_eq!(check(&history, Limits::default()), Verdict::Linearizable);
    }

    #[test]
    fn a_stale_read_is_found(mix in any_mix(), seed in any::<u64>()) {
        let history = with_stale_read(history(mix, seed), seed);
        prop_assert!(matches!(check(&history, Limits::default()), Verdict::Violation(_)));
        // Not even the search alone passes it, whether it gets to the end or not.
        let found = search(&Timetable::new(&history, None), Limits::default().configurations_max);
        prop_assert!(!matches!(found, Found::Order));
    }
}

#[test]
fn the_histories_have_what_they_should() {
    let history = history(Mix::USUAL, 1);
    let count = |is: &dyn Fn(&Operation) -> bool| history.iter().filter(|operation| is(operation)).count();
    let replied = |wanted: Reply| {
        count(&|operation| matches!(operation.outcome, Outcome::Returned { reply, .. } if reply == wanted))
    };
    assert!(count(&|operation| operation.outcome == Outcome::Unknown) > 40);
    assert!(count(&|operation| matches!(operation.outcome, Outcome::Refused { .. })) > 20);
    assert!(count(&|operation| operation.expiry().is_some()) > 150);
    let swaps = |operation: &Operation| {
        matches!(operation.call, Call::Set { condition: Condition::IfEqual(_), .. })
            && written(operation).is_some()
    };
    assert!(count(&swaps) > 20);
    for reply in [Reply::Value(None), Reply::Set(false), Reply::Deleted(true), Reply::Deleted(false)] {
        assert!(replied(reply) > 5, "{reply}: {}", replied(reply));
    }
    let goes_on = |operation: &Operation| {
        history
            .iter()
            .any(|next| next.client == operation.client && Some(next.invoked_ns) == operation.ended_ns())
    };
    assert!(count(&goes_on) > 500, "clients that go on within the nanosecond");
}

#[test]
fn beyond_its_limit_the_checker_says_so() {
    let history = history(Mix::USUAL, 1);
    for configurations_max in [0, 1, 100] {
        let Verdict::Undecided { configurations } = check(&history, Limits { configurations_max }) else {
            panic!("decided within {configurations_max} configurations");
        };
        assert!(configurations > configurations_max);
    }
}

#[test]
fn more_than_it_can_hold_at_one_time_is_undecided() {
    let write = |client: u32| by(client, 0, 9).set(u64::from(client));
    let full: Vec<Operation> = (0..128).map(write).collect();
    assert_eq!(check(&full, Limits::default()), Verdict::Linearizable);
    let too_many: Vec<Operation> = (0..129).map(write).collect();
    assert_eq!(check(&too_many, Limits::default()), Verdict::Undecided { configurations: 0 });
}
