//! Streams: a slot's segments, read from a receiver's cursor on and then followed. Snapshot and tail are one thing.
//!
//! A stream costs its source a cursor per slot, and what is superseded before it was sent. Ranges are pinned, so they stay readable
//! whatever happens to the slot. Within a slot ranges come in the order of their versions; slots take turns.
//!
//! What was discarded before it could be sent a stream does not bring; its ranges say up to where that is (R4, R5).
//!
//! Invariants: a range holds whole records of one segment, so of one term and base; it does not end within a write of
//! several records, unless the segment does; a cursor only moves forward; a
//! subscription ends when its slot's generation does, and when a truncation takes back what it has read. Lock order: stream, then slot; a slot's lock is never held while a
//! stream's is taken.

use std::collections::BTreeMap;

use lockgate_runtime::sync::{Arc, Mutex};

use crate::chain::Place;
use crate::dirty::{DirtySlots, SlotSet};
use crate::engine::Engine;
use crate::error::SubscribeError;
use crate::segment::{PinnedRange, SegmentRef};
use crate::types::{Floors, Gate, Generation, Slot, Term, Version};

/// Whole records of one slot, in the order of their versions.
#[derive(Clone, Debug)]
pub struct StreamRange {
    /// Whose.
    pub slot: Slot,
    /// The term of all of them.
    pub term: Term,
    /// What their counters count from.
    pub base: u64,
    /// The first one's version.
    pub first: Version,
    /// The last one's version.
    pub last: Version,
    /// What the receiver has to take over before the records, with [`Engine::raise_floors`]: the slot's floor, if this is
    /// the first range of a stream from the beginning; its undo floor, if that is above all that was sent before and the stream
    /// has not said it yet. Otherwise zeros.
    pub floors: Floors,
    /// The records. They pin their segment.
    pub bytes: PinnedRange,
}

/// What one receiver follows. Made by [`Engine::stream`].
pub struct SlotStream {
    engine: Engine,
    dirty: Arc<DirtySlots>,
    state: Mutex<StreamState>,
}

struct StreamState {
    cursors: BTreeMap<Slot, Cursor>,
    /// Slots that may have something behind their cursor.
    pending: SlotSet,
    /// Whose turn it is.
    turn: u16,
    ended: Vec<Slot>,
}

struct Cursor {
    /// The generation here.
    generation: Generation,
    after: Version,
    /// The slot's truncations when this was last found to be on its history.
    truncations: u64,
    /// Where the next record is, if known and not moved since.
    place: Option<Place>,
    /// The undo floor that the receiver was told.
    told: Version,
}

impl Cursor {
    /// What the receiver is to be told with the next range. Asked anew for each of them: discarding goes on, and what the slot
    /// is filled from itself may have told it more since the stream began.
    fn untold(&mut self, have: Floors) -> Floors {
        let floor = if self.after == Version::ZERO { have.floor } else { Version::ZERO };
        // Who has the write that superseded another one lacks nothing without that.
        let is_news = have.undo_floor > self.told.max(self.after);
        let undo_floor = if is_news { have.undo_floor } else { Version::ZERO };
        self.told = self.told.max(undo_floor);
        Floors { floor, undo_floor }
    }
}

/// What was seen of a slot under its lock.
struct Seen {
    segment: SegmentRef,
    /// Where `from` is in the chain.
    place: Place,
    from: usize,
    published: usize,
    is_last: bool,
    floors: Floors,
}

impl SlotStream {
    pub(crate) fn new(engine: Engine) -> SlotStream {
        let state =
            StreamState { cursors: BTreeMap::new(), pending: SlotSet::new(), turn: 0, ended: Vec::new() };
        SlotStream { engine, dirty: Arc::new(DirtySlots::new()), state: Mutex::new(state) }
    }

    /// Follows a slot from a receiver's cursor on. The slot must be of the same agreed generation here. A slot that is
    /// followed already is followed from the new cursor instead.
    pub fn subscribe(
        &self,
        slot: Slot,
        generation: Generation,
        cursor: Version,
    ) -> Result<(), SubscribeError> {
        self.resume(slot, generation, cursor, Version::ZERO)
    }

    /// As [`SlotStream::subscribe`], for a receiver that was told an undo floor: see [`Engine::slot_floors`]. If that is above
    /// its cursor it lacks what was superseded up to there, and this slot must have what superseded it (R4).
    pub fn resume(
        &self,
        slot: Slot,
        generation: Generation,
        cursor: Version,
        undo_floor: Version,
    ) -> Result<(), SubscribeError> {
        let mut state = self.state.lock();
        let mut held = self.engine.slot(slot).lock();
        let have = held.generation();
        if held.gate() == Gate::Absent || !have.same_major(generation) {
            return Err(SubscribeError::NotHere { slot, gate: held.gate(), have, wanted: generation });
        }
        if !held.on_history(cursor) {
            let (version, common) = (held.version(), held.common(cursor));
            return Err(SubscribeError::Diverged { slot, cursor, version, common });
        }
        let Floors { floor, .. } = held.floors();
        if cursor != Version::ZERO && cursor < floor {
            return Err(SubscribeError::BelowFloor { slot, cursor, floor });
        }
        if cursor != Version::ZERO && cursor < undo_floor && !held.fills_up_to(undo_floor) {
            return Err(SubscribeError::Gaps { slot, cursor, undo_floor, version: held.version() });
        }
        held.add_stream(&self.dirty, cursor);
        let news = held.version() > cursor && self.dirty.mark(slot);
        let truncations = held.truncations();
        drop(held);
        let (after, told) = (cursor, Version::ZERO);
        state.cursors.insert(slot, Cursor { generation: have, after, truncations, place: None, told });
        drop(state);
        if news {
            self.dirty.wake();
        }
        Ok(())
    }

