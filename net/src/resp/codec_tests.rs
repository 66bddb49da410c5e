//! The parser against whole inputs, split inputs and garbage.

use proptest::prelude::*;

use super::*;

/// Everything that a connection would execute, and the error that ends it.
fn requests(chunks: &[&[u8]]) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
    let mut parser = Parser::new();
    let mut buffer: Vec<u8> = Vec::new();
    let mut found = Vec::new();
    for chunk in chunks {
        buffer.extend_from_slice(chunk);
        loop {
            match parser.parse(&buffer) {
                Ok(Progress::Complete { consumed }) => {
                    let mut args = Vec::new();
                    parser.args(&buffer, &mut args);
                    found.push(args.iter().map(|arg| arg.to_vec()).collect());
                    buffer.drain(..consumed);
                }
                Ok(Progress::Empty { consumed }) => {
                    buffer.drain(..consumed);
                }
                Ok(Progress::Incomplete { total }) => {
                    assert!(total > buffer.len(), "asks for bytes that are not there yet");
                    break;
                }
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fn all(bytes: &[u8]) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
    requests(&[bytes])
}

fn error_text(bytes: &[u8]) -> String {
    all(bytes).1.expect("an error").to_string()
}

fn words(line: &str) -> Vec<Vec<u8>> {
    line.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

#[test]
fn multibulk_and_inline_commands() {
    let input = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\nPING\r\n\r\n*0\r\n*-1\r\nSET k  v\n";
    let (found, error) = all(input);
    assert_eq!(error, None);
    assert_eq!(found, [words("GET k"), words("PING"), words("SET k v")]);
}

#[test]
fn inline_quotes() {
    let (found, error) = all(b"SET \"a b\\x41\\n\\\"\" 'it\\'s \\n'\r\n");
    assert_eq!(error, None);
    assert_eq!(found, [[b"SET".to_vec(), b"a bA\n\"".to_vec(), b"it's \\n".to_vec()]]);
    assert_eq!(all(b"SET \"\" x\r\n").0[0][1], b"");
    for unbalanced in [&b"SET \"a\r\n"[..], b"SET 'a\r\n", b"SET \"a\"b\r\n", b"SET \"a\\\r\n"] {
        assert_eq!(error_text(unbalanced), "Protocol error: unbalanced quotes in request");
    }
}

#[test]
fn error_texts_are_those_of_redis() {
    for (input, text) in [
        (&b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$629145600\r\n"[..], "Protocol error: invalid bulk length"),
        (b"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$x\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$99999999999999999999\r\n", "Protocol error: invalid bulk length"),
        (b"*1048577\r\n", "Protocol error: invalid multibulk length"),
        (b"*x\r\n", "Protocol error: invalid multibulk length"),
        (b"*01\r\n", "Protocol error: invalid multibulk length"),
        (b"*1\r\nx\r\n", "Protocol error: expected '$', got 'x'"),
        (b"*2\r\n$3\r\nGET\r\n*1\r\n", "Protocol error: expected '$', got '*'"),
        (b"*1\r\n$1\r\nabc\r\n", "Protocol error: bulk of 1 bytes is not followed by CR LF"),
    ] {
        assert_eq!(error_text(input), text, "for {}", input.escape_ascii());
    }
    let digits = vec![b'1'; LINE_BYTES_MAX + 8];
    assert_eq!(error_text(&digits), "Protocol error: too big inline request");
    assert_eq!(error_text(&[b"*", &digits[..]].concat()), "Protocol error: too big mbulk count string");
    assert_eq!(error_text(&[b"*1\r\n$", &digits[..]].concat()), "Protocol error: too big bulk count string");
}

#[test]
fn requests_beyond_the_total_are_refused_by_length() {
    // Two arguments of 512 MiB each: the second is refused by its header alone. The first must be "here", so the
    // parser's offset is moved by hand instead of holding half a gibibyte in a test.
    let mut parser = Parser::new();
    assert_eq!(parser.parse(b"*2\r\n"), Ok(Progress::Incomplete { total: 5 }));
    parser.at = REQUEST_BYTES_MAX - 100;
    parser.state = State::BulkHeader;
    let mut bytes = vec![0; parser.at];
    bytes.extend_from_slice(b"$1000\r\n");
    assert_eq!(parser.parse(&bytes), Err(ProtocolError::RequestTooLong));
}

#[test]
fn a_big_bulk_is_awaited_without_looking_at_it() {
    let length = 8 << 20;
    let mut input = format!("*1\r\n${length}\r\n").into_bytes();
    let header = input.len();
    let mut parser = Parser::new();
    assert_eq!(parser.parse(&input), Ok(Progress::Incomplete { total: header + length + 2 }));
    // Byte by byte this would take minutes if anything were scanned again.
    input.resize(header + length, b'\n');
    for end in (header..input.len()).step_by(64) {
        assert_eq!(parser.parse(&input[..end]), Ok(Progress::Incomplete { total: header + length + 2 }));
        assert_eq!(parser.searched, 0);
    }
    input.extend_from_slice(b"\r\n");
    assert_eq!(parser.parse(&input), Ok(Progress::Complete { consumed: input.len() }));
}

#[test]
fn many_promised_arguments_reserve_nothing() {
    let mut parser = Parser::new();
    assert!(matches!(parser.parse(b"*1048576\r\n$1\r\na\r\n"), Ok(Progress::Incomplete { .. })));
    assert!(parser.ranges.capacity() < 64);
}

fn encode(requests: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        bytes.extend_from_slice(format!("*{}\r\n", request.len()).as_bytes());
        for arg in request {
            bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            bytes.extend_from_slice(arg);
            bytes.extend_from_slice(b"\r\n");
        }
    }
    bytes
}

fn chunks<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// Bytes that look like RESP often enough to reach deep states.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        Just(b"*".to_vec()),
        Just(b"$".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\"".to_vec()),
        Just(b"'".to_vec()),
        Just(b"\\x4".to_vec()),
        Just(b"*1\r\n$".to_vec()),
        Just(b"$3\r\nGET\r\n".to_vec()),
        (0i64..40).prop_map(|number| number.to_string().into_bytes()),
        any::<i64>().prop_map(|number| number.to_string().into_bytes()),
        prop::collection::vec(any::<u8>(), 0..6),
    ];
    prop::collection::vec(token, 0..40).prop_map(|tokens| tokens.concat())
}

proptest! {
    #[test]
    fn splits_do_not_matter(
        sent in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..6), 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let bytes = encode(&sent);
        let (found, error) = requests(&chunks(&bytes, &cuts));
        prop_assert_eq!(error, None);
        prop_assert_eq!(found, sent);
    }

    #[test]
    fn garbage_never_panics_and_splits_do_not_change_it(
        bytes in garbage(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        prop_assert_eq!(all(&bytes), requests(&chunks(&bytes, &cuts)));
    }
}
