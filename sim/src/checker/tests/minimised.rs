//! Long histories that are a violation come down to the few operations that show it.

use super::super::{Call, Condition, Kind, Limits, Operation, Outcome, Reply, Verdict, check, minimise};
use super::simulated::{Mix, history};
use super::{by, unknown};

/// `added` within a long good history: all at some moment in its middle, with values and clients of their own. The key is
/// left as it was.
fn within_good_history(added: impl Fn(u64) -> Vec<Operation>, seed: u64) -> Vec<Operation> {
    let mut history = history(Mix { clients: 4, ..Mix::USUAL }, seed);
    let middle_ns = history[history.len() / 2].invoked_ns;
    history.extend(added(middle_ns));
    history
}

/// Two compare-and-sets at the same time that both found the value of one write.
fn double_swap(ns: u64) -> Vec<Operation> {
    vec![
        by(100, ns, ns + 9_000_000).set(1_000_000),
        by(101, ns, ns + 9_000_000).swap(1_000_000, 1_000_001, true),
        by(102, ns, ns + 9_000_000).swap(1_000_000, 1_000_002, true),
    ]
}

#[test]
fn a_violation_that_no_direct_check_finds() {
    for seed in 0..5 {
        let history = within_good_history(double_swap, seed);
        let Verdict::Violation(why) = check(&history, Limits::default()) else { panic!("passed") };
        assert_eq!(why.kind, Kind::NotLinearizable);
        let why = minimise(&history, Limits::default()).expect("it is a violation");
        assert_eq!(why.excerpt(&history), double_swap(history[history.len() / 2 - 1].invoked_ns), "{why}");
    }
}

#[test]
fn what_has_a_name_is_as_short_as_its_story() {
    let back = |ns: u64| {
        vec![
            by(100, ns, ns + 1_000).set(1_000_000),
            by(100, ns + 2_000, ns + 3_000).delete(true),
            by(101, ns + 9_000_000, ns + 9_100_000).get(1_000_000),
        ]
    };
    let history = within_good_history(back, 3);
    let why = minimise(&history, Limits::default()).expect("it is a violation");
    assert_eq!(why.kind, Kind::Resurrection, "{why}");
    assert!(why.operations.len() <= 4, "{why}");
    assert!(matches!(check(&why.excerpt(&history), Limits::default()), Verdict::Violation(_)));
}

#[test]
fn a_name_comes_out_of_the_crowd() {
    // The unknown delete keeps the direct checks from being sure, until it is known to have been used.
    let history = [
        by(1, 0, 1).set(1),
        unknown(2, 2).delete(true),
        by(3, 4, 5).get_nothing(),
        by(1, 6, 7).set(2),
        by(3, 8, 9).get_nothing(),
        by(4, 10, 11).get_nothing(),
    ];
    let Verdict::Violation(why) = check(&history, Limits::default()) else { panic!("passed") };
    assert_eq!(why.kind, Kind::NotLinearizable, "{why}");
    let why = minimise(&history, Limits::default()).expect("it is a violation");
    assert!(
        !why.operations.contains(&5) || !why.operations.contains(&4),
        "one of the last reads will do: {why}"
    );
    assert!([0, 2, 3].iter().all(|index| why.operations.contains(index)), "{why}");
}

#[test]
fn the_reads_of_a_good_part_are_not_made_to_look_wrong() {
    // Without the delete, the first read of an absent key would be a lost write.
    let history = [
        by(1, 0, 1).set(1),
        by(1, 2, 3).delete(true),
        by(2, 4, 5).get_nothing(),
        by(1, 6, 7).set(2),
        by(1, 8, 19).swap(2, 3, true),
        by(2, 8, 19).swap(2, 4, true),
    ];
    let why = minimise(&history, Limits::default()).expect("it is a violation");
    assert_eq!(why.operations, [3, 4, 5], "{why}");
}

#[test]
fn a_good_history_has_nothing_to_explain() {
    assert_eq!(minimise(&history(Mix::USUAL, 9), Limits::default()), None);
    let absent = Call::Set { value: 1, expiry: None, condition: Condition::IfAbsent };
    let outcome = Outcome::Returned { at_ns: 1, reply: Reply::Set(true) };
    assert_eq!(
        minimise(&[Operation { client: 1, call: absent, invoked_ns: 0, outcome }], Limits::default()),
        None
    );
}
