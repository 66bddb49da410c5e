//! The steps that write many keys at once.

use std::collections::BTreeMap;

use lockgate_engine::Version;
use lockgate_runtime::unix_ms;

use super::model::Entry;
use super::steps::{self, Place, Step, TAGS};
use super::world::World;
use crate::common::slot_of;

impl World {
    /// Takes a step that writes many keys, at one instant. False: it is none of them.
    pub fn write_many(&mut self, step: &Step) -> bool {
        let now_ms = unix_ms();
        match step {
            Step::Batch(tag, entries) => self.batch(*tag, entries, now_ms),
            Step::ClearKeyspaceInSlot(keyspace, tag) => {
                let keys = self.engine().keyspace(*keyspace);
                let (cleared, receipt) = keys.clear_slot(slot_of(TAGS[*tag])).unwrap();
                self.check_receipt(*tag, &receipt);
                self.cleared(cleared, now_ms, |place| (place.tag, place.keyspace) == (*tag, *keyspace));
            }
            Step::ClearSlot(tag) => {
                let (cleared, receipt) = self.engine().clear_slot(slot_of(TAGS[*tag])).unwrap();
                self.check_receipt(*tag, &receipt);
                self.cleared(cleared, now_ms, |place| place.tag == *tag);
            }
            Step::ClearKeyspace(keyspace) => {
                let cleared = self.engine().keyspace(*keyspace).clear().unwrap();
                for receipt in &cleared.receipts {
                    let tag = TAGS.iter().position(|tag| slot_of(tag) == receipt.slot);
                    self.check_receipt(tag.expect("a slot that has keys"), receipt);
                }
                assert_eq!(cleared.keys == 0, cleared.receipts.is_empty());
                self.cleared(cleared.keys, now_ms, |place| place.keyspace == *keyspace);
            }
            _ => return false,
        }
        true
    }

    /// Keys that are due count if nobody has deleted them yet.
    fn cleared(&mut self, keys: u64, now_ms: u64, goes: impl Fn(&Place) -> bool) {
        let (least, most) = self.model.clear(now_ms, goes);
        assert!((least..=most).contains(&keys), "{keys} keys went, not {least} to {most}");
    }

    fn batch(&mut self, tag: usize, entries: &[steps::Entry], now_ms: u64) {
        let mut batch = self.engine().batch(slot_of(TAGS[tag]));
        // The last entry of each key: where it is in the batch, and what the key has then.
        let mut last = BTreeMap::new();
        for (at, (place, set)) in entries.iter().enumerate() {
            let old = self.model.live(*place, now_ms);
            let Some((content, ends)) = *set else {
                batch.delete(place.keyspace, place.name());
                last.insert(*place, (at, None));
                continue;
            };
            let (value, (expiry, deadline_ms)) = (self.value_of(content), ends.resolve(old.as_ref(), now_ms));
            batch.set_expiring(place.keyspace, place.name(), value.clone(), expiry);
            let is_due = deadline_ms.is_some_and(|at_ms| at_ms <= now_ms);
            last.insert(*place, (at, (!is_due).then_some((value, deadline_ms))));
        }
        assert_eq!(batch.len(), entries.len());
        let receipt = batch.commit().unwrap();
        self.check_receipt(tag, &receipt);
        let mut done: Vec<_> = last.into_iter().map(|(place, (at, becomes))| (at, place, becomes)).collect();
        done.sort_by_key(|(at, ..)| *at);
        done.retain(|(_, place, becomes)| becomes.is_some() || self.model.live(*place, now_ms).is_some());
        // Its records have the slot's last versions, in the batch's order.
        let first = receipt.version.counter + 1 - done.len() as u64;
        for (counter, (_, place, becomes)) in (first..).zip(done) {
            match becomes {
                Some((value, deadline_ms)) => {
                    let version = Version::new(receipt.version.term, counter);
                    self.model.put(place, Entry { value, deadline_ms, version }, now_ms);
                }
                None => self.model.remove(place),
            }
        }
    }
}
