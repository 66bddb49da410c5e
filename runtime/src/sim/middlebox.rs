//! A box in the middle of the network that sees all bytes, and may change, split, delay or reorder them.

use crate::sync::Arc;

/// One direction of one connection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The connection: no two of a simulation have the same number.
    pub connection: u64,
    /// Whether these are the bytes that the connecting side sends.
    pub is_from_connector: bool,
    /// The name of the machine that sends.
    pub from: Arc<str>,
    /// The name of the machine that receives.
    pub to: Arc<str>,
    /// The port that was connected to, whatever the direction.
    pub port: u16,
}

/// Bytes that are to arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What they take beside the latency of the link, in nanoseconds.
    pub delay_ns: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Sees the bytes of all sends of all connections.
pub trait Middlebox {
    /// `bytes` are sent in `flow`: the pieces that are to arrive instead. Pieces arrive in the order of their times,
    /// those of one time in the order in which they were given. `draw` gives random numbers from the seed.
    fn pass(&mut self, flow: &Flow, bytes: Vec<u8>, draw: &mut dyn FnMut() -> u64) -> Vec<Piece>;

    /// Nothing will be sent in `flow` any more.
    fn closed(&mut self, _flow: &Flow) {}
}
