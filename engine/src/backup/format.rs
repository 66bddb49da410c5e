//! The bytes of a backup file: its header, and the header and payload of each chunk. `docs/formats.md` has the same as tables.
//!
//! Invariants:
//! - All integers are little endian. Reserved bytes are written as zero and refused otherwise.
//! - A checksum covers all of a chunk, and with it the place of the chunk in the file: chunks can be neither changed, left
//!   out, repeated nor moved without being found out.
//! - Magic, version and checksum of the file header keep their places in all versions.
//!
//! Nothing here touches a file or trusts a length: whoever allocates compares it with what is there first.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::log::format::FRAME_PAYLOAD_BYTES_MAX;
use crate::types::{Generation, RangeHeader, SLOTS, Slot, Term, Version};

/// Version of the backup format that is written, and the only one that is read.
pub const BACKUP_VERSION: u32 = 1;
/// Bytes before the first chunk.
pub const FILE_HEADER_BYTES: usize = 64;
/// Bytes of a chunk before its payload.
pub const CHUNK_HEADER_BYTES: usize = 40;

const MAGIC: [u8; 8] = *b"LGBACKUP";
const CRC_AT: usize = 60;

const KIND_SLOT: u8 = 1;
const KIND_RANGE: u8 = 2;
const KIND_WHOLE: u8 = 3;
const KIND_LEFT: u8 = 4;
const KIND_FOOTER: u8 = 5;

const _: () = assert!(size_of::<RawFileHeader>() == FILE_HEADER_BYTES && CRC_AT + 4 == FILE_HEADER_BYTES);
const _: () = assert!(size_of::<RawChunkHeader>() == CHUNK_HEADER_BYTES);

/// What a backup was made of, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupHeader {
    /// The directory that it was made of.
    pub directory_id: [u8; 16],
    /// The boot of that directory.
    pub boot: u64,
    /// When it was begun: milliseconds since 1970.
    pub began_ms: u64,
}

/// What a slot was when its turn came: what its section brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotSection {
    /// Which slot.
    pub slot: Slot,
    /// The generation of its data.
    pub generation: Generation,
    /// The highest term that it was owned under.
    pub term: Term,
    /// Its last write: the section has all up to this one, and nothing behind it.
    pub version: Version,
    /// Its live keys, over all keyspaces.
    pub keys: u64,
    /// Bytes of their records.
    pub live_bytes: u64,
    /// The sum over them.
    pub digest: u64,
}

/// What all of a backup came to. It is the last chunk: a file without it is not whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupFooter {
    /// Slots with a whole section. Slots that never held anything have none.
    pub slots: u64,
    /// Slots that left while their section was written: it does not count.
    pub slots_left: u64,
    /// Live keys of all whole sections.
    pub keys: u64,
    /// Bytes of all ranges.
    pub record_bytes: u64,
    /// When it was done: milliseconds since 1970.
    pub ended_ms: u64,
}

/// What a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkKind {
    /// A slot's section begins.
    Slot,
    /// Records of the slot.
    Range,
    /// The slot's section is whole.
    Whole,
    /// The slot left while its section was written.
    Left,
    /// The end.
    Footer,
}

/// A chunk's header, without its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// What it is.
    pub kind: ChunkKind,
    /// Whose; 0 in the footer.
    pub slot: u16,
    /// Bytes that follow.
    pub payload_bytes: usize,
    /// Where in the file the chunk begins.
    pub offset: u64,
    /// Of a range: of its records. Of a slot's begin: of its last version.
    pub term: u64,
    /// Of a range: what its records count from. Of a slot's begin: counter of its last version.
    pub base: u64,
}

/// Why bytes are not a backup file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupFault {
    /// A whole header of a version that this program does not know.
    UnknownVersion(u32),
    /// What is wrong with the bytes from an offset of the file on.
    Invalid {
        /// The offset.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
}

