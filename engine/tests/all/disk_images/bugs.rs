//! Known bugs: every sync that the engine waits for is needed, and its absence is found by the images. So is a failed sync
//! that is tried again.

use std::path::Path;

use lockgate_engine::{Engine, OpError};
use lockgate_runtime::Runtime;
use lockgate_runtime::mutations::activate;
use lockgate_runtime::sim::{PowerLoss, Sim};

use super::script::Script;
use super::{SCRIPTS, run_all, trials};

/// Syncs that the engine does not wait for, and other breaches of an order of writes, by the name of the bug. Those of
/// other crates are tested there, that of threads that sync in `src/log/tests/lead.rs`, two more of checkpoints in `checkpoints/bugs.rs`, and that of a recycled file's name, which
/// shows between few moments only, with other lives of a log in `src/log/tests/recycle.rs`.
const BUGS: [&str; 14] = [
    "unsynced-directory",
    "unsynced-log-file",
    "unsynced-log-name",
    "unsynced-log-batch",
    "unsynced-awaited-batch",
    "unsynced-recovered-end",
    "unsynced-meta",
    "unsynced-replacement",
    "unsynced-recycled-header",
    "unsynced-checkpoint-data",
    "unsynced-manifest",
    "unsynced-manifest-name",
    "manifest-before-log-sync",
    "log-given-back-before-manifest",
];

/// Most bugs show at once. Those that need a kill at one of few moments may need more, as every change moves them.
const TRIALS_MAX: u64 = 12;
/// A run that has no such moment at all shows nothing, however often it is tried: then others are.
const OTHER_SEEDS: std::ops::Range<u64> = 10..14;
const OTHER_TRIALS_MAX: u64 = 4;

/// What is found wrong with the images of these runs, if each sync of that name is left out, in the run and in recoveries.
fn found_with(bug: &'static str, scripts: &[Script], trials_max: u64) -> Option<String> {
    let record = || {
        activate(Some(bug));
        scripts.iter().map(|script| (*script, script.record())).collect::<Vec<_>>()
    };
    let runs = std::panic::catch_unwind(record);
    activate(None);
    match runs {
        Ok(runs) => run_all(&trials(&runs, trials_max), Some(bug)).err(),
        Err(_) => Some("the run itself fails".into()),
    }
}

#[test]
fn no_sync_of_the_engine_may_be_left_out() {
    let mut missed = Vec::new();
    for bug in BUGS {
        let others = || {
            OTHER_SEEDS.map(|seed| Script { seed, ..SCRIPTS[seed as usize % SCRIPTS.len()] }).find_map(
                |script| {
                    found_with(bug, &[script], OTHER_TRIALS_MAX)
                        .map(|found| format!("seed {}: {found}", script.seed))
                },
            )
        };
        match found_with(bug, &SCRIPTS, TRIALS_MAX).or_else(others) {
            Some(found) => println!("{bug}: {found}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// What becomes of a write whose sync fails, and of one after it, when the power is cut then: whether each was called
/// synced, and whether it is there.
fn a_sync_fails() -> [(bool, bool); 2] {
    let sim = Sim::new(4);
    let open = |node: &Runtime| {
        let on = node.clone();
        node.block_on(0, move || async move {
            Engine::builder(Path::new("/data")).log_file_bytes(1 << 20).open_on(&on).await
        })
    };
    let node = sim.node("a", 1);
    let engine = open(&node).expect("it opens");
    sim.fail_next_sync("a");
    let writer = engine.clone();
    let synced = node.block_on(0, move || async move {
        let keys = writer.keyspace(0);
        // More than a page: what is written later does not bring its first pages to the disk.
        let first = keys.set(b"first", &[1; 9_000]).expect("taken");
        let first_synced = first.synced().await;
        let second = keys.set(b"second", b"2");
        if let Err(failed) = &first_synced {
            // The first error is kept: whoever comes later is told the same.
            let Err(OpError::LogFailed(again)) = &second else { panic!("a write was taken after {failed}") };
            assert_eq!(again.to_string(), failed.to_string());
            assert_eq!(first.synced().await.expect_err("final").to_string(), failed.to_string());
            assert!(writer.log(0).failure().is_some());
        }
        // Reads go on.
        assert_eq!(keys.get(b"first").expect("a read").expect("it is in memory"), &[1; 9_000][..]);
        let second_synced = match second {
            Ok(second) => second.synced().await.is_ok(),
            Err(_) => false,
        };
        [first_synced.is_ok(), second_synced]
    });
    sim.control().cut_power("a", PowerLoss::All);
    drop(engine);
    let node = sim.node("a", 1);
    // An engine that does not open has nothing.
    let engine = open(&node).ok();
    let is_there = |key: &[u8]| {
        engine.as_ref().is_some_and(|engine| engine.keyspace(0).get(key).expect("a read").is_some())
    };
    [(synced[0], is_there(b"first")), (synced[1], is_there(b"second"))]
}

#[test]
fn a_failed_sync_is_final() {
    assert_eq!(a_sync_fails(), [(false, false), (false, false)]);
    activate(Some("retry-after-failed-sync"));
    let believed = a_sync_fails();
    activate(None);
    assert!(believed.contains(&(true, false)), "the bug is without effect: {believed:?}");
}

/// A sync fails and the process is killed, so that the system holds as clean what the disk never got. Whether the next life
/// has the write of that sync, and whether one after a power cut has it.
fn lives_after_a_failed_sync() -> [bool; 2] {
    let sim = Sim::new(5);
    let control = sim.control();
    let open = |node: Runtime| {
        let on = node.clone();
        node.block_on(0, move || async move {
            Engine::builder(Path::new("/data")).log_file_bytes(1 << 20).open_on(&on).await
        })
    };
    let is_there = |engine: &Engine| engine.keyspace(0).get(b"lost").expect("a read").is_some();
    let node = control.start("a", 1);
    let engine = open(node.clone()).expect("it opens");
    sim.fail_next_sync("a");
    let writer = engine.clone();
    node.block_on(0, move || async move {
        let receipt = writer.keyspace(0).set(b"lost", &[1; 9_000]).expect("taken");
        receipt.synced().await.expect_err("the disk fails");
    });
    control.kill("a");
    std::mem::forget(engine);
    let engine = open(control.start("a", 1)).expect("it opens");
    let after_kill = is_there(&engine);
    control.cut_power("a", PowerLoss::All);
    std::mem::forget(engine);
    // What was accepted and is not there is damage.
    let after_power_cut = open(control.start("a", 1)).is_ok_and(|engine| {
        let found = is_there(&engine);
        std::mem::forget(engine);
        found
    });
    [after_kill, after_power_cut]
}

#[test]
fn what_a_recovery_has_found_the_disk_has() {
    assert_eq!(lives_after_a_failed_sync(), [false, false]);
    activate(Some("recovery-believes-the-cache"));
    let believed = lives_after_a_failed_sync();
    activate(None);
    assert_eq!(believed, [true, false], "the bug is without effect");
}
