//! The one record format: the same bytes in memory, in the log and on the wire.
//!
//! A record is a 16-byte header, the key, the value, and zero bytes up to a multiple of four. All numbers are little
//! endian. The checksum (CRC32C) covers everything after itself up to the padding, and padding must be zero, so that one
//! record has exactly one encoding. Every length is checked against its limit and against what is there before it is used.

use thiserror::Error;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// Records start at multiples of this, everywhere.
pub const RECORD_ALIGN_BYTES: usize = 4;
/// Bytes before the key.
pub const RECORD_HEADER_BYTES: usize = size_of::<RawHeader>();
/// The longest record, padding included.
pub const RECORD_BYTES_MAX: usize = padded(RECORD_HEADER_BYTES + KEY_BYTES_MAX + VALUE_BYTES_MAX);

/// The kind is the low three bits; the others are flags, and none is in use, so a set flag is an unknown kind.
/// (0x10 is reserved for "an absolute expiry follows the header".)
const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;

const _: () = assert!(RECORD_HEADER_BYTES == 16);
const _: () = assert!(RECORD_BYTES_MAX < u32::MAX as usize, "lengths inside segments are 32-bit");

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    crc: U32,
    delta: U32,
    kind_flags: u8,
    keyspace: u8,
    key_len: U16,
    value_len: U32,
}

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The key has this value from now on.
    Put,
    /// The key is gone from now on (a tombstone).
    Delete,
}

/// A record, seen in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The checksum that the record carries.
    pub crc: u32,
    /// The version counter, less the range's base.
    pub delta: u32,
    /// What it does.
    pub kind: Kind,
    /// Whose key.
    pub keyspace: u8,
    /// The key.
    pub key: &'a [u8],
    /// The value; empty in a tombstone.
    pub value: &'a [u8],
}

impl Record<'_> {
    /// The record's bytes, padding included.
    pub fn encoded_bytes(&self) -> usize {
        encoded_bytes(self.key.len(), self.value.len())
    }

    /// What a live record adds to its slot's digest.
    pub fn digest(&self) -> u64 {
        mix64(u64::from(self.crc) << 32 | u64::from(self.delta))
    }
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// The bytes end inside the record.
    #[error("the record ends early: it needs {needed_bytes} bytes and {have_bytes} are there")]
    Truncated {
        /// What the record needs.
        needed_bytes: usize,
        /// What is there.
        have_bytes: usize,
    },
    /// A kind that this version does not know.
    #[error("unknown record kind {0:#04x}: written by a newer version, or damaged")]
    UnknownKind(u8),
    /// A value is longer than the limit.
    #[error("a value of {0} bytes is over the limit of {VALUE_BYTES_MAX}")]
    ValueTooLong(usize),
    /// A tombstone with a value.
    #[error("a delete record carries a value of {0} bytes")]
    DeleteWithValue(usize),
    /// Delta 0 would be the base's own version.
    #[error("the record's version equals its range's base")]
    ZeroDelta,
    /// Padding that is not zero.
    #[error("the record's padding is not zero")]
    Padding,
    /// The checksum does not match.
    #[error("checksum mismatch: stored {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// In the record.
        stored: u32,
        /// Of the record's bytes.
        computed: u32,
    },
}

const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(RECORD_ALIGN_BYTES)
}

/// The bytes of a record with a key and a value of these lengths, padding included.
pub const fn encoded_bytes(key_bytes: usize, value_bytes: usize) -> usize {
    padded(RECORD_HEADER_BYTES + key_bytes + value_bytes)
}

/// Writes a record into `out`, which must have exactly [`encoded_bytes`].
///
/// The lengths are the caller's to check: this panics when they are over the limits.
pub fn encode(out: &mut [u8], kind: Kind, delta: u32, keyspace: u8, key: &[u8], value: &[u8]) {
    assert!(
        key.len() <= KEY_BYTES_MAX && value.len() <= VALUE_BYTES_MAX,
        "lengths are checked by the caller"
    );
    assert!(delta > 0 && (kind == Kind::Put || value.is_empty()), "not a record");
    assert_eq!(out.len(), encoded_bytes(key.len(), value.len()));
    let kind_flags = match kind {
        Kind::Put => KIND_PUT,
        Kind::Delete => KIND_DELETE,
    };
    let header = RawHeader {
        crc: U32::ZERO,
        delta: U32::new(delta),
        kind_flags,
        keyspace,
        key_len: U16::new(key.len() as u16),
        value_len: U32::new(value.len() as u32),
    };
    let key_end = RECORD_HEADER_BYTES + key.len();
    let end = key_end + value.len();
    out[..RECORD_HEADER_BYTES].copy_from_slice(header.as_bytes());
    out[RECORD_HEADER_BYTES..key_end].copy_from_slice(key);
    out[key_end..end].copy_from_slice(value);
    out[end..].fill(0);
    let crc = crc32c::crc32c(&out[4..end]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
}

/// The lengths in a record's header, checked against the limits and nothing else: enough to walk verified records.
fn lengths(header: &RawHeader) -> Result<(Kind, usize, usize), RecordError> {
    let kind = match header.kind_flags {
        KIND_PUT => Kind::Put,
        KIND_DELETE => Kind::Delete,
        other => return Err(RecordError::UnknownKind(other)),
    };
    let value_bytes = header.value_len.get() as usize;
    if value_bytes > VALUE_BYTES_MAX {
        return Err(RecordError::ValueTooLong(value_bytes));
    }
    if kind == Kind::Delete && value_bytes != 0 {
        return Err(RecordError::DeleteWithValue(value_bytes));
    }
    Ok((kind, header.key_len.get() as usize, value_bytes))
}

/// The bytes of the verified record that this header belongs to.
pub(crate) fn encoded_bytes_of(header: &[u8]) -> usize {
    let header = RawHeader::ref_from_bytes(header).expect("a whole header");
    encoded_bytes(usize::from(header.key_len.get()), header.value_len.get() as usize)
}

/// The record at the start of `bytes`, without a check of its checksum and padding: for bytes that were verified before.
pub fn parse(bytes: &[u8]) -> Result<Record<'_>, RecordError> {
    let Ok((header, rest)) = RawHeader::ref_from_prefix(bytes) else {
        return Err(RecordError::Truncated { needed_bytes: RECORD_HEADER_BYTES, have_bytes: bytes.len() });
    };
    let (kind, key_bytes, value_bytes) = lengths(header)?;
    let needed_bytes = encoded_bytes(key_bytes, value_bytes);
    if bytes.len() < needed_bytes {
        return Err(RecordError::Truncated { needed_bytes, have_bytes: bytes.len() });
    }
    let (key, rest) = rest.split_at(key_bytes);
    Ok(Record {
        crc: header.crc.get(),
        delta: header.delta.get(),
        kind,
        keyspace: header.keyspace,
        key,
        value: &rest[..value_bytes],
    })
}

