//! Clearing: all keys of a keyspace, or of a slot, go at once.
//!
//! A clear is one logged record per slot and keyspace, however many keys there are, and is streamed like any other. A
//! keyspace, or a slot, that has no keys takes none.
//!
//! Cost: where a slot's keyspace is the only one with keys there, nothing by keys under the lock. Where it is not, one walk
//! over the index of the slot, under its lock. Clearing a whole slot walks once for each of its keyspaces but the last.

use crate::engine::Engine;
use crate::error::{ClearError, OpError};
use crate::keyspace::Keyspace;
use crate::options::Durability;
use crate::record::{NewRecord, RECORD_HEADER_BYTES};
use crate::types::Slot;
use crate::value::Receipt;

/// The most keyspaces that a slot has keys of.
const KEYSPACES: usize = 1 << u8::BITS;

/// What [`Keyspace::clear`] did.
#[derive(Clone, Debug, Default)]
pub struct Cleared {
    /// Live keys that went, those that were due and not deleted yet among them.
    pub keys: u64,
    /// One for each slot that had any, in the order of their numbers.
    pub receipts: Vec<Receipt>,
}

impl Engine {
    /// Removes all keys of a slot, of all keyspaces at once, and returns how many there were. If there were none nothing is
    /// written, and the receipt is for the slot's last write.
    pub fn clear_slot(&self, slot: Slot) -> Result<(u64, Receipt), OpError> {
        self.clear_in(slot, None, self.durability())
    }

    fn clear_in(
        &self,
        slot: Slot,
        only: Option<u8>,
        durability: Durability,
    ) -> Result<(u64, Receipt), OpError> {
        let log = self.home_log(slot);
        let records_max = if only.is_some() { 1 } else { KEYSPACES };
        let reservation =
            log.reserve(records_max * RECORD_HEADER_BYTES).map_err(|error| OpError::from_log(slot, error))?;
        self.write_locked(slot, durability, |held, wakes| {
            held.check_writable()?;
            let (mut keys, mut records) = (0, Vec::new());
            for (keyspace, of_keyspace, _) in held.store.keyspaces() {
                if only.is_none_or(|only| only == keyspace) {
                    keys += of_keyspace;
                    records.push(NewRecord::clear(keyspace));
                }
            }
            if !records.is_empty() {
                held.write_many(&mut records, log, reservation, wakes)?;
            }
            Ok((keys, self.receipt(held, durability)))
        })
    }
}

impl Keyspace {
    /// Removes all keys that this keyspace has in a slot, and returns how many there were. If there were none nothing is
    /// written, and the receipt is for the slot's last write.
    pub fn clear_slot(&self, slot: Slot) -> Result<(u64, Receipt), OpError> {
        self.engine().clear_in(slot, Some(self.number()), self.durability())
    }

    /// Removes all keys that this keyspace has on the slots that are served here, one slot after the other: it is not one
    /// step. Keys that are set meanwhile may stay or go. Where a slot cannot be written it ends; see [`ClearError`].
    pub fn clear(&self) -> Result<Cleared, ClearError> {
        let mut cleared = Cleared::default();
        for (slot, cell) in self.engine().known_slots() {
            let has_keys = {
                let held = cell.lock();
                held.gate().serves_reads() && held.store.keys_in(self.number()).0 > 0
            };
            if !has_keys {
                continue;
            }
            match self.clear_slot(slot) {
                Ok((0, _)) => {}
                Ok((keys, receipt)) => {
                    cleared.keys += keys;
                    cleared.receipts.push(receipt);
                }
                // Somebody else serves it since.
                Err(OpError::NotOwned { .. }) => {}
                Err(source) => return Err(ClearError { cleared, source }),
            }
        }
        Ok(cleared)
    }
}
