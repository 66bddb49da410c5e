//! The sending end of slot streams: one feeder per bulk link that a follower made.
//!
//! Invariants:
//! - Ranges of one slot leave in the order of their versions, each record once per subscription.
//! - The reading half never waits for the sending half: refusals and records leave through the pump. So two nodes that
//!   both have full queues cannot stop each other.
//! - What a slow follower costs is its window ([`super::FEED_WINDOW_BYTES`]) of pinned segments, nothing else.
//! - The observer hears of a subscription first, then of its acknowledgements, last of all `closed`, exactly once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use lockgate_engine::{
    Engine, Floors, Generation, RangeHeader, Slot, SlotStream, StreamRange, SubscribeError, Version,
};
use lockgate_runtime::{Event, IoBuf};

use super::message::{
    self, AckedTo, Discarded, KIND_ACK, KIND_CURSORS_SYNCED, KIND_FLOORS, KIND_RANGES, KIND_REFUSED,
    KIND_SUBSCRIBE, KIND_UNSUBSCRIBE, KIND_WATERMARKS, RANGE_HEADER_BYTES, RANGES_HEADER_BYTES, Range,
    Refused, Subscribe, WhyRefused,
};
use super::window::{Brought, FEED_WINDOW_BYTES, Window};
use crate::link::{FRAME_BYTES_MAX, Hello, LinkError, LinkReceiver, LinkSender, MESSAGE_BYTES_MAX, Message};

/// Records of one message, unless a single write is larger.
pub const RANGE_BYTES: usize = 128 << 10;

/// Ranges up to this many bytes are copied into one buffer; larger ones are sent from their segment.
const PACK_BYTES_MAX: usize = 8 << 10;
/// A message with less room left than this is sent.
const PACK_ROOM_MIN: usize = 2 << 10;
/// A follower that has so many more writes of a slot than it knows to be acknowledged is told soon: it keeps all that they
/// superseded.
const UNTOLD_WRITES_MANY: u64 = 2048;
/// Soon.
const URGENT_PAUSE: Duration = Duration::from_millis(5);
/// Watermarks of one message.
const WATERMARKS_PER_MESSAGE: usize = 1024;
/// Refusals of one message.
const REFUSALS_PER_MESSAGE: usize = 1024;

// A message of small ranges is one frame.
const _: () = assert!(RANGES_HEADER_BYTES + RANGE_BYTES + RANGE_HEADER_BYTES < FRAME_BYTES_MAX);
const _: () = assert!(RANGE_BYTES < FEED_WINDOW_BYTES);
// The longest batch fits into a message, and so does a record of the largest key and value.
const _: () = assert!(lockgate_engine::BATCH_BYTES_MAX + (1 << 20) < MESSAGE_BYTES_MAX);
const _: () = assert!(
    lockgate_engine::VALUE_BYTES_MAX + lockgate_engine::KEY_BYTES_MAX + (1 << 20) < MESSAGE_BYTES_MAX
);

/// What the layer above wants to know of a feeder, and decides for it. One value per link tells the links of one
/// peer apart.
pub trait FeedObserver: 'static {
    /// The follower has received, and synced, a slot up to these versions. Called for each slot of an acknowledgement,
    /// and once when a subscription begins (`received` is its cursor then, `synced` is zero until the follower knows).
    /// `synced` never exceeds `received`; neither goes back within a subscription.
    fn acknowledged(
        &self,
        peer: &Hello,
        slot: Slot,
        source_generation: Generation,
        received: Version,
        synced: Version,
    );

    /// The link is over; nothing follows.
    fn closed(&self, peer: &Hello);

    /// Whether that node may have that slot. If not, it is refused as [`WhyRefused::NotHere`].
    fn may_feed(&self, peer: &Hello, slot: Slot, source_generation: Generation) -> bool;

    /// Up to where the source has acknowledged a slot's writes to those who made them; `None` while that is not to be told.
    /// Followers are told if the feeder hears of changes ([`Feeder::watermarks`]). Never goes back while the slot is owned.
    fn acknowledged_watermark(&self, _slot: Slot) -> Option<Version> {
        None
    }

    /// How long to wait between two looks at [`FeedObserver::acknowledged_watermark`]: what advances meanwhile is told at
    /// once, together. A change is notified like the watermarks'.
    fn watermark_pause(&self) -> Duration {
        Duration::from_millis(1)
    }

    /// So many bytes of records were queued for that slot.
    fn sent_bytes(&self, peer: &Hello, slot: Slot, bytes: usize);
}