/// The record at the start of `bytes`, with everything about it checked.
pub fn verify(bytes: &[u8]) -> Result<Record<'_>, RecordError> {
    let record = parse(bytes)?;
    let end = RECORD_HEADER_BYTES + record.key.len() + record.value.len();
    let computed = crc32c::crc32c(&bytes[4..end]);
    if computed != record.crc {
        return Err(RecordError::Checksum { stored: record.crc, computed });
    }
    if bytes[end..record.encoded_bytes()].iter().any(|&byte| byte != 0) {
        return Err(RecordError::Padding);
    }
    if record.delta == 0 {
        return Err(RecordError::ZeroDelta);
    }
    Ok(record)
}

/// A fixed, well-mixing permutation of 64 bits (the finaliser of SplitMix64).
fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(kind: Kind, delta: u32, keyspace: u8, key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut out = vec![0xaa; encoded_bytes(key.len(), value.len())];
        encode(&mut out, kind, delta, keyspace, key, value);
        out
    }

    #[test]
    fn layout_is_as_documented() {
        let bytes = encoded(Kind::Put, 0x0102_0304, 7, b"key", b"value");
        assert_eq!(bytes.len(), 24);
        assert_eq!(&bytes[4..16], &[4, 3, 2, 1, 1, 7, 3, 0, 5, 0, 0, 0]);
        assert_eq!(&bytes[16..], b"keyvalue");
        assert_eq!(bytes[..4], crc32c::crc32c(&bytes[4..]).to_le_bytes());
    }

    #[test]
    fn reserved_flags_and_unknown_kinds_are_refused() {
        for kind in [0, 3, 7, KIND_PUT | 0x10, KIND_PUT | 0x20, 0xff] {
            let mut bytes = encoded(Kind::Put, 1, 0, b"k", b"v");
            bytes[8] = kind;
            assert_eq!(verify(&bytes), Err(RecordError::UnknownKind(kind)));
        }
    }

    #[test]
    fn lengths_are_checked_before_use() {
        let mut bytes = encoded(Kind::Put, 1, 0, b"k", b"v");
        bytes[12..16].copy_from_slice(&(VALUE_BYTES_MAX as u32 + 1).to_le_bytes());
        assert_eq!(verify(&bytes), Err(RecordError::ValueTooLong(VALUE_BYTES_MAX + 1)));
        bytes[12..16].copy_from_slice(&(VALUE_BYTES_MAX as u32).to_le_bytes());
        assert!(matches!(verify(&bytes), Err(RecordError::Truncated { .. })));
        assert!(matches!(verify(&bytes[..15]), Err(RecordError::Truncated { .. })));
        assert!(matches!(verify(&[]), Err(RecordError::Truncated { .. })));
    }

    proptest! {
        #[test]
        fn round_trip(
            put in any::<bool>(),
            delta in 1u32..,
            keyspace in any::<u8>(),
            key in proptest::collection::vec(any::<u8>(), 0..40),
            value in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let (kind, value) = if put { (Kind::Put, value) } else { (Kind::Delete, Vec::new()) };
            let bytes = encoded(kind, delta, keyspace, &key, &value);
            prop_assert_eq!(bytes.len() % RECORD_ALIGN_BYTES, 0);
            let record = verify(&bytes).unwrap();
            prop_assert_eq!((record.kind, record.delta, record.keyspace), (kind, delta, keyspace));
            prop_assert_eq!((record.key, record.value), (key.as_slice(), value.as_slice()));
            prop_assert_eq!(record.encoded_bytes(), bytes.len());
        }

        #[test]
        fn every_flipped_bit_is_refused(
            key in proptest::collection::vec(any::<u8>(), 0..12),
            value in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let bytes = encoded(Kind::Put, 9, 3, &key, &value);
            for bit in 0..bytes.len() * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(verify(&damaged).is_err(), "bit {} went unnoticed", bit);
            }
            for end in 0..bytes.len() {
                prop_assert!(verify(&bytes[..end]).is_err());
            }
        }
    }
}
