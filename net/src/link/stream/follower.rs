//! The receiving end of slot streams: keeps a set of wanted slots filled from a feeder, over one link after another.
//!
//! Invariants:
//! - A range is applied only if it belongs to the slot's current subscription. Every follow begins a new subscription
//!   with the cursor that the engine has then, so no range that was skipped can be missed.
//! - A slot whose range could not be applied gets no later ranges of that subscription: they would leave a gap. If what is
//!   here does not fit what the source has, the slot is subscribed anew from the cursor that it has now; a source that
//!   does not know that cursor says what both may have in common, and what lies above is taken back here. Each round of
//!   this takes something back or brings something, or it is one of a few. Otherwise the slot is not wanted any more.
//! - "Received" is said after the engine has taken it, "synced" after the logs have; neither runs ahead.
//! - The reading half never waits for the sending half: what is to be sent is state, of which the latest is sent.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use lockgate_engine::{ApplyError, Engine, Floors, Generation, LogFailed, LogTicket, Slot, Version};
use lockgate_runtime::Event;

use super::message::{
    self, Ack, AckedTo, Discarded, KIND_ACK, KIND_CURSORS_SYNCED, KIND_FLOORS, KIND_RANGES, KIND_REFUSED,
    KIND_SUBSCRIBE, KIND_UNSUBSCRIBE, KIND_WATERMARKS, Range, Refused, Subscribe, Subscription, WhyRefused,
};
use super::syncs::{Round, Syncs};
use crate::link::{Hello, Link, LinkError, LinkReceiver, LinkSender, Message};

/// Subscriptions of one message.
const SUBSCRIPTIONS_PER_MESSAGE: usize = 1024;
/// So often in a row a slot is subscribed anew without anything that is taken back or applied.
const VAIN_ROUNDS_MAX: u32 = 3;
/// Messages that are applied before an acknowledgement is due, however many more are here.
const DRAIN_MESSAGES: usize = 16;

/// What the layer above wants to know of a follower.
pub trait FollowObserver: 'static {
    /// The slot is not followed any more; follow it again when what `why` says has changed.
    fn refused(&self, slot: Slot, generation: Generation, why: &WhyRefused);

    /// Whether what the source does not have may be taken back now. If not, the slot is refused as diverged, and what is
    /// here stays.
    fn may_go_back(&self, slot: Slot) -> bool;

    /// The slot had writes that the source never had: so many records were taken back. It is followed on.
    fn truncated(&self, slot: Slot, generation: Generation, records: u64);

    /// Up to where the source says that it has acknowledged the slot's writes, or that it has not said so in the
    /// subscription that begins now. Whoever has the first version that it says has all that the slot then had, without
    /// gaps.
    fn watermark(&self, _slot: Slot, _generation: Generation, _told: Option<Version>) {}

    /// The link is over. The wanted slots are kept for the next one.
    fn disconnected(&self, why: &LinkError);
}

/// Follows slots of one source. Clones are one follower; it belongs to the core that made it.
#[derive(Clone)]
pub struct Follower(Rc<Inner>);

struct Inner {
    engine: Engine,
    observer: Rc<dyn FollowObserver>,
    state: RefCell<State>,
    /// Something to send.
    outgoing: Event,
    /// Something to wait for to be synced.
    unsynced: Event,
    /// Between two rounds of syncs.
    sync_pause: Duration,
}

#[derive(Default)]
struct State {
    wanted: BTreeMap<Slot, Wanted>,
    /// The last number given to a subscription.
    subscriptions: u32,
    link: Option<OnLink>,
}

#[derive(Debug, Clone, Copy)]
struct Wanted {
    generation: Generation,
    source_generation: Generation,
    subscription: u32,
    /// How often it was subscribed anew since something was applied or taken back.
    vain_rounds: u32,
    /// Up to where the source has acknowledged its writes, as far as it has said in this subscription.
    watermark: Option<Version>,
}

/// What belongs to the link of the moment.
#[derive(Default)]
struct OnLink {
    to_subscribe: BTreeSet<Slot>,
    to_unsubscribe: Vec<Subscription>,
    cursors_synced: Vec<Subscription>,
    syncs: Syncs,
    acked: Ack,
}

impl State {
    fn next_subscription(&mut self) -> u32 {
        self.subscriptions = self.subscriptions.wrapping_add(1);
        self.subscriptions
    }

