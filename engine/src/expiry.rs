//! How keys end: a slot's clock, and the delete that is logged before anybody is told that a key's time has come.
//!
//! Invariants:
//! - Only the owner of a slot ends keys, and each end is an ordinary delete: a tombstone with a version, in the log and in
//!   the streams. Followers and importing slots have what they were sent, due or not.
//! - "Ended" is answered only after that tombstone, and the answer rests on it, as on a write.
//! - A slot's clock is the later of its floor and of the runtime's wall clock, and never goes back. It stands still while
//!   the slot is not owned: what is due at a frozen slot's clock and not deleted yet can be neither deleted nor answered.
//!
//! The wall clock may be wrong. If it jumps ahead, keys end early, here and, because a slot's clock goes with the slot, at
//! its next owner; if it jumps back, slots whose clock is ahead wait for it, and keys end late.

use lockgate_runtime::mutation;

use crate::error::OpError;
use crate::log::{Log, LogPosition};
use crate::options::Expiry;
use crate::record::{NewRecord, Record, encoded_bytes};
use crate::segment::RecordOffset;
use crate::slot::SlotState;
use crate::types::{Gate, Version};
use crate::wakes::Wakes;

/// How long the sweeper leaves a slot alone that could not take a delete.
const RETRY_MS: u64 = 100;

/// A slot's clock, and its entry in the schedule of its core's sweeper.
#[derive(Default)]
pub(crate) struct SlotTime {
    clock_ms: u64,
    /// The entry's time, if there is an entry.
    scheduled_ms: Option<u64>,
}

/// What an operation met at a key.
pub(crate) struct Met {
    /// The live record, if there is one.
    pub(crate) place: Option<RecordOffset>,
    /// What an absence rests on: the slot's last write...
    pub(crate) version: Version,
    /// ... and its end in the log.
    pub(crate) position: LogPosition,
}

/// What a look at a key shows.
pub(crate) enum Glance<'a> {
    /// It is not there.
    Absent,
    /// Its record, which has no deadline.
    Live(RecordOffset, Record<'a>),
    /// It has a deadline: [`meet`](SlotState::meet) it.
    Mortal,
}

impl SlotState {
    /// Whether keys are ended here when they are due.
    pub(crate) fn ends_keys(&self) -> bool {
        match self.gate() {
            Gate::Owned => true,
            Gate::Frozen => mutation!("frozen-clock-goes-on"),
            Gate::Importing | Gate::Follower => mutation!("expiry-on-a-replica"),
            Gate::Absent | Gate::HandedOff => false,
        }
    }

    /// The slot's clock, given the wall clock.
    pub(crate) fn clock_ms(&mut self, wall_ms: impl FnOnce() -> u64) -> u64 {
        if self.ends_keys() {
            self.time.clock_ms = self.time.clock_ms.max(wall_ms());
        }
        self.time.clock_ms
    }

    /// The slot's clock is not before `floor_ms` from now on.
    pub(crate) fn raise_clock(&mut self, floor_ms: u64) {
        self.time.clock_ms = self.time.clock_ms.max(floor_ms);
    }

