//! The compactor: one task per core that gives back what superseded values and old tombstones take, step by step.
//!
//! Invariants:
//! - A slot that has enough garbage is marked once, by the write that made it so; nothing is scanned while there is none.
//! - Each step holds one slot's lock for the copy of about one segment; then other tasks run. What was freed is given back
//!   without the lock.
//! - Under a steady load nobody has to wake it: it looks again by itself before it sleeps for long.
//! - What has to stay for now (see `compaction.rs`) is looked at again after a pause, which doubles while nothing comes of it.
//! - When memory is short every slot is looked at, and less garbage is enough.
//! - It keeps no engine alive, and ends with it.
//!
//! What it does not know: why a write can never be taken back. The layer above says so ([`StableWatermarks`]); without it,
//! in an engine that is its slots' only owner, none ever is.

use std::time::Duration;

use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use lockgate_runtime::sync::{Arc, Mutex};

use crate::arena::MemoryBudget;
use crate::compaction::{Compacted, Step};
use crate::dirty::{DirtySlots, SlotSet};
use crate::log::Log;
use crate::slots::SlotTable;
use crate::stats::CompactionStats;
use crate::types::{Generation, Slot, Version};

/// When there is nothing left to do it looks once more after this time, before whoever marks a slot has to wake it.
const NAP: Duration = Duration::from_millis(1);
/// What waits for a watermark or for a reader is looked at again after this time...
const RETRY_MIN: Duration = Duration::from_millis(50);
/// ... and at least so often.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Says up to where a slot's writes are never taken back: not by a truncation here, and not by a later owner's history.
///
/// Asked on the cores' threads, without any lock of the engine.
pub trait StableWatermarks: Send + Sync {
    /// The version, in this generation. `None`: nothing is known of it now.
    fn stable(&self, slot: Slot, generation: Generation) -> Option<Version>;
}

/// Where writes are stable: everywhere in a standalone engine, and where the layer above says so in a clustered one.
pub(crate) struct Stability {
    clustered: bool,
    watermarks: Mutex<Option<Arc<dyn StableWatermarks>>>,
}

impl Stability {
    pub(crate) fn new(clustered: bool) -> Stability {
        Stability { clustered, watermarks: Mutex::new(None) }
    }

    pub(crate) fn set(&self, watermarks: Arc<dyn StableWatermarks>) {
        *self.watermarks.lock() = Some(watermarks);
    }

    fn of(&self, slot: Slot, generation: Generation, last: Version) -> u64 {
        if !self.clustered {
            return last.counter;
        }
        let watermarks = self.watermarks.lock().clone();
        let stable = watermarks.and_then(|watermarks| watermarks.stable(slot, generation));
        stable.map_or(0, |stable| stable.counter.min(last.counter))
    }
}

/// What the slots of one core tell their compactor.
pub(crate) struct Compactor {
    /// The first slot of its core.
    first: Slot,
    dirty: DirtySlots,
    has_ended: AtomicBool,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    steps: AtomicU64,
    moved_records: AtomicU64,
    moved_bytes: AtomicU64,
    freed_bytes: AtomicU64,
}

impl Counters {
    fn add(&self, compacted: &Compacted) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.moved_records.fetch_add(compacted.moved_records, Ordering::Relaxed);
        self.moved_bytes.fetch_add(compacted.moved_bytes, Ordering::Relaxed);
        self.freed_bytes.fetch_add(compacted.freed_bytes, Ordering::Relaxed);
    }
}

/// What one core's compactor works on.
pub(crate) struct Home {
    pub(crate) slots: SlotTable,
    pub(crate) core: usize,
    pub(crate) cores: usize,
    pub(crate) log: Log,
    pub(crate) budget: Arc<MemoryBudget>,
    pub(crate) stability: Arc<Stability>,
}

