//! One slot: all that its lock guards.
//!
//! Invariants, asserted where they could break:
//! - counters strictly increase, except that a truncation takes the last writes back; the term never goes back within a
//!   generation, and generations never go back;
//! - no two writes have the same version: a term whose writes were taken back is not owned again;
//! - a generation that ended is never opened again;
//! - a slot without a gate holds nothing: its digest is zero;
//! - every change of the data is one log frame with the very same bytes, appended under the lock, so that the log has a
//!   slot's frames in the order of their versions. Lock order: slot, then log. Never two slots.

pub(crate) mod image;

use std::mem::offset_of;

use lockgate_runtime::sync::Arc;
use lockgate_runtime::{Event, mutation};

use crate::arena::OutOfMemory;
use crate::compaction::{CompactionState, Limits};
use crate::dirty::DirtySlots;
use crate::error::{ApplyError, OpError, SlotError};
use crate::expiry::SlotTime;
use crate::extent::FilledRecord;
use crate::frames::FRAME_DATA;
use crate::gate::{self, Action};
use crate::history::History;
use crate::log::{FrameHeader, FrameKind, Log, LogFailed, LogPosition, Reservation};
use crate::record::{self, NewRecord};
use crate::stats::{DataStats, SlotStats};
use crate::store::Store;
use crate::subscriptions::Subscriptions;
use crate::types::{Floors, Gate, Generation, RangeHeader, Slot, SlotStatus, Term, Version};
use crate::wakes::Wakes;
use crate::watchers::Watchers;

/// What one slot's lock guards.
///
/// What a lookup needs comes first: see `cell.rs`.
#[repr(C)]
pub(crate) struct SlotState {
    gate: Gate,
    pub(crate) store: Store,
    slot: Slot,
    generation: Generation,
    /// Generations up to this one are over.
    ended: Generation,
    /// The highest term that the slot was owned under, or has data of.
    term: Term,
    /// What new writes count their versions from.
    base: u64,
    /// The last write.
    version: Version,
    /// What was discarded, here or at the slot's source: may be above `version` while the slot is filled.
    floors: Floors,
    pub(crate) compaction: CompactionState,
    history: History,
    /// How often writes were taken back, so that streams notice.
    truncations: u64,
    /// The highest term whose writes were taken back.
    truncated_term: Option<Term>,
    /// The log's end of the last write or change.
    position: LogPosition,
    streams: Subscriptions,
    gate_event: Option<Arc<Event>>,
    pub(crate) watchers: Arc<Watchers>,
    pub(crate) time: SlotTime,
}

/// What a slot is without its last writes.
pub(crate) struct Cut {
    /// `None`: all records stay.
    pub(crate) store: Option<Store>,
    pub(crate) version: Version,
    pub(crate) dropped_records: u64,
}

/// The part of a verified range that a slot does not have yet.
pub(crate) struct Fresh<'a> {
    pub(crate) records: &'a [u8],
    first: u64,
    last: u64,
}

impl SlotState {
    /// What a lookup needs: the first bytes of a slot's state.
    pub(crate) const LOOKUP_BYTES: usize = offset_of!(SlotState, store) + Store::LOOKUP_BYTES;

