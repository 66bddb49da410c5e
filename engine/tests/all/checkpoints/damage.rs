//! Damage to a checkpoint's files is named, whatever it is: an open never panics, and never serves other data.

use std::path::{Path, PathBuf};

use super::{lasting, quiet};
use crate::common::{copy_directory, key};
use lockgate_engine::checkpoint::LoadError;
use lockgate_engine::checkpoint::format::{CHECKPOINT_VERSION, DATA_HEADER_BYTES, DataHeader, Manifest};
use lockgate_engine::{OpenError, SLOTS};
use proptest::prelude::*;

/// A directory with a checkpoint of a few slots.
fn checkpointed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let engine = quiet(folder.path(), 2).open().unwrap();
    for number in 0..40 {
        let _ = engine.keyspace(0).set(&key(&(number % 4).to_string(), number), &[7; 37]).unwrap();
    }
    let _ = engine.keyspace(0).delete(&key("1", 1)).unwrap();
    engine.checkpoint_blocking().unwrap();
    let _ = engine.keyspace(0).set(b"behind", b"it").unwrap();
    folder
}

fn checkpoint_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join("checkpoint")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The error of an open after this file was changed, which must name it.
fn refusal(folder: &Path, file: &Path, change: impl FnOnce(&mut Vec<u8>)) -> LoadError {
    let whole = std::fs::read(file).unwrap();
    let mut bytes = whole.clone();
    change(&mut bytes);
    std::fs::write(file, bytes).unwrap();
    let error = quiet(folder, 1).open().expect_err("a damaged file is refused");
    std::fs::write(file, whole).unwrap();
    assert!(error.to_string().contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
    let OpenError::Checkpoint(error) = error else { panic!("{error}") };
    error
}

#[test]
fn every_flipped_byte_is_found_and_named() {
    let folder = checkpointed();
    let files = checkpoint_files(folder.path());
    assert_eq!(files.len(), 3);
    for file in &files {
        let len = std::fs::metadata(file).unwrap().len() as usize;
        // Everything at the beginning and at the end, and samples of all regions between.
        let step = (len / 60).max(1) | 1;
        for at in (0..len).filter(|at| at % step == 0 || len - at <= 4) {
            let error = refusal(folder.path(), file, |bytes| bytes[at] ^= 0x10);
            assert!(matches!(error, LoadError::Corrupt { .. }), "byte {at}: {error}");
            assert!(error.to_string().contains("offset"), "{error}");
        }
        for keep in [0, 1, 63, len / 2, len - 1] {
            let error = refusal(folder.path(), file, |bytes| bytes.truncate(keep));
            assert!(matches!(error, LoadError::Corrupt { .. }), "{keep} bytes: {error}");
        }
        let error = refusal(folder.path(), file, |bytes| bytes.push(0));
        assert!(matches!(error, LoadError::Corrupt { .. }), "{error}");
    }
    let engine = quiet(folder.path(), 2).open().unwrap();
    assert_eq!(engine.keyspace(0).len(), 40, "nothing was changed by the refusals");
}

#[test]
fn newer_versions_and_missing_files_are_refused_by_name() {
    let folder = checkpointed();
    for file in checkpoint_files(folder.path()) {
        let is_manifest = file.ends_with("manifest");
        let error = refusal(folder.path(), &file, |bytes| {
            bytes[8..12].copy_from_slice(&(CHECKPOINT_VERSION + 1).to_le_bytes());
            let end = if is_manifest { bytes.len() } else { DATA_HEADER_BYTES } - 4;
            let crc = crc32c::crc32c(&bytes[..end]);
            bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        });
        assert!(matches!(error, LoadError::UnknownVersion { found, .. } if found == CHECKPOINT_VERSION + 1));
        let copy = tempfile::tempdir().unwrap();
        copy_directory(folder.path(), copy.path());
        std::fs::remove_file(copy.path().join("checkpoint").join(file.file_name().unwrap())).unwrap();
        let opened = quiet(copy.path(), 2).open();
        if is_manifest {
            // Nothing of the logs was given back yet: they have everything.
            assert_eq!(opened.unwrap().keyspace(0).len(), 40);
        } else {
            assert!(matches!(opened, Err(OpenError::Checkpoint(LoadError::Missing { .. }))), "{opened:?}");
        }
    }
}

#[test]
fn a_manifest_that_is_gone_is_missed_where_the_logs_do_not_have_everything() {
    let folder = checkpointed();
    for _ in 0..2 {
        let engine = quiet(folder.path(), 2).open().unwrap();
        engine.checkpoint_blocking().unwrap();
    }
    drop(quiet(folder.path(), 2).open().unwrap());
    std::fs::remove_file(folder.path().join("checkpoint").join("manifest")).unwrap();
    let error = quiet(folder.path(), 2).open().expect_err("the data before the logs is not there");
    assert!(matches!(error, OpenError::Checkpoint(LoadError::Missing { .. })), "{error}");
    assert!(error.to_string().contains("manifest"), "{error}");
}

#[test]
fn files_of_another_checkpoint_or_directory_are_found_out() {
    let (folder, other) = (checkpointed(), checkpointed());
    let (files, others) = (checkpoint_files(folder.path()), checkpoint_files(other.path()));
    for (file, other) in files.iter().zip(&others) {
        let error = refusal(folder.path(), file, |bytes| *bytes = std::fs::read(other).unwrap());
        assert!(matches!(error, LoadError::Corrupt { .. }), "{error}");
    }
    let swapped = std::fs::read(&files[1]).unwrap();
    refusal(folder.path(), &files[0], |bytes| *bytes = swapped);
    let before = lasting(&quiet(folder.path(), 2).open().unwrap());
    assert!(lasting(&quiet(folder.path(), 1).open().unwrap()) == before);
}

fn manifest() -> Vec<u8> {
    let folder = checkpointed();
    std::fs::read(folder.path().join("checkpoint").join("manifest")).unwrap()
}

fn sealed(mut content: Vec<u8>) -> Vec<u8> {
    content.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
    content
}

#[test]
fn a_manifest_survives_its_encoding() {
    let bytes = manifest();
    let manifest = Manifest::decode(&bytes).unwrap();
    assert_eq!(manifest.encode(), bytes);
    assert!(
        manifest.slots.len() >= 4 && manifest.slots.len() < usize::from(SLOTS),
        "empty slots are not in it"
    );
    assert_eq!((manifest.head.logs.len(), manifest.head.files.len(), manifest.head.cores), (2, 2, 2));
}

#[test]
fn a_manifest_with_a_right_checksum_is_checked_all_the_same() {
    let bytes = manifest();
    let content = &bytes[..bytes.len() - 4];
    // Each field in turn gets the largest and another value; what is taken is consistent, and is what was given.
    for at in 8..content.len() {
        for value in [0xff, content[at] ^ 1] {
            let mut changed = content.to_vec();
            changed[at] = value;
            let changed = sealed(changed);
            if let Ok(decoded) = Manifest::decode(&changed) {
                assert_eq!(decoded.encode(), changed, "byte {at}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_a_manifest(bytes in proptest::collection::vec(any::<u8>(), 0..600), seal in any::<bool>()) {
        let bytes = if seal {
            let mut content = b"LGCHKMAN\x01\0\0\0\x02\0\0\0".to_vec();
            content.extend(bytes);
            sealed(content)
        } else {
            bytes
        };
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(manifest.encode(), bytes.clone());
        }
        let _ = DataHeader::decode(&bytes);
    }
}
