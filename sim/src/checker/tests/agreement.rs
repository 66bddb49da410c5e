//! Small random histories: the checker says what the checker by brute force says.

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::{Call, Condition, Expiry, Limits, Operation, Outcome, Reply, Verdict, check, minimise};
use super::{brute, is_linearizable_by_search};

const OPERATIONS_MAX: usize = 7;
/// Operations are invoked before this: mostly one after the other, or mostly at the same time.
const SPARSE_NS: u64 = 12;
const DENSE_NS: u64 = 4;

fn any_expiry(span_ns: u64) -> impl Strategy<Value = Expiry> {
    (0..span_ns, prop_oneof![3 => (0..4_u64).prop_map(Some), 1 => Just(None)]).prop_map(|(from_ns, wide)| {
        Expiry { not_before_ns: from_ns, not_after_ns: wide.map_or(u64::MAX, |wide| from_ns + wide) }
    })
}

fn any_condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        3 => Just(Condition::Always),
        1 => Just(Condition::IfAbsent),
        1 => Just(Condition::IfPresent),
        2 => (1..=3_u64).prop_map(Condition::IfEqual),
    ]
}

fn any_call(span_ns: u64) -> impl Strategy<Value = Call> {
    let expiry = prop_oneof![2 => Just(None), 1 => any_expiry(span_ns).prop_map(Some)];
    prop_oneof![
        4 => Just(Call::Get),
        4 => (1..=3_u64, expiry, any_condition())
            .prop_map(|(value, expiry, condition)| Call::Set { value, expiry, condition }),
        2 => Just(Call::Delete),
        1 => any_expiry(span_ns).prop_map(|expiry| Call::Expire { expiry }),
    ]
}

fn any_reply(call: Call) -> BoxedStrategy<Reply> {
    match call {
        Call::Get => prop::option::of(1..=3_u64).prop_map(Reply::Value).boxed(),
        Call::Set { condition: Condition::Always, .. } => Just(Reply::Set(true)).boxed(),
        Call::Set { .. } => any::<bool>().prop_map(Reply::Set).boxed(),
        Call::Delete => any::<bool>().prop_map(Reply::Deleted).boxed(),
        Call::Expire { .. } => any::<bool>().prop_map(Reply::Expiring).boxed(),
    }
}

fn any_outcome(call: Call, invoked_ns: u64) -> impl Strategy<Value = Outcome> {
    let ended_ns = || (0..5_u64).prop_map(move |took_ns| invoked_ns + took_ns);
    prop_oneof![
        8 => (ended_ns(), any_reply(call)).prop_map(|(at_ns, reply)| Outcome::Returned { at_ns, reply }),
        2 => Just(Outcome::Unknown),
        1 => ended_ns().prop_map(|at_ns| Outcome::Refused { at_ns }),
    ]
}

/// An operation that need not make sense together with others.
fn any_operation(span_ns: u64) -> impl Strategy<Value = Operation> {
    (0..3_u32, any_call(span_ns), 0..span_ns).prop_flat_map(|(client, call, invoked_ns)| {
        let outcome = any_outcome(call, invoked_ns);
        outcome.prop_map(move |outcome| Operation { client, call, invoked_ns, outcome })
    })
}

/// One operation of an execution: what, when it takes effect, how much earlier and later the client was waiting, and what
/// became of it.
#[derive(Clone, Debug)]
struct Planned {
    client: u32,
    call: Call,
    at_ns: u64,
    early_ns: u64,
    late_ns: u64,
    /// 0: of unknown outcome, and without effect. 1: of unknown outcome. 2: refused. Others return.
    fate: u8,
}

fn any_planned(span_ns: u64) -> impl Strategy<Value = Planned> {
    (0..3_u32, any_call(span_ns), 0..span_ns, 0..4_u64, 0..4_u64, 0..12_u8).prop_map(
        |(client, call, at_ns, early_ns, late_ns, fate)| Planned {
            client,
            call,
            at_ns,
            early_ns,
            late_ns,
            fate,
        },
    )
}

