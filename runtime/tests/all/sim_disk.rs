//! Disks of the simulation: what power cuts and failed syncs leave, and disks that fail, fill up and rot.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use lockgate_runtime::sim::{DiskFaults, PowerLoss, Sim};
use lockgate_runtime::{File, OpenOptions, Runtime, fs, now_ns, spawn, yield_now};

const SEEDS: u64 = 60;
const SECTOR: usize = 512;

async fn open(path: &str) -> File {
    let options = OpenOptions::new().read(true).write(true).create(true);
    File::open(Path::new(path), &options).await.expect("opened")
}

async fn write(file: &File, bytes: Vec<u8>, offset: u64) {
    file.write_all_at(bytes, offset).await.0.expect("written");
}

/// A new file with a durable name, and `len` durable bytes of 1.
async fn synced(path: &str, len: usize) -> File {
    let file = open(path).await;
    write(&file, vec![1; len], 0).await;
    file.sync_data().await.expect("synced");
    fs::sync_dir(Path::new("/")).await.expect("synced");
    file
}

fn read(node: &Runtime, path: &'static str) -> Vec<u8> {
    node.block_on(0, move || async move { fs::read(Path::new(path)).await.expect("read") })
}

/// Cuts the power of the machine `node` and starts it again.
fn cut(sim: &Sim, loss: PowerLoss) -> Runtime {
    sim.control().cut_power("node", loss);
    sim.node("node", 1)
}

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.expect_err("it fails").raw_os_error()
}

#[test]
fn a_seeded_power_cut_tears_pages_by_sectors_and_keeps_what_was_synced() {
    let (mut kinds, mut lengths) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        sim.node("node", 1).block_on(0, || async {
            let file = synced("/file", 8192).await;
            write(&file, vec![2; 4096 + 1000], 4096).await;
        });
        let bytes = read(&cut(&sim, PowerLoss::Seeded), "/file");
        lengths.insert(bytes.len());
        assert!(bytes[..4096] == [1; 4096], "seed {seed}: what was synced is there");
        let kind = |sector: &[u8]| if sector == [2; SECTOR] { 'n' } else { 'o' };
        for sector in bytes[4096..8192].chunks(SECTOR) {
            assert!(sector == [1; SECTOR] || sector == [2; SECTOR], "seed {seed}: sectors are whole");
        }
        for sector in bytes[8192..].chunks(SECTOR) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "seed {seed}: sectors are whole");
            assert!(sector[0] == 0 || sector[0] == 2, "seed {seed}");
        }
        kinds.insert(bytes[4096..8192].chunks(SECTOR).map(kind).collect::<String>());
    }
    assert!(kinds.contains("oooooooo") && kinds.contains("nnnnnnnn") && kinds.len() > 10, "{kinds:?}");
    assert_eq!(lengths, BTreeSet::from([8192, 9192]));
}

#[test]
fn all_that_a_power_cut_can_take_is_taken_when_asked_for() {
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        sim.node("node", 1).block_on(0, || async {
            let file = synced("/file", 5000).await;
            write(&file, vec![2; 10_000], 100).await;
            open("/other").await.sync_data().await.expect("synced");
        });
        let node = cut(&sim, PowerLoss::All);
        assert_eq!(read(&node, "/file"), vec![1; 5000], "seed {seed}");
        let names = node.block_on(0, || async { fs::read_dir(Path::new("/")).await.expect("listed") });
        assert_eq!(names, ["file"], "seed {seed}");
    }
}

#[test]
fn of_the_changes_of_a_directory_the_first_ones_survive() {
    let mut seen = BTreeSet::new();
    for seed in 0..4 * SEEDS {
        let sim = Sim::new(seed);
        sim.node("node", 1).block_on(0, || async {
            synced("/old", 10).await;
            open("/a").await;
            open("/b").await;
            fs::rename(Path::new("/a"), Path::new("/c")).await.expect("renamed");
            fs::remove_file(Path::new("/old")).await.expect("removed");
            fs::rename(Path::new("/b"), Path::new("/c")).await.expect("renamed");
        });
        let node = cut(&sim, PowerLoss::Seeded);
        let names = node.block_on(0, || async { fs::read_dir(Path::new("/")).await.expect("listed") });
        seen.insert(names.join(" "));
    }
    let all = ["old", "a old", "a b old", "b c old", "b c", "c"].map(String::from);
    assert_eq!(seen, BTreeSet::from(all));
}

