//! `lockgate check` on directories of real nodes: its exit code, what it says, and what a repair leaves.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use lockgate::client::Reply;

use crate::common::{NodeProcess, ask, folder, form, lockgate};

fn check(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockgate"));
    let Output { status, stdout, stderr } =
        command.arg("check").args(args).output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// Flips a bit of a value in the data log, and returns the file's name.
fn flip(data: &Path, value: &str) -> String {
    for entry in fs::read_dir(data.join("log")).expect("the log's folder") {
        let path = entry.expect("an entry").path();
        let mut bytes = fs::read(&path).expect("the file is read");
        if let Some(at) = bytes.windows(value.len()).position(|window| window == value.as_bytes()) {
            bytes[at] ^= 4;
            fs::write(&path, bytes).expect("the file is written");
            return path.display().to_string();
        }
    }
    panic!("no file holds the value");
}

#[test]
fn a_nodes_directory_is_checked_and_repaired() {
    let folder = folder();
    let mut node = NodeProcess::start(&folder.path().join("node"), &[]);
    form(std::slice::from_ref(&node), 0);
    let mut connection = node.connect();
    for (key, value) in [("early", "first value"), ("damaged", "second value"), ("late", "last value")] {
        assert_eq!(ask(&mut connection, &["SET", key, value]), Ok(Reply::Simple("OK".into())));
        assert!(ask(&mut connection, &["WAITAOF", "1", "0", "30000"]).is_ok());
    }
    let data = node.data.to_str().expect("text").to_owned();
    let (code, _, errors) = check(&[&data]);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("in use by another process"), "{errors}");
    node.kill();
    let (code, told, errors) = check(&[&data]);
    assert_eq!(code, Some(0), "{told}{errors}");
    for part in ["core-0", "control", "not closed", "3 keys in 3 slots", "fine"] {
        assert!(told.contains(part), "{part:?} is not in: {told}");
    }
    let file = flip(&node.data, "second value");
    let (code, told, errors) = check(&[&data]);
    assert_eq!(code, Some(1), "{told}{errors}");
    assert!(
        told.contains(&file) && told.contains("byte offset") && told.contains("DAMAGED in one place"),
        "{told}"
    );
    let (code, told, _) = check(&[&data, "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((code, &told["check"]["damaged"]), (Some(1), &serde_json::Value::Bool(true)));
    assert_eq!(told["check"]["damage"][0]["file"], file);

    let (code, told, errors) = check(&[&data, "--repair"]);
    assert_eq!(code, Some(1), "{told}{errors}");
    let original = format!("{data}.damaged-1");
    for part in [original.as_str(), "LOST", "2 keys in 2 slots", "LEFT       cluster", "IN DOUBT"] {
        assert!(told.contains(part), "{part:?} is not in: {told}");
    }
    assert!(Path::new(&original).join("cluster").exists() && !node.data.join("cluster").exists());
    let (code, told, errors) = check(&[&data]);
    assert_eq!(code, Some(0), "{told}{errors}");
    // As if the repair had ended between the two names: nothing is begun there, and the next one goes on.
    let building = format!("{data}.building");
    fs::rename(&data, &building).expect("renamed");
    let refused = node.try_restart().expect_err("it is not begun anew");
    assert!(refused.errors.contains(&building) && !node.data.exists(), "{refused:?}");
    let (code, told, errors) = check(&[&data]);
    assert_eq!(code, Some(1), "{told}{errors}");
    assert!(
        told.contains(&building) && told.contains(&original) && told.contains("check --repair"),
        "{told}"
    );
    let (code, told, errors) = check(&[&data, "--repair"]);
    assert_eq!(code, Some(1), "{told}{errors}");
    assert!(told.contains("had made the new directory") && told.contains("2 keys in 2 slots"), "{told}");
    assert!(Path::new(&original).exists() && !Path::new(&building).exists());
    let (code, told, errors) = check(&[&data]);
    assert_eq!(code, Some(0), "{told}{errors}");
    // Its keys go back through a file.
    let backup = format!("{data}.backup");
    lockgate(&["backup", "--dir", &data, &backup]).expect("it is backed up");
    let fresh = NodeProcess::start(&folder.path().join("fresh"), &[]);
    form(std::slice::from_ref(&fresh), 0);
    let told = lockgate(&["restore", &backup, "--node", &fresh.listen.to_string()]).expect("restored");
    assert!(told.starts_with("2 keys were written"), "{told}");
    assert_eq!(fresh.ask(&["GET", "early"]), Ok(Reply::Bulk(b"first value".to_vec())));
    assert_eq!(fresh.ask(&["GET", "late"]), Ok(Reply::Bulk(b"last value".to_vec())));
}

#[test]
fn what_cannot_be_checked_is_no_damage() {
    let folder = folder();
    let nothing = folder.path().join("nothing");
    let (code, _, errors) = check(&[nothing.to_str().expect("text")]);
    assert_eq!(code, Some(2));
    assert!(errors.contains("nothing"), "{errors}");
    let (code, _, errors) = check(&[folder.path().to_str().expect("text")]);
    assert_eq!(code, Some(2));
    assert!(errors.contains("is not a data directory"), "{errors}");
    let (code, _, errors) = check(&["--in-place", "x"]);
    assert_eq!(code, Some(2));
    assert!(errors.contains("--repair"), "{errors}");
}
