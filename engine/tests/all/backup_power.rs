//! What a backup, a restoration and a repair promise, on the simulated disk: what they have finished outlives a power cut, and
//! each of their known bugs is found.

use std::path::Path;
use std::time::Duration;

use lockgate_engine::backup::{BackupOptions, RestoreOptions, restore, verify};
use lockgate_engine::check::{RepairOptions, check, repair};
use lockgate_engine::{Engine, MEMORY_BYTES_MAX_DEFAULT};
use lockgate_runtime::mutations::activate;
use lockgate_runtime::sim::{Control, PowerLoss, Sim};
use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{File, OpenOptions, fs, sleep};

use crate::common::{key, slot_of};

const KEYS: u64 = 40;

async fn engine(dir: &str) -> Engine {
    let builder = Engine::builder(dir).cores(1).log_file_bytes(64 << 10);
    builder.open_on(&lockgate_runtime::current()).await.unwrap()
}

/// Runs work on machine `a` to its end, and then cuts the power: only what is on the disk stays.
async fn then_cut<F: Future<Output = Result<(), String>> + 'static>(
    control: &Control,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<(), String> {
    let done = Arc::new(Mutex::new(None));
    let tell = done.clone();
    control.start("a", 1).spawn_on(0, move || async move {
        let outcome = work().await;
        *tell.lock() = Some(outcome);
    });
    loop {
        if let Some(outcome) = done.lock().take() {
            control.cut_power("a", PowerLoss::All);
            return outcome;
        }
        sleep(Duration::from_micros(100)).await;
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn backed_up_and_restored(control: Control) -> Result<(), String> {
    then_cut(&control, || async {
        let engine = engine("/srv/data").await;
        for number in 0..KEYS {
            let _ = engine.keyspace(0).set(&number.to_le_bytes(), &[1; 900]).unwrap();
        }
        engine.backup(Path::new("/srv/backup"), &BackupOptions::default()).await.map(drop).map_err(text)
    })
    .await?;
    then_cut(&control, || async {
        let file = Path::new("/srv/backup");
        verify(file, None).await.map_err(text)?;
        restore(file, Path::new("/srv/new"), &RestoreOptions::default()).await.map(drop).map_err(text)
    })
    .await?;
    then_cut(&control, || async {
        let found = check(Path::new("/srv/new"), MEMORY_BYTES_MAX_DEFAULT).await.map_err(text)?;
        let keys = found.slots.map(|slots| slots.keys);
        if found.is_damaged() || keys != Some(KEYS) { Err(format!("{found:?}")) } else { Ok(()) }
    })
    .await
}

fn outcome(seed: u64) -> Result<(), String> {
    let sim = Sim::new(seed);
    let result = Arc::new(Mutex::new(Ok(())));
    let (tell, control) = (result.clone(), sim.control());
    sim.run_until(async move {
        let outcome = backed_up_and_restored(control).await;
        *tell.lock() = outcome;
    });
    std::mem::replace(&mut *result.lock(), Ok(()))
}

#[test]
fn what_is_finished_outlives_a_power_cut() {
    for seed in 0..20 {
        assert_eq!(outcome(seed), Ok(()), "seed {seed}");
    }
}

#[test]
fn every_sync_is_needed() {
    for bug in ["unsynced-backup", "unsynced-backup-name"] {
        activate(Some(bug));
        let found = (0..10).any(|seed| outcome(seed).is_err());
        activate(None);
        assert!(found, "{bug} is not found");
    }
}

/// Flips a bit of a value in the log's file.
async fn damage(value: &[u8]) {
    let path = Path::new("/srv/data/log/core-0.0000000000000001.00000000.log");
    let bytes = fs::read(path).await.unwrap();
    let at = bytes.windows(value.len()).position(|window| window == value).unwrap();
    let file = File::open(path, &OpenOptions::new().read(true).write(true)).await.unwrap();
    file.write_all_at(vec![bytes[at] ^ 1], at as u64).await.0.unwrap();
    file.sync_data().await.unwrap();
}

/// How many keys a repair keeps of a slot that has lost one of its writes, and of another one.
fn kept() -> u64 {
    let sim = Sim::new(5);
    let kept = Arc::new(Mutex::new(0));
    let tell = kept.clone();
    sim.node("a", 1).block_on(0, move || async move {
        let engine = engine("/srv/data").await;
        for (number, value) in [b"first", b"lost!", b"third"].into_iter().enumerate() {
            engine.keyspace(0).set(&key("cut", number), value).unwrap().synced().await.unwrap();
            engine.keyspace(0).set(&key("whole", number), b"value").unwrap().synced().await.unwrap();
        }
        assert_ne!(slot_of("cut"), slot_of("whole"));
        engine.close().await.unwrap();
        drop(engine);
        damage(b"lost!").await;
        let report = repair(Path::new("/srv/data"), &RepairOptions::default()).await.unwrap();
        assert_eq!(report.losses.len(), 1);
        *tell.lock() = report.kept.keys;
    });
    *kept.lock()
}

#[test]
fn a_repair_without_doubts_is_found() {
    assert_eq!(kept(), 1 + 3, "of the cut slot only what came before");
    activate(Some("repair-without-doubts"));
    let kept = kept();
    activate(None);
    assert_eq!(kept, 2 + 3, "it takes what rests on a lost write");
}
