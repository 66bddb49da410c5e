//! A filesystem that has no direct reads (O_DIRECT): logs are read without them, and what comes out is the same.
//!
//! ramfs is one, and is mounted by the child: this test program, started again in a namespace of its own with [`CHILD`] in
//! its environment.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use lockgate_engine::backup::{BackupFooter, BackupOptions, back_up_directory};
use lockgate_engine::check::{CheckReport, check};
use lockgate_engine::{Boot, Engine, MEMORY_BYTES_MAX_DEFAULT};
use lockgate_runtime::Runtime;
use rustix::fs::OFlags;

use crate::common::{builder, copy_directory, key};

/// The folder with the ramfs, and the one beside it.
const CHILD: &str = "LOCKGATE_NO_DIRECT_READS_CHILD";
const KEYS: usize = 300;

/// Leaves what a crash leaves, in `crashed`: a checkpoint, and logs that go on.
fn live(data: &Path, crashed: &Path) {
    let engine = builder(data, 2).log_file_bytes(64 << 10).open().expect("opened");
    for number in 0..KEYS {
        let receipt =
            engine.keyspace(0).set(&key(&format!("t{number}"), 0), &vec![number as u8; 10 * number]);
        receipt.expect("set").wait_synced().expect("synced");
        if number == KEYS / 2 {
            engine.checkpoint_blocking().expect("a checkpoint");
        }
    }
    copy_directory(data, crashed);
}

/// All that is found in a directory, by looking at it and by starting on it.
struct Found {
    report: CheckReport,
    backup: BackupFooter,
    boot: Boot,
    values: Vec<Vec<u8>>,
}

fn find(dir: &Path, backup: &Path) -> Found {
    let runtime = Runtime::builder().cores(1).pin(false).build().expect("a runtime");
    let (looked_at, file) = (dir.to_path_buf(), backup.to_path_buf());
    let (report, summary) = runtime.block_on(0, move || async move {
        let report = check(&looked_at, MEMORY_BYTES_MAX_DEFAULT).await.expect("checked");
        let options = BackupOptions::default();
        let summary = back_up_directory(&looked_at, &file, MEMORY_BYTES_MAX_DEFAULT, &options).await;
        (report, summary.expect("backed up"))
    });
    runtime.shutdown();
    let engine: Engine = builder(dir, 2).log_file_bytes(64 << 10).open().expect("opened");
    let value = |number| engine.keyspace(0).get(&key(&format!("t{number}"), 0)).expect("read");
    let values = (0..KEYS).map(|number| value(number).expect("it is there").as_bytes().to_vec()).collect();
    Found { report, backup: BackupFooter { ended_ms: 0, ..summary.footer }, boot: engine.boot(), values }
}

#[test]
fn the_child_lives_where_there_are_no_direct_reads() {
    let Ok(folders) = std::env::var(CHILD) else { return };
    let (refusing, other) = folders.split_once(':').expect("two folders");
    let (refusing, other) = (Path::new(refusing), Path::new(other));
    let direct = |folder: &Path| {
        let file = folder.join("file");
        std::fs::write(&file, b"content").expect("written");
        let flags = OFlags::DIRECT.bits() as i32;
        std::fs::OpenOptions::new().read(true).custom_flags(flags).open(file).map(|_| ())
    };
    let refused = direct(refusing).expect_err("there are no direct reads");
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
    live(&refusing.join("data"), &refusing.join("crashed"));
    copy_directory(&refusing.join("crashed"), &other.join("crashed"));
    let [here, there] = [refusing, other].map(|folder| find(&folder.join("crashed"), &folder.join("backup")));
    assert!(here.report.damage.is_empty(), "{:?}", here.report);
    assert!(here.boot.keeps_writes_of(1), "nothing was lost: {:?}", here.boot);
    for (number, value) in here.values.iter().enumerate() {
        assert!(*value == vec![number as u8; 10 * number], "key {number}");
    }
    assert!(here.values == there.values);
    assert_eq!((here.backup, here.boot), (there.backup, there.boot));
    // It names files.
    let said = |found: &Found, folder: &Path| {
        format!("{:?}", found.report).replace(folder.to_str().expect("text"), "")
    };
    assert_eq!(said(&here, refusing), said(&there, other));
    println!("{CHILD}: done");
}

#[test]
fn without_direct_reads_logs_are_read_all_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let (refusing, other) = (folder.path().join("ramfs"), folder.path().join("other"));
    std::fs::create_dir(&refusing).expect("created");
    std::fs::create_dir(&other).expect("created");
    let in_namespace = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(&refusing);
        command
    };
    const MOUNT: &str = "mount -t ramfs ramfs \"$1\"";
    match in_namespace(MOUNT).output() {
        Ok(tried) if tried.status.success() => {}
        tried => {
            eprintln!("SKIPPED: a ramfs cannot be mounted here, so nothing was tested on it: {tried:?}");
            return;
        }
    }
    let child = std::env::current_exe().expect("this program");
    let output = in_namespace(&format!("{MOUNT} && shift && exec \"$@\""))
        .arg(child)
        .args(["no_direct_reads::the_child_lives_where_there_are_no_direct_reads", "--exact", "--nocapture"])
        .env(CHILD, format!("{}:{}", refusing.display(), other.display()))
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let done = output.status.success() && said.contains(&format!("{CHILD}: done"));
    assert!(done, "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}
