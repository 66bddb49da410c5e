//! A real filesystem that fills up: writes are refused in words, nothing that was acknowledged is lost, and it goes on once
//! there is space.
//!
//! The test starts this program again in a mount namespace of its own, in which a small filesystem is mounted: an ext4 on a
//! loop device, or a tmpfs where that is not permitted. The mount, and with it the device, is gone with the namespace.

use std::path::{Path, PathBuf};
use std::process::Command;

use lockgate_engine::{Engine, OpError, Slot};

use crate::common::{builder, key, slot_of};

/// Where the small filesystem is, for the program in the namespace.
const INSIDE: &str = "LOCKGATE_SMALL_DISK";
/// Says that nothing could be mounted.
const NOT_PERMITTED: i32 = 77;

const SCRIPT: &str = r#"
cd "$1"
mkdir -p disk
truncate -s 48M image && mkfs.ext4 -q -m 0 image && mount -o loop image disk && kind=ext4 ||
    { mount -t tmpfs -o size=48m none disk && kind=tmpfs; } || exit 77
echo "a small disk: $kind"
LOCKGATE_SMALL_DISK="$1/disk" exec "$2" small_disk::inside_the_namespace --exact --nocapture --test-threads=1
"#;

#[test]
fn a_filesystem_fills_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = std::env::current_exe().expect("this program");
    // As root, and as a user who may be root in a namespace of users.
    for flags in [&["--mount"][..], &["--mount", "--map-root-user"][..]] {
        let mut command = Command::new("unshare");
        command.args(flags).args(["--propagation", "private", "sh", "-c", SCRIPT, "sh"]);
        let Ok(output) = command.arg(folder.path()).arg(&program).output() else { break };
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match output.status.code() {
            Some(0) => {
                assert!(text.contains("all acknowledged writes are there"), "{text}");
                return println!("{text}");
            }
            Some(NOT_PERMITTED) => {}
            // Where namespaces are not permitted, it does not come to the script.
            _ if !text.contains("a small disk") => {}
            status => panic!("{status:?}: {text}"),
        }
    }
    println!("*** mounting is not permitted here: THE TEST ON A SMALL FILESYSTEM IS SKIPPED ***");
}

fn open(disk: &Path) -> Result<Engine, lockgate_engine::OpenError> {
    builder(&disk.join("data"), 2)
        .log_file_bytes(1 << 20)
        .flush_interval_ms(20)
        .automatic_checkpoints(false)
        .open()
}

/// Takes space.
fn ballast(disk: &Path, number: usize) -> PathBuf {
    let path = disk.join(format!("ballast{number}"));
    std::fs::write(&path, vec![7; 6 << 20]).expect("there is space");
    path
}

fn value(count: usize) -> Vec<u8> {
    let mut value = count.to_le_bytes().to_vec();
    value.resize(1_000 + count % 3_000, count as u8);
    value
}

const KEYS: usize = 400;

/// What was acknowledged, by key: the number of the write.
struct Writer {
    acknowledged: Vec<Option<usize>>,
    count: usize,
}

impl Writer {
    fn name(&self, number: usize) -> Vec<u8> {
        key(&number.to_string(), 0)
    }

    /// Writes until it is refused, and returns which key was, and how.
    fn fill(&mut self, engine: &Engine) -> (Vec<u8>, OpError) {
        let mut unacknowledged = Vec::new();
        loop {
            self.count += 1;
            let number = self.count % KEYS;
            match engine.keyspace(0).set(&self.name(number), &value(self.count)) {
                Ok(receipt) => unacknowledged.push((number, self.count, receipt)),
                Err(OpError::LogBehind { .. }) => {
                    let room = engine.wait_log_room(slot_of(&number.to_string()));
                    lockgate_runtime::block_on_foreign(room).expect("not a core").expect("room");
                }
                Err(refused) => {
                    self.settle(engine, unacknowledged);
                    return (self.name(number), refused);
                }
            }
            if unacknowledged.len() == 50 {
                self.settle(engine, std::mem::take(&mut unacknowledged));
            }
        }
    }

    /// What is taken waits for its space, if there is none: it is asked for as far as it has come.
    fn settle(&mut self, engine: &Engine, receipts: Vec<(usize, usize, lockgate_engine::Receipt)>) {
        for (number, count, receipt) in receipts {
            if engine.log(receipt.ticket.core as usize).is_disk_full() && !engine.synced(receipt.ticket) {
                continue;
            }
            if receipt.wait_synced().is_ok() {
                self.acknowledged[number] = Some(count);
            }
        }
    }

    /// Every key has what was acknowledged, or a later write that was taken.
    fn check(&self, engine: &Engine) {
        for (number, acknowledged) in self.acknowledged.iter().enumerate() {
            let found = engine.keyspace(0).get(&self.name(number)).expect("a read");
            let found = found.map(|found| {
                let count = usize::from_le_bytes(*found.as_bytes().first_chunk().expect("eight bytes"));
                assert!(found == value(count)[..], "key {number} has a part of write {count}");
                count
            });
            assert!(
                found >= *acknowledged,
                "key {number}: {found:?} is there, {acknowledged:?} was promised"
            );
        }
    }
}

/// What is done on the small disk. Without its variable there is nothing to do.
#[test]
fn inside_the_namespace() {
    let Ok(disk) = std::env::var(INSIDE) else { return };
    let disk = Path::new(&disk);
    let ballasts = [ballast(disk, 0), ballast(disk, 1)];
    let mut writer = Writer { acknowledged: vec![None; KEYS], count: 0 };
    let engine = open(disk).expect("it opens");
    let (name, refused) = writer.fill(&engine);
    assert!(matches!(refused, OpError::DiskFull { .. }), "{refused}");
    println!("{refused}");
    writer.check(&engine);
    // It stays so, and reads go on.
    let again = engine.keyspace(0).set(&name, &value(1_000)).expect_err("there is no space");
    assert!(matches!(again, OpError::DiskFull { .. }), "{again}");
    writer.check(&engine);
    // Space comes back, and it goes on by itself.
    std::fs::remove_file(&ballasts[0]).expect("removed");
    let room = engine.wait_log_room(Slot::of_key(&name));
    lockgate_runtime::block_on_foreign(room).expect("not a core").expect("room");
    let more = [&name[..], b"more"].concat();
    engine.keyspace(0).set(&more, b"there is space").expect("taken").wait_synced().expect("synced");
    // Full again, and the process ends like that: the next one needs space of its own to begin.
    let (_, refused) = writer.fill(&engine);
    assert!(matches!(refused, OpError::DiskFull { .. }), "{refused}");
    std::fs::remove_file(&ballasts[1]).expect("removed");
    drop(engine);
    let engine = open(disk).expect("it opens again");
    writer.check(&engine);
    assert!(engine.keyspace(0).get(&more).expect("a read").is_some());
    println!("all acknowledged writes are there: {} were made", writer.count);
}
