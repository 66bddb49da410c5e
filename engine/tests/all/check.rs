//! Checking directories and repairing them: what is fine is said to be, and nothing is changed by looking; what is damaged is
//! named by file and place; and a repaired slot is as it was at one moment, at the end wherever that can be proven.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lockgate_engine::check::{CheckError, CheckReport, RepairOptions, RepairReport, Verdict, check, repair};
use lockgate_engine::{Engine, MEMORY_BYTES_MAX_DEFAULT, OpenError, Slot};
use lockgate_runtime::Runtime;

use crate::common::{builder, copy_directory, key, slot_of, standalone};

fn in_runtime<T: Send + 'static, F: Future<Output = T> + 'static>(
    work: impl FnOnce() -> F + Send + 'static,
) -> T {
    let runtime = Runtime::builder().cores(1).pin(false).build().unwrap();
    let result = runtime.block_on(0, work);
    runtime.shutdown();
    result
}

fn checked(dir: &Path) -> Result<CheckReport, CheckError> {
    let dir = dir.to_path_buf();
    in_runtime(move || async move { check(&dir, MEMORY_BYTES_MAX_DEFAULT).await })
}

fn repaired(dir: &Path, in_place: bool) -> Result<RepairReport, CheckError> {
    let dir = dir.to_path_buf();
    let options = RepairOptions { in_place, log_file_bytes: 64 << 10, ..RepairOptions::default() };
    in_runtime(move || async move { repair(&dir, &options).await })
}

/// Every file below a folder with its bytes and the time of its last change.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, (Option<Vec<u8>>, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let changed = std::fs::metadata(&folder).unwrap().modified().unwrap();
        found.insert(folder.clone(), (None, changed));
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let changed = std::fs::metadata(&path).unwrap().modified().unwrap();
                found.insert(path.clone(), (Some(std::fs::read(&path).unwrap()), changed));
            }
        }
    }
    found
}

/// As `checked`, and nothing in the directory is changed by it.
fn checked_only(dir: &Path) -> CheckReport {
    let before = snapshot(dir);
    let report = checked(dir).unwrap();
    assert!(before == snapshot(dir), "a check changes nothing");
    report
}

fn small(dir: &Path, cores: usize) -> Engine {
    builder(dir, cores).log_file_bytes(64 << 10).open().unwrap()
}

fn set(engine: &Engine, key: &[u8], value: &[u8]) {
    engine.keyspace(0).set(key, value).unwrap().wait_synced().unwrap();
}

/// A file of a log, and where its batches begin.
fn batches(dir: &Path) -> Vec<(PathBuf, Vec<usize>)> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let found = files.into_iter().map(|file| {
        let bytes = std::fs::read(&file).unwrap();
        let mut offsets = Vec::new();
        let mut at = 4096;
        while bytes.get(at + 4..at + 8) == Some(b"LGBT") {
            offsets.push(at);
            let payload = u32::from_le_bytes(bytes[at + 40..at + 44].try_into().unwrap()) as usize;
            at += (64 + payload).next_multiple_of(512);
        }
        (file, offsets)
    });
    found.collect()
}

/// Flips a bit in the batch that holds `value`; returns the file and the batch's offset.
fn damage(dir: &Path, value: &[u8]) -> (PathBuf, u64) {
    damage_from_to(dir, value, value)
}

/// Flips a bit in every batch from the first one that holds `first` to the first one that holds `last`: writes that nobody
/// waited for may lie in one batch or in several. Returns the file and the offset of the first of them.
fn damage_from_to(dir: &Path, first: &[u8], last: &[u8]) -> (PathBuf, u64) {
    let mut damaged = None;
    for (file, offsets) in batches(dir) {
        let mut bytes = std::fs::read(&file).unwrap();
        for (number, &from) in offsets.iter().enumerate() {
            let to = offsets.get(number + 1).copied().unwrap_or(bytes.len());
            let holds = |value: &[u8]| bytes[from..to].windows(value.len()).any(|window| window == value);
            let is_last = holds(last);
            if damaged.is_none() && !holds(first) {
                continue;
            }
            // The first byte of the first frame.
            bytes[from + 64] ^= 4;
            damaged.get_or_insert((file.clone(), from as u64));
            if is_last {
                std::fs::write(&file, bytes).unwrap();
                return damaged.unwrap();
            }
        }
        std::fs::write(&file, bytes).unwrap();
    }
    panic!("no batch holds the values");
}

