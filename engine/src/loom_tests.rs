//! Models of what a slot's lock alone does not settle, on the engine's own types. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p lockgate-engine --lib loom_tests`.
//!
//! What loom does not see: bytes of an arena, and the counts of `Arc`, which is std's here too. So bytes are checked for
//! what they say, with a relaxed witness beside them where it is about order; and that memory is freed once is told by the
//! budget and by the free list, whose lock is a point at which threads take turns.

use std::sync::atomic::{AtomicUsize, Ordering as Std};

use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use lockgate_runtime::sync::{Arc, explore};
use loom::future::block_on;
use loom::thread;

use crate::apply::verify_range;
use crate::arena::{Arena, MemoryBudget};
use crate::cell::SlotCell;
use crate::compaction::Step;
use crate::dirty::{DirtySlots, SlotSet};
use crate::gate::Action;
use crate::index::KeyHasher;
use crate::lazy_table::{BLOCK_ENTRIES, LazyTable};
use crate::record::{NewRecord, encode};
use crate::segment::{DESCRIPTION_BYTES, Writer};
use crate::slot::SlotState;
use crate::store::Store;
use crate::types::{Gate, Generation, RangeHeader, Slot, Term};
use crate::value::Value;
use crate::wakes::Wakes;
use crate::watchers::{Gates, Watchers};

const RANGE: RangeHeader = RangeHeader { term: Term(1), base: 0 };
/// Long enough to be pinned, and for a segment of its own.
const VALUE_BYTES: usize = 5_000;

/// A key of a slot that is among the few that [`DirtySlots`] has here.
fn key(number: u8) -> Vec<u8> {
    let tag = (0..).find(|tag| Slot::of_key(format!("{{{tag}}}").as_bytes()).index() < 64);
    format!("{{{}}}{number}", tag.expect("there is one")).into_bytes()
}

struct Model {
    cell: SlotCell,
    budget: Arc<MemoryBudget>,
}

impl Model {
    fn new() -> Arc<Model> {
        let budget = Arc::new(MemoryBudget::new(1 << 30));
        let store = Store::new(Arc::new(Arena::reserve(budget.clone()).unwrap()), KeyHasher::new(7));
        let watchers = Watchers::new(&Arc::new(Gates::new()), 0);
        let mut state = SlotState::new(Slot::of_key(&key(0)), store, watchers);
        state.begin_generation(Generation::new(1));
        state.set_gate(Gate::Owned, &mut Wakes::default());
        Arc::new(Model { cell: SlotCell::new(state), budget })
    }

    /// Writes a key if the gate lets it, and returns the write's counter. There is no log here: the record comes in as a
    /// follower's do, after an owner's check.
    fn write(&self, number: u8, fill: u8) -> Option<u64> {
        let mut held = self.cell.lock();
        held.check_writable().ok()?;
        let (key, value) = (key(number), [fill; VALUE_BYTES]);
        let delta = held.version().counter as u32 + 1;
        let new = NewRecord { delta, ..NewRecord::put(0, &key, &value, None) };
        let mut bytes = vec![0; new.encoded_bytes()];
        encode(&mut bytes, &new);
        let counters = verify_range(held.slot(), RANGE, &bytes).unwrap();
        let fresh = held.fresh(RANGE, &bytes, counters).unwrap().expect("it is new");
        held.reserve(RANGE, &fresh).unwrap();
        let mut wakes = Wakes::default();
        held.take_in(RANGE, &fresh, &mut wakes);
        drop(held);
        wakes.wake();
        Some(u64::from(delta))
    }

    fn value(&self, number: u8) -> Option<Value> {
        let held = self.cell.lock();
        held.check_readable().ok()?;
        held.store.find(0, &key(number)).map(|place| Value::of(&held.store, place))
    }

    /// One step, as the compactor does it. True: something was freed.
    fn compact(&self) -> bool {
        let step = self.cell.lock().compact(u64::MAX, None).unwrap();
        // Given back here, without the lock.
        matches!(step, Step::Compacted(_))
    }

