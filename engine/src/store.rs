//! What one slot holds: its segments, the index of its live keys, and the sums over them.
//!
//! Invariants: the index points exactly at the live records of the chain; `digest`, `live_bytes` and the counts are sums
//! over the live records, kept up by [`Store::take_in`], which every record passes, whether it was written here, came from
//! another node, or was found in the log. So an empty store's digest is zero. `deadlines` has exactly the live records that
//! have one: a key without a deadline costs nothing there.

use std::collections::BTreeSet;
use std::mem::offset_of;
use std::ops::ControlFlow;

use lockgate_runtime::{mutation, sync::Arc};

use crate::arena::{Arena, OutOfMemory};
use crate::bytes;
use crate::chain::Chain;
use crate::charge::Charge;
use crate::counts::Counts;
use crate::extent::FilledRecord;
use crate::index::{Index, KeyHasher};
use crate::log::LogPosition;
use crate::record::{self, Kind, NewRecord, Record};
use crate::segment::{PinnedRange, RecordOffset};
use crate::types::{RangeHeader, Version};

/// A slot's data.
///
/// What a lookup needs comes first: see `cell.rs`.
#[repr(C)]
pub(crate) struct Store {
    index: Index,
    chain: Chain,
    hasher: KeyHasher,
    /// For the index.
    charge: Charge,
    digest: u64,
    live_bytes: u64,
    counts: Counts,
    /// The live records with a deadline, the earliest first.
    deadlines: BTreeSet<(u64, RecordOffset)>,
    /// What was cleared, until the caller takes it out.
    cleared: Vec<Cleared>,
}

/// Tables over keys that are gone, to be dropped where no lock is held: that costs time by keys.
pub(crate) struct Cleared {
    _index: Index,
    _deadlines: BTreeSet<(u64, RecordOffset)>,
}

impl Store {
    /// What a lookup needs: the first bytes of a store.
    pub(crate) const LOOKUP_BYTES: usize = offset_of!(Store, chain) + Chain::LOOKUP_BYTES;

    /// Nothing, yet.
    pub(crate) fn new(arena: Arc<Arena>, hasher: KeyHasher) -> Store {
        Store {
            index: Index::default(),
            charge: Charge::new(arena.budget()),
            chain: Chain::new(arena),
            hasher,
            digest: 0,
            live_bytes: 0,
            counts: Counts::default(),
            deadlines: BTreeSet::new(),
            cleared: Vec::new(),
        }
    }

    /// Takes all of it out, for the caller to drop where no lock is held. Freeing costs by segments, not by keys.
    pub(crate) fn take(&mut self) -> Store {
        let empty = Store::new(self.chain.arena().clone(), self.hasher.clone());
        std::mem::replace(self, empty)
    }

    /// What it would hold if no record above `to` had ever come, and the last record's version.
    ///
    /// What a dropped record superseded is live again, so every record that stays has its effect once more: this costs time
    /// by all the records that were ever written here, and the memory of a second index and of at most one segment. If the
    /// result is used this store must be dropped, and the other way round: they share segments.
    pub(crate) fn up_to(&self, to: Version) -> Result<(Store, Version), OutOfMemory> {
        let (chain, last) = self.chain.up_to(to)?;
        let mut store = Store::new(chain.arena().clone(), self.hasher.clone());
        store.chain = chain;
        for link in 0..store.chain.links().len() {
            for place in store.chain.places_in(link) {
                store.take_in(place);
            }
        }
        Ok((store, last))
    }

    /// The segments.
    pub(crate) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The segments, to be compacted.
    pub(crate) fn chain_mut(&mut self) -> &mut Chain {
        &mut self.chain
    }

    /// The hash of a record's key.
    pub(crate) fn hash(&self, record: &Record<'_>) -> u64 {
        self.hash_of(record.keyspace, record.key)
    }

    /// The hash of a key.
    pub(crate) fn hash_of(&self, keyspace: u8, key: &[u8]) -> u64 {
        self.hasher.hash(keyspace, key)
    }

    /// Whether the record at this place, with a key of this hash, is its key's live one.
    pub(crate) fn is_live(&self, hash: u64, place: RecordOffset) -> bool {
        self.index.holds(hash, place)
    }