    /// The wanted slot, if the number is still its subscription's.
    fn current(&self, slot: Slot, subscription: u32) -> Option<Wanted> {
        self.wanted.get(&slot).filter(|wanted| wanted.subscription == subscription).copied()
    }
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.0.state.borrow();
        write!(f, "Follower({} slots, linked: {})", state.wanted.len(), state.link.is_some())
    }
}

impl Follower {
    /// A follower into this engine that wants no slots yet.
    pub fn new(engine: Engine, observer: Rc<dyn FollowObserver>) -> Self {
        Self::with_sync_pause(engine, observer, Duration::ZERO)
    }

    /// As [`Follower::new`], but with a pause between two rounds of syncs: for sources that wait for "received" only,
    /// where a sync after the other would take the disk from those who need it.
    pub fn with_sync_pause(engine: Engine, observer: Rc<dyn FollowObserver>, sync_pause: Duration) -> Self {
        Self(Rc::new(Inner {
            engine,
            observer,
            state: RefCell::default(),
            outgoing: Event::new(),
            unsynced: Event::new(),
            sync_pause,
        }))
    }

    /// Wants a slot, now and on later links. `generation` is open here (as Importing or Follower); `source_generation` is
    /// the source's. A slot that is wanted already in these generations stays as it is.
    pub fn follow(&self, slot: Slot, generation: Generation, source_generation: Generation) {
        let mut state = self.0.state.borrow_mut();
        let same = |wanted: &Wanted| {
            (wanted.generation, wanted.source_generation) == (generation, source_generation)
        };
        if state.wanted.get(&slot).is_some_and(same) {
            return;
        }
        let subscription = state.next_subscription();
        let (vain_rounds, watermark) = (0, None);
        let wanted = Wanted { generation, source_generation, subscription, vain_rounds, watermark };
        let replaced = state.wanted.insert(slot, wanted);
        if let Some(link) = &mut state.link
            && link.to_subscribe.insert(slot)
            && let Some(Wanted { subscription, .. }) = replaced
        {
            link.to_unsubscribe.push(Subscription { slot, subscription });
        }
        drop(state);
        self.0.observer.watermark(slot, generation, None);
        self.0.outgoing.notify_all();
    }

    /// Wants a slot no more: from now on nothing is applied to it from here.
    pub fn unfollow(&self, slot: Slot) {
        self.0.forget(slot);
    }

    /// The generation that a slot is wanted in, if it is.
    pub fn wants(&self, slot: Slot) -> Option<Generation> {
        self.0.state.borrow().wanted.get(&slot).map(|wanted| wanted.generation)
    }

    /// Up to where the source has acknowledged a slot's writes: what the slot has at or below this is never taken back. It is
    /// some time old, may lie above what the slot has, and is zero until the source says it, anew on each link.
    pub fn watermark(&self, slot: Slot) -> Version {
        let told = self.0.state.borrow().wanted.get(&slot).and_then(|wanted| wanted.watermark);
        told.unwrap_or(Version::ZERO)
    }

    /// Connects to a feeder and follows until the link is over; says why it is. When to try again is the caller's
    /// decision.
    pub async fn run(&self, addr: SocketAddr, mine: Hello, connect_limit: Duration) -> LinkError {
        match Link::connect(addr, mine, connect_limit).await {
            Ok((sender, receiver, _)) => self.run_on(sender, receiver).await,
            Err(error) => {
                self.0.observer.disconnected(&error);
                error
            }
        }
    }

    /// Follows over a link that was made already. One at a time.
    pub async fn run_on(&self, sender: LinkSender, receiver: LinkReceiver) -> LinkError {
        let _linked = Linked::new(self.0.clone());
        let error = {
            let reading = pin!(self.0.read(&sender, receiver));
            let sending = pin!(self.0.send(&sender));
            let syncing = pin!(self.0.sync(&sender));
            match select(reading, select(sending, syncing)).await {
                Either::Left((error, _)) => error,
                Either::Right((Either::Left((error, _)) | Either::Right((error, _)), _)) => error,
            }
        };
        self.0.observer.disconnected(&error);
        error
    }
}

/// Says that a link is there, for as long as it lives.
struct Linked(Rc<Inner>);

