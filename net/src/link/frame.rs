//! Frames: how messages are cut, numbered and checked. Pure: bytes in, bytes out.
//!
//! Header (16 bytes, little endian): payload length u32, kind u8, flags u8, reserved u16 (zero), sequence u32, crc32c u32
//! over the 12 bytes before it and the payload.
//!
//! Invariants:
//! - Sequences count the frames of one direction from 0, without gaps (wrapping at 2^32).
//! - A message's frames follow each other; all but the last carry [`FLAG_MORE`] and are not empty.
//! - The decoder holds no more than the bytes that arrived and passed their check; a frame's length is checked before
//!   anybody waits for its payload.

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 16;
/// The most payload of one frame.
pub const FRAME_BYTES_MAX: usize = 256 << 10;
/// The most payload of one message: a record of the largest value (512 MiB), and room for headers.
pub const MESSAGE_BYTES_MAX: usize = 520 << 20;

/// The message goes on in the next frame.
pub(super) const FLAG_MORE: u8 = 1;

const CHECKED_HEADER_BYTES: usize = 12;

/// Why received bytes are not the frames of a link. The link cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame's length is beyond the limit.
    #[error("frame {sequence} claims {bytes} bytes, the limit is {limit}")]
    FrameTooLong {
        /// The frame's number.
        sequence: u32,
        /// What its header says.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A message's frames together are beyond the limit.
    #[error("message of kind {kind} exceeds {limit} bytes")]
    MessageTooLong {
        /// The message's kind.
        kind: u8,
        /// What is allowed.
        limit: usize,
    },
    /// A frame is missing, doubled, or out of order.
    #[error("frame {got} came where frame {expected} was due")]
    Sequence {
        /// The number due.
        expected: u32,
        /// The number that came.
        got: u32,
    },
    /// A frame's checksum does not match its bytes.
    #[error("checksum of frame {sequence} does not match: {computed:08x} computed, {stated:08x} stated")]
    Checksum {
        /// The frame's number.
        sequence: u32,
        /// Over what arrived.
        computed: u32,
        /// In the header.
        stated: u32,
    },
    /// Flags or reserved bytes that this format does not have.
    #[error("frame {sequence} has unknown flags {flags:#04x} or reserved bytes {reserved:#06x}")]
    Reserved {
        /// The frame's number.
        sequence: u32,
        /// The flags.
        flags: u8,
        /// The reserved bytes.
        reserved: u16,
    },
    /// A message's frames are of different kinds, or one that is not the last is empty.
    #[error("frame {sequence} (kind {kind}) does not continue the message begun before it")]
    Fragment {
        /// The frame's number.
        sequence: u32,
        /// The frame's kind.
        kind: u8,
    },
}

/// A received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is; meaning is the user's.
    pub kind: u8,
    /// Its content.
    pub payload: Vec<u8>,
}

/// Numbers and checks the frames of one direction.
#[derive(Debug, Default)]
pub struct FrameEncoder {
    sequence: u32,
}

impl FrameEncoder {
    /// At the beginning of a link.
    pub fn new() -> Self {
        Self::default()
    }

    /// The header of the next frame, whose payload is `parts` one after the other. `more` if its message goes on.
    pub fn header<'a>(
        &mut self,
        kind: u8,
        more: bool,
        parts: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> [u8; FRAME_HEADER_BYTES] {
        let length: usize = parts.clone().map(<[u8]>::len).sum();
        assert!(length <= FRAME_BYTES_MAX, "a frame holds at most {FRAME_BYTES_MAX} bytes, not {length}");
        let mut header = [0; FRAME_HEADER_BYTES];
        header[0..4].copy_from_slice(&(length as u32).to_le_bytes());
        header[4] = kind;
        header[5] = if more { FLAG_MORE } else { 0 };
        header[8..12].copy_from_slice(&self.sequence.to_le_bytes());
        let crc = parts.fold(crc32c::crc32c(&header[..CHECKED_HEADER_BYTES]), crc32c::crc32c_append);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        self.sequence = self.sequence.wrapping_add(1);
        header
    }

    /// A message in one frame, in one buffer: for small ones.
    pub fn whole(&mut self, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = self.header(kind, false, std::iter::once(payload)).to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }
}

