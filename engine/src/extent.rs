//! Long values, which have a piece of memory each: it is taken, filled and checksummed before the slot's lock.
//!
//! Under the lock only the record's version and its deadline are put in. CRC32C is linear, so the checksum of the whole
//! follows from those of the header and of the rest.

use lockgate_runtime::sync::Arc;

use crate::arena::{Arena, OutOfMemory};
use crate::chain::SEGMENT_BYTES_MAX;
use crate::record::{self, NewRecord};
use crate::segment::{DESCRIPTION_BYTES, Extent};

/// A record that lacks nothing but its version, and perhaps when it ends.
pub(crate) struct FilledRecord {
    extent: Extent,
    bytes: usize,
    rest: record::RestChecksum,
}

impl FilledRecord {
    /// Whether a record of so many bytes gets a piece of memory of its own.
    pub(crate) fn is_worth_it(bytes: usize) -> bool {
        bytes as u64 > SEGMENT_BYTES_MAX
    }

    /// Takes memory for a record, and fills it.
    pub(crate) fn new(arena: &Arc<Arena>, new: &NewRecord<'_>) -> Result<FilledRecord, OutOfMemory> {
        let bytes = new.encoded_bytes();
        let block = arena.allocate(DESCRIPTION_BYTES + bytes)?;
        let new = NewRecord { delta: 1, ..*new };
        let (extent, rest) = Extent::fill(block, bytes, |out| {
            record::encode(out, &new);
            record::RestChecksum::of(out, &new)
        });
        Ok(FilledRecord { extent, bytes, rest })
    }

    /// The same with this deadline. `None`: it has no room for one, or has room that would stay empty.
    pub(crate) fn with_deadline(self, deadline_ms: Option<u64>) -> Option<FilledRecord> {
        let rest = match (self.rest.deadline_ms(), deadline_ms) {
            (None, None) => self.rest,
            (Some(_), Some(deadline_ms)) => self.rest.with_deadline(deadline_ms),
            _ => return None,
        };
        Some(FilledRecord { rest, ..self })
    }

    /// How long it is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its memory, and what gives it its version.
    pub(crate) fn into_parts(self) -> (Extent, record::RestChecksum) {
        (self.extent, self.rest)
    }
}
