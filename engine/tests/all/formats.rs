//! The bytes that are written are those of the tables in `docs/formats.md`, field by field, and the same as ever: the formats
//! are final, so a change needs a new version, and the fixtures of the one before (see `fixtures.rs`).

use std::path::Path;

use lockgate_engine::backup::{BackupHeader, BackupOptions, format as backup};
use lockgate_engine::checkpoint::format::{
    CHECKPOINT_VERSION, CheckpointId, DATA_HEADER_BYTES, DataFile, DataHeader, LogFrom, MANIFEST_BYTES_MAX,
    Manifest, ManifestHead, RangeBytes, SlotEntry, SlotImage,
};
use lockgate_engine::log::format::{
    BATCH_HEADER_BYTES, BATCH_PAYLOAD_BYTES_MAX, BatchHeader, FILE_HEADER_BYTES, FORMAT_VERSION,
    FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, FileHeader, SECTOR_BYTES,
};
use lockgate_engine::log::{FrameHeader, FrameKind, LogStart};
use lockgate_engine::meta::{META_BYTES_MAX, META_VERSION, Meta};
use lockgate_engine::record::{self, NewRecord};
use lockgate_engine::{
    FRAME_DATA, FRAME_DROP, FRAME_FLOOR, FRAME_OPEN, FRAME_STABLE, FRAME_TERM, FRAME_TRUNCATE,
    FRAME_UNDO_FLOOR, Floors, Generation, LogPosition, RangeHeader, Slot, Term, Version,
};

use crate::common::{key, slot_of, standalone};

/// A row of a table that has a place: offset, length and name of a field.
type Row = (usize, usize, String);

fn docs() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats.md");
    std::fs::read_to_string(path).expect("the formats are documented")
}

/// The rows with a place of the tables below headings that begin so, one after the other.
fn tables(chapter: &str, section: &str) -> Vec<Vec<Row>> {
    let docs = docs();
    let chapter = docs.split("\n## ").find(|text| text.starts_with(chapter)).expect("the chapter is there");
    let section = match section {
        "" => chapter.split("\n### ").next(),
        section => chapter.split("\n### ").find(|text| text.starts_with(section)),
    };
    let tables = section.expect("the section is there").split("| offset | bytes | field |").skip(1);
    let row = |line: &str| {
        let mut cells = line.trim_start_matches('|').split('|').map(str::trim);
        let offset = cells.next()?.parse().ok()?;
        // "8 or 0": as long as it is there.
        let bytes = cells.next()?.split(' ').next()?.parse().ok()?;
        Some((offset, bytes, cells.next()?.to_owned()))
    };
    tables
        .map(|table| {
            table
                .lines()
                .skip(2)
                .map_while(|line| line.starts_with('|').then(|| row(line)))
                .flatten()
                .collect()
        })
        .collect()
}

/// Compares every field of a table with what the bytes have there. Fields without a value are reserved. Returns where the
/// last one ends.
fn check(table: &[Row], bytes: &[u8], values: &[(&str, &[u8])]) -> usize {
    let mut end = 0;
    for (offset, length, name) in table {
        assert_eq!(*offset, end, "{name} follows the field before it");
        end = offset + length;
        let found = &bytes[*offset..end];
        match values.iter().find(|(of, _)| of == name) {
            Some((_, value)) => assert_eq!(found, *value, "{name}"),
            None => {
                assert_eq!(name, "reserved", "a field that nobody gave a value");
                assert!(found.iter().all(|byte| *byte == 0), "reserved bytes are zero");
            }
        }
    }
    for (name, _) in values {
        assert!(table.iter().any(|(.., of)| of == name), "{name} is not in the table");
    }
    end
}

macro_rules! le {
    ($value:expr) => {
        &($value).to_le_bytes()[..]
    };
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).to_le_bytes()
}

/// A sample of a format is what it was when the version was made. (FNV-1a: a CRC over bytes and their own CRC says nothing.)
fn pinned(what: &str, bytes: &[u8], wanted: u64) {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let found = bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    assert_eq!(
        found, wanted,
        "{what} is written differently ({found:#018x}): that needs another version, and the fixtures of this one"
    );
}

