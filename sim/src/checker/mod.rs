//! Whether what clients saw of one key can be explained by operations that took effect one at a time.
//!
//! The key is a register: absent, or a value with or without a deadline. A history of it is linearizable if every operation
//! that returned can be given one moment between its invocation and its reply, so that in the order of these moments all
//! replies are right. What makes it more than a textbook's register:
//! - An operation of unknown outcome has its moment any time after its invocation, or none at all.
//! - A refused operation has none.
//! - A deadline is a window of ideal time, since the owner's clock is not exact. A value turns absent at some moment in it.
//! - Operations of one client that follow each other within one nanosecond are in order; those of two clients are not.
//!
//! | File | What it is |
//! |---|---|
//! | `history` | Operations and replies, as clients see them |
//! | `register` | The key, and what an operation needs of it and does to it |
//! | `quick` | Direct checks with a name for what was broken, first |
//! | `steps` | What must be in the order, and what may be |
//! | `timetable` | When the search must decide what |
//! | `search`, `agenda`, `seen` | The search for an order, and why it misses none |
//! | `explain` | A violation in words |
//! | `minimise` | The few operations of a violation that show it |
//!
//! It does not know that there is a cluster, or other keys: linearizability of each key is that of all of them.

mod agenda;
mod explain;
mod history;
mod minimise;
mod quick;
mod register;
mod search;
mod seen;
mod steps;
mod timetable;

#[cfg(test)]
mod tests;

pub use explain::{Explanation, Kind};
pub use history::{Call, Condition, Expiry, Operation, Outcome, Reply};
pub use minimise::minimise;

use search::{Found, search};
use timetable::Timetable;

/// How much a search may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Configurations to visit, at some hundred bytes each; beyond, the verdict is `Undecided`.
    pub configurations_max: usize,
}

/// What the checker says about a history.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none.
    Violation(Explanation),
    /// The search reached its limit; or more than 128 operations were outstanding at one time, or more than 65,535 are of
    /// unknown outcome, and there was no search.
    Undecided {
        /// The configurations that it visited.
        configurations: usize,
    },
}

impl Default for Limits {
    /// Enough for some thousand operations with ten at a time: a good history needs a few for each operation, a bad one up
    /// to some hundred.
    fn default() -> Limits {
        Limits { configurations_max: 500_000 }
    }
}

/// Judges the history of one key that was absent at its beginning. The operations are in any order, but those of one client
/// in the order in which it issued them.
///
/// # Panics
///
/// If an operation ended before it was invoked, a deadline's window ends before it begins, or a time is `u64::MAX`.
pub fn check(operations: &[Operation], limits: Limits) -> Verdict {
    operations.iter().for_each(Operation::assert_recordable);
    if let Some(explanation) = quick::violation(operations) {
        return Verdict::Violation(explanation);
    }
    let table = Timetable::new(operations, None);
    match search(&table, limits.configurations_max) {
        Found::Order => Verdict::Linearizable,
        Found::NoOrder(stuck) => Verdict::Violation(explain::no_order(operations, &table, &stuck)),
        Found::GaveUp { configurations } => Verdict::Undecided { configurations },
    }
}
