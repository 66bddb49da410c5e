//! What a synced write costs on this disk: as the system does it, through the ring, and through the engine's log.
//!
//! Files are written with zeros and synced before, as the engine's are: a growing file costs many times more. Every sample
//! writes 4 KiB and syncs the data.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use futures_util::future::join_all;
use lockgate_engine::log::{FrameHeader, FrameKind, Log, LogConfig};
use lockgate_runtime::now_ns;

use crate::samples::Samples;

/// What one sample writes.
pub const WRITE_BYTES: usize = 4096;
const FILE_BYTES: u64 = 4 << 20;
const BLOCK: [u8; WRITE_BYTES] = [0x5a; WRITE_BYTES];

fn prepare(path: &Path) -> File {
    let made = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.write_all_at(&vec![0; FILE_BYTES as usize], 0).expect("the file can be filled");
    file.sync_all().expect("the file can be synced");
    file
}

/// Synced writes by system calls of one thread.
pub struct RawSync {
    file: File,
    offset: u64,
}

impl RawSync {
    /// Prepares a file in `folder`.
    pub fn new(folder: &Path) -> RawSync {
        RawSync { file: prepare(&folder.join("raw")), offset: 0 }
    }

    /// Measures `count` synced writes, one after the other. Blocks.
    pub fn measure(&mut self, count: usize) -> Samples {
        let mut samples = Samples::default();
        for _ in 0..count {
            let began = Instant::now();
            self.file.write_all_at(&BLOCK, self.offset).expect("the file can be written");
            self.file.sync_data().expect("the file can be synced");
            samples.push(began.elapsed().as_nanos() as u64);
            self.offset = (self.offset + WRITE_BYTES as u64) % FILE_BYTES;
        }
        samples
    }
}

/// Synced writes through the ring of the current core, to `files` files at once: the time until all are synced.
pub async fn ring_syncs(folder: &Path, files: usize, count: usize) -> Samples {
    let mut open = Vec::new();
    for n in 0..files {
        let path = folder.join(format!("ring-{files}-{n}"));
        if !path.exists() {
            drop(prepare(&path));
        }
        let options = lockgate_runtime::OpenOptions::new().read(true).write(true);
        open.push(lockgate_runtime::File::open(&path, &options).await.expect("the file can be opened"));
    }
    let mut samples = Samples::default();
    for n in 0..count {
        let offset = (n * WRITE_BYTES) as u64 % FILE_BYTES;
        let began_ns = now_ns();
        join_all(open.iter().map(|file| async move {
            let (written, _) = file.write_all_at(BLOCK.to_vec(), offset).await;
            written.expect("the file can be written");
            file.sync_data().await.expect("the file can be synced");
        }))
        .await;
        samples.push(now_ns() - began_ns);
    }
    samples
}

/// A log of the engine's kind on the current core. One for all samples: making its files would disturb them.
pub async fn engine_log(folder: &Path) -> Log {
    Log::create(LogConfig::new(folder.join("log"), "probe", 1), 0).await.expect("a log is made")
}

/// Synced frames of that log: reserve, append, wait.
pub async fn engine_syncs(log: &Log, count: usize) -> Samples {
    let header = FrameHeader { kind: FrameKind(64), slot: 0, generation: 0, term: 0, base: 0 };
    let mut samples = Samples::default();
    for _ in 0..count {
        let began_ns = now_ns();
        let room = log.reserve(WRITE_BYTES).expect("the log takes more");
        let end = log.append(room, header, &[&BLOCK]).expect("the log takes it");
        log.wait_synced(end).await.expect("the log syncs");
        samples.push(now_ns() - began_ns);
    }
    samples
}
