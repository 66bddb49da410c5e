//! What all connections of a node share: their number, and the memory that large requests hold.
//!
//! Invariant: a permit or a share is given back exactly once, when its guard is dropped.

use lockgate_runtime::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Connections of a node, unless stated otherwise.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Bytes that all connections of a node together may hold in requests that outgrew their small buffers, unless
/// stated otherwise: 4 GiB.
pub const LARGE_INPUT_BYTES_MAX: usize = 4 << 30;

/// The limits of one node; clones share the counts. One value is passed to the listeners of all cores.
#[derive(Debug, Clone)]
pub struct Limits(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    connections_max: usize,
    connections: AtomicUsize,
    large_input_bytes_max: usize,
    large_input_bytes: AtomicUsize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(CONNECTIONS_MAX, LARGE_INPUT_BYTES_MAX)
    }
}

impl Limits {
    /// Limits of this many connections, and bytes in large requests.
    pub fn new(connections_max: usize, large_input_bytes_max: usize) -> Self {
        Self(Arc::new(Counts {
            connections_max,
            connections: AtomicUsize::new(0),
            large_input_bytes_max,
            large_input_bytes: AtomicUsize::new(0),
        }))
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Bytes held by large requests now.
    pub fn large_input_bytes(&self) -> usize {
        self.0.large_input_bytes.load(Ordering::Relaxed)
    }

    /// Room for one more connection, or None.
    pub(super) fn connect(&self) -> Option<Permit> {
        take(&self.0.connections, 1, self.0.connections_max).then(|| Permit(self.clone()))
    }

    /// A share of the memory for large requests, empty at first.
    pub(super) fn large_input(&self) -> LargeInput {
        LargeInput { limits: self.clone(), held: 0 }
    }
}

/// Adds `amount` unless that would exceed `max`. Only the count itself matters, so relaxed order is enough.
fn take(count: &AtomicUsize, amount: usize, max: usize) -> bool {
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            now.checked_add(amount).filter(|sum| *sum <= max)
        })
        .is_ok()
}

/// One connection's place.
#[derive(Debug)]
pub(super) struct Permit(Limits);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection's share of the memory for large requests.
#[derive(Debug)]
pub(super) struct LargeInput {
    limits: Limits,
    held: usize,
}

impl LargeInput {
    /// Holds `bytes` from now on, more or fewer than before. False (and unchanged) if the node has no room.
    #[must_use]
    pub(super) fn hold(&mut self, bytes: usize) -> bool {
        let counts = &self.limits.0;
        if bytes > self.held {
            if !take(&counts.large_input_bytes, bytes - self.held, counts.large_input_bytes_max) {
                return false;
            }
        } else {
            counts.large_input_bytes.fetch_sub(self.held - bytes, Ordering::Relaxed);
        }
        self.held = bytes;
        true
    }
}

impl Drop for LargeInput {
    fn drop(&mut self) {
        let _ = self.hold(0);
    }
}
