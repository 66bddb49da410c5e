//! What makes no sense is answered by an error that says what is wrong, and the node goes on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use crate::common::{Cluster, NodeProcess, PATIENCE, ask, key_of, migrate_slots, until};
use lockgate::client::Reply;

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the node accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Sends bytes as they are; what the node answers until it closes the connection.
fn send_raw(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(addr);
    // The node may close before it has taken all.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    // A close with bytes unread is a reset; what was answered before counts.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn assert_goes_on(node: &NodeProcess) {
    assert_eq!(node.ask(&["PING"]), Ok(Reply::Simple("PONG".into())));
    let key = key_of(1, 9);
    assert_eq!(node.ask(&["SET", &key, "served"]), Ok(Reply::Simple("OK".into())));
    assert_eq!(node.ask(&["GET", &key]), Ok(Reply::Bulk(b"served".to_vec())));
}

#[test]
fn commands_that_make_no_sense_are_answered_in_words() {
    let cluster = Cluster::start(1, 0, &[]);
    let node = &cluster.nodes[0];
    let mut connection = node.connect();
    let (here, there) = (key_of(1, 0), key_of(2, 0));
    let long_key = "k".repeat(1 << 20);
    let arity = |name: &str| format!("ERR wrong number of arguments for '{name}' command");
    let cases: Vec<(Vec<&str>, String)> = vec![
        (
            vec!["FLY", "me", "away"],
            "ERR unknown command 'FLY', with args beginning with: 'me' 'away' ".into(),
        ),
        (vec!["SUPERCALIFRAGILISTICEXPIALIDOCIOUS"], "ERR unknown command 'SUPERCALI".into()),
        (vec![""], "ERR unknown command ''".into()),
        (vec!["GET"], arity("get")),
        (vec!["GET", "a", "b"], arity("get")),
        (vec!["SET", "a"], arity("set")),
        (vec!["SET", "a", "1", "EX"], "ERR syntax error".into()),
        (vec!["SET", "a", "1", "NX", "XX"], "ERR syntax error".into()),
        (vec!["SET", "a", "1", "EX", "soon"], "ERR value is not an integer or out of range".into()),
        (vec!["SET", "a", "1", "EX", "0"], "ERR invalid expire time in 'set' command".into()),
        (vec!["GETEX", "a", "PX", "-5"], "ERR invalid expire time in 'getex' command".into()),
        (vec!["PEXPIRE", "a", "9223372036854775807"], "ERR invalid expire time in 'pexpire' command".into()),
        (vec!["EXPIRE", "a", "5", "FT"], "ERR Unsupported option FT".into()),
        (vec!["DEL"], arity("del")),
        (vec!["EXISTS"], arity("exists")),
        (vec!["MGET"], arity("mget")),
        (vec!["DBSIZE", "x"], arity("dbsize")),
        (vec!["ECHO"], arity("echo")),
        (vec!["PING", "a", "b"], arity("ping")),
        (vec!["WAITAOF", "1"], arity("waitaof")),
        (vec!["WAITAOF", "2", "0", "10"], "ERR WAITAOF numlocal must be 0 or 1".into()),
        (vec!["WAITAOF", "1", "0", "-1"], "ERR value is not an integer or out of range".into()),
        (vec!["CLUSTER"], arity("cluster")),
        (vec!["CLUSTER", "KEYSLOT"], arity("cluster|keyslot")),
        (vec!["CLUSTER", "NONSENSE"], "ERR unknown subcommand 'NONSENSE'".into()),
        (vec!["HELLO", "3"], "NOPROTO unsupported protocol version".into()),
        (vec!["SELECT", "1"], "ERR SELECT is not allowed in cluster mode".into()),
        (vec!["MGET", &here, &there], "CROSSSLOT Keys in request don't hash to the same slot".into()),
        (vec!["DEL", &here, &there], "CROSSSLOT Keys in request don't hash to the same slot".into()),
        (vec!["GET", &long_key], "ERR key of 1048576 bytes is too long, the limit is".into()),
        (vec!["SET", &long_key, "v"], "ERR key of 1048576 bytes is too long, the limit is".into()),
        (vec!["MGET", "k", &long_key], "ERR key of 1048576 bytes is too long, the limit is".into()),
    ];
    for (args, wanted) in &cases {
        let error = ask(&mut connection, args).expect_err("an error");
        let start: String = args.iter().map(|arg| &arg[..arg.len().min(20)]).collect::<Vec<_>>().join(" ");
        assert!(error.starts_with(wanted), "{start} is answered by: {error}");
        // On the same connection: an error does not end it.
        assert_eq!(ask(&mut connection, &["PING"]), Ok(Reply::Simple("PONG".into())), "after {start}");
    }
    // What spans slots had no effect on any.
    assert_eq!(ask(&mut connection, &["SET", &here, "kept"]), Ok(Reply::Simple("OK".into())));
    ask(&mut connection, &["DEL", &here, &there]).expect_err("slots are crossed");
    assert_eq!(ask(&mut connection, &["GET", &here]), Ok(Reply::Bulk(b"kept".to_vec())));
    assert_goes_on(node);
}

