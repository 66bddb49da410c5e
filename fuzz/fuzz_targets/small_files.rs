//! Any bytes are a meta file, a checkpoint's manifest, the header or a range of its data file, the header of a log file or a
//! batch of frames, or are refused: within a bound on the memory, and what is accepted would be written the same.

#![no_main]

mod counting;

use counting::{mend, within};
use libfuzzer_sys::fuzz_target;
use lockgate_engine::checkpoint::format::{DataHeader, Manifest};
use lockgate_engine::checkpoint::verify_piece;
use lockgate_engine::log::format::{BATCH_HEADER_BYTES, BatchHeader, FRAME_HEADER_BYTES, FileHeader, Frames};
use lockgate_engine::meta::Meta;
use lockgate_engine::{RangeHeader, Slot, Term};

/// Bytes of memory for each byte of input, at most, and so many more.
const FACTOR: usize = 32;
const MORE: usize = 64 << 10;
const META_MAGIC: &[u8; 12] = b"LGNODEMF\x02\0\0\0";
const MANIFEST_MAGIC: &[u8; 12] = b"LGCHKMAN\x01\0\0\0";

/// The bytes with this beginning and with the right checksum at their end.
fn mended(bytes: &[u8], beginning: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= beginning.len() + 4 {
        bytes[..beginning.len()].copy_from_slice(beginning);
        let end = bytes.len() - 4;
        mend(&mut bytes, 0, end);
    }
    bytes
}

/// Where the headers of log files and of data files have their checksum.
const HEADER_CRC_AT: usize = 60;
const BATCH_MAGIC: &[u8; 4] = b"LGBT";

/// The same for a header, which has its checksum in a fixed place and no use of the bytes behind it.
fn mended_header(bytes: &[u8], beginning: &[u8; 12]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() >= HEADER_CRC_AT + 4 {
        bytes[..12].copy_from_slice(beginning);
        // Else most have reserved bytes in use.
        bytes[48..HEADER_CRC_AT].fill(0);
        mend(&mut bytes, 0, HEADER_CRC_AT);
    }
    bytes
}

/// A log file's and a data file's header are read as they would be written.
fn check_headers(bytes: &[u8]) {
    let mut log = mended_header(bytes, b"LGLOGFIL\x01\0\0\0");
    if log.len() >= HEADER_CRC_AT + 4 {
        log[28..32].fill(0);
        mend(&mut log, 0, HEADER_CRC_AT);
        let header = within(log.len(), 1, MORE, || FileHeader::decode(&log)).expect("it is mended");
        assert_eq!(header.encode()[..HEADER_CRC_AT + 4], log[..HEADER_CRC_AT + 4]);
        let data = mended_header(bytes, b"LGCHKDAT\x01\0\0\0");
        let header = within(data.len(), 1, MORE, || DataHeader::decode(&data)).expect("it is mended");
        assert_eq!(header.encode()[..], data[..HEADER_CRC_AT + 4]);
    }
}

/// The bytes as a batch whose checksum is right: its frames are some of them, whatever they say of their lengths.
fn check_batch(bytes: &[u8]) {
    let mut batch = bytes.to_vec();
    if batch.len() < BATCH_HEADER_BYTES {
        return;
    }
    batch[4..8].copy_from_slice(BATCH_MAGIC);
    batch[48..BATCH_HEADER_BYTES].fill(0);
    let payload_bytes = (batch.len() - BATCH_HEADER_BYTES) as u32;
    batch[40..44].copy_from_slice(&payload_bytes.to_le_bytes());
    let crc = crc32c::crc32c(&batch[4..]).to_le_bytes();
    batch[..4].copy_from_slice(&crc);
    within(batch.len(), 1, MORE, || {
        assert!(BatchHeader::verify(&batch));
        assert_eq!(BatchHeader::decode(&batch).map(|header| header.payload_bytes), Some(payload_bytes));
        let mut end = 0;
        for (frame, payload) in Frames::new(&batch[BATCH_HEADER_BYTES..]).map_while(Result::ok) {
            let found = &batch[BATCH_HEADER_BYTES + end..][..FRAME_HEADER_BYTES];
            assert_eq!(frame.encode(payload.len())[..], *found);
            end += FRAME_HEADER_BYTES + payload.len();
        }
        assert!(end <= payload_bytes as usize);
    });
}

fn check(bytes: &[u8]) {
    if let Ok(meta) = within(bytes.len(), FACTOR, MORE, || Meta::decode(bytes)) {
        assert_eq!(meta.encode(), bytes);
    }
    if let Ok(manifest) = within(bytes.len(), FACTOR, MORE, || Manifest::decode(bytes)) {
        assert_eq!(manifest.encode(), bytes);
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&mended(bytes, META_MAGIC));
    check(&mended(bytes, MANIFEST_MAGIC));
    check_headers(bytes);
    check_batch(bytes);
    within(bytes.len(), 1, MORE, || {
        let _ = DataHeader::decode(bytes);
        let _ = FileHeader::decode(bytes);
        let range = RangeHeader { term: Term(1), base: 0 };
        let slot = Slot::of_key(bytes.get(16..).unwrap_or_default());
        let _ = verify_piece(slot, range, 0, bytes, bytes.len() % 2 == 0, 4096);
        let _ = BatchHeader::decode(bytes).map(|header| header.end());
        let _ = BatchHeader::verify(bytes);
        let frames = Frames::new(bytes).filter_map(Result::ok);
        let payloads: usize = frames.map(|(_, payload)| payload.len()).sum();
        assert!(payloads <= bytes.len());
    });
});