#[test]
fn a_directory_that_is_fine_is_said_to_be_and_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let engine = small(&dir, 2);
    for number in 0..200 {
        let _ = engine.keyspace(0).set(&key(&format!("t{number}"), number), &[3; 400]).unwrap();
    }
    let crashed = folder.path().join("crashed");
    let in_use = checked(&dir).unwrap_err();
    assert!(in_use.to_string().contains("in use by another process"), "{in_use}");
    engine.runtime().block_on(0, {
        let engine = engine.clone();
        move || async move { engine.sync_all().await.unwrap() }
    });
    copy_directory(&dir, &crashed);
    let digest = Slot::all().fold(0u64, |sum, slot| sum.wrapping_add(engine.slot_status(slot).digest));
    drop(engine);
    for (dir, is_closed) in [(&dir, true), (&crashed, false)] {
        let report = checked_only(dir);
        assert_eq!(report.damage, []);
        let slots = report.slots.unwrap();
        assert_eq!((slots.keys, slots.digest), (200, digest));
        assert_eq!(report.logs.len(), 2);
        for log in &report.logs {
            assert_eq!(log.verdict == Verdict::Closed, is_closed, "{log:?}");
            assert!(log.frames > 0 && log.end > 0);
        }
        let nothing = repaired(dir, true).unwrap();
        assert_eq!(nothing, RepairReport::default(), "what is not damaged is not repaired");
    }
    // A later start accepts the end, and a check knows of it.
    drop(small(&crashed, 2));
    assert_eq!(checked_only(&crashed).damage, []);
    let nothing = checked(&folder.path().join("nothing")).unwrap_err();
    assert!(nothing.to_string().contains("is not a data directory"), "{nothing}");
    assert!(!folder.path().join("nothing").exists());
}

#[test]
fn a_torn_end_is_fine_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, crashed) = (folder.path().join("data"), folder.path().join("crashed"));
    let engine = small(&dir, 1);
    set(&engine, b"first", b"first value");
    set(&engine, b"last", b"last value");
    copy_directory(&dir, &crashed);
    drop(engine);
    let (file, offset) = damage(&crashed, b"last value");
    let report = checked_only(&crashed);
    assert_eq!(report.damage, []);
    assert_eq!(report.slots.unwrap().keys, 1);
    let why = "the checksum of the batch does not match".to_owned();
    assert_eq!(report.logs[0].verdict, Verdict::Open { file, offset, why });
}

/// Keys in some slots, of which some writes in a row are destroyed: before, among and behind them there are writes of slots.
fn damaged_directory(folder: &Path) -> (PathBuf, PathBuf, u64) {
    let dir = folder.join("data");
    let engine = small(&dir, 1);
    set(&engine, &key("whole", 1), b"kept before");
    set(&engine, &key("back", 1), b"deleted later");
    set(&engine, &key("older", 1), b"old value");
    let mut batch = engine.batch(slot_of("gap"));
    batch.set(0, key("gap", 1), b"in the gap".to_vec());
    let _ = batch.commit().unwrap();
    let _ = engine.keyspace(0).delete(&key("back", 1)).unwrap();
    set(&engine, &key("older", 1), b"new value in the gap");
    set(&engine, &key("whole", 2), b"kept behind");
    set(&engine, &key("gap", 2), b"rests on the gap");
    set(&engine, &key("older", 2), b"rests on the gap, too");
    let _ = engine.keyspace(0).set(&key("new", 1), b"begins behind").unwrap().wait_synced();
    drop(engine);
    let (file, offset) = damage_from_to(&dir, b"in the gap", b"new value in the gap");
    (dir, file, offset)
}

