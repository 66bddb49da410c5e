//! Small histories whose verdict is known. Each is judged by the checker, by its search alone, and by brute force.

use super::super::{Call, Condition, Kind, Limits, Operation, Reply, Verdict, check};
use super::{brute, by, is_linearizable_by_search, refused, unknown, window};
type Known = (&'static str, Vec<Operation>);

fn judge(name: &str, history: &[Operation], expected: Option<Kind>) {
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

fn all_bad(kind: Kind, known: Vec<Known>) {
    for (name, history) in known {
        judge(name, &history, Some(kind));
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

#[test]
fn values_from_nowhere() {
    all_bad(
        Kind::Invention,
        vec![
            ("nobody wrote it", vec![by(1, 0, 1).set(1), by(2, 2, 3).get(2)]),
            ("it was read before its write", vec![by(2, 0, 1).get(1), by(1, 2, 3).set(1)]),
            ("before its write of unknown outcome", vec![by(2, 0, 1).get(1), unknown(1, 2).set(1)]),
            ("a compare-and-set found it", vec![by(1, 0, 1).set(1), by(2, 2, 3).swap(7, 8, true)]),
        ],
    );
    all_bad(
        Kind::RefusedTookEffect,
        vec![
            ("refused, and seen", vec![refused(1, 0, 1).set(1), by(2, 2, 3).get(1)]),
            ("refused, and seen before the refusal", vec![refused(1, 0, 9).set(1), by(2, 2, 3).get(1)]),
            (
                "told that it was not set",
                vec![
                    by(1, 0, 1).set(1),
                    by(2, 2, 3).set_when(Condition::IfAbsent, 2, false),
                    by(3, 4, 5).get(2),
                ],
            ),
        ],
    );
}

#[test]
fn reads_that_go_back() {
    all_bad(
        Kind::StaleRead,
        vec![
            (
                "read after its replacement was acknowledged, before that was seen",
                vec![by(1, 0, 1).set(1), by(1, 2, 3).set(2), by(2, 4, 5).get(1), by(2, 6, 7).get(2)],
            ),
            (
                "read after its replacement, with others at the same time",
                vec![
                    by(1, 0, 1).set(1),
                    by(1, 2, 3).set(2),
                    by(3, 2, 9).set(3),
                    by(2, 4, 5).get(1),
                    by(2, 10, 11).get(3),
                ],
            ),
            (
                "a compare-and-set failed although the value was equal all the time",
                vec![by(1, 0, 1).set(1), by(2, 2, 3).swap(1, 2, false), by(3, 4, 5).get(1)],
            ),
            (
                "the new value was read during its write, then the old one",
                vec![
                    by(1, 0, 1).set(1),
                    by(1, 2, 19).set(2),
                    by(2, 3, 4).get(2),
                    by(3, 5, 6).get(1),
                    by(2, 7, 8).get(2),
                ],
            ),
            (
                "the same, with a write of unknown outcome",
                vec![
                    by(1, 0, 1).set(1),
                    unknown(1, 2).set(2),
                    by(2, 3, 4).get(2),
                    by(3, 5, 6).get(1),
                    by(2, 7, 8).get(2),
                ],
            ),
            (
                "a new deadline hides no write",
                vec![
                    by(1, 0, 2).set(1),
                    by(2, 3, 9).set(2),
                    by(3, 4, 5).expire(window(50, 60), true),
                    by(4, 12, 13).get(1),
                ],
            ),
            (
                "absent after the write was acknowledged, then there",
                vec![by(1, 0, 1).set(1), by(2, 2, 3).get_nothing(), by(2, 4, 5).get(1)],
            ),
        ],
    );
}

#[test]
fn writes_that_are_gone() {
    let absent = Condition::IfAbsent;
    all_bad(
        Kind::LostWrite,
        vec![
            ("acknowledged, and not there", vec![by(1, 0, 1).set(1), by(2, 2, 3).get_nothing()]),
            (
                "the value before is there for good",
                vec![by(1, 0, 1).set(1), by(1, 2, 3).set(2), by(2, 4, 5).get(1), by(2, 6, 7).get(1)],
            ),
            (
                "of unknown outcome, seen, and gone with nothing to explain it",
                vec![unknown(1, 0).set(1), by(2, 2, 3).get(1), by(2, 4, 5).get_nothing()],
            ),
            (
                "a compare-and-set found what another had replaced",
                vec![by(1, 0, 1).set(1), by(1, 2, 3).swap(1, 2, true), by(2, 4, 5).swap(1, 3, true)],
            ),
            ("a delete found nothing", vec![by(1, 0, 1).set(1), by(2, 2, 3).delete(false)]),
            (
                "set twice although only if absent",
                vec![by(1, 0, 1).set_when(absent, 1, true), by(2, 2, 3).set_when(absent, 2, true)],
            ),
            (
                "the deadline was that of the value before",
                vec![
                    by(1, 0, 1).set_until(1, window(10, 12)),
                    by(1, 2, 3).set(2),
                    by(2, 20, 21).get_nothing(),
                ],
            ),
            (
                "the other write came before",
                vec![by(1, 0, 1).set(1), by(2, 2, 3).set(2), by(1, 4, 5).delete(false)],
            ),
        ],
    );
}

#[test]
fn keys_that_come_back() {
    all_bad(
        Kind::Resurrection,
        vec![
            (
                "read after its delete was acknowledged",
                vec![by(1, 0, 1).set(1), by(1, 2, 3).delete(true), by(2, 4, 5).get(1)],
            ),
            (
                "of unknown outcome, seen, deleted, seen again",
                vec![unknown(1, 0).set(1), by(2, 2, 3).get(1), by(2, 4, 5).delete(true), by(3, 6, 7).get(1)],
            ),
            (
                "deleted by an unknown delete as somebody saw, and back",
                vec![
                    by(1, 0, 1).set(1),
                    unknown(2, 2).delete(true),
                    by(3, 4, 5).get_nothing(),
                    by(3, 6, 7).get(1),
                ],
            ),
            (
                "seen again after it was seen expired",
                vec![
                    by(1, 0, 1).set_until(1, window(10, 40)),
                    by(2, 12, 13).get(1),
                    by(2, 14, 15).get_nothing(),
                    by(2, 16, 17).get(1),
                ],
            ),
        ],
    );
}

#[test]
fn wrong_deadlines() {
    all_bad(
        Kind::Expired,
        vec![
            (
                "gone before the window",
                vec![by(1, 0, 1).set_until(1, window(10, 20)), by(2, 8, 9).get_nothing()],
            ),
            ("seen after the window", vec![by(1, 0, 1).set_until(1, window(10, 20)), by(2, 21, 22).get(1)]),
            (
                "of unknown outcome, seen after the window",
                vec![unknown(1, 0).set_until(1, window(10, 20)), by(2, 21, 22).get(1)],
            ),
        ],
    );
    all_bad(
        Kind::NotLinearizable,
        vec![
            (
                "seen after a later deadline too",
                vec![
                    by(1, 0, 1).set_until(1, window(10, 20)),
                    by(1, 2, 3).expire(window(30, 40), true),
                    by(2, 41, 42).get(1),
                ],
            ),
            (
                "the compare-and-set that would have kept it came too late",
                vec![
                    by(1, 0, 1).set_until(1, window(10, 12)),
                    unknown(2, 13).swap(1, 2, true),
                    by(3, 50, 51).delete(true),
                ],
            ),
        ],
    );
}

#[test]
fn replies_that_no_order_explains() {
    all_bad(
        Kind::NotLinearizable,
        vec![
            (
                "two compare-and-sets at once found one value",
                vec![by(1, 0, 1).set(1), by(1, 2, 9).swap(1, 2, true), by(2, 2, 9).swap(1, 3, true)],
            ),
            (
                "two at once wrote only if absent",
                vec![
                    by(1, 0, 9).set_when(Condition::IfAbsent, 1, true),
                    by(2, 0, 9).set_when(Condition::IfAbsent, 2, true),
                ],
            ),
            (
                "wrote only if present, into nothing",
                vec![by(1, 0, 9).set_when(Condition::IfPresent, 1, true)],
            ),
            (
                "two deletes of one value",
                vec![by(1, 0, 1).set(1), by(2, 2, 9).delete(true), by(3, 2, 9).delete(true)],
            ),
            ("a deadline for nothing", vec![by(1, 0, 1).expire(window(9, 10), true)]),
            (
                "two readers saw two writes in different orders",
                vec![
                    by(1, 0, 30).set(1),
                    by(2, 0, 30).set(2),
                    by(3, 2, 3).get(1),
                    by(3, 4, 25).get(2),
                    by(4, 2, 23).get(2),
                    by(4, 24, 26).get(1),
                ],
            ),
            (
                "its own write, in the same nanosecond, was not there",
                vec![by(1, 0, 5).set(1), by(1, 5, 6).get_nothing()],
            ),
            (
                "a client's next write, in the same nanosecond, came before its read",
                vec![by(1, 0, 5).get(3), by(1, 5, 9).set(2), by(2, 4, 5).set(3), by(3, 10, 11).get(3)],
            ),
            (
                "a write whose deadline is over came before one only if present, or after it",
                vec![
                    by(1, 0, 1).set(1),
                    by(2, 10, 20).set_until(2, window(0, 1)),
                    by(3, 10, 20).set_when(Condition::IfPresent, 3, true),
                    by(4, 25, 26).get(3),
                ],
            ),
            (
                "one unknown write for two deletes",
                vec![unknown(1, 0).set(1), by(2, 1, 2).delete(true), by(2, 3, 4).delete(true)],
            ),
            (
                "a write that says that it did not write",
                vec![by(1, 0, 1).set_when(Condition::Always, 1, false)],
            ),
            ("a reply to another call", vec![by(1, 0, 1).did(Call::Get, Reply::Deleted(true))]),
        ],
    );
}
