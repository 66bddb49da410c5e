//! Files of the present formats, kept in `tests/fixtures`, so that later versions go on reading them.
//!
//! They are made by `LOCKGATE_MAKE_FIXTURES=1 cargo test -p lockgate-engine --test all fixtures`, and only when a format
//! changes its version; those of older versions stay beside them. Files are kept without the zeros at their end; `lengths` has
//! how long they were.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use lockgate_engine::backup::{BackupOptions, verify_bytes};
use lockgate_engine::check::check;
use lockgate_engine::{Engine, Expiry, MEMORY_BYTES_MAX_DEFAULT, SetOptions, Slot};
use lockgate_runtime::Runtime;

use crate::common::{builder, key, slot_of};

const MAKE: &str = "LOCKGATE_MAKE_FIXTURES";
const LENGTHS: &str = "lengths";
/// So far away that nobody reads these files then: the year 2500.
const DEADLINE_MS: u64 = 16_725_225_600_000;

/// Keyspace and key, with value and deadline.
type Model = BTreeMap<(u8, Vec<u8>), (Vec<u8>, Option<u64>)>;

fn engine(dir: &Path, cores: usize) -> Engine {
    builder(dir, cores).log_file_bytes(16 << 10).automatic_checkpoints(false).open().unwrap()
}

