//! Taking in ranges of records that were written elsewhere: by another node, or by this one before it was restarted.
//!
//! Invariants: every record of a range is verified before anything changes, so a range has all of its effect or none;
//! records that are here already are skipped, so a range may come twice; what is taken in is logged as it came.

use lockgate_runtime::mutation;

use crate::engine::Engine;
use crate::error::ApplyError;
use crate::frames::{FRAME_FLOOR, FRAME_UNDO_FLOOR};
use crate::record::{self, Kind};
use crate::segment::EXTENT_BYTES_MAX;
use crate::slot::SlotState;
use crate::types::{Applied, Floors, Generation, RangeHeader, Slot};
use crate::wakes::Wakes;

/// Checks a whole range, and returns its first and last counter.
pub(crate) fn verify_range(
    slot: Slot,
    header: RangeHeader,
    records: &[u8],
) -> Result<(u64, u64), ApplyError> {
    if records.is_empty() || records.len() > EXTENT_BYTES_MAX {
        return Err(ApplyError::BadLength { slot, bytes: records.len(), max_bytes: EXTENT_BYTES_MAX });
    }
    if header.base.checked_add(u64::from(u32::MAX) + 1).is_none() {
        return Err(ApplyError::BadBase { slot, base: header.base });
    }
    let (mut offset, mut first, mut last) = (0, 0, 0);
    while offset < records.len() {
        let record = record::verify(&records[offset..]).map_err(|source| ApplyError::Record {
            slot,
            offset,
            source,
        })?;
        let of = Slot::of_key(record.key);
        // What clears a keyspace has no key: it is of the slot that it comes with.
        if of != slot && record.kind != Kind::Clear {
            return Err(ApplyError::ForeignKey { slot, offset, of });
        }
        if record.delta <= last {
            return Err(ApplyError::OutOfOrder { slot, offset });
        }
        if offset == 0 {
            first = record.delta;
        }
        last = record.delta;
        offset += record.encoded_bytes();
    }
    Ok((header.base + u64::from(first), header.base + u64::from(last)))
}

impl Engine {
    /// Takes a range of another node's records into a slot that imports or follows, and logs it in one frame.
    ///
    /// What the slot has already is skipped. A range of a later term begins that term here; one of an earlier term is
    /// refused, and so is one that does not continue the slot's history.
    pub fn apply(
        &self,
        slot: Slot,
        generation: Generation,
        header: &RangeHeader,
        records: &[u8],
    ) -> Result<Applied, ApplyError> {
        let counters = verify_range(slot, *header, records)?;
        let log = self.home_log(slot);
        let reservation = log.reserve(records.len()).map_err(|source| ApplyError::Log { slot, source })?;
        let mut held = self.slot(slot).lock();
        check_taking(&held, generation)?;
        let mut wakes = Wakes::default();
        if let Some(fresh) = held.fresh(*header, records, counters)? {
            held.reserve(*header, &fresh).map_err(|source| ApplyError::OutOfMemory { slot, source })?;
            held.log_fresh(*header, &fresh, log, reservation)
                .map_err(|failed| ApplyError::Log { slot, source: failed.into() })?;
            held.take_in(*header, &fresh, &mut wakes);
        }
        let applied = Applied { version: held.version(), log: self.ticket_at(slot, held.position()) };
        drop(held);
        wakes.wake();
        Ok(applied)
    }

    /// Takes over what the source that a slot is filled from has discarded, durably before the next range: see
    /// [`StreamRange::floors`](crate::StreamRange::floors). The slot knows what it will never be sent: as a source it refuses
    /// receivers that may need it (R5), and it goes back no further than its source (R4).
    pub fn raise_floors(&self, slot: Slot, generation: Generation, to: Floors) -> Result<(), ApplyError> {
        let log = self.home_log(slot);
        let reserve = || log.reserve_control(0).map_err(|source| ApplyError::Log { slot, source });
        let reservations = [reserve()?, reserve()?];
        let mut held = self.slot(slot).lock();
        check_taking(&held, generation)?;
        let have = held.floors();
        let raised =
            [(FRAME_FLOOR, to.floor, have.floor), (FRAME_UNDO_FLOOR, to.undo_floor, have.undo_floor)];
        for ((kind, to, have), reservation) in raised.into_iter().zip(reservations) {
            if to > have {
                let range = RangeHeader { term: to.term, base: to.counter };
                held.log_change(kind, generation, range, log, reservation)
                    .map_err(|failed| ApplyError::Log { slot, source: failed.into() })?;
            }
        }
        if !mutation!("floor-not-copied") {
            held.raise_floors(to);
        }
        Ok(())
    }
}

/// Whether the slot is filled from elsewhere, in that generation.
fn check_taking(held: &SlotState, wanted: Generation) -> Result<(), ApplyError> {
    let (slot, gate, have) = (held.slot(), held.gate(), held.generation());
    if !gate.takes_ranges() || held.check_generation(wanted).is_err() {
        return Err(ApplyError::NotTaking { slot, gate, have, wanted });
    }
    Ok(())
}
