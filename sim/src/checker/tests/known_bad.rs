//! Small histories that are known to be bad, by what they break.

use super::super::{Call, Condition, Kind, Reply};
use super::known::{Known, judge};
use super::{by, refused, unknown, window};

fn all_bad(kind: Kind, known: Vec<Known>) {
    for (name, history) in known {
        judge(name, &history, Some(kind));
    }
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
