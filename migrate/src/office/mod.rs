//! Who may serve a shard, and how that passes on: leases, failure detection and failover, decided purely (R6, R12).
//!
//! Nothing here sends, waits or looks at a clock: messages and times come in, what to send or to propose goes out. The
//! driver in `node` executes. `holder` is a primary's side, `grantor` and `failover` are the control leader's.

mod failover;
mod grantor;
mod holder;
mod times;

#[cfg(test)]
mod tests;

pub use failover::{Failovers, FenceReport, Move, SlotPosition};
pub use grantor::{Ask, Grant, Grantor};
pub use holder::{LeaseAsk, LeaseHolder};
pub use times::{BadTimes, Times};