#[test]
fn damage_is_named_and_a_repair_keeps_what_can_be_proven() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, file, offset) = damaged_directory(folder.path());
    std::fs::write(dir.join("cluster"), b"of a cluster").unwrap();
    let report = checked_only(&dir);
    assert_eq!(report.damage.len(), 1);
    assert_eq!((&report.damage[0].file, report.damage[0].offset), (&file, Some(offset)));
    assert!(report.damage[0].text.contains("not the torn end"), "{}", report.damage[0].text);
    assert_eq!(report.slots, None, "what cannot be replayed has no sums");
    let refused = builder(&dir, 1).open().unwrap_err();
    assert!(matches!(refused, OpenError::Recover(_)), "{refused}");

    let (before, id) = (snapshot(&dir), report.meta.unwrap().directory_id);
    let repair = repaired(&dir, false).unwrap();
    let original = repair.original.clone().unwrap();
    assert_eq!(original, folder.path().join("data.damaged-1"));
    let relative = |files: &BTreeMap<PathBuf, (Option<Vec<u8>>, SystemTime)>, dir: &Path| {
        let of = |(path, content): (&PathBuf, &(Option<Vec<u8>>, SystemTime))| {
            (path.strip_prefix(dir).unwrap().to_path_buf(), content.clone())
        };
        files.iter().map(of).collect::<BTreeMap<_, _>>()
    };
    assert!(relative(&before, &dir) == relative(&snapshot(&original), &original), "it is kept as it was");
    assert_eq!(repair.left_behind, ["cluster"]);
    assert_eq!(repair.losses.len(), 1);
    assert_eq!((&repair.losses[0].file, repair.losses[0].offset), (&file, offset));
    assert!(repair.losses[0].to > repair.losses[0].from);

    let engine = standalone(&dir, 2);
    assert_ne!(engine.boot().directory_id, id, "it does not pass for the one that had everything");
    let get = |tag: &str, number| {
        let found = engine.keyspace(0).get(&key(tag, number)).unwrap();
        found.map(|value| String::from_utf8(value.to_vec()).unwrap())
    };
    assert_eq!(get("whole", 1).as_deref(), Some("kept before"));
    assert_eq!(get("whole", 2).as_deref(), Some("kept behind"), "the count goes on, so nothing is missing");
    assert_eq!(get("new", 1).as_deref(), Some("begins behind"), "its first write is the first");
    assert_eq!(get("gap", 1), None);
    assert_eq!(get("gap", 2), None, "what rests on a lost write is not taken");
    assert_eq!(get("older", 1).as_deref(), Some("old value"), "as it was before");
    assert_eq!(get("older", 2), None);
    assert_eq!(get("back", 1).as_deref(), Some("deleted later"), "its end was lost, and that is said");
    assert!(repair.in_doubt.contains(&slot_of("back")) && !repair.in_doubt.contains(&slot_of("whole")));
    let cut: Vec<_> =
        repair.cut.iter().map(|cut| (cut.slot, cut.version.counter, cut.dropped_frames)).collect();
    let mut wanted = vec![(slot_of("gap"), 0, 1), (slot_of("older"), 1, 1)];
    wanted.sort();
    assert_eq!(cut, wanted);
    assert_eq!(repair.kept.keys, 5);
    drop(engine);
    assert_eq!(checked_only(&dir).damage, [], "the new directory is fine");
}

#[test]
fn in_place_nothing_else_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, ..) = damaged_directory(folder.path());
    let repair = repaired(&dir, true).unwrap();
    assert_eq!((repair.original, repair.repaired), (None, Some(dir.clone())));
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["data"]);
    assert_eq!(checked_only(&dir).slots.unwrap().keys, 5);
}

