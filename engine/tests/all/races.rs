//! Threads against one slot, with checks that hold at every moment. `.ci/tsan` runs these under ThreadSanitizer.
//!
//! Every value says for which key and by which write it was made, and ends in a checksum of all that: a value that was
//! torn, moved, or overwritten while somebody read it is found by whoever reads it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use lockgate_engine::{
    Engine, Gate, Generation, Keyspace, OpError, RangeHeader, ScanCursor, SlotStream, StreamRange, Update,
    Value, Version,
};
use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::{
    AllStable, FIRST, assert_same, builder, clustered, import, key, own, slot_of, wait_until,
};

const TAG: &str = "race";
const THREADS: u64 = 2;
const CHECKSUM_BYTES: usize = 8;

fn checksum(key: &[u8], body: &[u8]) -> u64 {
    let mix = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    body.iter().fold(key.iter().fold(0xcbf2_9ce4_8422_2325, mix), mix)
}

/// What the write with this stamp gives a key.
fn value(key: &[u8], stamp: u64, filler_bytes: usize) -> Vec<u8> {
    let mut value = stamp.to_le_bytes().to_vec();
    value.resize(value.len() + filler_bytes, stamp as u8);
    let sum = checksum(key, &value);
    value.extend(sum.to_le_bytes());
    value
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

/// Checks a key's value, and returns its stamp.
fn stamp_of(key: &[u8], value: &[u8]) -> u64 {
    let (body, sum) = value.split_at(value.len() - CHECKSUM_BYTES);
    assert_eq!(number(sum), checksum(key, body), "the value of {} is whole", key.escape_ascii());
    number(&body[..8])
}

/// A deterministic sequence of numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

// Two threads that do everything to one slot.

const ROUNDS: u64 = 5_000;
const SINGLE_KEYS: usize = 24;
const BATCH_KEYS: usize = 5;
const SINGLES: u8 = 0;
const BATCHED: u8 = 1;
const COUNTERS: u8 = 2;

/// One of the threads: what it has seen never goes back.
struct Hammer {
    engine: Engine,
    dice: Dice,
    next_stamp: u64,
    written: Version,
    seen: [Version; SINGLE_KEYS],
    /// What it counted up to.
    sum: i64,
    /// How often it counted.
    counts: u64,
}

impl Hammer {
    fn new(engine: &Engine, thread: u64) -> Hammer {
        Hammer {
            engine: engine.clone(),
            dice: Dice(thread),
            next_stamp: thread,
            written: Version::ZERO,
            seen: [Version::ZERO; SINGLE_KEYS],
            sum: 0,
            counts: 0,
        }
    }

    /// Never the other thread's.
    fn stamp(&mut self) -> u64 {
        self.next_stamp += THREADS;
        self.next_stamp
    }

    fn wrote(&mut self, version: Version) {
        assert!(version > self.written, "each write is later than the one before");
        self.written = version;
    }

    fn step(&mut self) {
        let singles = self.engine.keyspace(SINGLES);
        let at = self.dice.roll(SINGLE_KEYS as u64) as usize;
        let single = key(TAG, at);
        match self.dice.roll(8) {
            0 => {
                let (stamp, filler_bytes) = (self.stamp(), self.dice.roll(400) as usize);
                self.wrote(singles.set(&single, &value(&single, stamp, filler_bytes)).unwrap().version);
            }
            1 => {
                let (was_there, receipt) = singles.delete(&single).unwrap();
                assert!(receipt.version >= self.written);
                if was_there {
                    self.wrote(receipt.version);
                }
            }
            2 => {
                if let Some(found) = singles.get(&single).unwrap() {
                    stamp_of(&single, &found);
                    self.saw(at, found.version());
                }
            }
            3 => {
                let seen = singles.get_with(&single, |found, version| {
                    let _stamp = found.map(|found| stamp_of(&single, found));
                    version
                });
                self.saw(at, seen.unwrap());
            }
            4 => self.write_batch(),
            5 => self.read_batch(),
            6 => self.count(),
            _ => self.scan_batch(),
        }
    }

    fn saw(&mut self, at: usize, version: Version) {
        assert!(version >= self.seen[at], "a key never goes back");
        self.seen[at] = version;
    }

    fn write_batch(&mut self) {
        let (stamp, filler_bytes) = (self.stamp(), self.dice.roll(200) as usize);
        let deletes = self.dice.roll(6) == 0;
        let mut batch = self.engine.batch(slot_of(TAG));
        for at in 0..BATCH_KEYS {
            let key = key(TAG, at);
            match deletes {
                true => batch.delete(BATCHED, key),
                false => {
                    let value = value(&key, stamp, filler_bytes);
                    batch.set(BATCHED, key, value)
                }
            };
        }
        let version = batch.commit().unwrap().version;
        assert!(version >= self.written);
        if !deletes {
            self.wrote(version);
        }
    }

    fn read_batch(&mut self) {
        let keys: Vec<Vec<u8>> = (0..BATCH_KEYS).map(|at| key(TAG, at)).collect();
        let wanted: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let found = self.engine.keyspace(BATCHED).get_many(&wanted).unwrap();
        let stamps: Vec<Option<u64>> = keys
            .iter()
            .zip(&found)
            .map(|(key, value)| value.as_ref().map(|value| stamp_of(key, value)))
            .collect();
        assert!(stamps.iter().all(|stamp| *stamp == stamps[0]), "a batch is seen whole: {stamps:?}");
        let counters = found.iter().flatten().map(|value| value.version().counter);
        assert!(counters.is_sorted_by(|a, b| a + 1 == *b), "its records follow each other");
    }

    fn scan_batch(&mut self) {
        // Few enough keys for one page, which is of one instant.
        let page = self.engine.keyspace(BATCHED).scan(slot_of(TAG), ScanCursor::START, 64).unwrap();
        assert!(page.next.is_none() && [0, BATCH_KEYS].contains(&page.entries.len()), "{page:?}");
        let stamps: Vec<u64> = page.entries.iter().map(|entry| stamp_of(&entry.key, &entry.value)).collect();
        assert!(stamps.iter().all(|stamp| *stamp == stamps[0]), "a batch is seen whole: {stamps:?}");
        assert!(page.version >= self.written);
    }

    /// Counts once by each of two ways.
    fn count(&mut self) {
        let counters = self.engine.keyspace(COUNTERS);
        let (sum, receipt) = counters.increment(&key(TAG, 0), 1).unwrap();
        assert!(sum > self.sum, "nobody counts back");
        self.sum = sum;
        self.counts += 1;
        self.wrote(receipt.version);
        let updated = counters.update(&key(TAG, 1), |old| {
            let old = old.map_or(0, |old| stamp_of(&key(TAG, 1), old));
            Update::Put(value(&key(TAG, 1), old + 1, old as usize % 50))
        });
        self.wrote(updated.unwrap().version);
    }
}

#[test]
fn two_threads_do_everything_to_one_slot() {
    let folder = tempfile::tempdir().unwrap();
    let engine = builder(folder.path(), 1).log_unwritten_bytes_max(1 << 28).open().unwrap();
    let counts: u64 = std::thread::scope(|scope| {
        let hammer = |thread| {
            let mut hammer = Hammer::new(&engine, thread);
            move || {
                (0..ROUNDS).for_each(|_| hammer.step());
                hammer.counts
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(hammer(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let counters = engine.keyspace(COUNTERS);
    assert_eq!(counters.get(&key(TAG, 0)).unwrap().unwrap(), counts.to_string().as_bytes());
    assert_eq!(stamp_of(&key(TAG, 1), &counters.get(&key(TAG, 1)).unwrap().unwrap()), counts);
    wait_until(&engine, "the garbage is compacted", |engine| engine.compaction_stats().steps > 0);
    let before = engine.slot_status(slot_of(TAG));
    drop((counters, engine));
    let engine = builder(folder.path(), 1).open().unwrap();
    let after = engine.slot_status(slot_of(TAG));
    assert_eq!((after.version, after.digest, after.keys), (before.version, before.digest, before.keys));
}

// One slot that is written, compacted, scanned, streamed and pinned at once, then dropped and opened anew.

const WRITES: u64 = 2_500;
/// Overwritten all the time.
const HOT_KEYS: usize = 40;
/// Written once, and there all the time.
const COLD_KEYS: usize = 60;
/// Longer than what is copied to readers.
const LONG_BYTES: u64 = 9_000;
const PINS: usize = 48;
/// Writes that the stream may be behind.
const AHEAD_MAX: u64 = 40;
const SECOND: Generation = Generation::new(2);

fn cold_key(number: usize) -> Vec<u8> {
    key(TAG, 1_000 + number)
}

/// Values and ranges that are kept for a while, with what they were when they were taken.
struct Kept<T>(VecDeque<(T, u64)>);

impl<T: AsRef<[u8]>> Kept<T> {
    fn new() -> Self {
        Kept(VecDeque::new())
    }

    /// Keeps one more. The oldest one goes, if there are many.
    fn keep(&mut self, pin: T) {
        let sum = checksum(b"", pin.as_ref());
        self.0.push_back((pin, sum));
        if self.0.len() > PINS {
            let (pin, sum) = self.0.pop_front().expect("there are many");
            assert_eq!(checksum(b"", pin.as_ref()), sum, "what is pinned stays as it was");
        }
    }

    fn check(&self) {
        for (pin, sum) in &self.0 {
            assert_eq!(checksum(b"", pin.as_ref()), *sum, "what is pinned stays as it was");
        }
    }
}

struct Range(StreamRange);

impl AsRef<[u8]> for Range {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

/// One write of a hot key.
fn write_hot(keys: &Keyspace, dice: &mut Dice, stamp: u64) -> Version {
    let hot = key(TAG, dice.roll(HOT_KEYS as u64) as usize);
    let filler_bytes = if dice.roll(3) == 0 { dice.roll(LONG_BYTES) } else { dice.roll(300) };
    match dice.roll(12) {
        0 => keys.delete(&hot).unwrap().1.version,
        _ => keys.set(&hot, &value(&hot, stamp, filler_bytes as usize)).unwrap().version,
    }
}

/// Writes, never far ahead of the stream: a compaction waits for one that is.
fn write_all(engine: &Engine, thread: u64, phase: &Phase) {
    let (keys, mut dice) = (engine.keyspace(0), Dice(thread));
    for write in 0.. {
        if write >= WRITES && engine.compaction_stats().steps > 0 {
            return;
        }
        let written = write_hot(&keys, &mut dice, write).counter;
        while phase.streamed.load(Ordering::Acquire) + AHEAD_MAX < written {
            assert!(!phase.is_over.load(Ordering::Acquire), "another thread failed");
            std::thread::yield_now();
        }
    }
}

/// The one reason for a read to fail here.
fn assert_not_served(error: &OpError) {
    assert!(matches!(error, OpError::NotOwned { .. }), "{error}");
}

/// How far the test is.
#[derive(Default)]
struct Phase {
    /// The counter up to which the stream was followed.
    streamed: AtomicU64,
    /// How often a long value was pinned.
    pins: AtomicU64,
    /// How many whole scans there were.
    scans: AtomicU64,
    /// The writers have ended.
    is_written: AtomicBool,
    /// The slot is about to be dropped.
    is_ending: AtomicBool,
    /// Readers end.
    is_over: AtomicBool,
}

/// Lets the other threads end when one fails: the test waits for all of them.
struct Failing<'a>(&'a Phase);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.is_over.store(true, Ordering::Release);
        }
    }
}

/// Reads until the end, and keeps the long values pinned.
fn read_hot(keys: &Keyspace, phase: &Phase) -> Kept<Value> {
    let (mut kept, mut dice, _failing) = (Kept::new(), Dice(99), Failing(phase));
    while !phase.is_over.load(Ordering::Acquire) {
        let hot = key(TAG, dice.roll(HOT_KEYS as u64) as usize);
        match keys.get(&hot) {
            Ok(Some(found)) => {
                stamp_of(&hot, &found);
                if found.len() > 4096 {
                    kept.keep(found);
                    phase.pins.fetch_add(1, Ordering::AcqRel);
                }
            }
            Ok(None) => {}
            Err(error) => assert_not_served(&error),
        }
        // Pins go in bursts, so that there is something to compact.
        if kept.0.len() == PINS && dice.roll(16) == 0 {
            kept.check();
            kept.0.clear();
        }
    }
    kept
}

/// Scans until the end: what is there all the time is seen once in every scan.
fn scan_all(keys: &Keyspace, phase: &Phase) {
    let _failing = Failing(phase);
    'scans: while !phase.is_over.load(Ordering::Acquire) {
        let (mut cursor, mut seen) = (Some(ScanCursor::START), BTreeSet::new());
        while let Some(from) = cursor {
            let page = match keys.scan(slot_of(TAG), from, 7) {
                Ok(page) => page,
                Err(error) => {
                    assert_not_served(&error);
                    continue 'scans;
                }
            };
            for entry in page.entries {
                stamp_of(&entry.key, &entry.value);
                assert!(seen.insert(entry.key), "no key is seen twice");
            }
            cursor = page.next;
        }
        if !phase.is_ending.load(Ordering::Acquire) {
            assert!((0..COLD_KEYS).all(|number| seen.contains(&cold_key(number))), "nothing is left out");
            phase.scans.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Applies all that the stream has, and keeps some of the ranges, until the writers have ended.
fn follow(stream: &SlotStream, target: &Engine, phase: &Phase) -> Kept<Range> {
    let (mut kept, _failing) = (Kept::new(), Failing(phase));
    while !phase.is_over.load(Ordering::Acquire) {
        // In this order: what was written before is in the stream.
        let is_last = phase.is_written.load(Ordering::Acquire);
        while let Some(range) = stream.next_range(16 << 10) {
            let header = RangeHeader { term: range.term, base: range.base };
            let applied = target.apply(range.slot, FIRST, &header, &range.bytes).unwrap();
            assert_eq!(applied.version, range.last);
            phase.streamed.store(range.last.counter, Ordering::Release);
            kept.keep(Range(range));
        }
        if is_last {
            break;
        }
    }
    kept
}

/// Ends the slot's generation, and fills the memory that comes back with the next one's.
fn drop_and_reopen(engine: &Engine) {
    let slot = slot_of(TAG);
    engine.hand_off(slot, FIRST).unwrap();
    engine.drop_slot(slot, FIRST).unwrap();
    assert_eq!((engine.slot_status(slot).gate, engine.slot_status(slot).digest), (Gate::Absent, 0));
    own(engine, slot, SECOND, 2);
    let (keys, mut dice) = (engine.keyspace(0), Dice(7));
    for write in 0..WRITES / 4 {
        write_hot(&keys, &mut dice, write);
    }
}

#[test]
fn a_slot_is_written_compacted_scanned_streamed_and_pinned_at_once() {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = builder(folders.0.path(), 1).clustered(true).log_unwritten_bytes_max(1 << 28);
    let (engine, target) = (engine.open().unwrap(), clustered(folders.1.path(), 1));
    engine.set_stable_watermarks(Arc::new(AllStable));
    let (slot, keys) = (slot_of(TAG), engine.keyspace(0));
    own(&engine, slot, FIRST, 1);
    import(&target, slot, FIRST);
    for number in 0..COLD_KEYS {
        let cold = cold_key(number);
        let _ = keys.set(&cold, &value(&cold, 0, number * 10)).unwrap();
    }
    let stream = engine.stream();
    stream.subscribe(slot, FIRST, Version::ZERO).unwrap();
    let phase = Phase::default();
    let (values, ranges) = std::thread::scope(|scope| {
        let _failing = Failing(&phase);
        let write = |thread| {
            let (engine, phase) = (&engine, &phase);
            move || write_all(engine, thread, phase)
        };
        let writers: Vec<_> = (0..THREADS).map(|thread| scope.spawn(write(thread))).collect();
        let reader = scope.spawn(|| read_hot(&keys, &phase));
        let scanner = scope.spawn(|| scan_all(&keys, &phase));
        let follower = scope.spawn(|| follow(&stream, &target, &phase));
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        phase.is_written.store(true, Ordering::Release);
        let ranges = follower.join().unwrap();
        assert_same(&engine, &target, slot);
        assert!(engine.compaction_stats().steps > 0, "it was compacted meanwhile");
        // The threads take turns as the system likes.
        while [&phase.pins, &phase.scans].iter().any(|count| count.load(Ordering::Acquire) == 0) {
            assert!(!phase.is_over.load(Ordering::Acquire), "another thread failed");
            std::thread::yield_now();
        }
        phase.is_ending.store(true, Ordering::Release);
        drop_and_reopen(&engine);
        phase.is_over.store(true, Ordering::Release);
        scanner.join().unwrap();
        (reader.join().unwrap(), ranges)
    });
    assert!(
        stream.next_range(1).is_none() && stream.take_ended() == [slot],
        "the stream ended with the slot"
    );
    values.check();
    ranges.check();
    drop((values, ranges, stream));
    // Whatever was pinned is given back, and nothing twice.
    wait_until(&engine, "all memory is the slots'", |engine| {
        let stats = engine.stats();
        stats.memory_used_bytes == stats.segment_bytes + stats.index_bytes
    });
}
