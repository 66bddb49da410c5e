//! Each known bug of the checkpoints is caught.

use std::path::Path;
use std::time::Duration;

use lockgate_engine::{Engine, Term};
use lockgate_runtime::mutations::activate;
use lockgate_runtime::sim::Sim;

use super::cuts::{End, run};
use super::lasting;
use crate::common::{FIRST, key, own, slot_of, version};

/// Whether ending the scripted life like this, at one moment or another, shows that something is wrong.
fn is_caught(bug: &'static str, how: End) -> bool {
    activate(Some(bug));
    let whole = run(1, None);
    let caught = whole.problem.is_some()
        || (1..whole.polls).rev().any(|poll| run(1, Some((poll, how))).problem.is_some());
    activate(None);
    caught
}

/// A checkpoint that is abandoned at the last moment, and then writes for which log space is used again. Returns whether all
/// is there after a restart.
fn abandoned_and_written_on(seed: u64) -> bool {
    let sim = Sim::new(seed);
    let node = sim.node("a", 1);
    let runtime = node.clone();
    node.block_on(0, move || async move {
        let open = || {
            let builder = Engine::builder("/data").cores(1).log_file_bytes(16 << 10);
            builder.automatic_checkpoints(false).open_on(&runtime)
        };
        let engine = open().await.unwrap();
        let write = async |round: u8| {
            for number in 0..60 {
                let receipt = engine.keyspace(0).set(&key("x", number), &[round; 3_000]).unwrap();
                receipt.synced().await.unwrap();
            }
        };
        write(1).await;
        // Where the next manifest belongs there is something that cannot be removed like a file.
        let in_the_way = Path::new("/data/checkpoint/manifest.tmp");
        lockgate_runtime::fs::create_dir_all(in_the_way).await.unwrap();
        engine.checkpoint().await.unwrap_err();
        write(2).await;
        let before = lasting(&engine);
        engine.close().await.unwrap();
        drop(engine);
        match open().await {
            Ok(engine) => lasting(&engine) == before,
            Err(_) => false,
        }
    })
}

#[test]
fn a_log_that_is_given_back_before_the_manifest_is_missed() {
    assert!(abandoned_and_written_on(1));
    activate(Some("log-given-back-before-manifest"));
    let is_fine = abandoned_and_written_on(1);
    activate(None);
    assert!(!is_fine);
}

#[test]
fn a_manifest_that_is_ahead_of_the_logs_loses_what_is_written_next() {
    assert!(is_caught("manifest-before-log-sync", End::CutAll));
}

#[test]
fn data_that_is_not_synced_is_missed() {
    assert!(is_caught("unsynced-checkpoint-data", End::CutAll));
}

#[test]
fn a_manifest_that_is_not_synced_is_missed() {
    assert!(is_caught("unsynced-manifest", End::CutAll));
}

#[test]
fn a_manifest_whose_name_is_not_synced_is_missed() {
    assert!(is_caught("unsynced-manifest-name", End::CutAll));
}

#[test]
fn a_manifest_that_was_found_and_is_not_synced_is_missed() {
    assert!(is_caught("unsynced-found-manifest", End::Kill));
}

/// Writes that are taken back while a checkpoint is under way: they lie behind where the log is replayed from, and before
/// what the slot has. Returns whether the slots are the same after a restart.
fn truncated_beside_a_checkpoint(seed: u64) -> bool {
    let sim = Sim::new(seed);
    let node = sim.node("a", 1);
    let runtime = node.clone();
    node.block_on(0, move || async move {
        let open = || {
            let builder = Engine::builder("/data").cores(1).clustered(true).log_file_bytes(1 << 20);
            builder.automatic_checkpoints(false).checkpoint_bytes_per_second(1 << 20).open_on(&runtime)
        };
        let engine = open().await.unwrap();
        let (mut early, mut late) = (("x", slot_of("x")), ("y", slot_of("y")));
        if early.1 > late.1 {
            std::mem::swap(&mut early, &mut late);
        }
        for (_, slot) in [early, late] {
            own(&engine, slot, FIRST, 1);
        }
        for number in 0..40 {
            let _ = engine.keyspace(0).set(&key(early.0, number), &[1; 20_000]).unwrap();
        }
        let write = |count: usize, value: &[u8]| {
            for number in 0..count {
                let _ = engine.keyspace(0).set(&key(late.0, number), value).unwrap();
            }
        };
        write(5, b"stays");
        let taking = engine.clone();
        let done = lockgate_runtime::Event::new();
        let (taken, notify) = (done.listen(), done.clone());
        lockgate_runtime::spawn(async move {
            taking.checkpoint().await.unwrap();
            notify.notify_all();
        });
        // The logs are noted, and the slots in front are being written, at their pace.
        lockgate_runtime::sleep(Duration::from_millis(100)).await;
        assert!(engine.stats().checkpoints.is_running);
        write(3, b"goes");
        engine.follow(late.1, FIRST).unwrap();
        engine.truncate(late.1, FIRST, version(1, 5)).unwrap();
        engine.own(late.1, FIRST, Term(2)).unwrap();
        write(2, b"comes");
        taken.await;
        let before = lasting(&engine);
        engine.close().await.unwrap();
        drop(engine);
        match open().await {
            Ok(engine) => lasting(&engine) == before,
            Err(_) => false,
        }
    })
}

#[test]
fn a_frame_that_a_slot_has_already_is_not_replayed() {
    assert!(truncated_beside_a_checkpoint(1));
    activate(Some("checkpoint-position-not-skipped"));
    let is_fine = truncated_beside_a_checkpoint(1);
    activate(None);
    assert!(!is_fine);
}
