//! Backups by the command that people use: of a running node, of a directory at rest, into a new directory, and into a
//! running cluster.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use lockgate::client::Reply;
use tempfile::TempDir;

use crate::common::{Cluster, NodeProcess, edit, folder, form, lockgate, text, until};

const KEYS: usize = 300;

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

fn value(number: usize) -> String {
    format!("value-{number}-").repeat(1 + number % 7)
}

/// A node alone with a folder for backups, and keys: some with a deadline far away, some deleted again.
fn node_with_keys(folder: &TempDir) -> NodeProcess {
    let backups = folder.path().join("backups");
    let options = ["--backup-dir", backups.to_str().expect("text")];
    let node = NodeProcess::start(&folder.path().join("node"), &options);
    form(std::slice::from_ref(&node), 0);
    let mut connection = node.connect();
    for number in 0..KEYS {
        let (key, value) = (format!("key-{number}"), value(number));
        let deadline = (now_ms() + 3_600_000).to_string();
        let mut words = vec!["SET", &key, &value];
        if number % 4 == 0 {
            words.extend(["PXAT", &deadline]);
        }
        assert_eq!(crate::common::ask(&mut connection, &words), Ok(Reply::Simple("OK".into())));
    }
    for number in (0..KEYS).step_by(10) {
        let deleted = crate::common::ask(&mut connection, &["DEL", &format!("key-{number}")]);
        assert_eq!(deleted, Ok(Reply::Integer(1)));
    }
    node
}

/// All keys are there as they were, by way of any of the nodes.
fn assert_restored(cluster: &Cluster) {
    let mut client = cluster.client();
    for number in 0..KEYS {
        let key = format!("key-{number}");
        let found = match client.get(key.as_bytes()) {
            lockgate::client::Outcome::Acknowledged(found) => found,
            other => panic!("{key}: {other:?}"),
        };
        let wanted = (number % 10 != 0).then(|| value(number).into_bytes());
        assert_eq!(found, wanted, "{key}");
    }
    // Those with a deadline have it again.
    let ends = |key: &str| cluster.nodes.iter().find_map(|node| node.ask(&["PTTL", key]).ok());
    let Some(Reply::Integer(left_ms)) = ends("key-4") else { panic!("no deadline") };
    assert!((1..=3_600_000).contains(&left_ms), "{left_ms}");
    assert_eq!(ends("key-5"), Some(Reply::Integer(-1)));
}

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().expect("text").to_owned()
}

