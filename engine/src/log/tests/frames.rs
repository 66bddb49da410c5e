//! The bytes alone: whatever is encoded is decoded, and nothing else is accepted.

use proptest::prelude::*;

use super::super::format::{
    BATCH_HEADER_BYTES, BatchHeader, FRAME_HEADER_BYTES, FileHeader, FileHeaderFault, Frames, SECTOR_BYTES,
};
use super::*;

fn any_frame() -> impl Strategy<Value = Seen> {
    (any::<u8>(), any::<u16>(), any::<[u64; 3]>(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(
        |(kind, slot, [generation, term, base], payload)| Seen {
            header: FrameHeader { kind: FrameKind(kind), slot, generation, term, base },
            payload,
        },
    )
}

fn any_batch() -> impl Strategy<Value = BatchHeader> {
    (any::<[u64; 3]>(), 0..=u64::MAX >> 1).prop_map(|([salt, boot, synced], position)| BatchHeader {
        salt,
        boot,
        position,
        synced: synced.min(position),
        payload_bytes: 0,
        frames: 0,
    })
}

fn sealed(mut header: BatchHeader, frames: &[Seen]) -> (BatchHeader, Vec<u8>) {
    let mut bytes = vec![0; BATCH_HEADER_BYTES];
    for frame in frames {
        bytes.extend_from_slice(&frame.header.encode(frame.payload.len()));
        bytes.extend_from_slice(&frame.payload);
    }
    header.payload_bytes = (bytes.len() - BATCH_HEADER_BYTES) as u32;
    header.frames = frames.len() as u32;
    header.seal(&mut bytes);
    (header, bytes)
}

proptest! {
    #[test]
    fn batches_round_trip(header in any_batch(), frames in prop::collection::vec(any_frame(), 0..20)) {
        let (header, bytes) = sealed(header, &frames);
        prop_assert!(bytes.len().is_multiple_of(SECTOR_BYTES));
        prop_assert_eq!(BatchHeader::decode(&bytes), Some(header));
        let end = BATCH_HEADER_BYTES + header.payload_bytes as usize;
        prop_assert!(BatchHeader::verify(&bytes[..end]));
        let back: Vec<Seen> = Frames::new(&bytes[BATCH_HEADER_BYTES..end])
            .map(|frame| frame.expect("a whole frame"))
            .map(|(header, payload)| Seen { header, payload: payload.to_vec() })
            .collect();
        prop_assert_eq!(back, frames);
    }

    #[test]
    fn a_flipped_bit_is_found(
        header in any_batch(),
        frames in prop::collection::vec(any_frame(), 1..5),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let (header, mut bytes) = sealed(header, &frames);
        let end = BATCH_HEADER_BYTES + header.payload_bytes as usize;
        bytes[at.index(end)] ^= 1 << bit;
        prop_assert!(!BatchHeader::verify(&bytes[..end]));
    }

    #[test]
    fn any_bytes_are_frames_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let taken: usize = Frames::new(&bytes)
            .map(|frame| frame.map_or(0, |(_, payload)| FRAME_HEADER_BYTES + payload.len()))
            .sum();
        prop_assert!(taken <= bytes.len());
    }

    #[test]
    fn file_headers_round_trip(name_hash: u32, boot: u64, seq: u32, chain_start: u64, salt: u64, at in 0..64_usize) {
        let header = FileHeader { name_hash, boot, seq, chain_start, salt };
        let mut bytes = header.encode();
        prop_assert_eq!(bytes.len(), FILE_HEADER_BYTES);
        prop_assert_eq!(FileHeader::decode(&bytes), Ok(header));
        bytes[at] ^= 0x10;
        prop_assert_eq!(FileHeader::decode(&bytes), Err(FileHeaderFault::Invalid));
    }
}

#[test]
fn short_bytes_are_no_headers() {
    assert_eq!(FileHeader::decode(&[]), Err(FileHeaderFault::Invalid));
    assert_eq!(BatchHeader::decode(&[0; BATCH_HEADER_BYTES - 1]), None);
    assert!(!BatchHeader::verify(&[0; 3]));
    assert!(!BatchHeader::verify(&[0; BATCH_HEADER_BYTES - 1]));
}

#[test]
fn names_are_parsed_only_in_their_exact_spelling() {
    use super::super::files::{name_is_allowed, parse_file_name};
    let name = file_name("core-0", 0x1f, 3);
    assert_eq!(name, "core-0.000000000000001f.00000003.log");
    assert_eq!(parse_file_name("core-0", &name), Some((0x1f, 3)));
    assert_eq!(parse_file_name("core", &name), None);
    for other in [
        "core-0.1f.3.log",
        "core-0.000000000000001F.00000003.log",
        "core-0.log",
        "core-00.000000000000001f.00000003.log",
    ] {
        assert_eq!(parse_file_name("core-0", other), None, "{other}");
    }
    assert!(
        name_is_allowed("control")
            && !name_is_allowed("")
            && !name_is_allowed("a.b")
            && !name_is_allowed("../x")
    );
}
