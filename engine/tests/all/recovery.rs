//! What a restart finds: after a close, after a kill, after damage, with other core counts, and in the simulation.

use std::path::{Path, PathBuf};

use crate::common::{builder, copy_directory, key, slot_of, standalone};
use lockgate_engine::{Engine, OpenError, Slot, WaitError};

fn log_files(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|file| file.extension().is_some_and(|e| e == "log")).collect();
    files.sort();
    files
}

/// The last byte of the last file that is not zero: the end of what was written.
fn written_end(file: &Path) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1)
}

fn flip(file: &Path, at: u64) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at as usize] ^= 0x10;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn what_was_synced_is_there_after_a_kill() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = standalone(folder.path(), 2);
    let mut receipts = Vec::new();
    for number in 0..2_000 {
        receipts.push(
            engine.keyspace(0).set(&key(&number.to_string(), 0), format!("{number}").as_bytes()).unwrap(),
        );
    }
    for receipt in &receipts {
        receipt.wait_synced().unwrap();
        assert!(engine.synced(receipt.ticket) && engine.written(receipt.ticket));
    }
    // The engine goes on while its directory is looked at, as a kill would leave it.
    copy_directory(folder.path(), copy.path());
    let _ = engine.keyspace(0).set(b"later", b"v").unwrap();
    let again = standalone(copy.path(), 2);
    assert_eq!(again.boot().directory_id, engine.boot().directory_id);
    assert_eq!((engine.boot().number, again.boot().number), (1, 2));
    for number in 0..2_000 {
        let value = again.keyspace(0).get(&key(&number.to_string(), 0)).unwrap().unwrap();
        assert_eq!(value, format!("{number}").as_bytes());
    }
    let status = again.slot_status(slot_of("7"));
    assert!(
        again.synced(again.ticket_at(slot_of("7"), status.position)),
        "what was recovered is on the disk"
    );
}

#[test]
fn the_core_count_may_change_at_every_start() {
    let folder = tempfile::tempdir().unwrap();
    for (round, cores) in [2, 3, 1, 4, 2, 2, 1].into_iter().enumerate() {
        let engine = standalone(folder.path(), cores);
        for number in 0..300 {
            let key = key(&number.to_string(), 0);
            let expected = if round == 0 { None } else { Some(vec![round as u8 - 1; number % 50]) };
            let found = engine.keyspace(0).get(&key).unwrap().map(|value| value.as_bytes().to_vec());
            assert_eq!(found, expected, "round {round}, key {number}");
            if round % 2 == 1 && number % 3 == 0 {
                assert!(engine.keyspace(0).delete(&key).unwrap().0);
            }
            let _ = engine.keyspace(0).set(&key, &vec![round as u8; number % 50]).unwrap();
        }
        assert_eq!(engine.boot().number, round as u64 + 1);
    }
}

#[test]
fn damage_at_the_tail_is_cut_and_damage_before_it_is_named() {
    let (folder, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = builder(folder.path(), 1).flush_interval_ms(3_600_000).open().unwrap();
    for number in 0..50 {
        engine.keyspace(0).set(&key("x", number), &[7; 100]).unwrap().wait_synced().unwrap();
    }
    engine.keyspace(0).set(&key("x", 50), &[8; 100]).unwrap().wait_written().unwrap();
    copy_directory(folder.path(), killed.path());
    let file =
        log_files(killed.path()).into_iter().max_by_key(|file| written_end(file)).expect("there is a log");
    let end = written_end(&file);
    let open = |at: Option<u64>| {
        let copy = tempfile::tempdir().unwrap();
        copy_directory(killed.path(), copy.path());
        if let Some(at) = at {
            flip(&copy.path().join("log").join(file.file_name().unwrap()), at);
        }
        (builder(copy.path(), 1).open(), copy)
    };
    let keys = |engine: Engine| engine.keyspace(0).len();
    assert_eq!(keys(open(None).0.unwrap()), 51);
    for back in (1..=180).step_by(7) {
        // The last record was never synced: it may go, and nothing else.
        let (opened, copy) = open(Some(end - back));
        assert_eq!(keys(opened.unwrap()), 50, "bit flipped {back} bytes before the end");
        assert_eq!(keys(standalone(copy.path(), 2)), 50, "and what was cut stays cut");
    }
    for at in [4096 + 80, 4096 + 512 * 3 + 90, 4096 + 512 * 30 + 5] {
        let (opened, _copy) = open(Some(at));
        let error = opened.unwrap_err();
        assert!(matches!(error, OpenError::Recover(_)), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(file.file_name().unwrap().to_str().unwrap()) && text.contains("offset"),
            "{text}"
        );
    }
}

#[test]
fn one_engine_at_a_time_and_settings_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    let second = builder(folder.path(), 1).open().unwrap_err();
    assert!(matches!(second, OpenError::Meta(_)) && second.to_string().contains("in use"), "{second}");
    assert!(matches!(builder(folder.path(), 0).open(), Err(OpenError::Config { .. })));
    assert!(matches!(builder(folder.path(), 65).open(), Err(OpenError::Config { .. })));
    drop(engine);
    drop(standalone(folder.path(), 1));
}

