//! Migration jobs: the pure machine at the source, and the barrier at the target.

mod barrier;
mod machine;

pub use barrier::{BarrierAcks, SlotFinal};
pub use machine::{Command, Event, JobLimits, JobMachine, Phase, Progress};
