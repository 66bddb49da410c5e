//! Operations on keys: in place, under the key's slot's lock, from any thread, and never blocking on a disk.
//!
//! Invariants: log space is reserved before a slot's lock is taken (`update`, which learns the value's length only under
//! the lock, reserves there: reserving never waits); one slot's lock is held at a time; every write is visible to every
//! later read of any thread once the call returns.

use lockgate_runtime::sync::MutexGuard;

use crate::engine::Engine;
use crate::error::OpError;
use crate::record::{Kind, encoded_bytes};
use crate::slot::SlotState;
use crate::types::{KEY_BYTES_MAX, LogTicket, Slot, VALUE_BYTES_MAX};
use crate::value::{Read, Receipt, Update, Value};

/// One of the 256 name spaces of keys. Every slot carries all of them.
#[derive(Clone)]
pub struct Keyspace {
    engine: Engine,
    number: u8,
}

impl std::fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyspace({})", self.number)
    }
}

impl Keyspace {
    pub(crate) fn new(engine: Engine, number: u8) -> Keyspace {
        Keyspace { engine, number }
    }

    /// Its number.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>, OpError> {
        let (_, held) = self.readable(key)?;
        Ok(self.value_in(&held, key))
    }

    /// Whether a key is there.
    pub fn exists(&self, key: &[u8]) -> Result<bool, OpError> {
        let (_, held) = self.readable(key)?;
        Ok(held.store.find(self.number, key).is_some())
    }

    /// The value of a key, with what an answer that is held back has to wait for.
    pub fn read(&self, key: &[u8]) -> Result<Read, OpError> {
        let (slot, held) = self.readable(key)?;
        Ok(self.read_in(slot, &held, key))
    }

    /// As [`Keyspace::read`], whatever the slot's gate is, as long as it has one: what a replica has, however old.
    pub fn peek(&self, key: &[u8]) -> Result<Read, OpError> {
        check_key(key)?;
        let slot = Slot::of_key(key);
        let held = self.engine.slot(slot).lock();
        match held.gate() {
            gate @ crate::Gate::Absent => Err(OpError::NotOwned { slot, gate }),
            _ => Ok(self.read_in(slot, &held, key)),
        }
    }

    /// The values of many keys, in their order. Each slot's lock is taken once, one at a time: keys of different slots
    /// are not read at one instant.
    pub fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Option<Value>>, OpError> {
        let mut order = Vec::with_capacity(keys.len());
        for (at, key) in keys.iter().enumerate() {
            check_key(key)?;
            order.push((Slot::of_key(key), at));
        }
        order.sort_unstable();
        let mut values = vec![None; keys.len()];
        for of_slot in order.chunk_by(|a, b| a.0 == b.0) {
            let held = self.engine.slot(of_slot[0].0).lock();
            held.check_readable()?;
            for (_, at) in of_slot {
                values[*at] = self.value_in(&held, keys[*at]);
            }
        }
        Ok(values)
    }

    /// Gives a key a value. On return it is in memory and appended to the log, not yet on the disk: see [`Receipt`].
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<Receipt, OpError> {
        check_key(key)?;
        check_value(value)?;
        let slot = Slot::of_key(key);
        let log = self.engine.home_log(slot);
        let reservation =
            log.reserve(encoded_bytes(key.len(), value.len())).map_err(|e| OpError::from_log(slot, e))?;
        let mut held = self.engine.slot(slot).lock();
        held.check_writable()?;
        let wakes = held.write(Kind::Put, (self.number, key, value), log, reservation)?;
        let receipt = self.receipt(slot, &held);
        drop(held);
        wakes.wake();
        Ok(receipt)
    }

    /// Removes a key. False: it was not there, nothing was written, and the receipt is for the slot's last write.
    pub fn delete(&self, key: &[u8]) -> Result<(bool, Receipt), OpError> {
        check_key(key)?;
        let slot = Slot::of_key(key);
        let log = self.engine.home_log(slot);
        let reservation = log.reserve(encoded_bytes(key.len(), 0)).map_err(|e| OpError::from_log(slot, e))?;
        let mut held = self.engine.slot(slot).lock();
        held.check_writable()?;
        if held.store.find(self.number, key).is_none() {
            return Ok((false, self.receipt(slot, &held)));
        }
        let wakes = held.write(Kind::Delete, (self.number, key, &[]), log, reservation)?;
        let receipt = self.receipt(slot, &held);
        drop(held);
        wakes.wake();
        Ok((true, receipt))
    }

    /// Reads and writes a key in one step: no other write of the slot comes between.
    ///
    /// `decide` runs under the slot's lock: it must be short, and must not call the engine.
    pub fn update(
        &self,
        key: &[u8],
        decide: impl FnOnce(Option<&[u8]>) -> Update,
    ) -> Result<Receipt, OpError> {
        check_key(key)?;
        let slot = Slot::of_key(key);
        let log = self.engine.home_log(slot);
        let mut held = self.engine.slot(slot).lock();
        held.check_writable()?;
        let old = held.store.find(self.number, key);
        let update = decide(old.map(|place| held.store.record_at(place).value));
        let (kind, value) = match (update, old) {
            (Update::Put(value), _) => (Kind::Put, value),
            (Update::Delete, Some(_)) => (Kind::Delete, Vec::new()),
            (Update::Keep, _) | (Update::Delete, None) => return Ok(self.receipt(slot, &held)),
        };
        check_value(&value)?;
        let reservation =
            log.reserve(encoded_bytes(key.len(), value.len())).map_err(|e| OpError::from_log(slot, e))?;
        let wakes = held.write(kind, (self.number, key, &value), log, reservation)?;
        let receipt = self.receipt(slot, &held);
        drop(held);
        wakes.wake();
        Ok(receipt)
    }

    /// How many live keys this keyspace has on the slots that are served here. Slots are counted one after the other.
    pub fn len(&self) -> u64 {
        let mut keys = 0;
        for slot in Slot::all() {
            let held = self.engine.slot(slot).lock();
            if held.gate().serves_reads() {
                keys += held.store.keys_in(self.number);
            }
        }
        keys
    }

    /// Whether this keyspace has no live key on the slots that are served here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn readable(&self, key: &[u8]) -> Result<(Slot, MutexGuard<'_, SlotState>), OpError> {
        check_key(key)?;
        let slot = Slot::of_key(key);
        let held = self.engine.slot(slot).lock();
        held.check_readable()?;
        Ok((slot, held))
    }

    fn value_in(&self, held: &SlotState, key: &[u8]) -> Option<Value> {
        held.store.find(self.number, key).map(|place| Value::of(&held.store, place))
    }

    fn read_in(&self, slot: Slot, held: &SlotState, key: &[u8]) -> Read {
        let value = self.value_in(held, key);
        let version = value.as_ref().map_or(held.version(), Value::version);
        Read { value, slot, version, position: self.ticket(slot, held) }
    }

    fn ticket(&self, slot: Slot, held: &SlotState) -> LogTicket {
        LogTicket { core: self.engine.home_core(slot) as u32, position: held.position() }
    }

    fn receipt(&self, slot: Slot, held: &SlotState) -> Receipt {
        Receipt {
            engine: self.engine.clone(),
            slot,
            version: held.version(),
            ticket: self.ticket(slot, held),
        }
    }
}

fn check_key(key: &[u8]) -> Result<(), OpError> {
    if key.len() > KEY_BYTES_MAX { Err(OpError::KeyTooLong { bytes: key.len() }) } else { Ok(()) }
}

fn check_value(value: &[u8]) -> Result<(), OpError> {
    if value.len() > VALUE_BYTES_MAX { Err(OpError::ValueTooLong { bytes: value.len() }) } else { Ok(()) }
}
