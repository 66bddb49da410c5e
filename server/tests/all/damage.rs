//! Damaged data directories: a torn end is cut, damage before it is refused by file and offset, and no two processes
//! share a directory.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{ANY, NodeProcess, NotStarted, edit, folder, form, key_of, text};
use lockgate::client::Reply;
use tempfile::TempDir;

/// What `docs/formats.md` says of a log: where batches begin, what they are aligned to, how long their header is.
const FILE_HEADER_BYTES: usize = 4_096;
const SECTOR_BYTES: usize = 512;
const BATCH_HEADER_BYTES: usize = 64;

/// A node alone, with the keys `early` and `late`, synced one after the other. Its folder must outlive it.
fn node_with_two_keys() -> (NodeProcess, TempDir) {
    let folder = folder();
    let node = NodeProcess::start(&folder.path().join("node"), &[]);
    form(std::slice::from_ref(&node), 0);
    for (key, value) in [("early", "first value"), ("late", "last value")] {
        let mut connection = node.connect();
        assert_eq!(crate::common::ask(&mut connection, &["SET", key, value]), Ok(Reply::Simple("OK".into())));
        let synced = crate::common::ask(&mut connection, &["WAITAOF", "1", "0", "30000"]);
        assert_eq!(synced, Ok(Reply::Array(vec![Reply::Integer(1), Reply::Integer(0)])));
    }
    (node, folder)
}

/// Where one batch lies.
struct Batch {
    file: PathBuf,
    offset: usize,
    payload_bytes: usize,
}

impl Batch {
    fn flip_a_bit(&self) {
        edit(&self.file, |bytes| bytes[self.offset + BATCH_HEADER_BYTES + self.payload_bytes / 2] ^= 4);
    }
}

/// The batch of the node's data log that holds `value`.
fn batch_with(data: &Path, value: &str) -> Batch {
    let files = fs::read_dir(data.join("log")).expect("the log's folder");
    let files = files.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> = files
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"core-0.")))
        .collect();
    files.sort();
    let found = files.into_iter().find_map(|file| {
        let bytes = fs::read(&file).expect("the file is read");
        let mut offset = FILE_HEADER_BYTES;
        while bytes.get(offset + 4..offset + 8) == Some(b"LGBT") {
            let length = bytes[offset + 40..offset + 44].try_into().expect("four bytes");
            let payload_bytes = u32::from_le_bytes(length) as usize;
            let payload = &bytes[offset + BATCH_HEADER_BYTES..][..payload_bytes];
            if payload.windows(value.len()).any(|window| window == value.as_bytes()) {
                return Some(Batch { file, offset, payload_bytes });
            }
            offset += (BATCH_HEADER_BYTES + payload_bytes).next_multiple_of(SECTOR_BYTES);
        }
        None
    });
    found.expect("some batch holds the value")
}

/// The early key is there, the late one was cut, and the node takes it again, also over another restart.
fn assert_only_the_end_is_cut(node: &mut NodeProcess) {
    node.restart();
    node.wait_until_it_serves("late");
    assert_eq!(node.ask(&["GET", "early"]).as_ref().map(text), Ok("first value".into()));
    assert_eq!(node.ask(&["GET", "late"]), Ok(Reply::Null));
    assert_eq!(node.ask(&["SET", "late", "again"]), Ok(Reply::Simple("OK".into())));
    assert!(node.terminate().success());
    node.restart();
    node.wait_until_it_serves("late");
    assert_eq!(node.ask(&["GET", "early"]).as_ref().map(text), Ok("first value".into()));
    assert_eq!(node.ask(&["GET", "late"]).as_ref().map(text), Ok("again".into()));
}

#[test]
fn a_truncated_end_is_cut() {
    for keep_a_part in [false, true] {
        let (mut node, _folder) = node_with_two_keys();
        assert_eq!(node.terminate().code(), Some(0));
        let batch = batch_with(&node.data, "last value");
        let kept = if keep_a_part { BATCH_HEADER_BYTES + batch.payload_bytes / 2 } else { 0 };
        edit(&batch.file, |bytes| bytes.truncate(batch.offset + kept));
        assert_only_the_end_is_cut(&mut node);
    }
}

#[test]
fn a_flipped_bit_in_the_last_batch_of_a_crash_is_cut() {
    let (mut node, _folder) = node_with_two_keys();
    node.kill();
    batch_with(&node.data, "last value").flip_a_bit();
    assert_only_the_end_is_cut(&mut node);
}

/// It says what is wrong, where, and what to do; it does not panic.
fn assert_refused(refused: &NotStarted, parts: &[&str]) {
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    for part in parts {
        assert!(refused.errors.contains(part), "{part:?} is not in: {}", refused.errors);
    }
    assert!(!refused.errors.contains("panicked"), "{}", refused.errors);
}

#[test]
fn a_flipped_bit_in_the_middle_is_refused_by_file_and_offset() {
    for crash in [false, true] {
        let (mut node, _folder) = node_with_two_keys();
        if crash {
            node.kill()
        } else {
            assert_eq!(node.terminate().code(), Some(0))
        }
        let batch = batch_with(&node.data, "first value");
        batch.flip_a_bit();
        let (file, offset) = (batch.file.display().to_string(), format!("byte offset {} ", batch.offset));
        let wanted = [file.as_str(), offset.as_str(), "is damaged", "Nothing was changed", "backup"];
        assert_refused(&node.try_restart().expect_err("damage is refused"), &wanted);
        // The refusal changed nothing: without the damage, the node starts with everything.
        batch.flip_a_bit();
        node.restart();
        node.wait_until_it_serves("late");
        assert_eq!(node.ask(&["GET", "early"]).as_ref().map(text), Ok("first value".into()));
        assert_eq!(node.ask(&["GET", "late"]).as_ref().map(text), Ok("last value".into()));
    }
}

#[test]
fn what_was_accepted_once_is_no_torn_end_any_more() {
    let (mut node, _folder) = node_with_two_keys();
    node.kill();
    node.restart();
    node.wait_until_it_serves("late");
    node.kill();
    let batch = batch_with(&node.data, "last value");
    batch.flip_a_bit();
    let (file, offset) = (batch.file.display().to_string(), format!("byte offset {} ", batch.offset));
    assert_refused(
        &node.try_restart().expect_err("damage is refused"),
        &[&file, &offset, "an earlier start"],
    );
}

#[test]
fn a_directory_is_used_by_one_process_at_a_time() {
    let (node, _folder) = node_with_two_keys();
    let refused = NodeProcess::try_start(&node.data, &[]).err().expect("a second process is refused");
    assert_refused(&refused, &[&node.data.display().to_string(), "in use by another process", "its own"]);
    assert_eq!(node.ask(&["GET", &key_of(7, 0)]), Ok(Reply::Null));
    assert_eq!(node.ask(&["GET", "late"]).as_ref().map(text), Ok("last value".into()));
}

#[test]
fn an_address_in_use_is_named() {
    let (node, folder) = node_with_two_keys();
    for (listen, link, taken) in [(node.listen, ANY, node.listen), (ANY, node.link, node.link)] {
        let refused = NodeProcess::try_start_at(&folder.path().join("other"), listen, link);
        assert_refused(&refused.err().expect("refused"), &[&taken.to_string(), "in use"]);
    }
}