impl Linked {
    fn new(inner: Rc<Inner>) -> Self {
        {
            let mut state = inner.state.borrow_mut();
            assert!(state.link.is_none(), "a follower uses one link at a time");
            // New numbers: an earlier link's are gone for good.
            let slots: BTreeSet<Slot> = state.wanted.keys().copied().collect();
            for slot in &slots {
                let subscription = state.next_subscription();
                let wanted = state.wanted.get_mut(slot).expect("just listed");
                (wanted.subscription, wanted.watermark) = (subscription, None);
                inner.observer.watermark(*slot, wanted.generation, None);
            }
            state.link = Some(OnLink { to_subscribe: slots, ..OnLink::default() });
        }
        Self(inner)
    }
}

impl Drop for Linked {
    fn drop(&mut self) {
        self.0.state.borrow_mut().link = None;
    }
}

impl Inner {
    /// The link's state. It is there while `run_on` runs, which is the only caller of those who use this.
    fn with_link<T>(&self, f: impl FnOnce(&mut OnLink) -> T) -> T {
        f(self.state.borrow_mut().link.as_mut().expect("called while a link is there"))
    }

    fn forget(&self, slot: Slot) -> Option<Wanted> {
        let mut state = self.state.borrow_mut();
        let wanted = state.wanted.remove(&slot)?;
        self.observer.watermark(slot, wanted.generation, None);
        if let Some(link) = &mut state.link
            && !link.to_subscribe.remove(&slot)
        {
            link.to_unsubscribe.push(Subscription { slot, subscription: wanted.subscription });
            drop(state);
            self.outgoing.notify_all();
        }
        Some(wanted)
    }

    /// Ends a subscription that cannot go on, unless another one has taken its place.
    fn give_up(&self, slot: Slot, subscription: u32, why: &WhyRefused) {
        if self.state.borrow().current(slot, subscription).is_none() {
            return;
        }
        if let Some(wanted) = self.forget(slot) {
            tracing::debug!(%slot, generation = %wanted.generation, %why, "a slot is not followed any more");
            self.observer.refused(slot, wanted.generation, why);
        }
    }

    /// Subscribes a slot anew, from the cursor that it will have then. Not for ever if nothing comes of it: then `why`.
    fn subscribe_anew(&self, slot: Slot, subscription: u32, in_vain: bool, why: &WhyRefused) {
        let mut state = self.state.borrow_mut();
        let next = state.next_subscription();
        let wanted = state.wanted.get_mut(&slot).filter(|wanted| wanted.subscription == subscription);
        let Some(wanted) = wanted else { return };
        wanted.vain_rounds = if in_vain { wanted.vain_rounds + 1 } else { 0 };
        if wanted.vain_rounds > VAIN_ROUNDS_MAX {
            drop(state);
            return self.give_up(slot, subscription, why);
        }
        // The source lets go of the earlier subscription when it hears of the next one.
        (wanted.subscription, wanted.watermark) = (next, None);
        self.observer.watermark(slot, wanted.generation, None);
        state.link.as_mut().expect("called while a link is there").to_subscribe.insert(slot);
        drop(state);
        self.outgoing.notify_all();
    }

    /// The source does not have all that is here: takes back what both cannot have in common, and follows on from there.
    async fn go_back(&self, slot: Slot, subscription: u32, common: Version) {
        let why = WhyRefused::Diverged { common };
        if !self.observer.may_go_back(slot) {
            return self.give_up(slot, subscription, &why);
        }
        // Looked up anew after every wait: the slot may have been let go meanwhile.
        loop {
            let Some(wanted) = self.state.borrow().current(slot, subscription) else { return };
            match self.engine.truncate(slot, wanted.generation, common) {
                Ok(truncated) => {
                    let records = truncated.dropped_records;
                    if records > 0 {
                        self.observer.truncated(slot, wanted.generation, records);
                    }
                    return self.subscribe_anew(slot, subscription, records == 0, &why);
                }
                Err(error) if error.is_retryable() && self.engine.wait_log_room(slot).await.is_ok() => {}
                Err(error) => {
                    tracing::debug!(%slot, %error, "what the source does not have cannot be taken back");
                    return self.give_up(slot, subscription, &why);
                }
            }
        }
    }

    async fn read(&self, sender: &LinkSender, mut receiver: LinkReceiver) -> LinkError {
        loop {
            if let Err(error) = self.drain(sender, &mut receiver).await {
                return error;
            }
            // One acknowledgement for all that was here.
            self.outgoing.notify_all();
            self.unsynced.notify_all();
        }
    }

