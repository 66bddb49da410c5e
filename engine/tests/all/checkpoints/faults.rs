//! A checkpoint that cannot be finished is abandoned: nothing is lost by it, its files go, and it is tried again.

use std::path::Path;
use std::time::Duration;

use lockgate_engine::{CheckpointError, CheckpointStats, Engine, EngineBuilder};
use lockgate_runtime::sim::{DiskFaults, Sim};
use lockgate_runtime::{Runtime, fs, sleep};

use super::lasting;
use crate::common::key;

const DIRECTORY: &str = "/data";

fn builder(cores: usize) -> EngineBuilder {
    Engine::builder(DIRECTORY).cores(cores).log_file_bytes(1 << 20).automatic_checkpoints(false)
}

fn open(node: &Runtime, builder: EngineBuilder) -> Engine {
    let runtime = node.clone();
    node.block_on(0, move || async move { builder.open_on(&runtime).await.unwrap() })
}

fn names(node: &Runtime) -> Vec<String> {
    node.block_on(0, || async { fs::read_dir(Path::new("/data/checkpoint")).await.unwrap() })
}

fn take(node: &Runtime, engine: &Engine) -> Result<CheckpointStats, CheckpointError> {
    let engine = engine.clone();
    node.block_on(0, move || async move { engine.checkpoint().await })
}

fn pass(node: &Runtime, seconds: u64) {
    node.block_on(0, move || sleep(Duration::from_secs(seconds)));
}

fn close(node: &Runtime, engine: Engine) {
    node.block_on(0, move || async move { engine.close().await.unwrap() });
}

/// Writes and syncs, and gives the logs the time to prepare what they want.
fn write(node: &Runtime, engine: &Engine, bytes: usize) {
    let engine = engine.clone();
    node.block_on(0, move || async move {
        for number in 0..50 {
            let _ = engine.keyspace(0).set(&key(&number.to_string(), 0), &vec![number as u8; bytes]).unwrap();
        }
        engine.sync_all().await.unwrap();
    });
    pass(node, 5);
}

fn is_data(name: &str) -> bool {
    name.ends_with(".data")
}

#[test]
fn a_full_disk_abandons_one_and_space_brings_the_next() {
    let sim = Sim::new(5);
    let (node, control) = (sim.node("a", 2), sim.control());
    let engine = open(&node, builder(2));
    write(&node, &engine, 3_000);
    let first = take(&node, &engine).unwrap();
    write(&node, &engine, 4_000);
    let capacity_bytes = Some(control.disk_bytes("a") + 60_000);
    control.set_disk_faults("a", DiskFaults { capacity_bytes, ..DiskFaults::default() });
    let before = names(&node);
    let refused = take(&node, &engine).unwrap_err();
    assert!(matches!(refused, CheckpointError::Io { .. }), "{refused}");
    assert_eq!(names(&node), before, "what it wrote is gone, and what was there is there");
    let stats = engine.stats().checkpoints;
    assert_eq!((stats.failures, stats.last), (1, Some(first)));
    assert_eq!(stats.last_error, Some(refused.to_string()));
    control.set_disk_faults("a", DiskFaults::default());
    let second = take(&node, &engine).unwrap();
    assert!(second.number > first.number);
    assert_eq!(engine.stats().checkpoints.last_error, None);
    let lasts = lasting(&engine);
    close(&node, engine);
    assert!(lasting(&open(&node, builder(2))) == lasts);
}

#[test]
fn a_failed_sync_abandons_one_and_its_files_are_not_used_again() {
    for seed in 0..30 {
        let sim = Sim::new(seed);
        let (node, control) = (sim.node("a", 2), sim.control());
        let engine = open(&node, builder(2));
        write(&node, &engine, 2_000);
        if seed % 2 == 0 {
            // Then the folder is there, and another sync fails.
            take(&node, &engine).unwrap();
        }
        let before = engine.stats().checkpoints;
        control.set_disk_faults(
            "a",
            DiskFaults { sync_fails_one_in: 1 + seed as u32 % 4, ..DiskFaults::default() },
        );
        let refused = take(&node, &engine);
        control.set_disk_faults("a", DiskFaults::default());
        let stats = engine.stats().checkpoints;
        match refused {
            Ok(taken) => assert_eq!(stats.last, Some(taken)),
            Err(error) => {
                assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
                assert_eq!((stats.last, stats.failures), (before.last, 1));
            }
        }
        let taken = take(&node, &engine).unwrap();
        let of_taken = format!("{:016x}.", taken.number);
        let names = names(&node);
        assert!(
            names.iter().filter(|name| is_data(name)).all(|name| name.starts_with(&of_taken)),
            "{names:?}"
        );
        let lasts = lasting(&engine);
        close(&node, engine);
        assert!(lasting(&open(&node, builder(2))) == lasts);
    }
}

#[test]
fn one_in_the_background_is_tried_again_after_a_pause() {
    let sim = Sim::new(9);
    let (node, control) = (sim.node("a", 1), sim.control());
    let engine = open(&node, builder(1).automatic_checkpoints(true).checkpoint_log_bytes(300_000));
    write(&node, &engine, 2_000);
    let capacity_bytes = Some(control.disk_bytes("a"));
    control.set_disk_faults("a", DiskFaults { capacity_bytes, ..DiskFaults::default() });
    write(&node, &engine, 6_000);
    pass(&node, 20);
    let stats = engine.stats().checkpoints;
    assert!((2..10).contains(&stats.failures) && stats.last.is_none(), "{stats:?}");
    control.set_disk_faults("a", DiskFaults::default());
    pass(&node, 70);
    let stats = engine.stats().checkpoints;
    assert!(stats.last.is_some() && stats.log_bytes_since < 300_000, "{stats:?}");
    close(&node, engine);
}

#[test]
fn an_engine_that_is_dropped_ends_the_one_that_is_taken() {
    let sim = Sim::new(11);
    let (node, control) = (sim.node("a", 2), sim.control());
    let engine = open(&node, builder(2).checkpoint_bytes_per_second(1));
    write(&node, &engine, 20_000);
    let (lasts, tasks) = (lasting(&engine), control.tasks("a"));
    let taking = engine.clone();
    node.block_on(0, move || async move {
        let taking = Box::pin(taking.checkpoint());
        let waited = lockgate_runtime::timeout(Duration::from_millis(50), taking).await;
        assert!(waited.is_err(), "at a byte a second it takes long");
    });
    assert!(control.tasks("a") > tasks);
    drop(engine);
    // It ends without a wait for its pace, and lets the directory go.
    pass(&node, 2);
    let engine = open(&node, builder(1));
    assert!(lasting(&engine) == lasts);
    assert!(!names(&node).iter().any(|name| is_data(name)), "{:?}", names(&node));
    take(&node, &engine).unwrap();
}
