//! The RESP2 request parser: incremental, resuming, allocation-free per argument.
//!
//! It reads the connection's buffer and never owns bytes of it: a request's arguments are ranges into that buffer
//! (an inline command with quotes is unquoted into a small buffer of the parser's own).
//!
//! Invariants:
//! - No byte is looked at twice, however the bytes arrive: a header line's search resumes where it stopped, a bulk
//!   is awaited by its length alone.
//! - A length is checked against its limit before anything is reserved for it; what the parser itself holds grows
//!   with the bytes that arrived (8 bytes of range for at least 6 bytes of argument).
//! - Offsets are relative to the first byte of the current request, so the owner may move the buffer between calls.

use super::inline;

/// The longest bulk string taken: 512 MiB, as in Redis.
pub const BULK_BYTES_MAX: usize = 512 << 20;
/// The most arguments of one request: 1,048,576, as in Redis.
pub const ARGS_MAX: usize = 1 << 20;
/// The longest header line or inline command: 64 KiB, as in Redis.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// The longest request with all its arguments: 1 GiB, as Redis' default limit of a client's query buffer.
pub const REQUEST_BYTES_MAX: usize = 1 << 30;

/// Argument ranges kept between requests; more are given back to the allocator.
const RANGES_KEPT: usize = 1024;

// Ranges are pairs of u32 (consumed by `ArgRange`).
const _: () = assert!(REQUEST_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(BULK_BYTES_MAX < REQUEST_BYTES_MAX);

/// Why a connection's bytes are not RESP. The texts are those of Redis; the connection closes after sending one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The count after `*` is not a number, or beyond [`ARGS_MAX`].
    #[error("Protocol error: invalid multibulk length")]
    InvalidMultibulkLength,
    /// The count after `*` does not end within [`LINE_BYTES_MAX`].
    #[error("Protocol error: too big mbulk count string")]
    MultibulkLineTooLong,
    /// The length after `$` is not a number, or beyond [`BULK_BYTES_MAX`].
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    /// The length after `$` does not end within [`LINE_BYTES_MAX`].
    #[error("Protocol error: too big bulk count string")]
    BulkLineTooLong,
    /// An argument does not begin with `$`.
    #[error("Protocol error: expected '$', got '{}'", (*.0 as char).escape_default())]
    ExpectedBulk(u8),
    /// A bulk is not followed by CR LF: its length was wrong, so what follows cannot be trusted to be a command.
    #[error("Protocol error: bulk of {0} bytes is not followed by CR LF")]
    BulkNotTerminated(usize),
    /// An inline command's quotes do not close.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// An inline command does not end within [`LINE_BYTES_MAX`].
    #[error("Protocol error: too big inline request")]
    InlineTooLong,
    /// A request's arguments together exceed [`REQUEST_BYTES_MAX`].
    #[error("Protocol error: request exceeds {REQUEST_BYTES_MAX} bytes")]
    RequestTooLong,
}

/// What [`Parser::parse`] found at the start of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A whole request in the first `consumed` bytes. [`Parser::args`] gives its arguments.
    Complete {
        /// Length of the request.
        consumed: usize,
    },
    /// Nothing to execute (an empty line, an empty multibulk) in the first `consumed` bytes.
    Empty {
        /// Bytes to skip.
        consumed: usize,
    },
    /// More bytes are needed: at least `total` from the start of this request.
    Incomplete {
        /// Lower bound of the request's length as known so far.
        total: usize,
    },
}

/// One request: its arguments, the command's name first. Slices of the connection's buffer.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    args: &'a [&'a [u8]],
}

impl<'a> Request<'a> {
    /// A request of these arguments (at least one).
    pub fn new(args: &'a [&'a [u8]]) -> Self {
        debug_assert!(!args.is_empty(), "a request has a command name");
        Self { args }
    }

    /// All arguments, the command's name first.
    pub fn args(&self) -> &'a [&'a [u8]] {
        self.args
    }

    /// The command's name, as the client wrote it.
    pub fn name(&self) -> &'a [u8] {
        self.args[0]
    }

    /// Whether the command's name is `name`, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.args[0].eq_ignore_ascii_case(name.as_bytes())
    }
}

/// Where an argument lies, from the first byte of its request (or of the unquoted buffer, for inline commands).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ArgRange {
    start: u32,
    len: u32,
}

impl ArgRange {
    pub(super) fn new(start: usize, len: usize) -> Self {
        Self { start: start as u32, len: len as u32 }
    }

    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..][..self.len as usize]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the first byte of a request.
    Start,
    /// In an inline command.
    Inline,
    /// Awaiting the header of the next argument.
    BulkHeader,
    /// Awaiting a bulk of this length and its CR LF.
    Bulk(usize),
    /// The last call gave a request; the next one begins another.
    Done,
}