    /// Looks a key up, whose hash is given, and changes nothing.
    #[inline]
    pub(crate) fn glance(&self, keyspace: u8, key: &[u8], hash: u64) -> Glance<'_> {
        let Some(place) = self.store.find_hashed(hash, keyspace, key) else { return Glance::Absent };
        let record = self.store.record_at(place);
        if record.deadline_ms.is_some() { Glance::Mortal } else { Glance::Live(place, record) }
    }

    /// Looks a key up. One that is due is deleted first. A key without a deadline costs one look at its flag.
    pub(crate) fn meet(
        &mut self,
        keyspace: u8,
        key: &[u8],
        wall_ms: impl FnOnce() -> u64,
        log: &Log,
        wakes: &mut Wakes,
    ) -> Result<Met, OpError> {
        let place = self.store.find(keyspace, key);
        let met = Met { place, version: self.version(), position: self.position() };
        let Some(deadline_ms) = place.and_then(|place| self.store.record_at(place).deadline_ms) else {
            return Ok(met);
        };
        if deadline_ms > self.clock_ms(wall_ms) {
            return Ok(met);
        }
        if mutation!("expiry-not-logged") {
            return Ok(Met { place: None, ..met });
        }
        self.end_key(keyspace, key, log, wakes)?;
        Ok(Met { place: None, version: self.version(), position: self.position() })
    }

    /// The deadline that `expiry` comes to for a key whose live record is at `place`, and whether it has come already.
    pub(crate) fn resolve(
        &mut self,
        place: Option<RecordOffset>,
        expiry: Expiry,
        wall_ms: impl FnOnce() -> u64,
    ) -> (Option<u64>, bool) {
        match expiry {
            Expiry::Clear => (None, false),
            Expiry::Keep => (place.and_then(|place| self.store.record_at(place).deadline_ms), false),
            Expiry::At(at_ms) => (Some(at_ms), at_ms <= self.clock_ms(wall_ms)),
            Expiry::After(time_ms) => (Some(self.clock_ms(wall_ms).saturating_add(time_ms)), time_ms == 0),
        }
    }

    /// Deletes up to `keys_max` keys that are due, the earliest first. For the sweeper, which took out the slot's entry of
    /// this time; what is left to do has a new entry afterwards.
    pub(crate) fn sweep(
        &mut self,
        scheduled_ms: u64,
        wall_ms: u64,
        keys_max: usize,
        log: &Log,
        wakes: &mut Wakes,
    ) -> Result<(), OpError> {
        if self.time.scheduled_ms != Some(scheduled_ms) || mutation!("expiry-not-logged") {
            return Ok(());
        }
        self.time.scheduled_ms = None;
        let swept = self.end_due_keys(wall_ms, keys_max, log, wakes);
        match swept {
            // All pass, and no earlier than something is written or given back.
            Err(OpError::LogBehind { .. } | OpError::DiskFull { .. } | OpError::OutOfMemory { .. }) => {
                self.enter_schedule(wall_ms.saturating_add(RETRY_MS), wakes);
                Ok(())
            }
            _ => {
                self.schedule(wakes);
                swept
            }
        }
    }

    /// Sees to it that the sweeper comes when the first key is due.
    pub(crate) fn schedule(&mut self, wakes: &mut Wakes) {
        if !self.ends_keys() {
            return;
        }
        let Some((deadline_ms, _)) = self.store.first_deadline() else { return };
        // The slot's clock may be ahead of the sweeper's.
        let due_ms = if deadline_ms <= self.time.clock_ms { 0 } else { deadline_ms };
        if self.time.scheduled_ms.is_none_or(|entry_ms| due_ms < entry_ms) {
            self.enter_schedule(due_ms, wakes);
        }
    }

    fn enter_schedule(&mut self, due_ms: u64, wakes: &mut Wakes) {
        let before = self.time.scheduled_ms.replace(due_ms);
        if self.watchers.sweeper.enter(self.slot(), before, due_ms) {
            wakes.sweeper = Some(self.watchers.sweeper.clone());
        }
    }

    fn end_due_keys(
        &mut self,
        wall_ms: u64,
        keys_max: usize,
        log: &Log,
        wakes: &mut Wakes,
    ) -> Result<(), OpError> {
        for _ in 0..keys_max {
            let Some((deadline_ms, place)) = self.store.first_deadline() else { break };
            if !self.ends_keys() || deadline_ms > self.clock_ms(|| wall_ms) {
                break;
            }
            let record = self.store.record_at(place);
            let (keyspace, key) = (record.keyspace, record.key.to_vec());
            self.end_key(keyspace, &key, log, wakes)?;
        }
        Ok(())
    }

    /// Deletes a key that is due. Nothing may be logged in a slot that is not owned.
    pub(crate) fn end_key(
        &mut self,
        keyspace: u8,
        key: &[u8],
        log: &Log,
        wakes: &mut Wakes,
    ) -> Result<(), OpError> {
        let slot = self.slot();
        if !self.ends_keys() {
            return Err(OpError::Frozen { slot });
        }
        let reservation = log
            .reserve(encoded_bytes(false, key.len(), 0))
            .map_err(|error| OpError::from_log(slot, error))?;
        self.write(NewRecord::delete(keyspace, key), log, reservation, wakes)?;
        Ok(())
    }
}
