//! The control log of a single voter on a simulated machine: what was decided survives every end, wherever a compaction
//! is, and damage is told.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockgate_engine::Engine;
use lockgate_runtime::mutations::activate;
use lockgate_runtime::sim::{Control, DiskFaults, PowerLoss, Sim};
use lockgate_runtime::sync::{Arc, Mutex};
use lockgate_runtime::{Event, Runtime, fs, random_u64, sleep};

use super::log::CompactLimits;
use super::{
    Leaving, Opened, always_synced, load_genesis, load_left, load_membership, log_numbers, number_of_file,
    open, save_genesis, save_leaving, save_membership,
};
use crate::control::{
    Entry, EntryBody, Genesis, Incarnation, Name, NodeId, NodeInfo, Origin, decode_entry, encode_entry,
};

const DIRECTORY: &str = "/srv/node/data";
/// Entries in one proposal.
const BATCH: u32 = 3;

/// What is known across lives, and how the present one goes.
#[derive(Default)]
struct Known {
    /// Nodes that were added, and those that may have been.
    decided: u32,
    proposed: u32,
    /// The control logs that had files when the life began, and the one that counted.
    found: BTreeSet<u64>,
    opened: Option<u64>,
    /// The log that is written now.
    number: u64,
    switches: u64,
    problem: Option<String>,
}

#[derive(Clone, Default)]
struct Shared {
    known: Arc<Mutex<Known>>,
    changed: Event,
}

impl Shared {
    fn tell(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.lock());
        self.changed.notify_all();
    }

    async fn wait_for(&self, wanted: impl Fn(&Known) -> bool) {
        loop {
            let changed = self.changed.listen();
            {
                let known = self.known.lock();
                if wanted(&known) || known.problem.is_some() {
                    return;
                }
            }
            changed.await;
        }
    }
}

fn info(node: u32, incarnation: Incarnation) -> NodeInfo {
    let mut name = [0; 20];
    name[..4].copy_from_slice(&node.to_be_bytes());
    let addr = "127.0.0.1:7000".parse().expect("an address");
    NodeInfo { name: Name(name), link: addr, listen: addr, incarnation, voter: node == 1 }
}

async fn open_engine(runtime: &Runtime) -> Engine {
    let builder = Engine::builder(Path::new(DIRECTORY)).cores(1).clustered(true).log_file_bytes(1 << 20);
    builder.open_on(runtime).await.expect("the engine opens")
}

async fn open_store(engine: &Engine) -> Result<Opened, super::StoreError> {
    let boot = engine.boot();
    let me = Incarnation { node: NodeId(1), directory: boot.directory_id, boot: 1 };
    let opened =
        open(engine, Genesis { cluster: [7; 16], generation: 0, nodes: vec![info(1, me)], shards: vec![] })
            .await?;
    opened.log.set_limits(CompactLimits { entries: 20, bytes: 1 << 20 });
    Ok(opened)
}

/// Does what the driver does until consensus has nothing more. False if the log failed.
async fn drive(store: &mut Opened) -> bool {
    while let Some(ready) = store.raft.ready() {
        let Ok(end) = super::append(&store.log, &ready.persist) else { return false };
        for entry in &ready.committed {
            match decode_entry(&entry.data) {
                Ok(decoded) => {
                    store.map.apply(entry.index, &decoded).into_result().expect("every entry is possible");
                }
                Err(_) => store.map.skip(entry.index),
            }
        }
        if let Some(end) = end
            && store.log.wait_synced(end).await.is_err()
        {
            return false;
        }
        store.raft.on_persisted(ready.number);
    }
    store.log.compact_if_due(&mut store.raft, &store.map).is_ok()
}

