//! Any bytes are a record or are refused, and a record has exactly one encoding.
//!
//! A checksum is hard to guess: so the bytes are also taken with their checksum put right.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lockgate_engine::record::{self, NewRecord, Record, RecordError};

fn encoded_again(record: &Record<'_>) -> Vec<u8> {
    let Record { delta, kind, goes_on, keyspace, deadline_ms, key, value, .. } = *record;
    let new = NewRecord { delta, kind, goes_on, keyspace, deadline_ms, key, value };
    let mut bytes = vec![0; new.encoded_bytes()];
    record::encode(&mut bytes, &new);
    bytes
}

/// What verification says, once what it accepts is known to be sound.
fn check(bytes: &[u8]) -> Result<(), RecordError> {
    let parsed = record::parse(bytes);
    let record = record::verify(bytes)?;
    assert_eq!(parsed, Ok(record));
    assert_eq!(encoded_again(&record), &bytes[..record.encoded_bytes()]);
    assert_eq!(&bytes[record.value_range()], record.value);
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    if let Err(RecordError::Checksum { computed, .. }) = check(bytes) {
        let mut mended = bytes.to_vec();
        mended[..4].copy_from_slice(&computed.to_le_bytes());
        // What is looked at behind the checksum may be wrong still.
        assert!(matches!(check(&mended), Ok(()) | Err(RecordError::Padding | RecordError::ZeroDelta)));
    }
});