    fn change(&self, action: Action) -> u64 {
        let mut held = self.cell.lock();
        let gate = held.check_action(action).unwrap();
        let mut wakes = Wakes::default();
        held.set_gate(gate, &mut wakes);
        let last = held.version().counter;
        drop(held);
        wakes.wake();
        last
    }
}

#[test]
fn a_pinned_value_stays_and_what_is_unpinned_is_freed_once() {
    let (freed, kept) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (freed.clone(), kept.clone());
    explore(3, move || {
        let model = Model::new();
        model.write(0, 1);
        model.write(1, 1);
        model.write(0, 2);
        let reading = model.clone();
        let reader = thread::spawn(move || {
            // Overwritten meanwhile, and its old value's memory taken by others.
            let value = reading.value(1).expect("it is there");
            let fill = value[0];
            reading.budget.used_bytes();
            assert_eq!(value, [fill; VALUE_BYTES]);
            assert!((fill, value.version().counter) == (1, 2) || (fill, value.version().counter) == (3, 4));
        });
        let compacting = model.clone();
        let counts = counts.clone();
        let compactor = thread::spawn(move || {
            let count = if compacting.compact() && compacting.compact() { &counts.0 } else { &counts.1 };
            count.fetch_add(1, Std::Relaxed);
        });
        model.write(1, 3);
        model.write(2, 4);
        reader.join().unwrap();
        compactor.join().unwrap();
        while model.compact() {}
        for (number, fill) in [(0, 2), (1, 3), (2, 4)] {
            assert_eq!(model.value(number).expect("it is there"), [fill; VALUE_BYTES]);
        }
        let held = model.cell.lock();
        let slots = held.store.chain().segment_bytes() + held.store.index_bytes();
        assert_eq!(model.budget.used_bytes(), slots, "nothing is lost, or given back twice");
        assert!(held.store.garbage_bytes() < VALUE_BYTES as u64, "what was pinned went later");
        drop(held);
        let budget = model.budget.clone();
        drop(model);
        assert_eq!(budget.used_bytes(), 0);
    });
    let counts = (freed.load(Std::Relaxed), kept.load(Std::Relaxed));
    assert!(counts.0 > 0 && counts.1 > 0, "both came to pass: {counts:?}");
}

#[test]
fn what_is_published_was_written_before() {
    const RECORD_BYTES: usize = 64;
    explore(3, || {
        let arena = Arc::new(Arena::reserve(Arc::new(MemoryBudget::new(1 << 20))).unwrap());
        let mut writer = Writer::new(arena.allocate(DESCRIPTION_BYTES + 2 * RECORD_BYTES).unwrap(), RANGE);
        let (segment, written) = (writer.segment().clone(), Arc::new(AtomicU64::new(0)));
        let witness = written.clone();
        let reader = thread::spawn(move || {
            let mut before = 0;
            for _ in 0..2 {
                let published = segment.published();
                assert!(published >= before && published.is_multiple_of(RECORD_BYTES));
                // Relaxed: only what was published orders it.
                assert!(witness.load(Ordering::Relaxed) >= (published / RECORD_BYTES) as u64);
                let bytes = segment.bytes(0..published);
                assert!(
                    bytes.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / RECORD_BYTES + 1)
                );
                before = published;
            }
        });
        for record in 1..3u8 {
            let appended = writer.append(RECORD_BYTES, |out| {
                out.fill(record);
                written.store(u64::from(record), Ordering::Relaxed);
                Ok::<(), std::convert::Infallible>(())
            });
            appended.unwrap();
        }
        // The tail goes back while it is read.
        drop(writer.seal());
        reader.join().unwrap();
        assert_eq!(arena.budget().used_bytes(), 0);
    });
}