/// One life: opens, checks what is there, and adds nodes until it ends.
async fn live(runtime: Runtime, shared: Shared) {
    let engine = open_engine(&runtime).await;
    let found = log_numbers(&engine).await.expect("the directory is there");
    let mut store = match open_store(&engine).await {
        Ok(store) => store,
        Err(error) => return shared.tell(|known| known.problem = Some(format!("it does not open: {error}"))),
    };
    while !store.raft.has_applied_own_term() {
        store.raft.tick();
        if !drive(&mut store).await {
            return;
        }
    }
    let (mut last, boot) = (store.map.nodes.len() as u32 - 1, engine.boot().number);
    shared.tell(|known| {
        if !(known.decided..=known.proposed).contains(&last) {
            let what = format!("{last} nodes, {} decided, {} proposed", known.decided, known.proposed);
            known.problem = Some(what);
        }
        (known.found, known.opened, known.number) = (found, Some(store.log.number()), store.log.number());
    });
    for seq in 1.. {
        let incarnation = |node| Incarnation { node: NodeId(node), directory: [9; 16], boot: 1 };
        let entry = |more: u32| Entry {
            origin: Origin { node: NodeId(1), boot, seq: seq * u64::from(BATCH) + u64::from(more) },
            at_ms: 0,
            body: EntryBody::AddNode(info(last + 1 + more, incarnation(last + 1 + more))),
        };
        let entries = (1..=BATCH).map(|more| encode_entry(&entry(more)).expect("it is short")).collect();
        shared.tell(|known| known.proposed = last + BATCH);
        store.raft.propose(entries).expect("a single voter leads on");
        if !drive(&mut store).await {
            return;
        }
        last += BATCH;
        shared.tell(|known| {
            known.decided = last;
            known.switches += u64::from(known.number != store.log.number());
            known.number = store.log.number();
        });
    }
}

/// Every second access takes its time: what is begun first is often done last.
const UNEVEN: DiskFaults = DiskFaults {
    sync_fails_one_in: 0,
    write_fails_one_in: 0,
    read_fails_one_in: 0,
    slow_one_in: 2,
    slow_ns: (100_000, 10_000_000),
    capacity_bytes: None,
};

fn start(control: &Control, shared: &Shared) {
    let runtime = control.start("a", 1);
    shared.known.lock().opened = None;
    let (on, of) = (runtime.clone(), shared.clone());
    runtime.spawn_on(0, move || live(on, of));
}

#[test]
fn what_was_decided_survives_every_life() {
    let (mut switches, mut lives) = (0, 0);
    for seed in 0..24 {
        let (sim, shared) = (Sim::new(seed), Shared::default());
        let (control, of) = (sim.control(), shared.clone());
        sim.run_until(async move {
            for _ in 0..6 {
                start(&control, &of);
                of.wait_for(|known| known.opened.is_some()).await;
                sleep(Duration::from_micros(random_u64() % 60_000)).await;
                match random_u64() % 3 {
                    0 => control.kill("a"),
                    1 => control.cut_power("a", PowerLoss::All),
                    _ => control.cut_power("a", PowerLoss::Seeded),
                }
            }
        });
        let known = shared.known.lock();
        assert_eq!(known.problem, None, "seed {seed}");
        (switches, lives) = (switches + known.switches, lives + 6);
    }
    assert!(switches > lives, "{switches} compactions in {lives} lives");
}

/// Ends the machine `after_us` after its first compaction, and says which logs were left and which one counted.
fn end_after_the_switch(after_us: u64, loss: PowerLoss) -> (BTreeSet<u64>, u64) {
    let (sim, shared) = (Sim::new(after_us), Shared::default());
    let (control, of) = (sim.control(), shared.clone());
    sim.run_until(async move {
        start(&control, &of);
        of.wait_for(|known| known.switches == 1).await;
        control.set_disk_faults("a", UNEVEN);
        sleep(Duration::from_micros(after_us)).await;
        control.cut_power("a", loss);
        control.set_disk_faults("a", DiskFaults::default());
        start(&control, &of);
        of.wait_for(|known| known.opened.is_some()).await;
    });
    let mut known = shared.known.lock();
    assert_eq!(known.problem, None, "{after_us} us after the switch");
    (std::mem::take(&mut known.found), known.opened.expect("it was opened"))
}

#[test]
fn a_compaction_may_end_anywhere() {
    let mut seen = BTreeSet::new();
    for step in 0..60 {
        for loss in [PowerLoss::All, PowerLoss::Seeded] {
            let (found, counted) = end_after_the_switch(step * 1_000, loss);
            seen.insert((found.contains(&0), found.contains(&1), counted));
        }
    }
    // Before the new log's first record was on the disk, after that, and after the old log's files were removed.
    for state in [(true, true, 0), (true, true, 1), (false, true, 1)] {
        assert!(seen.contains(&state), "{state:?} was never there: {seen:?}");
    }
}

