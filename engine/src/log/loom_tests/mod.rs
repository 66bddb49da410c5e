//! Models of threads that lead: the desk goes from the writer's task to threads and back, in every order that there is.
//! All of it is the log's own code, from [`Log::wait_synced_blocking`] to the writer's task; only what is [`outside`] is
//! another one. Run together with the engine's other models, see `crate::loom_tests`.
//!
//! Models with two threads beside the writer's have one preemption, which is what takes seconds: with two
//! (`LOOM_MAX_PREEMPTIONS=2`) the first of them has half a million interleavings.
//!
//! What each model shows:
//! - Nobody who waits is left asleep, and the writer is woken for what is left to it, also for a close: else all threads
//!   wait, which loom finds.
//! - Never two at the desk, and whoever has it knows what was done before: the files see to that.
//! - What a thread was told is synced is on the disk then, and everything that was taken is there once, in order.

pub(super) mod outside;

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockgate_runtime::sync::explore;
use loom::future::block_on;
use loom::thread;

use self::outside::{By, File};
use super::files::{PreparedFile, Shelf};
use super::format::{BATCH_HEADER_BYTES, BatchHeader, FILE_HEADER_BYTES, batch_file_bytes};
use super::recycle::ChainFiles;
use super::*;

const BOOT: u64 = 1;
const SALT: u64 = 7;
const PAYLOAD_BYTES: usize = 16;
/// Nobody waits so long; but see [`outside::begin`].
const FLUSH: Duration = Duration::from_secs(1);

/// How often something came to pass in all interleavings together.
#[derive(Clone, Default)]
struct Count(std::sync::Arc<AtomicUsize>);

impl Count {
    fn add(&self, number: usize) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    fn assert_some(&self, what: &str) {
        assert!(self.0.load(Ordering::Relaxed) > 0, "it never came to pass: {what}");
    }
}

/// A log with a writer on a thread of its own, in files of the model.
struct Model {
    log: Log,
    files: Vec<File>,
    writer: thread::JoinHandle<()>,
}

/// The files of a model, which has one to begin with, and perhaps a next one.
#[derive(Clone, Copy)]
struct Disk {
    /// So many batches of one frame fit the first file.
    first_batches: u64,
    has_next: bool,
    refuses_to_sync: bool,
}

/// All in one file.
const ROOMY: Disk = Disk { first_batches: 100, has_next: false, refuses_to_sync: false };

impl Model {
    fn new(disk: Disk, timeouts: u32) -> Model {
        outside::begin(timeouts);
        let files: Vec<File> =
            (0..1 + usize::from(disk.has_next)).map(|_| File::new(disk.refuses_to_sync)).collect();
        let batch_bytes = batch_file_bytes(super::format::FRAME_HEADER_BYTES + PAYLOAD_BYTES) as u64;
        let mut prepared = (0u32..).zip(&files).map(|(seq, file)| PreparedFile {
            file: file.clone(),
            path: "model".into(),
            seq,
            salt: SALT,
            capacity_bytes: FILE_HEADER_BYTES as u64
                + batch_bytes * if seq == 0 { disk.first_batches } else { 100 },
        });
        let (first, next) = (prepared.next().expect("one at least"), prepared.next());
        let cfg = LogConfig { flush_interval: FLUSH, ..LogConfig::new("model", "core-0", BOOT) };
        let chain = lockgate_runtime::sync::Arc::new(ChainFiles::new(&cfg, 0));
        let log = Log::without_writer(&cfg, 0, chain.clone());
        let shared = log.shared().clone();
        let writer = thread::spawn(move || {
            let shelf = Rc::new(Shelf::without_maker(next));
            block_on(writer::task(&cfg, shared, shelf, chain, first));
        });
        Model { log, files, writer }
    }

    /// Drops the log, and waits for its writer's end.
    fn end(self) -> Vec<File> {
        drop(self.log);
        self.writer.join().unwrap();
        self.files
    }
}

/// The frames in the first bytes of each file, as far as `of` says.
fn content(files: &[File], of: impl Fn(&outside::Notes) -> usize) -> Vec<u8> {
    let mut frames = Vec::new();
    for file in files {
        file.notes(|notes| {
            let mut bytes = &notes.bytes[..of(notes)];
            while let Some(header) = BatchHeader::decode(bytes) {
                assert_eq!(header.position, frames.len() as u64, "batches are in order");
                let payload_bytes = header.payload_bytes as usize;
                let whole = &bytes[..BATCH_HEADER_BYTES + payload_bytes];
                assert!(BatchHeader::verify(whole));
                frames.extend_from_slice(&whole[BATCH_HEADER_BYTES..]);
                bytes = &bytes[batch_file_bytes(payload_bytes)..];
            }
            assert!(bytes.is_empty());
        });
    }
    frames
}

fn payload(number: u8) -> [u8; PAYLOAD_BYTES] {
    [0xA0 + number; PAYLOAD_BYTES]
}

fn holds(frames: &[u8], number: u8) -> usize {
    frames.windows(PAYLOAD_BYTES).filter(|window| *window == payload(number)).count()
}

/// A thread's log, and the files that it looks at.
#[derive(Clone)]
struct Handle {
    log: Log,
    files: Vec<File>,
}