    /// Takes in the next message, and those that are here already.
    async fn drain(&self, sender: &LinkSender, receiver: &mut LinkReceiver) -> Result<(), LinkError> {
        let mut message = receiver.recv().await?;
        for _ in 1..DRAIN_MESSAGES {
            self.take(sender, message).await?;
            match receiver.try_recv()? {
                Some(next) => message = next,
                None => return Ok(()),
            }
        }
        self.take(sender, message).await
    }

    async fn take(&self, sender: &LinkSender, message: Message) -> Result<(), LinkError> {
        let (kind, bytes) = (message.kind, &message.payload);
        match kind {
            KIND_RANGES => {
                let ranges = message::decode_ranges(bytes).map_err(|error| sender.reject(kind, error))?;
                let expected = self.with_link(|link| link.syncs.ack().received) + 1;
                if ranges.sequence != expected {
                    let reason =
                        format!("message {} of ranges came where {expected} was due", ranges.sequence);
                    return Err(sender.reject(kind, reason));
                }
                for (range, records) in ranges.ranges {
                    self.apply(&range, records).await;
                }
                self.with_link(|link| link.syncs.received(expected));
            }
            KIND_REFUSED => {
                let refused = message::decode_refused(bytes).map_err(|error| sender.reject(kind, error))?;
                for Refused { slot, subscription, why, .. } in refused {
                    match why {
                        WhyRefused::Diverged { common } => self.go_back(slot, subscription, common).await,
                        why => self.give_up(slot, subscription, &why),
                    }
                }
            }
            KIND_WATERMARKS => {
                let told = message::decode_watermarks(bytes).map_err(|error| sender.reject(kind, error))?;
                let mut state = self.state.borrow_mut();
                for AckedTo { slot, subscription, version } in told {
                    let wanted = state.wanted.get_mut(&slot);
                    if let Some(wanted) = wanted.filter(|wanted| wanted.subscription == subscription) {
                        wanted.watermark = wanted.watermark.max(Some(version));
                        self.observer.watermark(slot, wanted.generation, wanted.watermark);
                    }
                }
            }
            KIND_FLOORS => {
                let floors = message::decode_floors(bytes).map_err(|error| sender.reject(kind, error))?;
                for discarded in floors {
                    self.raise_floors(discarded).await;
                }
            }
            _ => return Err(sender.reject(kind, "a feeder does not send this kind")),
        }
        Ok(())
    }

    /// Takes over what the source has discarded of a slot, before the range comes that lacks it.
    async fn raise_floors(&self, Discarded { slot, subscription, floors }: Discarded) {
        // Looked up anew after every wait: the slot may have been let go meanwhile.
        loop {
            let Some(wanted) = self.state.borrow().current(slot, subscription) else { return };
            match self.engine.raise_floors(slot, wanted.generation, floors) {
                Ok(()) => return,
                Err(error) if error.is_retryable() && self.engine.wait_log_room(slot).await.is_ok() => {}
                Err(error) => {
                    return self.give_up(slot, subscription, &WhyRefused::Broken(error.to_string()));
                }
            }
        }
    }

    /// Applies a range, unless its subscription is over.
    async fn apply(&self, range: &Range, records: &[u8]) {
        let &Range { slot, subscription, generation, header } = range;
        // Checked anew after every wait: the slot may have been let go meanwhile.
        while self
            .state
            .borrow()
            .current(slot, subscription)
            .is_some_and(|wanted| wanted.generation == generation)
        {
            match self.engine.apply(slot, generation, &header, records) {
                Ok(applied) => return self.applied(slot, applied.log),
                Err(error) if error.is_retryable() && self.engine.wait_log_room(slot).await.is_ok() => {}
                Err(error) => {
                    let why = WhyRefused::Broken(error.to_string());
                    return match error {
                        ApplyError::Diverged { .. } | ApplyError::TermTooLow { .. } => {
                            self.subscribe_anew(slot, subscription, true, &why);
                        }
                        _ => self.give_up(slot, subscription, &why),
                    };
                }
            }
        }
    }