#[test]
fn too_little_memory_to_recover_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    for number in 0..1000 {
        let _ = engine.keyspace(0).set(&key("x", number), &[7; 1000]).unwrap();
    }
    drop(engine);
    let error = builder(folder.path(), 1).memory_bytes_max(100 << 10).open().unwrap_err();
    assert!(error.to_string().contains("memory_bytes_max"), "{error}");
    assert_eq!(standalone(folder.path(), 1).keyspace(0).len(), 1000, "the refusal changed nothing");
}

#[test]
fn a_blocking_wait_on_a_core_is_a_typed_error() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    let on_core = engine.clone();
    let answer = engine.runtime().clone().block_on(0, move || async move {
        let receipt = on_core.keyspace(0).set(b"k", b"v").unwrap();
        let blocking = receipt.wait_synced();
        receipt.synced().await.unwrap();
        blocking
    });
    assert!(matches!(answer, Err(WaitError::OnCoreThread)));
}

#[test]
fn the_directory_is_shared_with_a_log_of_the_layer_above() {
    let folder = tempfile::tempdir().unwrap();
    let engine = standalone(folder.path(), 1);
    let on_core = engine.clone();
    engine.runtime().clone().block_on(0, move || async move {
        on_core.accept_ends("control", vec![(1, 0)]).await.unwrap();
        assert_eq!(on_core.known_ends("control").await, [(1, 0)]);
    });
    drop(engine);
    let engine = standalone(folder.path(), 1);
    let on_core = engine.clone();
    let known =
        engine.runtime().clone().block_on(0, move || async move { on_core.known_ends("control").await });
    assert_eq!(known, [(1, 0)]);
    assert_eq!(engine.log_dir(), folder.path().join("log"));
}

#[test]
fn the_same_engine_runs_in_the_simulation() {
    let run = |seed| {
        let sim = lockgate_runtime::sim::Sim::new(seed);
        let node = sim.node("a", 2);
        let runtime = node.clone();
        node.block_on(0, move || async move {
            let open = || Engine::builder("/data").cores(2).log_file_bytes(1 << 20).open_on(&runtime);
            let engine = open().await.unwrap();
            for number in 0..200 {
                let receipt = engine.keyspace(0).set(&key(&number.to_string(), 0), b"v").unwrap();
                if number % 10 == 0 {
                    receipt.synced().await.unwrap();
                }
            }
            engine.close().await.unwrap();
            let before: Vec<u64> = Slot::all().map(|slot| engine.slot_status(slot).digest).collect();
            drop(engine);
            let engine = open().await.unwrap();
            let after: Vec<u64> = Slot::all().map(|slot| engine.slot_status(slot).digest).collect();
            assert!(before == after && engine.keyspace(0).len() == 200);
            engine.close().await.unwrap();
        });
        sim.trace_hash()
    };
    assert_eq!(run(7), run(7));
}