    /// The live record at `from` is at `to` now.
    pub(crate) fn relocate(
        &mut self,
        hash: u64,
        from: RecordOffset,
        to: RecordOffset,
        deadline_ms: Option<u64>,
    ) {
        let moved = self.index.relocate(hash, from, to);
        assert!(moved, "a live record has an entry");
        if let Some(deadline_ms) = deadline_ms {
            let known = self.deadlines.remove(&(deadline_ms, from));
            assert!(known && self.deadlines.insert((deadline_ms, to)), "a live deadline has an entry");
        }
    }

    /// Order-independent sum over the live records.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// Bytes of the live records.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Live keys.
    pub(crate) fn keys(&self) -> u64 {
        self.index.len() as u64
    }

    /// Live keys of one keyspace, and how many of them have a deadline.
    pub(crate) fn keys_in(&self, keyspace: u8) -> (u64, u64) {
        let count = self.counts.of(keyspace);
        count.map_or((0, 0), |count| (u64::from(count.keys), u64::from(count.with_deadline)))
    }

    /// Live keys with a deadline.
    pub(crate) fn keys_with_deadline(&self) -> u64 {
        self.deadlines.len() as u64
    }

    /// The live record that ends first, with its deadline.
    pub(crate) fn first_deadline(&self) -> Option<(u64, RecordOffset)> {
        self.deadlines.first().copied()
    }

    /// Memory that the index takes, or is about to.
    pub(crate) fn index_bytes(&self) -> u64 {
        self.charge.bytes()
    }

    /// The index, to look at.
    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Where a key's live record is.
    pub(crate) fn find(&self, keyspace: u8, key: &[u8]) -> Option<RecordOffset> {
        self.find_hashed(self.hasher.hash(keyspace, key), keyspace, key)
    }

    /// As [`find`](Store::find), for a key whose hash is known already.
    #[inline]
    pub(crate) fn find_hashed(&self, hash: u64, keyspace: u8, key: &[u8]) -> Option<RecordOffset> {
        self.index.find(hash, |place| {
            // The key is hardly ever another one: its value, in the lines behind, is on its way while the key is compared.
            self.chain.prefetch(place);
            is_key(&self.chain, place, keyspace, key)
        })
    }

    /// Has the processor fetch what writing a record of so many bytes touches, so that it need not wait for one part after
    /// the other. In two steps: where the key's record is now can only be guessed once the index is there.
    pub(crate) fn prefetch_write(&self, hash: u64, bytes: usize) {
        self.index.prefetch(hash);
        self.chain.prefetch_tail(bytes);
    }

    /// The second step.
    pub(crate) fn prefetch_record(&self, hash: u64) {
        if let Some(place) = self.index.first_guess(hash) {
            self.chain.prefetch(place);
        }
    }

    /// The hash of the key of the record at this place.
    pub(crate) fn hash_at(&self, place: RecordOffset) -> u64 {
        hash_at(&self.chain, &self.hasher, place)
    }

    /// Makes room for records of `bytes`. Changes nothing on failure.
    pub(crate) fn reserve(&mut self, range: RangeHeader, bytes: usize) -> Result<(), OutOfMemory> {
        self.reserve_entry()?;
        self.chain.reserve(range, bytes)
    }

