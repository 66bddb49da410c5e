//! Backups: what comes back is what was there, each slot as it was at one moment, and a file that was changed in any place is
//! refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lockgate_engine::backup::{
    BackupError, BackupFault, BackupOptions, BackupPart, BackupReader, PARTIAL_SUFFIX, RestoreOptions,
    restore, verify, verify_bytes,
};
use lockgate_engine::{Engine, Expiry, Gate, SetOptions, Slot};
use lockgate_runtime::Runtime;
use lockgate_runtime::sync::Arc;
use lockgate_runtime::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::{FIRST, builder, clustered, import, key, own, slot_of, standalone};

/// Far away, so that no key ends while a test runs: 2100-01-01.
const LATER_MS: u64 = 4_102_444_800_000;

/// Keyspace and key, with value and deadline.
type Model = BTreeMap<(u8, Vec<u8>), (Vec<u8>, Option<u64>)>;

fn in_runtime<T: Send + 'static, F: Future<Output = T> + 'static>(
    work: impl FnOnce() -> F + Send + 'static,
) -> T {
    let runtime = Runtime::builder().cores(2).pin(false).build().unwrap();
    let result = runtime.block_on(0, work);
    runtime.shutdown();
    result
}

fn restore_to(file: &Path, dir: &Path) -> Result<(), BackupError> {
    let (file, dir) = (file.to_path_buf(), dir.to_path_buf());
    in_runtime(move || async move {
        let options = RestoreOptions { cores: 2, log_file_bytes: 1 << 20, ..RestoreOptions::default() };
        restore(&file, &dir, &options).await.map(|_| ())
    })
}

fn verify_file(file: &Path) -> Result<(), BackupError> {
    let file = file.to_path_buf();
    in_runtime(move || async move { verify(&file, None).await.map(|_| ()) })
}

/// Keys of three keyspaces with deadlines, deletes, clears, overwritten values, batches and long values.
fn fill(engine: &Engine) -> Model {
    let mut model = Model::new();
    for number in 0..600 {
        let (keyspace, tag) = ((number % 3) as u8, format!("t{}", number % 40));
        let key = key(&tag, number % 150);
        let value = vec![number as u8; if number % 97 == 0 { 100 << 10 } else { number % 300 }];
        let deadline_ms = (number % 5 == 0).then_some(LATER_MS + number as u64);
        let expiry = deadline_ms.map_or(Expiry::Clear, Expiry::At);
        let options = SetOptions { expiry, ..SetOptions::default() };
        let _ = engine.keyspace(keyspace).set_with(&key, &value, &options).unwrap();
        model.insert((keyspace, key.clone()), (value, deadline_ms));
        if number % 7 == 0 {
            let _ = engine.keyspace(keyspace).delete(&key).unwrap();
            model.remove(&(keyspace, key));
        }
    }
    let slot = slot_of("t3");
    let mut batch = engine.batch(slot);
    for number in 1000..1100 {
        let (key, value) = (key("t3", number), vec![7; 40]);
        batch.set(5, key.clone(), value.clone());
        model.insert((5, key), (value, None));
    }
    let _ = batch.commit().unwrap();
    let _ = engine.keyspace(9).set(b"cleared", b"value").unwrap();
    engine.keyspace(9).clear().unwrap();
    model
}

fn assert_holds(engine: &Engine, model: &Model) {
    let keys: u64 = (0..=255).map(|keyspace| engine.keyspace(keyspace).len()).sum();
    assert_eq!(keys, model.len() as u64);
    for ((keyspace, key), (value, deadline_ms)) in model {
        let keyspace = engine.keyspace(*keyspace);
        let found = keyspace.get(key).unwrap();
        assert_eq!(found.as_deref(), Some(value.as_slice()), "{}", key.escape_ascii());
        assert_eq!(keyspace.deadline(key).unwrap().at_ms, *deadline_ms, "{}", key.escape_ascii());
    }
}

struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        Place { path: folder.path().to_path_buf(), _folder: folder }
    }

    fn of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(&self.path).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn what_is_restored_is_what_was_backed_up() {
    let place = Place::new();
    let engine = standalone(&place.of("data"), 2);
    let model = fill(&engine);
    let told = Arc::new(AtomicU64::new(0));
    let telling = told.clone();
    let options = BackupOptions {
        progress: Some(Arc::new(move |progress| telling.store(progress.slots_done, Ordering::SeqCst))),
        ..BackupOptions::default()
    };
    let summary = engine.backup_blocking(&place.of("backup"), &options).unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 16_384, "progress is told to the end");
    assert_eq!((summary.footer.keys, summary.footer.slots_left), (model.len() as u64, 0));
    assert_eq!(summary.bytes, std::fs::metadata(&summary.file).unwrap().len());
    assert_eq!(summary.header.directory_id, engine.boot().directory_id);
    let bytes = std::fs::read(&summary.file).unwrap();
    assert_eq!(verify_bytes(&bytes), Ok(summary.footer));

    restore_to(&place.of("backup"), &place.of("new")).unwrap();
    assert_eq!(place.names(), ["backup", "data", "new"], "nothing else is left");
    // With another number of cores than it was made with.
    let restored = builder(&place.of("new"), 3).open().unwrap();
    assert_holds(&restored, &model);
    assert_ne!(restored.boot().directory_id, engine.boot().directory_id, "it is a directory of its own");
    for slot in Slot::all() {
        let (before, after) = (engine.slot_status(slot), restored.slot_status(slot));
        assert_eq!((before.digest, before.version.counter), (after.digest, after.version.counter));
    }
    // It goes on: writes, restarts, and is backed up again.
    restored.keyspace(0).set(b"more", b"value").unwrap().wait_synced().unwrap();
    drop(restored);
    let again = standalone(&place.of("new"), 1);
    assert_eq!(again.keyspace(0).get(b"more").unwrap().as_deref(), Some(b"value".as_slice()));
    let _ = again.keyspace(0).delete(b"more").unwrap();
    assert_holds(&again, &model);
    again.backup_blocking(&place.of("second"), &BackupOptions::default()).unwrap();
    verify_file(&place.of("second")).unwrap();
}

#[test]
fn an_empty_engine_has_a_backup_too() {
    let place = Place::new();
    let engine = standalone(&place.of("data"), 1);
    let summary = engine.backup_blocking(&place.of("backup"), &BackupOptions::default()).unwrap();
    assert_eq!(summary.footer.slots, 0);
    restore_to(&place.of("backup"), &place.of("new")).unwrap();
    assert_holds(&standalone(&place.of("new"), 1), &Model::new());
}

#[test]
fn keys_whose_time_came_meanwhile_end_after_the_restoration() {
    let place = Place::new();
    let engine = standalone(&place.of("data"), 1);
    // Due at once: it may or may not be deleted before its slot's turn. Either way it is not there afterwards.
    let options = SetOptions { expiry: Expiry::After(1), ..SetOptions::default() };
    let _ = engine.keyspace(0).set_with(b"short", b"life", &options).unwrap();
    let _ = engine.keyspace(0).set(b"long", b"life").unwrap();
    engine.backup_blocking(&place.of("backup"), &BackupOptions::default()).unwrap();
    restore_to(&place.of("backup"), &place.of("new")).unwrap();
    let restored = standalone(&place.of("new"), 1);
    crate::common::wait_until(&restored, "the key ends", |engine| {
        engine.keyspace(0).get(b"short").unwrap().is_none()
    });
    assert!(restored.keyspace(0).get(b"long").unwrap().is_some());
}

