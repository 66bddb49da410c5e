//! What this node follows: one follower per source, reconnecting by itself, and slots that must start anew.
//!
//! Invariant: a slot is followed from one source at a time, under the generation that the engine holds it by.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use lockgate_engine::{Gate, Generation, Slot, SlotError, Version};
use lockgate_net::link::stream::{FollowObserver, Follower, WhyRefused};
use lockgate_net::link::{LinkError, Purpose};
use lockgate_runtime::sync::Arc;
use lockgate_runtime::{Event, TaskHandle};

use super::peers::{CONNECT_TIMEOUT, RECONNECT_PAUSE, hello};
use super::pledges::Pledges;
use super::shared::Shared;
use crate::control::{Attempt, JobId, NodeId};
use crate::replica::AckPolicy;

/// A source whose map is behind does not have the slot yet: ask again after this time, then after twice as long each time.
/// What it takes may be part of a freeze.
const RETRY_NS_MIN: u64 = 500_000;
/// The longest time until the next try.
const RETRY_NS_MAX: u64 = 10_000_000;

#[derive(Clone, Copy)]
struct Want {
    from: NodeId,
    generation: Generation,
    source_generation: Generation,
}

struct Source {
    follower: Follower,
    task: TaskHandle,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Pause between two syncs of what was received, where answers do not wait for them.
const SYNC_PAUSE: Duration = Duration::from_millis(50);

/// A slot that a source refused, as it reached the follower.
type Refusal = (NodeId, Slot, Generation, WhyRefused);

/// Refusals that nobody has handled yet, and who waits for one.
#[derive(Default)]
struct Refusals {
    waiting: RefCell<Vec<Refusal>>,
    came: Event,
}

/// A slot's next try.
#[derive(Clone, Copy)]
struct Retry {
    at_ns: u64,
    /// What is waited before the one after it.
    pause_ns: u64,
}

/// All followers of this node. Lives on core 0.
pub(crate) struct Receivers {
    shared: Arc<Shared>,
    sources: BTreeMap<NodeId, Source>,
    wants: BTreeMap<Slot, Want>,
    refusals: Rc<Refusals>,
    /// Tries to come, and those that were made of slots that are not followed yet.
    retries: BTreeMap<Slot, Retry>,
    /// When the first of them is due; `u64::MAX` if none is.
    due_ns: u64,
    /// Slots that must start anew, with the next tick: one that is refused again and again starts no more often.
    broken: Vec<Refusal>,
    pledges: Rc<RefCell<Pledges>>,
    /// Behind a fence nothing is taken from anybody.
    is_fenced: bool,
}

impl Receivers {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            sources: BTreeMap::new(),
            wants: BTreeMap::new(),
            refusals: Rc::default(),
            retries: BTreeMap::new(),
            due_ns: u64::MAX,
            broken: Vec::new(),
            pledges: Rc::default(),
            is_fenced: false,
        }
    }

    /// Follows `slot` from that node, and from no other.
    pub fn want(&mut self, from: NodeId, slot: Slot, generation: Generation, source_generation: Generation) {
        if self.wants.get(&slot).is_some_and(|want| want.from != from) {
            self.unwant(slot);
        }
        self.wants.insert(slot, Want { from, generation, source_generation });
        self.retries.remove(&slot);
        let is_fenced = self.is_fenced;
        match self.source(from) {
            Some(follower) => follower.follow(slot, generation, source_generation),
            None if is_fenced => {}
            None => tracing::error!(node = from.0, "the map names a source that it does not know"),
        }
    }

    /// Takes nothing more from anybody until [`Receivers::unfence`].
    pub fn fence(&mut self) {
        self.is_fenced = true;
        self.sources.clear();
        self.shared.marks.forget_all();
    }

    /// Follows again what is wanted.
    pub fn unfence(&mut self) {
        self.is_fenced = false;
        for (slot, want) in self.wants.clone() {
            self.want(want.from, slot, want.generation, want.source_generation);
        }
    }

    /// Keeps a stream to this node open, also while there is no slot to follow: a replica of a shard that has none must be
    /// in sync with it before the first one comes.
    pub fn stay_linked(&mut self, primary: NodeId) {
        self.source(primary);
    }

    /// Follows `slot` no longer.
    pub fn unwant(&mut self, slot: Slot) {
        // A map of which this is asked slot by slot concerns few of them.
        let Some(want) = self.wants.remove(&slot) else { return };
        self.retries.remove(&slot);
        self.shared.marks.forget(slot);
        if let Some(source) = self.sources.get(&want.from) {
            source.follower.unfollow(slot);
        }
    }

    /// When the next try is due, by the runtime's clock; `u64::MAX` if there is none.
    pub fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// Waits until something was refused. The future keeps nothing of this borrowed.
    pub fn refused(&self) -> impl Future<Output = ()> + use<> {
        let refusals = Rc::clone(&self.refusals);
        async move {
            loop {
                let came = refusals.came.listen();
                if !refusals.waiting.borrow().is_empty() {
                    return;
                }
                came.await;
            }
        }
    }

    /// Sorts refusals, and retries what is due.
    pub fn look(&mut self, now_ns: u64) {
        for refusal in self.refusals.waiting.take() {
            let (_, slot, _, why) = &refusal;
            match why {
                _ if !self.is_current(&refusal) => {}
                WhyRefused::NotHere => self.retry(*slot, now_ns),
                WhyRefused::Diverged { .. }
                | WhyRefused::BelowFloor
                | WhyRefused::Gaps
                | WhyRefused::Broken(_) => self.broken.push(refusal),
            }
        }
        if self.due_ns > now_ns {
            return;
        }
        self.due_ns = u64::MAX;
        let mut due = Vec::new();
        for (&slot, retry) in &mut self.retries {
            if retry.at_ns <= now_ns {
                retry.at_ns = u64::MAX;
                due.push(slot);
            }
            self.due_ns = retry.at_ns.min(self.due_ns);
        }
        for slot in due {
            let Some(want) = self.wants.get(&slot) else { continue };
            if let Some(source) = self.sources.get(&want.from) {
                source.follower.follow(slot, want.generation, want.source_generation);
            }
        }
    }

    /// Starts anew what cannot go on.
    pub fn tick(&mut self, now_ns: u64) {
        for refusal in std::mem::take(&mut self.broken) {
            if self.is_current(&refusal) {
                let (from, slot, _, why) = refusal;
                tracing::info!(%slot, source = from.0, %why, "slot cannot go on from what is here");
                self.restart(slot, now_ns);
            }
        }
    }

    fn is_current(&self, &(from, slot, generation, _): &Refusal) -> bool {
        self.wants.get(&slot).is_some_and(|want| (want.from, want.generation) == (from, generation))
    }

    /// Tries again later; the longer, the more often it was tried.
    fn retry(&mut self, slot: Slot, now_ns: u64) {
        let pause_ns = self.retries.get(&slot).map_or(RETRY_NS_MIN, |retry| retry.pause_ns);
        let next = Retry { at_ns: now_ns + pause_ns, pause_ns: (2 * pause_ns).min(RETRY_NS_MAX) };
        self.retries.insert(slot, next);
        self.due_ns = next.at_ns.min(self.due_ns);
    }

    /// What these slots hold must stay as long as a vote may rest on it.
    pub fn pledge(&mut self, job: JobId, attempt: Attempt, slots: impl IntoIterator<Item = Slot>) {
        self.pledges.borrow_mut().pledge(job, attempt, slots);
    }

    /// Drops what this node has of a followed slot and copies it anew, in a generation of its own (R14). What was pledged
    /// waits for its source to get there.
    pub fn restart(&mut self, slot: Slot, now_ns: u64) {
        let Some(want) = self.wants.get(&slot).copied() else { return };
        if is_pledged(&self.shared, &self.pledges, slot) {
            self.retry(slot, now_ns);
            return;
        }
        match self.reopen(slot, want) {
            Ok(generation) => self.want(want.from, slot, generation, want.source_generation),
            Err(error) => {
                tracing::error!(%slot, %error, "slot cannot start anew");
                self.retry(slot, now_ns);
            }
        }
    }

    fn reopen(&self, slot: Slot, want: Want) -> Result<Generation, SlotError> {
        let status = self.shared.engine.slot_status(slot);
        let gate = if status.gate == Gate::Importing { Gate::Importing } else { Gate::Follower };
        let generation = want.generation.next_minor();
        self.shared.engine.open_slot(slot, generation, gate)?;
        Ok(generation)
    }

    fn source(&mut self, node: NodeId) -> Option<&Follower> {
        if self.is_fenced {
            return None;
        }
        if !self.sources.contains_key(&node) {
            self.shared.map.load().as_ref().filter(|map| map.nodes.contains_key(&node))?;
            let (refusals, pledges) = (Rc::clone(&self.refusals), Rc::clone(&self.pledges));
            let news = News { shared: Arc::clone(&self.shared), node, refusals, pledges };
            // Barriers sync by themselves; other syncs are waited for only where the policy says so.
            let pause = match self.shared.config.ack {
                AckPolicy::Primary | AckPolicy::InSync => SYNC_PAUSE,
                AckPolicy::InSyncSynced => Duration::ZERO,
            };
            let follower = Follower::with_sync_pause(self.shared.engine.clone(), Rc::new(news), pause);
            let task = lockgate_runtime::spawn(keep_linked(Arc::clone(&self.shared), node, follower.clone()));
            self.sources.insert(node, Source { follower, task });
        }
        self.sources.get(&node).map(|source| &source.follower)
    }
}

