//! Reads RESP2 replies and writes commands.
//!
//! Nothing is allocated for a length before its bytes arrive, and every length is checked against a limit first.

use std::io::{self, BufRead, Read};

use super::error::ServerError;

/// The longest bulk string taken.
pub const BULK_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// The most elements of one array.
pub const ARRAY_ELEMENTS_MAX: u64 = 1024 * 1024;
/// The longest line: a simple string, an error, a number.
pub const LINE_BYTES_MAX: u64 = 64 * 1024;
/// How deep arrays may be nested.
pub const DEPTH_MAX: u32 = 8;

/// A node's reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A simple string, such as OK.
    Simple(String),
    /// An error.
    Error(ServerError),
    /// A number.
    Integer(i64),
    /// A string of bytes.
    Bulk(Vec<u8>),
    /// No value: a null bulk string or array.
    Null,
    /// A list.
    Array(Vec<Reply>),
}

impl Reply {
    /// Reads one reply. What is no RESP2 is an error of kind `InvalidData`; the stream is then of no more use.
    pub fn read(from: &mut impl BufRead) -> io::Result<Reply> {
        read_reply(from, 0)
    }

    /// A word for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Reply::Simple(_) => "a simple string",
            Reply::Error(_) => "an error",
            Reply::Integer(_) => "an integer",
            Reply::Bulk(_) => "a bulk string",
            Reply::Null => "a null",
            Reply::Array(_) => "an array",
        }
    }
}

/// Appends a command to `out`, as an array of bulk strings.
pub fn encode_command(out: &mut Vec<u8>, args: &[&[u8]]) {
    push_length(out, b'*', args.len());
    for arg in args {
        push_length(out, b'$', arg.len());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

fn push_length(out: &mut Vec<u8>, kind: u8, length: usize) {
    out.push(kind);
    out.extend_from_slice(length.to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn read_reply(from: &mut impl BufRead, depth: u32) -> io::Result<Reply> {
    let line = read_line(from)?;
    let Some((kind, rest)) = line.split_first() else {
        return Err(invalid("an empty line where a reply should begin"));
    };
    match kind {
        b'+' => Ok(Reply::Simple(text(rest))),
        b'-' => Ok(Reply::Error(ServerError::new(text(rest)))),
        b':' => Ok(Reply::Integer(number(rest)?)),
        b'$' => match length(rest, BULK_BYTES_MAX, "a bulk length")? {
            None => Ok(Reply::Null),
            Some(length) => read_bulk(from, length),
        },
        b'*' => match length(rest, ARRAY_ELEMENTS_MAX, "an array length")? {
            None => Ok(Reply::Null),
            Some(_) if depth == DEPTH_MAX => Err(invalid(format!("arrays nested deeper than {DEPTH_MAX}"))),
            Some(length) => {
                (0..length).map(|_| read_reply(from, depth + 1)).collect::<io::Result<_>>().map(Reply::Array)
            }
        },
        _ => Err(invalid(format!("a reply cannot begin with '{}'", kind.escape_ascii()))),
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    match line.strip_suffix(b"\r\n") {
        Some(content) => {
            line.truncate(content.len());
            Ok(line)
        }
        None if line.len() as u64 == LINE_BYTES_MAX => {
            Err(invalid(format!("a line longer than {LINE_BYTES_MAX} bytes")))
        }
        None if line.ends_with(b"\n") => Err(invalid("a line that does not end with CR LF")),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn read_bulk(from: &mut impl BufRead, length: u64) -> io::Result<Reply> {
    let mut bytes = Vec::new();
    let read = from.by_ref().take(length + 2).read_to_end(&mut bytes)?;
    if (read as u64) < length + 2 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if !bytes.ends_with(b"\r\n") {
        return Err(invalid("a bulk string that does not end with CR LF"));
    }
    bytes.truncate(bytes.len() - 2);
    Ok(Reply::Bulk(bytes))
}

fn length(digits: &[u8], max: u64, what: &str) -> io::Result<Option<u64>> {
    let length = number(digits)?;
    if length == -1 {
        return Ok(None);
    }
    match u64::try_from(length) {
        Ok(length) if length <= max => Ok(Some(length)),
        _ => Err(invalid(format!("{what} of {length}; at most {max}"))),
    }
}

fn number(digits: &[u8]) -> io::Result<i64> {
    let parsed = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    parsed.ok_or_else(|| invalid(format!("'{}' where a number should be", digits.escape_ascii())))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(mut bytes: &[u8]) -> io::Result<Reply> {
        Reply::read(&mut bytes)
    }

    #[test]
    fn every_type_is_read() {
        let nested = b"*3\r\n:-7\r\n*2\r\n+OK\r\n$-1\r\n$3\r\na\r\n\r\n";
        let inner = Reply::Array(vec![Reply::Simple("OK".into()), Reply::Null]);
        let expected = Reply::Array(vec![Reply::Integer(-7), inner, Reply::Bulk(b"a\r\n".to_vec())]);
        assert_eq!(read(nested).unwrap(), expected);
        assert_eq!(read(b"*-1\r\n").unwrap(), Reply::Null);
        assert_eq!(read(b"-ERR no\r\n").unwrap(), Reply::Error(ServerError::new("ERR no")));
        assert_eq!(read(b"$0\r\n\r\n").unwrap(), Reply::Bulk(Vec::new()));
    }

    #[test]
    fn nonsense_is_named_and_short_input_is_an_end() {
        let deep = b"*1\r\n".repeat(DEPTH_MAX as usize + 2);
        let invalid: &[(&[u8], &str)] = &[
            (b"\r\n", "an empty line where a reply should begin"),
            (b"?\r\n", "a reply cannot begin with '?'"),
            (b"$600000000\r\n", "a bulk length of 600000000; at most 536870912"),
            (b"$-2\r\n", "a bulk length of -2; at most 536870912"),
            (b"*9999999\r\n", "an array length of 9999999; at most 1048576"),
            (b":x\r\n", "'x' where a number should be"),
            (b"+OK\n", "a line that does not end with CR LF"),
            (b"$1\r\nabc", "a bulk string that does not end with CR LF"),
            (&deep, "arrays nested deeper than 8"),
        ];
        for (bytes, problem) in invalid {
            let error = read(bytes).unwrap_err();
            let message = error.to_string();
            assert_eq!((error.kind(), message.as_str()), (io::ErrorKind::InvalidData, *problem));
        }
        for bytes in [&b""[..], b"+O", b"$5\r\nab", b"*2\r\n:1\r\n"] {
            assert_eq!(read(bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        assert!(read(&vec![b'+'; LINE_BYTES_MAX as usize + 1]).unwrap_err().to_string().contains("longer"));
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut out = Vec::new();
        encode_command(&mut out, &[b"SET", b"k", b""]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n");
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(bytes in prop::collection::vec(prop::sample::select(b"*$+-:01239\r\nab".to_vec()), 0..60)) {
            let _ = read(&bytes);
        }
    }
}
