//! The replies of one batch: bytes in one buffer, large values by reference.
//!
//! Invariant: what was appended is never looked at again; the replies of a batch are sent together, or (if the batch
//! may not be acknowledged) all dropped together.

use lockgate_runtime::IoBuf;

/// Bulks up to this many bytes are copied; larger ones given by [`Reply::bulk_shared`] are sent from where they lie.
pub const REPLY_COPY_BYTES_MAX: usize = 16 << 10;

/// Buffer capacity kept between batches.
const CAPACITY_KEPT: usize = 64 << 10;

/// Builds replies in RESP2. Every method appends one reply (or one element of an array begun before).
#[derive(Default)]
pub struct Reply {
    /// What precedes `tail`.
    parts: Vec<Box<dyn IoBuf>>,
    parts_bytes: usize,
    tail: Vec<u8>,
}

impl Reply {
    /// No replies yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `+text`. The text holds no line end (one would be replaced by a space).
    pub fn simple(&mut self, text: &str) {
        self.line(b'+', text);
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.tail.extend_from_slice(b"+OK\r\n");
    }

    /// `-text`: an error. The text begins with its code: `ERR ...`, `MOVED ...`.
    pub fn error(&mut self, text: &str) {
        self.line(b'-', text);
    }

    /// `:value`.
    pub fn integer(&mut self, value: i64) {
        self.header(b':', value);
    }

    /// A bulk string, copied.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.header(b'$', bytes.len() as i64);
        self.tail.extend_from_slice(bytes);
        self.tail.extend_from_slice(b"\r\n");
    }

    /// A bulk string that may be sent from where it lies, if it is larger than [`REPLY_COPY_BYTES_MAX`].
    pub fn bulk_shared(&mut self, bytes: impl IoBuf) {
        let length = bytes.as_slice().len();
        if length <= REPLY_COPY_BYTES_MAX {
            return self.bulk(bytes.as_slice());
        }
        self.header(b'$', length as i64);
        self.seal_tail();
        self.parts_bytes += length;
        self.parts.push(Box::new(bytes));
        self.tail.extend_from_slice(b"\r\n");
    }

    /// The null bulk string: no such value.
    pub fn null(&mut self) {
        self.tail.extend_from_slice(b"$-1\r\n");
    }

    /// The null array.
    pub fn null_array(&mut self) {
        self.tail.extend_from_slice(b"*-1\r\n");
    }

    /// Begins an array: the next `elements` replies are its elements.
    pub fn array(&mut self, elements: usize) {
        self.header(b'*', elements as i64);
    }

    /// Begins a map: the next `2 * pairs` replies are its keys and values. In RESP2 a flat array.
    pub fn map(&mut self, pairs: usize) {
        self.array(2 * pairs);
    }

    /// Bytes gathered so far.
    pub fn len(&self) -> usize {
        self.parts_bytes + self.tail.len()
    }

    /// Whether nothing was gathered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops everything gathered.
    pub fn clear(&mut self) {
        self.parts.clear();
        self.parts_bytes = 0;
        self.tail.clear();
    }

    /// Everything gathered, copied into one piece: for tests and for services that wrap others.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::with_capacity(self.len());
        self.parts.iter().for_each(|part| bytes.extend_from_slice(part.as_slice()));
        bytes.extend_from_slice(&self.tail);
        bytes
    }

    /// Takes everything gathered, to be sent: the only buffer, if nothing is shared.
    pub(super) fn take(&mut self) -> Taken {
        if self.parts.is_empty() {
            return Taken::Whole(std::mem::take(&mut self.tail));
        }
        self.seal_tail();
        self.parts_bytes = 0;
        Taken::Parts(std::mem::take(&mut self.parts))
    }

    /// Gives a sent buffer back for the next batch.
    pub(super) fn recycle(&mut self, mut sent: Vec<u8>) {
        if self.tail.capacity() == 0 && sent.capacity() <= CAPACITY_KEPT {
            sent.clear();
            self.tail = sent;
        }
    }

    fn seal_tail(&mut self) {
        if !self.tail.is_empty() {
            self.parts_bytes += self.tail.len();
            self.parts.push(Box::new(std::mem::take(&mut self.tail)));
        }
    }

    fn line(&mut self, marker: u8, text: &str) {
        self.tail.push(marker);
        let one_line = |byte: u8| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte };
        self.tail.extend(text.bytes().map(one_line));
        self.tail.extend_from_slice(b"\r\n");
    }

    fn header(&mut self, marker: u8, value: i64) {
        self.tail.push(marker);
        push_number(&mut self.tail, value);
        self.tail.extend_from_slice(b"\r\n");
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reply({} bytes)", self.len())
    }
}

/// A batch of replies, ready to be sent.
pub(super) enum Taken {
    /// One buffer.
    Whole(Vec<u8>),
    /// Buffers and shared values in order.
    Parts(Vec<Box<dyn IoBuf>>),
}

/// Appends `value` in decimal. `format!` costs several times as much, and every reply has a number.
fn push_number(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_resp2() {
        let mut reply = Reply::new();
        reply.ok();
        reply.simple("PONG");
        reply.error("ERR two\r\nlines");
        for value in [0, 7, -1, i64::MAX, i64::MIN] {
            reply.integer(value);
        }
        reply.bulk(b"ab");
        reply.null();
        reply.map(1);
        reply.bulk(b"");
        reply.null_array();
        let expected = "+OK\r\n+PONG\r\n-ERR two  lines\r\n:0\r\n:7\r\n:-1\r\n:9223372036854775807\r\n\
            :-9223372036854775808\r\n$2\r\nab\r\n$-1\r\n*2\r\n$0\r\n\r\n*-1\r\n";
        assert_eq!(reply.to_vec(), expected.as_bytes());
        assert_eq!(reply.len(), expected.len());
    }

    #[test]
    fn large_values_are_shared_in_order() {
        let mut reply = Reply::new();
        reply.ok();
        reply.bulk_shared(vec![b'x'; REPLY_COPY_BYTES_MAX + 1]);
        reply.integer(3);
        reply.bulk_shared(b"small".to_vec());
        let whole = reply.to_vec();
        assert!(whole.starts_with(b"+OK\r\n$16385\r\nxxx") && whole.ends_with(b"x\r\n:3\r\n$5\r\nsmall\r\n"));
        assert_eq!(reply.len(), whole.len());
        let Taken::Parts(parts) = reply.take() else { panic!("a shared value is a part of its own") };
        assert_eq!(parts.len(), 3);
        assert!(reply.is_empty());
    }
}