/// Each slot has two keys that always have the same number, because they are written as one; and a third that is never
/// above them, because it is written after them.
#[test]
fn each_slot_is_as_it_was_at_one_moment_while_writers_run() {
    let place = Place::new();
    let engine = standalone(&place.of("data"), 2);
    let tags: Vec<String> = (0..24).map(|tag| format!("w{tag}")).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let round = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..2)
        .map(|part| {
            let (engine, stop, round) = (engine.clone(), stop.clone(), round.clone());
            let tags: Vec<String> = tags.iter().skip(part).step_by(2).cloned().collect();
            std::thread::spawn(move || {
                let mut number = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    number += 1;
                    for tag in &tags {
                        let value = number.to_le_bytes().repeat(40);
                        let mut batch = engine.batch(slot_of(tag));
                        batch.set(0, key(tag, 1), value.clone()).set(0, key(tag, 2), value.clone());
                        if number.is_multiple_of(3) {
                            batch.delete(0, key(tag, 4));
                        } else {
                            batch.set(0, key(tag, 4), value.clone());
                        }
                        while batch.commit().is_err_and(|error| error.is_retryable()) {
                            std::thread::yield_now();
                        }
                        let _ = engine.keyspace(0).set(&key(tag, 3), &value).unwrap();
                    }
                    round.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    while round.load(Ordering::SeqCst) < 50 {
        std::thread::yield_now();
    }
    for name in ["one", "two", "three"] {
        let before = round.load(Ordering::SeqCst);
        engine.backup_blocking(&place.of(name), &BackupOptions::default()).unwrap();
        while round.load(Ordering::SeqCst) == before {
            std::thread::yield_now();
        }
    }
    stop.store(true, Ordering::SeqCst);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    for name in ["one", "two", "three"] {
        let dir = place.of(&format!("{name}-restored"));
        restore_to(&place.of(name), &dir).unwrap();
        let restored = standalone(&dir, 2);
        let number = |tag: &str, key_number| {
            let value = restored.keyspace(0).get(&key(tag, key_number)).unwrap()?;
            Some(u64::from_le_bytes(value.as_bytes()[..8].try_into().unwrap()))
        };
        for tag in &tags {
            let (first, second, third) = (number(tag, 1).unwrap(), number(tag, 2), number(tag, 3));
            assert_eq!(Some(first), second, "{tag}: one write is there whole or not at all");
            let behind = third.unwrap_or(0);
            assert!(behind == first || behind + 1 == first, "{tag}: {behind} beside {first}");
            let wanted = (!first.is_multiple_of(3)).then_some(first);
            assert_eq!(number(tag, 4), wanted, "{tag}: what was deleted stays so");
        }
    }
}

#[test]
fn slots_that_are_not_served_are_refused_or_left_out() {
    let place = Place::new();
    let engine = clustered(&place.of("data"), 1);
    let (mine, other) = (slot_of("mine"), slot_of("other"));
    own(&engine, mine, FIRST, 3);
    let _ = engine.keyspace(0).set(&key("mine", 1), b"value").unwrap();
    import(&engine, other, FIRST);
    let only = |slot| BackupOptions { slots: Some(vec![slot]), ..BackupOptions::default() };
    let refused = engine.backup_blocking(&place.of("refused"), &only(other)).unwrap_err();
    assert!(
        matches!(refused, BackupError::NotHere { slot, gate: Gate::Importing } if slot == other),
        "{refused}"
    );
    assert_eq!(place.names(), ["data"], "nothing is left of it");
    let summary = engine.backup_blocking(&place.of("backup"), &BackupOptions::default()).unwrap();
    assert_eq!((summary.footer.slots, summary.footer.keys), (1, 1));
    engine.freeze(mine, FIRST).unwrap();
    engine.backup_blocking(&place.of("frozen"), &only(mine)).unwrap();
    restore_to(&place.of("frozen"), &place.of("new")).unwrap();
    let restored = standalone(&place.of("new"), 1);
    assert_eq!(restored.keyspace(0).get(&key("mine", 1)).unwrap().as_deref(), Some(b"value".as_slice()));
}

#[test]
fn names_that_are_taken_are_refused_and_a_half_file_is_written_over() {
    let place = Place::new();
    let engine = standalone(&place.of("data"), 1);
    let model = fill(&engine);
    let partial = place.of(&format!("backup{PARTIAL_SUFFIX}"));
    std::fs::write(&partial, vec![9; 3 << 20]).unwrap();
    engine.backup_blocking(&place.of("backup"), &BackupOptions::default()).unwrap();
    assert!(!partial.exists());
    let taken = engine.backup_blocking(&place.of("backup"), &BackupOptions::default()).unwrap_err();
    assert!(matches!(taken, BackupError::Exists { .. }), "{taken}");
    std::fs::create_dir(place.of("full")).unwrap();
    std::fs::write(place.of("full").join("file"), b"").unwrap();
    let taken = restore_to(&place.of("backup"), &place.of("full")).unwrap_err();
    assert!(matches!(taken, BackupError::NotEmpty { .. }), "{taken}");
    // An empty directory is as good as none, and what an earlier try has left is removed.
    std::fs::create_dir(place.of("empty")).unwrap();
    std::fs::create_dir(place.of("empty.building")).unwrap();
    std::fs::write(place.of("empty.building").join("leftover"), b"").unwrap();
    restore_to(&place.of("backup"), &place.of("empty")).unwrap();
    assert_holds(&standalone(&place.of("empty"), 1), &model);
    assert!(!place.of("empty.building").exists());
}

/// A small file, and where its chunks begin.
fn small_backup(place: &Place) -> (Vec<u8>, Vec<u64>) {
    let engine = standalone(&place.of("data"), 1);
    for number in 0..40 {
        let _ = engine.keyspace(0).set(&key(&format!("t{}", number % 4), number), &[1; 50]).unwrap();
    }
    let _ = engine.keyspace(0).delete(&key("t1", 5)).unwrap();
    engine.backup_blocking(&place.of("backup"), &BackupOptions::default()).unwrap();
    let path = place.of("backup");
    let offsets = in_runtime(move || async move {
        let mut reader = BackupReader::open(&path).await.unwrap();
        let mut offsets = vec![reader.offset()];
        while let Some(part) = reader.next_part().await.unwrap() {
            if !matches!(part, BackupPart::End(_)) {
                offsets.push(reader.offset());
            }
        }
        offsets
    });
    (std::fs::read(place.of("backup")).unwrap(), offsets)
}

#[test]
fn a_file_that_is_changed_or_cut_anywhere_is_refused() {
    let place = Place::new();
    let (bytes, offsets) = small_backup(&place);
    assert!(offsets.len() > 8 && verify_bytes(&bytes).is_ok());
    for at in 0..bytes.len() {
        for bit in [0, 5] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(verify_bytes(&damaged).is_err(), "byte {at} with bit {bit} flipped");
        }
        assert!(verify_bytes(&bytes[..at]).is_err(), "cut to {at} bytes");
    }
    assert!(verify_bytes(&[bytes.as_slice(), &[0]].concat()).is_err(), "something behind the end");
    // Whole chunks that are left out, repeated or swapped.
    let chunk = |at: usize| {
        let end = offsets.get(at + 1).map_or(bytes.len(), |end| *end as usize);
        &bytes[offsets[at] as usize..end]
    };
    for gone in 0..offsets.len() {
        let (before, after) = (&bytes[..offsets[gone] as usize], chunk(gone).len());
        let without = [before, &bytes[before.len() + after..]].concat();
        assert!(verify_bytes(&without).is_err(), "without chunk {gone}");
        let twice = [&bytes[..before.len() + after], chunk(gone), &bytes[before.len() + after..]].concat();
        assert!(verify_bytes(&twice).is_err(), "with chunk {gone} twice");
    }
    // The same through files: by name and offset, and nothing is left behind.
    let mut damaged = bytes.clone();
    let at = offsets[offsets.len() / 2] as usize + 20;
    damaged[at] ^= 1;
    std::fs::write(place.of("damaged"), &damaged).unwrap();
    let error = restore_to(&place.of("damaged"), &place.of("new")).unwrap_err();
    assert!(error.to_string().contains("damaged") && error.to_string().contains("byte offset"), "{error}");
    std::fs::write(place.of("short"), &bytes[..bytes.len() - 80]).unwrap();
    let error = restore_to(&place.of("short"), &place.of("new")).unwrap_err();
    assert!(error.to_string().contains("not whole"), "{error}");
    assert!(!place.of("new").exists() && !place.of("new.building").exists());
}

#[test]
fn another_version_is_refused_by_name() {
    let place = Place::new();
    let (mut bytes, _) = small_backup(&place);
    bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
    assert!(matches!(verify_bytes(&bytes), Err(BackupFault::Invalid { .. })), "the checksum is of version 1");
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(verify_bytes(&bytes), Err(BackupFault::UnknownVersion(2)));
    std::fs::write(place.of("newer"), &bytes).unwrap();
    let error = verify_file(&place.of("newer")).unwrap_err().to_string();
    assert!(error.contains("format version 2") && error.contains("newer"), "{error}");
}

#[test]
fn a_bound_on_the_rate_is_kept() {
    let place = Place::new();
    let engine = standalone(&place.of("data"), 1);
    for number in 0..40 {
        let _ = engine.keyspace(0).set(&key("t", number), &[1; 10 << 10]).unwrap();
    }
    let options = BackupOptions { bytes_per_second: Some(1 << 20), ..BackupOptions::default() };
    let began = std::time::Instant::now();
    let summary = engine.backup_blocking(&place.of("backup"), &options).unwrap();
    let least = std::time::Duration::from_millis(summary.bytes * 1000 / (1 << 20) * 9 / 10);
    // It cannot be faster than the bound, however fast the machine is.
    assert!(began.elapsed() >= least, "{:?} for {} bytes", began.elapsed(), summary.bytes);
}