    pub(crate) fn new(slot: Slot, store: Store, watchers: Arc<Watchers>) -> SlotState {
        SlotState {
            gate: Gate::Absent,
            store,
            slot,
            generation: Generation::ZERO,
            ended: Generation::ZERO,
            term: Term(0),
            base: 0,
            version: Version::ZERO,
            floors: Floors::default(),
            compaction: CompactionState::default(),
            history: History::default(),
            truncations: 0,
            truncated_term: None,
            position: LogPosition::default(),
            streams: Subscriptions::default(),
            gate_event: None,
            watchers,
            time: SlotTime::default(),
        }
    }

    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    pub(crate) fn gate(&self) -> Gate {
        self.gate
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn floors(&self) -> Floors {
        self.floors
    }

    /// Whether what superseded writes up to `undo_floor` is here, or will come: a receiver that lacks what they superseded gets
    /// them.
    pub(crate) fn fills_up_to(&self, undo_floor: Version) -> bool {
        let known = self.floors.undo_floor;
        // A term has one owner: what it had at a higher counter it had here.
        let is_to_come = undo_floor.term == known.term && undo_floor <= known;
        is_to_come || self.on_history(undo_floor) || mutation!("gaps-not-noticed")
    }

    pub(crate) fn position(&self) -> LogPosition {
        self.position
    }

    pub(crate) fn on_history(&self, cursor: Version) -> bool {
        self.history.contains(cursor, self.version) || mutation!("cursor-off-the-history")
    }

    /// How often writes were taken back here.
    pub(crate) fn truncations(&self) -> u64 {
        self.truncations
    }

    /// Whether all that a stream has read up to `after` is still here.
    pub(crate) fn still_has(&self, after: Version) -> bool {
        self.history.contains(after, self.version)
    }

    /// The greatest version here that a receiver at `cursor` may have, too.
    pub(crate) fn common(&self, cursor: Version) -> Version {
        self.history.common(cursor, self.version)
    }

    pub(crate) fn status(&self) -> SlotStatus {
        SlotStatus {
            gate: self.gate,
            term: self.term,
            generation: self.generation,
            version: self.version,
            keys: self.store.keys(),
            live_bytes: self.store.live_bytes(),
            digest: self.store.digest(),
            position: self.position,
        }
    }

    /// What may be discarded, given up to where writes are never taken back.
    pub(crate) fn limits(&self, stable: u64) -> Limits {
        self.streams.limits(stable)
    }

    /// That much is gone: by a compaction here, or it will not come from the source.
    pub(crate) fn raise_floors(&mut self, to: Floors) {
        let Floors { floor, undo_floor } = &mut self.floors;
        *floor = to.floor.max(*floor);
        *undo_floor = to.undo_floor.max(*undo_floor).max(*floor);
    }

    /// Whether there is, or was, anything in its generation.
    pub(crate) fn holds_data(&self) -> bool {
        self.version > Version::ZERO
    }

    pub(crate) fn stats(&self) -> SlotStats {
        let (gate, version) = (self.gate, self.version);
        SlotStats { gate, version, data: DataStats::of(&self.store), keyspaces: Vec::new() }
    }

    pub(crate) fn gate_event(&mut self) -> Arc<Event> {
        self.gate_event.get_or_insert_with(|| Arc::new(Event::new())).clone()
    }

    // Serving.

    pub(crate) fn check_readable(&self) -> Result<(), OpError> {
        if self.gate.serves_reads() {
            Ok(())
        } else {
            Err(OpError::NotOwned { slot: self.slot, gate: self.gate })
        }
    }

    pub(crate) fn check_writable(&self) -> Result<(), OpError> {
        match self.gate {
            Gate::Owned => Ok(()),
            Gate::Frozen => Err(OpError::Frozen { slot: self.slot }),
            gate => Err(OpError::NotOwned { slot: self.slot, gate }),
        }
    }

    /// One write by this slot's owner: memory and log. The gate was checked under the same lock. The record's delta is
    /// set here.
    pub(crate) fn write(
        &mut self,
        new: NewRecord<'_>,
        log: &Log,
        reservation: Reservation<'_>,
        wakes: &mut Wakes,
    ) -> Result<(), OpError> {
        debug_assert!(self.gate == Gate::Owned || self.ends_keys(), "only an owner writes");
        let (range, delta) = self.next();
        let new = NewRecord { delta, ..new };
        let (hash, bytes) = (self.store.hash_of(new.keyspace, new.key), new.encoded_bytes());
        self.store.prefetch_write(hash, bytes);
        let out_of_memory = |source| OpError::OutOfMemory { slot: self.slot, source };
        self.store.reserve_for(range, &[new], bytes).map_err(out_of_memory)?;
        self.store.prefetch_record(hash);
        let frame = self.frame(FRAME_DATA, range);
        self.position = self.store.write(range, &new, |bytes| log.append(reservation, frame, &[bytes]))?;
        self.wrote(range.base + u64::from(delta), wakes);
        Ok(())
    }

    /// As [`write`](SlotState::write), of a record that is in memory of its own already.
    pub(crate) fn write_filled(
        &mut self,
        filled: FilledRecord,
        log: &Log,
        reservation: Reservation<'_>,
        wakes: &mut Wakes,
    ) -> Result<(), OpError> {
        debug_assert!(self.gate == Gate::Owned, "only an owner writes");
        let (range, delta) = self.next();
        self.store.reserve_entry().map_err(|source| OpError::OutOfMemory { slot: self.slot, source })?;
        let frame = self.frame(FRAME_DATA, range);
        let append = |bytes: &[u8]| log.append(reservation, frame, &[bytes]);
        self.position = self.store.write_filled(range, delta, filled, append)?;
        self.wrote(range.base + u64::from(delta), wakes);
        Ok(())
    }

    /// What the next write counts from, and its delta.
    fn next(&mut self) -> (RangeHeader, u32) {
        let counter = self.version.counter + 1;
        if counter - self.base > u64::from(u32::MAX) {
            self.base = self.version.counter;
        }
        (RangeHeader { term: self.term, base: self.base }, (counter - self.base) as u32)
    }

    /// The write with this counter is done.
    fn wrote(&mut self, counter: u64, wakes: &mut Wakes) {
        self.version = Version::new(self.term, counter);
        self.mark(wakes);
        self.schedule(wakes);
    }

    /// As [`write`](SlotState::write), of several records at once, of at most
    /// [`BATCH_BYTES_MAX`](crate::BATCH_BYTES_MAX) together: in one piece of memory and one frame. Their deltas and whether
    /// they go on are set here.
    pub(crate) fn write_many(
        &mut self,
        new: &mut [NewRecord<'_>],
        log: &Log,
        reservation: Reservation<'_>,
        wakes: &mut Wakes,
    ) -> Result<(), OpError> {
        debug_assert!(self.gate == Gate::Owned, "only an owner writes");
        let (before, count) = (self.version.counter, new.len());
        if before + count as u64 - self.base > u64::from(u32::MAX) {
            self.base = before;
        }
        let range = RangeHeader { term: self.term, base: self.base };
        let mut bytes = 0;
        for (at, new) in new.iter_mut().enumerate() {
            (new.delta, new.goes_on) = ((before - self.base) as u32 + at as u32 + 1, at + 1 < count);
            bytes += new.encoded_bytes();
        }
        let out_of_memory = |source| OpError::OutOfMemory { slot: self.slot, source };
        self.store.reserve_for(range, new, bytes).map_err(out_of_memory)?;
        let frame = self.frame(FRAME_DATA, range);
        self.position =
            self.store.write_many(range, new, bytes, |bytes| log.append(reservation, frame, &[bytes]))?;
        wakes.cleared.extend(self.store.take_cleared());
        self.wrote(before + count as u64, wakes);
        Ok(())
    }

    fn frame(&self, kind: FrameKind, range: RangeHeader) -> FrameHeader {
        FrameHeader {
            kind,
            slot: self.slot.number(),
            generation: self.generation.0,
            term: range.term.0,
            base: range.base,
        }
    }

    // Following.

    /// What of a verified range, whose records have counters `first..=last`, is new here. `None`: all of it is here.
    pub(crate) fn fresh<'a>(
        &self,
        range: RangeHeader,
        records: &'a [u8],
        (first, last): (u64, u64),
    ) -> Result<Option<Fresh<'a>>, ApplyError> {
        let (slot, have) = (self.slot, self.version);
        if range.term < have.term {
            // Records of an earlier term that are all here are a repetition, and harmless.
            return if last <= have.counter && self.on_history(Version::new(range.term, last)) {
                Ok(None)
            } else {
                Err(ApplyError::TermTooLow { slot, have: have.term, term: range.term })
            };
        }
        if range.term == have.term && last <= have.counter {
            return Ok(None);
        }
        // A new base begins behind all that its sender had; what is here beyond it the sender never had.
        let continues = self.store.chain().last_range() == Some(range) || range.base >= have.counter;
        if !continues {
            return Err(ApplyError::Diverged { slot, version: have, term: range.term, base: range.base });
        }
        if first > have.counter {
            return Ok(Some(Fresh { records, first, last }));
        }
        let mut at = 0;
        loop {
            let record =
                record::parse(&records[at..]).expect("the range was verified, and its last record is new");
            let counter = range.base + u64::from(record.delta);
            if counter > have.counter {
                return Ok(Some(Fresh { records: &records[at..], first: counter, last }));
            }
            at += record.encoded_bytes();
        }
    }

