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

use std::iter;

use crate::log::{LogPosition, LogStart};
use crate::record::{RECORD_ALIGN_BYTES, RECORD_HEADER_BYTES};
pub use crate::slot::image::SlotImage;
use crate::types::{Floors, Generation, RangeHeader, Slot, Term, Version};

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
const LOG_BYTES: usize = 32;
const FILE_BYTES: usize = 16;
/// What is encoded of a manifest at once, at least but for the last of it...
const PIECE_BYTES: usize = 64 << 10;
/// ... with room for the slot that goes beyond: few take so much.
const PIECE_ROOM_BYTES: usize = PIECE_BYTES + 1024;
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

/// What a checkpoint consists of, but for its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
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
}

/// What a checkpoint consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// All but its slots.
    pub head: ManifestHead,
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

/// Slots as a manifest has them, by rising number. Decoded, a list of all slots would be thousands of small allocations.
#[derive(Default)]
pub(crate) struct EncodedSlots {
    bytes: Vec<u8>,
    /// Every slot, with where its bytes end.
    ends: Vec<(Slot, usize)>,
}

impl EncodedSlots {
    pub(crate) fn push(&mut self, entry: &SlotEntry) {
        debug_assert!(self.ends.last().is_none_or(|(last, _)| *last < entry.image.slot));
        let (SlotEntry { image, file, offset, ranges }, out) = (entry, &mut self.bytes);
        put(out, &[image.slot.number(), *file], |value| value.to_le_bytes());
        let flags = if image.truncated_term.is_some() { TRUNCATED } else { 0 };
        put_u32s(out, &[flags, image.history.len() as u32, ranges.len() as u32]);
        put_u64s(out, &[*offset, image.generation.0, image.ended.0, image.term.0, image.base]);
        for version in [image.version, image.floors.floor, image.floors.undo_floor] {
            put_u64s(out, &[version.term.0, version.counter]);
        }
        let truncated_term = image.truncated_term.unwrap_or_default();
        put_u64s(out, &[truncated_term.0, image.position.0, image.keys, image.digest]);
        image.history.iter().for_each(|(term, first)| put_u64s(out, &[term.0, *first]));
        for RangeBytes { header, bytes } in ranges {
            put_u64s(out, &[header.term.0, header.base, *bytes]);
        }
        self.ends.push((image.slot, self.bytes.len()));
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    fn iter(&self) -> impl Iterator<Item = (Slot, &[u8])> {
        let starts = iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        starts.zip(&self.ends).map(|(start, (slot, end))| (*slot, &self.bytes[start..*end]))
    }
}

fn put<T: Copy, const N: usize>(out: &mut Vec<u8>, values: &[T], bytes: impl Fn(T) -> [u8; N]) {
    values.iter().for_each(|value| out.extend_from_slice(&bytes(*value)));
}

fn put_u32s(out: &mut Vec<u8>, values: &[u32]) {
    put(out, values, u32::to_le_bytes);
}

fn put_u64s(out: &mut Vec<u8>, values: &[u64]) {
    put(out, values, u64::to_le_bytes);
}

impl ManifestHead {
    fn encode(&self, slots: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(PIECE_ROOM_BYTES);
        out.extend_from_slice(&MANIFEST_MAGIC);
        put_u32s(&mut out, &[CHECKPOINT_VERSION, self.cores]);
        out.extend_from_slice(&self.id.directory_id);
        put_u64s(&mut out, &[self.id.number, self.boot, self.id.salt, self.taken_at_ms]);
        put_u32s(&mut out, &[self.logs.len() as u32, self.files.len() as u32, slots as u32, 0]);
        for LogFrom { core, start } in &self.logs {
            put_u32s(&mut out, &[*core, start.seq]);
            put_u64s(&mut out, &[start.boot, start.file_position, start.position]);
        }
        for DataFile { core, bytes } in &self.files {
            put_u32s(&mut out, &[*core, 0]);
            put_u64s(&mut out, &[*bytes]);
        }
        out
    }

    /// How long the manifest is with all these slots.
    pub(crate) fn bytes_with(&self, lists: &[EncodedSlots]) -> usize {
        let slots: usize = lists.iter().map(|list| list.bytes.len()).sum();
        let (logs, files) = (self.logs.len() * LOG_BYTES, self.files.len() * FILE_BYTES);
        MANIFEST_HEADER_BYTES + logs + files + slots + CRC_BYTES
    }

