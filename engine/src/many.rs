//! Reads of many keys at once: the memory that the next lookups need is fetched while others wait for theirs.
//!
//! A lookup waits for memory three times, one after the other: for the slot, for a line of its index, for the record. Here
//! each of these steps is begun for a window of keys before the next step is taken for any of them. What is learnt in
//! between is a guess and is looked up again: only the last step reads, and takes each slot's lock once for it.

use std::ops::Range;

use arrayvec::ArrayVec;

use crate::error::OpError;
use crate::expiry::Glance;
use crate::keyspace::{Keyspace, check_key};
use crate::record::Record;
use crate::segment::RecordOffset;
use crate::store::Store;
use crate::types::{Slot, Version};
use crate::value::Value;

/// How many keys' memory is fetched at the same time: some more than the processor can wait for at once.
const WINDOW_KEYS: usize = 32;

/// A key of the call: its slot, where it stands in the call, and its hash.
type Wanted = (Slot, u32, u64);

impl Keyspace {
    /// The values of many keys, in their order. Each slot's lock is held once for all of its keys, one slot at a time: keys
    /// of different slots are not read at one instant.
    ///
    /// Faster than as many calls of [`Keyspace::get`] where the keys are not in the processor's caches.
    pub fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Option<Value>>, OpError> {
        let mut values = Vec::with_capacity(keys.len());
        values.resize_with(keys.len(), || None);
        self.each_of(keys, |at, live, _| {
            if let Some((store, place, record)) = live {
                put(&mut values[at], store, place, record);
            }
        })?;
        Ok(values)
    }

    /// Has `see` look at the values of many keys: at each with its index in `keys`, its value if it is there, and the value's
    /// version, or the slot's last one if it is not. Nothing is copied. Keys come by slots, not in their order; as for
    /// [`Keyspace::get_many`], each slot's lock is held once. An error may come when some were seen.
    ///
    /// `see` runs under the slot's lock: it must be short, and must not call the engine.
    pub fn get_many_with(
        &self,
        keys: &[&[u8]],
        mut see: impl FnMut(usize, Option<&[u8]>, Version),
    ) -> Result<(), OpError> {
        self.each_of(keys, |at, live, slot_version| match live {
            Some((store, place, record)) => {
                see(at, Some(record.value), store.chain().version_of(place, record));
            }
            None => see(at, None, slot_version),
        })
    }

    /// Shows each key's live record, or that there is none, and its slot's version.
    fn each_of(
        &self,
        keys: &[&[u8]],
        see: impl FnMut(usize, Option<Live<'_>>, Version),
    ) -> Result<(), OpError> {
        // Few keys need no memory for this.
        let (mut few, mut many);
        let wanted = if keys.len() <= WINDOW_KEYS {
            few = ArrayVec::<Wanted, WINDOW_KEYS>::new();
            for key in self.wanted(keys) {
                few.push(key?);
            }
            &mut few[..]
        } else {
            many = self.wanted(keys).collect::<Result<Vec<_>, _>>()?;
            &mut many[..]
        };
        wanted.sort_unstable();
        self.read_sorted(keys, wanted, see)
    }

    fn wanted(&self, keys: &[&[u8]]) -> impl Iterator<Item = Result<Wanted, OpError>> {
        keys.iter().enumerate().map(|(at, key)| {
            check_key(key)?;
            let slot = Slot::of_key(key);
            self.engine.prefetch_slot(slot);
            Ok((slot, at as u32, self.hash(key)))
        })
    }

    fn read_sorted(
        &self,
        keys: &[&[u8]],
        wanted: &[Wanted],
        mut see: impl FnMut(usize, Option<Live<'_>>, Version),
    ) -> Result<(), OpError> {
        let mut done = 0;
        while done < wanted.len() {
            let window = window(wanted, done);
            self.fetch(&wanted[window.clone()]);
            for of_slot in wanted[window.clone()].chunk_by(|a, b| a.0 == b.0) {
                self.read_slot(keys, of_slot, &mut see)?;
            }
            done = window.end;
        }
        Ok(())
    }

    /// Begins to fetch what the lookups of these keys will need.
    fn fetch(&self, window: &[Wanted]) {
        for (slot, _, _) in window {
            self.engine.prefetch_slot(*slot);
        }
        for (slot, _, hash) in window {
            if let Some(cell) = self.engine.known_slot(*slot) {
                cell.lock().store.index().prefetch(*hash);
            }
        }
        for (slot, _, hash) in window {
            let Some(cell) = self.engine.known_slot(*slot) else { continue };
            let held = cell.lock();
            if let Some(place) = held.store.index().first_guess(*hash) {
                held.store.chain().prefetch(place);
            }
        }
    }

    fn read_slot(
        &self,
        keys: &[&[u8]],
        of_slot: &[Wanted],
        see: &mut impl FnMut(usize, Option<Live<'_>>, Version),
    ) -> Result<(), OpError> {
        self.engine.locked(of_slot[0].0, |held, wakes| {
            held.check_readable()?;
            for &(_, at, hash) in of_slot {
                let (at, key) = (at as usize, keys[at as usize]);
                match held.glance(self.number(), key, hash) {
                    Glance::Absent => see(at, None, held.version()),
                    Glance::Live(place, record) => {
                        see(at, Some((&held.store, place, &record)), held.version());
                    }
                    Glance::Mortal => {
                        let met = self.meet(held, key, wakes)?;
                        let record = met.place.map(|place| (place, held.store.record_at(place)));
                        let live = record.as_ref().map(|(place, record)| (&held.store, *place, record));
                        see(at, live, met.version);
                    }
                }
            }
            Ok(())
        })
    }
}

/// As [`Value::put_record`]. Not inlined: the loop around it stays short enough to run ahead of what it waits for.
#[inline(never)]
fn put(out: &mut Option<Value>, store: &Store, place: RecordOffset, record: &Record<'_>) {
    Value::put_record(out, store, place, record);
}

/// A live record, where it is, and in which store.
type Live<'a> = (&'a Store, RecordOffset, &'a Record<'a>);

/// The next keys to fetch: whole slots, so that each is read at once.
fn window(wanted: &[Wanted], start: usize) -> Range<usize> {
    let least = (start + WINDOW_KEYS).min(wanted.len());
    let last = wanted[least - 1].0;
    let more = wanted[least..].iter().take_while(|key| key.0 == last).count();
    start..least + more
}
