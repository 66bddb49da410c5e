//! What a slot's records come to, worked out from the records alone: which keys are live, and their sum.
//!
//! It shares no code with the engine's own index, so that the sum that a slot had when it was backed up is checked by
//! something else than what made it. Memory: the keys of one slot, and some bytes for each.

use std::collections::BTreeMap;

use crate::record::{self, Kind, Record};
use crate::segment::PinnedRange;
use crate::types::RangeHeader;

#[derive(Clone, Copy)]
struct Live {
    digest: u64,
    bytes: u32,
}

/// The live keys of one slot.
#[derive(Default)]
pub(crate) struct Tally {
    live: BTreeMap<(u8, Box<[u8]>), Live>,
}

/// What they come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) keys: u64,
    pub(crate) live_bytes: u64,
    pub(crate) digest: u64,
}

impl Tally {
    /// The next record, in the order of versions.
    pub(crate) fn add(&mut self, record: &Record<'_>) {
        match record.kind {
            Kind::Put => {
                let live = Live { digest: record.digest(), bytes: record.encoded_bytes() as u32 };
                self.live.insert((record.keyspace, record.key.into()), live);
            }
            Kind::Delete => {
                self.live.remove(&(record.keyspace, record.key.into()));
            }
            Kind::Clear => self.live.retain(|(keyspace, _), _| *keyspace != record.keyspace),
        }
    }

    pub(crate) fn sums(&self) -> Sums {
        let mut sums = Sums { keys: self.live.len() as u64, live_bytes: 0, digest: 0 };
        for live in self.live.values() {
            sums.live_bytes += u64::from(live.bytes);
            sums.digest = sums.digest.wrapping_add(live.digest);
        }
        sums
    }
}

/// Keys, live bytes and digest of a slot's records, and the bytes of all of them.
pub(crate) fn tally_of(records: &[(RangeHeader, PinnedRange)]) -> (u64, u64, u64, u64) {
    let (mut tally, mut bytes) = (Tally::default(), 0);
    for (_, records) in records {
        let mut at = 0;
        while at < records.len() {
            let found = record::parse(&records[at..]).expect("what is in memory was verified");
            tally.add(&found);
            at += found.encoded_bytes();
        }
        bytes += records.len() as u64;
    }
    let Sums { keys, live_bytes, digest } = tally.sums();
    (keys, live_bytes, digest, bytes)
}
