//! Torn ends are cut: whatever a crash makes of a batch that nobody was promised, the log before it is recovered.

use super::super::format::{BATCH_HEADER_BYTES, SECTOR_BYTES};
use super::*;

/// An image with three synced frames and a last, unsynced batch at the returned offset of the first file.
async fn image_with_unsynced_tail(dir: &Path) -> (PathBuf, Vec<Seen>, u64, BatchHeader) {
    let log = Log::create(config(dir, 1), 0).await.expect("created");
    let frames: Vec<Seen> = (0..4).map(|number| frame(number, 700)).collect();
    append_as_batches(&log, &frames[..3]).await;
    log.wait_synced(log.appended()).await.expect("synced");
    append_as_batches(&log, &frames[3..]).await;
    let image = crash_image(dir).await;
    log.close().await.expect("closed");
    let (offset, header) = *batches(&image, 1, 0).await.last().expect("batches");
    assert_eq!(header.synced, header.position);
    (image, frames, offset, header)
}

async fn assert_cut(image: &Path, frames: &[Seen], position: u64, what: &str) {
    let (end, seen) = recover_all(image, &[]).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(end.position.0, position, "{what}");
    assert_eq!(seen, frames, "{what}");
    assert_eq!(end.ends, [(1, position)], "{what}");
}

#[test]
fn whole_tails_are_kept() {
    on_both(|dir| async move {
        let (image, frames, _, header) = image_with_unsynced_tail(&dir).await;
        assert_cut(&image, &frames, header.end().expect("an end"), "nothing torn").await;
    });
}

#[test]
fn truncated_tails_are_cut() {
    on_both(|dir| async move {
        let (image, frames, offset, header) = image_with_unsynced_tail(&dir).await;
        let path = file_path(&image, 1, 0);
        for kept in [700, 600, 513, 512, 65, 64, 63, 4, 1, 0] {
            edit(&path, |bytes| bytes.truncate(offset as usize + kept)).await;
            assert_cut(&image, &frames[..3], header.position, &format!("{kept} bytes kept")).await;
        }
    });
}

#[test]
fn flipped_bits_in_the_tail_are_cut() {
    on_both(|dir| async move {
        let (image, frames, offset, header) = image_with_unsynced_tail(&dir).await;
        let path = file_path(&image, 1, 0);
        for at in (0..BATCH_HEADER_BYTES + header.payload_bytes as usize).step_by(29) {
            edit(&path, |bytes| bytes[offset as usize + at] ^= 0x40).await;
            assert_cut(&image, &frames[..3], header.position, &format!("byte {at} flipped")).await;
            edit(&path, |bytes| bytes[offset as usize + at] ^= 0x40).await;
        }
    });
}

#[test]
fn half_written_tails_are_cut() {
    on_both(|dir| async move {
        let (image, frames, offset, header) = image_with_unsynced_tail(&dir).await;
        let path = file_path(&image, 1, 0);
        // Either sector of the batch may be the one that did not reach the disk.
        for lost in 0..2 {
            let at = offset as usize + lost * SECTOR_BYTES;
            let mut sector = Vec::new();
            edit(&path, |bytes| sector = bytes.splice(at..at + SECTOR_BYTES, [0; SECTOR_BYTES]).collect())
                .await;
            assert_cut(&image, &frames[..3], header.position, &format!("sector {lost} lost")).await;
            edit(&path, |bytes| bytes[at..at + SECTOR_BYTES].copy_from_slice(&sector)).await;
        }
    });
}

#[test]
fn a_torn_batch_before_valid_unsynced_ones_is_cut_with_them() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        let frames: Vec<Seen> = (0..4).map(|number| frame(number, 400)).collect();
        append_as_batches(&log, &frames).await;
        let image = crash_image(&dir).await;
        let (offset, header) = batches(&image, 1, 0).await[1];
        edit(&file_path(&image, 1, 0), |bytes| bytes[offset as usize + 100] ^= 1).await;
        assert_cut(&image, &frames[..1], header.position, "second of four").await;
        // What was cut stays cut, even if the bytes turn out to be readable later.
        edit(&file_path(&image, 1, 0), |bytes| bytes[offset as usize + 100] ^= 1).await;
        let (end, seen) = recover_all(&image, &[(1, header.position)]).await.expect("recovered");
        assert_eq!((end.position.0, seen), (header.position, frames[..1].to_vec()));
        log.close().await.expect("closed");
    });
}

#[test]
fn batches_inside_of_a_value_are_not_believed() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        append_as_batches(&log, &[frame(1, 100)]).await;
        // A value that holds, at every sector, a batch of the right boot that claims a far later sync.
        let fake =
            BatchHeader { salt: 1, boot: 1, position: 1 << 40, synced: 1 << 40, payload_bytes: 0, frames: 0 };
        let mut sector = vec![0; BATCH_HEADER_BYTES];
        fake.seal(&mut sector);
        let mut value = vec![0; SECTOR_BYTES - BATCH_HEADER_BYTES - super::super::format::FRAME_HEADER_BYTES];
        value.extend(sector.repeat(6));
        let evil = Seen { payload: value, ..frame(2, 0) };
        let start = append(&log, &frame(3, 8)).0;
        append_as_batches(&log, &[]).await;
        log.wait_written(LogPosition(start)).await.expect("written");
        append_as_batches(&log, &[evil]).await;
        let image = crash_image(&dir).await;
        let (offset, header) = batches(&image, 1, 0).await[2];
        edit(&file_path(&image, 1, 0), |bytes| bytes[offset as usize + 70] ^= 1).await;
        assert_cut(&image, &[frame(1, 100), frame(3, 8)], header.position, "a batch in a value").await;
        log.close().await.expect("closed");
    });
}

#[test]
fn a_first_file_whose_preparation_was_cut_short_is_an_empty_chain() {
    on_both(|dir| async move {
        let log = Log::create(config(&dir, 1), 0).await.expect("created");
        append(&log, &frame(1, 50));
        log.close().await.expect("closed");
        let end = log.appended().0;
        for bytes in [vec![], vec![0; 100], vec![0; 9000]] {
            overwrite(&file_path(&dir, 2, 0), bytes).await;
            let (recovered, seen) = recover_all(&dir, &[]).await.expect("recovered");
            assert_eq!((recovered.position.0, seen.len(), recovered.boot), (end, 1, 2));
            assert_eq!(recovered.unused_files, [file_path(&dir, 2, 0)]);
        }
    });
}