/// What clients see of an execution: the operations take effect in the order of their times. A value is gone `lag_ns` after
/// its deadline's window opened, or when the window closes.
/// `once`: no value is written twice. `tight`: where they can, clients go on within the nanosecond.
fn execute(mut planned: Vec<Planned>, lag_ns: u64, (once, tight): (bool, bool)) -> Vec<Operation> {
    planned.sort_by_key(|planned| planned.at_ns);
    for (number, planned) in (1..).zip(&mut planned) {
        if let (Call::Set { value, .. }, true) = (&mut planned.call, once) {
            *value = number;
        }
    }
    let mut value = None;
    let mut history: Vec<Operation> = Vec::new();
    for Planned { client, call, at_ns, early_ns, late_ns, fate } in planned {
        let gone = |(_, expiry): &(u64, Option<Expiry>)| {
            expiry.is_some_and(|expiry| at_ns > expiry.not_after_ns.min(expiry.not_before_ns + lag_ns))
        };
        value = value.filter(|value| !gone(value));
        let (reply, next) = brute::perform(call, value);
        if fate != 0 && fate != 2 {
            value = next;
        }
        let ended_ns = at_ns + late_ns;
        let outcome = match fate {
            0 | 1 => Outcome::Unknown,
            2 => Outcome::Refused { at_ns: ended_ns },
            _ => Outcome::Returned { at_ns: ended_ns, reply },
        };
        let before = history.iter().rev().find(|before| before.client == client);
        let next_ns = before.and_then(Operation::ended_ns).filter(|ended_ns| tight && *ended_ns <= at_ns);
        let invoked_ns = next_ns.unwrap_or(at_ns.saturating_sub(early_ns));
        history.push(Operation { client, call, invoked_ns, outcome });
    }
    history
}

/// A linearizable history, by construction.
fn good_history(span_ns: u64) -> impl Strategy<Value = Vec<Operation>> {
    (prop::collection::vec(any_planned(span_ns), 0..=OPERATIONS_MAX), 0..3_u64, any::<(bool, bool)>())
        .prop_map(|(planned, lag_ns, how)| execute(planned, lag_ns, how))
}

/// A good history with one thing changed.
fn changed_history(span_ns: u64) -> impl Strategy<Value = Vec<Operation>> {
    (good_history(span_ns), any::<Index>(), any_operation(span_ns), 0..5_u8).prop_map(
        |(mut history, at, other, what)| {
            if history.is_empty() {
                return history;
            }
            let at = at.index(history.len());
            let operation = &mut history[at];
            match (what, operation.outcome) {
                (0, Outcome::Returned { at_ns, reply }) => {
                    let reply = match reply {
                        Reply::Value(Some(value)) => Reply::Value((value > 1).then_some(value - 1)),
                        Reply::Value(None) => Reply::Value(Some(3)),
                        Reply::Set(wrote) => Reply::Set(!wrote),
                        Reply::Deleted(deleted) => Reply::Deleted(!deleted),
                        Reply::Expiring(expiring) => Reply::Expiring(!expiring),
                    };
                    operation.outcome = Outcome::Returned { at_ns, reply };
                }
                (1, Outcome::Returned { reply, .. }) => {
                    operation.outcome = Outcome::Returned { at_ns: operation.invoked_ns, reply };
                }
                (2, Outcome::Returned { at_ns, .. }) => operation.outcome = Outcome::Refused { at_ns },
                (3, _) => *operation = other,
                _ => drop(history.remove(at)),
            }
            history
        },
    )
}

fn agree(history: &[Operation]) -> Result<(), TestCaseError> {
    let expected = brute::is_linearizable(history);
    prop_assert_eq!(is_linearizable_by_search(history), expected, "the search");
    let verdict = check(history, Limits::default());
    match &verdict {
        Verdict::Linearizable => prop_assert!(expected, "passed a violation"),
        Verdict::Violation(why) => prop_assert!(!expected, "{}", why),
        Verdict::Undecided { .. } => prop_assert!(false, "undecided"),
    }
    if !expected {
        let why = minimise(history, Limits::default()).expect("it is a violation");
        prop_assert!(!brute::is_linearizable(&why.excerpt(history)), "these alone are none: {}", why);
        let is_shown = |index: usize| why.operations.contains(&index);
        prop_assert!(!brute::is_linearizable_if(history, &is_shown), "others explain it: {}", why);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn on_any_history(
        history in prop_oneof![
            prop::collection::vec(any_operation(SPARSE_NS), 0..=OPERATIONS_MAX),
            prop::collection::vec(any_operation(DENSE_NS), 0..=OPERATIONS_MAX),
        ]
    ) {
        agree(&history)?;
    }

    #[test]
    fn on_good_histories(history in prop_oneof![good_history(SPARSE_NS), good_history(DENSE_NS)]) {
        prop_assert!(brute::is_linearizable(&history), "the generator is wrong, or brute force is");
        agree(&history)?;
    }

    #[test]
    fn on_changed_histories(history in prop_oneof![changed_history(SPARSE_NS), changed_history(DENSE_NS)]) {
        agree(&history)?;
    }
}