/// Feeds one follower. See the top of the file.
pub struct Feeder {
    engine: Engine,
    observer: Rc<dyn FeedObserver>,
    window_bytes: usize,
    watermarks: Option<Event>,
}

impl std::fmt::Debug for Feeder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feeder").field("window_bytes", &self.window_bytes).finish_non_exhaustive()
    }
}

impl Feeder {
    /// A feeder of this engine's slots.
    pub fn new(engine: Engine, observer: Rc<dyn FeedObserver>) -> Self {
        Self { engine, observer, window_bytes: FEED_WINDOW_BYTES, watermarks: None }
    }

    /// With another window than [`FEED_WINDOW_BYTES`].
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "a window of no bytes lets nothing through");
        self.window_bytes = bytes;
        self
    }

    /// Tells the follower up to where the source has acknowledged the slots' writes. `changed` is notified when
    /// [`FeedObserver::acknowledged_watermark`] may give another answer for any slot.
    pub fn watermarks(mut self, changed: Event) -> Self {
        self.watermarks = Some(changed);
        self
    }

    /// Feeds the follower at the other end of a bulk link until the link is over; says why it is.
    pub async fn run(self, sender: LinkSender, receiver: LinkReceiver) -> LinkError {
        let feed = Feed {
            stream: self.engine.stream(),
            engine: self.engine,
            peer: sender.peer().clone(),
            observer: self.observer,
            state: RefCell::new(State {
                slots: BTreeMap::new(),
                window: Window::new(self.window_bytes),
                refusals: Vec::new(),
                untold: BTreeSet::new(),
                looked_at_ns: None,
                is_urgent: false,
                look_then: false,
            }),
            watermarks: self.watermarks,
            changed: Event::new(),
        };
        let reading = pin!(feed.read(&sender, receiver));
        let pumping = pin!(feed.pump(&sender));
        match select(reading, pumping).await {
            Either::Left((error, _)) | Either::Right((error, _)) => error,
        }
    }
}

/// One running feeder.
struct Feed {
    engine: Engine,
    stream: SlotStream,
    peer: Hello,
    observer: Rc<dyn FeedObserver>,
    state: RefCell<State>,
    /// Watermarks may have advanced. `None`: nobody is told.
    watermarks: Option<Event>,
    /// Something for the pump: a subscription, a refusal, room in the window.
    changed: Event,
}

struct State {
    slots: BTreeMap<Slot, Fed>,
    window: Window,
    refusals: Vec<Refused>,
    /// Slots of which the follower has more than it knows to be acknowledged.
    untold: BTreeSet<Slot>,
    /// When they were looked at last...
    looked_at_ns: Option<u64>,
    /// ... and whether the next look was put off until the pause is over.
    look_then: bool,
    /// Some follower's slot has very much more than was told.
    is_urgent: bool,
}

/// One subscription.
#[derive(Debug, Clone, Copy)]
struct Fed {
    subscription: u32,
    /// The receiver's.
    generation: Generation,
    source_generation: Generation,
    /// Where the subscription began.
    cursor: Version,
    received: Version,
    synced: Version,
    /// What the slot had when the subscription began. No watermark below it is told: a follower that is filled anew has
    /// gaps up to here, where what is overwritten since need not be sent any more.
    begun_at: Version,
    /// The watermark that the follower knows.
    told: Option<Version>,
}

impl Fed {
    /// Whether the follower has more than it knows to be acknowledged, or knows nothing.
    fn knows_too_little(&self) -> bool {
        self.told < Some(self.received)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // Here and not at the end of `run`: that future may be dropped, too.
        self.observer.closed(&self.peer);
    }
}

impl Feed {
    async fn read(&self, sender: &LinkSender, mut receiver: LinkReceiver) -> LinkError {
        loop {
            let message = match receiver.recv().await {
                Ok(message) => message,
                Err(error) => return error,
            };
            if let Err(reason) = self.take(&message) {
                return sender.reject(message.kind, reason);
            }
        }
    }

