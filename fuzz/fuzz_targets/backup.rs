//! Any bytes are a backup file or are refused, within the memory that is promised, as they are and with their checksums put
//! right.

#![no_main]

mod counting;

use counting::{mend, within};
use libfuzzer_sys::fuzz_target;
use lockgate_engine::backup::{VERIFY_BYTES_MORE, VERIFY_BYTES_PER_BYTE, verify_bytes};

const HEADER: &[u8; 8] = b"LGBACKUP";
const FILE_HEADER_BYTES: usize = 64;
const CHUNK_HEADER_BYTES: usize = 40;

fn check(bytes: &[u8]) {
    let _ = within(bytes.len(), VERIFY_BYTES_PER_BYTE, VERIFY_BYTES_MORE, || verify_bytes(bytes));
}

/// Makes the bytes look like a backup: magic, version, places, checksums; of the chunks, and of the records in ranges.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < FILE_HEADER_BYTES {
        return bytes;
    }
    bytes[..8].copy_from_slice(HEADER);
    bytes[8..16].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    bytes[48..60].fill(0);
    mend(&mut bytes, 0, 60);
    let mut at = FILE_HEADER_BYTES;
    while at + CHUNK_HEADER_BYTES <= bytes.len() {
        let left = bytes.len() - at - CHUNK_HEADER_BYTES;
        let kind = 1 + bytes[at + 8] % 5;
        let wanted = u32::from_le_bytes([bytes[at + 4], bytes[at + 5], 0, 0]) as usize;
        let length = match kind {
            1 | 5 => 40.min(left),
            2 => wanted.min(left),
            _ => 0,
        };
        bytes[at + 4..at + 8].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[at + 8] = kind;
        bytes[at + 9] = 0;
        bytes[at + 12..at + 16].fill(0);
        bytes[at + 16..at + 24].copy_from_slice(&(at as u64).to_le_bytes());
        let end = at + CHUNK_HEADER_BYTES + length;
        if kind == 2 {
            mend_records(&mut bytes[at + CHUNK_HEADER_BYTES..end]);
        }
        let crc = crc32c::crc32c(&bytes[at + 4..end]).to_le_bytes();
        bytes[at..at + 4].copy_from_slice(&crc);
        at = end;
    }
    bytes
}

fn mend_records(bytes: &mut [u8]) {
    use lockgate_engine::record::{RecordError, parse, verify};
    let mut at = 0;
    while at < bytes.len() {
        if let Err(RecordError::Checksum { computed, .. }) = verify(&bytes[at..]) {
            bytes[at..at + 4].copy_from_slice(&computed.to_le_bytes());
        }
        match parse(&bytes[at..]) {
            Ok(record) => at += record.encoded_bytes(),
            Err(_) => return,
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&mended(bytes));
});
