//! A checkpoint's bytes: the manifest, and the header of a data file. `docs/formats.md` holds the same as tables.
//!
//! Invariants:
//! - All integers are little endian. Reserved bytes are written as zero and refused otherwise.
//! - Magic, version and checksum keep their places in all versions, so that an unknown version is told from damage.
//! - What is decoded is consistent: slots rise, every range lies in its file, the ranges fill their files without a gap,
//!   and every slot's state is one that a slot can have.
//! - Nothing is allocated for a count that was read: lists grow as their entries turn out to be there.
//!
//! Nothing here touches files.

use crate::log::{LogPosition, LogStart};
use crate::record::{RECORD_ALIGN_BYTES, RECORD_HEADER_BYTES};
pub use crate::slot::image::SlotImage;
use crate::types::{Generation, RangeHeader, Slot, Term, Version};

/// Version of the manifest and of the data files that is written, and the only one that is read.
pub const CHECKPOINT_VERSION: u32 = 1;
/// Largest manifest that is read or written.
pub const MANIFEST_BYTES_MAX: usize = 512 << 20;
/// Bytes of a data file before its first range.
pub const DATA_HEADER_BYTES: usize = 64;

const MANIFEST_MAGIC: [u8; 8] = *b"LGCHKMAN";
const DATA_MAGIC: [u8; 8] = *b"LGCHKDAT";
const CRC_BYTES: usize = 4;
const MANIFEST_HEADER_BYTES: usize = 80;
const TRUNCATED: u32 = 1;

/// Whose data a checkpoint has: in its manifest, and again in each of its data files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointId {
    /// The directory's.
    pub directory_id: [u8; 16],
    /// Counts the directory's checkpoints.
    pub number: u64,
    /// Random: a file of another checkpoint with the same number is found out.
    pub salt: u64,
}

/// From where on a core's log is to be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFrom {
    /// Whose log.
    pub core: u32,
    /// From where.
    pub start: LogStart,
}

/// A data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// The core that wrote it; part of its name.
    pub core: u32,
    /// Its length.
    pub bytes: u64,
}

/// Some records of a slot that share a header, as the data file has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeBytes {
    /// What the records count from.
    pub header: RangeHeader,
    /// How long they are together.
    pub bytes: u64,
}

/// A slot in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotEntry {
    /// Its state.
    pub image: SlotImage,
    /// Which of the manifest's files has its records.
    pub file: u16,
    /// Where they begin there.
    pub offset: u64,
    /// Its records, in the order of their versions, next to each other in the file.
    pub ranges: Vec<RangeBytes>,
}

impl SlotEntry {
    /// How long all its records are.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.bytes).sum()
    }
}

/// What a checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose it is.
    pub id: CheckpointId,
    /// The boot that took it.
    pub boot: u64,
    /// How many cores, so home logs, that boot had.
    pub cores: u32,
    /// When it was taken: milliseconds since 1970.
    pub taken_at_ms: u64,
    /// Every log that the directory had, by rising core.
    pub logs: Vec<LogFrom>,
    /// Its data files.
    pub files: Vec<DataFile>,
    /// Every slot that had anything, by rising number.
    pub slots: Vec<SlotEntry>,
}

/// Why bytes are not a manifest, or not the header of a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormatFault {
    /// They are damaged.
    Invalid {
        /// Where in the bytes.
        offset: usize,
        /// What is wrong there.
        why: String,
    },
    /// They are whole, and of a version that this program does not know.
    UnknownVersion(u32),
}

fn invalid(offset: usize, why: impl Into<String>) -> FormatFault {
    FormatFault::Invalid { offset, why: why.into() }
}

