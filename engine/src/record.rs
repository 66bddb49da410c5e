//! The one record format: the same bytes in memory, in the log and on the wire.
//!
//! A record is a 16-byte header, the deadline if there is one, the key, the value, and zero bytes up to a multiple of
//! four. All numbers are little endian. The checksum (CRC32C) covers everything after itself up to the padding, and padding
//! must be zero, so that one record has exactly one encoding. Every length is checked against its limit and against what
//! is there before it is used.

use std::ops::Range;

use thiserror::Error;
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::types::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// Records start at multiples of this, everywhere.
pub const RECORD_ALIGN_BYTES: usize = 4;
/// Bytes before the deadline, or before the key when there is none.
pub const RECORD_HEADER_BYTES: usize = size_of::<RawHeader>();
/// Bytes of a deadline.
pub const DEADLINE_BYTES: usize = size_of::<u64>();
/// The longest record, padding included.
pub const RECORD_BYTES_MAX: usize = encoded_bytes(true, KEY_BYTES_MAX, VALUE_BYTES_MAX);

/// The kind is the low three bits; the others are flags. A flag that is not in use makes it an unknown kind.
const KIND_MASK: u8 = 0x07;
const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;
const KIND_CLEAR: u8 = 3;
/// A put's deadline follows the header.
const FLAG_DEADLINE: u8 = 0x10;
/// The next record belongs to the same write.
const FLAG_GOES_ON: u8 = 0x20;
const FLAGS: u8 = FLAG_DEADLINE | FLAG_GOES_ON;

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
    /// All keys that the slot has in this keyspace are gone from now on: a tombstone of all of them. It has no key.
    Clear,
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
    /// The next record belongs to the same write: nobody has the one without the other.
    pub goes_on: bool,
    /// Whose key.
    pub keyspace: u8,
    /// When the key ends, in milliseconds since 1970. `None`: never. A tombstone has none.
    pub deadline_ms: Option<u64>,
    /// The key.
    pub key: &'a [u8],
    /// The value; empty in a tombstone.
    pub value: &'a [u8],
}

impl Record<'_> {
    /// The record's bytes, padding included.
    pub fn encoded_bytes(&self) -> usize {
        encoded_bytes(self.deadline_ms.is_some(), self.key.len(), self.value.len())
    }

    /// Where in the record's bytes its value is.
    pub fn value_range(&self) -> Range<usize> {
        let start = key_start(self.deadline_ms.is_some()) + self.key.len();
        start..start + self.value.len()
    }

    /// What a live record adds to its slot's digest.
    pub fn digest(&self) -> u64 {
        mix64(u64::from(self.crc) << 32 | u64::from(self.delta))
    }
}

/// A record that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct NewRecord<'a> {
    /// Its version counter, less the range's base.
    pub delta: u32,
    /// What it does.
    pub kind: Kind,
    /// The next record belongs to the same write.
    pub goes_on: bool,
    /// Whose key.
    pub keyspace: u8,
    /// When the key ends, in milliseconds since 1970. `None`: never.
    pub deadline_ms: Option<u64>,
    /// The key, of a checked length.
    pub key: &'a [u8],
    /// The value, of a checked length.
    pub value: &'a [u8],
}