#[test]
fn a_running_node_is_backed_up_and_its_keys_are_written_into_another_cluster() {
    let folder = folder();
    let node = node_with_keys(&folder);
    let told = lockgate(&["backup", &node.listen.to_string(), "monday"]).expect("it is made");
    let file = path(&folder, "backups/monday");
    assert!(told.contains(&file) && told.contains("270 keys"), "{told}");
    let again = lockgate(&["backup", &node.listen.to_string(), "monday"]).unwrap_err();
    assert!(again.contains("is there already"), "{again}");
    let away = lockgate(&["backup", &node.listen.to_string(), "../monday"]).unwrap_err();
    assert!(away.contains("plain name"), "{away}");

    let told = lockgate(&["restore", &file, "--verify"]).expect("it is whole");
    assert!(told.contains("whole: 270 keys"), "{told}");
    let cluster = Cluster::start(2, 0, &[]);
    let told =
        lockgate(&["restore", &file, "--node", &cluster.nodes[1].listen.to_string()]).expect("restored");
    assert_eq!(told, "270 keys were written, 0 had ended meanwhile");
    assert_restored(&cluster);
    // What was written meanwhile under the same name is written over, and other keys stay.
    assert!(matches!(cluster.client().set(b"key-5", b"other"), lockgate::client::Outcome::Acknowledged(())));
    assert!(matches!(cluster.client().set(b"mine", b"stays"), lockgate::client::Outcome::Acknowledged(())));
    lockgate(&["restore", &file, "--node", &cluster.nodes[0].listen.to_string()]).expect("restored again");
    assert_restored(&cluster);
    let mine = cluster.client().get(b"mine");
    assert!(matches!(mine, lockgate::client::Outcome::Acknowledged(Some(_))), "{mine:?}");

    // A damaged file is refused before anything is written.
    edit(Path::new(&file), |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let refused = lockgate(&["restore", &file, "--node", &cluster.nodes[0].listen.to_string()]).unwrap_err();
    assert!(refused.contains(&file) && refused.contains("byte offset"), "{refused}");
}

#[test]
fn a_directory_at_rest_becomes_a_file_and_a_new_directory() {
    let folder = folder();
    let mut node = node_with_keys(&folder);
    let (data, file) = (path(&folder, "node"), path(&folder, "file"));
    let in_use = lockgate(&["backup", "--dir", &data, &file]).unwrap_err();
    assert!(in_use.contains("in use by another process"), "{in_use}");
    assert!(node.terminate().success());
    let told = lockgate(&["backup", "--dir", &data, &file]).expect("it is made");
    assert!(told.contains("270 keys"), "{told}");
    let new = path(&folder, "new");
    let told = lockgate(&["restore", &file, &new]).expect("it is restored");
    assert!(told.contains("270 keys"), "{told}");
    let again = lockgate(&["restore", &file, &new]).unwrap_err();
    assert!(again.contains("not empty"), "{again}");
    // The same keys, by way of a second file.
    let second = path(&folder, "second");
    let told = lockgate(&["backup", "--dir", &new, &second]).expect("it is made");
    assert!(told.contains("270 keys"), "{told}");
    // A cluster would drop them, so it is not begun with them.
    let served = NodeProcess::start(Path::new(&new), &[]);
    let refused = lockgate(&["cluster", "create", "--replicas", "0", &served.link.to_string()]).unwrap_err();
    assert!(refused.contains("has keys in") && refused.contains("lockgate restore --node"), "{refused}");
}

#[test]
fn keys_that_ended_meanwhile_are_not_written() {
    let folder = folder();
    let node = node_with_keys(&folder);
    let soon = (now_ms() + 2_000).to_string();
    assert!(node.ask(&["SET", "soon", "gone", "PXAT", &soon]).is_ok());
    lockgate(&["backup", &node.listen.to_string(), "file"]).expect("it is made");
    until("the key's time has come", || {
        node.ask(&["GET", "soon"]).ok().filter(|found| *found == Reply::Null)
    });
    let cluster = Cluster::start(1, 0, &[]);
    let (file, addr) = (path(&folder, "backups/file"), cluster.nodes[0].listen.to_string());
    let told = lockgate(&["restore", &file, "--node", &addr]).expect("it is restored");
    assert!(told.contains("270 keys were written, 1 had ended"), "{told}");
    assert_eq!(cluster.nodes[0].ask(&["GET", "soon"]), Ok(Reply::Null));
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = folder();
    let node = NodeProcess::start(&folder.path().join("node"), &[]);
    let refused = lockgate(&["backup", &node.listen.to_string(), "file"]).unwrap_err();
    assert!(refused.contains("--backup-dir"), "{refused}");
    let status = node.ask(&["LOCKGATE", "BACKUPSTATUS"]).expect("a status");
    let Reply::Array(parts) = status else { panic!("{status:?}") };
    assert_eq!(parts[..2].iter().map(text).collect::<Vec<_>>(), ["state", "none"]);
    let none = lockgate(&["backup", "file"]).unwrap_err();
    assert!(none.contains("ADDR"), "{none}");
    let nothing = lockgate(&["backup", "--dir", &path(&folder, "nothing"), "file"]).unwrap_err();
    assert!(nothing.contains("is not a data directory"), "{nothing}");
    let missing = lockgate(&["restore", &path(&folder, "missing"), &path(&folder, "new")]).unwrap_err();
    assert!(missing.contains("missing"), "{missing}");
    let help = lockgate(&["backup", "--help"]).expect("help");
    assert!(help.contains("[ADDR] <FILE>"), "{help}");
}
