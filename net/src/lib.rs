//! Links between nodes, slot streams over them, and the RESP listener for clients.
//!
//! - [`link`]: framed, checked, ordered messages between two nodes that know each other's identity, and
//!   [`link::stream`]: what carries a slot's records from one engine to another.
//! - [`resp`]: the RESP2 codec, and a listener that runs a [`resp::Service`].
//!
//! What this crate does not know: shards, jobs, who owns a slot. It moves records between engines and requests to
//! services; others decide which.

pub mod link;
pub mod resp;
mod stop;

pub use link::stream;
pub use stop::Stop;
