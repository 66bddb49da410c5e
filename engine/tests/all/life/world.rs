//! An engine and its model, and the steps that take time or only look.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use lockgate_engine::{CheckpointError, Engine, OpError, Receipt, ScanCursor, SlotStatus, Value};
use lockgate_runtime::{Event, Runtime, sleep, spawn, unix_ms};

use super::model::{Entry, Model};
use super::steps::{Content, KEYSPACES, Place, Step, TAGS};
use super::{CORES_MAX, Summary};
use crate::common::slot_of;

/// A life's memory and time are bounded, whatever its bytes are: of what costs much there is only so much.
const HUGE_VALUES: usize = 12;
const REOPENINGS: u64 = 5;
const CHECKPOINTS: u64 = 40;
/// Writes are let into the log when so many bytes may be waiting: far below the log's own bound.
const UNWRITTEN_BYTES_MAX: usize = 8 << 20;
const HELD_MAX: usize = 4;

pub struct World {
    runtime: Runtime,
    /// Gone between a close and the next opening only.
    engine: Option<Engine>,
    pub model: Model,
    /// Values that were read some time ago, and what they were.
    held: VecDeque<(Value, Vec<u8>)>,
    huge_values_left: usize,
    /// At most.
    unwritten_bytes: usize,
    running: Rc<Checkpoints>,
    summary: Summary,
}

/// The tasks that wait for a checkpoint.
#[derive(Default)]
struct Checkpoints {
    count: Cell<usize>,
    ended: Event,
}

async fn open(runtime: &Runtime, cores: usize) -> Engine {
    Engine::builder("/data").cores(cores).log_file_bytes(256 << 10).open_on(runtime).await.unwrap()
}

impl World {
    pub async fn open(runtime: Runtime, cores: usize) -> World {
        World {
            engine: Some(open(&runtime, cores).await),
            runtime,
            model: Model::default(),
            held: VecDeque::new(),
            huge_values_left: HUGE_VALUES,
            unwritten_bytes: 0,
            running: Rc::default(),
            summary: Summary::default(),
        }
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("it is open")
    }

    pub async fn take(&mut self, step: &Step) {
        self.summary.steps += 1;
        match step {
            Step::Sleep(time_ms) => {
                sleep(Duration::from_millis(*time_ms)).await;
                self.check_held();
            }
            Step::Checkpoint => self.checkpoint(),
            Step::Reopen(cores) => self.reopen(*cores).await,
            step => {
                if self.unwritten_bytes > UNWRITTEN_BYTES_MAX {
                    self.engine().sync_all().await.unwrap();
                    self.unwritten_bytes = 0;
                }
                if !self.look(step) && !self.write_many(step) {
                    self.write(step);
                }
            }
        }
    }

    /// The bytes of a value.
    pub fn value_of(&mut self, content: Content) -> Vec<u8> {
        let stamp = self.summary.steps as u32;
        let fresh = |length| {
            let mut value = vec![stamp as u8; length];
            let stamped = length.min(4);
            value[..stamped].copy_from_slice(&stamp.to_le_bytes()[..stamped]);
            value
        };
        let value = match content {
            Content::Fresh(length) => fresh(length),
            Content::Same(byte) => vec![byte; 3 * usize::from(byte)],
            Content::Number(number) => number.to_string().into_bytes(),
            Content::Huge if self.huge_values_left > 0 => {
                self.huge_values_left -= 1;
                fresh(70_000)
            }
            Content::Huge => fresh(500),
        };
        self.will_write(value.len());
        value
    }

    pub fn will_write(&mut self, value_bytes: usize) {
        self.unwritten_bytes += value_bytes + 1_000;
    }

    fn status(&self, tag: usize) -> SlotStatus {
        self.engine().slot_status(slot_of(TAGS[tag]))
    }

    /// A receipt is for the slot's last write, whether that is what it was given for or not.
    pub fn check_receipt(&self, tag: usize, receipt: &Receipt) {
        let (slot, status) = (slot_of(TAGS[tag]), self.status(tag));
        assert_eq!((receipt.slot, receipt.version), (slot, status.version));
        assert_eq!(receipt.ticket, self.engine().ticket_at(slot, status.position));
    }

    fn check_held(&self) {
        self.held.iter().for_each(|(value, was)| assert!(value == was, "a value that is held has changed"));
    }