    /// Follows a slot no more.
    pub fn unsubscribe(&self, slot: Slot) {
        let mut state = self.state.lock();
        if state.cursors.remove(&slot).is_some() {
            self.engine.slot(slot).lock().remove_stream(&self.dirty);
        }
    }

    /// Waits until a followed slot may have something behind its cursor. [`next_range`](SlotStream::next_range) tells
    /// for sure. One task at a time.
    pub async fn ready(&self) {
        if self.state.lock().pending.is_empty() {
            self.dirty.wait().await;
        }
    }

    /// The next records that are behind a cursor: whole writes, at most `max_bytes`, but at least one write, however long.
    pub fn next_range(&self, max_bytes: usize) -> Option<StreamRange> {
        let mut state = self.state.lock();
        self.dirty.take(&mut state.pending);
        while let Some(slot) = state.pending.next_from(state.turn) {
            state.turn = slot.number() + 1;
            if let Some(range) = self.next_of(&mut state, slot, max_bytes) {
                return Some(range);
            }
            state.pending.remove(slot);
        }
        None
    }

    /// Slots that are followed no more since the last call, because their generation ended here, or because writes that
    /// were read already were taken back.
    pub fn take_ended(&self) -> Vec<Slot> {
        std::mem::take(&mut self.state.lock().ended)
    }

    fn next_of(&self, state: &mut StreamState, slot: Slot, max_bytes: usize) -> Option<StreamRange> {
        let cursor = state.cursors.get_mut(&slot)?;
        let Ok(seen) = self.look(slot, cursor, max_bytes) else {
            state.cursors.remove(&slot);
            state.ended.push(slot);
            return None;
        };
        // Published records do not change: from here on no lock of the slot is needed.
        let Seen { segment, place, from, published, is_last, floors } = seen?;
        let first = segment.version_of(&segment.record_at(from));
        let (mut at, mut to, mut last) = (from, from, first);
        while at < published {
            let record = segment.record_at(at);
            at += record.encoded_bytes();
            if to > from && at - from > max_bytes {
                break;
            }
            if !record.goes_on || at == published {
                (to, last) = (at, segment.version_of(&record));
            }
        }
        assert!(first > cursor.after && last >= first, "slot {slot}: a cursor only moves forward");
        cursor.after = last;
        cursor.place = Some(place.at_byte(to));
        if to == published && is_last {
            state.pending.remove(slot);
        }
        let range = segment.range();
        Some(StreamRange {
            slot,
            term: range.term,
            base: range.base,
            first,
            last,
            floors,
            bytes: PinnedRange::new(segment, from..to),
        })
    }

    /// What is behind a cursor now. `Err`: the subscription is over.
    fn look(&self, slot: Slot, cursor: &mut Cursor, max_bytes: usize) -> Result<Option<Seen>, Ended> {
        let mut held = self.engine.slot(slot).lock();
        if held.generation() != cursor.generation || !held.is_open() {
            return Err(Ended);
        }
        if held.truncations() != cursor.truncations {
            // What was refilled meanwhile may have another floor.
            let is_below = cursor.after != Version::ZERO && cursor.after < held.floors().floor;
            if is_below || !held.still_has(cursor.after) {
                held.remove_stream(&self.dirty);
                return Err(Ended);
            }
            (cursor.truncations, cursor.place) = (held.truncations(), None);
        }
        if held.version() <= cursor.after {
            return Ok(None);
        }
        let chain = held.store.chain();
        let kept = cursor.place.and_then(|place| chain.find_kept(place));
        let (mut link, mut from) = kept.unwrap_or_else(|| chain.find_after(cursor.after.counter));
        while chain.links().get(link).is_some_and(|found| found.segment.published() == from) {
            (link, from) = (link + 1, 0);
        }
        let found = chain.links().get(link).expect("the slot's last write is behind the cursor");
        let published = found.segment.published();
        let is_last = link + 1 == chain.links().len();
        let (segment, place) = (found.segment.clone(), chain.keep(link, from));
        let floors = cursor.untold(held.floors());
        let seen = Seen { segment, place, from, published, is_last, floors };
        // What is read next counts as sent if it is the rest; otherwise only what was read before.
        let takes_rest = is_last && published - from <= max_bytes;
        let sent = if takes_rest { held.version().counter } else { cursor.after.counter };
        held.sent_to(&self.dirty, sent);
        Ok(Some(seen))
    }
}

/// The slot's generation is not the subscription's any more, or what was read of it is not there any more.
struct Ended;

impl Drop for SlotStream {
    fn drop(&mut self) {
        let cursors = std::mem::take(&mut self.state.lock().cursors);
        for slot in cursors.into_keys() {
            self.engine.slot(slot).lock().remove_stream(&self.dirty);
        }
    }
}
