//! Cores, rings, timers, files, sockets and randomness, and the simulated twin of all that.
//!
//! A node is the same code on both backends: io_uring (one pinned thread, one ring and one executor of local
//! futures per core) and a seeded simulation that drives all cores of all nodes from one thread in virtual time.
//! The public handles are concrete types with two variants each, so that no generic parameter infects their users.
//!
//! Invariants:
//! - Completions are queued and their wakers are run by the core's loop, never inline, so there is no recursion.
//! - A buffer belongs to its operation until the operation is complete, also when the future was dropped before.
//! - A wake-up of a parked core is never lost, and is sent once per dirty period, not once per wake.
//! - In the simulation, the same seed gives the same schedule (see [`sim::Control::trace_hash`]).
//!
//! What this crate does not know: slots, logs, clusters. It gives them a clock, a disk and a network.

mod buf;
mod clock;
mod context;
mod error;
mod event;
mod executor;
mod file;
mod foreign;
pub mod fs;
#[cfg(all(test, loom))]
mod loom_tests;
pub mod mutations;
mod net;
mod parking;
mod runtime;
pub mod sim;
pub mod sync;
mod time;
mod uring;
mod watermark;

use std::pin::Pin;

pub use buf::{IoBuf, give_back_memory};
pub use context::{core_index, current, now_ns, os_boot_id, random_u64, spawn, unix_ms};
pub use error::{Elapsed, Failed, OnCoreThread, RuntimeError, WaitError};
pub use event::{Event, Listen};
pub use executor::TaskHandle;
pub use file::{BlockingFile, DIRECT_ALIGN_BYTES, File, OpenOptions, WriteThenSyncError, direct_start};
pub use foreign::block_on_foreign;
pub use net::{TcpListener, TcpStream};
pub use runtime::{Runtime, RuntimeBuilder};
pub use time::{Sleep, sleep, timeout, yield_now};
pub use watermark::{Reached, WaitFor, Watermark};

/// What an operation returns that does not run often, in the place of an `async fn`: a future whose code was compiled where
/// it is made. An `async fn` is compiled anew in every crate that awaits it, with all that it awaits in turn: each
/// program, test and bench that opens an engine would compile most of one.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
