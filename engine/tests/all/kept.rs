//! What an engine says about writes of earlier boots that were never synced; and syncing all.

use crate::common::{copy_directory, key, standalone};
use lockgate_engine::{Boot, Engine};
use lockgate_runtime::Runtime;
use lockgate_runtime::sim::{Control, DiskFaults, PowerLoss, Sim};

/// A life with a write that is written and not synced: nobody asks for a sync. Returns the engine, and how many keys it
/// had found.
fn live(runtime: &Runtime) -> (Engine, u64) {
    let on = runtime.clone();
    runtime.block_on(0, move || async move {
        let builder = Engine::builder("/srv/a").cores(2).log_file_bytes(1 << 20).flush_interval_ms(1 << 40);
        let engine = builder.open_on(&on).await.unwrap();
        let found = engine.keyspace(0).len();
        let number = engine.boot().number as usize;
        engine.keyspace(0).set(&key(&number.to_string(), 0), b"v").unwrap().written().await.unwrap();
        (engine, found)
    })
}

fn next(control: &Control) -> (Boot, u64) {
    let (engine, found) = live(&control.start("a", 2));
    let boot = engine.boot();
    // It ends with its process, not before.
    std::mem::forget(engine);
    (boot, found)
}

#[test]
fn the_end_of_a_process_loses_nothing_that_was_written_and_a_power_cut_is_remembered() {
    let sim = Sim::new(7);
    let control = sim.control();
    let (boot, _) = next(&control);
    assert_eq!((boot.number, boot.kept_since, boot.keeps_writes_of(1)), (1, 1, true), "a fresh directory");
    control.kill("a");
    let (boot, keys) = next(&control);
    assert_eq!((boot.number, boot.kept_since, keys), (2, 1, 1));
    assert!(boot.keeps_writes_of(1) && boot.keeps_writes_of(2) && !boot.keeps_writes_of(3));
    control.cut_power("a", PowerLoss::All);
    let (boot, keys) = next(&control);
    assert_eq!((boot.number, boot.kept_since), (3, 3));
    assert!(!boot.keeps_writes_of(2) && !boot.keeps_writes_of(1));
    assert_eq!(keys, 1, "the start of boot 2 had synced what boot 1 wrote, and its own write is lost");
    control.kill("a");
    // Who knows boot 2 only, as boot 3 was too short, must not be told that its writes are here.
    let (boot, keys) = next(&control);
    assert_eq!((boot.number, boot.kept_since, keys), (4, 3, 2));
    assert!(boot.keeps_writes_of(3) && !boot.keeps_writes_of(2));
}

#[test]
fn a_failed_sync_may_lose_what_was_written_also_without_a_power_cut() {
    let sim = Sim::new(8);
    let control = sim.control();
    next(&control);
    control.kill("a");
    let runtime = control.start("a", 2);
    let (engine, keys) = live(&runtime);
    assert_eq!((engine.boot().kept_since, keys), (1, 1));
    control.set_disk_faults("a", DiskFaults { sync_fails_one_in: 1, ..DiskFaults::default() });
    let syncing = engine.clone();
    runtime.block_on(0, move || async move { syncing.sync_all().await.unwrap_err() });
    control.set_disk_faults("a", DiskFaults::default());
    control.kill("a");
    let (boot, keys) = next(&control);
    assert_eq!((boot.kept_since, keys), (3, 1));
}

#[test]
fn a_look_at_a_directory_takes_nothing_from_what_the_next_start_can_tell() {
    let sim = Sim::new(9);
    let control = sim.control();
    next(&control);
    control.kill("a");
    let runtime = control.start("a", 2);
    let (engine, _) = live(&runtime);
    control.set_disk_faults("a", DiskFaults { sync_fails_one_in: 1, ..DiskFaults::default() });
    let syncing = engine.clone();
    runtime.block_on(0, move || async move { syncing.sync_all().await.unwrap_err() });
    std::mem::forget(engine);
    control.set_disk_faults("a", DiskFaults::default());
    control.kill("a");
    // It reads the logs from the disk, as a start does, and the system goes on to remember what the disk never got.
    let report = control.start("a", 2).block_on(0, || async {
        lockgate_engine::check::check("/srv/a".as_ref(), lockgate_engine::MEMORY_BYTES_MAX_DEFAULT)
            .await
            .unwrap()
    });
    assert_eq!((report.damage.len(), report.slots.unwrap().keys), (0, 1));
    control.kill("a");
    let (boot, keys) = next(&control);
    assert_eq!((boot.kept_since, keys), (3, 1), "the write of boot 2 is lost, and that is known");
}

#[test]
fn on_this_machine_a_closed_engine_keeps_what_it_wrote() {
    let folder = tempfile::tempdir().unwrap();
    drop(standalone(folder.path(), 2));
    let engine = standalone(folder.path(), 1);
    assert_eq!((engine.boot().number, engine.boot().kept_since), (2, 1));
}

#[test]
fn syncing_all_covers_every_log() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = crate::common::builder(folder.path(), 3).flush_interval_ms(1 << 40).open().unwrap();
    for number in 0..100 {
        let _ = engine.keyspace(0).set(&key(&number.to_string(), 0), b"v").unwrap();
    }
    let appended: Vec<_> = engine.stats().cores.iter().map(|core| core.log_appended).collect();
    lockgate_runtime::block_on_foreign(engine.sync_all()).unwrap().unwrap();
    for (core, appended) in engine.stats().cores.iter().zip(appended) {
        assert!(appended.0 > 0 && core.log_synced >= appended);
    }
    copy_directory(folder.path(), copy.path());
    assert_eq!(standalone(copy.path(), 1).keyspace(0).len(), 100);
    // Nothing to sync: it does not wait for anything.
    lockgate_runtime::block_on_foreign(engine.sync_all()).unwrap().unwrap();
}