#[test]
fn bad_slot_ranges_are_refused() {
    let cluster = Cluster::start(2, 1, &[]);
    let node = &cluster.nodes[0];
    let (mine, replica, other) = (node.name(), cluster.nodes[3].name(), cluster.nodes[2].name());
    let nobody = "0".repeat(40);
    let range = "Invalid or out of range slot";
    let cases = [
        (migrate_slots("0", "16384", &other), range),
        (migrate_slots("-1", "5", &other), range),
        (migrate_slots("x", "5", &other), range),
        (migrate_slots("0", "99999999999999999999", &other), range),
        (migrate_slots("9", "5", &other), "Start slot number 9 is greater than end slot number 5."),
        (migrate_slots("0", "9000", &other), "Requested slots span multiple shards"),
        (migrate_slots("9000", "9001", &other), "Slots are not served by this node."),
        (migrate_slots("0", "5", &nobody), "Unknown node name"),
        (migrate_slots("0", "5", "nobody"), "Invalid node name: nobody"),
        (migrate_slots("0", "5", &mine), "Target node can not be this node."),
        (migrate_slots("0", "5", &replica), "is not a primary"),
    ];
    for (args, wanted) in cases {
        let error = node.ask(&args).expect_err("an error");
        assert!(error.starts_with("ERR ") && error.contains(wanted), "{args:?} is answered by: {error}");
    }
    let overlapping = ["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", "0", "9", "9", "20", "NODE", &other];
    let cut = [&overlapping[..2], &overlapping[..4], &overlapping[..5], &overlapping[..8], &overlapping[..]];
    let texts = [
        "wrong number of arguments for 'cluster|migrateslots' command",
        "No end slot for final slot range",
        "No NODE given for the last SLOTSRANGE",
        "No node name given after NODE",
        "overlaps with previous range 0-9.",
    ];
    for (args, wanted) in cut.into_iter().zip(texts) {
        let error = node.ask(args).expect_err("an error");
        assert!(error.contains(wanted), "{args:?} is answered by: {error}");
    }
    let not_primary = cluster.nodes[1].ask(&migrate_slots("0", "5", &other)).expect_err("an error");
    assert!(not_primary.contains("only be used on primary nodes"), "{not_primary}");
    assert_eq!(node.ask(&["CLUSTER", "GETSLOTMIGRATIONS"]), Ok(Reply::Array(Vec::new())));
    assert_goes_on(node);
}

