//! Tests of the log, on a real core and in the simulation.

mod damage;
mod frames;
mod full;
mod group;
mod latch;
mod lead;
mod recycle;
mod roundtrip;
mod start;
mod torn;

use std::future::Future;
use std::path::{Path, PathBuf};

use lockgate_runtime::sim::Sim;
use lockgate_runtime::{File, OpenOptions, Runtime, fs};

use super::error::{LogError, LogFailed, RecoverError, StopCause};
use super::files::file_name;
use super::format::{BatchHeader, FILE_HEADER_BYTES, name_hash};
use super::reader::{Found, Identity, LogFile, next_offset};
use super::*;

const NAME: &str = "core-0";

/// A frame as it was appended or visited.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    header: FrameHeader,
    payload: Vec<u8>,
}

/// Runs a test on a real core with a temporary directory, and again in the simulation.
fn on_both<F: Future<Output = ()> + 'static>(test: impl Fn(PathBuf) -> F + Copy + Send + 'static) {
    on_core(test);
    in_simulation(test);
}

fn on_core<F: Future<Output = ()> + 'static>(test: impl FnOnce(PathBuf) -> F + Send + 'static) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("log");
    let runtime = Runtime::builder().cores(1).pin(false).name("test").build().expect("a runtime");
    runtime.block_on(0, move || test(path));
    runtime.shutdown();
}

fn in_simulation<F: Future<Output = ()> + 'static>(test: impl FnOnce(PathBuf) -> F + Send + 'static) {
    let sim = Sim::new(7);
    sim.node("a", 1).block_on(0, move || test(PathBuf::from("/node/log")));
}

fn config(dir: &Path, boot: u64) -> LogConfig {
    LogConfig {
        file_bytes: FILE_BYTES_MIN,
        flush_interval: Duration::from_secs(3600),
        ..LogConfig::new(dir, NAME, boot)
    }
}

fn frame(number: u64, payload_bytes: usize) -> Seen {
    let header = FrameHeader {
        kind: FrameKind(number as u8),
        slot: number as u16,
        generation: number << 16,
        term: number + 1,
        base: u64::MAX - number,
    };
    let payload =
        (0..payload_bytes as u64).map(|at| (at.wrapping_mul(31) ^ number.wrapping_mul(131)) as u8).collect();
    Seen { header, payload }
}

fn append(log: &Log, frame: &Seen) -> LogPosition {
    let reservation = log.reserve(frame.payload.len()).expect("room");
    let (front, back) = frame.payload.split_at(frame.payload.len() / 2);
    log.append(reservation, frame.header, &[front, back]).expect("an open log")
}

/// Appends each frame as a batch of its own, written and not synced.
async fn append_as_batches(log: &Log, frames: &[Seen]) {
    for frame in frames {
        let end = append(log, frame);
        log.wait_written(end).await.expect("written");
    }
}

async fn recover_all(dir: &Path, known: &[(u64, u64)]) -> Result<(RecoveredEnd, Vec<Seen>), RecoverError> {
    recover_from(dir, None, known).await
}

async fn recover_from(
    dir: &Path,
    start: Option<LogStart>,
    known: &[(u64, u64)],
) -> Result<(RecoveredEnd, Vec<Seen>), RecoverError> {
    let mut seen = Vec::new();
    let end = recover(dir, NAME, start, known, |header, payload| {
        seen.push(Seen { header: *header, payload: payload.to_vec() });
        Ok(())
    })
    .await?;
    Ok((end, seen))
}

/// What a crash of the process leaves: the directory as it is now.
async fn crash_image(dir: &Path) -> PathBuf {
    let image = dir.with_extension("image");
    fs::create_dir_all(&image).await.expect("create");
    for file in fs::read_dir(&image).await.expect("list") {
        fs::remove_file(&image.join(file)).await.expect("remove");
    }
    for file in fs::read_dir(dir).await.expect("list") {
        let bytes = fs::read(&dir.join(&file)).await.expect("read");
        overwrite(&image.join(&file), bytes).await;
    }
    image
}

async fn overwrite(path: &Path, bytes: Vec<u8>) {
    let options = OpenOptions::new().write(true).create(true).truncate(true);
    let file = File::open(path, &options).await.expect("open");
    file.write_all_at(bytes, 0).await.0.expect("write");
}

/// Changes a file's bytes.
async fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).await.expect("read");
    change(&mut bytes);
    overwrite(path, bytes).await;
}

fn file_path(dir: &Path, boot: u64, seq: u32) -> PathBuf {
    dir.join(file_name(NAME, boot, seq))
}

/// The batches of one file, with their offsets, as far as they follow each other.
async fn batches(dir: &Path, boot: u64, seq: u32) -> Vec<(u64, BatchHeader)> {
    let identity = Identity { name_hash: name_hash(NAME), boot, seq };
    let mut file = LogFile::open(file_path(dir, boot, seq), identity).await.expect("a log file");
    let mut offset = FILE_HEADER_BYTES as u64;
    let mut batches = Vec::new();
    while let Found::Batch(header, _) = file.batch_at(offset).await.expect("readable") {
        batches.push((offset, header));
        offset = next_offset(offset, &header);
    }
    batches
}
