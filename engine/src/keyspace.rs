//! Operations on keys: in place, under the key's slot's lock, from any thread, and never blocking on a disk.
//!
//! Invariants: one slot's lock is held at a time; every write is visible to every later read of any thread once the call
//! returns. Log space for a plain set is reserved before its slot's lock is taken; where the length, or whether there is
//! anything to write, is learnt only under the lock, it is reserved there: reserving never waits.
//!
//! A key that is due is deleted, in the log too, by the first operation that looks it up (see `expiry.rs`). So a read may
//! meet with all that a write may meet with: a frozen slot, a log that is behind or has failed, memory that is full.

use std::borrow::Cow;
use std::ops::Deref;

use crate::arena::OutOfMemory;
use crate::engine::Engine;
use crate::error::OpError;
use crate::expiry::{Glance, Met};
use crate::extent::FilledRecord;
use crate::index::KeyHasher;
use crate::log::LogPosition;
use crate::options::{Deadline, Durability, Expiry, SetOptions, SetOutcome};
use crate::record::{Kind, NewRecord, Record, encoded_bytes};
use crate::segment::RecordOffset;
use crate::slot::SlotState;
use crate::store::Store;
use crate::types::{KEY_BYTES_MAX, LogTicket, Slot, VALUE_BYTES_MAX, Version};
use crate::value::{Followed, Read, Receipt, Update, Value};
use crate::wakes::Wakes;

/// One of the 256 name spaces of keys. Every slot carries all of them.
#[derive(Clone)]
pub struct Keyspace {
    pub(crate) engine: Engine,
    hasher: KeyHasher,
    number: u8,
    durability: Durability,
}

impl std::fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyspace({})", self.number)
    }
}

impl Keyspace {
    pub(crate) fn new(engine: Engine, hasher: KeyHasher, number: u8, durability: Durability) -> Keyspace {
        Keyspace { engine, hasher, number, durability }
    }

    /// The same keys; writes through this handle are of this durability.
    pub fn with_durability(self, durability: Durability) -> Keyspace {
        Keyspace { durability, ..self }
    }

    /// How durable writes through this handle are.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Its number.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// The value of a key.
    // Inlined, so that the value is made right where its user has it, and is not moved there.
    #[inline]
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>, OpError> {
        let mut found = Ok(None);
        self.get_into(key, &mut found);
        found
    }

    fn get_into(&self, key: &[u8], found: &mut Result<Option<Value>, OpError>) {
        if let Ok(out) = found
            && let Err(error) = self.try_get_into(key, out)
        {
            *found = Err(error);
        }
    }

    /// As [`Keyspace::get`]; `out` is `None` before, and what was found afterwards.
    #[inline(always)]
    fn try_get_into(&self, key: &[u8], out: &mut Option<Value>) -> Result<(), OpError> {
        check_key(key)?;
        let slot = Slot::of_key(key);
        // Fetched while an earlier get of this thread still waits for its record: a lock would not be.
        self.engine.prefetch_slot(slot);
        let hash = self.hash(key);
        {
            let held = self.engine.slot(slot).lock();
            held.check_readable()?;
            match held.glance(self.number, key, hash) {
                Glance::Absent => return Ok(()),
                Glance::Live(place, record) => {
                    Value::put_record(out, &held.store, place, &record);
                    return Ok(());
                }
                Glance::Mortal => {}
            }
        }
        *out = self.readable(key, |held, met| met.place.map(|place| Value::of(&held.store, place)))?;
        Ok(())
    }

    /// What `see` makes of the value of a key, if it is there, and of its version; of the slot's last version if it is not.
    /// Nothing is copied.
    ///
    /// `see` runs under the slot's lock: it must be short, and must not call the engine.
    pub fn get_with<T>(
        &self,
        key: &[u8],
        see: impl FnOnce(Option<&[u8]>, Version) -> T,
    ) -> Result<T, OpError> {
        check_key(key)?;
        let slot = Slot::of_key(key);
        self.engine.prefetch_slot(slot);
        let hash = self.hash(key);
        {
            let held = self.engine.slot(slot).lock();
            held.check_readable()?;
            match held.glance(self.number, key, hash) {
                Glance::Absent => return Ok(see(None, held.version())),
                Glance::Live(place, record) => {
                    return Ok(see(Some(record.value), held.store.chain().version_of(place, &record)));
                }
                Glance::Mortal => {}
            }
        }
        self.readable(key, |held, met| match met.place {
            Some(place) => see(Some(held.store.record_at(place).value), held.store.chain().version_at(place)),
            None => see(None, met.version),
        })
    }

    /// Whether a key is there.
    pub fn exists(&self, key: &[u8]) -> Result<bool, OpError> {
        self.readable(key, |_, met| met.place.is_some())
    }