#[test]
fn a_rename_between_directories_happens_whole_or_not() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        sim.node("node", 1).block_on(0, move || async move {
            fs::create_dir_all(Path::new("/x")).await.expect("created");
            fs::create_dir_all(Path::new("/y")).await.expect("created");
            synced("/x/file", 10).await;
            fs::sync_dir(Path::new("/x")).await.expect("synced");
            fs::rename(Path::new("/x/file"), Path::new("/y/file")).await.expect("renamed");
            open("/y/other").await;
            if seed % 2 == 0 {
                // Makes the rename durable, and with it what /x had before.
                fs::sync_dir(Path::new("/y")).await.expect("synced");
            }
        });
        let node = cut(&sim, PowerLoss::Seeded);
        let names = node.block_on(0, || async {
            let in_x = fs::read_dir(Path::new("/x")).await.expect("listed").join(" ");
            let in_y = fs::read_dir(Path::new("/y")).await.expect("listed").join(" ");
            format!("{in_x}|{in_y}")
        });
        if seed % 2 == 0 {
            assert_eq!(names, "|file other", "seed {seed}");
        }
        seen.insert(names);
    }
    assert_eq!(seen, BTreeSet::from(["file|", "|file", "|file other"].map(String::from)));
}

#[test]
fn a_removed_directory_comes_back_as_far_as_that_was_not_synced() {
    let mut left = BTreeSet::new();
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        sim.node("node", 1).block_on(0, || async {
            fs::create_dir_all(Path::new("/a/b")).await.expect("created");
            for file in ["/a/b/file", "/a/file"] {
                open(file).await;
            }
            for path in ["/a/b", "/a", "/"] {
                fs::sync_dir(Path::new(path)).await.expect("synced");
            }
            fs::remove_dir_all(Path::new("/a")).await.expect("removed");
            assert!(!fs::exists(Path::new("/a")).await);
        });
        let node = cut(&sim, PowerLoss::Seeded);
        let paths = ["/a", "/a/b", "/a/b/file", "/a/file"];
        left.insert(node.block_on(0, move || async move {
            let mut there = Vec::new();
            for path in paths {
                there.extend(fs::exists(Path::new(path)).await.then_some(path));
            }
            there.join(" ")
        }));
    }
    assert!(left.contains("") && left.contains("/a /a/b /a/b/file /a/file"), "{left:?}");
    assert!(left.contains("/a /a/b /a/file"), "{left:?}");
}

#[test]
fn a_direct_read_shows_a_failed_sync_and_leaves_the_cache_as_it_is() {
    let sim = Sim::new(1);
    let node = sim.node("node", 1);
    node.block_on(0, || async { drop(synced("/file", 8192).await) });
    sim.fail_next_sync("node");
    node.block_on(0, || async {
        let file = open("/file").await;
        write(&file, vec![2; 4096], 0).await;
        file.sync_data().await.expect_err("it fails");
        // In no sync yet.
        write(&file, vec![3; 100], 4096).await;
        let options = OpenOptions { read: true, direct: true, ..OpenOptions::default() };
        let direct = File::open(Path::new("/file"), &options).await.expect("opened");
        let (read, on_disk) = direct.read_at(vec![0; 8192], 0).await;
        assert_eq!(read.expect("read"), 8192);
        assert!(
            on_disk[..4096] == [1; 4096] && on_disk[4096..4196] == [3; 100] && on_disk[4196..] == [1; 3996]
        );
        let (read, cached) = file.read_at(vec![0; 8192], 0).await;
        assert_eq!(read.expect("read"), 8192);
        assert!(cached[..4096] == [2; 4096] && cached[4096..] == on_disk[4096..]);
    });
}