    /// Makes room for fresh records. Changes nothing that can be seen.
    pub(crate) fn reserve(&mut self, range: RangeHeader, fresh: &Fresh<'_>) -> Result<(), OutOfMemory> {
        self.store.reserve(range, fresh.records.len())
    }

    /// Logs fresh records, for which room was reserved.
    pub(crate) fn log_fresh(
        &mut self,
        range: RangeHeader,
        fresh: &Fresh<'_>,
        log: &Log,
        reservation: Reservation<'_>,
    ) -> Result<(), LogFailed> {
        self.position = log.append(reservation, self.frame(FRAME_DATA, range), &[fresh.records])?;
        Ok(())
    }

    /// Takes fresh records in, for which room was reserved: from another node, or from the log.
    pub(crate) fn take_in(&mut self, range: RangeHeader, fresh: &Fresh<'_>, wakes: &mut Wakes) {
        assert!(fresh.first > self.version.counter && range.term >= self.version.term, "versions increase");
        // A term that began here and wrote nothing must not be taken for the end of the one that goes on.
        self.history.truncate(self.version);
        if range.term > self.version.term {
            self.history.begin(range.term, range.base + 1, self.version);
        }
        self.store.copy_in(fresh.first, fresh.records);
        self.version = Version::new(range.term, fresh.last);
        self.term = self.term.max(range.term);
        self.base = self.version.counter;
        if range.term == self.term {
            // An owner of the same term goes on counting from the same base, so that its ranges stay in one piece.
            self.base = range.base;
        }
        self.mark(wakes);
        wakes.cleared.extend(self.store.take_cleared());
        wakes.gate_event = self.gate_event.clone();
        self.schedule(wakes);
    }