    fn applied(&self, slot: Slot, log: LogTicket) {
        let mut state = self.state.borrow_mut();
        if let Some(wanted) = state.wanted.get_mut(&slot) {
            wanted.vain_rounds = 0;
        }
        state.link.as_mut().expect("called while a link is there").syncs.applied(log);
    }

    /// Sends what is to be sent, whenever there is something.
    async fn send(&self, sender: &LinkSender) -> LinkError {
        loop {
            let outgoing = self.outgoing.listen();
            let Some((kind, bytes)) = self.next_message() else {
                outgoing.await;
                continue;
            };
            if let Err(error) = sender.send(kind, vec![Box::new(bytes)]).await {
                return error;
            }
        }
    }

    fn next_message(&self) -> Option<(u8, Vec<u8>)> {
        self.with_link(OnLink::next_message).or_else(|| self.next_subscribe())
    }

    /// Subscribes what waits for it, from the cursors that the engine has now.
    fn next_subscribe(&self) -> Option<(u8, Vec<u8>)> {
        let mut entries = Vec::new();
        while entries.len() < SUBSCRIPTIONS_PER_MESSAGE
            && let Some(slot) = self.with_link(|link| link.to_subscribe.pop_first())
        {
            entries.extend(self.subscribe(slot));
        }
        if entries.is_empty() {
            return None;
        }
        self.unsynced.notify_all();
        Some((KIND_SUBSCRIBE, message::encode_subscribe(&entries)))
    }

    fn subscribe(&self, slot: Slot) -> Option<Subscribe> {
        let wanted = *self.state.borrow().wanted.get(&slot)?;
        let Wanted { generation, source_generation, subscription, .. } = wanted;
        let status = self.engine.slot_status(slot);
        if status.generation != generation || !status.gate.takes_ranges() {
            let reason = format!(
                "its gate is {} and its generation {} here, generation {generation} was to be filled",
                status.gate, status.generation
            );
            self.give_up(slot, subscription, &WhyRefused::Broken(reason));
            return None;
        }
        let ticket = self.engine.ticket_at(slot, status.position);
        self.with_link(|link| link.syncs.cursor(Subscription { slot, subscription }, ticket));
        let (cursor, Floors { undo_floor, .. }) = (status.version, self.engine.slot_floors(slot));
        Some(Subscribe { slot, subscription, generation, source_generation, cursor, undo_floor })
    }

    /// Waits for syncs, round by round.
    async fn sync(&self, sender: &LinkSender) -> LinkError {
        loop {
            let unsynced = self.unsynced.listen();
            let Some(round) = self.with_link(|link| link.syncs.begin()) else {
                unsynced.await;
                continue;
            };
            if let Err(failed) = self.wait_synced(&round).await {
                sender.close(&failed.to_string());
                return sender.closed().await;
            }
            self.with_link(|link| {
                link.syncs.done(&round);
                link.cursors_synced.extend(round.cursors);
            });
            self.outgoing.notify_all();
            if !self.sync_pause.is_zero() {
                lockgate_runtime::sleep(self.sync_pause).await;
            }
        }
    }

    async fn wait_synced(&self, round: &Round) -> Result<(), LogFailed> {
        // All logs are asked first, so that they sync at the same time.
        for ticket in &round.tickets {
            self.engine.log(ticket.core as usize).request_sync(ticket.position);
        }
        for ticket in &round.tickets {
            self.engine.wait_synced(*ticket).await?;
        }
        Ok(())
    }
}

impl OnLink {
    /// What is to be sent beside subscriptions. An acknowledgement frees the feeder's window, so it goes first.
    fn next_message(&mut self) -> Option<(u8, Vec<u8>)> {
        let ack = self.syncs.ack();
        if ack != self.acked {
            self.acked = ack;
            return Some((KIND_ACK, message::encode_ack(ack)));
        }
        if let Some(over) = batch(&mut self.to_unsubscribe) {
            return Some((KIND_UNSUBSCRIBE, message::encode_subscriptions(&over)));
        }
        let synced = batch(&mut self.cursors_synced)?;
        Some((KIND_CURSORS_SYNCED, message::encode_subscriptions(&synced)))
    }
}

/// The next of `entries` that fit into a message.
fn batch<T>(entries: &mut Vec<T>) -> Option<Vec<T>> {
    let count = entries.len().min(SUBSCRIPTIONS_PER_MESSAGE);
    (count > 0).then(|| entries.drain(..count).collect())
}
