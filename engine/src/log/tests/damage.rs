//! Damage is refused, and named: what had been on the disk is not cut silently.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::super::format::{FORMAT_VERSION, FileHeader};
use super::*;

/// Three synced batches in one file and many more files after it, closed in order.
async fn closed_chain(dir: &Path) -> Vec<Seen> {
    let log = Log::create(config(dir, 1), 0).await.expect("created");
    let frames: Vec<Seen> = (0..20).map(|number| frame(number, 2500)).collect();
    for frame in &frames {
        let end = append(&log, frame);
        log.wait_synced(end).await.expect("synced");
    }
    log.close().await.expect("closed");
    frames
}

async fn refused(dir: &Path, known: &[(u64, u64)]) -> RecoverError {
    recover_all(dir, known).await.expect_err("damage must be refused")
}

fn assert_names(error: &RecoverError, file: &Path, offset: u64) {
    let text = error.to_string();
    assert!(matches!(error, RecoverError::Corrupt { .. }), "{text}");
    for part in
        [file.to_str().expect("text"), &format!("byte offset {offset} "), "Nothing was changed. Restore"]
    {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn a_flip_under_a_later_sync_is_refused() {
    on_both(|dir| async move {
        closed_chain(&dir).await;
        for seq in [0, 2] {
            for (offset, _) in batches(&dir, 1, seq).await {
                edit(&file_path(&dir, 1, seq), |bytes| bytes[offset as usize + 90] ^= 4).await;
                assert_names(&refused(&dir, &[]).await, &file_path(&dir, 1, seq), offset);
                edit(&file_path(&dir, 1, seq), |bytes| bytes[offset as usize + 90] ^= 4).await;
            }
        }
        assert_eq!(recover_all(&dir, &[]).await.expect("whole again").1.len(), 20);
    });
}

#[test]
fn a_flip_in_the_last_batch_of_a_closed_chain_is_refused() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        append_as_batches(&log, &[frame(1, 100), frame(2, 100)]).await;
        log.close().await.expect("closed");
        let (offset, _) = batches(&dir, 1, 0).await[1];
        edit(&file_path(&dir, 1, 0), |bytes| bytes[offset as usize + 90] ^= 4).await;
        assert_names(&refused(&dir, &[]).await, &file_path(&dir, 1, 0), offset);
    });
}

#[test]
fn a_file_truncated_in_the_middle_of_a_chain_is_refused() {
    on_both(|dir| async move {
        closed_chain(&dir).await;
        let path = file_path(&dir, 1, 1);
        let offsets = batches(&dir, 1, 1).await;
        for len in [offsets[1].0, offsets[1].0 + 77] {
            let whole = fs::read(&path).await.expect("read");
            edit(&path, |bytes| bytes.truncate(len as usize)).await;
            assert_names(&refused(&dir, &[]).await, &path, offsets[1].0);
            overwrite(&path, whole).await;
        }
        edit(&path, Vec::clear).await;
        assert!(matches!(refused(&dir, &[]).await, RecoverError::Corrupt { .. }));
    });
}

#[test]
fn missing_files_and_boots_are_refused() {
    on_both(|dir| async move {
        let frames = closed_chain(&dir).await;
        let (end, _) = recover_all(&dir, &[]).await.expect("recovered");
        let log = Log::create(config(&dir, 2), end.position.0).await.expect("created");
        append(&log, &frame(99, 9));
        log.close().await.expect("closed");
        for seq in [0, 1] {
            let path = file_path(&dir, 1, seq);
            let whole = fs::read(&path).await.expect("read");
            fs::remove_file(&path).await.expect("removed");
            let error = refused(&dir, &[]).await;
            assert!(matches!(&error, RecoverError::Missing { file, .. } if *file == path), "{error}");
            overwrite(&path, whole).await;
        }
        // The last file of a boot: the next boot began further on.
        fs::remove_file(&file_path(&dir, 1, end.files as u32 - 1)).await.expect("removed");
        assert_names(&refused(&dir, &[]).await, &file_path(&dir, 2, 0), 0);
        let error = refused(&dir, &end.ends).await;
        assert!(error.to_string().contains("an earlier start accepted"), "{error}");
        // All of a boot's files.
        for seq in 0..end.files as u32 - 1 {
            fs::remove_file(&file_path(&dir, 1, seq)).await.expect("removed");
        }
        let error = refused(&dir, &end.ends).await;
        assert!(
            matches!(&error, RecoverError::Missing { file, .. } if *file == file_path(&dir, 1, 0)),
            "{error}"
        );
        assert_eq!(frames.len(), 20);
    });
}

