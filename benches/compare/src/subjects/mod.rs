//! What is compared: each in a file of its own, behind the same two traits.
//!
//! [`Map`] is what is measured in memory. Its loops are compiled for each subject, so no call is in the way. [`Store`] is
//! what is measured on a disk, where a call through a table does not show. Lockgate's engine is both. All subjects use the
//! system's allocator, and those that hash use foldhash.
//!
//! What is not known here: what is measured, and how often.

mod append;
mod dash_map;
mod engine;
mod fjall;
mod hash_brown;
#[cfg(feature = "lmdb")]
mod lmdb;
mod papaya;
mod redb;
#[cfg(feature = "rocksdb")]
mod rocks;

use std::path::Path;

use clap::ValueEnum;
pub use dash_map::{CloningDashMapSubject, DashMapSubject};
pub use engine::{EngineSubject, MOVED, Settings};
pub use hash_brown::HashBrownSubject;
pub use papaya::PapayaSubject;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::keys::{Key, WorkingSet};

/// The name of Lockgate's engine in all rows.
pub const ENGINE: &str = "engine";
/// The name of what its memory is judged against.
pub const DASH_MAP: &str = "DashMap";
/// The name of the same with copies of values.
pub const CLONING_DASH_MAP: &str = "DashMap, values cloned";
/// The name of what its synced sets are judged against.
pub const APPEND: &str = "append file";

/// A map in memory.
pub trait Map {
    /// Whether it differs from another subject in its `get` alone, so that nothing else of it is measured.
    const ONLY_GETS: bool = false;

    /// Shows the value of a key to `see` where it lies, under the subject's lock or guard. `None`: the key is not there.
    fn look_at<R>(&self, key: &[u8], see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Failure>;

    /// As [`Map::look_at`], by the subject's own `get`. The engine's gives out a copy that may be kept, and holds no lock.
    fn get<R>(&self, key: &[u8], see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, Failure> {
        self.look_at(key, see)
    }

    /// Gives a key a value.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure>;

    /// Shows the values of those of `keys` that are there, by the subject's own call for many if it has one.
    fn look_at_many(&self, keys: &[&[u8]], mut see: impl FnMut(&[u8])) -> Result<(), Failure> {
        for key in keys {
            self.look_at(key, &mut see)?;
        }
        Ok(())
    }

    /// As [`Map::look_at_many`], with copies where [`Map::get`] has some.
    fn get_many(&self, keys: &[&[u8]], see: impl FnMut(&[u8])) -> Result<(), Failure> {
        self.look_at_many(keys, see)
    }

    /// Waits until nothing of what was done goes on in the background.
    fn settle(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// What it says itself about its memory, if it does.
    fn account(&self) -> Option<Account> {
        None
    }
}

/// What a subject says about its own memory, and what its background work did, by name.
pub type Account = Vec<(String, f64)>;

/// A store on a disk.
pub trait Store: Send + Sync {
    /// Loads the working set; on return it is on the disk.
    fn load(&self, set: &WorkingSet) -> Result<(), Failure>;

    /// Gives a key a value; on return it is on the disk.
    fn set_synced(&self, key: &[u8], value: &[u8]) -> Result<(), Failure>;

    /// Shows a key's value, and says whether it is there. `None`: this subject cannot look keys up.
    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<Option<bool>, Failure>;

    /// Whether many may write at the same time.
    fn takes_many_writers(&self) -> bool {
        true
    }

    /// Synced sets by this many tasks on cores of the subject's own, for so long; how many there were, and the seconds that
    /// they took. `None`: it has no such cores.
    fn tasks_set_synced(&self, _writers: &Writers) -> Result<Option<(u64, f64)>, Failure> {
        Ok(None)
    }
}

/// Who writes what, for how long.
pub struct Writers {
    /// How many write at the same time.
    pub count: usize,
    /// For how long, in milliseconds.
    pub time_ms: u64,
    /// The keys that there are to write.
    pub keys: Vec<Key>,
    /// The value.
    pub value: Vec<u8>,
}

/// Opens a store in a folder, with what it has of an earlier time there.
pub type Open = fn(&Path, &Settings) -> Result<Box<dyn Store>, Failure>;

/// All stores: their names, and how to open them.
pub fn stores() -> Vec<(&'static str, Open)> {
    vec![
        (ENGINE, engine::open),
        (APPEND, append::open),
        ("redb", redb::open),
        ("fjall", fjall::open),
        #[cfg(feature = "lmdb")]
        ("LMDB", lmdb::open),
        #[cfg(feature = "rocksdb")]
        ("RocksDB", rocks::open),
    ]
}

/// The maps that a child process can be asked to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum MapKind {
    /// Lockgate's engine.
    Engine,
    /// DashMap.
    DashMap,
    /// hashbrown.
    Hashbrown,
    /// papaya.
    Papaya,
}

impl MapKind {
    /// All of them.
    pub const ALL: [MapKind; 4] = [MapKind::Engine, MapKind::DashMap, MapKind::Hashbrown, MapKind::Papaya];

    /// Its name in rows.
    pub fn name(self) -> &'static str {
        match self {
            MapKind::Engine => ENGINE,
            MapKind::DashMap => DASH_MAP,
            MapKind::Hashbrown => "hashbrown",
            MapKind::Papaya => "papaya",
        }
    }
}