impl Compactor {
    /// That of one more core.
    pub(crate) fn new(core: usize) -> Compactor {
        Compactor {
            first: Slot::new(core as u16).expect("there are fewer cores than slots"),
            dirty: DirtySlots::new(),
            has_ended: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    /// A slot has garbage. True: the compactor may be asleep, and [`wake`](Compactor::wake) must follow.
    pub(crate) fn mark(&self, slot: Slot) -> bool {
        self.dirty.mark(slot)
    }

    /// Wakes the compactor.
    pub(crate) fn wake(&self) {
        self.dirty.wake();
    }

    /// Ends the compactor.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        self.rouse();
    }

    /// Has it look at what memory there is.
    pub(crate) fn rouse(&self) {
        // Any slot of this core will do: what has no garbage is found to have none.
        if self.dirty.mark(self.first) {
            self.dirty.wake();
        }
    }

    /// Adds what it did so far.
    pub(crate) fn add_to(&self, stats: &mut CompactionStats) {
        stats.steps += self.counters.steps.load(Ordering::Relaxed);
        stats.moved_records += self.counters.moved_records.load(Ordering::Relaxed);
        stats.moved_bytes += self.counters.moved_bytes.load(Ordering::Relaxed);
        stats.freed_bytes += self.counters.freed_bytes.load(Ordering::Relaxed);
    }

    /// Runs on the core whose slots these are until the engine ends.
    pub(crate) async fn run(self: Arc<Self>, home: Home) {
        let mut pending = SlotSet::new();
        let mut blocked: Vec<Slot> = Vec::new();
        let (mut turn, mut retry, mut is_rested) = (0, RETRY_MIN, false);
        loop {
            self.dirty.take(&mut pending);
            if self.has_ended.load(Ordering::Acquire) {
                return;
            }
            let Some(slot) = pending.next_from(turn) else {
                if !std::mem::replace(&mut is_rested, true) {
                    lockgate_runtime::sleep(NAP).await;
                    continue;
                }
                let is_tight = home.budget.is_tight();
                if blocked.is_empty() && !is_tight {
                    self.dirty.wait().await;
                } else if lockgate_runtime::timeout(retry, self.dirty.wait()).await.is_err() {
                    retry = (retry * 2).min(RETRY_MAX);
                    blocked.drain(..).for_each(|slot| pending.insert(slot));
                    if is_tight {
                        home.all().for_each(|slot| pending.insert(slot));
                    }
                }
                continue;
            };
            (turn, is_rested) = (slot.number() + 1, false);
            match home.step(slot) {
                Step::Compacted(compacted) => {
                    self.counters.add(&compacted);
                    drop(compacted);
                    retry = RETRY_MIN;
                    lockgate_runtime::yield_now().await;
                }
                Step::Blocked => {
                    pending.remove(slot);
                    blocked.push(slot);
                }
                Step::Clean => pending.remove(slot),
            }
        }
    }
}

impl Home {
    /// The slots of this core.
    fn all(&self) -> impl Iterator<Item = Slot> + use<> {
        let (core, cores) = (self.core, self.cores);
        Slot::all().filter(move |slot| slot.index() % cores == core)
    }

    /// One step in one slot.
    fn step(&self, slot: Slot) -> Step {
        // Another core's frames about this slot would be replayed in no order with its own.
        assert_eq!(slot.index() % self.cores, self.core, "a core compacts its own slots");
        let Some(state) = self.slots.known(slot) else { return Step::Clean };
        let seen = {
            let mut held = state.lock();
            if !held.wants_compaction() {
                held.compaction.is_marked = false;
                return Step::Clean;
            }
            (held.generation(), held.truncations(), held.version())
        };
        let (generation, truncations, last) = seen;
        let stable = self.stability.of(slot, generation, last);
        let mut held = state.lock();
        // What was said is about these very writes.
        let stable =
            if (held.generation(), held.truncations()) == (generation, truncations) { stable } else { 0 };
        let step = held.compact(stable, Some(&self.log)).unwrap_or_else(|error| {
            tracing::warn!(%slot, %error, "no addresses are left for a compaction");
            Step::Blocked
        });
        held.compaction.is_marked = !matches!(step, Step::Clean);
        step
    }
}