    /// The value of a key, with what an answer that is held back has to wait for.
    pub fn read(&self, key: &[u8]) -> Result<Read, OpError> {
        self.readable(key, |held, met| self.read_in(held, &met))
    }

    /// When a key ends, with what an answer that is held back has to wait for.
    pub fn deadline(&self, key: &[u8]) -> Result<Deadline, OpError> {
        self.readable(key, |held, met| Deadline {
            exists: met.place.is_some(),
            at_ms: met.place.and_then(|place| held.store.record_at(place).deadline_ms),
            clock_ms: held.clock_ms(|| self.engine.unix_ms()),
            slot: held.slot(),
            version: met.place.map_or(met.version, |place| held.store.chain().version_at(place)),
            position: self.ticket(held.slot(), met.position),
        })
    }

    /// As [`Keyspace::read`], whatever the slot's gate is, as long as it has one: what a replica has, however old. Nothing
    /// is deleted: also a key that is due is shown.
    pub fn peek(&self, key: &[u8]) -> Result<Read, OpError> {
        check_key(key)?;
        let slot = Slot::of_key(key);
        let held = self.engine.slot(slot).lock();
        match held.gate() {
            gate @ crate::Gate::Absent => Err(OpError::NotOwned { slot, gate }),
            _ => {
                let place = held.store.find(self.number, key);
                let met = Met { place, version: held.version(), position: held.position() };
                Ok(self.read_in(&held, &met))
            }
        }
    }

    /// What a follower of the slot has of a key; refused behind every other gate. Nothing is deleted: also a key that is due
    /// is shown. What of it may be told is the caller's to know.
    pub fn followed(&self, key: &[u8]) -> Result<Followed, OpError> {
        check_key(key)?;
        let slot = Slot::of_key(key);
        let held = self.engine.slot(slot).lock();
        if held.gate() != crate::Gate::Follower {
            return Err(OpError::NotOwned { slot, gate: held.gate() });
        }
        let place = held.store.find(self.number, key);
        let value = place.map(|place| Value::of(&held.store, place));
        Ok(Followed {
            slot,
            generation: held.generation(),
            version: value.as_ref().map_or(held.version(), Value::version),
            slot_version: held.version(),
            deadline_ms: place.and_then(|place| held.store.record_at(place).deadline_ms),
            value,
        })
    }

    /// Gives a key a value, and no deadline. On return it is in memory and appended to the log, not yet on the disk: see
    /// [`Receipt`].
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<Receipt, OpError> {
        check_key(key)?;
        check_value(value)?;
        let slot = Slot::of_key(key);
        self.engine.slot(slot).prefetch_all();
        let log = self.engine.home_log(slot);
        let reservation = log
            .reserve(encoded_bytes(false, key.len(), value.len()))
            .map_err(|error| OpError::from_log(slot, error))?;
        let new = NewRecord::put(self.number, key, value, None);
        let filled = self.filled(&new).map_err(|source| OpError::OutOfMemory { slot, source })?;
        self.engine.write_locked(slot, self.durability, |held, wakes| {
            held.check_writable()?;
            match filled {
                Some(filled) => held.write_filled(filled, log, reservation, wakes)?,
                None => held.write(new, log, reservation, wakes)?,
            }
            Ok(self.engine.receipt(held, self.durability))
        })
    }

    /// Gives a key a value if a condition holds, with or without a deadline, in one step.
    pub fn set_with(
        &self,
        key: &[u8],
        value: &[u8],
        options: &SetOptions<'_>,
    ) -> Result<SetOutcome, OpError> {
        check_key(key)?;
        check_value(value)?;
        // What is guessed wrongly here, or finds no memory, is encoded under the lock.
        let deadline_ms = match options.expiry {
            Expiry::Clear | Expiry::Keep => None,
            Expiry::At(at_ms) => Some(at_ms),
            Expiry::After(_) => Some(0),
        };
        let new = NewRecord::put(self.number, key, value, deadline_ms);
        let mut filled = self.filled(&new).ok().flatten();
        self.edit_filled(key, &mut filled, options.expiry, options.return_previous, |old, _| {
            match options
                .condition
                .holds(old.as_deref().map(|old| old.value), || old.as_ref().map(Old::version))
            {
                true => Edit::Put(Cow::Borrowed(value)),
                false => Edit::Nothing,
            }
        })
    }

    /// Removes a key. False: it was not there, nothing was written, and the receipt is for the slot's last write.
    pub fn delete(&self, key: &[u8]) -> Result<(bool, Receipt), OpError> {
        let outcome = self.edit(key, Expiry::Clear, false, |_, _| Edit::Delete)?;
        Ok((outcome.applied, outcome.receipt))
    }

