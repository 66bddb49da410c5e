//! Any bytes are a meta file, a checkpoint's manifest, the header or a range of its data file, the header of a log file or a
//! batch of frames, or are refused: within a bound on the memory, and what is accepted would be written the same.

#![no_main]

mod counting;

use counting::{mend, within};
use libfuzzer_sys::fuzz_target;
use lockgate_engine::checkpoint::format::{DataHeader, Manifest};
use lockgate_engine::checkpoint::verify_piece;
use lockgate_engine::log::format::{BatchHeader, FileHeader, Frames};
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