    /// Takes a follower's message in.
    fn take(&self, message: &Message) -> Result<(), String> {
        let bytes = &message.payload;
        match message.kind {
            KIND_SUBSCRIBE => {
                let wanted = message::decode_subscribe(bytes).map_err(|error| error.to_string())?;
                wanted.iter().for_each(|wanted| self.subscribe(wanted));
            }
            KIND_UNSUBSCRIBE => {
                let over = message::decode_subscriptions(bytes).map_err(|error| error.to_string())?;
                over.iter().for_each(|over| self.unsubscribe(over.slot, over.subscription));
            }
            KIND_ACK => {
                let ack = message::decode_ack(bytes).map_err(|error| error.to_string())?;
                self.acknowledge(ack)?;
            }
            KIND_CURSORS_SYNCED => {
                let synced = message::decode_subscriptions(bytes).map_err(|error| error.to_string())?;
                synced.iter().for_each(|synced| self.cursor_synced(synced.slot, synced.subscription));
            }
            _ => return Err("a follower does not send this kind".to_owned()),
        }
        self.changed.notify_all();
        Ok(())
    }

    fn subscribe(&self, wanted: &Subscribe) {
        let &Subscribe { slot, subscription, generation, source_generation, cursor, undo_floor } = wanted;
        if self.state.borrow_mut().slots.remove(&slot).is_some() {
            self.stream.unsubscribe(slot);
        }
        let subscribed = if self.observer.may_feed(&self.peer, slot, source_generation) {
            self.stream.resume(slot, source_generation, cursor, undo_floor).map_err(|error| {
                tracing::debug!(%error, peer = self.peer.node, "a slot is not fed");
                match error {
                    SubscribeError::NotHere { .. } => WhyRefused::NotHere,
                    SubscribeError::Diverged { common, .. } => WhyRefused::Diverged { common },
                    SubscribeError::BelowFloor { .. } => WhyRefused::BelowFloor,
                    SubscribeError::Gaps { .. } => WhyRefused::Gaps,
                }
            })
        } else {
            Err(WhyRefused::NotHere)
        };
        if let Err(why) = subscribed {
            self.state.borrow_mut().refusals.push(Refused { slot, subscription, generation, why });
            return;
        }
        let fed = Fed {
            subscription,
            generation,
            source_generation,
            cursor,
            received: cursor,
            synced: Version::ZERO,
            begun_at: self.engine.slot_status(slot).version,
            told: None,
        };
        self.state.borrow_mut().slots.insert(slot, fed);
        self.tell(slot, &fed);
    }

    fn unsubscribe(&self, slot: Slot, subscription: u32) {
        let mut state = self.state.borrow_mut();
        if state.slots.get(&slot).is_some_and(|fed| fed.subscription == subscription) {
            state.slots.remove(&slot);
            self.stream.unsubscribe(slot);
        }
    }

    fn acknowledge(&self, ack: message::Ack) -> Result<(), String> {
        let mut touched = BTreeMap::new();
        {
            let mut state = self.state.borrow_mut();
            let State { slots, window, .. } = &mut *state;
            // The closures need the same table, one after the other.
            let slots = RefCell::new(slots);
            let touched = RefCell::new(&mut touched);
            let raise = |brought: &Brought, synced: bool| {
                let mut slots = slots.borrow_mut();
                let fed = slots.get_mut(&brought.slot).filter(|fed| fed.subscription == brought.subscription);
                if let Some(fed) = fed {
                    let version = if synced { &mut fed.synced } else { &mut fed.received };
                    *version = brought.last.max(*version);
                    touched.borrow_mut().insert(brought.slot, *fed);
                }
            };
            let acked = window.ack(ack, |brought| raise(brought, false), |brought| raise(brought, true));
            acked.map_err(|error| error.to_string())?;
        }
        touched.iter().for_each(|(slot, fed)| self.tell(*slot, fed));
        Ok(())
    }

    fn cursor_synced(&self, slot: Slot, subscription: u32) {
        let fed = {
            let mut state = self.state.borrow_mut();
            let fed = state.slots.get_mut(&slot).filter(|fed| fed.subscription == subscription);
            let Some(fed) = fed else { return };
            fed.synced = fed.synced.max(fed.cursor);
            *fed
        };
        self.tell(slot, &fed);
    }

    fn tell(&self, slot: Slot, fed: &Fed) {
        assert!(fed.synced <= fed.received, "slot {slot}: synced is never ahead of received");
        self.observer.acknowledged(&self.peer, slot, fed.source_generation, fed.received, fed.synced);
        if self.watermarks.is_some() && fed.knows_too_little() {
            let mut state = self.state.borrow_mut();
            state.untold.insert(slot);
            let told = fed.told.map_or(fed.cursor.counter, |told| told.counter);
            state.is_urgent |= fed.received.counter.saturating_sub(told) > UNTOLD_WRITES_MANY;
        }
    }