#[test]
fn no_write_is_answered_after_a_freeze_and_no_read_after_a_hand_off() {
    explore(3, || {
        let model = Model::new();
        let (is_frozen, is_gone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (writing, was_frozen) = (model.clone(), is_frozen.clone());
        let writer = thread::spawn(move || {
            let was_frozen = was_frozen.load(Ordering::Acquire);
            let written = writing.write(0, 1);
            assert!(!(was_frozen && written.is_some()), "a frozen slot was written");
            written
        });
        let (reading, was_gone) = (model.clone(), is_gone.clone());
        let reader = thread::spawn(move || {
            let was_gone = was_gone.load(Ordering::Acquire);
            let may_read = reading.cell.lock().check_readable().is_ok();
            assert!(!(was_gone && may_read), "a slot that was handed off was read");
        });
        let frozen_at = model.change(Action::Freeze);
        is_frozen.store(true, Ordering::Release);
        model.change(Action::HandOff);
        is_gone.store(true, Ordering::Release);
        reader.join().unwrap();
        let written = writer.join().unwrap();
        assert_eq!(written.unwrap_or(0), frozen_at, "a freeze says where writes stopped");
        assert_eq!(model.cell.lock().version().counter, frozen_at);
    });
}

#[test]
fn whoever_waits_for_a_gate_sees_it_change() {
    explore(3, || {
        let model = Model::new();
        let changing = model.clone();
        let thread = thread::spawn(move || {
            changing.change(Action::Freeze);
            changing.change(Action::HandOff);
        });
        let event = model.cell.lock().gate_event();
        loop {
            let changed = event.listen();
            if model.cell.lock().gate() == Gate::HandedOff {
                break;
            }
            // A wake-up that was lost is a deadlock of the model.
            block_on(changed);
        }
        thread.join().unwrap();
    });
}

#[test]
fn a_reader_of_dirty_slots_misses_no_mark() {
    explore(3, || {
        let slots = [Slot::new(1).unwrap(), Slot::new(70).unwrap()];
        let dirty = Arc::new(DirtySlots::new());
        let news = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let threads: Vec<_> = [(0, 2), (1, 1)]
            .map(|(at, count)| {
                let (dirty, news) = (dirty.clone(), news.clone());
                thread::spawn(move || {
                    for number in 1..=count {
                        // Relaxed: only the mark orders it.
                        news[at].store(number, Ordering::Relaxed);
                        if dirty.mark(slots[at]) {
                            dirty.wake();
                        }
                    }
                })
            })
            .into();
        let (mut pending, mut seen) = (SlotSet::new(), [0, 0]);
        while seen != [2, 1] {
            block_on(dirty.wait());
            dirty.take(&mut pending);
            for at in 0..2 {
                // Only what was marked is looked at: a mark that was lost is a deadlock of the model.
                if pending.next_from(slots[at].number()) == Some(slots[at]) {
                    pending.remove(slots[at]);
                    seen[at] = news[at].load(Ordering::Relaxed);
                }
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_slot_is_made_once_and_seen_whole_by_whoever_sees_it() {
    explore(3, || {
        let (table, made) = (Arc::new(LazyTable::new()), Arc::new(AtomicUsize::new(0)));
        let ask = |at: usize| {
            let (table, made) = (table.clone(), made.clone());
            move || {
                let make = |at: usize| {
                    made.fetch_add(1, Std::Relaxed);
                    let witness = AtomicU64::new(0);
                    witness.store(7 + at as u64, Ordering::Relaxed);
                    witness
                };
                table.get_or_make(at, make).load(Ordering::Relaxed)
            }
        };
        let other = thread::spawn(ask(1));
        if let Some(seen) = table.get(2) {
            assert_eq!(seen.load(Ordering::Relaxed), 9);
        }
        assert_eq!(ask(0)(), 7);
        assert_eq!(other.join().expect("it ends"), 8);
        assert_eq!(made.load(Std::Relaxed), BLOCK_ENTRIES);
    });
}