impl Handle {
    fn append(&self, number: u8) -> Result<LogPosition, LogFailed> {
        let reservation = match self.log.reserve(PAYLOAD_BYTES) {
            Ok(reservation) => reservation,
            Err(LogError::Failed(failed)) => return Err(failed),
            Err(error) => panic!("{error}"),
        };
        let frame = FrameHeader { kind: FrameKind(1), slot: 0, generation: 0, term: 1, base: 0 };
        self.log.append(reservation, frame, &[&payload(number)])
    }

    /// As a thread does a synced write.
    fn append_synced(&self, number: u8) {
        let end = self.append(number).expect("it is open");
        self.log.wait_synced_blocking(end).expect("it is synced");
        let on_disk = content(&self.files, |notes| notes.synced_bytes);
        assert_eq!(holds(&on_disk, number), 1, "synced, and not on the disk");
    }
}

impl Model {
    fn handle(&self) -> Handle {
        Handle { log: self.log.clone(), files: self.files.clone() }
    }
}

/// Everything that was appended is synced, once each, after an orderly end.
fn assert_complete(files: &[File], numbers: std::ops::Range<u8>) {
    let on_disk = content(files, |notes| notes.synced_bytes);
    for number in numbers {
        assert_eq!(holds(&on_disk, number), 1, "frame {number}");
    }
}

fn synced_by(files: &[File], by: By) -> usize {
    let of = |file: &File| file.notes(|notes| notes.syncs.iter().filter(|who| **who == by).count());
    files.iter().map(of).sum()
}

#[test]
fn threads_that_lead_leave_nobody_asleep() {
    let (led, served, together) = (Count::default(), Count::default(), Count::default());
    let counts = (led.clone(), served.clone(), together.clone());
    explore(1, move || {
        let model = Model::new(ROOMY, 0);
        let other = model.handle();
        let thread = thread::spawn(move || other.append_synced(0));
        model.handle().append_synced(1);
        thread.join().unwrap();
        let syncs = [By::Thread, By::Writer].map(|by| synced_by(&model.files, by));
        counts.0.add(syncs[0]);
        counts.1.add(syncs[1]);
        counts.2.add(usize::from(syncs[0] + syncs[1] == 1));
        assert_complete(&model.end(), 0..2);
    });
    led.assert_some("a thread led");
    served.assert_some("the writer synced");
    together.assert_some("one sync for both");
}

#[test]
fn what_does_not_fit_the_file_is_left_to_the_writer() {
    let moved = Count::default();
    let count = moved.clone();
    explore(1, move || {
        let disk = Disk { first_batches: 1, has_next: true, ..ROOMY };
        let model = Model::new(disk, 0);
        let other = model.handle();
        let thread = thread::spawn(move || other.append_synced(0));
        model.handle().append_synced(1);
        thread.join().unwrap();
        count.add(model.files[1].notes(|notes| usize::from(!notes.bytes.is_empty())));
        assert_complete(&model.end(), 0..2);
    });
    moved.assert_some("the next file was needed");
}

#[test]
fn the_writer_comes_for_its_flush_while_a_thread_leads() {
    let (led, served) = (Count::default(), Count::default());
    let counts = (led.clone(), served.clone());
    explore(2, move || {
        let model = Model::new(ROOMY, 1);
        let other = model.handle();
        let thread = thread::spawn(move || {
            // Written by the writer, perhaps, and to be synced in time.
            other.append(0).expect("it is open");
            other.append_synced(1);
        });
        thread.join().unwrap();
        counts.0.add(synced_by(&model.files, By::Thread));
        counts.1.add(synced_by(&model.files, By::Writer));
        assert_complete(&model.end(), 0..2);
    });
    led.assert_some("a thread led");
    served.assert_some("the writer synced");
}

#[test]
fn a_close_waits_for_a_thread_that_leads() {
    let (led, refused) = (Count::default(), Count::default());
    let counts = (led.clone(), refused.clone());
    explore(2, move || {
        let model = Model::new(ROOMY, 0);
        let other = model.handle();
        let thread = thread::spawn(move || {
            let Ok(end) = other.append(0) else { return false };
            // What was taken is synced by somebody, whatever the close does.
            other.log.wait_synced_blocking(end).expect("synced");
            true
        });
        block_on(model.log.close()).expect("closed");
        let was_taken = thread.join().unwrap();
        counts.0.add(synced_by(&model.files, By::Thread));
        counts.1.add(usize::from(!was_taken));
        assert_complete(&model.end(), 0..u8::from(was_taken));
    });
    led.assert_some("a thread led");
    refused.assert_some("the close came first");
}

#[test]
fn a_failed_sync_of_whoever_leads_ends_everybody() {
    let failed = Count::default();
    let count = failed.clone();
    explore(1, move || {
        let disk = Disk { refuses_to_sync: true, ..ROOMY };
        let model = Model::new(disk, 0);
        let write = |handle: Handle, number| {
            let waited = handle.append(number).map(|end| handle.log.wait_synced_blocking(end));
            assert!(!matches!(waited, Ok(Ok(()))), "a sync that failed");
        };
        let other = model.handle();
        let thread = thread::spawn(move || write(other, 0));
        write(model.handle(), 1);
        thread.join().unwrap();
        assert_eq!(model.log.synced(), LogPosition(0));
        assert!(model.log.failure().is_some());
        count.add(1);
        model.end();
    });
    failed.assert_some("an end");
}
