//! What the layer above does with slots: opening, owning, freezing, handing off, truncating, dropping.
//!
//! Invariants: every change names the generation that it is about, and goes through the table in `gate.rs`; what must
//! outlive a restart (generations, terms and truncations) is logged before it takes effect; gates themselves are not logged, because
//! after a restart nothing is served until the layer above says so. All of it is synchronous, from any thread; the slot's
//! [`position`](crate::SlotStatus::position) tells what to wait for.

use lockgate_runtime::Event;
use lockgate_runtime::sync::{Arc, MutexGuard};

use crate::engine::Engine;
use crate::error::SlotError;
use crate::frames::{FRAME_DROP, FRAME_OPEN, FRAME_TERM, FRAME_TRUNCATE};
use crate::gate::Action;
use crate::log::{Log, LogError, Reservation};
use crate::slot::SlotState;
use crate::store::Store;
use crate::types::{
    Floors, FrozenAt, Gate, Generation, RangeHeader, Slot, SlotStatus, Term, Truncated, Version,
};
use crate::wakes::Wakes;

const NO_RANGE: RangeHeader = RangeHeader { term: Term(0), base: 0 };

impl Engine {
    /// What a slot is and holds now.
    pub fn slot_status(&self, slot: Slot) -> SlotStatus {
        self.slot(slot).lock().status()
    }

    /// What of a slot's history was discarded, here or at its source.
    pub fn slot_floors(&self, slot: Slot) -> Floors {
        self.slot(slot).lock().floors()
    }

    /// Notified after every change of a slot's gate, and after every range that is applied to it.
    pub fn gate_event(&self, slot: Slot) -> Arc<Event> {
        self.slot(slot).lock().gate_event()
    }

    /// Makes a slot ready to be filled, as an import or as a follower (`gate`). What it holds of an older generation is
    /// dropped first, durably. For the generation that is open only the gate changes, and the data stays.
    ///
    /// A slot that is served must stop to serve first. Panics for any other gate.
    pub fn open_slot(&self, slot: Slot, generation: Generation, gate: Gate) -> Result<(), SlotError> {
        let action = match gate {
            Gate::Importing => Action::Import,
            Gate::Follower => Action::OpenAsFollower,
            other => panic!("a slot is opened as importing or as follower, not as {other}"),
        };
        let frames =
            Frames::reserve(self.home_log(slot)).map_err(|source| SlotError::Log { slot, source })?;
        let mut held = self.slot(slot).lock();
        let is_new = held.check_opening(generation)?;
        let gate = held.check_action(action)?;
        let mut ended = Ended::default();
        if is_new {
            begin_generation(&mut held, generation, frames, &mut ended)?;
        }
        held.set_gate(gate, &mut ended.wakes);
        finish(held, ended);
        Ok(())
    }

    /// Serves a slot under `term`, which may not be below the slot's. A higher one begins a new range of versions.
    pub fn own(&self, slot: Slot, generation: Generation, term: Term) -> Result<(), SlotError> {
        self.own_from(slot, generation, term, 0)
    }

    /// As [`Engine::own`]; the slot's clock begins at `clock_floor_ms` (milliseconds since 1970) or later: where its last
    /// owner's stood when it was frozen, see [`FrozenAt`].
    pub fn own_from(
        &self,
        slot: Slot,
        generation: Generation,
        term: Term,
        clock_floor_ms: u64,
    ) -> Result<(), SlotError> {
        let mut frames =
            Frames::reserve(self.home_log(slot)).map_err(|source| SlotError::Log { slot, source })?;
        let mut held = self.slot(slot).lock();
        let is_new = held.check_opening(generation)?;
        let gate = held.check_action(Action::Own)?;
        let mut ended = Ended::default();
        if is_new {
            if held.gate() != Gate::Absent {
                return Err(SlotError::NotOpen { slot, have: held.generation(), wanted: generation });
            }
            frames = begin_generation(&mut held, generation, frames, &mut ended)?;
        }
        held.check_term(term)?;
        if held.begins_term(term) {
            let range = RangeHeader { term, base: held.next_base() };
            frames.log(
                |log, reservation| held.log_change(FRAME_TERM, generation, range, log, reservation),
                slot,
            )?;
            held.begin_term(range);
        }
        held.raise_clock(clock_floor_ms);
        held.set_gate(gate, &mut ended.wakes);
        finish(held, ended);
        Ok(())
    }

    /// Stops to serve a slot, or to import it, and follows this shard's primary from what is here.
    pub fn follow(&self, slot: Slot, generation: Generation) -> Result<(), SlotError> {
        self.change_gate(slot, generation, Action::Follow, |_| ())
    }

    /// Stops a slot's writes and its clock, and says where they stopped. Freezing what is frozen gives the same answer.
    pub fn freeze(&self, slot: Slot, generation: Generation) -> Result<FrozenAt, SlotError> {
        self.change_gate(slot, generation, Action::Freeze, |held| FrozenAt {
            version: held.version(),
            digest: held.store.digest(),
            clock_ms: held.clock_ms(|| self.unix_ms()),
        })
    }

    /// Lets a frozen slot be written again. Its clock goes on from where it stood, or from the wall clock if that is later.
    pub fn thaw(&self, slot: Slot, generation: Generation) -> Result<(), SlotError> {
        self.change_gate(slot, generation, Action::Thaw, |_| ())
    }