    /// Removes a key, and returns the value that it had.
    pub fn take(&self, key: &[u8]) -> Result<(Option<Value>, Receipt), OpError> {
        let outcome = self.edit(key, Expiry::Clear, true, |_, _| Edit::Delete)?;
        Ok((outcome.previous, outcome.receipt))
    }

    /// Gives a key a deadline (milliseconds since 1970), or takes it away. The record is written anew for it. False: the
    /// key is not there, or has no deadline that could be taken away. A time that has come already removes the key.
    pub fn expire(&self, key: &[u8], deadline_ms: Option<u64>) -> Result<(bool, Receipt), OpError> {
        match deadline_ms {
            Some(at_ms) => self.expire_if(key, Expiry::At(at_ms), |_, _| true),
            None => self.expire_if(key, Expiry::Clear, |have, _| have.is_some()),
        }
    }

    /// Changes when a key ends, if the key is there and `condition` holds: it is given the deadline that the key has and
    /// the one that it would get. It runs under the slot's lock: it must be short, and must not call the engine.
    pub fn expire_if(
        &self,
        key: &[u8],
        expiry: Expiry,
        condition: impl FnOnce(Option<u64>, Option<u64>) -> bool,
    ) -> Result<(bool, Receipt), OpError> {
        let outcome = self.edit(key, expiry, false, |old, deadline_ms| match old {
            Some(old) if condition(old.deadline_ms, deadline_ms) => Edit::Date,
            _ => Edit::Nothing,
        })?;
        Ok((outcome.applied, outcome.receipt))
    }

    /// The value of a key, which ends as `expiry` says from now on. Nothing is written where that changes nothing.
    pub fn get_and_expire(&self, key: &[u8], expiry: Expiry) -> Result<(Option<Value>, Receipt), OpError> {
        let outcome = self.edit(key, expiry, true, |old, deadline_ms| match old {
            Some(old) if old.deadline_ms != deadline_ms => Edit::Date,
            _ => Edit::Nothing,
        })?;
        Ok((outcome.previous, outcome.receipt))
    }

    /// Reads and writes a key in one step: no other write of the slot comes between. A deadline stays.
    ///
    /// `decide` runs under the slot's lock: it must be short, and must not call the engine.
    pub fn update(
        &self,
        key: &[u8],
        decide: impl FnOnce(Option<&[u8]>) -> Update,
    ) -> Result<Receipt, OpError> {
        let edited =
            self.edit(key, Expiry::Keep, false, |old, _| match decide(old.as_deref().map(|old| old.value)) {
                Update::Keep => Edit::Nothing,
                Update::Put(value) => Edit::Put(Cow::Owned(value)),
                Update::Delete => Edit::Delete,
            });
        Ok(edited?.receipt)
    }

    /// How many live keys this keyspace has on the slots that are served here, those that are due and not deleted yet
    /// among them. Slots are counted one after the other.
    pub fn len(&self) -> u64 {
        self.counts().0
    }

    /// How many of them have a deadline.
    pub fn len_with_deadline(&self) -> u64 {
        self.counts().1
    }

    fn counts(&self) -> (u64, u64) {
        let (mut keys, mut with_deadline) = (0, 0);
        for (_, cell) in self.engine.known_slots() {
            let held = cell.lock();
            if held.gate().serves_reads() {
                let counts = held.store.keys_in(self.number);
                keys += counts.0;
                with_deadline += counts.1;
            }
        }
        (keys, with_deadline)
    }