#[test]
fn a_lost_meta_file_and_a_lost_log_file_are_damage() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let engine = small(&dir, 1);
    for number in 0..400 {
        let _ = engine.keyspace(0).set(&key(&format!("t{}", number % 20), number), &[3; 900]).unwrap();
        if number % 10 == 0 {
            engine.runtime().block_on(0, {
                let engine = engine.clone();
                move || async move { engine.sync_all().await.unwrap() }
            });
        }
    }
    drop(engine);
    let whole = folder.path().join("whole");
    copy_directory(&dir, &whole);
    let wanted = checked_only(&dir).slots.unwrap();

    for is_removed in [true, false] {
        let dir = folder.path().join(format!("meta-{is_removed}"));
        copy_directory(&whole, &dir);
        let meta = dir.join("meta");
        if is_removed {
            std::fs::remove_file(&meta).unwrap();
        } else {
            let mut bytes = std::fs::read(&meta).unwrap();
            bytes[20] ^= 1;
            std::fs::write(&meta, bytes).unwrap();
        }
        let report = checked_only(&dir);
        assert_eq!(report.damage.len(), 1);
        assert!(report.damage[0].file.ends_with("meta"), "{:?}", report.damage);
        let repair = repaired(&dir, false).unwrap();
        // The logs have all of it.
        assert_eq!((repair.kept.keys, repair.kept.digest), (wanted.keys, wanted.digest));
        assert!(repair.losses.is_empty() && repair.in_doubt.is_empty() && repair.cut.is_empty());
    }

    let files = batches(&whole);
    assert!(files.len() > 3, "several files: {}", files.len());
    std::fs::remove_file(&files[1].0).unwrap();
    let report = checked_only(&whole);
    assert_eq!(report.damage[0].file, files[1].0);
    let repair = repaired(&whole, false).unwrap();
    assert!(repair.kept.keys > 0 && repair.kept.keys < wanted.keys);
    assert_eq!(repair.losses.len(), 1);
}

#[test]
fn a_core_without_a_log_of_the_latest_boot_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let engine = small(&dir, 3);
    for number in 0..60 {
        set(&engine, &key(&format!("t{number}"), 1), b"value");
    }
    drop(engine);
    let gone = dir.join("log").join("core-1.0000000000000001.00000000.log");
    std::fs::remove_file(&gone).unwrap();
    let report = checked_only(&dir);
    assert_eq!(report.damage.len(), 1);
    assert_eq!(report.damage[0].file, gone);
    let repair = repaired(&dir, false).unwrap();
    assert_eq!(repair.open_logs, ["core-1"]);
    assert!(repair.in_doubt.len() > 5_000 && repair.in_doubt.iter().all(|slot| slot.number() % 3 == 1));
}

/// The files of the checkpoint, which are in use to their ends.
fn checkpoint_files(dir: &Path) -> Vec<(PathBuf, Vec<usize>)> {
    let Ok(files) = std::fs::read_dir(dir.join("checkpoint")) else { return Vec::new() };
    let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let length = |file: &PathBuf| std::fs::metadata(file).unwrap().len() as usize;
    files.into_iter().map(|file| (file.clone(), vec![length(&file)])).collect()
}

#[test]
fn a_checkpoint_is_checked_and_a_damaged_slot_of_it_is_lost_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let engine = small(&dir, 2);
    for number in 0..90 {
        set(&engine, &key(&format!("t{}", number % 30), number), format!("value {number}").as_bytes());
    }
    engine.checkpoint_blocking().unwrap();
    set(&engine, &key("t7", 1000), b"behind it");
    set(&engine, &key("t8", 1000), b"behind it");
    drop(engine);
    let report = checked_only(&dir);
    assert_eq!(report.damage, []);
    assert_eq!((report.checkpoint.unwrap().slots, report.slots.unwrap().keys), (30, 92));

    let value = b"value 67";
    let file = checkpoint_files(&dir).into_iter().map(|(file, _)| file).find(|file| {
        let mut bytes = std::fs::read(file).unwrap();
        let found = bytes.windows(value.len()).position(|window| window == value);
        if let Some(at) = found {
            bytes[at] ^= 1;
            std::fs::write(file, bytes).unwrap();
        }
        found.is_some()
    });
    let report = checked_only(&dir);
    assert_eq!(Some(&report.damage[0].file), file.as_ref());
    assert!(report.damage[0].offset.is_some(), "{:?}", report.damage);
    let repair = repaired(&dir, false).unwrap();
    let cut: Vec<_> =
        repair.cut.iter().map(|cut| (cut.slot, cut.version.counter, cut.dropped_frames)).collect();
    assert_eq!(cut, [(slot_of("t7"), 0, 1)], "what follows rests on what is lost");
    assert_eq!((repair.kept.keys, repair.in_doubt.len()), (92 - 4, 0));

    // The logs were not given back yet: without the checkpoint they have all of it.
    let dir = repair.original.unwrap();
    std::fs::remove_dir_all(dir.join("checkpoint")).unwrap();
    let report = checked_only(&dir);
    assert_eq!((report.damage.len(), report.slots.unwrap().keys), (0, 92));
}

