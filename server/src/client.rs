//! A small blocking RESP2 client: for the demo's clients, the command-line tool, and tests.
//!
//! From the bottom: [`error`] says what went wrong, [`reply`] reads one reply, [`connection`] talks to one node,
//! [`slots`] remembers who owns which slot, [`cluster`] talks to all of them. It runs on ordinary threads and does not
//! know the engine, except for the number of a key's slot.
//!
//! Invariant: a command whose bytes may have reached a node, and whose reply did not arrive, is never sent again by
//! itself unless it only reads. Its outcome is unknown, and the caller is told so.

pub mod cluster;
pub mod connection;
pub mod error;
pub mod reply;
pub mod slots;

pub use cluster::{Answer, ClientConfig, ClusterClient, Command, Outcome};
pub use connection::{Connection, Pipeline, Timeouts};
pub use error::{ClientError, ErrorKind, ServerError};
pub use reply::Reply;
pub use slots::SlotMap;

#[cfg(test)]
pub(crate) mod test_server;