impl<'a> NewRecord<'a> {
    /// Gives a key a value. Whoever writes it gives it its delta.
    pub fn put(keyspace: u8, key: &'a [u8], value: &'a [u8], deadline_ms: Option<u64>) -> NewRecord<'a> {
        NewRecord { delta: 0, kind: Kind::Put, goes_on: false, keyspace, deadline_ms, key, value }
    }

    /// Ends a key. Whoever writes it gives it its delta.
    pub fn delete(keyspace: u8, key: &'a [u8]) -> NewRecord<'a> {
        NewRecord { kind: Kind::Delete, ..NewRecord::put(keyspace, key, &[], None) }
    }

    /// Ends all keys of a keyspace. Whoever writes it gives it its delta.
    pub fn clear(keyspace: u8) -> NewRecord<'a> {
        NewRecord { kind: Kind::Clear, ..NewRecord::put(keyspace, &[], &[], None) }
    }

    /// The record's bytes, padding included.
    pub fn encoded_bytes(&self) -> usize {
        encoded_bytes(self.deadline_ms.is_some(), self.key.len(), self.value.len())
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
    /// A tombstone with a deadline.
    #[error("a delete record carries a deadline")]
    DeleteWithDeadline,
    /// A record that clears a keyspace has neither a key nor a value nor a deadline.
    #[error("a clear record carries a key, a value or a deadline")]
    ClearNotEmpty,
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
pub const fn encoded_bytes(has_deadline: bool, key_bytes: usize, value_bytes: usize) -> usize {
    padded(key_start(has_deadline) + key_bytes + value_bytes)
}

const fn key_start(has_deadline: bool) -> usize {
    if has_deadline { RECORD_HEADER_BYTES + DEADLINE_BYTES } else { RECORD_HEADER_BYTES }
}

/// Writes a record into `out`, which must have exactly its [`encoded_bytes`].
///
/// The lengths are the caller's to check: this panics when they are over the limits.
pub fn encode(out: &mut [u8], new: &NewRecord<'_>) {
    let NewRecord { delta, kind, goes_on, keyspace, deadline_ms, key, value } = *new;
    assert!(
        key.len() <= KEY_BYTES_MAX && value.len() <= VALUE_BYTES_MAX,
        "lengths are checked by the caller"
    );
    let is_bare = value.is_empty() && deadline_ms.is_none();
    assert!(delta > 0 && (kind == Kind::Put || is_bare), "not a record");
    assert!(kind != Kind::Clear || key.is_empty(), "a clear record has no key");
    assert_eq!(out.len(), new.encoded_bytes());
    let kind = match kind {
        Kind::Put => KIND_PUT,
        Kind::Delete => KIND_DELETE,
        Kind::Clear => KIND_CLEAR,
    };
    let deadline_flag = if deadline_ms.is_some() { FLAG_DEADLINE } else { 0 };
    let goes_on_flag = if goes_on { FLAG_GOES_ON } else { 0 };
    let header = RawHeader {
        crc: U32::ZERO,
        delta: U32::new(delta),
        kind_flags: kind | deadline_flag | goes_on_flag,
        keyspace,
        key_len: U16::new(key.len() as u16),
        value_len: U32::new(value.len() as u32),
    };
    out[..RECORD_HEADER_BYTES].copy_from_slice(header.as_bytes());
    let key_start = key_start(deadline_ms.is_some());
    if let Some(deadline_ms) = deadline_ms {
        out[RECORD_HEADER_BYTES..key_start].copy_from_slice(&deadline_ms.to_le_bytes());
    }
    let key_end = key_start + key.len();
    let end = key_end + value.len();
    out[key_start..key_end].copy_from_slice(key);
    out[key_end..end].copy_from_slice(value);
    out[end..].fill(0);
    let crc = crc32c::crc32c(&out[4..end]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
}

/// The checksum of an encoded record's key and value: enough to give it another delta and deadline without reading them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RestChecksum {
    crc: u32,
    bytes: usize,
    deadline_ms: Option<u64>,
}

const DELTA: Range<usize> = 4..8;

impl RestChecksum {
    /// Of the record that was encoded into `bytes`.
    pub(crate) fn of(bytes: &[u8], new: &NewRecord<'_>) -> RestChecksum {
        let start = key_start(new.deadline_ms.is_some());
        let rest = &bytes[start..start + new.key.len() + new.value.len()];
        RestChecksum { crc: crc32c::crc32c(rest), bytes: rest.len(), deadline_ms: new.deadline_ms }
    }

    /// The record's deadline.
    pub(crate) fn deadline_ms(self) -> Option<u64> {
        self.deadline_ms
    }

    /// With another deadline, which [`complete`](RestChecksum::complete) will write. The record must have one already: it
    /// takes room.
    pub(crate) fn with_deadline(self, deadline_ms: u64) -> RestChecksum {
        assert!(self.deadline_ms.is_some(), "there is room for it");
        RestChecksum { deadline_ms: Some(deadline_ms), ..self }
    }

    /// Gives that record its delta and its deadline.
    pub(crate) fn complete(self, bytes: &mut [u8], delta: u32) {
        assert!(delta > 0, "not a record");
        bytes[DELTA].copy_from_slice(&delta.to_le_bytes());
        let start = key_start(self.deadline_ms.is_some());
        if let Some(deadline_ms) = self.deadline_ms {
            bytes[RECORD_HEADER_BYTES..start].copy_from_slice(&deadline_ms.to_le_bytes());
        }
        let head = crc32c::crc32c(&bytes[DELTA.start..start]);
        let crc = crc32c::crc32c_combine(head, self.crc, self.bytes);
        bytes[..DELTA.start].copy_from_slice(&crc.to_le_bytes());
    }
}

/// What a record's header says of the bytes behind it.
struct Layout {
    kind: Kind,
    goes_on: bool,
    has_deadline: bool,
    key_bytes: usize,
    value_bytes: usize,
}

/// The header, checked against the limits and nothing else: enough to walk verified records.
fn layout(header: &RawHeader) -> Result<Layout, RecordError> {
    let has_deadline = header.kind_flags & FLAG_DEADLINE != 0;
    let goes_on = header.kind_flags & FLAG_GOES_ON != 0;
    let kind = match header.kind_flags & !FLAGS {
        KIND_PUT => Kind::Put,
        KIND_DELETE => Kind::Delete,
        KIND_CLEAR => Kind::Clear,
        _ => return Err(RecordError::UnknownKind(header.kind_flags)),
    };
    let value_bytes = header.value_len.get() as usize;
    if value_bytes > VALUE_BYTES_MAX {
        return Err(RecordError::ValueTooLong(value_bytes));
    }
    if kind == Kind::Delete && value_bytes != 0 {
        return Err(RecordError::DeleteWithValue(value_bytes));
    }
    if kind == Kind::Delete && has_deadline {
        return Err(RecordError::DeleteWithDeadline);
    }
    let key_bytes = header.key_len.get() as usize;
    if kind == Kind::Clear && (key_bytes != 0 || value_bytes != 0 || has_deadline) {
        return Err(RecordError::ClearNotEmpty);
    }
    Ok(Layout { kind, goes_on, has_deadline, key_bytes, value_bytes })
}

/// What the header of a verified record says: nothing is checked. Ranges are of the record's bytes.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a>(&'a RawHeader);

impl<'a> Head<'a> {
    /// The header that these bytes are.
    #[inline(always)]
    pub(crate) fn of(bytes: &'a [u8; RECORD_HEADER_BYTES]) -> Head<'a> {
        Head(zerocopy::transmute_ref!(bytes))
    }

    /// Where the deadline is, if there is one.
    #[inline(always)]
    pub(crate) fn deadline(self) -> Option<Range<usize>> {
        self.has_deadline().then_some(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + DEADLINE_BYTES)
    }

    /// Where the key is.
    #[inline(always)]
    pub(crate) fn key(self) -> Range<usize> {
        let start = key_start(self.has_deadline());
        start..start + usize::from(self.0.key_len.get())
    }

    /// Where the value is.
    #[inline(always)]
    pub(crate) fn value(self) -> Range<usize> {
        let start = self.key().end;
        start..start + self.0.value_len.get() as usize
    }

    /// The record, given what is at those ranges.
    #[inline(always)]
    pub(crate) fn record(
        self,
        deadline: Option<&[u8; DEADLINE_BYTES]>,
        key: &'a [u8],
        value: &'a [u8],
    ) -> Record<'a> {
        Record {
            crc: self.0.crc.get(),
            delta: self.0.delta.get(),
            kind: match self.0.kind_flags & KIND_MASK {
                KIND_DELETE => Kind::Delete,
                KIND_CLEAR => Kind::Clear,
                _ => Kind::Put,
            },
            goes_on: self.0.kind_flags & FLAG_GOES_ON != 0,
            keyspace: self.0.keyspace,
            deadline_ms: deadline.map(|bytes| u64::from_le_bytes(*bytes)),
            key,
            value,
        }
    }

    #[inline(always)]
    fn has_deadline(self) -> bool {
        self.0.kind_flags & FLAG_DEADLINE != 0
    }
}

/// The record at the start of `bytes`, without a check of its checksum and padding: for bytes that were verified before.
pub fn parse(bytes: &[u8]) -> Result<Record<'_>, RecordError> {
    let Ok((header, rest)) = RawHeader::ref_from_prefix(bytes) else {
        return Err(RecordError::Truncated { needed_bytes: RECORD_HEADER_BYTES, have_bytes: bytes.len() });
    };
    let Layout { kind, goes_on, has_deadline, key_bytes, value_bytes } = layout(header)?;
    let needed_bytes = encoded_bytes(has_deadline, key_bytes, value_bytes);
    if bytes.len() < needed_bytes {
        return Err(RecordError::Truncated { needed_bytes, have_bytes: bytes.len() });
    }
    let (deadline_ms, rest) = match rest.split_first_chunk() {
        Some((deadline, rest)) if has_deadline => (Some(u64::from_le_bytes(*deadline)), rest),
        _ => (None, rest),
    };
    let (key, rest) = rest.split_at(key_bytes);
    Ok(Record {
        crc: header.crc.get(),
        delta: header.delta.get(),
        kind,
        goes_on,
        keyspace: header.keyspace,
        deadline_ms,
        key,
        value: &rest[..value_bytes],
    })
}