    /// The bytes of the manifest's file with all these slots, piece by piece.
    pub(crate) fn pieces_with(&self, lists: &[EncodedSlots]) -> impl Iterator<Item = Vec<u8>> {
        let mut next = Some(self.encode(lists.iter().map(EncodedSlots::len).sum()));
        let mut slots = merged(lists);
        let mut crc = 0;
        iter::from_fn(move || {
            let mut piece = next.take()?;
            while piece.len() < PIECE_BYTES
                && let Some(slot) = slots.next()
            {
                piece.extend_from_slice(slot);
            }
            crc = crc32c::crc32c_append(crc, &piece);
            if piece.len() < PIECE_BYTES {
                piece.extend_from_slice(&crc.to_le_bytes());
            } else {
                next = Some(Vec::with_capacity(PIECE_ROOM_BYTES));
            }
            Some(piece)
        })
    }
}

/// The slots of all lists by rising number.
fn merged(lists: &[EncodedSlots]) -> impl Iterator<Item = &[u8]> {
    let mut lists: Vec<_> = lists.iter().map(|list| list.iter().peekable()).collect();
    iter::from_fn(move || {
        let with_slots = lists.iter_mut().filter_map(|list| Some((list.peek()?.0, list)));
        let (_, first) = with_slots.min_by_key(|(slot, _)| *slot)?;
        first.next().map(|(_, bytes)| bytes)
    })
}

impl Manifest {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut slots = EncodedSlots::default();
        self.slots.iter().for_each(|entry| slots.push(entry));
        self.head.pieces_with(&[slots]).collect::<Vec<_>>().concat()
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
        let head = ManifestHead { id, boot, cores, taken_at_ms, logs, files };
        let manifest = Manifest { head, slots };
        manifest.check().map_err(|why| invalid(MANIFEST_HEADER_BYTES, why))?;
        Ok(manifest)
    }

    /// Whether its parts fit each other.
    fn check(&self) -> Result<(), String> {
        if !self.head.logs.is_sorted_by(|a, b| a.core < b.core)
            || !self.head.files.is_sorted_by(|a, b| a.core < b.core)
        {
            return Err("its logs or its files are out of order".into());
        }
        if !self.slots.is_sorted_by(|a, b| a.image.slot < b.image.slot) {
            return Err("its slots are out of order".into());
        }
        let mut filled = vec![DATA_HEADER_BYTES as u64; self.head.files.len()];
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
        if filled.iter().zip(&self.head.files).any(|(end, file)| *end != file.bytes) {
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
            floors: Floors { floor, undo_floor },
            truncated_term,
            history,
            position,
            keys,
            digest,
        };
        Ok(SlotEntry { image, file, offset, ranges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(slot: Slot, files: usize) -> SlotEntry {
        let image = SlotImage {
            slot,
            generation: Generation(1),
            ended: Generation(0),
            term: Term(3),
            base: 0,
            version: Version::new(Term(3), 7),
            floors: Floors::default(),
            truncated_term: None,
            history: (1..=slot.index() as u64 % 4).map(|term| (Term(term), term)).collect(),
            position: LogPosition(9),
            keys: 1,
            digest: 5,
        };
        let range = RangeBytes { header: RangeHeader { term: Term(3), base: 0 }, bytes: 64 };
        let offset = (DATA_HEADER_BYTES + slot.index() / files * 64) as u64;
        SlotEntry { image, file: (slot.index() % files) as u16, offset, ranges: vec![range] }
    }

    fn head(files: usize, slots: usize) -> ManifestHead {
        let id = CheckpointId { directory_id: [1; 16], number: 2, salt: 3 };
        let start = LogStart { boot: 1, seq: 2, file_position: 3, position: 4 };
        let bytes = |file: usize| (DATA_HEADER_BYTES + (slots + files - 1 - file) / files * 64) as u64;
        ManifestHead {
            id,
            boot: 1,
            cores: files as u32,
            taken_at_ms: 4,
            logs: (0..files).map(|core| LogFrom { core: core as u32, start }).collect(),
            files: (0..files).map(|core| DataFile { core: core as u32, bytes: bytes(core) }).collect(),
        }
    }

    /// All of the manifest with these slots. Its length and its checksum are right.
    fn joined(head: &ManifestHead, lists: &[EncodedSlots]) -> Vec<u8> {
        let bytes = head.pieces_with(lists).collect::<Vec<_>>().concat();
        let (content, crc) = bytes.split_last_chunk().unwrap();
        assert_eq!(u32::from_le_bytes(*crc), crc32c::crc32c(content));
        assert_eq!(bytes.len(), head.bytes_with(lists));
        bytes
    }

    #[test]
    fn slots_of_several_cores_are_those_of_one_list() {
        for (files, slots) in [(1, 0), (1, 1), (3, 2), (3, 5_000), (5, 16_384)] {
            let slots: Vec<SlotEntry> = Slot::all().take(slots).map(|slot| entry(slot, files)).collect();
            let mut lists: Vec<EncodedSlots> = (0..files).map(|_| EncodedSlots::default()).collect();
            slots.iter().for_each(|entry| lists[usize::from(entry.file)].push(entry));
            let head = head(files, slots.len());
            assert!(head.pieces_with(&lists).all(|piece| piece.capacity() == PIECE_ROOM_BYTES));
            let bytes = joined(&head, &lists);
            let manifest = Manifest { head, slots };
            assert!(bytes == manifest.encode(), "{files} files");
            assert!(Manifest::decode(&bytes) == Ok(manifest));
        }
    }

    #[test]
    fn a_slot_that_fills_a_piece_leaves_the_checksum_to_the_next() {
        let (head, mut lists) = (head(1, 0), [EncodedSlots::default()]);
        let mut ends_alone = false;
        for slot in Slot::all().take(1_000) {
            lists[0].push(&entry(slot, 1));
            joined(&head, &lists);
            ends_alone |= head.pieces_with(&lists).last().is_some_and(|piece| piece.len() == CRC_BYTES);
        }
        assert!(ends_alone);
    }
}