    /// Whether this keyspace has no live key on the slots that are served here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn meet(&self, held: &mut SlotState, key: &[u8], wakes: &mut Wakes) -> Result<Met, OpError> {
        let log = self.engine.home_log(held.slot());
        held.meet(self.number, key, || self.engine.unix_ms(), log, wakes)
    }

    #[inline]
    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash(self.number, key)
    }

    fn readable<T>(&self, key: &[u8], see: impl FnOnce(&mut SlotState, Met) -> T) -> Result<T, OpError> {
        check_key(key)?;
        self.engine.locked(Slot::of_key(key), |held, wakes| {
            held.check_readable()?;
            let met = self.meet(held, key, wakes)?;
            Ok(see(held, met))
        })
    }

    /// Looks a key up and changes it, in one step. `decide` is given the live record, if there is one, and the deadline
    /// that `expiry` comes to.
    pub(crate) fn edit<'v>(
        &self,
        key: &[u8],
        expiry: Expiry,
        return_previous: bool,
        decide: impl FnOnce(Option<Old<'_>>, Option<u64>) -> Edit<'v>,
    ) -> Result<SetOutcome, OpError> {
        self.edit_filled(key, &mut None, expiry, return_previous, decide)
    }

    /// As [`edit`](Keyspace::edit); `filled` is the record that it would put, if there is one and its deadline fits.
    fn edit_filled<'v>(
        &self,
        key: &[u8],
        filled: &mut Option<FilledRecord>,
        expiry: Expiry,
        return_previous: bool,
        decide: impl FnOnce(Option<Old<'_>>, Option<u64>) -> Edit<'v>,
    ) -> Result<SetOutcome, OpError> {
        check_key(key)?;
        let slot = Slot::of_key(key);
        self.engine.write_locked(slot, self.durability, |held, wakes| {
            held.check_writable()?;
            let met = self.meet(held, key, wakes)?;
            let (deadline_ms, is_due) = held.resolve(met.place, expiry, || self.engine.unix_ms());
            let old = met.place.map(|place| Old::of(&held.store, place));
            let edit = decide(old, deadline_ms);
            let previous = met.place.filter(|_| return_previous).map(|place| Value::of(&held.store, place));
            let kept;
            let (applied, new) = match (&edit, met.place) {
                (Edit::Nothing, _) | (Edit::Delete | Edit::Date, None) => (false, None),
                (Edit::Put(_), None) if is_due => (true, None),
                (Edit::Delete, Some(_)) => (true, Some(NewRecord::delete(self.number, key))),
                (_, Some(_)) if is_due => (true, Some(NewRecord::delete(self.number, key))),
                (Edit::Put(value), _) => (true, Some(NewRecord::put(self.number, key, value, deadline_ms))),
                (Edit::Date, Some(place)) => {
                    kept = held.store.pin_value(place);
                    (true, Some(NewRecord::put(self.number, key, &kept, deadline_ms)))
                }
            };
            let Some(new) = new else {
                let receipt = self.engine.receipt_of(slot, met.version, met.position, self.durability);
                return Ok(SetOutcome { applied, previous, receipt });
            };
            check_value(new.value)?;
            let log = self.engine.home_log(slot);
            let reservation =
                log.reserve(new.encoded_bytes()).map_err(|error| OpError::from_log(slot, error))?;
            let put = matches!(edit, Edit::Put(_)) && new.kind == Kind::Put;
            let filled = filled.take_if(|_| put).and_then(|filled| filled.with_deadline(deadline_ms));
            match filled {
                Some(filled) => held.write_filled(filled, log, reservation, wakes)?,
                None => held.write(new, log, reservation, wakes)?,
            }
            let receipt = self.engine.receipt(held, self.durability);
            Ok(SetOutcome { applied, previous, receipt })
        })
    }

    /// A long record is copied and checksummed before its slot's lock is taken.
    fn filled(&self, new: &NewRecord<'_>) -> Result<Option<FilledRecord>, OutOfMemory> {
        FilledRecord::is_worth_it(new.encoded_bytes())
            .then(|| FilledRecord::new(&self.engine.arena_of(Slot::of_key(new.key)), new))
            .transpose()
    }

    fn read_in(&self, held: &SlotState, met: &Met) -> Read {
        let value = met.place.map(|place| Value::of(&held.store, place));
        let version = value.as_ref().map_or(met.version, Value::version);
        Read { value, slot: held.slot(), version, position: self.ticket(held.slot(), met.position) }
    }

    pub(crate) fn ticket(&self, slot: Slot, position: LogPosition) -> LogTicket {
        LogTicket { core: self.engine.home_core(slot) as u32, position }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// A live record that is about to be changed.
pub(crate) struct Old<'a> {
    record: Record<'a>,
    store: &'a Store,
    place: RecordOffset,
}

impl<'a> Old<'a> {
    fn of(store: &'a Store, place: RecordOffset) -> Old<'a> {
        Old { record: store.record_at(place), store, place }
    }

    /// The version of the write that it comes from.
    pub(crate) fn version(&self) -> Version {
        self.store.chain().version_at(self.place)
    }
}

impl<'a> Deref for Old<'a> {
    type Target = Record<'a>;

    fn deref(&self) -> &Record<'a> {
        &self.record
    }
}

/// What an operation does with a key that it has looked at.
pub(crate) enum Edit<'v> {
    Nothing,
    /// Gives it this value.
    Put(Cow<'v, [u8]>),
    /// Leaves its value, and changes when it ends.
    Date,
    Delete,
}

pub(crate) fn check_key(key: &[u8]) -> Result<(), OpError> {
    if key.len() > KEY_BYTES_MAX { Err(OpError::KeyTooLong { bytes: key.len() }) } else { Ok(()) }
}

pub(crate) fn check_value(value: &[u8]) -> Result<(), OpError> {
    if value.len() > VALUE_BYTES_MAX { Err(OpError::ValueTooLong { bytes: value.len() }) } else { Ok(()) }
}
