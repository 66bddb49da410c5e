//! The seeded twin of the machine: nodes with their cores, disks and sockets, driven from one thread in virtual time.
//!
//! The same executor runs the same node code. What differs is below it: which core runs next, how long an operation
//! takes, and how many bytes a receive gets are drawn from the seed; time stands still while a task is polled.
//!
//! `world` holds what all nodes share (time, pending completions, the random numbers), `disk` and `net` are its parts,
//! `driver` chooses what happens next, `file`, `disk_fs` and `socket` are the operations that tasks call.
//!
//! Invariants:
//! - The same seed and the same code give the same schedule, see [`Sim::trace_hash`]: nothing here depends on
//!   addresses, on hash order, on the real clock or on threads.
//! - The handles are Send + Sync like the real ones (the world is behind a lock that is never contended); what belongs
//!   to a core stays in [`Sim`], which is neither.
//! - Completions are events of the world: effects happen and wakers run when the driver reaches their time.
//!
//! What the simulation does not cover: foreign threads, and races within one poll.

mod disk;
pub(crate) mod disk_fs;
mod driver;
mod file;
mod net;
mod node;
mod random;
mod socket;
mod world;

pub use self::driver::Sim;
pub(crate) use self::file::SimFile;
pub(crate) use self::node::{NodePort, SimNode};
pub(crate) use self::socket::{SimListener, SimStream};