#[test]
fn log_files_are_as_documented() {
    let header =
        FileHeader { name_hash: 0x0102_0304, boot: 0x1112, seq: 0x2122, chain_start: 0x3132, salt: 0x4142 };
    let bytes = header.encode();
    let checksum = crc(&bytes[..60]);
    let table = &tables("Log", "File header")[0];
    let values = [
        ("magic", &b"LGLOGFIL"[..]),
        ("version", le!(1u32)),
        ("name hash", le!(0x0102_0304u32)),
        ("boot", le!(0x1112u64)),
        ("seq", le!(0x2122u32)),
        ("chain start", le!(0x3132u64)),
        ("salt", le!(0x4142u64)),
        ("checksum", &checksum),
    ];
    assert_eq!((check(table, &bytes, &values), bytes.len()), (64, FILE_HEADER_BYTES));
    assert_eq!((FORMAT_VERSION, FILE_HEADER_BYTES, SECTOR_BYTES), (1, 4_096, 512));
    pinned("a log file's header", &bytes, LOG_FILE_HEADER);

    let frame =
        FrameHeader { kind: FrameKind(9), slot: 0x0506, generation: 0x5152, term: 0x6162, base: 0x7172 };
    let frame_bytes = frame.encode(3);
    let values = [
        ("payload bytes", le!(3u32)),
        ("kind", &[9][..]),
        ("slot", le!(0x0506u16)),
        ("generation", le!(0x5152u64)),
        ("term", le!(0x6162u64)),
        ("base", le!(0x7172u64)),
    ];
    assert_eq!(check(&tables("Log", "Frame header")[0], &frame_bytes, &values), FRAME_HEADER_BYTES);

    let mut batch = vec![0; BATCH_HEADER_BYTES];
    batch.extend_from_slice(&frame_bytes);
    batch.extend_from_slice(b"abc");
    let header = BatchHeader {
        salt: 0x4142,
        boot: 0x1112,
        position: 0x8182,
        synced: 0x8181,
        payload_bytes: 35,
        frames: 1,
    };
    header.seal(&mut batch);
    let checksum = crc(&batch[4..BATCH_HEADER_BYTES + 35]);
    let values = [
        ("checksum", &checksum[..]),
        ("magic", b"LGBT"),
        ("boot", le!(0x1112u64)),
        ("position", le!(0x8182u64)),
        ("synced", le!(0x8181u64)),
        ("salt", le!(0x4142u64)),
        ("payload bytes", le!(35u32)),
        ("frames", le!(1u32)),
    ];
    assert_eq!(check(&tables("Log", "Batch header")[0], &batch, &values), BATCH_HEADER_BYTES);
    assert_eq!(batch.len(), SECTOR_BYTES);
    pinned("a batch", &batch, BATCH);

    assert_eq!((FRAME_PAYLOAD_BYTES_MAX, BATCH_PAYLOAD_BYTES_MAX), (520 << 20, (520 << 20) + 32));
    for (kind, name, found) in [
        (1, "data", FRAME_DATA),
        (2, "open", FRAME_OPEN),
        (3, "drop", FRAME_DROP),
        (4, "term", FRAME_TERM),
        (5, "truncate", FRAME_TRUNCATE),
        (6, "stable", FRAME_STABLE),
        (7, "floor", FRAME_FLOOR),
        (8, "undo floor", FRAME_UNDO_FLOOR),
    ] {
        assert!(found == FrameKind(kind) && docs().contains(&format!("\n| {kind} | {name} |")), "{name}");
    }
}

#[test]
fn records_are_as_documented() {
    let new = NewRecord {
        delta: 0x0102_0304,
        goes_on: true,
        ..NewRecord::put(7, b"key", b"value", Some(0x1112_1314_1516_1718))
    };
    let mut bytes = vec![0xaa; new.encoded_bytes()];
    record::encode(&mut bytes, &new);
    let checksum = crc(&bytes[4..32]);
    let values = [
        ("checksum", &checksum[..]),
        ("delta", le!(0x0102_0304u32)),
        ("kind", &[1 | 0x10 | 0x20]),
        ("keyspace", &[7]),
        ("key bytes", le!(3u16)),
        ("value bytes", le!(5u32)),
        ("deadline", le!(0x1112_1314_1516_1718u64)),
    ];
    let end = check(&tables("Record", "")[0], &bytes, &values);
    assert_eq!((end, &bytes[end..]), (24, &b"keyvalue"[..]));
    for (kind, new) in [(2, NewRecord::delete(7, b"key")), (3, NewRecord::clear(7))] {
        let new = NewRecord { delta: 1, ..new };
        let mut bytes = vec![0xaa; new.encoded_bytes()];
        record::encode(&mut bytes, &new);
        assert_eq!(bytes[8], kind);
    }
    pinned("a record", &bytes, RECORD);
}