    /// What is left when every write above `to` is taken back. `None`: there is none, and no term began there.
    pub(crate) fn cut(&self, to: Version) -> Result<Option<Cut>, SlotError> {
        let slot = self.slot;
        if to >= self.version {
            let cut = Cut { store: None, version: self.version, dropped_records: 0 };
            return Ok(self.history.goes_beyond(self.version).then_some(cut));
        }
        let floor = self.floors.undo_floor;
        let below_floor = SlotError::BelowFloor { slot, floor, wanted: to };
        if to < floor {
            return Err(below_floor);
        }
        let (store, version) =
            self.store.up_to(to).map_err(|source| SlotError::OutOfMemory { slot, source })?;
        // The write at the floor is not here if it was discarded before the slot was copied.
        if version < floor {
            return Err(below_floor);
        }
        let dropped_records = self.store.chain().records() - store.chain().records();
        Ok(Some(Cut { store: Some(store), version, dropped_records }))
    }

    /// Takes writes back. What they were is given to the caller, to be dropped without the lock.
    pub(crate) fn take_back(&mut self, cut: Cut, wakes: &mut Wakes) -> Option<Store> {
        assert!(cut.version <= self.version, "a truncation brings nothing");
        if cut.version < self.version {
            self.truncations += 1;
            self.truncated_term = self.truncated_term.max(Some(self.version.term));
        }
        let garbage = cut.store.map(|store| std::mem::replace(&mut self.store, store));
        self.version = cut.version;
        self.history.truncate(cut.version);
        self.base = match self.store.chain().last_range() {
            Some(range) if range.term == self.term => range.base,
            _ => self.version.counter,
        };
        // Whoever follows looks again, and finds out whether what it has read is still here.
        self.mark(wakes);
        wakes.cleared.extend(self.store.take_cleared());
        wakes.gate_event = self.gate_event.clone();
        garbage
    }

    // Ownership.

    /// Whether a call about `wanted` may act on this slot's data.
    pub(crate) fn check_generation(&self, wanted: Generation) -> Result<(), SlotError> {
        let (slot, have) = (self.slot, self.generation);
        if wanted < have || wanted <= self.ended {
            return Err(SlotError::Stale { slot, have: have.max(self.ended), wanted });
        }
        if wanted > have { Err(SlotError::NotOpen { slot, have, wanted }) } else { Ok(()) }
    }

    /// Whether `wanted` may be opened, and if so whether that begins a new generation.
    pub(crate) fn check_opening(&self, wanted: Generation) -> Result<bool, SlotError> {
        match self.check_generation(wanted) {
            Ok(()) => Ok(false),
            Err(SlotError::NotOpen { .. }) => Ok(true),
            Err(stale) => Err(stale),
        }
    }

    pub(crate) fn check_term(&self, wanted: Term) -> Result<(), SlotError> {
        if wanted < self.term || self.truncated_term.is_some_and(|taken_back| wanted <= taken_back) {
            return Err(SlotError::TermTooLow { slot: self.slot, have: self.term, wanted });
        }
        Ok(())
    }

    /// Whether owning the slot under `wanted` begins a term, which must be logged.
    pub(crate) fn begins_term(&self, wanted: Term) -> bool {
        wanted > self.term || (wanted > self.version.term && self.history.last() != Some(wanted))
    }