    /// The steps that change nothing but that keys end. False: it is none of them.
    fn look(&mut self, step: &Step) -> bool {
        let now_ms = unix_ms();
        match *step {
            Step::Get(place) => self.get(place, now_ms),
            Step::GetMany(keyspace) => self.get_many(keyspace, now_ms),
            Step::Scan(keyspace, tag, count_max) => self.scan(keyspace, tag, count_max, now_ms),
            Step::Count => self.check_all(now_ms),
            Step::Hold(place) => {
                let value = self.engine().keyspace(place.keyspace).get(&place.name()).unwrap();
                let expected = self.model.live(place, now_ms);
                assert_eq!(value.is_some(), expected.is_some());
                self.held.extend(value.zip(expected.map(|entry| entry.value)));
                self.check_held();
                if self.held.len() > HELD_MAX {
                    self.held.pop_front();
                }
            }
            _ => return false,
        }
        true
    }

    fn get(&mut self, place: Place, now_ms: u64) {
        let (keys, name) = (self.engine().keyspace(place.keyspace), place.name());
        let expected = self.model.live(place, now_ms);
        let value = keys.get(&name).unwrap();
        assert_eq!(value.as_ref().map(Value::as_bytes), expected.as_ref().map(|entry| &entry.value[..]));
        let status = self.status(place.tag);
        let version = expected.as_ref().map_or(status.version, |entry| entry.version);
        assert_eq!(value.map_or(status.version, |value| value.version()), version);
        let seen = keys.get_with(&name, |seen, version| (seen.map(<[u8]>::to_vec), version)).unwrap();
        assert_eq!(seen, (expected.as_ref().map(|entry| entry.value.clone()), version));
        assert_eq!(keys.exists(&name).unwrap(), expected.is_some());
        let read = keys.read(&name).unwrap();
        assert_eq!((read.slot, read.version), (slot_of(TAGS[place.tag]), version));
        assert_eq!(read.position, self.engine().ticket_at(read.slot, status.position));
        assert_eq!(read.value.as_ref().map(Value::as_bytes), expected.as_ref().map(|entry| &entry.value[..]));
        let deadline = keys.deadline(&name).unwrap();
        assert_eq!((deadline.exists, deadline.version), (expected.is_some(), version));
        assert_eq!(
            (deadline.at_ms, deadline.clock_ms),
            (expected.and_then(|entry| entry.deadline_ms), now_ms)
        );
        assert_eq!(self.status(place.tag), status, "to look at a key again writes nothing");
    }

    fn get_many(&mut self, keyspace: u8, now_ms: u64) {
        let places: Vec<Place> = Place::all().filter(|place| place.keyspace == keyspace).collect();
        let names: Vec<Vec<u8>> = places.iter().map(|place| place.name()).collect();
        let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        let values = self.engine().keyspace(keyspace).get_many(&names).unwrap();
        assert_eq!(values.len(), places.len());
        let mut seen = vec![None; places.len()];
        let see = |at: usize, value: Option<&[u8]>, version| {
            let before = seen[at].replace((value.map(<[u8]>::to_vec), version));
            assert_eq!(before, None, "each is seen once");
        };
        self.engine().keyspace(keyspace).get_many_with(&names, see).unwrap();
        for ((place, value), seen) in places.into_iter().zip(values).zip(seen) {
            let expected = self.model.live(place, now_ms).map(|entry| (entry.value, entry.version));
            let (seen, version) = seen.expect("each is seen");
            assert_eq!(seen.map(|seen| (seen, version)), expected, "{place:?}");
            if expected.is_none() {
                assert_eq!(version, self.status(place.tag).version, "{place:?}");
            }
            let value = value.map(|value| (value.as_bytes().to_vec(), value.version()));
            assert_eq!(value, expected, "{place:?}");
        }
    }

    fn scan(&mut self, keyspace: u8, tag: usize, count_max: usize, now_ms: u64) {
        let (keys, slot) = (self.engine().keyspace(keyspace), slot_of(TAGS[tag]));
        let (mut found, mut next) = (Vec::new(), Some(ScanCursor::START));
        while let Some(cursor) = next {
            let page = keys.scan(slot, cursor, count_max).unwrap();
            assert_eq!(page.version, self.status(tag).version);
            found.extend(
                page.entries
                    .into_iter()
                    .map(|entry| (entry.key, entry.value.to_vec(), entry.value.version())),
            );
            next = page.next;
        }
        found.sort();
        let expected = self.model.of(tag, keyspace, now_ms);
        let of = |(name, entry): (Vec<u8>, Entry)| (name, entry.value, entry.version);
        assert_eq!(found, expected.into_iter().map(of).collect::<Vec<_>>());
    }