fn manifest() -> Manifest {
    let start = LogStart { boot: 0x51, seq: 0x52, file_position: 0x53, position: 0x54 };
    let range = RangeBytes { header: RangeHeader { term: Term(6), base: 0x61 }, bytes: 0x64 };
    let image = SlotImage {
        slot: Slot::new(0x0102).expect("it is one"),
        generation: Generation(0x21),
        ended: Generation(0x11),
        term: Term(9),
        base: 0x71,
        version: Version::new(Term(6), 0x81),
        floors: Floors { floor: Version::new(Term(4), 0x41), undo_floor: Version::new(Term(5), 0x42) },
        truncated_term: Some(Term(8)),
        history: vec![(Term(6), 0x43)],
        position: LogPosition(0x44),
        keys: 1,
        digest: 0x45,
    };
    let head = ManifestHead {
        id: CheckpointId { directory_id: [3; 16], number: 0x31, salt: 0x32 },
        boot: 0x33,
        cores: 2,
        taken_at_ms: 0x34,
        logs: vec![LogFrom { core: 1, start }],
        files: vec![DataFile { core: 1, bytes: 64 + 0x64 }],
    };
    Manifest { head, slots: vec![SlotEntry { image, file: 0, offset: 64, ranges: vec![range] }] }
}

#[test]
fn checkpoints_are_as_documented() {
    let manifest = manifest();
    let bytes = manifest.encode();
    let tables = tables("Checkpoint", "Manifest");
    let values = [
        ("magic", &b"LGCHKMAN"[..]),
        ("version", le!(1u32)),
        ("cores", le!(2u32)),
        ("directory id", &[3; 16]),
        ("number", le!(0x31u64)),
        ("boot", le!(0x33u64)),
        ("salt", le!(0x32u64)),
        ("taken at", le!(0x34u64)),
        ("logs", le!(1u32)),
        ("files", le!(1u32)),
        ("slots", le!(1u32)),
    ];
    let end = check(&tables[0], &bytes, &values);
    assert_eq!(end, 80);
    // Core, number of the file, boot, its position, the position: 32 bytes.
    let log = [le!(1u32), le!(0x52u32), le!(0x51u64), le!(0x53u64), le!(0x54u64)].concat();
    let file = [le!(1u32), le!(0u32), le!(64u64 + 0x64)].concat();
    assert_eq!((log.len(), file.len()), (32, 16));
    assert_eq!(bytes[end..end + 48], [log, file].concat());
    let slot = &bytes[end + 48..];
    let version = |term: u64, counter: u64| [term.to_le_bytes(), counter.to_le_bytes()].concat();
    let (last, floor, undo_floor) = (version(6, 0x81), version(4, 0x41), version(5, 0x42));
    let values = [
        ("slot", le!(0x0102u16)),
        ("file", le!(0u16)),
        ("flags", le!(1u32)),
        ("terms", le!(1u32)),
        ("ranges", le!(1u32)),
        ("offset", le!(64u64)),
        ("generation", le!(0x21u64)),
        ("ended", le!(0x11u64)),
        ("term", le!(9u64)),
        ("base", le!(0x71u64)),
        ("version", &last),
        ("floor", &floor),
        ("undo floor", &undo_floor),
        ("truncated term", le!(8u64)),
        ("position", le!(0x44u64)),
        ("keys", le!(1u64)),
        ("digest", le!(0x45u64)),
    ];
    let end = check(&tables[1], slot, &values);
    let rest = [version(6, 0x43), version(6, 0x61), 0x64u64.to_le_bytes().to_vec()].concat();
    assert_eq!((end, &slot[end..slot.len() - 4]), (136, &rest[..]));
    assert_eq!(slot[slot.len() - 4..], crc(&bytes[..bytes.len() - 4]));
    assert_eq!(Manifest::decode(&bytes), Ok(manifest));
    pinned("a manifest", &bytes, MANIFEST);

    let header = DataHeader { id: manifest_id(), core: 5 };
    let bytes = header.encode();
    let checksum = crc(&bytes[..60]);
    let values = [
        ("magic", &b"LGCHKDAT"[..]),
        ("version", le!(1u32)),
        ("core", le!(5u32)),
        ("directory id", &[3; 16]),
        ("number", le!(0x31u64)),
        ("salt", le!(0x32u64)),
        ("checksum", &checksum),
    ];
    assert_eq!(check(&self::tables("Checkpoint", "Data file")[0], &bytes, &values), DATA_HEADER_BYTES);
    pinned("a data file's header", &bytes, DATA_HEADER);
    assert_eq!((CHECKPOINT_VERSION, MANIFEST_BYTES_MAX), (1, 512 << 20));
}

fn manifest_id() -> CheckpointId {
    manifest().head.id
}

