//! Lockgate's engine: every set is checksummed and logged. A set that finds the log behind waits for room in it.

use std::path::Path;

use futures_util::future::join_all;
use lockgate_engine::{Engine, EngineStats, Keyspace, OpError, OpenError};
use lockgate_runtime::{block_on_foreign, now_ns};

use super::{Account, Map, Store, Writers};
use crate::failure::{During, Failure};
use crate::keys::WorkingSet;

/// Memory of segments for each core: as much as its range of addresses holds.
const MEMORY_BYTES_PER_CORE: u64 = 16 << 30;

/// How the engine is opened.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Its cores.
    pub cores: usize,
    /// How much its log may hold unwritten; `None`: as much as by default.
    pub log_unwritten_bytes_max: Option<u64>,
    /// Whether it takes checkpoints by itself.
    pub checkpoints: bool,
}

/// An engine, and its keyspace that everything is in.
pub struct EngineSubject {
    engine: Engine,
    keys: Keyspace,
}

impl EngineSubject {
    /// Opens it in a folder.
    pub fn open(folder: &Path, settings: &Settings) -> Result<EngineSubject, Failure> {
        let engine = open_engine(folder, settings).during("opening the engine")?;
        let keys = engine.keyspace(0);
        Ok(EngineSubject { engine, keys })
    }

    /// Takes a checkpoint, and waits for its end.
    pub fn checkpoint(&self) -> Result<(), Failure> {
        self.engine.checkpoint_blocking().map(drop).during("taking a checkpoint")
    }

    /// Sets, and waits for room in the log as often as there is none.
    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        loop {
            match self.keys.set(key, value) {
                Ok(_not_waited_for) => return Ok(()),
                Err(OpError::LogBehind { slot, .. }) => {
                    let room = block_on_foreign(self.engine.wait_log_room(slot));
                    room.during("waiting for the log")?.during("waiting for the log")?;
                }
                Err(error) => return Err(Failure::during("setting a key", error)),
            }
        }
    }
}

fn open_engine(folder: &Path, settings: &Settings) -> Result<Engine, OpenError> {
    let memory_bytes = MEMORY_BYTES_PER_CORE * settings.cores as u64;
    let builder = Engine::builder(folder.join("engine")).cores(settings.cores).memory_bytes_max(memory_bytes);
    let builder = builder.automatic_checkpoints(settings.checkpoints);
    match settings.log_unwritten_bytes_max {
        Some(bytes) => builder.log_unwritten_bytes_max(bytes).open(),
        None => builder.open(),
    }
}

impl Map for EngineSubject {
    fn look_at<R>(&self, key: &[u8], see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Failure> {
        self.keys.get_with(key, |value, _| value.map(see)).during("getting a key")
    }

    fn get<R>(&self, key: &[u8], see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Failure> {
        // The value is looked at where it was put: to move it would be work of this bench alone.
        let found = self.keys.get(key);
        match &found {
            Ok(Some(value)) => Ok(Some(see(value))),
            _ => found.map(|_| None).during("getting a key"),
        }
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.put(key, value)
    }

    fn look_at_many(&self, keys: &[&[u8]], mut see: impl FnMut(&[u8])) -> Result<(), Failure> {
        let see = |_, value: Option<&[u8]>, _| {
            value.map(&mut see);
        };
        self.keys.get_many_with(keys, see).during("getting keys")
    }

    fn get_many(&self, keys: &[&[u8]], see: impl FnMut(&[u8])) -> Result<(), Failure> {
        match self.keys.get_many(keys) {
            Ok(values) => values.iter().flatten().map(|value| value.as_bytes()).for_each(see),
            Err(error) => return Err(Failure::during("getting keys", error)),
        }
        Ok(())
    }

    fn settle(&self) -> Result<(), Failure> {
        block_on_foreign(self.engine.sync_all()).during("syncing")?.during("syncing")
    }

    fn account(&self) -> Option<Account> {
        Some(accounts(&self.engine.stats()))
    }
}

/// The name of how many live records compactions have copied.
pub const MOVED: &str = "records moved";

/// The engine's own figures, in the order in which they are shown.
fn accounts(stats: &EngineStats) -> Account {
    let bytes = [
        ("live records", stats.live_bytes),
        ("segments", stats.segment_bytes),
        ("indexes", stats.index_bytes),
        ("segments and pins", stats.memory_used_bytes),
        (MOVED, stats.compaction.moved_records),
    ];
    bytes.map(|(name, bytes)| (name.to_owned(), bytes as f64)).into()
}

/// Opens the engine as a store.
pub fn open(folder: &Path, settings: &Settings) -> Result<Box<dyn Store>, Failure> {
    Ok(Box::new(EngineSubject::open(folder, settings)?))
}

impl Store for EngineSubject {
    fn load(&self, set: &WorkingSet) -> Result<(), Failure> {
        let mut value = set.blank();
        for (key, next) in set.pairs() {
            set.begin_with(&mut value, &next);
            self.put(&key, &value)?;
        }
        self.settle()
    }

    fn set_synced(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        let receipt = self.keys.set(key, value).during("setting a key")?;
        receipt.wait_synced().during("waiting for a sync")
    }

    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<Option<bool>, Failure> {
        Ok(Some(Map::get(self, key, see)?.is_some()))
    }

    fn tasks_set_synced(&self, writers: &Writers) -> Result<Option<(u64, f64)>, Failure> {
        let (began_ns, cores) = (now_ns(), self.engine.cores());
        let end_ns = began_ns + writers.time_ms * 1_000_000;
        let (tell, told) = std::sync::mpsc::channel();
        for core in 0..cores {
            let (tell, keys, value) = (tell.clone(), self.keys.clone(), writers.value.clone());
            // Each core has its share of the writers, and each writer its share of the keys.
            let mine: Vec<_> = (core..writers.count).step_by(cores).collect();
            let all = writers.keys.clone();
            let count = writers.count;
            self.engine.runtime().spawn_on(core, move || async move {
                let one = |writer| set_until(&keys, all.iter().skip(writer).step_by(count), &value, end_ns);
                for outcome in join_all(mine.into_iter().map(one)).await {
                    // Nobody listens any more once another one has failed.
                    let _ = tell.send(outcome);
                }
            });
        }
        drop(tell);
        let done = told.iter().sum::<Result<u64, Failure>>()?;
        Ok(Some((done, (now_ns() - began_ns) as f64 / 1e9)))
    }
}

/// One writer among others on a core: how many sets it saw synced.
async fn set_until<'k>(
    keyspace: &Keyspace,
    keys: impl Iterator<Item = &'k [u8; 16]> + Clone,
    value: &[u8],
    end_ns: u64,
) -> Result<u64, Failure> {
    let mut done = 0;
    for key in keys.cycle() {
        keyspace.set(key, value).during("setting a key")?.synced().await.during("waiting for a sync")?;
        done += 1;
        if now_ns() >= end_ns {
            break;
        }
    }
    Ok(done)
}
