//! Inline commands: a line of words, as typed into `telnet`. Quoting as in Redis.
//!
//! Double quotes know `\n`, `\r`, `\t`, `\a`, `\b`, `\xHH` and `\` before anything else; single quotes know `\'` only. A
//! closing quote must be followed by a space or the end of the line.

use super::codec::{ArgRange, ProtocolError};

/// Splits `line` into words. Their bytes go to `out`, where `ranges` find them.
pub(super) fn split(line: &[u8], out: &mut Vec<u8>, ranges: &mut Vec<ArgRange>) -> Result<(), ProtocolError> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Ok(());
        }
        let start = out.len();
        rest = word(rest, out)?;
        ranges.push(ArgRange::new(start, out.len() - start));
    }
}

/// One word; returns what follows it.
fn word<'a>(mut rest: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    while let Some((&byte, tail)) = rest.split_first() {
        match byte {
            b'"' => return quoted(tail, b'"', out),
            b'\'' => return quoted(tail, b'\'', out),
            _ if byte.is_ascii_whitespace() => return Ok(rest),
            _ => out.push(byte),
        }
        rest = tail;
    }
    Ok(rest)
}

fn quoted<'a>(mut rest: &'a [u8], quote: u8, out: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    loop {
        match rest {
            [] => return Err(ProtocolError::UnbalancedQuotes),
            [byte, tail @ ..] if *byte == quote => {
                return match tail.first() {
                    Some(next) if !next.is_ascii_whitespace() => Err(ProtocolError::UnbalancedQuotes),
                    _ => Ok(tail),
                };
            }
            [b'\\', b'x', high, low, tail @ ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                out.push(hex(*high) << 4 | hex(*low));
                rest = tail;
            }
            [b'\\', escaped, tail @ ..] if quote == b'"' => {
                out.push(unescape(*escaped));
                rest = tail;
            }
            [b'\\', b'\'', tail @ ..] if quote == b'\'' => {
                out.push(b'\'');
                rest = tail;
            }
            [byte, tail @ ..] => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
}

fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}

fn hex(digit: u8) -> u8 {
    (digit as char).to_digit(16).expect("checked to be a hexadecimal digit") as u8
}
