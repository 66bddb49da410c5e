//! Reading all keys of a keyspace and a slot, in pages.
//!
//! A page has keys in the order of their hashes, and a cursor is a bound of hashes: so it stays valid whatever is written
//! and however the index grows or shrinks meanwhile. What holds:
//!
//! - A key that is there from the first page to the last is returned exactly once. One that comes or goes meanwhile is
//!   returned once or not at all. Every page is what the slot had at one instant; different pages are not of one instant.
//! - Keys with the same first 32 bits of their hashes are returned together. So a page may have more keys than asked for;
//!   with hashes that outsiders cannot foresee it hardly ever does.
//! - A page may have fewer keys than asked for, or none, and there may be more to come: a call looks at a bounded number of
//!   keys, also those of other keyspaces. Only a page without a cursor is the last one.
//! - Hashes are seeded anew whenever an engine is opened, and every node has its own. So a cursor carries a mark of its
//!   engine's seed, and another engine refuses it, except for one in 2^18 that has the same mark by chance; there it goes
//!   on in another order.

use std::ops::ControlFlow;

use crate::error::OpError;
use crate::keyspace::Keyspace;
use crate::segment::RecordOffset;
use crate::slot::SlotState;
use crate::types::{LogTicket, Slot, Version};
use crate::value::Value;
use crate::wakes::Wakes;

/// A call looks at up to so many entries for each key that is asked for...
const VISITS_PER_KEY: usize = 4;
/// ... and at least at so many.
const VISITS_MIN: usize = 64;

const MARK_BITS: u32 = 18;
const MARK_MASK: u64 = (1 << MARK_BITS) - 1;

/// Where a scan goes on. Only for the engine and the keyspace that gave it, as long as the engine is open.
///
/// As a number it is below 2^50, so that a slot's number fits above it. Zero is the start, and no other cursor is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ScanCursor(u64);

impl ScanCursor {
    /// Where every scan begins; good for every engine.
    pub const START: ScanCursor = ScanCursor(0);

    /// The cursor as a number.
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The cursor with this number. Any number may be given: what is no cursor of an engine is refused there.
    pub const fn from_u64(number: u64) -> ScanCursor {
        ScanCursor(number)
    }

    /// From this hash on.
    fn at(hash: u64, mark: u64) -> ScanCursor {
        ScanCursor((hash >> 32) << MARK_BITS | mark)
    }

    /// The lowest hash that is still to come, if it is a cursor of the engine with this mark.
    fn bound(self, mark: u64) -> Option<u64> {
        match self {
            ScanCursor::START => Some(0),
            ScanCursor(number) if number >> (MARK_BITS + 32) != 0 || number & MARK_MASK != mark => None,
            ScanCursor(number) => Some((number >> MARK_BITS) << 32),
        }
    }
}

/// A key that a scan found.
#[derive(Clone, Debug)]
pub struct ScanEntry {
    /// The key.
    pub key: Vec<u8>,
    /// Its value, with its version.
    pub value: Value,
}

/// What one call of a scan found, with what an answer that is held back has to wait for.
#[derive(Clone, Debug)]
pub struct ScanPage {
    /// The keys, in an order that means nothing.
    pub entries: Vec<ScanEntry>,
    /// Where to go on. `None`: that was all.
    pub next: Option<ScanCursor>,
    /// The slot's last version.
    pub version: Version,
    /// The slot's last write in the log.
    pub position: LogTicket,
}

/// What a page is made from.
struct Found {
    places: Vec<RecordOffset>,
    /// The first hash that was not looked at.
    next: Option<u64>,
}

impl Keyspace {
    /// A page of about `count_max` keys of a slot (at least one is taken to be asked for), from `cursor` on. See
    /// [`ScanCursor`] and [`ScanPage`]: a key that is there during the whole scan is in exactly one page, whatever is
    /// written meanwhile; a page may be a little longer than asked for, shorter, or empty, and only one without `next` is
    /// the last.
    ///
    /// Keys that are due are deleted first, as by every other read, and so the call may fail as they do. A cursor of another
    /// engine or keyspace, or of an earlier start of this engine, is [`OpError::ForeignCursor`].
    pub fn scan(&self, slot: Slot, cursor: ScanCursor, count_max: usize) -> Result<ScanPage, OpError> {
        let mark = self.mark();
        let from = cursor.bound(mark).ok_or(OpError::ForeignCursor { slot })?;
        self.engine.locked(slot, |held, wakes| {
            held.check_readable()?;
            let found = find(held, self.number(), from, count_max.max(1));
            let entries = self.live(held, &found.places, wakes)?;
            Ok(ScanPage {
                entries,
                next: found.next.map(|hash| ScanCursor::at(hash, mark)),
                version: held.version(),
                position: self.ticket(slot, held.position()),
            })
        })
    }

    /// What tells this engine's cursors from others': never zero.
    fn mark(&self) -> u64 {
        (self.hash(b"scan cursor") & MARK_MASK).max(1)
    }

    /// The keys at these places, without those that are due, which are deleted.
    fn live(
        &self,
        held: &mut SlotState,
        places: &[RecordOffset],
        wakes: &mut Wakes,
    ) -> Result<Vec<ScanEntry>, OpError> {
        let mut entries = Vec::with_capacity(places.len());
        let mut due = Vec::new();
        for &place in places {
            let record = held.store.record_at(place);
            let (key, deadline_ms) = (record.key.to_vec(), record.deadline_ms);
            if deadline_ms.is_some_and(|at_ms| at_ms <= held.clock_ms(|| self.engine.unix_ms())) {
                due.push(key);
            } else {
                entries.push(ScanEntry { key, value: Value::of(&held.store, place) });
            }
        }
        // Only now: what is written may move records.
        for key in due {
            self.meet(held, &key, wakes)?;
        }
        Ok(entries)
    }
}

/// The keyspace's next keys, by their hashes.
fn find(held: &SlotState, keyspace: u8, from: u64, count_max: usize) -> Found {
    let store = &held.store;
    let visits_max = count_max.saturating_mul(VISITS_PER_KEY).max(VISITS_MIN);
    let mut found = Found { places: Vec::new(), next: None };
    let (mut visits, mut last) = (0, None);
    let visit = |hash: u64, place| {
        let is_full = found.places.len() >= count_max || visits >= visits_max;
        if is_full && last != Some(hash >> 32) {
            found.next = Some(hash);
            return ControlFlow::Break(());
        }
        last = Some(hash >> 32);
        visits += 1;
        if store.record_at(place).keyspace == keyspace {
            found.places.push(place);
        }
        ControlFlow::Continue(())
    };
    store.index().scan(from, |place| store.hash_at(place), visit);
    found
}
