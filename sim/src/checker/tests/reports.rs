//! What people read.

use super::super::{Limits, Verdict, check, minimise};
use super::{by, refused, unknown, window};

const MS: u64 = 1_000_000;

#[test]
fn a_named_violation_is_told_with_its_operations() {
    let history = [
        by(1, 10 * MS, 12 * MS).set(7),
        by(2, 11 * MS, 13 * MS + 500_000).get_nothing(),
        by(1, 14 * MS, 15 * MS).delete(true),
        by(3, 20 * MS, 21 * MS).get(7),
    ];
    let Verdict::Violation(why) = check(&history, Limits::default()) else { panic!("passed") };
    assert_eq!(why.operations, [0, 2, 3]);
    let told = "resurrection:
  #0  10.000..12.000 ms  client 1  SET 7 -> set
  #2  14.000..15.000 ms  client 1  DEL -> deleted
  #3  20.000..21.000 ms  client 3  GET -> 7
  after #2 7 was gone, but #3 found it again";
    assert_eq!(why.to_string(), told);
}

#[test]
fn a_violation_without_a_name_is_told_with_where_the_search_ended() {
    let history = [
        by(1, 10 * MS, 12 * MS).set(7),
        by(1, 13 * MS, 19 * MS).swap(7, 8, true),
        by(2, 13 * MS, 19 * MS).swap(7, 9, true),
    ];
    let Verdict::Violation(why) = check(&history, Limits::default()) else { panic!("passed") };
    let told = why.to_string();
    assert!(told.contains("#1  13.000..19.000 ms  client 1  SET 8 IFEQ 7 -> set"), "{told}");
    assert!(told.contains("nothing lets #1 take effect") || told.contains("7 would be lost"), "{told}");
    let why = minimise(&history, Limits::default()).expect("it is a violation").to_string();
    assert!(why.ends_with("whatever the others did, no order explains #1, #2"), "{why}");
}

#[test]
fn operations_read_like_commands() {
    let until = window(20 * MS, 25 * MS + 1_000);
    let told = [
        (by(1, 0, MS).set_until(1, until), "0.000..1.000 ms  client 1  SET 1 PXAT 20.000..25.001 ms -> set"),
        (refused(2, 0, MS).set(2), "0.000..1.000 ms  client 2  SET 2 -> refused"),
        (unknown(3, 0).swap(1, 2, true), "0.000.. ms  client 3  SET 2 IFEQ 1 -> unknown"),
        (by(4, 0, MS).delete(false), "0.000..1.000 ms  client 4  DEL -> nothing to delete"),
        (
            by(5, 0, MS).expire(window(MS, u64::MAX), false),
            "0.000..1.000 ms  client 5  PEXPIREAT 1.000 ms or later -> nothing to expire",
        ),
        (by(6, 0, MS).get_nothing(), "0.000..1.000 ms  client 6  GET -> nothing"),
    ];
    for (operation, expected) in told {
        assert_eq!(operation.to_string(), expected);
    }
}

#[test]
#[should_panic(expected = "ended before it was invoked")]
fn a_history_that_nobody_can_have_recorded_is_refused() {
    let _ = check(&[by(1, 5, 4).get_nothing()], Limits::default());
}
