//! What an engine must be like: a plain map, with the version and the deadline of each key.
//!
//! A key whose time has come stays in it until an operation looks at it, as in the engine; there, the sweeper may have been
//! faster. So what is here is what the engine has, and it may have less of what is due.

use std::collections::BTreeMap;

use lockgate_engine::{Expiry, KeyspaceStats, Version, record};

use super::steps::{Ends, KEYSPACES, NUMBERS, Place, TAGS};
use crate::common::key;

#[derive(Clone, Debug)]
pub struct Entry {
    pub value: Vec<u8>,
    pub deadline_ms: Option<u64>,
    pub version: Version,
}

#[derive(Default)]
pub struct Model {
    entries: BTreeMap<Place, Entry>,
    /// How many keys were found to be due.
    pub ended: u64,
}

impl Place {
    /// The key's bytes: mostly short, some long.
    pub fn name(self) -> Vec<u8> {
        let mut name = key(TAGS[self.tag], usize::from(self.number));
        if self.number == NUMBERS - 1 {
            name.resize(300, b'.');
        }
        name
    }

    pub fn all() -> impl Iterator<Item = Place> {
        (0..TAGS.len()).flat_map(|tag| {
            (0..KEYSPACES)
                .flat_map(move |keyspace| (0..NUMBERS).map(move |number| Place { tag, keyspace, number }))
        })
    }
}

impl Ends {
    /// As the engine takes it, and the deadline that it comes to.
    pub fn resolve(self, old: Option<&Entry>, now_ms: u64) -> (Expiry, Option<u64>) {
        match self {
            Ends::Clear => (Expiry::Clear, None),
            Ends::Keep => (Expiry::Keep, old.and_then(|old| old.deadline_ms)),
            Ends::At(from_now_ms) => {
                let at_ms = now_ms.saturating_add_signed(from_now_ms);
                (Expiry::At(at_ms), Some(at_ms))
            }
            Ends::After(time_ms) => (Expiry::After(time_ms), Some(now_ms + time_ms)),
            Ends::AtTheLast => (Expiry::At(u64::MAX), Some(u64::MAX)),
            Ends::AfterTheLast => (Expiry::After(u64::MAX), Some(u64::MAX)),
        }
    }
}

impl Model {
    /// What a key has, if its time has not come.
    pub fn live(&mut self, place: Place, now_ms: u64) -> Option<Entry> {
        let deadline_ms = self.entries.get(&place).and_then(|entry| entry.deadline_ms);
        if deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms) {
            self.entries.remove(&place);
            self.ended += 1;
        }
        self.entries.get(&place).cloned()
    }

    /// Gives a key an entry; one that has ended already is none.
    pub fn put(&mut self, place: Place, entry: Entry, now_ms: u64) {
        if entry.deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms) {
            self.entries.remove(&place);
        } else {
            self.entries.insert(place, entry);
        }
    }

    pub fn remove(&mut self, place: Place) {
        self.entries.remove(&place);
    }

    /// Removes what goes, and returns how many keys that were at least and at most.
    pub fn clear(&mut self, now_ms: u64, goes: impl Fn(&Place) -> bool) -> (u64, u64) {
        let going = self.entries.extract_if(.., |place, _| goes(place));
        going.fold((0, 0), |(least, most), (_, entry)| {
            let is_live = entry.deadline_ms.is_none_or(|deadline_ms| deadline_ms > now_ms);
            (least + u64::from(is_live), most + 1)
        })
    }

    /// The live keys of a slot's keyspace, with their values and versions, in order.
    pub fn of(&mut self, tag: usize, keyspace: u8, now_ms: u64) -> Vec<(Vec<u8>, Entry)> {
        let places = (0..NUMBERS).map(|number| Place { tag, keyspace, number });
        let mut live: Vec<_> =
            places.filter_map(|place| Some((place.name(), self.live(place, now_ms)?))).collect();
        live.sort_by(|a, b| a.0.cmp(&b.0));
        live
    }

    /// What a slot's keyspaces count, if nothing in the model is due.
    pub fn counts(&self, tag: usize) -> Vec<KeyspaceStats> {
        let of = |keyspace| {
            let entries =
                self.entries.iter().filter(|(place, _)| (place.tag, place.keyspace) == (tag, keyspace));
            let (keys, with_deadline) = entries.fold((0, 0), |(keys, with), (_, entry)| {
                (keys + 1, with + u64::from(entry.deadline_ms.is_some()))
            });
            KeyspaceStats { keyspace, keys, keys_with_deadline: with_deadline }
        };
        (0..KEYSPACES).map(of).filter(|stats| stats.keys > 0).collect()
    }

    /// Bytes of a slot's records, if nothing in the model is due.
    pub fn live_bytes(&self, tag: usize) -> u64 {
        let entries = self.entries.iter().filter(|(place, _)| place.tag == tag);
        let bytes = entries.map(|(place, entry)| {
            record::encoded_bytes(entry.deadline_ms.is_some(), place.name().len(), entry.value.len()) as u64
        });
        bytes.sum()
    }
}
