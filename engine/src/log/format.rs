//! The log's bytes: file header, batch header, frame header. `docs/formats.md` holds the same as tables.
//!
//! Invariants:
//! - All integers are little endian. Reserved bytes are written as zero and refused otherwise.
//! - A file is a header of [`FILE_HEADER_BYTES`], then batches, each starting on a multiple of [`SECTOR_BYTES`].
//! - A batch's checksum covers its header (after the checksum itself) and its payload, not the padding behind it.
//! - Log positions count frame bytes only: neither file headers, batch headers nor padding. So a frame's position is
//!   known when it is appended, before anybody knows which batch and which file it will be in.
//! - Every file has a random salt, repeated in each of its batches: bytes that a user stored in a value are never taken
//!   for a batch when damaged ground is searched.
//!
//! Nothing here touches files or trusts a length: callers compare lengths with what they have before they allocate.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the log format that is written, and the only one that is read.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes before a file's first batch.
pub const FILE_HEADER_BYTES: usize = 4096;
/// Batches start on multiples of this and are padded to it.
pub const SECTOR_BYTES: usize = 512;
/// Bytes of a batch's header.
pub const BATCH_HEADER_BYTES: usize = 64;
/// Bytes of a frame's header; its payload follows.
pub const FRAME_HEADER_BYTES: usize = 32;
/// Longest payload of one frame: the longest record (a value of 512 MiB) with room for headers.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 520 << 20;
/// Longest payload of one batch: a batch is either small frames together or one large frame alone.
pub const BATCH_PAYLOAD_BYTES_MAX: usize = FRAME_PAYLOAD_BYTES_MAX + FRAME_HEADER_BYTES;

const FILE_MAGIC: [u8; 8] = *b"LGLOGFIL";
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"LGBT");
/// The file header's checksum covers the bytes before it, and stays in this place in every version.
const FILE_CRC_AT: usize = 60;

const _: () = assert!(size_of::<RawFileHeader>() == FILE_CRC_AT + 4 && FILE_CRC_AT + 4 <= SECTOR_BYTES);
const _: () = assert!(size_of::<RawBatchHeader>() == BATCH_HEADER_BYTES);
const _: () = assert!(size_of::<RawFrameHeader>() == FRAME_HEADER_BYTES);
const _: () = assert!(FILE_HEADER_BYTES.is_multiple_of(SECTOR_BYTES) && BATCH_HEADER_BYTES < SECTOR_BYTES);
const _: () = assert!(BATCH_PAYLOAD_BYTES_MAX < u32::MAX as usize);

/// A byte position in the endless log of one instance, counted over all its files and boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition(pub u64);

impl std::fmt::Display for LogPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a frame means. The log carries the number and gives it back; its users give it a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameKind(pub u8);

/// What precedes every payload in the log. The log itself interprets none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: FrameKind,
    /// The slot that the payload belongs to.
    pub slot: u16,
    /// That slot's generation.
    pub generation: u64,
    /// The term of the payload's records.
    pub term: u64,
    /// The counter that the payload's records count from.
    pub base: u64,
}

/// The header of one log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// Hash of the log's name: a file that was renamed or moved is found out.
    pub name_hash: u32,
    /// The boot whose chain the file belongs to.
    pub boot: u64,
    /// The file's place in that chain, from 0.
    pub seq: u32,
    /// The position at which that chain begins.
    pub chain_start: u64,
    /// Repeated in each batch of this file.
    pub salt: u64,
}

/// Why bytes are not a file header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileHeaderFault {
    /// Too short, without the magic number, or the checksum does not match.
    Invalid,
    /// A whole header of a version that this program does not know.
    UnknownVersion(u32),
}