impl BackupFault {
    pub(super) fn at(offset: u64, why: impl Into<String>) -> BackupFault {
        BackupFault::Invalid { offset, why: why.into() }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFileHeader {
    magic: [u8; 8],
    version: U32,
    reserved_a: U32,
    directory_id: [u8; 16],
    boot: U64,
    began_ms: U64,
    reserved_b: [u8; 12],
    crc: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawChunkHeader {
    crc: U32,
    payload_bytes: U32,
    kind: u8,
    reserved_a: u8,
    slot: U16,
    reserved_b: U32,
    offset: U64,
    term: U64,
    base: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSlot {
    generation: U64,
    term: U64,
    keys: U64,
    live_bytes: U64,
    digest: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFooter {
    slots: U64,
    slots_left: U64,
    keys: U64,
    record_bytes: U64,
    ended_ms: U64,
}

impl BackupHeader {
    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = RawFileHeader {
            magic: MAGIC,
            version: BACKUP_VERSION.into(),
            reserved_a: 0.into(),
            directory_id: self.directory_id,
            boot: self.boot.into(),
            began_ms: self.began_ms.into(),
            reserved_b: [0; 12],
            crc: 0.into(),
        };
        raw.crc = crc32c::crc32c(&raw.as_bytes()[..CRC_AT]).into();
        raw.as_bytes().to_vec()
    }

    /// Reads a header from a file's first bytes.
    pub fn decode(bytes: &[u8]) -> Result<BackupHeader, BackupFault> {
        let invalid = |why: &str| Err(BackupFault::at(0, why));
        let Ok((raw, _)) = RawFileHeader::ref_from_prefix(bytes) else {
            return invalid("the file is too short for a backup");
        };
        if raw.magic != MAGIC {
            return invalid("this is not a backup file");
        }
        if raw.crc.get() != crc32c::crc32c(&bytes[..CRC_AT]) {
            return invalid("the checksum of the file header does not match");
        }
        if raw.version.get() != BACKUP_VERSION {
            return Err(BackupFault::UnknownVersion(raw.version.get()));
        }
        if raw.reserved_a.get() != 0 || raw.reserved_b != [0; 12] {
            return invalid("reserved bytes of the file header are in use");
        }
        let RawFileHeader { directory_id, boot, began_ms, .. } = raw;
        Ok(BackupHeader { directory_id: *directory_id, boot: boot.get(), began_ms: began_ms.get() })
    }
}

impl ChunkHeader {
    /// The header of a range.
    pub(super) fn range(slot: Slot, range: RangeHeader, payload_bytes: usize, offset: u64) -> ChunkHeader {
        let (term, base, slot) = (range.term.0, range.base, slot.number());
        ChunkHeader { kind: ChunkKind::Range, slot, payload_bytes, offset, term, base }
    }

    /// The header of a chunk that says something of a slot at a version.
    pub(super) fn of_slot(
        kind: ChunkKind,
        slot: Slot,
        version: Version,
        payload_bytes: usize,
        offset: u64,
    ) -> ChunkHeader {
        let (term, base) = (version.term.0, version.counter);
        ChunkHeader { kind, slot: slot.number(), payload_bytes, offset, term, base }
    }

    /// The header of the footer.
    pub(super) fn footer(payload_bytes: usize, offset: u64) -> ChunkHeader {
        ChunkHeader { kind: ChunkKind::Footer, slot: 0, payload_bytes, offset, term: 0, base: 0 }
    }

    /// The header's bytes, with the checksum over it and the payload.
    pub fn encode(&self, payload: &[u8]) -> [u8; CHUNK_HEADER_BYTES] {
        assert!(payload.len() == self.payload_bytes && payload.len() <= FRAME_PAYLOAD_BYTES_MAX);
        let mut raw = RawChunkHeader {
            crc: 0.into(),
            payload_bytes: (self.payload_bytes as u32).into(),
            kind: match self.kind {
                ChunkKind::Slot => KIND_SLOT,
                ChunkKind::Range => KIND_RANGE,
                ChunkKind::Whole => KIND_WHOLE,
                ChunkKind::Left => KIND_LEFT,
                ChunkKind::Footer => KIND_FOOTER,
            },
            reserved_a: 0,
            slot: self.slot.into(),
            reserved_b: 0.into(),
            offset: self.offset.into(),
            term: self.term.into(),
            base: self.base.into(),
        };
        raw.crc = crc32c::crc32c_append(crc32c::crc32c(&raw.as_bytes()[4..]), payload).into();
        zerocopy::transmute!(raw)
    }

    /// Reads the header of the chunk at `offset`. What it says is not verified before [`ChunkHeader::verify`], but its
    /// payload is at most what a chunk of its kind may have.
    pub fn decode(bytes: &[u8], offset: u64) -> Result<ChunkHeader, BackupFault> {
        let Ok((raw, _)) = RawChunkHeader::ref_from_prefix(bytes) else {
            return Err(BackupFault::at(offset, "the file ends early: it is not whole"));
        };
        let payload_bytes = raw.payload_bytes.get() as usize;
        let (kind, is_allowed) = match raw.kind {
            KIND_SLOT => (ChunkKind::Slot, payload_bytes == size_of::<RawSlot>()),
            KIND_RANGE => (ChunkKind::Range, (1..=FRAME_PAYLOAD_BYTES_MAX).contains(&payload_bytes)),
            KIND_WHOLE => (ChunkKind::Whole, payload_bytes == 0),
            KIND_LEFT => (ChunkKind::Left, payload_bytes == 0),
            KIND_FOOTER => (ChunkKind::Footer, payload_bytes == size_of::<RawFooter>()),
            other => return Err(BackupFault::at(offset, format!("there is no chunk of kind {other}"))),
        };
        let is_whole = raw.offset.get() == offset && raw.reserved_a == 0 && raw.reserved_b.get() == 0;
        if !is_allowed || !is_whole {
            return Err(BackupFault::at(offset, "the header of the chunk is not valid here"));
        }
        let (slot, term, base) = (raw.slot.get(), raw.term.get(), raw.base.get());
        Ok(ChunkHeader { kind, slot, payload_bytes, offset, term, base })
    }

    /// Checks the checksum of a chunk of which these are the bytes.
    pub fn verify(&self, header: &[u8; CHUNK_HEADER_BYTES], payload: &[u8]) -> Result<(), BackupFault> {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[4..]), payload);
        if header[..4] == crc.to_le_bytes() {
            Ok(())
        } else {
            Err(BackupFault::at(self.offset, "the checksum of the chunk does not match"))
        }
    }

    pub(super) fn version(&self) -> Version {
        Version::new(Term(self.term), self.base)
    }

    pub(super) fn known_slot(&self) -> Result<Slot, BackupFault> {
        Slot::new(self.slot).ok_or_else(|| {
            BackupFault::at(self.offset, format!("there is no slot {}; there are {SLOTS}", self.slot))
        })
    }
}

impl SlotSection {
    /// The payload; slot and version are in the chunk's header.
    pub(super) fn encode(&self) -> Vec<u8> {
        let raw = RawSlot {
            generation: self.generation.0.into(),
            term: self.term.0.into(),
            keys: self.keys.into(),
            live_bytes: self.live_bytes.into(),
            digest: self.digest.into(),
        };
        raw.as_bytes().to_vec()
    }

    /// Reads the payload of a chunk whose length was checked.
    pub(super) fn decode(header: &ChunkHeader, payload: &[u8]) -> Result<SlotSection, BackupFault> {
        let Ok(raw) = RawSlot::ref_from_bytes(payload) else {
            return Err(BackupFault::at(header.offset, "what is said of the slot has another length"));
        };
        Ok(SlotSection {
            slot: header.known_slot()?,
            generation: Generation(raw.generation.get()),
            term: Term(raw.term.get()),
            version: header.version(),
            keys: raw.keys.get(),
            live_bytes: raw.live_bytes.get(),
            digest: raw.digest.get(),
        })
    }
}

impl BackupFooter {
    pub(super) fn encode(&self) -> Vec<u8> {
        let raw = RawFooter {
            slots: self.slots.into(),
            slots_left: self.slots_left.into(),
            keys: self.keys.into(),
            record_bytes: self.record_bytes.into(),
            ended_ms: self.ended_ms.into(),
        };
        raw.as_bytes().to_vec()
    }

    pub(super) fn decode(header: &ChunkHeader, payload: &[u8]) -> Result<BackupFooter, BackupFault> {
        let Ok(raw) = RawFooter::ref_from_bytes(payload) else {
            return Err(BackupFault::at(header.offset, "the footer has another length"));
        };
        if header.slot != 0 || header.term != 0 || header.base != 0 {
            return Err(BackupFault::at(header.offset, "the footer speaks of a slot"));
        }
        Ok(BackupFooter {
            slots: raw.slots.get(),
            slots_left: raw.slots_left.get(),
            keys: raw.keys.get(),
            record_bytes: raw.record_bytes.get(),
            ended_ms: raw.ended_ms.get(),
        })
    }
}