/// What [`FrameDecoder::decode`] found at the start of the bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes in all are needed to go on (at most a frame).
    Need(usize),
    /// A frame of a message that is not complete yet; skip so many bytes.
    Part(usize),
    /// A message is complete; skip so many bytes.
    Message(usize, Message),
}

/// Checks the frames of one direction and puts messages together.
#[derive(Debug)]
pub struct FrameDecoder {
    sequence: u32,
    frame_bytes_max: usize,
    message_bytes_max: usize,
    /// The message under way.
    partial: Option<Message>,
}

/// A header's fields, before anything is believed.
struct Header {
    length: usize,
    kind: u8,
    flags: u8,
    reserved: u16,
    sequence: u32,
    crc: u32,
}

impl Header {
    fn read(bytes: &[u8; FRAME_HEADER_BYTES]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            length: word(0) as usize,
            kind: bytes[4],
            flags: bytes[5],
            reserved: u16::from_le_bytes([bytes[6], bytes[7]]),
            sequence: word(8),
            crc: word(12),
        }
    }
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// At the beginning of a link.
    pub fn new() -> Self {
        Self::with_limit(MESSAGE_BYTES_MAX)
    }

    /// At the beginning of a link, for messages of up to `message_bytes_max` until that is changed.
    pub fn with_limit(message_bytes_max: usize) -> Self {
        let mut decoder = Self { sequence: 0, frame_bytes_max: 0, message_bytes_max: 0, partial: None };
        decoder.limit(message_bytes_max);
        decoder
    }

    /// From the next frame on, messages of up to `message_bytes_max` are taken.
    pub fn limit(&mut self, message_bytes_max: usize) {
        self.message_bytes_max = message_bytes_max;
        self.frame_bytes_max = message_bytes_max.min(FRAME_BYTES_MAX);
    }

    /// Looks at the start of `bytes`. After `Part` or `Message` the caller skips that many and calls again.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Step, FrameError> {
        let Some(header_bytes) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(Step::Need(FRAME_HEADER_BYTES));
        };
        let header = Header::read(header_bytes);
        self.check(&header)?;
        let end = FRAME_HEADER_BYTES + header.length;
        if bytes.len() < end {
            return Ok(Step::Need(end));
        }
        let payload = &bytes[FRAME_HEADER_BYTES..end];
        let computed = crc32c::crc32c_append(crc32c::crc32c(&header_bytes[..CHECKED_HEADER_BYTES]), payload);
        if computed != header.crc {
            return Err(FrameError::Checksum { sequence: header.sequence, computed, stated: header.crc });
        }
        self.sequence = self.sequence.wrapping_add(1);
        let message = match self.partial.take() {
            Some(mut message) => {
                message.payload.extend_from_slice(payload);
                message
            }
            None => Message { kind: header.kind, payload: payload.to_vec() },
        };
        if header.flags & FLAG_MORE != 0 {
            self.partial = Some(message);
            return Ok(Step::Part(end));
        }
        Ok(Step::Message(end, message))
    }

    /// Whether a message has begun and not ended.
    pub fn in_message(&self) -> bool {
        self.partial.is_some()
    }

    fn check(&self, header: &Header) -> Result<(), FrameError> {
        let &Header { length, kind, flags, reserved, sequence, .. } = header;
        if length > self.frame_bytes_max {
            return Err(FrameError::FrameTooLong { sequence, bytes: length, limit: self.frame_bytes_max });
        }
        if flags & !FLAG_MORE != 0 || reserved != 0 {
            return Err(FrameError::Reserved { sequence, flags, reserved });
        }
        if sequence != self.sequence {
            return Err(FrameError::Sequence { expected: self.sequence, got: sequence });
        }
        let (held, continues) = match &self.partial {
            Some(message) => (message.payload.len(), message.kind == kind),
            None => (0, true),
        };
        if !continues || (flags & FLAG_MORE != 0 && length == 0) {
            return Err(FrameError::Fragment { sequence, kind });
        }
        if held + length > self.message_bytes_max {
            return Err(FrameError::MessageTooLong { kind, limit: self.message_bytes_max });
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
