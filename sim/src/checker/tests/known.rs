//! Small histories whose verdict is known; here the good ones, `known_bad` has the others. Each is judged by the checker, by its search alone, and by brute force.

use super::super::{Condition, Kind, Limits, Operation, Verdict, check};
use super::{brute, by, is_linearizable_by_search, refused, unknown, window};
pub(super) type Known = (&'static str, Vec<Operation>);

pub(super) fn judge(name: &str, history: &[Operation], expected: Option<Kind>) {
    let good = expected.is_none();
    assert_eq!(brute::is_linearizable(history), good, "by brute force: {name}");
    assert_eq!(is_linearizable_by_search(history), good, "by the search: {name}");
    match check(history, Limits::default()) {
        Verdict::Linearizable => assert!(good, "passed: {name}"),
        Verdict::Violation(why) => assert_eq!(Some(why.kind), expected, "{name}: {why}"),
        Verdict::Undecided { .. } => panic!("undecided: {name}"),
    }
}

fn all_good(known: Vec<Known>) {
    for (name, history) in known {
        judge(name, &history, None);
    }
}

#[test]
fn good_reads_and_writes() {
    all_good(vec![
        ("nothing happened", vec![]),
        ("absent at first", vec![by(1, 0, 1).get_nothing()]),
        ("written, then read", vec![by(1, 0, 1).set(1), by(2, 2, 3).get(1)]),
        ("read while written: not yet", vec![by(1, 0, 9).set(1), by(2, 1, 2).get_nothing()]),
        ("read while written: already", vec![by(1, 0, 9).set(1), by(2, 1, 2).get(1)]),
        (
            "two reads during a write, the old value and then the new one",
            vec![by(1, 0, 1).set(1), by(1, 2, 9).set(2), by(2, 3, 4).get(1), by(2, 5, 6).get(2)],
        ),
        (
            "two reads at once during a write differ",
            vec![by(1, 0, 1).set(1), by(1, 2, 9).set(2), by(2, 3, 7).get(2), by(3, 4, 8).get(1)],
        ),
        (
            "of two writes at once, the one invoked first may be last",
            vec![by(1, 0, 9).set(1), by(2, 1, 8).set(2), by(3, 10, 11).get(1)],
        ),
        (
            "three writes at once, seen one after the other",
            vec![
                by(1, 0, 20).set(1),
                by(2, 0, 20).set(2),
                by(3, 0, 20).set(3),
                by(4, 3, 4).get(2),
                by(4, 5, 6).get(3),
                by(4, 7, 8).get(1),
            ],
        ),
        (
            "written, deleted, written, deleted",
            vec![
                by(1, 0, 1).set(1),
                by(1, 2, 3).delete(true),
                by(1, 4, 5).delete(false),
                by(1, 6, 7).set(2),
                by(2, 8, 9).get(2),
                by(2, 10, 11).delete(true),
            ],
        ),
        (
            "a client that tried again wrote the same value twice",
            vec![
                by(1, 0, 1).set(1),
                by(2, 2, 3).delete(true),
                by(3, 4, 5).get_nothing(),
                by(1, 6, 7).set(1),
                by(3, 8, 9).get(1),
            ],
        ),
        (
            "two clients within one nanosecond, in either order",
            vec![by(1, 0, 5).set(1), by(2, 5, 6).get_nothing()],
        ),
    ]);
}

#[test]
fn good_unknown_outcomes() {
    all_good(vec![
        (
            "a write of unknown outcome is seen much later",
            vec![unknown(1, 0).set(1), by(2, 5, 6).get_nothing(), by(2, 100, 101).get(1)],
        ),
        ("a write of unknown outcome is never seen", vec![unknown(1, 0).set(1), by(2, 5, 6).get_nothing()]),
        (
            "it takes effect after a delete that found nothing",
            vec![unknown(1, 0).set(1), by(2, 10, 11).delete(false), by(2, 20, 21).get(1)],
        ),
        (
            "it replaces a value that was acknowledged later",
            vec![unknown(1, 0).set(1), by(2, 2, 3).set(2), by(3, 4, 5).get(2), by(3, 6, 7).get(1)],
        ),
        (
            "a delete of unknown outcome takes effect late",
            vec![
                by(1, 0, 1).set(1),
                unknown(2, 2).delete(true),
                by(3, 50, 51).get(1),
                by(3, 60, 61).get_nothing(),
            ],
        ),
        (
            "a value is seen, then one of unknown outcome is what a delete found",
            vec![
                by(1, 0, 1).set(1),
                by(2, 2, 3).delete(true),
                unknown(1, 2).set(2),
                by(2, 4, 5).delete(true),
                by(2, 6, 7).get_nothing(),
            ],
        ),
        (
            "a compare-and-set of unknown outcome links two values",
            vec![by(1, 0, 1).set(1), unknown(2, 2).swap(1, 2, true), by(3, 9, 10).swap(2, 3, true)],
        ),
        (
            "a refused write is not seen",
            vec![by(1, 0, 1).set(1), refused(2, 2, 3).set(2), by(3, 4, 5).get(1)],
        ),
        (
            "a deadline of unknown outcome explains an absence",
            vec![
                by(1, 0, 1).set(1),
                unknown(2, 2).expire(window(10, 12), true),
                by(3, 4, 5).get(1),
                by(3, 20, 21).get_nothing(),
            ],
        ),
    ]);
}

#[test]
fn good_conditions() {
    let (absent, present) = (Condition::IfAbsent, Condition::IfPresent);
    all_good(vec![
        (
            "a chain of compare-and-sets",
            vec![
                by(1, 0, 1).set(1),
                by(1, 2, 3).swap(1, 2, true),
                by(2, 4, 5).swap(2, 3, true),
                by(3, 6, 7).get(3),
            ],
        ),
        (
            "of two compare-and-sets at once, one",
            vec![by(1, 0, 1).set(1), by(1, 2, 9).swap(1, 2, true), by(2, 2, 9).swap(1, 3, false)],
        ),
        (
            "a compare-and-set failed while the value was away",
            vec![
                by(1, 0, 1).set(1),
                by(2, 2, 20).swap(1, 9, false),
                by(1, 3, 10).set(2),
                by(3, 11, 12).get(2),
            ],
        ),
        (
            "only if absent, again after a delete",
            vec![
                by(1, 0, 1).set_when(absent, 1, true),
                by(2, 2, 3).set_when(absent, 2, false),
                by(2, 4, 5).delete(true),
                by(2, 6, 7).set_when(absent, 3, true),
            ],
        ),
        (
            "only if present",
            vec![
                by(1, 0, 1).set_when(present, 1, false),
                by(1, 2, 3).set(2),
                by(1, 4, 5).set_when(present, 3, true),
                by(1, 6, 7).get(3),
            ],
        ),
    ]);
}

#[test]
fn good_deadlines() {
    all_good(vec![
        (
            "gone within the window",
            vec![by(1, 0, 1).set_until(1, window(10, 20)), by(2, 12, 13).get_nothing()],
        ),
        (
            "still there at the end of the window",
            vec![by(1, 0, 1).set_until(1, window(10, 20)), by(2, 20, 23).get(1)],
        ),
        (
            "there, gone, and gone for good",
            vec![
                by(1, 0, 1).set_until(1, window(10, 20)),
                by(2, 12, 13).get(1),
                by(2, 14, 15).get_nothing(),
                by(2, 16, 17).delete(false),
            ],
        ),
        (
            "a clock that may be late for ever",
            vec![by(1, 0, 1).set_until(1, window(10, u64::MAX)), by(2, 500, 501).get(1)],
        ),
        (
            "a write without a deadline takes it away",
            vec![by(1, 0, 1).set_until(1, window(10, 20)), by(1, 2, 3).set(2), by(2, 50, 51).get(2)],
        ),
        (
            "a later deadline",
            vec![
                by(1, 0, 1).set_until(1, window(10, 20)),
                by(1, 2, 3).expire(window(40, 50), true),
                by(2, 45, 46).get(1),
                by(2, 51, 52).get_nothing(),
            ],
        ),
        (
            "a later deadline, in the nanosecond of the write",
            vec![
                by(1, 5, 6).set_until(1, window(10, 12)),
                by(2, 4, 5).expire(window(20, 30), true),
                by(3, 25, 26).get(1),
            ],
        ),
        (
            "a later deadline, in the last nanosecond of the one before",
            vec![
                by(1, 5, 6).set_until(1, window(10, 12)),
                by(2, 12, 13).expire(window(20, 30), true),
                by(3, 25, 26).get(1),
            ],
        ),
        (
            "a deadline in the past deletes",
            vec![
                by(1, 10, 11).set(1),
                by(1, 12, 13).expire(window(0, 5), true),
                by(2, 14, 15).get_nothing(),
                by(1, 16, 17).expire(window(30, 31), false),
            ],
        ),
        (
            "a compare-and-set of unknown outcome took the deadline away just in time",
            vec![
                by(1, 0, 1).set_until(1, window(10, 12)),
                unknown(2, 2).swap(1, 2, true),
                by(3, 50, 51).delete(true),
            ],
        ),
        (
            "set only if absent once the value before had expired",
            vec![
                by(1, 0, 1).set_until(1, window(10, 20)),
                by(2, 11, 12).set_when(Condition::IfAbsent, 2, true),
                by(3, 13, 14).get(2),
            ],
        ),
        (
            "a write expired between its reply and a write only if absent, both at once",
            vec![
                by(1, 0, 30).set_until(1, window(5, 9)),
                by(2, 0, 30).set_when(Condition::IfAbsent, 2, true),
                by(3, 31, 32).get(2),
            ],
        ),
    ]);
}

/// Where a step that nobody will see, and that another covers, or may have, matters after all. A client goes on within the
/// nanosecond in most of them.
#[test]
fn good_covered_writes() {
    all_good(vec![
        (
            "the write that might have been covered is what the delete found",
            vec![by(2, 0, 2).set(2), by(3, 3, 4).delete(true), by(1, 0, 5).set(1), by(1, 5, 9).delete(true)],
        ),
        (
            "the write before it in the nanosecond was covered long ago",
            vec![by(4, 4, 5).get(9), by(2, 0, 2).set(2), by(1, 0, 5).set(1), by(1, 5, 9).swap(2, 9, true)],
        ),
        (
            "a write that only an unknown delete can make room for",
            vec![
                by(1, 0, 10).set(1),
                unknown(2, 0).delete(true),
                by(3, 0, 8).set_when(Condition::IfAbsent, 5, true),
                by(4, 11, 12).get(5),
            ],
        ),
        (
            "the deadline is that of a value which nobody saw",
            vec![
                by(1, 0, 1).set(1),
                unknown(2, 0).set(2),
                by(1, 2, 3).expire(window(20, 21), true),
                by(3, 10, 11).swap(1, 7, false),
                by(3, 30, 31).get_nothing(),
            ],
        ),
        (
            "a write is covered if the other waits, while one of unknown outcome stands in for it",
            vec![
                by(1, 0, 10).set(9),
                unknown(2, 0).set(8),
                by(3, 0, 4).set_when(Condition::IfAbsent, 7, false),
                by(4, 5, 20).set(1),
                by(3, 25, 26).get(9),
            ],
        ),
        (
            "written in time to be deleted after the deadline of what was there",
            vec![
                by(1, 0, 1).set_until(1, window(5, 6)),
                by(2, 2, 20).set(2),
                by(3, 10, 11).delete(true),
                by(3, 12, 20).delete(false),
            ],
        ),
    ]);
}