/// Lets a life compact a few times, ends it, and does something to the directory. What does the next start say?
fn open_after(harm: impl AsyncFnOnce(PathBuf) + Send + 'static) -> Result<u64, String> {
    let (sim, shared) = (Sim::new(11), Shared::default());
    let (control, of) = (sim.control(), shared.clone());
    let result = Arc::new(Mutex::new(None));
    let told = Arc::clone(&result);
    sim.run_until(async move {
        start(&control, &of);
        of.wait_for(|known| known.switches == 3).await;
        sleep(Duration::from_millis(5)).await;
        control.kill("a");
        let runtime = control.start("a", 1);
        let (on, changed) = (runtime.clone(), of.changed.clone());
        let harmed = Arc::clone(&told);
        runtime.spawn_on(0, move || async move {
            let engine = open_engine(&on).await;
            harm(engine.log_dir()).await;
            let opened = open_store(&engine).await;
            let opened = opened.map(|store| store.log.number()).map_err(|error| error.to_string());
            *harmed.lock() = Some(opened);
            changed.notify_all();
        });
        loop {
            let changed = of.changed.listen();
            if told.lock().is_some() {
                return;
            }
            changed.await;
        }
    });
    let opened = result.lock().take();
    opened.expect("it was opened or refused")
}

async fn control_files(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).await.expect("the directory is there");
    files.iter().filter(|file| number_of_file(file).is_some()).map(|file| dir.join(file)).collect()
}

#[test]
fn damage_is_told_and_never_taken_for_a_new_log() {
    let sound = open_after(async |_| {});
    assert!(matches!(sound, Ok(3..)), "{sound:?}");
    let torn = open_after(async |dir| {
        // The snapshot is the log's first record: bytes of it, and everything after them.
        for path in control_files(&dir).await {
            let mut bytes = fs::read(&path).await.expect("it can be read");
            bytes[4_096 + 64 + 200..].fill(0);
            fs::write_atomic(&path, bytes).await.expect("it can be written");
        }
    });
    let error = torn.expect_err("nothing is left");
    assert!(error.contains("does not begin with a whole snapshot") && error.contains("restore"), "{error}");
    let damaged = open_after(async |dir| {
        for path in control_files(&dir).await {
            let mut bytes = fs::read(&path).await.expect("it can be read");
            bytes[4_096 + 64 + 200] ^= 1;
            fs::write_atomic(&path, bytes).await.expect("it can be written");
        }
    });
    let error = damaged.expect_err("later records prove that it was there");
    assert!(error.contains("damaged"), "{error}");
    let gone = open_after(async |dir| {
        for path in control_files(&dir).await {
            fs::remove_file(&path).await.expect("it can be removed");
        }
    });
    let error = gone.expect_err("there was a log");
    assert!(error.contains("missing"), "{error}");
}

/// Whether what one of the small files says is still there after a power cut, if it was saved with that bug.
fn outlives_a_power_cut(file: &'static str, bug: Option<&'static str>) -> bool {
    let sim = Sim::new(12);
    let node = sim.node("a", 1);
    let on = node.clone();
    node.block_on(0, move || async move {
        let engine = open_engine(&on).await;
        activate(bug);
        let me = Incarnation { node: NodeId(1), directory: engine.boot().directory_id, boot: 1 };
        let genesis = Genesis { cluster: [7; 16], generation: 0, nodes: vec![info(1, me)], shards: vec![] };
        let saved = match file {
            "genesis" => save_genesis(&engine, &genesis).await,
            "membership" => save_membership(&engine, [7; 16], NodeId(3)).await,
            "leaving" => save_leaving(&engine, &Leaving { generation: 5, next: None }).await,
            _ => always_synced(&engine, false).await.map(drop),
        };
        saved.expect("saved");
    });
    activate(None);
    sim.control().cut_power("a", PowerLoss::All);
    let node = sim.node("a", 1);
    let on = node.clone();
    node.block_on(0, move || async move {
        let engine = open_engine(&on).await;
        // What cannot be read is not there either.
        match file {
            "genesis" => matches!(load_genesis(&engine).await, Ok(Some(_))),
            "membership" => matches!(load_membership(&engine, [7; 16]).await, Ok(Some(_))),
            "leaving" => matches!(load_left(&engine, 5).await, Ok(Some(_))),
            _ => !always_synced(&engine, true).await.expect("read"),
        }
    })
}

#[test]
fn what_a_node_says_of_itself_is_durable_when_it_is_saved() {
    for (file, bug) in [
        ("genesis", "unsynced-genesis"),
        ("membership", "unsynced-membership"),
        ("leaving", "unsynced-leaving"),
        ("answers", "unsynced-answers-marker"),
        ("genesis", "unsynced-replacement"),
        // The engine's meta file does not show it: the directory is synced again before there is a log in it.
        ("leaving", "unsynced-replacement-name"),
    ] {
        assert!(outlives_a_power_cut(file, None), "{file}");
        assert!(!outlives_a_power_cut(file, Some(bug)), "{file}: {bug} is without effect");
    }
}
