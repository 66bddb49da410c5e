//! What one slot holds: its segments, the index of its live keys, and the sums over them.
//!
//! Invariants: the index points exactly at the live records of the chain; `digest`, `live_bytes` and the counts are sums
//! over the live records, kept up by [`Store::take_in`], which every record passes, whether it was written here, came from
//! another node, or was found in the log. So an empty store's digest is zero.

use lockgate_runtime::sync::Arc;

use crate::arena::{Arena, OutOfMemory};
use crate::index::{Index, KeyHasher};
use crate::log::LogPosition;
use crate::record::{self, Kind, Record};
use crate::segment::{Chain, RecordOffset};
use crate::types::RangeHeader;

/// A record that is to be written.
pub(crate) struct NewRecord<'a> {
    /// Its version counter, less the range's base.
    pub(crate) delta: u32,
    /// What it does.
    pub(crate) kind: Kind,
    /// Whose key.
    pub(crate) keyspace: u8,
    /// The key, of a checked length.
    pub(crate) key: &'a [u8],
    /// The value, of a checked length; empty in a tombstone.
    pub(crate) value: &'a [u8],
}

/// A slot's data.
pub(crate) struct Store {
    hasher: KeyHasher,
    index: Index,
    chain: Chain,
    digest: u64,
    live_bytes: u64,
    /// Live keys by keyspace, sorted; no zeros.
    counts: Vec<(u8, u64)>,
}

impl Store {
    /// Nothing, yet.
    pub(crate) fn new(arena: Arc<Arena>, hasher: KeyHasher) -> Store {
        Store {
            hasher,
            index: Index::default(),
            chain: Chain::new(arena),
            digest: 0,
            live_bytes: 0,
            counts: Vec::new(),
        }
    }

    /// Takes all of it out, for the caller to drop where no lock is held. Freeing costs by segments, not by keys.
    pub(crate) fn take(&mut self) -> Store {
        let empty = Store::new(self.chain.arena().clone(), self.hasher.clone());
        std::mem::replace(self, empty)
    }

    /// The segments.
    pub(crate) fn chain(&self) -> &Chain {
        &self.chain
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

    /// Live keys of one keyspace.
    pub(crate) fn keys_in(&self, keyspace: u8) -> u64 {
        self.counts.iter().find(|(of, _)| *of == keyspace).map_or(0, |(_, keys)| *keys)
    }

    /// Memory that the index takes.
    pub(crate) fn index_bytes(&self) -> usize {
        self.index.bytes()
    }

    /// Where a key's live record is.
    pub(crate) fn find(&self, keyspace: u8, key: &[u8]) -> Option<RecordOffset> {
        self.index.find(self.hasher.hash(keyspace, key), |place| is_key(&self.chain, place, keyspace, key))
    }

    /// Makes room for records of `bytes`. Changes nothing on failure.
    pub(crate) fn reserve(&mut self, range: RangeHeader, bytes: usize) -> Result<(), OutOfMemory> {
        self.chain.reserve(range, bytes)
    }

    /// Encodes a new record into reserved room, lets `log` have its bytes, and takes it in. If `log` fails nothing changes.
    pub(crate) fn write<E>(
        &mut self,
        range: RangeHeader,
        new: &NewRecord<'_>,
        log: impl FnOnce(&[u8]) -> Result<LogPosition, E>,
    ) -> Result<LogPosition, E> {
        let bytes = record::encoded_bytes(new.key.len(), new.value.len());
        let (place, position) = self.chain.append(range.base + u64::from(new.delta), bytes, |out| {
            record::encode(out, new.kind, new.delta, new.keyspace, new.key, new.value);
            log(out)
        })?;
        self.take_in(place);
        Ok(position)
    }

    /// Copies verified records into reserved room and takes each in. `counter` is the first one's.
    pub(crate) fn copy_in(&mut self, counter: u64, records: &[u8]) {
        let copied = self.chain.append(counter, records.len(), |out| {
            out.copy_from_slice(records);
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok((first, ())) = copied;
        for place in self.chain.places(first, records.len()) {
            self.take_in(place);
        }
    }

    /// Lets the record at `place`, the newest of all, have its effect.
    fn take_in(&mut self, place: RecordOffset) {
        let (chain, hasher) = (&self.chain, &self.hasher);
        let record = chain.record_at(place);
        let hash = hasher.hash(record.keyspace, record.key);
        let same = |other| is_key(chain, other, record.keyspace, record.key);
        let before = match record.kind {
            Kind::Put => self.index.set(hash, place, same, |other| {
                let other = chain.record_at(other);
                hasher.hash(other.keyspace, other.key)
            }),
            Kind::Delete => self.index.remove(hash, same),
        };
        if let Some(old) = before {
            let old = chain.record_at(old);
            self.digest = self.digest.wrapping_sub(old.digest());
            self.live_bytes -= old.encoded_bytes() as u64;
        }
        if record.kind == Kind::Put {
            self.digest = self.digest.wrapping_add(record.digest());
            self.live_bytes += record.encoded_bytes() as u64;
        }
        match (record.kind, before) {
            (Kind::Put, None) => count(&mut self.counts, record.keyspace, true),
            (Kind::Delete, Some(_)) => count(&mut self.counts, record.keyspace, false),
            _ => {}
        }
        assert!(
            self.index.len() > 0 || (self.digest == 0 && self.live_bytes == 0),
            "an empty slot has sums of zero"
        );
    }

    /// The live record at a place that [`find`](Store::find) gave.
    pub(crate) fn record_at(&self, place: RecordOffset) -> Record<'_> {
        self.chain.record_at(place)
    }
}

fn is_key(chain: &Chain, place: RecordOffset, keyspace: u8, key: &[u8]) -> bool {
    let record = chain.record_at(place);
    record.key == key && record.keyspace == keyspace
}

fn count(counts: &mut Vec<(u8, u64)>, keyspace: u8, more: bool) {
    match (counts.binary_search_by_key(&keyspace, |(of, _)| *of), more) {
        (Ok(at), true) => counts[at].1 += 1,
        (Ok(at), false) if counts[at].1 == 1 => drop(counts.remove(at)),
        (Ok(at), false) => counts[at].1 -= 1,
        (Err(at), true) => counts.insert(at, (keyspace, 1)),
        (Err(_), false) => unreachable!("a key that was counted is uncounted"),
    }
}
