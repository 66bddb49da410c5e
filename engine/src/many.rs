//! Reads of many keys at once: the memory that the next lookups need is fetched while others wait for theirs.
//!
//! A lookup waits for memory three times, one after the other: for the slot, for a line of its index, for the record. Here
//! each of these steps is begun for a window of keys before the next step is taken for any of them. What is learnt in
//! between is a guess and is looked up again: only the last step reads, and takes each slot's lock once for it.

use std::ops::Range;

use crate::error::OpError;
use crate::expiry::Glance;
use crate::keyspace::{Keyspace, check_key};
use crate::types::Slot;
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
        let mut wanted: Vec<Wanted> = Vec::with_capacity(keys.len());
        for (at, key) in keys.iter().enumerate() {
            check_key(key)?;
            let slot = Slot::of_key(key);
            self.engine.slot(slot).prefetch();
            wanted.push((slot, at as u32, self.hash(key)));
        }
        wanted.sort_unstable();
        let mut values = Vec::with_capacity(keys.len());
        values.resize_with(keys.len(), || None);
        let mut done = 0;
        while done < wanted.len() {
            let window = window(&wanted, done);
            self.fetch(&wanted[window.clone()]);
            for of_slot in wanted[window.clone()].chunk_by(|a, b| a.0 == b.0) {
                self.read_slot(keys, of_slot, &mut values)?;
            }
            done = window.end;
        }
        Ok(values)
    }

    /// Begins to fetch what the lookups of these keys will need.
    fn fetch(&self, window: &[Wanted]) {
        for (slot, _, _) in window {
            self.engine.slot(*slot).prefetch();
        }
        for (slot, _, hash) in window {
            self.engine.slot(*slot).lock().store.index().prefetch(*hash);
        }
        for (slot, _, hash) in window {
            let held = self.engine.slot(*slot).lock();
            if let Some(place) = held.store.index().first_guess(*hash) {
                held.store.chain().prefetch(place);
            }
        }
    }

    fn read_slot(
        &self,
        keys: &[&[u8]],
        of_slot: &[Wanted],
        values: &mut [Option<Value>],
    ) -> Result<(), OpError> {
        self.engine.locked(of_slot[0].0, |held, wakes| {
            held.check_readable()?;
            for &(_, at, hash) in of_slot {
                let key = keys[at as usize];
                let out = &mut values[at as usize];
                match held.glance(self.number(), key, hash) {
                    Glance::Absent => {}
                    Glance::Live(place, record) => Value::put_record(out, &held.store, place, &record),
                    Glance::Mortal => {
                        let place = self.meet(held, key, wakes)?.place;
                        *out = place.map(|place| Value::of(&held.store, place));
                    }
                }
            }
            Ok(())
        })
    }
}

/// The next keys to fetch: whole slots, so that each is read at once.
fn window(wanted: &[Wanted], start: usize) -> Range<usize> {
    let least = (start + WINDOW_KEYS).min(wanted.len());
    let last = wanted[least - 1].0;
    let more = wanted[least..].iter().take_while(|key| key.0 == last).count();
    start..least + more
}
