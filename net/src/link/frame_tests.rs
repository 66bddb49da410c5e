//! Frames: what was sent comes back; anything else is refused.

use proptest::prelude::*;

use super::*;

/// A message in frames of at most `piece` bytes.
fn frames(encoder: &mut FrameEncoder, kind: u8, payload: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let mut pieces: Vec<&[u8]> = payload.chunks(piece).collect();
    if pieces.is_empty() {
        pieces.push(&[]);
    }
    let last = pieces.len() - 1;
    let frame = |(number, piece): (usize, &&[u8])| {
        let mut frame = encoder.header(kind, number < last, std::iter::once(*piece)).to_vec();
        frame.extend_from_slice(piece);
        frame
    };
    pieces.iter().enumerate().map(frame).collect()
}

fn decode_all(decoder: &mut FrameDecoder, mut bytes: &[u8]) -> Result<Vec<Message>, FrameError> {
    let mut messages = Vec::new();
    loop {
        match decoder.decode(bytes)? {
            Step::Need(total) => {
                assert!(total > bytes.len() && total <= FRAME_HEADER_BYTES + FRAME_BYTES_MAX);
                return Ok(messages);
            }
            Step::Part(skip) => bytes = &bytes[skip..],
            Step::Message(skip, message) => {
                messages.push(message);
                bytes = &bytes[skip..];
            }
        }
    }
}

#[test]
fn crc_over_parts_is_the_crc_over_the_whole() {
    let parts = [&b"ab"[..], b"", b"cdefg"];
    let split = FrameEncoder::new().header(20, false, parts.into_iter());
    let whole = FrameEncoder::new().header(20, false, std::iter::once(&b"abcdefg"[..]));
    assert_eq!(split, whole);
}

#[test]
fn lengths_are_refused_from_the_header_alone() {
    let mut header = FrameEncoder::new().header(20, false, std::iter::empty());
    header[0..4].copy_from_slice(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
    let error = FrameDecoder::new().decode(&header).unwrap_err();
    assert_eq!(error.to_string(), "frame 0 claims 262145 bytes, the limit is 262144");

    let header = FrameEncoder::new().header(1, false, std::iter::once(&[0u8; 65][..]));
    assert!(matches!(
        FrameDecoder::with_limit(64).decode(&header),
        Err(FrameError::FrameTooLong { limit: 64, .. })
    ));
}

#[test]
fn messages_beyond_the_limit_are_refused() {
    let mut encoder = FrameEncoder::new();
    let bytes = frames(&mut encoder, 20, &[7; 101], 50).concat();
    let error = decode_all(&mut FrameDecoder::with_limit(100), &bytes).unwrap_err();
    assert_eq!(error, FrameError::MessageTooLong { kind: 20, limit: 100 });
}

#[test]
fn gaps_repeats_and_mixed_messages_are_refused() {
    let mut encoder = FrameEncoder::new();
    let sent: Vec<Vec<u8>> = (0..3).map(|n| encoder.whole(20, &[n; 9])).collect();
    for (order, expected, got) in [([0, 2], 1, 2), ([0, 0], 1, 0), ([1, 2], 0, 1)] {
        let bytes = [&sent[order[0]][..], &sent[order[1]]].concat();
        assert_eq!(decode_all(&mut FrameDecoder::new(), &bytes), Err(FrameError::Sequence { expected, got }));
    }
    let mut encoder = FrameEncoder::new();
    let mut bytes = frames(&mut encoder, 20, b"abcdef", 4).swap_remove(0);
    encoder.sequence = 1;
    bytes.extend(encoder.whole(21, b"other"));
    assert_eq!(
        decode_all(&mut FrameDecoder::new(), &bytes),
        Err(FrameError::Fragment { sequence: 1, kind: 21 })
    );

    let endless = FrameEncoder::new().header(20, true, std::iter::empty());
    assert_eq!(FrameDecoder::new().decode(&endless), Err(FrameError::Fragment { sequence: 0, kind: 20 }));
}

#[test]
fn sequences_wrap() {
    let mut encoder = FrameEncoder { sequence: u32::MAX };
    let mut decoder = FrameDecoder { sequence: u32::MAX, ..FrameDecoder::new() };
    let bytes = [encoder.whole(20, b"a"), encoder.whole(20, b"b")].concat();
    assert_eq!(decode_all(&mut decoder, &bytes).unwrap().len(), 2);
}

proptest! {
    #[test]
    fn what_is_sent_comes_back(
        sent in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..200)), 0..6),
        piece in 1usize..64,
    ) {
        let mut encoder = FrameEncoder::new();
        let bytes: Vec<u8> =
            sent.iter().flat_map(|(kind, payload)| frames(&mut encoder, *kind, payload, piece).concat()).collect();
        let messages = decode_all(&mut FrameDecoder::new(), &bytes).unwrap();
        let received: Vec<_> = messages.into_iter().map(|message| (message.kind, message.payload)).collect();
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn a_flipped_bit_is_never_taken(
        payload in prop::collection::vec(any::<u8>(), 1..200),
        piece in 16usize..64,
        flip in any::<prop::sample::Index>(),
    ) {
        let mut bytes = frames(&mut FrameEncoder::new(), 20, &payload, piece).concat();
        let bit = flip.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        // A flipped length may make the decoder wait for more; what it never does is give the message.
        if let Ok(messages) = decode_all(&mut FrameDecoder::new(), &bytes) {
            prop_assert_eq!(messages, []);
        }
    }

    #[test]
    fn a_truncated_message_is_never_given(
        payload in prop::collection::vec(any::<u8>(), 0..200),
        piece in 16usize..64,
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = frames(&mut FrameEncoder::new(), 20, &payload, piece).concat();
        let messages = decode_all(&mut FrameDecoder::new(), &bytes[..cut.index(bytes.len())]);
        prop_assert_eq!(messages, Ok(vec![]));
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_all(&mut FrameDecoder::new(), &bytes);
    }
}