impl Manifest {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MANIFEST_HEADER_BYTES + self.slots.len() * 192);
        let u32s = |out: &mut Vec<u8>, values: &[u32]| {
            values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
        };
        let u64s = |out: &mut Vec<u8>, values: &[u64]| {
            values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
        };
        out.extend_from_slice(&MANIFEST_MAGIC);
        u32s(&mut out, &[CHECKPOINT_VERSION, self.cores]);
        out.extend_from_slice(&self.id.directory_id);
        u64s(&mut out, &[self.id.number, self.boot, self.id.salt, self.taken_at_ms]);
        u32s(&mut out, &[self.logs.len() as u32, self.files.len() as u32, self.slots.len() as u32, 0]);
        for LogFrom { core, start } in &self.logs {
            u32s(&mut out, &[*core, start.seq]);
            u64s(&mut out, &[start.boot, start.file_position, start.position]);
        }
        for DataFile { core, bytes } in &self.files {
            u32s(&mut out, &[*core, 0]);
            u64s(&mut out, &[*bytes]);
        }
        for SlotEntry { image, file, offset, ranges } in &self.slots {
            out.extend_from_slice(&image.slot.number().to_le_bytes());
            out.extend_from_slice(&file.to_le_bytes());
            let flags = if image.truncated_term.is_some() { TRUNCATED } else { 0 };
            u32s(&mut out, &[flags, image.history.len() as u32, ranges.len() as u32]);
            u64s(&mut out, &[*offset, image.generation.0, image.ended.0, image.term.0, image.base]);
            for version in [image.version, image.floor, image.undo_floor] {
                u64s(&mut out, &[version.term.0, version.counter]);
            }
            let truncated_term = image.truncated_term.unwrap_or_default();
            u64s(&mut out, &[truncated_term.0, image.position.0, image.keys, image.digest]);
            image.history.iter().for_each(|(term, first)| u64s(&mut out, &[term.0, *first]));
            for RangeBytes { header, bytes } in ranges {
                u64s(&mut out, &[header.term.0, header.base, *bytes]);
            }
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a manifest. Needs memory in proportion to the bytes, whatever they are.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, FormatFault> {
        let Some((content, crc)) = bytes.split_last_chunk::<CRC_BYTES>() else {
            return Err(invalid(0, "it is too short"));
        };
        if content.len() < MANIFEST_HEADER_BYTES || !content.starts_with(&MANIFEST_MAGIC) {
            return Err(invalid(0, "it does not begin as a manifest does"));
        }
        if u32::from_le_bytes(*crc) != crc32c::crc32c(content) {
            return Err(invalid(content.len(), "its checksum does not match"));
        }
        let mut rest = Rest { bytes: content, at: MANIFEST_MAGIC.len() };
        let version = rest.u32()?;
        if version != CHECKPOINT_VERSION {
            return Err(FormatFault::UnknownVersion(version));
        }
        let cores = rest.u32()?;
        let (directory_id, number, boot) = (rest.array()?, rest.u64()?, rest.u64()?);
        let (salt, taken_at_ms) = (rest.u64()?, rest.u64()?);
        let (logs, files, slots) = (rest.u32()?, rest.u32()?, rest.u32()?);
        rest.reserved()?;
        if cores == 0 {
            return Err(invalid(12, "it was taken by no core"));
        }
        let id = CheckpointId { directory_id, number, salt };
        let logs = rest.list(logs, Rest::log)?;
        let files = rest.list(files, Rest::file)?;
        let slots = rest.list(slots, Rest::slot)?;
        if rest.at != content.len() {
            return Err(invalid(rest.at, "it is too long"));
        }
        let manifest = Manifest { id, boot, cores, taken_at_ms, logs, files, slots };
        manifest.check().map_err(|why| invalid(MANIFEST_HEADER_BYTES, why))?;
        Ok(manifest)
    }

    /// Whether its parts fit each other.
    fn check(&self) -> Result<(), String> {
        if !self.logs.is_sorted_by(|a, b| a.core < b.core) || !self.files.is_sorted_by(|a, b| a.core < b.core)
        {
            return Err("its logs or its files are out of order".into());
        }
        if !self.slots.is_sorted_by(|a, b| a.image.slot < b.image.slot) {
            return Err("its slots are out of order".into());
        }
        let mut filled = vec![DATA_HEADER_BYTES as u64; self.files.len()];
        for entry in &self.slots {
            let slot = entry.image.slot;
            if let Some(why) = entry.image.fault() {
                return Err(format!("slot {slot}: {why}"));
            }
            let Some(end) = filled.get_mut(usize::from(entry.file)) else {
                return Err(format!("slot {slot} is in a file that is none of its"));
            };
            let bytes = entry.ranges.iter().try_fold(0, |sum: u64, range| sum.checked_add(range.bytes));
            let behind = bytes.and_then(|bytes| entry.offset.checked_add(bytes));
            let behind = behind.filter(|_| entry.offset == *end);
            *end = behind.ok_or_else(|| format!("slot {slot} does not follow the one before it"))?;
            if entry.ranges.is_empty() != (entry.image.version == Version::ZERO) {
                return Err(format!("slot {slot} has a version without records, or records without one"));
            }
            let last_term = entry.ranges.last().map_or(Term(0), |range| range.header.term);
            if !entry.ranges.is_sorted_by_key(|range| range.header.term)
                || last_term != entry.image.version.term
                || entry.ranges.iter().any(|range| range.header.base > entry.image.version.counter)
            {
                return Err(format!("slot {slot} has ranges that do not lead to its version"));
            }
            if entry.image.keys > entry.bytes() / RECORD_HEADER_BYTES as u64 {
                return Err(format!("slot {slot} has more keys than its records can hold"));
            }
        }
        if filled.iter().zip(&self.files).any(|(end, file)| *end != file.bytes) {
            return Err("its slots do not fill its files".into());
        }
        Ok(())
    }
}

/// The first bytes of a data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// The checkpoint that it belongs to.
    pub id: CheckpointId,
    /// The core that wrote it.
    pub core: u32,
}