    /// Sends what there is to send, whenever there is room for it.
    async fn pump(&self, sender: &LinkSender) -> LinkError {
        loop {
            let changed = self.changed.listen();
            let advanced = self.watermarks.as_ref().map(Event::listen);
            let mut sent = Ok(false);
            if let Some(outgoing) = self.next_ranges() {
                sent = outgoing.send(sender).await.map(|()| true);
            }
            // It is the look for ranges that finds slots which have ended.
            self.refuse_ended();
            if sent.is_ok()
                && let Some(refusals) = self.next_refusals()
            {
                let parts: Vec<Box<dyn IoBuf>> = vec![Box::new(message::encode_refused(&refusals))];
                sent = sender.send(KIND_REFUSED, parts).await.map(|()| true);
            }
            // Records go first.
            if matches!(sent, Ok(false))
                && let Some(entries) = self.next_watermarks()
            {
                let parts: Vec<Box<dyn IoBuf>> = vec![Box::new(message::encode_watermarks(&entries))];
                sent = sender.send(KIND_WATERMARKS, parts).await.map(|()| true);
            }
            match sent {
                Ok(true) => {}
                Ok(false) => {
                    let advanced = pin!(self.watermarks_due(advanced));
                    select(pin!(self.wait(changed)), advanced).await;
                }
                Err(error) => return error,
            }
        }
    }

    /// Waits for records if there is room for them, and for changes.
    async fn wait(&self, changed: impl Future<Output = ()>) {
        let room = self.state.borrow().window.room() > 0;
        if !room {
            return changed.await;
        }
        let ready = pin!(self.stream.ready());
        select(ready, pin!(changed)).await;
    }

    /// Waits until it is worth while to look at the watermarks of slots that the follower knows too little of.
    async fn watermarks_due(&self, advanced: Option<impl Future<Output = ()>>) {
        let (Some(advanced), false) = (advanced, self.state.borrow().untold.is_empty()) else {
            return std::future::pending().await;
        };
        if !self.state.borrow().look_then {
            return advanced.await;
        }
        let left_ns = self.look_from_ns().saturating_sub(lockgate_runtime::now_ns());
        if left_ns > 0 {
            // The pause may have become shorter. Either way the pump looks again.
            let _ = lockgate_runtime::timeout(Duration::from_nanos(left_ns), advanced).await;
        }
    }

    /// When watermarks are to be looked at next.
    fn look_from_ns(&self) -> u64 {
        let pause = self.observer.watermark_pause();
        let is_urgent = self.state.borrow().is_urgent;
        let pause_ns = if is_urgent { pause.min(URGENT_PAUSE) } else { pause }.as_nanos() as u64;
        self.state.borrow().looked_at_ns.map_or(0, |looked_at_ns| looked_at_ns.saturating_add(pause_ns))
    }

    /// Watermarks that have advanced since the follower was told, of slots of which it has more than that.
    fn next_watermarks(&self) -> Option<Vec<AckedTo>> {
        let from_ns = self.look_from_ns();
        let mut state = self.state.borrow_mut();
        let State { slots, untold, looked_at_ns, look_then, is_urgent, .. } = &mut *state;
        if untold.is_empty() {
            *look_then = false;
            return None;
        }
        let now_ns = lockgate_runtime::now_ns();
        *look_then = now_ns < from_ns;
        if *look_then {
            return None;
        }
        (*looked_at_ns, *is_urgent) = (Some(now_ns), false);
        let mut entries = Vec::new();
        untold.retain(|&slot| {
            let Some(fed) = slots.get_mut(&slot) else { return false };
            *look_then = entries.len() == WATERMARKS_PER_MESSAGE;
            if !*look_then {
                let version = self.observer.acknowledged_watermark(slot);
                let version = version.filter(|&version| version >= fed.begun_at && Some(version) > fed.told);
                if let Some(version) = version {
                    fed.told = Some(version);
                    entries.push(AckedTo { slot, subscription: fed.subscription, version });
                }
            }
            fed.knows_too_little()
        });
        (!entries.is_empty()).then_some(entries)
    }