/// Whether a vote may rest on what this node has of the slot.
fn is_pledged(shared: &Shared, pledges: &RefCell<Pledges>, slot: Slot) -> bool {
    let map = shared.map.load();
    let state = |id| map.as_ref()?.jobs.get(&id).map(|job| (&job.state, job.attempt));
    pledges.borrow_mut().holds(slot, state)
}

/// Keeps a follower linked to its source, wherever the map says that it is.
async fn keep_linked(shared: Arc<Shared>, node: NodeId, follower: Follower) {
    while !shared.stop.is_stopped() {
        let addr = shared.map.load().as_ref().and_then(|map| map.nodes.get(&node)).map(|info| info.link);
        if let Some(addr) = addr {
            let why = follower.run(addr, hello(&shared, Purpose::Bulk), CONNECT_TIMEOUT).await;
            tracing::info!(source = node.0, %why, "stream from source ended");
            shared.note_refusal(&why).await;
        }
        lockgate_runtime::sleep(RECONNECT_PAUSE).await;
    }
}

/// What a follower reports, kept until the driver looks.
struct News {
    shared: Arc<Shared>,
    node: NodeId,
    pledges: Rc<RefCell<Pledges>>,
    refusals: Rc<Refusals>,
}

impl FollowObserver for News {
    fn refused(&self, slot: Slot, generation: Generation, why: &WhyRefused) {
        self.refusals.waiting.borrow_mut().push((self.node, slot, generation, why.clone()));
        self.refusals.came.notify_all();
    }

    fn may_go_back(&self, slot: Slot) -> bool {
        !is_pledged(&self.shared, &self.pledges, slot)
    }

    fn truncated(&self, slot: Slot, generation: Generation, records: u64) {
        let source = self.node.0;
        tracing::info!(%slot, %generation, source, records, "writes that the source never had are taken back");
    }

    fn watermark(&self, slot: Slot, generation: Generation, told: Option<Version>) {
        match told {
            Some(version) => {
                self.shared.marks.told(slot, generation, version);
                self.shared.watermarks.told();
            }
            None => self.shared.marks.forget(slot),
        }
    }

    fn disconnected(&self, _why: &LinkError) {}
}