impl DataHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; DATA_HEADER_BYTES] {
        let mut out = [0; DATA_HEADER_BYTES];
        out[..8].copy_from_slice(&DATA_MAGIC);
        out[8..12].copy_from_slice(&CHECKPOINT_VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.core.to_le_bytes());
        out[16..32].copy_from_slice(&self.id.directory_id);
        out[32..40].copy_from_slice(&self.id.number.to_le_bytes());
        out[40..48].copy_from_slice(&self.id.salt.to_le_bytes());
        let crc = crc32c::crc32c(&out[..DATA_HEADER_BYTES - CRC_BYTES]);
        out[DATA_HEADER_BYTES - CRC_BYTES..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header from a file's first bytes.
    pub fn decode(bytes: &[u8]) -> Result<DataHeader, FormatFault> {
        let Some((content, crc)) =
            bytes.get(..DATA_HEADER_BYTES).and_then(<[u8]>::split_last_chunk::<CRC_BYTES>)
        else {
            return Err(invalid(0, "the file is too short for its header"));
        };
        if !content.starts_with(&DATA_MAGIC) || u32::from_le_bytes(*crc) != crc32c::crc32c(content) {
            return Err(invalid(0, "this is not the header of a data file, or its checksum does not match"));
        }
        let mut rest = Rest { bytes: content, at: DATA_MAGIC.len() };
        let version = rest.u32()?;
        if version != CHECKPOINT_VERSION {
            return Err(FormatFault::UnknownVersion(version));
        }
        let core = rest.u32()?;
        let (directory_id, number, salt) = (rest.array()?, rest.u64()?, rest.u64()?);
        if content[rest.at..].iter().any(|byte| *byte != 0) {
            return Err(invalid(rest.at, "reserved bytes are in use"));
        }
        Ok(DataHeader { id: CheckpointId { directory_id, number, salt }, core })
    }
}

/// What is being decoded.
struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Rest<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatFault> {
        let Some(taken) = self.bytes[self.at..].first_chunk::<N>() else {
            return Err(invalid(self.at, "it is too short"));
        };
        self.at += N;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, FormatFault> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, FormatFault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FormatFault> {
        self.array().map(u64::from_le_bytes)
    }

    fn version(&mut self) -> Result<Version, FormatFault> {
        Ok(Version::new(Term(self.u64()?), self.u64()?))
    }

    fn reserved(&mut self) -> Result<(), FormatFault> {
        if self.u32()? == 0 { Ok(()) } else { Err(invalid(self.at, "reserved bytes are in use")) }
    }

    fn list<T>(
        &mut self,
        count: u32,
        entry: impl Fn(&mut Self) -> Result<T, FormatFault>,
    ) -> Result<Vec<T>, FormatFault> {
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(entry(self)?);
        }
        Ok(list)
    }

    fn log(&mut self) -> Result<LogFrom, FormatFault> {
        let (core, seq) = (self.u32()?, self.u32()?);
        let (boot, file_position, position) = (self.u64()?, self.u64()?, self.u64()?);
        if file_position > position {
            return Err(invalid(self.at, "a log begins behind the place where it is read from"));
        }
        Ok(LogFrom { core, start: LogStart { boot, seq, file_position, position } })
    }

    fn file(&mut self) -> Result<DataFile, FormatFault> {
        let core = self.u32()?;
        self.reserved()?;
        Ok(DataFile { core, bytes: self.u64()? })
    }

    fn range(&mut self) -> Result<RangeBytes, FormatFault> {
        let header = RangeHeader { term: Term(self.u64()?), base: self.u64()? };
        let bytes = self.u64()?;
        if bytes == 0 || !bytes.is_multiple_of(RECORD_ALIGN_BYTES as u64) {
            return Err(invalid(self.at, "a range is not of whole records"));
        }
        Ok(RangeBytes { header, bytes })
    }

    fn slot(&mut self) -> Result<SlotEntry, FormatFault> {
        let (at, number, file) = (self.at, self.u16()?, self.u16()?);
        let slot = Slot::new(number).ok_or_else(|| invalid(at, format!("there is no slot {number}")))?;
        let (flags, terms, ranges) = (self.u32()?, self.u32()?, self.u32()?);
        let offset = self.u64()?;
        let (generation, ended) = (Generation(self.u64()?), Generation(self.u64()?));
        let (term, base) = (Term(self.u64()?), self.u64()?);
        let (version, floor, undo_floor) = (self.version()?, self.version()?, self.version()?);
        let truncated = Term(self.u64()?);
        if flags & !TRUNCATED != 0 || (flags & TRUNCATED == 0 && truncated != Term(0)) {
            return Err(invalid(at, format!("slot {slot}: flags that are not in use")));
        }
        let truncated_term = (flags & TRUNCATED != 0).then_some(truncated);
        let (position, keys, digest) = (LogPosition(self.u64()?), self.u64()?, self.u64()?);
        let history = self.list(terms, |rest| Ok((Term(rest.u64()?), rest.u64()?)))?;
        let ranges = self.list(ranges, Rest::range)?;
        let image = SlotImage {
            slot,
            generation,
            ended,
            term,
            base,
            version,
            floor,
            undo_floor,
            truncated_term,
            history,
            position,
            keys,
            digest,
        };
        Ok(SlotEntry { image, file, offset, ranges })
    }
}
