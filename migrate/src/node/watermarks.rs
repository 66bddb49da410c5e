//! The primary's side of watermarks: up to where it has acknowledged its slots' writes. Its replicas' readers need them (R9),
//! and compactions here and there: what lies above may be taken back, so what it superseded must stay (R4).
//!
//! A watermark is found by the very way by which an answer is released: a slot's last version is taken as an answer's
//! dependency, and once [`Node::acknowledged`] lets that answer go, everything up to it is acknowledged. One such wait runs
//! at a time, for all slots that are asked for. Followers ask often while somebody reads at a replica, and seldom otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockgate_engine::{Gate, Slot, Version};
use lockgate_runtime::Event;
use lockgate_runtime::sync::atomic::{AtomicU64, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};

use super::Node;
use super::shared::Shared;
use crate::replica::Dependency;

/// For so long after a replica has asked how fresh it is, watermarks are told.
const INTEREST_NS: u64 = 10_000_000_000;
/// Between two looks at what has advanced, while a replica is read from...
const READERS_PAUSE: Duration = Duration::from_millis(1);
/// ... and while only compactions need to know.
const COMPACTIONS_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a wait that came to nothing.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// What this primary has acknowledged, slot by slot.
#[derive(Default)]
pub(crate) struct Watermarks {
    state: Mutex<State>,
    /// Followers may be told more.
    changed: Event,
    /// Somebody wants to know, until this time.
    wanted_until_ns: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The reign that all of this belongs to.
    reign: u64,
    acknowledged: BTreeMap<Slot, Version>,
    /// Slots that have more than that.
    unknown: BTreeSet<Slot>,
    is_waiting: bool,
}

impl Watermarks {
    /// Notified when [`Watermarks::of`] may give another answer.
    pub fn changed(&self) -> Event {
        self.changed.clone()
    }

    /// A replica is read from.
    pub fn want(&self, now_ns: u64) {
        let until_ns = self.wanted_until_ns.swap(now_ns + INTEREST_NS, Ordering::Relaxed);
        if until_ns <= now_ns {
            self.changed.notify_all();
        }
    }

    /// How long a follower waits before it is told more.
    pub fn pause(&self) -> Duration {
        let is_read_from = lockgate_runtime::now_ns() < self.wanted_until_ns.load(Ordering::Relaxed);
        if is_read_from { READERS_PAUSE } else { COMPACTIONS_PAUSE }
    }

    /// What this node was told of slots that it imports, and passes on, has advanced.
    pub fn told(&self) {
        self.changed.notify_all();
    }

    /// Up to where the slot's writes are acknowledged, as far as this is known.
    pub fn of(&self, shared: &Arc<Shared>, slot: Slot) -> Option<Version> {
        let (reign, status) = (shared.acks.reign(), shared.engine.slot_status(slot));
        if status.gate == Gate::Importing {
            let mark = shared.marks.mark(slot).filter(|mark| mark.generation == status.generation);
            return mark.map(|mark| mark.version.min(status.version));
        }
        if reign == 0 || !matches!(status.gate, Gate::Owned | Gate::Frozen) {
            return None;
        }
        let mut state = self.state.lock();
        if state.reign != reign {
            *state = State { reign, is_waiting: state.is_waiting, ..State::default() };
        }
        let known = state.acknowledged.get(&slot).copied();
        if known < Some(status.version) {
            state.unknown.insert(slot);
            if !std::mem::replace(&mut state.is_waiting, true) {
                lockgate_runtime::spawn(follow_acknowledgements(Arc::clone(shared)));
            }
        }
        known
    }

    /// What is to be waited for next; `None`: nothing, and nobody waits from now on.
    fn next(&self, shared: &Shared) -> Option<(u64, Vec<Dependency>)> {
        let mut state = self.state.lock();
        let slots = std::mem::take(&mut state.unknown);
        let reign = state.reign;
        state.is_waiting = !slots.is_empty();
        drop(state);
        let dependency = |slot| {
            let status = shared.engine.slot_status(slot);
            let ticket = shared.engine.ticket_at(slot, status.position);
            Dependency { slot, version: status.version, ticket, reign }
        };
        (!slots.is_empty()).then(|| (reign, slots.into_iter().map(dependency).collect()))
    }

    fn acknowledged(&self, reign: u64, dependencies: &[Dependency]) {
        let mut state = self.state.lock();
        if state.reign == reign {
            state.acknowledged.extend(dependencies.iter().map(|known| (known.slot, known.version)));
        }
    }
}

async fn follow_acknowledgements(shared: Arc<Shared>) {
    let node = Node { shared: Arc::clone(&shared) };
    while let Some((reign, dependencies)) = shared.watermarks.next(&shared) {
        match node.acknowledged(&dependencies).await {
            Ok(()) => shared.watermarks.acknowledged(reign, &dependencies),
            Err(error) => {
                tracing::debug!(%error, "the watermarks of replicas wait");
                lockgate_runtime::sleep(RETRY_PAUSE).await;
            }
        }
        // Also after a failure: who still wants to know asks again.
        shared.watermarks.changed.notify_all();
    }
}
