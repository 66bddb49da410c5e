//! Batches: several writes to one slot that everybody has together or not at all.
//!
//! Invariants:
//! - A batch is decided and written under its slot's lock, taken once. A refused one has written nothing.
//! - Its records lie next to each other in one segment, are one frame of the log, and all but the last say that the write
//!   goes on: so a stream has them in one range, which its receiver takes as a whole, and so does recovery.
//! - What fits into a batch fits into a segment, a log frame and a message between nodes, as the longest record does.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::error::{BatchError, OpError};
use crate::keyspace::{check_key, check_value};
use crate::options::{Durability, Expiry};
use crate::record::{NewRecord, RECORD_BYTES_MAX, encoded_bytes};
use crate::slot::SlotState;
use crate::types::Slot;
use crate::value::Receipt;
use crate::wakes::Wakes;

/// The most records of one batch.
pub const BATCH_RECORDS_MAX: usize = 65_536;
/// The most bytes of one batch's records, their headers included. They are written under the slot's lock.
pub const BATCH_BYTES_MAX: usize = 64 << 20;

const _: () =
    assert!(BATCH_BYTES_MAX <= RECORD_BYTES_MAX, "whoever takes the longest record takes the longest batch");

/// Writes to one slot that are done together. Made by [`Engine::batch`]; nothing happens before [`commit`](Batch::commit).
///
/// Of several entries with the same key the last one counts, and the others are as if they had not been added.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    engine: Engine,
    slot: Slot,
    entries: Vec<Entry<'a>>,
    durability: Durability,
}

#[derive(Clone, Debug)]
struct Entry<'a> {
    keyspace: u8,
    key: Cow<'a, [u8]>,
    does: Does<'a>,
}

#[derive(Clone, Debug)]
enum Does<'a> {
    Set(Cow<'a, [u8]>, Expiry),
    Delete,
}

impl Engine {
    /// An empty batch for a slot.
    pub fn batch<'a>(&self, slot: Slot) -> Batch<'a> {
        Batch { engine: self.clone(), slot, entries: Vec::new(), durability: self.durability() }
    }
}

impl<'a> Batch<'a> {
    /// Gives a key a value, and no deadline.
    pub fn set(
        &mut self,
        keyspace: u8,
        key: impl Into<Cow<'a, [u8]>>,
        value: impl Into<Cow<'a, [u8]>>,
    ) -> &mut Self {
        self.set_expiring(keyspace, key, value, Expiry::Clear)
    }

    /// Gives a key a value and a deadline. With [`Expiry::Keep`] it is the one that the key has before the batch.
    pub fn set_expiring(
        &mut self,
        keyspace: u8,
        key: impl Into<Cow<'a, [u8]>>,
        value: impl Into<Cow<'a, [u8]>>,
        expiry: Expiry,
    ) -> &mut Self {
        self.entries.push(Entry { keyspace, key: key.into(), does: Does::Set(value.into(), expiry) });
        self
    }

    /// Removes a key. If it is not there then, nothing is written for it.
    pub fn delete(&mut self, keyspace: u8, key: impl Into<Cow<'a, [u8]>>) -> &mut Self {
        self.entries.push(Entry { keyspace, key: key.into(), does: Does::Delete });
        self
    }

    /// How durable it is to be; the engine's default unless said.
    pub fn durability(&mut self, durability: Durability) -> &mut Self {
        self.durability = durability;
        self
    }

    /// How many entries were added.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Does all of it. On return it is in memory and appended to the log, not yet on the disk: see [`Receipt`]. If there is
    /// nothing to write the receipt is for the slot's last write.
    ///
    /// The batch stays as it is: after an error that passes ([`BatchError::is_retryable`]) this can be called again.
    pub fn commit(&self) -> Result<Receipt, BatchError> {
        let entries = self.that_count()?;
        let bytes_max = entries.iter().map(|entry| entry.encoded_bytes_max()).sum();
        if entries.len() > BATCH_RECORDS_MAX {
            return Err(BatchError::TooManyRecords { records: entries.len() });
        }
        if bytes_max > BATCH_BYTES_MAX {
            return Err(BatchError::TooLong { bytes: bytes_max });
        }
        let slot = self.slot;
        let log = self.engine.home_log(slot);
        let reservation = log.reserve(bytes_max).map_err(|error| OpError::from_log(slot, error))?;
        let receipt = self.engine.write_locked(slot, self.durability, |held, wakes| {
            held.check_writable()?;
            let mut records = Vec::with_capacity(entries.len());
            for entry in &entries {
                records.extend(self.record_of(entry, held, wakes)?);
            }
            if !records.is_empty() {
                held.write_many(&mut records, log, reservation, wakes)?;
            }
            Ok(self.engine.receipt(held, self.durability))
        });
        Ok(receipt?)
    }

    /// The last entry of each key, in the order in which they were added, checked.
    fn that_count(&self) -> Result<Vec<&Entry<'a>>, BatchError> {
        let mut last = BTreeMap::new();
        for (at, entry) in self.entries.iter().enumerate() {
            check_key(&entry.key)?;
            if let Does::Set(value, _) = &entry.does {
                check_value(value)?;
            }
            let of = Slot::of_key(&entry.key);
            if of != self.slot {
                return Err(BatchError::ForeignKey { slot: self.slot, of, entry: at });
            }
            last.insert((entry.keyspace, &entry.key[..]), at);
        }
        let mut places: Vec<usize> = last.into_values().collect();
        places.sort_unstable();
        Ok(places.into_iter().map(|at| &self.entries[at]).collect())
    }

    /// What an entry comes to, if it comes to anything. A key that is looked up and is due is deleted first.
    fn record_of<'e>(
        &self,
        entry: &'e Entry<'a>,
        held: &mut SlotState,
        wakes: &mut Wakes,
    ) -> Result<Option<NewRecord<'e>>, OpError> {
        let Entry { keyspace, key, does } = entry;
        if let Does::Set(value, Expiry::Clear) = does {
            return Ok(Some(NewRecord::put(*keyspace, key, value, None)));
        }
        let wall_ms = || self.engine.unix_ms();
        let met = held.meet(*keyspace, key, wall_ms, self.engine.home_log(self.slot), wakes)?;
        if let Does::Set(value, expiry) = does
            && let (deadline_ms, false) = held.resolve(met.place, *expiry, wall_ms)
        {
            return Ok(Some(NewRecord::put(*keyspace, key, value, deadline_ms)));
        }
        Ok(met.place.map(|_| NewRecord::delete(*keyspace, key)))
    }
}

impl Entry<'_> {
    /// The bytes of its record, or more.
    fn encoded_bytes_max(&self) -> usize {
        match &self.does {
            Does::Set(value, expiry) => encoded_bytes(*expiry != Expiry::Clear, self.key.len(), value.len()),
            Does::Delete => encoded_bytes(false, self.key.len(), 0),
        }
    }
}