    /// The gate after `action`, if it may be.
    pub(crate) fn check_action(&self, action: Action) -> Result<Gate, SlotError> {
        gate::after(action, self.gate).ok_or(SlotError::WrongGate {
            slot: self.slot,
            have: self.gate,
            action,
        })
    }

    /// Whether there is a generation with data, or with room for it, that has not ended.
    pub(crate) fn is_open(&self) -> bool {
        self.generation > self.ended
    }

    /// Changes the gate. Every transition was checked against the table first, recovery's excepted.
    pub(crate) fn set_gate(&mut self, gate: Gate, wakes: &mut Wakes) {
        self.gate = gate;
        self.watchers.gates.set(self.slot, gate);
        wakes.gate_event = self.gate_event.clone().filter(|_| !mutation!("parked-requests-not-woken"));
        self.schedule(wakes);
    }

    /// Ends a generation: what it held is given to the caller, to be dropped without the lock.
    pub(crate) fn end_generation(&mut self, generation: Generation, wakes: &mut Wakes) -> Store {
        assert!(generation >= self.generation, "only the newest generation can end");
        self.mark(wakes);
        self.streams.clear();
        let garbage = self.store.take();
        self.generation = generation;
        self.ended = generation;
        self.history = History::default();
        self.truncated_term = None;
        (self.term, self.base, self.version) = (Term(0), 0, Version::ZERO);
        self.floors = Floors::default();
        self.compaction.begin_anew();
        assert_eq!((self.store.digest(), self.store.keys()), (0, 0), "a dropped slot holds nothing");
        self.set_gate(Gate::Absent, wakes);
        garbage
    }

    /// Begins a generation in a slot that holds nothing.
    pub(crate) fn begin_generation(&mut self, generation: Generation) {
        assert!(generation > self.generation && self.store.keys() == 0, "generations never go back");
        assert!(self.version == Version::ZERO, "what was here has ended first");
        self.generation = generation;
    }

    /// Begins a term of ownership: new writes are under it, and count from a base of their own.
    pub(crate) fn begin_term(&mut self, range: RangeHeader) {
        assert!(range.term >= self.term && range.base >= self.version.counter, "terms never go back");
        self.term = range.term;
        self.base = range.base;
        if range.term > self.version.term {
            self.history.begin(range.term, range.base + 1, self.version);
        }
    }

    /// What writes of a new term count from.
    pub(crate) fn next_base(&self) -> u64 {
        self.version.counter
    }

    pub(crate) fn log_change(
        &mut self,
        kind: FrameKind,
        generation: Generation,
        range: RangeHeader,
        log: &Log,
        reservation: Reservation<'_>,
    ) -> Result<(), LogFailed> {
        self.position = self.log_note(kind, generation, range, log, reservation)?;
        Ok(())
    }

    /// As [`SlotState::log_change`], for what nobody waits for.
    pub(crate) fn log_note(
        &self,
        kind: FrameKind,
        generation: Generation,
        range: RangeHeader,
        log: &Log,
        reservation: Reservation<'_>,
    ) -> Result<LogPosition, LogFailed> {
        let frame = FrameHeader { generation: generation.0, ..self.frame(kind, range) };
        log.append(reservation, frame, &[])
    }

    // Streams.

    /// A stream begins at a cursor, or begins anew.
    pub(crate) fn add_stream(&mut self, stream: &Arc<DirtySlots>, cursor: Version) {
        self.streams.add(stream, cursor.counter, self.version.counter);
    }

    /// A stream is sent everything up to this counter.
    pub(crate) fn sent_to(&mut self, stream: &Arc<DirtySlots>, counter: u64) {
        self.streams.sent_to(stream, counter);
    }

    pub(crate) fn remove_stream(&mut self, stream: &Arc<DirtySlots>) {
        self.streams.remove(stream);
    }

    /// Marks the slot for all streams that follow it, and for the compactor if there is something for it; those that slept
    /// are to be woken.
    fn mark(&mut self, wakes: &mut Wakes) {
        self.streams.mark(self.slot, &mut wakes.streams);
        self.mark_for_compaction(wakes);
    }

    fn mark_for_compaction(&mut self, wakes: &mut Wakes) {
        if !self.compaction.is_marked && self.wants_compaction() {
            self.compaction.is_marked = true;
            if self.watchers.compactor.mark(self.slot) {
                wakes.compactor = Some(self.watchers.compactor.clone());
            }
        }
    }
}