#[test]
fn the_pages_of_a_failed_sync_are_lost_though_the_next_one_succeeds() {
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        let node = sim.node("node", 1);
        node.block_on(0, || async { drop(synced("/file", 8192).await) });
        sim.fail_next_sync("node");
        node.block_on(0, || async {
            let file = open("/file").await;
            write(&file, vec![2; 4096], 0).await;
            assert_eq!(errno(file.sync_data().await), Some(libc::EIO));
            write(&file, vec![3; 4096], 4096).await;
            file.sync_data().await.expect("the next one has nothing to do with it");
        });
        let live = read(&node, "/file");
        assert!(live[..4096] == [2; 4096] && live[4096..] == [3; 4096], "seed {seed}: memory has all of it");
        let loss = if seed % 2 == 0 { PowerLoss::All } else { PowerLoss::Seeded };
        let durable = read(&cut(&sim, loss), "/file");
        assert!(durable[..4096] == [1; 4096] && durable[4096..] == [3; 4096], "seed {seed}");
    }
}

#[test]
fn a_sync_waits_for_what_another_one_writes_out() {
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        let node = sim.node("node", 1);
        node.block_on(0, || async {
            let file = synced("/file", 10).await;
            write(&file, vec![2; 10], 0).await;
            let first = file.clone();
            spawn(async move { first.sync_data().await.expect("synced") });
            yield_now().await;
            file.sync_data().await.expect("synced");
        });
        assert_eq!(read(&cut(&sim, PowerLoss::All), "/file"), [2; 10], "seed {seed}");
    }
}

#[test]
fn syncs_writes_and_reads_fail_as_often_as_they_are_to() {
    let sim = Sim::new(1);
    let node = sim.node("node", 1);
    node.block_on(0, || async { drop(synced("/file", 100).await) });
    let faults = DiskFaults {
        sync_fails_one_in: 4,
        write_fails_one_in: 3,
        read_fails_one_in: 2,
        ..DiskFaults::default()
    };
    sim.set_disk_faults("node", faults);
    let failures = node.block_on(0, || async {
        let file = open("/file").await;
        let mut failures = [0; 4];
        for _ in 0..600 {
            let (read, buf) = file.read_at(vec![0; 100], 0).await;
            assert_eq!(buf.len(), 100, "the buffer comes back");
            let results = [
                read.map(drop),
                file.write_all_at(vec![1; 100], 0).await.0,
                file.sync_data().await,
                fs::sync_dir(Path::new("/")).await,
            ];
            for (count, result) in failures.iter_mut().zip(results) {
                if result.is_err() {
                    assert_eq!(errno(result), Some(libc::EIO));
                    *count += 1;
                }
            }
        }
        failures
    });
    for (count, expected) in failures.into_iter().zip([300i32, 200, 150, 150]) {
        assert!((count - expected).abs() < 60, "{failures:?}");
    }
    sim.set_disk_faults("node", DiskFaults::default());
    assert_eq!(read(&node, "/file"), [1; 100]);
}

#[test]
fn a_failed_write_may_have_written_a_first_part() {
    let mut lengths = BTreeSet::new();
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        let node = sim.node("node", 1);
        sim.set_disk_faults("node", DiskFaults { write_fails_one_in: 1, ..DiskFaults::default() });
        node.block_on(0, || async {
            let result = open("/file").await.write_all_at(vec![1; 8192], 0).await.0;
            assert_eq!(errno(result), Some(libc::EIO));
        });
        let bytes = read(&node, "/file");
        assert_eq!(bytes, vec![1; bytes.len()]);
        lengths.insert(bytes.len());
    }
    assert_eq!(lengths, BTreeSet::from([0, 4096, 8192]));
}

