//! The decoders of all files take any bytes: they answer, and never panic, and what they accept they would write the same.
//!
//! Bytes that were changed at random hardly ever have a right checksum, so it is put right for half of them. `fuzz/` has the
//! same with a guided search, and measures the memory.

use lockgate_engine::backup::{BackupOptions, verify_bytes};
use lockgate_engine::checkpoint::format::{DataHeader, Manifest};
use lockgate_engine::checkpoint::verify_piece;
use lockgate_engine::log::format::{BatchHeader, FileHeader, Frames};
use lockgate_engine::meta::Meta;
use lockgate_engine::{RangeHeader, Slot, Term};
use proptest::prelude::*;

use crate::common::{key, standalone};

/// Files of each kind.
struct Files {
    backup: Vec<u8>,
    meta: Vec<u8>,
    manifest: Vec<u8>,
    data: Vec<u8>,
    log: Vec<u8>,
}

fn files() -> Files {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let engine = standalone(&dir, 1);
    for number in 0..30 {
        let _ = engine.keyspace(0).set(&key(&format!("t{}", number % 5), number), &[2; 30]).unwrap();
    }
    engine.checkpoint_blocking().unwrap();
    for number in 0..30 {
        let _ = engine.keyspace(0).set(&key(&format!("t{}", number % 5), number), &[3; 30]).unwrap();
    }
    engine.backup_blocking(&folder.path().join("backup"), &BackupOptions::default()).unwrap();
    drop(engine);
    drop(standalone(&dir, 1));
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let in_folder = |name: &str, wanted: &str| {
        let mut files: Vec<_> =
            std::fs::read_dir(dir.join(name)).unwrap().map(|e| e.unwrap().path()).collect();
        files.retain(|file| file.to_str().unwrap().ends_with(wanted));
        files.sort();
        std::fs::read(&files[0]).unwrap()
    };
    Files {
        backup: std::fs::read(folder.path().join("backup")).unwrap(),
        meta: read("meta"),
        manifest: read("checkpoint/manifest"),
        data: in_folder("checkpoint", ".data"),
        log: in_folder("log", ".log")[..64 << 10].to_vec(),
    }
}

fn mend(bytes: &mut [u8], from: usize, at: usize) {
    if let Some(covered) = bytes.get(from..at) {
        let crc = crc32c::crc32c(covered).to_le_bytes();
        if let Some(place) = bytes.get_mut(at..at + 4) {
            place.copy_from_slice(&crc);
        }
    }
}

/// Puts right the checksums of a backup's header and of its chunks, as far as they can be walked.
fn mend_backup(bytes: &mut [u8]) {
    mend(bytes, 0, 60);
    let mut at = 64;
    while let Some(header) = bytes.get(at..at + 40) {
        let length = u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize;
        let end = at.saturating_add(40 + length).min(bytes.len());
        let crc = crc32c::crc32c(&bytes[at + 4..end]).to_le_bytes();
        bytes[at..at + 4].copy_from_slice(&crc);
        at = end.max(at + 40);
    }
}

fn mend_end(bytes: &mut [u8]) {
    let end = bytes.len().saturating_sub(4);
    mend(bytes, 0, end);
}

fn changed(of: &[u8], changes: &[(usize, u8)], cut: usize) -> Vec<u8> {
    let mut bytes = of[..of.len() - cut % of.len().min(200)].to_vec();
    for (at, value) in changes {
        let at = at % bytes.len();
        bytes[at] = *value;
    }
    bytes
}

#[test]
fn no_change_of_a_file_makes_a_decoder_panic() {
    let files = files();
    assert!(verify_bytes(&files.backup).is_ok() && Meta::decode(&files.meta).is_ok());
    assert!(Manifest::decode(&files.manifest).is_ok() && DataHeader::decode(&files.data).is_ok());
    assert!(FileHeader::decode(&files.log).is_ok());
    let changes = prop::collection::vec((any::<usize>(), any::<u8>()), 0..6);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 3_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let cuts = prop_oneof![3 => Just(0), 1 => any::<usize>()];
    let outcome = runner.run(&(changes, cuts, any::<bool>()), |(changes, cut, is_mended)| {
        let mut backup = changed(&files.backup, &changes, cut);
        let (mut meta, mut manifest) =
            (changed(&files.meta, &changes, cut), changed(&files.manifest, &changes, cut));
        let (data, mut log) = (changed(&files.data, &changes, cut), changed(&files.log, &changes, cut));
        if is_mended {
            mend_backup(&mut backup);
            mend_end(&mut meta);
            mend_end(&mut manifest);
            mend(&mut log, 0, 60);
        }
        let _ = verify_bytes(&backup);
        if let Ok(decoded) = Meta::decode(&meta) {
            prop_assert_eq!(decoded.encode(), meta);
        }
        if let Ok(decoded) = Manifest::decode(&manifest) {
            prop_assert_eq!(decoded.encode(), manifest);
        }
        let _ = DataHeader::decode(&data);
        let range = RangeHeader { term: Term(1), base: 0 };
        let _ = verify_piece(Slot::of_key(b"{t0}"), range, 0, data.get(64..).unwrap_or(&[]), true, 64 << 10);
        let _ = FileHeader::decode(&log);
        if let Some(batch) = log.get(4096..) {
            if let Some(header) = BatchHeader::decode(batch) {
                let _ = header.end();
            }
            let _ = BatchHeader::verify(batch);
            let frames = Frames::new(batch.get(64..).unwrap_or(&[])).count();
            prop_assert!(frames <= batch.len());
        }
        Ok(())
    });
    outcome.unwrap();
}