/// The header of one batch, without its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Salt of the file.
    pub salt: u64,
    /// Boot of the chain.
    pub boot: u64,
    /// Position of the first frame.
    pub position: u64,
    /// The synced position known when the batch was written: everything before it was on the disk.
    pub synced: u64,
    /// Bytes of all frames. Zero marks the seal that a closed log ends with.
    pub payload_bytes: u32,
    /// Number of frames.
    pub frames: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFileHeader {
    magic: [u8; 8],
    version: U32,
    name_hash: U32,
    boot: U64,
    seq: U32,
    reserved_a: U32,
    chain_start: U64,
    salt: U64,
    reserved_b: [u8; 12],
    crc: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBatchHeader {
    crc: U32,
    magic: U32,
    boot: U64,
    position: U64,
    synced: U64,
    salt: U64,
    payload_bytes: U32,
    frames: U32,
    reserved: [u8; 16],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFrameHeader {
    payload_bytes: U32,
    kind: u8,
    reserved: u8,
    slot: U16,
    generation: U64,
    term: U64,
    base: U64,
}

/// Hash of a log's name for [`FileHeader::name_hash`].
pub fn name_hash(name: &str) -> u32 {
    crc32c::crc32c(name.as_bytes())
}

/// Bytes that a batch takes in its file: header, payload, padding.
pub const fn batch_file_bytes(payload_bytes: usize) -> usize {
    (BATCH_HEADER_BYTES + payload_bytes).next_multiple_of(SECTOR_BYTES)
}

impl FileHeader {
    /// The header as the file's first [`FILE_HEADER_BYTES`].
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = RawFileHeader {
            magic: FILE_MAGIC,
            version: FORMAT_VERSION.into(),
            name_hash: self.name_hash.into(),
            boot: self.boot.into(),
            seq: self.seq.into(),
            reserved_a: 0.into(),
            chain_start: self.chain_start.into(),
            salt: self.salt.into(),
            reserved_b: [0; 12],
            crc: 0.into(),
        };
        raw.crc = crc32c::crc32c(&raw.as_bytes()[..FILE_CRC_AT]).into();
        let mut bytes = vec![0; FILE_HEADER_BYTES];
        bytes[..FILE_CRC_AT + 4].copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Reads a header from a file's first bytes.
    pub fn decode(bytes: &[u8]) -> Result<FileHeader, FileHeaderFault> {
        let Ok((raw, _)) = RawFileHeader::ref_from_prefix(bytes) else {
            return Err(FileHeaderFault::Invalid);
        };
        if raw.magic != FILE_MAGIC || raw.crc.get() != crc32c::crc32c(&bytes[..FILE_CRC_AT]) {
            return Err(FileHeaderFault::Invalid);
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(FileHeaderFault::UnknownVersion(raw.version.get()));
        }
        if raw.reserved_a.get() != 0 || raw.reserved_b != [0; 12] {
            return Err(FileHeaderFault::Invalid);
        }
        Ok(FileHeader {
            name_hash: raw.name_hash.get(),
            boot: raw.boot.get(),
            seq: raw.seq.get(),
            chain_start: raw.chain_start.get(),
            salt: raw.salt.get(),
        })
    }
}

impl BatchHeader {
    /// Completes a batch for writing: `bytes` holds room for the header and then `payload_bytes` of frames. The header
    /// and checksum are filled in, and the padding is added.
    pub fn seal(&self, bytes: &mut Vec<u8>) {
        assert_eq!(
            bytes.len(),
            BATCH_HEADER_BYTES + self.payload_bytes as usize,
            "a batch and its header disagree"
        );
        let mut raw = RawBatchHeader {
            crc: 0.into(),
            magic: BATCH_MAGIC.into(),
            boot: self.boot.into(),
            position: self.position.into(),
            synced: self.synced.into(),
            salt: self.salt.into(),
            payload_bytes: self.payload_bytes.into(),
            frames: self.frames.into(),
            reserved: [0; 16],
        };
        bytes[..BATCH_HEADER_BYTES].copy_from_slice(raw.as_bytes());
        raw.crc = crc32c::crc32c(&bytes[4..]).into();
        bytes[..4].copy_from_slice(raw.crc.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(SECTOR_BYTES), 0);
    }

    /// Reads a header, without judging the checksum: that needs the payload, see [`BatchHeader::verify`].
    pub fn decode(bytes: &[u8]) -> Option<BatchHeader> {
        let (raw, _) = RawBatchHeader::ref_from_prefix(bytes).ok()?;
        if raw.magic.get() != BATCH_MAGIC || raw.reserved != [0; 16] {
            return None;
        }
        Some(BatchHeader {
            salt: raw.salt.get(),
            boot: raw.boot.get(),
            position: raw.position.get(),
            synced: raw.synced.get(),
            payload_bytes: raw.payload_bytes.get(),
            frames: raw.frames.get(),
        })
    }

    /// True when the checksum of a batch's header and payload matches.
    pub fn verify(header_and_payload: &[u8]) -> bool {
        let Some((crc, rest)) = header_and_payload.split_first_chunk::<4>() else { return false };
        rest.len() >= BATCH_HEADER_BYTES - 4 && u32::from_le_bytes(*crc) == crc32c::crc32c(rest)
    }

    /// Position after the batch's last frame; `None` when it does not fit a position.
    pub fn end(&self) -> Option<u64> {
        self.position.checked_add(u64::from(self.payload_bytes))
    }
}

impl FrameHeader {
    /// The header's bytes for a payload of `payload_bytes`, which must be within [`FRAME_PAYLOAD_BYTES_MAX`].
    pub fn encode(&self, payload_bytes: usize) -> [u8; FRAME_HEADER_BYTES] {
        assert!(
            payload_bytes <= FRAME_PAYLOAD_BYTES_MAX,
            "a frame of {payload_bytes} bytes is over the format's limit"
        );
        zerocopy::transmute!(RawFrameHeader {
            payload_bytes: (payload_bytes as u32).into(),
            kind: self.kind.0,
            reserved: 0,
            slot: self.slot.into(),
            generation: self.generation.into(),
            term: self.term.into(),
            base: self.base.into(),
        })
    }
}

/// The frames of a batch whose checksum has been verified. A fault ends the iteration.
pub struct Frames<'a> {
    rest: &'a [u8],
}

/// A frame whose header does not fit its batch, although the batch's checksum matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameFault;

impl<'a> Frames<'a> {
    /// Iterates over a batch's payload.
    pub fn new(payload: &'a [u8]) -> Frames<'a> {
        Frames { rest: payload }
    }

    fn split(&self) -> Option<(FrameHeader, &'a [u8], &'a [u8])> {
        let (raw, rest) = RawFrameHeader::ref_from_prefix(self.rest).ok()?;
        let payload_bytes = raw.payload_bytes.get() as usize;
        if payload_bytes > FRAME_PAYLOAD_BYTES_MAX || raw.reserved != 0 {
            return None;
        }
        let (payload, rest) = rest.split_at_checked(payload_bytes)?;
        let header = FrameHeader {
            kind: FrameKind(raw.kind),
            slot: raw.slot.get(),
            generation: raw.generation.get(),
            term: raw.term.get(),
            base: raw.base.get(),
        };
        Some((header, payload, rest))
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<(FrameHeader, &'a [u8]), FrameFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match self.split() {
            Some((header, payload, rest)) => {
                self.rest = rest;
                Some(Ok((header, payload)))
            }
            None => {
                self.rest = &[];
                Some(Err(FrameFault))
            }
        }
    }
}