    /// Makes room for new records of `bytes`. Changes nothing on failure.
    pub(crate) fn reserve_for(
        &mut self,
        range: RangeHeader,
        new: &[NewRecord<'_>],
        bytes: usize,
    ) -> Result<(), OutOfMemory> {
        if new.iter().all(|new| new.kind != Kind::Put) {
            return self.chain.reserve_beyond(range, bytes);
        }
        self.reserve(range, bytes)
    }

    /// Encodes a new record into reserved room, lets `log` have its bytes, and takes it in. If `log` fails nothing changes.
    pub(crate) fn write<E>(
        &mut self,
        range: RangeHeader,
        new: &NewRecord<'_>,
        log: impl FnOnce(&[u8]) -> Result<LogPosition, E>,
    ) -> Result<LogPosition, E> {
        let (place, position) =
            self.chain.append(range.base + u64::from(new.delta), new.encoded_bytes(), |out| {
                record::encode(out, new);
                log(out)
            })?;
        self.take_in(place);
        Ok(position)
    }

    /// As [`write`](Store::write), of several records that lie next to each other, `bytes` of them together. They are there
    /// all at once, or not at all.
    pub(crate) fn write_many<E>(
        &mut self,
        range: RangeHeader,
        new: &[NewRecord<'_>],
        bytes: usize,
        log: impl FnOnce(&[u8]) -> Result<LogPosition, E>,
    ) -> Result<LogPosition, E> {
        let first = range.base + u64::from(new[0].delta);
        let (place, position) = self.chain.append(first, bytes, |out| {
            let mut at = 0;
            for new in new {
                let end = at + new.encoded_bytes();
                record::encode(&mut out[at..end], new);
                at = end;
            }
            log(out)
        })?;
        for place in self.chain.places(place, bytes) {
            self.take_in(place);
        }
        Ok(position)
    }

    /// As [`write`](Store::write), of a record that is in memory of its own already. Nothing is reserved but the index's room.
    pub(crate) fn write_filled<E>(
        &mut self,
        range: RangeHeader,
        delta: u32,
        filled: FilledRecord,
        log: impl FnOnce(&[u8]) -> Result<LogPosition, E>,
    ) -> Result<LogPosition, E> {
        let bytes = filled.bytes();
        let (extent, rest) = filled.into_parts();
        self.chain.adopt(range, extent);
        let (place, position) = self.chain.append(range.base + u64::from(delta), bytes, |out| {
            rest.complete(out, delta);
            log(out)
        })?;
        self.take_in(place);
        Ok(position)
    }

    /// Makes room in the index for one more key. Changes nothing on failure.
    pub(crate) fn reserve_entry(&mut self) -> Result<(), OutOfMemory> {
        self.charge.raise_to(self.index.bytes() + self.index.growth_bytes())
    }

    /// Makes room in the index for so many keys at once. Changes nothing on failure.
    pub(crate) fn expect_keys(&mut self, keys: u64) -> Result<(), OutOfMemory> {
        let lines = Index::lines_for(keys as usize);
        self.charge.raise_to(Index::bytes_of(lines))?;
        let (chain, hasher) = (&self.chain, &self.hasher);
        self.index.grow_to(lines, chain.arena(), |place| hash_at(chain, hasher, place));
        Ok(())
    }

    /// Lets the index grow at once where `keys` more would make it grow several times: by half, or by twice that number, since
    /// more of the same kind follow. Without memory for that it grows as it must.
    pub(crate) fn grow_index(&mut self, keys: usize) {
        if self.index.has_room_for(keys) {
            return;
        }
        let lines = Index::lines_for(self.index.len() + (self.index.len() / 2).max(2 * keys));
        if self.charge.raise_to(Index::bytes_of(lines)).is_ok() {
            let (chain, hasher) = (&self.chain, &self.hasher);
            self.index.grow_to(lines, chain.arena(), |place| hash_at(chain, hasher, place));
        }
    }

    /// Copies verified records into reserved room and takes each in. `counter` is the first one's.
    pub(crate) fn copy_in(&mut self, counter: u64, records: &[u8]) {
        let copied = self.chain.append(counter, records.len(), |out| {
            out.copy_from_slice(records);
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok((first, ())) = copied;
        let mut at = 0;
        while at < records.len() {
            let place = first.after(at);
            at += self.record_at(place).encoded_bytes();
            if mutation!("tombstone-dropped") && self.record_at(place).kind == Kind::Delete {
                continue;
            }
            self.take_in(place);
        }
    }

    /// Lets the record at `place`, the newest of all, have its effect.
    fn take_in(&mut self, place: RecordOffset) {
        let (chain, hasher) = (&self.chain, &self.hasher);
        let record = chain.record_at(place);
        let kind = record.kind;
        if kind == Kind::Clear {
            let keyspace = record.keyspace;
            self.clear(keyspace, place);
            return self.chain.note_tombstone(place);
        }
        let hash = hasher.hash(record.keyspace, record.key);
        let same = |other| is_key(chain, other, record.keyspace, record.key);
        let before = match record.kind {
            Kind::Put => {
                self.index.set(hash, place, same, chain.arena(), |other| hash_at(chain, hasher, other))
            }
            _ => {
                let removed = self.index.remove(hash, same);
                if self.index.shrink(chain.arena(), |other| hash_at(chain, hasher, other)) {
                    self.charge.lower_to(self.index.bytes());
                }
                removed
            }
        };
        if let Some(place) = before {
            self.forget(place);
            let old = self.chain.record_at(place);
            self.counts.subtract(old.keyspace, old.deadline_ms.is_some());
        }
        if kind == Kind::Put {
            let record = self.chain.record_at(place);
            self.digest = self.digest.wrapping_add(record.digest());
            self.live_bytes += record.encoded_bytes() as u64;
            if let Some(deadline_ms) = record.deadline_ms {
                self.deadlines.insert((deadline_ms, place));
            }
            self.counts.add(record.keyspace, record.deadline_ms.is_some());
        } else {
            self.chain.note_tombstone(place);
        }
        self.charge.settle(self.index.bytes());
        assert!(
            self.index.len() > 0 || (self.digest == 0 && self.live_bytes == 0 && self.deadlines.is_empty()),
            "an empty slot has sums of zero"
        );
    }

    /// The value at this place is live no more.
    fn forget(&mut self, place: RecordOffset) {
        self.chain.supersede(place);
        let old = self.chain.record_at(place);
        self.digest = self.digest.wrapping_sub(old.digest());
        self.live_bytes -= old.encoded_bytes() as u64;
        if let Some(deadline_ms) = old.deadline_ms {
            self.deadlines.remove(&(deadline_ms, place));
        }
    }

    /// Lets all keys of a keyspace go. If no other one has keys here this costs no time by keys: what was in use is set aside
    /// ([`take_cleared`](Store::take_cleared)). Otherwise it is one walk over the whole index.
    fn clear(&mut self, keyspace: u8, by: RecordOffset) {
        if !self.counts.remove(keyspace) {
            return;
        }
        if self.counts.all().is_empty() {
            let (_index, _deadlines) = (std::mem::take(&mut self.index), std::mem::take(&mut self.deadlines));
            self.cleared.push(Cleared { _index, _deadlines });
            self.charge.lower_to(0);
            self.chain.supersede_all(by);
            (self.digest, self.live_bytes) = (0, 0);
            return;
        }
        let mut cleared = Vec::new();
        let hash_of = |place| hash_at(&self.chain, &self.hasher, place);
        self.index.scan(0, hash_of, |hash, place| {
            if self.chain.record_at(place).keyspace == keyspace {
                cleared.push((hash, place));
            }
            ControlFlow::Continue(())
        });
        for (hash, place) in cleared {
            let removed = self.index.remove_place(hash, place);
            assert!(removed, "just seen");
            self.forget(place);
        }
        self.index.shrink(self.chain.arena(), |place| hash_at(&self.chain, &self.hasher, place));
        self.charge.lower_to(self.index.bytes());
    }

    /// What was cleared since the last call.
    pub(crate) fn take_cleared(&mut self) -> Vec<Cleared> {
        std::mem::take(&mut self.cleared)
    }

    /// Each keyspace that has live keys here, with their number and how many of them have a deadline.
    pub(crate) fn keyspaces(&self) -> impl Iterator<Item = (u8, u64, u64)> {
        let all = self.counts.all().iter();
        all.map(|count| (count.keyspace, count.keys.into(), count.with_deadline.into()))
    }

    /// The live record at a place that [`find`](Store::find) gave.
    #[inline]
    pub(crate) fn record_at(&self, place: RecordOffset) -> Record<'_> {
        self.chain.record_at(place)
    }

    /// A pin on the value of the live record at this place.
    pub(crate) fn pin_value(&self, place: RecordOffset) -> PinnedRange {
        self.chain.pin(place, self.record_at(place).value_range())
    }
}

fn hash_at(chain: &Chain, hasher: &KeyHasher, place: RecordOffset) -> u64 {
    let record = chain.record_at(place);
    hasher.hash(record.keyspace, record.key)
}

#[inline]
fn is_key(chain: &Chain, place: RecordOffset, keyspace: u8, key: &[u8]) -> bool {
    let record = chain.record_at(place);
    record.keyspace == keyspace && bytes::same(key, record.key)
}