/// Writes of all kinds over two boots with different numbers of cores. What they come to does not depend on the clock.
fn live(dir: &Path, with_checkpoint: bool) -> Model {
    let mut model = Model::new();
    let mut set = |engine: &Engine, keyspace: u8, key: Vec<u8>, value: Vec<u8>, deadline_ms: Option<u64>| {
        let expiry = deadline_ms.map_or(Expiry::Clear, Expiry::At);
        let options = SetOptions { expiry, ..SetOptions::default() };
        let _ = engine.keyspace(keyspace).set_with(&key, &value, &options).unwrap();
        model.insert((keyspace, key), (value, deadline_ms));
    };
    let first = engine(dir, 2);
    for number in 0..24 {
        let deadline_ms = (number % 6 == 0).then_some(DEADLINE_MS + number as u64);
        let value = format!("value {number}").repeat(1 + number % 3).into_bytes();
        set(&first, (number % 2) as u8, key(&format!("t{}", number % 8), number), value, deadline_ms);
    }
    set(&first, 0, b"long".to_vec(), vec![7; 20_000], None);
    set(&first, 3, b"cleared".to_vec(), vec![1], None);
    set(&first, 0, key("t1", 1), b"again".to_vec(), None);
    let _ = first.keyspace(3).clear().unwrap();
    let _ = first.keyspace(0).delete(&key("t2", 2)).unwrap();
    let mut batch = first.batch(slot_of("t5"));
    batch.set(0, key("t5", 100), b"one".to_vec()).set(1, key("t5", 101), b"two".to_vec());
    let _ = batch.commit().unwrap();
    // It holds the engine.
    drop(batch);
    if with_checkpoint {
        first.checkpoint_blocking().unwrap();
    }
    drop(first);
    let second = engine(dir, 1);
    set(&second, 0, key("t3", 200), b"second boot".to_vec(), None);
    let _ = second.keyspace(1).delete(&key("t3", 3)).unwrap();
    drop(second);
    model.insert((0, key("t5", 100)), (b"one".to_vec(), None));
    model.insert((1, key("t5", 101)), (b"two".to_vec(), None));
    model.retain(|(keyspace, found), _| {
        let gone = [(0, key("t2", 2)), (1, key("t3", 3))];
        *keyspace != 3 && !gone.contains(&(*keyspace, found.clone()))
    });
    model
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Keeps a directory as a fixture.
fn keep(dir: &Path, to: &Path) {
    let mut lengths = String::new();
    for file in files_below(dir) {
        let mut bytes = std::fs::read(&file).unwrap();
        let name = file.strip_prefix(dir).unwrap();
        writeln!(lengths, "{} {}", bytes.len(), name.display()).unwrap();
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        let target = to.join(name);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(target, bytes).unwrap();
    }
    std::fs::write(to.join(LENGTHS), lengths).unwrap();
}

/// Makes a directory of a fixture.
fn unpack(from: &Path, to: &Path) {
    for line in std::fs::read_to_string(from.join(LENGTHS)).unwrap().lines() {
        let (length, name) = line.split_once(' ').unwrap();
        let mut bytes = std::fs::read(from.join(name)).unwrap();
        bytes.resize(length.parse().unwrap(), 0);
        let target = to.join(name);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(target, bytes).unwrap();
    }
}

fn assert_holds(engine: &Engine, model: &Model) {
    let keys: u64 = (0..=255).map(|keyspace| engine.keyspace(keyspace).len()).sum();
    assert_eq!(keys, model.len() as u64);
    for ((keyspace, key), (value, deadline_ms)) in model {
        let found = engine.keyspace(*keyspace).get(key).unwrap();
        assert_eq!(found.as_deref(), Some(value.as_slice()), "{}", key.escape_ascii());
        assert_eq!(engine.keyspace(*keyspace).deadline(key).unwrap().at_ms, *deadline_ms);
    }
}

/// A directory of the format is fine, and a start has all of it.
fn assert_reads(dir: &Path, model: &Model) {
    let runtime = Runtime::builder().cores(1).pin(false).build().unwrap();
    let at = dir.to_path_buf();
    let report = runtime.block_on(0, move || async move { check(&at, MEMORY_BYTES_MAX_DEFAULT).await });
    runtime.shutdown();
    let report = report.unwrap();
    assert_eq!(report.damage, []);
    assert_eq!(report.slots.unwrap().keys, model.len() as u64);
    assert_holds(&engine(dir, 2), model);
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("fixtures")
}

#[test]
fn what_this_version_writes_can_be_kept_and_read() {
    let folder = tempfile::tempdir().unwrap();
    for (name, with_checkpoint) in [("log-1-meta-2", false), ("checkpoint-1", true)] {
        let (dir, kept) = (folder.path().join(name), folder.path().join(format!("{name}-kept")));
        let model = live(&dir, with_checkpoint);
        keep(&dir, &kept);
        let unpacked = folder.path().join(format!("{name}-unpacked"));
        unpack(&kept, &unpacked);
        assert_reads(&unpacked, &model);
        let backup = folder.path().join(format!("{name}-backup"));
        engine(&dir, 1).backup_blocking(&backup, &BackupOptions::default()).unwrap();
        if std::env::var_os(MAKE).is_some() {
            let to = fixtures().join(name);
            let _ = std::fs::remove_dir_all(&to);
            keep(&kept_again(&dir, &folder.path().join(format!("{name}-again"))), &to);
            std::fs::copy(&backup, fixtures().join("backup-1")).unwrap();
        }
    }
}

/// The same anew: the backup has opened the directory once more.
fn kept_again(dir: &Path, again: &Path) -> PathBuf {
    let with_checkpoint = dir.join("checkpoint").join("manifest").exists();
    live(again, with_checkpoint);
    again.to_path_buf()
}

#[test]
fn kept_directories_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let model = live(&folder.path().join("model"), false);
    for name in ["log-1-meta-2", "checkpoint-1"] {
        let dir = folder.path().join(name);
        unpack(&fixtures().join(name), &dir);
        assert_reads(&dir, &model);
    }
}

#[test]
fn a_kept_backup_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let model = live(&folder.path().join("model"), false);
    let file = fixtures().join("backup-1");
    let footer = verify_bytes(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(footer.keys, model.len() as u64);
    let (dir, runtime) = (folder.path().join("new"), Runtime::builder().cores(1).pin(false).build().unwrap());
    let to = dir.clone();
    let restored = runtime.block_on(0, move || async move {
        lockgate_engine::backup::restore(&file, &to, &Default::default()).await
    });
    runtime.shutdown();
    restored.unwrap();
    let engine = engine(&dir, 1);
    assert_holds(&engine, &model);
    let slots = Slot::all().filter(|slot| engine.slot_status(*slot).keys > 0).count();
    assert!(slots > 5, "{slots}");
}