#[test]
fn a_chain_must_reach_its_known_end() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        append_as_batches(&log, &[frame(1, 100), frame(2, 100)]).await;
        let image = crash_image(&dir).await;
        log.close().await.expect("closed");
        let (end, _) = recover_all(&image, &[]).await.expect("recovered");
        let (offset, header) = batches(&image, 1, 0).await[1];
        edit(&file_path(&image, 1, 0), |bytes| bytes[offset as usize + 90] ^= 4).await;
        assert_eq!(recover_all(&image, &[]).await.expect("a torn end").0.position.0, header.position);
        assert_names(&refused(&image, &end.ends).await, &file_path(&image, 1, 0), offset);
        // An end that no batch ends at was never accepted from this chain.
        assert!(matches!(refused(&image, &[(1, header.position - 1)]).await, RecoverError::Corrupt { .. }));
    });
}

#[test]
fn damaged_file_headers_are_refused() {
    on_both(|dir| async move {
        closed_chain(&dir).await;
        for seq in [0, 1] {
            let path = file_path(&dir, 1, seq);
            edit(&path, |bytes| bytes[17] ^= 1).await;
            assert!(matches!(refused(&dir, &[]).await, RecoverError::Corrupt { .. }), "file {seq}");
            edit(&path, |bytes| bytes[17] ^= 1).await;
        }
        // A lone first file, too, as long as it holds a batch.
        let log =
            Log::create(LogConfig { name: "lone".into(), ..config(&dir, 1) }, 0).await.expect("created");
        append(&log, &frame(1, 10));
        log.close().await.expect("closed");
        edit(&dir.join(file_name("lone", 1, 0)), |bytes| bytes[17] ^= 1).await;
        let error = recover(&dir, "lone", None, &[], |_, _| Ok(())).await.expect_err("damaged");
        assert!(error.to_string().contains("the file header is not valid"), "{error}");
    });
}

#[test]
fn files_in_the_wrong_place_and_of_unknown_versions_are_refused() {
    on_both(|dir| async move {
        closed_chain(&dir).await;
        let second = fs::read(&file_path(&dir, 1, 1)).await.expect("read");
        overwrite(&file_path(&dir, 1, 0), second).await;
        assert_names(&refused(&dir, &[]).await, &file_path(&dir, 1, 0), 0);

        let header = FileHeader { name_hash: name_hash(NAME), boot: 1, seq: 0, chain_start: 0, salt: 5 };
        let mut bytes = header.encode();
        bytes[8] = FORMAT_VERSION as u8 + 1;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        overwrite(&file_path(&dir, 1, 0), bytes).await;
        let error = refused(&dir, &[]).await;
        assert!(matches!(error, RecoverError::UnknownVersion { found: 2, supported: 1, .. }), "{error}");
    });
}

/// Any damage to any place of a crashed boot's files: the recovery refuses, or gives a prefix that holds at least
/// what the surviving batches say was synced. It never invents, reorders or skips.
#[test]
fn any_damage_gives_a_prefix_or_is_refused() {
    const CASES: u32 = 300;
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        let frames: Vec<Seen> = (0..24).map(|number| frame(number, 100 + number as usize * 70)).collect();
        for (frame, number) in frames.iter().zip(0..) {
            let end = append(&log, frame);
            log.wait_written(end).await.expect("written");
            if number % 5 == 0 {
                log.wait_synced(end).await.expect("synced");
            }
        }
        let image = crash_image(&dir).await;
        log.close().await.expect("closed");
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let damage = (0..3_u32, any::<prop::sample::Index>(), any::<u8>(), 0..3_u8);
        for _ in 0..CASES {
            let (seq, at, byte, kind) = damage.new_tree(&mut runner).expect("a value").current();
            let path = file_path(&image, 1, seq);
            let whole = fs::read(&path).await.expect("read");
            let at = at.index(whole.len());
            edit(&path, |bytes| match kind {
                0 => bytes[at] ^= byte | 1,
                1 => bytes.truncate(at),
                _ => bytes[at / 512 * 512..][..512].fill(byte),
            })
            .await;
            match recover_all(&image, &[]).await {
                Ok((_, seen)) => {
                    assert_eq!(seen, frames[..seen.len()], "file {seq} at {at}, kind {kind}");
                    // The newest surviving batch of the last file knows of the sync after frame 20.
                    let last_known =
                        batches(&image, 1, 2).await.iter().map(|(_, header)| header.synced).max();
                    let kept = seen.iter().map(|seen| 32 + seen.payload.len() as u64).sum::<u64>();
                    assert!(kept >= last_known.unwrap_or(0), "file {seq} at {at}, kind {kind}");
                }
                Err(RecoverError::Corrupt { .. }) => {}
                Err(error) => panic!("file {seq} at {at}, kind {kind}: {error}"),
            }
            overwrite(&path, whole).await;
        }
    });
}
