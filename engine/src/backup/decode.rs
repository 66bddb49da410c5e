//! Decoding a backup, chunk by chunk: what a chunk may follow, and whether a slot's records are what its section says.
//!
//! Pure: bytes go in, parts or a fault come out, so that a file, a test and a fuzz target go through the same code.
//!
//! Invariants: nothing is given out of a chunk before its checksum and its records were verified; slots come in ascending
//! order; what a section says of its slot is compared with its records before the section counts as whole.

use super::format::{
    BackupFault, BackupFooter, BackupHeader, CHUNK_HEADER_BYTES, ChunkHeader, ChunkKind, FILE_HEADER_BYTES,
    SlotSection,
};
use super::tally::Tally;
use crate::apply::verify_range;
use crate::record;
use crate::types::{RangeHeader, Slot, Term, Version};

/// What a verified chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupPart {
    /// A slot's section begins.
    SlotBegins(SlotSection),
    /// The chunk's payload is records of the slot, in the order of versions.
    Records {
        /// The slot.
        slot: Slot,
        /// Their term, and what they count from.
        range: RangeHeader,
    },
    /// The slot's records were all there, and are what was said.
    SlotEnds(SlotSection),
    /// The slot left while its section was written: what came of it does not count.
    SlotLeft(SlotSection),
    /// The end of the file: nothing may follow.
    End(BackupFooter),
}

/// A section that is being decoded.
struct Open {
    section: SlotSection,
    /// The last record.
    last: Version,
    range: Option<RangeHeader>,
    tally: Tally,
}

/// The state between two chunks.
pub struct BackupDecoder {
    header: BackupHeader,
    offset: u64,
    open: Option<Open>,
    last_slot: Option<Slot>,
    seen: BackupFooter,
    ended: bool,
}

impl BackupDecoder {
    /// Begins with the file's header.
    pub fn new(header: &[u8]) -> Result<BackupDecoder, BackupFault> {
        Ok(BackupDecoder {
            header: BackupHeader::decode(header)?,
            offset: FILE_HEADER_BYTES as u64,
            open: None,
            last_slot: None,
            seen: BackupFooter::default(),
            ended: false,
        })
    }

    /// What the file says of itself.
    pub fn header(&self) -> &BackupHeader {
        &self.header
    }

    /// Where the next chunk begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the footer was read.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// How many bytes of payload follow this chunk header. To be compared with what is left of the file before room is made.
    pub fn payload_bytes(&self, header: &[u8]) -> Result<usize, BackupFault> {
        Ok(ChunkHeader::decode(header, self.offset)?.payload_bytes)
    }

    /// The next chunk. After a fault the decoder is of no more use.
    pub fn chunk(
        &mut self,
        header_bytes: &[u8; CHUNK_HEADER_BYTES],
        payload: &[u8],
    ) -> Result<BackupPart, BackupFault> {
        let header = ChunkHeader::decode(header_bytes, self.offset)?;
        if payload.len() != header.payload_bytes {
            return Err(BackupFault::at(self.offset, "the file ends early: it is not whole"));
        }
        header.verify(header_bytes, payload)?;
        if self.ended {
            return Err(BackupFault::at(self.offset, "something follows the footer"));
        }
        let part = match header.kind {
            ChunkKind::Slot => self.slot_begins(&header, payload)?,
            ChunkKind::Range => self.records(&header, payload)?,
            ChunkKind::Whole | ChunkKind::Left => self.slot_ends(&header)?,
            ChunkKind::Footer => self.footer(&header, payload)?,
        };
        self.offset += (CHUNK_HEADER_BYTES + payload.len()) as u64;
        Ok(part)
    }

    fn slot_begins(&mut self, header: &ChunkHeader, payload: &[u8]) -> Result<BackupPart, BackupFault> {
        let section = SlotSection::decode(header, payload)?;
        if self.open.is_some() || self.last_slot.is_some_and(|last| last >= section.slot) {
            return Err(BackupFault::at(header.offset, "a slot begins where none may"));
        }
        if section.version == Version::ZERO || section.version.term > section.term {
            return Err(BackupFault::at(header.offset, "what is said of the slot cannot be"));
        }
        self.last_slot = Some(section.slot);
        let (last, range, tally) = (Version::ZERO, None, Tally::default());
        self.open = Some(Open { section, last, range, tally });
        Ok(BackupPart::SlotBegins(section))
    }