    /// Stops a slot's reads and writes: another shard owns it now. Its data stays, to be streamed, until it is dropped.
    pub fn hand_off(&self, slot: Slot, generation: Generation) -> Result<(), SlotError> {
        self.change_gate(slot, generation, Action::HandOff, |_| ())
    }

    /// Ends a generation for ever, durably, and frees its data as far as nothing pins it. A slot that is served is
    /// refused: it must be handed off, or follow, first. Ending what is over already is not an error.
    pub fn drop_slot(&self, slot: Slot, generation: Generation) -> Result<(), SlotError> {
        let frames =
            Frames::reserve(self.home_log(slot)).map_err(|source| SlotError::Log { slot, source })?;
        let mut held = self.slot(slot).lock();
        match held.check_generation(generation) {
            Ok(()) => {}
            Err(SlotError::Stale { .. }) => return Ok(()),
            // A generation that may still come here is over before it began.
            Err(SlotError::NotOpen { .. }) if held.gate() == Gate::Absent => {}
            Err(other) => return Err(other),
        }
        held.check_action(Action::Drop)?;
        frames.log(
            |log, reservation| held.log_change(FRAME_DROP, generation, NO_RANGE, log, reservation),
            slot,
        )?;
        let mut ended = Ended::default();
        ended.garbage = Some(held.end_generation(generation, &mut ended.wakes));
        finish(held, ended);
        Ok(())
    }

    /// Takes every write above `to` back, durably, in a slot that follows or imports: its data, digest, counts, deadlines and
    /// history are as if those had never come, and what they superseded is live again. Streams that have read them here end,
    /// as with the generation.
    ///
    /// `to` need not be a version that the slot has: what is left ends at the last one up to it. It must not lie within a
    /// batch, where no slot's history ends: that would be taken apart. Costs time by all records
    /// that were ever written to the slot, under its lock.
    pub fn truncate(&self, slot: Slot, generation: Generation, to: Version) -> Result<Truncated, SlotError> {
        let frames =
            Frames::reserve(self.home_log(slot)).map_err(|source| SlotError::Log { slot, source })?;
        let mut held = self.slot(slot).lock();
        held.check_generation(generation)?;
        held.check_action(Action::Truncate)?;
        let Some(cut) = held.cut(to)? else {
            return Ok(Truncated { version: held.version(), dropped_records: 0 });
        };
        let (version, dropped_records) = (cut.version, cut.dropped_records);
        let end = RangeHeader { term: version.term, base: version.counter };
        frames.log(
            |log, reservation| held.log_change(FRAME_TRUNCATE, generation, end, log, reservation),
            slot,
        )?;
        let mut ended = Ended::default();
        ended.garbage = held.take_back(cut, &mut ended.wakes);
        finish(held, ended);
        Ok(Truncated { version, dropped_records })
    }

    fn change_gate<T>(
        &self,
        slot: Slot,
        generation: Generation,
        action: Action,
        see: impl FnOnce(&mut SlotState) -> T,
    ) -> Result<T, SlotError> {
        let mut held = self.slot(slot).lock();
        held.check_generation(generation)?;
        let gate = held.check_action(action)?;
        // A clock that is about to stand still stands at this moment.
        held.clock_ms(|| self.unix_ms());
        let mut ended = Ended::default();
        held.set_gate(gate, &mut ended.wakes);
        let seen = see(&mut held);
        finish(held, ended);
        Ok(seen)
    }
}

/// What a change leaves to be done once the slot's lock is released.
#[derive(Default)]
struct Ended {
    wakes: Wakes,
    garbage: Option<Store>,
}

/// Releases the lock, then wakes, then frees.
fn finish(held: MutexGuard<'_, SlotState>, ended: Ended) {
    drop(held);
    ended.wakes.wake();
    drop(ended.garbage);
}

/// Ends the generation that is open, if any, and begins the next.
fn begin_generation<'a>(
    held: &mut SlotState,
    generation: Generation,
    mut frames: Frames<'a>,
    ended: &mut Ended,
) -> Result<Frames<'a>, SlotError> {
    let slot = held.slot();
    if held.is_open() {
        let old = held.generation();
        frames = frames
            .log(|log, reservation| held.log_change(FRAME_DROP, old, NO_RANGE, log, reservation), slot)?;
        ended.garbage = Some(held.end_generation(old, &mut ended.wakes));
    }
    frames = frames
        .log(|log, reservation| held.log_change(FRAME_OPEN, generation, NO_RANGE, log, reservation), slot)?;
    held.begin_generation(generation);
    Ok(frames)
}

/// Room in the log for the few small frames that one change may need, reserved before the slot's lock is taken.
struct Frames<'a> {
    log: &'a Log,
    reservations: Vec<Reservation<'a>>,
}

impl<'a> Frames<'a> {
    /// The end of a generation, the next one's beginning, and its term's.
    const COUNT: usize = 3;

    fn reserve(log: &'a Log) -> Result<Frames<'a>, LogError> {
        let reservations = (0..Self::COUNT).map(|_| log.reserve_control(0)).collect::<Result<_, _>>()?;
        Ok(Frames { log, reservations })
    }

    fn log(
        mut self,
        append: impl FnOnce(&'a Log, Reservation<'a>) -> Result<(), crate::log::LogFailed>,
        slot: Slot,
    ) -> Result<Frames<'a>, SlotError> {
        let reservation = self.reservations.pop().expect("no change needs more frames");
        append(self.log, reservation).map_err(|failed| SlotError::Log { slot, source: failed.into() })?;
        Ok(self)
    }
}
