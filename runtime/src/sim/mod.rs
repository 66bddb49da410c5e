//! The seeded twin of the machine: nodes with their cores, disks and sockets, driven from one thread in virtual time.
//!
//! The same executor runs the same node code. What differs is below it: which core runs next, how long an operation
//! takes, and how many bytes a receive gets are drawn from the seed; time stands still while a task is polled.
//!
//! | Module | What it is |
//! |---|---|
//! | `driver`, `node` | What happens next; what a process knows of the world |
//! | `control`, `faults`, `middlebox`, `breakpoints` | What can go wrong, and the handle by which tasks have it happen |
//! | `world`, `machine`, `clock` | What all share: ideal time, events, random numbers; one machine |
//! | `disk`, `inode`, `pages`, `names` | A disk: files, their bytes, its directories |
//! | `disk_call`, `file`, `disk_fs` | Operations of a disk, and what tasks call for them |
//! | `image` | What a disk was at some moment, and what an outage at that moment would leave of it |
//! | `net`, `connect`, `link`, `net_faults`, `socket` | Connections, how they come and break, and what tasks call |
//!
//! Invariants:
//! - The same seed and the same code give the same history, see [`Control::trace_hash`]: nothing here depends on
//!   addresses, on hash order, on the real clock or on threads.
//! - The handles are Send + Sync like the real ones (the world is behind a lock that is never contended); what belongs
//!   to a core stays in [`Sim`], which is neither.
//! - Completions are events of the world: effects happen and wakers run when the driver reaches their time.
//!
//! What the simulation does not cover: foreign threads, and races within one poll.

mod breakpoints;
mod clock;
mod connect;
mod control;
mod disk;
mod disk_call;
pub(crate) mod disk_fs;
mod driver;
mod faults;
mod file;
mod image;
mod inode;
mod link;
mod machine;
mod middlebox;
mod names;
mod net;
mod net_faults;
mod node;
mod pages;
mod random;
mod socket;
mod world;

pub use self::control::Control;
pub use self::driver::{Ran, Sim};
pub use self::faults::{DiskFaults, LinkFaults, PowerLoss};
pub(crate) use self::file::SimFile;
pub use self::image::{DiskImage, Outage};
pub use self::middlebox::{Flow, Middlebox, Piece};
pub(crate) use self::node::{NodePort, SimNode};
pub(crate) use self::socket::{SimListener, SimStream};
