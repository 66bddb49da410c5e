//! A failed sync or write of one core's log ends acknowledged writes on all of them, with that error; reads go on (R19).

use std::time::Duration;

use lockgate_engine::{Engine, OpError, Slot};
use lockgate_runtime::Runtime;
use lockgate_runtime::mutations;
use lockgate_runtime::sim::{Control, DiskFaults, Sim};

use crate::common::key;

/// A key whose slot is at home on this core of two.
fn key_of(engine: &Engine, core: usize) -> Vec<u8> {
    let keys = (0..).map(|number| key(&number.to_string(), number));
    let mut of_core = keys.filter(|key| engine.home_core(Slot::of_key(key)) == core);
    of_core.next().expect("half of all keys")
}

fn start(control: &Control) -> (Runtime, Engine) {
    let runtime = control.start("a", 2);
    let on = runtime.clone();
    let engine = runtime.block_on(0, move || async move {
        let builder = Engine::builder("/srv/a").cores(2).log_file_bytes(1 << 20).flush_interval_ms(1 << 40);
        builder.open_on(&on).await.expect("opened")
    });
    (runtime, engine)
}

/// Has one core's log fail, and says what a write to the other core's gets then.
fn refusal_of_the_other(seed: u64, fail: impl Fn(&Control)) -> Option<String> {
    let sim = Sim::new(seed);
    let control = sim.control();
    let (runtime, engine) = start(&control);
    let (mine, other) = (key_of(&engine, 0), key_of(&engine, 1));
    let (a, b) = (mine.clone(), other.clone());
    let loaded = engine.clone();
    runtime.block_on(0, move || async move {
        let keys = loaded.keyspace(0);
        keys.set(&a, b"old").expect("set").synced().await.expect("synced");
        keys.set(&b, b"old").expect("set").synced().await.expect("synced");
        // Taken before the failure, and not synced yet.
        keys.set(&b, b"taken").expect("set").written().await.expect("written");
    });
    fail(&control);
    let (failing, a) = (engine.clone(), mine.clone());
    let first = runtime.block_on(0, move || async move {
        let receipt = failing.keyspace(0).set(&a, b"lost").expect("set");
        receipt.synced().await.expect_err("the disk fails").to_string()
    });
    control.set_disk_faults("a", DiskFaults::default());
    let refused = engine.keyspace(0).set(&other, b"new");
    if refused.is_ok() {
        return None;
    }
    let error = refused.expect_err("refused");
    assert!(matches!(&error, OpError::LogFailed(_)) && !error.is_retryable());
    assert_eq!(error.to_string(), first, "the first error is kept");
    assert_eq!(engine.failure().expect("latched").to_string(), first);
    for core in 0..2 {
        assert_eq!(engine.log(core).failure().expect("latched").to_string(), first);
    }
    assert_eq!(engine.keyspace(0).get(&mine).expect("reads go on").expect("there").as_ref(), b"lost");
    assert_eq!(engine.keyspace(0).get(&other).expect("reads go on").expect("there").as_ref(), b"taken");
    assert_eq!(engine.keyspace(0).set(&mine, b"x").expect_err("refused").to_string(), first);
    // What the sound log had taken, it brings to the disk and says so.
    let (ending, ticket) = (engine.clone(), engine.keyspace(0).read(&other).expect("read").position);
    runtime.block_on(0, move || async move {
        let synced = lockgate_runtime::timeout(Duration::from_secs(10), ending.wait_synced(ticket)).await;
        synced.expect("it ends").expect("synced");
        assert!(ending.close().await.is_err());
    });
    control.cut_power("a", lockgate_runtime::sim::PowerLoss::All);
    std::mem::forget(engine);
    let (_runtime, engine) = start(&control);
    assert!(engine.failure().is_none());
    assert_eq!(engine.keyspace(0).get(&mine).expect("read").expect("there").as_ref(), b"old");
    assert_eq!(engine.keyspace(0).get(&other).expect("read").expect("there").as_ref(), b"taken");
    std::mem::forget(engine);
    Some(first)
}

#[test]
fn a_failed_sync_or_write_of_one_core_ends_writes_on_all() {
    for seed in 0..5 {
        let refusal = refusal_of_the_other(seed, |control| control.fail_next_sync("a")).expect("refused");
        assert!(refusal.contains("syncing") && refusal.contains("core-0"), "{refusal}");
        let write_fails = DiskFaults { write_fails_one_in: 1, ..DiskFaults::default() };
        let refusal =
            refusal_of_the_other(seed, |control| control.set_disk_faults("a", write_fails)).expect("refused");
        assert!(refusal.contains("writing") && refusal.contains("core-0"), "{refusal}");
    }
}

#[test]
fn a_latch_of_one_log_alone_is_noticed() {
    mutations::activate(Some("latch-covers-one-log"));
    let refusal = refusal_of_the_other(1, |control| control.fail_next_sync("a"));
    mutations::activate(None);
    assert_eq!(refusal, None, "the other core's log goes on");
}
