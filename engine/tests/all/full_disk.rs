//! A disk that is full, under load: writes are refused early and by name, nothing acknowledged is lost, and when there is
//! space again writes go on.

use std::time::Duration;

use lockgate_engine::{Engine, Gate, OpError, Term};
use lockgate_runtime::sim::{Control, DiskFaults, PowerLoss, Sim};
use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{Runtime, sleep, spawn, timeout};

use crate::common::{FIRST, import, key, own, slot_of};

const FILE_BYTES: u64 = 64 << 10;
const WRITERS: u64 = 6;

/// What each writer was told: so many writes are synced.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<u64>>>);

async fn open(runtime: Runtime, clustered: bool) -> Engine {
    let builder = Engine::builder("/srv/a").cores(2).log_file_bytes(FILE_BYTES).clustered(clustered);
    builder.open_on(&runtime).await.expect("opened")
}

fn start(control: &Control, clustered: bool) -> (Runtime, Engine) {
    let runtime = control.start("a", 2);
    let on = runtime.clone();
    let engine = runtime.block_on(0, move || open(on, clustered));
    (runtime, engine)
}

/// Writes values that count up, each synced, and waits whenever the engine has no room.
async fn write(engine: Engine, writer: u64, told: Told) {
    let name = key(&writer.to_string(), writer as usize);
    let mut number = told.0.lock()[writer as usize];
    loop {
        let value = [&(number + 1).to_le_bytes()[..], &[7; 600]].concat();
        match engine.keyspace(0).set(&name, &value) {
            Ok(receipt) => {
                receipt.synced().await.expect("synced");
                number += 1;
                told.0.lock()[writer as usize] = number;
            }
            Err(OpError::DiskFull { slot, source }) => {
                assert!(source.to_string().contains("the disk is full"), "{source}");
                engine.wait_log_room(slot).await.expect("a full disk passes");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn read(engine: &Engine, writer: u64) -> u64 {
    let value = engine.keyspace(0).get(&key(&writer.to_string(), writer as usize)).expect("reads go on");
    value.map_or(0, |value| u64::from_le_bytes(value[..8].try_into().expect("8 bytes")))
}

fn pass(sim: &Sim, time: Duration) {
    sim.run_until(async move { sleep(time).await });
}

fn room(control: &Control, bytes: Option<u64>) {
    let capacity_bytes = bytes.map(|bytes| control.disk_bytes("a") + bytes);
    control.set_disk_faults("a", DiskFaults { capacity_bytes, ..DiskFaults::default() });
}

#[test]
fn nothing_acknowledged_is_lost_and_writes_go_on() {
    for seed in 0..10 {
        let sim = Sim::new(seed);
        let control = sim.control();
        let told = Told(Arc::new(Mutex::new(vec![0; WRITERS as usize])));
        let mut before = 0;
        for life in 0..3 {
            let (runtime, engine) = start(&control, false);
            for writer in 0..WRITERS {
                let least = told.0.lock()[writer as usize];
                assert!(read(&engine, writer) >= least, "seed {seed}, life {life}: {least} were synced");
            }
            let (loaded, of) = (engine.clone(), told.clone());
            runtime.spawn_on(0, move || async move {
                for writer in 0..WRITERS {
                    spawn(write(loaded.clone(), writer, of.clone()));
                }
            });
            pass(&sim, Duration::from_millis(20));
            room(&control, Some(seed * 20_000));
            pass(&sim, Duration::from_secs(20));
            let full = told.0.lock().clone();
            assert!(full.iter().sum::<u64>() > before, "seed {seed}: it wrote until the disk was full");
            assert!(engine.stats().cores.iter().any(|core| core.log_disk_full), "seed {seed}");
            let polls = control.polls("a");
            pass(&sim, Duration::from_secs(20));
            assert!(control.polls("a") - polls < 4_000, "nobody spins");
            assert_eq!(*told.0.lock(), full, "all wait");
            (0..WRITERS).for_each(|writer| assert!(read(&engine, writer) >= full[writer as usize]));
            if life == 1 {
                // It ends while it is full. Nothing may be written to open the next life.
                control.cut_power("a", PowerLoss::All);
                room(&control, None);
            } else {
                room(&control, None);
                let all_go_on = || full.iter().zip(&*told.0.lock()).all(|(full, now)| now > full);
                let step = Duration::from_millis(20);
                let steps = (0..500).take_while(|_| !all_go_on()).map(|_| pass(&sim, step)).count();
                assert!(steps < 500, "seed {seed}: {full:?}, and after 10 s {:?}", told.0.lock());
                assert!(engine.stats().cores.iter().all(|core| !core.log_disk_full));
                control.kill("a");
            }
            before = told.0.lock().iter().sum();
            std::mem::forget(engine);
        }
    }
}

#[test]
fn ownership_changes_on_a_full_disk() {
    let sim = Sim::new(1);
    let control = sim.control();
    let (runtime, engine) = start(&control, true);
    let (slot, other) = (slot_of("x"), slot_of("y"));
    own(&engine, slot, FIRST, 1);
    import(&engine, other, FIRST);
    pass(&sim, Duration::from_millis(100));
    room(&control, Some(0));
    let writing = engine.clone();
    runtime.block_on(0, move || async move {
        loop {
            match writing.keyspace(0).set(&key("x", 1), &[1; 900]) {
                Ok(receipt) => receipt.synced().await.expect("synced"),
                Err(error) => break assert!(matches!(error, OpError::DiskFull { .. }), "{error}"),
            }
        }
    });
    let changing = engine.clone();
    runtime.block_on(0, move || async move {
        let changed = async {
            changing.freeze(slot, FIRST).expect("frozen");
            changing.follow(slot, FIRST).expect("followed");
            changing.own(slot, FIRST, Term(2)).expect("owned anew");
            changing.drop_slot(other, FIRST).expect("dropped");
            changing.sync_all().await.expect("on the disk");
        };
        timeout(Duration::from_secs(10), changed).await.expect("control finds room");
    });
    control.cut_power("a", PowerLoss::All);
    room(&control, None);
    std::mem::forget(engine);
    let (_runtime, engine) = start(&control, true);
    assert_eq!(engine.slot_status(slot).term, Term(2));
    assert_eq!(engine.slot_status(other).gate, Gate::Absent);
    std::mem::forget(engine);
}