    fn next_refusals(&self) -> Option<Vec<Refused>> {
        let refusals = &mut self.state.borrow_mut().refusals;
        let count = refusals.len().min(REFUSALS_PER_MESSAGE);
        (count > 0).then(|| refusals.drain(..count).collect())
    }

    /// Slots whose generation ended here are refused: the follower would wait for ever.
    fn refuse_ended(&self) {
        for slot in self.stream.take_ended() {
            let mut state = self.state.borrow_mut();
            if let Some(Fed { subscription, generation, .. }) = state.slots.remove(&slot) {
                let why = WhyRefused::NotHere;
                state.refusals.push(Refused { slot, subscription, generation, why });
            }
        }
    }

    /// The next message of ranges, counted in the window; None if nothing may or can be sent.
    fn next_ranges(&self) -> Option<Outgoing> {
        let room = self.state.borrow().window.room();
        if room == 0 {
            return None;
        }
        let mut pack = Pack::new(room.min(RANGE_BYTES));
        let (mut floors, mut sent) = (Vec::new(), Vec::new());
        while pack.has_room()
            && let Some(range) = self.stream.next_range(pack.room())
        {
            // Subscriptions change on this core only, together with `slots`.
            let Some(fed) = self.state.borrow().slots.get(&range.slot).copied() else { continue };
            let (slot, bytes) = (range.slot, range.bytes.as_slice().len());
            if range.floors != Floors::default() {
                floors.push(Discarded { slot, subscription: fed.subscription, floors: range.floors });
            }
            sent.push((slot, bytes));
            pack.brought.push(Brought { slot, subscription: fed.subscription, last: range.last });
            pack.push(&fed, range, bytes);
        }
        if sent.is_empty() {
            return None;
        }
        let mut state = self.state.borrow_mut();
        let sequence = state.window.next();
        let (ranges, brought, bytes) = pack.finish(sequence);
        state.window.sent(bytes, brought);
        drop(state);
        sent.into_iter().for_each(|(slot, bytes)| self.observer.sent_bytes(&self.peer, slot, bytes));
        Some(Outgoing { floors, ranges })
    }
}

/// A message of ranges, and what is told of their slots before it.
struct Outgoing {
    floors: Vec<Discarded>,
    ranges: Vec<Box<dyn IoBuf>>,
}

impl Outgoing {
    async fn send(self, sender: &LinkSender) -> Result<(), LinkError> {
        if !self.floors.is_empty() {
            sender.send(KIND_FLOORS, vec![Box::new(message::encode_floors(&self.floors))]).await?;
        }
        sender.send(KIND_RANGES, self.ranges).await
    }
}

/// A message of ranges in the making.
struct Pack {
    limit_bytes: usize,
    /// What precedes `tail`.
    parts: Vec<Box<dyn IoBuf>>,
    /// Headers and small ranges.
    tail: Vec<u8>,
    /// Records and their headers.
    bytes: usize,
    brought: Vec<Brought>,
}

impl Pack {
    fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, parts: Vec::new(), tail: Vec::new(), bytes: 0, brought: Vec::new() }
    }

    /// Bytes that still fit.
    fn room(&self) -> usize {
        self.limit_bytes.saturating_sub(self.bytes)
    }

    fn has_room(&self) -> bool {
        self.brought.is_empty() || self.room() >= PACK_ROOM_MIN
    }

    fn push(&mut self, fed: &Fed, range: StreamRange, bytes: usize) {
        let header = RangeHeader { term: range.term, base: range.base };
        let head =
            Range { slot: range.slot, subscription: fed.subscription, generation: fed.generation, header };
        message::put_range_header(&mut self.tail, &head, bytes);
        self.bytes += bytes + RANGE_HEADER_BYTES;
        if bytes <= PACK_BYTES_MAX {
            self.tail.extend_from_slice(range.bytes.as_slice());
        } else {
            self.parts.push(Box::new(std::mem::take(&mut self.tail)));
            self.parts.push(Box::new(range.bytes));
        }
    }

    /// The message's parts, what it brings, and the bytes that it counts for.
    fn finish(mut self, sequence: u64) -> (Vec<Box<dyn IoBuf>>, Vec<Brought>, usize) {
        let count = u32::try_from(self.brought.len()).expect("limited by the message's bytes");
        self.parts.insert(0, Box::new(message::ranges_header(sequence, count).to_vec()));
        if !self.tail.is_empty() {
            self.parts.push(Box::new(self.tail));
        }
        (self.parts, self.brought, self.bytes)
    }
}
