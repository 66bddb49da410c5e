//! What can go wrong, as plain data: how a power cut loses bytes, how a disk fails, how a link behaves.

/// What a power cut leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerLoss {
    /// Nothing that was not synced survives.
    All,
    /// The seed decides for each unsynced 512-byte sector, each length and each change of a directory whether it has
    /// reached the disk. Of the changes of one directory those that survive are the first ones.
    Seeded,
}

/// How the disk of one machine fails. The default is a disk without faults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// One sync of a file or a directory in so many fails with EIO; 0 is never. The pages that a failed sync covered
    /// are clean afterwards, and not on the disk: a later sync succeeds without them.
    pub sync_fails_one_in: u32,
    /// One write in so many fails with EIO, perhaps after a first part of it; 0 is never.
    pub write_fails_one_in: u32,
    /// One read in so many fails with EIO; 0 is never.
    pub read_fails_one_in: u32,
    /// One sync or write in so many is slow; 0 is never.
    pub slow_one_in: u32,
    /// What a slow one takes beside the usual, in nanoseconds, from and to.
    pub slow_ns: (u64, u64),
    /// Writes and creations that need more than this fail with ENOSPC. Counted are whole pages of all files that have
    /// a name or an open handle, zeros and holes included.
    pub capacity_bytes: Option<u64>,
}

/// How the network from one machine to another one behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkFaults {
    /// What a chunk takes, in nanoseconds, from and to.
    pub latency_ns: (u64, u64),
    /// One chunk in so many is lost and comes late, by its retransmission; 0 is never. Order is kept.
    pub loss_one_in: u32,
    /// How many bytes a second go through, over all connections together. None is no limit.
    pub bytes_per_s: Option<u64>,
}

/// The latency of a link without faults.
pub(super) const CHUNK_NS: (u64, u64) = (15_000, 150_000);

impl Default for LinkFaults {
    /// A link without faults.
    fn default() -> Self {
        Self { latency_ns: CHUNK_NS, loss_one_in: 0, bytes_per_s: None }
    }
}