#[test]
fn bytes_that_are_no_commands_end_the_connection_with_a_reason() {
    let cluster = Cluster::start(1, 0, &[]);
    let node = &cluster.nodes[0];
    let cases: &[(&[u8], &str)] = &[
        (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$629145600\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        (b"*2\r\n$3\r\nGET\r\n$-7\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        (b"*2\r\n$3\r\nGET\r\n:7\r\n", "-ERR Protocol error: expected '$', got ':'\r\n"),
        (b"*99999999\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*x\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        (
            b"*2\r\n$3\r\nGET\r\n$1\r\nabcd\r\n",
            "-ERR Protocol error: bulk of 1 bytes is not followed by CR LF\r\n",
        ),
        (b"GET \"k\r\n", "-ERR Protocol error: unbalanced quotes in request\r\n"),
        // Commands before the nonsense are still answered.
        (b"PING\r\n*1\r\n$x\r\n", "+PONG\r\n-ERR Protocol error: invalid bulk length\r\n"),
    ];
    for (bytes, wanted) in cases {
        assert_eq!(send_raw(node.listen, bytes), *wanted, "{}", bytes.escape_ascii());
    }
    assert_eq!(send_raw(node.listen, &[b'a'; 70_000]), "-ERR Protocol error: too big inline request\r\n");
    assert_goes_on(node);
}

#[test]
fn half_a_command_has_no_effect() {
    let cluster = Cluster::start(1, 0, &[]);
    let node = &cluster.nodes[0];
    let whole = b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$5\r\nvalue\r\n";
    for length in 1..whole.len() {
        let mut stream = connect(node.listen);
        stream.write_all(&whole[..length]).expect("sent");
        stream.shutdown(Shutdown::Write).expect("shut down");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the node closes");
        assert!(answer.is_empty(), "{length} bytes are answered by {}", answer.escape_ascii());
    }
    // One announced at 500 MB of which nearly nothing comes, and one cut off without a word.
    let mut stream = connect(node.listen);
    stream.write_all(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$500000000\r\nvalue").expect("sent");
    drop(stream);
    assert_eq!(node.ask(&["GET", "half"]), Ok(Reply::Null));
    assert_goes_on(node);
}

/// A link frame with a right checksum.
fn frame(kind: u8, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    header.extend_from_slice(&[kind, 0, 0, 0]);
    header.extend_from_slice(&sequence.to_le_bytes());
    let checksum = crc32c(&[&header, payload].concat());
    header.extend_from_slice(&checksum.to_le_bytes());
    [&header, payload].concat()
}

/// CRC32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// A Hello of this purpose, from nobody.
fn hello(purpose: u8) -> Vec<u8> {
    let mut payload = Vec::from(*b"LGLK");
    payload.extend_from_slice(&[1, 0, purpose, 0]);
    payload.resize(56, 0);
    frame(1, 0, &payload)
}

/// An administrator's link on which the node has answered the Hello.
fn greeted(node: &NodeProcess) -> TcpStream {
    let mut stream = connect(node.link);
    stream.write_all(&hello(3)).expect("sent");
    let mut welcome = [0; 72];
    stream.read_exact(&mut welcome).expect("a welcome");
    assert_eq!(&welcome[16..20], b"LGLK");
    stream
}

#[test]
fn malformed_link_frames_end_the_link_with_a_reason() {
    let cluster = Cluster::start(1, 0, &[]);
    let node = &cluster.nodes[0];
    let mut flipped = hello(3);
    flipped[30] ^= 1;
    let mut oversized = hello(3);
    oversized[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    // What is sent first, and what the node writes of it.
    let cases: [(&[u8], &str); 6] = [
        (&[0xA5; 4_096], "damaged bytes from"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "damaged bytes from"),
        (&flipped, "checksum of frame 0 does not match"),
        (&oversized, "claims 4294967295 bytes, the limit is"),
        (&frame(1, 7, b"LGLK"), "frame 7 came where frame 0 was due"),
        (&frame(1, 0, b"nothing like a hello"), "does not speak this protocol"),
    ];
    for (bytes, wanted) in cases {
        let before = node.output().len();
        assert!(!send_raw(node.link, bytes).contains("LGLK\u{1}\0\u{3}"), "no welcome to {wanted}");
        let told = || {
            let told = node.output().split_off(before);
            told.contains(wanted).then_some(())
        };
        until(&format!("the node says {wanted:?}"), told);
    }
    // A node that is no member is told so.
    let refused = send_raw(node.link, &hello(1));
    assert!(refused.contains("cluster"), "{refused:?}");
    // A proper beginning, then garbage: the link ends.
    let before = node.output().len();
    let mut stream = greeted(node);
    stream.write_all(&[0x5A; 300]).expect("sent");
    let _ = stream.read_to_end(&mut Vec::new());
    let told = || node.output().split_off(before).contains("damaged bytes from").then_some(());
    until("the node says what it got", told);
    // A proper frame whose message is none: the answer says so.
    let mut stream = greeted(node);
    stream.write_all(&frame(16, 1, &[0xFF; 40])).expect("sent");
    let mut header = [0; 16];
    // Pings, which have no payload, may come first.
    while header[4] != 16 {
        stream.read_exact(&mut header).expect("an answer");
    }
    let mut answer = vec![0; usize::from(header[0])];
    stream.read_exact(&mut answer).expect("the whole answer");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("message of 40 bytes is malformed"), "{answer}");
    assert_goes_on(node);
}

#[test]
fn a_stop_ends_clients_and_the_process() {
    let mut cluster = Cluster::start(1, 0, &[]);
    let node = &mut cluster.nodes[0];
    let mut idle = node.connect();
    assert_eq!(ask(&mut idle, &["PING"]), Ok(Reply::Simple("PONG".into())));
    let mut half = connect(node.listen);
    half.write_all(b"*2\r\n$3\r\nGET\r\n$1").expect("sent");
    let _link = greeted(node);
    assert_eq!(node.terminate().code(), Some(0), "{}", node.output());
    assert!(ask(&mut idle, &["PING"]).is_err());
    assert!(!node.output().contains("panicked"), "{}", node.output());
}