/// A deterministic sequence of numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

type Keys = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a slot held after each of its writes, by counter.
type History = BTreeMap<u64, Keys>;

const TAGS: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

/// Writes and deletes over several boots with different numbers of cores.
fn live(dir: &Path, dice: &mut Dice) -> BTreeMap<Slot, History> {
    let mut histories: BTreeMap<Slot, History> =
        TAGS.iter().map(|tag| (slot_of(tag), History::from([(0, Keys::new())]))).collect();
    for _boot in 0..1 + dice.roll(3) {
        let engine = small(dir, 1 + dice.roll(3));
        for step in 0..40 + dice.roll(60) {
            let tag = TAGS[dice.roll(TAGS.len())];
            let (key, value) = (key(tag, dice.roll(6)), vec![step as u8; dice.roll(2_000)]);
            let history = histories.get_mut(&slot_of(tag)).unwrap();
            let mut keys = history.last_key_value().unwrap().1.clone();
            let receipt = if dice.roll(4) == 0 {
                keys.remove(&key);
                engine.keyspace(0).delete(&key).unwrap().1
            } else {
                keys.insert(key.clone(), value.clone());
                engine.keyspace(0).set(&key, &value).unwrap()
            };
            history.insert(engine.slot_status(slot_of(tag)).version.counter, keys);
            if dice.roll(3) == 0 {
                receipt.wait_synced().unwrap();
            }
            if dice.roll(90) == 0 {
                engine.checkpoint_blocking().unwrap();
            }
        }
    }
    histories
}

#[test]
fn a_repaired_slot_is_as_it_was_at_one_moment_wherever_the_damage_is() {
    let (mut repairs, mut whole_slots, mut cut_slots) = (0, 0, 0);
    for seed in 0..24 {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("data");
        let mut dice = Dice(seed);
        let histories = live(&dir, &mut dice);
        for _place in 0..1 + dice.roll(3) {
            let mut files = batches(&dir);
            files.extend(checkpoint_files(&dir));
            let (file, offsets) = &files[dice.roll(files.len())];
            // A chain without its first file is another matter: see below.
            let is_first = file.to_str().unwrap().ends_with(".00000000.log");
            if dice.roll(4) == 0 && !is_first {
                std::fs::remove_file(file).unwrap();
                continue;
            }
            let mut bytes = std::fs::read(file).unwrap();
            let used = offsets.last().map_or(4096, |last| last + 600).min(bytes.len()).max(1);
            let (at, len) = (dice.roll(used), 1 + dice.roll(1_500));
            let end = (at + len).min(bytes.len());
            bytes[at..end].iter_mut().for_each(|byte| *byte = dice.roll(256) as u8);
            std::fs::write(file, bytes).unwrap();
        }
        if checked_only(&dir).damage.is_empty() {
            continue;
        }
        repairs += 1;
        let report = repaired(&dir, false).unwrap();
        assert_eq!(checked_only(&dir).damage, [], "seed {seed}");
        let engine = standalone(&dir, 1);
        for (slot, history) in &histories {
            let counter = engine.slot_status(*slot).version.counter;
            let keys = history.get(&counter).unwrap_or_else(|| panic!("seed {seed}, slot {slot}: {counter}"));
            let have = engine.slot_status(*slot).keys;
            assert_eq!(have, keys.len() as u64, "seed {seed}, slot {slot} at {counter}");
            for (key, value) in keys {
                assert_eq!(engine.keyspace(0).get(key).unwrap().as_deref(), Some(value.as_slice()));
            }
            let is_cut = report.cut.iter().any(|cut| cut.slot == *slot);
            if !is_cut && !report.in_doubt.contains(slot) {
                let last = *history.last_key_value().unwrap().0;
                assert_eq!(counter, last, "seed {seed}, slot {slot}: said to be whole");
                whole_slots += 1;
            }
            cut_slots += usize::from(is_cut);
        }
    }
    assert!(repairs > 10 && whole_slots > 10 && cut_slots > 5, "{repairs} {whole_slots} {cut_slots}");
}