    /// Everything, key by key, and all that is counted.
    fn check_all(&mut self, now_ms: u64) {
        // From here on nothing is due that was not deleted.
        (0..KEYSPACES).for_each(|keyspace| self.get_many(keyspace, now_ms));
        let (mut keys, mut with_deadline) = ([0; KEYSPACES as usize], [0; KEYSPACES as usize]);
        for (tag, name) in TAGS.iter().enumerate() {
            let (counts, stats) = (self.model.counts(tag), self.engine().slot_stats(slot_of(name)));
            assert_eq!(stats.keyspaces, counts);
            assert_eq!(stats.data.keys, counts.iter().map(|of| of.keys).sum::<u64>());
            assert_eq!(stats.data.live_bytes, self.model.live_bytes(tag));
            for of in counts {
                keys[usize::from(of.keyspace)] += of.keys;
                with_deadline[usize::from(of.keyspace)] += of.keys_with_deadline;
            }
            (0..KEYSPACES).for_each(|keyspace| self.scan(keyspace, tag, 5, now_ms));
        }
        // These walk over all slots: one of them is enough for one time.
        let at = self.summary.steps % usize::from(KEYSPACES);
        let of = self.engine().keyspace(at as u8);
        assert_eq!((of.len(), of.len_with_deadline()), (keys[at], with_deadline[at]));
        self.check_held();
    }

    /// Begins one; it is taken while the next steps sleep, or when the engine is closed.
    fn checkpoint(&mut self) {
        if self.summary.checkpoints == CHECKPOINTS {
            return;
        }
        self.summary.checkpoints += 1;
        let (engine, running) = (self.engine().clone(), self.running.clone());
        running.count.set(running.count.get() + 1);
        spawn(async move {
            match engine.checkpoint().await {
                Ok(_) | Err(CheckpointError::Log(_)) => {}
                Err(error) => panic!("{error}"),
            }
            drop(engine);
            running.count.set(running.count.get() - 1);
            running.ended.notify_all();
        });
    }

    async fn reopen(&mut self, cores: usize) {
        if self.summary.reopened == REOPENINGS {
            return;
        }
        self.close().await;
        let before: Vec<SlotStatus> = (0..TAGS.len()).map(|tag| self.status(tag)).collect();
        let refused = self.engine().keyspace(0).set(b"{a}0", b"too late");
        assert!(matches!(refused, Err(OpError::LogFailed(_))));
        self.engine = None;
        self.engine = Some(open(&self.runtime, cores.min(CORES_MAX)).await);
        self.summary.reopened += 1;
        for (tag, before) in before.into_iter().enumerate() {
            let after = self.status(tag);
            assert!(after.version >= before.version);
            // What became due meanwhile may be deleted by now.
            if after.version == before.version {
                assert_eq!(
                    (after.digest, after.keys, after.live_bytes, after.generation),
                    (before.digest, before.keys, before.live_bytes, before.generation)
                );
            }
        }
        self.check_held();
    }

    async fn close(&mut self) {
        self.engine().close().await.unwrap();
        loop {
            let ended = self.running.ended.listen();
            if self.running.count.get() == 0 {
                break;
            }
            ended.await;
        }
        self.unwritten_bytes = 0;
        let (stats, sum) = (self.engine().compaction_stats(), &mut self.summary.compaction);
        sum.steps += stats.steps;
        sum.moved_records += stats.moved_records;
        sum.moved_bytes += stats.moved_bytes;
        sum.freed_bytes += stats.freed_bytes;
    }

    /// All that is due goes without being asked for, and all else is there, also after another start.
    pub async fn end(mut self) -> Summary {
        sleep(Duration::from_millis(300)).await;
        self.check_all(unix_ms());
        self.close().await;
        self.engine = None;
        self.engine = Some(open(&self.runtime, 1).await);
        self.check_all(unix_ms());
        let of_slots = (0..TAGS.len()).map(|tag| self.status(tag).keys);
        assert_eq!(self.engine().stats().keys, of_slots.sum::<u64>());
        self.engine().close().await.unwrap();
        Summary { ended: self.model.ended, ..self.summary }
    }
}