    fn records(&mut self, header: &ChunkHeader, payload: &[u8]) -> Result<BackupPart, BackupFault> {
        let slot = header.known_slot()?;
        let open = self.open.as_mut().filter(|open| open.section.slot == slot);
        let Some(open) = open else {
            return Err(BackupFault::at(header.offset, "records of a slot that has not begun"));
        };
        let range = RangeHeader { term: Term(header.term), base: header.base };
        let counters = verify_range(slot, range, payload);
        let (first, last) = counters.map_err(|error| BackupFault::at(header.offset, error.to_string()))?;
        let last = Version::new(range.term, last);
        let continues = open.range == Some(range)
            || (range.base >= open.last.counter && open.range.is_none_or(|before| range.term >= before.term));
        if !continues || first <= open.last.counter {
            return Err(BackupFault::at(header.offset, "the records do not continue those before them"));
        }
        if last > open.section.version || last.counter > open.section.version.counter {
            return Err(BackupFault::at(header.offset, "the records go beyond the section's version"));
        }
        let mut at = 0;
        while at < payload.len() {
            let record = record::parse(&payload[at..]).expect("the range was verified");
            open.tally.add(&record);
            at += record.encoded_bytes();
        }
        (open.range, open.last) = (Some(range), last);
        self.seen.record_bytes += payload.len() as u64;
        Ok(BackupPart::Records { slot, range })
    }

    fn slot_ends(&mut self, header: &ChunkHeader) -> Result<BackupPart, BackupFault> {
        let slot = header.known_slot()?;
        let Some(open) = self.open.take().filter(|open| open.section.slot == slot) else {
            return Err(BackupFault::at(header.offset, "a slot ends that has not begun"));
        };
        let section = open.section;
        if header.version() != section.version {
            return Err(BackupFault::at(header.offset, "a slot ends at another version than it began with"));
        }
        if header.kind == ChunkKind::Left {
            self.seen.slots_left += 1;
            return Ok(BackupPart::SlotLeft(section));
        }
        let sums = open.tally.sums();
        let have = (open.last, sums.keys, sums.live_bytes, sums.digest);
        if have != (section.version, section.keys, section.live_bytes, section.digest) {
            let why = format!(
                "slot {slot} ends at version {} with {} keys and digest {:#018x}; it had version {}, {} keys and digest \
                 {:#018x}",
                open.last, sums.keys, sums.digest, section.version, section.keys, section.digest
            );
            return Err(BackupFault::at(header.offset, why));
        }
        self.seen.slots += 1;
        self.seen.keys += sums.keys;
        Ok(BackupPart::SlotEnds(section))
    }

    fn footer(&mut self, header: &ChunkHeader, payload: &[u8]) -> Result<BackupPart, BackupFault> {
        let footer = BackupFooter::decode(header, payload)?;
        if self.open.is_some() {
            return Err(BackupFault::at(header.offset, "the footer comes within a slot's section"));
        }
        if (BackupFooter { ended_ms: footer.ended_ms, ..self.seen }) != footer {
            return Err(BackupFault::at(header.offset, "the footer counts something else than there is"));
        }
        self.ended = true;
        Ok(BackupPart::End(footer))
    }
}

/// Verifies the bytes of a whole file: each checksum, each record, each slot's sum, and that nothing is missing.
///
/// Memory: that of the keys of one slot, so at most [`VERIFY_BYTES_PER_BYTE`] times the input.
pub fn verify_bytes(bytes: &[u8]) -> Result<BackupFooter, BackupFault> {
    let mut decoder = BackupDecoder::new(bytes)?;
    loop {
        let at = decoder.offset();
        let rest = bytes.get(at as usize..).unwrap_or_default();
        let Some((header, rest)) = rest.split_first_chunk::<CHUNK_HEADER_BYTES>() else {
            return Err(BackupFault::at(at, "the file ends early: it is not whole"));
        };
        let payload = rest.get(..decoder.payload_bytes(header)?).unwrap_or(rest);
        if let BackupPart::End(footer) = decoder.chunk(header, payload)? {
            return match decoder.offset() == bytes.len() as u64 {
                true => Ok(footer),
                false => Err(BackupFault::at(decoder.offset(), "something follows the footer")),
            };
        }
    }
}

/// The bound on the memory that verifying takes, in bytes for each byte of the file, beside [`VERIFY_BYTES_MORE`].
pub const VERIFY_BYTES_PER_BYTE: usize = 12;
/// See [`VERIFY_BYTES_PER_BYTE`].
pub const VERIFY_BYTES_MORE: usize = 64 << 10;