#[test]
fn meta_files_are_as_documented() {
    let ends = [("core-0".to_owned(), vec![(1, 0x500), (2, 0x700)])].into();
    let meta = Meta { directory_id: [3; 16], boot: 0x12, os_boot_id: [4; 16], kept_since: 0x11, ends };
    let bytes = meta.encode();
    let values = [
        ("magic", &b"LGNODEMF"[..]),
        ("version", le!(2u32)),
        ("directory id", &[3; 16]),
        ("boot", le!(0x12u64)),
        ("OS boot id", &[4; 16]),
        ("kept since", le!(0x11u64)),
        ("logs", le!(1u32)),
    ];
    let end = check(&tables("Meta file", "")[0], &bytes, &values);
    let log = [le!(6u32), b"core-0", le!(2u32), le!(1u64), le!(0x500u64), le!(2u64), le!(0x700u64)].concat();
    assert_eq!(bytes[end..bytes.len() - 4], log);
    assert_eq!(bytes[bytes.len() - 4..], crc(&bytes[..bytes.len() - 4]));
    assert_eq!((META_VERSION, META_BYTES_MAX), (2, 16 << 20));
    pinned("a meta file", &bytes, META);
}

#[test]
fn backups_are_as_documented() {
    let header = BackupHeader { directory_id: [3; 16], boot: 0x11, began_ms: 0x12 };
    let bytes = header.encode();
    let checksum = crc(&bytes[..60]);
    let values = [
        ("magic", &b"LGBACKUP"[..]),
        ("version", le!(1u32)),
        ("directory id", &[3; 16]),
        ("boot", le!(0x11u64)),
        ("began", le!(0x12u64)),
        ("checksum", &checksum),
    ];
    let end = check(&tables("Backup file", "File header")[0], &bytes, &values);
    assert_eq!((end, bytes.len()), (backup::FILE_HEADER_BYTES, backup::FILE_HEADER_BYTES));
    assert_eq!(backup::BACKUP_VERSION, 1);
    pinned("a backup's header", &bytes, BACKUP_HEADER);

    // One slot with one key: slot, range, whole, footer.
    let folder = tempfile::tempdir().expect("a folder");
    let engine = standalone(&folder.path().join("data"), 1);
    let _ = engine.keyspace(0).set(&key("t", 1), b"value").expect("set");
    let file = folder.path().join("backup");
    engine.backup_blocking(&file, &BackupOptions::default()).expect("backed up");
    let status = engine.slot_status(slot_of("t"));
    let bytes = std::fs::read(&file).expect("read");
    let table = &tables("Backup file", "Chunk header")[0];
    let slot = slot_of("t").number();
    let (mut at, mut kinds) = (backup::FILE_HEADER_BYTES, Vec::new());
    while at < bytes.len() {
        let chunk = &bytes[at..];
        let (kind, length) = (chunk[8], u32::from_le_bytes(chunk[4..8].try_into().expect("four")) as usize);
        let end = backup::CHUNK_HEADER_BYTES + length;
        let checksum = crc(&chunk[4..end]);
        let (term, base) = match kind {
            5 => (0, 0),
            2 => (1, 0),
            _ => (status.version.term.0, status.version.counter),
        };
        let values = [
            ("checksum", &checksum[..]),
            ("payload bytes", &chunk[4..8]),
            ("kind", &[kind]),
            ("slot", le!(if kind == 5 { 0 } else { slot })),
            ("offset", le!(at as u64)),
            ("term", le!(term)),
            ("base", le!(base)),
        ];
        assert_eq!(check(table, chunk, &values), backup::CHUNK_HEADER_BYTES);
        let payload = &chunk[backup::CHUNK_HEADER_BYTES..end];
        if kind == 1 {
            let wanted = [status.generation.0, status.term.0, 1, status.live_bytes, status.digest];
            assert_eq!(payload, wanted.map(u64::to_le_bytes).concat());
        } else if kind == 5 {
            let wanted = [1, 0, 1, status.live_bytes];
            assert_eq!((&payload[..32], payload.len()), (&wanted.map(u64::to_le_bytes).concat()[..], 40));
        }
        kinds.push(kind);
        at += end;
    }
    assert_eq!(kinds, [1, 2, 3, 5]);
    for (kind, name) in [(1, "slot"), (2, "range"), (3, "whole"), (4, "left"), (5, "footer")] {
        assert!(docs().contains(&format!("\n| {kind} | {name} |")), "{name}");
    }
}

// What the samples come to. They change with a version, and only with it.
const LOG_FILE_HEADER: u64 = 0x7dbd_ac86_3c94_c4e2;
const BATCH: u64 = 0x02f4_328c_dfec_1afd;
const RECORD: u64 = 0x7ff5_0a72_4671_4cb3;
const MANIFEST: u64 = 0x4b80_9a26_d692_1811;
const DATA_HEADER: u64 = 0x51cc_ece1_9c4a_f16a;
const META: u64 = 0x15db_9ad3_0707_a1cf;
const BACKUP_HEADER: u64 = 0x3a29_6b50_a436_7940;