#[test]
fn a_full_disk_takes_no_more_until_something_is_removed() {
    let sim = Sim::new(1);
    let node = sim.node("node", 1);
    sim.set_disk_faults("node", DiskFaults { capacity_bytes: Some(65_536), ..DiskFaults::default() });
    node.block_on(0, || async {
        let zeros: &'static [u8] = &[0; 40_960];
        open("/zeros").await.write_all_at(zeros, 0).await.0.expect("written");
        let file = open("/file").await;
        write(&file, vec![1; 8192], 0).await;
        let full = file.write_all_at(vec![1; 40_960], 8192).await.0.expect_err("too much");
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert_eq!(file.len().await.expect("a length"), 24_576, "what fits was written");
        write(&file, vec![2; 24_576], 0).await;
        let options = OpenOptions::new().write(true).create(true);
        let full = File::open(Path::new("/third"), &options).await.expect_err("no room for it");
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    });
    assert_eq!(sim.disk_bytes("node"), 65_536);
    node.block_on(0, || async {
        let held = open("/zeros").await;
        fs::remove_file(Path::new("/zeros")).await.expect("removed");
        let options = OpenOptions::new().write(true).create(true);
        File::open(Path::new("/third"), &options).await.expect_err("an open file keeps its room");
        drop(held);
        write(&open("/third").await, vec![3; 40_960], 0).await;
    });
    assert_eq!(sim.disk_bytes("node"), 65_536);
    cut(&sim, PowerLoss::All);
    assert_eq!(sim.disk_bytes("node"), 0, "nothing was synced");
}

#[test]
fn slow_writes_and_syncs_take_their_time() {
    let sim = Sim::new(1);
    let node = sim.node("node", 1);
    let slow = DiskFaults { slow_one_in: 1, slow_ns: (50_000_000, 60_000_000), ..DiskFaults::default() };
    sim.set_disk_faults("node", slow);
    node.block_on(0, || async {
        let file = open("/file").await;
        let began = now_ns();
        write(&file, vec![1; 10], 0).await;
        let written = now_ns();
        file.sync_data().await.expect("synced");
        let synced = now_ns();
        file.read_at(vec![0; 10], 0).await.0.expect("read");
        let read = now_ns();
        assert!((50_000_000..61_000_000).contains(&(written - began)));
        assert!((50_000_000..62_000_000).contains(&(synced - written)));
        assert!(read - synced < 1_000_000);
    });
}

#[test]
fn rot_flips_bits_on_the_disk_and_in_memory() {
    for seed in 0..SEEDS {
        let sim = Sim::new(seed);
        let node = sim.node("node", 1);
        node.block_on(0, || async {
            fs::create_dir_all(Path::new("/logs")).await.expect("created");
            let file = synced("/logs/file", 5000).await;
            fs::sync_dir(Path::new("/logs")).await.expect("synced");
            let zeros: &'static [u8] = &[0; 40_960];
            file.write_all_at(zeros, 8192).await.0.expect("written");
            file.sync_data().await.expect("synced");
            synced("/other", 5000).await;
        });
        assert_eq!(sim.rot("node", "/nothing", 3), 0);
        assert_eq!(sim.rot("node", "/logs/", 7), 7);
        let rotten = |bytes: &[u8]| -> u32 {
            bytes[..5000].iter().map(|byte| (byte ^ 1).count_ones()).sum::<u32>()
                + bytes[5000..].iter().map(|byte| byte.count_ones()).sum::<u32>()
        };
        assert_eq!(rotten(&read(&node, "/logs/file")), 7, "seed {seed}");
        assert_eq!(rotten(&read(&node, "/other")), 0, "seed {seed}");
        let durable = read(&cut(&sim, PowerLoss::All), "/logs/file");
        assert_eq!(rotten(&durable), 7, "seed {seed}");
        assert!(durable[8192..].iter().all(|byte| *byte == 0), "seed {seed}: pages of zeros do not rot");
    }
}

#[test]
fn a_wiped_disk_is_empty() {
    let sim = Sim::new(1);
    sim.node("node", 1).block_on(0, || async { drop(synced("/file", 100).await) });
    assert_eq!(sim.disk_bytes("node"), 4096);
    sim.kill("node");
    sim.wipe_disk("node");
    assert_eq!(sim.disk_bytes("node"), 0);
    let names =
        sim.node("node", 1).block_on(0, || async { fs::read_dir(Path::new("/")).await.expect("listed") });
    assert!(names.is_empty(), "{names:?}");
}