/// The record at the start of `bytes`, with everything about it checked.
pub fn verify(bytes: &[u8]) -> Result<Record<'_>, RecordError> {
    let record = parse(bytes)?;
    let end = record.value_range().end;
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

    fn encoded(new: &NewRecord<'_>) -> Vec<u8> {
        let mut out = vec![0xaa; new.encoded_bytes()];
        encode(&mut out, new);
        out
    }

    fn short(deadline_ms: Option<u64>) -> Vec<u8> {
        encoded(&NewRecord { delta: 1, ..NewRecord::put(0, b"k", b"v", deadline_ms) })
    }

    #[test]
    fn layout_is_as_documented() {
        let plain = NewRecord { delta: 0x0102_0304, ..NewRecord::put(7, b"key", b"value", None) };
        let bytes = encoded(&plain);
        assert_eq!(bytes.len(), 24);
        assert_eq!(&bytes[4..16], &[4, 3, 2, 1, 1, 7, 3, 0, 5, 0, 0, 0]);
        assert_eq!(&bytes[16..], b"keyvalue");
        assert_eq!(bytes[..4], crc32c::crc32c(&bytes[4..]).to_le_bytes());
        let bytes = encoded(&NewRecord { deadline_ms: Some(0x0102_0304_0506_0708), ..plain });
        assert_eq!(bytes.len(), 32);
        assert_eq!(&bytes[4..16], &[4, 3, 2, 1, 0x11, 7, 3, 0, 5, 0, 0, 0]);
        assert_eq!(&bytes[16..24], &[8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(&bytes[24..], b"keyvalue");
        assert_eq!(bytes[..4], crc32c::crc32c(&bytes[4..]).to_le_bytes());
    }

    #[test]
    fn flags_that_are_not_in_use_and_unknown_kinds_are_refused() {
        for kind in [0, 4, 7, FLAG_DEADLINE, FLAGS, FLAG_GOES_ON | 4, KIND_PUT | 0x08, KIND_PUT | 0x40, 0xff]
        {
            let mut bytes = short(None);
            bytes[8] = kind;
            assert_eq!(verify(&bytes), Err(RecordError::UnknownKind(kind)));
        }
        let mut delete = encoded(&NewRecord { delta: 1, ..NewRecord::delete(0, b"k") });
        delete[8] |= FLAG_DEADLINE;
        assert_eq!(verify(&delete), Err(RecordError::DeleteWithDeadline));
    }

    #[test]
    fn a_clear_record_is_a_header() {
        let bytes = encoded(&NewRecord { delta: 5, goes_on: true, ..NewRecord::clear(9) });
        assert_eq!(&bytes[4..], &[5, 0, 0, 0, 0x23, 9, 0, 0, 0, 0, 0, 0]);
        let clear = verify(&bytes).unwrap();
        assert_eq!((clear.kind, clear.goes_on, clear.keyspace, clear.key.len()), (Kind::Clear, true, 9, 0));
        for (at, byte) in [(8, KIND_CLEAR | FLAG_DEADLINE), (10, 1), (12, 1)] {
            let mut damaged = bytes.clone();
            damaged[at] = byte;
            damaged.extend([0; 8]);
            assert_eq!(verify(&damaged), Err(RecordError::ClearNotEmpty), "byte {at}");
        }
    }

    #[test]
    fn lengths_are_checked_before_use() {
        let mut bytes = short(None);
        bytes[12..16].copy_from_slice(&(VALUE_BYTES_MAX as u32 + 1).to_le_bytes());
        assert_eq!(verify(&bytes), Err(RecordError::ValueTooLong(VALUE_BYTES_MAX + 1)));
        bytes[12..16].copy_from_slice(&(VALUE_BYTES_MAX as u32).to_le_bytes());
        assert!(matches!(verify(&bytes), Err(RecordError::Truncated { .. })));
        assert!(matches!(verify(&bytes[..15]), Err(RecordError::Truncated { .. })));
        assert!(matches!(verify(&[]), Err(RecordError::Truncated { .. })));
        let bytes = short(Some(1));
        let ends_early = |end: usize| RecordError::Truncated { needed_bytes: 28, have_bytes: end };
        for end in 16..28 {
            assert_eq!(verify(&bytes[..end]), Err(ends_early(end)), "a deadline has eight bytes");
        }
    }

    #[test]
    fn another_delta_makes_the_record_that_would_have_been_encoded_with_it() {
        for (value, deadline_ms) in [(&b""[..], None), (b"value", Some(7)), (&[3; 1001], None)] {
            let new = NewRecord { delta: 1, ..NewRecord::put(5, b"key", value, deadline_ms) };
            let mut bytes = encoded(&new);
            let rest = RestChecksum::of(&bytes, &new);
            rest.complete(&mut bytes, 0x1234_5678);
            assert_eq!(bytes, encoded(&NewRecord { delta: 0x1234_5678, ..new }));
            if deadline_ms.is_some() {
                rest.with_deadline(u64::MAX - 5).complete(&mut bytes, 3);
                let later = NewRecord { delta: 3, deadline_ms: Some(u64::MAX - 5), ..new };
                assert_eq!(bytes, encoded(&later));
            }
        }
    }

    #[test]
    fn a_deadline_makes_another_record_and_another_digest() {
        let digests: Vec<u64> = [None, Some(0), Some(1), Some(u64::MAX)]
            .map(|deadline_ms| verify(&short(deadline_ms)).unwrap().digest())
            .into();
        for (at, digest) in digests.iter().enumerate() {
            assert!(!digests[..at].contains(digest));
        }
    }

    proptest! {
        #[test]
        fn round_trip(
            kind in prop_oneof![Just(Kind::Put), Just(Kind::Delete), Just(Kind::Clear)],
            goes_on in any::<bool>(),
            delta in 1u32..,
            keyspace in any::<u8>(),
            deadline_ms in any::<Option<u64>>(),
            key in proptest::collection::vec(any::<u8>(), 0..40),
            value in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let new = match kind {
                Kind::Put => NewRecord::put(keyspace, &key, &value, deadline_ms),
                Kind::Delete => NewRecord::delete(keyspace, &key),
                Kind::Clear => NewRecord::clear(keyspace),
            };
            let bytes = encoded(&NewRecord { delta, goes_on, ..new });
            prop_assert_eq!(bytes.len() % RECORD_ALIGN_BYTES, 0);
            let record = verify(&bytes).unwrap();
            prop_assert_eq!((record.kind, record.delta, record.keyspace), (kind, delta, keyspace));
            prop_assert_eq!(record.goes_on, goes_on);
            prop_assert_eq!((record.deadline_ms, record.key, record.value), (new.deadline_ms, new.key, new.value));
            prop_assert_eq!(record.encoded_bytes(), bytes.len());
            prop_assert_eq!(&bytes[record.value_range()], new.value);
            let head = Head::of(bytes.first_chunk().unwrap());
            let deadline = head.deadline().map(|at| bytes[at].first_chunk().unwrap());
            prop_assert_eq!(head.record(deadline, &bytes[head.key()], &bytes[head.value()]), record);
        }

        #[test]
        fn every_flipped_bit_is_refused(
            deadline_ms in any::<Option<u64>>(),
            key in proptest::collection::vec(any::<u8>(), 0..12),
            value in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let bytes = encoded(&NewRecord { delta: 9, ..NewRecord::put(3, &key, &value, deadline_ms) });
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