/// Turns a connection's bytes into requests. See the top of the file.
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// The next byte to read, from the start of the request.
    at: usize,
    /// How much after `at` was already searched for a line's end.
    searched: usize,
    args_left: usize,
    ranges: Vec<ArgRange>,
    /// Arguments of an inline command, unquoted; `ranges` point here if `is_inline`.
    unquoted: Vec<u8>,
    is_inline: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser at the start of a request.
    pub fn new() -> Self {
        Self {
            state: State::Start,
            at: 0,
            searched: 0,
            args_left: 0,
            ranges: Vec::new(),
            unquoted: Vec::new(),
            is_inline: false,
        }
    }

    /// Reads on. `bytes` begin with the first byte of the current request and hold all that was given before, plus
    /// what arrived since. After `Complete` or `Empty` the caller skips the consumed bytes. After an error the
    /// connection cannot go on.
    pub fn parse(&mut self, bytes: &[u8]) -> Result<Progress, ProtocolError> {
        if self.state == State::Done {
            self.reset();
        }
        if self.state == State::Start {
            match bytes.first() {
                None => return Ok(Progress::Incomplete { total: 1 }),
                Some(b'*') => {}
                Some(_) => self.state = State::Inline,
            }
        }
        let progress = if self.state == State::Inline { self.inline(bytes)? } else { self.multibulk(bytes)? };
        if !matches!(progress, Progress::Incomplete { .. }) {
            self.state = State::Done;
        }
        Ok(progress)
    }

    /// The arguments of the request that `parse` just completed, appended to `into`. `bytes` as given to `parse`.
    pub fn args<'a>(&'a self, bytes: &'a [u8], into: &mut Vec<&'a [u8]>) {
        let source = if self.is_inline { &self.unquoted[..] } else { bytes };
        into.extend(self.ranges.iter().map(|range| range.of(source)));
    }

    fn reset(&mut self) {
        self.state = State::Start;
        self.at = 0;
        self.searched = 0;
        self.args_left = 0;
        self.ranges.clear();
        self.ranges.shrink_to(RANGES_KEPT);
        self.unquoted.clear();
        self.is_inline = false;
    }

    fn inline(&mut self, bytes: &[u8]) -> Result<Progress, ProtocolError> {
        let Some(end) = self.find_line_end(bytes) else {
            if bytes.len() > LINE_BYTES_MAX {
                return Err(ProtocolError::InlineTooLong);
            }
            return Ok(Progress::Incomplete { total: bytes.len() + 1 });
        };
        if end > LINE_BYTES_MAX {
            return Err(ProtocolError::InlineTooLong);
        }
        let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
        self.is_inline = true;
        inline::split(line, &mut self.unquoted, &mut self.ranges)?;
        let consumed = end + 1;
        Ok(if self.ranges.is_empty() {
            Progress::Empty { consumed }
        } else {
            Progress::Complete { consumed }
        })
    }

    fn multibulk(&mut self, bytes: &[u8]) -> Result<Progress, ProtocolError> {
        if self.state == State::Start {
            let Some(line) = self.header_line(bytes, ProtocolError::MultibulkLineTooLong)? else {
                return Ok(Progress::Incomplete { total: bytes.len() + 1 });
            };
            let count = parse_number(line).ok_or(ProtocolError::InvalidMultibulkLength)?;
            if count > ARGS_MAX as i64 {
                return Err(ProtocolError::InvalidMultibulkLength);
            }
            if count <= 0 {
                return Ok(Progress::Empty { consumed: self.at });
            }
            self.args_left = count as usize;
            self.state = State::BulkHeader;
        }
        while self.args_left > 0 {
            if self.state == State::BulkHeader {
                match self.bulk_header(bytes)? {
                    Some(length) => self.state = State::Bulk(length),
                    None => return Ok(Progress::Incomplete { total: bytes.len() + 1 }),
                }
            }
            if let State::Bulk(length) = self.state {
                let end = self.at + length + 2;
                if bytes.len() < end {
                    return Ok(Progress::Incomplete { total: end });
                }
                if &bytes[end - 2..end] != b"\r\n" {
                    return Err(ProtocolError::BulkNotTerminated(length));
                }
                self.ranges.push(ArgRange::new(self.at, length));
                self.at = end;
                self.args_left -= 1;
                self.state = State::BulkHeader;
            }
        }
        Ok(Progress::Complete { consumed: self.at })
    }

    /// The length of the next argument, once its header line is here.
    fn bulk_header(&mut self, bytes: &[u8]) -> Result<Option<usize>, ProtocolError> {
        match bytes.get(self.at) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(other) => return Err(ProtocolError::ExpectedBulk(*other)),
        }
        let Some(line) = self.header_line(bytes, ProtocolError::BulkLineTooLong)? else {
            return Ok(None);
        };
        let length = parse_number(line).ok_or(ProtocolError::InvalidBulkLength)?;
        if !(0..=BULK_BYTES_MAX as i64).contains(&length) {
            return Err(ProtocolError::InvalidBulkLength);
        }
        if self.at + length as usize + 2 > REQUEST_BYTES_MAX {
            return Err(ProtocolError::RequestTooLong);
        }
        Ok(Some(length as usize))
    }

    /// The text of the header line at `at`, without its first byte and its line end; `at` moves behind it.
    fn header_line<'a>(
        &mut self,
        bytes: &'a [u8],
        too_long: ProtocolError,
    ) -> Result<Option<&'a [u8]>, ProtocolError> {
        let start = self.at + 1;
        let Some(end) = self.find_line_end(bytes) else {
            return if bytes.len() - self.at > LINE_BYTES_MAX { Err(too_long) } else { Ok(None) };
        };
        self.at = end + 1;
        let line = &bytes[start..end];
        Ok(Some(line.strip_suffix(b"\r").unwrap_or(line)))
    }

    /// The offset of the next LF at or after `at`. Remembers how far it looked.
    fn find_line_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let from = self.at + self.searched;
        match bytes[from..].iter().position(|byte| *byte == b'\n') {
            Some(found) => {
                self.searched = 0;
                Some(from + found)
            }
            None => {
                self.searched = bytes.len() - self.at;
                None
            }
        }
    }
}

/// A decimal number as Redis takes it: no plus sign, no leading zeros, no spaces.
fn parse_number(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, text),
    };
    if digits.is_empty() || digits.len() > 18 || (digits[0] == b'0' && (negative || digits.len() > 1)) {
        return None;
    }
    let mut value = 0i64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i64::from(digit - b'0');
    }
    Some(if negative { -value } else { value })
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
